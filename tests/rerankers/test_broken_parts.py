"""Parts that break their contract are named in one line, by the pipeline and by commands."""

import math
from dataclasses import replace

import pytest
from study_files import call, write_data

from ravqa.core.errors import ContractError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.registry import Entry
from ravqa.corpora.corpus import Corpus
from ravqa.pipeline import Pipeline
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader
from ravqa.rerankers import RERANKERS
from ravqa.rerankers.base import Reranker
from ravqa.retrievers.controls import NoRetriever

QUESTIONS = [Question(1, "What?"), Question(2, "Where?")]
HITS = [[Hit("a", 2.0, 1), Hit("b", 1.0, 2)]] * 2


class Made(Reranker):
    """Returns for each question what a function makes of its hits."""

    fingerprint = "made"

    def __init__(self, make):
        self.make = make

    def rerank(self, questions, candidates):
        return self.make([[hit for hit, _ in found] for found in candidates])


def pipeline(*rerankers):
    built = Pipeline(NoRetriever(), rerankers={str(i): r for i, r in enumerate(rerankers)})
    built.corpus = Corpus([Passage("a", "a"), Passage("b", "b"), Passage("c", "c")])
    return built


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda hits: hits[:1], "it returned 1 results from rerank for 2 items"),
        (lambda hits: None, "it returned NoneType from rerank: a list is expected"),
        (lambda hits: [None, None], "it returned from rerank NoneType instead of a list of Hit"),
        (lambda hits: [["a"], ["b"]], "it returned from rerank list instead of a list of Hit"),
        (
            lambda hits: [[replace(h, score=math.nan) for h in found] for found in hits],
            "it returned from rerank a score of passage a that is not a number",
        ),
        (lambda hits: [found * 2 for found in hits], "a passage twice for one question"),
        (lambda hits: [[Hit("c", 1.0, 1)]] * 2, "passages that it was not given: 'c'"),
    ],
)
def test_a_reranker_that_breaks_its_contract_is_named_in_one_line(make, message):
    with pytest.raises(ContractError) as raised:
        pipeline(Made(make)).rerank(QUESTIONS, HITS)
    assert "the reranker test_broken_parts.Made breaks its contract: it " in str(raised.value)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_question_that_failed_goes_through_no_later_reranker():
    seen = []

    def refuse(hits):
        return [Failure("too thin"), hits[1]]

    def count(hits):
        seen.append(len(hits))
        return hits

    stages = pipeline(Made(refuse), Made(count)).rerank(QUESTIONS, HITS)
    assert [stage.hits for stage in stages] == [[Failure("too thin"), HITS[1]]] * 2
    assert seen == [1]
    before = [Failure("unreadable"), HITS[1]]
    assert pipeline(Made(count)).rerank(QUESTIONS, before)[0].hits == before


def test_an_error_about_one_question_costs_no_other():
    def pick(hits):
        if len(hits) > 1:  # found out question by question
            raise RuntimeError("a broken table\nof ranks")
        return [hits[0][:1]]

    def refuse(hits):
        raise RuntimeError("a broken table\nof ranks")

    kept = [[Hit("a", 2.0, 1)]] * 2
    assert pipeline(Made(pick)).rerank(QUESTIONS, HITS)[0].hits == kept
    reason = Failure("the reranker Made: a broken table")
    assert pipeline(Made(refuse)).rerank(QUESTIONS, HITS)[0].hits == [reason] * 2


class Stingy(Reader):
    """Answers the first prompt alone."""

    fingerprint = weights = "stingy"

    class Config(Reranker.Config):
        """No options."""

    def __init__(self, config):
        pass

    def generate(self, prompts):
        return [Generation("granite")][: len(prompts)]


class Partial(Stingy):
    """Has forgotten how to write."""

    generate = Reader.generate


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("reader={name: odd}", "Stingy breaks its contract: it returned 1 results from generate"),
        ("reader={name: abstract}", "'abstract' (test_broken_parts:Partial) lacks generate"),
        ("reranking=[{name: odd}]", "'odd' (test_broken_parts:Stingy) is not a subclass of"),
    ],
)
def test_on_the_command_line_it_is_one_line_and_exit_code_2(
    settings, message, tmp_path, monkeypatch, capsys
):
    for registry, name, target in (
        (READERS, "odd", "Stingy"),
        (READERS, "abstract", "Partial"),
        (RERANKERS, "odd", "Stingy"),
    ):
        monkeypatch.setitem(registry._entries, name, Entry(f"{__name__}:{target}", "for tests"))
    data = write_data(tmp_path / "data")
    arguments = ["run", "--dataset", "jsonl", "--data", data, "--pipeline", "bm25-retrieval"]
    code, _, err = call(capsys, *arguments, "--set", settings, "--output", tmp_path / "run")
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
