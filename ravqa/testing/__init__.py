"""Conformance suites: does a part of one's own keep the contract of its kind?

    from ravqa.testing import check_index

    def test_my_index():
        check_index(MyIndex)

Each function raises AssertionError with a sentence that says what the part does and what is
expected. None needs pytest, a network, or more than the part itself needs.
"""

from ravqa.testing.datasets import check_dataset
from ravqa.testing.describers import check_describer
from ravqa.testing.encoders import check_encoder
from ravqa.testing.indexes import check_index
from ravqa.testing.metrics import check_judge, check_metric
from ravqa.testing.readers import check_reader
from ravqa.testing.rerankers import check_reranker
from ravqa.testing.retrievers import check_retriever
from ravqa.testing.rules import check_rule

__all__ = [
    "check_dataset",
    "check_describer",
    "check_encoder",
    "check_index",
    "check_judge",
    "check_metric",
    "check_reader",
    "check_reranker",
    "check_retriever",
    "check_rule",
]
