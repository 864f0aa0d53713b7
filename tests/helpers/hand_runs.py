"""Folders of finished runs written by hand, so that every number in them is known."""

import json

import yaml
from sample_files import sample

DRAFT = {
    "text": "a",
    "raw": "a",
    "log_prob": -1.0,
    "tokens": 1,
    "passage_ids": ["p1"],
    "prompt_hash": "x",
    "score": None,
    "prior": None,
    "posterior": None,
    "in_passages": False,
}


def ranking(ranks, count):
    """A ranking of `count` passages; `ranks` are those that hold an answer."""
    return {
        "hits": [[f"p{i}", 1.0 / i] for i in range(1, count + 1)],
        "answer_ranks": {"flmr": list(ranks), "ravqa": [], "word": [], "nfkc": []},
        "id_ranks": None,
        "article_ranks": None,
    }


def answered(question_id, score=1.0, *, ranks=(), count=5, read=None, right=None, **changes):
    """A scored sample; `read` are the ranks of passages read that hold an answer."""
    found = {
        "answers": ["a"],
        "image_id": question_id,
        **ranking(ranks, count),
        "read": None if read is None else ranking(read, 2),
        "answer": "a",
        "raw": "a",
        "decision": "top1",
        "log_prob": None,
        "cut": 0,
        "drafts": [DRAFT],
        "score": score,
        "raw_score": score,
        "exact_match": score == 1,
        "right": score == 1 if right is None else right,
    }
    return sample(question_id, **{**found, **changes})


ANSWERS = {
    "metric": "exact_match",
    "label": "Exact match",
    "right": "a score of 1",
    "rule": {},
    "questions": 1,
    "conditions": {},
    "comparisons": {},
}
RETRIEVAL = {
    "metric": "PRRecall",
    "rule": "flmr",
    "searched_text": "",
    "answers": "",
    "ranking": "",
    "questions": 1,
    "conditions": {},
    "stages": {},
    "by_ids": None,
    "by_articles": None,
    "reported": [],
}


def write(folder, samples, controls=None, *, answers=None, retrieval=None, described=None, **more):
    """A run's folder.

    Args:
        samples: those of the run; `controls` has those of its controls by name.
        answers, retrieval: changes of the results' sections; False for no section.
        described: seconds and cached share of describing an image.
        more: `retriever`, `top_k` (None to leave it out), `stand_ins`, `split`, `cost` (a section).
    """
    folder.mkdir(parents=True)
    retriever = more.get("retriever", "bm25")
    seconds, share = described or (0.0, 0.0)
    dataset = {"name": "jsonl", "label": "Own", "split": more.get("split", "test")}
    results = {
        "schema_version": 2,
        "dataset": {
            **dataset,
            "sample": False,
            "questions": len(samples),
            "images": 1,
            "limit": None,
            "skipped": [],
        },
        "answers": None if answers is False else {**ANSWERS, **(answers or {})},
        "retrieval": None if retrieval is False else {**RETRIEVAL, **(retrieval or {})},
        "provenance": {
            "pipeline": "p",
            "retriever": retriever,
            "chosen_on": None,
            "overrides": [],
            "stand_ins": more.get("stand_ins", {}),
            "weights": {},
            "answering": None,
            "corpus": None,
            "fingerprints": {},
            "seed": 0,
            "versions": {},
            "platform": "",
            "date": "",
        },
        "timing": {
            "seconds": 1.0,
            "prompts_generated": 0,
            "answers_scored": 0,
            "mixtures_decoded": 0,
            "describe": {"seconds": seconds, "cached": {"share": share}},
            "peak_memory_mb": 1,
            "stages": {},
        },
    }
    if "cost" in more:
        results["cost"] = more["cost"]
    config = {
        "schema_version": 2,
        "ravqa": "1",
        "dataset": {
            **dataset,
            "data": None,
            "options": [],
            "metric_options": [],
            "limit": None,
            "on_error": "fail",
            "fingerprint": "",
            "images": None,
        },
        "corpus": {"files": [], "passages": 0, "fingerprint": None},
        "run": {"retrieval_only": False, "predict_only": False, "controls": [], "seed": 0},
        "pipeline": {} if more.get("top_k", 5) is None else {"top_k": more.get("top_k", 5)},
        "fingerprints": {},
    }
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for name, rows in {"": samples, **(controls or {})}.items():
        path = folder / ("samples.jsonl" if not name else f"samples.{name}.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
