"""Find the page on which a photo is printed: R@1 and R@5 by pooled vectors and by patches.

    python benchmarks/page_images.py ../shared/data [--width 0.6] [--dpi 100]

Each photo of `photos` is printed somewhere on an A4 page of text, a scan without a text layer, in
one PDF file. A collection reads its pages as images, and each photo searches them: by one vector
per image, and patch by patch. Text does not help: the pages have none, and the question is blank.
Last are the photos whose page only one of both has first, and how likely a difference as large is
by chance (exact sign test).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import textwrap
from collections import defaultdict
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from ravqa.collections import Collection
from ravqa.core.locations import SAMPLE
from ravqa.corpora.corpus import Corpus
from ravqa.images.decode import open_image

PAGE, MARGIN, LINE, LETTERS = (827, 1169), 80, 18, 85  # A4 at 100 dots per inch


def articles() -> list[str]:
    texts: dict[str, list[str]] = defaultdict(list)
    for passage in Corpus.read(SAMPLE / "passages.jsonl").stream():
        texts[passage.title or ""].append(passage.text)
    return ["\n".join(found) for found in texts.values()]


def printed(photo: Path, text: str, width: float, rng: random.Random) -> PIL.Image.Image:
    """Return a page full of a text, with a photo `width` pages wide at a random place."""
    page = PIL.Image.new("RGB", PAGE, "white")
    draw, font = PIL.ImageDraw.Draw(page), PIL.ImageFont.load_default(14)
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, LETTERS)]
    for number, line in enumerate(lines[: (PAGE[1] - 2 * MARGIN) // LINE]):
        draw.text((MARGIN, MARGIN + LINE * number), line, "black", font)
    image = open_image(photo)
    side = round(width * PAGE[0])
    image.thumbnail((side, side))
    place = [rng.randint(0, whole - own) for whole, own in zip(PAGE, image.size, strict=True)]
    page.paste(image, (place[0], place[1]))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--width", type=float, default=0.6)
    parser.add_argument("--dpi", type=int, default=100)
    arguments = parser.parse_args()
    folder = arguments.data / "photos"
    rows = json.loads((folder / "photos.json").read_text(encoding="utf-8"))
    photos = [folder / row["image"] for row in rows]
    rng = random.Random(0)
    pages = [
        printed(photo, text, arguments.width, rng)
        for photo, text in zip(photos, articles(), strict=False)
    ]
    print(f"{len(pages)} pages, photos {arguments.width} of their width")
    with tempfile.TemporaryDirectory() as temporary:
        scan = Path(temporary, "scan.pdf")
        pages[0].save(scan, save_all=True, append_images=pages[1:], resolution=100)
        firsts = []
        for patches in (False, True):
            collection = Collection.create(
                Path(temporary, f"patches-{patches}"),
                "sample",
                "describer=null",
                f"retriever.encoder={{name: image, patches: {str(patches).lower()}}}",
                pages="images",
                dpi=arguments.dpi,
            )
            collection.add_files(scan)
            ranks = []
            for number, photo in enumerate(photos, 1):
                found = collection.search("", photo, k=5)
                ids = [hit.passage_id for hit, _ in found]
                ranks.append([one == f"scan.pdf#page={number}" for one in ids])
            firsts.append([rank[0] for rank in ranks])
            first, five = (sum(any(r[:k]) for r in ranks) / len(ranks) for k in (1, 5))
            print(f"{'patches' if patches else 'pooled':8} R@1 {first:.2f}  R@5 {five:.2f}")
    pooled, of_patches = (
        sum(one > other for one, other in zip(a, b, strict=True)) for a, b in (firsts, firsts[::-1])
    )
    differ = pooled + of_patches
    tail = sum(math.comb(differ, i) for i in range(min(pooled, of_patches) + 1)) / 2**differ
    print(f"only patches: {of_patches}, only pooled: {pooled}, p = {min(1, 2 * tail):.3f}")


if __name__ == "__main__":
    main()
