"""The README and the guides as blocks, and their commands as the programs would take them.

What stands above a block says what the test makes of it:

    <!-- needs: hub, gpu -->     not run, but its commands are checked: it needs the model hub (or a
                                 GPU, a server, a benchmark's official files, several machines)
    <!-- file: NAME -->          not run, but written to NAME in the page's folder
    <!-- output -->              not run: the block before it prints this; "..." stands for any text

All other blocks of a page are run one after the other in one folder, which has what `FILES` makes
in a checkout, and `DIR`: the bundled sample as a folder with OK-VQA's official files.
"""

import doctest
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"console", "python", "yaml", "json", "jinja", "markdown", "text"}
NEEDS = {"hub", "gpu", "server", "data", "cluster"}

_FENCE = re.compile(r"^(`{3,})(.*)$")
_MARK = re.compile(r"^<!-- (needs|file|output)(?:: (.+))? -->$")
FILES = """\
head -n 200 ravqa/datasets/sample/passages.jsonl > passages.jsonl
cp ravqa/datasets/sample/val2014/COCO_val2014_000009000010.jpg photo.jpg
"""
_SERVERS = {"vllm", "ollama", "llama-server", "transformers"}  # where a server is needed
_COMMENT = re.compile(r"(^|\s)#.*$")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=\S*$")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, what it is, what stands above it."""

    page: Path
    line: int
    language: str
    text: str
    needs: frozenset[str] = frozenset()
    file: str | None = None
    output: bool = False

    def __str__(self):
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line of a console block: the variables that are set for it, the program, its arguments."""

    environment: dict
    program: tuple
    arguments: tuple


def blocks(page):
    """The blocks of a page, in order."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    i = 0
    while i < len(lines):
        fence = _FENCE.match(lines[i])
        if not fence:
            i += 1
            continue
        end = next(n for n in range(i + 1, len(lines)) if lines[n] == fence.group(1))
        marks = {}
        above = i - 1
        while above >= 0 and (mark := _MARK.match(lines[above])):
            marks[mark.group(1)] = mark.group(2) or ""
            above -= 1
        needs = frozenset(filter(None, re.split(r"[,\s]+", marks.get("needs", ""))))
        text = "\n".join(lines[i + 1 : end]) + "\n"
        language, output = fence.group(2).strip(), "output" in marks
        found.append(Block(page, i + 1, language, text, needs, marks.get("file"), output))
        i = end + 1
    return found


def every(*languages):
    """The blocks of all pages in these languages."""
    return [b for page in PAGES for b in blocks(page) if b.language in languages]


def commands(block):
    """The commands of a console block; comments are left out, continued lines put together.

    Raises:
        ValueError: a line that is more than one plain command.
    """
    found = []
    for line in block.text.replace(FILES, "").replace("\\\n", " ").splitlines():
        words = shlex.split(_COMMENT.sub("", line))
        if not words:
            continue
        if {"|", "&&", "||", ";", "&", ">", "<"} & set(words):
            raise ValueError(f"{block}: one plain command a line is expected: {line}")
        environment = {}
        while _ASSIGNMENT.match(words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if "server" in block.needs and words[0] in _SERVERS:
            found.append(Command(environment, (words[0],), tuple(words[1:])))
        else:
            found.append(_command(environment, words, line))
    return found


def _command(environment, words, line):
    """The program may be several words: python -m ravqa."""
    for program in (
        ("python", "-m", "ravqa"),
        ("python", "run_vqa.py"),
        ("python", "-m", "pip", "install"),
        ("pip", "install"),
        ("make",),
        ("git", "clone"),
        ("cd",),
        ("source",),
        ("export",),
        ("curl",),
        ("docker",),
        ("ravqa",),
    ):
        if tuple(words[: len(program)]) == program:
            return Command(environment, program, tuple(words[len(program) :]))
    if words[0] == "torchrun" and "-m" in words:
        place = words.index("-m")
        if words[place + 1] == "ravqa":
            return Command(environment, ("torchrun",), tuple(words[place + 2 :]))
    if words[0] == "python" and words[1].endswith(".py"):
        return Command(environment, ("python", words[1]), tuple(words[2:]))
    raise ValueError(f"a command that the test does not know: {line}")


def is_ravqa(command):
    """Whether it is this project's command line."""
    return command.program in {
        ("ravqa",),
        ("python", "-m", "ravqa"),
        ("python", "run_vqa.py"),
        ("torchrun",),
    }


def parse(command):
    """The subcommand and its parameters, as typer reads them; settings are checked as well.

    Raises:
        Exception: whatever the command line would refuse.
    """
    arguments = list(command.arguments)
    if command.program == ("python", "run_vqa.py"):
        arguments.insert(0, "run")
    if "--help" in arguments:
        return (), {}
    node, path = _commands(), []
    while hasattr(node, "commands"):
        name = arguments.pop(0)
        assert name in node.commands, f"no command {' '.join([*path, name])}"
        node = node.commands[name]
        path.append(name)
    context = node.make_context(" ".join(path), arguments)
    _check_settings(tuple(path), context.params)
    return tuple(path), context.params


@cache
def _commands():
    import typer

    from ravqa.cli.app import app

    return typer.main.get_command(app)


def _check_settings(path, params):
    from ravqa.core.settings import load_pipeline
    from ravqa.datasets import DATASETS
    from ravqa.datasets.base import parse_options
    from ravqa.pipeline import check_settings
    from ravqa.runs.options import RunRequest
    from ravqa.runs.plan import plan_pipeline

    if params.get("dataset"):
        DATASETS.check(params["dataset"])
    parse_options(params.get("dataset_options") or params.get("options") or ())
    if path == ("run",):
        plan_pipeline(
            RunRequest(
                dataset=params["dataset"],
                pipeline=params["pipeline"],
                retriever=params.get("retriever"),
                reader=params.get("reader"),
                overrides=tuple(params.get("overrides") or ()),
                controls=tuple(filter(None, (params.get("controls") or "").split(","))),
                resume=params.get("resume", False),
                output=params.get("output"),
                retrieval_only=params["retrieval_only"],
            )
        )
    elif isinstance(params.get("pipeline"), str):
        check_settings(*load_pipeline(params["pipeline"], params.get("overrides") or ()))


def prepare(folder):
    """What the blocks of a page find in their folder."""
    from ravqa.core.locations import SAMPLE

    make_files(folder)
    shutil.copytree(SAMPLE, folder / "DIR")  # a link would lead the photos out of their folder


def make_files(folder):
    """Run the lines of the guides that copy a photo and passages from a checkout."""
    (folder / "ravqa").symlink_to(ROOT / "ravqa")
    subprocess.run(["/bin/sh", "-ec", FILES], cwd=folder, check=True)
    (folder / "ravqa").unlink()


def prints(expected, printed):
    """Whether this was printed; "..." in what was expected stands for any text."""
    return doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)
