"""Prompt templates: Jinja2 in its sandbox, checked when they are loaded.

A template's variables are the keys of `Variables`. A reader's chat template belongs to the reader
and is not part of a prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict

from jinja2 import StrictUndefined, Template, TemplateError, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError

from ravqa.core.errors import PromptError, UserError, near_matches
from ravqa.core.failures import failures
from ravqa.core.files import check_file
from ravqa.core.locations import PROMPTS, packaged
from ravqa.core.records import Passage, Question
from ravqa.core.templates import LARGEST_SOURCE, LimitedEnvironment, compiled
from ravqa.readers.base import Prompt, Reader


class Seen(TypedDict):
    """Description of an image; each part may be empty.

    Attributes:
        tags: names of what a classifier sees, most probable first.
        caption: one sentence.
        objects: what a detector found, with attributes ("red wooden chair"), each once.
        ocr: texts read in the image, each once.
    """

    tags: list[str]
    caption: str
    objects: list[str]
    ocr: list[str]


class PassageValues(TypedDict):
    """Values of a passage.

    Attributes:
        content: title, section and text as one string.
        picture: number of its picture among the prompt's images, from 1, the question's being the
            first; None if its picture is not shown.
    """

    text: str
    title: str | None
    content: str
    picture: int | None


class ExampleValues(Seen):
    """Values of an example: a question of another split with its answer, choices and passages."""

    question: str
    choices: list[str]
    answer: str
    passages: list[PassageValues]


class Variables(Seen):
    """Variables of a template: the image's description (`Seen`), and the following.

    Attributes:
        question: the question's text.
        choices: the answers to choose from; empty for an open question.
        image: whether the reader is given the image with the prompt.
        passages: best first; empty without retrieval.
        pictures: number of pictures of passages that the reader is given.
        examples: few-shot examples (`answering.examples`).
        instruction: the question's instruction, or "".
        answer: the reader's own answer, in `answering.self_check`; else "".
    """

    question: str
    choices: list[str]
    image: bool
    passages: list[PassageValues]
    pictures: int
    examples: list[ExampleValues]
    instruction: str
    answer: str


VARIABLES = tuple(sorted(Variables.__annotations__))


@dataclass(frozen=True, slots=True)
class Example:
    """A question shown with its answer in a few-shot prompt."""

    question: Question
    answer: str
    passages: Sequence[Passage] = ()


@lru_cache(maxsize=64)
def _compiled(
    source: str,
) -> tuple[LimitedEnvironment, Template, frozenset[str], str, tuple[str, ...]]:
    """Return a template, its variables, its literal text and its refusals.

    Studies load one repeatedly.
    """
    environment = LimitedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    template = compiled(environment, source)
    parsed = environment.parse(source)
    used = meta.find_undeclared_variables(parsed)
    literal = "".join(node.data for node in parsed.find_all(nodes.TemplateData))
    literal += "".join(str(node.value) for node in parsed.find_all(nodes.Const))
    return environment, template, frozenset(used), literal, tuple(_declines(parsed))


def _declines(parsed: nodes.Template) -> Iterator[str]:
    """Yield what a template sets `decline` to: a text, or a list of texts."""
    for node in parsed.find_all(nodes.Assign):
        if isinstance(node.target, nodes.Name) and node.target.name == "decline":
            items = node.node.items if isinstance(node.node, nodes.List) else [node.node]
            yield from (str(item.value) for item in items if isinstance(item, nodes.Const))


class PromptTemplate:
    """A template, ready to render.

    Attributes:
        uses: names of the variables that it uses.
        declines: answers that it asks for where there is none: what it sets `decline` to.
        sha256: SHA-256 of its source, hex.
    """

    def __init__(self, source: str, *, name: str = "template"):
        """Compile and check `source`.

        Raises:
            UserError: bad syntax (the line is named), an unknown variable or key.
        """
        try:
            made = _compiled(source)
        except TemplateError as e:
            line = getattr(e, "lineno", None)
            where = f"{name}, line {line}" if line else name
            raise UserError(f"prompt {where}: {e.message}") from None
        self._environment, self._template, used, self._literal, self.declines = made
        unknown = sorted(used - set(VARIABLES))
        if unknown:
            raise UserError(
                f"prompt {name}: unknown variable {unknown[0]!r}: "
                f"{near_matches(unknown[0], VARIABLES)}"
            )
        self.name = name
        self.source = source
        self.uses = used
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        self._try()

    @classmethod
    def load(cls, name: str) -> PromptTemplate:
        """Load a template: a file, or the name of one in `prompts/`.

        Raises:
            UserError: an unknown or bad template.
        """
        path = Path(name)
        if path.suffix != ".jinja":
            found = packaged(PROMPTS, f"{name}.jinja")
            if found is None:
                known = [p.stem for p in PROMPTS.glob("*.jinja")]
                raise UserError(f"no prompt {name!r}: {near_matches(name, known)}")
            path = found
        check_file(path)
        try:
            with path.open(encoding="utf-8") as file:
                source = file.read(LARGEST_SOURCE + 1)
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"prompt {path} cannot be read: {e}") from None
        return cls(source, name=path.name)

    def prompt(
        self,
        question: Question,
        passages: Sequence[Passage],
        examples: Sequence[Example] = (),
        *,
        reader: Reader,
        pictures: Sequence[Path] = (),
        answer: str = "",
    ) -> tuple[Prompt, int]:
        """Return the prompt for a reader, and how many control tokens became plain text in it.

        Those that the template itself writes stay what they are.

        Args:
            question, passages, examples: as for `render`.
            reader: the reader.
            pictures: those passages' images that are shown, each once.
            answer: the reader's own answer, if the prompt asks about it.

        Raises:
            PromptError: as `render`.
        """
        image = question.image if reader.supports_images else None
        values = self._values(
            question, passages, examples, image=image is not None, pictures=pictures
        )
        values["answer"] = answer
        text = self._rendered(values)
        shown = tuple(pictures)
        tokens = reader.control_tokens
        count = tokens.neutral(text)[1]
        if not count:
            return Prompt(text, image, pictures=shown, payer=question.question_id), 0

        def neutral(value: Any) -> Any:
            if isinstance(value, str):
                return tokens.neutral(value)[0]
            if isinstance(value, dict):
                return {key: neutral(own) for key, own in value.items()}
            return [neutral(own) for own in value] if isinstance(value, list) else value

        harmless = self._rendered(neutral(values))  # but for the template's own
        count -= tokens.neutral(harmless)[1]
        own = tokens.found(self._literal)
        return Prompt(harmless, image, own, shown, question.question_id), count

    @property
    def names_pictures(self) -> bool:
        """Whether it says which picture belongs to which passage."""
        try:
            return self._rendered(_filled(2)) != self._rendered(_filled(3))
        except PromptError:  # what fails on these values may work on real ones
            return True

    def render(
        self,
        question: Question,
        passages: Sequence[Passage],
        examples: Sequence[Example] = (),
        *,
        image: bool = False,
    ) -> str:
        """Return the prompt's text, without white space at its end.

        Args:
            image: whether the reader is given the question's image.

        Raises:
            PromptError: the template fails on these values, or does what the sandbox forbids.
        """
        return self._rendered(self._values(question, passages, examples, image=image))

    def _values(
        self,
        question: Question,
        passages: Sequence[Passage],
        examples: Sequence[Example],
        *,
        image: bool,
        pictures: Sequence[Path] = (),
    ) -> Variables:
        return {
            "question": question.question,
            "choices": list(question.choices),
            "image": image,
            "passages": _passages(passages, {p: n for n, p in enumerate(pictures, 1 + image)}),
            "pictures": len(pictures),
            "examples": [_example(example) for example in examples],
            "instruction": question.instruction or "",
            "answer": "",
            **_seen(question),
        }

    def _rendered(self, values: Variables) -> str:
        with failures(f"prompt {self.name}"):  # a template is a program: it may raise anything
            text = self._environment.render(self._template, values)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PromptError(
                f"prompt {self.name}: half a character (a surrogate) is in its text"
            ) from None
        # A space after "Answer:" would be a separate token and spoil the next one.
        return text.rstrip()

    def _try(self) -> None:
        """Render once with every variable filled: a wrong key should show now, not hours later."""
        try:
            self._environment.render(self._template, _filled(2))
        except SecurityError as e:
            raise UserError(f"prompt {self.name}: {e.message}") from None
        except UndefinedError as e:
            if e.message and "has no attribute" in e.message:
                raise UserError(f"prompt {self.name}: {e.message}") from None
        except Exception:  # what fails on these values may work on real ones
            return


def _filled(picture: int) -> Variables:
    """Return values of which none is empty; passages have a picture of this number."""
    seen: Seen = {"tags": ["a"], "caption": "a", "objects": ["a"], "ocr": ["a"]}
    passage: PassageValues = {"text": "a", "title": "a", "content": "a: a", "picture": picture}
    passages = [passage, passage]
    example: ExampleValues = {
        "question": "a",
        "choices": ["a"] * 2,
        "answer": "a",
        "passages": passages,
        **seen,
    }
    return {
        "question": "a",
        "choices": ["a"] * 2,
        "image": True,
        "passages": passages,
        "pictures": 1,
        "examples": [example] * 2,
        "instruction": "a",
        "answer": "a",
        **seen,
    }


def _passages(
    passages: Sequence[Passage], numbers: Mapping[Path, int] = MappingProxyType({})
) -> list[PassageValues]:
    # The documented keys only: a record would expose its paths' methods to the template.
    return [
        {
            "text": p.text,
            "title": p.title,
            "content": p.content,
            "picture": None if p.image is None else numbers.get(p.image),
        }
        for p in passages
    ]


def _example(example: Example) -> ExampleValues:
    return {
        "question": example.question.question,
        "choices": list(example.question.choices),
        "answer": example.answer,
        "passages": _passages(example.passages),
        **_seen(example.question),
    }


def _seen(question: Question) -> Seen:
    seen = question.description
    if seen is None:
        return {"tags": [], "caption": "", "objects": [], "ocr": []}
    return {
        "tags": [tag.names[0] for tag in seen.tags],
        "caption": seen.caption,
        "objects": list(seen.object_names),
        "ocr": list(seen.texts),
    }
