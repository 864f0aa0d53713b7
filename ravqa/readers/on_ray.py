"""A reader whose prompts the workers of a Ray cluster answer, each with a reader of its own."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ravqa.core.accounts import Account, Cost, Payer, charge, charged_to
from ravqa.core.cluster import Crew, WorkerOptions, connected
from ravqa.core.errors import UserError
from ravqa.core.factory import build_part
from ravqa.core.outcomes import Failure
from ravqa.core.settings import Part
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Prompt, Reader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WHY = "--workers ray"


class RayReader(Reader):
    """Several readers of one kind on a Ray cluster as one, for as many threads as there are.

    All calls of a thread go to one worker, as they would to the reader itself: so prompts are
    answered in the same batches, and a worker finds what it keeps from one call to the next. A lost
    worker is started again, and what it was asked is repeated once.
    """

    def __init__(self, part: Part, config: Any, workers: WorkerOptions):
        """Start the workers, and build their readers.

        Args:
            part: the reader's name and options.
            config: its validated options.
            workers: how many there are, and what each one needs.

        Raises:
            UserError: the reader asks a server; see `Crew`; or as the reader itself.
        """
        super().__init__(config)
        if config.servers():
            raise UserError(
                f"{_WHY} is for readers whose model runs on their machine: the reader {part.name} "
                "asks a server, for whose prompts there is reader.workers"
            )
        number, options = workers.settled(connected(_WHY))
        self._crew: Crew[Reader] = Crew(
            [partial(build_part, READERS, part, "reader")] * number,
            options=options,
            what="the reader",
            why=_WHY,
        )
        first, *others = self._crew.run(dict.fromkeys(range(number), (_declared, ())))
        if any(other["fingerprint"] != first["fingerprint"] for other in others):
            raise UserError(
                f"{_WHY}: the workers' readers differ: weights or versions of packages are not the "
                "same on all nodes"
            )
        for name, value in first.items():
            setattr(self, name, value)
        self.workers = number
        self.streams = False
        self._own = threading.local()
        self._turns = itertools.count()

    def generate(self, prompts: Sequence[Prompt]) -> list[Generation | Failure]:
        """Return one generation per prompt, in order."""
        found: list[Generation | Failure] = self._ask("generate", prompts)
        return found

    def generate_each(
        self, prompts: Sequence[Prompt]
    ) -> Iterator[tuple[int, Generation | Failure]]:
        """Yield what a worker has made of all prompts."""
        yield from self._ask("generate_each", prompts)

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | Failure]:
        """Return the log-probability of each answer as the generation after its prompt."""
        found: list[float | Failure] = self._ask("score", prompts, answers)
        return found

    def score_each(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[int, float | Failure]]:
        """Yield what a worker has made of all prompts."""
        yield from self._ask("score_each", prompts, answers)

    def next_token_logprobs(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float32] | Failure]:
        """Return the worker's log-probabilities."""
        found: list[NDArray[np.float32] | Failure]
        found = self._ask("next_token_logprobs", prompts, prefixes)
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens, end marks left out."""
        return str(self._ask("decode", tokens))

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int | Failure]:
        """Return the number of tokens of each prompt as given to the model."""
        found: list[int | Failure] = self._ask("count_tokens", prompts)
        return found

    def problem(self) -> str:
        """Return why no prompt can be answered now."""
        return str(self._ask("problem"))

    def _ask(self, call: str, *arguments: Any) -> Any:
        """Return what this thread's worker returns, charged to the account at hand."""
        if not hasattr(self._own, "worker"):
            self._own.worker = next(self._turns) % len(self._crew)
        [(found, costs)] = self._crew.run({self._own.worker: (_asked, (call, *arguments))})
        for payer, cost in costs.items():
            charge(cost, payer)
        return found


def _declared(reader: Reader) -> dict[str, Any]:
    """Return what a reader declares of itself."""
    found: dict[str, Any] = {"has_model": reader.has_model}
    for name, kind in Reader.__annotations__.items():
        if not kind.startswith("ClassVar"):
            value = getattr(reader, name)
            found[name] = dict(value) if isinstance(value, Mapping) else value
    return found


def _asked(reader: Reader, call: str, *arguments: Any) -> tuple[Any, dict[Payer, Cost]]:
    """Return what a method of the reader returns, and what it cost."""
    account = Account()
    with charged_to(account), account.booked() as costs:
        found = getattr(reader, call)(*arguments)
        return (list(found) if isinstance(found, Iterator) else found), costs
