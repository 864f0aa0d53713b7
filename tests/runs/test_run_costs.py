"""What a run costs: in its samples, its results and its tables, and how it stops at a limit."""

import json
import re

import pytest
from scripted_server import chat

from ravqa.cli import main

QUESTIONS = [
    {"id": f"q{i}", "question": f"What is thing {i}?", "answers": [f"thing {i}"]} for i in range(6)
]
PASSAGES = [{"id": f"p{i}", "text": f"Passage {i} is about thing {i}."} for i in range(8)]
PRICES = "{prompt: 10, completion: 100, cached: 5, currency: USD}"


@pytest.fixture
def run(tmp_path, capsys, fresh_cache):
    """Runs six questions of one's own; gives exit code, results, samples, stdout and stderr."""
    questions, passages = tmp_path / "questions.jsonl", tmp_path / "passages.jsonl"
    for path, records in ((questions, QUESTIONS), (passages, PASSAGES)):
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")

    def call(server, *more, output="run", workers=1, **options):
        settings = {
            "describer": "null",
            "retriever": "{name: bm25}",
            "answering.decision": "top1",
            "reader": f"{{name: openai, url: '{server.url}', model: m, workers: {workers}}}",
            **options,
        }
        folder = tmp_path / output
        arguments = ["run", "--dataset", "jsonl", "--data", questions, "--corpus", passages]
        arguments += ["--output", folder]
        for key, value in settings.items():
            arguments += ["--set", f"{key}={value}"]
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in [*arguments, *more]])
        printed = capsys.readouterr()
        path, lines = folder / "results.json", folder / "samples.jsonl"
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        samples = lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else []
        return end.value.code, results, list(map(json.loads, samples)), printed.out, printed.err

    return call


def used(body, **more):
    """A reply that took as many prompt tokens as the number of its question, plus 10."""
    number = int(re.findall(r"What is thing (\d)", json.dumps(body))[-1])
    status, reply = chat(f"thing {number}")
    usage = {"prompt_tokens": 10 + number, "completion_tokens": 2, **more}
    return status, json.dumps(json.loads(reply) | {"usage": usage})


def cost(number, **more):
    return {
        "requests": 1,
        "retries": 0,
        "prompt_tokens": 10 + number,
        "completion_tokens": 2,
        "cached_tokens": None,
        **more,
    }


@pytest.mark.parametrize("chunk", [1, 32])
def test_each_question_has_its_own_tokens_and_the_run_their_sum(run, serve, monkeypatch, chunk):
    monkeypatch.setattr("ravqa.runs.execute._CHUNK", chunk)  # with 1, several are under way
    code, results, samples, out, err = run(serve(lambda _, body: used(body)), workers=3)
    assert code == 0, err
    assert {s["question_id"]: s["cost"] for s in samples} == {
        f"q{i}": {"answer": cost(i)} for i in range(6)
    }
    section = results["cost"]
    whole = {**cost(0), "requests": 6, "prompt_tokens": 75, "completion_tokens": 12}
    assert section["total"] == section["conditions"]["main"]["total"] == whole
    assert section["conditions"]["main"]["stages"] == {"answer": whole}
    assert section["conditions"]["main"]["per_question"]["prompt_tokens"] == 12.5
    assert section["currency"] is None
    [line] = [line for line in out.splitlines() if line.startswith("retrieval") and "75" in line]
    assert line.split()[1:4] == ["6", "75", "12"]
    assert "money" not in json.dumps(section)


def test_a_second_run_makes_no_request_and_shows_what_its_answers_had_cost(run, serve, tmp_path):
    server = serve(lambda _, body: used(body, prompt_tokens_details={"cached_tokens": 4}))
    options = {"reader.prices": PRICES}
    _, first, _, out, err = run(server, **options)
    assert first["cost"]["currency"] == "USD"
    money = (75 - 24) * 10e-6 + 24 * 5e-6 + 12 * 100e-6
    assert first["cost"]["total"]["money"] == pytest.approx(money)
    assert first["cost"]["total"]["cached_tokens"] == 24
    assert "24 of the prompt tokens came from the servers' own caches." in out
    code, second, samples, out, err = run(server, output="again", **options)
    assert code == 0, err
    assert len(server.requests) == 6
    assert second["cost"]["total"] == {
        **cost(-10),
        "requests": 0,
        "completion_tokens": 0,
        "reused": {
            "results": 6,
            "prompt_tokens": 75,
            "completion_tokens": 12,
            "money": pytest.approx(money),
        },
    }
    assert "Not counted: 6 results from the cache, which took 75 prompt tokens, 12" in out
    page = (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    assert "6 (75 + 12 tokens, USD 0.001830)" in " ".join(page.split())
    assert samples[0]["cost"]["answer"]["reused"]["prompt_tokens"] == 10


def test_a_server_that_sends_no_usage_has_unknown_tokens_not_none(run, serve):
    code, results, samples, out, err = run(serve(lambda *_: chat("thing")))
    assert code == 0, err
    unknown = {"prompt_tokens": None, "completion_tokens": None, "cached_tokens": None}
    assert results["cost"]["total"] == {**unknown, "requests": 6, "retries": 0, "unknown": 6}
    assert samples[0]["cost"]["answer"]["prompt_tokens"] is None
    assert "unknown: 6 replies do not say how many tokens they took." in out


def test_a_run_stops_at_its_most_requests_and_resumes(run, serve):
    server = serve(lambda _, body: used(body))
    code, results, samples, _, err = run(server, "--max-requests", 4)
    assert (code, results) == (2, None)
    assert err.splitlines()[-1].startswith(
        "error: --max-requests 4: as many requests have been sent (questions: 4 of 6 are answered "
        "and kept: continue with --resume --output "
    )
    assert len(server.requests) == len(samples) == 4
    code, results, samples, _, err = run(server, "--max-requests", 4, "--resume")
    assert code == 0, err
    assert len(server.requests) == 6
    assert results["cost"]["total"]["requests"] == 6  # of both parts
    assert results["cost"]["total"]["prompt_tokens"] == 75


def test_a_run_stops_when_enough_money_is_spent(run, serve):
    server = serve(lambda _, body: used(body))
    code, _, samples, _, err = run(server, "--max-cost", 0.0008, **{"reader.prices": PRICES})
    assert code == 2
    # 0.00030, 0.00031, 0.00032: more than the limit after the third.
    assert err.splitlines()[-1].startswith("error: --max-cost 0.0008: 0.00093 has been spent (")
    assert len(samples) == len(server.requests) == 3


def test_a_limit_of_money_ends_where_tokens_are_unknown(run, serve):
    server = serve(lambda *_: chat("thing"))
    code, _, samples, _, err = run(server, "--max-cost", 1, **{"reader.prices": PRICES})
    assert code == 2
    assert "a server does not say how many tokens it used" in err.splitlines()[-1]
    assert len(samples) == len(server.requests) == 1


JUDGE = "{{name: llm, url: 'http://h/v1', model: j{}}}"


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (["--max-cost", "1"], {}, "--max-cost needs prices: set reader.prices too (0 for a server "
         "that costs nothing), so that no cost is left out"),
        (["--max-cost", "0"], {}, "--max-cost 0: more than 0 is needed"),
        (["--max-requests", "5"], {"reader": "{name: first-words}"},
         "--max-requests: nothing that runs here asks a server"),
        ([], {"reader.prices": "{prompt: 1, completion: 1}"},
         "sample.yaml: reader: key 'prices.currency' is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_limited_or_priced_is_refused(run, serve, options, changes, message):
    code, _, samples, _, err = run(serve(lambda *_: chat("a")), *options, **changes)
    assert code == 2
    assert err.splitlines()[-1] == f"error: {message}"
    assert samples == []


def test_a_gate_that_asks_a_reader_is_a_stage_of_its_own(run, serve):
    def reply(_, body):
        if "prompt_logprobs" in body:
            listed = [{str(i): {"logprob": -1.0}} for i in range(8)]
            last = len(body["messages"]) + (body.get("continue_final_message") is False)
            return 200, json.dumps(
                {
                    "choices": [{"index": 0}],
                    "prompt_logprobs": listed[: 3 + last],
                    "usage": {"prompt_tokens": 20, "completion_tokens": 1},
                }
            )
        return used(body)

    gate = "[{name: gate, rule: reader, at_least: 0.1}]"
    options = {"reranking": gate, "reader.scoring": "prompt_logprobs"}
    server = serve(reply)
    code, results, samples, out, err = run(server, **options)
    assert code == 0, err
    # Yes and no share the prompt without an answer, and take two requests each.
    assert samples[0]["cost"]["rerank gate"] == {
        **cost(0), "requests": 5, "prompt_tokens": 100, "completion_tokens": 5,
    }  # fmt: skip
    stages = results["cost"]["conditions"]["main"]["stages"]
    assert {name: found["requests"] for name, found in stages.items()} == {
        "rerank gate": 30,
        "answer": 6,
    }
    assert results["cost"]["total"]["requests"] == len(server.requests) == 36
    assert "  rerank gate" in out
