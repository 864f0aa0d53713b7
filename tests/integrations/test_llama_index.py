"""Retrieval inside LlamaIndex: nodes, images, filters, events, threads and tasks.

The PreFLMR checkpoint is tiny and random: it proves that question and image go through the model
together, and nothing about quality. MiniLM's weights are trained.
"""

import asyncio
import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import collection_files
import flmr_parity as parity
import pytest
import torch
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from pydantic import Field

from ravqa.collections import Changes, Collection
from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.flmr import INSTRUCTION
from ravqa.flmr import FLMRModelForRetrieval, FLMRProcessor
from ravqa.images.decode import open_image
from ravqa.pipeline import Pipeline

pytest.importorskip("llama_index.core", reason="pip install 'ravqa[llama-index]'")
from llama_index.core import QueryBundle
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.retrieval import (
    RetrievalEndEvent,
    RetrievalStartEvent,
)
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    TextNode,
)

from ravqa.integrations.llama_index import (
    PreFLMRRetriever,
    node_of,
    passage_of,
    passages_of,
)

CHECKPOINT = parity.checkpoint("preflmr")
PREFLMR = (f"retriever.encoder.model={CHECKPOINT}",)
PHOTOS = sorted((SAMPLE / "val2014").glob("*.jpg"))[:6]
KOALA = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
QUESTION = "What does this animal mainly eat?"


@pytest.fixture(scope="module")
def passages():
    return list(Corpus.read(SAMPLE / "passages.jsonl").values())[:24]


@pytest.fixture(scope="module")
def folder(passages, tmp_path_factory):
    """A collection made from nodes, with a tiny random PreFLMR checkpoint."""
    path = tmp_path_factory.mktemp("llama") / "collection"
    PreFLMRRetriever.from_documents([node_of(p) for p in passages], path, overrides=PREFLMR)
    return path


@pytest.fixture(scope="module")
def retriever(folder):
    return PreFLMRRetriever.from_persist_dir(folder, similarity_top_k=24)


def found(nodes):
    return [(n.node_id, n.score) for n in nodes]


# --- question and image through the model


def models_scores(question, image, instruction, passages):
    """By the model itself, one pair at a time, {passage id: MaxSim}."""
    model = FLMRModelForRetrieval.from_pretrained(str(CHECKPOINT)).eval()
    processor = FLMRProcessor.from_pretrained(str(CHECKPOINT))
    with torch.inference_mode():
        inputs = processor([question], [open_image(image)], instruction)
        query = model.query(**inputs).late_interaction_output
        out = {}
        for passage in passages:
            doc = model.doc(**processor.documents([passage.content]))
            score = model.score(query, doc.late_interaction_output, doc.context_mask)
            out[passage.passage_id] = float(score)
    return out


@pytest.mark.parametrize("instruction", [None, "Find what answers this:"])
def test_question_and_image_go_through_the_model_together(folder, passages, instruction):
    tested = PreFLMRRetriever.from_persist_dir(folder, similarity_top_k=24, instruction=instruction)
    expected = models_scores(QUESTION, KOALA, instruction or INSTRUCTION, passages)
    nodes = tested.retrieve(QueryBundle(QUESTION, image_path=str(KOALA)))
    assert dict(found(nodes)) == pytest.approx(expected, abs=0.05)  # vectors are stored in 16 bits
    best = sorted(expected, key=expected.get, reverse=True)
    assert nodes[0].node_id == best[0]
    assert [n.score for n in nodes] == sorted((n.score for n in nodes), reverse=True)


def test_another_image_is_another_query_and_a_text_alone_is_one_too(retriever):
    first, second = (
        found(retriever.retrieve(QueryBundle(QUESTION, image_path=str(photo))))
        for photo in PHOTOS[:2]
    )
    alone = found(retriever.retrieve(QUESTION))
    assert len({tuple(first), tuple(second), tuple(alone)}) == 3
    assert max(score for _, score in alone) < max(score for _, score in first)  # fewer vectors


def test_all_that_names_an_image_is_the_same_image(retriever):
    data = KOALA.read_bytes()
    names = [
        str(KOALA),
        KOALA.as_uri(),
        "data:image/jpeg;base64," + base64.b64encode(data).decode(),
    ]
    results = [found(retriever.retrieve(QueryBundle(QUESTION, image_path=n))) for n in names]
    assert results[0] == results[1] == results[2]


@pytest.mark.slow
def test_an_address_of_the_web_is_fetched_only_if_told_to(folder):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Photo(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(KOALA.read_bytes())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Photo)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/koala.jpg"
        query = QueryBundle(QUESTION, image_path=url)
        closed = PreFLMRRetriever.from_persist_dir(folder)
        with pytest.raises(UserError, match="allow_http=True"):
            closed.retrieve(query)
        opened = PreFLMRRetriever.from_persist_dir(folder, allow_http=True)
        local = closed.retrieve(QueryBundle(QUESTION, image_path=str(KOALA)))
        assert found(opened.retrieve(query)) == found(local)
        assert found(asyncio.run(opened.aretrieve(query))) == found(local)
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(DataError, match="cannot be fetched"):
        opened.retrieve(query)


def test_a_broken_image_is_named(retriever, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        retriever.retrieve(QueryBundle(QUESTION, image_path=str(path)))


# --- LlamaIndex's interface


def test_it_is_a_retriever_of_llama_index(retriever):
    assert isinstance(retriever, BaseRetriever)
    retriever.similarity_top_k = 3
    try:
        assert len(retriever.retrieve(QUESTION)) == 3
    finally:
        retriever.similarity_top_k = 24


def test_less_than_one_passage_is_refused(folder):
    tested = PreFLMRRetriever.from_persist_dir(folder, similarity_top_k=0)
    with pytest.raises(UserError, match="1 or more is expected, got 0"):
        tested.retrieve(QUESTION)
    with pytest.raises(UserError, match="1 or more is expected, got 0"):
        asyncio.run(tested.aretrieve(QUESTION))


class Events(BaseEventHandler):
    seen: list = Field(default_factory=list)

    @classmethod
    def class_name(cls):
        return "Events"

    def handle(self, event, **kwargs):
        if isinstance(event, RetrievalStartEvent | RetrievalEndEvent):
            self.seen.append(event)


def test_callbacks_and_events_tell_what_was_found(folder):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    tested = PreFLMRRetriever.from_persist_dir(folder, callback_manager=CallbackManager([debug]))
    dispatcher = get_dispatcher()
    handler = Events()
    dispatcher.add_event_handler(handler)
    try:
        nodes = tested.retrieve(QueryBundle(QUESTION, image_path=str(KOALA)))
        asyncio.run(tested.aretrieve(QUESTION))
    finally:
        dispatcher.event_handlers.remove(handler)
    starts_and_ends = debug.get_event_pairs(CBEventType.RETRIEVE)
    assert len(starts_and_ends) == 2
    start, end = starts_and_ends[0]
    assert start.payload[EventPayload.QUERY_STR] == QUESTION
    assert end.payload[EventPayload.NODES] == nodes
    kinds = [type(event).__name__ for event in handler.seen]
    assert kinds == ["RetrievalStartEvent", "RetrievalEndEvent"] * 2
    assert handler.seen[1].nodes == nodes
    assert handler.seen[1].str_or_query_bundle.image_path == str(KOALA)


def test_the_settings_of_llama_index_are_heeded(folder, monkeypatch):
    from llama_index.core import Settings

    debug = LlamaDebugHandler(print_trace_on_end=False)
    monkeypatch.setattr(Settings, "_callback_manager", CallbackManager([debug]))
    PreFLMRRetriever.from_persist_dir(folder).retrieve(QUESTION)
    assert len(debug.get_event_pairs(CBEventType.RETRIEVE)) == 1


# --- many at once


def test_the_event_loop_goes_on_while_passages_are_found(retriever, monkeypatch):
    searcher = retriever._searcher
    search = searcher._batcher._run
    monkeypatch.setattr(
        searcher._batcher, "_run", lambda asked: (time.sleep(0.3), search(asked))[1]
    )

    async def main():
        task = asyncio.create_task(retriever.aretrieve(QUESTION))
        steps = 0
        while not task.done():
            await asyncio.sleep(0.01)
            steps += 1
        return steps, await task

    steps, nodes = asyncio.run(main())
    assert steps > 10
    assert found(nodes) == found(retriever.retrieve(QUESTION))


def queries():
    texts = ["What is it?", "Where does it live?", QUESTION]
    return [QueryBundle(t, image_path=str(p)) for p in PHOTOS for t in texts] + [
        QueryBundle(t) for t in texts
    ]


def test_many_at_once_find_what_each_alone_finds(folder, passages):
    # Another cache folder would do as well: rankings of one must not answer the other.
    def fresh():
        return PreFLMRRetriever.from_persist_dir(folder, similarity_top_k=5)

    pipeline = Pipeline.load("preflmr-l-retrieval", *PREFLMR, retrieval_only=True)
    pipeline.prepare(Corpus(passages))
    pipeline.retriever.fingerprint += "/alone"
    alone = [found(PreFLMRRetriever(pipeline).retrieve(q)) for q in queries()]

    pipeline.retriever.fingerprint += "/together"
    together = PreFLMRRetriever(pipeline)
    sizes = []
    run = together._searcher._batcher._run
    together._searcher._batcher._run = lambda asked: (sizes.append(len(asked)), run(asked))[1]

    async def main():
        return await asyncio.gather(*(together.aretrieve(q) for q in queries()))

    for one, other in zip(alone, asyncio.run(main()), strict=True):
        assert [i for i, _ in one] == [n.node_id for n in other]
        assert [s for _, s in one] == pytest.approx([n.score for n in other], abs=1e-4)
    assert sum(sizes) == len(queries())
    assert len(sizes) < len(queries())  # they shared batches

    tested = fresh()
    with ThreadPoolExecutor(6) as pool:
        threads = [found(nodes) for nodes in pool.map(tested.retrieve, queries())]
    assert [[i for i, _ in one] for one in threads] == [[i for i, _ in one] for one in alone]


# --- nodes and passages


def test_a_passage_is_a_node_and_back():
    passage = Passage(
        "p1",
        "It eats leaves.",
        title="Koala",
        section="Diet",
        entity="Q36101",
        url="https://example.org/koala",
        article="a1",
        extra={"year": 1999, "tags": ["animal", "tree"]},
    )
    node = node_of(passage)
    assert type(node) is TextNode
    assert (node.node_id, node.text, node.ref_doc_id) == ("p1", "It eats leaves.", "a1")
    assert node.metadata == {
        "year": 1999,
        "tags": ["animal", "tree"],
        "title": "Koala",
        "section": "Diet",
        "entity": "Q36101",
        "url": "https://example.org/koala",
    }
    assert passage_of(node) == passage
    assert passage_of(node_of(Passage("p2", "Text."))) == Passage("p2", "Text.")


def test_a_passage_with_a_picture_is_an_image_node():
    passage = Passage("p", "A koala.", image=KOALA)
    node = node_of(passage)
    assert type(node) is ImageNode
    assert (node.text, node.image_path, node.image_mimetype) == (
        "A koala.",
        str(KOALA),
        "image/jpeg",
    )
    assert passage_of(node) == passage


def test_a_picture_inside_an_archive_goes_into_the_node(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(KOALA, "koala.jpg")
    node = node_of(Passage("p", "A koala.", image=tmp_path / "photos.zip" / "koala.jpg"))
    assert node.image_path is None
    assert base64.b64decode(node.image) == KOALA.read_bytes()
    assert passage_of(node).image.read_bytes() == KOALA.read_bytes()


@pytest.mark.parametrize(
    "node",
    [
        ImageNode(text="A koala.", image=base64.b64encode(KOALA.read_bytes()).decode()),
        ImageNode(text="A koala.", image_path=str(KOALA)),
        ImageDocument(text="A koala.", image=base64.b64encode(KOALA.read_bytes())),
        ImageDocument(text="A koala.", image_path=str(KOALA)),
        Node(
            text_resource=MediaResource(text="A koala."), image_resource=MediaResource(path=KOALA)
        ),
    ],
    ids=lambda node: type(node).__name__,
)
def test_pictures_of_all_kinds_of_nodes_are_kept(node):
    passage = passage_of(node)
    assert (passage.text, passage.passage_id) == ("A koala.", node.node_id)
    assert passage.image.read_bytes() == KOALA.read_bytes()


def test_metadata_that_no_file_could_hold_are_written_as_text():
    from datetime import date

    metadata = {"day": date(2024, 5, 1), "title": 7, "pair": (1, 2)}
    passage = passage_of(TextNode(text="x", metadata=metadata))
    assert passage.extra == {"day": "2024-05-01", "title": 7, "pair": [1, 2]}
    assert passage.title is None


def test_nodes_without_text_are_named():
    with pytest.raises(DataError, match="node n1 has neither text nor a picture"):
        passage_of(TextNode(id_="n1", text=" "))
    with pytest.raises(DataError, match="node n2 has broken image data"):
        passage_of(ImageNode(id_="n2", text="x", image="!"))


def test_documents_are_cut_by_sentences_and_nodes_are_not():
    sentence = "The koala sleeps up to twenty hours a day in the fork of a tree. "
    long = Document(id_="long", text=sentence * 40, metadata={"title": "Koala", "page": 3})
    short = Document(id_="short", text=sentence)
    node = TextNode(id_="node", text=sentence * 40)
    made = passages_of([long, short, node])
    *parts, whole, uncut = made
    assert [p.passage_id for p in parts] == [f"long:{i}" for i in range(1, len(parts) + 1)]
    assert len(parts) > 2
    assert {(p.title, p.article, p.extra["page"]) for p in parts} == {("Koala", "long", 3)}
    assert all(p.text.endswith(".") and len(p.text) < 1200 for p in parts)
    assert sum(p.text.count("sleeps") for p in parts) >= 40
    assert (whole.passage_id, whole.article, whole.text) == ("short", "short", sentence.strip())
    assert (uncut.passage_id, uncut.text) == ("node", node.text)


def test_transformations_of_llama_index_are_used_instead_if_given():
    document = Document(id_="d", text="One two three. Four five six. " * 20, metadata={"page": 1})
    made = passages_of([document], [SentenceSplitter(chunk_size=40, chunk_overlap=0)])
    assert len(made) > 3
    assert {p.article for p in made} == {"d"}
    assert made[0].extra == {"page": 1}
    assert passages_of([document], [])[0].text == document.text


# --- collections


def test_a_collection_keeps_everything(folder, passages):
    opened = Collection.open(folder)
    assert [opened[i] for i in opened] == passages
    assert json.loads((folder / "collection.json").read_text())["settings"]["retriever"]


def test_documents_come_and_go(tmp_path):
    text = "The koala sleeps up to twenty hours a day in the fork of a tree. " * 40
    documents = [Document(id_="koala", text=text), Document(id_="oak", text="Oaks bear acorns.")]
    tested = PreFLMRRetriever.from_documents(documents, tmp_path / "lib", overrides=PREFLMR)
    parts = sorted(i for i in tested.collection if i.startswith("koala"))
    assert len(parts) > 2
    assert all(n.node.ref_doc_id in ("koala", "oak") for n in tested.retrieve("Sleeps?"))

    changes = tested.insert(
        [Document(id_="koala", text="The koala sleeps."), node_of(Passage("x", "y"))]
    )
    assert changes == Changes(added=2)
    assert sorted(tested.collection) == ["koala", "oak", "x"]
    assert {n.node_id for n in tested.retrieve("Sleeps?")} == {"koala", "oak", "x"}

    assert tested.delete_ref_doc("koala") == Changes(deleted=1)
    assert tested.delete_ref_doc("x") == Changes(deleted=1)
    assert {n.node_id for n in tested.retrieve("Sleeps?")} == {"oak"}
    with pytest.raises(UserError, match="no passage 'koala'"):
        tested.delete_ref_doc("koala")
    reopened = PreFLMRRetriever.from_persist_dir(tmp_path / "lib")
    assert {n.node_id for n in reopened.retrieve("Sleeps?")} == {"oak"}


def test_nodes_of_one_document_may_come_one_by_one(tmp_path):
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo

    tested = PreFLMRRetriever.from_documents([], tmp_path / "lib", overrides=PREFLMR)
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d")}
    for name in "ab":
        tested.insert([TextNode(id_=name, text=f"part {name}", relationships=source)])
    assert sorted(tested.collection) == ["a", "b"]
    tested.insert([Document(id_="d", text="The whole.")])
    assert list(tested.collection) == ["d"]


def test_of_a_document_that_was_taken_whole_nothing_old_stays(tmp_path):
    text = "The koala sleeps up to twenty hours a day in the fork of a tree. " * 40
    old = [Document(id_="koala", text="The old text.")]
    tested = PreFLMRRetriever.from_documents(
        old, tmp_path / "lib", overrides=PREFLMR, transformations=[]
    )
    assert list(tested.collection) == ["koala"]
    tested.insert([Document(id_="koala", text=text)])
    assert "koala" not in tested.collection
    assert all(passage.startswith("koala:") for passage in tested.collection)


def test_the_pipelines_rerankers_are_used(passages):
    kept = ("reranking=[{name: threshold, max_kept: 2}]", "top_k=20")
    pipeline = Pipeline.load("preflmr-l-retrieval", *PREFLMR, *kept, retrieval_only=True)
    pipeline.prepare(Corpus(passages))
    found = PreFLMRRetriever(pipeline, 5).retrieve(QueryBundle(QUESTION, image_path=str(KOALA)))
    assert [n.node_id for n in found] == [h.passage_id for h in pipeline.ask(QUESTION, KOALA).hits]
    assert len(found) == 2


def test_a_collection_may_be_opened_with_another_reader(folder):
    overrides = ["reader={name: first-words, words: 1}"]
    tested = PreFLMRRetriever.from_persist_dir(folder, overrides)
    assert tested.answering().answerer.reader.config.words == 1
    assert len(tested.retrieve(QUESTION)) == 5


def test_pictures_come_back_with_their_passages(tmp_path):
    nodes = [
        ImageNode(id_="k", text="A koala.", image_path=str(KOALA)),
        TextNode(id_="t", text="A."),
    ]
    tested = PreFLMRRetriever.from_documents(nodes, tmp_path / "lib", overrides=PREFLMR)
    by_id = {n.node_id: n.node for n in tested.retrieve("What is it?")}
    assert type(by_id["t"]) is TextNode
    assert type(by_id["k"]) is ImageNode
    kept = Path(by_id["k"].image_path)
    assert kept.is_relative_to(tmp_path / "lib")
    assert kept.read_bytes() == KOALA.read_bytes()


def test_a_picture_without_text_is_found_by_what_is_seen_in_it(tmp_path, minilm_folder, tagger):
    nodes = [
        ImageNode(id_="photo", image_path=str(KOALA)),
        ImageDocument(id_="other", image_path=str(PHOTOS[0])),
        TextNode(id_="tower", text="A tower of stone."),
    ]
    tested = PreFLMRRetriever.from_documents(nodes, tmp_path / "lib", "sample-tags")
    [best, *_] = tested.retrieve("Where is there a koala?")
    assert best.node_id == "photo"
    assert "koala" in best.text
    with pytest.raises(DataError, match="node photo has no text: give a persist_dir"):
        PreFLMRRetriever.from_documents(nodes[::2], overrides=PREFLMR)


def test_without_a_folder_the_cache_does(passages):
    tested = PreFLMRRetriever.from_documents([node_of(p) for p in passages], overrides=PREFLMR)
    assert tested.collection is None
    assert len(tested.retrieve(QUESTION)) == 5
    with pytest.raises(UserError, match="persist_dir=FOLDER"):
        tested.insert([Document(text="x")])


def test_a_script_that_makes_a_collection_runs_twice(tmp_path):
    pipeline = collection_files.pipeline(tmp_path)
    long = " ".join(f"Sentence number {i} of a text." for i in range(60))

    def script(*documents):
        return PreFLMRRetriever.from_documents(
            documents, tmp_path / "c", pipeline, exist_ok=True, similarity_top_k=1
        ).collection

    koala = Document(id_="koala", text="The koala eats leaves.")
    first = script(Document(id_="a", text=long), koala)
    assert len(first) > 2
    assert sorted(script(Document(id_="a", text=long), koala)) == sorted(first)
    assert len(list((tmp_path / "c").glob("passages-*"))) == 1  # nothing was written again
    again = script(Document(id_="a", text="Short."), Document(id_="b", text="The bear sleeps."))
    assert {i: again[i].text for i in again} == {
        "koala": koala.text,
        "a": "Short.",
        "b": "The bear sleeps.",
    }


def test_mistakes_say_what_to_do(tmp_path, folder, passages):
    with pytest.raises(UserError, match="no collection in"):
        PreFLMRRetriever.from_persist_dir(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds a collection: open it with from_persist_dir, or"):
        PreFLMRRetriever.from_documents([TextNode(text="x")], folder, overrides=PREFLMR)
    twice = [TextNode(id_="a", text="x"), TextNode(id_="a", text="y")]
    with pytest.raises(DataError, match="twice"):
        PreFLMRRetriever.from_documents(twice, tmp_path / "new", overrides=PREFLMR)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="no documents"):
        PreFLMRRetriever.from_documents([], overrides=PREFLMR)
    pipeline = Pipeline.load("preflmr-l-retrieval", *PREFLMR, retrieval_only=True)
    with pytest.raises(UserError, match=r"pipeline\.prepare"):
        PreFLMRRetriever(pipeline)


# --- with trained weights


@pytest.mark.slow
def test_what_is_seen_in_the_image_finds_the_passage(minilm_folder, tagger):
    """Image tags and MiniLM: what the animal is, is in the photo only."""
    corpus = Corpus.read(SAMPLE / "passages.jsonl")
    diets = Corpus([p for p in corpus.values() if p.extra.get("aspect") == "diet"])
    tested = PreFLMRRetriever.from_defaults(diets, "sample", similarity_top_k=3)
    [best, *_] = tested.retrieve(QueryBundle(QUESTION, image_path=str(KOALA)))
    assert best.node_id == "koala.diet"
    assert best.metadata["title"] == "Koala"
    assert "koala.diet" not in [n.node_id for n in tested.retrieve(QUESTION)]
    assert len(diets) > 30
