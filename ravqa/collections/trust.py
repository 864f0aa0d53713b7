"""Trust in settings that name something outside their own file.

Settings travel: in a packed collection, in the `collection.json` of a copied folder, in the
`config.yaml` of a run. Third-party settings must not choose a server that photos and questions are
sent to, the environment variable whose value is sent along, a local file, or code to run. `outside`
finds such settings. The type of each setting declares what it names (`settings.Names`); a setting
whose type declares nothing may name anything, unless its value has no text.

Settings that the user gave on this machine are recognised: `remember` keeps their SHA-256 in the
file `settings.sha256` of the user's state folder ($XDG_STATE_HOME/ravqa, else
~/.local/state/ravqa), never in the folder that they describe. If any setting changes, they are no
longer recognised.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ravqa.answering.rules import rule_settings
from ravqa.core.registry import PARTS, table
from ravqa.core.settings import Names, Part, PipelineConfig, RunsCode

_log = logging.getLogger(__name__)

_FILE = "settings.sha256"
_ANYTHING = "something that is not declared harmless"
_UNKNOWN = "an unknown setting"
_SHOWN = 200  # longest value shown, in characters
CODE = get_args(RunsCode)[1].what
"""Value of `Setting.names` for settings that run code."""

_here: set[str] = set()  # what this process remembered, even if no file can be written


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that names something outside.

    Attributes:
        path: its key, as in "reader.url".
        names: what it names, as in "a server".
    """

    path: str
    value: Any
    names: str

    def __str__(self) -> str:
        text = repr(self.value)  # printable, whatever it contains
        return f"{self.path} = {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"


def outside(settings: Mapping[str, Any]) -> list[Setting]:
    """Return the settings of a pipeline that name something outside, in order.

    Args:
        settings: as in a pipeline's file; they need not be valid.
    """
    return list(_of_model(PipelineConfig, settings, ""))


def outside_of_run(config: Mapping[str, Any]) -> list[Setting]:
    """Apply `outside` to a run's `config.yaml`: its data, corpus and pipeline."""
    found = []
    dataset, corpus, pipeline = (_mapping(config, key) for key in ("dataset", "corpus", "pipeline"))
    for path, value in (
        ("dataset.data", dataset.get("data")),
        ("dataset.options", dataset.get("options")),
        ("corpus.files", corpus.get("files")),
        ("corpus.options", corpus.get("options")),
    ):
        if value:
            found.append(Setting(path, value, "a local path"))
    split = dataset.get("split")
    if split is not None and not re.fullmatch(r"[\w.-]+", str(split)):
        found.append(Setting("dataset.split", split, "a local path"))
    inner = outside(pipeline)
    return found + [Setting(f"pipeline.{s.path}", s.value, s.names) for s in inner]


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def listed(found: Sequence[Setting]) -> str:
    """Return settings as text for a message, each with what it names."""
    return ", ".join(f"{setting} ({setting.names})" for setting in found)


def is_mine(settings: Mapping[str, Any]) -> bool:
    """Return whether exactly these settings were remembered on this machine."""
    digest = _digest(settings)
    if digest in _here:
        return True
    try:
        return digest in _file().read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False


def remember(settings: Mapping[str, Any]) -> None:
    """Remember these settings as the user's own; warn if that cannot be written."""
    if is_mine(settings):
        return
    _here.add(_digest(settings))
    try:
        _file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _file().open("a", encoding="ascii") as out:
            out.write(f"{_digest(settings)}\n")  # one write: several processes may append
    except OSError as e:
        _log.warning(
            "%s cannot be written (%s): these settings will not be recognised as yours later: "
            "use --trust-settings then",
            _file(),
            e.strerror or e,
        )


def _file() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "ravqa" / _FILE


def _digest(settings: Mapping[str, Any]) -> str:
    # Normalise by writing and reading: YAML has keys and values that JSON lacks.
    plain = json.loads(json.dumps(settings, default=str))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _of_model(model: type[BaseModel], values: Mapping[str, Any], before: str) -> Iterator[Setting]:
    for key, value in values.items():
        path = f"{before}{key}"
        field = model.model_fields.get(key)
        if field is None:
            yield Setting(path, value, _UNKNOWN)
        elif not _is_default(field, value):
            yield from _of_field(model, str(key), field, value, path)


def _is_default(field: FieldInfo, value: Any) -> bool:
    if field.is_required():
        return False
    default = field.get_default(call_default_factory=True)
    return type(default) is type(value) and bool(default == value)


def _of_field(
    owner: type[BaseModel], key: str, field: FieldInfo, value: Any, path: str
) -> Iterator[Setting]:
    inner = _models(field.annotation)
    if owner is PipelineConfig and key == "answering" and isinstance(value, Mapping):
        options, value = rule_settings(value, key)  # a setting without effect names nothing
        inner = [options]
    if not inner:
        # pydantic removes the mark from a type that stands alone.
        what = _named(_marked(field), value)
        if what is not None:
            yield Setting(path, value, what)
        return
    several = isinstance(value, list | tuple)
    for i, one in enumerate(value if several else [value]):
        place = f"{path}.{i}" if several else path
        if one is None:
            continue
        if not isinstance(one, Mapping):
            yield Setting(place, one, _UNKNOWN)
        elif inner == [Part]:
            yield from _of_part(key, one, place)
        else:
            yield from _of_model(inner[0], one, f"{place}.")


def _of_part(key: str, values: Mapping[str, Any], path: str) -> Iterator[Setting]:
    name = values.get("name")
    registry = table(PARTS[key]) if key in PARTS else None
    if registry is None or not isinstance(name, str) or name not in registry:
        yield Setting(path, values, _UNKNOWN)
        return
    options = {option: value for option, value in values.items() if option != "name"}
    yield from _of_model(registry.get(name).Config, options, f"{path}.")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _marked(field: FieldInfo) -> Any:
    marks = [mark for mark in field.metadata if isinstance(mark, Names)]
    return Annotated[field.annotation, marks[0]] if marks else field.annotation


def _named(annotation: Any, value: Any) -> str | None:
    """Return what a value of this type names outside; None for nothing."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        mark = next((mark for mark in args[1:] if isinstance(mark, Names)), None)
        if mark is None:
            return _named(args[0], value)
        return None if mark.harmless(value) else mark.what
    inner: list[str | None] = []
    if value is None or isinstance(value, bool | int | float) or annotation in {bool, int, float}:
        pass  # no text, or text that pydantic rejects
    elif origin in {Union, UnionType}:
        inner = [_named(arm, value) for arm in args if arm is not NoneType]
    elif origin in {tuple, list} and isinstance(value, list | tuple):
        inner = [_named(args[0], one) for one in value]
    elif origin is dict and isinstance(value, Mapping):
        inner = [_named(args[1], one) for one in value.values()]
    elif origin is not Literal or value not in args:
        inner = [_ANYTHING]
    return next((what for what in inner if what is not None), None)
