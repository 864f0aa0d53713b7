"""Controls of a run: retrievers of other passages, and questions with the images of others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from ravqa.core.errors import UserError
from ravqa.core.records import Question
from ravqa.corpora.corpus import Corpus
from ravqa.pipeline import Pipeline
from ravqa.retrievers.base import Retriever
from ravqa.retrievers.controls import NoRetriever, OracleRetriever, RandomRetriever


def control(name: str, pipeline: Pipeline, corpus: Corpus | None, seed: int) -> Retriever:
    """Return the retriever of a control, prepared for the corpus."""
    if name == "none":
        return NoRetriever()
    if name == "wrong-image":
        return pipeline.retriever  # the questions are changed instead
    retriever: Retriever
    if name == "random":
        retriever = RandomRetriever(RandomRetriever.Config(seed=seed))
    else:
        base = pipeline.retriever
        if isinstance(base, OracleRetriever):
            return base
        retriever = OracleRetriever(OracleRetriever.Config(), base)
    retriever.prepare(corpus)
    return retriever


def wrong_images(questions: Sequence[Question], seed: int) -> list[Question]:
    """Return each question with another one's image and description, for retrieval only.

    All questions of an image get the same other image; no image keeps its own.

    Raises:
        UserError: there are fewer than two images.
    """
    by_image = {q.image_id: q for q in questions}
    ids = list(by_image)
    if len(ids) < 2:
        raise UserError("--controls wrong-image needs questions about at least two images")
    random.Random(seed).shuffle(ids)
    other = dict(zip(ids, ids[1:] + ids[:1], strict=True))
    return [
        replace(
            q,
            image=by_image[other[q.image_id]].image,
            description=by_image[other[q.image_id]].description,
        )
        for q in questions
    ]
