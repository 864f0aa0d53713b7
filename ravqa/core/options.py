"""How a request's fields are given on the command line; `ravqa.cli` makes the options of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """The command line's option for a field, in the field's `Annotated` type.

    Attributes:
        help: one sentence.
        metavar: what stands for the value in the help; empty for flags and choices.
        flag: its name, if it is not the field's own: "--set".
        commas: several values are one text with commas; else the option is repeated.
        argument: it has no name and is given by its place.
    """

    help: str
    metavar: str = ""
    flag: str = ""
    commas: bool = False
    argument: bool = False
