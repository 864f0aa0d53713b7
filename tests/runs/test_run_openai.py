"""Runs with the reader openai against scripted servers: nothing is lost, and no key is written."""

import base64
import io
import json
import signal
import threading
import time

import PIL.Image
import pytest
from scripted_server import chat

from ravqa.cli import main
from ravqa.core.locations import SAMPLE

KEY = "sk-do-not-write-me-0123456789"
LONG = 20  # seconds after which a test that waits in vain fails


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A few of the sample's passages: each run reads its corpus twice."""
    lines = (SAMPLE / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path_factory.mktemp("corpus") / "passages.jsonl"
    path.write_text("\n".join(lines[::8]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path, capsys, fresh_cache, corpus):
    """Runs the sample; gives exit code, results, samples, stdout and stderr."""

    def call(server, *more, output="run", limit=6, report=False, **options):
        settings = {
            "describer": "null",
            "reader.url": server.url,
            "reader.model": "m",
            "reader.images": "false",
            **options,
        }
        arguments = ["run", "--dataset", "okvqa", "--limit", limit, "--retriever", "random"]
        arguments += ["--corpus", corpus]
        arguments += ["--reader", "openai", "--output", tmp_path / output]
        arguments += [] if report else ["--no-report"]
        for key, value in settings.items():
            arguments += ["--set", f"{key}={value}"]
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in [*arguments, *more]])
        printed = capsys.readouterr()
        folder = tmp_path / output
        results = None
        if (folder / "results.json").is_file():
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        samples = []
        if (folder / "samples.jsonl").is_file():
            lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
            samples = [json.loads(line) for line in lines]
        return end.value.code, results, samples, printed.out, printed.err

    return call


def said(body):
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def question(body):
    """The question at the end of a prompt."""
    return said(body).rpartition("Question:")[2].partition("\n")[0].strip()


def answer_to(text):
    return f"about {text[:20]}".lower()


def questions_of(samples):
    return [sample["question"] for sample in samples]


def test_photos_reach_the_server(run, serve, okvqa_sample):
    server = serve(lambda _, body: chat(f"{len(body['messages'][-1]['content'])} parts"))
    code, _, samples, _, err = run(server, limit=3, **{"reader.images": "true"})
    assert code == 0, err
    assert {s["answer"] for s in samples} == {"2 parts"}
    photos = {q.question: q.image.read_bytes() for q in okvqa_sample.questions[:3]}
    for body in server.bodies:
        uri = body["messages"][-1]["content"][0]["image_url"]["url"]
        kind, _, data = uri.partition(";base64,")
        assert kind == "data:image/jpeg"
        assert base64.b64decode(data) in photos.values()
        assert PIL.Image.open(io.BytesIO(base64.b64decode(data))).format == "JPEG"


@pytest.fixture
def small_chunks(monkeypatch):
    """Two questions in a chunk, unless there are more workers."""
    monkeypatch.setattr("ravqa.runs.execute._CHUNK", 2)


def answered(samples):
    """What must not depend on when questions were answered."""
    return [{k: v for k, v in s.items() if k not in {"seconds", "cached", "cost"}} for s in samples]


def test_all_workers_are_busy_over_chunks_and_conditions(run, serve, small_chunks):
    together = threading.Barrier(4)  # replies come only while four requests are under way

    def reply(_, body):
        together.wait(LONG)
        return chat(answer_to(question(body)))

    server = serve(reply)  # twice six questions: the chunks have 4 and 2
    code, results, samples, _, err = run(server, "--controls", "none", **{"reader.workers": 4})
    assert code == 0, err
    assert len(server.requests) == 12
    assert len(samples) == results["answers"]["questions"] == 6


def test_a_slow_reply_holds_up_no_later_question_and_changes_nothing(run, serve, small_chunks):
    others, asked = threading.Event(), set()

    def reply(_, body):
        asked.add(question(body))
        if len(asked) == 6:
            others.set()
        if question(body) == first:
            assert others.wait(LONG)  # the last question is asked while the first one waits
        return chat(answer_to(question(body)))

    first = None
    server = serve(reply)
    options = {"reader.temperature": 1}  # nothing comes from the cache
    _, _, wanted, _, _ = run(server, output="plain", **options, **{"reader.workers": 1})
    asked.clear()
    others.clear()
    first = wanted[0]["question"]
    code, _, samples, _, err = run(server, **options, **{"reader.workers": 2})
    assert code == 0, err
    assert answered(samples) == answered(wanted)


def test_equal_prompts_of_several_conditions_are_sent_once(run, serve, small_chunks):
    server = serve(lambda _, body: chat(answer_to(question(body))))
    more = ["--retriever", "none", "--controls", "none"]
    code, results, _, _, err = run(server, *more, **{"reader.workers": 4})
    assert code == 0, err
    assert len(server.requests) == 6
    assert results["cost"]["conditions"]["none"]["total"]["reused"]["results"] == 6


def test_no_more_than_the_most_requests_are_sent_from_several_chunks(run, serve, small_chunks):
    server = serve(lambda _, body: chat(answer_to(question(body))))
    options = {"reader.workers": 2}
    code, _, samples, _, err = run(server, "--max-requests", 3, **options)
    assert code == 2
    assert "--max-requests 3: as many requests have been sent" in err
    end = time.monotonic() + LONG
    while len(server.requests) < 3 and time.monotonic() < end:
        time.sleep(0.005)  # the run may end before its last request is there
    assert len(server.requests) == 3
    assert len(samples) <= 3
    code, _, samples, _, err = run(server, "--resume", **options)
    assert code == 0, err
    assert len(server.requests) == 6  # what was answered and not written is in the cache
    assert len(samples) == 6


def test_an_interrupted_run_leaves_whole_lines_in_order(run, serve, small_chunks, tmp_path):
    written, over = tmp_path / "run" / "samples.jsonl", threading.Event()
    last = []  # of the questions: their replies come only after the interrupted run

    def reply(_, body):
        if question(body) in last and not over.is_set():
            while not (written.is_file() and written.read_bytes()):
                time.sleep(0.005)
            if question(body) == last[0]:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            over.wait(60)
        return chat(answer_to(question(body)))

    server = serve(reply)
    options = {"reader.temperature": 1, "reader.workers": 3}
    _, _, wanted, _, _ = run(server, output="calm", **options)
    last += questions_of(wanted)[-2:]
    code, results, samples, _, _ = run(server, **options)
    over.set()
    assert (code, results) == (130, None)
    assert 1 <= len(samples) < 6
    assert answered(samples) == answered(wanted[: len(samples)])
    code, _, samples, _, err = run(server, "--resume", **options)
    assert code == 0, err
    assert answered(samples) == answered(wanted)


@pytest.mark.slow
def test_faults_on_the_way_change_nothing(run, serve, waits):
    quiet = serve(lambda _, body: chat(answer_to(question(body))))
    code, calm, wanted, _, _ = run(quiet, output="calm")
    assert code == 0

    def reply(n, body):
        faults = {
            1: (429, "", {"Retry-After": "1"}),
            2: (500, "oops"),
            4: server.cut,
            5: (200, '{"choices": [{'),
            7: (200, '{"choices": []}'),
            8: server.drop,
            10: server.hang,
        }
        return faults.get(n) or chat(answer_to(question(body)))

    server = serve(reply)
    options = {"reader.workers": 2, "reader.timeout": 0.5}
    code, results, samples, _, err = run(server, output="stormy", **options)
    assert code == 0, err
    assert [s["answer"] for s in samples] == [s["answer"] for s in wanted]
    assert results["answers"]["conditions"] == calm["answers"]["conditions"]
    assert len(server.requests) == 6 + 7


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_a_prompt_that_fails_ends_the_run_and_loses_no_other(run, serve, waits, temperature):
    broken = threading.Event()
    broken.set()
    asked = []

    def reply(_, body):
        asked.append(question(body))
        if broken.is_set() and len(set(asked)) >= 3 and asked[-1] == asked[2]:
            return 500, "out of memory"
        return chat(answer_to(asked[-1]))

    server = serve(reply)
    options = {"reader.workers": 1, "reader.retries": 1, "reader.temperature": temperature}
    code, results, samples, _, err = run(server, **options)
    assert code == 2
    assert results is None
    [line] = [line for line in err.splitlines() if line.startswith("error:")]
    assert "HTTP 500 Internal Server Error (out of memory), after 2 tries" in line
    assert "--on-error skip counts such questions as wrong" in line
    assert "questions: 5 of 6 are answered and kept: continue with --resume --output" in line
    assert len(samples) == 5
    assert len(asked) == 7

    broken.clear()
    code, results, samples, _, err = run(server, "--resume", **options)
    assert code == 0, err
    assert len(samples) == 6
    assert len({*questions_of(samples)}) == 6
    assert all(s["answer"] == answer_to(s["question"]).strip() for s in samples)
    assert len(asked) == 8  # the one alone
    assert results["answers"]["questions"] == 6


def test_a_run_goes_on_when_its_server_is_back(run, serve, waits):
    gone = threading.Event()
    answered = []

    def reply(_, body):
        if gone.is_set():
            return server.drop
        answered.append(question(body))
        if len(answered) == 4:
            gone.set()
        return chat(answer_to(answered[-1]))

    server = serve(reply)
    options = {"reader.workers": 1, "reader.retries": 1}
    code, _, samples, _, err = run(server, limit=40, **options)
    assert code == 2
    assert "for several requests in a row" in err
    assert "questions: 4 of 40 are answered and kept" in err
    assert questions_of(samples) == answered
    assert len(server.requests) < 12
    gone.clear()
    answered.append("back")
    code, _, samples, _, err = run(server, "--resume", limit=40, **options)
    assert code == 0, err
    assert len({s["question_id"] for s in samples}) == len(samples) == 40
    assert len(answered) == 41  # each once


def test_skipped_prompts_count_as_wrong_and_are_listed(run, serve, tmp_path):
    refused = []

    def reply(_, body):
        if not refused or question(body) in refused:
            refused.append(question(body))
            return 400, json.dumps({"error": {"message": "this is filtered"}})
        return chat(answer_to(question(body)))

    server = serve(reply)
    arguments = ["--on-error", "skip", "--controls", "none"]
    code, results, samples, out, err = run(server, *arguments)
    assert code == 0, err
    main_condition = results["answers"]["conditions"]["main"]
    assert results["answers"]["questions"] == 6  # in the denominator
    [entry] = main_condition["unanswered"]
    assert "this is filtered" in entry["reason"]
    [sample] = [s for s in samples if s["answer"] is None]
    assert (sample["question"], sample["question_id"]) == (refused[0], entry["question_id"])
    assert (sample["score"], sample["drafts"]) == (0, [])
    assert "the reader had no answer 2 times" in " ".join(out.split())
    predictions = json.loads((tmp_path / "run" / "predictions.json").read_text(encoding="utf-8"))
    assert [p["answer"] for p in predictions].count("") == 1
    before = len(server.requests)
    assert run(server, *arguments, "--resume")[0] == 0
    assert len(server.requests) == before

    again = ["score", tmp_path / "run" / "samples.jsonl", "--dataset", "okvqa", "--allow-partial"]
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in [*again, "--output", tmp_path / "again.json"]])
    assert end.value.code == 0
    scored = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    condition = scored["answers"]["conditions"]["main"]
    assert condition["unanswered"] == main_condition["unanswered"]


def test_where_no_prompt_is_answered_it_is_not_the_prompts(run, serve):
    server = serve(lambda *_: (400, '{"error": "max_tokens is not supported"}'))
    code, results, samples, _, err = run(server, "--on-error", "skip", limit=10)
    assert code == 2
    assert results is None
    assert samples == []
    assert "max_tokens is not supported" in err


def test_other_answering_over_the_same_prompts_asks_nobody(run, serve):
    server = serve(lambda _, body: chat(answer_to(question(body)).upper()))
    code, results, _, _, err = run(server, "--controls", "none", output="first")
    assert code == 0, err
    assert results["timing"]["prompts_generated"] == len(server.requests) == 12
    server.stop()  # not even there
    more = {"answering.extract.lower": "false"}
    code, results, samples, _, err = run(server, "--controls", "none", output="second", **more)
    assert code == 0, err
    assert results["timing"]["prompts_generated"] == 0
    assert "cannot be reached" in err
    assert "only what is in the cache can be answered" in err
    assert samples[0]["answer"].startswith("ABOUT")


def test_passages_are_compared_by_the_servers_log_probabilities(run, serve):
    def reply(n, body):
        tokens = [{"token": f"answer {n}", "logprob": -(0.1 * len(said(body)) % 1) - 0.01}]
        return chat(f"answer {n}", logprobs={"content": tokens})

    more = {"answering.decision": "joint_max", "answering.passages": 3}
    code, _, _, _, err = run(serve(reply), output="mute", **more)
    assert code == 2
    assert "does not give" in err or "not give" in err
    server = serve(reply)
    code, _, samples, _, err = run(server, limit=4, **more, **{"reader.log_probs": "true"})
    assert code == 0, err
    assert len(server.requests) == 12
    for sample in samples:
        best = max(sample["drafts"], key=lambda d: d["score"])
        assert sample["answer"] == best["text"]


def test_the_key_is_nowhere(run, serve, tmp_path, monkeypatch, waits):
    monkeypatch.setenv("OUR_KEY", KEY)
    log = []

    def reply(n, body):
        log.append(body)
        if n == 1:
            return 500, f"Bearer {KEY} caused an error"
        if n == 3:
            return 400, json.dumps({"error": {"message": f"bad request by {KEY}"}})
        return chat(f"an answer to the holder of {KEY}")

    server = serve(reply)
    options = {"reader.api_key_env": "OUR_KEY", "reader.workers": 1}
    code, _, samples, out, err = run(server, "--on-error", "skip", report=True, **options)
    assert code == 0, err
    assert {r[1]["Authorization"] for r in server.requests} == {f"Bearer {KEY}"}
    assert "bad request by ***" in json.dumps(samples)
    refusing = serve(lambda *_: (401, f"no such key: {KEY}"))
    code, _, _, out2, err2 = run(refusing, output="refused", **options)
    assert code == 2
    assert "OUR_KEY" in err2
    assert KEY not in out + err + out2 + err2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {"config.yaml", "samples.jsonl", "results.json", "report.html", "generations.sqlite"}
    assert names <= {path.name for path in files}
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


LENGTH = {"finish_reason": "length"}
ENDED = "the model ended its answer before the first word"


@pytest.mark.parametrize(
    ("bad", "temperature", "reason"),
    [
        (chat("", **LENGTH), 0, "spent all 32 tokens on thinking: raise max_new_tokens"),
        (chat("<think>The user asks", **LENGTH), 0.7, "spent all 32 tokens on thinking"),
        (chat(""), 0.7, ENDED),
        (chat("\u200b \n\ufeff"), 0, ENDED),
        (chat("koala", finish_reason="content_filter"), 0, "content filter withheld the answer"),
    ],
)
def test_an_empty_answer_is_no_answer(run, serve, bad, temperature, reason):
    def reply(_, body):
        asked.append(question(body))
        return bad if asked[-1].startswith("What is the main food") else chat(answer_to(asked[-1]))

    asked = []
    server = serve(reply)
    options = {"reader.workers": 1, "reader.temperature": temperature}
    code, _, samples, _, err = run(server, output="strict", **options)
    assert code == 2
    [line] = [line for line in err.splitlines() if line.startswith("error:")]
    assert reason in line
    assert "5 of 6 are answered and kept" in line
    assert len(asked) == 6  # the others were not asked for again, nor was this one
    code, results, samples, out, err = run(server, "--on-error", "skip", **options)
    assert code == 0, err
    assert len(asked) == (12 if temperature else 7)  # a failure is never kept
    [sample] = [s for s in samples if s["question"].startswith("What is the main food")]
    assert (sample["answer"], sample["score"]) == (None, 0)
    assert reason in sample["error"]
    [listed] = results["answers"]["conditions"]["main"]["unanswered"]
    assert listed == {"question_id": sample["question_id"], "reason": sample["error"]}
    assert "the reader had no answer 1 time" in " ".join(out.split())
