"""Values of records: what is text stays, what is missing is blank, all else is refused."""

import collections
import csv
import datetime
import json
import math
import re
from decimal import Decimal

import numpy as np
import pytest
import torch
from PIL import Image

from ravqa.core.errors import DataError
from ravqa.corpora import corpus, kb, pages, tables, values
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.remarks import Remarks
from ravqa.datasets import evqa, files, infoseek, m2kr, okvqa
from ravqa.datasets.base import DatasetRequest, Problems

NAN = float("nan")


class _NotATime:
    """As pandas's NaT: it equals nothing, itself included."""

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return True

    __hash__ = None


class _NotAvailable:
    """As pandas's NA: what compares to it is neither true nor false."""

    def __eq__(self, other):
        return self

    __ne__ = __eq__
    __hash__ = None

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")


def _name(value):
    """A test's name, the same in every process: an object's own would hold its address."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


BLANK = [None, NAN, "", " \n", np.float64("nan"), np.float32("nan"), Decimal("nan")]
BLANK += [_NotATime(), _NotAvailable(), np.datetime64("NaT"), np.str_(" ")]
NO_TEXT = [True, np.bool_(False), {}, {"en": "x"}, [], ["x"], ("x",), b"x", bytearray(b"x")]
NO_TEXT += [np.array(["x"]), datetime.date(2001, 5, 2), datetime.datetime(2001, 5, 2), object()]
DOUBTFUL = [1998.0, np.float64(3), -0.0, math.inf, 1e22, 1e-7, Decimal("3.00"), Decimal("Infinity")]
DOUBTFUL += [np.float32(3.4)]  # 3.4000000953674316


@pytest.mark.parametrize("value", BLANK, ids=_name)
def test_what_is_missing_is_blank(value):
    assert values.is_blank(value)
    assert values.text_of(value, "c") is None
    assert values.id_of(value, "c") is None
    assert values.texts_of([value, "fig", value], "c") == ("fig",)
    assert values.texts_of(value, "c") == ()


@pytest.mark.parametrize("value", NO_TEXT + DOUBTFUL, ids=_name)
def test_what_is_no_text_never_becomes_text(value):
    assert not values.is_blank(value)
    with pytest.raises(DataError, match="'c'"):
        values.text_of(value, "c")
    with pytest.raises(DataError, match="'c'"):
        values.id_of(value, "c")
    with pytest.raises(DataError, match="'c'"):
        values.texts_of(["fig", value], "c")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("nan", "nan"),
        ("None", "None"),
        (" a ", " a "),
        (1998, "1998"),
        (0, "0"),
        (np.int64(7), "7"),
        (3.5, "3.5"),
        (-0.25, "-0.25"),
        (3.4, "3.4"),
        (Decimal("3.50"), "3.50"),
        (np.str_("x"), "x"),
    ],
)
def test_texts_and_plain_numbers_are_taken_as_they_are(value, text):
    assert values.text_of(value, "c") == text
    assert type(values.text_of(value, "c")) is str
    assert values.texts_of(value, "c") == (text,)


def test_ids_are_whole_or_text():
    assert values.id_of(7, "c") == values.id_of(np.int32(7), "c") == 7
    assert values.id_of("07", "c") == "07"
    with pytest.raises(DataError, match=r"'c' is the number 1\.5, but ids are whole"):
        values.id_of(1.5, "c")


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ('["koala", "bear"]', ("koala", "bear")),
        ('["koala", null, NaN, 3]', ("koala", "3")),
        ("koala", ("koala",)),
        ("a [b] c", ("a [b] c",)),
        ("(the) koala", ("(the) koala",)),
        (np.array(["a", "b"]), ("a", "b")),
        (("a", 5), ("a", "5")),
    ],
)
def test_the_text_of_a_json_list_is_that_list(cell, texts):
    assert values.texts_of(cell, "c") == texts


@pytest.mark.parametrize(
    "cell",
    [
        "['koala', 'bear']",
        "['koala' 'bear']",
        "[1998 1999]",
        "array(['koala'], dtype=object)",
        "{'answer': 'koala'}",
        '{"answer": "koala"}',
        "('koala', 'bear')",
        "('koala',)",
        "[{'answer': 'koala'}]",
        "[nan, 'koala']",
        ["['koala', 'bear']"],
        [["koala"]],
    ],
)
def test_a_printed_list_or_object_is_refused_with_a_hint(cell):
    with pytest.raises(DataError, match="'c'"):
        values.texts_of(cell, "c")


@pytest.mark.parametrize("value", ["b'koala'", 'b"it\'s"', r"b'\x89PNG\r\n'", "b''"])
def test_printed_bytes_are_no_text(value):
    for read in (values.text_of, values.id_of, values.texts_of):
        with pytest.raises(DataError, match="'c': text is expected, not printed bytes"):
            read(value, "c")


@pytest.mark.parametrize(
    "value",
    [
        *(str(torch.tensor(5)), str(torch.tensor([1, 2])), repr(np.str_("koala")), "<NA>", "NaT"),
        *(str(Image.new("L", (2, 2))), str(object()), str(int), repr(Decimal("5.0"))),
        *(repr(datetime.date(2020, 1, 2)), str({}.keys()), str(collections.OrderedDict(a=1))),
        *(str(collections.defaultdict(list)), str(frozenset("a")), str(bytearray(b"x"))),
        " Timestamp('2020-01-01 00:00:00')\n",
    ],
    ids=range(16),
)
def test_printed_objects_are_no_text(value):
    for read in (values.text_of, values.id_of, values.texts_of):
        with pytest.raises(DataError, match="'c': text is expected, not a printed object"):
            read(value, "c")


@pytest.mark.parametrize(
    "text",
    [
        *("tensor (5)", "The tensor(5)", "tensor(5) of ranks", "NATO", "nat", "NA", "<b>NA</b>"),
        *("<a at 0x>", "dict_keys", "np.float64", "Counter(a)", "<NA> or NaT", "datetime.now"),
    ],
)
def test_texts_that_only_resemble_printed_objects_are_texts(text):
    assert values.text_of(text, "c") == text


@pytest.mark.parametrize("value", ["b'a' or b'b'", "b 'a'", "b'a", "The b'a'", "B'a'"])
def test_other_texts_with_a_b_and_quotes_are_texts(value):
    assert values.text_of(value, "c") == value


def test_a_field_of_objects_is_taken_in_both_their_forms():
    rows = [{"answer": "a", "answer_id": 1}, {"answer": None}, "b", {"answer": 5}]
    assert values.texts_of(rows, "c", "answer") == ("a", "b", "5")
    columns = {"answer": ["a", None, "b"], "answer_id": [1, 2, 3]}
    assert values.texts_of(columns, "c", "answer") == ("a", "b")
    with pytest.raises(DataError, match=r"objects with 'answer' are expected, not .*\(text\)"):
        values.texts_of([{"text": "a"}], "c", "answer")


# The same in every file


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("title", [NAN, None, " "])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_blank_title_is_no_title(tmp_path, suffix, title):
    row = {"passage_id": "p", "title": title, "section": title, "text": "A banana.", "url": title}
    path = tmp_path / f"p.{suffix}"
    if suffix == "jsonl":
        lines(path, row)
    else:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist([row]), path)
    passage = Corpus.read(path)["p"]
    assert (passage.content, passage.url) == ("A banana.", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"title": {"en": "x"}},
        {"text": ["x"]},
        {"text": True},
        {"passage_id": 1.0},
        {"passage_id": {"$oid": "1"}},
        {"section": ["x"]},
        {"entity": 5.0},
    ],
)
def test_a_passage_with_something_else_is_named_with_line_and_column(tmp_path, changes):
    path = lines(tmp_path / "p.jsonl", {"passage_id": "p", "text": "x", **changes})
    [column] = changes
    with pytest.raises(DataError, match=rf"p\.jsonl, line 1: '{column}'"):
        Corpus.read(path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": NAN, "answers": ["a"]}, "no 'question'"),
        ({"question": ["q"], "answers": ["a"]}, "'question': text is expected, not a list"),
        ({"question": "q", "answers": [NAN, None, " "]}, "no answers, where other questions"),
        ({"question": "q"}, "no answers, where other questions"),
        ({"question": "q", "answers": {"answer": "a"}}, "'answers': a list of strings"),
        ({"question": "q", "answers": [True]}, "'answers': text is expected, not the truth"),
        ({"question": "q", "answers": [1998.0]}, r"'answers' is the number 1998\.0"),
        ({"question": "q", "answers": "['a', 'b']"}, "'answers': .* is the text of a list"),
        ({"question": "q", "answers": ["a"], "image_id": 4.0}, "'image_id' is the number"),
    ],
)
def test_a_question_with_something_else_is_reported(tmp_path, row, reason):
    path = lines(
        tmp_path / "q.jsonl", {"id": 1, "question": "q", "answers": ["a"]}, {"id": 2} | row
    )
    with pytest.raises(DataError, match=rf"q\.jsonl, line 2: {reason}"):
        files.load_jsonl(DatasetRequest(data=path))
    request = DatasetRequest(data=path, problems=Problems("skip"))
    assert [q.question_id for q in files.load_jsonl(request).questions] == [1]
    assert len(request.problems.found) == 1


@pytest.mark.parametrize("bad", [1.0, True, {"$oid": "x"}])
def test_an_id_that_is_none_is_said_so(tmp_path, bad):
    path = lines(tmp_path / "q.jsonl", {"question_id": bad, "question": "q"})
    with pytest.raises(DataError, match=r"line 1: no question id: 'question_id'"):
        files.load_jsonl(DatasetRequest(data=path))


def test_lists_in_cells_are_lists_or_refused(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text('id,question,answers\n1,q,"[""koala"", ""a bear""]"\n2,q,koala|bear\n')
    one, two = files.load_csv(DatasetRequest(data=path)).questions
    assert (one.answers, two.answers) == (("koala", "a bear"), ("koala", "bear"))
    path.write_text("id,question,answers\n1,q,\"['koala', 'a bear']\"\n")
    with pytest.raises(DataError, match=r"line 2: 'answers': .* write a list \(in tables one\|two"):
        files.load_csv(DatasetRequest(data=path))


CELLS = {
    "1.0": "is the number 1.0, which may not be as written",
    " -3.00": "is the number -3.00, which may not be as written",
    "['a', 'b']": "is the text of a list or object",
    "{'a': 1}": "is the text of a list or object",
    "[np.str_('a')]": "is the text of a list or object",
    "[['a', 'b'], ['c']]": "is the text of a list or object",
    "['a' 'b']": "is the text of a list or object",
    '{"a": [1]}': "is the text of a list or object",
    "[b'a']": "is the text of a list or object",
    "('a', 'b')": "is the text of a list or object",
    "[None]": "is the text of a list or object",
    "('a',)": "is the text of a list or object",
    "array(['a'])": "is the text of a list or object",
    "b'a'": "printed bytes",
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("column", ["id", "title", "text"])
@pytest.mark.parametrize("value", CELLS)
def test_a_cell_that_is_the_printed_form_of_something_else_is_refused(
    tmp_path, column, value, suffix
):
    """A table has no types: what pandas makes of floats, lists and bytes looks like text."""
    path = tmp_path / f"p{suffix}"
    row = {"id": "p", "title": "t", "text": "x"} | {column: value}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, row, delimiter="," if suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerow(row)
    with pytest.raises(DataError, match=rf"line 2: '{column}'.* {re.escape(CELLS[value])}"):
        Corpus.read(path)


def test_texts_of_that_form_are_texts_where_a_file_has_types(tmp_path):
    path = lines(tmp_path / "p.jsonl", {"id": "1.0", "title": "['a']", "text": "2.0"})
    [passage] = Corpus.read(path).values()
    assert (passage.passage_id, passage.title, passage.text) == ("1.0", "['a']", "2.0")


@pytest.mark.parametrize(
    "value",
    [
        *("1.5", "v1.0", "1.0.0", "[sic] a]", "(1998)", "[a]", "1.0 km", "[1998]", "(a, b)"),
        "[[Koala]] is a [[marsupial]]",
        "{{Infobox|name=Koala}} and {{cite}}",
        "[None of the above]",
        "['Tis the season] (a song)",
        '["Hello" he said]',
        "('Hello' is a greeting)",
        "{'quoted' and more}",
    ],
)
def test_other_cells_are_texts(tmp_path, value):
    path = tmp_path / "p.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], [value, value]])
    [passage] = Corpus.read(path).values()
    assert (passage.passage_id, passage.text) == (value, value)


def test_ids_of_tables_are_whole(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("id,question,answers,pos_item_ids\n1.0,q,a,p\n")
    with pytest.raises(DataError, match=r"line 2: no question id: 'id' is the number 1\.0"):
        files.load_csv(DatasetRequest(data=path))
    path.write_text("id,question,answers,pos_item_ids\n1,q,a,3.0\n")
    with pytest.raises(DataError, match=r"line 2: 'pos_item_ids' is the number 3\.0"):
        files.load_csv(DatasetRequest(data=path))


@pytest.mark.parametrize("ids", [(7, "7"), ("7", 7), (7, 7)])
def test_a_number_and_its_digits_are_one_question_id(tmp_path, ids):
    rows = [{"id": i, "question": "q", "answers": ["a"]} for i in ids]
    with pytest.raises(DataError, match=f"line 2: duplicate question id {ids[1]!r}"):
        files.load_jsonl(DatasetRequest(data=lines(tmp_path / "q.jsonl", *rows)))


def test_numbers_are_answers_as_they_are_written(tmp_path):
    path = lines(tmp_path / "q.jsonl", {"id": 1, "question": "q", "answers": [1998, 3.5]})
    [question] = files.load_jsonl(DatasetRequest(data=path)).questions
    assert question.answers == ("1998", "3.5")


def test_answer_eval_of_own_files_is_checked(tmp_path):
    row = {"id": 1, "question": "q", "answers": ["25"], "answer_eval": [{"range": [None, 5]}]}
    request = DatasetRequest(data=lines(tmp_path / "q.jsonl", row), options={"metric": "infoseek"})
    with pytest.raises(DataError, match="a Numerical question needs"):
        files.load_jsonl(request)
    path = tmp_path / "q.csv"
    path.write_text('id,question,answers,answer_eval\n1,q,25,"[{""range"": [23, 28]}]"\n')
    request = DatasetRequest(data=path, options={"metric": "infoseek"})
    [question] = files.load_csv(request).questions
    assert question.answer_eval == ({"range": [23, 28]},)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": NAN}, "no 'question'"),
        ({"image_id": None}, "no 'image_id'"),
        ({"answer_eval": [NAN, None]}, "no 'answer_eval'"),
        ({"answer_eval": [{"wikidata": None, "range": None}]}, "a Time question needs texts"),
        ({"answer_eval": [["1999"]]}, "'answer_eval': text is expected"),
        ({"answer": [{"answer": "x"}]}, "'answer': a list of strings"),
    ],
)
def test_infoseek_reports_what_is_no_text(tmp_path, changes, reason):
    row = {
        "data_id": "infoseek_val_00000001",
        "image_id": "oven_00000001",
        "question": "When was it opened?",
        "answer": ["1999", NAN],
        "answer_eval": ["1999", 1998, None],
    }
    lines(tmp_path / "infoseek_val_qtype.jsonl", row | {"question_type": "Time"})
    lines(tmp_path / "infoseek_val_withkb.jsonl", row | {"entity_id": "Q1", "entity_text": NAN})
    path = lines(tmp_path / "infoseek_val.jsonl", row)
    request = DatasetRequest(data=tmp_path, need_images=False)
    [question] = infoseek.load(request).questions
    assert (question.answers, question.answer_eval) == (("1999", "1998"), ("1999", "1998"))
    assert question.pos_articles == ("Q1",)
    lines(path, row | changes)
    with pytest.raises(DataError, match=f"line 1: {reason}"):
        infoseek.load(request)


def test_ranges_are_finite_numbers():
    for bounds in ([NAN, 1], [1, math.inf], [True, 2], [None, 2], [1], None, "12"):
        assert m2kr.range_problem("Numerical", [{"range": bounds}])
    assert m2kr.range_problem("Numerical", [{"range": [1, 2.5]}]) == ""


def test_encyclopedic_vqa_refuses_printed_lists(tmp_path):
    columns = "question,answer,dataset_image_ids,dataset_name,question_type"
    for cell in ("\"['20 cm', '8 inches']\"", '"[1998 1999]"', "|"):
        (tmp_path / "test.csv").write_text(f"{columns}\nq,{cell},12,inaturalist,templated\n")
        with pytest.raises(DataError, match=r"test\.csv, line 2: .*'answer'"):
            evqa.load(DatasetRequest(data=tmp_path, need_images=False))


def test_official_answers_of_okvqa_are_texts(tmp_path):
    question = {"image_id": 42, "question": "q?", "question_id": 1}
    (tmp_path / okvqa.question_file("val2014")).write_text(json.dumps({"questions": [question]}))

    def load(*answers):
        given = [{"answer": a} for a in answers]
        document = {"annotations": [question | {"answers": given}]}
        (tmp_path / okvqa.annotation_file("val2014")).write_text(json.dumps(document))
        return okvqa.load(DatasetRequest(data=tmp_path, need_images=False)).questions[0].answers

    # All of the ten count, as the official code counts them.
    assert load("koala", None, NAN, 7) == ("koala", "", "", "7")
    with pytest.raises(DataError, match="annotation 1: 'answer': text is expected"):
        load("koala", {"text": "x"})
    with pytest.raises(DataError, match="no annotation with answers"):
        load(None, NAN)


# Knowledge bases


def test_articles_without_text_are_left_out(tmp_path):
    pytest.importorskip("ijson")
    whole = {"title": "Fir", "section_titles": ["Fir", None], "section_texts": ["A tree.", "Tall."]}
    empty = [None, {**whole, "section_texts": None}, {**whole, "section_texts": [None, None]}]
    found = {"u": whole} | {f"u{i}": page for i, page in enumerate(empty)}
    (tmp_path / "kb.json").write_text(json.dumps(found))
    corpus = Corpus.read(tmp_path / "kb.json")
    assert {i: p.content for i, p in corpus.items()} == {"u#0": "Fir: A tree.", "u#1": "Fir: Tall."}
    wiki = {"wikidata_id": "Q1", "wikipedia_title": "Fir", "wikipedia_content": "A tree."}
    others = [
        wiki | {"wikidata_id": f"Q{i}", "wikipedia_content": c} for i, c in ((2, None), (3, NAN))
    ]
    others.append(wiki | {"wikidata_id": "Q4", "wikipedia_title": NAN})
    corpus = Corpus.read(lines(tmp_path / "wiki.jsonl", wiki, *others))
    assert [p.content for p in corpus.values()] == ["Fir: A tree.", "A tree."]
    with pytest.raises(DataError, match=r"line 2: 'wikipedia_content': text is expected"):
        Corpus.read(lines(tmp_path / "w.jsonl", wiki, wiki | {"wikipedia_content": ["x"]}))


def test_names_of_articles_are_texts(tmp_path):
    rows = [{"entity_id": "Q1"}, {"entity_id": NAN}, {"entity_id": None}]
    assert kb.read_names(lines(tmp_path / "keep.jsonl", *rows)) == {"Q1"}
    with pytest.raises(DataError, match=r"keep\.jsonl, line 1: 'entity_id'"):
        kb.read_names(lines(tmp_path / "keep.jsonl", {"entity_id": {"id": "Q1"}}))


def test_captions_of_pictures_are_texts(tmp_path):
    import PIL.Image

    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": NAN, "caption": "A fig."})
    [passage] = pages.Pages(tmp_path).passages()
    assert passage.text == "A fig."
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": ["A fig."]})
    with pytest.raises(DataError, match=r"a\.png: 'text': text is expected, not a list"):
        list(pages.Pages(tmp_path).passages())


@pytest.mark.parametrize("size", [10, -1], ids=["in memory", "on disk"])
def test_a_passage_that_cannot_be_used_is_left_out_and_reported(
    tmp_path, monkeypatch, fresh_cache, size
):
    monkeypatch.setattr(corpus, "IN_MEMORY", size * 10**6)
    good = {"passage_id": "p", "text": "x", "note": NAN, "year": 1998}
    path = lines(tmp_path / "p.jsonl", good, {"passage_id": "q", "text": ["x"]}, {"text": "z"})
    for _ in range(2):  # the second time it may be in the cache
        remarks = Remarks("skip")
        found = Corpus.read(path, remarks=remarks)
        assert list(found) == ["p"]
        assert found["p"].extra == {"year": 1998}
        first, second = remarks.broken
        assert first == f"{path}, line 2: 'text': text is expected, not a list"
        assert second.startswith(f"{path}, line 3: no passage id")
        with pytest.raises(DataError, match=r"line 2: 'text': .*; .*line 3: no .* \(--on-error"):
            Corpus.read(path, remarks=Remarks())


def test_articles_that_cannot_be_used_are_left_out_and_reported(tmp_path):
    page = {"title": "Koala", "section_titles": ["Koala"], "section_texts": ["Eats leaves."]}
    path = tmp_path / "kb.json"
    path.write_text(json.dumps({"u": {**page, "section_texts": [True]}, "v": page}))
    wiki = {"wikipedia_title": "Panda", "wikipedia_content": "Eats bamboo.", "wikidata_id": "Q1"}
    other = lines(tmp_path / "wiki.jsonl", wiki, {**wiki, "wikidata_id": "Q2", "wikipedia_url": []})
    remarks = Remarks("skip")
    found = Corpus.read(path, other, remarks=remarks)
    assert list(found) == ["v#0", "Q1#0"]
    assert [line.partition(": ")[0] for line in remarks.broken] == [
        f"{path}, article 1 (u)",
        f"{other}, line 2",
    ]


def test_a_corpus_of_unusable_passages_says_why_it_is_empty(tmp_path):
    path = lines(tmp_path / "p.jsonl", {"passage_id": "p", "words": "x"})
    with pytest.raises(DataError, match=r"no passage can be used: .*line 1: no text"):
        Corpus.read(path, remarks=Remarks("skip"))


def test_passages_beside_questions_may_be_left_out_too(tmp_path):
    question = {"question_id": 1, "question": "q?", "answers": ["a"]}
    path = lines(tmp_path / "questions.jsonl", question)
    lines(tmp_path / "passages.jsonl", {"id": "p", "text": "x"}, {"id": 1.0, "text": "y"})
    with pytest.raises(DataError, match=r"passages\.jsonl, line 2: 'id' is the number 1\.0"):
        files.load_jsonl(DatasetRequest(data=path.parent))
    found = files.load_jsonl(DatasetRequest(data=path.parent, problems=Problems("skip")))
    assert list(found.corpus) == ["p"]
    [note] = found.notes
    assert "left out" in note
    assert "line 2: 'id'" in note


@pytest.mark.parametrize("kind", ["", "Foo", 5, None])
def test_a_type_of_infoseek_that_scores_nothing_is_reported(tmp_path, kind):
    """Scored as a string, its number would be of no rule of InfoSeek's."""
    lines(
        tmp_path / "infoseek_val.jsonl",
        {"data_id": "i", "image_id": "o", "question": "q", "answer": ["a"], "answer_eval": ["a"]},
    )
    lines(tmp_path / "infoseek_val_qtype.jsonl", {"data_id": "i", "question_type": kind})
    with pytest.raises(DataError, match=r"line 1: question type .* is not one of String, Time"):
        infoseek.load(DatasetRequest(data=tmp_path))


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ('{"id": 1, "text": "a", "text": "b"}', "text"),
        ('{"id": 1, "id" : 2, "text": "a"}', "id"),
        ('{"id": 1, "text": "a", "x": {"k": 1, "k": 2}}', "k"),
        ('{"id": 1, "text": "\\": \\":", "text": "b"}', "text"),
    ],
)
def test_a_json_key_that_occurs_twice_is_refused(tmp_path, row, key):
    """Of two texts for one passage, the last would win in silence."""
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"id": 0, "text": "colons in a text: \\"a\\": b"}}\n{row}\n')
    with pytest.raises(DataError, match=f"line 2 cannot be read: the key '{key}' occurs twice"):
        Corpus.read(path)
    path.write_text(row)
    with pytest.raises(DataError, match=f"cannot be read: the key '{key}' occurs twice"):
        tables.read_json(path)


def test_a_decimal_that_is_whole_is_a_whole_number():
    assert values.id_of(Decimal(7), "c") == 7
    assert values.text_of(Decimal("-12"), "c") == "-12"
    with pytest.raises(DataError, match="'c'"):
        values.id_of(Decimal("7.0"), "c")
