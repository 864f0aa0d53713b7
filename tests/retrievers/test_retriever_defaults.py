"""The settings of retrievers where nothing is said: another one changes every user's results."""

import pytest

from ravqa.core.registry import Entry
from ravqa.core.settings import Part
from ravqa.retrievers import RETRIEVERS, bm25, late_interaction
from ravqa.retrievers.bm25 import BM25Retriever
from ravqa.retrievers.controls import NoRetriever, OracleRetriever, RandomRetriever
from ravqa.retrievers.fusion import FusionRetriever
from ravqa.retrievers.late_interaction import LateInteractionRetriever
from ravqa.retrievers.query_text import QueryText
from ravqa.retrievers.static import StaticRetriever

QUERY = {
    "question": 0.0,
    "replaced": 1.0,
    "appended": 0.5,
    "captioned": 0.0,
    "described": 0.0,
    "parts": {"tags": 0.0, "caption": 1.0, "objects": 1.0, "ocr": 1.0},
    "choices": 0.0,
    "tags": 3,
    "min_share": 0.1,
    "names": 4,
    "prefer_kind": True,
}
DEFAULTS = [
    (QueryText(), QUERY),
    (BM25Retriever.Config(), {"k1": 1.5, "b": 0.75, "stemming": False, "query": QUERY}),
    (
        LateInteractionRetriever.Config(),
        {
            "encoder": {"name": "token-bert"},
            "index": {"name": "auto"},
            "query": QUERY,
            "depth": 200,
        },
    ),
    (
        FusionRetriever.Config(retrievers=(Part(name="none"),)),
        {
            "retrievers": ({"name": "none"},),
            "weights": (),
            "method": "rrf",
            "k": 60.0,
            "depth": 200,
        },
    ),
    (OracleRetriever.Config(), {"base": {"name": "late-interaction"}, "depth": 200}),
    (RandomRetriever.Config(), {"seed": 0}),
    (NoRetriever.Config(), {}),
]


@pytest.mark.parametrize(("config", "values"), DEFAULTS, ids=lambda v: type(v).__qualname__)
def test_settings_that_are_not_given(config, values):
    assert config.model_dump() == values


def test_rankings_of_a_file_must_be_complete_unless_said(tmp_path):
    assert StaticRetriever.Config(file=tmp_path).missing == "fail"


def test_limits_of_retrievers():
    assert bm25._STEP == 1000
    assert late_interaction._MAX_SCORES == 2**26


def test_retrievers_by_name():
    modules = {name: RETRIEVERS._entries[name] for name, _ in RETRIEVERS}
    assert all(isinstance(entry, Entry) for entry in modules.values())
    assert list(modules) == [
        *("late-interaction", "bm25", "gallery", "fusion", "llama-index", "none", "oracle"),
        *("random", "static"),
    ]
    assert RETRIEVERS.get("bm25") is BM25Retriever
    assert RETRIEVERS.get("static") is StaticRetriever
