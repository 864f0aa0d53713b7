"""The README and the guides: every block is checked, and run unless it says what it needs."""

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import types
import warnings
from pathlib import Path

import pytest
import yaml
from doc_pages import (
    FILES,
    LANGUAGES,
    NEEDS,
    PAGES,
    ROOT,
    blocks,
    commands,
    every,
    is_ravqa,
    make_files,
    parse,
    prepare,
    prints,
)

from ravqa.cli import main, run_main

_LIMIT = "4"  # questions of a run
# Changes of a training's settings.
_BRIEFLY = ["loop.steps=1", "loop.validate_every=1", "train.0.limit=4"]
_BRIEFLY += ["validation.limit=4", "validation.images=[0,1]"]
_NOT_RUN = {"make", "pip", "git", "cd", "source", "export", "torchrun"}


def named(found):
    return [pytest.param(block, id=str(block)) for block in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_says_what_it_is(page):
    text = page.read_text(encoding="utf-8")
    found = blocks(page)
    assert text.count("\n```") == 2 * len(found), "a fence that is not closed"
    for before, block in zip([None, *found], found, strict=False):
        assert block.language in LANGUAGES, f"{block}: of what language?"
        if block.output:
            assert block.language == "text"
            assert is_run(before), f"{block}: what prints it?"
        assert block.needs <= NEEDS, f"{block}: needs {', '.join(NEEDS)}"
        assert not (block.needs and block.file)
        if block.file is not None:
            assert re.fullmatch(r"[\w-]+(/[\w-]+)*\.\w+", block.file), block.file
    marks = re.findall(r"^<!-- ?(.*?) ?-->", text, re.MULTILINE)
    counted = sum(bool(b.needs) + bool(b.file) + b.output for b in found)
    assert len(marks) == counted, "a mark that is not right above a block"


@pytest.mark.parametrize("block", named(b for b in every(*LANGUAGES) if b.file is not None))
def test_the_name_of_a_file_can_be_seen(block):
    lines = block.page.read_text(encoding="utf-8").splitlines()
    assert lines[block.line - 2].startswith("<!-- file")
    assert lines[block.line - 4].lower().endswith(f"save as `{block.file}`:")


def is_run(block):
    return block.language in {"python", "console"} and not (block.needs or block.file)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_says_where_its_files_come_from(page):
    """photo.jpg and passages.jsonl are in no checkout: readers are told which files to take.

    Beside a DIR of their own, readers have passages of their own.
    """
    text = page.read_text(encoding="utf-8")
    lines = [line for b in blocks(page) if is_run(b) for line in b.text.splitlines()]
    named = re.compile(r"""(?<![\w/])(?<!/ ["'])(photo\.jpg|passages\.jsonl)\b""")
    if any(named.search(line) for line in lines if " DIR " not in line):
        assert FILES in text or "quick-start.md#two-files-to-try-it-with" in text


def test_those_files_are_the_koala_and_passages_about_it(tmp_path):
    make_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["passages.jsonl", "photo.jpg"]
    assert b"Koala" in (tmp_path / "passages.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("1.25 koala\n", "1.25 koala\n", True),
        ("1.25 koala\n", "1.26 koala\n", False),
        ("1.25 koala\n", "1.25 koala\nmore\n", False),
        ("run directory: runs/...\n", "run directory: runs/okvqa-1\n", True),
        ("...koala\n...", "1 koala\n2 lion\n", True),
        ("...koala\n...", "1 bear\n2 lion\n", False),
    ],
)
def test_printed_output_is_compared(expected, printed, same):
    assert prints(expected, printed) == same


def test_an_output_is_the_text_below_its_block(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n<!-- output -->\n```text\n1\n```\n")
    assert [(b.text, b.output) for b in blocks(page)] == [("print(1)\n", False), ("1\n", True)]


def write_files(page, folder):
    """The blocks of a page that are files."""
    for block in blocks(page):
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


@pytest.mark.parametrize("block", named(every("console")))
def test_commands_are_as_the_command_line_takes_them(block, tmp_path, monkeypatch):
    write_files(block.page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands(block):
        if is_ravqa(command):
            if "RAVQA_PLUGINS" not in command.environment:
                parse(command)
        elif command.program == ("make",):
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            for target in (a for a in command.arguments if "=" not in a):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"
        elif command.program[0] == "python" and command.program[1].endswith(".py"):
            assert (ROOT / command.program[1]).is_file(), f"no {command.program[1]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_extras_are_installed_from_the_checkout_and_exist(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"pip install '?ravqa.*|ravqa\[.*", text), "not on a package index"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = re.findall(r"pip install (.*)'\.\[([\w,-]+)\]'", text)
    assert len(re.findall(r"pip install.*\[", text)) == len(installed)
    for options, extras in installed:
        assert options == "-c constraints.txt -e ", "tested versions, and no copy of the checkout"
        assert set(extras.split(",")) <= project["optional-dependencies"].keys(), extras


def test_what_runs_needs_no_package_that_make_run_does_not_install():
    texts = {str(block): block.text for block in every("console", "python") if is_run(block)}
    texts |= {path.name: path.read_text("utf-8") for path in (ROOT / "examples").glob("*.py")}
    assert [name for name, text in texts.items() if "bm25" in text.lower()] == []


def test_the_readme_is_short_and_asks_for_nothing_that_is_not_in_a_checkout():
    readme = PAGES[0]
    assert readme.name == "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 150
    assert not any(block.needs or "DIR" in block.text for block in blocks(readme))


@pytest.mark.parametrize("block", named(every("python", "yaml", "json")))
def test_other_blocks_are_well_formed(block):
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "yaml":
        list(yaml.safe_load_all(block.text))
    else:
        try:
            json.loads(block.text)
        except ValueError:  # or it is JSON lines
            for line in block.text.splitlines():
                json.loads(line)


def test_llama_index_takes_less_than_15_lines():
    first = next(b for b in every("python") if b.page.name == "llama-index.md")
    assert not first.needs
    assert "engine.query(" in first.text
    assert len([line for line in first.text.splitlines() if line.strip()]) < 15


@pytest.mark.parametrize(
    "block", named(b for b in every("python") if b.page.name == "extending.md")
)
def test_a_part_of_ones_own_is_a_short_file(block):
    assert block.text.count("\n") < 40


def test_relative_links_lead_somewhere():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)(#[^)\s]*)?\)", text):
            path = page if not target else page.parent / target
            assert path.exists(), f"{page.name} links to {target}"
            if anchor and path.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
                assert anchor[1:] in slugs, f"{page.name} links to {target}{anchor}"


def limited(arguments):
    """A run of few questions, in a new folder unless it is named; a training of one step."""
    words = list(arguments)
    if words[:2] == ["train", "reader"]:
        return words + [word for change in _BRIEFLY for word in ("--set", change)]
    if words[0] == "study" and "--dry-run" not in words:
        words.append("--dry-run")
    if "--limit" in words:
        words[words.index("--limit") + 1] = _LIMIT
    elif words[0] == "run":
        words += ["--limit", _LIMIT]
    return words


def in_this_process(command):
    """Run a command, and return its exit status and what it printed."""
    arguments = list(command.arguments)
    single = command.program == ("python", "run_vqa.py")
    words = limited(["run", *arguments] if single else arguments)
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as end:
        run_main(words[1:]) if single else main(words)
    return end.value.code, out.getvalue()


def in_a_process(command):
    """Run a command with its variables, and return its exit status and what it printed."""
    single = command.program == ("python", "run_vqa.py")
    arguments = list(command.arguments)
    words = limited(["run", *arguments] if single else arguments)
    program = [str(ROOT / "run_vqa.py"), *words[1:]] if single else ["-m", "ravqa", *words]
    paths = [command.environment.get("PYTHONPATH", ""), str(ROOT)]
    variables = command.environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, *program],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def run_script(block):
    """Run a Python block in a process of its own, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    return done.stdout


def run_here(block):
    """Run a Python block as the main module of this process, and return what it printed."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        main_module = types.ModuleType("__main__")
        patch.setitem(sys.modules, "__main__", main_module)
        exec(compile(block.text, str(block), "exec"), vars(main_module))
    return out.getvalue()


def run(block, run_python):
    """Run a block that needs nothing, and return what it printed."""
    if block.language == "python":
        before = set(Path().iterdir())
        printed = run_python(block)
        assert printed.strip(), f"{block} prints nothing"
        if set(Path().iterdir()) != before:
            run_python(block)  # what it has made does not hinder it
        return printed
    printed = ""
    for command in commands(block):
        other = command.program[0] == "python" and not is_ravqa(command)
        if other or command.program[0] in _NOT_RUN:
            continue
        code, out = in_a_process(command) if command.environment else in_this_process(command)
        assert code == 0, f"{block}: {' '.join(command.arguments)}"
        printed += out
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_blocks_of_a_page_run_one_after_the_other(
    page, tmp_path, models_loaded_once, shared, reader
):
    shared(reader)  # importing libraries and loading models takes longer than what most blocks do
    prepare(tmp_path)
    modules = {Path(b.file).stem for b in blocks(page) if (b.file or "").endswith(".py")}
    with contextlib.chdir(tmp_path):
        printed = ""
        for block in blocks(page):
            if block.file is not None:
                Path(block.file).parent.mkdir(parents=True, exist_ok=True)
                Path(block.file).write_text(block.text, encoding="utf-8")
            elif block.output:
                assert prints(block.text, printed), f"{block}: it prints\n{printed}"
            elif is_run(block):
                # What a page's own modules register would stay.
                apart = any(re.search(rf"import.*\b{name}\b", block.text) for name in modules)
                printed = run(block, run_script if apart else run_here)
