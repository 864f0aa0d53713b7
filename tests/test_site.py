"""The documentation as a site: its links, its reference, and that it needs no network."""

import importlib.util
import re
import socket
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("outside", "inside", "shown"),
    [
        ("[a](docs/b.md#c)", "[a](b.md#c)", "[a](b.md#c)"),
        ("[a b](ravqa/c.py)", "[a b](../ravqa/c.py)", "a b"),
        ("[a](CHANGELOG.md)", "[a](../CHANGELOG.md)", "[a](changelog.md)"),
        ("[a](#b)", "[a](#b)", "[a](#b)"),
        ("[a](https://b.c/d)", "[a](https://b.c/d)", "[a](https://b.c/d)"),
    ],
)
def test_links_of_pages_in_the_root_are_seen_from_the_site(outside, inside, shown):
    pages = tool("site_pages")
    assert pages.from_root(outside) == inside
    assert pages.without_links_out(inside) == shown


def test_names_that_share_a_description_each_get_it():
    text = (
        "One.\n\nArgs:\n    a, b,\n        c: of all\n            three.\n    d: of d.\n\nThat: e"
    )
    each = "".join(f"    {name}: of all\n            three.\n" for name in "abc")
    expected = f"One.\n\nArgs:\n{each}    d: of d.\n\nThat: e"
    assert tool("shared_entries").one_each(text) == expected


def pages(nav):
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for inner in entry.values():
                yield from pages(inner)


def test_every_guide_is_in_the_site():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    docs = ROOT / "docs"
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert set(pages(settings["nav"])) == there | {"changelog.md", "contributing.md"}
    listed = (docs / "index.md").read_text(encoding="utf-8")
    guides = {name for name in there if "/" not in name} - {"index.md"}
    assert guides <= set(re.findall(r"\]\(([\w-]+\.md)\)", listed))


def test_the_reference_has_every_public_name():
    import ravqa
    import ravqa.testing

    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    shown = set(re.findall(r"^::: [\w.]+\.(\w+)$", text, re.MULTILINE))
    assert set(ravqa.__all__) <= shown
    assert "::: ravqa.testing\n" in text


@pytest.mark.slow
def test_the_site_is_built_without_a_network_and_loads_nothing_from_one(tmp_path, monkeypatch):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    def refused(*arguments, **options):
        raise AssertionError("a connection to a server")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.chdir(ROOT)
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(config)
    made = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.html")}
    assert {"index.html", "settings.html", "changelog.html", "api/ravqa.html"} <= made.keys()
    for path in made.values():
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link[^>]* href=\"?([^\" >]+)", text)
        assert loaded
        assert not [name for name in loaded if re.match(r"(https?:)?//", name)]
    reference = made["api/ravqa.html"].read_text(encoding="utf-8")
    for name in ("ravqa.pipeline.Pipeline.ask", "ravqa.runs.evaluate.evaluate"):
        assert f'id="{name}"' in reference
