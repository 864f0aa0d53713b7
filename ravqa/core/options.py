"""Command-line options of a request's fields; `ravqa.cli` builds the options from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """The command-line option of a field, in the field's `Annotated` type.

    Attributes:
        help: one sentence.
        metavar: placeholder for the value in the help; empty for flags and choices.
        flag: its name, if it differs from the field's: "--set".
        commas: several values are given as one comma-separated text; else the option is repeated.
        argument: it is positional and has no name.
        least: the smallest number that is accepted; None for any.
    """

    help: str
    metavar: str = ""
    flag: str = ""
    commas: bool = False
    argument: bool = False
    least: int | None = None
