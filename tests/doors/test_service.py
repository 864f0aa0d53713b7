"""The service's interface over HTTP, and what it refuses; asked without a network."""

import asyncio
import base64
import contextlib
import http.server
import io
import json
import logging
import shutil
import threading
import tracemalloc
from importlib.util import find_spec

import httpx
import pytest
from PIL import Image

from ravqa.core.errors import ServerError, UserError
from ravqa.doors.service import forms

PACKAGES = ("fastapi", "mcp", "prometheus_client", "python_multipart", "uvicorn")
pytestmark = [
    pytest.mark.slow,  # the packages alone take seconds to import
    pytest.mark.skipif(not all(map(find_spec, PACKAGES)), reason="pip install 'ravqa[serve]'"),
]
WHERE = {"question": "where does the koala live"}
TOKEN = "correct horse battery staple"


def encoded(image, form="JPEG"):
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


PHOTO = encoded(Image.new("RGB", (40, 20), "red"))


class Service:
    """A service that is asked in this process."""

    def __init__(self, folder, hosts=None, **terms):
        from ravqa.doors.service.app import application
        from ravqa.doors.service.desk import Desk, Terms
        from ravqa.doors.service.gate import Metrics
        from ravqa.doors.shelf import Shelf

        self.metrics = Metrics()
        self.desk = Desk(Shelf([folder]), Terms(**terms), batches=self.metrics.batches.observe)
        self.gate = application(self.desk, self.metrics, hosts=hosts)

    def ask(self, method, path, **request):
        async def run():
            transport = httpx.ASGITransport(self.gate, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await http.request(method, path, **request)

        return asyncio.run(run())

    def post(self, path, json=None, **request):
        return self.ask("POST", path, json=json, **request)

    def get(self, path, **request):
        return self.ask("GET", path, **request)


@pytest.fixture(scope="module")
def service(animals):
    made = Service(animals)
    yield made
    made.desk.close()


@pytest.fixture
def own(animals, tmp_path):
    """Makes services of a copy of the collection."""
    made = []

    def make(**terms):
        place = tmp_path / "animals"
        made.append(Service(place if place.exists() else shutil.copytree(animals, place), **terms))
        return made[-1]

    yield make
    for one in made:
        one.desk.close()


def said(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]["message"]


def test_search_finds_what_the_pipeline_finds(service, shelf):
    found = service.post("/search", WHERE).json()
    expected = shelf.pipeline("animals", "as built").ask(WHERE["question"])
    assert [p["passage_id"] for p in found["passages"]] == [h.passage_id for h in expected.hits]
    assert [p["score"] for p in found["passages"]] == pytest.approx(
        [hit.score for hit in expected.hits]
    )
    assert (found["collection"], found["pipeline"]) == ("animals", "as built")
    [best] = service.post("/search", WHERE | {"k": 1}).json()["passages"]
    assert best["passage_id"] == "k"


def test_answers_say_what_they_were_read_from(service, shelf):
    found = service.post("/answer", WHERE).json()
    expected = shelf.pipeline("animals", "as built").ask(WHERE["question"]).answer
    assert (found["answer"], found["rule"], found["read"]) == (expected.text, "top1", ["k"])
    assert set(found["seconds"]) == {"retrieve", "answer"}
    both = service.post("/answer", WHERE | {"rule": "concat", "k": 2}).json()
    assert both["read"] == ["k", "j"]
    assert "choose one of top1" in said(service.post("/answer", WHERE | {"rule": "no"}), 400)


def test_forms_and_photos_come_as_json_or_multipart(service):
    text = base64.b64encode(PHOTO).decode()
    for image in (text, f"data:image/jpeg;base64,{text}"):
        found = service.post("/search", WHERE | {"image": image})
        assert found.json()["image_unused"] is True
    fields = {"question": WHERE["question"], "k": "1", "where": '{"title": []}'}
    files = {"image": ("a.jpg", PHOTO, "image/jpeg")}
    assert service.post("/search", data=fields, files=files).json()["passages"] == []
    choosing = WHERE | {"choices": ["here", "the koala"]}
    found = [service.post("/answer", choosing), service.post("/answer", data=choosing, files=files)]
    assert found[0].json()["answer"] == found[1].json()["answer"]
    assert "none of them blank" in said(service.post("/answer", WHERE | {"choices": [" "]}), 400)


def test_answers_are_streamed_as_events(service):
    response = service.post("/answer", WHERE | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [part.split("\n") for part in response.text.strip().split("\n\n")]
    kinds = [kind.removeprefix("event: ") for kind, _ in events]
    assert (kinds[0], kinds[-1]) == ("passages", "answer")
    last = json.loads(events[-1][1].removeprefix("data: "))
    plain = service.post("/answer", WHERE).json()
    assert last | {"seconds": 0} == plain | {"seconds": 0}
    wrong = WHERE | {"stream": True, "collection": "no"}
    assert "no collection 'no'" in said(service.post("/answer", wrong), 404)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "a question, an image, or both"),
        (WHERE | {"k": 0}, 422, "k: "),
        (WHERE | {"k": 10**400}, 422, "k: "),
        (WHERE | {"k": 101}, 422, "k: "),
        (WHERE | {"k": "3"}, 422, "k: "),
        (WHERE | {"kk": 1}, 422, "kk: "),
        ({"question": "x" * (forms.QUESTION + 1)}, 422, "question: "),
        (WHERE | {"pipeline": "../no"}, 404, "no pipeline"),
        (WHERE | {"where": {"no": "x"}}, 400, "no passage has 'no'"),
        (WHERE | {"image": "http://127.0.0.1:9/a.jpg"}, 403, "fetches no images"),
        (WHERE | {"image": "file:///etc/passwd"}, 403, "fetches no images"),
        (WHERE | {"image": "data:text/html;base64,AAAA"}, 422, "a data URI begins with"),
        (WHERE | {"image": "%%%"}, 422, "neither base64"),
        (WHERE | {"image": base64.b64encode(b"<svg>").decode()}, 422, "image: not an image"),
        (WHERE | {"image": base64.b64encode(PHOTO[:300]).decode()}, 422, "image"),
    ],
)
def test_bad_requests_get_a_line(service, body, status, message):
    path = "/answer" if "pipeline" in body else "/search"
    assert message in said(service.post(path, body), status)


def test_json_that_is_deep_or_none_is_refused(service):
    head = {"content-type": "application/json"}
    for path in ("/search", "/v1/chat/completions"):
        for body in ("[" * 100_000, '{"question":' * 10_000, "{", "", "9" * 10_000, '"\\ud800"'):
            response = service.ask("POST", path, content=body, headers=head)
            assert said(response, response.status_code)
            assert response.status_code in {400, 422}
    assert "send application/json" in said(service.ask("POST", "/search", content="a=b"), 400)


def test_a_small_request_takes_little_memory(service):
    bomb = encoded(Image.new("1", (4900, 4900)), "PNG")  # 24 million pixels, within the limits
    over = encoded(Image.new("1", (5100, 5100)), "PNG")
    assert len(bomb) < 4000
    tracemalloc.start()
    try:
        files = {"image": ("a.png", over, "image/png")}
        assert "pixels" in said(service.post("/search", data=WHERE, files=files), 422)
        many = {"question": "x", "where": {str(i): "x" for i in range(11)}}
        assert said(service.post("/search", many), 422)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_large_requests_are_refused_before_they_are_read(service):
    async def sent():
        for _ in range(3):
            yield bytes(forms.BODY // 2)

    too_long = {"content-length": str(forms.BODY + 1)}
    assert "more than the limit" in said(service.ask("POST", "/search", headers=too_long), 413)
    response = service.ask("POST", "/search", content=sent())
    assert "more than the limit" in said(response, 413)
    assert response.headers["connection"] == "close"


def test_what_is_waiting_is_answered_in_one_batch(animals):
    service = Service(animals)

    async def run():
        transport = httpx.ASGITransport(service.gate)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            asked = [http.post("/search", json={"question": f"koala {i}"}) for i in range(8)]
            return await asyncio.gather(*asked)

    assert {response.status_code for response in asyncio.run(run())} == {200}
    counts = service.get("/metrics").text
    service.desk.close()
    assert "ravqa_batch_questions_sum 8.0" in counts
    [batches] = [line for line in counts.split("\n") if "ravqa_batch_questions_count" in line]
    assert float(batches.split()[1]) < 8


def test_the_token_is_needed_everywhere_but_for_the_state(own):
    service = own(token=TOKEN)
    for path in ("/collections", "/metrics", "/v1/models", "/openapi.json", "/mcp"):
        assert "bearer token" in said(service.get(path), 401)
    for head in (
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        "Bearer ",
        "Bearer ÿ".encode("latin-1"),
    ):
        assert said(service.get("/collections", headers={"authorization": head}), 401)
    head = {"authorization": f"Bearer {TOKEN}"}
    assert service.get("/collections", headers=head).status_code == 200
    assert service.get("/health").json() == {"status": "ok"}
    assert service.get("/ready").json() == {"status": "ready"}


def test_other_websites_and_names_are_refused(animals):
    service = Service(animals, hosts=frozenset({"localhost"}))
    for head in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
        assert said(service.get("/collections", headers=head), 403)
    assert service.get("/health", headers={"origin": "http://localhost"}).status_code == 200
    service.desk.close()


def test_collections_change_only_where_that_is_wanted(service, own):
    place = "/collections/animals/passages"
    wombat = {"passage_id": "a/w", "text": "The wombat digs.", "metadata": {"legs": 4}}
    body = {"passages": [wombat | {"image": base64.b64encode(PHOTO).decode()}]}
    assert "--changes" in said(service.post(place, body), 403)
    changing = own(changes=True)
    assert changing.post(place, body).json()["added"] == 1
    assert changing.post(place, body).json()["unchanged"] == 1
    found = changing.get(f"{place}/a/w").json()
    assert (found["text"], found["metadata"], found["has_image"]) == (
        "The wombat digs.",
        {"legs": 4},
        True,
    )
    picture = changing.get("/collections/animals/images/a/w")
    with Image.open(io.BytesIO(picture.content)) as image:
        assert image.size == (40, 20)
    [best] = changing.post("/search", {"question": "the wombat digs.", "k": 1}).json()["passages"]
    assert best["passage_id"] == "a/w"
    changed = {"passages": [wombat | {"text": "The wombat sleeps."}]}
    assert "a/w" in said(changing.post(place, changed), 422)
    assert changing.ask("PUT", place, json=changed).json()["changed"] == 1
    assert "no passage 'x'" in said(changing.ask("DELETE", f"{place}?id=a/w&id=x"), 404)
    assert changing.ask("DELETE", f"{place}?id=a/w").json()["deleted"] == 1
    assert said(changing.get(f"{place}/a/w"), 404)
    bad = {"passages": [wombat | {"image": "AAAA"}]}
    assert "passages[0].image: not an image" in said(changing.post(place, bad), 422)
    [listed] = changing.get("/collections").json()
    assert (listed["name"], listed["passages"], listed["can_change"]) == ("animals", 2, True)
    assert listed == changing.get("/collections/animals").json()


def test_passages_and_their_images_are_sent_as_files(own):
    service = own(changes=True)
    place = "/collections/animals/passages"
    passages = [{"passage_id": "a/w", "text": "The wombat digs."}, {"passage_id": "x", "text": "X"}]
    data = {"passages": json.dumps(passages), "source": "zoo"}
    files = {"a/w": ("w.jpg", PHOTO, "image/jpeg")}
    assert service.post(place, data=data, files=files).json()["added"] == 2
    assert service.get(f"{place}/a/w").json()["has_image"] is True
    assert service.get(f"{place}/x").json()["has_image"] is False
    assert service.desk._shelf.collection("animals").sources()["zoo"] == 2
    assert service.ask("PUT", place, data=data, files=files).json()["unchanged"] == 2
    assert "sent as 'y'" in said(service.post(place, data=data, files={"y": PHOTO}), 422)
    assert "only one file" in said(service.post(place, data=data, files=[("x", PHOTO)] * 2), 400)
    assert "is empty" in said(service.post(place, data=data, files={"x": b""}), 422)
    both = data | {"passages": json.dumps([{**passages[0], "image": "AAAA"}])}
    assert "it has an image, and a file" in said(service.post(place, data=both, files=files), 422)
    for wrong, message in (("[", "JSON is expected"), ("{}", "valid list"), ("[1]", "passages.0")):
        assert message in said(service.post(place, data={"passages": wrong}, files=files), 422)
    long = json.dumps([{"passage_id": f"{i}", "text": "a" * 500_000} for i in range(3)])
    files = {"1": ("1.jpg", PHOTO)}
    assert service.post(place, data={"passages": long}, files=files).json()["added"] == 3


def test_who_only_searches_needs_no_reader(own, monkeypatch):
    service = own()
    monkeypatch.setattr("ravqa.pipeline.Answerer", None)  # to build one would fail
    photo = {"image": base64.b64encode(PHOTO).decode()}
    assert service.post("/search", WHERE | photo | {"k": 1}).json()["image_unused"] is True


def test_errors_name_no_place_of_the_host(own, monkeypatch):
    service = own()
    place = str(service.desk._shelf.collection("animals").path)

    async def fail(asked, seconds):
        raise errors[-1]

    errors = []
    monkeypatch.setattr(service.desk.line, "ask", fail)
    for error, status in (
        (UserError(f"{place}: no"), 400),
        (UserError("/srv/secret/model: no"), 400),
        (ServerError("http://10.0.0.1/?key=secret is gone"), 502),
        (ZeroDivisionError("secret"), 500),
    ):
        errors.append(error)
        text = said(service.post("/search", WHERE), status)
        assert "secret" not in text
        assert place not in text


def test_other_methods_are_told_which_there_are(service):
    response = service.ask("PATCH", "/collections/animals/passages")
    assert said(response, 405)
    assert response.headers["allow"] == "DELETE, POST, PUT"


def test_the_log_has_no_contents_unless_asked_for(own, capsys):
    from ravqa.doors.service.serve import _logged

    for contents in (False, True):
        with _logged():
            own(contents=contents).post("/search", {"question": "koala secret"})
        [line] = map(json.loads, capsys.readouterr().err.strip().split("\n"))
        assert (line["path"], line["status"], line["method"]) == ("/search", 200, "POST")
        assert line.get("question") == ("koala secret" if contents else None)
    assert logging.getLogger("ravqa.serve").handlers == []


def test_the_log_of_the_process_is_as_it_was(own, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    before = root.level
    own()
    assert (root.level, root.handlers) == (before, [])


def test_the_description_has_examples_and_no_dead_references(service):
    text = service.get("/openapi.json").text
    found = json.loads(text)
    post = found["paths"]["/answer"]["post"]["requestBody"]["content"]
    assert set(post) == {"application/json", "multipart/form-data"}
    assert post["application/json"]["schema"]["examples"]
    for part in text.split('"$ref":"')[1:]:
        name = part.partition('"')[0].rpartition("/")[2]
        assert name in found["components"]["schemas"]


class Photos(http.server.BaseHTTPRequestHandler):
    """Has a photo, an address that leads to it, and a file without an end."""

    def do_GET(self):
        found = {"/photo.jpg": 200, "/moved.jpg": 302, "/endless.jpg": 200}.get(self.path, 404)
        self.send_response(found)
        self.send_header("location", "/photo.jpg")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(PHOTO)
            while self.path == "/endless.jpg":
                self.wfile.write(bytes(1_000_000))

    def log_message(self, *given):
        pass


def test_images_are_fetched_from_machines_that_were_named_alone(own):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Photos) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        service = own(image_hosts=frozenset({"127.0.0.1"}))
        found = service.post("/search", WHERE | {"image": f"{at}/photo.jpg"}).json()
        assert found["image_unused"] is True
        for name, message in (("moved", "302"), ("none", "404"), ("endless", "20.0 MB")):
            url = {"image": f"{at}/{name}.jpg"}
            assert message in said(service.post("/search", WHERE | url), 422)
        for other in ("http://localhost/a", "http://127.0.0.1@evil.example/a", "ftp://127.0.0.1/a"):
            assert "no images" in said(service.post("/search", WHERE | {"image": other}), 403)
        server.shutdown()


def test_a_service_that_is_about_to_end_says_so(own):
    service = own()
    service.gate.draining = True
    response = service.get("/ready")
    assert (response.status_code, response.json()) == (503, {"status": "draining"})
    assert response.headers["connection"] == "close"
    service.desk.close()
    response = service.post("/search", WHERE)
    assert "about to end" in said(response, 503)
    assert response.headers["retry-after"] == "1"
