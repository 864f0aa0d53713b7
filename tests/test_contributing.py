"""What greets contributors: the checklist, hooks, forms, changelog and citation are as they say."""

import re
from pathlib import Path

import pytest
import yaml

import ravqa
from ravqa import testing
from ravqa.core.registry import TABLES, table

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def read_yaml(name):
    return yaml.safe_load(read(name))


def checklist():
    lines = [line for line in read("CONTRIBUTING.md").splitlines() if line.startswith("| ")]
    return {cells[0]: cells for line in lines[1:] if (cells := line.strip("| ").split(" | "))}


def test_the_checklist_has_every_kind_of_part():
    rows = checklist()
    assert set(rows) == TABLES.keys() - {"retrieval metrics"}  # functions, with no contract
    assert {cells[2].strip("`") for cells in rows.values()} == set(testing.__all__)
    for kind, cells in rows.items():
        package = cells[1].strip("`").replace("/", ".")
        own = [entry.target for entry in table(kind)._entries.values()]
        assert [target for target in own if target.startswith(f"{package}.")], kind
        assert (ROOT / cells[1].strip("`")).is_dir()


def test_hooks_run_what_the_checks_run():
    from pre_commit.clientlib import load_config

    settings = load_config(ROOT / ".pre-commit-config.yaml")
    hooks = [hook for repo in settings["repos"] for hook in repo["hooks"]]
    entries = {hook["entry"].split(" --")[0].removeprefix(".venv/bin/") for hook in hooks}
    checks = re.search(r"^check:.*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)[1]
    commands = re.findall(r"\$\(BIN\)/(\S+(?: \w+)?)", checks)
    assert entries == set(commands)


@pytest.mark.parametrize("form", ["bug", "part"])
def test_forms_have_what_they_must(form):
    found = read_yaml(f".github/ISSUE_TEMPLATE/{form}.yml")
    assert found.keys() == {"name", "description", "labels", "body"}
    ids = [field["id"] for field in found["body"]]
    assert len(set(ids)) == len(ids)
    for field in found["body"]:
        assert field["type"] == "textarea"
        assert field["attributes"].keys() <= {"label", "description", "render"}
        assert field["attributes"]["label"]


def test_versions_of_the_changelog_are_dated_and_short():
    sections = re.split(r"^## ", read("CHANGELOG.md"), flags=re.MULTILINE)[1:]
    assert sections[0].startswith("[Unreleased]\n")
    dates = []
    for section in sections[1:]:
        heading = re.match(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)\n", section)
        assert heading, section.partition("\n")[0]
        dates.append(heading[2])
        assert section.count("\n") <= 60
    assert dates == sorted(dates, reverse=True)
    newest = re.match(r"\[(.*?)\] - (.*)\n", sections[1]).groups()
    citation = read_yaml("CITATION.cff")
    assert newest == (citation["version"], str(citation["date-released"]))
    assert citation["version"] == ravqa.__version__


def test_the_citation_is_that_of_the_package():
    citation, settings = read_yaml("CITATION.cff"), read("pyproject.toml")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert f'license = "{citation["license"]}"' in settings
    assert f'name = "{citation["authors"][0]["name"]}"' in settings
