"""Does it help to see the photo? Two runs on the bundled sample, compared question by question.

python examples/compare_settings.py [FOLDER]

Both runs search by BM25 and answer with the span nearest to the question's words. One searches with
the question alone, the other also with the name of what the photo shows. Both are kept in FOLDER,
with their reports. It prints (VQA accuracy and PRRecall@5 in percent, with 95 % intervals):

    question alone: 2.2 [0.5, 4.4], 27.1 [20.1, 34.2]
    with the photo: 5.9 [3.0, 9.1], 58.0 [48.1, 67.8]
    difference in VQA accuracy: 3.7 [0.7, 6.9], p = 0.036
"""

import sys
import tempfile
from pathlib import Path

from ravqa import compare, evaluate

SETTINGS = {
    "question alone": ["retriever.query.question=1"],
    "with the photo": ["retriever.query.replaced=1", "describer={name: imagenet-tags}"],
}
METRICS = ["score", "PRRecall@5"]

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    runs = [
        evaluate(
            "okvqa",
            "bm25-retrieval",
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
