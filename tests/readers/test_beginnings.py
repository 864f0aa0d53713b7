"""Beginnings that rows of a batch share, against what each row would read by itself."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from ravqa.readers import beginnings
from ravqa.readers.beginnings import Beginnings, keeps_everything

CONFIG = transformers.LlamaConfig(num_hidden_layers=2)


def state(key, tokens, layer):
    """Keys [heads, tokens, 2] that depend on all tokens before: a sum, and the row's key."""
    sums = torch.tensor([float(sum((i + 1) * t for i, t in enumerate(tokens[: n + 1])))
                         for n in range(len(tokens))])  # fmt: skip
    own = torch.stack([sums + layer, torch.full_like(sums, ord(key))], -1)
    return torch.stack([own, -own])


class Reading:
    """Reads beginnings, and notes which."""

    def __init__(self):
        self.kept = Beginnings(CONFIG)
        self.read = []

    def past(self, ids, keys, least=None):
        def read(row, tokens):
            self.read.append((row, tokens))
            cache = DynamicCache(config=CONFIG)
            for layer in range(2):
                own = state(keys[row], ids[row][:tokens], layer)[None]
                cache.update(own, own + 100, layer)
            return cache

        self.read.clear()
        return self.kept.past(ids, keys, least or [0] * len(ids), read)


def check(past, ids, keys):
    width, cut = max(map(len, ids)), past.get_seq_length()
    assert 0 < cut < width
    for layer, kept in enumerate(past.layers):
        for row, (own, key) in enumerate(zip(ids, keys, strict=True)):
            pad = min(cut, width - len(own))
            expected = state(key, own, layer)[:, : cut - pad]
            assert torch.equal(kept.keys[row, :, pad:], expected)
            assert torch.equal(kept.values[row, :, pad:], expected + 100)
            assert not kept.keys[row, :, :pad].any()


rows = st.tuples(st.sampled_from("xyz"), st.lists(st.integers(0, 1), min_size=1, max_size=9))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(rows, min_size=1, max_size=5), min_size=1, max_size=3))
def test_every_row_continues_its_own_tokens(batches):
    reading = Reading()
    with mock.patch.object(beginnings, "MIN_SHARED", 2):
        for batch in batches:
            keys, ids = zip(*batch, strict=True)
            past = reading.past(ids, keys)
            if past is not None:
                check(past, ids, keys)
                # Never is more read than the batch would be without.
                cut = past.get_seq_length()
                assert sum(n for _, n in reading.read) <= len(ids) * cut


ONE = list(range(20))


def test_a_beginning_is_read_once_for_all_rows_of_a_key():
    reading = Reading()
    ids = [[*ONE, 1, 2], [*ONE, 3], [*ONE, 4, 5, 6]]
    check(reading.past(ids, "xxx"), ids, "xxx")
    assert reading.read == [(0, 20)]
    both = [*ids, *([9, *row] for row in ids)]
    check(reading.past(both, "xxxyyy"), both, "xxxyyy")
    assert reading.read == [(3, 21)]  # that of x is kept
    assert reading.past(both[:2], "zw") is None  # the same tokens, but not about one image
    check(reading.past(both[3:], "yyy"), both[3:], "yyy")
    assert reading.read == []
    reading.kept.clear()
    reading.past(both[3:], "yyy")
    assert reading.read == [(0, 21)]


def test_a_row_that_shares_nothing_is_read_first():
    reading = Reading()
    ids = [[*ONE, 1, 2], [*ONE, 3], [7] * 22]
    check(reading.past(ids, "xxy"), ids, "xxy")
    assert reading.read == [(0, 20), (2, 21)]
    alone = [[*ONE, 1, 2], [7] * 22, [8] * 22]
    assert reading.past(alone, "abc") is None


def test_single_rows_share_with_the_one_before():
    reading = Reading()
    ids = [[*ONE, 1, 2], [*ONE, 3], [*ONE, 4, 5]]
    assert reading.past(ids[:1], "x") is None
    check(reading.past(ids[1:2], "x"), ids[1:2], "x")
    assert reading.read == [(0, 20)]
    check(reading.past(ids[2:], "x"), ids[2:], "x")
    assert reading.read == []
    assert reading.past(ids[2:], "y") is None
    longer = [[*ONE, *ONE, n] for n in (1, 2, 3)]
    check(reading.past(longer[:2], "xx"), longer[:2], "xx")
    assert reading.read == []  # 20 tokens again in two rows are no more than 40 in one
    check(reading.past(longer, "xxx"), longer, "xxx")
    assert reading.read == [(0, 40)]


@pytest.mark.parametrize(("least", "shares"), [(0, True), (20, True), (21, False)])
def test_a_beginning_has_the_fewest_tokens_that_can_be_read_alone(least, shares):
    ids = [[*ONE, 1, 2], [*ONE, 3]]
    assert (Reading().past(ids, "xx", [0, least]) is not None) == shares
    assert Reading().past([row[5:] for row in ids], "xx") is None  # 15 tokens


@pytest.mark.parametrize(
    ("config", "whole"),
    [
        (transformers.LlamaConfig(), True),
        (transformers.MistralConfig(sliding_window=8), False),
        (transformers.Qwen3NextConfig(), False),
        (SimpleNamespace(get_text_config=lambda decoder: transformers.LlamaConfig()), True),
    ],
)
def test_layers_that_keep_all_tokens(config, whole):
    assert keeps_everything(config) == whole
