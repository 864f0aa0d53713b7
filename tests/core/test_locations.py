"""Where the cache folder is."""

from pathlib import Path

import pytest

from ravqa.core.locations import cache_dir


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
