"""What visitors are told of errors, and that the log has the rest."""

from pathlib import Path

import pytest

from ravqa.core.errors import DataError, UserError
from ravqa.doors.outside import told


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/srv/people/anna/photo.jpg: broken image", "photo.jpg: broken image"),
        ("no such folder: /srv/people/anna/.", "no such folder: anna."),
        ("'/srv/people/a.jpg' and (/srv/x/y)", "'a.jpg' and (y)"),
        ("~/models/llm is not a model", "llm is not a model"),
        ("it is at file:///srv/people/a.jpg", "it is at a.jpg"),
    ],
)
def test_paths_are_shown_without_their_folders(said, shown, caplog):
    assert told(UserError(said), {}) == shown
    assert caplog.text == said


@pytest.mark.parametrize(
    "said",
    [
        "ask https://example.com/a/b/c or http://host:80/v1/chat",
        "POST /search, 24/7, and/or, a/b/c, 1 / 2",
        "reader.max_new_tokens: 1 is expected",
    ],
)
def test_other_texts_are_shown_as_they_are(said, caplog):
    assert told(UserError(said), {}) == said
    assert caplog.text == ""


def test_folders_with_spaces_are_known_by_name(tmp_path, monkeypatch):
    home = tmp_path / "Anna Other" / "my data"
    monkeypatch.setenv("HOME", str(home))
    folder = Path("/srv/all of it/animals")
    error = DataError(f"{home}/notes/a.jpg,\n {folder}/index/0.bin and {folder} (not {folder}2)")
    shown = told(error, {folder: "animals (2)"})
    assert shown.startswith("notes/a.jpg, animals (2)/index/0.bin and animals (2) (not ")
