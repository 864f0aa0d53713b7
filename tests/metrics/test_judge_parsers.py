"""Replies of a language model are read as released judges read them; see tests/data."""

import math

import pytest
from released_rules import given
from scripted_server import chat

from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.metrics import METRICS
from ravqa.metrics.base import AnswerRecord
from ravqa.metrics.judges.base import Judge, NotAttempted
from ravqa.metrics.judges.llm import LLMJudge
from ravqa.metrics.judges.parsers import PARSERS
from ravqa.metrics.released import pixelrag, pmsr, promsa

REPLIES = given("judges")["outputs"]


@pytest.mark.parametrize("row", REPLIES, ids=lambda row: row["output"])
def test_a_reply_is_read_as_by_the_released_code(row):
    reply = row["output"]
    assert pixelrag.label_of(reply) == row["pixelrag.worldvqa"]
    assert pixelrag.label_of_letter(reply) == row["pixelrag.simpleqa"]
    verdict = pmsr.verdict_of(reply)
    assert verdict == (row["pmsr.llm"]["judge"] or None)
    assert (verdict is not None) == row["pmsr.llm"]["counted"]
    assert ((verdict or "").lower() == "yes") == row["pmsr.llm"]["correct"]
    assert promsa.accepts(reply) == row["promsa"]


class Replying(Judge):
    """A judge whose replies are the candidates; "failed" is a call that failed."""

    def __init__(self, parser):
        self.name = self.fingerprint = parser
        self.read = PARSERS[parser].read

    def judge(self, questions, references, candidates):
        return [Failure("lost") if c == "failed" else self.read(c) for c in candidates]


@pytest.mark.parametrize(
    ("rule", "parser", "failed", "wanted"),
    [
        ("pmsr.llm", "pmsr.llm", 0, {"counted": 10, "right": 3}),
        ("pmsr.llm", "pmsr.llm", 3, {"counted": 10, "right": 3}),
        ("pixelrag.judge", "pixelrag.worldvqa", 3, {"counted": 49, "right": 10}),
    ],
)
def test_the_mean_is_over_the_replies_that_the_released_code_counts(rule, parser, failed, wanted):
    released = given("judges")["aggregates"]
    assert (released["pmsr.llm"]["of"], released["pmsr.llm"]["correct"]) == (10, 3)
    pixelrags = released["pixelrag.worldvqa (three more calls fail)"]
    assert (pixelrags["n"], pixelrags["correct"]) == (49, 10)
    metric = METRICS.get(rule)()
    replies = [row["output"] for row in REPLIES] + ["failed"] * failed
    questions = [
        Question(i, "q", answers=("x",), question_type="automatic") for i in range(len(replies))
    ]
    records = [AnswerRecord(reply) for reply in replies]
    outcomes = metric.scores(questions, records, Replying(parser))
    kept = metric.counted(records, outcomes)
    assert {"counted": sum(kept), "right": outcomes.count(1.0)} == wanted
    silent = sum(isinstance(outcome, NotAttempted) for outcome in outcomes)
    assert silent == (pixelrags["unattempted"] if rule == "pixelrag.judge" else 0)


def test_pmsrs_judge_sees_the_references_as_one_text():
    metric = METRICS.get("pmsr.llm")()
    number = {"wikidata": 5, "range": [4, 6]}
    texts = Question(1, "q", answers=("oak", "elm"), answer_eval=("oak", "elm"))
    numbers = Question(2, "q", answers=("5",), answer_eval=(number,))
    lists = Question(3, "q", answers=("oak", "oak tree"), question_type="automatic")
    asked = [metric.asked(question, "an oak") for question in (texts, numbers, lists)]
    assert [pair.reference for [pair] in asked] == [
        "['oak', 'elm']",
        "{'wikidata': 5, 'range': [4, 6]}",
        "['oak', 'oak tree']",
    ]


def llm(server, **options):
    return LLMJudge(LLMJudge.Config(url=server.url, model="m", **options))


@pytest.mark.parametrize(
    ("parser", "labels", "reply", "wanted"),
    [
        ("pixelrag.worldvqa", 3, "Label: Correct", 1.0),
        ("pixelrag.worldvqa", 3, "**Label:** Unattempted", NotAttempted()),
        ("pixelrag.worldvqa", 3, "none of them", 0.0),
        ("pixelrag.simpleqa", 3, "<think>A</think>B", 0.0),
        ("pmsr.llm", 2, "<reason>so</reason><judge>yes</judge>", 1.0),
        ("pmsr.llm", 2, "yes", math.nan),
        ("promsa", 2, "<judge>Yes</judge>", 1.0),
        ("promsa", 2, "Yes", 0.0),
    ],
)
def test_the_judge_llm_reads_replies_by_a_parser_and_its_name_says_so(
    serve, parser, labels, reply, wanted
):
    server = serve(lambda *_: chat(reply))
    judge = llm(server, parser=parser, labels=labels)
    [found] = judge.judge(["What {is} it?"], ["an oak"], ["oak"])
    assert found == pytest.approx(wanted, nan_ok=True)
    assert type(found) is type(wanted)
    [body] = server.bodies
    assert body["messages"][-1]["content"].startswith(
        "Question about an image: What {is} it?\nReference answer: an oak\nCandidate answer: oak\n"
    )
    assert body["max_tokens"] == 1000
    assert judge.name == f"llm (m; ravqa's prompt, parser {parser})"
    own = llm(server, parser=parser, labels=labels, prompt="{candidate}?")
    assert own.name == f"llm (m; a prompt of one's own, parser {parser})"
    assert len({judge.fingerprint, own.fingerprint, llm(server, labels=labels).fingerprint}) == 3


@pytest.mark.parametrize("parser", PARSERS)
def test_a_prompt_asks_for_replies_that_its_parser_reads(parser):
    """Each reply that the prompt names is read as what it says."""
    known = PARSERS[parser]
    last = known.prompt.splitlines()[-1]
    forms = {
        "pixelrag.worldvqa": ("Label: Correct", "Label: Incorrect", "Label: Unattempted"),
        "pixelrag.simpleqa": ("A", "B", "C"),
    }.get(parser, ("<judge>Yes</judge>", "<judge>No</judge>"))
    assert len(forms) == known.labels
    assert all(form in last for form in forms)
    found = [known.read(form) for form in forms]
    assert found == [1.0, 0.0, 0.0][: len(forms)]
    assert [isinstance(score, NotAttempted) for score in found] == [False, False, True][
        : len(forms)
    ]


def test_a_parser_for_another_number_of_labels_is_refused(serve):
    server = serve(lambda *_: chat("yes"))
    with pytest.raises(UserError) as error:
        llm(server, parser="promsa", labels=3)
    assert str(error.value) == "the judge llm: parser promsa: it is for labels: 2"
    with pytest.raises(UserError, match="it is for labels: 3"):
        llm(server, parser="pixelrag.worldvqa")
