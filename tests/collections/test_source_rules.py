"""What a change makes of passages and their sources, case by case and word by word."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import collection_files
import pytest
from messages import said

from ravqa.collections import Changes, Collection
from ravqa.collections.changes import Plan, plan
from ravqa.collections.sources import Origins, Recorder, shown_name, stored_name
from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.origins import Origin
from ravqa.corpora.remarks import Remarks

A, B = Origin("../a", "a/"), Origin("crm")
OLD = Passage("old", "text", image=Path("one.jpg"))


class There(dict):
    """The passages of a collection: {id: (passage, origin)}."""

    source = "zoo"
    present = dict.__getitem__

    def with_origins(self):
        return iter(self.values())


def planned(incoming, there, *runs, replacing=True, prune=False, claims=True, sees=None):
    found = There({passage.passage_id: (passage, origin) for passage, origin in there})
    options = {"replacing": replacing, "prune": prune, "claims": claims}
    return plan(Corpus(incoming), found, runs, **options, sees_images=lambda: sees[0])


@pytest.mark.parametrize(
    ("new", "known", "brought", "sees", "what", "origin"),
    [
        (OLD, A, B, None, "unchanged", None),
        (OLD, None, None, None, "unchanged", None),
        (OLD, None, B, None, "relabelled", B),  # it becomes known
        (replace(OLD, extra={"n": 1}), A, B, None, "relabelled", B),
        (replace(OLD, extra={"n": 1}), A, None, None, "relabelled", A),  # a correction by hand
        (replace(OLD, text="other"), A, B, None, "changed", B),
        (replace(OLD, text="other"), A, None, None, "changed", A),
        (replace(OLD, image=Path("two.jpg")), A, B, [True], "changed", B),
        (replace(OLD, image=Path("two.jpg")), A, B, [False], "relabelled", B),
        (replace(OLD, title="T"), None, None, None, "changed", None),
        (replace(OLD, passage_id="new"), A, B, None, "added", B),
        (replace(OLD, passage_id="new"), A, None, None, "added", None),
    ],
)
def test_what_becomes_of_a_passage(new, known, brought, sees, what, origin):
    """Whether another image means other vectors is asked only if it matters: models are loaded."""
    runs = [] if brought is None else [(brought, 1)]
    made = planned([new], [(OLD, known)], *runs, sees=sees)
    if what == "unchanged":
        assert made == Plan(unchanged=1)
    else:
        name = new.passage_id
        assert made == Plan(**{what: [name]}, origins={name: origin})
        assert made.changes(3) == Changes(**{what: 1}, truncated=3)
        assert made.changes().ids == {what: (name,)}
    assert made.encoded == (["old"] if what == "changed" else ["new"] if what == "added" else [])
    assert made.written == ([] if what == "unchanged" else [new.passage_id])


def test_sources_become_known_only_where_they_can_be_written():
    assert planned([OLD], [(OLD, None)], (B, 1), claims=False) == Plan(unchanged=1)


def test_a_passage_that_differs_must_not_be_added():
    expected = "zoo already has another passage 'old': update it, or give the new one another id"
    other = replace(OLD, text="other")
    assert said(DataError, planned, [other], [(OLD, A)], replacing=False) == expected
    assert planned([OLD], [(OLD, A)], replacing=False) == Plan(unchanged=1)


def test_runs_say_which_source_brought_which_passage():
    one, two, three = (Passage(name, name) for name in ("1", "2", "3"))
    made = planned([one, two, three], [], (A, 1), (B, 2))
    assert made == Plan(added=["1", "2", "3"], origins={"1": A, "2": B, "3": B})


def test_only_what_the_same_sources_do_not_have_any_more_is_pruned():
    origins = (A, B, None, A)
    there = [(Passage(name, name), origin) for name, origin in zip("1234", origins, strict=True)]
    kept = [Passage("4", "4")]
    assert planned(kept, there, (A, 1), prune=True) == Plan(deleted=["1"], unchanged=1)
    assert planned(kept, there, (A, 1), (B, 0), prune=True).deleted == ["1", "2"]
    assert planned(kept, there, (A, 1)) == Plan(unchanged=1)


def test_the_file_of_sources_is_of_runs(tmp_path):
    passages = [Passage(str(n), "text") for n in range(5)]
    origins = [None, A, A, B, A]
    recorder = Recorder(zip(passages, origins, strict=True))
    assert list(recorder) == passages
    recorder.write(tmp_path)
    file = tmp_path / "sources.json"
    runs = [[None, None, 1], ["../a", "a/", 2], ["crm", None, 1], ["../a", "a/", 1]]
    assert json.loads(file.read_text()) == runs
    read = Origins.read(tmp_path, 5)
    assert [read[place] for place in range(7)] == [*origins, None, None]
    assert read[1] is read[4]
    assert list(read) == [A, B]
    assert (list(Origins()), Origins()[0]) == ([], None)
    expected = f"{tmp_path.name}/sources.json is of another number of passages"
    assert said(ValueError, Origins.read, tmp_path, 4) == expected
    file.unlink()
    unknown = Recorder((passage, None) for passage in passages)
    assert list(unknown) == passages
    unknown.write(tmp_path)
    assert not file.exists()


def test_names_of_sources(tmp_path, monkeypatch):
    collection = tmp_path / "deep" / "all"
    assert stored_name(Path("hf:owner/name:train"), collection) == "hf:owner/name:train"
    assert stored_name(tmp_path / "notes", collection) == "../../notes"
    assert stored_name(collection / "own", collection) == "own"
    assert stored_name(tmp_path / "\udcff", collection).isprintable()
    monkeypatch.chdir(tmp_path)
    assert shown_name("../../notes", collection) == "notes"
    assert shown_name("../../../notes", collection) == str(tmp_path.parent / "notes")
    assert shown_name("crm", collection) == "crm"


@pytest.fixture
def collection(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/notes", "b/notes", "c"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "x.txt").write_text(f"text of {name}")
    return Collection.create(tmp_path / "all", collection_files.pipeline(tmp_path))


def test_what_a_source_that_is_not_known_is_told(collection):
    expected = "all has no passage of c to prune; its sources: {}: update it once without pruning"
    collection.add([Passage("mine", "text")])
    told = f"{collection.path.parent}/{expected}"
    assert said(UserError, collection.add_files, "c", prune=True) == told.format("none")
    collection.add_files("b/notes", "a/notes")
    assert said(UserError, collection.add_files, "c", prune=True) == told.format("a/notes, b/notes")
    assert list(collection.sources().items()) == [("a/notes", 1), ("b/notes", 1), (None, 1)]
    expected = (
        f"in {collection.path}, ids of b/notes begin with 'b/notes/': read it with read_files or "
        "add_files"
    )
    assert said(UserError, collection.update, Corpus.read("b/notes")) == expected
    expected = "only passages of a known source can be pruned: name it with source="
    assert said(UserError, collection.update, [Passage("1", "x")], prune=True) == expected
    assert "1" not in collection


def test_folders_of_one_name_get_ids_that_tell_them_apart(collection):
    collection.add_files("a/notes")
    assert list(collection) == ["x.txt#0"]
    collection.add_files("b/notes")
    collection.add([Passage("c/of", "another's")])
    collection.add_files("c")
    above = collection.path.parent.name
    assert list(collection)[1:] == ["notes/x.txt#0", "c/of", f"{above}/c/x.txt#0"]
    both = collection.read_files("b/notes", "a/notes", "c")
    assert sorted(both) == sorted(set(collection) - {"c/of"})


def test_files_are_read_as_is_said(collection, tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("text;more,still\nSüßes für 5 €;x\n", encoding="utf-16-le")
    form = {"encoding": "utf-16-le", "delimiter": ";"}
    assert collection.add_files(file, **form, dry_run=True) == Changes(added=1)
    assert len(collection) == 0
    assert collection.add_files(file, **form) == Changes(added=1)
    assert collection["table.csv#row=1"].text == "Süßes für 5 €"
    assert said(DataError, collection.add_files, file, delimiter=";").startswith(str(file))


def test_what_cannot_be_read_is_not_pruned(collection, tmp_path):
    collection.add_files("c")
    (tmp_path / "c" / "y.txt").write_bytes(b"\xff\xfe\x00bad\xff")
    remarks = Remarks("skip")
    done = collection.add_files("c", remarks=remarks)
    assert (done, len(remarks.broken)) == (Changes(unchanged=1), 1)
    told = said(DataError, collection.add_files, "c", remarks=Remarks("skip"), prune=True)
    assert told.endswith(
        "; pruning would delete its passages from the collection: fix it, or leave out --prune"
    )


def test_a_trial_expects_what_a_change_would_do_to_pictures(collection, tmp_path):
    photo = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
    own = tmp_path / "own.jpg"
    shutil.copy(photo, own)
    collection.add([Passage("1", "a koala", image=own), Passage("2", "no picture")])
    stored = collection["1"].image
    given = [
        Passage("1", " ", image=photo),  # the same picture
        Passage("2", "no picture"),
        Passage("3", " ", image=photo),
    ]
    expected = collection._expected_pictures(Corpus(given), collection._state.corpus)
    assert expected == {
        "1": Passage("1", "a koala", image=stored),
        "3": Passage("3", " ", image=stored),
    }
    own.write_bytes(photo.with_name("COCO_val2014_000009000011.jpg").read_bytes())
    for text in (" ", "a bridge"):
        other = Passage("1", text, image=own)
        [found] = collection._expected_pictures(Corpus([other]), collection._state.corpus).values()
        assert found.text == text
        assert found.image.name != stored.name
        assert not found.image.exists()
