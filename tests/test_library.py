"""A library: passages, index and settings in one folder."""

from dataclasses import replace

import pytest

from ravqa.datasets.corpus import Corpus
from ravqa.errors import DataError, UserError
from ravqa.library import Changes, Library
from ravqa.paths import SAMPLE
from ravqa.records import Passage, Question

KOALA = Passage("koala", "It eats leaves of eucalyptus trees.", title="Koala", extra={"page": 1})
BRIDGE = Passage("bridge", "It was built from 1886 to 1894.", title="Tower Bridge")
TULIP = Passage("tulip", "Tulips grow from bulbs in spring.", title="Tulip", extra={"page": 2})
PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"


@pytest.fixture
def library(tmp_path, minilm_folder):
    made = Library.create(tmp_path / "index")
    made.add([KOALA, BRIDGE, TULIP])
    return made


def ids(found):
    return [hit.passage_id for hit, _ in found]


def test_search_finds_by_text_and_by_image(library):
    found = library.search("Which flower grows from bulbs?", k=2)
    assert [hit.rank for hit, _ in found] == [1, 2]
    assert found[0][1] == TULIP
    assert ids(library.search("What does this animal eat?", PHOTO, k=1)) == ["koala"]


def test_search_is_that_of_the_pipeline(library):
    from ravqa.pipeline import Pipeline

    pipeline = Pipeline.load("sample", "reader={name: first-words}")
    pipeline.prepare(Corpus([KOALA, BRIDGE, TULIP]))
    expected = pipeline.ask("What does this animal eat?", PHOTO).hits
    assert [h for h, _ in library.search("What does this animal eat?", PHOTO)] == expected


def test_changes_are_seen_by_others_after_refresh(library):
    other = Library.open(library.path)
    new = replace(TULIP, text="The tulip comes from Central Asia.")
    assert library.update([new, KOALA]) == Changes(changed=1, unchanged=1)
    assert library.delete(["bridge"]) == Changes(deleted=1)
    assert list(library) == ["koala", "tulip"]
    assert (other["tulip"], len(other)) == (TULIP, 3)
    assert ids(other.search("When was the bridge built?", k=1)) == ["bridge"]
    other.refresh()
    assert (other["tulip"], len(other)) == (new, 2)
    assert ids(other.search("When was the bridge built?")) != ["bridge"]
    assert other.verify() == []


def test_its_pipeline_stays_as_the_library_was(library):
    pipeline = library.pipeline(where={"page": [1, 2]})
    library.delete(["tulip"])
    assert pipeline.answerer is None
    [hits] = pipeline.retrieve(pipeline.describe([Question(0, "Which flower grows from bulbs?")]))
    assert [passage for _, passage in pipeline.passages(hits)] == [TULIP, KOALA]
    assert list(library.pipeline().corpus) == ["koala", "bridge"]


def test_only_new_texts_are_encoded(library, monkeypatch):
    encoded = []
    encoder = type(library._pipeline().retriever.encoder)
    original = encoder.encode_document

    def spy(self, texts, progress=None):
        encoded.extend(texts)
        return original(self, texts, progress)

    monkeypatch.setattr(encoder, "encode_document", spy)
    relabelled = replace(KOALA, extra={"page": 7})
    fresh = Passage("oak", "Oaks bear acorns.")
    done = library.update([relabelled, BRIDGE, fresh])
    assert done == Changes(added=1, relabelled=1, unchanged=1)
    assert encoded == ["Oaks bear acorns."]
    assert library["koala"] == relabelled


def test_filters(library):
    question = "What grows?"
    assert ids(library.search(question, where={"page": [1, "7"]})) == ["koala"]
    assert set(ids(library.search(question, where=lambda p: p.title != "Koala"))) == {
        "bridge",
        "tulip",
    }
    assert ids(library.search(question, allowed_ids=["bridge", "gone"])) == ["bridge"]
    with pytest.raises(UserError, match="did you mean page"):
        library.search(question, where={"pag": 1})


def test_ask(library):
    answered = Library.open(library.path, None, "reader={name: first-words}")
    response = answered.ask("Which flower grows from bulbs?")
    assert response.answer.text == "tulip: tulips grow"
    assert response.passages[0] == TULIP


def test_mistakes(library, tmp_path):
    with pytest.raises(DataError, match="another passage 'koala'"):
        library.add([replace(KOALA, text="other")])
    with pytest.raises(UserError, match=r"no passage 'tulp'.*did you mean tulip"):
        library.delete(["koala", "tulp"])
    assert len(library) == 3
    with pytest.raises(UserError, match="holds an index already"):
        Library.create(library.path)
    with pytest.raises(UserError, match="no index in"):
        Library.open(tmp_path / "nothing")
    with pytest.raises(UserError, match="was encoded by"):
        Library.open(library.path, None, "retriever.encoder.max_document_length=32")
    with pytest.raises(UserError, match="needs the retriever late-interaction"):
        Library.open(library.path, "bm25-retrieval")
