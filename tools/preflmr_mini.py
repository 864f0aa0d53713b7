"""Makes ravqa/flmr/preflmr_mini.safetensors: PreFLMR-mini's projections (docs/preflmr-mini.md).

python tools/preflmr_mini.py set-up FEATURES.npz   # names from ImageNet's classes; photo token
python tools/preflmr_mini.py save FOLDER           # the whole model, for ravqa train retriever
python tools/preflmr_mini.py take CHECKPOINT       # the trained name tokens
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from ravqa.core.locations import SAMPLE
from ravqa.datasets.base import DatasetRequest, Problems, load_dataset
from ravqa.datasets.bundled import Edition
from ravqa.describers.imagenet import class_glosses, class_ids, class_names
from ravqa.encoders import mini
from ravqa.encoders.mini_query import CLASSES, FILE, PHOTO_RANK, unpacked
from ravqa.flmr import FLMRModelForRetrieval
from ravqa.flmr.checkpoints import read_tensors
from ravqa.images.efficientnet import EfficientNetLite0, pooled

LAST = "context_vision_projection.model.2."
PHOTO = "context_photo_projection.model."
_CLASSES = {"in1", "in2"}  # sources of features that are labelled by ImageNet's classes
_GROUPED = {"dsc", "hist"}  # several photos of one place
_LEFT_OUT = {
    "weavly",  # photos that the sample has
    *("beta", "flickr", "holidays", "infoseek", "okvqa"),  # names do not tell what they show
}
# Other names of what the sample has, of its parts and kinds, and of where it stands.
_OTHER_NAMES = {
    *("alai minar", "alai darwaza", "iron pillar", "jamali kamali"),  # beside Qutub Minar
    *("acropolis", "china wall", "christ redeemer", "sydney opera", "statue liberty", "michel"),
    *("paramids", "pyramid", "minaret", "stone", "eiffel", "paris", "pont alexandre", "roma"),
    *("berlim", "berlin", "fussen", "schwangau", "alpsee", "london", "westminster", "zaan"),
    *("cock", "buffalo", "parrot", "dholak", "mridangam", "pakhawaj", "tabla"),
    *("brief monuments", "download"),  # unknown
}


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("set-up").add_argument("features", type=Path)
    commands.add_parser("save").add_argument("folder", type=Path)
    examples = commands.add_parser("examples")
    examples.add_argument("features", type=Path)
    examples.add_argument("folder", type=Path)
    commands.add_parser("take").add_argument("checkpoint", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "set-up":
        set_up(arguments.features)
    elif arguments.command == "save":
        model, processor, _ = mini.shipped("the checkpoint")
        model.save_pretrained(arguments.folder)
        processor.save_pretrained(arguments.folder)
    elif arguments.command == "examples":
        write_examples(arguments.features, arguments.folder)
    else:
        take(arguments.checkpoint)


def set_up(features: Path) -> None:
    """Write the file with untrained name tokens."""
    torch.manual_seed(0)
    model, processor = mini.without_projections("the checkpoint")
    tokenizer = processor.context_tokenizer
    texts = Texts(model, tokenizer)
    table = class_table(texts)  # [8, 1000, dim]
    weight = (table / 2).transpose(1, 2).reshape(-1, CLASSES)  # [8 x dim, 1000]
    name = f"{LAST}weight"
    state = mini.packed({name: weight}, rows=frozenset({name}))
    # The rounded weights, so that an image without any class has no name.
    state[f"{LAST}bias"] = unpacked(state)[name].sum(1)
    directions, share = quiet_directions(texts)
    print(f"energy of texts in the photo's directions: {share:.3f}")
    mean, whitening = whitened(photos(features)[0])
    photo = {
        f"{PHOTO}0.weight": whitening,
        f"{PHOTO}0.bias": -whitening @ mean,
        f"{PHOTO}1.weight": directions,
    }
    write({**state, **mini.packed(photo, rows=frozenset())})


def take(checkpoint: Path) -> None:
    """Put a trained checkpoint's projections into the file."""
    trained = FLMRModelForRetrieval.from_pretrained(str(checkpoint)).state_dict()
    new = {key: trained[key] for key in unpacked(read_tensors(FILE))}
    write(mini.packed(new, rows=frozenset({f"{LAST}weight"})))


def write(state: dict[str, Tensor]) -> None:
    """Write the file."""
    save_file(state, str(FILE))
    FILE.chmod(0o644)
    print(f"{FILE}: {FILE.stat().st_size / 1e6:.2f} MB")


class Texts:
    """Vectors of texts by the model's text encoder."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer

    def states(self, texts: Sequence[str]) -> list[tuple[Tensor, Any]]:
        """Return states [tokens, dim] and encoding of each text; places are shifted by `. `."""
        out: list[Any] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            batch = self.tokenizer([texts[i] for i in rows], padding="longest")
            with torch.inference_mode():
                states = self.model.context_text_encoder(
                    batch["input_ids"], batch["attention_mask"]
                ).last_hidden_state
            for row, i in enumerate(rows):
                count = int(batch["attention_mask"][row].sum())
                out[i] = states[row, :count].clone(), batch.encodings[row]
        return out

    def means(self, texts: Sequence[str]) -> Tensor:
        """Return the mean vector of each text's words, of unit length; [texts, dim]."""
        return normalize(torch.stack([s[2:-1].mean(0) for s, _ in self.states(texts)]), dim=-1)

    def pieces(self, before: str, names: Sequence[str], after: Sequence[str], at: int) -> Tensor:
        """Return the vector of a name's word-piece number `at` in its text; [names, dim]."""
        shift = self.tokenizer.prefix_length + len(before)
        texts = [before + name + rest for name, rest in zip(names, after, strict=True)]
        found = []
        for name, (states, encoding) in zip(names, self.states(texts), strict=True):
            inside = [
                i
                for i, (begin, end) in enumerate(encoding.offsets[: len(states)])
                if shift <= begin < end <= shift + len(name)
            ]
            found.append(states[inside[at]])
        return normalize(torch.stack(found), dim=-1)


def class_table(texts: Texts) -> Tensor:
    """Return eight text vectors of each ImageNet class; [8, 1000, dim]."""
    lemmas = [names for names, _ in class_names()]
    first = [names[0] for names in lemmas]
    glosses = class_glosses()
    defined = [f"{name}: {gloss}" for name, gloss in zip(first, glosses, strict=True)]
    return torch.stack(
        [
            texts.means(first),
            texts.pieces("The ", first, [""] * len(first), 0),
            texts.pieces("", first, [f": {gloss}" for gloss in glosses], -1),
            *(texts.means([n[min(i, len(n) - 1)] for n in lemmas]) for i in (1, 2)),
            texts.means([kinds[0] for _, kinds in class_names()]),
            texts.means(glosses),
            texts.means(defined),
        ]
    )


def quiet_directions(texts: Texts) -> tuple[Tensor, float]:
    """Return the directions [dim, rank] in which words have least energy, and its share."""
    words = [
        f"{names[0]}: {gloss}"
        for (names, _), gloss in zip(class_names(), class_glosses(), strict=True)
    ]
    rows = normalize(torch.cat([states[2:-1] for states, _ in texts.states(words)]), dim=-1)
    values, vectors = torch.linalg.eigh(rows.double().T @ rows.double())
    share = values[:PHOTO_RANK].sum() / values.sum()
    return vectors[:, :PHOTO_RANK].float(), float(share)


def photos(path: Path) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Return features [photos, 1280] and their rows, without the sample's photos and entities.

    Entities are found by name; photos without telling names are left out.

    Beside the file NAME.npz with the array `pooled` is NAME.json: a list with the `source`, `label`
    and `file` of each row.
    """
    rows = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    pooled = np.load(path)["pooled"].astype(np.float64)
    entities = sample_entities() | {plain(name) for name in _OTHER_NAMES}
    classes = {
        wnid
        for wnid, (names, kinds) in zip(class_ids(), class_names(), strict=True)
        if any(plain(name) in entities for name in (*names, kinds[0]))
    }
    long = [name for name in entities if len(name) > 3]

    def kept(row: dict[str, str]) -> bool:
        if row["source"] in _LEFT_OUT or row["label"] in classes:
            return False
        texts = row["label"], row["file"]
        if any(name in plain(text) for name in long for text in texts):
            return False
        return entities.isdisjoint(re.findall(r"[a-z]+", " ".join(texts).lower()))

    keep = [i for i, row in enumerate(rows) if kept(row)]
    print(f"features of {len(keep)} photos; {len(rows) - len(keep)} left out")
    return pooled[keep], [rows[i] for i in keep]


def write_examples(features: Path, folder: Path) -> None:
    """Write examples for ravqa train retriever: photos with texts, and photos of the same thing."""
    found, rows = photos(features)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "features.npy", found.astype(np.float16))
    defined = {
        wnid: {"id": wnid, "title": names[0], "text": gloss}
        for wnid, (names, _), gloss in zip(class_ids(), class_names(), class_glosses(), strict=True)
    }
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row["source"] in _GROUPED:
            groups[row["source"], row["label"]].append(i)

    def stored(i: int) -> dict[str, Any]:
        return {"file": "features.npy", "row": i}

    named = [
        {"question": "?", "features": stored(i), "positive": defined[row["label"]]}
        for i, row in enumerate(rows)
        if row["source"] in _CLASSES and row["label"] in defined
    ]
    write_lines(folder / "named.jsonl", named)
    paired = []
    for (source, label), members in groups.items():
        title = None if source == "holidays" else re.sub(r"[\W_]+", " ", label).strip()
        for i in members:
            passages = [
                {"id": f"photo {j}", "title": title, "text": "A photo.", "features": stored(j)}
                for j in members
                if j != i
            ]
            if passages:
                example = {"question": "?", "features": stored(i), "positives": passages}
                paired.append(example)
    write_lines(folder / "paired.jsonl", paired)
    write_validation(folder)


def write_validation(folder: Path) -> None:
    """Write the sample's questions for choosing settings, with the features of their photos."""
    edition = Edition(2)
    request = DatasetRequest(split="train2014", options={"edition": 2}, problems=Problems())
    questions = load_dataset("okvqa", request).questions
    passages = list(edition.passages().values())
    images = sorted({str(record.image) for record in (*questions, *passages) if record.image})
    vision = EfficientNetLite0("the examples")
    rows = [pooled(vision.feature_maps([Path(image)])).numpy() for image in images]
    np.save(folder / "validation.npy", np.concatenate(rows))

    def stored(image: Path | None) -> dict[str, Any]:
        if image is None:
            return {}
        return {"features": {"file": "validation.npy", "row": images.index(str(image))}}

    examples: list[dict[str, Any]] = [
        {"id": q.question_id, "question": q.question, "answers": q.answers, **stored(q.image)}
        for q in questions
    ]
    # Passages come with examples: the first one names all that are searched.
    examples[0]["negatives"] = [
        {"id": p.passage_id, "title": p.title, "text": p.text, **stored(p.image)} for p in passages
    ]
    write_lines(folder / "validation.jsonl", examples)


def write_lines(path: Path, examples: list[dict[str, Any]]) -> None:
    """Write one example a line."""
    text = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(examples)} examples")


def sample_entities() -> set[str]:
    """Return the names of what the sample has photos of, in either edition."""
    found = set()
    for path in SAMPLE.rglob("photos.json"):
        for photo in json.loads(path.read_text(encoding="utf-8")):
            found |= {plain(name) for name in (photo["entity"], *photo.get("other_names", ()))}
    landmarks = json.loads((SAMPLE / "edition2" / "landmarks.json").read_text(encoding="utf-8"))
    return (found | {plain(name) for name in landmarks["photos"]}) - {""}


def plain(text: str) -> str:
    """Return a name's letters and digits alone, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def whitened(features: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the mean [1280] and the map [rank, 1280] to whitened principal components."""
    mean = features.mean(0)
    centred = features - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(features))
    best = np.argsort(-values)[:PHOTO_RANK]
    share = values[best].sum() / values.sum()
    print(f"variance of features in {PHOTO_RANK} components: {share:.3f}")
    components = vectors[:, best]
    components *= np.sign(components[np.abs(components).argmax(0), np.arange(len(best))])
    return torch.tensor(mean).float(), torch.tensor((components / np.sqrt(values[best])).T).float()


if __name__ == "__main__":
    main()
