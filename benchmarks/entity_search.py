"""Find the sample's entities by pictures of theirs from other viewpoints: article R@1, R@5.

    python benchmarks/entity_search.py ../shared/data [--model NAME] [--factory HNSW32]

The gallery is made of five sets of photos with the names of what they show: the pictures of the
sample's own passages, `landmarks-cc0`, `photos` (its second set by the names of its files), one
photo per class of `imagenet-samples`, and up to 12 per class of `caltech101`. A photo is left out
if it comes from the same source as a question's, or if its vector is all but the same (cosine above
.9). The queries are the photos of the sample's questions, each once. "covered" are those whose
entity has a picture in the gallery. Other articles have none, and cannot be found. For comparison,
"names" is the R@1 of BM25 over all passages with the names of the photo's three likeliest ImageNet
classes; without names or pictures there is nothing to go by.
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

from ravqa.core.records import Passage, Question
from ravqa.core.settings import validate
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.galleries import plain_name
from ravqa.describers.imagenet import ImageNetTagger
from ravqa.retrievers.bm25 import BM25Retriever
from ravqa.retrievers.gallery import GalleryRetriever

SAMPLE = Path(__file__).parent.parent / "ravqa/datasets/sample"
NEAR = 0.9
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
    arguments = parser.parse_args()
    photos = _json(SAMPLE / "photos.json")
    entities: dict[str, str] = {}
    for row in photos:
        for name in (row["entity"], *row["other_names"]):
            entities.setdefault(plain_name(name), row["entity"])
    queries = [row for row in photos if "image_id" in row]
    known = {row["source"] for row in queries}
    gallery = []
    for name, path, source in candidates(arguments.data):
        entity = entities.get(plain_name(ALIASES.get(name.lower(), name)))
        if entity and source not in known and path.is_file():
            gallery.append((entity, path))
    gallery = list(dict.fromkeys(gallery))
    options = {
        "encoder": {"name": "image", "model": arguments.model},
        "index": {"name": "faiss", "factory": arguments.factory},
        "articles": 5,
        "per_article": 1,
    }
    retriever = GalleryRetriever(validate(GalleryRetriever.Config, options, "retriever"))
    asked = [
        Question(i, "", image=SAMPLE / row["file"], pos_articles=(row["entity"],))
        for i, row in enumerate(queries)
    ]
    encoder = retriever._search.encoder
    of_questions = np.concatenate(encoder.encode_question(asked))
    pictures = [Passage(str(i), "", title=e, image=p) for i, (e, p) in enumerate(gallery)]
    vectors = np.concatenate(encoder.encode_passages(pictures))
    near = (vectors @ of_questions.T).max(1) > NEAR
    kept = [p for p, too_near in zip(pictures, near, strict=True) if not too_near]
    shown = {p.title for p in kept}
    rest = sorted({row["entity"] for row in photos} - shown)
    print(f"{len(kept)} pictures of {len(shown)} articles; left out as the same: {near.sum()}")
    print("without a picture:", ", ".join(rest))
    retriever.prepare(Corpus([replace(p, text=f"A picture of {p.title}.") for p in kept]))
    titles = {p.passage_id: p.title for p in kept}
    found = retriever.retrieve(asked, 5)
    names = BM25Retriever(BM25Retriever.Config())
    corpus = Corpus.read(SAMPLE / "passages.jsonl")
    names.prepare(corpus)
    tags = ImageNetTagger(ImageNetTagger.Config()).describe(
        [q.image for q in asked if q.image is not None]
    )
    told = [replace(q, question="this", description=d) for q, d in zip(asked, tags, strict=True)]
    named = [
        bool(hits) and not set(q.pos_articles).isdisjoint(corpus[hits[0].passage_id].article_names)
        for q, hits in zip(told, names.retrieve(told, 1), strict=True)
    ]
    rows = [
        (
            q["kind"],
            q["entity"] in shown,
            by_name,
            [titles[h.passage_id] == q["entity"] for h in hits],
        )
        for q, by_name, hits in zip(queries, named, found, strict=True)
    ]
    print(f"{'kind':10}{'':10}{'photos':>7}{'R@1':>6}{'R@5':>6}{'names':>7}")
    for kind in ("animal", "thing", "monument", None):
        own = [row for row in rows if kind in (row[0], None)]
        for what, some in (("", own), ("covered", [row for row in own if row[1]])):
            first, five = (_mean([any(row[3][:k]) for row in some]) for k in (1, 5))
            by_names = _mean([row[2] for row in some])
            name = "all" if kind is None else kind
            print(f"{name:10}{what:10}{len(some):7}{first:6.2f}{five:6.2f}{by_names:7.2f}")


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
