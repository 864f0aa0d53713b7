"""Lines and pages without end are refused in one line, before they fill the memory."""

import gzip
import json
import resource
import subprocess
import sys

import pytest

from ravqa.core.errors import DataError
from ravqa.corpora import documents, tables
from ravqa.corpora.corpus import Corpus
from ravqa.evaluation import schema

LONG = 1000


@pytest.fixture(autouse=True)
def short_limit(monkeypatch):
    for module in (documents, tables, schema):
        monkeypatch.setattr(module, "LONGEST_LINE", LONG)


def row(i, length):
    """A line of so many characters, without its end."""
    start = json.dumps({"passage_id": f"p{i}", "text": ""})
    return start.replace('""', f'"{"x" * (length - len(start))}"')


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_a_longer_line_is_refused_and_named(tmp_path, name):
    path = tmp_path / name
    write = gzip.open if name.endswith(".gz") else open
    with write(path, "wt", encoding="utf-8", newline="") as file:
        file.write(f"{row(1, 100)}\n{row(2, LONG - 1)}\n\n{row(3, LONG - 1)}")
    assert len(Corpus.read(path)) == 3
    with write(path, "at", encoding="utf-8", newline="") as file:
        file.write(f"\n{row(4, LONG + 1)}\n")
    with pytest.raises(DataError, match=r"p\.jsonl.*, line 5: longer than 1,000 characters$"):
        Corpus.read(path)
    with pytest.raises(DataError, match=r"line 5: longer than 1,000 bytes$"):
        list(schema.numbered_lines(path))


def test_a_quoted_field_that_is_never_closed_is_refused(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('passage_id,text\n1,"a\n' + "b\n" * LONG, encoding="utf-8")
    with pytest.raises(DataError, match=r"p\.csv, line \d+: field larger than field limit"):
        Corpus.read(path)


def test_a_larger_page_is_refused_by_itself(tmp_path):
    (tmp_path / "good.md").write_text("x" * LONG, encoding="utf-8")
    (tmp_path / "large.md").write_text("x" * (LONG + 1), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"^large\.md: a page of more than 1,000 bytes: split it \(--on"
    ):
        Corpus.read(tmp_path)


@pytest.mark.slow
def test_an_endless_line_takes_little_memory(tmp_path):
    path = tmp_path / "endless.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(3000):
            file.write(b"x" * 2**20)
    code = "import sys; from ravqa.corpora.corpus import Corpus; Corpus.read(sys.argv[1])"
    limit = 2 * 2**30
    found = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        check=False,
    )
    assert "line 1: longer than 67,108,864 characters" in found.stderr.splitlines()[-1]
