"""Work on a Ray cluster: actors that hold an object each, and are started again when they are lost.

Ray waits for ever for what may still come: a cluster that cannot be reached, resources that no node
has, a node without this package. Here each of these is one line within a minute (`_PATIENCE_S`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import Field

import ravqa
from ravqa.core.errors import UserError, first_line, import_extra
from ravqa.core.settings import Strict
from ravqa.core.texts import number_of

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)

_PATIENCE_S = 45.0  # for what must come from the cluster before work begins, or goes on
_POLL_S = 2.0  # between two looks at the head
_HEAD_S = 10.0  # without a connection to the head before it counts as lost
_CONNECT_S = 5.0  # for one connection

Call = tuple[Callable[..., R], Sequence[Any]]
"""A function and its arguments after the first, which is the worker's object."""


class WorkerOptions(Strict):
    """What `--worker-option` says of the workers of `--workers ray`.

    Attributes:
        number: how many; null for as many as the cluster has room for.
        num_cpus, num_gpus: processors and GPUs of each; null for one, of GPUs only if the cluster
            has any.
        memory: bytes of memory that each is to have; null for any.
    """

    number: int | None = Field(default=None, ge=1)
    num_cpus: float | None = Field(default=None, ge=0)
    num_gpus: float | None = Field(default=None, ge=0)
    memory: int | None = Field(default=None, ge=1)

    def settled(self, ray: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of workers, and each one's options for Ray's actors."""
        gpus = self.num_gpus
        if gpus is None:
            gpus = float(ray.cluster_resources().get("GPU", 0) >= 1)
        options: dict[str, Any] = {
            "num_cpus": 1.0 if self.num_cpus is None else self.num_cpus,
            "num_gpus": gpus,
        }
        if self.memory is not None:
            options["memory"] = self.memory
        return self.number or max(1, room(ray, options) or 1), options


@dataclass(frozen=True, slots=True)
class Lost:
    """One call of a worker that was lost meanwhile, and that was repeated.

    Attributes:
        what: what it is ("the shard 3 of 4").
        reason: Ray's message, one line.
    """

    what: str
    reason: str


_LOSSES: ContextVar[list[Lost] | None] = ContextVar("losses", default=None)


@contextmanager
def noted_losses() -> Iterator[list[Lost]]:
    """Collect the workers that are lost, and replaced, during the enclosed work."""
    found: list[Lost] = []
    token = _LOSSES.set(found)
    try:
        yield found
    finally:
        _LOSSES.reset(token)


def losses() -> Sequence[Lost]:
    """Return what `noted_losses` has collected so far in this context."""
    return tuple(_LOSSES.get() or ())


_ENCODING: ContextVar[WorkerOptions | None] = ContextVar("encoding", default=None)


@contextmanager
def encoded_on_ray(workers: WorkerOptions | None) -> Iterator[None]:
    """Have workers of a Ray cluster encode the passages of the enclosed work; None: this process.

    The contract of retrievers knows nothing of where encoders work.
    """
    token = _ENCODING.set(workers)
    try:
        yield
    finally:
        _ENCODING.reset(token)


def encoding_workers() -> WorkerOptions | None:
    """Return the workers that encode passages in this context."""
    return _ENCODING.get()


def note_loss(what: str, reason: str) -> None:
    """Log that a worker was lost and its work is repeated, and note it for this context."""
    _log.warning("%s was lost and is started again (%s): its work is repeated", what, reason)
    if (found := _LOSSES.get()) is not None:
        found.append(Lost(what, reason))


def connected(why: str) -> Any:
    """Return Ray, connected to the cluster of RAY_ADDRESS or of this machine, or to a new one.

    Args:
        why: what needs it, for messages.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: the cluster cannot be reached or joined.
    """
    ray = import_extra("ray", "ray", why=why)
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS={address}: addresses of Ray's client are not supported: start this on a "
            "machine of the cluster, with RAY_ADDRESS=HOST:PORT of its head"
        )
    if ":" in address and (problem := _unreachable(address)):
        raise UserError(f"the Ray cluster at {address} (RAY_ADDRESS) cannot be reached: {problem}")
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as e:  # of many kinds, from lower layers
        where = f"the Ray cluster at {address} (RAY_ADDRESS)" if address else "a Ray cluster"
        raise UserError(f"{where} cannot be joined: {first_line(e)}") from None
    return ray


def _unreachable(address: str) -> str:
    """Return why nothing answers at HOST:PORT; "" if something does."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S):
            return ""
    except (OSError, ValueError) as e:
        return first_line(e)


class Head:
    """The head of the cluster, watched while this process waits for workers."""

    def __init__(self, ray: Any):
        self.ray = ray
        self.address: str = ray.get_runtime_context().gcs_address
        self._gone: float | None = None  # since when

    def check(self) -> None:
        """Do nothing if the head answers, or has not been silent for long.

        Ray itself would end this process after a minute.

        Raises:
            UserError: it is lost.
        """
        problem = _unreachable(self.address)
        now = time.monotonic()
        self._gone = (self._gone or now) if problem else None
        if self._gone is not None and now - self._gone >= _HEAD_S:
            raise UserError(f"the head of the Ray cluster at {self.address} was lost: {problem}")

    def wait(self, pending: Sequence[Any], seconds: float | None = None) -> tuple[Any, Any]:
        """Return those that are done, as soon as one is, and the others; none after `seconds`.

        Raises:
            UserError: the head is lost.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            done, others = self.ray.wait(list(pending), num_returns=1, timeout=_POLL_S)
            if done or (end is not None and time.monotonic() >= end):
                return done, others
            self.check()


@contextmanager
def _marked(folder: Path | None) -> Iterator[str | None]:
    """Yield the path of a new file in a folder; the folder's own if nothing can be written there.

    Another machine may have a folder of the same name.
    """
    if folder is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        mark = str(folder)
        with contextlib.suppress(OSError):  # such as an index that may only be read
            folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.NamedTemporaryFile(prefix=".seen-", dir=folder)  # noqa: SIM115
            mark = stack.enter_context(file).name
        yield mark


def check_nodes(head: Head, folder: Path | None, why: str) -> None:
    """Check that every node has this version of ravqa, and sees a folder.

    Args:
        folder: what all workers read or write; None if they need none.
        why: what needs it, for messages.

    Raises:
        UserError: a node does not.
    """
    ray = head.ray
    # A function inside of another is sent to the workers as it is, ravqa's own only by name.

    def look(file: str | None) -> tuple[str, str, bool]:
        import pathlib
        import platform

        try:
            import ravqa

            version = ravqa.__version__
        except ImportError:
            version = ""
        return version, platform.node(), file is None or pathlib.Path(file).exists()

    placed = import_extra("ray.util.scheduling_strategies", "ray", why=why)
    with _marked(folder) as mark:
        task = ray.remote(num_cpus=0, max_retries=0)(look)
        asked = {}
        for node in ray.nodes():
            if node["Alive"]:
                at = placed.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                asked[task.options(scheduling_strategy=at).remote(mark)] = node["NodeName"]
        end = time.monotonic() + _PATIENCE_S
        while asked:
            done, _ = head.wait(list(asked), max(0.0, end - time.monotonic()))
            if not done:
                name = next(iter(asked.values()))
                raise UserError(
                    f"{why}: the Ray node {name} has started no worker in {_PATIENCE_S:.0f} s"
                )
            for ref in done:
                where = f"{why}: the Ray node {asked.pop(ref)}"
                try:
                    version, host, seen = ray.get(ref)
                except ray.exceptions.RayError as e:
                    raise UserError(f"{where} runs no workers: {first_line(e)}") from None
                where += f" ({host})" if host != platform.node() else ""
                if version != ravqa.__version__:
                    has = f"has ravqa {version}" if version else "has no package ravqa"
                    raise UserError(f"{where} {has}: install ravqa {ravqa.__version__} there")
                if not seen:
                    raise UserError(
                        f"{where} does not see the folder {folder}: choose one that all nodes share"
                    )


def _asked(options: Mapping[str, Any]) -> dict[str, float]:
    """Return the resources that options of an actor ask for, by Ray's names of them."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    found = {name: options.get(key) or 0 for key, name in names.items()}
    found |= options.get("resources") or {}
    return {name: value for name, value in found.items() if value}


def _shown(resources: Mapping[str, float], names: Sequence[str]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in names)


def room(ray: Any, options: Mapping[str, Any]) -> int | None:
    """Return how many actors with these options all nodes can hold; None for any number."""
    asked = _asked(options)
    if not asked:
        return None
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        min(int(node.get(name, 0) / value) for name, value in asked.items()) for node in nodes
    )


def check_room(ray: Any, options: Mapping[str, Any], count: int, why: str) -> None:
    """Refuse more actors than the nodes can hold.

    Raises:
        UserError: there are not enough resources.
    """
    found = room(ray, options)
    if found is not None and found < count:
        names = list(_asked(options))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        raise UserError(
            f"{why}: {number_of(count, 'worker')} with {_shown(_asked(options), names)} each need "
            f"more than the Ray cluster has: room for {found} "
            f"(nodes: {'; '.join(_shown(node, names) for node in nodes)})"
        )


class _Holder(Generic[T]):
    """An actor: makes its object when it is first called, after each start."""

    def __init__(self, make: Callable[[], T]):
        self._make = make
        self._made: list[T] = []

    def ping(self) -> None:
        """Return once the actor is there."""

    def call(self, function: Callable[..., R], *arguments: Any) -> R:
        """Return a function's result for the object."""
        if not self._made:
            self._made.append(self._make())
        return function(self._made[0], *arguments)


class Crew(Generic[T]):
    """Workers of a Ray cluster: actors that hold one object each; several threads may call them.

    A lost worker is started again, on another node if need be, and makes its object again; what it
    was asked is then repeated once, and noted (`noted_losses`).
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], T]],
        *,
        options: Mapping[str, Any],
        what: str,
        why: str,
        folder: Path | None = None,
    ):
        """Start the workers; their objects are made when they are first called.

        Args:
            makers: make the objects; they are sent to the workers.
            options: of the actors, such as {"num_cpus": 4, "num_gpus": 1}.
            what: what a worker is, for messages ("the shard").
            why: what needs the workers ("the index sharded with workers: ray").
            folder: what all workers read or write; None if they need none.

        Raises:
            UserError: the cluster cannot be reached, lacks resources, or its nodes lack the package
                or the folder.
        """
        ray = connected(why)
        self._head = Head(ray)
        self._ray, self._what, self._why = ray, what, why
        check_room(ray, options, len(makers), why)
        check_nodes(self._head, folder, why)
        given = {"scheduling_strategy": "SPREAD", "max_restarts": -1, **options}
        try:
            actor = ray.remote(_Holder).options(**given)
            self._actors = [actor.remote(make) for make in makers]
        except (ValueError, TypeError) as e:
            raise UserError(f"{why}: Ray refuses the workers' options: {first_line(e)}") from None
        try:
            self._await_start()
        except BaseException:
            self.close()  # those that wait would otherwise take what becomes free
            raise

    def __len__(self) -> int:
        return len(self._actors)

    def put(self, value: Any) -> Any:
        """Return a reference to a value, sent to the cluster once, as an argument of calls."""
        return self._ray.put(value)

    def close(self) -> None:
        """End the workers."""
        for actor in self._actors:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def run(
        self,
        calls: Mapping[int, Call[R]],
        *,
        repeat: bool = True,
        report: Callable[[int], object] = lambda done: None,
    ) -> list[R]:
        """Return the results of calls, by the numbers of their workers, in order.

        Args:
            repeat: repeat once what a lost worker was asked; else that is an error.
            report: called with how many are done.

        Raises:
            UserError: a worker is lost and cannot be replaced, or is lost again; the head is lost.
            Exception: whatever a call raises, once all have ended.
        """
        found: dict[int, R] = {}
        failures: dict[int, BaseException] = {}
        lost = self._attempt(calls, found, failures, report)
        for number, reason in lost.items():
            if not repeat:
                failures[number] = UserError(
                    f"{self._name(number)} was lost ({reason}) while it was changed: whether the "
                    "change was made is not known"
                )
                continue
            self._await_restart(number, reason)
            note_loss(self._name(number), reason)
        if lost and repeat:
            again = self._attempt({i: calls[i] for i in lost}, found, failures, report)
            for number, reason in again.items():
                failures[number] = UserError(f"{self._name(number)} was lost twice: {reason}")
        if failures:
            raise failures[min(failures)] from None
        return [found[number] for number in calls]

    def _attempt(
        self,
        calls: Mapping[int, Call[R]],
        found: dict[int, R],
        failures: dict[int, BaseException],
        report: Callable[[int], object],
    ) -> dict[int, str]:
        """Make calls; return the lost workers, each with Ray's message."""
        exceptions, lost = self._ray.exceptions, {}
        pending = {
            self._actors[number].call.remote(function, *arguments): number
            for number, (function, arguments) in calls.items()
        }
        while pending:
            for ref in self._head.wait(list(pending))[0]:
                number = pending.pop(ref)
                try:
                    found[number] = self._ray.get(ref)
                    report(len(found))
                except exceptions.RayTaskError as e:
                    failures[number] = e.cause
                except exceptions.RayActorError as e:
                    lost[number] = first_line(e)
                except exceptions.RayError as e:
                    failures[number] = UserError(f"{self._name(number)} failed: {first_line(e)}")
        return lost

    def _await_start(self) -> None:
        pending = [actor.ping.remote() for actor in self._actors]
        end = time.monotonic() + _PATIENCE_S
        count = len(pending)
        while pending:
            done, pending = self._head.wait(pending, max(0.0, end - time.monotonic()))
            if not done:
                free = self._ray.available_resources()
                raise UserError(
                    f"{self._why}: {len(pending)} of {number_of(count, 'worker')} were not "
                    f"started in {_PATIENCE_S:.0f} s: other work may hold the Ray cluster "
                    f"(free: {_shown(free, ['CPU', 'GPU'])})"
                )
            for ref in done:
                try:
                    self._ray.get(ref)
                except self._ray.exceptions.RayError as e:
                    raise UserError(f"{self._why}: a worker did not start: {_cause(e)}") from None

    def _await_restart(self, number: int, reason: str) -> None:
        """Return once a lost worker answers again.

        Raises:
            UserError: it does not.
        """
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            try:
                done, _ = self._head.wait([self._actors[number].ping.remote()], _POLL_S)
                if done:
                    self._ray.get(done[0])
                    return
            except self._ray.exceptions.RayError:
                self._head.check()
                time.sleep(0.5)
        raise UserError(
            f"{self._name(number)} was lost ({reason}) and could not be started again in "
            f"{_PATIENCE_S:.0f} s"
        )

    def _name(self, number: int) -> str:
        return f"{self._what} {number + 1} of {len(self)}"


def _cause(error: Exception) -> str:
    return first_line(getattr(error, "cause", None) or error)
