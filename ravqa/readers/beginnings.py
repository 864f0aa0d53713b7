"""Beginnings that prompts share (instructions, an image, examples), read once for all of them.

Their keys and values are computed for one row and given to every row of a batch, which reads on
from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MIN_SHARED = 16
"""Tokens; a shorter common beginning is not worth a separate pass."""


@dataclass(frozen=True, eq=False)
class _Beginning:
    """Tokens of one row with their keys and values.

    Attributes:
        key: what its keys and values depend on beside the tokens.
        past: transformers' cache of them.
    """

    key: object
    ids: Sequence[int]
    past: Any


class Beginnings:
    """Keys and values of beginnings; the one that was used last is kept."""

    def __init__(self, config: Any):
        """Take the configuration of the model."""
        self._config = config
        self._kept: _Beginning | None = None
        self._last: tuple[object, Sequence[int]] | None = None  # the last row of the last batch

    def clear(self) -> None:
        """Forget what is kept."""
        self._kept = None

    def past(
        self,
        ids: Sequence[Sequence[int]],
        keys: Sequence[object],
        least: Sequence[int],
        read: Callable[[int, int], Any],
    ) -> Any:
        """Return keys and values with which the rows of a batch begin; None if they share nothing.

        A single row may share its beginning with the last row before it.

        Args:
            ids: tokens of each row; in the batch they are padded on the left.
            keys: what a row's keys and values depend on beside its tokens, such as its image.
            least: fewest tokens at the beginning of each row that can be read alone.
            read: returns keys and values of the first tokens of a row, given its place and their
                number.
        """
        found = [self._found(ids, rows, key, least) for key, rows in _groups(keys).items()]
        self._last = (keys[-1], ids[-1])
        if not any(tokens for _, tokens, _ in found):
            return None
        # A row that shares nothing must not keep others from it: it is read first, all but its end.
        shared = [one for one in found if one[1]]
        shared += [([r], len(ids[r]) - 1, None) for rows, n, _ in found if not n for r in rows]
        width = max(map(len, ids))
        pads = [width - len(row) for row in ids]
        cut = min(pads[row] + tokens for rows, tokens, _ in shared for row in rows)
        if len(ids) * cut < sum(tokens for _, tokens, kept in shared if kept is None):
            return None
        begins: dict[int, _Beginning] = {}
        for rows, n, kept in shared:
            one = kept or _Beginning(keys[rows[0]], ids[rows[0]][:n], read(rows[0], n))
            begins |= dict.fromkeys(rows, one)
        self._kept = begins[len(ids) - 1]
        return self._joined([begins[row].past for row in range(len(ids))], pads, cut)

    def _found(
        self, ids: Sequence[Sequence[int]], rows: list[int], key: object, least: Sequence[int]
    ) -> tuple[list[int], int, _Beginning | None]:
        """Return rows of one key, how many tokens of their beginning are shared, and it if kept."""
        own = [ids[row] for row in rows]
        longest = min(map(len, own)) - 1  # one token of every row is left to read
        fewest = max(MIN_SHARED, *(least[row] for row in rows))
        if len(own) == 1 and self._last and self._last[0] == key:
            own.append(self._last[1])
        new = min(longest, common_prefix(own)) if len(own) > 1 else 0
        kept = self._kept
        if kept is not None and kept.key == key:
            old = min(longest, common_prefix([*(ids[row] for row in rows), kept.ids]))
            # Reading a few tokens again in every row is cheaper than reading another beginning.
            if old >= fewest and len(rows) * (new - old) <= new:
                return rows, old, kept
        return rows, new if new >= fewest else 0, None

    def _joined(self, pasts: Sequence[Any], pads: Sequence[int], cut: int) -> Any:
        """Return one cache for all rows, cut to one width.

        Each row begins with its padding, so that the end of its beginning may be read again.
        Padding between beginning and rest would be wrong in models that count distances by place
        (ALiBi, local attention).
        """
        from transformers import DynamicCache

        joined = DynamicCache(config=self._config)
        for index, layer in enumerate(pasts[0].layers):
            both = []
            for name in ("keys", "values"):
                like = getattr(layer, name)
                whole = like.new_zeros(len(pads), like.shape[1], cut, like.shape[3])
                for row, (past, pad) in enumerate(zip(pasts, pads, strict=True)):
                    if pad < cut:
                        whole[row, :, pad:] = getattr(past.layers[index], name)[0, :, : cut - pad]
                both.append(whole)
            joined.update(*both, index)
        return joined


def _groups(keys: Sequence[object]) -> dict[object, list[int]]:
    """Return the rows of each key."""
    groups: dict[object, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return groups


def keeps_everything(config: Any) -> bool:
    """Return whether a model keeps keys and values of all earlier tokens: they can be moved then.

    A sliding window keeps only the last ones; recurrent layers keep a state instead.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def common_prefix(ids: Sequence[Sequence[int]]) -> int:
    """Return the length of the beginning that all rows share."""
    first, last = min(map(list, ids)), max(map(list, ids))  # all others lie between these two
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return min(len(first), len(last)) if shared is None else shared
