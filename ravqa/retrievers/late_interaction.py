"""Late-interaction retrieval: MaxSim over the token vectors of query forms and passages."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ravqa.core.cache import Memo, Store
from ravqa.core.contracts import raised_by
from ravqa.core.devices import processes
from ravqa.core.errors import DamagedError, DataError, UserError
from ravqa.core.factory import Session, build_part, part_config
from ravqa.core.failures import failures
from ravqa.core.locations import cache_dir, remove
from ravqa.core.progress import Progress
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import Part, Strict, fingerprint
from ravqa.core.texts import number_of
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.galleries import missing_images, passage_image
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import (
    EncodingStats,
    Label,
    Labelled,
    Span,
    Vectors,
    checked_vectors,
)
from ravqa.encoders.store import EmbeddingStore, corpus_embeddings, one_at_a_time
from ravqa.images.decode import image_bytes
from ravqa.indexes import INDEXES
from ravqa.indexes.base import (
    Index,
    Ranking,
    build_index,
    checked_index,
    checked_rankings,
    checked_scores,
)
from ravqa.indexes.segmented.store import FORMAT, remove_half_built
from ravqa.retrievers.base import Retriever, ranking_of, to_hits
from ravqa.retrievers.explain import Explanation, QueryPart
from ravqa.retrievers.query_text import Form, QueryText, forms

if TYPE_CHECKING:
    from PIL.Image import Image

_log = logging.getLogger(__name__)

_VERIFIED = 2**28  # bytes of an index in the cache that is read whole before it is used
_SHOWN = 80  # characters of a question in a message
_MAX_SCORES = 2**26  # scores in memory at a time (256 MB)

_Queries = list[list[Vectors]]
"""The vectors of each alternative of each form of one plan."""
_Parts = list[tuple[float, list[Vectors]]]
"""The weight of each form of one plan, and those of its alternatives that have vectors."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The query of one question: its forms, and all that its ranking depends on."""

    content: Any
    forms: Sequence[Form]
    question: Question


class LateInteractionRetriever(Retriever):
    """A retriever that encodes the corpus once and scores every query form by MaxSim.

    The index is kept in the cache folder. Rankings are kept on disk too, by query (its forms,
    which contain everything taken from question and image), corpus, encoder and settings.

    `retrieve` may be called from several threads; one of them encodes at a time.

    An encoder that sees images receives question and image; its query is one form, and its scores
    are plain MaxSim sums. For a text encoder the image enters as text:

    A form's score is divided by the sum of its query weights, so that long forms do not outweigh
    short ones; the forms' weighted mean is the passage's score (at most about 1).
    """

    class Config(Strict):
        """Options.

        Attributes:
            encoder: turns texts and images into vectors.
            index: stores the passages' vectors and searches them.
            query: what goes into the query of an encoder that sees no images.
            depth: passages that are found for each form of a query, before their scores are
                combined; more if the pipeline asks for more.
        """

        builds_parts: ClassVar[bool] = True
        encoder: Part = Part(name="token-bert")
        index: Part = Part(name="auto")
        query: QueryText = QueryText()
        depth: int = Field(default=200, ge=1)

        @model_validator(mode="after")
        def _check_parts(self) -> Self:
            part_config(ENCODERS, self.encoder, "retriever.encoder")
            part_config(INDEXES, self.index, "retriever.index")
            return self

    config: Config

    def __init__(self, config: Config, *, session: Session | None = None):
        """Load the encoder, or take it from the session.

        Raises:
            UserError: a part or option is unknown, or a package or model is missing.
        """
        self.config = config
        self.encoder = build_part(ENCODERS, config.encoder, "retriever.encoder", session=session)
        self._index_class = INDEXES.get(config.index.name)
        self._index_config = part_config(INDEXES, config.index, "retriever.index")
        self._encoding = threading.Lock()  # tokenizers cannot be used by two threads at once
        self._index: Index | None = None
        self._corpus = ""
        self._passages: Corpus | None = None
        self._memo = Memo("rankings", back=ranking_of)
        self.stores = self._memo.stores
        self._statistics = Store("encodings")
        self._encoded = {"queries": EncodingStats()}
        self.weights = self.encoder.weights
        self.fingerprint = fingerprint(
            "late-interaction/1",
            self.encoder.fingerprint,
            config.index.model_dump(),
            config.query.model_dump(),
            config.depth,
        )

    @classmethod
    def depth(cls, config: Config) -> int:
        """Return the option `depth`."""
        return config.depth

    @classmethod
    def explains(cls, config: Config) -> bool:
        """Return whether the encoder can label its vectors."""
        return ENCODERS.get(config.encoder.name).labels

    @property
    def explainer(self) -> Retriever | None:
        """This retriever, if its encoder can label its vectors."""
        return self if self.encoder.labels else None

    @property
    def supports_images(self) -> bool:
        """Whether the encoder looks at questions' images."""
        return self.encoder.supports_images

    @property
    def encodes(self) -> bool:
        """True: this retriever encodes passages."""
        return True

    @property
    def encoded(self) -> Mapping[str, EncodingStats]:
        """Statistics of the corpus's "passages", if known, and of the "queries"."""
        return self._encoded

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Use the corpus's own index, open the cached one, or encode the corpus and build one.

        Raises:
            DataError: images of passages are missing, or a passage is an image without text and
                the encoder does not see it.
            UserError: the corpus is missing.
        """
        if corpus is None:
            raise UserError(
                "the retriever late-interaction needs passages: give a file with --corpus, "
                "or choose --retriever none"
            )
        ready = self._ready(corpus)
        if ready is not None:
            content = ready.content or corpus.fingerprint
            self._index, self._corpus, self._passages = ready, content, corpus
            return
        key, path = self._place(corpus)
        vectors = self._vectors_of(corpus)
        self._index = self._cached(path, key)
        if self._index is None:
            with one_at_a_time(vectors) as state:
                self._index = self._cached(path, key, warn=False)
                if self._index is None:
                    self._make(corpus, vectors, path, key, state, progress)
            self._index = self._index or self._opened(path, key)
        self._corpus = corpus.fingerprint
        self._passages = corpus
        for name, stats in self._statistics.get([vectors.name]).items():
            try:
                self._encoded["passages"] = EncodingStats.read(stats)
            except ValueError:
                self._statistics.drop_damaged([name])

    def encode(self, corpus: Corpus, progress: Progress | None = None) -> EncodingStats | None:
        """Encode what is missing of the corpus, for `prepare` to index; None if it is indexed.

        Several processes (torchrun, accelerate) that all call this share the work.
        """
        if self._ready(corpus) is not None:
            return None
        _, path = self._place(corpus)
        vectors = self._vectors_of(corpus)
        with one_at_a_time(vectors):
            if self._index_class.built(path):
                return None
            self._check_seen(corpus)
            return self._embeddings(corpus, vectors, progress).stats

    @contextmanager
    def embedded(
        self, corpus: Corpus, progress: Progress | None = None
    ) -> Iterator[EmbeddingStore]:
        """Provide the corpus's vectors for an index of the caller's, encoding missing ones.

        They are deleted if the block ends without an error, and otherwise reused by the next call.
        """
        vectors = self._vectors_of(corpus)
        with one_at_a_time(vectors):
            store = self._embeddings(corpus, vectors, progress)
            yield store
            store.remove()

    def _cached(self, path: Path, key: str, *, warn: bool = True) -> Index | None:
        """Return the index in the cache; None if there is none that can be used.

        All files of an index of up to 256 MiB are compared with their checksums. Of a larger one,
        the small files are (`Index.open`), and the sizes of the others.
        """
        if not self._index_class.built(path):
            return None
        try:
            index = self._opened(path, key)
            if _bytes_of(path) <= _VERIFIED and (faults := index.verify()):
                index.close()
                raise DamagedError(f"the index in {path} is damaged: {faults[0]}")
            return index
        except DamagedError as e:
            if warn:
                _log.warning("%s (in the cache: it is made again)", e)
            return None

    def _make(
        self,
        corpus: Corpus,
        vectors: Path,
        path: Path,
        key: str,
        state: Any,
        progress: Progress | None,
    ) -> None:
        """Encode the corpus and build the index in the cache."""
        self._check_seen(corpus)
        together = self._index_class.built_together(self._index_config)
        # Shards that a killed process finished are kept; nothing else that lies there is.
        if state.is_main_process and (not together or self._index_class.built(path)):
            remove(path)
        if state.is_main_process:
            remove_half_built(path.parent)
        store = self._embeddings(corpus, vectors, progress)
        if together or state.is_main_process:
            self._build(corpus, store, path, key, progress)
        state.wait_for_everyone()
        if state.is_main_process:
            self._statistics.put({store.path.name: asdict(store.stats)})
            store.remove()

    def _check_seen(self, corpus: Corpus) -> None:
        """Raise DataError if images are missing, or are all that a passage has and not seen."""
        if self.encoder.supports_passage_images:
            images = [
                image
                for passage in corpus.stream()
                # Encoders take encoded bytes too, although no file that is read has them.
                if isinstance(passage.image, Path) and (image := passage_image(passage))
            ]
            if missing := missing_images(images, "passages"):
                raise DataError(f"{corpus.source}: {missing}")
            return
        for passage in corpus.stream():
            if passage.image is not None and not passage.content.strip():
                raise DataError(
                    f"{corpus.source}: the passage {passage.passage_id!r} is an image without "
                    f"text, which the encoder {self.config.encoder.name} does not see: give it a "
                    "text, or choose an encoder that sees images of passages"
                )

    def _opened(self, path: Path, key: str) -> Index:
        with raised_by("index", self._index_class, "from open"):
            index = self._index_class.open(path, self._index_config, fingerprint=key)
        return checked_index(index, self._index_class)

    def _ready(self, corpus: Corpus) -> Index | None:
        """Return the index that comes with a corpus, if it suits this retriever."""
        found: Index | None = corpus.index_for(
            self.encoder.passages_fingerprint, self.config.index.name
        )
        return found

    def _place(self, corpus: Corpus) -> tuple[str, Path]:
        """Return key and folder of the corpus's index."""
        encoder = self.encoder.passages_fingerprint
        # Search settings are not part of the key: another effort opens the same index.
        # An index of an older format is left alone, and rebuilt beside it.
        kind = f"{self.config.index.name}/{FORMAT}"
        key = fingerprint(
            corpus.fingerprint, encoder, kind, self._index_class.fixed(self._index_config)
        )
        return key, cache_dir("indexes") / key

    def _vectors_of(self, corpus: Corpus) -> Path:
        """Return the folder of the corpus's vectors until its index is built."""
        encoder = self.encoder.passages_fingerprint
        return cache_dir("embeddings") / fingerprint(corpus.fingerprint, encoder)

    def _embeddings(
        self, corpus: Corpus, folder: Path, progress: Progress | None
    ) -> EmbeddingStore:
        def count(done: int, total: int) -> None:
            if progress:
                progress("encoding passages", done, total)

        try:
            return corpus_embeddings(self.encoder, corpus, folder, count)
        except DamagedError as e:  # in all cooperating processes
            state = processes()
            if state.is_main_process:
                _log.warning("%s (in the cache: they are made again)", e)
                remove(folder)
            state.wait_for_everyone()
            return corpus_embeddings(self.encoder, corpus, folder, count)

    def _build(
        self,
        corpus: Corpus,
        store: EmbeddingStore,
        path: Path,
        key: str,
        progress: Progress | None,
    ) -> None:
        build_index(
            self._index_class,
            list(corpus),
            store,
            path,
            dim=self.encoder.dim,
            config=self._index_config,
            fingerprint=key,
            progress=progress,
        )

    def retrieve(
        self, questions: Sequence[Question], k: int, *, allowed_ids: Iterable[str] | None = None
    ) -> list[list[Hit]]:
        """Return the k best passages per question, best first.

        Args:
            allowed_ids: search only these passages; unknown ids are ignored. Such rankings are not
                kept on disk.

        Raises:
            PromptError: the encoder cannot process a question or its image.
        """
        if self._index is None:
            raise ValueError("call prepare(corpus) first")
        return self.rank(questions, k, self._index, self._corpus, allowed_ids)

    def rank(
        self,
        questions: Sequence[Question],
        k: int,
        index: Index,
        content: str,
        allowed_ids: Iterable[str] | None = None,
    ) -> list[list[Hit]]:
        """Return the k best passages of any index per question, best first.

        Args:
            index: of passages that this retriever's encoder encoded; it must not change meanwhile.
            content: fingerprint of the index's content, by which rankings are kept.
            allowed_ids: as in `retrieve`.
        """
        depth = max(k, self.config.depth)
        plans = [self._plan(question) for question in questions]
        if allowed_ids is not None:
            allowed = frozenset(allowed_ids)
            rankings = self._search(index, plans, depth, allowed)
            if not all(rankings) and not allowed.isdisjoint(index.ids):
                _warn_of_unknown_words(questions, rankings)
            return [to_hits(ranking[:k]) for ranking in rankings]
        keys = [fingerprint(self.fingerprint, content, depth, plan.content) for plan in plans]
        found = self._memo.get(
            keys, lambda rows: enumerate(self._search(index, [plans[i] for i in rows], depth))
        )
        if not all(found) and len(index):
            _warn_of_unknown_words(questions, found)
        return [to_hits(ranking[:k]) for ranking in found]

    def explain(self, question: Question, passage_ids: Sequence[str]) -> list[Explanation]:
        """Return which parts of the question matched which of each passage, by the score's terms.

        The passages are encoded again: an index that stores rounded vectors gives slightly
        different scores.

        Raises:
            UserError: the encoder cannot label its vectors.
            ValueError: `prepare` was not called.
            KeyError: a passage does not exist.
        """
        if self._passages is None:
            raise ValueError("call prepare(corpus) first")
        passages = [self._passages[passage_id] for passage_id in passage_ids]
        return self.explain_passages(question, passages)

    def explain_passages(
        self, question: Question, passages: Sequence[Passage]
    ) -> list[Explanation]:
        """Return explanations as `explain`, for given passages: no index or `prepare` is needed.

        Raises:
            UserError: the encoder cannot label its vectors.
        """
        if not self.encoder.labels:
            raise UserError(
                f"the encoder {self.config.encoder.name} cannot say which words its vectors are for"
            )
        plan = self._plan(question)
        vectors = iter(self._vectors([plan]))
        asked = [
            (form.weight, [(self._labelled(plan, a), next(vectors)) for a in form.alternatives])
            for form in plan.forms
        ]
        with self._encoding:
            found = self.encoder.encode_passages(passages)
            encoded = checked_vectors(self.encoder, found, len(passages))
            labelled = [self.encoder.label_passage(passage) for passage in passages]
        return [
            Explanation(
                passage.passage_id,
                own.text,
                own.labels,
                _matched(asked, _float32(own.labels, found)),
            )
            for passage, own, found in zip(passages, labelled, encoded, strict=True)
        ]

    def seen_image(self, image: Path | bytes) -> tuple[Image, tuple[int, int]] | None:
        """Return the image as the encoder receives it, and the rows and columns of its patches.

        None if the encoder makes no vectors of patches.

        Raises:
            DataError: the image cannot be decoded.
        """
        grid = self.encoder.grid
        return (self.encoder.seen_image(image), grid) if grid else None

    def _labelled(self, plan: _Plan, spans: Sequence[Span]) -> Labelled:
        with self._encoding:
            found: Labelled = (
                self.encoder.label_question(plan.question)
                if self.supports_images
                else self.encoder.label_query(spans)
            )
        return found

    def _plan(self, question: Question) -> _Plan:
        if self.supports_images:
            image = None if question.image is None else image_bytes(question.image)
            content = [question.question, question.instruction, image and fingerprint(image)]
            beside = self.encoder.seen_beside(question)
            content += [] if beside is None else [beside]
            return _Plan(content, [Form(1.0, ((),))], question)
        found = forms(question, self.config.query)
        return _Plan([asdict(form) for form in found], found, question)

    def _vectors(self, plans: Sequence[_Plan]) -> list[Vectors]:
        """Return query vectors of every alternative of every form, in order.

        Raises:
            PromptError: the encoder cannot process a question or its image.
        """
        with self._encoding, failures(f"the encoder {self.config.encoder.name}"):
            if self.supports_images:
                asked = [plan.question for plan in plans]
                found = checked_vectors(
                    self.encoder, self.encoder.encode_question(asked), len(asked)
                )
            else:
                spans = [a for plan in plans for form in plan.forms for a in form.alternatives]
                found = checked_vectors(self.encoder, self.encoder.encode_query(spans), len(spans))
            self._encoded["queries"] += found.stats
        return found if self.supports_images else [_unit(vectors) for vectors in found]

    def _search(
        self,
        index: Index,
        plans: Sequence[_Plan],
        depth: int,
        allowed: frozenset[str] | None = None,
    ) -> list[Ranking]:
        """Return the `depth` best passages per query plan, best first; ties in corpus order."""
        vectors = iter(self._vectors(plans))
        queries = [[[next(vectors) for _ in f.alternatives] for f in plan.forms] for plan in plans]
        if index.scores_all:
            return _search_all(index, plans, queries, depth, allowed)
        return _search_each(index, plans, queries, depth, allowed)


def _warn_of_unknown_words(questions: Sequence[Question], found: Sequence[Ranking]) -> None:
    """Log why questions have no passage, although there are passages to find."""
    empty = [q.question for q, ranking in zip(questions, found, strict=True) if not ranking]
    first = empty[0] if len(empty[0]) <= _SHOWN else f"{empty[0][:_SHOWN]}..."
    _log.warning(
        "the retriever late-interaction finds nothing for %s, such as %r: the encoder "
        "has no vector for any of their words",
        number_of(len(empty), "question"),
        first,
    )


def _search_all(
    index: Index,
    plans: Sequence[_Plan],
    queries: Sequence[_Queries],
    depth: int,
    allowed: frozenset[str] | None,
) -> list[Ranking]:
    """Search by the scores of every passage."""
    flat = [v for found in queries for alternatives in found for v in alternatives if len(v)]
    # Queries are scored together, as many as the bound on the score matrix allows.
    step = max(1, _MAX_SCORES // max(1, len(index)))
    rows = (
        row
        for start in range(0, len(flat), step)
        for part in [flat[start : start + step]]
        for row in _scored(index, part)
    )
    ids = index.ids
    out_of_reach = None
    if allowed is not None:
        out_of_reach = np.array([passage_id not in allowed for passage_id in ids])
    out = []
    for plan, found in zip(plans, queries, strict=True):
        total = np.full(len(ids), -np.inf)
        for form, alternatives in zip(plan.forms, found, strict=True):
            scores = [next(rows) for v in alternatives if len(v)]
            if scores:  # otherwise no word of the form counts
                total[np.isneginf(total)] = 0
                total += form.weight * np.max(scores, axis=0)
        if out_of_reach is not None:
            total[out_of_reach] = -np.inf
        best = np.argsort(-total, kind="stable")[:depth]
        out.append([(ids[i], float(total[i])) for i in best if total[i] > -np.inf])
    return out


def _search_each(
    index: Index,
    plans: Sequence[_Plan],
    queries: Sequence[_Queries],
    depth: int,
    allowed: frozenset[str] | None,
) -> list[Ranking]:
    """Search an index that finds the best passages of a query."""
    asked: list[_Parts] = []
    for plan, found in zip(plans, queries, strict=True):
        forms = zip(plan.forms, found, strict=True)
        parts = [(form.weight, [v for v in vectors if len(v)]) for form, vectors in forms]
        asked.append([part for part in parts if part[1]])
    # MaxSim is linear in the query's vectors: a weighted sum of forms is one query.
    whole = {
        i: np.concatenate([weight * alternatives[0] for weight, alternatives in parts])
        for i, parts in enumerate(asked)
        if parts and all(len(alternatives) == 1 for _, alternatives in parts)
    }
    rankings = {}
    if whole:  # searched together, which some indexes do in less time
        together = _searched(index, list(whole.values()), depth, allowed)
        rankings = dict(zip(whole, together, strict=True))
    return [
        list(rankings[i]) if i in rankings else _search_some(index, parts, depth, allowed)
        for i, parts in enumerate(asked)
    ]


def _search_some(
    index: Index, parts: _Parts, depth: int, allowed: frozenset[str] | None
) -> Ranking:
    """Search for a query whose forms have alternatives: the best of each form counts."""
    if not parts:
        return []
    flat = [v for _, found in parts for v in found]
    rankings = _searched(index, flat, depth, allowed)
    ids = list(dict.fromkeys(i for ranking in rankings for i, _ in ranking))
    with raised_by("index", index, "from score"):
        scores = iter(index.score(flat, [ids] * len(flat)))
    total = np.zeros(len(ids))
    for weight, found in parts:
        total += weight * np.max([next(scores) for _ in found], axis=0)
    best = np.argsort(-total, kind="stable")[:depth]
    return [(ids[i], float(total[i])) for i in best]


def _scored(index: Index, queries: Sequence[Vectors]) -> npt.NDArray[Any]:
    with raised_by("index", index, "from scores"):
        found = index.scores(queries)
    return checked_scores(index, found, len(queries))


def _searched(
    index: Index, queries: Sequence[Vectors], depth: int, allowed: frozenset[str] | None
) -> Sequence[Ranking]:
    with raised_by("index", index, "from search"):
        found = index.search(queries, depth, allowed_ids=allowed)
    return checked_rankings(index, found, len(queries), depth)


def _matched(
    asked: Sequence[tuple[float, Sequence[tuple[Labelled, Vectors]]]],
    passage: npt.NDArray[np.float32],
) -> list[QueryPart]:
    """Return each form's best alternative, with its products."""
    parts = []
    for weight, alternatives in asked:
        found = [
            QueryPart(
                labelled.text,
                weight,
                labelled.labels,
                np.float32(weight) * (_float32(labelled.labels, vectors) @ passage.T),
            )
            for labelled, vectors in alternatives
            if len(vectors) and len(passage)
        ]
        if found:
            parts.append(max(found, key=lambda part: float(part.gains.sum())))
    return parts


def _float32(labels: Sequence[Label], vectors: Vectors) -> npt.NDArray[np.float32]:
    """Return the vectors as float32, if there is a label for each.

    Raises:
        UserError: labels and vectors differ in number.
    """
    if len(labels) != len(vectors):
        raise UserError(
            f"the encoder's labels do not fit its vectors: {len(labels)} and {len(vectors)}"
        )
    return vectors.astype(np.float32, copy=False)


def _bytes_of(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _unit(vectors: Vectors) -> Vectors:
    """Return the rows scaled so that their lengths (the weights) sum to 1."""
    vectors = vectors.astype(np.float32, copy=False)
    total = float(np.linalg.norm(vectors, axis=1).sum())
    return vectors / total if total > 0 else vectors
