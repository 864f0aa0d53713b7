"""Find the sample's entities by pictures of theirs from other viewpoints: article R@1, R@5.

    python benchmarks/entity_search.py ../shared/data [--model NAME] [--factory HNSW32]
        [--distractors] [--patches] [--identify package:MODULE/FILE.gguf]

The gallery is made of five sets of photos with the names of what they show: the pictures of the
sample's own passages, `landmarks-cc0`, `photos` (its second set by the names of its files), one
photo per class of `imagenet-samples`, and up to 12 per class of `caltech101`. A photo is left out
if it comes from the same source as a question's, or if its vector is all but the same (cosine above
.9). With --distractors, all other photos of `caltech101` and `imagenet-samples` are pictures of
further articles, one per class: those that may show an entity of the sample under another name are
left out by name alone, so that a few of the wrong articles may be right.

The queries are the photos of the sample's questions, each once. "covered" are those whose entity
has a picture in the gallery. Other articles have none, and cannot be found. For comparison, "names"
is the R@1 of BM25 over all passages with the names of the photo's three likeliest ImageNet classes,
and "none" that of an order that knows nothing of the photo: one divided by the articles of the
gallery. With --identify, a reader that does not see is told the three classes and picks one of the
five articles found. With --patches, photos are compared patch by patch (MaxSim over the 7 x 7
patches of EfficientNet-Lite0); near copies are still told by the vectors of whole photos.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ravqa.core.factory import build_part
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import Part, validate
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.galleries import plain_name
from ravqa.describers.imagenet import ImageNetTagger
from ravqa.readers import READERS
from ravqa.rerankers.identify import Identify
from ravqa.retrievers.bm25 import BM25Retriever
from ravqa.retrievers.gallery import GalleryRetriever

SAMPLE = Path(__file__).parent.parent / "ravqa/datasets/sample"
NEAR = 0.9
DISTRACTORS = ("caltech101", "imagenet-samples")
# Names of files that are not their subject's usual name.
ALIASES = {
    "colloseum": "Colosseum",
    "great wall": "Great Wall of China",
    "great pyramid": "Great Pyramid of Giza",
    "great pyramid of khufu": "Great Pyramid of Giza",
    "kutub minar": "Qutub Minar",
    "empire state": "Empire State Building",
    "us capitol": "United States Capitol",
    "opera house": "Sydney Opera House",
    "burj": "Burj Khalifa",
    "burj al arab": "Burj Al Arab",
    "zimni palace": "Winter Palace",
    "le musee": "Louvre Palace",
    "st basils cathedral": "Saint Basil's Cathedral",
    "great sphinx": "Great Sphinx of Giza",
    "two windmills": "Windmill",
    "hammer": "Claw hammer",
    "screw driver": "Screwdriver",
    "wrench": "Adjustable wrench",
    "plier": "Pliers",
    "measuring tape": "Tape measure",
    "tweezer": "Tweezers",
    "solar": "Solar panel",
    "cup": "Teacup",
    "bulb": "Light bulb",
    "pan": "Frying pan",
    "plate": "Dinner plate",
    "erasers": "Eraser",
    "blackslate": "Chalkboard",
    "weighing machine": "Weighing scale",
    "bison": "American bison",
    "chameleon": "Indian chameleon",
    "kangaroo": "Eastern grey kangaroo",
    "crocodile": "Saltwater crocodile",
    "panda": "Giant panda",
    "chicken": "Domestic chicken",
    "cow": "Holstein cow",
    "cat": "House cat",
    "pig": "Domestic pig",
    "dog": "German shepherd",
    "sheep": "Domestic sheep",
    "the great wall of china": "Great Wall of China",
}


def candidates(data: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield name, file and source ("" if unknown) of every photo."""
    for row in _json(SAMPLE / "photos.json"):
        if "image_id" not in row:
            yield row["entity"], SAMPLE / row["file"], row["source"]
    for path in sorted((data / "landmarks-cc0").glob("*.jpg")):
        yield path.stem.replace("-", " "), path, ""
    for row in _json(data / "photos/photos.json"):
        yield row["title"], data / "photos" / row["image"], row["source"]
    for row in _json(data / "photos/second_view.json"):
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", Path(row["file"]).stem.rpartition("__")[2])
        yield words.rstrip("0123456789").lower(), data / "photos" / row["file"], row["source"]
    for row in _json(data / "imagenet-samples/classes.json"):
        for lemma in row["lemmas"]:
            yield lemma, data / "imagenet-samples/images" / row["image"], ""
    for folder in sorted((data / "caltech101").iterdir()):
        for path in sorted(folder.glob("*.jpg")) if folder.is_dir() else ():
            yield folder.name.replace("_", " "), path, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--factory", default="Flat")
    parser.add_argument("--distractors", action="store_true")
    parser.add_argument("--patches", action="store_true")
    parser.add_argument("--identify", metavar="MODEL")
    arguments = parser.parse_args()
    photos = _json(SAMPLE / "photos.json")
    queries = [row for row in photos if "image_id" in row]
    asked = [
        Question(i, "", image=SAMPLE / row["file"], pos_articles=(row["entity"],))
        for i, row in enumerate(queries)
    ]
    options: dict[str, Any] = {
        "encoder": {"name": "image", "model": arguments.model},
        "index": {"name": "faiss", "factory": arguments.factory},
        "articles": 5,
        "per_article": 1,
    }
    retriever = GalleryRetriever(validate(GalleryRetriever.Config, options, "retriever"))
    encoder = retriever._search.encoder
    of_questions = np.concatenate(encoder.encode_question(asked))
    gallery = pictures(photos, arguments.data, arguments.distractors)
    vectors = np.concatenate(encoder.encode_passages(gallery))
    near = (vectors @ of_questions.T).max(1) > NEAR
    kept = {p.passage_id: p for p, too_near in zip(gallery, near, strict=True) if not too_near}
    covered = {p.title for p in kept.values()}
    print(f"{len(kept)} pictures of {len(covered)} articles; left out as the same: {near.sum()}")
    print("without a picture:", ", ".join(sorted({row["entity"] for row in photos} - covered)))
    if arguments.patches:
        options["encoder"]["patches"] = True
        options["index"] = {"name": "exact"}
        retriever = GalleryRetriever(validate(GalleryRetriever.Config, options, "retriever"))
    described = [replace(p, text=f"A picture of {p.title}.") for p in kept.values()]
    retriever.prepare(Corpus(described))
    found = [[kept[h.passage_id].title for h in hits] for hits in retriever.retrieve(asked, 5)]
    tags = ImageNetTagger(ImageNetTagger.Config()).describe(
        [q.image for q in asked if q.image is not None]
    )
    told = [replace(q, description=d) for q, d in zip(asked, tags, strict=True)]
    columns = {
        "R@1": [q["entity"] in row[:1] for q, row in zip(queries, found, strict=True)],
        "R@5": [q["entity"] in row for q, row in zip(queries, found, strict=True)],
        "names": by_names(told),
        "none": [(q["entity"] in covered) / len(covered) for q in queries],
    }
    if arguments.identify:
        chosen = identified(told, found, arguments.identify)
        columns["picked"] = [q["entity"] == name for q, name in zip(queries, chosen, strict=True)]
    print(f"{'':20}{'photos':>8}" + "".join(f"{name:>8}" for name in columns))
    for kind in ("animal", "thing", "monument", None):
        own = [i for i, row in enumerate(queries) if kind in (row["kind"], None)]
        with_picture = [i for i in own if queries[i]["entity"] in covered]
        for what, some in (("", own), ("covered", with_picture)):
            values = [np.mean([column[i] for i in some]) for column in columns.values()]
            print(
                f"{kind or 'all':10}{what:10}{len(some):8}" + "".join(f"{v:8.3f}" for v in values)
            )


def pictures(photos: list[dict[str, Any]], data: Path, distractors: bool) -> list[Passage]:
    """Return the pictures of the sample's entities and, if asked for, those of other things."""
    entities: dict[str, str] = {}
    for row in photos:
        for name in (row["entity"], *row["other_names"]):
            entities.setdefault(plain_name(name), row["entity"])
    known = {row["source"] for row in photos if "image_id" in row}
    own: list[tuple[str, Path]] = []
    others: dict[Path, str] = {}
    for name, path, source in candidates(data):
        entity = entities.get(plain_name(ALIASES.get(name.lower(), name)))
        if source in known or not path.is_file():
            continue
        if entity:
            own.append((entity, path))
        elif distractors and path.parts[len(data.parts)] in DISTRACTORS:
            others.setdefault(path, name)
    taken = {path for _, path in own}
    own += [(name, path) for path, name in others.items() if path not in taken]
    return [
        Passage(str(i), "", title=name, image=path)
        for i, (name, path) in enumerate(dict.fromkeys(own))
    ]


def by_names(told: list[Question]) -> list[bool]:
    """Return whether BM25 with the names of ImageNet's classes finds each question's article."""
    retriever = BM25Retriever(BM25Retriever.Config())
    corpus = Corpus.read(SAMPLE / "passages.jsonl")
    retriever.prepare(corpus)
    asked = [replace(q, question="this") for q in told]
    return [
        bool(hits) and not set(q.pos_articles).isdisjoint(corpus[hits[0].passage_id].article_names)
        for q, hits in zip(asked, retriever.retrieve(asked, 1), strict=True)
    ]


def identified(told: list[Question], found: list[list[str]], model: str) -> list[str]:
    """Return which of the articles found a reader picks for each question; "" if there are none."""
    reader = build_part(READERS, Part(name="transformers-llm", model=model), "reader")
    stage = Identify(Identify.Config(articles=5), reader)
    asked = [replace(q, question="What is this?") for q in told]
    shown = [
        [(Hit(name, 1.0, rank), Passage(name, "", title=name)) for rank, name in enumerate(row, 1)]
        for row in found
    ]
    picked = stage.rerank(asked, shown)
    return [hits[0].passage_id if isinstance(hits, list) and hits else "" for hits in picked]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
