"""The limit on nested JSON, against the depth that json finds."""

import io
import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ravqa.core.errors import DataError
from ravqa.corpora import nesting
from ravqa.corpora.kb import is_static, read_pages, static_items
from ravqa.corpora.nesting import DEEPEST, Shallow

TEXTS = st.text(st.sampled_from('[]{}"\\,:\n\u00e9a'), max_size=6)
VALUES = st.recursive(
    TEXTS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def depth(value):
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES, st.integers(1, 9), st.integers(1, 4))
@example([["\\"], "[[["], 2, 2)
@example({'"\\': {"\\\\": []}}, 1, 3)
def test_what_is_too_deep_is_refused_and_nothing_else(value, size, limit):
    data = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nesting, "DEEPEST", limit)
        file = Shallow(io.BytesIO(data), "x.json")
        parts = iter(lambda: file.read(size), b"")
        if depth(value) <= limit:
            assert b"".join(parts) == data
            return
        with pytest.raises(DataError, match=rf"^x.json: .* nested more than {limit} deep"):
            list(parts)


@pytest.mark.parametrize(
    "text",
    [
        '{"output": [{"x": %s}]}' % ("[" * 100_000 + "]" * 100_000),
        '{"x": %s, "output": []}' % ('{"a":' * 100_000 + "1" + "}" * 100_000),
        '{"output": [%s' % ("[" * 100_000),
    ],
)
def test_a_file_nested_without_end_is_refused_at_once(tmp_path, text):
    path = tmp_path / "deep.json"
    path.write_text(text, encoding="utf-8")
    started = time.process_time()
    for read in (static_items, read_pages, lambda path: [is_static(path)]):
        with pytest.raises(DataError, match=r"deep\.json: objects and lists are nested more than"):
            list(read(path))
    assert time.process_time() - started < 5  # without the limit, over a minute


def test_what_is_nested_as_deep_as_allowed_is_read(tmp_path):
    inner = DEEPEST - 2
    path = tmp_path / "kb.json"
    path.write_text('{"output": [%s]}' % ("[" * inner + "]" * inner), encoding="utf-8")
    assert len(list(static_items(path))) == 1
