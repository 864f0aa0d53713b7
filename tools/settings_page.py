"""Makes docs/settings.md: every setting with its default, from the classes that check them.

python tools/settings_page.py > docs/settings.md
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ravqa.core.registry import PARTS, imported, table
from ravqa.core.settings import (
    Address,
    ModelName,
    PackagedFile,
    Part,
    PipelineConfig,
    SecretVariable,
    TemplateName,
    inline_yaml,
)

_INTRODUCTION = """\
# All settings

Every key of a pipeline's file, of datasets, trainings and studies, with its type and its default,
which holds where a file does not set the key. (The pipelines in `pipelines/` set some; a run writes
all of them, resolved, into its `config.yaml`.) Change one with `--set`, by its path:
`--set retriever.encoder.batch_tokens=8192`. A key without a default must be set. Defaults are
written as in YAML: `null` means that nothing is set.

This page is made from the code: `python tools/settings_page.py > docs/settings.md`.
"""

_KINDS = {
    "describers": ("Describers", "`describer:` describes the image as text."),
    "retrievers": ("Retrievers", "`retriever:` finds passages."),
    "encoders": (
        "Encoders",
        "`retriever.encoder:` of `late-interaction` turns texts and images into vectors.",
    ),
    "indexes": ("Indexes", "`retriever.index:` of `late-interaction` searches the vectors."),
    "rerankers": (
        "Rerankers, filters and gates",
        "`reranking:` is a list of these, applied in order.",
    ),
    "readers": ("Readers", "`reader:` answers."),
    "rules": (
        "Answering",
        "`answering:` has the keys of the table, and those of its rule (`decision`).",
    ),
    "judges": ("Judges", "`judge:` decides whether an answer of E-VQA is right."),
    "metrics": ("Answer metrics", "Set with `--metric-option KEY=VALUE`."),
    "datasets": ("Datasets", "Set with `--dataset-option KEY=VALUE`."),
}
_WORDS: Mapping[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    dict: "mapping",
    Path: "path",
}
# Texts that name something; the types of others differ only in what is trusted.
_NAMED = [
    (Address, "address"),
    (SecretVariable, "environment variable"),
    (PackagedFile, "path"),
    (ModelName, "folder or hub name"),
    (TemplateName, "template"),
]
_ENTRY = re.compile(r"^([a-z_0-9]+(?:, [a-z_0-9]+)*): +(.*)$")
_SECTION = re.compile(r"^[A-Z][a-z]+:$")


def page() -> str:
    """Return the page: a section for each kind of part, and a table for each part."""
    lines = [_INTRODUCTION, "## Pipeline", "", *_table(PipelineConfig, leave_out={"answering"})]
    for kind, (title, text) in _KINDS.items():
        lines += ["", f"## {title}", "", text, *_parts(kind)]
    lines += ["", "## Trainings", ""]
    lines += ["The settings files of [training](training.md)."]
    for name, target in {
        "`ravqa train retriever`": "ravqa.training.retriever_settings:RetrieverTraining",
        "`ravqa train reader`": "ravqa.training.reader:ReaderTraining",
    }.items():
        lines += ["", f"### {name}", "", *_table(imported(target))]
    lines += ["", "## Studies", "", "The files of [studies](studies.md).", ""]
    lines += _table(imported("ravqa.studies.plan:StudyConfig"))
    return "\n".join(lines) + "\n"


def _parts(kind: str) -> Iterator[str]:
    """Yield a heading and a table for each part of a kind that this project has."""
    common: set[str] = set()
    if kind == "rules":  # what every rule has is shown once
        base = imported("ravqa.answering.config:AnsweringConfig")
        yield from ["", *_table(base)]
        common = set(base.model_fields)
    without = []
    for name, _ in table(kind):
        model = _settings_of(kind, name)
        if model is None:
            continue
        if not set(model.model_fields) - common:
            without.append(f"`{name}`")
            continue
        yield from ["", f"### {table(kind).kind.capitalize()} `{name}`", ""]
        yield from _table(model, leave_out=common)
    if without:
        yield from ["", f"Without {'further ' if common else ''}settings: {', '.join(without)}."]


def _settings_of(kind: str, name: str) -> type[BaseModel] | None:
    """Return the class of a part's settings; None for a part that a plugin added."""
    part = table(kind).get(name)
    if not part.__module__.startswith("ravqa."):
        return None
    if kind == "datasets":  # functions; their options are beside them
        found = vars(sys.modules[part.__module__]).get("Options")
        return found or imported("ravqa.datasets.base:ImageOptions")
    config: type[BaseModel] = part.Config
    return config


def _table(model: type[BaseModel], leave_out: set[str] | frozenset[str] = frozenset()) -> list[str]:
    rows = ["| Key | Type | Default | |", "|---|---|---|---|"]
    for key, field, text in settings(model):
        if key.split(".")[0] not in leave_out:
            rows.append(f"| `{key}` | {_type(key, field)} | {_default(field)} | {_cell(text)} |")
    return rows


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo, str]]:
    """Yield every key's path, field, and meaning; a group of settings is followed by its keys.

    The keys of a group in a list have `N` in their path: "train.N.data".
    """
    texts = meanings(model)
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field, texts.get(name, "")
        group = _group(field.annotation)
        if group is not None:
            number = ".N" if _is_list(field.annotation) else ""
            yield from settings(group, f"{prefix}{name}{number}.")


def meanings(model: type[BaseModel]) -> Mapping[str, str]:
    """Return what the docstrings of a class and its bases say of its attributes."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        text = inspect.cleandoc(base.__doc__ or "")
        names: Sequence[str] = ()
        inside = False
        for line in text.splitlines():
            if _SECTION.match(line):
                inside, names = line == "Attributes:", ()
            elif inside and (entry := _ENTRY.match(line.removeprefix("    "))):
                names = entry.group(1).split(", ")
                found |= dict.fromkeys(names, entry.group(2))
            elif inside and line.startswith("        "):
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _type(key: str, field: FieldInfo) -> str:
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    bounds = [
        f"{sign} {getattr(mark, name):g}"
        for mark in field.metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if hasattr(mark, name)
    ]
    return ", ".join([_words(kind, key.rpartition(".")[2]), *bounds])


def _words(annotation: Any, key: str) -> str:
    """Return a type in words; `key` is the setting that has it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        named = (text for kind, text in _NAMED if kind.__metadata__[0] in annotation.__metadata__)
        return next(named, None) or _words(inner[0], key)
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in inner)
    if origin in {Union, types.UnionType}:
        return " or ".join(_words(kind, key) for kind in inner if kind is not type(None))
    if origin is tuple:
        number = "" if Ellipsis in inner else f"{len(inner)} times "
        return f"list of {number}{_words(inner[0], key)}"
    if annotation is Part:
        title = _KINDS[PARTS[key]][0]
        return f"[{title.lower()}](#{_slug(title)})"
    return "group" if _group(annotation) is annotation else _WORDS[origin or annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Part):
        return f"`{value.name}`"
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        value = [item.model_dump(exclude_unset=True) if isinstance(item, BaseModel) else item
                 for item in value]  # fmt: skip
    return f"`{inline_yaml(value)}`"


def _group(annotation: Any) -> type[BaseModel] | None:
    """Return the class of a setting with settings inside, also of a list of such."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return None if annotation is Part else annotation
    return next((found for kind in get_args(annotation) if (found := _group(kind))), None)


def _is_list(annotation: Any) -> bool:
    kinds = (annotation, *get_args(annotation))
    return any(get_origin(kind) in {tuple, list} for kind in kinds)


def _cell(text: str) -> str:
    return re.sub(r"\bNone\b", "null", text).replace("|", "\\|")


def _slug(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    sys.stdout.write(page())
