"""Where the cache folder is."""

from pathlib import Path

import pytest

from ravqa.core.locations import cache_dir, is_cached, real_path


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("own", "xdg", "own"),
        (None, "xdg", "xdg/ravqa"),
        ("", "xdg", "xdg/ravqa"),
        (None, None, "home/.cache/ravqa"),
        (None, "", "home/.cache/ravqa"),
    ],
)
@pytest.mark.skipif("sys.platform != 'linux'", reason="other systems have other folders")
def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch, own, xdg, expected):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in (("RAVQA_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value and str(tmp_path / value))
    assert cache_dir("a", "b") == Path(tmp_path, expected, "a", "b")
    assert cache_dir("a").is_dir()


def test_links_in_a_circle_have_a_path_too(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "self").symlink_to(tmp_path / "self" / "more")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("a", "self", "a/below"):
        assert real_path(tmp_path / name).is_relative_to(tmp_path)
    assert real_path(tmp_path / "link" / "x") == tmp_path / "x"


def test_what_lies_below_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path / "cache"))
    assert is_cached(tmp_path / "cache" / "images" / "a")
    assert not is_cached(tmp_path / "cache" / ".." / "a")
    assert not is_cached(tmp_path / "cached" / "a")
