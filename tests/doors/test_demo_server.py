"""The demo as it is served: attacked over HTTP, and in a browser (Debian's chromium).

It runs as people start it, in a process of its own, with an encoder and a reader without models.
"""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from collection_files import pipeline
from PIL import Image

from ravqa.datasets.base import DatasetRequest
from ravqa.datasets.files import load_jsonl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gradio") is None, reason="pip install 'ravqa[demo]'"),
]
ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "ravqa" / "datasets" / "sample"
KOALA = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
NAMES = ("chromium", "chromium-browser", "google-chrome")
HTTP = httpx.Client(timeout=300, verify=False)  # plain HTTP on this machine
SCRIPT = "<img src=x onerror=alert(1)>"
CONTRAST = """(selector) => {
  const channel = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const read = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, a = 1] = read(getComputedStyle(e).backgroundColor);
      if (a > 0) return [r / 255, g / 255, b / 255];
    }
    return [1, 1, 1];
  };
  return [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility()).map((e) => {
    const ink = read(getComputedStyle(e).color).slice(0, 3).map((v) => v / 255);
    const pair = [light(ink), light(ground(e))].sort((x, y) => y - x);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  });
}"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo of a collection; its address, its folder of verdicts, and that of uploads."""
    import demo_plugin  # noqa: F401 (registers the encoder)

    from ravqa.collections import Collection
    from ravqa.core.records import Passage

    folder = tmp_path_factory.mktemp("demo")
    settings = pipeline(folder, encoder={"name": "labelled"})
    collection = Collection.create(folder / "animals", settings)
    texts = {"koala": "The home of the koala is eastern Australia.", "jaguar": "Jaguars eat deer."}
    passages = [Passage(name, text, title=name.title()) for name, text in texts.items()]
    collection.add([*passages, Passage("odd", f"koala {SCRIPT}", title=SCRIPT)])
    uploads = folder / "tmp"
    uploads.mkdir()
    (folder / "secret.jpg").write_bytes(b"secret of the host")
    process = subprocess.Popen(
        [sys.executable, "-m", "ravqa", "demo", str(collection.path)],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}",
            "RAVQA_PLUGINS": "demo_plugin",
            "RAVQA_HOLD": str(folder / "hold"),
            "TMPDIR": str(uploads),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"the demo is at (\S+)", line):
            break
    else:
        pytest.fail("".join(said))
    rest = threading.Thread(target=lambda: said.extend(process.stdout), daemon=True)
    rest.start()
    yield found[1], folder / "feedback", uploads
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 0
    rest.join(240)
    process.stdout.close()
    assert "Traceback" not in "".join(said)
    assert list(uploads.glob("ravqa-demo-*")) == []  # nothing of visitors stays


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium to open the demo in (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        yield playwright.chromium.launch(executable_path=path, args=options)


@pytest.fixture
def opened(browser, demo):
    """Opens the demo; afterwards nothing was fetched from elsewhere, and nothing went wrong."""
    contexts, seen = [], []

    def open_page(width=1200, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(240_000)
        page.on("request", lambda request: seen.append(request.url))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (seen.append("dialog"), dialog.accept()))
        page.goto(demo[0])
        page.wait_for_selector("#rv-go")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in seen if not url.startswith((demo[0], "data:", "blob:", "about:"))] == []


def ask(page, question="the home of the koala?", photo=KOALA):
    if photo is not None:
        page.set_input_files("#rv-photo input[type=file]", photo)
        page.wait_for_selector("#rv-photo img")
    page.locator("#rv-question textarea").fill(question)
    page.locator("#rv-go").click()
    page.wait_for_selector(".rv-match")


def join(address, data, function=None, session="abc"):
    """Send an event as the page does; return the response, and what was said about it."""
    config = HTTP.get(f"{address}config").json()
    if function is None:  # the one that asks has six inputs
        function = next(d["id"] for d in config["dependencies"] if len(d["inputs"]) == 6)
    body = {"data": data, "fn_index": function, "session_hash": session, "trigger_id": None}
    response = HTTP.post(f"{address}gradio_api/queue/join", json=body)
    said = ""
    if response.status_code == 200:
        with HTTP.stream(
            "GET",
            f"{address}gradio_api/queue/data",
            params={"session_hash": session},
        ) as stream:
            for line in stream.iter_lines():
                said += line
                if "process_completed" in line or "close_stream" in line:
                    break
    return response, said


def upload(address, name, data):
    return HTTP.post(f"{address}gradio_api/upload", files={"files": (name, data, "image/jpeg")})


SETTINGS = ["animals", "as built", 2, "top1"]


def test_no_file_of_the_host_can_be_read(demo):
    address, _, uploads = demo
    secret = uploads.parent / "secret.jpg"
    [folder] = uploads.glob("ravqa-demo-*")
    (folder / "link.jpg").symlink_to(secret)
    paths = [
        secret,
        f"{folder}/../../secret.jpg",
        folder / "link.jpg",
        "/etc/passwd",
        ROOT / "README.md",
    ]
    encoded = [f"{folder}/..%2f..%2fsecret.jpg", f"{folder}/%2e%2e/%2e%2e/secret.jpg"]
    for path in [*paths, *encoded, f"file://{secret}", f"{folder}/%252e%252e/secret.jpg"]:
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
            response = HTTP.get(f"{address}{route}{path}", follow_redirects=True)
            assert response.status_code in {403, 404}, (route, path)
            assert b"secret" not in response.content
    for path in paths:
        photo = {"path": str(path), "meta": {"_type": "gradio.FileData"}, "orig_name": "a.jpg"}
        response, said = join(address, [photo, "What?", *SETTINGS])
        assert (response.status_code, said) == (403, "")
        assert b"secret" not in response.content
    (folder / "link.jpg").unlink()


def test_no_address_is_fetched(demo):
    address, _, _ = demo
    for url in ("http://127.0.0.1:9/secret", "https://example.com/a.jpg"):
        photo = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
        assert join(address, [photo, "What?", *SETTINGS])[0].status_code == 403
        for route in ("gradio_api/file=", "gradio_api/proxy="):
            assert HTTP.get(f"{address}{route}{url}").status_code == 404


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("../../evil.jpg", b"<svg onload=alert(1)>", "not an image"),
        ("empty.jpg", b"", "empty"),
        ("cut.jpg", KOALA.read_bytes()[:3000], "broken image"),
        ("bomb.png", None, "more than the limit of 100000000 pixels"),
    ],
)
def test_bad_uploads_get_a_message(demo, name, data, said):
    address, _, uploads = demo
    if data is None:  # 400 million pixels in few bytes
        out = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(out, "PNG")
        data = out.getvalue()
        assert len(data) < 100_000
    response = upload(address, name, data)
    [path] = response.json()
    assert Path(path).is_relative_to(uploads)
    served = HTTP.get(f"{address}gradio_api/file={path}")
    assert served.headers["x-content-type-options"] == "nosniff"
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
    _, text = join(address, [photo, "What?", *SETTINGS])
    assert "The photo cannot be used: " in text
    assert said in text
    assert "Traceback" not in text


def test_large_uploads_are_refused(demo):
    address, _, uploads = demo
    before = sum(path.stat().st_size for path in uploads.rglob("*") if path.is_file())
    assert upload(address, "large.jpg", bytes(20_100_000)).status_code == 413
    after = sum(path.stat().st_size for path in uploads.rglob("*") if path.is_file())
    assert after == before


def test_people_wait_for_their_turn(demo):
    address, _, _ = demo
    with ThreadPoolExecutor(6) as pool:
        said = list(
            pool.map(
                lambda i: join(address, [None, f"koala {i}?", *SETTINGS], session=f"s{i}")[1],
                range(6),
            )
        )
    for i, text in enumerate(said):
        assert '"success":true' in text.replace(" ", "")
        assert "2 passages found" in text
        assert "What matched in photo and text" in text, i


def test_a_question_is_asked_and_what_matched_is_opened(opened):
    page = opened()
    assert "Ask something about a photo" in page.locator("#rv-result").inner_text()
    ask(page)
    result = page.locator("#rv-result").inner_text()
    for said in ("With passages", "Without passages", "unknown", "passages found", "together"):
        assert said in result
    first = page.locator(".rv-found li").first
    assert "Koala" in first.inner_text()
    assert "read" in first.inner_text()
    page.locator(".rv-match summary").click()
    frame = page.frame_locator(".rv-match iframe")
    frame.locator(".heat .w").first.click()
    assert "contributes" in frame.locator(".said").inner_text()
    frame.locator(".chip").nth(1).click()
    page.wait_for_function("document.querySelector('.rv-match iframe').style.height !== ''")
    page.wait_for_timeout(300)
    inner = frame.locator("#match").evaluate("(e) => e.getBoundingClientRect().height")
    assert page.locator(".rv-match iframe").evaluate("(e) => e.clientHeight") >= inner


def test_markup_in_passages_and_questions_stays_text(opened):
    page = opened()
    ask(page, f"koala {SCRIPT}", None)
    assert SCRIPT in page.locator("#rv-passages").inner_text()
    page.locator(".rv-match summary").click()
    assert page.locator("img[src=x]").count() == 0
    assert page.frame_locator(".rv-match iframe").locator("img[src=x]").count() == 0


def test_verdicts_become_a_dataset(opened, demo):
    page = opened()
    ask(page)
    page.locator("#rv-down").click()
    page.locator("#rv-note", has_text="Noted as wrong.").wait_for()
    lacking = load_jsonl(DatasetRequest(data=demo[1] / "open.jsonl")).questions
    assert lacking[-1].question == "the home of the koala?"
    page.locator("#rv-correction textarea").fill("eastern Australia")
    page.locator("#rv-send").click()
    page.locator("#rv-note", has_text="Kept, with “eastern Australia”").wait_for()
    [kept] = load_jsonl(DatasetRequest(data=demo[1])).questions
    assert (kept.question_id, kept.answers) == (lacking[-1].question_id, ("eastern Australia",))
    with Image.open(kept.image) as image, Image.open(KOALA) as photo:
        assert image.size == photo.size
    page.locator("#rv-up").click()
    page.locator("#rv-correction").wait_for(state="hidden")
    page.locator("#rv-note", has_text="eastern Australia").wait_for(state="detached")
    [kept] = load_jsonl(DatasetRequest(data=demo[1])).questions
    assert kept.answers != ("eastern Australia",)


def test_bad_photos_and_empty_questions_are_said_on_the_page(opened, tmp_path):
    page = opened()
    page.locator("#rv-go").click()
    page.locator(".rv-failed", has_text="Type a question first.").wait_for()
    (tmp_path / "letter.jpg").write_text("Dear reader", encoding="utf-8")
    page.set_input_files("#rv-photo input[type=file]", tmp_path / "letter.jpg")
    page.wait_for_selector("#rv-photo img")
    page.locator("#rv-question textarea").fill("What is it?")
    page.locator("#rv-go").click()
    page.locator(".rv-failed", has_text="The photo cannot be used: not an image.").wait_for()
    assert page.locator("#rv-verdict").is_hidden()


def test_a_photo_is_pasted(opened):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, "PNG")
    page.evaluate(
        """(bytes) => navigator.clipboard.write([new ClipboardItem({
          "image/png": new Blob([new Uint8Array(bytes)], {type: "image/png"}),
        })])""",
        list(out.getvalue()),
    )
    page.get_by_label("Paste from clipboard").click()
    page.wait_for_selector("#rv-photo img")
    ask(page, photo=None)
    assert "No part of this pipeline looks at photos" in page.locator("#rv-result").inner_text()


def test_photos_that_are_too_large_and_a_full_queue_are_said_on_the_page(opened, demo, tmp_path):
    page = opened()
    (tmp_path / "large.jpg").write_bytes(bytes(20_100_000))
    page.set_input_files("#rv-photo input[type=file]", tmp_path / "large.jpg")
    page.get_by_text("exceed the maximum allowed size").wait_for()
    hold = demo[1].parent / "hold"
    hold.touch()
    given = {"session_hash": "waiting", "trigger_id": None}
    config = HTTP.get(f"{demo[0]}config").json()
    given["fn_index"] = next(d["id"] for d in config["dependencies"] if len(d["inputs"]) == 6)
    given["data"] = [None, "koala", *SETTINGS]
    try:
        for _ in range(22):  # one is answered, 20 wait
            last = HTTP.post(f"{demo[0]}gradio_api/queue/join", json=given).status_code
        assert last == 503
        page.locator("#rv-question textarea").fill("koala")
        page.locator("#rv-go").click()
        page.get_by_text("currently busy").wait_for()
    finally:
        hold.unlink()
    while HTTP.post(f"{demo[0]}gradio_api/queue/join", json=given).status_code == 503:
        time.sleep(0.2)
    page.locator("#rv-go").click()
    page.wait_for_selector(".rv-match")


def test_the_keyboard_is_enough(opened):
    page = opened()

    def focused():
        return page.evaluate("document.activeElement.closest('[id^=rv-]')?.id ?? ''")

    def tab_to(name):
        for _ in range(30):
            page.keyboard.press("Tab")
            if focused() == name:
                return
        pytest.fail(f"{name} cannot be reached")

    tab_to("rv-photo")
    chosen = []

    def chose(chooser):  # playwright cannot call a list's own method
        chosen.append(chooser)

    page.on("filechooser", chose)
    for _ in range(20):  # a key may open a dialog for seconds only: too few on a busy machine
        page.keyboard.press("Enter")
        page.wait_for_timeout(1000)
        if chosen:
            break
    assert chosen, page.evaluate("document.activeElement.outerHTML")
    chosen[0].set_files(KOALA)
    page.wait_for_selector("#rv-photo img")
    tab_to("rv-question")
    page.keyboard.type("the home of the koala?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".rv-match")
    tab_to("rv-up")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.locator("#rv-note", has_text="as the right answer").wait_for()
    tab_to("rv-matched")
    page.keyboard.press("Enter")
    frame = page.frame_locator(".rv-match iframe")
    frame.locator(".heat").first.wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert frame.locator(".chip:focus").count() == 1


def test_a_phone_needs_no_sideways_scrolling(opened):
    page = opened(width=360, has_touch=True, is_mobile=True)
    ask(page)
    page.locator("#rv-down").tap()
    page.locator("#rv-correction").wait_for()
    page.locator(".rv-match summary").tap()
    page.frame_locator(".rv-match iframe").locator(".heat").first.wait_for()
    page.locator("#rv-settings button").first.tap()
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    inner = page.frame_locator(".rv-match iframe").locator("html")
    assert inner.evaluate("(e) => e.scrollWidth <= e.clientWidth")
    for part in ("#rv-go", "#rv-up", "#rv-down", "#rv-send"):
        box = page.locator(part).bounding_box()
        assert box["height"] >= 36, part
        assert box["x"] >= 0, part
        assert box["x"] + box["width"] <= 360, part


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(opened, scheme):
    page = opened(color_scheme=scheme)
    texts = ".rv-lead, .rv-empty li, .rv-head p, #rv-go, #rv-question span"
    assert min(page.evaluate(CONTRAST, texts)) >= 4.5
    ask(page)
    page.locator("#rv-down").click()
    page.locator("#rv-correction").wait_for()
    parts = ["h3", ".rv-answer", ".rv-note", ".rv-times li", ".rv-meta b", ".rv-score", ".rv-rank"]
    for part in [*parts, ".rv-badge", ".rv-found p", "#rv-up", ".rv-said", "summary"]:
        contrasts = page.evaluate(CONTRAST, part)
        assert contrasts, part
        assert min(contrasts) >= 4.5, part
    page.locator(".rv-match summary").click()
    heat = page.frame_locator(".rv-match iframe").locator(".said")
    ink = heat.evaluate("(e) => getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", ink)[0]) < 60) == (scheme == "dark")
