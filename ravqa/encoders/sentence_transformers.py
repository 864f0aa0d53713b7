"""Models of the sentence-transformers library as encoders: many vectors per text, or one.

A model that takes text and image together sees the question's image (`supports_images`). For others
the image enters as text, as in `ravqa.retrievers.query_text`, unless `MultiVectorSTEncoder` is told
to give it the image alone.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ravqa.core.checkpoints import load_sentence_transformer, loading
from ravqa.core.control_tokens import control_tokens
from ravqa.core.devices import own_device
from ravqa.core.errors import UserError, first_line, import_extra
from ravqa.core.model_files import commit_of, model_fingerprint, resolve
from ravqa.core.records import Passage, Question
from ravqa.core.settings import ModelName, RunsCode, Strict, Text, fingerprint
from ravqa.encoders.base import (
    Encoded,
    Encoder,
    EncodingStats,
    Output,
    Span,
    Vectors,
    without_zero_rows,
)
from ravqa.encoders.batching import token_batches
from ravqa.images.decode import open_for_library

_EXTRA = "sentence-transformers"
_CHUNK = 256  # texts whose tokens are counted at a time
_IMAGE_AND_TEXT = ("image", "text")


class _STEncoder(Encoder):
    """The common base of both encoders.

    The library reads a text as a whole, so tokens cannot be assigned to the spans they come from: a
    query is its spans' text, joined by spaces, without spans of weight 0; other weights are
    ignored. (Of the query's forms only `appended` has such weights; with
    `retriever.query.appended: 0` there are none.)

    Cut texts are counted for models that read text with a plain tokenizer; the processors of
    multimodal models and modules of other packages do not report them.
    """

    name: ClassVar[str]
    _class: ClassVar[str]

    class Config(Strict):
        """Options.

        Attributes:
            model: folder, hub name, or "package:MODULE/path".
            query_prompt, document_prompt: prepended to texts; null for the model's own. For a model
                that sees images, a question's own instruction replaces the query prompt.
            batch_tokens: padded tokens in a batch.
            batch_queries: questions with their images, or images, in a batch.
            output: type of the returned vectors.
            device: "auto" for an accelerator if available.
            trust_remote_code: run code that the model's files name, as the library requires before
                it loads third-party classes.
        """

        model: ModelName
        query_prompt: Text | None = None
        document_prompt: Text | None = None
        batch_tokens: int = Field(default=4096, ge=64)
        batch_queries: int = Field(default=8, ge=1)
        output: Output = "float32"
        device: Text = "auto"
        trust_remote_code: RunsCode = False

        def packages(self) -> Sequence[tuple[str, str]]:
            """The package of the library."""
            return [("sentence_transformers", _EXTRA)]

    config: Config

    def __init__(self, config: Config):
        """Load the model.

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            UserError: the model cannot be loaded, or is of the wrong kind.
        """
        self.config = config
        self._why = f"the encoder {self.name}"
        path = resolve(config.model, extra="sample", why=self._why)
        library = import_extra("sentence_transformers", _EXTRA, why=self._why)
        device = own_device(config.device, self._why)
        self._check_files(path, Path(path).exists())
        trusted = config.trust_remote_code
        with loading(self._why, config.model, path, trusted=trusted):
            self._model: Any
            self._model, problem = load_sentence_transformer(
                getattr(library, self._class), path, trust_remote_code=trusted, device=device
            )
            if problem:
                raise problem
            self.dim = int(self._model.get_embedding_dimension())
        self._check_model()
        self._control_tokens = control_tokens(getattr(self._model, "tokenizer", None), None)
        prompts = self._model.prompts
        documents = (prompts[k] for k in ("document", "passage", "corpus") if prompts.get(k))
        self._prompts: dict[str, str] = {
            "query": _first(config.query_prompt, prompts.get("query", "")),
            "document": _first(config.document_prompt, next(documents, "")),
        }
        self.weights = config.model
        left_out = {"model", "batch_tokens", "batch_queries", "device", "trust_remote_code"}
        left_out |= {"passages", "image_weight"}
        self.fingerprint = fingerprint(
            f"{self.name}/1",
            config.model_dump(exclude=left_out),
            model_fingerprint(path),
            commit_of(path),
        )

    @property
    def supports_images(self) -> bool:
        """Whether the model takes a text and an image together."""
        return bool(self._model.supports(_IMAGE_AND_TEXT))

    def _check_files(self, path: str, local: bool) -> None:
        """Reject files from which the library would make a model of another kind."""

    def _check_model(self) -> None:
        """Reject a model whose vectors cannot be used."""

    def encode_document(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return one array [vectors, dim] per passage, rows L2-normalised."""
        inputs, neutralised = self._inputs(texts)
        return self._encode("document", inputs, neutralised, progress=progress)

    def encode_query(self, queries: Sequence[Sequence[Span]]) -> Encoded:
        """Return one array [vectors, dim] per query, rows L2-normalised; weight 0 omits a span."""
        texts = [" ".join(span.text for span in spans if span.weight) for spans in queries]
        return self._encode("query", *self._inputs(texts))

    def encode_question(self, questions: Sequence[Question]) -> Encoded:
        """Return one array [vectors, dim] per question, from its text and its image, if any.

        Raises:
            DataError: an image cannot be decoded.
        """
        # A batch has one prompt, and either all of its inputs have an image or none has.
        groups: dict[tuple[str | None, bool], list[int]] = {}
        for i, question in enumerate(questions):
            groups.setdefault((question.instruction, question.image is not None), []).append(i)
        out = self._empty(len(questions))
        truncated = tokens = neutralised = 0
        for (instruction, _), places in groups.items():
            for start in range(0, len(places), self.config.batch_queries):
                rows = places[start : start + self.config.batch_queries]
                plain = [self._control_tokens.neutral(questions[i].question) for i in rows]
                inputs = [
                    self._with_image(text, questions[i])
                    for i, (text, _) in zip(rows, plain, strict=True)
                ]
                prompt = f"{instruction.strip()} " if instruction else None
                encoded = self._encode("query", inputs, sum(count for _, count in plain), prompt)
                for i, array in zip(rows, encoded, strict=True):
                    out[i] = array
                truncated += encoded.stats.truncated
                tokens += encoded.stats.tokens
                neutralised += encoded.stats.neutralised
        return Encoded(out, truncated=truncated, tokens=tokens, neutralised=neutralised)

    def _inputs(self, texts: Sequence[str]) -> tuple[list[Any], int]:
        """Return the texts in the form that the model takes, and how many tokens it neutralised.

        A model that takes images would open a text that is the path or address of an image, unless
        the input is marked as text.
        """
        found = [self._control_tokens.neutral(text) for text in texts]
        plain = [text for text, _ in found]
        only_text = self._model.modalities == ["text"]
        inputs = plain if only_text else [{"text": text} for text in plain]
        return inputs, sum(count for _, count in found)

    def _with_image(self, text: str, question: Question) -> dict[str, Any]:
        found: dict[str, Any] = {"text": text}
        return (
            found if question.image is None else found | {"image": open_for_library(question.image)}
        )

    def _empty(self, items: int) -> list[Vectors]:
        return [np.empty((0, self.dim), self.config.output)] * items

    def _encode(
        self,
        task: Literal["query", "document"],
        inputs: Sequence[Any],
        neutralised: int,
        prompt: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Encoded:
        """Encode in batches of similar length; return results in the order given."""
        prompt = _first(prompt, self._prompts[task])
        lengths: list[int] = []
        truncated = 0
        for start in range(0, len(inputs), _CHUNK):
            chunk = inputs[start : start + _CHUNK]
            features = self._model.preprocess(chunk, prompt=prompt, task=task)
            lengths += _token_counts(features)
            encodings = getattr(features, "encodings", None) or ()
            truncated += sum(bool(encoding.overflowing) for encoding in encodings)
        encode = self._model.encode_query if task == "query" else self._model.encode_document
        out = self._empty(len(inputs))
        for rows in token_batches(lengths, self.config.batch_tokens):
            arrays = encode(
                [inputs[i] for i in rows],
                prompt=prompt,
                batch_size=len(rows),
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=True,
            )
            for i, array in zip(rows, arrays, strict=True):
                out[i] = without_zero_rows(np.atleast_2d(array), self.config.output)
            if progress:
                progress(len(rows))
        return Encoded(out, truncated=truncated, tokens=sum(lengths), neutralised=neutralised)


class MultiVectorSTEncoder(_STEncoder):
    """A `MultiVectorEncoder`: checkpoints of ColBERT, PyLate, ColPali and similar models."""

    name = "multi-vector"
    _class = "MultiVectorEncoder"

    class Config(_STEncoder.Config):
        """Options.

        Attributes:
            passages: what is encoded of a passage with an image: its "text", its "image", or "both"
                separately, whose vectors are put together. None for the image if the model takes
                a text or an image (ColPali, ColQwen), and otherwise for the text.
            image_weight: share of the question's image in the score, 0 to 1: text and image are
                encoded separately, and the score is the weighted mean of MaxSim's mean over the
                vectors of each. None to give the model both together if it takes them so, and
                otherwise the text alone.
        """

        passages: Literal["text", "image", "both"] | None = None
        image_weight: float | None = Field(default=None, ge=0, le=1)

    config: Config

    def __init__(self, config: Config):
        """Load the model.

        Raises:
            MissingExtraError: sentence-transformers is not installed.
            UserError: the model cannot be loaded, is of the wrong kind, or takes no images although
                an option is about them.
        """
        super().__init__(config)
        if self.supports_passage_images:
            self.fingerprint = fingerprint(self.fingerprint, self._passages)
        self._passages_fingerprint = self.fingerprint
        if config.image_weight is not None:
            self.fingerprint = fingerprint(self.fingerprint, config.image_weight)

    @property
    def passages_fingerprint(self) -> str:
        """A fingerprint of what can change passages' vectors: all but `image_weight`."""
        return self._passages_fingerprint

    @property
    def supports_images(self) -> bool:
        """Whether the model takes text and image together, or the image has a weight."""
        return self.config.image_weight is not None or super().supports_images

    @property
    def supports_passage_images(self) -> bool:
        """Whether images of passages are encoded."""
        return self._passages != "text"

    @property
    def _passages(self) -> str:
        """What is encoded of a passage with an image."""
        takes = self._model.supports
        default = "image" if takes("image") and not takes(_IMAGE_AND_TEXT) else "text"
        return self.config.passages or default

    def _check_model(self) -> None:
        about = ["passages"] if self._passages != "text" else []
        about += ["image_weight"] if self.config.image_weight is not None else []
        if about and not self._model.supports("image"):
            raise UserError(
                f"{self._why}: {self.config.model} takes no images: leave out {' and '.join(about)}"
            )

    def encode_passages(
        self, passages: Sequence[Passage], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return one array [vectors, dim] per passage, of its image, its text, or both.

        Raises:
            DataError: an image cannot be decoded.
        """
        kind = self._passages
        seen = {i: p.image for i, p in enumerate(passages) if p.image and kind != "text"}
        unseen = [i for i in range(len(passages)) if i not in seen]
        beside = [i for i in seen if kind == "both" and passages[i].text.strip()]
        parts: list[list[Vectors]] = [[] for _ in passages]
        # A piece of a page's text has the image of the page, which is encoded once.
        images, stats = self._see(seen.values(), progress)
        for i, image in seen.items():
            parts[i].append(images[image])
        for rows, count in ((unseen, progress), (beside, None)):
            read = self.encode_document([passages[i].content for i in rows], count)
            stats += read.stats
            for i, array in zip(rows, read, strict=True):
                parts[i].append(array)
        return Encoded(
            map(np.concatenate, parts),
            truncated=stats.truncated,
            tokens=stats.tokens,
            neutralised=stats.neutralised,
        )

    def encode_question(self, questions: Sequence[Question]) -> Encoded:
        """Return one array [vectors, dim] per question, from its text and its image, if any.

        With an `image_weight`, rows of text and image are as long as their share in the score, and
        the lengths of a question's rows sum to 1.

        Raises:
            DataError: an image cannot be decoded.
        """
        weight = self.config.image_weight
        if weight is None:
            return super().encode_question(questions)
        shares = [
            0.0 if q.image is None else weight if q.question.strip() else 1.0 for q in questions
        ]
        read = [i for i, share in enumerate(shares) if share < 1]
        texts = super().encode_question([replace(questions[i], image=None) for i in read])
        seen = {i: image for i, q in enumerate(questions) if shares[i] and (image := q.image)}
        images, stats = self._see(seen.values())
        stats += texts.stats
        out = self._empty(len(questions))
        for i, vectors in zip(read, texts, strict=True):
            out[i] = _share(vectors, 1 - shares[i])
        for i, image in seen.items():
            out[i] = np.concatenate([out[i], _share(images[image], shares[i])])
        return Encoded(
            out, truncated=stats.truncated, tokens=stats.tokens, neutralised=stats.neutralised
        )

    def _see(
        self, images: Iterable[Path | bytes], progress: Callable[[int], object] | None = None
    ) -> tuple[dict[Path | bytes, Vectors], EncodingStats]:
        """Return the vectors of each image, and statistics; an image that is repeated is seen once.

        Args:
            progress: called as progress(n) after n more images, repeated ones included.
        """
        repeated = Counter(images)
        found: dict[Path | bytes, Vectors] = {}
        stats = EncodingStats()
        step = self.config.batch_queries
        for start in range(0, len(repeated), step):
            some = list(repeated)[start : start + step]
            inputs = [{"image": open_for_library(image)} for image in some]
            encoded = self._encode("document", inputs, 0)
            found |= zip(some, encoded, strict=True)
            stats += encoded.stats
            if progress:
                progress(sum(repeated[image] for image in some))
        return found, stats

    def _check_files(self, path: str, local: bool) -> None:
        # The library gives any other checkpoint a randomly initialised projection.
        from sentence_transformers.util import load_file_path

        def read(file: str) -> dict[str, Any]:
            found = load_file_path(path, file, local_files_only=local)
            return dict(json.loads(Path(found).read_text(encoding="utf-8"))) if found else {}

        try:
            settings, config = read("config_sentence_transformers.json"), read("config.json")
        except (OSError, ValueError) as e:
            raise UserError(f"{self._why}: {path} cannot be read: {first_line(e)}") from None
        kind = settings.get("model_type")
        if not (
            kind in ("MultiVectorEncoder", "ColBERT")
            or "query_prefix" in settings  # older PyLate
            or any(
                name == "HF_ColBERT" or name.endswith("ForRetrieval")
                for name in config.get("architectures") or []
            )
            or not (settings or config)  # no files: loading reports that
        ):
            raise UserError(
                f"{self._why}: {path} is not a multi-vector model but a "
                f"{kind or config.get('model_type')}: use the encoder dense, token-bert or flmr"
            )


class DenseSTEncoder(_STEncoder):
    """A `SentenceTransformer`: one vector per text, [1, dim], so MaxSim is the dot product."""

    name = "dense"
    _class = "SentenceTransformer"

    def _check_model(self) -> None:
        # An index holds unit vectors, so information in the vectors' lengths would be lost.
        compares = self._model.similarity_fn_name
        if compares != "cosine" and type(self._model[-1]).__name__ != "Normalize":
            raise UserError(
                f"{self._why}: {self.config.model} compares vectors of any length by {compares}, "
                "but indexes hold unit vectors: choose a model for cosine similarity"
            )


def _share(vectors: Vectors, share: float) -> Vectors:
    """Return rows of unit length scaled so that their lengths sum to `share`."""
    return (vectors * (share / max(1, len(vectors)))).astype(vectors.dtype)


def _first(*values: str | None) -> str:
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)


def _token_counts(features: Any) -> list[int]:
    """Return the tokens of each input that a model receives, without padding."""
    if "attention_mask" in features:
        return list(features["attention_mask"].sum(1).tolist())
    # Static embeddings: the tokens of all texts concatenated, and where each one's begin.
    bounds = [*features["offsets"].tolist(), len(features["input_ids"])]
    return [end - begin for begin, end in itertools.pairwise(bounds)]
