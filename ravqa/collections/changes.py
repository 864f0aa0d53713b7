"""What a change does to the passages of a collection, decided before anything is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ravqa.collections.folder import CollectionCorpus
from ravqa.core.errors import DataError
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.disk import same_record
from ravqa.corpora.origins import Origin


@dataclass(frozen=True, slots=True)
class Changes:
    """Result of a change, in numbers of passages.

    Attributes:
        changed: replaced because text, title or section changed.
        relabelled: only other metadata changed, or their source became known; not encoded again.
        unchanged: already present.
        truncated: longer than the encoder's limit, and cut.
        ids: ids of the passages by what happened to them: "added", "changed", "relabelled",
            "deleted".
    """

    added: int = 0
    changed: int = 0
    relabelled: int = 0
    unchanged: int = 0
    deleted: int = 0
    truncated: int = 0
    ids: Mapping[str, Sequence[str]] = field(default_factory=dict, compare=False, repr=False)


@dataclass
class Plan:
    """What becomes of each passage.

    Attributes:
        added, changed, relabelled, deleted: ids; see `Changes`.
        origins: where the passages came from that are added or replaced.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    unchanged: int = 0
    origins: dict[str, Origin | None] = field(default_factory=dict)

    @property
    def encoded(self) -> list[str]:
        """Return ids of the passages that get new vectors."""
        return self.added + self.changed

    @property
    def written(self) -> list[str]:
        """Return ids of the passages that are written."""
        return self.encoded + self.relabelled

    def changes(self, truncated: int = 0) -> Changes:
        """Return the numbers and ids of a change that was made, or would be."""
        kinds = ("added", "changed", "relabelled", "deleted")
        ids = {kind: tuple(found) for kind in kinds if (found := getattr(self, kind))}
        numbers = {kind: len(found) for kind, found in ids.items()}
        return Changes(**numbers, unchanged=self.unchanged, truncated=truncated, ids=ids)


def plan(
    incoming: Corpus,
    there: CollectionCorpus,
    runs: Sequence[tuple[Origin, int]],
    *,
    replacing: bool,
    prune: bool,
    claims: bool,
    sees_images: Callable[[], bool],
) -> Plan:
    """Compare passages with those of a collection.

    A passage belongs to the source that brought its present content. One of unknown source belongs
    to the next source that has it.

    Args:
        runs: the sources of `incoming`, as in `Corpus.origins`.
        replacing: replace passages whose content differs; else they are an error.
        prune: delete the passages of these sources that are not in `incoming`.
        claims: whether sources may become known that are not.
        sees_images: whether another image means other vectors.

    Raises:
        DataError: a passage exists with other content, and must not be replaced.
    """
    made = Plan()
    ids = iter(incoming)
    brought = {i: origin for origin, count in runs for i in itertools.islice(ids, count)}
    for passage in incoming.values():
        name = passage.passage_id
        origin = brought.get(name)
        if name not in there:
            made.added.append(name)
            made.origins[name] = origin
            continue
        old, known = there.present(name)
        if same_record(old, passage):
            if not (claims and known is None and origin is not None):
                made.unchanged += 1
                continue
            made.relabelled.append(name)
        elif replacing:
            same = old.content == passage.content and (
                old.image == passage.image or not sees_images()
            )
            (made.relabelled if same else made.changed).append(name)
        else:
            raise DataError(
                f"{there.source} already has another passage {name!r}: "
                "update it, or give the new one another id"
            )
        made.origins[name] = origin or known
    if prune:
        of = {origin.source for origin, _ in runs}
        kept = set(incoming)
        made.deleted = [
            passage.passage_id
            for passage, origin in there.with_origins()
            if origin is not None and origin.source in of and passage.passage_id not in kept
        ]
    return made
