"""Corpora in memory and on disk, selections, questions on disk, and what was left out."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from corpus_files import written
from messages import said

from ravqa.core.errors import DataError
from ravqa.core.records import Passage, Question
from ravqa.corpora import corpus as corpus_module
from ravqa.corpora import disk
from ravqa.corpora.corpus import Corpus, Selection
from ravqa.corpora.disk import DiskQuestions, PassageFolder, keep, same_record
from ravqa.corpora.remarks import Remarks

pytestmark = pytest.mark.usefixtures("fresh_cache")


# Corpora in memory and on disk

A, B = Passage("a", "one", title="T", section="S"), Passage("b", "two")


def by_hand(*passages):
    digest = hashlib.sha256()
    for p in passages:
        digest.update(f"{p.passage_id}\0{p.content}\0".encode())
        if p.image is not None:
            digest.update(f"{hashlib.sha256(p.image.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()[:32]


def made(*passages, on_disk=False, **options):
    size = corpus_module.IN_MEMORY + on_disk
    options = {"source": "here", "size": size, "key": lambda: "k", **options}
    return Corpus.build(iter(passages), **options)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_corpus_is_a_mapping_with_a_fingerprint_of_its_content(tmp_path, on_disk):
    image = written(tmp_path / "a.jpg", "bytes of an image")
    seen = Passage("c", "", image=image, url="u", entity="E", extra={"k": [1]}, article="A")
    corpus = made(A, B, seen, on_disk=on_disk)
    assert type(corpus).__name__ == ("DiskCorpus" if on_disk else "Corpus")
    assert list(corpus) == ["a", "b", "c"]
    assert list(corpus.values()) == list(corpus.stream()) == [A, B, seen]
    assert list(corpus.items()) == [("a", A), ("b", B), ("c", seen)]
    assert (len(corpus), corpus["b"], corpus.get("x"), "b" in corpus) == (3, B, None, True)
    assert said(KeyError, corpus.__getitem__, "x") == "'x'"
    assert corpus.fingerprint == by_hand(A, B, seen)
    assert (corpus.source, corpus.repeated, tuple(corpus.left_out)) == ("here", 0, ())
    assert corpus.index_for("any", "auto") is None


@pytest.mark.parametrize("on_disk", [False, True])
def test_ids_by_their_places(on_disk):
    names = ["a", 'b"c', "d\\", "\u00e9\u4e2d", "[1,", ""]
    corpus = made(*(Passage(name, f"text {name}") for name in names), on_disk=on_disk)
    ids = corpus.ids
    assert list(ids) == [ids[i] for i in range(len(ids))] == list(corpus) == names
    assert (len(ids), ids[-2], ids[1:4], ids[::-2]) == (6, "[1,", names[1:4], names[::-2])
    assert ids[np.int64(3)] == names[3]
    for place in (6, -7):
        with pytest.raises(IndexError):
            ids[place]


@pytest.mark.parametrize("line", [b"", b"[1,2]", b'{"a":1}', b'["a', b'["\xe9"]'])
def test_ids_in_changed_lines_are_damage(tmp_path, line):
    PassageFolder.write(tmp_path, [A, B], source="here")
    size = int(np.load(tmp_path / "offsets.npy")[1])
    file = tmp_path / "passages.jsonl"
    file.write_bytes(line.ljust(size - 1) + file.read_bytes()[size - 1 :])
    ids = PassageFolder(tmp_path).ids
    assert said(DataError, ids.__getitem__, 0).startswith(f"{file} is damaged: ")
    assert ids[1] == "b"


@pytest.mark.parametrize("on_disk", [False, True])
def test_ids_that_occur_twice_and_corpora_of_nothing(on_disk, fresh_cache):
    expected = "here: passage id 'a' occurs twice"
    assert said(DataError, made, A, B, Passage("a", "x"), on_disk=on_disk) == expected
    assert said(DataError, made, on_disk=on_disk) == "here: the corpus is empty"
    corpus = made(A, B, Passage("a", "x"), B, on_disk=on_disk, repeats="first")
    assert (list(corpus.values()), corpus.repeated) == ([A, B], 2)
    expected = "no passage can be used: line 1: bad"
    several = Remarks("skip", broken=["line 1: bad", "b"])
    assert said(DataError, made, on_disk=on_disk, remarks=several) == expected
    skipped = Remarks("skip", broken=["line 1: bad"])
    corpus = made(A, on_disk=on_disk, remarks=skipped, key=lambda: "other")
    assert corpus.left_out == ("line 1: bad",)
    if on_disk:  # the same corpus again is not read, and says what was left out
        again = made(on_disk=True, remarks=Remarks("skip"), key=lambda: "other")
        assert (list(again.values()), again.left_out) == ([A], ("line 1: bad",))
        assert list(made(B, on_disk=True, repeats="first", key=lambda: "other")) == ["b"]


def test_a_selection_is_some_passages_in_an_order():
    corpus = made(A, B, Passage("c", "three"))
    other = Passage("a", "changed")
    some = Selection(corpus, ["c", "a", "c"], {"a": other})
    assert (list(some), len(some), some["a"], some["c"].text) == (["c", "a"], 2, other, "three")
    assert some.fingerprint == by_hand(Passage("c", "three"), other)
    assert (some.source, some.repeated) == ("here", 0)
    assert "b" not in some
    assert said(KeyError, some.__getitem__, "b") == "'b'"
    assert list(Selection(corpus, ["b"]).values()) == [B]


def test_passages_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_BLOCK", 2)
    passages = [Passage(f"p{i}", f"text\u2028{i}\n") for i in range(5)]
    PassageFolder.write(tmp_path, iter(passages), source="here", broken=["x"])
    for mapped in (0, 2**16):
        monkeypatch.setattr(disk, "_MAPPED", mapped)
        folder = PassageFolder(tmp_path)
        assert list(folder.stream()) == passages
        assert list(folder.ids) == [f"p{i}" for i in range(5)]
        assert [folder.get(f"p{i}") for i in range(5)] == passages
        assert folder.get("p5") is folder.get(5) is None
        assert (len(folder), folder.broken, folder.repeated) == (5, ["x"], 0)
        assert folder.fingerprint == by_hand(*passages)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta == {
        "source": "here",
        "fingerprint": by_hand(*passages),
        "repeated": 0,
        "broken": ["x"],
    }
    hashes = np.load(tmp_path / "hashes.npy")
    codes = [
        int.from_bytes(hashlib.blake2b(f"p{i}".encode(), digest_size=8).digest(), "little")
        for i in range(5)
    ]
    assert hashes.tolist() == sorted(codes)
    rows = np.load(tmp_path / "rows.npy")
    assert [codes[row] for row in rows] == sorted(codes)


def test_ids_with_the_same_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_hash", lambda passage_id: 7)
    PassageFolder.write(tmp_path, [A, B], source="here")
    folder = PassageFolder(tmp_path)
    assert (folder.get("a"), folder.get("b"), folder.get("c")) == (A, B, None)
    expected = "here: passage id 'b' occurs twice"
    (tmp_path / "x").mkdir()
    assert (
        said(DataError, PassageFolder.write, tmp_path / "x", [A, B, B], source="here") == expected
    )


def test_a_folder_of_passages_that_was_changed(tmp_path):
    PassageFolder.write(tmp_path, [A, B], source="here")
    file = tmp_path / "passages.jsonl"
    text = file.read_bytes()
    for mend, hint in ((None, f"delete {tmp_path} and run again"), ("build it", "build it")):
        expected = f"{file} is damaged: {hint}"
        for bad in (text[:-5], text.replace(b'["a"', b'[["a'), text.replace(b'"one"', b"12345")):
            file.write_bytes(bad)
            folder = PassageFolder(tmp_path, mend=mend)
            assert said(DataError, lambda f=folder: [f.get("a"), f.get("b")]) == expected
            assert said(DataError, lambda f=folder: list(f.stream())) == expected
        file.write_bytes(text)


def test_images_of_a_folder_of_passages_stay_inside(tmp_path):
    for name in ("/etc/x", "../x", "..\\x", "a/../../x"):
        PassageFolder.write(tmp_path, [Passage("a", "b", image=Path(name))], source="here")
        folder = PassageFolder(tmp_path, images=tmp_path)
        expected = f"{tmp_path}/passages.jsonl: the image {name!r} of 'a' is outside of the"
        assert said(DataError, folder.check_images) == f"{expected} collection"
        assert said(DataError, folder.get, "a") == f"{expected} collection"
        assert PassageFolder(tmp_path).get("a").image == Path(name)
    PassageFolder.write(tmp_path, [Passage("a", "b", image=Path("c/d.jpg"))], source="here")
    folder = PassageFolder(tmp_path, images=tmp_path)
    folder.check_images()
    assert folder.get("a").image == tmp_path / "c" / "d.jpg"


def test_records_are_the_same_if_everything_is():
    whole = Passage("a", "t", "T", Path("i"), "E", "u", {"k": 1}, "S", "A")
    assert same_record(whole, Passage("a", "t", "T", Path("i"), "E", "u", {"k": 1}, "S", "A"))
    others = [
        Passage("b", "t", "T", Path("i"), "E", "u", {"k": 1}, "S", "A"),
        Passage("a", "x", "T", Path("i"), "E", "u", {"k": 1}, "S", "A"),
        Passage("a", "t", "X", Path("i"), "E", "u", {"k": 1}, "S", "A"),
        Passage("a", "t", "T", None, "E", "u", {"k": 1}, "S", "A"),
        Passage("a", "t", "T", Path("i"), "X", "u", {"k": 1}, "S", "A"),
        Passage("a", "t", "T", Path("i"), "E", "x", {"k": 1}, "S", "A"),
        Passage("a", "t", "T", Path("i"), "E", "u", {"k": 2}, "S", "A"),
        Passage("a", "t", "T", Path("i"), "E", "u", {"k": 1}, "X", "A"),
        Passage("a", "t", "T", Path("i"), "E", "u", {"k": 1}, "S", "X"),
    ]
    assert not any(same_record(whole, other) for other in others)


def test_questions_are_kept_in_memory_up_to_a_number(monkeypatch):
    monkeypatch.setattr(disk, "QUESTIONS_IN_MEMORY", 3)
    questions = [Question(i, "?", image=b"x" if i % 2 else None, answers=("a",)) for i in range(5)]
    assert keep(iter(questions[:3])) == questions[:3]
    assert type(keep(iter(questions[:3]))) is list
    kept = keep(iter(questions))
    assert isinstance(kept, DiskQuestions)
    assert list(kept) == questions
    assert [kept[i] for i in range(-5, 5)] == questions * 2
    assert kept[1:4:2] == questions[1:4:2]
    for i in (5, -6):
        with pytest.raises(IndexError):
            kept[i]


# What was left out


def test_remarks_are_one_line_for_each_kind():
    remarks = Remarks("skip")
    assert remarks.lines() == []
    remarks.check_prune()
    for i in range(6):
        remarks.break_off(f"f{i}", "bad")
    for name in ("blank", "copies", "links", "collections", "absent", "second"):
        setattr(remarks, name, [name])
    remarks.others.update({".x": 1, ".y": 2})
    assert remarks.lines() == [
        "cannot be read, left out: f0: bad; f1: bad; f2: bad; f3: bad; f4: bad; and 1 more",
        "without text: blank",
        "a copy of another file, left out: copies",
        "a link that leads out of the folder, left out: links",
        "a collection, left out: collections",
        "listed in a metadata file, but missing: absent",
        "a caption besides one in a metadata file, left out: second",
        "skipped, kind not supported: 2 .y; 1 .x",
    ]
    assert said(DataError, remarks.check_prune) == (
        "f0: bad; pruning would delete its passages from the collection: fix it, or leave out "
        "--prune"
    )
    remarks.broken = remarks.broken[:5]
    assert remarks.lines()[0].endswith("f4: bad")


def test_what_cannot_be_used_is_named_at_once():
    remarks = Remarks()
    remarks.check()
    remarks.break_off("f", "bad")
    assert said(DataError, remarks.check) == "f: bad (--on-error skip leaves it out)"
    remarks.break_off("g", "worse")
    assert said(DataError, remarks.check) == "f: bad; g: worse (--on-error skip leaves them out)"
    for number in range(3, 20):
        remarks.break_off(str(number), "bad")
    assert said(DataError, remarks.break_off, "20", "bad").startswith("f: bad; g: worse; 3: bad; ")
    skipped = Remarks("skip", broken=["f: bad"] * 50)
    skipped.check()
