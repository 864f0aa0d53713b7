"""What it costs to ask models: requests, tokens and money, counted by question.

A run has one `Account`, which belongs to the context of its work (`charged_to`), so that runs which
ask the same reader at the same time each pay for their own questions. Clients of servers and
readers charge it as they work, each with the id of the question that the work is for. What comes
from this project's own cache costs nothing and is counted apart, as reused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from operator import attrgetter
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from ravqa.core.errors import LimitError
from ravqa.core.settings import Names, Strict

Payer = int | str | None
"""The id of a question; None for work that is for no single one."""

Currency = Annotated[
    str, Names("text", lambda value: True), Field(pattern=r"^[A-Z]{3}$", strict=True)
]
_MILLION = 1e6


class Prices(Strict):
    """What a server's owner charges for a million tokens.

    Attributes:
        prompt: for tokens of prompts.
        completion: for generated tokens, thinking included.
        cached: for tokens of prompts that the server read from its own cache; null if these cost
            as much as others.
        currency: three letters, such as USD.
    """

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)
    cached: float | None = Field(default=None, ge=0)
    currency: Currency

    def money(self, usage: Usage) -> float:
        """Return what tokens cost, in `currency`."""
        cached = min(usage.cached_tokens or 0, usage.prompt_tokens)
        read = self.prompt if self.cached is None else self.cached
        return (
            (usage.prompt_tokens - cached) * self.prompt
            + cached * read
            + usage.completion_tokens * self.completion
        ) / _MILLION


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one reply of a server, or of one pass through a local model.

    Attributes:
        prompt_tokens: those that the model read, images included.
        completion_tokens: those that it generated, thinking included.
        cached_tokens: those of the prompt that the server read from its own cache; None if it does
            not say.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What some work cost; a question's share of common work may be a fraction.

    Attributes:
        requests: requests sent to servers, each try counted.
        retries: those of them that repeated an earlier one.
        prompt_tokens, completion_tokens: sums of what is known.
        cached_tokens: tokens of prompts that servers read from their own caches; None if none of
            them said.
        unknown: replies of servers, and passes through models, whose tokens are not known.
        money: sum of what is known; None without prices.
        reused: results that came from this project's cache, and made no request.
        reused_prompt_tokens, reused_completion_tokens, reused_unknown, reused_money: what these had
            cost when they were made.
    """

    requests: float = 0
    retries: float = 0
    prompt_tokens: float = 0
    completion_tokens: float = 0
    cached_tokens: float | None = None
    unknown: float = 0
    money: float | None = None
    reused: float = 0
    reused_prompt_tokens: float = 0
    reused_completion_tokens: float = 0
    reused_unknown: float = 0
    reused_money: float | None = None

    @classmethod
    def of(cls, usage: Usage | None, prices: Prices | None = None) -> Cost:
        """Return the cost of a reply or of a pass; None for tokens that are not known."""
        if usage is None:
            return cls(unknown=1, money=None if prices is None else 0.0)
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            money=None if prices is None else prices.money(usage),
        )

    @classmethod
    def of_reused(cls, usage: Usage | None, prices: Prices | None = None) -> Cost:
        """Return what a result from the cache had cost, as reused."""
        made = cls.of(usage, prices)
        return cls(
            reused=1,
            reused_prompt_tokens=made.prompt_tokens,
            reused_completion_tokens=made.completion_tokens,
            reused_unknown=made.unknown,
            reused_money=made.money,
        )

    @classmethod
    def of_kept(cls, results: int, prices: Prices | None = None) -> Cost:
        """Return the cost of results from the cache of which is not known what they had cost."""
        money = None if prices is None else 0.0
        return cls(reused=results, reused_unknown=results, reused_money=money)

    def __add__(self, other: Cost) -> Cost:
        values: Iterator[Any] = map(_sum, _values(self), _values(other))
        return Cost(*values)

    def __truediv__(self, number: float) -> Cost:
        values: Iterator[Any] = (None if v is None else v / number for v in _values(self))
        return Cost(*values)

    def __bool__(self) -> bool:
        return any(_values(self))


_values: Callable[[Cost], tuple[Any, ...]] = attrgetter(*(field.name for field in fields(Cost)))


def _sum(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    return sum(costs, Cost())


class Account:
    """Collects what a run's work costs, and stops it at a limit; several threads may use it.

    Threads that work for others must run in a copy of their context (`contextvars`), so that the
    work is booked where it was ordered.

    Attributes:
        total: everything charged so far.
    """

    def __init__(self, max_requests: int | None = None, max_cost: float | None = None):
        """Begin with nothing.

        Args:
            max_requests: most requests to servers.
            max_cost: amount of money at which no further request begins.
        """
        self.total = Cost()
        self._max_requests = max_requests
        self._max_cost = max_cost
        self._closed = False
        self._untold = False  # the money that a reply cost is not known
        self._lock = threading.Lock()

    def admit(self, payer: Payer = None, *, retry: bool = False) -> None:
        """Count a request that is about to be sent.

        At most `max_requests` are ever sent. Requests that are under way when `max_cost` is reached
        still cost money.

        Raises:
            LimitError: a limit is reached; the request must not be sent.
        """
        with self._lock:
            spent = self.total
            if self._closed:
                return
            if self._max_requests is not None and spent.requests >= self._max_requests:
                raise LimitError(
                    f"--max-requests {self._max_requests}: as many requests have been sent"
                )
            if self._max_cost is not None and self._untold:
                raise LimitError(
                    f"--max-cost {self._max_cost:g}: a server does not say how many tokens it "
                    "used, so that the cost is not known: use --max-requests"
                )
            if self._max_cost is not None and (spent.money or 0.0) >= self._max_cost:
                raise LimitError(f"--max-cost {self._max_cost:g}: {spent.money:.4g} has been spent")
            self._add(Cost(requests=1, retries=int(retry)), payer)

    def charge(self, cost: Cost, payer: Payer = None) -> None:
        """Add a cost to what the question has cost."""
        with self._lock:
            if self._closed:
                return
            self._untold |= bool(cost.unknown) and cost.money is not None
            self._add(cost, payer)

    def close(self) -> None:
        """End the run's account: from now on nothing is charged or refused."""
        self._closed = True

    def _add(self, cost: Cost, payer: Payer) -> None:
        self.total += cost
        book = _BOOKS.get().get(self)
        if book is not None:
            book[payer] = book.get(payer, Cost()) + cost

    @contextmanager
    def booked(self) -> Iterator[dict[Payer, Cost]]:
        """Collect by question what is charged for the enclosed work, whichever threads do it.

        What is charged inside of another such block belongs to that one only.
        """
        book: dict[Payer, Cost] = {}
        token = _BOOKS.set({**_BOOKS.get(), self: book})
        try:
            yield book
        finally:
            _BOOKS.reset(token)


_ACCOUNT: ContextVar[Account | None] = ContextVar("account", default=None)


@contextmanager
def charged_to(account: Account) -> Iterator[None]:
    """Have the enclosed work charged to an account, whichever threads do it for this context."""
    token = _ACCOUNT.set(account)
    try:
        yield
    finally:
        _ACCOUNT.reset(token)


def current_account() -> Account | None:
    """Return the account that is charged for this context's work, if there is one."""
    return _ACCOUNT.get()


def charge(cost: Cost, payer: Payer = None) -> None:
    """Charge the account of this context's work, if there is one."""
    if (account := _ACCOUNT.get()) is not None:
        account.charge(cost, payer)


_BOOKS: ContextVar[Mapping[Account, dict[Payer, Cost]]] = ContextVar(
    "books", default=MappingProxyType({})
)


def tokens(cost: Cost) -> Usage | None:
    """Return the tokens of some work, results from the cache with what they had taken.

    None if no model worked, or the tokens of one are not known.
    """
    if cost.unknown or cost.reused_unknown:
        return None
    found = Usage(
        round(cost.prompt_tokens + cost.reused_prompt_tokens),
        round(cost.completion_tokens + cost.reused_completion_tokens),
    )
    return found if found.prompt_tokens or found.completion_tokens else None


def shared_costs(costs: Mapping[Payer, Cost], questions: Iterable[int | str]) -> list[Cost]:
    """Return the cost of each question: its own, and an equal share of what is for none of them."""
    ids = list(questions)
    own = set(ids)
    share = total(cost for payer, cost in costs.items() if payer not in own) / max(1, len(ids))
    none = Cost()
    return [costs.get(q, none) + share if share else costs.get(q, none) for q in ids]
