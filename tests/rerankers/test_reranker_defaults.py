"""The settings of rerankers where nothing is said: another one changes every user's results."""

import pytest

from ravqa.core.errors import UserError
from ravqa.core.settings import validate
from ravqa.rerankers.cross_encoder import CrossEncoderReranker
from ravqa.rerankers.gate import Gate
from ravqa.rerankers.threshold import Threshold
from ravqa.rerankers.vlm import VLMReranker

ASKED = {"positive": ("yes",), "negative": ("no",), "way": None, "batch_size": 8, "cache": True}


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (
            Threshold.Config(max_kept=2),
            {"rule": None, "value": None, "temperature": 1.0, "min_kept": 0, "max_kept": 2},
        ),
        (
            Gate.Config(rule="reader", at_least=0.5),
            {
                **ASKED,
                "rule": "reader",
                "at_least": 0.5,
                "against": 2,
                "reader": None,
                "prompt": "gate-needs-knowledge",
            },
        ),
        (
            VLMReranker.Config(),
            {
                **ASKED,
                "reader": None,
                "prompt": "rerank-yes-no",
                "depth": 20,
                "score": "probability",
                "max_words": 400,
            },
        ),
        (
            CrossEncoderReranker.Config(model="a/b"),
            {
                "model": "a/b",
                "query": "rerank-query",
                "depth": 20,
                "activation": "model",
                "max_length": None,
                "batch_size": 32,
                "dtype": "float32",
                "device": "auto",
                "trust_remote_code": False,
                "cache": True,
            },
        ),
    ],
    ids=lambda v: type(v).__qualname__,
)
def test_settings_that_are_not_given(config, values):
    assert config.model_dump() == values


@pytest.mark.parametrize(
    ("kind", "options", "least"),
    [
        (VLMReranker, {}, {"depth": 1, "max_words": 1, "batch_size": 1}),
        (CrossEncoderReranker, {"model": "a/b"}, {"depth": 1, "max_length": 8, "batch_size": 1}),
        (Gate, {"rule": "margin", "at_least": 0.5}, {"against": 2}),
        (Threshold, {"max_kept": 3}, {"min_kept": 0, "max_kept": 1}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_numbers_have_a_least_value(kind, options, least):
    for name, value in least.items():
        assert getattr(validate(kind.Config, {**options, name: value}, "x"), name) == value
        with pytest.raises(UserError, match=f"'{name}'"):
            validate(kind.Config, {**options, name: value - 1}, "x")
