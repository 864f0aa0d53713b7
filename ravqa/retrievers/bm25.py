"""BM25 retrieval with the library bm25s: words of the query against words of the passages.

    score(q, d) = sum over words w of q of  idf(w) * tf / (tf + k1 * (1 - b + b * |d| / avgdl)),
    idf(w) = ln(1 + (N - df + 0.5) / (df + 0.5))

where tf is the count of w in d, df the number of the N passages that contain w, |d| the number of
words in d and avgdl its mean: Lucene's variant of Robertson et al. (Kamphuis et al. 2020, "Which
BM25 do you mean?"), which bm25s (Lu 2024, arXiv 2407.03618) computes by default.

Words are runs of at least two letters and digits, in lower case, without English stop words. Texts
in a script without spaces are not split into words.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ravqa.core.cache import Memo
from ravqa.core.errors import DataError, UserError, import_extra
from ravqa.core.locations import cache_dir
from ravqa.core.progress import Progress
from ravqa.core.records import Hit, Question
from ravqa.core.settings import Strict, fingerprint
from ravqa.corpora.corpus import Corpus
from ravqa.retrievers.base import Retriever, to_hits
from ravqa.retrievers.query_text import Form, QueryText, forms

_EXTRA = "bm25"
_WHY = "the retriever bm25"
_STEP = 1000  # passages between two progress reports


class BM25Retriever(Retriever):
    """A retriever that scores passages by their words; those without a query word are not found.

    The text of a passage is its title, section and text. A query has the forms of
    `ravqa.retrievers.query_text`: its score is the weighted mean of theirs; a form's score is that
    of its best alternative, in which every word counts as much as its span weighs.

    The index is kept in the cache folder, by the corpus's content, and memory-mapped; rankings are
    kept there by query.
    """

    weights = ""

    class Config(Strict):
        """Options.

        Attributes:
            k1, b: how soon repeated words stop counting, and how much long passages are
                discounted.
            stemming: compare words by their stems (Snowball's for English).
            query: what goes into the query.
        """

        k1: float = Field(default=1.5, ge=0)
        b: float = Field(default=0.75, ge=0, le=1)
        stemming: bool = False
        query: QueryText = QueryText()

        def packages(self) -> Sequence[tuple[str, str]]:
            """The library, and one for stemming."""
            modules = ["bm25s", "Stemmer"] if self.stemming else ["bm25s"]
            return [(module, _EXTRA) for module in modules]

    config: Config

    def __init__(self, config: Config):
        """Import the library.

        Raises:
            MissingExtraError: bm25s, or PyStemmer for stemming, is not installed.
        """
        self.config = config
        self._library: Any = import_extra("bm25s", _EXTRA, why=_WHY)
        self._stemmer: Any = None
        if config.stemming:
            stemmers = import_extra("Stemmer", _EXTRA, why=f"{_WHY} with stemming")
            self._stemmer = stemmers.Stemmer("english")
        self._words_fingerprint = fingerprint("bm25/1", config.k1, config.b, config.stemming)
        self.fingerprint = fingerprint(self._words_fingerprint, config.query.model_dump())
        self._index: Any = None
        self._corpus = ""
        self._memo = Memo[Any]("rankings")
        self.stores = self._memo.stores
        self._ids: list[str] = []

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Open the corpus's index in the cache, or build it.

        Raises:
            UserError: the corpus is missing, or the cache folder is damaged or not writable.
            DataError: no passage contains a word.
        """
        if corpus is None:
            raise UserError(f"{_WHY} needs passages: name a file with --corpus")
        path = cache_dir("bm25") / fingerprint(corpus.fingerprint, self._words_fingerprint)
        if not path.is_dir():
            self._build(corpus, path, progress)
        try:
            self._index = self._library.BM25.load(path, mmap=True)
        except (OSError, ValueError, KeyError) as e:
            raise UserError(f"the index {path} is damaged ({e}): delete this folder") from None
        self._ids = list(corpus)
        self._corpus = corpus.fingerprint

    def _build(self, corpus: Corpus, path: Path, progress: Progress | None) -> None:
        """Write the index beside `path` and rename it; if several build it, the first one wins."""
        words = self._library.tokenize(
            _texts(corpus, progress),
            stopwords="en",
            stemmer=self._stemmer,
            show_progress=False,
        )
        if not words.vocab:
            raise DataError(f"{corpus.source}: no passage has a word that {_WHY} could find")
        index = self._library.BM25(k1=self.config.k1, b=self.config.b, method="lucene")
        index.index(words, create_empty_token=False, show_progress=False)
        try:
            made = Path(tempfile.mkdtemp(prefix=".bm25-", dir=path.parent))
        except OSError as e:
            raise UserError(f"the cache folder {path.parent} cannot be written: {e}") from None
        try:
            index.save(made)
            try:
                made.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """Return at most k passages per question, best first; ties in corpus order."""
        plans = [forms(question, self.config.query) for question in questions]
        keys = [
            fingerprint(self._words_fingerprint, self._corpus, k, [asdict(form) for form in plan])
            for plan in plans
        ]
        found = self._memo.get(
            keys, lambda rows: enumerate([self._best(self._scores(plans[i]), k) for i in rows])
        )
        return [to_hits(ranking) for ranking in found]

    def _scores(self, plan: Sequence[Form]) -> npt.NDArray[np.float64]:
        """Return the score of every passage."""
        total = np.zeros(len(self._ids))
        for form in plan:
            alternatives = []
            for spans in form.alternatives:
                words = self._words([span.text for span in spans])
                scores = np.zeros(len(self._ids))
                for span, ids in zip(spans, words, strict=True):
                    if ids:
                        scores += span.weight * self._index.get_scores_from_ids(ids)
                alternatives.append(scores)
            total += form.weight * np.max(alternatives, axis=0)
        return total

    def _words(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the numbers of each text's words, without those that no passage contains."""
        found = self._library.tokenize(
            texts, stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return [self._index.get_tokens_ids(words) for words in found]

    def _best(self, scores: npt.NDArray[np.float64], k: int) -> list[tuple[str, float]]:
        found = np.flatnonzero(scores > 0)
        if len(found) > k:  # sorting a few is quicker than sorting all
            least = np.partition(scores[found], len(found) - k)[len(found) - k]
            found = found[scores[found] >= least]
        best = found[np.argsort(-scores[found], kind="stable")][:k]
        return [(self._ids[i], float(scores[i])) for i in best]


def _texts(corpus: Corpus, progress: Progress | None) -> Iterator[str]:
    """Yield the searched text of each passage, in order."""
    for number, passage in enumerate(corpus.values(), 1):
        yield passage.content
        if progress and (number % _STEP == 0 or number == len(corpus)):
            progress("indexing passages", number, len(corpus))
