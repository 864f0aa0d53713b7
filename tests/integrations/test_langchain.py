"""Retrieval and answering inside LangChain. The PreFLMR checkpoint is tiny and random: plumbing."""

import asyncio
import base64
import re
import sys

import collection_files
import flmr_parity as parity
import pytest
from flmr_parity import one_thread  # noqa: F401 (a fixture)

from ravqa.collections import Collection
from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage
from ravqa.corpora.corpus import Corpus
from ravqa.pipeline import Pipeline

pytest.importorskip("langchain_core", reason="pip install 'ravqa[langchain]'")
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from ravqa.integrations.langchain import (
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
def folder(passages, tmp_path_factory):
    path = tmp_path_factory.mktemp("langchain") / "collection"
    PreFLMRRetriever.from_documents([document_of(p) for p in passages], path, overrides=PREFLMR)
    return path


@pytest.fixture(scope="module")
def retriever(folder):
    return PreFLMRRetriever.from_persist_dir(folder)


def test_it_finds_what_the_collection_finds(folder, retriever):
    collection = Collection.open(folder)
    data = PHOTO.read_bytes()
    uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    expected = [
        document_of(passage, hit.score) for hit, passage in collection.search(QUESTION, PHOTO, k=5)
    ]
    for image in (str(PHOTO), PHOTO, PHOTO.as_uri(), uri, data):
        assert retriever.invoke(QUESTION, image=image) == expected
    text_only = retriever.invoke(QUESTION)
    assert [d.id for d in text_only] == [h.passage_id for h, _ in collection.search(QUESTION)]
    assert text_only != expected
    assert len(retriever.invoke(QUESTION, image=PHOTO, k=2)) == 2
    assert expected[0].metadata["title"]
    assert expected[0].metadata["score"] > expected[1].metadata["score"]


def test_options(folder):
    where = {"aspect": "diet"}
    tested = PreFLMRRetriever.from_persist_dir(
        folder, k=20, where=lambda p: p.extra["aspect"] == "diet"
    )
    collection = Collection.open(folder)
    found = tested.invoke(QUESTION, image=PHOTO)
    assert [d.id for d in found] == [
        h.passage_id for h, _ in collection.search(QUESTION, PHOTO, k=20, where=where)
    ]
    assert 0 < len(found) < 20
    other = PreFLMRRetriever.from_persist_dir(folder, instruction="Find what says it:")
    expected = collection.search(QUESTION, PHOTO, instruction="Find what says it:")
    scores = [d.metadata["score"] for d in other.invoke(QUESTION, image=PHOTO)]
    assert scores == [hit.score for hit, _ in expected]
    with pytest.raises(UserError, match="allow_http=True"):
        tested.invoke(QUESTION, image="https://example.org/a.jpg")


def test_tasks_batches_and_callbacks(retriever):
    class Seen(BaseCallbackHandler):
        def __init__(self):
            self.calls = []

        def on_retriever_start(self, serialized, query, **kwargs):
            self.calls.append(query)

        def on_retriever_end(self, documents, **kwargs):
            self.calls.append(len(documents))

    seen = Seen()
    config = {"callbacks": [seen]}
    one = retriever.invoke("What is it?", config)
    assert seen.calls == ["What is it?", 5]
    assert asyncio.run(retriever.ainvoke("What is it?", config)) == one
    texts = ["What is it?", "Where does it live?", QUESTION]
    several = retriever.batch(texts)
    assert several[0] == one
    assert asyncio.run(retriever.abatch(texts)) == several


def test_it_stands_in_a_chain(retriever):
    prompt = PromptTemplate.from_template("{documents}\n{question}")
    shown = []
    chain = (
        RunnablePassthrough.assign(
            documents=RunnableLambda(lambda x: retriever.invoke(x["question"], image=x["image"]))
        )
        | prompt
        | RunnableLambda(lambda value: shown.append(value.text) or value)
        | FakeListLLM(responses=["leaves"])
    )
    assert chain.invoke({"question": QUESTION, "image": str(PHOTO)}) == "leaves"
    assert retriever.invoke(QUESTION, image=PHOTO)[0].page_content in shown[0]


def test_the_answerer_gives_the_pipelines_answer(retriever, passages):
    pipeline = Pipeline.load("preflmr-l-retrieval", *PREFLMR, "top_k=5")
    pipeline.prepare(Corpus(passages))
    expected = pipeline.ask(QUESTION, PHOTO).answer.text
    answerer = RAVQAAnswerer.load("preflmr-l-retrieval")
    asked = {"question": QUESTION, "image": PHOTO}
    documents = retriever.invoke(QUESTION, image=PHOTO)
    assert answerer.invoke({**asked, "documents": documents}) == expected != "unknown"
    assert asyncio.run(answerer.ainvoke({**asked, "documents": documents})) == expected
    assert answerer.invoke({"question": QUESTION}) == "unknown"
    chosen = {**asked, "documents": documents, "choices": [expected.upper(), "fish"]}
    assert answerer.invoke(chosen) == expected.upper()
    chain = RunnablePassthrough.assign(
        documents=RunnableLambda(lambda x: retriever.invoke(x["question"], image=x["image"]))
    )
    assert (chain | answerer).invoke(asked) == expected
    with pytest.raises(UserError, match="retrieval only"):
        RAVQAAnswerer(Pipeline.load("preflmr-l-retrieval", *PREFLMR, retrieval_only=True))


def test_the_answerer_takes_documents_of_others():
    answerer = RAVQAAnswerer.load("preflmr-l-retrieval")
    documents = [
        Document(page_content=f"The koala eats leaves {i}.", metadata={"score": score, "image": ""})
        for i, score in enumerate([None, "high", 0.5])
    ]
    _, pairs = answerer._asked({"question": QUESTION, "documents": documents})
    assert [hit.score for hit, _ in pairs] == [0.0, 0.0, 0.5]
    assert {passage.image for _, passage in pairs} == {None}
    assert answerer.invoke({"question": QUESTION, "documents": documents})


def test_less_than_one_document_is_refused(retriever):
    for k in (0, -1):
        with pytest.raises(UserError, match=f"1 or more is expected, got {k}"):
            retriever.invoke(QUESTION, k=k)


def test_documents_and_passages():
    passage = Passage("p", "It eats.", title="Koala", image=PHOTO, extra={"page": 3})
    document = document_of(passage, 1.5)
    assert document == Document(
        page_content="It eats.",
        metadata={"page": 3, "title": "Koala", "image": str(PHOTO), "score": 1.5},
        id="p",
    )
    assert passage_of(document) == passage


def test_documents_without_ids_get_those_of_their_content():
    one = Document(page_content="x", metadata={"a": 1, "score": 0.5})
    name = passage_of(one).passage_id
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert passage_of(Document(page_content="x", metadata={"score": 2, "a": 1})).passage_id == name
    others = [Document(page_content="y", metadata={"a": 1}), Document(page_content="x")]
    assert name not in {passage_of(other).passage_id for other in others}
    passage_of(Document(page_content="x", metadata={"b": {1: 2, "c": 3}}))


def test_a_script_that_makes_a_collection_runs_twice(tmp_path):
    pipeline = collection_files.pipeline(tmp_path)
    unnamed = Document(page_content="the koala eats leaves")
    documents = [Document(id="a", page_content="a bear"), unnamed, unnamed]

    def script(**options):
        return PreFLMRRetriever.from_documents(documents, tmp_path / "c", pipeline, **options)

    assert len(script().collection) == 2
    before = sorted((tmp_path / "c").rglob("*.jsonl"))
    with pytest.raises(UserError, match=r"open it with from_persist_dir, or pass exist_ok=True"):
        script()
    documents[0] = Document(id="a", page_content="a panda")
    again = script(exist_ok=True)
    assert sorted(p.text for p in again.collection.corpus.values()) == [
        "a panda",
        unnamed.page_content,
    ]
    assert len(sorted((tmp_path / "c").rglob("*.jsonl"))) == len(before) + 1
    script(exist_ok=True)
    assert len(sorted((tmp_path / "c").rglob("*.jsonl"))) == len(before) + 1  # nothing is written
    opened = PreFLMRRetriever.from_persist_dir(tmp_path / "c", ["top_k=7"], k=1)
    assert opened.collection.config.top_k == 7
    assert opened.add_documents([unnamed, Document(id="new", page_content="bamboo grows")]) == [
        passage_of(unnamed).passage_id,
        "new",
    ]
    assert [d.id for d in opened.invoke("bamboo")] == ["new"]
    with pytest.raises(DataError, match="'a' occurs twice"):
        opened.add_documents([documents[0], documents[0]])
    prepared = Pipeline.load(pipeline)
    prepared.prepare(Corpus([Passage("a", "text")]))
    with pytest.raises(UserError, match="no collection that can change"):
        PreFLMRRetriever(prepared).add_documents([unnamed])


def test_overrides_are_a_list_as_in_other_libraries(tmp_path):
    pipeline = collection_files.pipeline(tmp_path)
    answerer = RAVQAAnswerer.load(pipeline, overrides=["reader={name: best-span}"])
    assert type(answerer._asker.answerer.reader).__name__ == "BestSpan"


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "ravqa.integrations.langchain")
    for name in [n for n in sys.modules if n.partition(".")[0] == "langchain_core"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "langchain_core", None)
    with pytest.raises(UserError, match=r"pip install 'ravqa\[langchain\]'"):
        import ravqa.integrations.langchain  # noqa: F401
