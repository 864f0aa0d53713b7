"""MaxSim in Qdrant, on a server or a cluster, for corpora that outgrow one machine.

A passage is a point with two vectors: `tokens`, all of its vectors (a multivector compared by
MaxSim; without a graph, in which every hop would be a MaxSim), and `mean`, their mean scaled to
unit length, with Qdrant's graph. A search takes the `prefetch` points whose mean has the greatest
dot product with the sum of the query's vectors, and ranks them by MaxSim.

The share of the exact top 10 among them, for 10,000 passages of real text (token states of
all-MiniLM-L6-v2 in 128 dimensions, 114 per passage; queries of `benchmarks/search_data.py`, 100
of the shorter, 40 of the longer):

    prefetch                                   200    500   1000   2000
    308 vectors, image vectors in clusters     .99   1.00   1.00   1.00
    308 vectors, image vectors of noise        .91   1.00   1.00   1.00
    308 text vectors of sixteen passages       .97   1.00   1.00   1.00
    101 vectors                                .98   1.00   1.00   1.00
    32 vectors                                 .82    .91    .96    .98

Unscaled means, and fixed dimensional encodings (MUVERA, Dhulipala et al. 2024, arXiv 2405.19504)
of up to 10,240 dimensions, were worse; means of 4 to 16 parts of a passage about equal; sparse
vectors of centroids better for 32 vectors only. But MiniLM was trained for averaging, and other
encoders are not: with another one, compare with `prefetch: null`, which scores every passage.

On a server an index is built as the collection NAME-VERSION, and NAME is an alias of it. An index
that replaces another is built beside it; then the alias is switched, and the old one deleted.

Without a `url` the engine runs in this process (qdrant-edge), in the index's folder: for tests and
small corpora. `QdrantClient(path=...)` is not offered, because it reads pickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as version_of
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import numpy as np
from pydantic import Field, field_validator

from ravqa.core.errors import DamagedError, ServerError, UserError, import_extra
from ravqa.core.files import atomic_write, lock
from ravqa.core.locations import real_path
from ravqa.core.masking import Mask
from ravqa.core.settings import Address, Strict, Text, validate
from ravqa.core.stored import as_type, read_json
from ravqa.encoders.base import Vectors
from ravqa.indexes.base import (
    Array,
    Footprint,
    Ranking,
    StoredIndex,
    check_k,
    checked_passages,
    checked_query,
)
from ravqa.indexes.segmented.store import check_format

_log = logging.getLogger(__name__)

_FORMAT = 1
_POINTER = "qdrant.json"
_KEY = "QDRANT_API_KEY"
_WHY = "the index qdrant"
_WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before a request is repeated, while `timeout` lasts
_LONGEST = 30.0  # seconds that a server may ask to wait
_HELLO = 10  # seconds for a server's first answer, with its version
_BATCH = 2**18  # components in an upload: a few megabytes of JSON, servers accept 32
_PAGE = 1000  # points per request
_NAMES = uuid.UUID("6d1b1c4e-8b43-5a0e-9f3c-0d2f4c6a7e11")
_META = str(uuid.uuid5(_NAMES, "meta"))


def _point_id(passage_id: str) -> str:
    """Return the point id of a passage: Qdrant's ids are numbers or UUIDs."""
    return str(uuid.uuid5(_NAMES, f"passage:{passage_id}"))


Point = tuple[str, dict[str, Array], dict[str, Any]]
"""Passage id; vectors by name, empty for a point that must never be found; payload."""


class _Engine(Protocol):
    """One collection, on a server or in this process."""

    where: str

    def exists(self) -> bool: ...

    def use(self, version: str | None) -> None:
        """Use this version of the collection, whether or not it is published; None for that one."""
        ...

    def create(self, dim: int, storage: str, version: str) -> None:
        """Create a version of the collection, replacing an existing one, and use it."""
        ...

    def publish(self) -> None:
        """Give the version in use the collection's name, and delete all others."""
        ...

    def drop(self) -> None:
        """Delete the version in use."""
        ...

    def put(self, points: Sequence[Point]) -> None:
        """Add points, or replace those with the same ids; they then outlive the process."""
        ...

    def remove(self, ids: Sequence[str]) -> None: ...

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the payloads of those points that exist."""
        ...

    def scroll(self) -> Iterator[dict[str, Any]]:
        """Yield the payloads of all points."""
        ...

    def __len__(self) -> int: ...

    def search(
        self, query: Array, limit: int, prefetch: int | None, allowed: Sequence[str] | None
    ) -> list[tuple[dict[str, Any], float]]:
        """Return payloads and MaxSim of the best points, best first.

        Args:
            query: float32 [vectors, dim].
            prefetch: number of points to score, chosen by their means; None for all.
            allowed: search only these points.
        """
        ...

    def optimize(self) -> None: ...

    def flush(self) -> None:
        """Flush everything to disk, so that it survives a power cut."""
        ...

    def faults(self) -> list[str]: ...

    def close(self) -> None: ...


class QdrantIndex(StoredIndex):
    """A Qdrant collection as an index; the module's docstring says how it is searched.

    An extra point without vectors describes the collection: the fingerprint, and whether the build
    finished. The folder `path` has a file that names the collection and, without a `url`, the
    collection itself, which one process at a time may open.

    Each passage changes at once, but several passages change one after the other: a search may see
    part of a change. Callers must ensure that only one process writes.
    """

    kind: ClassVar[str] = "qdrant"
    grows: ClassVar[bool] = True

    class Config(Strict):
        """Options.

        Attributes:
            url: the server's address, as http://localhost:6333; the API key is read from the
                environment variable QDRANT_API_KEY. null: in this process.
            collection: its name on the server, an alias of what was built last; null for ravqa- and
                the name of the index's folder, or, of ravqa's own collections, of their folder.
            prefetch: number of passages to score; null for all.
            storage: how the server stores vectors. Fixed when the index is built.
            timeout: seconds to wait for the server's answer, and during which requests to a server
                that is away, busy or failing are repeated.
        """

        url: Address | None = None
        collection: Text | None = None
        prefetch: int | None = Field(default=1000, ge=1)
        storage: Literal["float16", "float32"] = "float16"
        timeout: int = Field(default=60, ge=1)

        def packages(self) -> Sequence[tuple[str, str]]:
            """The client for a server, or the engine for use without one."""
            return [("qdrant_edge" if self.url is None else "qdrant_client", "qdrant")]

        def servers(self) -> Sequence[str]:
            """Return the address, if there is one."""
            return [] if self.url is None else [self.url]

        @field_validator("url")
        @classmethod
        def _check_url(cls, url: str | None) -> str | None:
            parts = urlsplit(url or "http://localhost")
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("http://HOST:PORT or https://HOST:PORT is expected")
            if parts.username or parts.password or parts.query:
                raise ValueError(f"a key does not belong here: set {_KEY} in the environment")
            return url

    @classmethod
    def elsewhere(cls, config: Config) -> bool:
        """Return whether a server has the index."""
        return config.url is not None

    @classmethod
    def named(cls, config: Config, name: str) -> Config:
        """Return the options with a name for the server's collection, unless they have one."""
        if config.url is None or config.collection is not None:
            return config
        return config.model_copy(update={"collection": name})

    @classmethod
    def footprint(cls, config: Config, dim: int, passages: int) -> Footprint | None:
        """Return nothing for a server's index; else the disk that the engine was measured to take.

        Measured: 300 and 1,500 passages of 60 vectors of 128 dimensions, blocks of the disk.
        """
        if config.url is not None:
            return Footprint(0.0, 0.0)
        return Footprint(dim * (5.3 + np.dtype(config.storage).itemsize), None)

    @classmethod
    def fixed(cls, config: Config) -> dict[str, Any]:
        """Return the options that are fixed when the index is built, and where it is."""
        return config.model_dump(include={"url", "collection", "storage"})

    def __init__(self, path: Path, config: Config | None = None, *, fingerprint: str | None = None):
        """Open the index.

        Args:
            path: the index's folder; with a `url` in `config` it need not exist.
            config: None for the collection that the folder names.
            fingerprint: what the index must have been built from; None accepts any.

        Raises:
            UserError: the index is incomplete, of another format, or built from something else; the
                server cannot be reached; without a server, another process has the index open.
        """
        super().__init__(path, config, fingerprint=fingerprint)
        self.config = config or _pointed_at(self.path)
        self._engine = _engine(self.path, self.config)
        try:
            self._meta = self._read()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def built(path: Path) -> bool:
        """Return whether `path` holds a completely built index."""
        return (path / _POINTER).is_file()

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
        replaces: str | None = None,
    ) -> Self:
        """Build a collection of passages and open it; see `SegmentedIndex.build`.

        An existing collection of this name is reused if it was completely built from the same
        `fingerprint` (not ""); an incomplete one is built again.

        Args:
            replaces: the fingerprint of an index of this name that `publish` will replace.

        Raises:
            UserError: the collection holds something else, or another process is building here.
            ValueError: see `checked_passages`.
        """
        config = config or cls.Config()
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        with (
            lock(path, "the index", name="lock", wait=0),
            contextlib.closing(_engine(path, config)) as engine,
        ):
            if cls.built(path):
                raise UserError(f"{path} already has an index")
            if not _already(engine, fingerprint, replaces):
                # Only an index that nobody searches is replaced before its owner says so.
                free = not engine.exists() or not getattr(_description(engine), "whole", False)
                meta = _Description(_FORMAT, dim, fingerprint, config.storage)
                engine.create(dim, config.storage, _version(fingerprint))
                engine.put([meta.point])
                done = _upload(engine, checked_passages(ids, embeddings, dim), 0)
                engine.optimize()
                engine.put([replace(meta, whole=True, passages=done, next=done).point])
                engine.flush()
                if free:
                    engine.publish()
            atomic_write(path / _POINTER, config.model_dump_json())
        return cls(path, config, fingerprint=fingerprint or None)

    def publish(self) -> None:
        """See `Index.publish`: the alias is switched, which searches do not notice."""
        self._engine.publish()

    def drop(self) -> None:
        """Delete the collection from the server."""
        for version in (None, _version(self.fingerprint)):
            self._engine.use(version)
            found = self._described()
            if found is not None and found.fingerprint == self.fingerprint:
                self._engine.drop()
        self.close()

    def close(self) -> None:
        """Release the engine; the index cannot be used afterwards."""
        self._engine.close()

    # -- reading ------------------------------------------------------------------------------

    def _read(self) -> _Description:
        """Return the description that the collection holds of itself."""
        meta = self._described()
        if self._wanted and (meta is None or meta.fingerprint != self._wanted):
            self._engine.use(_version(self._wanted))  # it may be built, and not published yet
            built = self._described()
            if built is not None and built.whole and built.fingerprint == self._wanted:
                meta = built
            else:
                self._engine.use(None)
        where = self._engine.where
        if meta is None and not self._engine.exists():
            raise DamagedError(f"no index in {self.path}: {where} does not exist")
        if meta is None or not meta.whole:
            raise DamagedError(f"{where} has an index whose build did not end: build it again")
        check_format(meta.format, _FORMAT, where)
        self._check_source(meta.fingerprint, where, "build it again, or use another collection")
        return meta

    def _described(self) -> _Description | None:
        return _description(self._engine) if self._engine.exists() else None

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._meta.dim

    @property
    def fingerprint(self) -> str:
        """The fingerprint that was passed to `build`."""
        return str(self._meta.fingerprint)

    def __len__(self) -> int:
        return len(self._engine) - 1  # without the descriptive point

    def __contains__(self, passage_id: object) -> bool:
        return isinstance(passage_id, str) and bool(self._known([passage_id]))

    @property
    def ids(self) -> list[str]:
        """The passages' ids, in order: as built, then as added. Requests all of them."""
        found = [p for p in self._engine.scroll() if "id" in p]
        return [p["id"] for p in sorted(found, key=lambda payload: payload["number"])]

    def search(
        self,
        queries: Sequence[Vectors],
        k: int,
        *,
        allowed_ids: Iterable[str] | None = None,
        **params: Any,
    ) -> list[Ranking]:
        """Return the k best passages per query; see `ravqa.indexes.base.Index.search`.

        Args:
            queries, k, allowed_ids: as in `Index.search`.
            params: `prefetch`.
        """
        check_k(k)
        if params.keys() - {"prefetch"}:
            raise ValueError(f"a search takes the setting prefetch only, got {', '.join(params)}")
        config = validate(self.Config, self.config.model_dump() | params, "search")
        allowed = (
            None if allowed_ids is None else [_point_id(i) for i in dict.fromkeys(allowed_ids)]
        )
        prefetch = config.prefetch and max(config.prefetch, k)
        if prefetch and allowed is not None and len(allowed) <= prefetch:
            prefetch = None
        kept = [checked_query(query, self.dim) for query in queries]
        if allowed == []:
            return [[] for _ in kept]
        return [_ranking(self._engine.search(query, k, prefetch, allowed)) for query in kept]

    def score(self, queries: Sequence[Vectors], ids: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the MaxSim of each query with each passage of its own list; see `Index.score`.

        Raises:
            KeyError: an id is not in the index.
        """
        out = []
        for query, wanted in zip(queries, ids, strict=True):
            query = checked_query(query, self.dim)
            found: dict[str, float] = {}
            for page in _pages(dict.fromkeys(wanted)):
                points = [_point_id(i) for i in page]
                found |= _ranking(self._engine.search(query, len(points), None, points))
            rest = set(wanted) - found.keys()
            if unknown := rest - self._known(rest):
                raise KeyError(min(unknown))
            out.append([found.get(i, -np.inf) for i in wanted])
        return out

    def stats(self) -> dict[str, Any]:
        """Return statistics of the index: passages, location, settings."""
        return {
            "kind": self.kind,
            "dim": self.dim,
            "passages": len(self),
            "where": self._engine.where,
            "fingerprint": self.fingerprint,
            "storage": self._meta.storage,
        }

    def verify(self) -> list[str]:
        """Return one line per fault: lost passages, an unfinished change, or server problems.

        Raises:
            UserError: the index no longer exists or is incomplete.
        """
        self.refresh()
        faults = self._engine.faults()
        if len(self) != self._meta.passages:
            faults.append(f"{len(self)} passages instead of {self._meta.passages}")
        return faults

    def refresh(self) -> None:
        """Reread the description; searches see other processes' changes anyway."""
        self._meta = self._read()

    # -- changing -----------------------------------------------------------------------------

    def add(self, ids: Iterable[str], embeddings: Iterable[Vectors]) -> None:
        """Add passages after the existing ones.

        Raises:
            ValueError: an id already exists (nothing is added); see also `checked_passages`.
        """
        ids = list(ids)
        if known := self._known(ids):
            raise ValueError(f"passage {min(known)!r} is already in the index: update it")
        self._put(ids, embeddings)

    def update(self, ids: Iterable[str], embeddings: Iterable[Vectors]) -> None:
        """Replace passages, or add those that do not exist; they come after the others."""
        self._put(ids, embeddings)

    def delete(self, ids: Iterable[str]) -> None:
        """Delete passages; they are never found again.

        Raises:
            KeyError: an id is not in the index; nothing is deleted.
        """
        ids = list(dict.fromkeys(ids))
        if unknown := set(ids) - self._known(ids):
            raise KeyError(min(unknown))
        for page in _pages(ids):
            self._engine.remove([_point_id(i) for i in page])
        self._settle()

    def compact(self) -> None:
        """Optimize the engine's storage now; a server does so by itself."""
        self._engine.optimize()

    def _put(self, ids: Iterable[str], embeddings: Iterable[Vectors]) -> None:
        self.refresh()
        first = self._meta.next
        added = _upload(self._engine, checked_passages(ids, embeddings, self.dim), first)
        self._settle(first + added)

    def _settle(self, following: int | None = None) -> None:
        """Record that a change has ended, and the number of the next passage if it changed."""
        found = self._read()
        number = found.next if following is None else following
        self._meta = replace(found, passages=len(self), next=number)
        self._engine.put([self._meta.point])
        self._engine.flush()

    def _known(self, ids: Iterable[str]) -> set[str]:
        """Return those of the passages that exist."""
        points = {_point_id(i): i for i in ids}
        return {points[p] for page in _pages(points) for p in self._engine.payloads(page)}


def _pages(items: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(items)
    while page := list(islice(iterator, _PAGE)):
        yield page


def _ranking(found: Iterable[tuple[dict[str, Any], float]]) -> Ranking:
    """Return ids and scores, best first, ties in passage order."""
    order = sorted(found, key=lambda pair: (-pair[1], pair[0]["number"]))
    return [(payload["id"], float(score)) for payload, score in order]


def _upload(engine: _Engine, passages: Iterable[tuple[str, Array]], first: int) -> int:
    """Put passages, a bounded number of components at a time; return how many there were.

    Args:
        first: number of the first passage; these numbers break ties.
    """
    points: list[Point] = []
    size = done = 0
    for (passage_id, array), number in zip(passages, count(first), strict=False):
        if points and size + array.size > _BATCH:
            engine.put(points)
            points, size = [], 0
        vectors = {}
        if len(array):
            mean = array.mean(0, dtype=np.float32)
            vectors = {"tokens": array, "mean": mean / max(float(np.linalg.norm(mean)), 1e-9)}
        points.append((_point_id(passage_id), vectors, {"id": passage_id, "number": number}))
        size += array.size
        done += 1
    if points:
        engine.put(points)
    return done


@dataclass(frozen=True)
class _Description:
    """The payload of the point that describes a collection; see `QdrantIndex`."""

    format: int
    dim: int
    fingerprint: str
    storage: str
    whole: bool = False
    passages: int = 0
    next: int = 0

    @property
    def point(self) -> Point:
        return _META, {}, asdict(self)


def _description(engine: _Engine) -> _Description | None:
    """Return what the collection says of itself; None if it says nothing.

    Raises:
        UserError: it is not what an index writes.
    """
    found = engine.payloads([_META]).get(_META)
    try:
        return None if found is None else as_type(_Description, found)
    except ValueError as e:
        raise UserError(f"{engine.where} is no index of ravqa, or is damaged ({e})") from None


def _version(fingerprint: str) -> str:
    """Return the part of a collection's name that tells what was built, or when."""
    text = fingerprint or uuid.uuid4().hex
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _already(engine: _Engine, fingerprint: str, replaces: str | None = None) -> bool:
    """Return whether a complete collection exists; False if it may be built or rebuilt.

    Raises:
        UserError: the collection holds something else.
    """
    if not engine.exists():
        return False
    meta = _description(engine)
    if meta is None and len(engine):
        raise UserError(f"{engine.where} already exists and is no index of ravqa: use another")
    if meta is None or not meta.whole:
        return False
    if fingerprint and (meta.format, meta.fingerprint) == (_FORMAT, fingerprint):
        return True
    if replaces is not None and meta.fingerprint == replaces:
        return False
    raise UserError(
        f"{engine.where} already has an index, of another corpus or by another encoder: "
        "use another collection, or delete this one"
    )


def _engine(path: Path, config: QdrantIndex.Config) -> _Engine:
    if config.url is None:
        return _Edge(path / "edge")
    return _Server(config, config.collection or f"ravqa-{path.name}")


def _pointed_at(path: Path) -> QdrantIndex.Config:
    """Return the configuration that the folder's index was built with."""
    try:
        return validate(QdrantIndex.Config, read_json(path / _POINTER), str(path / _POINTER))
    except FileNotFoundError:
        raise UserError(f"no index in {path}") from None
    except ValueError:
        raise DamagedError(
            f"{path / _POINTER} is damaged: delete the folder and build again"
        ) from None


_met: set[str] = set()  # addresses of servers whose versions were compared


def _numbers(version: str) -> tuple[int, int]:
    """Return major and minor number of a version."""
    parts = re.match(r"(\d+)\.(\d+)", version)
    if parts is None:
        raise UserError(f"a Qdrant version is expected, as 1.16.0, got {version!r:.40}")
    return int(parts[1]), int(parts[2])


class _Server:
    """A collection on a server."""

    def __init__(self, config: QdrantIndex.Config, collection: str):
        self._models = import_extra("qdrant_client", "qdrant", why=_WHY).models
        self._failures = import_extra("qdrant_client.http.exceptions", "qdrant", why=_WHY)
        common = import_extra("qdrant_client.common.client_exceptions", "qdrant", why=_WHY)
        self._busy = common.ResourceExhaustedResponse
        self._name = self._collection = collection
        self._config = config
        self.where = f"the collection {collection} at {config.url}"
        key = os.environ.get(_KEY)
        self._mask = Mask(key or "")
        self._client = self._connected(config.timeout)

    def _connected(self, timeout: int) -> Any:
        package = import_extra("qdrant_client", "qdrant", why=_WHY)
        return package.QdrantClient(
            url=self._config.url,
            api_key=os.environ.get(_KEY),
            timeout=timeout,
            # The client checks versions in its own thread, and warns when a server is unreachable.
            check_compatibility=False,
        )

    def _ask(self, method: str, **options: Any) -> Any:
        return self._send(method, collection_name=self._collection, **options)

    def _send(self, method: str, *, client: Any = None, patience: int = 0, **options: Any) -> Any:
        """Send a request, again if the server is busy, failing or away.

        Raises:
            ServerError: it stays so for `patience` seconds (`timeout` in the options), or refuses.
        """
        ask = getattr(client or self._client, method)
        end = time.monotonic() + (patience or self._config.timeout)
        for attempt in count():
            asked = 0.0
            try:
                return ask(**options)
            except self._failures.UnexpectedResponse as e:
                if attempt and e.status_code == 409:  # what was repeated had been done
                    return None
                error = self._refused(e)
                passing = e.status_code == 429 or (e.status_code or 0) >= 500
            except self._failures.ResponseHandlingException as e:
                passing = not isinstance(e.source, ValueError)
                what = "cannot be reached" if passing else "gives an answer that is not Qdrant's"
                error = ServerError(f"{self.where} {what}: {self._reason(str(e.source))}")
            except self._busy as e:
                error = ServerError(f"{self.where}: 429 {self._reason(str(e))}")
                passing, asked = True, float(e.retry_after_s)
            wait = max(asked, _WAITS[min(attempt, len(_WAITS) - 1)]) if _WAITS else 0.0
            late = time.monotonic() + wait > end
            if not passing or attempt >= len(_WAITS) or wait > _LONGEST or late:
                raise error
            time.sleep(wait)
        raise AssertionError

    def _refused(self, e: Any) -> ServerError:
        hint = f"; is {_KEY} set?" if e.status_code in {401, 403} else ""
        text = self._reason(e.content.decode(errors="replace"))
        return ServerError(f"{self.where}: {e.status_code} {text}{hint}")

    def _reason(self, text: str) -> str:
        return self._mask.text(" ".join(text.split()))[:200]

    def _meet(self) -> None:
        """Compare the server's version with the client's, at this process's first request.

        Raises:
            ServerError: it does not answer.
            UserError: their major versions differ.
        """
        url = str(self._config.url)
        if url in _met:
            return
        patience = min(_HELLO, self._config.timeout)
        with contextlib.closing(self._connected(patience)) as client:
            found = str(self._send("info", client=client, patience=patience).version)
        own = version_of("qdrant-client")
        server, ours = (_numbers(text) for text in (found, own))
        if server[0] != ours[0]:
            raise UserError(
                f"the Qdrant server at {url} has version {found}, and qdrant-client {own}: "
                "their major versions must be equal"
            )
        if abs(server[1] - ours[1]) > 1:
            _log.warning(
                "the Qdrant server at %s has version %s, and qdrant-client %s: Qdrant supports "
                "minor versions that differ by no more than 1",
                *(url, found, own),
            )
        _met.add(url)

    def _aliases(self) -> dict[str, str]:
        return {a.alias_name: a.collection_name for a in self._send("get_aliases").aliases}

    def exists(self) -> bool:
        self._meet()
        return self._collection in self._aliases() or bool(self._ask("collection_exists"))

    def use(self, version: str | None) -> None:
        self._collection = self._name if version is None else f"{self._name}-{version}"

    def create(self, dim: int, storage: str, version: str) -> None:
        m = self._models
        self.use(version)
        if self._ask("collection_exists"):
            self._ask("delete_collection")
        tokens = m.VectorParams(
            size=dim,
            distance=m.Distance.DOT,
            datatype=m.Datatype(storage),
            multivector_config=m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM),
            hnsw_config=m.HnswConfigDiff(m=0),
            on_disk=True,
        )
        mean = m.VectorParams(size=dim, distance=m.Distance.DOT)
        self._ask("create_collection", vectors_config={"tokens": tokens, "mean": mean})

    def publish(self) -> None:
        m, made = self._models, self._collection
        if made == self._name:
            return
        old = self._aliases().get(self._name)
        self._collection = self._name
        if old is None and self._ask("collection_exists"):  # incomplete, or of an older version
            self._ask("delete_collection")
        if old != made:
            new = m.CreateAlias(collection_name=made, alias_name=self._name)
            changes = [m.CreateAliasOperation(create_alias=new)]
            if old is not None:
                gone = m.DeleteAlias(alias_name=self._name)
                changes.insert(0, m.DeleteAliasOperation(delete_alias=gone))
            self._send("update_collection_aliases", change_aliases_operations=changes)
        for other in self._versions():
            if other != made:  # replaced, or left by a build that was killed
                self._send("delete_collection", collection_name=other)

    def _versions(self) -> list[str]:
        """Return the names of the collections that were built under this name."""
        names = [c.name for c in self._send("get_collections").collections]
        return [n for n in names if re.fullmatch(re.escape(self._name) + "-[0-9a-f]{12}", n)]

    def drop(self) -> None:
        target = self._aliases().get(self._collection, self._collection)
        self._send("delete_collection", collection_name=target)

    def put(self, points: Sequence[Point]) -> None:
        structs = [
            self._models.PointStruct(
                id=i, vector={n: v.tolist() for n, v in vectors.items()}, payload=payload
            )
            for i, vectors, payload in points
        ]
        self._ask("upsert", points=structs, wait=True)

    def remove(self, ids: Sequence[str]) -> None:
        self._ask("delete", points_selector=list(ids), wait=True)

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {str(r.id): r.payload for r in self._ask("retrieve", ids=list(ids))}

    def scroll(self) -> Iterator[dict[str, Any]]:
        offset = None
        while True:
            records, offset = self._ask("scroll", limit=_PAGE, offset=offset)
            yield from (r.payload for r in records)
            if offset is None:
                return

    def __len__(self) -> int:
        return int(self._ask("count", exact=True).count)

    def search(
        self, query: Array, limit: int, prefetch: int | None, allowed: Sequence[str] | None
    ) -> list[tuple[dict[str, Any], float]]:
        m = self._models
        only = allowed and m.Filter(must=[m.HasIdCondition(has_id=list(allowed))])
        first = prefetch and m.Prefetch(
            query=query.sum(0).tolist(), using="mean", limit=prefetch, filter=only
        )
        answer = self._ask(
            "query_points",
            query=query.tolist(),
            using="tokens",
            prefetch=first,
            query_filter=only,
            limit=limit,
        )
        return [(p.payload, p.score) for p in answer.points]

    def optimize(self) -> None:
        """Do nothing: the server optimizes by itself."""

    def flush(self) -> None:
        """Do nothing: the server flushes by itself."""

    def faults(self) -> list[str]:
        status = self._ask("get_collection").status
        return [f"{self.where} has the status red"] if status == "red" else []

    def close(self) -> None:
        self._client.close()


class _Handle:
    """An opened folder of the engine, which may be open once; closed with its last user."""

    def __init__(self, shard: Any):
        self.shard = shard

    def __del__(self) -> None:
        self.shard.close()


_open_here: WeakValueDictionary[Path, _Handle] = WeakValueDictionary()
_opening = threading.Lock()


class _Edge:
    """A collection in a folder, with the engine in this process."""

    def __init__(self, folder: Path):
        self._edge = import_extra("qdrant_edge", "qdrant", why=f"{_WHY} without a url")
        self._folder = folder
        self._opened: _Handle | None = None
        self.where = f"the collection in {folder}"

    @property
    def _shard(self) -> Any:
        if self._opened is None:
            with _opening:
                self._opened = _open_here.get(real_path(self._folder))
                if self._opened is None:
                    self._opened = self._handle(self._edge.EdgeShard.load, str(self._folder))
        return self._opened.shard

    def _handle(self, opened: Callable[..., Any], *options: Any) -> _Handle:
        try:
            made = _Handle(opened(*options))
        except Exception as e:  # the package has no exceptions of its own
            reason = " ".join(str(e).split())
            raise UserError(
                f"{self.where} cannot be opened: another process has it, or it is damaged "
                f"({reason})"
            ) from None
        _open_here[real_path(self._folder)] = made
        return made

    def exists(self) -> bool:
        return self._folder.is_dir()

    def use(self, version: str | None) -> None:
        """Do nothing: a folder has one version."""

    def publish(self) -> None:
        """Do nothing: the folder is the name."""

    def drop(self) -> None:
        """Do nothing: the folder is its owner's."""

    def create(self, dim: int, storage: str, version: str) -> None:
        e = self._edge
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        tokens = e.EdgeVectorParams(
            size=dim,
            distance=e.Distance.Dot,
            datatype=getattr(e.VectorStorageDatatype, storage.capitalize()),
            multivector_config=e.MultiVectorConfig(e.MultiVectorComparator.MaxSim),
            hnsw_config=e.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=0),
            memory=e.Memory.Cold,
        )
        mean = e.EdgeVectorParams(size=dim, distance=e.Distance.Dot)
        config = e.EdgeConfig(vectors={"tokens": tokens, "mean": mean})
        with _opening:
            self._opened = self._handle(e.EdgeShard.create, str(self._folder), config)

    def put(self, points: Sequence[Point]) -> None:
        made = [
            self._edge.Point(i, {n: v.tolist() for n, v in vectors.items()}, payload)
            for i, vectors, payload in points
        ]
        self._shard.update(self._edge.UpdateOperation.upsert_points(made))

    def remove(self, ids: Sequence[str]) -> None:
        self._shard.update(self._edge.UpdateOperation.delete_points(list(ids)))

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {str(r.id): r.payload for r in self._shard.retrieve(list(ids), True, False)}

    def scroll(self) -> Iterator[dict[str, Any]]:
        offset = None
        while True:
            request = self._edge.ScrollRequest(offset=offset, limit=_PAGE, with_payload=True)
            records, offset = self._shard.scroll(request)
            yield from (r.payload for r in records)
            if offset is None:
                return

    def __len__(self) -> int:
        return int(self._shard.count(self._edge.CountRequest(exact=True)))

    def search(
        self, query: Array, limit: int, prefetch: int | None, allowed: Sequence[str] | None
    ) -> list[tuple[dict[str, Any], float]]:
        e = self._edge
        only = allowed and e.Filter(must=[e.HasIdCondition(set(allowed))])
        first = prefetch and e.Prefetch(
            limit=prefetch, query=e.Query.Nearest(query.sum(0).tolist(), "mean"), filter=only
        )
        request = e.QueryRequest(
            limit=limit,
            query=e.Query.Nearest(query.tolist(), "tokens"),
            prefetches=[first] if first else None,
            filter=only,
            with_payload=True,
        )
        return [(p.payload, p.score) for p in self._shard.query(request)]

    def optimize(self) -> None:
        self._shard.optimize()

    def flush(self) -> None:
        self._shard.flush()

    def faults(self) -> list[str]:
        return []

    def close(self) -> None:
        self._opened = None
