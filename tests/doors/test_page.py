"""The demo's page without a browser: what it makes of what browsers send, and of odd texts."""

import io
from pathlib import Path

import pytest
from PIL import Image

from ravqa.core.errors import UserError
from ravqa.datasets.base import DatasetRequest
from ravqa.datasets.files import load_jsonl
from ravqa.doors.demo.page import EXAMPLES, Page, style
from ravqa.doors.feedback import OPEN, Feedback
from ravqa.doors.shelf import OWN
from ravqa.images.uploads import Limits

SCRIPT = "<img src=x onerror=alert(1)>"


@pytest.fixture
def page(shelf, tmp_path):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    feedback = Feedback(tmp_path / "feedback")
    return Page(shelf, feedback, uploads, Limits(file=5000, pixels=10_000))


def upload(page, name="photo.png", data=None):
    if data is None:
        out = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(out, "PNG")
        data = out.getvalue()
    (page.folder / name).write_bytes(data)
    return {"path": str(page.folder / name)}


def ask(page, photo=None, question="koala", collection="animals", pipeline=OWN, k=2, rule="top1"):
    return list(page.ask(photo, question, collection, pipeline, k, rule))


def test_an_answer_grows_and_can_be_kept(page):
    steps = ask(page, upload(page))
    assert "Looking for passages" in steps[0].answers
    last = steps[-1]
    assert all(step.verdict is None for step in steps[:-2])
    for said in ("With passages", "Without passages", "unknown", "passages found", "together"):
        assert said in last.answers
    assert "No part of this pipeline looks at photos" in last.answers
    assert "No part of this pipeline looks at photos" not in ask(page)[-1].answers
    assert "2 passages found" in last.passages
    assert "no word-by-word matches" in last.matched  # of this encoder
    shown = last.verdict.answer
    assert f"“{shown}”".replace("<", "&lt;").replace(">", "&gt;") in page.say(last.verdict, True)
    [kept] = load_jsonl(DatasetRequest(data=page.feedback.folder)).questions
    assert (kept.question, kept.answers) == ("koala", (shown,))
    assert kept.extra["collection"] == "animals"
    assert kept.image.read_bytes() == last.verdict.image


def test_a_wrong_answer_waits_for_the_right_one(page):
    verdict = ask(page)[-1].verdict
    assert "Noted as wrong" in page.say(verdict, False)
    [kept] = load_jsonl(DatasetRequest(data=page.feedback.folder / OPEN)).questions
    assert (kept.answers, kept.image) == ((), None)
    assert "Noted as wrong" in page.say(verdict, False, " \n ")
    assert "as the right answer" in page.say(verdict, False, " eastern\nAustralia ")
    [kept] = load_jsonl(DatasetRequest(data=page.feedback.folder)).questions
    assert kept.answers == ("eastern Australia",)
    assert "Ask something first" in page.say(None, True)


def test_markup_in_data_is_text(page):
    last = ask(page, question=f"koala {SCRIPT}")[-1]
    for part in (last.answers, last.passages):
        assert "<img src=x" not in part
    assert "&lt;img" in last.passages
    assert "<script" not in page.say(last.verdict, False, "<script>alert(1)</script>")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"question": "  "}, "Type a question first"),
        ({"question": None}, "Type a question first"),
        ({"question": "x" * 501}, "too long"),
        ({"k": 0}, "from 1 to 10"),
        ({"k": 11}, "from 1 to 10"),
        ({"k": True}, "from 1 to 10"),
        ({"k": "2"}, "from 1 to 10"),
        ({"k": float("nan")}, "from 1 to 10"),
        ({"rule": "likeliest_choice"}, "does not suit"),
        ({"rule": "/etc/passwd"}, "does not suit"),
        ({"collection": "/etc"}, "no collection"),
        ({"pipeline": "sample"}, "no pipeline"),
        ({"photo": {"path": "/etc/passwd"}}, "choose it again"),
        ({"photo": {"path": "\x00"}}, "choose it again"),
        ({"photo": {"url": "http://127.0.0.1/"}}, "choose it again"),
        ({"photo": "text"}, "choose it again"),
    ],
)
def test_odd_requests_get_one_line(page, given, said):
    [only] = ask(page, **given)
    assert 'role="alert"' in only.answers
    assert said in only.answers
    assert (only.passages, only.matched, only.verdict) == ("", "", None)


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"MZ", "not an image"), (bytes(6000), "more than the limit of 5.0 KB"), (b"", "empty")],
)
def test_photos_that_cannot_be_used_get_one_line(page, data, said):
    [only] = ask(page, upload(page, "odd.jpg", data))
    assert "The photo cannot be used: " in only.answers
    assert said in only.answers


def test_links_out_of_the_uploads_are_not_followed(page, animals):
    (page.folder / "link").symlink_to(animals.parent / "hashed.yaml")
    for path in (page.folder / "link", page.folder / ".." / "feedback", page.folder):
        [only] = ask(page, {"path": str(path)})
        assert "choose it again" in only.answers


def test_what_goes_wrong_inside_is_for_the_terminal(page, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret of /etc")

    monkeypatch.setattr(page.shelf, "pipeline", broken)
    *_, last = ask(page)
    assert "Something went wrong here" in last.answers
    assert "secret" not in last.answers
    assert "could not be answered" in caplog.text


def test_mistakes_are_told_without_folders(page, monkeypatch, caplog):
    def missing(*_):
        raise UserError(
            f"/srv/secret/model is missing, {page.shelf.collection('animals').path} too"
        )

    monkeypatch.setattr(page.shelf, "pipeline", missing)
    *_, last = ask(page)
    assert "model is missing, animals too" in last.answers
    assert "secret" not in last.answers
    assert "/srv/secret/model is missing" in caplog.text


def test_a_folder_that_cannot_be_written_is_said(page, monkeypatch, caplog):
    verdict = ask(page)[-1].verdict
    page.feedback.folder.write_text("a file", encoding="utf-8")
    assert "could not be kept" in page.say(verdict, True)
    assert "could not be kept" in caplog.text


def test_examples_are_put_back_after_they_were_removed(page):
    path, question = page.example(0)
    Path(path).unlink()
    assert page.example(0) == (path, question)
    assert Path(path).is_file()


def test_the_style_sheet_has_small_pictures_of_the_examples():
    sheet = style()
    assert sheet.count("background-image: url(data:image/") == len(EXAMPLES)
    assert len(sheet) < 40_000
    assert "http" not in sheet
