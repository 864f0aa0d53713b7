"""Commands whose options are the fields of a request (see `ravqa.core.options`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from ravqa.core.errors import UserError
from ravqa.core.options import Option
from ravqa.core.settings import LARGEST_INTEGER

R = TypeVar("R")


def from_request(
    request: type[R], optional: Collection[str] = ()
) -> Callable[[Callable[..., None]], Any]:
    """Make a command of a function of a request: its options are the request's fields.

    The function's own parameters, after the request, are options too.

    Args:
        optional: fields whose texts are blank by default.
    """

    def decorate(body: Callable[..., None]) -> Any:
        types = get_type_hints(request, include_extras=True)
        made = {f.name: _parameter(f, types[f.name]) for f in fields(request)}  # type: ignore[arg-type]
        made |= {name: made[name].replace(default="") for name in optional}
        _, *own = inspect.signature(body, eval_str=True).parameters.values()

        def command(**values: Any) -> None:
            asked = {name: _value(values.pop(name), types[name]) for name in made}
            for name, value in {**asked, **values}.items():
                _check_size(name, value)
            body(request(**asked), **values)

        keywords = (p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)
        parameters = [*made.values(), *keywords]
        command.__name__ = body.__name__
        command.__doc__ = body.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def arguments_of(request: Any) -> list[str]:
    """Return the command line's arguments that give a request; defaults are left out."""
    types = get_type_hints(type(request), include_extras=True)
    found: list[str] = []
    for field in fields(request):
        kind, option = get_args(types[field.name])
        value = getattr(request, field.name)
        if value == (() if get_origin(kind) is Sequence and not value else field.default):
            continue
        if get_origin(kind) is not Sequence:
            values = [value]
        else:
            values = [",".join(map(str, value))] if option.commas else list(value)
        flag = [] if option.argument else [_flag(field, option)]
        for one in values:
            found += flag if one is True else [*flag, str(one)]
    return found


def _flag(field: Field[Any], option: Option) -> str:
    return option.flag or f"--{field.name.replace('_', '-')}"


def _parameter(field: Field[Any], annotation: Any) -> inspect.Parameter:
    kind, option = get_args(annotation)
    assert isinstance(option, Option)
    default: Any = inspect.Parameter.empty if field.default is MISSING else field.default
    if get_origin(kind) is Sequence and option.commas:
        kind, default = str, ",".join(str(value).removesuffix(".0") for value in default)
    elif get_origin(kind) is Sequence:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
        if field.default is not MISSING:
            kind, default = kind | None, None
    metavar = option.metavar or None
    found = (
        typer.Argument(metavar=metavar, help=option.help)
        if option.argument
        else typer.Option(_flag(field, option), metavar=metavar, help=option.help, min=option.least)
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, found],
    )


def _check_size(name: str, value: Any) -> None:
    for number in value if isinstance(value, tuple | list) else (value,):
        if isinstance(number, int) and abs(number) > LARGEST_INTEGER:
            raise UserError(f"--{name.replace('_', '-')}: a number beyond {LARGEST_INTEGER}")


def _value(value: Any, annotation: Any) -> Any:
    kind, option = get_args(annotation)
    if get_origin(kind) is not Sequence:
        return value
    if not option.commas:
        return tuple(value or ())
    texts = [text.strip() for text in value.split(",") if text.strip()]
    try:
        return tuple(map(get_args(kind)[0], texts))
    except ValueError:
        raise UserError(f"{option.flag} {value!r}: numbers are expected") from None
