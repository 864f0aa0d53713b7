"""Reranking by a cross-encoder of sentence-transformers: question and passage read together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ravqa.answering.prompt import PromptTemplate
from ravqa.core.cache import Memo
from ravqa.core.checkpoints import load_sentence_transformer, loading
from ravqa.core.control_tokens import control_tokens
from ravqa.core.devices import own_device
from ravqa.core.errors import UserError, import_extra
from ravqa.core.failures import by_halves, not_a_number
from ravqa.core.model_files import commit_of, model_fingerprint, resolve
from ravqa.core.outcomes import Failure
from ravqa.core.records import Hit, Question
from ravqa.core.settings import ModelName, RunsCode, TemplateName, Text, fingerprint
from ravqa.images.decode import image_prints, open_for_library
from ravqa.rerankers.base import Candidates, Reranker, RerankerConfig, rescored_each

_WHY = "the reranker cross-encoder"
_EXTRA = "sentence-transformers"
_CHUNK = 256  # pairs scored before their scores are stored


class CrossEncoderReranker(Reranker):
    """Scores query text and passage with one model that reads both.

    A template renders the query text: by default the question, followed by caption and tags of the
    image, if any. A passage is its title, section and text. A model that takes text and image
    together (multimodal rerankers) is given the question's image too.

    Attributes:
        truncated: how many pairs were longer than the model's limit and cut; only for models that
            read text with a plain tokenizer.
        neutralised: how many control tokens in questions and passages became plain text.
    """

    class Config(RerankerConfig):
        """Options.

        Attributes:
            model: folder, hub name, or "package:MODULE/path".
            query: a template in `prompts/`, or a file, for the query text.
            depth: number of hits that are scored.
            activation: activation of the model's output: the model's own, none ("identity"), or the
                logistic function ("sigmoid"). The order is the same, but filters and decision rules
                use the scores.
            max_length: most tokens of query and passage together; None for the model's own limit.
            batch_size: pairs per batch.
            dtype: type of weights and computation.
            device: "auto" for an accelerator, if any.
            trust_remote_code: run code that the model's files name.
            cache: keep scores on disk.
        """

        model: ModelName
        query: TemplateName = "rerank-query"
        depth: int = Field(default=20, ge=1)
        activation: Literal["model", "identity", "sigmoid"] = "model"
        max_length: int | None = Field(default=None, ge=8)
        batch_size: int = Field(default=32, ge=1)
        dtype: Literal["float32", "bfloat16", "float16"] = "float32"
        device: Text = "auto"
        trust_remote_code: RunsCode = False
        cache: bool = True

        @property
        def scored_hits(self) -> int:
            """Return the depth."""
            return self.depth

        def packages(self) -> Sequence[tuple[str, str]]:
            """Return the library."""
            return [("sentence_transformers", _EXTRA)]

        @model_validator(mode="after")
        def _check_query(self) -> Self:
            PromptTemplate.load(self.query)
            return self

    def __init__(self, config: Config):
        """Load the model.

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            UserError: the model cannot be loaded, or is not a cross-encoder with one score.
        """
        self.config = config
        self.weights = config.model
        self._template = PromptTemplate.load(config.query)
        path = resolve(config.model, extra="sample", why=_WHY)
        library = import_extra("sentence_transformers", _EXTRA, why=_WHY)
        self._model: Any = self._load(library, path)
        self._control_tokens = control_tokens(getattr(self._model, "tokenizer", None), None)
        self.supports_images = bool(self._model.supports(("image", "text")))
        self.truncated = self.neutralised = 0
        self._kept = Memo[float | Failure](
            "reranking" if config.cache else None, chunk=_CHUNK, back=float
        )
        self.stores = self._kept.stores
        self._scores = fingerprint(
            "cross-encoder/1",
            config.model_dump(include={"activation", "max_length", "dtype"}),
            model_fingerprint(path),
            commit_of(path),
        )
        self._overflow = not_a_number(_WHY, "a score", config.dtype)
        self.fingerprint = fingerprint(self._scores, self._template.source, config.depth)

    def counts(self) -> dict[str, int]:
        """Return how many pairs the model scored, and what was changed in them."""
        return {
            "scored": self._kept.made,
            "truncated": self.truncated,
            "neutralised": self.neutralised,
        }

    def _load(self, library: Any, path: str) -> Any:
        import torch

        config = self.config
        functions = {"model": None, "identity": torch.nn.Identity(), "sigmoid": torch.nn.Sigmoid()}
        device = own_device(config.device, _WHY)
        self._check_activation(path)
        with loading(_WHY, config.model, path, trusted=config.trust_remote_code):
            model, problem = load_sentence_transformer(
                library.CrossEncoder,
                path,
                trust_remote_code=config.trust_remote_code,
                device=device,
                max_length=config.max_length,
                activation_fn=functions[config.activation],
                model_kwargs={"dtype": getattr(torch, config.dtype)},
            )
            self._check_model(model)
            if problem:
                raise problem
        return model

    def _check_activation(self, path: str) -> None:
        """Reject a model whose activation the library would ignore."""
        from transformers import PretrainedConfig

        if self.config.activation != "model" or self.config.trust_remote_code:
            return
        try:
            values, _ = PretrainedConfig.get_config_dict(path)
        except OSError:
            return  # loading it says so
        own = values.get("sentence_transformers") or {}
        name = own.get("activation_fn") or values.get("sbert_ce_default_activation_function")
        if name is not None and not str(name).startswith("torch."):
            raise UserError(
                f"{_WHY}: {self.config.model} names code for the activation of its scores "
                f"({name}): if you trust it, set trust_remote_code: true; otherwise set "
                "activation to identity or sigmoid"
            )

    def _check_model(self, loaded: Any) -> None:
        model = loaded.transformers_model
        made = type(model).__name__
        saved = getattr(getattr(model, "config", None), "architectures", None)
        if made.endswith("ForSequenceClassification") and saved and made not in saved:
            # The library would initialise the scoring head at random.
            raise UserError(
                f"{_WHY}: {self.config.model} is not a cross-encoder but a {saved[0]}, without "
                "weights for a score"
            )
        if loaded.num_labels != 1:
            raise UserError(
                f"{_WHY}: {self.config.model} gives {loaded.num_labels} scores for a pair: "
                "one is expected"
            )

    def rerank(
        self, questions: Sequence[Question], candidates: Sequence[Candidates]
    ) -> list[list[Hit] | Failure]:
        """Return the hits by decreasing score; those beyond `depth` come last.

        A question fails if the model cannot take it or its image.

        Raises:
            DataError: an image cannot be decoded.
        """
        plain = self._control_tokens.neutral
        pairs: list[tuple[str, str]] = []
        owners: list[Question] = []
        for question, found in zip(questions, candidates, strict=True):
            query, of_query = plain(self._template.render(question, []))
            for _, passage in found[: self.config.depth]:
                text, of_passage = plain(passage.content)
                self.neutralised += of_query + of_passage
                pairs.append((query, text))
                owners.append(question)
        images = image_prints([q.image if self.supports_images else None for q in owners])
        keys = [
            fingerprint(self._scores, *pair, image)
            for pair, image in zip(pairs, images, strict=True)
        ]
        scores = self._kept.get(
            keys,
            lambda rows: enumerate(
                by_halves(
                    rows,
                    lambda part: self._score([pairs[i] for i in part], [owners[i] for i in part]),
                    _WHY,
                )
            ),
        )
        return rescored_each(candidates, self.config.depth, scores)

    def _score(
        self, pairs: Sequence[tuple[str, str]], owners: Sequence[Question]
    ) -> list[float | Failure]:
        long = self._count_long(pairs)
        found: list[float | Failure] = [0.0] * len(pairs)
        # A batch has an image in all of its queries or in none.
        seen = [self.supports_images and question.image is not None for question in owners]
        for with_image in (False, True):
            rows = [i for i, sees in enumerate(seen) if sees is with_image]
            # The library sorts by length: give it many texts at once, but few images.
            step = self.config.batch_size if with_image else _CHUNK
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                values = self._model.predict(
                    [self._input(*pairs[i], owners[i] if with_image else None) for i in part],
                    batch_size=self.config.batch_size,
                    show_progress_bar=False,
                )
                for i, value in zip(part, values.tolist(), strict=True):
                    found[i] = self._overflow if math.isnan(value) else value
        self.truncated += long
        return found

    def _input(self, query: str, passage: str, owner: Question | None) -> tuple[Any, Any]:
        if self._model.modalities == ["text"]:
            return query, passage
        # The library opens text that is an image's path unless it is marked as text.
        given: dict[str, Any] = {"text": query}
        if owner is not None and owner.image is not None:
            given["image"] = open_for_library(owner.image)
        return given, {"text": passage}

    def _count_long(self, pairs: Sequence[tuple[str, str]]) -> int:
        limit = self._model.max_seq_length
        if self._model.modalities != ["text"] or limit is None:
            return 0
        tokenizer = self._model.tokenizer
        ids = tokenizer([q for q, _ in pairs], [p for _, p in pairs], verbose=False)["input_ids"]
        return sum(len(row) > limit for row in ids)
