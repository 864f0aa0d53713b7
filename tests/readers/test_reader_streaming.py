"""Generations piece by piece: the same text as at once, in whole words, and no more than wanted."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.errors import UserError
from ravqa.readers.base import Generation, Prompt, Reader
from ravqa.readers.cached import CachedReader
from ravqa.readers.controls import FirstWords
from ravqa.readers.streaming import greedy, whole_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("gol", ""),
        ("golden ", "golden"),
        ("the golden gat", "the golden"),
        ("the golden gate ", "the golden gate"),
        ("one\ntwo\tth", "one\ntwo"),
        ("金门大", "金门大"),
        ("金门大 bri", "金门大"),
        (" leads", ""),
    ],
)
def test_whole_words(text, words):
    assert whole_words(text) == words


class Scripted(Reader):
    """A reader whose tokens are letters; it writes what it was told, then an end mark (0)."""

    gives_next_token_logprobs = True
    streams = True
    deterministic = True
    fingerprint = "scripted/1"
    weights = "scripted"
    context = None
    ends = frozenset({0})

    def __init__(self, text, max_new_tokens=200):
        self.text = text
        self.max_new_tokens = max_new_tokens
        self.letters = sorted(set(text))
        self.steps = 0

    def generate(self, prompts):
        return [Generation(self.text[: self.max_new_tokens]) for _ in prompts]

    def next_token_logprobs(self, prompts, prefixes):
        self.steps += 1
        [prefix] = prefixes
        done = len(prefix) >= len(self.text)
        token = 0 if done else 1 + self.letters.index(self.text[len(prefix)])
        out = np.full(1 + len(self.letters), -np.inf, np.float32)
        out[token] = 0
        return [out]

    def decode(self, tokens):
        return "".join(self.letters[token - 1] for token in tokens if token)

    def stream(self, prompt):
        return greedy(self, prompt)


@given(st.text(alphabet="ab \n金.", max_size=40), st.integers(1, 50))
def test_joined_the_pieces_are_the_generation(text, most):
    reader = Scripted(text, most)
    pieces = list(greedy(reader, Prompt("?")))
    assert "".join(pieces) == text[:most]
    assert all(pieces)


def test_words_are_not_broken_and_come_as_soon_as_they_are_whole():
    reader = Scripted("on bamboo, mostly")
    pieces = greedy(reader, Prompt("?"))
    assert next(pieces) == "on"
    assert reader.steps == 3  # "on" and the space behind it
    assert list(pieces) == [" bamboo,", " mostly"]
    assert reader.steps == len(reader.text) + 1  # the end mark too


def test_who_stops_reading_stops_the_generation():
    reader = Scripted("one two three four")
    pieces = greedy(reader, Prompt("?"))
    next(pieces)
    pieces.close()
    assert reader.steps == 4


@pytest.mark.slow
def test_a_local_reader_streams_what_it_generates(reader):
    prompts = [Prompt("Question: What is a koala?\nAnswer:"), Prompt("The koala is an animal that")]
    longest = 0
    for prompt, generation in zip(prompts, reader.generate(prompts), strict=True):
        pieces = list(reader.stream(prompt))
        assert "".join(pieces) == generation.text
        assert len(pieces) <= len(generation.text.split())
        longest = max(longest, len(pieces))
    assert longest > 3
    assert reader.streams


@pytest.mark.slow
def test_a_local_reader_may_be_used_by_several_threads(reader):
    prompts = [Prompt(f"Question: What is {i} and {i}?\nAnswer:") for i in range(4)]
    alone = [g.text for g in reader.generate(prompts)]
    with ThreadPoolExecutor(4) as pool:
        streamed = [pool.submit(lambda p: "".join(reader.stream(p)), p) for p in prompts]
        counted = pool.submit(reader.count_tokens, prompts)
        at_once = [pool.submit(reader.generate, [p]) for p in prompts]
        assert [future.result() for future in streamed] == alone
        assert [future.result()[0].text for future in at_once] == alone
        assert len(counted.result()) == len(prompts)


def test_a_known_generation_comes_at_once(fresh_cache):
    inner = Scripted("on bamboo")
    reader = CachedReader(inner)
    assert "".join(reader.stream(Prompt("?"))) == "on bamboo"
    assert inner.steps == 10
    reader.generate([Prompt("?")])
    assert list(CachedReader(inner).stream(Prompt("?"))) == ["on bamboo"]
    assert inner.steps == 10
    assert "".join(CachedReader(inner, keep=False).stream(Prompt("?"))) == "on bamboo"
    assert inner.steps == 20


def test_a_reader_that_cannot_says_so(fresh_cache):
    reader = CachedReader(FirstWords(FirstWords.Config()))
    with pytest.raises(UserError, match=r"^the reader .* does not stream$"):
        reader.stream(Prompt("?"))


@pytest.mark.slow
def test_threads_wait_for_each_other(reader, monkeypatch):
    inside, most = [], []
    lengths = type(reader)._lengths

    def watched(self, prompts):
        inside.append(threading.get_ident())
        most.append(len(inside))
        found = lengths(self, prompts)
        inside.pop()
        return found

    monkeypatch.setattr(type(reader), "_lengths", watched)
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda _: reader.count_tokens([Prompt("one two")]), range(64)))
    assert counts == [counts[0]] * 64
    assert max(most) == 1
