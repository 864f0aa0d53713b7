"""Prompt templates: Jinja2 in its sandbox, checked when they are loaded.

Variables of a template:

    question    the question's text
    passages    list, best first; each has .text, .title, .content (title and text)
    tags        names of what is seen in the image, the most probable first
    caption     one sentence about the image, or ""
    ocr         list of texts read in the image
    instruction the question's instruction, or ""
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ravqa.errors import UserError, near_matches
from ravqa.paths import PROMPTS, packaged
from ravqa.records import Passage, Question

VARIABLES = ("question", "passages", "tags", "caption", "ocr", "instruction")


class PromptTemplate:
    """A template, ready to render."""

    def __init__(self, source: str, *, name: str = "template"):
        """Compile and check `source`.

        Raises:
            UserError: bad syntax (the line is named), or an unknown variable.
        """
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        try:
            used = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except TemplateError as e:
            line = getattr(e, "lineno", None)
            where = f"{name}, line {line}" if line else name
            raise UserError(f"prompt {where}: {e.message}") from None
        unknown = sorted(used - set(VARIABLES))
        if unknown:
            raise UserError(
                f"prompt {name}: unknown variable {unknown[0]!r}: "
                f"{near_matches(unknown[0], VARIABLES)}"
            )
        self.name = name
        self.source = source

    @classmethod
    def load(cls, name: str) -> PromptTemplate:
        """A file, or the name of one in `prompts/`.

        Raises:
            UserError: no such template, or a bad one.
        """
        path = Path(name)
        if path.suffix != ".jinja":
            found = packaged(PROMPTS, f"{name}.jinja")
            if found is None:
                known = [p.stem for p in PROMPTS.glob("*.jinja")]
                raise UserError(f"no prompt {name!r}: {near_matches(name, known)}")
            path = found
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"prompt {path} cannot be read: {e}") from None
        return cls(source, name=path.name)

    def render(self, question: Question, passages: Sequence[Passage]) -> str:
        """The prompt's text, without spaces at its end.

        Raises:
            UserError: the template does something that the sandbox forbids or that fails.
        """
        seen = question.description
        try:
            text = self._template.render(
                question=question.question,
                # The documented keys only: a record would hand its paths' methods to the template.
                passages=[
                    {"text": p.text, "title": p.title, "content": p.content} for p in passages
                ],
                tags=[tag.names[0] for tag in seen.tags] if seen else [],
                caption=seen.caption if seen else "",
                ocr=list(seen.ocr) if seen else [],
                instruction=question.instruction or "",
            )
        except Exception as e:  # a template is a program of the user's: any error is theirs
            raise UserError(f"prompt {self.name}: {e}") from None
        # A space after "Answer:" would be a token of its own and spoil the next one.
        return text.rstrip()
