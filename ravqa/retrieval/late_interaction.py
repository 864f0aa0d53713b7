"""Late-interaction retrieval: MaxSim over the token vectors of query forms and passages."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic import Field

from ravqa.cache import Store
from ravqa.config import Part, Strict, fingerprint
from ravqa.datasets.corpus import Corpus
from ravqa.encoders.base import Vectors
from ravqa.errors import UserError
from ravqa.index.exact import read_meta
from ravqa.paths import cache_dir
from ravqa.records import Hit, Question
from ravqa.registry import ENCODERS, INDEXES
from ravqa.retrieval.base import Progress, to_hits
from ravqa.retrieval.query_text import Form, QueryText, forms

_CHUNK = 256  # passages encoded at a time


class LateInteractionRetriever:
    """Encodes the corpus once (kept in the cache folder) and scores every query form by MaxSim.

    Rankings are kept on disk too, by what was asked (the query's forms, which hold everything that
    came from question and image), of which corpus, with which encoder and settings.

    A form's score is divided by the sum of its query weights, so that long forms do not outweigh
    short ones; the forms' weighted mean is the passage's score (at most about 1).
    """

    class Config(Strict):
        """Options: the encoder, the index, and what goes into the query."""

        encoder: Part = Part(name="token-bert")
        index: Part = Part(name="exact")
        query: QueryText = QueryText()
        depth: int = Field(default=200, ge=1)

    def __init__(self, config: Config):
        """Load the encoder.

        Raises:
            UserError: an unknown part or option, a missing package or model.
        """
        from ravqa.build import build_part, part_config

        self.config = config
        self._encoder = build_part(ENCODERS, config.encoder, "retriever.encoder")
        self._index_class = INDEXES.get(config.index.name)
        self._index_config = part_config(INDEXES, config.index, "retriever.index")
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
        plans = [forms(question, self.config.query) for question in questions]
        keys = [
            fingerprint(self.fingerprint, self._corpus, depth, [asdict(form) for form in p])
            for p in plans
        ]
        known = self._store.get(keys)
        new = {key: plan for key, plan in zip(keys, plans, strict=True) if key not in known}
        if new:
            made = dict(zip(new, self._search(list(new.values()), depth), strict=True))
            self._store.put(made)
            known.update(made)
        return [to_hits(known[key][:k]) for key in keys]

    def _search(self, plans: Sequence[Sequence[Form]], depth: int) -> list[list[tuple[str, float]]]:
        """The `depth` best passages per query plan, best first."""
        spans = [a for plan in plans for form in plan for a in form.alternatives]
        vectors = [_unit(v) for v in self._encoder.encode_query(spans)]
        found = self._index.search(vectors, min(depth, len(self._index)))
        out = []
        position = 0
        for plan in plans:
            count = sum(len(form.alternatives) for form in plan)
            own = slice(position, position + count)
            out.append(self._fuse(plan, vectors[own], found[own])[:depth])
            position += count
        return out

    def _fuse(
        self,
        plan: Sequence[Form],
        vectors: Sequence[Vectors],
        found: Sequence[Sequence[tuple[str, float]]],
    ) -> list[tuple[str, float]]:
        """Weighted mean over forms of the best alternative, over the union of their candidates."""
        candidates = sorted(
            {passage_id for hits in found for passage_id, _ in hits}, key=self._order
        )
        # Each candidate is scored under every form, also where it was not among that form's best.
        known = [dict(hits) for hits in found]
        missing = [[c for c in candidates if c not in scores] for scores in known]
        rescored = self._index.score(list(vectors), missing)
        for scores, ids, values in zip(known, missing, rescored, strict=True):
            scores.update(zip(ids, values, strict=True))
        total = np.zeros(len(candidates))
        position = 0
        for form in plan:
            rows = known[position : position + len(form.alternatives)]
            position += len(form.alternatives)
            best = np.max([[row[c] for c in candidates] for row in rows], axis=0)
            total += form.weight * best
        order = np.argsort(-total, kind="stable")
        return [(candidates[i], float(total[i])) for i in order]

    def _order(self, passage_id: str) -> int:
        return int(self._index.position(passage_id))


def _unit(vectors: Vectors) -> Vectors:
    """Rows scaled so that their lengths (the weights) sum to 1."""
    total = float(np.linalg.norm(vectors, axis=1).sum())
    return vectors / total if total > 0 else vectors
