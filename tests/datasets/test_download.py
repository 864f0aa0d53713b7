"""Downloads from a real server on the loopback interface, which counts what it is asked for."""

import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from PIL import Image
from rich.console import Console as RichConsole
from tenacity import Future, RetryCallState, Retrying

from ravqa import cli
from ravqa.core import http
from ravqa.core.errors import UserError
from ravqa.core.factory import Session
from ravqa.core.registry import Entry
from ravqa.core.settings import PipelineConfig
from ravqa.datasets import DOWNLOADS, infoseek, okvqa
from ravqa.datasets import download as module
from ravqa.datasets.base import DatasetRequest, Problems
from ravqa.datasets.download import download
from ravqa.datasets.remote import Remote, Source
from ravqa.runs.console import Console
from ravqa.runs.load import read_data
from ravqa.runs.options import RunRequest

QUESTIONS = "OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "mscoco_val2014_annotations.json"


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def photo(number):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 7 % 256, 90, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def image_name(number, split="val2014"):
    return f"{split}/COCO_{split}_{number:012d}.jpg"


class Server(ThreadingHTTPServer):
    """Serves `files`; a list in `scripts` says what the next requests of a path get instead."""

    daemon_threads = True
    request_queue_size = 64  # the default would let eight threads wait

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.scripts = {}
        self.requests = []
        self.lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.release = threading.Event()  # ends the stalls

    def handle_error(self, request, client_address):
        pass  # a client that was killed


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            server.requests.append(self.path)
            script = server.scripts.get(self.path) or [None]
            step = script.pop(0)
        if step is None:
            body = server.files.get(self.path)
            if body is None:
                self.answer(404, b"<html>not here</html>")
            else:
                self.answer(200, body)
        else:
            step(self)

    def answer(self, code, body=b"", headers=(), length=None):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def state(code, *headers):
    return lambda handler: handler.answer(code, b"busy", headers)


def truncated(handler):
    body = handler.server.files[handler.path]
    handler.answer(200, body[: len(body) // 2], length=len(body))


def stalled(handler):
    body = handler.server.files[handler.path]
    handler.answer(200, body[: len(body) // 2], length=len(body))
    handler.wfile.flush()
    handler.server.release.wait(30)


def hung_up(handler):
    handler.close_connection = True  # not a byte


def forever(step):
    class Always(list):
        def pop(self, _index):
            return step

    return Always([step])


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("RAVQA_OKVQA_URL", f"{server.address}/okvqa")
    monkeypatch.setenv("RAVQA_COCO_URL", f"{server.address}/coco/")
    monkeypatch.setenv("RAVQA_INFOSEEK_URL", f"{server.address}/infoseek")
    monkeypatch.setattr(http, "_BACKOFF_S", 0.01)
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def serve_okvqa(server, image_of, answers=("unknown",), split="val2014"):
    """Puts a small OK-VQA there: question i (from 0) about image `image_of[i]`."""
    questions = [
        {"question_id": 100 + i, "image_id": image, "question": f"What is thing {i}?"}
        for i, image in enumerate(image_of)
    ]
    annotations = [
        {
            "question_id": q["question_id"],
            "image_id": q["image_id"],
            "question_type": "one",
            "answers": [{"answer": answers[i % len(answers)]}] * 10,
        }
        for i, q in enumerate(questions)
    ]
    names = f"OpenEnded_mscoco_{split}_questions.json", f"mscoco_{split}_annotations.json"
    for name, key, records in zip(
        names, ("questions", "annotations"), (questions, annotations), strict=True
    ):
        text = json.dumps({key: records, "info": {"version": "1.1"}})
        server.files[f"/okvqa/{name}.zip"] = zipped(name, text)
    for image in image_of:
        server.files[f"/coco/{image_name(image, split)}"] = photo(image)


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def get(folder, dataset="okvqa", split=None, limit=None, progress=None):
    download(dataset, folder, split, limit=limit, console_progress=progress)


def test_a_whole_download_is_run_and_scored_by_the_command_line(
    server, tmp_path, monkeypatch, capsys
):
    serve_okvqa(server, [42, 42, 73], answers=["unknown", "dog", "cat"])
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path / "cache"))
    data, out = tmp_path / "new" / "data", tmp_path / "run"
    arguments = ["--dataset", "okvqa", "--data", str(data), "--download"]
    arguments += ["--retriever", "none", "--reader", "first-words", "--set", "describer=null"]
    with pytest.raises(SystemExit) as end:
        cli.run_main([*arguments, "--output", str(out)])
    assert end.value.code == 0, capsys.readouterr().err
    # Without passages the reader says "unknown": right for the first of three questions.
    results = json.loads((out / "results.json").read_text())
    assert results["dataset"]["sample"] is False
    assert results["answers"]["conditions"]["main"]["score"] == pytest.approx(100 / 3, abs=0.05)
    assert files_in(data) == [QUESTIONS, ANNOTATIONS, image_name(42), image_name(73)]
    assert (data / image_name(73)).read_bytes() == photo(73)
    # The loader opens every image.
    assert len(okvqa.load(DatasetRequest(data=data)).questions) == 3
    assert "downloading images: 2/2" in capsys.readouterr().err

    before = len(server.requests)
    with pytest.raises(SystemExit) as end:
        cli.run_main([*arguments, "--output", str(tmp_path / "again")])
    assert end.value.code == 0
    assert len(server.requests) == before


def test_each_file_is_fetched_once_and_a_second_call_fetches_nothing(server, tmp_path):
    serve_okvqa(server, [1, 2, 3, 2, 1, 3, 4])
    get(tmp_path)
    wanted = [f"/okvqa/{QUESTIONS}.zip", f"/okvqa/{ANNOTATIONS}.zip"]
    wanted += [f"/coco/{image_name(i)}" for i in (1, 2, 3, 4)]
    assert Counter(server.requests) == Counter(wanted)
    get(tmp_path)
    assert len(server.requests) == len(wanted)


def test_only_images_of_the_first_questions_that_the_loader_takes_are_fetched(server, tmp_path):
    serve_okvqa(server, [5, 6, 5, 7, 8])
    text = {
        "questions": [
            {"question_id": 100, "image_id": 5, "question": "What?"},
            {"question_id": 101, "image_id": 6, "question": " "},  # broken: the loader skips it
            {"question_id": 102, "image_id": 5, "question": "What?"},
            {"question_id": 103, "image_id": 7, "question": "What?"},
            {"question_id": 104, "image_id": 8, "question": "What?"},
        ]
    }
    server.files[f"/okvqa/{QUESTIONS}.zip"] = zipped(QUESTIONS, json.dumps(text))
    get(tmp_path, limit=3)
    assert files_in(tmp_path / "val2014") == [image_name(i)[8:] for i in (5, 7)]
    loaded = okvqa.load(DatasetRequest(data=tmp_path, limit=3, problems=Problems("skip")))
    assert [q.question_id for q in loaded.questions] == [100, 102, 103]


def test_files_that_are_there_are_kept_whatever_they_hold(server, tmp_path):
    serve_okvqa(server, [1, 2])
    (tmp_path / "val2014").mkdir()
    (tmp_path / image_name(1)).write_bytes(b"mine")
    get(tmp_path)
    assert (tmp_path / image_name(1)).read_bytes() == b"mine"
    assert f"/coco/{image_name(1)}" not in server.requests
    assert (tmp_path / image_name(2)).read_bytes() == photo(2)


def test_a_split_is_named_as_for_the_loader(server, tmp_path):
    serve_okvqa(server, [1], split="train2014")
    get(tmp_path, split="train")
    assert (tmp_path / image_name(1, "train2014")).is_file()
    # With no split asked for, the loader would take the only one there: so does the download.
    count = len(server.requests)
    get(tmp_path)
    assert len(server.requests) == count
    with pytest.raises(UserError, match="no split 'tset'"):
        get(tmp_path, split="tset")
    assert len(server.requests) == count


def test_a_busy_server_is_given_the_time_it_asks_for(server, tmp_path):
    serve_okvqa(server, [1])
    path = f"/coco/{image_name(1)}"
    server.scripts[path] = [state(429, ("Retry-After", "1"))]
    start = time.monotonic()
    get(tmp_path)
    assert time.monotonic() - start >= 1
    assert server.requests.count(path) == 2
    assert (tmp_path / image_name(1)).read_bytes() == photo(1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("7", 7),
        ("3600", 60),
        ("9" * 400, 60),
        ("-5", 0),
        (None, None),
        ("soon", None),
        (format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True), 0),
        (format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True), 60),
    ],
    # Named, for the dates differ between the processes that share the tests.
    ids=["0", "7", "hour", "long", "negative", "none", "word", "past", "future"],
)
def test_retry_after_is_seconds_or_a_date_and_at_most_a_minute(value, expected):
    wait = http.retry_after(httpx.Headers({} if value is None else {"Retry-After": value}))
    failed = Future(1)
    failed.set_exception(http._PassingError("HTTP 429", wait))
    state = RetryCallState(Retrying(), None, (), {})
    state.outcome = failed
    assert (wait is None) == (expected is None)
    assert http._wait(state) == (1.0 if expected is None else expected)


@pytest.mark.parametrize("trouble", [state(503), truncated, hung_up])
def test_what_passes_after_two_tries_is_no_error(server, tmp_path, trouble):
    serve_okvqa(server, [1])
    paths = [f"/okvqa/{QUESTIONS}.zip", f"/coco/{image_name(1)}"]
    for path in paths:
        server.scripts[path] = [trouble, trouble]
    get(tmp_path)
    assert [server.requests.count(path) for path in paths] == [3, 3]
    assert (tmp_path / image_name(1)).read_bytes() == photo(1)
    assert okvqa.load(DatasetRequest(data=tmp_path)).questions


def test_a_server_that_fails_three_times_is_a_one_line_error(server, tmp_path):
    serve_okvqa(server, [1, 2])
    path = f"/coco/{image_name(2)}"
    server.scripts[path] = forever(state(500))
    with pytest.raises(UserError) as error:
        get(tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert f"{server.address}{path}" in message
    assert "HTTP 500 Internal Server Error" in message
    assert "the same command continues" in message
    assert "RAVQA_COCO_URL" in message
    assert str(tmp_path / image_name(2)) in message
    assert server.requests.count(path) == 3


def test_a_file_that_is_not_there_is_asked_for_once(server, tmp_path):
    serve_okvqa(server, [1])
    del server.files[f"/okvqa/{ANNOTATIONS}.zip"]
    with pytest.raises(UserError, match="HTTP 404 Not Found"):
        get(tmp_path)
    assert server.requests.count(f"/okvqa/{ANNOTATIONS}.zip") == 1
    assert files_in(tmp_path) == [QUESTIONS]


@pytest.mark.parametrize("path", [f"/okvqa/{QUESTIONS}.zip", f"/coco/{image_name(1)}"])
def test_a_body_that_is_always_cut_off_leaves_no_file(server, tmp_path, path):
    serve_okvqa(server, [1])
    server.scripts[path] = forever(truncated)
    with pytest.raises(UserError, match=r"cut off after \d+ of \d+ bytes"):
        get(tmp_path)
    assert server.requests.count(path) == 3
    rest = {QUESTIONS, ANNOTATIONS} if path.endswith(".jpg") else set()
    assert set(files_in(tmp_path)) == rest


def test_a_server_that_is_down_is_an_error_with_its_address(server, tmp_path, monkeypatch):
    dead = Server()
    dead.server_close()
    monkeypatch.setenv("RAVQA_OKVQA_URL", dead.address)
    with pytest.raises(UserError, match=f"{dead.address}/{QUESTIONS}.zip .*refused"):
        get(tmp_path)


def test_a_silent_server_is_not_waited_for_forever(server, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "_TIMEOUT_S", 0.1)
    serve_okvqa(server, [1])
    path = f"/okvqa/{QUESTIONS}.zip"
    server.scripts[path] = forever(stalled)
    with pytest.raises(UserError, match=r"no answer within 0\.1 s"):
        get(tmp_path)
    assert server.requests.count(path) == 3
    assert files_in(tmp_path) == []


def test_a_zip_with_another_member_is_refused_and_nothing_is_unpacked(server, tmp_path):
    serve_okvqa(server, [1])
    folder = tmp_path / "data"
    server.files[f"/okvqa/{QUESTIONS}.zip"] = zipped(f"../{QUESTIONS}", "{}")
    with pytest.raises(UserError, match=r"does not contain OpenEnded.*it contains '../OpenEnded"):
        get(folder)
    assert server.requests.count(f"/okvqa/{QUESTIONS}.zip") == 1
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>log in</html>", "not a usable zip"),
        (b"", "not a usable zip"),
        (zipped(QUESTIONS, "<html>"), "not a JSON file: it begins with b'<html>'"),
        (zipped(QUESTIONS, ""), "not a JSON file: it is empty"),
    ],
)
def test_what_is_no_zip_with_json_is_refused(server, tmp_path, body, reason):
    server.files[f"/okvqa/{QUESTIONS}.zip"] = body
    with pytest.raises(UserError, match=reason):
        get(tmp_path)
    assert files_in(tmp_path) == []


def test_a_zip_with_a_flipped_byte_is_refused(server, tmp_path):
    whole = zipped(QUESTIONS, os.urandom(200).hex())
    middle = 30 + len(QUESTIONS) + 50  # inside the packed data
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    server.files[f"/okvqa/{QUESTIONS}.zip"] = flipped
    with pytest.raises(UserError, match="not a usable zip"):
        get(tmp_path)
    assert files_in(tmp_path) == []


def test_a_zip_that_would_unpack_to_more_than_allowed_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_JSON", 1000)
    server.files[f"/okvqa/{QUESTIONS}.zip"] = zipped(QUESTIONS, "{" + " " * 1000)
    with pytest.raises(UserError, match="would unpack to 1001 bytes"):
        get(tmp_path)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><html></html>", b"", b" \n" + photo(1)])
def test_a_page_instead_of_an_image_is_refused(server, tmp_path, body):
    serve_okvqa(server, [1])
    path = f"/coco/{image_name(1)}"
    server.files[path] = body
    with pytest.raises(UserError, match=r"not a JPEG image: it (begins with|is empty)"):
        get(tmp_path)
    assert server.requests.count(path) == 1
    assert files_in(tmp_path) == [QUESTIONS, ANNOTATIONS]


def test_after_a_failure_the_next_call_fetches_only_what_lacks(server, tmp_path):
    serve_okvqa(server, range(1, 31))
    broken = f"/coco/{image_name(20)}"
    server.scripts[broken] = forever(state(500))
    with pytest.raises(UserError):
        get(tmp_path)
    there = set(files_in(tmp_path))
    assert {QUESTIONS, ANNOTATIONS} < there
    assert not any(name.endswith(".part") for name in there)

    del server.scripts[broken]
    server.requests.clear()
    get(tmp_path)
    lacking = {f"/coco/{image_name(i)}" for i in range(1, 31) if image_name(i) not in there}
    assert Counter(server.requests) == Counter(lacking)
    for i in range(1, 31):
        assert (tmp_path / image_name(i)).read_bytes() == photo(i)


def test_an_interrupted_download_leaves_whole_files_and_goes_on(server, tmp_path):
    serve_okvqa(server, range(1, 41))
    half = [f"/coco/{image_name(i)}" for i in (5, 6, 7)]
    for path in half:
        server.scripts[path] = forever(stalled)

    def interrupt(what, done, total):
        if what == "downloading images" and done == 10:
            server.release.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(tmp_path, progress=interrupt)
    images = files_in(tmp_path / "val2014")
    assert 10 <= len(images) <= 37
    for i in range(1, 41):
        if image_name(i)[8:] in images:
            assert (tmp_path / image_name(i)).read_bytes() == photo(i)

    for path in half:
        del server.scripts[path]
    server.requests.clear()
    seen = []
    get(tmp_path, progress=lambda *step: seen.append(step))
    assert len(server.requests) == 40 - len(images)
    assert seen[0] == ("downloading images", len(images), 40)
    assert seen[-1] == ("downloading images", 40, 40)
    assert len(files_in(tmp_path / "val2014")) == 40


def test_a_killed_download_leaves_no_half_file_under_a_final_name(server, tmp_path):
    serve_okvqa(server, [1, 2])
    path = f"/coco/{image_name(2)}"
    server.scripts[path] = [stalled]
    code = (
        "import sys; from pathlib import Path; from ravqa.datasets.download import download\n"
        "download('okvqa', Path(sys.argv[1]), None, limit=None, console_progress=None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        deadline = time.monotonic() + 30
        # The server too: on a busy machine it reads a request when its sender is dead already.
        while not (
            path in server.requests
            and list(tmp_path.rglob("*2.jpg.*.part"))
            and (tmp_path / image_name(1)).is_file()
        ):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    [part] = tmp_path.rglob("*.part")
    assert not (tmp_path / image_name(2)).exists()

    # What the killed process left goes away (a living one's stays: see tests/core/test_files.py),
    # a user's own .part files stay.
    own = tmp_path / "val2014" / "film.part"
    own.write_bytes(b"")
    os.utime(own, (0, 0))
    server.requests.clear()
    get(tmp_path)
    assert server.requests == [path]
    assert (tmp_path / image_name(2)).read_bytes() == photo(2)
    assert not part.exists()
    assert own.exists()


@pytest.mark.parametrize(
    "base", ["file:///etc", "ftp://127.0.0.1/x", "/etc", "http://", "http://[::"]
)
def test_an_address_that_is_not_http_is_refused(server, tmp_path, monkeypatch, base):
    monkeypatch.setenv("RAVQA_OKVQA_URL", base)
    with pytest.raises(UserError, match=r"RAVQA_OKVQA_URL: .*not an http:// or https:// address"):
        get(tmp_path)


def test_a_password_in_an_address_is_not_repeated(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RAVQA_OKVQA_URL", "http://me:secret@127.0.0.1/x")
    with pytest.raises(UserError, match="RAVQA_OKVQA_URL") as error:
        get(tmp_path)
    assert "secret" not in str(error.value)


def test_redirections_are_followed_to_http_only(server, tmp_path):
    serve_okvqa(server, [1])
    path = f"/okvqa/{QUESTIONS}.zip"
    server.files["/moved.zip"] = server.files[path]
    server.scripts[path] = [state(302, ("Location", "/moved.zip"))]
    get(tmp_path / "moved")
    assert (tmp_path / "moved" / QUESTIONS).is_file()

    local = tmp_path / "local.zip"
    local.write_bytes(server.files[path])
    for place in (local.as_uri(), f"ftp://127.0.0.1:{server.server_port}/moved.zip", "data:,{}"):
        server.scripts[path] = [state(302, ("Location", place))]
        with pytest.raises(UserError, match="HTTP 302 Found to an address that is refused"):
            get(tmp_path / "refused")
        assert not (tmp_path / "refused" / QUESTIONS).exists()


@pytest.fixture
def secure(server, tmp_path):
    """A second server with a self-signed certificate for 127.0.0.1, and the certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secure = Server()
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    secure.address = f"https://127.0.0.1:{secure.server_port}"
    thread = threading.Thread(target=secure.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield secure, certificate
    secure.shutdown()
    thread.join()
    secure.server_close()


def test_certificates_are_verified_and_https_does_not_lead_to_http(
    server, secure, tmp_path, monkeypatch
):
    secure, certificate = secure
    serve_okvqa(server, [1])
    serve_okvqa(secure, [1])
    path = f"/okvqa/{QUESTIONS}.zip"
    monkeypatch.setenv("RAVQA_OKVQA_URL", f"{secure.address}/okvqa")
    with pytest.raises(UserError, match="certificate is not trusted") as error:
        get(tmp_path / "data")
    assert "tried" not in str(error.value)  # it would not help
    assert secure.requests == []

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    secure.scripts[path] = [state(302, ("Location", f"{server.address}{path}"))]
    with pytest.raises(UserError, match="HTTP 302 Found to an address that is refused"):
        get(tmp_path / "data")
    assert server.requests == []
    get(tmp_path / "data")
    assert (tmp_path / "data" / QUESTIONS).is_file()


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (None, ["infoseek_val.jsonl", "infoseek_val_qtype.jsonl", "infoseek_val_withkb.jsonl"]),
        ("train", ["infoseek_train.jsonl", "infoseek_train_withkb.jsonl"]),
        ("test", ["infoseek_test.jsonl"]),
    ],
)
def test_infoseek_fetches_the_files_that_its_split_has(server, tmp_path, split, names):
    for name in names:
        server.files[f"/infoseek/{name}"] = b'{"data_id": "x"}\n'
    get(tmp_path, "infoseek", split)
    assert files_in(tmp_path) == names
    get(tmp_path, "infoseek", split)
    assert server.requests.count(f"/infoseek/{names[0]}") == 1
    assert len(server.requests) == len(names)


def test_an_infoseek_file_that_is_a_page_is_refused(server, tmp_path):
    server.files["/infoseek/infoseek_val.jsonl"] = b"<html></html>"
    with pytest.raises(UserError, match="not a JSON file"):
        get(tmp_path, "infoseek")
    assert files_in(tmp_path) == []


def test_infoseek_runs_on_the_download_and_says_once_that_images_are_not_fetched(
    server, tmp_path, monkeypatch, capsys
):
    record = {"data_id": "infoseek_val_00000000", "image_id": "oven_1", "question": "What is it?"}
    record |= {"answer": ["unknown"], "answer_eval": ["unknown"], "data_split": "val_unseen_entity"}
    rows = {
        "infoseek_val.jsonl": record,
        "infoseek_val_qtype.jsonl": {"data_id": record["data_id"], "question_type": "String"},
        "infoseek_val_withkb.jsonl": {"data_id": record["data_id"], "entity_text": "thing"},
    }
    for name, row in rows.items():
        server.files[f"/infoseek/{name}"] = json.dumps(row).encode() + b"\n"
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data"
    arguments = ["--dataset", "infoseek", "--data", str(data), "--download", "--retriever", "none"]
    arguments += ["--reader", "first-words", "--predict-only", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        cli.run_main([*arguments, "--set", "describer=null"])
    error = capsys.readouterr().err
    assert end.value.code == 0, error
    assert error.count("come in large archives and not one by one") == 1
    assert str(data / "images") in error
    [question] = infoseek.load(DatasetRequest(data=data, need_images=False)).questions
    assert question.extra == {"entity": "thing"}

    # With a describer the images are needed, and the loader says where.
    with pytest.raises(SystemExit) as end:
        cli.run_main([*arguments, "--overwrite"])
    assert end.value.code == 2
    assert f"no image oven_1 in {data / 'images'}" in capsys.readouterr().err

    (data / "images").mkdir()
    assert module.remarks("infoseek", data) == []


OWN = Remote(
    Source("RAVQA_OWN_URL", "https://example.org"),
    {"dev": ["dev.jsonl", "labels.json.zip"], "all": ["all.jsonl"]},
    {"dev": "dev", "all": "all"},
    remark=lambda folder: f"images are not fetched into {folder.name}",
)


def test_a_dataset_of_ones_own_says_what_can_be_downloaded(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RAVQA_OWN_URL", f"{server.address}/own")
    monkeypatch.setitem(DOWNLOADS._entries, "mine", Entry(f"{__name__}:OWN", ""))
    server.files["/own/dev.jsonl"] = b'{"id": 1}\n'
    server.files["/own/labels.json.zip"] = zipped("labels.json", "{}")
    assert module.remarks("mine", tmp_path) == [f"images are not fetched into {tmp_path.name}"]
    get(tmp_path, "mine")
    assert files_in(tmp_path) == ["dev.jsonl", "labels.json"]
    with pytest.raises(UserError, match="no split 'tset'"):
        get(tmp_path, "mine", "tset")


def test_download_without_data_names_the_option(server, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run_main(["--dataset", "okvqa", "--download"])
    assert end.value.code == 2
    assert "--data" in capsys.readouterr().err.replace("--dataset", "")
    assert server.requests == []


def test_a_dataset_without_a_source_says_so(tmp_path):
    with pytest.raises(UserError, match=r"dataset mine has no download source .*okvqa, infoseek"):
        get(tmp_path, "mine")


def test_a_folder_that_cannot_be_written_is_an_error(server, tmp_path):
    serve_okvqa(server, [1])
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="could not be stored as"):
        get(blocked / "data")


def test_progress_counts_megabytes_of_files_and_images(server, tmp_path):
    serve_okvqa(server, [1, 2])
    name = "infoseek_test.jsonl"
    server.files[f"/infoseek/{name}"] = b"{" + b" " * 2_400_000
    seen = []
    get(tmp_path, "infoseek", "test", progress=lambda *step: seen.append(step))
    assert {step[0] for step in seen} == {f"downloading {name} (MB)"}
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)
    assert seen[-1][1:] == (2, 2)
    seen.clear()
    get(tmp_path, progress=lambda *step: seen.append(step))
    images = [step[1:] for step in seen if step[0] == "downloading images"]
    assert images == [(0, 2), (1, 2), (2, 2)]


def test_on_a_terminal_the_bars_end_before_the_dataset_is_read(server, tmp_path):
    serve_okvqa(server, [1, 2])
    out = io.StringIO()
    console = Console(err=RichConsole(file=out, force_terminal=True, width=100))
    request = RunRequest("okvqa", data=tmp_path, download=True)
    config = PipelineConfig(retriever={"name": "none"}, reader={"name": "first-words"})
    dataset = read_data(request, config, Session(), console).dataset
    assert console._bars is None
    assert len(dataset.questions) == 2
    assert "2/2" in out.getvalue()
