"""Samples of a run, as its folder has them."""

from ravqa.evaluation import schema


def sample(question_id, **changes):
    """A sample without an answer."""
    return {
        "question_id": question_id,
        "question": "What is it?",
        "question_type": None,
        "image_id": None,
        "split": None,
        "answers": [],
        "tags": [],
        "caption": "",
        "ocr": [],
        "hits": [],
        "answer_ranks": None,
        "id_ranks": None,
        "article_ranks": None,
        "seconds": {"retrieve": 0.5},
        "cached": {"retrieve": {"share": 0.0}},
        **changes,
    }


def read_samples(path):
    """The samples of a file by question id."""
    return {found["question_id"]: found for _, found in schema.read_samples(path)}
