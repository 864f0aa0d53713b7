"""What late interaction keeps in the cache: damaged, it is made again with a note."""

import json
import os
import shutil
import sqlite3
import time

import collection_files
import pytest

from ravqa.core.records import Passage, Question
from ravqa.core.settings import validate
from ravqa.corpora.corpus import Corpus
from ravqa.indexes.segmented.store import sole_writer
from ravqa.retrievers import late_interaction
from ravqa.retrievers.late_interaction import LateInteractionRetriever

collection_files.register()
QUESTIONS = [Question(0, "koala leaves"), Question(1, "iron tower")]


def corpus(*more):
    texts = ["koala eats leaves", "tower of iron", "river at night", *more]
    return Corpus(Passage(f"p{i}", text) for i, text in enumerate(texts))


def found(passages=None, index="exact", seed=0):
    encoder = {"name": "hashed", "seed": seed}
    index = {"name": index} | ({"shards": 2} if index == "sharded" else {})
    options = {"encoder": encoder, "index": index}
    config = validate(LateInteractionRetriever.Config, options, "retriever")
    retriever = LateInteractionRetriever(config)
    retriever.prepare(passages or corpus())
    return retriever.retrieve(QUESTIONS, 3), retriever.encoded.get("passages")


def forget(cache):
    for file in cache.glob("rankings.sqlite*"):
        file.unlink()


def notes(caplog):
    lines = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert not any("\n" in line for line in lines)
    return lines


@pytest.mark.parametrize("kind", ["exact", "compressed", "sharded"])
def test_a_damaged_index_is_made_again(fresh_cache, caplog, kind):
    good = found(index=kind)
    [folder] = (fresh_cache / "indexes").iterdir()
    for name in ("ids.json", "lengths.npy", "manifest.json", "sharded.json", "codec.json"):
        for file in [next(folder.rglob(name), None)]:
            if file is None:
                continue
            data = file.read_bytes()
            for bad in (data[:9] + bytes([data[9] ^ 8]) + data[10:], b"[" * 9999):
                file.write_bytes(bad)
                forget(fresh_cache)
                caplog.clear()
                assert found(index=kind) == good
                [line] = notes(caplog)
                assert str(folder) in line
                assert "made again" in line
                file = next(folder.rglob(name))
    caplog.clear()
    assert found(index=kind) == good
    assert notes(caplog) == []


@pytest.mark.parametrize("kind", ["exact", "compressed", "sharded"])
def test_one_changed_bit_anywhere_in_an_index_is_noticed(fresh_cache, caplog, monkeypatch, kind):
    good = found(index=kind)
    [folder] = (fresh_cache / "indexes").iterdir()
    names = [file.relative_to(folder) for file in folder.rglob("*") if file.suffix == ".npy"]
    assert any(name.name in {"vectors.npy", "residuals.npy"} for name in names)
    for name in names:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 64]))
        forget(fresh_cache)
        caplog.clear()
        assert found(index=kind) == good
        [line] = notes(caplog)
        assert f"{name.name} was changed: its checksum is wrong" in line
        assert line.endswith("(in the cache: it is made again)")
    # A large one is not read whole.
    name = next(name for name in names if name.name in {"vectors.npy", "residuals.npy"})
    monkeypatch.setattr(late_interaction, "_VERIFIED", 1000)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 64]))
    forget(fresh_cache)
    caplog.clear()
    found(index=kind)
    assert notes(caplog) == []


def aged(folder, hours):
    then = time.time() - hours * 3600
    for entry in [*folder.rglob("*"), folder]:
        os.utime(entry, (then, then))


def test_what_killed_processes_began_to_build_is_removed_after_a_day(fresh_cache):
    found(index="exact")
    indexes = fresh_cache / "indexes"
    [whole] = indexes.iterdir()

    def begun(name, hours, *more):
        folder = shutil.copytree(whole, indexes / name)
        (folder / "manifest.json").unlink()
        (folder / "spool.new").write_bytes(b"vectors")
        for other in more:
            (folder / other).write_bytes(b"x")
        aged(folder, hours)
        return folder

    gone = [begun("old", 25), begun("older", 999, ".manifest.json.0123abcd.part", "lock.owner")]
    kept = [whole, begun("new", 23), begun("foreign", 25, "notes.txt"), begun("held", 25)]
    aged(whole, 999)
    (indexes / "empty").mkdir()
    (indexes / "file").write_bytes(b"x")
    with sole_writer(indexes / "held"):
        aged(indexes / "held", 25)
        found(corpus("bamboo"), index="exact")
    assert [folder for folder in gone if folder.exists()] == []
    assert [folder for folder in kept if not folder.exists()] == []
    assert (indexes / "file").exists()
    aged(indexes / "held", 25)
    found(corpus("bamboo", "reed"), index="exact")  # as the next index is built
    assert not (indexes / "held").exists()


@pytest.mark.parametrize("kind", ["exact", "sharded"])
def test_the_index_of_another_corpus_is_not_searched(fresh_cache, caplog, kind):
    good = found(index=kind)
    [folder] = (fresh_cache / "indexes").iterdir()
    found(corpus("bamboo"), index=kind)
    [other] = set((fresh_cache / "indexes").iterdir()) - {folder}
    shutil.rmtree(folder)
    other.rename(folder)
    forget(fresh_cache)
    assert found(index=kind) == good
    assert "another corpus" in notes(caplog)[0]


def test_shards_that_are_missing_or_of_another_index_are_made_again(fresh_cache):
    good = found(index="sharded")
    [folder] = (fresh_cache / "indexes").iterdir()
    found(corpus("bamboo"), index="sharded", seed=1)
    [other] = set((fresh_cache / "indexes").iterdir()) - {folder}
    shutil.rmtree(folder / "shard-001")
    forget(fresh_cache)
    assert found(index="sharded") == good
    shutil.rmtree(folder / "shard-001")
    shutil.copytree(other / "shard-001", folder / "shard-001")
    forget(fresh_cache)
    assert found(index="sharded") == good


def test_vectors_of_a_killed_run_with_a_damaged_description_are_made_again(
    fresh_cache, caplog, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(LateInteractionRetriever, "_build", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            found()
    [folder] = (p for p in (fresh_cache / "embeddings").iterdir() if p.is_dir())
    for bad in ("", "{", "[]", json.dumps({"format": 1, "chunk": 0}), "\xff"):
        (folder / "meta.json").write_text(bad, encoding="latin-1")
        with monkeypatch.context() as patch:
            patch.setattr(LateInteractionRetriever, "_build", lambda *_: 1 / 0)
            caplog.clear()
            with pytest.raises(ZeroDivisionError):
                found()
        [line] = notes(caplog)
        assert "meta.json is damaged" in line
    hits, stats = found()
    assert [ranking[0].passage_id for ranking in hits] == ["p0", "p1"]
    assert stats.items == 3


@pytest.mark.parametrize("value", ["null", "[]", "{}", '{"items": "x"}', '{"elements": 3}', "7"])
@pytest.mark.parametrize("store", ["encodings", "rankings"])
def test_kept_values_of_another_kind_are_made_again(fresh_cache, caplog, store, value):
    good, _ = found()
    with sqlite3.connect(fresh_cache / f"{store}.sqlite") as connection:
        connection.execute("UPDATE kept SET value = ?", [value])
    connection.close()
    hits, _ = found()
    if (store, value) == ("rankings", "[]"):
        assert hits == [[], []]  # a ranking like another, which says that nothing was found
    else:
        assert hits == good
    assert len(notes(caplog)) == 1


def test_a_question_without_a_vector_is_reported(fresh_cache, caplog):
    config = validate(LateInteractionRetriever.Config, {"encoder": {"name": "hashed"}}, "r")
    retriever = LateInteractionRetriever(config)
    retriever.prepare(corpus())
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        [first, second] = retriever.retrieve([Question(0, "  "), QUESTIONS[0]], 3)
        assert (first, len(second)) == ([], 3)
        [line] = notes(caplog)
        assert "finds nothing for 1 question, such as '  '" in line
