"""Values and tables: each rule at its edge, each message as a whole."""

import gzip
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from corpus_files import written
from messages import said

from ravqa.core.errors import DataError
from ravqa.corpora import tables, values

pytestmark = pytest.mark.usefixtures("fresh_cache")


# Values

INT64 = (
    "write it as text or as a whole number (pandas turns whole numbers in a column with gaps into "
    'floats: astype("Int64") before writing prevents this)'
)
AS_LIST = (
    'is the text of a list or object: write a list (in tables one|two, or a JSON list such as ["one'
    '", "two"])'
)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (True, ": text is expected, not the truth value true"),
        (np.bool_(False), ": text is expected, not the truth value false"),
        ({}, ": text is expected, not an object (empty)"),
        (dict.fromkeys(range(9)), ": text is expected, not an object (0, 1, 2, 3, 4, 5, 6, 7)"),
        (("x",), ": text is expected, not a list"),
        (b"x", ": text is expected, not bytes"),
        (bytearray(b"x"), ": text is expected, not bytes"),
        (object(), ": text is expected, not a value of type object"),
        (float("inf"), ": text is expected, not the number inf"),
        (Decimal("-Infinity"), ": text is expected, not the number -Infinity"),
        (1998.0, f" is the number 1998.0, which may not be as written: {INT64}"),
        (1e-7, f" is the number 1e-07, which may not be as written: {INT64}"),
        (Decimal("3.00"), f" is the number 3.00, which may not be as written: {INT64}"),
        (
            float(np.float32(3.4)),
            " is the number 3.4000000953674316, in single precision: write it as text",
        ),
        ("b'x'", ''': text is expected, not printed bytes: "b'x'"'''),
        (f"b'{'x' * 50}'", f''': text is expected, not printed bytes: "b'{"x" * 38}..."'''),
    ],
)
def test_why_a_value_is_no_text(value, reason):
    assert said(DataError, values.text_of, value, "c") == f"'c'{reason}"


def test_numbers_that_are_as_written():
    for value in (3.4, 0.1 + 0.2, -12345678.25, Decimal("3.40000009")):
        assert values.text_of(value, "c") == str(value)
    assert values.text_of(0.0078125, "c") == "0.0078125"  # exact in single precision, and short
    assert values.text_of(12.34567891, "c") == "12.34567891"
    assert values.text_of(Decimal(7), "c") == "7"
    assert values.id_of(Decimal(7), "c") == 7
    assert said(DataError, values.id_of, Decimal("7.5"), "c") == (
        f"'c' is the number 7.5, but ids are whole: {INT64}"
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("['a', 'b']", f"\"['a', 'b']\" {AS_LIST}"),
        ("[" * 100_000 + "]" * 100_000, f"'{'[' * 40}...' {AS_LIST}"),
        (f"['{'x' * 36}']", f"\"['{'x' * 36}']\" {AS_LIST}"),
        (f"['{'x' * 37}']", f"\"['{'x' * 37}'...\" {AS_LIST}"),
        (["a", "('b',)"], f"\"('b',)\" {AS_LIST}"),
        ([["a"]], "a list of strings is expected, not of a list"),
        ([{"x": 1}], "a list of strings is expected, not of an object (x)"),
        ({"x": 1}, "a list of strings is expected, not an object (x)"),
    ],
)
def test_why_a_value_is_no_list_of_texts(value, reason):
    assert said(DataError, values.texts_of, value, "c") == f"'c': {reason}"


def test_fields_of_objects():
    expected = "'c': objects with 'answer' are expected, not an object (text)"
    for value in ([{"text": "a"}], {"text": "a"}, '{"text": "a"}'):
        assert said(DataError, values.texts_of, value, "c", "answer") == expected
    assert values.texts_of({"answer": "a"}, "c", "answer") == ("a",)
    assert values.texts_of('[{"answer": "a"}, {"answer": 5}]', "c", "answer") == ("a", "5")
    expected = "'c': a list of strings is expected, not of a list"
    assert said(DataError, values.texts_of, [["a"]], "c", "answer") == expected


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("one|two", ["one", "two"]),
        ("one", "one"),
        (' ["a|b"]', ' ["a|b"]'),
        ('{"a": "b|c"}', '{"a": "b|c"}'),
        (["a|b"], ["a|b"]),
        (None, None),
    ],
)
def test_bars_part_a_cell(value, items):
    assert values.cell_items(value) == items


def test_the_first_column_that_is_filled_counts():
    row = {"a": " ", "b": None, "c": 7, "d": "x"}
    assert values.text(row, "z", "a", "b", "c", "d") == "7"
    assert values.identity(row, "z", "a", "b", "c", "d") == 7
    assert values.text(row, "a", "z") is values.identity(row, "a", "z") is None
    assert values.texts(row, "d") == ("x",)
    assert values.texts({"d": [{"n": "y"}]}, "d", "n") == ("y",)
    assert values.texts({"d": ["y"]}, "e") == ()
    assert "'d'" in said(DataError, values.texts, {"d": [[1]]}, "d")


@pytest.mark.parametrize("text", ["1998.0", " -3.00 "])
def test_a_cell_that_is_a_whole_number_with_a_fraction(text):
    assert said(DataError, values.text_of, values.cell(text), "c") == (
        f"'c' is the number {text.strip()}, which may not be as written: write a whole number "
        '(pandas: astype("Int64") before writing), or keep it as text in a .jsonl file'
    )
    assert values.text_of(values.cell("3.50"), "c") == "3.50"
    assert values.text_of(values.cell("1998"), "c") == "1998"


# Tables


def test_suffixes_and_lines():
    names = {"a.JSONL.gz": ".jsonl", "b.csv": ".csv", "c": "", "d.tar.GZ": ".tar", ".hidden": ""}
    for name, suffix in names.items():
        found = tables.suffix_of(Path("x.y") / name)
        assert found == (suffix if name != ".hidden" else ".hidden")
    assert tables.lines_of("a\rb\r\nc\nd\u2028e\f") == ["a", "b", "c", "d\u2028e\f"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": ', " 2: not JSON (Expecting value)"),
        ("[1]", " 2: an object is expected"),
        ("7", " 2: an object is expected"),
        ('{"a": 1, "b": 2, "a": 3}', " 2 cannot be read: the key 'a' occurs twice"),
        ('{"x": {"k": 1, "k": 2}}', " 2 cannot be read: the key 'k' occurs twice"),
        (
            '{"a": "\\ud83d"}',
            ' 2: text that was cut inside a character (a lone "\\ud83d" or the like)',
        ),
        (
            '{"a": "\\uD83D"}',
            ' 2: text that was cut inside a character (a lone "\\ud83d" or the like)',
        ),
    ],
)
def test_a_line_that_is_no_object(tmp_path, line, reason):
    path = written(tmp_path / "a.jsonl", f'{{"a": 0}}\n{line}\n')
    assert said(DataError, tables.read_jsonl, path) == f"{path}, line{reason}"


def test_lines_are_counted_with_blank_ones(tmp_path):
    text = '\ufeff{"a": "\\ud83d\\ude00"}\n \n{"b": {"c": 1}, "d": "\\": "}\n'
    path = written(tmp_path / "a.jsonl", text)
    rows = [(1, {"a": "\U0001f600"}), (3, {"b": {"c": 1}, "d": '": '})]
    assert list(tables.read_jsonl(path)) == rows
    packed = tmp_path / "a.ndjson.GZ"
    packed.write_bytes(gzip.compress(text.encode()))
    expected = [(f"{packed}, line {number}", row) for number, row in rows]
    assert list(tables.read_rows(packed)) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1,\n "b"', ", line 2: not JSON (Expecting ':' delimiter); is it cut off?"),
        ('{"a": 1, "a": 2}', " cannot be read: the key 'a' occurs twice"),
        ('["\\ud83d"]', ': text that was cut inside a character (a lone "\\ud83d" or the like)'),
    ],
)
def test_a_file_that_is_no_json(tmp_path, text, reason):
    path = written(tmp_path / "a.json", text)
    assert said(DataError, tables.read_json, path) == f"{path}{reason}"
    assert tables.read_json(written(path, '\ufeff{"a": ["\u00e9"]}')) == {"a": ["\u00e9"]}
    path.write_bytes(b'{"a": "\xff"}')
    assert said(DataError, tables.read_json, path).startswith(f"{path} cannot be read: 'utf-8'")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.json", "a.jsonl.gz", "a.parquet"])
def test_a_file_that_is_not_there(tmp_path, name):
    read = tables.read_json if name == "a.json" else tables.read_rows
    assert said(DataError, read, tmp_path / name) == f"no such file: {tmp_path / name}"


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "a.txt"
    expected = f"{path}: a .jsonl, .csv, .tsv or .parquet file is expected"
    assert said(DataError, tables.read_rows, path) == expected
    for name in ("a.jsonl", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(b"\xff\xfe{}")
        message = said(DataError, tables.read_rows, tmp_path / name)
        assert message.startswith(f"{tmp_path / name} cannot be read: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b,a\n1,2,3\n", ", line 1: the column 'a' occurs twice"),
        ("\n\na,b,a\n1,2,3\n", ", line 3: the column 'a' occurs twice"),
        ("a,b\n1,2\n3\n", ", line 3: 2 fields are expected as in the header, not 1"),
        ('a,b\n"1\n",2\n3,4,5\n', ", line 4: 2 fields are expected as in the header, not 3"),
        ('a,b\n1,2\n3,"4\n5,6\n', ", line 3: unexpected end of data"),
        ('a,b\n"1"x,2\n', ", line 2: ',' expected after '\"'"),
    ],
)
def test_a_table_that_is_broken(tmp_path, text, reason):
    path = written(tmp_path / "a.csv", text)
    assert said(DataError, tables.read_table, path) == f"{path}{reason}"


def test_rows_of_a_table_have_the_line_on_which_they_end(tmp_path):
    path = written(tmp_path / "a.csv", '\n a,,\n1,2,\n\n"x\ny",3,4\n')
    assert list(tables.read_table(path)) == [
        (3, {" a": "1", "": ""}),
        (6, {" a": "x\ny", "": "4"}),
    ]
    assert list(tables.read_table(written(tmp_path / "b.csv", " \n"))) == []
    path = written(tmp_path / "c.csv", "a,b\n1998.0,x\n")
    [(where, row)] = tables.read_rows(path)
    assert (where, row) == (f"{path}, line 2", {"a": "1998.0", "b": "x"})
    assert [type(value) for value in row.values()] == [values.Cell, str]


@pytest.mark.parametrize(
    ("text", "quotes", "rows"),
    [
        ('a\tb\n"x"\ty\n', True, [{"a": "x", "b": "y"}]),
        ('a\tb\n"x"\ty\n', False, [{"a": '"x"', "b": "y"}]),
        ('a\tb\n"x""z"\ty\n', None, [{"a": 'x"z', "b": "y"}]),
        ('a\tb\n"x\ty"\tz\n', None, [{"a": "x\ty", "b": "z"}]),
        ('a\tb\n"x\ty\n', None, [{"a": '"x', "b": "y"}]),
        ('a\tb\nx "y"\tz\n', None, [{"a": 'x "y"', "b": "z"}]),
        ('"a"\tb\n1\t2\n', None, [{"a": "1", "b": "2"}]),
    ],
)
def test_quotes_of_a_tsv_file(tmp_path, text, quotes, rows):
    path = written(tmp_path / "a.tsv", text)
    assert [row for _, row in tables.read_table(path, tables.TableForm(quotes))] == rows


def test_a_tsv_file_that_can_be_read_in_two_ways(tmp_path):
    path = written(tmp_path / "a.tsv", 'a\tb\nx\ty\n\nx\t"y"\n')
    assert said(DataError, tables.read_table, path) == (
        f"{path}, line 4: a field begins with a quote, and the file can be read in two ways: with "
        "quotes around fields, as pandas writes them, or with quotes as part of the text, as in "
        "ColBERT's files. Choose with the option quotes=true or quotes=false of --dataset csv; for "
        "passages, with --quotes or --no-quotes of `ravqa passages`"
    )
    path = written(path, 'a\tb\n"x\ty"\tz\n"x\n')
    assert said(DataError, tables.read_table, path) == (f"{path}, line 3: unexpected end of data")


def test_columns_and_rows_of_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = [{"a": i, "b": str(i)} for i in range(300)]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert tables.parquet_rows(path) == 300
    assert tables.parquet_columns(path) == ["a", "b"]
    assert list(tables.read_parquet(path)) == list(enumerate(rows, 1))
    assert [row for _, row in tables.read_parquet(path, ["b", "z"])][:2] == [{"b": "0"}, {"b": "1"}]
    assert list(tables.read_rows(path, ["a"]))[299] == (f"{path}, row 300", {"a": 299})
    path.write_bytes(b"PAR1")
    assert said(DataError, tables.parquet_rows, path).startswith(f"{path} cannot be read: ")
