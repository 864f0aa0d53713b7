"""What a retriever's training counts, without a model: losses of several processes, and recall."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ravqa.core.errors import UserError
from ravqa.core.model_files import model_fingerprint
from ravqa.core.records import Question
from ravqa.training.retriever import RetrieverTask

NAN = float("nan")


def log_softmax(row):
    return row - np.log(np.exp(row).sum())


@pytest.mark.parametrize("rank", [0, 1])
def test_distillation_is_the_mean_over_the_questions_of_all_processes_with_scores(rank):
    """Of four questions, three have two scores of a reranker or more; each process has two."""
    teachers = np.array([[3.0, 1.0, NAN], [1.0, 0.0, 2.0], [NAN, 5.0, NAN], [0.5, 0.5, 2.5]])
    scores = torch.tensor([[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    made = object.__new__(RetrieverTask)
    made.rank, made.world = rank, 2
    loss = {"in_batch": False, "distillation": 0.25, "temperature": 2.0, "teacher_temperature": 0.5}
    made.config = SimpleNamespace(loss=SimpleNamespace(**loss))
    made.model = SimpleNamespace(score=lambda q, d, mask: scores.reshape(-1))
    everyone = [
        SimpleNamespace(
            passages=("a", "b", "c"),
            example=SimpleNamespace(
                scores={p: t for p, t in zip("abc", row, strict=True) if not np.isnan(t)}
            ),
        )
        for row in teachers
    ]
    found = made._losses(everyone, torch.zeros(2, 1, 4), torch.zeros(6, 1, 4), None)
    contrastive = np.mean([-log_softmax(row / 2)[0] for row in scores.numpy()])
    summed = 0.0
    for row, own in zip(teachers[2 * rank : 2 * rank + 2], scores.numpy(), strict=True):
        known = ~np.isnan(row)
        if known.sum() > 1:
            wanted, given = log_softmax(row[known] / 0.5), log_softmax(own[known] / 2)
            summed += (np.exp(wanted) * (wanted - given)).sum()
    distilled = summed * 2 / 3  # the mean of both processes is the sum over three questions, by 3
    assert float(found["contrastive"]) == pytest.approx(contrastive, rel=1e-5)
    assert float(found["distilled"]) == pytest.approx(distilled, rel=1e-5)
    assert float(found["loss"]) == pytest.approx(0.75 * contrastive + 0.25 * distilled, rel=1e-5)
    assert found.keys() == {"loss", "contrastive", "distilled"}


def validated(passages, answers=("x",), positives=True):
    """A task with three questions on eight passages, and what its searcher was asked for."""
    made, asked = object.__new__(RetrieverTask), []
    validation = SimpleNamespace(passages=passages, metric=None)
    made.config = SimpleNamespace(validation=validation, loop=SimpleNamespace(seed=3))
    examples = [
        SimpleNamespace(
            question=Question(
                i,
                "?",
                answers=answers,
                pos_item_ids=(f"p{i}",) if positives else (),
                instruction="own",
            ),
            positives=(f"p{i}",),
        )
        for i in (1, 4, 6)
    ]
    made.validation = SimpleNamespace(
        ids=[f"p{i}" for i in range(8)],
        examples=examples,
        corpus="corpus",
        pseudo=0,
        instruction="look",
        relevance=SimpleNamespace(holds=lambda question, i: i == "p0"),
    )

    def search(questions, corpus, ids, k, progress, what):
        asked.append(([q.question_id for q in questions], corpus, ids, k, what))
        order = [["p1", "p0"], ["p2", "p4", "p0"], ["p2"] * 4 + ["p7", "p6"]]
        return [[(name, 1.0) for name in row] for row in order]

    made._searcher = lambda: SimpleNamespace(search=search)
    return made, asked


def test_validation_is_recall_by_passages_that_are_known_and_that_hold_an_answer():
    made, _ = validated(None)
    third = 100 / 3
    assert made.evaluate(None) == {
        "recall@1": pytest.approx(third),
        "recall@5": pytest.approx(2 * third),
        "recall@10": pytest.approx(100),
        "pseudo_recall@1": 0,
        "pseudo_recall@5": pytest.approx(2 * third),
        "pseudo_recall@10": pytest.approx(2 * third),
    }
    assert validated(None, answers=())[0].evaluate(None).keys() == {
        "recall@1",
        "recall@5",
        "recall@10",
    }
    assert "recall@1" not in validated(None, positives=False)[0].evaluate(None)
    made.validation = None
    assert made.evaluate(None) == {}


@pytest.mark.parametrize("passages", [None, 2, 3, 5, 8, 20])
def test_validation_searches_the_relevant_passages_and_some_others(passages):
    made, asked = validated(passages)
    made.evaluate(None)
    others = ["p0", "p2", "p3", "p5", "p7"]
    if passages in (2, 3, 5):
        rows = np.random.default_rng(3).choice(5, size=max(0, passages - 3), replace=False)
        others = [others[i] for i in rows]
    expected = sorted({"p1", "p4", "p6", *others})
    assert asked == [([1, 4, 6], "corpus", expected, 10, "validation")]


def test_the_metric_of_the_best_checkpoint_is_one_that_is_measured():
    made, _ = validated(None)
    assert made._metric() == "recall@5"
    made.config.validation.metric = "pseudo_recall@10"
    assert made._metric() == "pseudo_recall@10"
    made.config.validation.metric = "recall@2"
    with pytest.raises(UserError) as error:
        made._metric()
    assert str(error.value) == (
        "validation.metric: 'recall@2' is none of recall@1, recall@5, recall@10, "
        "pseudo_recall@1, pseudo_recall@5, pseudo_recall@10"
    )
    made.config.validation.metric, made.validation.pseudo = None, 3  # of all questions
    assert made._metric() == "pseudo_recall@5"
    only, _ = validated(None, answers=())
    assert only._kinds(only.validation) == ["recall"]
    made.validation = None
    assert made._metric() == "loss"


def test_weights_are_identified_by_their_files_and_by_their_commit_on_the_hub(
    tmp_path, monkeypatch
):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    model, processor = torch.nn.Linear(2, 3), object()
    asked = []

    def given(part):
        return SimpleNamespace(
            from_pretrained=lambda *place, **options: asked.append((*place, options)) or part
        )

    module = "ravqa.training.retriever"
    monkeypatch.setattr(f"{module}.FLMRModelForRetrieval", given(model))
    monkeypatch.setattr(f"{module}.FLMRProcessor", given(processor))

    def loaded(**options):
        made = object.__new__(RetrieverTask)
        settings = {"doc_maxlen": None, "train_only": [], "freeze": [], "keep_text_mib": 0}
        settings |= {"model": str(tmp_path), "loop": SimpleNamespace(device="cpu")}
        made.config = SimpleNamespace(**settings | options)
        made._load()
        assert made.model is model
        assert made.processor is processor
        return made._weights

    local = loaded()
    assert local == [model_fingerprint(str(tmp_path)), None]
    monkeypatch.setattr(f"{module}.commit_of", {str(tmp_path): "one"}.__getitem__)
    assert loaded(doc_maxlen=9) == [local[0], "one"]
    path = str(tmp_path)
    weights = (path, {"dtype": torch.float32})
    assert asked == [weights, (path, {}), weights, (path, {"doc_maxlen": 9})]


def test_what_identifies_a_training_and_what_is_told_of_it():
    made = object.__new__(RetrieverTask)
    settings = {"model": "m", "loss": {"negatives": 1}}

    def model_dump(mode, exclude):
        assert (mode, exclude) == ("json", {"loop", "keep_text_mib"})
        return settings

    made.config = SimpleNamespace(model="m", model_dump=model_dump)
    made._weights = ["weights", "commit"]
    made.sources = [
        SimpleNamespace(fingerprint=f"f{i}", facts={"source": i}, pseudo=i) for i in range(3)
    ]
    made.validation = None
    prints = {"model": ["weights", "commit"], "train": ["f0", "f1", "f2"], "validation": None}
    assert made.identity == {**settings, "fingerprints": prints}
    told = made._facts()
    [note] = told["notes"]
    assert note.startswith("3 training questions have no passage that is known to be relevant: ")
    assert note.endswith(" (pseudo-positives)")
    assert told == {
        "model": "m",
        "train": [{"source": 0}, {"source": 1}, {"source": 2}],
        "validation": None,
        "notes": [note],
    }
    made.validation, made.sources = made.sources[2], made.sources[:1]
    assert made.identity["fingerprints"]["validation"] == "f2"
    told = made._facts()
    assert (told["validation"], told["notes"]) == ({"source": 2}, [])
