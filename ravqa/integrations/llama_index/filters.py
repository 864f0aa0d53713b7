"""LlamaIndex's metadata filters, applied to passages before search.

A filter sees the metadata of a passage's node, plus "passage_id" and "ref_doc_id" (the article).
Operators have the same meaning as in LlamaIndex's own vector store: for missing metadata, only
`!=`, `nin` and `is_empty` hold; `not` holds if none of its filters does. Filters may be nested.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from ravqa.core.errors import UserError
from ravqa.core.records import Passage
from ravqa.integrations.documents import metadata_of

_TESTS: Mapping[FilterOperator, Callable[[Any, Any], bool]] = {
    FilterOperator.EQ: operator.eq,
    FilterOperator.NE: operator.ne,
    FilterOperator.GT: operator.gt,
    FilterOperator.GTE: operator.ge,
    FilterOperator.LT: operator.lt,
    FilterOperator.LTE: operator.le,
    FilterOperator.IN: lambda found, wanted: found in wanted,
    FilterOperator.NIN: lambda found, wanted: found not in wanted,
    FilterOperator.ANY: lambda found, wanted: any(value in found for value in wanted),
    FilterOperator.ALL: lambda found, wanted: all(value in found for value in wanted),
    FilterOperator.CONTAINS: lambda found, wanted: wanted in found,
    FilterOperator.TEXT_MATCH: lambda found, wanted: _text(wanted) in _text(found),
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda found, wanted: (
        _text(wanted).lower() in _text(found).lower()
    ),
}


def filter_of(filters: MetadataFilters) -> Callable[[Passage], bool]:
    """Return a function that tells if the filters accept a passage; it raises as `matches`."""

    def passes(passage: Passage) -> bool:
        more = {"passage_id": passage.passage_id, "ref_doc_id": passage.article}
        return matches({**more, **metadata_of(passage)}, filters)

    return passes


def matches(metadata: Mapping[str, Any], filters: MetadataFilters) -> bool:
    """Return whether the filters accept these metadata; without filters, always True.

    Raises:
        UserError: a filter compares values that cannot be compared; key and passage are named.
    """
    if not filters.filters:
        return True
    results = (
        matches(metadata, f) if isinstance(f, MetadataFilters) else _holds(metadata, f)
        for f in filters.filters
    )
    if filters.condition == FilterCondition.OR:
        return any(results)
    if filters.condition == FilterCondition.NOT:
        return not any(results)
    return all(results)


def _holds(metadata: Mapping[str, Any], test: MetadataFilter) -> bool:
    found = metadata.get(test.key)
    if test.operator == FilterOperator.IS_EMPTY:
        return found is None or found in ("", [])
    if found is None:
        return test.operator in (FilterOperator.NE, FilterOperator.NIN)
    if test.operator not in _TESTS:
        raise UserError(f"filter on {test.key!r}: the operator {test.operator} is not known")
    try:
        return bool(_TESTS[test.operator](found, test.value))
    except TypeError:
        raise UserError(
            f"filter {test.key} {test.operator.value} {test.value!r}: passage "
            f"{metadata.get('passage_id')!r} has {found!r}, which cannot be compared with it"
        ) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
