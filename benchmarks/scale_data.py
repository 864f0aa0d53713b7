"""Passages for `scale.py`: real texts and texts grown from them, encoded vectors and grown ones.

Of N passages, of which M are encoded,

- the first are pieces of real text as they are: a search snippet with its title, or about 50 words
  of docstrings (`search_data.texts`);
- the others up to M have as many sentences as some real passage, each from another one, drawn at
  random: **grown texts, encoded by the real encoder**;
- the passages from M on take the first half of one of these and the second half of another one, of
  the sentences as of the vectors: **grown texts and grown vectors**. Every vector moves by noise of
  0.6 of its length, as in `search_data.grow`. The vector of a whole text is the mean of the two
  passages' vectors, moved by noise of half its length.

The encoder is ravqa's `token-bert` with all-MiniLM-L6-v2, of at most 64 word pieces: at most 62
vectors of tokens, projected to 128 dimensions by an uncentred PCA fitted on the first passages, and
one vector of 384 dimensions for the whole text, which is what this model was trained for.

A passage is a function of its number, so that no text and no grown vector has to be kept.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from search_data import DIM, SEED, texts

from ravqa.core.files import atomic_write, written_beside
from ravqa.encoders.base import Encoded
from ravqa.encoders.store import EmbeddingStore

WHOLE = 384  # dimensions of the vector of a whole text
MOST = 62  # vectors of tokens in a passage
REAL = 20_000  # most real passages; their sentences are in memory
_WORDS = 50  # in a passage of running text
_LONG = 1000  # characters from which a text is cut to passages
_BLOCK = 1024  # grown passages made at a time
_FITTED = 512  # passages that the projection is fitted on
_NOISE, _WHOLE_NOISE = 0.6, 0.5
_END = re.compile(r"(?<=[.!?])\s+")
_QUERY, _KEPT = 16, 0.7  # words of a passage in a query, and the share of them that is kept

Array = np.ndarray[Any, Any]


class Block(NamedTuple):
    """Some passages' vectors.

    Attributes:
        first: number of the first passage.
        lengths: int64 [passages], the passages' numbers of vectors.
        tokens: float16 [all vectors, DIM]; whole: float16 [passages, WHOLE]. Of unit length.
    """

    first: int
    lengths: Array
    tokens: Array
    whole: Array


def _pieces(source: Path | None) -> Iterator[list[str]]:
    """Yield real passages as their sentences."""
    for text in texts(source):
        sentences = [s for s in _END.split(" ".join(text.split())) if re.search(r"\w\w", s)]
        if len(text) <= _LONG:
            yield sentences
            continue
        piece: list[str] = []
        for sentence in sentences:
            piece.append(sentence)
            if sum(s.count(" ") + 1 for s in piece) >= _WORDS:
                yield piece
                piece = []


def write_real(file: Path, source: Path | None, encoded: int) -> None:
    """Write the real passages of a text: as many as there are, at most half of the encoded."""
    found = (piece for piece in _pieces(source) if piece)
    atomic_write(file, json.dumps(list(itertools.islice(found, min(REAL, -(-encoded // 2))))))


class Texts:
    """The texts of passages by their numbers.

    Attributes:
        real: how many of them are real.
        encoded: how many are encoded; the vectors of the others are grown.
    """

    def __init__(self, file: Path, encoded: int):
        """Read the real passages from the file that `write_real` wrote."""
        self.encoded = encoded
        self._real: list[list[str]] = json.loads(file.read_text(encoding="utf-8"))
        self.real = len(self._real)
        self._parents = lru_cache(maxsize=4)(self._parents_of)

    def __call__(self, number: int) -> str:
        """Return the text of a passage."""
        return " ".join(self._sentences(number))

    def _sentences(self, number: int) -> list[str]:
        if number < self.real:
            return self._real[number]
        if number < self.encoded:
            rng = np.random.default_rng([SEED, number])
            count = len(self._real[rng.integers(self.real)])
            donors = (self._real[i] for i in rng.integers(self.real, size=count))
            return [d[int(r * len(d))] for d, r in zip(donors, rng.random(count), strict=True)]
        block, place = divmod(number - self.encoded, _BLOCK)
        one, other = (self._sentences(int(i)) for i in self._parents(block)[place])
        return one[: -(-len(one) // 2)] + other[len(other) // 2 :]

    def _parents_of(self, block: int) -> Array:
        # Of two chunks only, so that few files have to be read for a block.
        rng = np.random.default_rng([SEED, 1, block])
        chunk = chunk_of(self.encoded)
        starts = rng.integers(-(-self.encoded // chunk), size=2) * chunk
        ends = np.minimum(starts + chunk, self.encoded)
        return rng.integers(starts, ends, (_BLOCK, 2))

    def parents(self, block: int) -> Array:
        """Return the passages that a block of grown passages is made of, int64 [passages, 2]."""
        return self._parents(block)


def passage_id(number: int) -> str:
    return f"scale/{number:08}"


def number_of(name: str) -> int:
    return int(name.rpartition("/")[2])


def chunk_of(encoded: int) -> int:
    """Return how many passages are encoded at a time, which is what a kill costs at most."""
    return max(16, min(512, encoded // 16))


class Vectors:
    """The vectors of all passages, read or grown block by block."""

    def __init__(self, folder: Path, texts: Texts, passages: int):
        """Take the folder that `encode` has filled."""
        self.texts, self.passages = texts, passages
        self._tokens, self._whole = folder / "tokens", folder / "whole"

    def __iter__(self) -> Iterator[Block]:
        encoded, chunk = self.texts.encoded, chunk_of(self.texts.encoded)
        for number in range(-(-min(encoded, self.passages) // chunk)):
            block = self._read(number)
            kept = min(len(block.lengths), self.passages - block.first)
            lengths = block.lengths[:kept]
            yield Block(block.first, lengths, block.tokens[: lengths.sum()], block.whole[:kept])
        for number in range(-(-(self.passages - encoded) // _BLOCK)):
            yield self._grown(number)

    def _read(self, number: int) -> Block:
        from safetensors.numpy import load_file

        tokens, whole = (
            load_file(folder / f"{number:06}.safetensors") for folder in (self._tokens, self._whole)
        )
        first = number * chunk_of(self.texts.encoded)
        return Block(first, tokens["lengths"], tokens["vectors"], whole["vectors"])

    def _grown(self, number: int) -> Block:
        first = self.texts.encoded + number * _BLOCK
        parents = self.texts.parents(number)[: self.passages - first]
        chunk = chunk_of(self.texts.encoded)
        sides = [self._read(int(side[0]) // chunk) for side in parents.T]
        ends = [np.cumsum(side.lengths) for side in sides]
        parts, lengths = [], []
        for one, other in parents - [side.first for side in sides]:
            begin, end = ends[0][one] - sides[0].lengths[one], ends[0][one]
            parts.append(sides[0].tokens[begin : begin + (end - begin + 1) // 2])
            begin, end = ends[1][other] - sides[1].lengths[other], ends[1][other]
            parts.append(sides[1].tokens[begin + (end - begin) // 2 : end])
            lengths.append(len(parts[-2]) + len(parts[-1]))
        rng = np.random.default_rng([SEED, 2, number])
        whole = sum(
            side.whole[own - side.first].astype(np.float32)
            for side, own in zip(sides, parents.T, strict=True)
        )
        return Block(
            first,
            np.array(lengths, np.int64),
            _moved(rng, np.concatenate(parts).astype(np.float32), _NOISE),
            _moved(rng, unit(whole), _WHOLE_NOISE),
        )


def unit(rows: Array) -> Array:
    found: Array = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return found


def _moved(rng: np.random.Generator, rows: Array, share: float) -> Array:
    noise = rng.standard_normal(rows.shape, dtype=np.float32)
    return unit(rows + share * unit(noise)).astype(np.float16)


def _encoder() -> Any:
    from ravqa.encoders.token_bert import TokenBertEncoder

    return TokenBertEncoder(TokenBertEncoder.Config(max_document_length=MOST + 2))


def _projection(folder: Path, encoder: Any, texts: Texts) -> Array:
    """Return what projects tokens' vectors, float32 [WHOLE, DIM]; fitted once."""
    file = folder / "projection.npy"
    if not file.exists():
        sample = encoder.encode_document([texts(i) for i in range(min(_FITTED, texts.encoded))])
        stacked = np.concatenate([rows[:-1] for rows in sample]).astype(np.float64)
        _, vectors = np.linalg.eigh(stacked.T @ stacked)
        with written_beside(file) as temporary, temporary.open("wb") as out:
            np.save(out, vectors[:, ::-1][:, :DIM].astype(np.float32))
    found: Array = np.load(file)
    return found


def encode(
    folder: Path, texts: Texts, progress: Callable[[int, int], object], done: Callable[..., object]
) -> None:
    """Encode what is missing of the passages to encode; a chunk that is written is kept.

    Args:
        progress: called with passages that are encoded, and all.
        done: called after each chunk with its number of passages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder = _encoder()
    about = {"encoder": encoder.passages_fingerprint, "passages": texts.encoded}
    about |= {"corpus": f"scale/{texts.real}/{SEED}", "chunk": chunk_of(texts.encoded)}
    tokens = EmbeddingStore(folder / "tokens", dim=DIM, **about)
    whole = EmbeddingStore(folder / "whole", dim=WHOLE, **about)
    projection = _projection(folder, encoder, texts)
    missing = sorted({*tokens.missing(), *whole.missing()})
    left = sum(len(tokens.rows(number)) for number in missing)
    progress(texts.encoded - left, texts.encoded)
    for number in missing:
        rows = tokens.rows(number)
        found = encoder.encode_document([texts(i) for i in rows])
        own = [unit(v[:-1] @ projection).astype(np.float16) for v in found]
        whole.write(number, Encoded([v[-1:].astype(np.float16) for v in found]))
        tokens.write(number, Encoded(own))
        left -= len(rows)
        done(len(rows))
        progress(texts.encoded - left, texts.encoded)


class Query(NamedTuple):
    """A query for one passage.

    Attributes:
        target: the passage's number.
        tokens: float32 [vectors, DIM]; whole: float32 [WHOLE]. Of unit length.
    """

    target: int
    text: str
    tokens: Array
    whole: Array


def make_queries(folder: Path, file: Path, texts: Texts, passages: int, count: int) -> None:
    """Write queries: most of the words of a part of a passage, encoded, each passage at random."""
    from ravqa.encoders.base import Span

    rng = np.random.default_rng([SEED, 3, passages])
    targets = rng.integers(passages, size=count).tolist()
    asked = []
    for target in targets:
        words = texts(target).split()
        begin = int(rng.integers(max(1, len(words) - _QUERY + 1)))
        some = words[begin : begin + _QUERY]
        kept = [w for w in some if rng.random() < _KEPT and re.search(r"\w\w", w)]
        asked.append(" ".join(kept or words))
    encoder = _encoder()
    found = encoder.encode_query([[Span(text)] for text in asked])
    projection = _projection(folder, encoder, texts)
    rows = [
        {
            "target": target,
            "text": text,
            "tokens": unit(v[:-1] @ projection).tolist(),
            "whole": unit(v[-1]).tolist(),
        }
        for target, text, v in zip(targets, asked, found, strict=True)
    ]
    atomic_write(file, json.dumps(rows))


def read_queries(file: Path) -> list[Query]:
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [
        Query(
            row["target"],
            row["text"],
            np.array(row["tokens"], np.float32),
            np.array(row["whole"], np.float32),
        )
        for row in rows
    ]
