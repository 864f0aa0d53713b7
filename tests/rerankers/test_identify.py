"""The reader that picks a name: probabilities by hand from what it says of each name."""

import math

import pytest

from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Passage, Question
from ravqa.readers.base import Abilities, Reader
from ravqa.rerankers.identify import Identify


class Knows(Reader):
    """A reader whose probability of each name is written down."""

    fingerprint, weights, deterministic, scores_answers = "knows", "", True, True

    def __init__(self, **chances):
        super().__init__()
        self.chances = chances
        self.prompts = []

    def generate(self, prompts):
        raise AssertionError("it is asked for probabilities alone")

    def score(self, prompts, answers):
        self.prompts += [prompt.text for prompt in prompts]
        found = [self.chances.get(answer, Failure("no such name")) for answer in answers]
        return [f if isinstance(f, Failure) else math.log(f) for f in found]


def found(*articles):
    return [
        (Hit(f"p{i}", 1 - i / 10, i), Passage(f"p{i}", "text", title=title, article=article))
        for i, (article, title) in enumerate(articles, 1)
    ]


OAKS = found(("A", "Ash"), ("A", "Ash"), ("B", "Oak"), ("C", None), ("B", "Oak"))
QUESTION = Question(1, "How tall does this tree get?")


def ordered(reader, candidates=OAKS, **options):
    made = Identify(Identify.Config(cache=False, **options), reader)
    [hits] = made.rerank([QUESTION], [candidates])
    return [(h.passage_id, round(h.score, 6), h.as_retrieved) for h in hits]


def test_the_likeliest_name_comes_first_with_its_share():
    reader = Knows(Ash=0.2, Oak=0.5, C=0.1)
    assert ordered(reader) == [
        ("p3", 0.625, 0.7),
        ("p5", 0.625, 0.5),
        ("p1", 0.25, 0.9),
        ("p2", 0.25, 0.8),
        ("p4", 0.125, 0.6),
    ]
    assert len(reader.prompts) == 3
    assert "Question about the image: How tall does this tree get?" in reader.prompts[0]
    assert "- Ash\n- Oak\n- C\n" in reader.prompts[0]


def test_few_articles_are_shown_and_kept():
    assert [i for i, *_ in ordered(Knows(Ash=0.2, Oak=0.5), articles=2)][-1] == "p4"
    assert ordered(Knows(Ash=0.2, Oak=0.5), articles=2)[-1][1] == 0
    kept = ordered(Knows(Ash=0.2, Oak=0.5, C=0.6), keep=1)
    assert [i for i, *_ in kept] == ["p4"]


def test_a_sole_article_is_certain_and_nobody_is_asked():
    reader = Knows()
    assert ordered(reader, OAKS[:2]) == [("p1", 1.0, 0.9), ("p2", 1.0, 0.8)]
    assert ordered(reader, []) == []
    assert reader.prompts == []


def test_a_question_that_cannot_be_asked_fails_alone():
    made = Identify(Identify.Config(cache=False), Knows(Ash=0.2, Oak=0.5, C=0.1))
    other = found(("A", "Ash"), ("D", "Elm"))
    failed, good = made.rerank([QUESTION, QUESTION], [other, OAKS])
    assert failed == Failure("no such name")
    assert good[0].passage_id == "p3"


def test_a_reader_without_probabilities_is_refused():
    problem = Identify.Config().reader_problem(Abilities(scores_answers=False))
    assert problem.startswith("asks a reader for the probability of names, which this reader does")
    reader = Knows()
    reader.scores_answers = False
    with pytest.raises(UserError, match="the reranker identify asks a reader for the probability"):
        Identify(Identify.Config(), reader)
