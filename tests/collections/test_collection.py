"""A collection: passages, index and settings in one folder."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import collection_files
import pytest

from ravqa.collections import Changes, Collection
from ravqa.collections.folder import CollectionFolder
from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage, Question
from ravqa.core.settings import load_pipeline
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.remarks import Remarks
from ravqa.indexes.segmented.store import sole_writer

KOALA = Passage("koala", "It eats leaves of eucalyptus trees.", title="Koala", extra={"page": 1})
BRIDGE = Passage("bridge", "It was built from 1886 to 1894.", title="Tower Bridge")
TULIP = Passage("tulip", "Tulips grow from bulbs in spring.", title="Tulip", extra={"page": 2})
ROOT = Path(__file__).parents[2]
PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"

pytestmark = pytest.mark.usefixtures("models_loaded_once")


@pytest.fixture
def collection(tmp_path, minilm_folder):
    made = Collection.create(tmp_path / "index", "sample-tags")
    made.add([KOALA, BRIDGE, TULIP])
    return made


def ids(found):
    return [hit.passage_id for hit, _ in found]


def test_search_finds_by_text_and_by_image(collection):
    found = collection.search("Which flower grows from bulbs?", k=2)
    assert [hit.rank for hit, _ in found] == [1, 2]
    assert found[0][1] == TULIP
    assert ids(collection.search("What does this animal eat?", PHOTO, k=1)) == ["koala"]


def test_what_killed_writers_left_is_removed_and_nothing_else(collection):
    own = {entry.name for entry in collection.path.iterdir()}
    for name in ("index-000099", "passages-000099"):
        (collection.path / name).mkdir()
        (collection.path / name / "ids.npy").write_bytes(b"half")
    (collection.path / ".ravqa.json.part").write_bytes(b"half")
    foreign = ["notes.part", ".notes", "index-99", "index-000099.txt", "my-index-000099"]
    for name in foreign:
        (collection.path / name).write_bytes(b"mine")
    collection.add([Passage("fern", "Ferns have no flowers.")])
    found = {entry.name for entry in collection.path.iterdir()}
    assert own <= found
    assert {name for name in found - own if not name.startswith("passages-")} == set(foreign)
    assert "passages-000099" not in found
    assert collection.verify() == []


def test_an_image_may_be_named_by_a_string(collection):
    expected = collection.search("What does this animal eat?", PHOTO)
    assert collection.search("What does this animal eat?", str(PHOTO)) == expected
    assert collection.search("What?", "") == collection.search("What?")
    answered = Collection.open(collection.path, None, "reader={name: first-words}")
    assert answered.ask("What?", str(PHOTO)).hits == answered.ask("What?", PHOTO).hits
    pipeline = answered.pipeline()
    assert pipeline.ask("What?", str(PHOTO)).hits == pipeline.ask("What?", PHOTO).hits


def test_a_collection_knows_what_was_left_out_of_it(tmp_path):
    """What a run with it reports as left out is not nothing."""
    collection = Collection.create(tmp_path / "animals", collection_files.pipeline(tmp_path))
    path = tmp_path / "p.jsonl"

    def put(*texts):
        rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        collection.put(Corpus.read(path, remarks=Remarks("skip")), replacing=True)

    put("a koala", ["no text"], "a bear")
    collection.add([TULIP])
    for opened in (collection, Collection.open(collection.path)):
        [left_out] = opened.corpus.left_out
        assert left_out.startswith(f"{path}, line 2: 'text': text is expected, not a list")
        assert opened.stats()["left_out"] == 1
    collection.compact()
    packed = tmp_path / "animals.tar"
    collection.pack(packed)
    copy = Collection.unpack(packed, tmp_path / "copy")
    assert copy.corpus.left_out == collection.corpus.left_out != ()
    put("a koala", "text", "a bear")
    assert Collection.open(collection.path).corpus.left_out == ()
    assert "left_out" not in collection.stats()


def test_what_is_left_out_may_have_a_name_in_another_encoding(tmp_path):
    pages = tmp_path / "pages\udce9"
    pages.mkdir()
    (pages / "caf\udce9.txt").write_text("The koala eats leaves.")
    (pages / "panda.txt").write_text("The panda eats bamboo.")
    corpus = Corpus.read(pages, remarks=Remarks("skip"))
    assert len(corpus) == 1
    collection = Collection.create(tmp_path / "animals", collection_files.pipeline(tmp_path))
    collection.put(corpus)
    [left_out] = Collection.open(collection.path).corpus.left_out
    assert left_out.startswith("caf\\udce9.txt: ")


def test_a_folder_of_an_older_version_stays_usable(tmp_path):
    path = tmp_path / "animals"
    collection = Collection.create(path, collection_files.pipeline(tmp_path))
    collection.add([KOALA, BRIDGE])
    before = collection.search("eucalyptus")
    (path / "collection.json").rename(path / "library.json")
    old = Collection.open(path)
    assert old.search("eucalyptus") == before
    old.add([TULIP])
    old.compact()
    assert old.verify() == []
    assert ids(Collection.open(path).search("bulbs", k=1)) == ["tulip"]
    assert not (path / "collection.json").exists()
    with pytest.raises(UserError, match="already holds a collection"):
        Collection.create(path, collection_files.pipeline(tmp_path))
    with pytest.raises(DataError, match="is a collection"):
        Corpus.read(path)


def test_less_than_one_passage_is_refused(collection):
    for k in (0, -1):
        with pytest.raises(UserError, match=f"^k: 1 or more is expected, got {k}$"):
            collection.search("What?", k=k)
        with pytest.raises(UserError, match=f"^k: 1 or more is expected, got {k}$"):
            collection.retrieve([Question(0, "What?")], k)


def test_search_is_that_of_the_pipeline(collection):
    from ravqa.pipeline import Pipeline

    pipeline = Pipeline.load("sample-tags", "reader={name: first-words}")
    pipeline.prepare(Corpus([KOALA, BRIDGE, TULIP]))
    expected = pipeline.ask("What does this animal eat?", PHOTO).hits
    assert [h for h, _ in collection.search("What does this animal eat?", PHOTO)] == expected


def test_changes_are_seen_by_others_after_refresh(collection):
    other = Collection.open(collection.path)
    new = replace(TULIP, text="The tulip comes from Central Asia.")
    assert collection.update([new, KOALA]) == Changes(changed=1, unchanged=1)
    assert collection.delete(["bridge"]) == Changes(deleted=1)
    assert list(collection) == ["koala", "tulip"]
    assert (other["tulip"], len(other)) == (TULIP, 3)
    assert ids(other.search("When was the bridge built?", k=1)) == ["bridge"]
    other.refresh()
    assert (other["tulip"], len(other)) == (new, 2)
    assert ids(other.search("When was the bridge built?")) != ["bridge"]
    assert other.verify() == []


def test_its_pipeline_stays_as_the_collection_was(collection):
    pipeline = collection.pipeline(where={"page": [1, 2]})
    collection.delete(["tulip"])
    assert pipeline.answerer is None
    [hits] = pipeline.retrieve(pipeline.describe([Question(0, "Which flower grows from bulbs?")]))
    assert [passage for _, passage in pipeline.passages(hits)] == [TULIP, KOALA]
    assert list(collection.pipeline().corpus) == ["koala", "bridge"]


def test_only_new_texts_are_encoded(collection, monkeypatch):
    encoded = []
    encoder = type(collection._pipeline().retriever.encoder)
    original = encoder.encode_document

    def spy(self, texts, progress=None):
        encoded.extend(texts)
        return original(self, texts, progress)

    monkeypatch.setattr(encoder, "encode_document", spy)
    relabelled = replace(KOALA, extra={"page": 7})
    fresh = Passage("oak", "Oaks bear acorns.")
    done = collection.update([relabelled, BRIDGE, fresh])
    assert done == Changes(added=1, relabelled=1, unchanged=1)
    assert encoded == ["Oaks bear acorns."]
    assert collection["koala"] == relabelled


def test_filters(collection):
    question = "What grows?"
    assert ids(collection.search(question, where={"page": [1, "7"]})) == ["koala"]
    assert set(ids(collection.search(question, where=lambda p: p.title != "Koala"))) == {
        "bridge",
        "tulip",
    }
    assert ids(collection.search(question, allowed_ids=["bridge", "gone"])) == ["bridge"]
    with pytest.raises(UserError, match="did you mean page"):
        collection.search(question, where={"pag": 1})


def test_ask(collection):
    answered = Collection.open(collection.path, None, "reader={name: first-words}")
    response = answered.ask("Which flower grows from bulbs?")
    assert response.answer.text == "tulip: tulips grow"
    assert response.passages[0] == TULIP
    chosen = answered.ask("Which flower grows from bulbs?", choices=["Rose", "Tulip"])
    assert (chosen.answer.text, chosen.answer.raw) == ("Tulip", "Tulip: Tulips grow")
    for wrong in ("Tulip", ["Tulip", " "], 5, [1]):
        with pytest.raises(UserError) as error:
            answered.ask("Which?", choices=wrong)
        assert str(error.value) == "choices: a list of texts is expected, none of them blank"


def test_pictures_without_captions_are_described_and_copied(collection, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(PHOTO, folder / "zoo.jpg")
    assert collection.add_files(folder) == Changes(added=1)
    shutil.rmtree(folder)
    kept = collection["zoo.jpg"]
    assert "koala" in kept.text
    assert kept.image.read_bytes() == PHOTO.read_bytes()
    assert kept.image.is_relative_to(collection.path)
    assert ids(collection.search("a photo of a koala bear", k=1)) == ["zoo.jpg"]
    moved = shutil.move(collection.path, tmp_path / "moved")
    other = Collection.open(moved)
    assert other["zoo.jpg"].image.is_relative_to(moved)
    other.delete(["zoo.jpg"])
    other.compact()
    assert [p for p in (moved / "images").rglob("*") if p.is_file()] == []
    assert other.verify() == []


def test_descriptions_of_others_are_found_by_the_names_of_the_pictures(tmp_path, minilm_folder):
    shutil.copy(PHOTO, tmp_path / "zoo.jpg")
    (tmp_path / "captions.json").write_text('{"zoo": "a bear in a tree"}', encoding="utf-8")
    describer = f"describer={{name: file, files: ['{tmp_path / 'captions.json'}']}}"
    made = Collection.create(tmp_path / "index", "minilm-retrieval", describer)
    assert made.add_files(tmp_path / "zoo.jpg") == Changes(added=1)
    assert made["zoo.jpg"].text == "a bear in a tree"
    assert made["zoo.jpg"].image.name != "zoo.jpg"


def test_the_default_pipeline_finds_pictures_by_what_they_show(tmp_path, tagger):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, number in (("zoo", 10), ("park", 2), ("ruin", 32)):
        photo = SAMPLE / "val2014" / f"COCO_val2014_{9000000 + number:012}.jpg"
        shutil.copy(photo, folder / f"{name}.jpg")
    made = Collection.create(tmp_path / "index")
    assert made.add_files(folder) == Changes(added=3)
    assert "koala" in made["zoo.jpg"].text  # for the reader
    assert ids(made.search("Where is there a koala?", k=1)) == ["zoo.jpg"]
    assert ids(made.search("What is this?", PHOTO, k=1)) == ["zoo.jpg"]


def test_files_added_again_are_passed_over(collection, tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# Oak\n\nOaks bear acorns.\n\n## Age\n\n900 years.\n")
    assert collection.add_files(folder) == Changes(added=2)
    assert collection.add_files(folder) == Changes(unchanged=2)
    (folder / "a.md").write_text("# Oak\n\nOaks bear acorns.\n\n## Age\n\n1000 years.\n")
    assert collection.add_files(folder, replacing=True) == Changes(changed=1, unchanged=1)
    assert collection["a.md#age"].content == "Oak - Age: 1000 years."


def test_the_length_of_passages_is_kept(tmp_path):
    (tmp_path / "a.txt").write_text("one two three\nfour five six")
    file = collection_files.pipeline(tmp_path)
    Collection.create(tmp_path / "index", file, words=3).add_files(tmp_path / "a.txt")
    collection = Collection.open(tmp_path / "index")
    assert collection.add_files(tmp_path / "a.txt") == Changes(unchanged=2)
    with pytest.raises(DataError, match=r"another passage 'a\.txt#0'"):
        collection.add_files(tmp_path / "a.txt", words=6)


@pytest.mark.parametrize("part", ["retriever.encoder", "reranking.0"])
def test_code_of_models_runs_only_if_the_user_says_so(tmp_path, part, monkeypatch):
    file = collection_files.pipeline(tmp_path)
    change = {
        "retriever.encoder": "retriever.encoder={name: dense, model: x, trust_remote_code: true}",
        "reranking.0": "reranking=[{name: cross-encoder, model: x, trust_remote_code: true}]",
    }[part]
    settings, _ = load_pipeline(file, [change])
    path = tmp_path / "index"
    CollectionFolder(path).create(settings, {"fingerprint": "x", "weights": "x", "dim": 4})
    with pytest.raises(UserError, match=f"confirm one with --set {part}.trust_remote_code=true"):
        Collection.open(path)
    # Now it goes as far as to compare (or to look for) the models.
    trusted = f"{part}.trust_remote_code=true"
    if part == "reranking.0":
        assert len(Collection.open(path, None, trusted)) == 0
        assert len(Collection.open(path, None, "reranking=[]")) == 0
    else:
        with pytest.raises(UserError, match="encoder dense"):
            Collection.open(path, None, trusted, "retriever.encoder.batch_queries=2")


def test_a_checkpoint_that_sees_passages_encodes_their_images(tmp_path):
    import torch

    from ravqa.flmr import FLMRConfig, FLMRModelForRetrieval, FLMRProcessor

    tiny = ROOT / "tests" / "data" / "flmr-parity" / "preflmr" / "checkpoint_context_names"
    config = FLMRConfig.from_pretrained(str(tiny))
    config.context_concat_output_from_vision_encoder = True
    torch.manual_seed(0)  # random weights: what is found means nothing
    FLMRModelForRetrieval(config).save_pretrained(tmp_path / "model")
    FLMRProcessor.from_pretrained(str(tiny)).save_pretrained(tmp_path / "model")
    encoder = f"retriever.encoder={{name: flmr, model: {tmp_path / 'model'}}}"
    collection = Collection.create(
        tmp_path / "index", "preflmr-l-retrieval", encoder, "retriever.index.storage=float32"
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    other = PHOTO.with_name("COCO_val2014_000009000001.jpg")
    shutil.copy(PHOTO, photos / "a.jpg")
    shutil.copy(other, photos / "b.jpg")
    assert collection.add_files(photos) == Changes(added=2)  # without captions
    before = collection._state.index.scores([unit_query()])[0]
    shutil.copy(other, photos / "a.jpg")
    (photos / "b.jpg").unlink()
    assert collection.add_files(photos, replacing=True) == Changes(changed=1)
    after = dict(zip(collection, collection._state.index.scores([unit_query()])[0], strict=True))
    assert after["a.jpg"] == pytest.approx(before[1], abs=1e-5)
    assert before[0] != pytest.approx(before[1], abs=1e-3)
    assert len(collection.search("", PHOTO)) == 2  # an image alone


def unit_query():
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(3, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("float32")


def test_an_image_needs_a_caption_or_a_describer(tmp_path, minilm_folder):
    collection = Collection.create(tmp_path / "index", "minilm-retrieval")
    with pytest.raises(DataError, match=r"the image 'COCO.*' has no caption"):
        collection.add_files(PHOTO)
    assert len(collection) == 0


def test_compact_leaves_nothing_of_the_old(collection):
    collection.update([replace(KOALA, text="Koalas sleep 20 hours.")])
    collection.delete(["bridge"])
    before = [(h.passage_id, h.score) for h, _ in collection.search("Who sleeps?")]
    collection.compact()
    assert [(h.passage_id, h.score) for h, _ in collection.search("Who sleeps?")] == before
    names = sorted(p.name for p in collection.path.iterdir())
    assert names == ["collection.json", "index-000001", "lock", "passages-000003"]
    text = (collection.path / "passages-000003" / "passages.jsonl").read_text()
    assert "eucalyptus" not in text
    assert "bridge" not in text
    assert collection.stats()["segments"] == 1
    assert collection.verify() == []
    collection.delete(list(collection))
    collection.compact()
    assert (len(collection), collection.search("Who sleeps?")) == (0, [])
    assert collection.add([KOALA]) == Changes(added=1)


def test_a_collection_outgrows_its_exact_index(tmp_path, minilm_folder):
    path = tmp_path / "index"
    collection = Collection.create(path, "sample", "retriever.index={name: auto, above: 4}")
    collection.add([KOALA, BRIDGE, TULIP])
    assert collection.stats()["kind"] == "exact"
    collection.add([Passage("oak", "Oaks bear acorns.")])
    assert collection.stats()["kind"] == "compressed"
    assert list(collection) == ["koala", "bridge", "tulip", "oak"]
    assert ids(collection.search("Which flower grows from bulbs?", k=1)) == ["tulip"]
    assert collection.verify() == []
    assert sorted(p.name for p in path.iterdir() if "index" in p.name) == ["index-000002"]
    found = ids(collection.search("Which one?", where=lambda p: p.passage_id in ("oak", "tulip")))
    assert set(found) == {"oak", "tulip"}


def test_many_small_changes_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr("ravqa.collections.collection._PIECES", 3)
    collection = Collection.create(tmp_path / "index", collection_files.pipeline(tmp_path))
    for i in range(5):
        collection.add([Passage(f"p{i}", f"text number {i}")])
    assert collection.stats()["segments"] == 2
    assert len(list(collection.path.glob("passages-*"))) == 2
    assert list(collection) == [f"p{i}" for i in range(5)]
    assert collection.verify() == []


def test_an_index_is_the_same_corpus_as_its_passages(collection):
    assert collection.corpus.fingerprint == Corpus([KOALA, BRIDGE, TULIP]).fingerprint
    collection.add([Passage("zoo", "A photo.", image=PHOTO)])
    expected = Corpus([KOALA, BRIDGE, TULIP, Passage("zoo", "A photo.", image=PHOTO)])
    assert collection.corpus.fingerprint == expected.fingerprint


def test_damage_is_found(collection):
    folder = collection.path / "passages-000001"
    text = (folder / "passages.jsonl").read_text()
    (folder / "passages.jsonl").write_text(text.replace("eucalyptus", "eucalyptvs"))
    assert collection.verify() == ["passages-000001/passages.jsonl is missing or was changed"]
    (folder / "hashes.npy").unlink()
    with pytest.raises(UserError, match=r"is damaged .*build it again"):
        Collection.open(collection.path)
    (collection.path / "collection.json").write_text("{")
    with pytest.raises(UserError, match=r"collection\.json is damaged"):
        Collection.open(collection.path)


def test_a_file_that_was_cut_off_is_named_with_what_to_do(collection):
    file = collection.path / "passages-000001" / "passages.jsonl"
    file.write_bytes(file.read_bytes()[:20])
    opened = Collection.open(collection.path)
    with pytest.raises(DataError, match=rf"passages\.jsonl is damaged: .*verify {collection.path}"):
        opened.search("Which flower grows from bulbs?")
    assert opened.verify() == ["passages-000001/passages.jsonl is missing or was changed"]


def test_a_file_without_access_is_not_called_damaged(collection, monkeypatch):
    read = Path.read_text

    def refused(self, *arguments, **options):
        if self.name == "collection.json":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(UserError, match=r"collection\.json cannot be read: Permission denied"):
        Collection.open(collection.path)


def test_an_index_that_never_had_a_passage_takes_other_settings(tmp_path):
    path = tmp_path / "index"
    file = collection_files.pipeline(tmp_path)
    Collection.create(path, file)
    early = Collection.open(path)
    other = Collection.create(path, file, "retriever.encoder.seed=1", words=9)
    with pytest.raises(
        UserError, match=f"^{path} was rebuilt with another encoder: open it again$"
    ):
        early.add([KOALA])
    assert (len(other), other.words, other.stats()["encoder"]) == (0, 9, "hashes of seed 1")
    with sole_writer(path), pytest.raises(UserError, match="being written"):
        Collection.create(path, file)
    other.add([KOALA])
    other.delete(["koala"])
    with pytest.raises(UserError, match=r"open it with Collection\.open"):
        Collection.create(path, file)


def test_one_writer_at_a_time(collection):
    with sole_writer(collection.path):
        with pytest.raises(UserError, match="being written by process"):
            collection.delete(["koala"])
        assert len(collection.search("Which one?")) == 3
    collection.delete(["koala"])


def test_searches_of_several_threads_beside_changes(collection):
    stop = threading.Event()

    def search():
        counts = []
        while not stop.is_set():
            found = collection.search("Which flower grows from bulbs?", PHOTO, k=10)
            counts.append(len(found))
            assert all(hit.passage_id == passage.passage_id for hit, passage in found)
        return counts

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search) for _ in range(3)]
        for i in range(5):
            collection.add([Passage(f"new{i}", f"Text number {i}.")])
            collection.delete([f"new{i}"])
        stop.set()
        for counts in searches:
            assert set(counts.result()) <= {3, 4}


def test_an_index_is_a_corpus_of_runs(collection, tmp_path, capsys):
    from ravqa.cli import run_main

    def run(*arguments):
        tags = ("--pipeline", "sample-tags", "--dataset-option", "edition=1")
        with pytest.raises(SystemExit) as end:
            run_main(["--dataset", "okvqa", "--retrieval-only", "--limit", "2", *tags, *arguments])
        return end.value.code, capsys.readouterr().err

    code, err = run("--corpus", str(collection.path), "--output", str(tmp_path / "run"))
    assert code == 0
    assert "3 passages" in err
    assert "encoding passages" not in err
    hits = (tmp_path / "run" / "run.trec").read_text().split()[2::6]
    assert set(hits) == {"koala", "bridge", "tulip"}
    other = ("--set", "retriever.encoder.max_document_length=32")
    code, err = run("--corpus", str(collection.path), *other, "--output", str(tmp_path / "other"))
    assert code == 0
    assert "encoding passages" in err
    code, err = run("--corpus", str(collection.path), "--corpus", str(tmp_path))
    assert code == 2
    assert "it must be the only corpus" in err


def test_mistakes(collection, tmp_path):
    with pytest.raises(DataError, match="another passage 'koala'"):
        collection.add([replace(KOALA, text="other")])
    with pytest.raises(UserError, match=r"no passage 'tulp'.*did you mean tulip"):
        collection.delete(["koala", "tulp"])
    assert len(collection) == 3
    with pytest.raises(UserError, match="already holds a collection"):
        Collection.create(collection.path)
    with pytest.raises(UserError, match="no collection in"):
        Collection.open(tmp_path / "nothing")
    with pytest.raises(UserError, match="was encoded by"):
        Collection.open(collection.path, None, "retriever.encoder.max_document_length=32")
    with pytest.raises(UserError, match="needs the retriever late-interaction"):
        Collection.open(collection.path, "bm25-retrieval")
