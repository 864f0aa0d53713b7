"""Examples for training tiny models: coloured squares and texts about them."""

import json

from PIL import Image

COLOURS = {
    "red": (200, 20, 20),
    "green": (20, 160, 40),
    "blue": (30, 40, 200),
    "yellow": (220, 210, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "pink": (240, 130, 180),
    "brown": (120, 70, 30),
}


def passage(colour, **more):
    return {"id": f"p-{colour}", "text": f"the colour {colour} , it is {colour} .", **more}


def rows(images=True, negatives=0, answers=True):
    names = list(COLOURS)
    out = []
    for i, colour in enumerate(names):
        row = {"id": f"q-{colour}", "question": f"which colour is square {i} ?"}
        row["instruction"] = "find the colour :"
        row["positive"] = passage(colour)
        if images:
            row["image"] = f"{colour}.png"
        if answers:
            row["answers"] = [colour]
        row["negatives"] = [passage(names[(i + j + 1) % len(names)]) for j in range(negatives)]
        out.append(row)
    return out


def write_examples(folder, **options):
    """Write `examples.jsonl` and the images that it names; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 40), colour).save(folder / f"{name}.png")
    path = folder / "examples.jsonl"
    write_rows(path, rows(**options))
    return path


def write_rows(path, lines):
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
