"""From samples to scores: the two sections of results.json.

Scores are made from the samples alone, so that a run can be scored again without a model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ravqa.core.errors import DataError
from ravqa.core.records import READ, RETRIEVED, Passage, Question
from ravqa.datasets.base import Dataset
from ravqa.metrics import diagnostics, prrecall, ranking
from ravqa.metrics.base import AnswerMetric, AnswerRecord, checked_scores
from ravqa.metrics.base import percent as _percent
from ravqa.metrics.evqa import single_answers
from ravqa.metrics.judges.base import Judge
from ravqa.metrics.statistics import intervals

Samples = Mapping[int | str, Mapping[str, Any]]
Scores = Mapping[int | str, float]

DECIMALS = 4
"""Of percents in results: who shows fewer must not round twice (67.6471 is 67.6, not 67.7)."""


def score_answers(
    dataset: Dataset,
    questions: Sequence[Question],
    records: Sequence[AnswerRecord],
    *,
    judge: Judge | None = None,
) -> list[float]:
    """The dataset's official score of each answer, 0 to 1; a missing answer (None) is wrong.

    Args:
        judge: asked by rules that use one; None leaves them at exact match.

    Raises:
        DataError: the references of a question cannot be scored with.
    """
    metric = dataset.answer_metric
    try:
        scores = metric.scores(questions, records, judge)
    except ValueError as e:
        raise DataError(f"{dataset.label}: {e}") from None
    return checked_scores(metric, scores, len(questions))


def score_raw(
    dataset: Dataset,
    questions: Sequence[Question],
    records: Sequence[AnswerRecord],
    scores: Sequence[float],
    *,
    judge: Judge | None = None,
) -> list[float]:
    """The official score of each raw generation, as if no answer had been extracted from it.

    Args:
        scores: of the answers. What is the same text to the rule is not scored again.
    """
    metric = dataset.answer_metric
    new = [
        r.raw is not None and (r.answer is None or not metric.same(r.raw, r.answer))
        for r in records
    ]
    made = iter(
        score_answers(
            dataset,
            [q for q, is_new in zip(questions, new, strict=True) if is_new],
            [replace(r, answer=r.raw) for r, is_new in zip(records, new, strict=True) if is_new],
            judge=judge,
        )
    )
    return [next(made) if is_new else score for score, is_new in zip(scores, new, strict=True)]


def dataset_section(dataset: Dataset) -> dict[str, Any]:
    """What a file of results says of the dataset."""
    return {
        "name": dataset.name,
        "label": dataset.label,
        "sample": dataset.sample,
        "split": dataset.split,
        "questions": len(dataset.questions),
        "images": len({q.image_id for q in dataset.questions}),
        **dataset.info,
    }


def answer_section(
    dataset: Dataset,
    conditions: Mapping[str, Samples],
    *,
    seed: int,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Answer quality of the run and of each control, with comparisons to the run.

    Percent; intervals and tests resample images. Each condition's "groups" are by question type;
    "raw" are the scores of the generations from which the answers were extracted, "cut" counts the
    passages that were to be read and did not fit into the reader's context. Samples with the answer
    None are counted as wrong; "unanswered" lists those that the reader could not answer.
    """
    questions = [
        q for q in dataset.questions if all(q.question_id in s for s in conditions.values())
    ]
    images = {q.question_id: q.image_id for q in questions}
    metric = dataset.answer_metric
    section: dict[str, Any] = {
        "metric": metric.name,
        "label": metric.label,
        "right": metric.right,
        "rule": metric.settings(judge),
        "questions": len(questions),
        "conditions": {},
        "comparisons": {},
    }
    scores: dict[str, dict[int | str, float]] = {}
    exact: dict[str, dict[int | str, bool]] = {}
    for name, samples in conditions.items():
        records = [record_of(samples[q.question_id]) for q in questions]
        values = score_answers(dataset, questions, records, judge=judge)
        scores[name] = {q.question_id: 100 * v for q, v in zip(questions, values, strict=True)}
        exact[name] = {
            q.question_id: is_exact(metric, q, record)
            for q, record in zip(questions, records, strict=True)
        }
        section["conditions"][name] = {
            **metric.summary(questions, values),
            "interval_95": _interval(scores[name], images, seed),
            "raw": _raw(dataset, questions, records, values, seed, judge=judge),
            "cut": _cut([samples[q.question_id] for q in questions]),
            "unanswered": [
                {"question_id": q.question_id, "reason": samples[q.question_id]["error"]}
                for q in questions
                if samples[q.question_id].get("error")
            ],
            "exact_match": _exact_match(metric, questions, samples, exact[name]),
            "hits": _hit_tables(metric, questions, samples),
            "groups": _groups(dataset, questions, scores[name], seed),
        }
    main, *controls = conditions
    for name in controls:
        test = intervals.paired_test(scores[main], scores[name], images, seed=seed)
        section["comparisons"][f"{main} - {name}"] = _test(test)
    if "none" in controls:
        section["comparisons"][f"{main} - none"] |= {
            "hit_success_ratio": _percent(
                [diagnostics.hit_success_ratio(exact[main], exact["none"])]
            ),
            "free_success_ratio": _percent(
                [diagnostics.free_success_ratio(exact[main], exact["none"])]
            ),
        }
    return section


def record_of(sample: Mapping[str, Any]) -> AnswerRecord:
    """What a rule may read of a sample."""
    return AnswerRecord(sample["answer"], sample.get("raw"), sample)


def is_exact(metric: AnswerMetric, question: Question, record: AnswerRecord) -> bool:
    """Exact match (EM): whether an answer is a reference, after the rule's own clean-up."""
    return record.answer is not None and metric.matches(question, record.answer)


def _raw(
    dataset: Dataset,
    questions: Sequence[Question],
    records: Sequence[AnswerRecord],
    values: Sequence[float],
    seed: int,
    *,
    judge: Judge | None,
) -> dict[str, Any] | None:
    """Scores of the raw generations; None where the samples do not hold them."""
    if all(record.raw is None for record in records):
        return None
    values = score_raw(dataset, questions, records, values, judge=judge)
    scores = {q.question_id: 100 * v for q, v in zip(questions, values, strict=True)}
    images = {q.question_id: q.image_id for q in questions}
    return {
        **dataset.answer_metric.summary(questions, values),
        "interval_95": _interval(scores, images, seed),
    }


def _cut(samples: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    cuts = [sample.get("cut") or 0 for sample in samples]
    return {"passages": sum(cuts), "questions": len(cuts) - cuts.count(0)}


def _test(test: intervals.PairedTest) -> dict[str, Any]:
    return {
        "difference": round(test.difference.mean, DECIMALS),
        "interval_95": [
            round(test.difference.low, DECIMALS),
            round(test.difference.high, DECIMALS),
        ],
        "p_value": round(test.p_value, 5),
        "wins": test.wins,
        "losses": test.losses,
        "ties": test.ties,
    }


def _exact_match(
    metric: AnswerMetric,
    questions: Sequence[Question],
    samples: Samples,
    exact: Mapping[int | str, bool],
) -> dict[str, float]:
    """EM@n of the drafts where the rule has it and every draft a score, else EM of the answers."""
    found = []
    for q in questions:
        drafts = samples[q.question_id].get("drafts") or []
        scores = [draft["score"] for draft in drafts if draft["score"] is not None]
        if not drafts or len(scores) < len(drafts):
            break
        value = metric.exact_match_at_n(q, [draft["text"] for draft in drafts], scores)
        if value is None:
            break
        found.append(value)
    if len(found) < len(questions):
        return {"1": _percent([float(value) for value in exact.values()])}
    return {str(n): _percent([value[n] for value in found]) for n in found[0]}


def _hit_tables(
    metric: AnswerMetric, questions: Sequence[Question], samples: Samples
) -> dict[str, dict[str, float]] | None:
    """RA-VQA's hit table over drafts that read one passage each, and over the chosen ones."""
    every: list[tuple[bool, bool]] = []
    chosen: list[tuple[bool, bool]] = []
    for q in questions:
        sample = samples[q.question_id]
        drafts = sample.get("drafts") or []
        pairs = [
            (metric.matches(q, d["text"]), d["in_passages"])
            for d in drafts
            if len(d["passage_ids"]) == 1
        ]
        if not pairs or len(pairs) < len(drafts) or sample.get("decision") == "mixture":
            continue  # no answer is one passage's own
        every += pairs
        scores = [-math.inf if d["score"] is None else d["score"] for d in drafts]
        chosen.append(pairs[scores.index(max(scores))])
    if not every:
        return None
    tables = {"documents": diagnostics.hit_table(every), "selected": diagnostics.hit_table(chosen)}
    return {
        name: {cell: _percent([share]) for cell, share in table.items()}
        for name, table in tables.items()
    }


def _groups(
    dataset: Dataset, questions: Sequence[Question], scores: Scores, seed: int
) -> dict[str, Any]:
    groups = _by_type(dataset, questions, scores)
    images = {q.question_id: q.image_id for q in questions}
    return {
        name: {
            "mean": round(sum(values.values()) / len(values), DECIMALS),
            "questions": len(values),
            "interval_95": _interval(values, images, seed),
        }
        for name, values in groups.items()
    }


def _by_type(
    dataset: Dataset, questions: Sequence[Question], values: Mapping[int | str, Any]
) -> dict[str, dict[int | str, Any]]:
    """The values of each question type, types in order of their names."""
    groups: dict[str, dict[int | str, Any]] = {}
    for q in questions:
        name = type_name(dataset, q)
        if name is not None:
            groups.setdefault(name, {})[q.question_id] = values[q.question_id]
    return dict(sorted(groups.items()))


def type_name(dataset: Dataset, question: Question) -> str | None:
    """The name of a question's type, as the results group by it; None without a type."""
    kind = question.question_type
    return None if kind is None else dataset.question_types.get(kind, kind)


def _interval(scores: Scores, images: Mapping[int | str, Any], seed: int) -> list[float]:
    interval = intervals.bootstrap(list(scores.values()), [images[q] for q in scores], seed=seed)
    return [round(interval.low, DECIMALS), round(interval.high, DECIMALS)]


class Marker:
    """Marks rankings of one question; a passage is searched for answers once."""

    def __init__(self, question: Question):
        self.question = question
        self._answers = single_answers(question.answers, question.question_type)
        self._searched: set[str] = set()
        self._bearing: dict[str, set[str]] = {rule: set() for rule in prrecall.RULES}

    def marks(self, passages: Sequence[Passage]) -> dict[str, Any]:
        """What retrieval is scored by, for the question's sample, from passages, best first.

        Returns:
            `answer_ranks`: per rule, the ranks (from 1) of passages that hold an answer; None
            without answers. `id_ranks`: those of the passages that are known to be relevant; None
            where none is. `article_ranks`: the ranks of relevant articles, each article counted
            once, at its best passage; None where no relevant article is known.
        """
        question = self.question
        ids = [passage.passage_id for passage in passages]
        if question.answers:
            self._search(passages)
        articles: dict[str, bool] = {}
        for passage in passages:
            names = passage.article_names or (passage.passage_id,)
            relevant = not set(names).isdisjoint(question.pos_articles)
            articles[names[0]] = articles.get(names[0], False) or relevant
        return {
            "answer_ranks": {rule: _ranks(ids, found) for rule, found in self._bearing.items()}
            if question.answers
            else None,
            "id_ranks": _ranks(ids, question.pos_item_ids) if question.pos_item_ids else None,
            "article_ranks": [rank for rank, hit in enumerate(articles.values(), 1) if hit]
            if question.pos_articles
            else None,
        }

    def _search(self, passages: Sequence[Passage]) -> None:
        new = [p for p in passages if p.passage_id not in self._searched]
        texts = [passage.content for passage in new]
        self._searched.update(passage.passage_id for passage in new)
        for rule in prrecall.RULES:
            for rank in prrecall.answer_ranks(texts, self._answers, rule):
                self._bearing[rule].add(new[rank - 1].passage_id)


def _ranks(ids: Sequence[str], wanted: Collection[str]) -> list[int]:
    return [rank for rank, passage_id in enumerate(ids, 1) if passage_id in wanted]


def retrieval_ks(dataset: Dataset, depth: int) -> list[int]:
    """The Ks to score: the usual ones and the benchmark's own, as far as `depth` passages allow."""
    ks = {*ranking.DEFAULT_KS, *(metric.k for metric in dataset.retrieval_metrics)}
    return sorted(k for k in ks if k <= depth) or [depth]


def retrieval_section(
    dataset: Dataset, conditions: Mapping[str, Samples], ks: Sequence[int], *, seed: int
) -> dict[str, Any]:
    """Retrieval of every condition that retrieved, in percent, with intervals over images.

    PRRecall over the questions with answer strings (the searched text is title and passage); beside
    it, over the questions where they are known, recall by passage ids and by articles. "reported"
    is what the benchmark's own tables give. All of these score the ranking after all reranking,
    filters and gates included; "stages" has the recall of every ranking on the way to it, and of
    the passages that stood in prompts.
    """
    present = [q for q in dataset.questions if all(q.question_id in s for s in conditions.values())]
    retrieved = {
        name: samples
        for name, samples in conditions.items()
        if any(rankings(samples[q.question_id])[0]["hits"] for q in present)
    }
    questions = [q for q in present if q.answers]
    section: dict[str, Any] = {
        "metric": "PRRecall",
        "rule": prrecall.DEFAULT_RULE,
        "searched_text": "title, section and text of a passage",
        "answers": f"annotators' {dataset.info.get('answer_field', 'answer')} strings, "
        "stripped and lower-cased",
        "ranking": "after all stages of reranking",
        "questions": len(questions),
        "conditions": {},
        "stages": {
            name: _stages(present, samples, ks, seed) for name, samples in retrieved.items()
        },
        "by_ids": _by_ids(present, retrieved, ks, seed),
        "by_articles": _by_articles(present, retrieved, ks, seed),
    }
    for name, samples in retrieved.items() if questions else ():
        ranks = {
            rule: {
                q.question_id: (samples[q.question_id]["answer_ranks"] or {}).get(rule, [])
                for q in questions
            }
            for rule in prrecall.RULES
        }
        recall = {
            rule: {q: prrecall.recall_from_ranks(r, ks) for q, r in by_question.items()}
            for rule, by_question in ranks.items()
        }
        precision = [
            prrecall.precision_from_ranks(r, ks) for r in ranks[prrecall.DEFAULT_RULE].values()
        ]
        main = recall[prrecall.DEFAULT_RULE]
        groups = _by_type(dataset, questions, main)
        section["conditions"][name] = {
            "PRRecall": _means(list(main.values()), ks),
            "interval_95": _intervals(main, questions, ks, seed),
            "PRPrecision": _means(precision, ks),
            "PRRecall_by_rule": {
                rule: _means(list(values.values()), ks) for rule, values in recall.items()
            },
            "groups": {
                group: _means(list(values.values()), ks) for group, values in groups.items()
            },
        }
    section["reported"] = _reported(dataset, section, ks)
    return section


def rankings(sample: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """A sample's rankings in order: as retrieved, and after each stage of reranking."""
    return sample.get("stages") or [{**sample, "stage": RETRIEVED}]


def _stages(
    present: Sequence[Question], samples: Samples, ks: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """Recall after every stage: as retrieved, after each reranker, and of what was read.

    Returns:
        Per stage its name, the mean number of passages a question, how many questions had none, and
        for every kind of recall that the dataset has, percent at each K and of "all" passages that
        the stage left. What was read is scored at those K alone that some question had passages
        for. A reranker's "gain" is the difference to what was retrieved, of PRRecall.
    """
    found = [samples[q.question_id] for q in present]
    rows = [rankings(sample) for sample in found]
    most: Sequence[Mapping[str, Any]] = max(rows, key=len)
    # A missing prediction has one empty ranking for all stages.
    stages = [
        (stage["stage"], [row[min(i, len(row) - 1)] for row in rows])
        for i, stage in enumerate(most)
    ]
    if any(sample.get("read") for sample in found):
        nothing: dict[str, Any] = {"hits": [], "answer_ranks": None, "article_ranks": None}
        stages.append((READ, [sample.get("read") or nothing for sample in found]))
    images = {q.question_id: q.image_id for q in present}
    retrieved: Mapping[str, _Recall] = {}
    section: list[dict[str, Any]] = []
    for name, given in stages:
        lengths = [len(one["hits"]) for one in given]
        longest = max(*lengths, 1)
        own = [k for k in ks if name != READ or k <= longest]
        recalls = _recalls(present, given, [*own, longest])
        retrieved = retrieved or recalls
        stage: dict[str, Any] = {
            "stage": name,
            "passages": round(sum(lengths) / len(lengths), 2),
            "without_passages": lengths.count(0),
        }
        for metric, values in recalls.items():
            every = _means(list(values.values()), [longest])[str(longest)]
            stage[metric] = _means(list(values.values()), own) | {"all": every}
        if name not in (RETRIEVED, READ):
            stage["gain"] = {
                metric: {str(k): _gain(values, retrieved[metric], images, k, seed) for k in own}
                for metric, values in recalls.items()
            }
        section.append(stage)
    return section


_Recall = Mapping[int | str, Mapping[int, float]]
"""Of each question, 1.0 or 0.0 at each K."""


def _recalls(
    present: Sequence[Question], given: Sequence[Mapping[str, Any]], ks: Sequence[int]
) -> dict[str, _Recall]:
    """Every kind of recall that some of the questions can be scored by."""
    pairs = list(zip(present, given, strict=True))
    kinds: dict[str, _Recall] = {
        "PRRecall": {
            q.question_id: prrecall.recall_from_ranks(
                (r["answer_ranks"] or {}).get(prrecall.DEFAULT_RULE, []), ks
            )
            for q, r in pairs
            if q.answers
        },
        "Recall": {
            q.question_id: ranking.recall_at_k(
                [passage for passage, _ in r["hits"]], frozenset(q.pos_item_ids), ks
            )
            for q, r in pairs
            if q.pos_item_ids
        },
        "ArticleRecall": {
            q.question_id: prrecall.recall_from_ranks(r["article_ranks"] or [], ks)
            for q, r in pairs
            if q.pos_articles
        },
    }
    return {kind: values for kind, values in kinds.items() if values}


def _gain(
    values: _Recall, before: _Recall, images: Mapping[int | str, Any], k: int, seed: int
) -> dict[str, Any]:
    test = intervals.paired_test(
        {q: 100 * value[k] for q, value in values.items()},
        {q: 100 * value[k] for q, value in before.items()},
        images,
        seed=seed,
    )
    return _test(test)


def _reported(
    dataset: Dataset, section: Mapping[str, Any], ks: Sequence[int]
) -> list[dict[str, Any]]:
    places: dict[str, tuple[str, Mapping[str, Any] | None]] = {
        "pseudo_recall_at_k": ("PRRecall", section),
        "recall_at_k": ("Recall", section["by_ids"]),
        "article_recall_at_k": ("Recall", section["by_articles"]),
    }
    reported = []
    for metric in dataset.retrieval_metrics:
        key, found = places[metric.name]
        if metric.k in ks and found:
            conditions, k = found["conditions"].items(), str(metric.k)
            reported.append(
                {
                    "metric": metric.name,
                    "k": metric.k,
                    "questions": found["questions"],
                    "conditions": {name: c[key][k] for name, c in conditions},
                    "intervals_95": {name: c["interval_95"][k] for name, c in conditions},
                }
            )
    return reported


def _by_ids(
    present: Sequence[Question], retrieved: Mapping[str, Samples], ks: Sequence[int], seed: int
) -> dict[str, Any] | None:
    """Recall, precision, MRR and nDCG by `pos_item_ids`; None where no question has them."""
    questions = [q for q in present if q.pos_item_ids]
    if not questions:
        return None
    section: dict[str, Any] = {"metric": "Recall", "questions": len(questions), "conditions": {}}
    for name, samples in retrieved.items():
        rows = [
            ([passage for passage, _ in samples[q.question_id]["hits"]], frozenset(q.pos_item_ids))
            for q in questions
        ]
        recall = {
            q.question_id: ranking.recall_at_k(*row, ks)
            for q, row in zip(questions, rows, strict=True)
        }
        section["conditions"][name] = {
            "Recall": _means(list(recall.values()), ks),
            "interval_95": _intervals(recall, questions, ks, seed),
            "Precision": _means([ranking.precision_at_k(*row, ks) for row in rows], ks),
            "nDCG": _means([ranking.ndcg_at_k(*row, ks) for row in rows], ks),
            "MRR": _percent([ranking.reciprocal_rank(*row) for row in rows]),
        }
    return section


def _by_articles(
    present: Sequence[Question], retrieved: Mapping[str, Samples], ks: Sequence[int], seed: int
) -> dict[str, Any] | None:
    """Recall of articles, K counting articles; None where no question has `pos_articles`."""
    questions = [q for q in present if q.pos_articles]
    if not questions:
        return None
    section: dict[str, Any] = {"metric": "Recall", "questions": len(questions), "conditions": {}}
    for name, samples in retrieved.items():
        recall = {
            q.question_id: prrecall.recall_from_ranks(
                samples[q.question_id]["article_ranks"] or [], ks
            )
            for q in questions
        }
        section["conditions"][name] = {
            "Recall": _means(list(recall.values()), ks),
            "interval_95": _intervals(recall, questions, ks, seed),
        }
    return section


def _means(values: Sequence[Mapping[int, float]], ks: Sequence[int]) -> dict[str, float]:
    return {str(k): _percent([value[k] for value in values]) for k in ks}


def _intervals(
    values: Mapping[int | str, Mapping[int, float]],
    questions: Sequence[Question],
    ks: Sequence[int],
    seed: int,
) -> dict[str, list[float]]:
    images = {q.question_id: q.image_id for q in questions}
    return {
        str(k): _interval({q: 100 * value[k] for q, value in values.items()}, images, seed)
        for k in ks
    }
