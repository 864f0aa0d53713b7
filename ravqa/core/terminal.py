"""A console for people that shows foreign text without obeying it, and its tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

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


class Columns:
    """A table whose numbers are never cut or broken over lines, whatever the terminal's width.

    Only columns of names give way: their texts are folded. Title and notes are lines of their own,
    so that they do not depend on the table's width.
    """

    def __init__(self, title: str = "", notes: Sequence[str] = ()):
        """Take what stands above and below the table."""
        self.title = title
        self.notes = list(notes)
        self._table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
        )

    def names(self, header: str = "") -> None:
        """Add a column of names."""
        self._table.add_column(header, overflow="fold")

    def numbers(self, header: str, *, width: int = 12) -> None:
        """Add a column of numbers.

        Args:
            width: words of the header go to the next line beyond this width.
        """
        lines = textwrap.wrap(header, width, break_long_words=False, break_on_hyphens=False)
        self._table.add_column("\n".join(lines), justify="right", no_wrap=True)

    def row(self, *cells: str | Text) -> None:
        """Add a row; a text in a style is a `Text`."""
        self._table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))

    def __rich__(self) -> RenderableType:
        """Return title, table and notes, after an empty line."""
        self._table.show_header = any(column.header for column in self._table.columns)
        above = [Text(self.title, style="bold")] if self.title else []
        below = [Text(note, style="dim") for note in self.notes]
        return Group(Text(""), *above, self._table, *below)
