"""The conformance suite of retrievers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ravqa.core.errors import UserError
from ravqa.core.records import Description, Hit, Passage, Question, Tag
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import EncodingStats
from ravqa.retrievers.base import Retriever, checked_hits
from ravqa.testing.asserting import (
    conformance,
    refused,
    require,
    require_names,
    require_thread_safe,
)

_PASSAGES = {
    "Koala": "Koalas eat the leaves of eucalyptus trees.",
    "Lighthouse": "A lighthouse of stone guards the harbour.",
    "Otter": "Otters eat fish and live at rivers.",
    "Moose": "The moose eats twigs and water plants in the taiga.",
    "Harbour": "Ships unload their goods in the harbour.",
}


def small_corpus() -> Corpus:
    """Return five passages with titles."""
    return Corpus(
        Passage(f"p{i}", text, title=title) for i, (title, text) in enumerate(_PASSAGES.items())
    )


def small_questions() -> list[Question]:
    """Return three questions, two of them with a description of their image."""
    koala = Description(tags=(Tag(("koala", "koala bear"), 0.9),), caption="a koala in a tree")
    harbour = Description(tags=(Tag(("lighthouse",), 0.7), Tag(("harbour",), 0.2)))
    return [
        Question(1, "What does this animal eat?", answers=("leaves",), description=koala),
        Question(2, "What guards the harbour?", answers=("lighthouse",), description=harbour),
        Question(3, "Where do otters live?", answers=("rivers",)),
    ]


@conformance(Retriever)
def check_retriever(
    retriever: Retriever,
    corpus: Corpus | None = None,
    questions: Sequence[Question] | None = None,
) -> None:
    """Check a retriever: it is prepared for a few passages and asked a few questions.

    Args:
        retriever: the retriever, built.
        corpus: the passages; None for five of the suite's own.
        questions: what is asked; None for three of the suite's own.

    Raises:
        AssertionError: the retriever breaks the contract of `ravqa.retrievers.base.Retriever`.
    """
    name = type(retriever).__name__
    require_names(retriever, "fingerprint")
    require(isinstance(retriever.weights, str), f"{name}.weights is a text, blank without weights")
    require(isinstance(retriever.supports_images, bool), f"{name}.supports_images is True or False")
    corpus = small_corpus() if corpus is None else corpus
    questions = small_questions() if questions is None else list(questions)
    fingerprint = retriever.fingerprint
    if retriever.encodes:
        made = retriever.encode(corpus)
        require(
            made is None or isinstance(made, EncodingStats),
            f"{name}.encode returns statistics, or None where all is indexed",
        )
    else:
        refused(
            UserError,
            lambda: retriever.encode(corpus),
            f"{name} does not set `encodes`: `encode` raises UserError",
        )
    retriever.prepare(corpus)
    for k in (1, 3, 100):
        found = _asked(retriever, questions, k)
        unknown = [hit.passage_id for own in found for hit in own if hit.passage_id not in corpus]
        require(not unknown, f"{name} finds {unknown}, which the corpus does not have")
        require(
            _asked(retriever, questions, k) == found,
            f"{name} finds the same passages for the same questions",
        )
        alone = [_asked(retriever, [question], k)[0] for question in questions]
        require(
            [_ids(own) for own in alone] == [_ids(own) for own in found],
            f"{name} finds the same passages whatever is asked with a question, in order",
        )
    parts = [[question] for question in questions] + [list(questions)]
    calls = [partial(_asked, retriever, part, k) for part in parts for k in (1, 3)]
    require_thread_safe(retriever, "retrieve", calls, lambda some, others: some == others)
    require(list(retriever.retrieve([], 3)) == [], f"{name}.retrieve returns [] for no questions")
    require(retriever.fingerprint == fingerprint, f"{name}.fingerprint does not change by use")
    for what, stats in retriever.encoded.items():
        require(isinstance(stats, EncodingStats), f"{name}.encoded[{what!r}] are EncodingStats")


def _asked(retriever: Retriever, questions: Sequence[Question], k: int) -> list[list[Hit]]:
    return checked_hits(retriever, retriever.retrieve(questions, k), len(questions), k)


def _ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage_id for hit in hits]
