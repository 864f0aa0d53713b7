"""Measure memory for reading a million questions, a million passages and a knowledge base.

Generates the files in a temporary folder, reads each in its own process and prints its peak
resident memory beyond that of the imports, as a ratio to the file's size and to a baseline in the
same run: the same records as plain Python objects (a list of `json.loads`), which is the cost of
reading a whole file at once.

    python benchmarks/records.py [--records 1000000] [--articles 100000]
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [f"word{i}" for i in range(5000)]
MB = 2**20


def sentence(rng, words):
    return " ".join(rng.choices(WORDS, k=words))


def write_questions(path, count):
    rng = random.Random(0)
    with path.open("w") as out:
        for i in range(count):
            row = {"question_id": f"question_{i:08d}", "question": sentence(rng, 12)}
            row |= {"answers": [sentence(rng, 2) for _ in range(3)], "image_id": i // 5}
            out.write(json.dumps(row) + "\n")


def write_passages(path, count):
    rng = random.Random(1)
    with path.open("w") as out:
        for i in range(count):
            row = {"passage_id": f"passage_{i:08d}", "title": sentence(rng, 3)}
            out.write(json.dumps(row | {"text": sentence(rng, 80)}) + "\n")


def write_kb(path, count):
    rng = random.Random(2)
    with path.open("w") as out:
        for i in range(count):
            title = sentence(rng, 3)
            page = {"title": title, "section_titles": [title, "A", "B", "C"]}
            page |= {"section_texts": [sentence(rng, 150) for _ in range(4)], "url": f"u{i}"}
            out.write(("," if i else "{") + json.dumps(f"https://x/{i}") + ":" + json.dumps(page))
        out.write("}")


def peak():
    """Return the peak resident memory of this process so far, in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def measure(what, path):
    """Read one file and print seconds and bytes; runs in its own process."""
    import numpy  # noqa: F401  (a later import would count as data)

    from ravqa.corpora import kb
    from ravqa.corpora.corpus import Corpus, DiskCorpus
    from ravqa.corpora.disk import DiskQuestions
    from ravqa.corpora.sources import read_passages
    from ravqa.datasets import files
    from ravqa.datasets.base import DatasetRequest

    before, start = peak(), time.perf_counter()
    if what == "questions":
        questions = files.load_jsonl(DatasetRequest(data=path)).questions
        assert isinstance(questions, DiskQuestions)
        assert sum(1 for q in questions if q.answers) == len(questions)
        assert questions[len(questions) // 2].question_id.startswith("question_")
    elif what == "passages":
        corpus = Corpus.read(path)
        assert isinstance(corpus, DiskCorpus)
        assert sum(1 for p in corpus.values() if p.text) == len(corpus)
        for i in random.Random(0).sample(range(len(corpus)), 10_000):
            assert corpus[f"passage_{i:08d}"].text
    elif what == "knowledge base":
        assert sum(1 for _ in read_passages(path, kb.Sections()))
    elif what == "baseline":
        with path.open() as lines:
            records = [json.loads(line) for line in lines]
        assert records
    print(time.perf_counter() - start, peak() - before)


def measured(what, path):
    done = subprocess.run(
        [sys.executable, __file__, "--measure", what, "--file", str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, size = map(float, done.stdout.split())
    return seconds, size


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--articles", type=int, default=100_000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure, given.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAVQA_CACHE"] = str(Path(folder) / "cache")
        for what, write, count in (
            ("questions", write_questions, given.records),
            ("passages", write_passages, given.records),
            ("knowledge base", write_kb, given.articles),
        ):
            suffix = "json" if what == "knowledge base" else "jsonl"
            path = Path(folder) / f"file.{suffix}"
            write(path, count)
            size = path.stat().st_size
            print(f"{count:,} {'articles' if suffix == 'json' else what}, {size / MB:.0f} MB")
            seconds, memory = measured(what, path)
            print(
                f"  read:          {seconds:6.1f} s, {memory / MB:6.0f} MB of memory, "
                f"{memory / size:.2f} of the file"
            )
            if what == "passages":
                seconds, memory = measured(what, path)
                print(f"  from the cache:{seconds:6.1f} s, {memory / MB:6.0f} MB of memory")
            if suffix == "jsonl":
                _, plain = measured("baseline", path)
                print(f"  plain objects: {plain / MB:15.0f} MB: {plain / memory:.1f}x")
            path.unlink()


if __name__ == "__main__":
    main()
