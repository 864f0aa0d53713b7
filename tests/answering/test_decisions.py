"""Decision rules by brute force: a reader whose every sequence can be enumerated."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spelling import Spelling, all_sequences, chance, prompts

from ravqa.answering.answerer import Answerer
from ravqa.answering.merging import merge_key
from ravqa.answering.rules import answering_config
from ravqa.core.outcomes import Failure
from ravqa.core.records import Answer, Hit, Passage, Question
from ravqa.pipeline import Pipeline
from ravqa.retrievers.controls import NoRetriever

NAMES = "wxyz"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "bare.jinja"
    path.write_text("{{ question }}{% for p in passages %}[{{ p.text }}]{% endfor %}", "utf-8")
    return str(path)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    scores=st.lists(st.floats(-2, 2), min_size=2, max_size=4),
    temperature=st.floats(0.3, 3),
    uniform=st.booleans(),
)
def test_each_rule_gives_what_its_formula_gives(bare, seed, scores, temperature, uniform):
    reader = Spelling(seed=seed)
    every = range(len(scores))
    weights = [1.0 if uniform else math.exp(score / temperature) for score in scores]
    prior = [weight / sum(weights) for weight in weights]
    texts = [f"Q[{name}]" for name in NAMES[: len(scores)]]
    # p(y | x, z_k) of every y that can be written, and which one each passage is answered with.
    p = {reader.decode(s): [chance(reader, t, s) for t in texts] for s in all_sequences()}
    length = {reader.decode(s): len(s) for s in all_sequences()}
    said = [generation.text for generation in reader.generate(prompts(texts))]

    def best(value):
        """The first of the answers with the largest value."""
        return max(dict.fromkeys(said), key=value)

    joint = [math.log(prior[k]) + math.log(p[said[k]][k]) / length[said[k]] for k in every]
    expected = {
        "joint_max": said[joint.index(max(joint))],
        "fast": best(lambda y: sum(prior[k] * p[y][k] for k in every if said[k] == y)),
        "thorough": best(lambda y: sum(prior[k] * p[y][k] for k in every)),
        "vote": best(lambda y: (Counter(said)[y], -said.index(y)) if y else (0, 0)),
    }
    found = [
        (Hit(n, s, i), Passage(n, n))
        for i, (n, s) in enumerate(zip(NAMES, scores, strict=False), 1)
    ]
    for name, answer in expected.items():
        kind = {"decision": "marginal", "marginal": name} if name in ("fast", "thorough") else {}
        config = answering_config(
            {
                "decision": name,
                **kind,
                "prompt": bare,
                "passages": 4,
                "prior": "uniform" if uniform else "scores",
                "temperature": temperature,
                "merge": "exact",
                "cache": False,
            }
        )
        tested = Answerer(config, reader)
        if not answer:  # the best sequence has no word: no answer
            [failure] = tested.answer([Question(1, "Q")], [found])
            assert failure == Failure("the model ended its answer before the first word")
            continue
        [given] = tested.answer([Question(1, "Q")], [found])
        assert given.raw == answer, name
        if name in ("fast", "thorough"):
            total = sum(
                prior[k] * p[answer][k] for k in every if name == "thorough" or said[k] == answer
            )
            assert math.exp(given.log_prob) == pytest.approx(total)
            own = [
                prior[k] * p[answer][k] * (name == "thorough" or said[k] == answer) for k in every
            ]
            assert [d.posterior for d in given.drafts] == pytest.approx([v / total for v in own])


@pytest.mark.parametrize("kind", [{"decision": "joint_max"}, {"decision": "marginal"}])
def test_a_generation_without_log_probability_costs_its_own_question_alone(bare, kind):
    class Partly(Spelling):
        def generate(self, prompts):
            made = super().generate(prompts)
            return [
                replace(g, log_prob=None) if p.text == "Q[x]" else g
                for p, g in zip(prompts, made, strict=True)
            ]

    if kind["decision"] == "marginal":
        kind = {**kind, "marginal": "fast"}
    config = answering_config({**kind, "prompt": bare, "passages": 2, "cache": False})
    pipeline = Pipeline(NoRetriever(), Answerer(config, Partly()))
    pipeline.corpus = {name: Passage(name, name) for name in NAMES}
    hits = [[Hit(a, 1.0, 1), Hit(b, 0.5, 2)] for a, b in ("wx", "yz")]
    failed, answered = pipeline.answer([Question(1, "Q"), Question(2, "Q")], hits)
    assert failed == Failure("the reader returned a generation without its log-probability")
    assert isinstance(answered, Answer)


@pytest.mark.parametrize(
    ("merge", "equal"),
    [
        ("vqa", {"A Golden-Retriever", "golden retriever", "Golden  Retriever"}),
        ("lower", {"golden retriever", "Golden  Retriever"}),
        ("exact", {"golden retriever"}),
    ],
)
def test_answers_are_one_by_the_rule_that_is_set(merge, equal):
    said = ["A Golden-Retriever", "golden retriever", "Golden  Retriever", "poodle"]
    key = merge_key("golden retriever", merge)
    assert {answer for answer in said if merge_key(answer, merge) == key} == equal
