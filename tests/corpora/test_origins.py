"""Passages of several sources: ids that do not collide, and which source each passage is of."""

import pytest
from PIL import Image

from ravqa.core.errors import DataError
from ravqa.corpora import corpus as corpora
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.origins import Origin, folder_prefixes
from ravqa.corpora.remarks import Remarks


def write(folder, **texts):
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_one_folder_has_ids_below_it_and_several_have_their_names(tmp_path):
    a, b = write(tmp_path / "a", same="one"), write(tmp_path / "b", same="two", more="three")
    assert list(Corpus.read(a)) == ["same.txt#0"]
    both = Corpus.read(a, b)
    assert list(both) == ["a/same.txt#0", "b/more.txt#0", "b/same.txt#0"]
    assert both["b/same.txt#0"].text == "two"
    assert [p.article for p in both.values()] == ["a/same.txt", "b/more.txt", "b/same.txt"]


def test_articles_that_a_table_names_stay_as_they_are(tmp_path):
    a, b = write(tmp_path / "a", same="one"), write(tmp_path / "b", same="two")
    (b / "t.csv").write_text("id,text,article\n1,One.,b\n2,Two.,https://example.org/x\n")
    found = {p.passage_id: p.article for p in Corpus.read(a, b).values()}
    assert found == {
        "a/same.txt#0": "a/same.txt",
        "b/same.txt#0": "b/same.txt",
        "b/t.csv#1": "b",
        "b/t.csv#2": "https://example.org/x",
    }


def test_a_file_beside_a_folder_changes_no_ids(tmp_path):
    a = write(tmp_path / "a", same="one")
    (tmp_path / "more.jsonl").write_text('{"id": "x", "text": "two"}\n')
    (tmp_path / "single.txt").write_text("three")
    corpus = Corpus.read(a, tmp_path / "more.jsonl", tmp_path / "single.txt")
    assert list(corpus) == ["same.txt#0", "x", "single.txt#0"]


def test_folders_of_the_same_name_are_told_apart_by_those_above(tmp_path):
    folders = [tmp_path / "x/docs", tmp_path / "y/docs", tmp_path / "y/notes"]
    assert folder_prefixes(folders) == ["x/docs/", "y/docs/", "notes/"]
    assert folder_prefixes(folders[1:], taken={"docs/"}.__contains__) == ["y/docs/", "notes/"]


def test_a_folder_is_given_once(tmp_path):
    a = write(tmp_path / "a", same="one")
    with pytest.raises(DataError, match=r"^/.*a is given twice$"):
        Corpus.read(a, a / ".." / "a")
    with pytest.raises(DataError, match=f"^{a}: ids that begin with its name exist already$"):
        folder_prefixes([a], taken=lambda _: True)


@pytest.mark.parametrize("most", [corpora.IN_MEMORY, 0])
def test_a_corpus_knows_its_sources_in_memory_and_on_disk(tmp_path, monkeypatch, most):
    monkeypatch.setattr(corpora, "IN_MEMORY", most)
    a, b = write(tmp_path / "a", x="one", y="two"), write(tmp_path / "b", x="three")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "c.jsonl").write_text('{"id": "c", "text": "four"}\n')
    for _ in range(2):  # the second one is opened
        corpus = Corpus.read(a, tmp_path / "empty.jsonl", b, tmp_path / "c.jsonl")
        assert corpus.origins == (
            (Origin(str(a), "a/"), 2),
            (Origin(str(tmp_path / "empty.jsonl")), 0),
            (Origin(str(b), "b/"), 1),
            (Origin(str(tmp_path / "c.jsonl")), 1),
        )
    moved = a.rename(tmp_path / "d")
    other = Corpus.read(moved, prefixes={moved: "a/"})  # the same content, of another path
    assert other.origins == ((Origin(str(moved), "a/"), 2),)
    assert Corpus.read(moved).origins == ((Origin(str(moved), ""), 2),)
    assert list(other) == ["a/x.txt#0", "a/y.txt#0"]
    assert Corpus(corpus.values()).origins == ()


def test_what_was_read_with_parts_left_out_is_not_taken_for_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "IN_MEMORY", 0)  # kept on disk, and opened the next time
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "x", "text": "one"}\n{"id": "y"}\n')
    for _ in range(2):
        assert list(Corpus.read(file, remarks=Remarks("skip"))) == ["x"]
        with pytest.raises(DataError, match=r"^/.*a\.jsonl, line 2: no text"):
            Corpus.read(file, remarks=Remarks())
    photo = tmp_path / "later.png"
    file.write_text(
        '{"id": "x", "text": "one"}\n{"id": "y", "text": "two", "image": "later.png"}\n'
    )
    assert list(Corpus.read(file, remarks=Remarks("skip"))) == ["x"]
    Image.new("RGB", (2, 2)).save(photo)
    assert list(Corpus.read(file, remarks=Remarks())) == ["x", "y"]


def test_passages_that_are_left_out_leave_the_sources_unknown(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "x", "text": "one"}\n')
    files = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert Corpus.read(*files, repeats="first").origins == ()
    with pytest.raises(DataError, match="'x' occurs twice"):
        Corpus.read(*files)
