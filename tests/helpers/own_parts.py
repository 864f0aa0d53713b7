"""Parts as an author of plugins writes them: those of docs/extending.md, and others."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def from_docs(name):
    """The classes of an example of docs/extending.md, by name."""
    text = PAGE.read_text(encoding="utf-8")
    [code] = re.findall(rf"<!-- file: {re.escape(name)} -->\n```python\n(.*?)```", text, re.DOTALL)
    # The registry belongs to the whole process: a test adds there what it needs.
    code = re.sub(r"^[A-Z]+\.add\(.*\)$", "", code, flags=re.MULTILINE)
    space = {"__name__": name.removesuffix(".py")}
    exec(compile(code, name, "exec"), space)
    return space
