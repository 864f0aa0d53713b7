"""Parts that say that several threads may call them are checked so; others are never called so."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ravqa.answering import RULES
from ravqa.answering.answerer import Answerer
from ravqa.answering.rules import answering_config
from ravqa.core.outcomes import Failure
from ravqa.core.records import Passage, Question
from ravqa.corpora.corpus import Corpus
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerMetric
from ravqa.metrics.judges import JUDGES
from ravqa.metrics.judges.base import Judge
from ravqa.pipeline import Pipeline
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader
from ravqa.readers.cached import CachedReader
from ravqa.rerankers import RERANKERS
from ravqa.rerankers.base import Reranker, renumbered
from ravqa.retrievers import RETRIEVERS
from ravqa.retrievers.base import Retriever, to_hits
from ravqa.testing import (
    check_judge,
    check_metric,
    check_reader,
    check_reranker,
    check_retriever,
    check_rule,
)

PerPassage = RULES.get("vote")


class Forgetful:
    """Keeps what it is asked in the object, and works on what is there a little later.

    Attributes:
        most: most threads that were inside at the same time.
    """

    inside = most = 0

    def remember(self, asked):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.asked = asked
        time.sleep(0.0002)
        self.inside -= 1
        return self.asked


class MyReader(Forgetful, Reader):
    fingerprint = weights = "mine"
    deterministic = True

    def generate(self, prompts):
        return [Generation(prompt.text[:20]) for prompt in self.remember(prompts)]


class MyRetriever(Forgetful, Retriever):
    fingerprint = "mine"

    def prepare(self, corpus, progress=None):
        self.ids = list(corpus)

    def retrieve(self, questions, k):
        return [
            to_hits([(i, 1.0) for i in self.ids[len(question.question) % 3 :][:k]])
            for question in self.remember(questions)
        ]


class MyReranker(Forgetful, Reranker):
    fingerprint = "mine"

    def rerank(self, questions, candidates):
        return [renumbered(hit for hit, _ in found) for found in self.remember(candidates)]


class MyJudge(Forgetful, Judge):
    name = fingerprint = "mine"

    def judge(self, questions, references, candidates):
        pairs = self.remember(list(zip(references, candidates, strict=True)))
        return [float(a == b) for a, b in pairs]


class MyMetric(Forgetful, AnswerMetric):
    name = label = rule = "mine"

    def score(self, question, record, judge=None):
        text = self.remember(record.answer)
        return float(text.lower().strip(".") in question.answers)


class MyRule(Forgetful, PerPassage):
    def answer(self, cases, reader):
        return super().answer(self.remember(cases), reader)


def rule_of(kind):
    return kind(answering_config({"decision": "vote", "passages": 3}))


PARTS = [
    (MyReader, MyReader, check_reader),
    (MyRetriever, MyRetriever, check_retriever),
    (MyReranker, MyReranker, check_reranker),
    (MyJudge, MyJudge, check_judge),
    (MyMetric, MyMetric, check_metric),
    (MyRule, lambda: rule_of(MyRule), check_rule),
]


@pytest.mark.parametrize(("kind", "build", "check"), PARTS, ids=lambda part: part.__name__)
def test_what_only_one_thread_may_call_must_say_so(monkeypatch, kind, build, check):
    monkeypatch.setattr(kind, "thread_safe", True)
    with pytest.raises(AssertionError, match=f"^{kind.__name__} is `thread_safe`"):
        check(build())
    monkeypatch.setattr(kind, "thread_safe", False)
    made = build()
    check(made)
    assert made.most == 1
    monkeypatch.setattr(kind, "thread_safe", "yes")
    with pytest.raises(AssertionError, match=f"{kind.__name__}.thread_safe is True or False"):
        check(build())


def test_by_default_those_that_work_on_several_items_at_a_time_are_for_several_threads():
    for part in (MyReader(), MyJudge()):
        assert not part.thread_safe
        part.workers = 2
        assert part.thread_safe
    reader, reranker = MyReader(), MyReranker()
    assert not reranker.thread_safe
    reranker.reader = reader
    assert not reranker.thread_safe
    reader.workers = 2
    assert reranker.thread_safe
    assert CachedReader(reader, keep=False).thread_safe
    assert MyMetric.thread_safe
    assert MyRule.thread_safe
    assert not MyRetriever.thread_safe


@pytest.mark.slow  # it imports them all
def test_those_of_the_registries_say_what_they_are():
    safe = {
        registry.kind: {
            name for name, _ in registry if registry.get(name).__dict__.get("thread_safe") is True
        }
        for registry in (READERS, RERANKERS, RETRIEVERS, JUDGES)
    }
    assert safe == {
        "reader": {"openai"},
        "reranker": {"blend", "threshold"},
        "retriever": {"none", "random", "static"},
        "judge": {"llm"},
    }
    assert all(RULES.get(name).thread_safe for name, _ in RULES)
    assert all(METRICS.get(name).thread_safe for name, _ in METRICS)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_pipeline_has_several_threads_call_only_those_that_say_so(fresh_cache, workers):
    together = threading.Barrier(4)

    class Together(MyReader):
        def generate(self, prompts):
            if self.workers > 1:
                together.wait(5)  # else it would not go on
                return [Generation(prompt.text[:20]) for prompt in prompts]
            return super().generate(prompts)

    reader = Together()
    reader.workers = workers
    retriever, reranker = MyRetriever(), MyReranker()
    pipeline = Pipeline(
        retriever,
        Answerer(answering_config({"decision": "top1", "cache": False}), reader),
        rerankers={"mine": reranker},
        top_k=3,
    )
    pipeline.prepare(Corpus([Passage(i, f"text {i}") for i in "abcde"]))

    def work(number):
        asked = [Question(number, f"What is {'very ' * number} big?")]
        found = pipeline.rerank(asked, pipeline.retrieve(asked))[-1].hits
        [answer] = pipeline.answer(asked, found)
        assert not isinstance(answer, Failure)
        return found, answer

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(work, range(4)))
    assert (retriever.most, reranker.most) == (1, 1)
    assert reader.most == (1 if workers == 1 else 0)
    if workers == 1:
        assert found == [work(number) for number in range(4)]
