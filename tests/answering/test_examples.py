"""Few-shot examples: which questions they are, what they show, and that none of them is asked."""

import json
import shutil
from dataclasses import replace

import pytest

from ravqa.answering.config import AnsweringConfig, ExamplesConfig
from ravqa.answering.examples import ExamplePool, make_example
from ravqa.core.errors import UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage, Question
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict, validate
from ravqa.corpora.corpus import Corpus
from ravqa.datasets.bundled import DEFAULT, Edition
from ravqa.pipeline import Pipeline, check_settings
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader


def pool(**options):
    return ExamplePool(ExamplesConfig(**options))


def ids(questions):
    return [q.question_id for q in questions]


def test_examples_are_the_same_for_the_same_seed(okvqa_sample, okvqa_sample_train):
    chosen = pool(seed=1).choose(okvqa_sample.questions)
    assert ids(pool(seed=1).choose([])) == ids(chosen)
    assert ids(pool(seed=2).choose([])) != ids(chosen)
    assert len({q.image_id for q in chosen}) == len(chosen) == 4
    assert set(ids(chosen)) <= set(ids(okvqa_sample_train.questions))
    # More of them begin with the same ones.
    assert ids(pool(seed=1, count=6).choose([]))[:4] == ids(chosen)


def test_the_first_ones_can_be_taken(okvqa_sample_train):
    by_image = {q.image_id: q.question_id for q in reversed(okvqa_sample_train.questions)}
    expected = list(reversed(by_image.values()))[:3]
    assert ids(pool(choose="first", count=3).choose([])) == expected


def test_no_example_is_asked_by_id_image_or_bytes(okvqa_sample_train, tmp_path):
    tested = pool(choose="first", count=2)
    first, second = tested.choose([])
    path = tmp_path / "another name.jpg"
    shutil.copy(first.image, path)
    elsewhere = {"question_id": "x", "image_id": None}
    by_id = replace(first, image=None, image_id=None)
    assert first.question_id not in ids(pool(choose="first", count=2).choose([by_id]))
    for same in (
        replace(first, question_id="x", image=None),
        replace(first, **elsewhere, image=path),
        replace(first, **elsewhere, image=first.image.read_bytes()),
    ):
        assert ids(pool(choose="first", count=2).choose([same]))[0] == second.question_id
    other = replace(first, **elsewhere, image=second.image.read_bytes()[:-1])
    assert ids(pool(choose="first", count=2).choose([other])) == ids([first, second])
    # Asked later: replaced then, and not taken back.
    asked_later = tested.choose([first])
    assert asked_later[0] == second
    assert tested.choose([]) == asked_later


def test_questions_without_images_can_be_examples(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"question_id": i, "question": f"Q{i}?", "answers": [str(i)]} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    tested = pool(dataset="jsonl", data=path, split=None, choose="first", count=3)
    assert ids(tested.choose([Question(1, "Q1?")])) == [0, 2, 3]


def test_not_enough_examples_are_one_clear_line(okvqa_sample_train):
    with pytest.raises(UserError, match=r"count is 4, but .*train2014 has only 0 answered"):
        pool().choose(okvqa_sample_train.questions)
    with pytest.raises(UserError, match="count is 500"):
        pool(count=500).choose([])


def test_the_pool_is_known_by_its_questions_and_by_how_it_is_drawn_from(tmp_path):
    base = pool().fingerprint
    folder = tmp_path / "copy"
    shutil.copytree(Edition(DEFAULT).folder, folder)
    assert pool(data=folder).fingerprint == base
    changed = [{"seed": 1}, {"count": 5}, {"choose": "first"}, {"passages": 0}]
    assert len({base, *(pool(**options).fingerprint for options in changed)}) == 5


def test_an_example_shows_the_commonest_answer_and_passages_that_hold_it():
    question = Question(1, "What?", answers=("a tree", " tree ", "tree", "oak", "oak"))
    passages = [Passage("1", "A stone."), Passage("2", "An oak."), Passage("3", "The tree.")]
    example = make_example(question, passages, 2)
    assert example.answer == "tree"
    assert [p.passage_id for p in example.passages] == ["2", "3"]
    assert [p.passage_id for p in make_example(question, passages, 3).passages] == ["2", "3", "1"]
    assert make_example(question, passages, 0).passages == []
    listed = Question(2, "Which?", answers=("ash&&oak",), question_type="multi_answer")
    assert make_example(listed, [], 1).answer == "ash, oak"
    chosen = Question(3, "What?", answers=("oak",) * 9, choices=("ash", "oak"), correct_choice=0)
    assert make_example(chosen, [], 1).answer == "ash"


def test_prompt_and_setting_must_go_together():
    def load(answering):
        reader = {"name": "first-words"}
        check_settings(
            {"retriever": {"name": "none"}, "reader": reader, "answering": answering}, "x.yaml"
        )

    load({"prompt": "few-shot", "examples": {"count": 2}})
    with pytest.raises(UserError, match=r"few-shot.jinja shows examples: set answering.examples"):
        load({"prompt": "few-shot"})
    with pytest.raises(UserError, match=r"short-answer.jinja shows no examples"):
        load({"examples": {}})
    with pytest.raises(UserError, match=r"unknown key 'examples.cuont': did you mean count"):
        load({"prompt": "few-shot", "examples": {"cuont": 2}})


class Mirror(Reader):
    """Answers with the prompt itself."""

    deterministic = True
    fingerprint = weights = "mirror"
    context = None
    max_new_tokens = 0
    ends = frozenset()

    class Config(Strict):
        pass

    def __init__(self, config):
        pass

    def generate(self, prompts):
        return [Generation(p.text) for p in prompts]


@pytest.fixture
def pipeline(monkeypatch, fresh_cache):
    monkeypatch.setitem(READERS._entries, "mirror", Entry(f"{__name__}:Mirror", "for tests"))
    corpus = Corpus.read(SAMPLE / "passages.jsonl")

    def build(**examples):
        settings = {
            "retriever": {"name": "bm25"},
            "reader": {"name": "mirror"},
            "answering": {
                "prompt": "few-shot",
                "decision": "top1",
                "examples": {"choose": "first", "count": 2, **examples},
            },
        }
        built = Pipeline.from_config(settings)
        built.prepare(corpus)
        return built

    return build


def test_a_pipeline_shows_examples_with_passages_it_retrieved(pipeline, okvqa_sample):
    built = pipeline()
    question = okvqa_sample.questions[0]
    first, second = built.shown_examples([question])
    [hits] = built.retrieve([first.question])
    assert first.passages[0].passage_id in {h.passage_id for h in hits}
    answer = built.answer([question], built.retrieve([question]))[0].raw
    blocks = answer.split("\n\n")
    assert len(blocks) == 3
    for block, example in zip(blocks, (first, second), strict=False):
        assert block == (
            f"Passage: {example.passages[0].content}\nQuestion: {example.question.question}\n"
            f"Answer: {example.answer}"
        )
    assert blocks[2].endswith(f"Question: {question.question}\nAnswer:")
    # Without retrieval, and with passages=0, the examples have none either.
    assert "Passage" not in built.answer([question], [[]])[0].raw
    without = pipeline(passages=0)
    told = without.answer([question], without.retrieve([question]))[0].raw
    assert told.count("Passage:") == 1
    assert built.fingerprints["examples"] != without.fingerprints["examples"]


def test_an_asked_example_is_replaced_in_the_pipeline_too(pipeline, okvqa_sample_train):
    built = pipeline()
    first, second = built.shown_examples([])
    response = built.ask("How big is it?", first.question.image)
    assert first.question.question not in response.answer.raw
    assert second.question.question in response.answer.raw


def test_examples_are_validated_with_the_settings():
    config = validate(
        AnsweringConfig, {"prompt": "few-shot", "examples": {"data": "x", "seed": 3}}, "answering"
    )
    assert config.examples == ExamplesConfig(data="x", seed=3)
    with pytest.raises(UserError, match=r"examples.count"):
        validate(AnsweringConfig, {"examples": {"count": 0}}, "answering")
