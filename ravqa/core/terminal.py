"""A console for people that shows foreign text without obeying it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ravqa.core.texts import printable


class Terminal(Console):
    """A console of rich without markup, whose texts all pass through `printable`."""

    def __init__(self, **options: object):
        """Take the options of rich's console."""
        # Brackets and colons in names of files and in questions are not markup.
        super().__init__(highlight=False, markup=False, emoji=False, **options)  # type: ignore[arg-type]

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield the parts of what is shown; the console's own control codes are kept."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(printable(part.text), part.style)
