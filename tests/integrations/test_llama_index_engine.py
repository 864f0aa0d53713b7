"""Answering and evaluation inside LlamaIndex, and LlamaIndex's retrievers inside ravqa.

The PreFLMR checkpoint is tiny and random: plumbing. What readers are given is looked at.
"""

import asyncio
import base64
import time
from dataclasses import asdict
from types import SimpleNamespace

import flmr_parity as parity
import pytest
from flmr_parity import one_thread  # noqa: F401 (a fixture)

from ravqa.cli import run_main
from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Description, Passage, Question, Tag
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict
from ravqa.corpora.corpus import Corpus
from ravqa.metrics import pseudo_recall_at_k, vqa_accuracy
from ravqa.pipeline import Pipeline
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader

pytest.importorskip("llama_index.core", reason="pip install 'ravqa[llama-index]'")
from llama_index.core import QueryBundle
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    TextBlock,
)
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.evaluation import BatchEvalRunner, RetrieverEvaluator
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import (
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)

from ravqa.integrations.llama_index import (
    ImageRetrieverEvaluator,
    LlamaIndexRetriever,
    PreFLMRRetriever,
    PRRecall,
    RAVQAQueryEngine,
    RAVQASynthesizer,
    ReaderLLM,
    VQAAccuracyEvaluator,
    nodes_of,
)

PREFLMR = f"retriever.encoder.model={parity.checkpoint('preflmr')}"
PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
QUESTION = "What does this animal mainly eat?"
QUERY = QueryBundle(QUESTION, image_path=str(PHOTO))


class Seeing(Reader):
    """A reader that looks at images; it answers with the prompt's number of letters."""

    supports_images = True
    gives_log_probs = True
    deterministic = True
    weights = "seeing"
    context = 4000
    max_new_tokens = 12
    ends = frozenset()
    batches: list = []  # noqa: RUF012

    class Config(Strict):
        wait: float = 0

    def __init__(self, config):
        self.config = config
        self.fingerprint = "seeing/1"

    def generate(self, prompts):
        self.batches.append(list(prompts))
        time.sleep(self.config.wait)
        return [Generation(f" The answer is {len(p.text)}.", -1.0, 3) for p in prompts]


@pytest.fixture(autouse=True)
def seeing(monkeypatch):
    monkeypatch.setitem(READERS._entries, "seeing", Entry(f"{__name__}:Seeing", "for tests"))
    Seeing.batches.clear()
    return Seeing


@pytest.fixture(scope="module")
def corpus():
    return Corpus(list(Corpus.read(SAMPLE / "passages.jsonl").values())[:24])


@pytest.fixture(scope="module")
def retriever(corpus):
    return PreFLMRRetriever.from_defaults(corpus, overrides=[PREFLMR])


OWN = ("reader={name: seeing}", "answering.cache=false")
READ = (*OWN, "answering.decision=concat", "answering.passages=2")


@pytest.fixture
def engine(retriever):
    return RAVQAQueryEngine.from_args(retriever, "preflmr-l-retrieval", READ)


# --- the engine


def test_the_reader_is_given_question_image_and_passages(engine, retriever):
    response = engine.query(QUERY)
    [[prompt]] = Seeing.batches
    nodes = retriever.retrieve(QUERY)
    assert prompt.image == PHOTO
    assert QUESTION in prompt.text
    assert nodes[0].text in prompt.text
    assert nodes[1].text in prompt.text
    assert nodes[2].text not in prompt.text  # two are read
    assert [n.node_id for n in response.source_nodes] == [n.node_id for n in nodes]
    assert response.response == str(response) == str(len(prompt.text))
    assert response.metadata[nodes[0].node_id] == nodes[0].metadata
    answer = response.metadata["answer"]
    assert answer["decision"] == "concat"
    assert answer["drafts"][0]["raw"] == f" The answer is {len(prompt.text)}."
    assert answer["drafts"][0]["passage_ids"] == tuple(n.node_id for n in nodes[:2])


def test_answers_are_those_of_the_pipeline(retriever, corpus):
    overrides = (PREFLMR, *OWN, "answering.decision=joint_max", "answering.passages=5")
    pipeline = Pipeline.load("preflmr-l-retrieval", *overrides, "top_k=5")
    pipeline.prepare(corpus)
    expected = pipeline.ask(QUESTION, PHOTO).answer
    for made in (
        RAVQAQueryEngine(PreFLMRRetriever(pipeline)),
        RAVQAQueryEngine.from_args(retriever, "preflmr-l-retrieval", overrides),
    ):
        response = made.query(QUERY)
        assert response.response == expected.text
        assert response.metadata["answer"] == asdict(expected)


def test_a_collection_answers_with_its_own_reader(tmp_path, corpus):
    overrides = (PREFLMR, *READ)
    made = PreFLMRRetriever.from_documents(nodes_of(corpus), tmp_path / "lib", overrides=overrides)
    response = RAVQAQueryEngine(made).query(QUERY)
    [[prompt]] = Seeing.batches
    assert response.response == str(len(prompt.text))
    assert prompt.image == PHOTO


def test_the_image_may_be_a_data_uri_and_a_question_may_have_none(engine):
    data = PHOTO.read_bytes()
    uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    engine.query(QueryBundle(QUESTION, image_path=uri))
    engine.query(QUESTION)
    assert [batch[0].image for batch in Seeing.batches] == [data, None]


def test_what_is_seen_goes_into_the_prompt_of_a_reader_that_cannot_see(retriever, tagger):
    overrides = ("reader={name: first-words}", "answering.cache=false")
    made = RAVQAQueryEngine.from_args(retriever, "sample-tags", overrides)
    prompts = []
    answerer = made._response_synthesizer._asker.answerer
    make = answerer.template.prompt

    def kept(question, passages, *others, **options):
        prompts.append(question.description)
        return make(question, passages, *others, **options)

    answerer.template.prompt = kept
    made.query(QUERY)
    assert prompts[0].tags[0].names[0] == "koala"


class Fixed(BaseRetriever):
    """Others' retriever: the same nodes for every question."""

    def __init__(self, nodes, similarity_top_k=2):
        super().__init__()
        self.nodes = nodes
        self.similarity_top_k = similarity_top_k
        self.asked = []

    def _retrieve(self, query_bundle):
        self.asked.append(query_bundle)
        return [NodeWithScore(node=n, score=s) for n, s in self.nodes][: self.similarity_top_k]


def test_any_retriever_will_do(corpus):
    nodes = nodes_of(corpus)
    other = Fixed([(nodes[3], 0.9), (TextNode(id_="blank", text=" "), 0.8), (nodes[5], None)], 3)
    made = RAVQAQueryEngine.from_args(other, "preflmr-l-retrieval", READ)
    response = made.query(QUERY)
    [[prompt]] = Seeing.batches
    assert prompt.image == PHOTO
    assert nodes[3].text in prompt.text
    assert nodes[5].text in prompt.text
    assert len(response.source_nodes) == 3
    with pytest.raises(UserError, match="from_args"):
        RAVQAQueryEngine(other)


class Reverse(BaseNodePostprocessor):
    def _postprocess_nodes(self, nodes, query_bundle=None):
        assert query_bundle.image_path == str(PHOTO)
        return nodes[::-1]


def test_postprocessors_stand_between_retriever_and_reader(retriever):
    made = RAVQAQueryEngine.from_args(
        retriever, "preflmr-l-retrieval", READ, node_postprocessors=[Reverse()]
    )
    response = made.query(QUERY)
    found = retriever.retrieve(QUERY)
    assert [n.node_id for n in response.source_nodes] == [n.node_id for n in found][::-1]
    assert found[-1].text in Seeing.batches[0][0].text
    assert found[0].text not in Seeing.batches[0][0].text


def test_without_nodes_the_reader_answers_alone(retriever):
    pipeline = Pipeline.load("preflmr-l-retrieval", "retriever={name: none}", *READ)
    response = RAVQASynthesizer(pipeline).synthesize(QUERY, [])
    [[prompt]] = Seeing.batches
    assert prompt.image == PHOTO
    assert response.response == str(len(prompt.text))
    assert response.source_nodes == []


def test_a_pipeline_without_a_reader_says_so(retriever):
    with pytest.raises(UserError, match="retrieval only"):
        RAVQAQueryEngine(retriever)


def test_many_questions_at_once_share_batches_and_get_their_own_answers(retriever):
    slow = (*READ, "reader.wait=0.05")
    made = RAVQAQueryEngine.from_args(retriever, "preflmr-l-retrieval", slow)
    queries = [QueryBundle(f"{'Why ' * i}?", image_path=str(PHOTO)) for i in range(1, 9)]
    alone = [made.query(q).response for q in queries]
    Seeing.batches.clear()
    ticks = 0

    async def main():
        nonlocal ticks
        tasks = [asyncio.create_task(made.aquery(q)) for q in queries]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.005)
            ticks += 1
        return [task.result().response for task in tasks]

    assert asyncio.run(main()) == alone
    assert len(set(alone)) == len(alone)
    assert len(Seeing.batches) < len(queries)
    assert ticks > 10


def test_events_of_the_engine(retriever):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    made = RAVQAQueryEngine.from_args(
        retriever, "preflmr-l-retrieval", READ, callback_manager=CallbackManager([debug])
    )
    response = made.query(QUERY)
    asyncio.run(made.aquery(QUERY))
    for kind in (CBEventType.QUERY, CBEventType.SYNTHESIZE):
        pairs = debug.get_event_pairs(kind)
        assert len(pairs) == 2
        assert pairs[0][0].payload[EventPayload.QUERY_STR] == QUESTION
        assert pairs[0][1].payload[EventPayload.RESPONSE] is response


def test_text_chunks_alone_can_be_answered_from(engine):
    synthesizer = engine._response_synthesizer
    text = synthesizer.get_response("What?", ["One passage."])
    assert text == asyncio.run(synthesizer.aget_response("What?", ["One passage."]))
    assert "One passage." in Seeing.batches[0][0].text


# --- streaming


class Writing(Reader):
    """A reader that streams: "The answer is bamboo, mostly", a word at a time."""

    streams = True
    supports_images = True
    deterministic = True
    weights = "writing"
    context = None
    max_new_tokens = 12
    ends = frozenset()
    written: list = []  # noqa: RUF012

    class Config(Strict):
        wait: float = 0

    def __init__(self, config):
        self.config = config
        self.fingerprint = "writing/1"

    def generate(self, prompts):
        return [Generation("The answer is bamboo, mostly.") for _ in prompts]

    def stream(self, prompt):
        assert prompt.image == PHOTO
        for word in ("The", " answer", " is", " bamboo,", " mostly."):
            time.sleep(self.config.wait)
            self.written.append(word)
            yield word


@pytest.fixture
def writing(monkeypatch):
    monkeypatch.setitem(READERS._entries, "writing", Entry(f"{__name__}:Writing", "for tests"))
    Writing.written.clear()
    return ("reader={name: writing}", "answering.cache=false", "answering.decision=concat")


def test_a_response_streams_what_the_reader_writes(retriever, writing):
    made = RAVQAQueryEngine.from_args(retriever, "preflmr-l-retrieval", writing, streaming=True)
    response = made.query(QUERY)
    words = iter(response.response_gen)
    assert next(words) == "The"
    assert Writing.written == ["The"]  # nothing is written ahead
    assert "answer" not in response.metadata
    assert list(words) == [" answer", " is", " bamboo,", " mostly."]
    plain = RAVQAQueryEngine.from_args(retriever, "preflmr-l-retrieval", writing).query(QUERY)
    assert response.metadata["answer"] == plain.metadata["answer"]
    assert response.metadata["answer"]["text"] == plain.response
    assert [n.node_id for n in response.source_nodes] == [n.node_id for n in plain.source_nodes]
    assert str(made.query(QUERY)) == "The answer is bamboo, mostly."


def test_a_response_streams_without_holding_up_the_event_loop(retriever, writing):
    slow = (*writing, "reader.wait=0.03")
    made = RAVQAQueryEngine.from_args(retriever, "preflmr-l-retrieval", slow, streaming=True)
    ticks = []

    async def tick():
        while True:
            await asyncio.sleep(0.005)
            ticks.append(len(Writing.written))

    async def main():
        ticking = asyncio.create_task(tick())
        response = await made.aquery(QUERY)
        words = [word async for word in response.async_response_gen()]
        ticking.cancel()
        return words, response

    words, response = asyncio.run(main())
    assert "".join(words) == "The answer is bamboo, mostly."
    assert response.metadata["answer"]["raw"] == "The answer is bamboo, mostly."
    assert set(ticks) >= {1, 2, 3, 4}


def test_who_stops_reading_stops_the_reader(retriever, writing):
    made = RAVQAQueryEngine.from_args(retriever, "preflmr-l-retrieval", writing, streaming=True)
    words = made.query(QUERY).response_gen
    next(words)
    words.close()
    assert Writing.written == ["The"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (OWN, "the reader seeing does not stream"),
        (("answering.decision=vote", "answering.passages=3"), "vote needs the answers for all"),
    ],
)
def test_what_does_not_stream_says_so(retriever, writing, overrides, message):
    settings = (*writing, *overrides)
    with pytest.raises(UserError, match=message):
        RAVQAQueryEngine.from_args(retriever, "preflmr-l-retrieval", settings, streaming=True)


def test_a_language_model_streams_too(writing):
    llm = ReaderLLM(Writing(Writing.Config()))
    blocks = [TextBlock(text="What is it?"), ImageBlock(path=PHOTO)]
    messages = [ChatMessage(role="user", blocks=blocks)]
    pieces = list(llm.stream_chat(messages))
    assert [piece.delta for piece in pieces] == ["The", " answer", " is", " bamboo,", " mostly."]
    assert pieces[-1].message.content == "The answer is bamboo, mostly."

    async def main():
        return [piece.delta async for piece in await llm.astream_chat(messages)]

    assert asyncio.run(main()) == [piece.delta for piece in pieces]


def test_the_event_loop_goes_on_while_a_stream_begins(writing):
    class Slow(Writing):
        def stream(self, prompt):  # as one that looks into its cache first
            time.sleep(0.2)
            return iter(["leaves"])

    llm = ReaderLLM(Slow(Slow.Config()))
    message = ChatMessage(role="user", content="What?")

    async def main(begin):
        task = asyncio.create_task(begin)
        steps = 0
        while not task.done():
            await asyncio.sleep(0.01)
            steps += 1
        return steps, [piece.delta async for piece in task.result()]

    for begin in (llm.astream_complete("What?"), llm.astream_chat([message])):
        steps, words = asyncio.run(main(begin))
        assert steps > 5
        assert words == ["leaves"]


# --- LlamaIndex's own engine and language models


def test_the_retriever_works_with_llama_indexs_own_engine(retriever):
    made = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    response = made.query(QUERY)  # MockLLM repeats the prompt
    found = retriever.retrieve(QUERY)
    assert [n.node_id for n in response.source_nodes] == [n.node_id for n in found]
    assert found[0].text in str(response)
    assert QUESTION in str(response)
    assert found[0].metadata["title"] in str(response)


def test_a_reader_is_a_language_model_of_llama_index(retriever):
    llm = ReaderLLM(Seeing(Seeing.Config()))
    response = RetrieverQueryEngine.from_args(retriever, llm=llm).query(QUERY)
    [[prompt]] = Seeing.batches
    assert retriever.retrieve(QUERY)[0].text in prompt.text
    assert str(response).strip() == f"The answer is {len(prompt.text)}."
    assert llm.metadata.model_name == "seeing"
    assert (llm.metadata.context_window, llm.metadata.num_output) == (4000, 12)

    assert llm.complete("Hello").text == " The answer is 5."
    assert asyncio.run(llm.acomplete("Hello")).text == " The answer is 5."
    blocks = [TextBlock(text="What is it?"), ImageBlock(path=PHOTO)]
    Seeing.batches.clear()
    chat = llm.chat([ChatMessage(role="user", blocks=blocks)])
    assert chat.message.content.startswith(" The answer is")
    assert asyncio.run(llm.achat([ChatMessage(role="user", blocks=blocks)])) == chat
    data = [TextBlock(text="What is it?"), ImageBlock(image=PHOTO.read_bytes())]
    llm.chat([ChatMessage(role="user", blocks=data)])
    assert [batch[0].image for batch in Seeing.batches] == [PHOTO, PHOTO, PHOTO.read_bytes()]
    assert "What is it?" in Seeing.batches[0][0].text
    with pytest.raises(UserError, match="does not stream"):
        llm.stream_complete("Hello")
    with pytest.raises(UserError, match="2 images"):
        llm.chat([ChatMessage(role="user", blocks=blocks * 2)])


def test_a_reader_that_cannot_see_refuses_an_image():
    blind = SimpleNamespace(
        supports_images=False, weights="blind", generate=None, context=None, max_new_tokens=0
    )
    with pytest.raises(UserError, match="blind does not see images"):
        ReaderLLM(blind).chat([ChatMessage(role="user", blocks=[ImageBlock(path=PHOTO)])])


# --- evaluation


@pytest.fixture(scope="module")
def questions(okvqa_sample):
    return [q for q in okvqa_sample.questions if q.answers][:12]


def bundle(question):
    return QueryBundle(question.question, image_path=str(question.image))


def test_prrecall_is_that_of_the_project(retriever, corpus, questions):
    names = ["prrecall@1", "prrecall", "prrecall@20", "mrr"]
    evaluator = ImageRetrieverEvaluator.from_metric_names(names, retriever=retriever)
    scores = set()
    for question in questions:
        found = [n.node_id for n in retriever.retrieve(bundle(question))]
        texts = [corpus[i].content for i in found]
        expected = pseudo_recall_at_k(texts, question.answers, ks=(1, 5, 20))
        result = evaluator.evaluate(
            bundle(question), expected_ids=found[1:2], expected_texts=list(question.answers)
        )
        assert result.retrieved_texts == texts
        assert result.metric_vals_dict == {
            "prrecall@1": expected[1],
            "prrecall": expected[5],
            "prrecall@20": expected[20],
            "mrr": 0.5,
        }
        scores.add(tuple(expected.values()))
    assert len(scores) > 1  # both hits and misses


def test_llama_indexs_own_evaluator_runs_on_prrecall(retriever, questions):
    evaluator = RetrieverEvaluator.from_metric_names(["prrecall"], retriever=retriever)
    for question in questions:
        nodes = retriever.retrieve(question.question)
        result = evaluator.evaluate(question.question, [], list(question.answers))
        expected = pseudo_recall_at_k([n.text for n in nodes], question.answers, ks=(5,))
        assert result.metric_vals_dict == {"prrecall": expected[5]}


def test_prrecall_has_options_and_says_what_it_lacks():
    texts = ["a party", "art is long"]
    assert PRRecall(k=1).compute(expected_texts=["art"], retrieved_texts=texts).score == 1
    words = PRRecall(k=1, rule="word").compute(expected_texts=["art"], retrieved_texts=texts)
    assert (words.score, words.metadata) == (0, {"k": 1, "ranks": [2]})
    with pytest.raises(ValueError, match="answers as expected_texts"):
        PRRecall().compute(retrieved_texts=texts)


def test_postprocessed_nodes_are_evaluated(retriever):
    evaluator = ImageRetrieverEvaluator.from_metric_names(
        ["prrecall"], retriever=retriever, node_postprocessors=[Reverse()]
    )
    result = asyncio.run(evaluator.aevaluate(QUERY, expected_texts=["x"]))
    found = [n.node_id for n in retriever.retrieve(QUERY)]
    assert result.retrieved_ids == found[::-1]


def test_vqa_accuracy_is_that_of_the_project(okvqa_sample):
    evaluator = VQAAccuracyEvaluator()
    answers = ["leaves"] * 2 + ["eucalyptus"] * 7 + ["The leaves"]
    for response in ("leaves", "eucalyptus", "the Eucalyptus.", "bamboo", ""):
        result = evaluator.evaluate(query=QUERY, response=response, reference=answers)
        assert result.score == vqa_accuracy(response, answers)
        assert result.passing is (result.score >= 0.6)
        assert result.query == QUESTION
    with pytest.raises(ValueError, match="answers as reference"):
        evaluator.evaluate(response="x")


@pytest.mark.filterwarnings("ignore:asyncio_module:DeprecationWarning")
def test_batches_of_questions_with_images_are_evaluated(engine, questions):
    runner = BatchEvalRunner({"vqa": VQAAccuracyEvaluator()}, workers=4)
    references = [[*q.answers, str(i)] for i, q in enumerate(questions)]
    results = runner.evaluate_queries(engine, [bundle(q) for q in questions], reference=references)[
        "vqa"
    ]
    assert {prompt.image for batch in Seeing.batches for prompt in batch} == {
        q.image for q in questions
    }
    assert len(results) == len(questions)
    for question, result, reference in zip(questions, results, references, strict=True):
        assert result.query == question.question
        assert result.score == vqa_accuracy(result.response, reference)
        assert len(result.contexts) == 5


# --- others' retrievers


class Words(BaseRetriever):
    """Counts the words that question and passage share; its default depth is LlamaIndex's 2."""

    def __init__(self, nodes, similarity_top_k=2):
        super().__init__()
        self.nodes = nodes
        self.similarity_top_k = similarity_top_k
        self.asked = []

    def _retrieve(self, query_bundle):
        self.asked.append(query_bundle)
        words = set(query_bundle.query_str.lower().split())
        scored = [(len(words & set(n.text.lower().split())), n) for n in self.nodes]
        best = sorted(scored, key=lambda pair: -pair[0])[: self.similarity_top_k]
        return [NodeWithScore(node=n, score=float(score)) for score, n in best]


def build(nodes, **options):
    """What the tests' settings name as factory."""
    return Words(nodes, **options)


def build_nothing(nodes):
    return None


FACTORY = {"name": "llama-index", "factory": f"{__name__}:build"}
SEEN = Question(
    1,
    "Where does it live?",
    image=PHOTO,
    description=Description(
        tags=(Tag(("koala", "bear"), 0.9), Tag(("tree",), 0.1)), caption="a koala in a tree"
    ),
)


def test_others_retrievers_find_passages_for_us(corpus):
    other = Words(nodes_of(corpus))
    tested = LlamaIndexRetriever(other)
    tested.prepare(corpus)
    [hits] = tested.retrieve([SEEN], 7)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5, 6, 7]
    assert all(hit.passage_id in corpus for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    [asked] = other.asked
    assert asked.query_str == "Where does it live? koala tree a koala in a tree"
    assert asked.image_path is None


def test_the_image_goes_to_a_retriever_that_looks_at_it(corpus):
    other = Fixed([(node, 1.0) for node in nodes_of(corpus)])
    tested = LlamaIndexRetriever(other, tags=0, caption=False, supports_images=True)
    tested.prepare(corpus)
    data = PHOTO.read_bytes()
    tested.retrieve([SEEN, Question(2, "What?", image=data), Question(3, "Why?")], 2)
    assert tested.supports_images
    assert [q.query_str for q in other.asked] == ["Where does it live?", "What?", "Why?"]
    path, uri, nothing = [q.image_path for q in other.asked]
    assert (path, nothing) == (str(PHOTO), None)
    assert base64.b64decode(uri.partition(",")[2]) == data


def test_our_own_retriever_goes_round_and_comes_back_the_same(retriever, corpus):
    tested = LlamaIndexRetriever(retriever, supports_images=True)
    tested.prepare(corpus)
    question = Question(1, QUESTION, image=PHOTO)
    [hits] = tested.retrieve([question], 5)
    assert hits == retriever._searcher.pipeline().retriever.retrieve([question], 5)[0]


def test_parts_of_passages_count_for_them_and_unknown_nodes_are_named(corpus):
    first, second, *_ = corpus

    def part(name, passage_id, **more):
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=passage_id)}
        return TextNode(id_=name, text="x", relationships=source, **more)

    nodes = [part("c1", second), part("c2", first), part("c3", second)]
    by_metadata = TextNode(id_="c4", text="x", metadata={"passage_id": first})
    tested = LlamaIndexRetriever(Fixed([(n, None) for n in [*nodes, by_metadata]]))
    tested.prepare(corpus)
    [hits] = tested.retrieve([SEEN], 4)
    assert [(hit.passage_id, hit.score) for hit in hits] == [(second, 1.0), (first, 0.5)]

    scored = [(part("c1", second), 0.2), (part("c2", first), 0.5), (part("c3", second), 0.9)]
    tested = LlamaIndexRetriever(Fixed(scored))
    tested.prepare(corpus)
    [hits] = tested.retrieve([SEEN], 4)
    assert [(hit.passage_id, hit.score) for hit in hits] == [(second, 0.9), (first, 0.5)]

    tested = LlamaIndexRetriever(Fixed([(TextNode(id_="stranger", text="x"), 1.0)]))
    tested.prepare(corpus)
    with pytest.raises(DataError, match=r"'stranger' is not a passage.*nodes_of"):
        tested.retrieve([SEEN], 4)
    with pytest.raises(UserError, match="--corpus"):
        tested.prepare(None)


def test_a_factory_makes_one_for_a_pipeline(corpus):
    overrides = [f"retriever={{name: llama-index, factory: '{__name__}:build'}}", "top_k=6"]
    pipeline = Pipeline.load("bm25-retrieval", *overrides, retrieval_only=True)
    pipeline.prepare(corpus)
    hits = pipeline.ask("Where does the jaguar live?").hits
    assert len(hits) == 6
    other = Pipeline.load(
        "bm25-retrieval", *overrides, "retriever.options={similarity_top_k: 9}", retrieval_only=True
    )
    assert other.retriever.fingerprint != pipeline.retriever.fingerprint


def test_a_factory_enters_a_run(tmp_path, capsys):
    retriever = f"retriever={{name: llama-index, factory: '{__name__}:build'}}"
    arguments = ["--dataset", "okvqa", "--pipeline", "bm25-retrieval", "--retrieval-only"]
    more = ["--set", retriever, "--limit", "4", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        run_main([*arguments, *more])
    assert ended.value.code == 0, capsys.readouterr().err
    lines = (tmp_path / "run" / "run.trec").read_text().splitlines()
    assert len(lines) == 4 * 100


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_module:build", "no_such_module cannot be imported"),
        (f"{__name__}:bild", "no 'bild' in test_llama_index_engine: did you mean build"),
        ("build", "package.module:function is expected"),
    ],
)
def test_factories_that_are_not_there(factory, message):
    with pytest.raises(UserError, match=message):
        Pipeline.load("bm25-retrieval", f"retriever={{name: llama-index, factory: '{factory}'}}")


def test_a_setting_under_its_former_name_gives_the_present_one():
    with pytest.raises(UserError, match="'sees_images': it is now called supports_images"):
        Pipeline.load("bm25-retrieval", "retriever={name: llama-index, sees_images: true}")


def test_a_factory_that_makes_something_else(corpus):
    pipeline = Pipeline.load(
        "bm25-retrieval", f"retriever={{name: llama-index, factory: '{__name__}:build_nothing'}}"
    )
    with pytest.raises(UserError, match="gave NoneType, not a LlamaIndex retriever"):
        pipeline.prepare(corpus)


def test_a_missing_package_names_its_extra(monkeypatch):
    import sys

    for name in [n for n in sys.modules if n.startswith(("llama_index", "ravqa.integrations.ll"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llama_index", None)
    with pytest.raises(UserError, match=r"pip install 'ravqa\[llama-index\]'"):
        Pipeline.load("bm25-retrieval", "retriever={name: llama-index, factory: 'a:b'}")


def test_passages_of_a_corpus_are_nodes(corpus):
    nodes = nodes_of(corpus)
    assert [n.node_id for n in nodes] == list(corpus)
    assert nodes[0].text == next(iter(corpus.values())).text
    assert isinstance(next(iter(corpus.values())), Passage)
