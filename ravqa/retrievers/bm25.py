"""BM25 retrieval with the library bm25s: words of the query against words of the passages.

    score(q, d) = sum over words w of q of  idf(w) * tf / (tf + k1 * (1 - b + b * |d| / avgdl)),
    idf(w) = ln(1 + (N - df + 0.5) / (df + 0.5))

where tf is the count of w in d, df the number of the N passages that contain w, |d| the number of
words in d and avgdl its mean: Lucene's variant of Robertson et al. (Kamphuis et al. 2020, "Which
BM25 do you mean?"), which bm25s (Lu 2024, arXiv 2407.03618) computes by default.

Words are runs of at least two letters and digits, in lower case, without English stop words. In a
script without spaces between words (Chinese, Japanese, Thai, ...) every two neighbouring letters
are a word, and so is a letter that stands alone: Lucene's CJKBigramFilter.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ravqa.core.cache import Memo
from ravqa.core.errors import DamagedError, DataError, UserError, first_line, import_extra
from ravqa.core.files import folder_written_beside
from ravqa.core.locations import cache_dir, file_digest, remove
from ravqa.core.progress import Progress, silent
from ravqa.core.records import Hit, Question
from ravqa.core.settings import Strict, fingerprint
from ravqa.core.stored import as_type, read_json
from ravqa.core.texts import number_of
from ravqa.corpora.corpus import Corpus
from ravqa.retrievers.base import Retriever, ranking_of, to_hits
from ravqa.retrievers.query_text import Form, QueryText, forms

_log = logging.getLogger(__name__)

_EXTRA = "bm25"
_WHY = "the retriever bm25"
_STEP = 1000  # passages between two progress reports
_CHECKSUMS = "checksums.json"
_UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59"  # Thai
    "\u0e80-\u0eff\u0f00\u0f20-\u0f39\u0f40-\u0fbc"  # Lao, Tibetan
    "\u1000-\u1049\u1050-\u109f\ua9e0-\ua9fe\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17d3\u17d7\u17dc-\u17e9\u1950-\u19df\u1a20-\u1a9f"  # Khmer, Tai
    "\u1b00-\u1b59\ua980-\ua9c0\ua9cf-\ua9d9"  # Balinese, Javanese
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b"  # iteration marks and numerals
    "\u3041-\u3096\u3099\u309a\u309d-\u309f"  # Hiragana
    "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Katakana
    "\u3105-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Bopomofo, Han
    "\ua000-\ua48c\U00020000-\U000323af"  # Yi, more Han
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_WORD = rf"(?u)[{_UNSPACED}]+|\b\w\w+\b"  # bm25s's own pattern, and what `_spaced` made


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
        self._words_fingerprint = fingerprint("bm25/2", config.k1, config.b, config.stemming)
        self.fingerprint = fingerprint(self._words_fingerprint, config.query.model_dump())
        self._index: Any = None
        self._corpus = ""
        self._memo = Memo("rankings", back=ranking_of)
        self.stores = self._memo.stores
        self._ids: Sequence[str] = ()

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Open the corpus's index in the cache, or build it.

        Raises:
            UserError: the corpus is missing, or the cache folder is damaged or not writable.
            DataError: no passage contains a word.
        """
        if corpus is None:
            raise UserError(f"{_WHY} needs passages: give a file with --corpus")
        path = cache_dir("bm25") / fingerprint(corpus.fingerprint, self._words_fingerprint)
        try:
            if path.exists():
                try:
                    self._index = self._loaded(path)
                except DamagedError as e:
                    _log.warning("%s: it is made again", e)
                    remove(path)
            if not path.exists():
                self._build(corpus, path, progress)
                self._index = self._loaded(path)
        except OSError as e:
            raise UserError(
                f"the cached index {path} cannot be used ({e.strerror or e}): set RAVQA_CACHE to "
                "another folder"
            ) from None
        self._ids = corpus.ids
        self._corpus = corpus.fingerprint

    def _loaded(self, path: Path) -> Any:
        """Open an index in the cache.

        Raises:
            DamagedError: its files are not as they were written.
            PermissionError: another user's files, which this one may not read.
        """
        try:
            wanted = as_type(dict[str, str], read_json(path / _CHECKSUMS))
            for name in wanted:
                if not (path / name).is_file() or file_digest(path / name) != wanted[name]:
                    raise ValueError(f"{name} is missing or was changed")
            return self._library.BM25.load(path, mmap=True)
        except PermissionError:
            raise
        except Exception as e:  # numpy and json fail in many ways on changed bytes
            raise DamagedError(f"the cached index {path} is damaged ({first_line(e)})") from None

    def _build(self, corpus: Corpus, path: Path, progress: Progress | None) -> None:
        """Write the index beside `path` and rename it; if several build it, the first one wins."""
        progress = progress or silent
        words = _Words()
        texts = _texts(corpus, progress)
        while batch := list(itertools.islice(texts, _STEP)):
            words.add(self._tokenized(batch, return_ids=False))
        if not words.vocab:
            raise DataError(f"{corpus.source}: no passage has a word that {_WHY} could find")
        progress("building the index of words", 0, 1)
        index = self._library.BM25(k1=self.config.k1, b=self.config.b, method="lucene")
        index.index(words, create_empty_token=False, show_progress=False)
        with folder_written_beside(path, first_wins=True) as made:
            index.save(made)
            digests = {file.name: file_digest(file) for file in sorted(made.iterdir())}
            (made / _CHECKSUMS).write_text(json.dumps(digests), encoding="utf-8")
        progress("building the index of words", 1, 1)

    def _tokenized(self, texts: Iterable[str], **options: Any) -> Any:
        return self._library.tokenize(
            map(_spaced, texts),
            token_pattern=_WORD,
            stopwords="en",
            stemmer=self._stemmer,
            show_progress=False,
            **options,
        )

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
        empty = [
            i for i, ranking in enumerate(found) if not ranking and not self._has_word(plans[i])
        ]
        if empty:
            _log.warning(
                "%s finds nothing for %s, such as %r: nothing is left of them without "
                "stop words, single letters and punctuation",
                _WHY,
                number_of(len(empty), "question"),
                questions[empty[0]].question,
            )
        return [to_hits(ranking) for ranking in found]

    def _has_word(self, plan: Sequence[Form]) -> bool:
        """Return whether there is any word to search for, in a passage or not."""
        spans = [span.text for form in plan for spans in form.alternatives for span in spans]
        return any(self._tokenized(spans, return_ids=False))

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
        found = self._tokenized(texts, return_ids=False)
        return [self._index.get_tokens_ids(words) for words in found]

    def _best(self, scores: npt.NDArray[np.float64], k: int) -> list[tuple[str, float]]:
        found = np.flatnonzero(scores > 0)
        if len(found) > k:  # sorting a few is quicker than sorting all
            least = np.partition(scores[found], len(found) - k)[len(found) - k]
            found = found[scores[found] >= least]
        best = found[np.argsort(-scores[found], kind="stable")][:k]
        return [(self._ids[i], float(scores[i])) for i in best]


class _Words:
    """The words of every passage by their numbers, four bytes a word.

    It has what bm25s reads of its own `Tokenized`, which is made of lists: `ids`, an array for each
    passage, and `vocab`, the number of each word.
    """

    def __init__(self) -> None:
        self.vocab: dict[str, int] = {}
        self._numbers = array("I")
        self._ends = array("Q", [0])

    def add(self, passages: Iterable[Sequence[str]]) -> None:
        """Append passages, each as its words."""
        vocab = self.vocab
        for words in passages:
            self._numbers.extend([vocab.setdefault(word, len(vocab)) for word in words])
            self._ends.append(len(self._numbers))

    @property
    def ids(self) -> _Words:
        return self

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[array[int]]:
        return (self._numbers[start:end] for start, end in itertools.pairwise(self._ends))


def _spaced(text: str) -> str:
    """Return the text with each run of a script without spaces split into pairs of letters."""
    if text.isascii():
        return text
    return _RUN.sub(lambda found: f" {' '.join(_pairs(found.group()))} ", text)


def _pairs(letters: str) -> Iterable[str]:
    return map("".join, itertools.pairwise(letters)) if len(letters) > 1 else letters


def _texts(corpus: Corpus, progress: Progress) -> Iterator[str]:
    """Yield the searched text of each passage, in order."""
    for number, passage in enumerate(corpus.values(), 1):
        yield passage.content
        if number % _STEP == 0 or number == len(corpus):
            progress("indexing passages", number, len(corpus))
