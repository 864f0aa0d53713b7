"""One index made of several shards, each built and searched by a worker.

    index/
      sharded.json   number and kind of shards, and their source; written when all are complete
      shard-000/     an index of another kind
      shard-000.lock held by the worker that builds it

A query is sent to all shards and their rankings are merged by score. MaxSim looks at one passage
at a time, so nothing is lost: the result is as exact as the shards are.

A worker takes a shard that nobody is building, builds it, takes the next, and finally waits for
the other workers' shards. So any number of processes may build one index, and what a killed
process left undone is done by the others, or when the build is repeated. All workers must have
access to the folder.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar

from pydantic import Field, model_validator

from ravqa.core.cluster import Crew, connected
from ravqa.core.devices import processes
from ravqa.core.errors import DamagedError, UserError
from ravqa.core.factory import part_config
from ravqa.core.files import LockedError, atomic_write, lock
from ravqa.core.locations import real_path
from ravqa.core.progress import Progress, silent
from ravqa.core.settings import Options, Part, Strict
from ravqa.core.settings import fingerprint as fingerprint_of
from ravqa.core.stored import as_type, read_json
from ravqa.encoders.base import Vectors
from ravqa.indexes import INDEXES
from ravqa.indexes.base import Array, Footprint, Index, Ranking, StoredIndex, checked_passages
from ravqa.indexes.segmented.store import check_format

T = TypeVar("T")

_FORMAT = 1
_WHY_RAY = "the index sharded with workers: ray"
_MANIFEST = "sharded.json"
_SUMS = ("passages", "deleted", "vectors", "bytes")

Embed = Callable[[int, int], Iterable[Vectors]]
"""Returns one array [vectors, dim] for each passage from the first number to before the second."""


class ShardedIndex(StoredIndex):
    """Several indexes of another kind as one; see the module and `SegmentedIndex`.

    Shards change one after the other: a concurrent search sees each passage before or after the
    change, never twice. Added passages go to the smallest shard. Ties come in the order of the
    shards, which is that of the passages as built.
    """

    kind: ClassVar[str] = "sharded"
    grows: ClassVar[bool] = True
    reports: ClassVar[bool] = True

    class Config(Strict):
        """Options.

        Attributes:
            shard: the kind of the shards, with its options. Options that are fixed when an index
                is built are fixed here too.
            shards: number of shards; null for one per worker. Fixed when the index is built.
            workers: local: this process. accelerate: the processes that torchrun or accelerate
                started build together, if all call `build`; each opens all shards. ray: actors of
                a Ray cluster build, hold and search one shard each.
            ray: options of the actors, such as {num_cpus: 4, num_gpus: 1}. A lost one is started
                again, and what it was searching for is repeated once (`noted_losses`).
        """

        shard: Part = Part(name="auto")
        shards: int | None = Field(default=None, ge=1)
        workers: Literal["local", "accelerate", "ray"] = "local"
        ray: Options = Field(default_factory=dict)

        def packages(self) -> Sequence[tuple[str, str]]:
            """Ray, if it runs the workers."""
            return [("ray", "ray")] if self.workers == "ray" else []

        @model_validator(mode="after")
        def _check_shard(self) -> Self:
            config = part_config(INDEXES, self.shard, "index.shard")
            if INDEXES.get(self.shard.name).elsewhere(config):
                raise ValueError(
                    f"shards are in the index's folder, and {self.shard.name} keeps its data "
                    f"elsewhere: choose the index {self.shard.name} without shards"
                )
            return self

    def __init__(self, path: Path, config: Config | None = None, *, fingerprint: str | None = None):
        """Open the index in `path`.

        Args:
            config: None for the kind and options of shards that the index was built with.
            fingerprint: what the index must have been built from; None accepts any.

        Raises:
            UserError: the index is incomplete, of another format, or built from something else.
        """
        super().__init__(path, config, fingerprint=fingerprint)
        self._manifest = _read(self.path)
        self.config = config or self.Config(shard=Part(**self._manifest.shard))
        self._check_source(self.fingerprint)
        self._workers = _workers(self.path, self.config, self._manifest)
        self._workers.open()
        if any(dim != self.dim for dim in self._workers.run(lambda shard: shard.dim)):
            raise DamagedError(
                f"the shards in {self.path} do not belong to one index: build it again"
            )

    @classmethod
    def fixed(cls, config: Config) -> dict[str, Any]:
        """Return the options that are fixed when the index is built."""
        kind, options = INDEXES.get(config.shard.name), part_config(INDEXES, config.shard, "shard")
        shard = {"name": config.shard.name, **kind.fixed(options)}
        return {"shards": config.shards, "shard": shard}

    @classmethod
    def footprint(cls, config: Config, dim: int, passages: int) -> Footprint | None:
        """Return that of the shards, as if all were built in one place."""
        shard = part_config(INDEXES, config.shard, "shard")
        return INDEXES.get(config.shard.name).footprint(shard, dim, passages)

    @classmethod
    def built_together(cls, config: Config) -> bool:
        """Return whether all processes must call `build`."""
        return config.workers == "accelerate"

    @staticmethod
    def built(path: Path) -> bool:
        """Return whether `path` holds a complete index."""
        return (path / _MANIFEST).is_file()

    @classmethod
    def build(
        cls,
        ids: Iterable[str],
        embeddings: Iterable[Vectors],
        path: Path,
        *,
        dim: int,
        config: Config | None = None,
        fingerprint: str = "",
        progress: Progress | None = None,
    ) -> Self:
        """Build an index of passages and open it; see `SegmentedIndex.build`.

        Args:
            ids, path, dim: as in `SegmentedIndex.build`.
            embeddings: as there; every worker reads those of its shards. With Ray they are sent to
                the workers: a list, or an `EmbeddingStore` in a folder that the workers can read.
            fingerprint: what the vectors depend on; needed to resume a killed build, and for
                processes to recognise each other's work.
            progress: called as progress(what, done, total), in shards.

        Raises:
            UserError: the folder already holds another index, or there are several processes and
                no fingerprint.
            ValueError: an id twice, or see `checked_passages`.
        """
        ids = list(ids)
        return cls.build_with(
            ids,
            _Slices(embeddings, len(ids)),
            path,
            dim=dim,
            config=config,
            fingerprint=fingerprint,
            progress=progress,
        )

    @classmethod
    def build_with(
        cls,
        ids: Iterable[str],
        embed: Embed,
        path: Path,
        *,
        dim: int,
        config: Config | None = None,
        fingerprint: str = "",
        progress: Progress | None = None,
    ) -> Self:
        """Build the index as `build`, but let each worker encode the vectors of its shard.

        Args:
            embed: called by the worker that builds a shard, with the numbers of the shard's first
                passage and of the one after its last. With Ray it is sent to the workers.
        """
        config = config or cls.Config()
        path = Path(path)
        ids = list(ids)
        _check_unique(ids)
        if cls.built(path):
            if fingerprint and _read(path).fingerprint == fingerprint:
                return cls(path, config)
            raise UserError(f"{path} already has an index")
        if config.workers == "accelerate" and not fingerprint and processes().num_processes > 1:
            raise UserError("several processes can only build an index that has a fingerprint")
        path.mkdir(parents=True, exist_ok=True)
        number = max(1, min(config.shards or _parallel(config), len(ids)))
        manifest = _Manifest(dim, fingerprint, number, config.shard.model_dump())
        bounds = [len(ids) * i // number for i in range(number + 1)]
        workers = _workers(path, config, manifest)
        tasks = [(ids[a:b], embed, a, b, dim) for a, b in pairwise(bounds)]
        report = progress or silent
        report("building shards", 0, number)
        workers.build(tasks, lambda done: report("building shards", done, number))
        del workers  # Ray's release their resources before new ones start
        atomic_write(path / _MANIFEST, json.dumps({"format": _FORMAT, **asdict(manifest)}))
        return cls(path, config)

    # -- reading ------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._manifest.dim

    @property
    def fingerprint(self) -> str:
        """The fingerprint that was passed to `build`."""
        return self._manifest.fingerprint

    def __len__(self) -> int:
        return sum(self._workers.run(len))

    def __contains__(self, passage_id: object) -> bool:
        return any(self._workers.run(lambda shard: passage_id in shard))

    @property
    def ids(self) -> list[str]:
        """The passages' ids, shard by shard."""
        return list(chain.from_iterable(self._workers.run(lambda shard: shard.ids)))

    @property
    def can_change(self) -> bool:
        """Whether the shards can change."""
        return all(self._workers.run(lambda shard: shard.can_change))

    @property
    def packed(self) -> list[str] | None:
        """The manifest and the files of all shards."""
        files = [_MANIFEST]
        for number, own in enumerate(self._workers.run(lambda shard: shard.packed)):
            if own is None:
                return None
            files += [f"{_name(number)}/{file}" for file in own]
        return files

    def search(
        self,
        queries: Sequence[Vectors],
        k: int,
        *,
        allowed_ids: Iterable[str] | None = None,
        **params: Any,
    ) -> list[Ranking]:
        """Return the k best passages per query; see `ravqa.indexes.base.Index.search`."""
        allowed = None if allowed_ids is None else list(allowed_ids)
        parts = self._workers.run(
            lambda shard: shard.search(queries, k, allowed_ids=allowed, **params)
        )
        return [
            sorted(chain.from_iterable(rankings), key=lambda hit: -hit[1])[:k]
            for rankings in zip(*parts, strict=True)
        ]

    def score(self, queries: Sequence[Vectors], ids: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the MaxSim of each query with each passage of its own list; see `Index.score`.

        Raises:
            KeyError: an id is not in the index.
        """
        found: list[dict[str, float]] = [{} for _ in queries]
        for part in self._workers.run(partial(_scores, queries, ids)):
            for scores, more in zip(found, part, strict=True):
                scores |= more
        return [[s[i] for i in wanted] for s, wanted in zip(found, ids, strict=True)]

    def stats(self) -> dict[str, Any]:
        """Return statistics of the index: passages, bytes on disk, and those of each shard."""
        shards = self._workers.run(lambda shard: shard.stats())
        return {
            "kind": self.kind,
            "dim": self.dim,
            "fingerprint": self.fingerprint,
            **{key: sum(s.get(key, 0) for s in shards) for key in _SUMS},
            "segments": max(s.get("segments", 1) for s in shards),
            "shards": shards,
        }

    def verify(self) -> list[str]:
        """Reread every file and return one line per missing or changed one.

        Raises:
            UserError: a manifest is damaged.
        """
        _read(self.path)
        parts = enumerate(self._workers.run(lambda shard: shard.verify()))
        return [f"{_name(i)}/{line}" for i, lines in parts for line in lines]

    def refresh(self) -> None:
        """Pick up what other processes have committed."""
        self._workers.run(lambda shard: shard.refresh())

    # -- changing -----------------------------------------------------------------------------

    def add(self, ids: Iterable[str], embeddings: Iterable[Vectors]) -> None:
        """Add passages, held in memory until written.

        Raises:
            UserError: another process is writing.
            ValueError: an id already exists, or see `checked_passages`; nothing is added.
        """
        new = dict(checked_passages(ids, embeddings, self.dim))
        if known := self._owners(new):
            raise ValueError(f"passage {min(known)!r} is already in the index: update it")
        if new:
            smallest = [self._smallest()]
            self._workers.run(partial(_add, new), only=smallest, changes=True)

    def update(self, ids: Iterable[str], embeddings: Iterable[Vectors]) -> None:
        """Replace passages, or add those that do not exist; all are held in memory."""
        new = dict(checked_passages(ids, embeddings, self.dim))
        owners, smallest = self._owners(new), self._smallest()
        for number in sorted({owners.get(i, smallest) for i in new}):
            mine = {i: v for i, v in new.items() if owners.get(i, smallest) == number}
            self._workers.run(partial(_update, mine), only=[number])

    def delete(self, ids: Iterable[str]) -> None:
        """Delete passages; they are never found again. `compact` frees their disk space.

        Raises:
            UserError: another process is writing.
            KeyError: an id is not in the index; nothing is deleted.
        """
        ids = list(dict.fromkeys(ids))
        owners = self._owners(ids)
        if unknown := set(ids) - owners.keys():
            raise KeyError(min(unknown))
        for number in sorted(set(owners.values())):
            mine = [i for i in ids if owners[i] == number]
            self._workers.run(partial(_delete, mine), only=[number], changes=True)

    def compact(self) -> None:
        """Rewrite every shard without the deleted passages."""
        self._workers.run(lambda shard: shard.compact())

    def _owners(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the shards of those passages that exist."""
        known = enumerate(self._workers.run(partial(_known, list(ids))))
        return {passage_id: shard for shard, found in known for passage_id in found}

    def _smallest(self) -> int:
        sizes = self._workers.run(len)
        return sizes.index(min(sizes))


def _add(passages: dict[str, Array], shard: Index) -> None:
    shard.add(passages, passages.values())


def _update(passages: dict[str, Array], shard: Index) -> None:
    shard.update(passages, passages.values())


def _delete(ids: list[str], shard: Index) -> None:
    shard.delete(ids)


def _known(ids: Iterable[str], shard: Index) -> list[str]:
    """Return those of the ids that a shard holds."""
    return [i for i in ids if i in shard]


def _scores(
    queries: Sequence[Vectors], ids: Sequence[Sequence[str]], shard: Index
) -> list[dict[str, float]]:
    """Return the MaxSim of each query with those of its passages that a shard holds."""
    mine = [_known(wanted, shard) for wanted in ids]
    rows = shard.score(queries, mine)
    return [dict(zip(*pair, strict=True)) for pair in zip(mine, rows, strict=True)]


def _check_unique(ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for passage_id in ids:
        if passage_id in seen:
            raise ValueError(f"passage id {passage_id!r} occurs twice: ids must be unique")
        seen.add(passage_id)


@dataclass(frozen=True)
class _Manifest:
    """Content of `sharded.json`: also the number of shards, and their kind with its options."""

    dim: int
    fingerprint: str
    shards: Annotated[int, Field(ge=1)]
    shard: dict[str, Any]


def _read(path: Path) -> _Manifest:
    """Return the contents of `sharded.json`.

    Raises:
        UserError: the file does not exist.
        DamagedError: it is damaged, or has another format.
    """
    file = path / _MANIFEST
    try:
        values = read_json(file)
        check_format(values["format"], _FORMAT, f"the index in {path}")
        found = as_type(_Manifest, values)
        Part(**found.shard)
    except FileNotFoundError:
        raise UserError(f"no index in {path}") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedError(
            f"{file} is damaged: delete the folder and build the index again"
        ) from None
    return found


def _name(shard: int) -> str:
    return f"shard-{shard:03}"


class _Slices:
    """`Embed` for vectors in a sequence, or from an iterator in the order of the passages."""

    def __init__(self, embeddings: Iterable[Vectors], count: int):
        self._embeddings = embeddings
        self._count = count
        self._iterator: Iterator[Vectors] | None = None
        self._at = 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_iterator": None, "_at": 0}

    def __call__(self, start: int, stop: int) -> Iterator[Vectors]:
        if self._iterator is None or start < self._at:
            self._iterator, self._at = iter(self._embeddings), 0
        for _ in islice(self._iterator, start - self._at):
            pass
        self._at = stop
        # The last slice takes all that remains: if that is too much, the index reports it.
        return islice(self._iterator, None if stop == self._count else stop - start)


class _Shard:
    """One shard in the hands of its worker."""

    def __init__(self, folder: Path, part: Part, fingerprint: str | None):
        """Record the shard without building or opening it.

        Args:
            fingerprint: what the shard is built from; None if unknown.
        """
        self._folder = folder
        self._kind = INDEXES.get(part.name)
        self._config = part_config(INDEXES, part, "index.shard")
        self._fingerprint = fingerprint
        self._index: Index | None = None

    def build(
        self, ids: Sequence[str], embed: Embed, start: int, stop: int, dim: int, *, wait: bool
    ) -> bool:
        """Build the shard unless it is complete.

        Args:
            wait: for another worker that is building it; otherwise give up and return False.
        """
        name = f"{self._folder.name}.lock"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(
                    lock(self._folder.parent, "the shard", name=name, wait=None if wait else 0)
                )
            except LockedError:
                return False
            if not self._whole():
                shutil.rmtree(self._folder, ignore_errors=True)
                self._kind.build(
                    ids,
                    embed(start, stop),
                    self._folder,
                    dim=dim,
                    config=self._config,
                    fingerprint=self._fingerprint or "",
                )
        return True

    def _whole(self) -> bool:
        if self._fingerprint is None:
            return False
        with contextlib.suppress(UserError):  # it is then built
            self.open()
        return self._index is not None

    def open(self) -> None:
        if not self._kind.built(self._folder):
            raise DamagedError(f"no index in {self._folder}: build the whole index again")
        self._index = self._kind.open(self._folder, self._config, fingerprint=self._fingerprint)

    def apply(self, task: Callable[[Index], T]) -> T:
        """Return a function's result for the index, which a restarted worker opens again."""
        if self._index is None:
            self.open()
        assert self._index is not None
        return task(self._index)


_Task = tuple[Sequence[str], Embed, int, int, int]
"""The arguments of `_Shard.build` for one shard."""


class _Workers(Protocol):
    """The workers that hold the shards."""

    def build(self, tasks: Sequence[_Task], report: Callable[[int], object]) -> None:
        """Build all shards; report how many are built."""
        ...

    def open(self) -> None:
        """Open all shards."""
        ...

    def run(
        self,
        task: Callable[[Index], T],
        *,
        only: Sequence[int] | None = None,
        changes: bool = False,
    ) -> list[T]:
        """Return a function's results for the index of every shard, or of some shards.

        Args:
            changes: whether it must not be repeated when a worker is lost.
        """
        ...


def _workers(path: Path, config: ShardedIndex.Config, manifest: _Manifest) -> _Workers:
    number, whole = manifest.shards, manifest.fingerprint
    shards = []
    for i in range(number):
        own = fingerprint_of(whole, manifest.shard, i, number) if whole else None
        shards.append((real_path(path) / _name(i), config.shard, own))
    if config.workers == "ray":
        return _Ray(real_path(path), shards, config.ray)
    return _Local(shards, processes().process_index if config.workers == "accelerate" else 0)


def _parallel(config: ShardedIndex.Config) -> int:
    """Return the number of workers."""
    if config.workers == "accelerate":
        return int(processes().num_processes)
    if config.workers == "ray":
        return sum(node["Alive"] for node in connected(_WHY_RAY).nodes())
    return 1


class _Local:
    """All shards in this process; it builds those that no other process builds."""

    def __init__(self, shards: Sequence[tuple[Path, Part, str | None]], first: int):
        self._shards = [_Shard(*shard) for shard in shards]
        self._first = first % len(shards)

    def build(self, tasks: Sequence[_Task], report: Callable[[int], object]) -> None:
        order = list(range(len(tasks)))
        left = order[self._first :] + order[: self._first]
        built = 0
        for wait in (False, True):
            others = []
            for i in left:
                if self._shards[i].build(*tasks[i], wait=wait):
                    built += 1
                    report(built)
                else:
                    others.append(i)
            left = others

    def open(self) -> None:
        for shard in self._shards:
            shard.open()

    def run(
        self,
        task: Callable[[Index], T],
        *,
        only: Sequence[int] | None = None,
        changes: bool = False,
    ) -> list[T]:
        chosen = range(len(self._shards)) if only is None else only
        return [self._shards[i].apply(task) for i in chosen]


class _Ray:
    """One actor of a Ray cluster per shard, spread over as many nodes as possible."""

    def __init__(
        self,
        path: Path,
        shards: Sequence[tuple[Path, Part, str | None]],
        options: Mapping[str, Any],
    ):
        makers = [partial(_Shard, *shard) for shard in shards]
        self._crew = Crew(makers, options=options, what="the shard", why=_WHY_RAY, folder=path)

    def build(self, tasks: Sequence[_Task], report: Callable[[int], object]) -> None:
        try:
            embed = self._crew.put(tasks[0][1])
        except TypeError:
            raise UserError(
                "over Ray the embeddings are sent to the workers, and these cannot be: a list or "
                "an EmbeddingStore is expected"
            ) from None
        calls = {i: (_build_shard, (ids, embed, *rest)) for i, (ids, _, *rest) in enumerate(tasks)}
        self._crew.run(calls, report=report)

    def open(self) -> None:
        self._crew.run(dict.fromkeys(range(len(self._crew)), (_Shard.open, ())))

    def run(
        self,
        task: Callable[[Index], T],
        *,
        only: Sequence[int] | None = None,
        changes: bool = False,
    ) -> list[T]:
        chosen = range(len(self._crew)) if only is None else only
        shared = self._crew.put(task)
        calls = dict.fromkeys(chosen, (_Shard.apply, (shared,)))
        return self._crew.run(calls, repeat=not changes)


def _build_shard(
    shard: _Shard, ids: Sequence[str], embed: Embed, start: int, stop: int, dim: int
) -> None:
    shard.build(ids, embed, start, stop, dim, wait=True)
