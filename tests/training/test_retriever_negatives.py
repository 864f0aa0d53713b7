"""Hard negatives: never relevant, mined by the current model, from files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from training_files import (
    COLOURS,
    encoder_scores,
    passage,
    rows,
    task,
    write_rows,
)

from ravqa.core.errors import UserError
from ravqa.core.records import Question
from ravqa.training.retriever import RetrieverTask


def test_no_negative_holds_an_answer_or_is_relevant(tmp_path):
    names = list(COLOURS)
    lines = rows(images=False)
    for i, row in enumerate(lines):
        other = names[(i + 1) % len(names)]
        row["answers"] = [names[i], f" {other.upper()} "]
        row["negatives"] = [passage(other), passage(names[(i + 2) % len(names)])]
    file = tmp_path / "examples.jsonl"
    write_rows(file, lines)
    made = task(file, loss={"negatives": 3}, mining={"every": 1, "depth": 8})
    made.upcoming = lambda step, steps: frozenset((0, i) for i in range(8))
    for mined in (False, True):
        if mined:
            made.before_step(0, lambda *_: None)
        for seed in range(10):
            for i, row in enumerate(made.chosen([(0, i) for i in range(8)], seed)):
                bad = {f"p-{names[i]}", f"p-{names[(i + 1) % 8]}"}
                assert row.passages[0] == f"p-{names[i]}"
                assert bad.isdisjoint(row.passages[1:])
                assert len(set(row.passages)) == 4
    own = made.chosen([(0, i) for i in range(8)], 0)
    left_out = made._left_out(own, own, 4)
    for i, row in enumerate(left_out):
        for j, out in enumerate(row.tolist()):
            holder = own[j // 4].passages[j % 4]
            assert out == (holder in {f"p-{names[i]}", f"p-{names[(i + 1) % 8]}"})


def test_mined_negatives_are_the_best_passages_that_are_not_relevant(examples):
    made = task(examples, mining={"every": 2, "depth": 4, "start": 1})
    asked = []

    def upcoming(step, steps):
        asked.append((step, steps))
        return frozenset((0, i) for i in range(3))

    made.upcoming = upcoming
    for step in range(5):
        made.before_step(step, lambda *_: None)
    assert asked == [(1, 2), (3, 2)]
    lines = rows()
    scores = encoder_scores(examples.parent, lines)
    for i, row in enumerate(lines[:3]):
        best = [lines[j]["positive"]["id"] for j in np.argsort(-scores[i], kind="stable")[:4]]
        expected = tuple(name for name in best if name != row["positive"]["id"])
        assert made._mined[0, i] == expected


def test_negatives_of_a_file_come_before_the_examples_own(texts, tmp_path):
    mined = tmp_path / "mined.jsonl"
    found = [{"id": "p-red", "score": 3.5}, {"id": "p-blue", "score": 2.0}, "p-pink"]
    write_rows(mined, [{"question_id": "q-red", "negatives": found[1:], "positives": found[:1]}])
    made = task(texts, train=[{"file": str(texts), "negatives": str(mined)}])
    first = made.sources[0].examples[0]
    assert first.negatives == ("p-blue", "p-pink")
    assert first.scores == {"p-red": 3.5, "p-blue": 2.0}
    for broken, message in (
        ([{"question_id": "q-red", "negatives": ["p-none"]}], "'p-none' is not in the corpus"),
        ([{"question_id": "q-none", "negatives": []}], "has no question of"),
        ([{"negatives": []}], "line 1: key 'question_id' is missing"),
        ([{"question_id": 1, "negatives": [7]}], "line 1: a passage is an id, or"),
    ):
        write_rows(mined, broken)
        with pytest.raises(UserError, match=message):
            task(texts, train=[{"file": str(texts), "negatives": str(mined)}])


def test_too_many_negatives_are_refused(texts):
    made = task(texts, loss={"negatives": 8})
    line = (
        r"^/.*: question q-red: too few of the \d+ passages are not relevant to it: loss.negatives "
        "is too large$"
    )
    with pytest.raises(UserError, match=line):
        made.chosen([(0, 0)], 0)


@pytest.mark.parametrize("passages", [None, 3, 7, 8])
def test_mining_looks_at_some_passages_that_seed_step_and_source_choose(passages):
    made = object.__new__(RetrieverTask)
    mining = SimpleNamespace(start=1, every=2, passages=passages, depth=4)
    made.config = SimpleNamespace(mining=mining, loop=SimpleNamespace(seed=5))
    never = SimpleNamespace(
        relevant=lambda question, passage_id, positives: passage_id in positives
    )
    example = SimpleNamespace(question=Question(1, "?", instruction="i"), positives=("n6",))
    given = {"examples": [example] * 2, "corpus": {}, "relevance": never, "instruction": ""}
    made.sources = [SimpleNamespace(ids=[f"{n}{i}" for i in range(8)], **given) for n in "mn"]
    made.upcoming = lambda *_: {(1, 1), (1, 0)}
    looked_at = []

    def search(questions, corpus, ids, depth, *_):
        looked_at.append((len(questions), ids, depth))
        return [[(name, 1.0) for name in ids] for _ in questions]

    made._searcher = lambda: SimpleNamespace(search=search)
    made.before_step(3, None)
    ids = made.sources[1].ids
    if passages in (3, 7):
        rows = np.random.default_rng([5, 3, 1]).choice(8, size=passages, replace=False)
        ids = [f"n{i}" for i in sorted(rows)]
    assert looked_at == [(2, ids, 4)]
    hard = tuple(name for name in ids if name != "n6")
    assert made._mined == {(1, 0): hard, (1, 1): hard}


def test_mined_negatives_are_written_and_read(tmp_path):
    made, again = (object.__new__(RetrieverTask) for _ in range(2))
    made._mined = {(1, 0): ("c", "a"), (0, 7): (), (0, 2): ("b",)}
    made.write_state(tmp_path)
    [file] = tmp_path.iterdir()
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(row["source"], row["example"]) for row in found] == [(0, 2), (0, 7), (1, 0)]
    again.read_state(tmp_path)
    assert again._mined == made._mined
