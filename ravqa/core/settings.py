"""Validated configuration: one YAML file describes a pipeline; `--set key.path=value` overrides.

Every part is written as `{name: NAME, ...options}`; the options are checked against the part's own
pydantic model (its `Config` class), so that an unknown key is rejected with its path and similar
names.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ravqa.core.errors import UserError, near_matches
from ravqa.core.files import check_file
from ravqa.core.locations import PIPELINES, packaged
from ravqa.core.yaml_loader import load_yaml, reason_of

if TYPE_CHECKING:
    from ravqa.core.accounts import Prices

M = TypeVar("M", bound=BaseModel)

LARGEST_INTEGER = 2**63 - 1
"""Largest absolute value of a number in settings: what arrays, databases and counters can hold."""

_MAY_HOLD_KEYS = frozenset({"url", "api_key_env"})  # by mistake, so never quoted
_PARTS = ("describer", "retriever", "reader", "judge")
_NAMED = frozenset({*_PARTS, "encoder", "index"})  # keys of a mapping with a name


@dataclass(frozen=True, slots=True)
class Names:
    """A marker in the type of a text setting: what the text can name (`collections.trust`).

    Third-party settings are accepted only if they name nothing of the user's. A text setting
    without this marker is assumed to be able to name anything.

    Attributes:
        what: what it names, such as "a server".
        harmless: returns whether a value names nothing of the kind; by default always False.
    """

    what: str
    harmless: Callable[[Any], bool] = lambda value: False


_PACKAGED = re.compile(r"package:[A-Za-z_]\w*(?:/\w[\w.+-]*)+", re.ASCII)
_HUB = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)


def _is_packaged(value: Any) -> bool:
    return isinstance(value, str) and bool(_PACKAGED.fullmatch(value))


def _is_model_name(value: Any) -> bool:
    if not isinstance(value, str) or _is_packaged(value):
        return isinstance(value, str)
    # `ravqa.core.model_files.resolve` prefers existing paths: such a name is a local path.
    return bool(_HUB.fullmatch(value)) and ".." not in value and not Path(value).exists()


Text = Annotated[str, Names("text", lambda value: True)]
"""Text that is shown or sent to a model, or one of a few known names; it locates nothing."""
Address = Annotated[str, Names("a server")]
SecretVariable = Annotated[str, Names("an environment variable")]
LocalPath = Annotated[Path, Names("a local path")]
PackagedFile = Annotated[str, Names("a local path", _is_packaged)]
"""A path, or "package:MODULE/path": a file of an installed package."""
ModelName = Annotated[str, Names("a local path", _is_model_name)]
"""A hub name, "package:MODULE/path", or the path of a folder or file."""
TemplateName = Annotated[
    str, Names("a local path", lambda value: isinstance(value, str) and not Path(value).suffix)
]
"""The name of a template in `prompts/`, or the path of a .jinja file."""
RunsCode = Annotated[bool, Names("code to run", lambda value: value is False)]
"""Whether code that comes with a model is run."""
ImportTarget = Annotated[str, Names("code to run")]
Options = Annotated[dict[str, Any], Names("options of another program", lambda value: not value)]


class Strict(BaseModel):
    """Base class of all configuration; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    renamed: ClassVar[Mapping[str, str]] = {}
    """Present names of settings by their former ones, for the message about an unknown key."""

    builds_parts: ClassVar[bool] = False
    """Whether the part builds others from its options; its constructor then takes a `session`."""

    def packages(self) -> Sequence[tuple[str, str]]:
        """Return the modules that the part needs, each with the extra that installs it."""
        return ()

    def refuse_secrets(self, why: str) -> None:
        """Refuse settings that hold a key, since settings are written into results.

        Args:
            why: which part it is, for messages.

        Raises:
            UserError: a setting holds a key.
        """

    def servers(self) -> Sequence[str]:
        """Return the addresses of the servers that the part asks."""
        return ()

    def bills(self) -> Sequence[Prices | None]:
        """Return the prices of each model on a server that the part asks; None if not given."""
        return ()

    def models(self) -> Sequence[str]:
        """Return the names of the models that the part loads, as for `model_files.resolve`.

        By default this is the option `model`, if its type is `ModelName`.
        """
        field = type(self).model_fields.get("model")
        model = getattr(self, "model", None)
        if field is None or not isinstance(model, str):
            return ()
        return (model,) if any(map(_is_of_models, (field.annotation, *field.metadata))) else ()

    def devices(self) -> Sequence[str]:
        """Return the devices that the part's options name, as torch does, without "auto"."""
        device = getattr(self, "device", "auto")
        return (device,) if isinstance(device, str) and device != "auto" else ()

    def problems(self) -> Sequence[str]:
        """Return what else would stop the part on this machine, one line each.

        Files, variables of the environment, packages that no extra installs. Nothing is loaded.
        """
        return ()


def _is_of_models(kind: Any) -> bool:
    """Return whether a type, or a marker in one, is that of names of models."""
    if isinstance(kind, Names):
        return kind.harmless is _is_model_name
    return any(map(_is_of_models, get_args(kind)))


class Part(BaseModel):
    """A named part with its own options, validated when the part is built."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The part's options without its name."""
        return dict(self.model_extra or {})


class PipelineConfig(Strict):
    """A pipeline's configuration: the parts that answer a question, in the file's order.

    Attributes:
        description: one sentence about the pipeline, for lists and results.
        describer: describes the image as text; None for no description.
        retriever: finds passages.
        top_k: number of passages that are retrieved and scored (PRRecall needs max K).
        reranking: rerankers, passage filters and gates, applied to the passages in order.
        answering: how k passages are read: prompt, decision rule, answer extraction.
        reader: the language model that answers.
        judge: scores E-VQA's answers, which otherwise must match exactly; other datasets use none.
        chosen_on: the questions on which these settings were chosen; stored with every result.
        stand_ins: per part ("retriever", "reranking", "reader"), what it stands in for; printed and
            stored with every result, unless the part is replaced.
    """

    description: Text = ""
    describer: Part | None = None
    retriever: Part
    top_k: int = Field(default=20, ge=1)
    reranking: tuple[Part, ...] = ()
    answering: dict[str, Any] = Field(default_factory=dict)
    reader: Part
    judge: Part | None = None
    chosen_on: Text | None = None
    stand_ins: dict[str, Text] = Field(default_factory=dict)


def validate(model: type[M], data: Mapping[str, Any], where: str) -> M:
    """Return `model(**data)`; errors become one line that names the key's path.

    Args:
        where: what is being read (a file, or the path of the part inside it).

    Raises:
        UserError: unknown key (similar names are listed), wrong type, missing or bad value.
    """
    if problem := _unfit(data):
        raise UserError(f"{where}: {problem}")
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise UserError(f"{where}: {_explain(e, model)}") from None


_REASONS = {  # where pydantic's words are for Python's types: lists of settings become tuples
    "tuple_type": "a list is expected",
    "too_short": "a list of at least {min_length} is expected",
}


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    messages = []
    for item in error.errors():
        path = ".".join(str(p) for p in item["loc"])
        if item["type"] == "extra_forbidden":
            *parents, last = item["loc"]
            owner = _model_at(model, parents)
            if owner is not None and issubclass(owner, Strict) and last in owner.renamed:
                hint = f"it is now called {owner.renamed[str(last)]}"
            else:
                hint = near_matches(str(last), () if owner is None else owner.model_fields)
            messages.append(f"unknown key {path!r}: {hint}")
        elif item["type"] == "missing":
            messages.append(f"key {path!r} is missing")
        else:
            reason = f"{item['msg'][:1].lower()}{item['msg'][1:]}"
            if own := _REASONS.get(item["type"]):
                reason = own.format(**item.get("ctx", {}))
            got = "" if path.split(".")[-1] in _MAY_HOLD_KEYS else f", got {_short(item['input'])}"
            value = f"key {path!r}: {reason}{got}"
            # Constraints between several keys have the model's own messages.
            messages.append(value if path else reason.removeprefix("value error, "))
    return "; ".join(messages)


def _unfit(data: Any) -> str:
    """Return what is wrong with the first value that no setting can have: a huge number, or text
    that UTF-8 cannot encode (half a character, a surrogate); blank if there is none.
    """
    waiting: list[tuple[str, Any]] = [("", data)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            return f"key {path!r}: a number beyond {LARGEST_INTEGER}"
        if isinstance(value, str) and not _is_encodable(value):
            return f"key {path!r}: half a character (a surrogate) in {_short(value)}"
        prefix = f"{path}." if path else ""
        if isinstance(value, Mapping):
            waiting += [(f"{prefix}{key}", inner) for key, inner in value.items()]
            if bad := [key for key in value if isinstance(key, str) and not _is_encodable(key)]:
                return f"half a character (a surrogate) in the key {bad[0]!r}"
        elif isinstance(value, list | tuple):
            waiting += [(f"{prefix}{i}", inner) for i, inner in enumerate(value)]
    return ""


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model at `path` inside `model`; None if that is not one model."""
    for step in path:
        if isinstance(step, int):
            continue  # an index into the preceding list
        field = model.model_fields.get(step)
        models = [] if field is None else _models(field.annotation)
        if len(models) != 1:
            return None
        model = models[0]
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models in a field's type, as in `tuple[Model, ...]` and `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def load_pipeline(name: str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """Return a pipeline's settings with overrides, not yet validated, and where they were read.

    Args:
        name: a file, or the name of a pipeline in `pipelines/`.
        overrides: "key.path=value"; the value is read as YAML.

    Raises:
        UserError: no such pipeline, unreadable YAML, a bad override.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"} and not path.is_file():
        found = packaged(PIPELINES, f"{name}.yaml")
        if found is None:
            known = [p.stem for p in PIPELINES.glob("*.yaml")]
            raise UserError(f"no pipeline {name!r}: {near_matches(name, known)}")
        path = found
    settings = read_yaml(path)
    for override in overrides:
        apply_override(settings, override)
    for part in _PARTS:
        if not isinstance(settings.get(part, {}), dict | None):
            raise UserError(
                f"{path.name}: key {part!r}: a mapping with a name is expected, as in "
                f"{part}: {{name: ...}}, got {_short(settings[part])}"
            )
    return settings, path.name


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: missing, unreadable, not YAML (line named), or not a mapping.
    """
    check_file(path)
    try:
        data = copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read: {e}") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML: {getattr(e, 'problem', e)}") from None
    except (ValueError, RecursionError) as e:  # 2020-13-45 looks like a date but is not one
        raise UserError(f"{path}: a value cannot be read: {e}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a mapping is expected, got {type(data).__name__}")
    return data


@lru_cache(maxsize=16)
def _parsed(text: str) -> Any:
    # The variants of a study read the same pipeline, and a report the same run, again and again.
    return load_yaml(text)


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Apply one "key.path=value" to `settings` in place; list items are addressed by index.

    A text as the value of a part ("reader=openai") is the part's name, without options.

    Raises:
        UserError: no "=", an empty key, or a path through something other than a mapping or list.
    """
    key, value = split_override(override)
    *parents, last = key.split(".")
    if last in _NAMED and parents[:1] != ["stand_ins"] and isinstance(value, str):
        value = {"name": value}
    node: Any = settings
    for depth, step in enumerate(parents):
        if isinstance(node, dict) and node.get(step) is None:
            node[step] = {}
        node = _child(node, step, override, ".".join(parents[: depth + 1]))
    if isinstance(node, list):
        _child(node, last, override, key)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--set {override!r}: {'.'.join(parents)!r} holds a plain value, not keys")


def _child(node: Any, step: str, override: str, path: str) -> Any:
    if isinstance(node, dict):
        return node[step]
    if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
        return node[int(step)]
    raise UserError(f"--set {override!r}: there is no key {path!r}")


def split_override(override: str) -> tuple[str, Any]:
    """Return the key and the value of a "key.path=value".

    Raises:
        UserError: no "=", an empty key, or a value that is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip(".") or not all(key.split(".")):
        raise UserError(f"--set {override!r}: key.path=value is expected")
    try:
        return key, load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # 2020-13-45 is not a date
        raise UserError(f"--set {override!r}: the value is not YAML{reason_of(e)}") from None


def as_override(key: str, value: Any) -> str:
    """Return the "key.path=value" that sets `key` to `value`."""
    return f"{key}={inline_yaml(value)}"


def inline_yaml(value: Any) -> str:
    """Return a value as YAML in one line."""

    def dump(**style: Any) -> str:
        text: str = yaml.safe_dump(
            value, default_flow_style=True, sort_keys=False, width=2**20, **style
        )
        return text.removesuffix("...\n").strip("\n")

    text = dump(allow_unicode=True)
    # In double quotes, every kind of line break is escaped.
    return dump(default_style='"') if len(text.splitlines()) > 1 else text


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Return settings as YAML in the given order."""
    return yaml.safe_dump(
        copy.deepcopy(dict(settings)), sort_keys=False, allow_unicode=True, width=100
    )


def fingerprint(*parts: Any) -> str:
    """Return a short content hash (128 bits of SHA-256, hex) of JSON-able values and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part
            if isinstance(part, bytes)
            # Names of files may hold half characters.
            else json.dumps(part, sort_keys=True, ensure_ascii=False, default=str).encode(
                errors="surrogatepass"
            )
        )
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]
