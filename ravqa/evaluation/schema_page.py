"""Documentation of runs' files, generated from `ravqa.evaluation.schema`.

python -m ravqa.evaluation.schema_page > docs/results.md
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_SOURCE = Path(__file__).with_name("schema.py")
_SECTION = re.compile(r"^# -- (.*?) -+$", re.M)
_PLAIN = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "None": "null",
    "Any": "anything",
    "Rule": "`flmr`, `ravqa`, `word` or `nfkc`",
}
_INTRODUCTION = """\
# Files of runs, studies and comparisons

A run writes `config.yaml`, `samples.jsonl` (one line per question; `samples.CONTROL.jsonl` for
each control) and `results.json` into its folder; a study and `ravqa compare --output` write
`table.json`. `ravqa report`, `compare`, `power`, `study`, `score` and `selective` check what they
read against these types: a missing key, a value of another type and NaN are refused with file and
line, and so are runs of another `schema_version`. Other keys are ignored; datasets and metrics add
some where this is said. A key marked *optional* may be absent.

This page is made from `ravqa/evaluation/schema.py`.
"""


def page() -> str:
    """Return the page: every type of every file, every key with its type and meaning."""
    source = _SOURCE.read_text(encoding="utf-8")
    body = ast.parse(source).body
    starts = {source[: m.start()].count("\n"): m.group(1) for m in _SECTION.finditer(source)}
    kinds = {node.name for node in body if isinstance(node, ast.ClassDef)}
    lines = [_INTRODUCTION, "## Numbers and lists", "", "| Type | |", "|---|---|"]
    # A constant among these is a number, not a type.
    lines += [f"| {name} | {text} |" for name, _, text in _documented(body) if not name.isupper()]
    for start, title in starts.items():
        end = min((other for other in starts if other > start), default=len(source))
        inside = [n for n in body if isinstance(n, ast.ClassDef) and start < n.lineno < end]
        lines += ["", f"## {title}"] if inside else []
        # Top-level types come first, then the types inside them.
        for node in sorted(inside, key=lambda node: not node.decorator_list):
            lines += ["", *_table(node, kinds)]
    return "\n".join(lines) + "\n"


def _table(node: ast.ClassDef, kinds: set[str]) -> Iterator[str]:
    yield f"### {node.name}"
    yield ""
    parents = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in kinds]
    also = f" It also has the keys of {_words(node.bases[0], kinds)}." if parents else ""
    yield f"{_line(ast.get_docstring(node))}{also}"
    yield ""
    yield "| Key | Type | |"
    yield "|---|---|---|"
    for key, annotation, text in _documented(node.body):
        yield f"| `{key}` | {_words(annotation, kinds)} | {text} |"


def _documented(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr, str]]:
    """Yield names, their types or values, and the strings below them."""
    for node, below in itertools.pairwise(body):
        text = below.value if isinstance(below, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id, node.annotation, _line(text.value)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                yield node.targets[0].id, node.value, _line(text.value)


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _words(node: ast.expr, kinds: set[str]) -> str:
    """Return the JSON name of a type."""
    if isinstance(node, ast.BinOp):
        first, second = _words(node.left, kinds), _words(node.right, kinds)
        return first if first == second else f"{first} or {second}"
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        match ast.unparse(node.value):
            case "NotRequired":
                return f"{_words(inner[0], kinds)}, *optional*"
            case "Annotated":
                return _words(inner[0], kinds)
            case "dict":
                return f"object of {_words(inner[1], kinds)}"
            case _:  # list, tuple
                return f"list of {_words(inner[0], kinds)}"
    name = str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)
    return f"[{name}](#{name.lower()})" if name in kinds else _PLAIN.get(name, name)


if __name__ == "__main__":
    print(page(), end="")
