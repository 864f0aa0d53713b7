"""Commands whose options are the fields of a request (see `ravqa.core.options`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from ravqa.core.options import Option

R = TypeVar("R")


def from_request(request: type[R], **others: str) -> Callable[[Callable[..., None]], Any]:
    """Make a command of a function of a request: its options are the request's fields.

    The function's own parameters, after the request, are options too.

    Args:
        others: help texts that this command has in place of the request's, by field.
    """

    def decorate(body: Callable[..., None]) -> Any:
        types = get_type_hints(request, include_extras=True)
        made = {f.name: _parameter(f, types[f.name], others) for f in fields(request)}  # type: ignore[arg-type]
        _, *own = inspect.signature(body, eval_str=True).parameters.values()

        def command(**values: Any) -> None:
            asked = {name: _value(values.pop(name), types[name]) for name in made}
            body(request(**asked), **values)

        keywords = (p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)
        parameters = [*made.values(), *keywords]
        command.__name__ = body.__name__
        command.__doc__ = body.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _parameter(field: Field[Any], annotation: Any, others: Mapping[str, str]) -> inspect.Parameter:
    kind, option = get_args(annotation)
    assert isinstance(option, Option)
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    if get_origin(kind) is Sequence:
        kind = str if option.commas else list[get_args(kind)[0]] | None  # type: ignore[misc]
        default = "" if option.commas else None
    flag = option.flag or f"--{field.name.replace('_', '-')}"
    found = typer.Option(
        flag, metavar=option.metavar or None, help=others.get(field.name, option.help)
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, found],
    )


def _value(value: Any, annotation: Any) -> Any:
    kind, option = get_args(annotation)
    if get_origin(kind) is not Sequence:
        return value
    if option.commas:
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value or ())
