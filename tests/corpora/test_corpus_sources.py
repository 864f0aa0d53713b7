"""Knowledge bases, sources and copies of the hub: what becomes of each row, and what is said."""

import json
import zipfile
from pathlib import Path

import pytest
from corpus_files import jsonl, written
from messages import said

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Passage
from ravqa.corpora import hub, kb, rows
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.remarks import Remarks
from ravqa.corpora.rows import whole
from ravqa.corpora.sources import find_sources, write_passages

pytestmark = pytest.mark.usefixtures("fresh_cache")


# Knowledge bases

PAGE = {"title": "Koala", "section_titles": ["Koala", "Diet", ""], "section_texts": ["a", "b", "c"]}


def test_a_page_becomes_an_article():
    found = kb.page_article("u:1", PAGE)
    sections = [(None, "a"), ("Diet", "b"), (None, "c")]
    assert found == kb.Article("u:1", "Koala", sections, url="u:1")
    assert kb.page_article("u:1", None) == kb.Article("u:1", "", [], url="u:1")
    empty = {"title": None, "section_texts": None}
    assert kb.page_article("u:1", empty) == kb.Article("u:1", "", [], url="u:1")
    blank = {"title": "T", "section_titles": [None], "section_texts": [None]}
    assert kb.page_article("u:1", blank) == kb.Article("u:1", "T", [(None, "")], url="u:1")
    assert said(DataError, kb.page_article, "u", 5) == "an object is expected"
    expected = "'section_titles' and 'section_texts' of equal length expected"
    for page in ({}, {**PAGE, "section_texts": ["a"]}, {**PAGE, "section_titles": "abc"}):
        assert said(DataError, kb.page_article, "u", page) == expected
    wrong = {**PAGE, "section_titles": ["a", ["b"], "c"]}
    assert "'section_titles': text is expected" in said(DataError, kb.page_article, "u", wrong)
    wrong = {**PAGE, "section_texts": ["a", ["b"], "c"]}
    assert "'section_texts': text is expected" in said(DataError, kb.page_article, "u", wrong)


def test_a_line_of_wiki6m_becomes_an_article():
    row = {"wikidata_id": "Q1", "wikipedia_title": "T", "wikipedia_content": "c"}
    expected = kb.Article("Q1", "T", [(None, "c")], entity="Q1", sectioned=False)
    assert kb.article_of(row) == expected
    named = kb.article_of({**row, "wikipedia_url": "u:1"})
    assert (named.url, named.entity) == ("u:1", "Q1")
    bare = kb.article_of({"wikidata_id": "Q1", "wikipedia_content": None})
    assert bare == kb.Article("Q1", "", [(None, "")], entity="Q1", sectioned=False)
    assert said(DataError, kb.article_of, {"wikipedia_content": "c"}) == "no 'wikidata_id'"
    expected = "no 'wikipedia_content'; is this the file with titles only?"
    assert said(DataError, kb.article_of, {"wikidata_id": "Q1"}) == expected


def test_passages_know_their_article():
    article = kb.Article("u:1", "T", [(None, "one two"), ("H", "three four five")], url="u:1")
    shared = {"title": "T", "url": "u:1", "article": "u:1"}
    assert list(kb.passages_of(article, 2)) == [
        Passage("u:1#0", "one two", **shared),
        Passage("u:1#1", "three four", section="H", **shared),
        Passage("u:1#1.1", "five", section="H", **shared),
    ]
    assert [p.text for p in kb.passages_of(article, None)] == ["one two", "three four five"]
    plain = kb.Article("Q1", "", [(None, " ".join(["w"] * 601))], entity="Q1", sectioned=False)
    found = list(kb.passages_of(plain, None))
    assert [(p.passage_id, len(p.text.split())) for p in found] == [
        ("Q1#0", 300),
        ("Q1#1", 300),
        ("Q1#2", 1),
    ]
    assert (found[0].title, found[0].entity, found[0].url) == (None, "Q1", None)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.txt", " u:1 \n\nu:2\n", {"u:1", "u:2"}),
        ("a.csv", "wikipedia_url,x\nu:1|u:2,0\n,1\n", {"u:1", "u:2"}),
        ("a.csv", "entity_id,x\nQ1|Q2,0\n", {"Q1|Q2"}),
        ("a.jsonl", '{"entity_id": "Q1", "wikipedia_url": "u:1"}\n', {"u:1"}),
        ("a.jsonl", '{"x": 1}\n', ", line 1: no 'wikipedia_url' and no 'entity_id'"),
        (
            "a.jsonl",
            '{"entity_id": ["Q1"]}\n',
            ", line 1: 'entity_id': text is expected, not a list",
        ),
        ("a.jsonl", '{"entity_id": null}\n', ": no article is listed"),
        ("a.txt", " \n", ": no article is listed"),
    ],
)
def test_names_of_wanted_articles(tmp_path, name, text, found):
    path = written(tmp_path / name, text)
    if isinstance(found, set):
        assert kb.read_names(path) == found
    else:
        assert said(DataError, kb.read_names, path) == f"{path}{found}"


@pytest.mark.parametrize("name", ["i", "u", "e", "t"])
def test_an_article_is_wanted_by_any_of_its_names(name):
    article = kb.Article("i", "t", [], url="u", entity="e")
    assert kb.is_kept(article, frozenset({name, "other"}))
    assert kb.is_kept(article, None)
    assert not kb.is_kept(article, frozenset({"other"}))


@pytest.mark.parametrize(
    ("text", "words", "pieces"),
    [
        ("  one two \n", None, ["one two"]),
        ("  one two \n", 2, ["one two"]),
        (" \n", 3, []),
        (" \n", None, []),
        ("a b\n\nc\nd e f", 3, ["a b\nc", "d e f"]),
        ("A b. C d! E f? G.h i", 2, ["A b.", "C d!", "E f?", "G.h i"]),
        ("A b. C d e f", 3, ["A b.", "C d e", "f"]),
        ("a b c d e\nf", 4, ["a b c d", "e\nf"]),
    ],
)
def test_where_a_text_is_cut(text, words, pieces):
    assert list(kb.cut(text, words)) == pieces


def test_a_zip_file_holds_one_knowledge_base(tmp_path):
    pytest.importorskip("ijson")
    path = tmp_path / "kb.zip"
    for names in ([], ["a.json", "b.JSON"]):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "x")
            for name in names:
                archive.writestr(name, "{}")
        expected = f"{path}: it must contain one .json file, not {len(names)}"
        assert said(DataError, kb.read_pages, path) == expected
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.JSON", json.dumps({"u:1": PAGE}))
    assert list(kb.read_pages(path)) == [(f"{path}, article 1 (u:1)", "u:1", PAGE)]
    plain = tmp_path / "kb.json"
    plain.write_bytes(b"\xef\xbb\xbf" + json.dumps({"u:1": PAGE}).encode())
    assert [url for _, url, _ in kb.read_pages(plain)] == ["u:1"]
    expected = f"{plain}: an object of articles by URL is expected"
    assert said(DataError, kb.read_pages, written(plain, "{}")) == expected
    message = said(DataError, kb.read_pages, written(plain, '{"u:1": '))
    assert message.startswith(f"{plain}: not JSON (")
    assert message.endswith("); is it cut off?")
    gone = tmp_path / "gone.json"
    assert said(DataError, kb.read_pages, gone) == f"no such file: {gone}"


def test_static_results_are_told_from_knowledge_bases(tmp_path):
    pytest.importorskip("ijson")
    for text, static in (
        ('{"output": []}', True),
        ('{"u:1": {"output": 1}}', False),
        ("[]", False),
        ('[{"output": []}]', False),
        ("{}", False),
    ):
        assert kb.is_static(written(tmp_path / "a.json", text)) is static


def test_passages_of_static_results():
    seen = set()
    entry = {"passage_id": 7, "content": "<BOK> a <BOK> b <EOK>"}
    assert kb.static_passage(entry, seen) == Passage("7", "a <BOK> b")
    assert kb.static_passage({**entry, "passage_id": "7"}, seen) is None
    assert seen == {"7"}
    form = "'top_ranking_passages' with 'passage_id' is expected"
    for wrong in (None, [], {"content": "x"}):
        assert said(DataError, kb.static_passage, wrong, seen) == form
    expected = "passage 'b' has no id or no 'content'"
    assert said(DataError, kb.static_passage, {"passage_id": "b", "content": 5}, seen) == expected
    expected = "passage None has no id or no 'content'"
    assert said(DataError, kb.static_passage, {**entry, "passage_id": None}, seen) == expected
    assert kb.top_passages({"top_ranking_passages": [entry]}, "here") == [entry]
    for wrong in (5, {}, {"top_ranking_passages": entry}, {"top_ranking_passages": [{}]}):
        assert said(DataError, kb.top_passages, wrong, "here") == f"here: {form}"


# Sources


def test_a_row_becomes_a_passage(tmp_path):
    row = {
        "id": 7,
        "content": "a text",
        "title": "T",
        "section": "S",
        "article": "A",
        "entity": "E",
        "url": "u",
        "page": 3,
        "blank": " ",
        "none": None,
    }
    expected = Passage("7", "a text", "T", None, "E", "u", {"page": 3}, "S", "A")
    path = jsonl(tmp_path / "p.jsonl", row)
    assert list(Corpus.read(path).values()) == [expected]
    path = jsonl(tmp_path / "p.jsonl", {**row, "content": "title: T content: x", "article": None})
    [passage] = Corpus.read(path).values()
    assert (passage.title, passage.article) == (None, "T")
    path = jsonl(tmp_path / "p.jsonl", {**row, "content": "title: T content: x"})
    [passage] = Corpus.read(path).values()
    assert (passage.title, passage.article) == (None, "A")
    path = jsonl(tmp_path / "p.jsonl", {**row, "content": "title: X content: x"})
    assert Corpus.read(path)["7"].title == "T"


def test_columns_that_are_missing_are_named_with_those_that_are_there(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", {"name": "a", "text": "b"})
    ids = "passage_id or id or _id or kid"
    expected = f"{path}, line 1: no passage id (column {ids}); the columns are name, text"
    assert said(DataError, Corpus.read, path) == expected
    path = jsonl(tmp_path / "p.jsonl", {"id": "a", "txt": "b", "text": " "})
    texts = "text or passage_content or content or contents"
    expected = f"{path}, line 1: no text (column {texts}); the columns are id, txt, text"
    assert said(DataError, Corpus.read, path) == expected
    expected = f"{path}, line 1: no text (column {texts}); the columns are id, txt, text (--on-er"
    assert said(DataError, Corpus.read, path, remarks=Remarks()).startswith(expected)


def test_an_image_of_a_passage_that_is_not_there(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", {"id": "a", "text": "b", "image": "x.jpg"})
    expected = f"{path}, line 1: no image 'x.jpg' below {tmp_path}"
    assert said(DataError, Corpus.read, path) == expected
    (tmp_path / "x.jpg").write_bytes(b"no image")
    assert Corpus.read(path)["a"].image == tmp_path / "x.jpg"  # not looked into without remarks
    remarks = Remarks("skip")
    expected = f"no passage can be used: {path}, passage 'a': {tmp_path}/x.jpg: not an image"
    assert said(DataError, Corpus.read, path, remarks=remarks) == expected


def test_a_corpus_of_another_kind_is_named(tmp_path):
    path = written(tmp_path / "a.xml", "x")
    message = said(DataError, Corpus.read, path)
    assert message.startswith(f"{path}: .xml is not read: .txt, .md, .markdown, .html, ")
    assert ".jsonl, .ndjson, .csv, .tsv, .parquet, images, knowledge bases (.json, " in message
    bare = written(tmp_path / "a", "x")
    assert ": files without a suffix are not read: .txt" in said(DataError, Corpus.read, bare)
    gone = tmp_path / "gone.jsonl"
    assert said(DataError, Corpus.read, gone) == f"no such file: {gone}"
    expected = "hf:a/b: hf:OWNER/NAME:SPLIT or hf:OWNER/NAME:CONFIG:SPLIT expected"
    assert said(UserError, Corpus.read, "hf:a/b") == expected
    assert said(UserError, Corpus.read, "hf:a/b:c:d:e").startswith("hf:a/b:c:d:e: hf:OWNER")
    empty = written(tmp_path / "e.jsonl", "")
    assert said(DataError, Corpus.read, empty) == f"{empty}: the corpus is empty"


@pytest.mark.parametrize(("name", "times"), [("a.jsonl", 1), ("a.jsonl.gz", 4), ("a.zip", 4)])
def test_the_size_of_a_file_is_that_of_what_it_holds(tmp_path, name, times):
    path = written(tmp_path / name, "x" * 100)
    [source] = find_sources([path], kb.Sections())
    assert source.size == 100 * times


def test_the_key_of_a_file_changes_with_all_that_its_passages_depend_on(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"id": 1, "text": "b"})
    names = written(tmp_path / "names.txt", "x")

    def key(file=path, **options):
        [source] = find_sources([file], kb.Sections(**options))
        return source.key()

    first = key()
    assert first == key()
    other = tmp_path / "a.ndjson"
    other.write_bytes(path.read_bytes())
    keys = [first, key(words=3), key(quotes=True), key(quotes=False), key(keep=names), key(other)]
    names.write_text("y")
    keys.append(key(keep=names))
    jsonl(path, {"id": 1, "text": "c"})
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_a_few_images_are_checked_at_a_time(tmp_path, monkeypatch):
    passages = [
        Passage(str(i), "x", image=tmp_path / f"{i}.jpg" if i % 2 else None) for i in range(5)
    ]
    asked = []

    def broken(paths):
        asked.append([path.name for path in paths])
        return {tmp_path / "3.jpg": "gone"} if tmp_path / "3.jpg" in paths else {}

    monkeypatch.setattr(rows, "broken_images", broken)
    monkeypatch.setattr(rows, "_CHECKED", 2)
    remarks = Remarks("skip")
    assert [p.passage_id for p in whole(iter(passages), "here", remarks)] == ["0", "1", "2", "4"]
    assert asked == [["1.jpg"], ["3.jpg"], []]
    assert remarks.broken == ["here, passage '3': gone"]


def test_passages_are_written_with_all_that_they_have(tmp_path):
    first = {"id": "1", "text": "\u00e4", "title": "T", "article": "A", "page": 3}
    rows = [first, {"id": "2", "text": "b", "article": "A"}, {"id": "3", "text": "c"}]
    rows += [{"id": "4", "text": "d"}, {"id": "5", "text": "e", "article": "A", "entity": "E"}]
    path = jsonl(tmp_path / "p.jsonl", *rows)
    target = tmp_path / "out.jsonl"
    assert write_passages([path], target, kb.Sections()) == (5, 4)
    lines = target.read_text(encoding="utf-8").splitlines()
    assert "\u00e4" in lines[0]
    assert json.loads(lines[0]) == {
        "passage_id": "1",
        "text": "\u00e4",
        "title": "T",
        "article": "A",
        "page": 3,
    }
    assert list(Corpus.read(target).values()) == list(Corpus.read(path).values())
    expected = f"{target} exists: --overwrite replaces it"
    assert said(UserError, write_passages, [path], target, kb.Sections()) == expected
    assert write_passages([path, path], target, kb.Sections(), overwrite=True) == (10, 7)
    expected = f"{tmp_path}/out.csv: the name must end in .jsonl"
    assert said(UserError, write_passages, [path], tmp_path / "out.csv", kb.Sections()) == expected
    empty = written(tmp_path / "e.jsonl", "")
    expected = f"{empty}, {empty}: none of the wanted articles"
    new = tmp_path / "new.jsonl"
    assert said(DataError, write_passages, [empty, empty], new, kb.Sections()) == expected
    assert not new.exists()
    below = path / "new.jsonl"
    expected = f"{below} cannot be written: Not a directory"
    assert said(UserError, write_passages, [path], below, kb.Sections()) == expected


# Hub copies in folders


def test_files_of_a_folder_belong_to_splits(tmp_path):
    for name in ("b/test-00001-of-00002.parquet", "b/test-00000-of-00002-7.parquet", "val.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").touch()
    assert hub.splits_of(tmp_path, "b") == {
        "test": [
            tmp_path / "b" / "test-00000-of-00002-7.parquet",
            tmp_path / "b" / "test-00001-of-00002.parquet",
        ]
    }
    assert hub.split_names(tmp_path, None) == ["val", "train"]
    assert hub.has_table(tmp_path, "b")
    assert not hub.has_table(tmp_path, "c")
    assert hub.has_table(Path("hf:a/b"), "c")
    names = {"hf:a/b": "a/b", "a/b": None, "hf:": ""}
    assert {name: hub.hub_name(Path(name)) for name in names} == names
    assert hub.hub_name(None) is None
    expected = f"no files {tmp_path}/b/tst-*.parquet: did you mean test? (known: test)"
    assert said(UserError, hub.Table, tmp_path, "b", "tst") == expected
    expected = f"no files {tmp_path}/c/test-*.parquet"
    assert said(UserError, hub.Table, tmp_path, "c", "test") == expected
    assert hub.image_folder(tmp_path, None).root == tmp_path
    assert hub.image_folder(tmp_path, tmp_path / "b").root == tmp_path / "b"
    assert hub.image_folder(Path("hf:a/b"), None).root == Path("images")
    assert hub.image_folder(Path("hf:a/b"), tmp_path).root == tmp_path
