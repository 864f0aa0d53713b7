"""Does it help to see the photo? Two runs on the bundled sample, compared question by question.

python examples/compare_settings.py [FOLDER]

Both runs search with MiniLM's token vectors and answer with the span nearest to the question's
words. One searches with the question alone, the other also with the name of what the photo shows.
Both are kept in FOLDER, with their reports. It prints (VQA accuracy and PRRecall@5 in percent, with
95 % intervals):

    question alone: 2.9 [0.5, 5.6], 48.8 [41.2, 56.9]
    with the photo: 6.6 [3.3, 10.4], 76.3 [66.4, 85.8]
    difference in VQA accuracy: 3.7 [-0.6, 8.2], p = 0.13
"""

import sys
import tempfile
from pathlib import Path

from ravqa import compare, evaluate
from ravqa.core.errors import UserError

SETTINGS = {
    "question alone": ["retriever.query.question=1"],
    "with the photo": ["retriever.query.replaced=1", "describer={name: imagenet-tags}"],
}
METRICS = ["score", "PRRecall@5"]


def main(folder):
    """Run both, and print how they compare."""
    runs = [
        evaluate(
            "okvqa",
            "minilm-retrieval",
            "retriever.query.captioned=0",
            *changes,
            reader="best-span",
            output=folder / name.replace(" ", "-"),
        ).folder
        for name, changes in SETTINGS.items()
    ]
    for name, row in zip(SETTINGS, compare(*runs, metrics=METRICS).table.rows, strict=True):
        print(f"{name}: {', '.join(row.cells[m].estimate.text() for m in METRICS)}")
        difference = row.cells["score"].difference
        if difference is not None:
            estimate, p = difference.estimate, difference.p_value
            print(f"difference in VQA accuracy: {estimate.text()}, p = {p:.2g}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
    except UserError as e:
        sys.exit(f"error: {e}")
