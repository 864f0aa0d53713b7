"""Late-interaction retrieval: MaxSim over the token vectors of query forms and passages."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from ravqa.build import build_part, part_config
from ravqa.cache import Store
from ravqa.config import Part, Strict, fingerprint
from ravqa.datasets.corpus import Corpus
from ravqa.encoders.base import Vectors
from ravqa.errors import UserError
from ravqa.images import image_bytes
from ravqa.index.exact import read_meta
from ravqa.paths import cache_dir
from ravqa.records import Hit, Question
from ravqa.registry import ENCODERS, INDEXES
from ravqa.retrieval.base import Progress, to_hits
from ravqa.retrieval.query_text import Form, QueryText, forms

_CHUNK = 256  # passages encoded at a time
_MAX_SCORES = 2**26  # scores in memory at a time (256 MB)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one question is asked: all that its ranking depends on, and its forms."""

    content: Any
    forms: Sequence[Form]
    question: Question


class LateInteractionRetriever:
    """Encodes the corpus once (kept in the cache folder) and scores every query form by MaxSim.

    Rankings are kept on disk too, by what was asked (the query's forms, which hold everything that
    came from question and image), of which corpus, with which encoder and settings.

    An encoder that sees images (`encode_question`) is given question and image; its query is one
    form, and its scores are plain MaxSim sums. For a text encoder the image enters as text:

    A form's score is divided by the sum of its query weights, so that long forms do not outweigh
    short ones; the forms' weighted mean is the passage's score (at most about 1).
    """

    class Config(Strict):
        """Options: the encoder, the index, and what goes into the query."""

        encoder: Part = Part(name="token-bert")
        index: Part = Part(name="exact")
        query: QueryText = QueryText()
        depth: int = Field(default=200, ge=1)

        @model_validator(mode="after")
        def _check_parts(self) -> Self:
            part_config(ENCODERS, self.encoder, "retriever.encoder")
            part_config(INDEXES, self.index, "retriever.index")
            return self

    def __init__(self, config: Config):
        """Load the encoder.

        Raises:
            UserError: an unknown part or option, a missing package or model.
        """
        self.config = config
        self._encoder = build_part(ENCODERS, config.encoder, "retriever.encoder")
        self._index_class = INDEXES.get(config.index.name)
        self._index_config = part_config(INDEXES, config.index, "retriever.index")
        self._sees = hasattr(self._encoder, "encode_question")
        self._index: Any = None
        self._corpus = ""
        self._store = Store("rankings")
        self.weights = self._encoder.weights
        self.fingerprint = fingerprint(
            "late-interaction/1",
            self._encoder.fingerprint,
            config.index.model_dump(),
            config.query.model_dump(),
            config.depth,
        )

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Open the corpus's index in the cache, or encode the corpus and build it.

        Raises:
            UserError: there is no corpus.
        """
        if corpus is None:
            raise UserError(
                "the retriever late-interaction needs passages: name a file with --corpus, "
                "or choose --retriever none"
            )
        key = fingerprint(
            corpus.fingerprint, self._encoder.fingerprint, self.config.index.model_dump()
        )
        path = cache_dir("indexes") / key
        if read_meta(path) is None:
            shutil.rmtree(path, ignore_errors=True)
            self._build(corpus, path, key, progress)
        self._index = self._index_class(path, self._index_config)
        self._corpus = corpus.fingerprint

    def _build(self, corpus: Corpus, path: Any, key: str, progress: Progress | None) -> None:
        ids = list(corpus)
        # Encoded in order of length (little padding), stored in corpus order.
        done = 0

        def count(n: int) -> None:
            nonlocal done
            done += n
            if progress:
                progress("encoding passages", done, len(ids))

        def embeddings() -> Any:
            for start in range(0, len(ids), _CHUNK):
                texts = [corpus[i].content for i in ids[start : start + _CHUNK]]
                yield from self._encoder.encode_document(texts, count)

        self._index_class.build(
            ids,
            embeddings(),
            path,
            dim=self._encoder.dim,
            config=self._index_config,
            fingerprint=key,
        )

    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """The k best passages per question, best first."""
        depth = max(k, self.config.depth)
        plans = [self._plan(question) for question in questions]
        keys = [fingerprint(self.fingerprint, self._corpus, depth, plan.content) for plan in plans]
        known = self._store.get(keys)
        new = {key: plan for key, plan in zip(keys, plans, strict=True) if key not in known}
        if new:
            made = dict(zip(new, self._search(list(new.values()), depth), strict=True))
            self._store.put(made)
            known.update(made)
        return [to_hits(known[key][:k]) for key in keys]

    def _plan(self, question: Question) -> _Plan:
        if self._sees:
            image = None if question.image is None else image_bytes(question.image)
            content = [question.question, question.instruction, image and fingerprint(image)]
            return _Plan(content, [Form(1.0, ((),))], question)
        found = forms(question, self.config.query)
        return _Plan([asdict(form) for form in found], found, question)

    def _vectors(self, plans: Sequence[_Plan]) -> list[Vectors]:
        """Query vectors of every alternative of every form, in order."""
        if self._sees:
            return list(self._encoder.encode_question([plan.question for plan in plans]))
        spans = [a for plan in plans for form in plan.forms for a in form.alternatives]
        return [_unit(v) for v in self._encoder.encode_query(spans)]

    def _search(self, plans: Sequence[_Plan], depth: int) -> list[list[tuple[str, float]]]:
        """The `depth` best passages per query plan, best first; ties in corpus order."""
        vectors = self._vectors(plans)
        out: list[list[tuple[str, float]]] = []
        # Queries are scored together, as many as keep the score matrix within bounds.
        step = max(1, _MAX_SCORES // len(self._index))
        rows = (
            row
            for start in range(0, len(vectors), step)
            for row in self._index.scores(vectors[start : start + step])
        )
        for plan in plans:
            total = np.zeros(len(self._index))
            for form in plan.forms:
                scores = [next(rows) for _ in form.alternatives]
                total += form.weight * np.max(scores, axis=0)
            best = np.argsort(-total, kind="stable")[:depth]
            out.append([(self._index.ids[i], float(total[i])) for i in best])
        return out


def _unit(vectors: Vectors) -> Vectors:
    """Rows scaled so that their lengths (the weights) sum to 1."""
    total = float(np.linalg.norm(vectors, axis=1).sum())
    return vectors / total if total > 0 else vectors
