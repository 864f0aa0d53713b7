"""Tables as other programs write them: their encodings and what separates their fields."""

import csv
import gzip
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravqa.core.errors import DataError, UserError
from ravqa.corpora.encodings import HINT, checked_encoding, encoding_of
from ravqa.corpora.tables import TableForm, read_table

GERMAN = "id;text\n1;Die Straße ist größer als üblich, für Müller\n"


def rows(path, **form):
    return [row for _, row in read_table(path, TableForm(**form))]


@pytest.fixture
def file(tmp_path):
    def file(text, encoding="utf-8", name="a.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_is_read_in_the_encoding_that_it_is_in(file, encoding, end):
    found = rows(file(GERMAN.replace("\n", end), encoding))
    assert found == [{"id": "1", "text": "Die Straße ist größer als üblich, für Müller"}]


def test_a_mark_at_the_beginning_decides():
    marks = {
        b"\xef\xbb\xbfid": "utf-8-sig",
        b"\xff\xfei\0": "utf-16",
        b"\xfe\xff\0i": "utf-16",
        b"\xff\xfe\0\0i\0\0\0": "utf-32",
        b"\0\0\xfe\xff\0\0\0i": "utf-32",
        b"": "utf-8-sig",
    }
    assert {head: encoding_of(io.BytesIO(head), "x") for head in marks} == marks


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Le café est à côté de l'hôtel. Où êtes-vous né, François ?", "cp1252"),
        ("Price: 5 €, the \u201ckoala\u201d\u2019s", "cp1252"),
        ("Zażółć gęślą jaźń, łódź i świętość", "cp1250"),
        ("Медведь живёт в лесу, коала ест листья эвкалипта", "cp1251"),
        ("コアラはユーカリの葉を食べます", "cp932"),
        ("코알라는 유칼립투스 잎을 먹는다", "cp949"),
    ],
)
def test_other_encodings_are_guessed_and_said(file, caplog, text, encoding):
    path = file(f"id;text\n1;{text}\n", encoding)
    assert rows(path) == rows(path) == [{"id": "1", "text": text}]
    [record] = caplog.records
    assert record.getMessage() == (
        f"{path} is not in UTF-8 and is read as {encoding}: --encoding NAME decides (for the "
        "questions of a run: --dataset-option encoding=NAME)"
    )


def test_an_encoding_that_is_not_clear_is_asked_for(file):
    path = file("id,text\n1,考拉吃桉树叶\n2,大熊猫吃竹子\n", "gb18030")
    with pytest.raises(DataError) as error:
        rows(path)
    unclear = f"{path} is not in UTF-8, and its encoding may be cp949 or gb18030"
    assert str(error.value) == f"{unclear}: {HINT}"
    assert rows(path, encoding="gb18030")[1] == {"id": "2", "text": "大熊猫吃竹子"}


def test_letters_far_from_the_beginning_count(file, tmp_path):
    lines = "".join(f"{i};plain\n" for i in range(10_000))
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(f"id;text\n{lines}x;Übergröße, süß\n".encode("cp1252")))
    assert rows(path)[-1] == {"id": "x", "text": "Übergröße, süß"}


def test_an_encoding_may_be_given(file):
    path = file("id,text\n1,ğ\n", "cp1254")
    assert rows(path, encoding="windows-1254") == [{"id": "1", "text": "ğ"}]
    with pytest.raises(DataError, match=rf"^{path} is not in cp932 \(.*\): {re.escape(HINT)}$"):
        rows(path, encoding="cp932")
    path = file("id,text\n1,a\n", "utf-16-le")
    with pytest.raises(
        DataError, match=f"^{path}: the header has zero bytes, as in UTF-16: {re.escape(HINT)}$"
    ):
        rows(path)
    assert rows(path, encoding="utf-16-le") == [{"id": "1", "text": "a"}]
    for name in ("utf-99", "rot13", "base64", ""):
        with pytest.raises(UserError) as raised:
            checked_encoding(name)
        assert str(raised.value) == f"no encoding {name!r}: utf-8, utf-16 and cp1252 are some"
    assert checked_encoding("UTF8") == "utf-8-sig"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_shows_what_separates_the_fields(file, delimiter):
    out = io.StringIO()
    table = [["id", "text"], ["1", "a, b; c | d\te"], ["2", 'say "x"\nand y']]
    csv.writer(out, delimiter=delimiter).writerows(table)
    assert rows(file(out.getvalue())) == [
        dict(zip(table[0], row, strict=True)) for row in table[1:]
    ]


def test_of_several_delimiters_in_the_header_the_rows_decide(file):
    path = file("id;text,or words\n1;a\n2;b\n")
    assert rows(path) == [{"id": "1", "text,or words": "a"}, {"id": "2", "text,or words": "b"}]
    path = file("id,a;b\n1,x;y\n")
    with pytest.raises(DataError) as error:
        rows(path)
    assert str(error.value) == (
        f"{path}: the fields can be separated by ',' or ';': --delimiter, or the option delimiter "
        "of --dataset csv, decides"
    )
    assert rows(path, delimiter=";") == [{"id,a": "1,x", "b": "y"}]
    assert rows(file('"id";"a,b"\n1;x\n')) == [{"id": "1", "a,b": "x"}]
    assert rows(file("text\na;b\n")) == [{"text": "a;b"}]
    assert rows(file("a b\n1 2\n"), delimiter=" ") == [{"a": "1", "b": "2"}]
    assert rows(file("a\tb\n1\t2\n"), delimiter="tab") == [{"a": "1", "b": "2"}]
    for bad in ('"', "\n", ",,", ""):
        with pytest.raises(UserError) as raised:
            TableForm(delimiter=bad)
        assert str(raised.value) == f"delimiter {bad!r}: one character is expected, or tab"


cells = st.text('aß€ \t\n,;|"', min_size=1, max_size=8)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(cells, cells), max_size=5),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_csv_writes_is_read(tmp_path_factory, table, delimiter, encoding):
    path = tmp_path_factory.getbasetemp() / "hypothesis.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("id", "text"), *table])
    assert rows(path) == [{"id": a, "text": b} for a, b in table]
