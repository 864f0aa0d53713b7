"""The contract of readers: language models that complete prompts.

A reader knows nothing of passages or retrieval. Its attributes (`supports_images`,
`gives_log_probs`, ...) declare what it can do beyond generating text; callers use nothing that is
not declared here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from ravqa.core.accounts import Cost, Payer, Prices, Usage, charge
from ravqa.core.contracts import check_count
from ravqa.core.control_tokens import ControlTokens
from ravqa.core.errors import UserError
from ravqa.core.marks import BOXES, is_no_answer, split_thinking
from ravqa.core.outcomes import Failure
from ravqa.core.settings import Strict
from ravqa.core.texts import encodable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PART = 64  # prompts per call to a reader that does not return results one by one


@dataclass(frozen=True, slots=True)
class Prompt:
    """Input of a reader: the text, and images for readers that support images.

    Attributes:
        text: the text. Control tokens of the model are plain text in it, unless they are its own.
        image: the question's image.
        own: control tokens that reach the model as such: its template writes them itself.
        pictures: further images, for readers whose `max_images` allows them.
        payer: the question whose account its cost is charged to, if it is about one.
    """

    text: str
    image: Path | bytes | None = None
    own: frozenset[str] = frozenset()
    pictures: tuple[Path | bytes, ...] = ()
    payer: Payer = field(default=None, compare=False)

    @property
    def images(self) -> tuple[Path | bytes, ...]:
        """All images in the order in which they are shown, the question's first."""
        return self.pictures if self.image is None else (self.image, *self.pictures)


@dataclass(frozen=True, slots=True)
class Generation:
    """A reader's output for one prompt.

    Attributes:
        text: the answer's text, without thinking before it and without the end mark.
        log_prob: sum of the log-probabilities (natural log) of the answer's tokens, the end mark
            included; None if the reader does not know them.
        tokens: number of tokens in that sum.
        thinking: what the model thought before it answered; blank if it did not.
        usage: the tokens that prompt and generation took; None if the reader does not know.
    """

    text: str
    log_prob: float | None = None
    tokens: int = 0
    thinking: str = field(default="", compare=False)
    usage: Usage | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Replace halves of characters, as of an emoji that was cut in two: no file can hold them.

        This is done before the text is scored, so that a score is of what was written down.
        """
        for name in ("text", "thinking"):
            text = getattr(self, name)
            if isinstance(text, str) and not text.isascii():  # else a contract is broken elsewhere
                object.__setattr__(self, name, encodable(text))


@dataclass(frozen=True, slots=True)
class Wordless(Failure):
    """A generation that ended before its first word.

    It is no answer. Decision rules may still weigh it as a draft against others.

    Attributes:
        generation: what was generated.
        text, log_prob, tokens: those of the generation.
    """

    generation: Generation = Generation("")

    @property
    def text(self) -> str:
        """The generation's text."""
        return self.generation.text

    @property
    def log_prob(self) -> float | None:
        """The generation's log-probability."""
        return self.generation.log_prob

    @property
    def tokens(self) -> int:
        """The generation's number of tokens."""
        return self.generation.tokens


def settled(generation: Generation, setting: str = "reader.max_new_tokens") -> Generation | Failure:
    """Return a generation with its thinking set apart, or why it is no answer.

    Every reader's generations pass through here: what shows no word is never an answer.

    Args:
        setting: the reader's setting that limits thinking, for the message.
    """
    answer, thinking, cut, _ = split_thinking(generation.text)
    if thinking or cut or answer != generation.text:
        both = "\n".join(filter(None, (generation.thinking, thinking)))
        generation = replace(generation, text=answer, thinking=both)
    if not is_no_answer(answer):
        return generation
    if cut or generation.thinking:
        return Failure(
            "the model's output is reasoning without an answer: raise "
            f"{setting}{'' if cut else ' if it was cut short'}"
        )
    return Wordless("the model ended its answer before the first word", generation=generation)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a reader can do beyond completing prompts, as decision rules and rerankers ask for it.

    Before a reader is built, an ability that only its model shows counts as given.

    Attributes:
        supports_images, gives_log_probs, scores_answers, gives_next_token_logprobs: as those of
            `Reader`.
        max_images: as that of `Reader`.
        ways: by the name of a missing ability, the reader's setting that would give it, such as
            "log_probs=true".
    """

    supports_images: bool = True
    gives_log_probs: bool = True
    scores_answers: bool = True
    gives_next_token_logprobs: bool = True
    ways: Mapping[str, str] = field(default_factory=dict)
    max_images: int | None = None

    def ways_to(self, suffice: Callable[[Abilities], bool]) -> list[str]:
        """Return the settings that would each be enough.

        Args:
            suffice: returns whether abilities are enough.
        """
        yes: Any = True  # fields of another type are not abilities
        return [way for name, way in self.ways.items() if suffice(replace(self, **{name: yes}))]


class Reader(ABC):
    """A language model that completes prompts; only `generate` is required.

    A prompt that fails does not affect the others: its place in the result holds a `Failure`. If a
    server is gone, the failures of unanswered prompts are fatal. A `UserError` means that the call
    itself is wrong: bad settings, an image that cannot be read, a broken device. After any other
    exception, callers ask again in smaller parts, to find the prompt at fault.

    Attributes:
        fingerprint: changes with the weights and with every setting that can change an answer.
        weights: human-readable name of the weights.
        has_model: whether a model answers, and not a rule.
        deterministic: whether the same prompt always gives the same generation; only then are
            generations cached.
        context: most tokens that prompt and generation may have together; None if unknown.
        max_new_tokens: longest answer, in tokens.
        max_thinking_tokens: most tokens that the model may think before its answer.
        ends: tokens that end a generation.
        workers: number of prompts processed concurrently.
        control_tokens: the texts that the model would read as control tokens or images.
        supports_images: whether it looks at the prompts' images.
        max_images: most images of one prompt that it looks at, if it does: 1, or more if it shows
            its model a prompt's `pictures` too; None if it sets no limit.
        gives_log_probs: whether generations have log-probabilities.
        scores_answers: whether `score` works.
        gives_next_token_logprobs: whether `next_token_logprobs` works, and with it `ends`,
            `max_new_tokens` and `decode`.
        counts_tokens: whether `count_tokens` works.
        streams: whether `stream` works.
        switched_off: what is not done because a check of the model found it to be wrong, each with
            the reason: `batches`, `features` (looking at an image once for all prompts about it),
            `sharing` (reading a common beginning once), `score` or `next_token_logprobs`.
            `unchecked` is a check that could not be made.
        ways: see `Abilities`.
        charges: whether it charges what it does to the account at hand
            (`ravqa.core.accounts.charge`), for each prompt's `payer`; what others cost is not
            known.
        prices: what tokens cost, if that is known.
    """

    class Config(Strict):
        """The reader's options; a subclass with options overrides this class."""

    fingerprint: str
    weights: str
    has_model: ClassVar[bool] = True
    deterministic: bool = False
    context: int | None = None
    max_new_tokens: int = 0
    max_thinking_tokens: int = 0
    ends: frozenset[int] = frozenset()
    workers: int = 1
    control_tokens: ControlTokens = ControlTokens()
    supports_images: bool = False
    max_images: int | None = 1
    gives_log_probs: bool = False
    scores_answers: bool = False
    gives_next_token_logprobs: bool = False
    counts_tokens: bool = False
    streams: bool = False
    switched_off: Mapping[str, str] = MappingProxyType({})
    ways: Mapping[str, str] = MappingProxyType({})
    charges: bool = False
    prices: Prices | None = None

    def __init__(self, config: Any = None):
        """Take the reader's validated options; None for their defaults.

        Raises:
            UserError: what the reader needs (a package, a model, a server) does not exist.
        """
        self.config: Any = self.Config() if config is None else config

    @classmethod
    def declared(cls, config: Any) -> Abilities:
        """Return what a reader of these options can do, as far as they show it.

        A pipeline whose decision rule or reranker needs more is refused before anything is loaded;
        whatever a reader does not declare here is checked once it is built.
        """
        return Abilities()

    @property
    def thread_safe(self) -> bool:
        """Whether several threads may call the reader at the same time, and several runs use it.

        By default, readers that process several prompts at a time (`workers`) are.
        """
        return self.workers > 1

    @property
    def abilities(self) -> Abilities:
        """What this reader can do."""
        return Abilities(
            self.supports_images,
            self.gives_log_probs,
            self.scores_answers,
            self.gives_next_token_logprobs,
            self.ways,
            self.max_images,
        )

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt]) -> list[Generation | Failure]:
        """Return one generation per prompt, in order; without a word it is `Wordless`."""

    def generate_each(
        self, prompts: Sequence[Prompt]
    ) -> Iterator[tuple[int, Generation | Failure]]:
        """Yield each prompt's position and generation as it is made, in any order.

        Results are stored as they arrive, so that few are lost if the process is killed.
        """
        for start in range(0, len(prompts), _PART):
            part = prompts[start : start + _PART]
            found = self.generate(part)
            check_count("reader", self, "generate", found, len(part))
            yield from enumerate(found, start)

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | Failure]:
        """Return the log-probability of each answer as the generation after its prompt.

        Natural log; includes the end mark after the answer. Control tokens in the answer's text are
        plain text, as in prompts.

        Raises:
            UserError: the reader does not score answers.
        """
        raise self._unable("score answers")

    def score_each(
        self, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Iterator[tuple[int, float | Failure]]:
        """Yield each prompt's position and its answer's `score` as it is made."""
        for start in range(0, len(prompts), _PART):
            part = slice(start, start + _PART)
            found = self.score(prompts[part], answers[part])
            check_count("reader", self, "score", found, len(prompts[part]))
            yield from enumerate(found, start)

    def next_token_logprobs(
        self, prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float32] | Failure]:
        """Return log-probabilities of the next token after each prompt and its prefix.

        Args:
            prompts: the prompts.
            prefixes: per prompt, the tokens generated so far; empty at the beginning. A call with
                the same prompts as the last one and prefixes one token longer costs one step.

        Returns:
            Per prompt float32 [vocabulary], natural logs; their exponentials sum to 1.

        Raises:
            UserError: the reader gives no next-token probabilities.
        """
        raise self._unable("give next-token probabilities")

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens, end marks left out.

        Raises:
            UserError: the reader does not decode tokens.
        """
        raise self._unable("decode tokens")

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int | Failure]:
        """Return the number of tokens of each prompt as given to the model, images included.

        Raises:
            UserError: the reader does not count tokens.
        """
        raise self._unable("count tokens")

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """Yield the generation piece by piece; joined, the pieces are its text.

        Closing the iterator stops the generation.

        Raises:
            UserError: the reader does not stream.
            PromptError, ServerError: the prompt fails.
        """
        raise self._unable("stream")

    def problem(self) -> str:
        """Return why no prompt can be answered now, if known; else an empty string."""
        return ""

    def _charge(self, usage: Usage | None, payer: Payer) -> None:
        """Charge what a pass through the model took."""
        charge(Cost.of(usage, self.prices), payer)

    def _scored(self, answer: str) -> str:
        """Return the text that is scored for an answer: its control tokens are plain text."""
        return self.control_tokens.neutral(answer.strip(), BOXES)[0]

    def _unable(self, what: str) -> UserError:
        return UserError(f"the reader {self.weights} cannot {what}")
