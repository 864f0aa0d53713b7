"""Retrieval quality: ranks of relevant passages, and the section of results.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ravqa.core.records import READ, RETRIEVED, Passage, Question
from ravqa.datasets.base import Dataset
from ravqa.evaluation.schema import (
    ArticleSection,
    AtK,
    Bounds,
    IdSection,
    Marks,
    PairedTest,
    Predicted,
    Ranking,
    Reported,
    RetrievalSection,
    StageRanking,
    StageScores,
)
from ravqa.evaluation.sections import Id, Recall, Samples, by_type, images_of, interval_of, tested
from ravqa.metrics import prrecall, ranking
from ravqa.metrics.base import percent
from ravqa.metrics.evqa import single_answers


class Marker:
    """Marks rankings of one question; each passage is searched for answers once."""

    def __init__(self, question: Question):
        self.question = question
        self._answers = single_answers(question.answers, question.question_type)
        self._searched: set[str] = set()
        self._bearing: dict[str, set[str]] = {rule: set() for rule in prrecall.RULES}

    def marks(self, passages: Sequence[Passage]) -> Marks:
        """Return what retrieval is scored by, for a sample, from passages, best first.

        Returns:
            `answer_ranks`: per rule, the ranks (from 1) of passages that contain an answer; None
            without answers. `id_ranks`: those of the passages known to be relevant; None if none is
            known. `article_ranks`: the ranks of relevant articles, each article counted once, at
            its best passage; None if no relevant article is known.
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
            "answer_ranks": {
                "flmr": _ranks(ids, self._bearing["flmr"]),
                "ravqa": _ranks(ids, self._bearing["ravqa"]),
                "word": _ranks(ids, self._bearing["word"]),
                "nfkc": _ranks(ids, self._bearing["nfkc"]),
            }
            if question.answers
            else None,
            "id_ranks": _ranks(ids, question.pos_item_ids) if question.pos_item_ids else None,
            "article_ranks": [rank for rank, hit in enumerate(articles.values(), 1) if hit]
            if question.pos_articles
            else None,
        }

    def _search(self, passages: Sequence[Passage]) -> None:
        new = [p for p in passages if p.passage_id not in self._searched]
        if not new:
            return
        texts = [passage.content for passage in new]
        self._searched.update(passage.passage_id for passage in new)
        for rule in prrecall.RULES:
            for rank in prrecall.answer_ranks(texts, self._answers, rule):
                self._bearing[rule].add(new[rank - 1].passage_id)


def _ranks(ids: Sequence[str], wanted: Collection[str]) -> list[int]:
    return [rank for rank, passage_id in enumerate(ids, 1) if passage_id in wanted]


def retrieval_ks(dataset: Dataset, depth: int) -> list[int]:
    """Return the Ks to score: the usual ones and the benchmark's own, up to `depth` passages."""
    ks = {*ranking.DEFAULT_KS, *(metric.k for metric in dataset.retrieval_metrics)}
    return sorted(k for k in ks if k <= depth) or [depth]


def retrieval_section(
    dataset: Dataset,
    conditions: Mapping[str, Samples],
    ks: Sequence[int],
    *,
    seed: int,
    blind: Collection[str] = (),
) -> RetrievalSection:
    """Return retrieval scores of every condition that retrieves: percent, intervals over images.

    PRRecall over the questions with answer strings (the searched text is title and passage); also
    recall by passage ids and by articles, over the questions where they are known. "reported" is
    what the benchmark's own tables report. All of these score the ranking after all reranking,
    filters and gates included; "stages" has the recall of every earlier ranking, and of the
    passages in prompts. A question for which nothing was found has a recall of 0.

    Args:
        blind: conditions without retrieval, which have no recall.
    """
    present = [q for q in dataset.questions if all(q.question_id in s for s in conditions.values())]
    retrieved = {name: s for name, s in conditions.items() if present and name not in blind}
    questions = [q for q in present if q.answers]
    section: RetrievalSection = {
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
        "reported": [],
    }
    for name, samples in retrieved.items() if questions else ():
        ranks = {
            rule: {q.question_id: _answer_ranks(samples[q.question_id], rule) for q in questions}
            for rule in prrecall.RULES
            # Older runs do not have all of them.
            if all(rule in (samples[q.question_id]["answer_ranks"] or [rule]) for q in questions)
        }
        recall = {
            rule: {q: prrecall.recall_from_ranks(r, ks) for q, r in by_question.items()}
            for rule, by_question in ranks.items()
        }
        precision = [
            prrecall.precision_from_ranks(r, ks) for r in ranks[prrecall.DEFAULT_RULE].values()
        ]
        main = recall[prrecall.DEFAULT_RULE]
        groups = by_type(dataset, questions, main)
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


def rankings(sample: Predicted) -> Sequence[StageRanking]:
    """Return a sample's rankings in order: as retrieved, and after each stage of reranking."""
    return sample.get("stages") or [
        {
            "stage": RETRIEVED,
            "hits": sample["hits"],
            "answer_ranks": sample["answer_ranks"],
            "id_ranks": sample["id_ranks"],
            "article_ranks": sample["article_ranks"],
        }
    ]


def _answer_ranks(ranking: Marks, rule: prrecall.Rule = prrecall.DEFAULT_RULE) -> list[int]:
    ranks = ranking["answer_ranks"]
    return ranks[rule] if ranks else []


def _stages(
    present: Sequence[Question], samples: Samples, ks: Sequence[int], seed: int
) -> list[StageScores]:
    """Return recall after every stage: as retrieved, after each reranker, and of what was read.

    Returns:
        Per stage its name, the mean number of passages per question, how many questions had none,
        and for every kind of recall that the dataset has, percent at each K and over "all" passages
        that the stage kept. What was read is scored only at those K for which some question had
        passages. A reranker's "gain" is the PRRecall difference to what was retrieved.
    """
    found = [samples[q.question_id] for q in present]
    rows = [rankings(sample) for sample in found]
    most = max(rows, key=len)
    # A missing prediction has one empty ranking for all stages.
    stages: list[tuple[str, Sequence[Ranking]]] = [
        (stage["stage"], [row[min(i, len(row) - 1)] for row in rows])
        for i, stage in enumerate(most)
    ]
    if any(sample.get("read") for sample in found):
        nothing: Ranking = {
            "hits": [],
            "answer_ranks": None,
            "id_ranks": None,
            "article_ranks": None,
        }
        stages.append((READ, [sample.get("read") or nothing for sample in found]))
    images = images_of(present)
    retrieved: Mapping[Recall, _Recalls] = {}
    section: list[StageScores] = []
    for name, given in stages:
        lengths = [len(one["hits"]) for one in given]
        longest = max(*lengths, 1)
        own = [k for k in ks if name != READ or k <= longest]
        recalls = _recalls(present, given, [*own, longest])
        retrieved = retrieved or recalls
        stage: StageScores = {
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


_Recalls = Mapping[Id, Mapping[int, float]]
"""Each question's 1.0 or 0.0 at each K."""


def _recalls(
    present: Sequence[Question], given: Sequence[Ranking], ks: Sequence[int]
) -> dict[Recall, _Recalls]:
    """Return every kind of recall that applies to some of the questions."""
    pairs = list(zip(present, given, strict=True))
    kinds: dict[Recall, _Recalls] = {
        "PRRecall": {
            q.question_id: prrecall.recall_from_ranks(_answer_ranks(r), ks)
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
    values: _Recalls, before: _Recalls, images: Mapping[Id, Id | None], k: int, seed: int
) -> PairedTest:
    return tested(
        {q: 100 * value[k] for q, value in values.items()},
        {q: 100 * value[k] for q, value in before.items()},
        images,
        seed,
    )


def _reported(dataset: Dataset, section: RetrievalSection, ks: Sequence[int]) -> list[Reported]:
    places: dict[str, tuple[str, Any]] = {
        "pseudo_recall_at_k": ("PRRecall", section),
        "recall_at_k": ("Recall", section["by_ids"]),
        "article_recall_at_k": ("Recall", section["by_articles"]),
    }
    reported: list[Reported] = []
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
) -> IdSection | None:
    """Return recall, precision, MRR and nDCG by `pos_item_ids`; None if no question has them."""
    questions = [q for q in present if q.pos_item_ids]
    if not questions:
        return None
    section: IdSection = {"metric": "Recall", "questions": len(questions), "conditions": {}}
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
            "MRR": percent([ranking.reciprocal_rank(*row) for row in rows]),
        }
    return section


def _by_articles(
    present: Sequence[Question], retrieved: Mapping[str, Samples], ks: Sequence[int], seed: int
) -> ArticleSection | None:
    """Return recall of articles (K counts articles); None if no question has `pos_articles`."""
    questions = [q for q in present if q.pos_articles]
    if not questions:
        return None
    section: ArticleSection = {"metric": "Recall", "questions": len(questions), "conditions": {}}
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


def _means(values: Sequence[Mapping[int, float]], ks: Sequence[int]) -> AtK:
    return {str(k): percent([value[k] for value in values]) for k in ks}


def _intervals(
    values: _Recalls,
    questions: Sequence[Question],
    ks: Sequence[int],
    seed: int,
) -> dict[str, Bounds]:
    images = images_of(questions)
    return {
        str(k): interval_of({q: 100 * value[k] for q, value in values.items()}, images, seed)
        for k in ks
    }
