"""What a collection says of itself and of mistakes, word by word, with an encoder of hashes."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import collection_files
import pytest
import yaml
from document_files import pdf
from messages import said

from ravqa.collections import Changes, Collection
from ravqa.collections.collection import _NEAR, _PIECES, own_id
from ravqa.collections.folder import (
    _REMEMBERED,
    CollectionCorpus,
    CollectionFolder,
    Manifest,
)
from ravqa.collections.settings import checked, own_settings, refusal
from ravqa.collections.trust import Setting
from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE, file_digest
from ravqa.core.records import Passage, Question
from ravqa.core.settings import Part, fingerprint, load_pipeline
from ravqa.corpora.remarks import Remarks
from ravqa.encoders.base import Encoded
from ravqa.images.decode import image_size

PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
KOALA = Passage("koala", "koalas eat leaves", title="Koala", extra={"page": 1})
BRIDGE = Passage("bridge", "a bridge of iron", extra={"page": 2})
TULIP = Passage("tulip", "tulips grow from bulbs", extra={"page": 2})


@pytest.fixture
def pipeline(tmp_path):
    return collection_files.pipeline(tmp_path)


@pytest.fixture
def collection(tmp_path, pipeline):
    made = Collection.create(tmp_path / "index", pipeline, words=7)
    made.add([KOALA, BRIDGE, TULIP])
    return made


# What is in the folder


def test_the_file_of_a_collection_holds_its_settings_encoder_and_state(collection, pipeline):
    values = json.loads((collection.path / "collection.json").read_text(encoding="utf-8"))
    settings, _ = load_pipeline(pipeline)
    stated = {
        "settings": settings,
        "encoder": {"fingerprint": "hashes/0", "weights": "hashes of seed 0", "dim": 16},
        "index": "index-000001",
        "words": 7,
    }
    assert values == {"format": 2, **stated, "checksum": fingerprint(stated)}
    assert CollectionFolder(collection.path).manifest() == Manifest(
        settings, stated["encoder"], "index-000001", 7
    )
    names = sorted(entry.name for entry in collection.path.iterdir())
    assert names == ["collection.json", "index-000001", "lock", "passages-000001"]
    [entry] = collection._state.passages
    assert entry["name"] == "passages-000001"
    files = sorted((collection.path / entry["name"]).iterdir())
    assert sorted(entry["files"]) == [file.name for file in files]
    assert all(entry["files"][file.name][0] == file.stat().st_size for file in files)


def test_the_file_of_a_collection_can_be_read_by_people(tmp_path):
    CollectionFolder(tmp_path).put(Manifest({"name": "Käse"}, {"dim": 1}, words=3))
    text = (tmp_path / "collection.json").read_text(encoding="utf-8")
    assert "Käse" in text
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    assert "left_out" not in text


def test_each_change_writes_one_more_folder(collection):
    collection.update([replace(KOALA, text="koalas sleep")])
    collection.update([replace(BRIDGE, extra={"page": 3})])
    names = [entry.name for entry in sorted(collection.path.glob("passages-*"))]
    assert names == ["passages-000001", "passages-000002", "passages-000003"]
    assert collection["koala"].text == "koalas sleep"
    assert collection["bridge"].extra == {"page": 3}
    # The newest record of each passage comes out, once, newest folder first.
    assert [p.passage_id for p in collection.corpus.stream()] == ["bridge", "koala", "tulip"]
    assert {p.passage_id: p for p in collection.corpus.stream()} == dict(collection.corpus)
    assert list(collection) == ["bridge", "tulip", "koala"]  # the koala was encoded again


def test_images_are_kept_by_their_bytes(collection, tmp_path):
    digest = file_digest(PHOTO)
    for name, suffix in (("a.JPG", ".jpg"), ("b.dat", ""), ("c", "")):
        source = tmp_path / name
        source.write_bytes(PHOTO.read_bytes())
        collection.put([Passage(name, f"photo {name}", image=source)])
        kept = collection[name].image
        assert kept == collection.path / "images" / digest[:2] / f"{digest}{suffix}"
        assert kept.read_bytes() == PHOTO.read_bytes()
        source.unlink()
    collection.delete(["b.dat", "c"])
    collection.compact()
    files = [file.name for file in (collection.path / "images").rglob("*") if file.is_file()]
    assert files == [f"{digest}.jpg"]


# What it says of itself


def test_what_a_collection_says_of_itself(collection, tmp_path):
    assert collection.path == tmp_path / "index"
    assert collection.words == 7
    assert (len(collection), list(collection)) == (3, ["koala", "bridge", "tulip"])
    assert dict(collection.corpus) == {"koala": KOALA, "bridge": BRIDGE, "tulip": TULIP}
    assert collection.corpus.source == str(tmp_path / "index")
    assert collection.corpus.repeated == 0
    assert tuple(collection.corpus.left_out) == ()
    stats = collection.stats()
    assert (stats["passages"], stats["encoder"]) == (3, "hashes of seed 0")
    assert (stats["kind"], stats["segments"]) == ("exact", 1)
    assert "fingerprint" not in stats
    assert "left_out" not in stats
    assert collection.verify() == []
    assert collection.local_models == []
    assert Collection.exists(collection.path)
    assert not Collection.exists(tmp_path)
    assert collection.withheld == ()


def test_an_empty_collection_may_be_created_again(tmp_path, pipeline, monkeypatch):
    trusted = []
    monkeypatch.setattr("ravqa.collections.collection._trust", trusted.append)
    first = Collection.create(tmp_path / "index", pipeline, words=7)
    written = first._folder.manifest_file.stat().st_mtime_ns
    again = Collection.create(tmp_path / "index", pipeline, words=7)
    assert again._folder.manifest_file.stat().st_mtime_ns == written  # the same settings stay
    assert trusted == [first._settings] * 2
    assert (again.words, again._where) == (7, Path(pipeline).name)
    again.add([KOALA])
    assert [p for _, p in again.search("leaves")] == [KOALA]


def test_a_collection_may_be_in_folders_that_are_not_there_yet(tmp_path, pipeline):
    place = tmp_path / "some" / "where"
    Collection.create(place, pipeline)
    (tmp_path / "empty").mkdir()
    Collection.create(tmp_path / "empty", pipeline)
    assert Collection.exists(place)


def test_an_empty_collection_says_so(tmp_path, pipeline):
    collection = Collection.create(tmp_path / "index", pipeline)
    assert (len(collection), list(collection), list(collection.corpus)) == (0, [], [])
    assert collection.stats() == {"passages": 0, "encoder": "hashes of seed 0"}
    assert collection.verify() == []
    assert "koala" not in collection
    assert said(KeyError, collection.__getitem__, "koala") == "'koala'"
    assert collection.search("leaves") == []
    assert collection.retrieve([Question(1, "a"), Question(2, "b")], 3) == [[], []]
    assert collection.words is None
    collection.compact()
    assert collection.delete([]) == Changes()


def test_models_in_local_folders_are_named(tmp_path, minilm_folder, models_loaded_once):
    model = f"retriever.encoder.model={minilm_folder}"
    collection = Collection.create(tmp_path / "index", "minilm-retrieval", model)
    assert collection.local_models == [str(minilm_folder)]
    collection = Collection.create(tmp_path / "other", "minilm-retrieval")
    assert collection.local_models == []


def test_its_index_is_for_its_encoder_and_kind_alone(collection):
    corpus, state = collection.corpus, collection._state
    for kind in ("auto", "exact"):
        assert corpus.index_for("hashes/0", kind) is state.index
    assert corpus.index_for("hashes/1", "exact") is None
    assert corpus.index_for("hashes/0", "compressed") is None


# Searching


def test_an_index_is_known_by_the_name_it_is_registered_under_too():
    index = SimpleNamespace(kind="flat", commits=True)
    corpus = CollectionCorpus(Path("here"), "encoder", index, "mine", ())
    for kind in ("auto", "mine", "flat"):
        assert corpus.index_for("encoder", kind) is index
        assert corpus.index_for("other", kind) is None
    assert corpus.index_for("encoder", "exact") is None
    empty = CollectionCorpus(Path("here"), "encoder", None, "mine", ())
    assert empty.index_for("encoder", "auto") is None


def test_an_index_is_opened_with_its_options(tmp_path):
    index = {"name": "exact", "block_mb": 3}
    made = Collection.create(tmp_path / "made", collection_files.pipeline(tmp_path, index=index))
    made.add([KOALA])
    assert Collection.open(made.path)._state.index.config.block_mb == 3


@pytest.mark.parametrize("created", [True, False])
def test_its_encoder_is_loaded_once_for_all_that_it_does(tmp_path, pipeline, monkeypatch, created):
    made = Collection.create(tmp_path / "new", pipeline)
    made.add([KOALA])
    loaded, own = [], collection_files.HashEncoder.__init__

    def init(self, config):
        loaded.append(config)
        own(self, config)

    monkeypatch.setattr(collection_files.HashEncoder, "__init__", init)
    if created:
        used = Collection.create(tmp_path / "other", pipeline)
        used.add([KOALA])
    else:
        used = Collection.open(tmp_path / "new")
    used.search("koalas")
    used.ask("What eats leaves?")
    assert len(loaded) == 1


def test_search_finds_the_words(collection):
    [(hit, passage)] = collection.search("tulips bulbs", k=1)
    assert (hit.passage_id, hit.rank, passage) == ("tulip", 1, TULIP)
    assert collection.search("iron", k=1)[0][1] == BRIDGE
    assert len(collection.search("iron", k=2)) == 2
    [hits] = collection.retrieve([Question(1, "iron bridge")], 2)
    assert [hit.rank for hit in hits] == [1, 2]
    assert hits[0].passage_id == "bridge"


def test_what_may_be_found_can_be_limited_in_two_ways_at_once(collection):
    def found(**limits):
        hits = [hit.passage_id for hit, _ in collection.search("koalas", **limits)]
        [same] = collection.retrieve([Question(0, "koalas")], 5, **limits)
        assert [hit.passage_id for hit in same] == hits
        pipeline = collection.pipeline(**limits)
        [same] = pipeline.retriever.retrieve([Question(0, "koalas")], 5)
        assert [hit.passage_id for hit in same] == hits
        return set(hits)

    assert found() == {"koala", "bridge", "tulip"}
    assert found(where={"page": 2}) == {"bridge", "tulip"}
    assert found(allowed_ids=["koala", "tulip"]) == {"koala", "tulip"}
    assert found(where={"page": 2}, allowed_ids=["koala", "tulip"]) == {"tulip"}
    assert found(where={"page": 2}, allowed_ids=["koala"]) == set()
    assert collection.matching({"page": [2, 1]}) == ["koala", "bridge", "tulip"]
    assert collection.matching(lambda p: "r" in p.text) == ["bridge", "tulip"]
    answered = collection.ask("koalas", where={"page": 2}, allowed_ids=["tulip"])
    assert [passage.passage_id for passage in answered.passages] == ["tulip"]


def test_the_retriever_of_a_state_is_the_one_of_the_pipeline(collection):
    retriever = collection.pipeline().retriever
    late = collection._pipeline().retriever
    assert retriever.fingerprint == late.fingerprint
    assert retriever.weights == late.weights == "hashes of seed 0"
    assert retriever.stores is late.stores
    assert retriever.supports_images is False
    assert retriever.prepare(None) is None
    [hits] = retriever.retrieve([Question(0, "koalas")], 5, ["bridge"])
    assert [hit.passage_id for hit in hits] == ["bridge"]


def test_the_instruction_is_part_of_the_question(collection, monkeypatch):
    asked = []
    late = type(collection._pipeline().retriever)
    rank = late.rank
    monkeypatch.setattr(
        late, "rank", lambda self, q, *rest: (asked.extend(q), rank(self, q, *rest))[1]
    )
    collection.search("koalas", PHOTO, instruction="Look at the image.")
    collection.ask("koalas", PHOTO.read_bytes(), instruction="Look.")
    assert [q.instruction for q in asked] == ["Look at the image.", "Look."]
    assert [q.image for q in asked] == [PHOTO, PHOTO.read_bytes()]
    assert [(q.question_id, q.question) for q in asked] == [(0, "koalas")] * 2


def test_what_is_no_question_and_no_image_is_named(collection):
    for ask in (collection.search, collection.ask):
        assert said(UserError, ask, 7) == "the question: a text is expected, got int"
        expected = "an image as list: a path or encoded bytes are expected"
        assert said(UserError, ask, "koalas", [1]) == expected
    expected = "k: 1 or more is expected, got 0"
    assert said(UserError, collection.search, "koalas", k=0) == expected
    assert said(UserError, collection.retrieve, [Question(0, "x")], 0) == expected


def test_the_last_filters_are_remembered_for_one_state(collection, monkeypatch):
    read = []
    stream = CollectionCorpus.stream
    monkeypatch.setattr(CollectionCorpus, "stream", lambda self: (read.append(1), stream(self))[1])

    def times(where):
        before = len(read)
        return collection.matching(where), len(read) - before

    assert times({"page": 1, "title": "Koala"}) == (["koala"], 1)
    assert times({"title": "Koala", "page": 1}) == (["koala"], 0)
    assert times({"page": 2}) == (["bridge", "tulip"], 1)
    assert times({"page": "2"}) == (["bridge", "tulip"], 1)
    assert times(lambda p: p.title) == (["koala"], 1)
    assert times(lambda p: p.title) == (["koala"], 1)
    for number in range(_REMEMBERED - 3):
        times({"page": [1, f"{number}"]})
    assert times({"page": 2}) == (["bridge", "tulip"], 0)
    times({"page": [2, 1]})  # one too many: all are forgotten
    assert times({"page": 2}) == (["bridge", "tulip"], 1)
    collection.delete(["tulip"])
    assert times({"page": 2}) == (["bridge"], 1)


# Changing


def test_a_state_counts_its_pieces_and_knows_what_was_deleted(collection):
    state = collection._state
    assert (state.pieces, state.tidy) == (1, True)
    collection.add([Passage("new", "text")])
    assert (collection._state.pieces, collection._state.tidy) == (2, False)
    assert collection._state.content != state.content
    collection.compact()
    assert (collection._state.pieces, collection._state.tidy) == (1, True)
    collection.delete(["new"])
    assert (collection._state.pieces, collection._state.tidy) == (1, False)
    collection.compact()
    assert collection._state.tidy
    relabelled = replace(KOALA, extra={"page": 8})
    collection.update([relabelled])  # one more folder of passages, and no more vectors
    assert (collection._state.pieces, collection._state.tidy) == (2, False)
    assert (_PIECES, _REMEMBERED, _NEAR) == (32, 16, 10_000)


def test_only_what_is_not_tidy_is_compacted_to_be_packed(collection, tmp_path):
    collection.pack(tmp_path / "a.tar")
    assert sorted(p.name for p in collection.path.glob("passages-*")) == ["passages-000001"]
    collection.update([replace(KOALA, extra={"page": 8})])
    collection.pack(tmp_path / "b.tar")
    assert sorted(p.name for p in collection.path.glob("passages-*")) == ["passages-000003"]


def test_an_index_of_another_kind_is_made_of_the_vectors_that_are_there(collection, monkeypatch):
    [(hit, _)] = collection.search("tulips bulbs", k=1)
    monkeypatch.setattr(collection_files.HashEncoder, "encode_document", None)
    with collection._changing() as writer:
        writer.convert(Part(name="compressed"))
        expected = "only an exact index keeps the vectors that another index needs"
        assert said(ValueError, writer.convert, Part(name="exact")) == expected
    assert collection.stats()["kind"] == "compressed"
    assert dict(collection.corpus) == {"koala": KOALA, "bridge": BRIDGE, "tulip": TULIP}
    [(found, _)] = collection.search("tulips bulbs", k=1)
    assert found.passage_id == hit.passage_id
    assert [p.name for p in collection.path.glob("index-*")] == ["index-000002"]


def test_an_empty_state_has_no_pieces(tmp_path, pipeline):
    state = Collection.create(tmp_path / "new", pipeline)._state
    assert (state.pieces, state.tidy, state.passages, state.content) == (0, True, [], "")


def test_changes_are_counted(collection):
    titled = replace(KOALA, title="The koala")
    labelled = replace(BRIDGE, extra={"page": 9})
    new = [Passage("new1", "one"), Passage("new2", "two")]
    assert collection.put([TULIP], source="mine") == Changes(relabelled=1)
    put = {"source": "mine", "prune": True}
    done = collection.put([titled, labelled, *new], replacing=True, **put)
    assert done == Changes(added=2, changed=1, relabelled=1, unchanged=0, deleted=1)
    assert sorted(collection) == ["bridge", "koala", "new1", "new2"]
    done = collection.put([titled, labelled, *new], replacing=True, **put)
    assert done == Changes(unchanged=4)
    assert collection.put(new, **put) == Changes(unchanged=2, deleted=2)
    assert collection.delete(iter(["new1", "new1"])) == Changes(deleted=1)
    assert collection.put([new[1]]) == Changes(unchanged=1)


def test_passages_that_were_cut_are_counted(collection, monkeypatch):
    encode = collection_files.HashEncoder.encode_document

    def cut(self, texts, progress=None):
        found = encode(self, texts, progress)
        return Encoded(found, truncated=sum(len(text.split()) > 3 for text in texts))

    monkeypatch.setattr(collection_files.HashEncoder, "encode_document", cut)
    done = collection.add([Passage("long", "one two three four"), Passage("short", "one")])
    assert done == Changes(added=2, truncated=1)


def test_a_passage_with_other_content_is_refused_and_nothing_is_added(collection):
    other = replace(KOALA, text="koalas sleep")
    expected = (
        f"{collection.path} already has another passage 'koala': update it, or give the new one "
        "another id"
    )
    new = Passage("new", "text")
    assert said(DataError, collection.add, [new, other]) == expected
    other = replace(KOALA, extra={"page": 7})
    assert said(DataError, collection.put, [other, new]) == expected
    assert "new" not in collection
    assert collection["koala"] == KOALA


def test_ids_that_no_passage_has_are_named_with_those_like_them(collection):
    where = f"in {collection.path}"
    expected = f"no passage 'koalla' {where}: did you mean koala?"
    assert said(UserError, collection.delete, ["bridge", "koalla"]) == expected
    assert said(UserError, collection.delete, ["xyz"]) == f"no passage 'xyz' {where}"
    assert len(collection) == 3
    two = [Passage("item-1", "a"), Passage("item-2", "b")]
    collection.add(two)
    assert str(collection.unknown("item-3")).endswith(": did you mean item-2 or item-1?")


def test_similar_ids_are_not_looked_for_among_very_many(collection, monkeypatch):
    for most, hint in ((3, ": did you mean koala?"), (2, "")):
        monkeypatch.setattr("ravqa.collections.collection._NEAR", most)
        expected = f"no passage 'koalla' in {collection.path}{hint}"
        assert str(collection.unknown("koalla")) == expected


@pytest.mark.parametrize("value", [None, 1.0, True, b"p0"])
def test_an_id_is_a_text_or_a_whole_number(value):
    assert (own_id("7"), own_id(7)) == ("7", "7")
    expected = f"{value!r} is not an id of a passage: a text is expected"
    assert said(UserError, own_id, value) == expected
    assert own_id("7", texts_only=True) == "7"
    expected = "7 is not an id of a passage: a text is expected"
    assert said(UserError, own_id, 7, texts_only=True) == expected


def test_progress_of_a_change_is_passed_on(collection, tmp_path):
    for number, change in enumerate((collection.add, collection.update, collection.put)):
        seen = []
        change([Passage(f"x{number}", "x")], progress=lambda *step, seen=seen: seen.append(step))
        assert ("encoding passages", 1, 1) in seen
        assert seen[-1] == ("writing the index", 1, 1)
    (tmp_path / "p.txt").write_text("one text")
    seen = []
    collection.add_files(tmp_path / "p.txt", progress=lambda *step: seen.append(step))
    assert ("encoding passages", 1, 1) in seen
    assert seen[-1] == ("writing the index", 1, 1)


def test_files_are_cut_as_asked_or_as_the_collection_is(collection, tmp_path):
    (tmp_path / "a.txt").write_text("one two three four five\nsix seven eight nine ten")
    assert collection.add_files(tmp_path / "a.txt", words=5) == Changes(added=2)
    (tmp_path / "b.txt").write_text("1 2 3 4 5 6 7\n8 9 10 11 12 13 14")
    assert collection.add_files(str(tmp_path / "b.txt")) == Changes(added=2)
    remarks = Remarks("skip")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00bad\xff")
    (tmp_path / "d.txt").write_text("good")
    assert collection.add_files(tmp_path / "d.txt", remarks=remarks) == Changes(added=1)
    (tmp_path / "a.txt").write_text("one two three four five")
    done = collection.add_files(tmp_path / "a.txt", words=5, remarks=remarks, prune=True)
    assert done == Changes(unchanged=1, deleted=1)


def test_what_pages_are_read_as_is_kept(tmp_path, pipeline):
    pytest.importorskip("pypdfium2", reason="pip install 'ravqa[pdf]'")
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf("Koalas eat leaves."))
    Collection.create(tmp_path / "index", pipeline, pages="images", dpi=40)
    collection = Collection.open(tmp_path / "index")
    assert collection.add_files(file) == Changes(added=1)
    assert collection.verify() == []
    image = collection["a.pdf#page=1"].image
    assert image_size(image) == (167, 167)  # 300 points
    assert image.is_relative_to(collection.path / "images")
    assert collection.add_files(file, replacing=True) == Changes(unchanged=1)
    assert collection.add_files(file, dpi=72, replacing=True) == Changes(relabelled=1)
    assert image_size(collection["a.pdf#page=1"].image) == (300, 300)
    assert collection.add_files(file, pages="text", replacing=True) == Changes(relabelled=1)
    assert collection["a.pdf#page=1"].image is None
    with pytest.raises(UserError) as error:
        Collection.open_or_create(collection.path, pipeline, pages="both")
    assert str(error.value) == (
        f"{collection.path} was created with pages=images, not both: open it with "
        "Collection.open, or create another collection in a new folder"
    )


def test_that_scans_are_read_is_kept(tmp_path, pipeline, monkeypatch):
    pytest.importorskip("pypdfium2", reason="pip install 'ravqa[pdf]'")

    def texts(reader, path, pages):
        return dict.fromkeys(pages, "Koalas eat leaves.")

    monkeypatch.setattr("ravqa.corpora.scans.ScanReader.texts", texts)
    file = tmp_path / "scan.pdf"
    file.write_bytes(pdf(""))
    Collection.create(tmp_path / "index", pipeline, ocr=True, dpi=200)
    collection = Collection.open(tmp_path / "index")
    assert collection.add_files(file) == Changes(added=1)
    assert collection["scan.pdf#page=1"].text == "Koalas eat leaves."
    assert collection.verify() == []
    with pytest.raises(UserError) as error:
        Collection.open_or_create(collection.path, pipeline, ocr=False)
    assert str(error.value) == (
        f"{collection.path} was created with ocr=True, not False: open it with "
        "Collection.open, or create another collection in a new folder"
    )
    plain = Collection.create(tmp_path / "plain", pipeline)
    assert plain.add_files(file, ocr=True) == Changes(added=1)


def test_the_resolution_of_a_new_collection_is_checked(tmp_path, pipeline):
    with pytest.raises(UserError) as error:
        Collection.create(tmp_path / "index", pipeline, dpi=90)
    assert str(error.value) == (
        "dpi is the resolution of images of pages: choose pages images or both, or ocr"
    )
    assert not (tmp_path / "index").exists()


def test_the_image_of_a_passage_needs_a_text_here(collection):
    expected = (
        "memory: the image 'photo' has no caption: write one, or choose a pipeline with a "
        "describer, or an encoder that sees images of passages"
    )
    blank = Passage("photo", " ", image=PHOTO)
    assert said(DataError, collection.add, [blank]) == expected
    assert said(DataError, collection.add, [Passage("x", "text", image=PHOTO), blank]) == expected
    assert collection.add([replace(blank, text="a photo")]) == Changes(added=1)


def test_a_script_that_opens_or_creates_runs_again(tmp_path, pipeline, monkeypatch):
    (tmp_path / "notes.txt").write_text("one two three four five six")
    path = tmp_path / "new"

    def script(*overrides, words=5):
        collection = Collection.open_or_create(path, pipeline, *overrides, words=words)
        return collection, collection.add_files(tmp_path / "notes.txt")

    assert script()[1] == Changes(added=2)
    monkeypatch.setattr(collection_files.HashEncoder, "encode_document", None)
    again, changes = script("top_k=7", words=None)
    assert changes == Changes(unchanged=2)
    assert (again.config.top_k, again.words) == (7, 5)
    expected = (
        f"{path} was created with words=5, not 6: open it with Collection.open, or create another "
        "collection in a new folder"
    )
    assert said(UserError, script, words=6) == expected
    assert said(UserError, script, "retriever.encoder.seed=1") == (
        f"the collection in {path} was encoded by hashes of seed 0, not by hashes of seed 1 as in "
        "hashed.yaml, or with other options: open it with its own settings, or build another"
    )
    other = tmp_path / "other"
    Collection.create(other, pipeline)
    early = Collection.open_or_create(other, pipeline, "retriever.encoder.seed=1")  # no passage yet
    assert early.stats()["encoder"] == "hashes of seed 1"


# Folders that cannot be used


def test_a_folder_that_is_not_new_is_refused(collection, tmp_path, pipeline):
    expected = (
        f"{collection.path} already holds a collection: add to it with ravqa collection add "
        f"{collection.path}, or choose a new folder"
    )
    assert said(UserError, Collection.check_new, collection.path) == expected
    expected = (
        f"{collection.path} already holds a collection: open it with Collection.open, or use "
        "Collection.open_or_create"
    )
    assert said(UserError, Collection.create, collection.path, pipeline) == expected
    for name in ("full", "file"):
        path = tmp_path / name
        if name == "full":
            path.mkdir()
            (path / "x").touch()
        else:
            path.touch()
        expected = f"{path} already exists and is not empty: choose a new folder"
        assert said(UserError, Collection.check_new, path) == expected
        assert said(UserError, Collection.create, path, pipeline) == expected
    (tmp_path / "empty").mkdir()
    Collection.check_new(tmp_path / "empty")
    Collection.check_new(tmp_path / "gone")
    begun = tmp_path / "begun"
    Collection.create(begun, pipeline)
    Collection.check_new(begun)
    with pytest.raises(UserError, match="already holds a collection"):
        CollectionFolder(begun).check_new()


def test_a_collection_that_is_not_there_or_of_another_format_is_named(collection, tmp_path):
    gone = tmp_path / "gone"
    expected = (
        f"no collection in {gone}: ravqa collection build {gone} SOURCE makes "
        "one, as does Collection.create in Python"
    )
    assert said(UserError, Collection.open, gone) == expected
    assert not gone.exists()
    with pytest.raises(UserError, match="no collection in"), CollectionFolder(gone).writing(None):
        pass
    assert not gone.exists()
    file = collection.path / "collection.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "words": 8}))
    expected = (
        f"{file} is damaged: delete {collection.path} and build the collection again "
        "(its checksum is wrong)"
    )
    assert said(UserError, Collection.open, collection.path) == expected
    file.write_text(json.dumps({**values, "format": 4}))
    message = said(UserError, Collection.open, collection.path)
    assert message.startswith(f"the collection in {collection.path} has format 4, but ")
    values["index"] = "../index-000001"
    del values["format"], values["checksum"]
    values = {"format": 1, **values, "checksum": fingerprint(values)}
    file.write_text(json.dumps(values))
    message = said(UserError, Collection.open, collection.path)
    assert message.endswith("(it refers to the folder '../index-000001')")


def test_passages_that_cannot_be_opened_are_named_with_the_reason(collection, monkeypatch):
    def opened(*_, **__):
        raise IndexError("no row 3\nof these")

    monkeypatch.setattr("ravqa.collections.folder.PassageFolder", opened)
    expected = (
        f"the collection in {collection.path} is damaged (passages-000001: no row 3): "
        "build it again"
    )
    assert said(UserError, Collection.open, collection.path) == expected


def test_faults_are_listed_file_by_file(collection):
    collection.add([Passage("photo", "a photo", image=PHOTO)])
    image = collection["photo"].image
    data = image.read_bytes()
    name = image.relative_to(collection.path).as_posix()
    line = f"{name}, image of 'photo', is missing or was changed"
    image.write_bytes(data[:-1] + b"x")
    assert collection.verify() == [line]
    image.unlink()
    assert collection.verify() == [line]
    image.write_bytes(data)
    assert collection.verify() == []
    texts = collection.path / "passages-000001" / "passages.jsonl"
    written = texts.read_bytes()
    texts.write_bytes(written.replace(b"leaves", b"LEAVES"))
    assert collection.verify() == ["passages-000001/passages.jsonl is missing or was changed"]
    texts.write_bytes(written + b"\n")
    assert collection.verify() == ["passages-000001/passages.jsonl is missing or was changed"]
    texts.unlink()
    assert said(UserError, collection.verify) == (
        f"the collection in {collection.path} is damaged (passages-000001/passages.jsonl is "
        "missing or was changed): build it again"
    )
    texts.write_bytes(written)
    vectors = next((collection.path / "index-000001").rglob("vectors.npy"))
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"\xff")
    [fault] = collection.verify()
    assert fault.startswith("index-000001/")
    assert "vectors.npy" in fault


def test_a_passage_without_a_text_is_a_fault(collection):
    """Its id is in the index, and in no folder of passages."""
    folder = CollectionFolder(collection.path)
    with folder.writing(collection._index) as writer:
        entries = [writer._write([(KOALA, None), (TULIP, None)])]
        writer.state.index.change(attached={"passages": entries})
    opened = Collection.open(collection.path)
    assert opened.verify() == ["passage 'bridge' is in the index but has no text"]
    expected = (
        f"{collection.path}: the text of passage 'bridge' is missing or was changed: "
        f"ravqa collection verify {collection.path} lists what is wrong"
    )
    assert said(DataError, opened.__getitem__, "bridge") == expected
    assert opened["tulip"] == TULIP


def test_links_that_lead_out_are_named(collection, tmp_path):
    (collection.path / "images").mkdir()
    link = collection.path / "images" / "out"
    link.symlink_to(tmp_path)
    expected = (
        f"{link} is a link to a place outside the collection: replace it with the file itself"
    )
    assert said(UserError, Collection.open, collection.path) == expected
    link.unlink()
    (collection.path / "inside").symlink_to(collection.path / "images")
    assert len(Collection.open(collection.path)) == 3


# Settings


def test_settings_that_no_collection_can_have_are_named(tmp_path, pipeline, collection):
    settings, _ = load_pipeline("bm25-retrieval")
    expected = "here: a collection needs the retriever late-interaction, not bm25"
    assert said(UserError, checked, settings, "here") == expected
    message = said(UserError, Collection.open, collection.path, None, "retriever.encoder.seed=1")
    assert message == (
        f"the collection in {collection.path} was encoded by hashes of seed 0, not by hashes of "
        f"seed 1 as in {collection.path}, or with other options: open it with its own settings, "
        "or build another"
    )


def test_another_version_of_the_encoder_is_named_as_one(monkeypatch, collection):
    monkeypatch.setattr(collection_files.HashEncoder, "passages_fingerprint", "newer")
    assert said(UserError, Collection.open(collection.path).load) == (
        f"the collection in {collection.path} was encoded by another version of hashes of seed 0, "
        "or with other options: open it with its own settings, or build another"
    )


def test_settings_from_elsewhere_are_withheld_unless_they_are_given_again(monkeypatch):
    own = {"reader": {"name": "openai", "url": "http://x/v1", "model": "m", "api_key_env": "KEY"}}

    def withheld(*overrides):
        settings, found = own_settings(own, overrides)
        return settings["reader"], [setting.path for setting in found]

    assert withheld() == (own["reader"], ["reader.url", "reader.api_key_env"])
    changed, found = withheld("reader.url=http://y/v1")
    assert (changed["url"], found) == ("http://y/v1", ["reader.api_key_env"])
    assert own["reader"]["url"] == "http://x/v1"  # nothing of the caller's is changed
    assert withheld("reader={name: openai, url: 'http://z/v1', model: m}")[1] == []
    assert withheld("reader.urls=http://y/v1")[1][:2] == ["reader.url", "reader.api_key_env"]
    monkeypatch.setattr("ravqa.collections.trust.is_mine", lambda settings: settings == own)
    assert withheld("reader.url=http://y/v1")[1] == []


@pytest.mark.parametrize(("value", "shown"), [("http://x", "VALUE"), (True, "true"), (1, "VALUE")])
def test_a_refusal_says_how_to_confirm(value, shown):
    first = Setting("reader.url", value, "a server")
    second = Setting("reader.api_key_env", "KEY", "an environment variable")
    assert str(refusal([first, second], "here")) == (
        "here: its settings come from elsewhere and name something outside it: "
        f"reader.url = {value!r} (a server), reader.api_key_env = 'KEY' (an environment variable): "
        f"if you trust them, confirm one with --set reader.url={shown}, or all with "
        "--trust-settings"
    )


def test_a_setting_is_shown_up_to_a_length():
    for length, shown in ((198, repr("x" * 198)), (199, "'" + "x" * 199 + "...")):
        assert str(Setting("a.b", "x" * length, "a server")) == f"a.b = {shown}"


def test_settings_of_another_pipeline_take_the_place_of_its_own(collection, tmp_path):
    file = tmp_path / "hashed.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["retriever"]["depth"] = 2
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(settings))
    opened = Collection.open(collection.path, str(other), "retriever.query.tags=1")
    assert opened.config.retriever.options["depth"] == 2
    assert opened.config.retriever.options["query"]["tags"] == 1
    assert opened.search("iron") == collection.search("iron")
    assert isinstance(opened.path, Path)
