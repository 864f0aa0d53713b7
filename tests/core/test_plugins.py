"""Parts of others: modules named by entry points or by RAVQA_PLUGINS add them."""

import sys

import pytest

from ravqa import readers
from ravqa.core import registry
from ravqa.core.errors import ContractError, UserError
from ravqa.core.registry import Registry


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A folder on the path; plugins are looked for anew in the test and after it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("RAVQA_PLUGINS", raising=False)
    monkeypatch.setattr(readers, "READERS", Registry("reader", {"known": ("x:y", "one")}))
    registry.load_plugins.cache_clear()
    yield tmp_path
    registry.load_plugins.cache_clear()
    for name in ("plugin_a", "plugin_b"):
        sys.modules.pop(name, None)


def plugin(folder, name, part):
    text = (
        "from ravqa.readers import READERS\n"
        f"READERS.add('{part}', '{name}:Reader', 'a reader of others')\n"
        "class Reader:\n    pass\n"
    )
    (folder / f"{name}.py").write_text(text)


def test_a_module_named_in_the_environment(fresh, monkeypatch):
    plugin(fresh, "plugin_a", "mine")
    monkeypatch.setenv("RAVQA_PLUGINS", "plugin_a, ")
    assert readers.READERS.check("known") == "known"
    assert "plugin_a" not in sys.modules  # known names need no plugin
    assert readers.READERS.get("mine").__module__ == "plugin_a"
    assert dict(readers.READERS) == {"known": "one", "mine": "a reader of others"}


def test_an_entry_point_of_an_installed_package(fresh):
    plugin(fresh, "plugin_b", "theirs")
    folder = fresh / "theirs-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[ravqa.plugins]\ntheirs = plugin_b\n")
    assert "theirs" in readers.READERS
    assert readers.READERS.get("theirs").__name__ == "Reader"


def test_a_plugin_that_fails_is_named(fresh, monkeypatch):
    (fresh / "plugin_a.py").write_text("raise RuntimeError('no good\\nat all')")
    monkeypatch.setenv("RAVQA_PLUGINS", "plugin_a")
    with pytest.raises(UserError) as error:
        readers.READERS.check("mine")
    expected = "RAVQA_PLUGINS: the plugin plugin_a cannot be imported: no good"
    assert str(error.value) == expected


def test_a_plugin_that_imports_a_registry_from_where_it_was(fresh, monkeypatch):
    (fresh / "plugin_a.py").write_text("from ravqa.core.registry import READERS\n")
    monkeypatch.setenv("RAVQA_PLUGINS", "plugin_a")
    with pytest.raises(UserError) as error:
        readers.READERS.check("mine")
    expected = "READERS is in ravqa.readers: write `from ravqa.readers import READERS`"
    assert str(error.value).endswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cannot be imported: module 'plugin_a' has no attribute 'Mine'"),
        ("Mine = print", "is not a subclass of ravqa.metrics.base.AnswerMetric"),
        ("class Mine: ...", "is not a subclass of ravqa.metrics.base.AnswerMetric"),
        (
            "from ravqa.metrics.base import AnswerMetric\nclass Mine(AnswerMetric): ...",
            "lacks score, which ravqa.metrics.base.AnswerMetric requires",
        ),
    ],
)
def test_a_part_without_its_base_class_is_named(fresh, text, expected):
    (fresh / "plugin_a.py").write_text(text)
    metrics = Registry("metric", {}, "ravqa.metrics.base:AnswerMetric")
    metrics.add("mine", "plugin_a:Mine", "")
    with pytest.raises(ContractError) as error:
        metrics.get("mine")
    assert str(error.value) == f"the metric 'mine' (plugin_a:Mine) {expected}"
