"""Answering within a run: raw and extracted scores, what was cut, provenance, no call twice."""

import json
import math
from typing import ClassVar

import numpy as np
import pytest

from ravqa.cli import main
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict
from ravqa.metrics import vqa_accuracies
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader

ANSWERS = ["tall as towers", "as tall as towers", "green"]
QUESTIONS = ["How tall is it?", "How tall does it grow?", "Which colour is it?"]
PASSAGES = {"fir": "Tall as towers it grows.", "oak": "An oak is green.", "ash": "Ash is grey."}


class Script(Reader):
    """Says the last passage's first words in a sentence, likelier for short passages; counts."""

    gives_log_probs = True
    scores_answers = True
    gives_next_token_logprobs = True
    counts_tokens = True
    deterministic = True
    fingerprint = weights = "script"
    max_new_tokens = 4
    ends = frozenset({0})
    calls: ClassVar = {"generate": 0, "score": 0, "next_token": 0}

    class Config(Strict):
        context: int = 100

    def __init__(self, config):
        self.context = config.context

    def count(self, what, n):
        Script.calls[what] += n

    def says(self, prompt):
        return " ".join(prompt.text.rpartition("Passage: ")[2].split()[:3])

    def generate(self, prompts):
        self.count("generate", len(prompts))
        long = "x" * 2000
        return [
            Generation(f"<think>{long}</think>{long}\n\n**Answer:** {self.says(p)}.", -1.0, 3)
            for p in prompts
        ]

    def score(self, prompts, answers):
        self.count("score", len(prompts))
        return [-1.0 if self.says(p) in a else -9.0 for p, a in zip(prompts, answers, strict=True)]

    def next_token_logprobs(self, prompts, prefixes):
        self.count("next_token", len(prompts))
        chances = [[0.1, 0.9] if not t else [0.8, 0.2] for t in prefixes]
        return list(np.log(np.array(chances)).astype(np.float32))

    def decode(self, tokens):
        return "Green." if 1 in tokens else ""

    def count_tokens(self, prompts):
        return [len(p.text.split()) for p in prompts]


@pytest.fixture
def run(monkeypatch, fresh_cache, tmp_path, capsys):
    """Runs three questions; gives results, samples, stdout and stderr."""
    monkeypatch.setitem(READERS._entries, "script", Entry(f"{__name__}:Script", "for tests"))
    Script.calls = dict.fromkeys(Script.calls, 0)
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"question_id": i, "question": q, "answers": [a] * 9 + ["x"]}
        for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    (data / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    texts = [{"passage_id": i, "text": text} for i, text in PASSAGES.items()]
    (data / "passages.jsonl").write_text("\n".join(map(json.dumps, texts)), "utf-8")
    ranking = [f"{q} Q0 {p} {r} {5 - r} x" for q in range(3) for r, p in enumerate(PASSAGES, 1)]
    (data / "run.trec").write_text("\n".join(ranking) + "\n", "utf-8")
    prompt = tmp_path / "own.jinja"
    prompt.write_text(
        "{{ question }}\n{% for p in passages %}\nPassage: {{ p.text }}\n{% endfor %}", "utf-8"
    )

    def call(name, *settings, reader="script", arguments=()):
        fixed = ["run", "--dataset", "jsonl", "--data", data / "questions.jsonl"]
        fixed += ["--corpus", data / "passages.jsonl", "--retriever", f"static:{data / 'run.trec'}"]
        fixed += ["--reader", reader, "--output", tmp_path / name, "--set", "describer=null"]
        fixed += ["--no-report"]
        fixed += ["--set", f"answering.prompt={prompt}"]
        for setting in settings:
            fixed += ["--set", setting]
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in (*fixed, *arguments)])
        printed = capsys.readouterr()
        assert end.value.code == 0, printed.err
        samples = (tmp_path / name / "samples.jsonl").read_text("utf-8").splitlines()
        results = json.loads((tmp_path / name / "results.json").read_text("utf-8"))
        return results, [json.loads(line) for line in samples], printed.out, printed.err

    return call


def test_extracted_answer_and_raw_generation_are_both_scored(run):
    results, samples, out, _ = run("one", "answering.decision=top1")
    scores = results["answers"]["conditions"]["main"]
    references = [[a] * 9 + ["x"] for a in ANSWERS]
    assert [s["answer"] for s in samples] == ["tall as towers"] * 3
    assert [s["score"] for s in samples] == vqa_accuracies(["tall as towers"] * 3, references)
    assert [s["raw_score"] for s in samples] == [0, 0, 0]
    assert scores["score"] == pytest.approx(100 / 3, abs=0.01)
    assert scores["raw"] == {"score": 0.0, "interval_95": [None, None], "unjudged": []}
    assert "raw generations, without extracting an answer: retrieval 0.0" in out
    # The answer's own generation is kept whole, those of drafts up to a limit.
    assert len(samples[0]["raw"]) > 2000
    assert samples[0]["raw"].endswith("**Answer:** Tall as towers.")
    assert len(samples[0]["drafts"][0]["raw"]) == 300
    # What was thought before it is kept apart.
    assert "think" not in samples[0]["raw"]
    assert samples[0]["drafts"][0]["thinking"] == "x" * 300


def test_results_say_what_the_reader_switched_off(run, monkeypatch):
    results, *_ = run("one", "answering.decision=top1")
    assert "switched_off" not in results["provenance"]
    monkeypatch.setattr(Script, "switched_off", {"batches": "it sees padding"})
    results, *_ = run("two", "answering.decision=top1")
    assert results["provenance"]["switched_off"] == {"batches": "it sees padding"}


def test_raw_scores_are_not_shown_where_they_are_the_same(run):
    results, samples, out, _ = run("one", "answering.decision=top1", reader="first-words")
    scores = results["answers"]["conditions"]["main"]
    assert scores["raw"]["score"] == scores["score"] == pytest.approx(100 / 3, abs=0.01)
    assert samples[0]["raw"] == "Tall as towers"
    assert "raw generations" not in out


def test_ravqa_score_scores_the_raw_generations_too(run, tmp_path, capsys):
    results, _, _, _ = run("one", "answering.decision=top1")
    arguments = ["score", tmp_path / "one" / "samples.jsonl", "--dataset", "jsonl"]
    arguments += ["--data", tmp_path / "data" / "questions.jsonl", "--output", tmp_path / "s.json"]
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    scored = json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert (
        scored["answers"]["conditions"]["main"]["raw"]
        == results["answers"]["conditions"]["main"]["raw"]
    )
    assert "raw generations, without extracting an answer: predictions 0.0" in printed.out


def test_passages_that_did_not_fit_are_counted(run):
    settings = ["answering.decision=concat", "answering.passages=3", "reader.context=20"]
    results, samples, _, err = run("cut", *settings)
    # A question has 4 or 5 words, the passages 6, 5 and 4 with their mark, 4 are to be generated.
    assert [s["cut"] for s in samples] == [1, 1, 1]
    assert [s["drafts"][0]["passage_ids"] for s in samples] == [["fir", "oak"]] * 3
    assert results["answers"]["conditions"]["main"]["cut"] == {"passages": 3, "questions": 3}
    assert "3 passages of 3 questions did not fit into the reader's context" in err
    results, samples, _, err = run("whole", *settings[:2])
    assert results["answers"]["conditions"]["main"]["cut"] == {"passages": 0, "questions": 0}
    assert "did not fit" not in err


def test_provenance_names_rule_settings_and_prompt(run):
    results, _, _, _ = run("one", "answering.decision=marginal", "answering.passages=2")
    answering = results["provenance"]["answering"]
    assert answering["decision"] == "marginal"
    assert answering["passages"] == 2
    assert answering["temperature"] == 1.0
    assert answering["merge"] == "vqa"
    assert "prune" not in answering  # an option of another rule
    assert answering["extract"]["marked"] is True
    assert answering["prompt"]["name"] == "own.jinja"
    assert len(answering["prompt"]["sha256"]) == 64
    assert answering["examples"] is None


def test_provenance_names_the_examples(run, okvqa_sample_train):
    results, _, _, _ = run(
        "shots",
        "answering.decision=top1",
        "answering.prompt=few-shot",
        "answering.examples={count: 3, seed: 7, passages: 0}",
    )
    examples = results["provenance"]["answering"]["examples"]
    known = {q.question_id for q in okvqa_sample_train.questions}
    assert len(set(examples["question_ids"]) & known) == 3
    assert (examples["count"], examples["seed"], examples["choose"]) == (3, 7, "random")
    assert examples["source"].endswith("train2014")
    assert len(results["provenance"]["fingerprints"]["examples"]) == 32


def test_examples_that_no_passages_are_found_for_are_one_clear_line(run):
    with pytest.raises(
        AssertionError, match=r"answering.examples: .*run.trec has no results .*0 sh"
    ):
        run("shots", "answering.prompt=few-shot", "answering.examples={count: 1}")


RULES = ["none", "top1", "concat", "joint_max", "marginal", "vote", "mixture"]


def test_a_second_ablation_over_the_same_calls_asks_the_reader_nothing(run):
    def grid(name):
        for rule in [*RULES, "thorough"]:
            k = 1 if rule == "top1" else 3
            chosen = ["answering.decision=" + rule]
            if rule == "thorough":
                chosen = ["answering.decision=marginal", "answering.marginal=thorough"]
            results, samples, _, _ = run(f"{name}-{rule}", *chosen, f"answering.passages={k}")
            assert len(samples) == 3
            yield results, samples

    first = list(grid("first"))
    made = dict(Script.calls)
    # none 3, concat 3, one passage each 9 (top1's among them); every answer under every passage 27
    assert made["generate"] == 3 + 3 + 9
    assert made["score"] == 27
    assert made["next_token"] == 3 * 3 * 2
    timing = first[-1][0]["timing"]
    assert (timing["prompts_generated"], timing["answers_scored"]) == (0, 27)
    assert first[-2][0]["timing"]["mixtures_decoded"] == 3
    second = list(grid("second"))
    assert Script.calls == made
    for (results, samples), (_, before) in zip(second, first, strict=True):
        counted = ("prompts_generated", "answers_scored", "mixtures_decoded")
        assert [results["timing"][what] for what in counted] == [0, 0, 0]
        for sample, old in zip(samples, before, strict=True):
            assert sample["answer"] == old["answer"]
            assert sample["drafts"] == old["drafts"]


def test_samples_hold_priors_and_posteriors(run):
    results, samples, _, _ = run("mix", "answering.decision=mixture", "answering.passages=3")
    assert all(sample["joint"] for sample in samples)
    assert results["answers"]["conditions"]["main"]["hits"] is None
    drafts = samples[0]["drafts"]
    weights = [math.exp(score) for score in (4, 3, 2)]
    expected = [w / sum(weights) for w in weights]
    assert [d["prior"] for d in drafts] == pytest.approx(expected)
    assert [d["posterior"] for d in drafts] == pytest.approx(expected)  # all say the same
    assert samples[0]["log_prob"] == pytest.approx(math.log(0.9 * 0.8))
    assert samples[0]["answer"] == "green"
    assert samples[2]["score"] == 1.0


def test_samples_say_where_the_answer_is_what_the_prompt_asks_for_as_a_refusal(run, tmp_path):
    prompt = tmp_path / "declining.jinja"
    prompt.write_text(
        '{% set decline = "An oak is" %}{{ question }}\n'
        "{% for p in passages %}\nPassage: {{ p.text }}\n{% endfor %}",
        "utf-8",
    )
    chosen = [f"answering.prompt={prompt}", "answering.decision=concat"]
    _, samples, _, _ = run("refused", *chosen, "answering.passages=2")
    assert [(s["answer"], s.get("refused")) for s in samples] == [("an oak is", True)] * 3
    _, samples, _, _ = run("answered", *chosen, "answering.passages=1")
    assert [(s["answer"], "refused" in s) for s in samples] == [("tall as towers", False)] * 3


def test_samples_hold_the_readers_own_verdict_if_it_is_asked(run):
    _, samples, _, _ = run("checked", "answering.self_check=self-check")
    # The scripted reader finds yes and no equally likely.
    assert [s["self_check"] for s in samples] == [0.5] * 3
    _, samples, _, _ = run("unchecked")
    assert not any("self_check" in s for s in samples)
