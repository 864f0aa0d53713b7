"""Tables in folders: their rows beside the folder's pages and pictures."""

import gzip
import json

import PIL.Image
import pytest

from ravqa.core.errors import DataError
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.pages import Pages
from ravqa.corpora.remarks import Remarks


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "notes.txt").write_text("A note.")
    (tmp_path / "tables").mkdir()
    return tmp_path


def test_every_kind_of_table_is_read(docs):
    (docs / "a.csv").write_text("id;text;year\nx;one;2021\ny;two;2022\n")
    (docs / "tables" / "a.tsv").write_text("title\ttext\nThird\tthree\n\n\tfour\n")
    (docs / "tables" / "b.jsonl").write_text('{"text": "five"}\n{"text": "six", "article": "A"}\n')
    (docs / "tables" / "c.CSV.gz").write_bytes(gzip.compress(b"_id,contents\n1,seven\n"))
    remarks = Remarks()
    corpus = Corpus.read(docs, remarks=remarks)
    assert {i: p.text for i, p in corpus.items()} == {
        "a.csv#x": "one",
        "a.csv#y": "two",
        "tables/a.tsv#row=1": "three",
        "tables/a.tsv#row=2": "four",
        "tables/b.jsonl#row=1": "five",
        "tables/b.jsonl#row=2": "six",
        "tables/c.CSV.gz#1": "seven",
        "notes.txt#0": "A note.",
    }
    assert remarks.lines() == []
    assert corpus["a.csv#y"].extra == {"year": "2022"}
    assert corpus["tables/a.tsv#row=1"].content == "Third: three"
    articles = [corpus[f"tables/b.jsonl#row={n}"].article for n in (1, 2)]
    assert articles == ["tables/b.jsonl", "A"]


def test_parquet_too(docs):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"passage_id": 7, "text": "one"}, {"passage_id": 8, "text": "two"}]
    parquet.write_table(arrow.Table.from_pylist(rows), docs / "p.parquet")
    assert list(Corpus.read(docs)) == ["p.parquet#7", "p.parquet#8", "notes.txt#0"]


def test_a_table_without_texts_is_left_out_and_said(docs):
    (docs / "prices.csv").write_text("product,price\nkoala,12\n")
    (docs / "empty.csv").write_text("id,text\n")
    remarks = Remarks()
    assert list(Corpus.read(docs, remarks=remarks)) == ["notes.txt#0"]
    assert remarks.lines() == [
        "without text: empty.csv",
        "a table without a column of text, left out: prices.csv (product, price)",
    ]


def test_rows_and_tables_that_cannot_be_used_are_named(docs):
    (docs / "a.csv").write_text("id,text\nx,one\n,two\nz,\n")
    (docs / "b.jsonl").write_text('{"text": "one"}\nno JSON\n')
    (docs / "c.csv").write_text("id,text\nx\n")
    (docs / "X.csv").write_text("id,text\n,one\nX,two\n")
    remarks = Remarks("skip")
    found = Corpus.read(docs, remarks=remarks)
    assert list(found) == ["X.csv#X", "a.csv#x", "notes.txt#0"]
    first = remarks.broken.pop(0)
    assert first.startswith("X.csv, line 2: no passage id")
    first, *_ = remarks.broken
    assert first.startswith("a.csv, line 3: no passage id (column passage_id or id or _id or kid)")
    places = [line.partition(":")[0] for line in remarks.broken]
    assert places == ["a.csv, line 3", "a.csv, line 4", "b.jsonl", "c.csv"]
    assert "line 2: not JSON" in remarks.broken[2]
    with pytest.raises(DataError, match=r"a\.csv, line 3: .*; c\.csv: .*, line 2: 2 fields are ex"):
        Corpus.read(docs, remarks=Remarks())


def test_an_image_that_a_row_names_is_not_also_a_picture_without_a_caption(docs):
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        PIL.Image.new("RGB", (4, 4), (number, 0, 0)).save(docs / name)
    (docs / "c.txt").write_text("Caption of c.")
    rows = [{"id": 1, "text": "one", "image": "a.png"}, {"id": 2, "text": "two", "image": "c.png"}]
    (docs / "z.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {p.passage_id: p for p in Pages(docs, uncaptioned=True).passages()}
    assert sorted(found) == ["b.png", "c.png", "notes.txt#0", "z.jsonl#1", "z.jsonl#2"]
    assert found["z.jsonl#1"].image == docs / "a.png"
    (docs / "z.jsonl").write_text('{"id": 1, "text": "one", "image": "gone.png"}\n')
    with pytest.raises(DataError, match=r"z\.jsonl, line 1: no image 'gone\.png'"):
        Corpus.read(docs, remarks=Remarks(), uncaptioned=True)


def test_numbers_of_rows_are_ids_where_they_may_be(tmp_path):
    path = tmp_path / "semi.csv"
    path.write_text("text;year\nStraße;2021\nweiß;2022\n", encoding="cp1252")
    assert {i: p.text for i, p in Corpus.read(path, numbered=True).items()} == {
        "semi.csv#row=1": "Straße",
        "semi.csv#row=2": "weiß",
    }
    with pytest.raises(DataError, match=r"no passage id .*; the columns are text, year"):
        Corpus.read(path)
    path.write_text("id;text\n;one\n")
    with pytest.raises(DataError, match="no passage id"):
        Corpus.read(path, numbered=True)


def test_the_encoding_is_that_of_texts_and_tables(tmp_path):
    from ravqa.corpora.kb import Sections

    (tmp_path / "a.txt").write_text("ğ", encoding="cp1254")
    (tmp_path / "b.md").write_text("# Ş\n\nö", encoding="cp1254")
    (tmp_path / "c.csv").write_text("id,text\n1,ç\n", encoding="cp1254")
    found = Corpus.read(tmp_path, sections=Sections(encoding="cp1254"))
    assert [p.content for p in found.values()] == ["ç", "a: ğ", "Ş: ö"]


def test_marks_of_open_files_are_hidden(docs):
    (docs / "~$notes.txt").write_text("x")
    assert list(Corpus.read(docs)) == ["notes.txt#0"]
