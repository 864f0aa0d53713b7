"""The types of a run's files: documented whole, and nothing else is read."""

import copy
import gzip
import json
import math
from pathlib import Path

import pytest
from typing_extensions import is_typeddict

from ravqa.core.errors import DataError
from ravqa.evaluation import schema, schema_page
from ravqa.evaluation.schema import (
    Draft,
    Predicted,
    Retrieved,
    RunConfig,
    RunResults,
    Sample,
    check_ranks,
    numbered_lines,
    parsed,
    read_samples,
    validated,
)

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_schema():
    shown = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert shown == schema_page.page(), "python -m ravqa.evaluation.schema_page > docs/results.md"


def kinds():
    for name, kind in vars(schema).items():
        if is_typeddict(kind) and kind.__module__ == schema.__name__:
            yield pytest.param(kind, id=name)


@pytest.mark.parametrize("kind", list(kinds()))
def test_every_key_has_a_description_on_the_page(kind):
    page = schema_page.page()
    _, _, section = page.partition(f"\n### {kind.__name__}\n")
    rows = [line for line in section.partition("\n### ")[0].splitlines() if line.startswith("| `")]
    inherited = {
        key
        for base in getattr(kind, "__orig_bases__", ())
        for key in getattr(base, "__annotations__", ())
    }
    assert {row.split("`")[1] for row in rows} == set(kind.__annotations__) - inherited
    assert all(len(row.split(" | ")[2].removesuffix(" |")) > 3 for row in rows)


# --- reading back


def ranking(hits="abc", **ranks):
    found = {"answer_ranks": {"flmr": [1, 3], "ravqa": [], "word": [3]}, "id_ranks": [2]}
    return {"hits": [[p, 1.5] for p in hits], "article_ranks": None, **found, **ranks}


DRAFT = {
    "text": "a",
    "raw": "A.",
    "log_prob": -math.inf,
    "tokens": 2,
    "passage_ids": ["a"],
    "prompt_hash": "x",
    "score": 7.5,
    "prior": 1.0,
    "posterior": None,
    "in_passages": True,
}
RETRIEVED = {
    "question_id": 7,
    "question": "Which?",
    "question_type": None,
    "image_id": "i",
    "split": None,
    "answers": ["a"],
    "tags": [["cat", 0.5]],
    "caption": "",
    "ocr": [],
    **ranking(),
    "seconds": {"retrieve": 0.5},
    "cached": {"retrieve": {"share": 0}},
}
ANSWERED = {
    "read": ranking("ab", answer_ranks={"flmr": [1], "ravqa": [], "word": []}),
    "answer": "a",
    "raw": "A.",
    "decision": "top1",
    "log_prob": None,
    "cut": 0,
    "drafts": [DRAFT],
}
SCORED = {"score": 1, "raw_score": 0.5, "exact_match": True, "right": False}
SAMPLE = {**RETRIEVED, **ANSWERED, **SCORED}


def lines(*samples):
    return "".join(json.dumps(sample) + "\n" for sample in samples).encode()


def message(call, *arguments):
    with pytest.raises(DataError) as error:
        call(*arguments)
    return str(error.value)


def test_text_is_read_as_one_of_the_types():
    assert parsed(Draft, json.dumps(DRAFT), "f") == DRAFT
    assert parsed(Sample, json.dumps(SAMPLE).encode(), "f")["hits"] == [
        ("a", 1.5),
        ("b", 1.5),
        ("c", 1.5),
    ]
    assert parsed(Retrieved, b'{"question_id": "q", "hits": [], "more": 1}', "f")["more"] == 1
    assert validated(Sample, SAMPLE, "f") is SAMPLE


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (Sample, SAMPLE | {"score": 2}, "not a sample of a run (key 'score': input should be less"),
        (Sample, {**RETRIEVED, "seconds": {"a": -1}}, "(key 'seconds.a': input should be greater"),
        (
            Sample,
            SAMPLE | {"question": 5, "ocr": 5},
            "(key 'question': input should be a valid str",
        ),
        (Predicted, SAMPLE | {"hits": [["a", math.nan]]}, "of a run (key 'hits.0.1': input should"),
        (Predicted, SAMPLE | {"drafts": [DRAFT | {"log_prob": math.nan}]}, "is not the logarithm"),
        (Retrieved, {"question_id": 1}, "not a ranking of a run (key 'hits' is missing)"),
        (RunConfig, [], "not the settings of a run (input should be"),
        (RunResults, {"schema_version": 2}, "not the results of a run (key 'dataset' is missing)"),
        (Draft, {}, "f: key 'text' is missing"),
    ],
    ids=range(9),
)
def test_the_first_mistake_is_named_with_its_key(kind, value, said):
    text = json.dumps(value)
    for found in (message(validated, kind, value, "f"), message(parsed, kind, text, "f")):
        assert found.startswith("f: ")
        assert said in found.replace("Input", "input")
        assert "\n" not in found


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "key 'log_prob': nan is not the logarithm of a probability"),
        (math.inf, "key 'log_prob': inf is not the logarithm of a probability"),
    ],
)
def test_a_logarithm_is_a_number_or_that_of_nothing(value, said):
    assert message(validated, Draft, DRAFT | {"log_prob": value}, "f") == f"f: {said}"
    for fine in (-math.inf, -3.5, 0.0, 12.0):
        validated(Draft, DRAFT | {"log_prob": fine, "score": fine}, "f")


@pytest.mark.parametrize(("kind", "what"), [(Sample, "not a sample of a run ("), (Draft, "not JS")])
def test_what_is_no_json_is_said(kind, what):
    found = message(parsed, kind, b'{"a": ', "file, line 3")
    assert found.startswith(f"file, line 3: {what}")
    assert "not JSON: EOF while parsing a value at line 1 column 6" in found


def test_bounds_of_numbers():
    """Both sides of each bound, for every kind of number."""

    def fits(name, value):
        try:
            validated(getattr(schema, name), value, "f")
        except DataError:
            return False
        return True

    bounds = {
        "Count": ([0, 5], [-1, 1.5]),
        "Rank": ([1, 5], [0, -1]),
        "Share": ([0.0, 1.0, 1 + 1e-10], [-1e-6, 1 + 1e-6]),
        "Percent": ([0.0, 100.0, 100 + 1e-10], [-1e-6, 100 + 1e-6]),
        "Points": ([-100.0, 100 + 1e-10, -100 - 1e-10], [-100 - 1e-6, 100 + 1e-6]),
        "Seconds": ([0.0, 1e9], [-1e-6]),
        "Bounds": ([[1.0, 2.0]], [[1.0], [1.0, 2.0, 3.0]]),
    }
    for name, (good, bad) in bounds.items():
        assert [fits(name, value) for value in good] == [True] * len(good), name
        assert [fits(name, value) for value in bad] == [False] * len(bad), name


def test_lines_have_their_numbers_and_keep_their_ends(tmp_path):
    data = b"\xef\xbb\xbfa\rb\n\n \t\n\xef\xbb\xbfc\xe2\x80\xa8d\n\x0be"
    wanted = [(1, b"a\rb\n"), (4, b"\xef\xbb\xbfc\xe2\x80\xa8d\n"), (5, b"\x0be")]
    for name, pack in (("f.jsonl", bytes), ("f.jsonl.GZ", gzip.compress), ("f.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(data))
        assert list(numbered_lines(tmp_path / name)) == wanted


def test_a_file_of_lines_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "f.gz"
    assert message(list, numbered_lines(path)) == f"no such file: {path}"
    whole = gzip.compress(b"a\n" * 1000)
    for data in (b"a\n", whole[:-9], whole[:12] + b"\xff\xff\xff\xff" + whole[16:]):
        path.write_bytes(data)
        assert message(list, numbered_lines(path)).startswith(f"{path} cannot be read: ")


def test_samples_are_read_up_to_the_last_whole_line(tmp_path):
    path = tmp_path / "samples.jsonl"
    samples = [RETRIEVED | {"question_id": i} for i in (1, "b")]
    path.write_bytes(lines(samples[0]) + b"\n" + lines(SAMPLE) + lines(samples[1])[:-1])
    assert [(n, s["question_id"]) for n, s in read_samples(path)] == [(1, 1), (3, 7)]
    path.write_bytes(lines(*samples, SAMPLE))
    assert [n for n, _ in read_samples(path)] == [1, 2, 3]


def without(sample, key):
    return {name: value for name, value in sample.items() if name != key}


@pytest.mark.parametrize("group", [ANSWERED, SCORED], ids=["answered", "scored"])
def test_what_belongs_together_is_there_together(tmp_path, group):
    path = tmp_path / "samples.jsonl"
    first = next(iter(group))
    for key in group:
        path.write_bytes(lines(without(SAMPLE, key)))
        other = first if key != first else list(group)[1]
        assert message(list, read_samples(path)) == (
            f"{path}, line 1: not a sample of a run ({other!r} without {key!r})"
        )
    path.write_bytes(lines({name: v for name, v in SAMPLE.items() if name not in group}))
    assert len(list(read_samples(path))) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cached": {}}, "not a sample of a run ('seconds' and 'cached' have different stages)"),
        ({"answers": []}, "not a sample of a run ('answer_ranks' without 'answers')"),
        (
            {"answer_ranks": None, "read": ranking(answer_ranks=None)},
            "not a sample of a run ('answer_ranks' without 'answers')",
        ),
        ({"id_ranks": [4]}, "(key 'id_ranks': [4] are not the ranks of different passages among 3"),
        ({"question_id": "5"}, "question 5 is already in line 1"),
    ],
)
def test_a_sample_that_contradicts_itself_or_another_is_named(tmp_path, change, said):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(lines(SAMPLE | {"question_id": 5}, SAMPLE | change))
    found = message(list, read_samples(path))
    assert found.startswith(f"{path}, line 2: ")
    assert said in found


def test_ranks_are_places_of_passages_in_every_ranking():
    def sample():
        stages = [{"stage": "retrieved", **ranking("abcd")}, {"stage": "r", **ranking()}]
        return {**ranking(), "stages": stages, "read": ranking()}

    check_ranks(sample(), "f")
    check_ranks(ranking() | {"stages": None, "read": None}, "f")
    places = [(), ("stages", 0), ("stages", 1), ("read",)]
    for place in places:
        changed = {
            "id_ranks": (None, "(stages with different kinds of ranks)"),
            "article_ranks": ([1], "(stages with different kinds of ranks)"),
            "hits": ([["a", 1.0]] * 2, "(a passage occurs twice in 'hits')"),
        }
        for key, (value, said) in changed.items():
            found = copy.deepcopy(sample())
            at(found, place)[key] = value
            assert message(check_ranks, found, "f") == f"f: not a sample of a run {said}"
        for key in ("answer_ranks.flmr", "answer_ranks.ravqa", "answer_ranks.word", "id_ranks"):
            count = len(at(sample(), place)["hits"])
            for bad in ([2, 1], [1, 1], [1, count + 1], [1, 2, 3, 4, 5, 6]):
                found = copy.deepcopy(sample())
                name, _, rule = key.partition(".")
                inner = at(found, place)
                if rule:
                    inner[name][rule] = bad
                else:
                    inner[name] = bad
                assert message(check_ranks, found, "f") == (
                    f"f: not a sample of a run (key {key!r}: {bad[:5]} are not the ranks of "
                    f"different passages among {count} hits)"
                )
    kinds = sample()
    for place in places:
        at(kinds, place)["article_ranks"] = [2]
    check_ranks(kinds, "f")
    kinds["read"]["article_ranks"] = [4]
    assert "(key 'article_ranks': [4] are" in message(check_ranks, kinds, "f")


def at(sample, place):
    for key in place:
        sample = sample[key]
    return sample
