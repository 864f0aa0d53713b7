"""A small dataset of one's own, with text that tries to become markup, and a run of it."""

import json
import random

import PIL.Image
import pytest

from ravqa.cli import run_main

SCRIPT = "<script>alert(1)</script>"
HOSTILE = (
    {
        "question": "What ends here</script><script>alert(2)</script>\u2028, or here?",
        "answers": [SCRIPT, "koala"],
        "question_type": "type <b>&\"'",
    },
    {"question": "<img src=x onerror=alert(3)>?", "answers": ["'\"><svg onload=alert(4)>"]},
)
PASSAGES = (
    {
        "passage_id": "p<0>",
        "title": "A \"title\" with <i>'quotes'</i>",
        "text": f"Holds {SCRIPT} and \U0001f43c the Koala & <iframe src=//example.org></iframe>.",
        "url": "javascript:alert(5)",
    },
    {"passage_id": "p1", "text": "The koala eats leaves.", "url": "https://example.org/koala"},
    {"passage_id": "p2", "text": "Nothing of it. <!-- <script> -->"},
)


def write_dataset(folder, questions=12, images=True):
    """Questions in JSON lines, their passages, and a photo for every second one."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    rows = []
    for i in range(questions):
        row = {
            "question_id": i,
            "question": f"What does animal {i} eat?",
            "answers": ["leaves", "grass"] if i % 3 else ["stones"],
            "question_type": "animals" if i % 2 else "plants",
            "image_id": i // 2,
            **(HOSTILE[i] if i < len(HOSTILE) else {}),
        }
        if images:
            row["image"] = f"photos/{i // 2}.jpg"
        rows.append(row)
    if images:
        (folder / "photos").mkdir(exist_ok=True)
        for i in range((questions + 1) // 2):
            color = tuple(rng.randrange(256) for _ in range(3))
            PIL.Image.new("RGB", (640, 480), color).save(folder / "photos" / f"{i}.jpg")
    passages = [*PASSAGES]
    for i in range(30):
        food = rng.choice(["leaves", "grass", "meat", "fish"])
        text = f"Animal {i} eats {food}, and sleeps. " * 3
        passages.append({"passage_id": f"a{i}", "title": f"Animal {i}", "text": text})
    for name, lines in (("questions", rows), ("passages", passages)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_run(folder, data, *options):
    """A run without any model: passages by lot, answers from the first one."""
    arguments = ["--dataset", "jsonl", "--data", data, "--pipeline", "bm25-retrieval"]
    arguments += ["--retriever", "random", "--set", "top_k=8", "--output", folder, *options]
    if "--controls" not in options:
        arguments += ["--controls", "none,oracle"]
    with pytest.raises(SystemExit) as end:
        run_main([str(argument) for argument in arguments])
    assert end.value.code == 0
    return folder
