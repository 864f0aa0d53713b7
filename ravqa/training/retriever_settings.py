"""Settings of `ravqa train retriever`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ravqa.core.settings import ModelName, Strict, Text
from ravqa.training.settings import LoopConfig
from ravqa.training.sources import SourceConfig, TrainingSource


class LossConfig(Strict):
    """Settings of the loss (`ravqa.training.losses`).

    Attributes:
        negatives: passages given with each question that are not relevant: hard ones as far as
            there are any, then random ones of the corpus.
        in_batch: whether the passages of the batch's other questions are negatives too.
        temperature: divides the scores.
        distillation: weight of the distilled loss; the contrastive one has the rest, up to 1.
        teacher_temperature: divides the reranker's scores.
        chunk_size: questions that are encoded together, with their passages, for gradients; null
            for the whole batch. Less memory at the cost of encoding twice; losses are the same.
    """

    negatives: int = Field(default=1, ge=0)
    in_batch: bool = True
    temperature: float = Field(default=1.0, gt=0)
    distillation: float = Field(default=0.0, ge=0, le=1)
    teacher_temperature: float = Field(default=1.0, gt=0)
    chunk_size: int | None = Field(default=None, ge=1)


class MiningConfig(Strict):
    """Settings of hard negatives that the current model mines.

    Attributes:
        every: steps between minings; each is for the questions of the steps until the next.
        start: the first step (counted from 0) with mining.
        depth: passages that are found for each question; those that are not relevant are kept.
        passages: number of passages that are searched, drawn anew at each mining; null for all.
    """

    every: int = Field(ge=1)
    start: int = Field(default=0, ge=0)
    depth: int = Field(default=20, ge=1)
    passages: int | None = Field(default=None, ge=1)


class ValidationConfig(SourceConfig):
    """Where the validation's questions come from, and what is searched for them.

    Attributes:
        passages: number of passages that are searched: the relevant ones, and others at random;
            null for all.
        metric: the figure that decides; null for recall@5 where relevant passages are known, else
            pseudo_recall@5.
    """

    passages: int | None = Field(default=None, ge=1)
    metric: Text | None = None


class RetrieverTraining(Strict):
    """Settings of `ravqa train retriever`.

    Attributes:
        model: folder or hub name of the checkpoint to start with.
        train: sources of the examples.
        validation: questions for validation; null for none.
        loop: length, batches, learning rate, checkpoints.
        loss: negatives and losses.
        mining: null for none.
        freeze: what does not train: parts (text_encoders, vision_encoder, vision_projection,
            mapping_network), or names or patterns of parameters.
        train_only: if set, everything else is frozen.
        image_only_queries: leave the text's vectors out of queries, so that the mapping of images
            must do without them.
        doc_maxlen: tokens after which passages are cut; null for the checkpoint's own limit.
        cache_images: keep a frozen vision encoder's features of images in the cache folder, in this
            type; the encoder `flmr` shares them.
        keep_text_mib: memory for the states of frozen text encoders, so that each text is encoded
            once, by itself; null for 2048 on a CPU and 0 elsewhere, where batches are quicker.
    """

    model: ModelName
    train: tuple[TrainingSource, ...] = Field(min_length=1)
    validation: ValidationConfig | None = None
    loop: LoopConfig
    loss: LossConfig = LossConfig()
    mining: MiningConfig | None = None
    freeze: tuple[Text, ...] = ("vision_encoder",)
    train_only: tuple[Text, ...] = ()
    image_only_queries: bool = False
    doc_maxlen: int | None = Field(default=None, ge=4)
    cache_images: Literal["none", "float32", "float16"] = "none"
    keep_text_mib: int | None = Field(default=None, ge=0)
