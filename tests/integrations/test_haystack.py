"""Components in Haystack's pipelines. The PreFLMR checkpoint is tiny and random: plumbing."""

import asyncio
import os
import sys

import flmr_parity as parity
import pytest
from flmr_parity import one_thread  # noqa: F401 (a fixture)

from ravqa.collections import Collection
from ravqa.core.errors import UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage
from ravqa.corpora.corpus import Corpus
from ravqa.pipeline import Pipeline as OurPipeline

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # nothing is sent anywhere by tests
pytest.importorskip("haystack", reason="pip install 'ravqa[haystack]'")
from haystack import Document, Pipeline
from haystack.components.builders import PromptBuilder
from haystack.dataclasses import ByteStream, ImageContent

from ravqa.integrations.haystack import (
    PreFLMRRetriever,
    RAVQAAnswerer,
    document_of,
    passage_of,
)

PREFLMR = (f"retriever.encoder.model={parity.checkpoint('preflmr')}",)
PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
QUESTION = "What does this animal mainly eat?"


@pytest.fixture(scope="module")
def passages():
    return list(Corpus.read(SAMPLE / "passages.jsonl").values())[:20]


@pytest.fixture(scope="module")
def collection(passages, tmp_path_factory):
    made = Collection.create(
        tmp_path_factory.mktemp("haystack") / "collection", "preflmr-l-retrieval", *PREFLMR
    )
    made.add(passages)
    return made


@pytest.fixture
def retriever(collection):
    return PreFLMRRetriever(str(collection.path))


def expected(collection, **options):
    return [document_of(p, hit.score) for hit, p in collection.search(QUESTION, PHOTO, **options)]


def test_it_finds_what_the_collection_finds(collection, retriever):
    found = expected(collection)
    for image in (
        str(PHOTO),
        PHOTO,
        PHOTO.as_uri(),
        ImageContent.from_file_path(PHOTO),
        ByteStream.from_file_path(PHOTO),
    ):
        assert retriever.run(query=QUESTION, image=image)["documents"] == found
    assert retriever.run(query=QUESTION)["documents"] != found
    assert retriever.run(query=QUESTION, image=PHOTO, top_k=2)["documents"] == found[:2]
    assert found[0].score > found[1].score
    assert found[0].meta["title"]
    with pytest.raises(UserError, match="allow_http=True"):
        retriever.run(query=QUESTION, image="https://example.org/a.jpg")


def test_haystacks_filters_are_decided_before_the_search(collection):
    diet = {"field": "meta.aspect", "operator": "==", "value": "diet"}
    either = {
        "operator": "OR",
        "conditions": [diet, {"field": "meta.title", "operator": "in", "value": ["Tiger"]}],
    }
    tested = PreFLMRRetriever(str(collection.path), top_k=20, filters=diet)
    assert tested.run(query=QUESTION, image=PHOTO)["documents"] == expected(
        collection, k=20, where={"aspect": "diet"}
    )
    ours = tested.run(query=QUESTION, image=PHOTO, filters=either)["documents"]
    assert ours == expected(
        collection, k=20, where=lambda p: p.extra["aspect"] == "diet" or p.title == "Tiger"
    )
    assert 0 < len(ours) < 20
    assert len(tested.run(query=QUESTION, filters={})["documents"]) == 20


@pytest.fixture
def whole(collection):
    pipeline = Pipeline()
    pipeline.add_component("retriever", PreFLMRRetriever(str(collection.path), top_k=3))
    pipeline.add_component(
        "answerer", RAVQAAnswerer("preflmr-l-retrieval", ["answering.passages=1"])
    )
    pipeline.connect("retriever.documents", "answerer.documents")
    return pipeline


def test_a_pipeline_retrieves_and_answers(whole, collection, passages):
    asked = {"query": QUESTION, "image": str(PHOTO)}
    inputs = {"retriever": asked, "answerer": asked}
    out = whole.run(inputs, include_outputs_from={"retriever"})
    ours = OurPipeline.load("preflmr-l-retrieval", *PREFLMR, "top_k=3")
    ours.prepare(Corpus(passages))
    response = ours.ask(QUESTION, PHOTO)
    [answer] = out["answerer"]["answers"]
    assert out["answerer"]["replies"] == [answer.data] == [response.answer.text]
    assert answer.query == QUESTION
    assert answer.documents == out["retriever"]["documents"] == expected(collection, k=3)
    assert answer.meta["decision"] == response.answer.decision
    chosen = {**asked, "choices": [answer.data.upper(), "fish"]}
    replies = whole.run({"retriever": asked, "answerer": chosen})["answerer"]["replies"]
    assert replies == [answer.data.upper()]


def test_a_pipeline_is_written_as_yaml_and_read_again(whole):
    text = whole.dumps()
    assert "ravqa.integrations.haystack.PreFLMRRetriever" in text
    read = Pipeline.loads(text, allowed_modules=["ravqa.*"])
    assert read.to_dict() == whole.to_dict()
    asked = {"query": QUESTION, "image": str(PHOTO)}
    inputs = {"retriever": asked, "answerer": asked}
    assert read.run(inputs) == whole.run(inputs)


def test_it_runs_asynchronously(whole, collection):
    pipeline = Pipeline()
    pipeline.add_component("retriever", PreFLMRRetriever(str(collection.path)))
    pipeline.add_component("answerer", RAVQAAnswerer("preflmr-l-retrieval"))
    pipeline.connect("retriever.documents", "answerer.documents")
    asked = {"query": QUESTION, "image": str(PHOTO)}

    async def main():
        return await asyncio.gather(
            *(pipeline.run_async({"retriever": asked, "answerer": asked}) for _ in range(3))
        )

    one, *others = asyncio.run(main())
    assert one["answerer"]["answers"][0].documents == expected(collection)
    assert others == [one, one]


def test_other_components_take_the_documents(collection):
    pipeline = Pipeline()
    pipeline.add_component("retriever", PreFLMRRetriever(str(collection.path), top_k=2))
    template = "{% for d in documents %}{{ d.content }}\n{% endfor %}{{ query }}"
    pipeline.add_component("prompt", PromptBuilder(template, required_variables="*"))
    pipeline.connect("retriever.documents", "prompt.documents")
    out = pipeline.run(
        {"retriever": {"query": QUESTION, "image": PHOTO}, "prompt": {"query": QUESTION}}
    )
    first, second = expected(collection, k=2)
    assert out["prompt"]["prompt"] == f"{first.content}\n{second.content}\n{QUESTION}"


def test_nothing_is_loaded_before_it_is_needed(tmp_path):
    tested = PreFLMRRetriever(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no collection in"):
        tested.warm_up()
    answerer = RAVQAAnswerer("no-such-pipeline")
    with pytest.raises(UserError, match="no pipeline 'no-such-pipeline'"):
        answerer.run(query="?", documents=[])


def test_documents_and_passages():
    passage = Passage("p", "It eats.", title="Koala", image=PHOTO, extra={"page": 3})
    meta = {"page": 3, "title": "Koala", "image": str(PHOTO)}
    assert document_of(passage, 1.5) == Document(id="p", content="It eats.", meta=meta, score=1.5)
    assert passage_of(document_of(passage)) == passage


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "ravqa.integrations.haystack")
    for name in [n for n in sys.modules if n.partition(".")[0] == "haystack"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "haystack", None)
    with pytest.raises(UserError, match=r"pip install 'ravqa\[haystack\]'"):
        import ravqa.integrations.haystack  # noqa: F401
