"""FLMR and PreFLMR checkpoints as encoders: question and image together, passages as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ravqa.core.checkpoints import loading
from ravqa.core.control_tokens import Mark, control_tokens
from ravqa.core.devices import own_device
from ravqa.core.errors import UserError
from ravqa.core.model_files import commit_of, model_fingerprint, resolve
from ravqa.core.records import Passage, Question
from ravqa.core.settings import ModelName, Strict, Text, fingerprint
from ravqa.core.texts import with_instruction
from ravqa.encoders.base import (
    WHOLE_IMAGE,
    Encoded,
    Encoder,
    Label,
    Labelled,
    Output,
    Span,
    Vectors,
    without_zero_rows,
    word_label,
)
from ravqa.encoders.batching import token_batches
from ravqa.encoders.features import FeatureCache, Features, tower_fingerprint
from ravqa.encoders.regions import pictures_of, regions_of
from ravqa.encoders.text_prompt import MARKS, TextPrompt, passage_spans, query_spans
from ravqa.images.decode import open_image

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

INSTRUCTION = "Using the provided image, obtain documents that address the subsequent question"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a checkpoint makes vectors of.

    Attributes:
        questions, passages: whether it takes images of questions, and of passages.
        name_tokens: vectors made from an image's global feature.
        photo_token: whether there is one more of these, of low rank.
        maps_patches: whether a query has vectors of its image's patches.
    """

    questions: bool
    passages: bool
    name_tokens: int
    photo_token: bool
    maps_patches: bool

    @property
    def global_vectors(self) -> int:
        """All vectors that are made from an image's global feature."""
        return self.name_tokens + self.photo_token


class FLMREncoder(Encoder):
    """An encoder that uses a FLMR-family checkpoint for late interaction (see `ravqa.flmr`).

    Scores are MaxSim sums over all query vectors, as RA-VQA's decision rule expects.
    """

    labels: ClassVar[bool] = True
    _why: ClassVar[str] = "the encoder flmr"
    _query_only: ClassVar[frozenset[str]] = frozenset(
        {"instruction", "image_tokens", "regions", "text_prompt"}
    )
    """Options that change no passage's vectors."""

    class Config(Strict):
        """Options.

        Attributes:
            model: folder or hub name of a FLMR, PreFLMR or PreFLMR-ENCN checkpoint.
            instruction: prepended to questions without their own; null for none (FLMR).
            doc_maxlen: tokens after which passages are cut; null for the checkpoint's own limit.
            batch_tokens: padded passage tokens in a batch.
            batch_queries: questions with their images in a batch.
            dtype: type of the weights.
            autocast: mixed precision: float32 weights, most products in this type.
            output: type of the returned vectors.
            image_tokens: which image vectors a query has beside the text's: all, the global ones,
                the patches' (with PreFLMR), or none.
            regions: regions of interest that a question's description has, seen beside the whole
                photo; 9 for FLMR as published, 0 for the photo alone. The last one is repeated if
                there are fewer.
            text_prompt: put marks around questions and passages, and parts of the image's
                description after the question, as FLMR checkpoints were trained; null for the
                question and the passage alone.
            cache_images: keep the vision tower's output for images in the cache folder, in this
                type. Checkpoints with the same tower share it.
            device: "auto" for an accelerator if available.
        """

        model: ModelName
        instruction: Text | None = INSTRUCTION
        doc_maxlen: int | None = Field(default=None, ge=4)
        batch_tokens: int = Field(default=4096, ge=64)
        batch_queries: int = Field(default=8, ge=1)
        dtype: Literal["float32", "bfloat16", "float16"] = "float32"
        autocast: Literal["none", "bfloat16", "float16"] = "none"
        output: Output = "float32"
        image_tokens: Literal["all", "global", "patches", "none"] = "all"
        regions: int = Field(default=0, ge=0, le=100)
        text_prompt: TextPrompt | None = None
        cache_images: Literal["off", "float32", "float16"] = "off"
        device: Text = "auto"

        @model_validator(mode="after")
        def _check_types(self) -> Self:
            if self.autocast != "none" and self.dtype != "float32":
                raise ValueError("autocast needs dtype: float32")
            if self.text_prompt and self.instruction:
                raise ValueError("text_prompt needs instruction: null")
            return self

    config: Config

    def __init__(self, config: Config):
        """Load model, tokenizers and image preparation.

        Raises:
            UserError: the checkpoint cannot be loaded.
        """
        self.config = config
        self._device = own_device(config.device, self._why)
        model = self._load()
        left_out = {"model", "batch_tokens", "batch_queries", "cache_images", "device"}
        if not config.regions:  # as before there were any
            left_out.add("regions")
        if config.text_prompt is None:
            left_out.add("text_prompt")
        self.fingerprint = fingerprint(
            *model,
            config.model_dump(exclude=left_out),
            config.cache_images == "float16",  # features in float32 are as good as new ones
        )
        left_out |= self._query_only
        marked = [] if config.text_prompt is None else ["marked"]
        self._of_passages = fingerprint(*model, config.model_dump(exclude=left_out), *marked)
        if config.image_tokens == "patches" and not self._shape.maps_patches:
            raise UserError(
                f"{self._why}: image_tokens: patches, but {self.weights} makes no vectors of "
                "patches"
            )
        if config.regions and (self._shape.maps_patches or self._shape.photo_token):
            raise UserError(
                f"{self._why}: regions: {config.regions}, but {self.weights} takes one picture of "
                "a question, as all PreFLMR models do"
            )
        if config.text_prompt is not None:
            self._check_marks()
        self._features = (
            None if config.cache_images == "off" else self._feature_cache(config.cache_images)
        )

    @classmethod
    def described_by(cls, config: Config) -> str:
        """Return `regions` or `text_prompt`, if these have something of the description."""
        if config.image_tokens != "none" and config.regions:
            return "regions"
        return "text_prompt" if config.text_prompt and config.text_prompt.describes else ""

    def _check_marks(self) -> None:
        """Raise UserError if the checkpoint was trained without the marks of the prompt."""
        tokenizers = (self._processor.query_tokenizer, self._processor.context_tokenizer)
        size = self._model.config.text_config.vocab_size
        missing = {mark for one in tokenizers for mark in one.missing(MARKS, size)}
        if missing:
            tokens = ", ".join(mark for mark in MARKS if mark in missing)
            raise UserError(
                f"{self._why}: text_prompt needs a checkpoint that was trained with marks, as FLMR "
                f"was; {self.weights} does not have the tokens {tokens}"
            )

    def _load(self) -> Sequence[Any]:
        """Load what the encoder needs, and return what identifies its weights."""
        self._model, self._processor, *weights = self._loaded()
        self._model.to(self._device).eval()
        self._control_tokens = control_tokens(self._processor.context_tokenizer, None)
        config = self._model.config
        self.dim = int(config.dim)
        self._shape = Shape(
            bool(self._model.uses_images),
            bool(config.context_concat_output_from_vision_encoder),
            int(config.mapping_network_prefix_length),
            config.photo_token_rank is not None,
            bool(config.use_transformer_mapping_network),
        )
        return weights

    def _loaded(self) -> tuple[Any, ...]:
        """Load the model; return it, its processor, and what identifies its weights."""
        import torch

        from ravqa.flmr import FLMRModelForRetrieval, FLMRProcessor

        config = self.config
        path = resolve(config.model, extra="cpu", why=self._why)
        lengths = {} if config.doc_maxlen is None else {"doc_maxlen": config.doc_maxlen}
        with loading(self._why, config.model, path):
            model = FLMRModelForRetrieval.from_pretrained(path, dtype=getattr(torch, config.dtype))
            processor = FLMRProcessor.from_pretrained(path, **lengths)
        self.weights = config.model
        return model, processor, "flmr/2", model_fingerprint(path), commit_of(path)

    def _feature_cache(self, output: Output) -> FeatureCache | None:
        images = self._processor.image_processor
        if images is None:
            return None
        tower = tower_fingerprint(self._model.query_vision_encoder)
        settings = fingerprint(tower, images.values(), self.config.autocast)
        return FeatureCache(settings, output)

    @property
    def passages_fingerprint(self) -> str:
        """A fingerprint of what can change passages' vectors."""
        return self._of_passages

    @property
    def supports_images(self) -> bool:
        """Whether the checkpoint takes questions' images."""
        return self._shape.questions

    @property
    def supports_passage_images(self) -> bool:
        """Whether the checkpoint takes passages' images."""
        return self._shape.passages

    def encode_document(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return one array [vectors, dim] per passage, without masked positions (punctuation).

        Batches have similar lengths and are padded to their longest passage; results keep order.
        """
        return self._encode_documents(texts, [None] * len(texts), progress)

    def encode_passages(
        self, passages: Sequence[Passage], progress: Callable[[int], object] | None = None
    ) -> Encoded:
        """Return vectors as `encode_document`, preceded by those of images, if images are seen.

        Raises:
            DataError: an image cannot be decoded.
        """
        return self._encode_documents(
            [passage.content for passage in passages],
            [passage.image if self.supports_passage_images else None for passage in passages],
            progress,
        )

    def _encode_documents(
        self,
        texts: Sequence[str],
        images: Sequence[Path | None],
        progress: Callable[[int], object] | None,
    ) -> Encoded:
        import torch

        tokenizer: Any = self._processor.context_tokenizer
        encoding = self._passage_tokens(texts)
        ids = encoding["input_ids"]
        lengths = [len(row) for row in ids]
        # Where padding counts, a passage needs one row of it, and no more.
        extra = int(self._model.padding_counts)
        out: list[Vectors] = [np.empty((0, self.dim), self.config.output)] * len(ids)
        for rows in token_batches(lengths, self.config.batch_tokens):
            batch = tokenizer.pad(
                {"input_ids": [ids[i] for i in rows]},
                padding="max_length",
                max_length=min(lengths[rows[-1]] + extra, tokenizer.max_tokens),
                return_tensors="pt",
            ).to(self._device)
            seen = [images[i] for i in rows]
            with torch.inference_mode(), self._precision():
                inputs = self._image_inputs(seen, "context")
                vectors = self._model.doc(**batch, **inputs).late_interaction_output
            before = vectors.shape[1] - batch["input_ids"].shape[1]  # the images' vectors
            for i, array in zip(rows, vectors.float().cpu().numpy(), strict=True):
                own = array[: before + lengths[i] + extra]
                out[i] = without_zero_rows(own, self.config.output)
            if progress:
                progress(len(rows))
        return Encoded(
            out,
            truncated=sum(encoding.truncated),
            tokens=sum(lengths),
            neutralised=self._control_tokens.count(texts),
        )

    def _passage_tokens(self, texts: Sequence[str]) -> Any:
        """Return the tokens of passages as lists, not padded, cut at the limit."""
        tokenizer: Any = self._processor.context_tokenizer
        if self.config.text_prompt is None:
            return tokenizer(list(texts), padding=False, return_tensors=None)
        pieces = [[span.text for span in passage_spans(text)] for text in texts]
        return tokenizer.encode_pieces(pieces, padding=False, return_tensors=None)

    def encode_query(self, queries: Sequence[Sequence[Span]]) -> Encoded:
        """Return one array [vectors, dim] per query, from text alone; weight 0 omits a span."""
        texts = [" ".join(span.text for span in spans if span.weight) for spans in queries]
        return self.encode_question([Question(i, text) for i, text in enumerate(texts)])

    def encode_question(self, questions: Sequence[Question]) -> Encoded:
        """Return one array [vectors, dim] per question: text, global image vectors, patches.

        Masked positions (the instruction's) are left out, and so are image vectors that
        `image_tokens` does not name. A question without an image is encoded from its text alone.

        Raises:
            DataError: an image cannot be decoded.
        """
        out: list[Vectors] = []
        truncated = tokens = 0
        for start in range(0, len(questions), self.config.batch_queries):
            batch = questions[start : start + self.config.batch_queries]
            instructions = [q.instruction or self.config.instruction or "" for q in batch]
            found, text, cut, counted = self._queries(batch, instructions)
            truncated += cut
            tokens += counted
            for array in found.float().cpu().numpy():
                array[self._left_out(text, len(array))] = 0
                out.append(without_zero_rows(self._weighted(array, text), self.config.output))
        neutralised = self._control_tokens.count(t for q in questions for t in self._texts(q))
        return Encoded(out, truncated=truncated, tokens=tokens, neutralised=neutralised)

    def _texts(self, question: Question) -> list[str]:
        """Return the texts of a query, without its marks and instruction."""
        if self.config.text_prompt is None:
            return [question.question]
        spans = self._spans(question, "")
        return [span.text for span in spans if not isinstance(span.text, Mark)]

    def _queries(
        self, batch: Sequence[Question], instructions: Sequence[str]
    ) -> tuple[Any, int, int, int]:
        """Return vectors of questions, a tensor [questions, rows, dim], and three numbers.

        They are: rows that are the text's, which come first; texts that were cut; tokens.
        """
        import torch

        weights = None
        if self.config.text_prompt is None:
            inputs = self._processor([q.question for q in batch], None, instructions)
        else:
            inputs, weights = self._prompted(batch, instructions)
        tokens = int(inputs["attention_mask"].sum())
        truncated = sum(inputs.truncated)
        with torch.inference_mode(), self._precision():
            seen = self._pictures(batch)
            result = self._model.query(**inputs.to(self._device), **seen)
        text = inputs["input_ids"].shape[1]
        vectors = result.late_interaction_output
        if weights is not None:
            rows = weights.new_ones(vectors.shape[:2])
            rows[:, :text] = weights
            vectors = vectors * rows.to(vectors)[:, :, None]
        return vectors, text, truncated, tokens

    def _spans(self, question: Question, instruction: str) -> list[Span]:
        """Return the texts and marks of a question's prompt.

        Raises:
            UserError: the prompt has parts of the image's description, and there is none.
        """
        prompt = self.config.text_prompt or TextPrompt()
        if prompt.describes and question.image is not None and question.description is None:
            raise UserError(
                f"{self._why}: text_prompt has parts of the image's description, but the questions "
                "have none: name a describer, or set caption, objects and ocr to 0"
            )
        return query_spans(question, with_instruction(instruction, question.question), prompt)

    def _prompted(
        self, batch: Sequence[Question], instructions: Sequence[str]
    ) -> tuple[Any, Tensor]:
        """Return the tokens of prompts, and the weights of their vectors [questions, tokens]."""
        import torch

        spans = [self._spans(q, i) for q, i in zip(batch, instructions, strict=True)]
        inputs = self._processor.query_tokenizer.encode_pieces(
            [[span.text for span in row] for row in spans]
        )
        weights = [
            [1.0 if piece is None else row[piece].weight for piece in tokens.pieces]
            for row, tokens in zip(spans, inputs.pieces, strict=True)
        ]
        return inputs, torch.tensor(weights)

    def _pictures(self, batch: Sequence[Question]) -> dict[str, Any]:
        """Return the image inputs of `query` for questions: of photos, or photos and regions."""
        count = self.config.regions
        if not (self._sees and count):
            return self._image_inputs([q.image if self._sees else None for q in batch])
        for question in batch:
            if question.image is not None and question.description is None:
                raise UserError(
                    f"{self._why}: regions: {count}, but the questions have no description: the "
                    "describer regions chooses them"
                )
        pictures = [picture for q in batch for picture in pictures_of(q, count)]
        return self._image_inputs(pictures, each=1 + count)

    def seen_beside(self, question: Question) -> Any:
        """Return the boxes of a question's regions and the text of its prompt, if they are seen."""
        boxes = None
        if self.config.regions and self._sees:
            boxes = [region.box for region in regions_of(question, self.config.regions)]
        if self.config.text_prompt is None:
            return boxes
        return [boxes, [span.text for span in self._spans(question, "")]]

    def label_passage(self, passage: Passage) -> Labelled:
        """Return the meaning of each of a passage's vectors; those of its image come first."""
        import torch

        text = passage.content
        tokenizer = self._processor.context_tokenizer
        tokens = self._passage_tokens([text])
        if self.config.text_prompt is not None:
            text = _joined(passage_spans(text))
        labels = self._token_labels(tokenizer, tokens, text)
        kept = self._model.doc_mask(torch.tensor(tokens["input_ids"], device=self._device))[0]
        sees = self.supports_passage_images and passage.image is not None
        found = self._global_labels() if sees else []
        found += [label for label, keep in zip(labels, kept.tolist(), strict=True) if keep]
        if self._model.padding_counts and len(labels) < tokenizer.max_tokens:
            found.append(Label("mark", str(tokenizer.pad_token)))
        return Labelled(text, found)

    def label_query(self, spans: Sequence[Span]) -> Labelled:
        """Return the meaning of each vector of `encode_query`."""
        return self.label_question(Question(0, " ".join(s.text for s in spans if s.weight)))

    def label_question(self, question: Question) -> Labelled:
        """Return the meaning of each vector of a question; its text includes the instruction."""
        import torch

        instruction = question.instruction or self.config.instruction or ""
        tokenizer = self._processor.query_tokenizer
        if self.config.text_prompt is None:
            text = with_instruction(instruction, question.question)
            tokens = tokenizer([text], return_tensors=None)
        else:
            spans = self._spans(question, instruction)
            text = _joined(spans)
            pieces = [span.text for span in spans]
            tokens = tokenizer.encode_pieces([pieces], return_tensors=None)
        labels = self._token_labels(tokenizer, tokens, text)
        kept = self._model.query_mask(torch.tensor(tokens["input_ids"], device=self._device))[0]
        keep = kept.tolist()
        if question.image is not None and self._sees:
            rows, columns = self.grid or (0, 0)
            labels += self._global_labels()
            regions = regions_of(question, self.config.regions)
            names = [region.name for region in regions] or [WHOLE_IMAGE.name]
            names += [names[-1]] * (self.config.regions - len(names))
            for name in names[: self.config.regions]:
                labels += [Label("global", name)] * self._shape.global_vectors
            labels += [
                Label("patch", f"patch {row + 1}, {column + 1}", place=(row, column))
                for row in range(rows)
                for column in range(columns)
            ]
            keep += [True] * (len(labels) - len(keep))
        left_out = self._left_out(len(tokens["input_ids"][0]), len(labels)).tolist()
        rows_of = zip(labels, keep, left_out, strict=True)
        return Labelled(text, [label for label, kept, out in rows_of if kept and not out])

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches with a vector each; None without such vectors."""
        config = self._model.config
        if not (self._sees and config.use_transformer_mapping_network):
            return None
        height, width = self._model.query_vision_encoder.image_size
        patch = config.vision_config.patch_size
        sides = (patch, patch) if isinstance(patch, int) else tuple(patch)
        return height // sides[0], width // sides[1]

    def seen_image(self, image: Path | bytes) -> Image:
        """Return the image as the vision tower receives it: scaled and cropped, same pixel values.

        Raises:
            DataError: the image cannot be decoded.
            UserError: the checkpoint has no vision tower.
        """
        seen: Image = self._image_processor.seen(open_image(image))
        return seen

    @property
    def _image_processor(self) -> Any:
        prepare = self._processor.image_processor
        if prepare is None:
            raise UserError(f"{self._why}: {self.weights} has no vision tower to see images with")
        return prepare

    @property
    def _sees(self) -> bool:
        return self.supports_images and self.config.image_tokens != "none"

    def _token_labels(self, tokenizer: Any, tokens: Any, text: str) -> list[Label]:
        """Return a label for every token of one text, including masked ones."""
        [encoding] = getattr(tokens, "pieces", None) or tokens.encodings
        labels = []
        for i, token in enumerate(tokenizer.convert_ids_to_tokens(tokens["input_ids"][0])):
            begin, end = (place - tokenizer.prefix_length for place in encoding.offsets[i])
            word = encoding.word_ids[i]
            if not encoding.attention_mask[i]:
                labels.append(Label("filler", token))
            elif word is None or end <= 0:  # special tokens, and the marker
                labels.append(Label("mark", token))
            else:
                whole = (place - tokenizer.prefix_length for place in encoding.word_to_chars(word))
                first, last = (max(0, place) for place in whole)
                labels.append(word_label(text, token, (max(0, begin), end), (first, last)))
        return labels

    def _global_labels(self) -> list[Label]:
        """Return a label for each vector of an image's global feature."""
        return [WHOLE_IMAGE] * self._shape.global_vectors

    def _left_out(self, text: int, rows: int) -> npt.NDArray[np.bool_]:
        """Return which rows of a query are unwanted, bool [rows].

        Text comes first, in `text` rows, then global vectors, then patches.
        """
        patches = text + self._shape.global_vectors * (1 + self.config.regions)
        wanted = self.config.image_tokens
        row = np.arange(rows)
        if wanted == "global":
            return row >= patches
        return (text <= row) & (row < patches) & (wanted == "patches")

    def _weighted(self, vectors: Vectors, text: int) -> Vectors:
        """Return a query's vectors with the lengths by which they count; `text` as above."""
        return vectors

    def _image_inputs(
        self,
        images: Sequence[Path | bytes | None],
        side: Literal["query", "context"] = "query",
        each: int = 1,
    ) -> dict[str, Any]:
        """Return the image inputs of `query` or `doc`; the vision tower sees each image once.

        Args:
            images: those of all rows, one after the other.
            side: which tower sees them.
            each: images of a row; only the first one's patches count.
        """
        import torch

        from ravqa.flmr import ImageFeatures

        features = self._features_of(images, side)
        if features is None:
            return {"concat_output_from_vision_encoder": False}
        pooled, patches = features
        if each > 1:
            pooled = pooled.reshape(-1, each, pooled.shape[-1])
        inputs: dict[str, Any] = {"image_features": ImageFeatures(pooled, patches[::each])}
        if None in images:
            present = torch.tensor([image is not None for image in images[::each]])
            inputs["concat_output_from_vision_encoder"] = present
        return inputs

    def _features_of(
        self, images: Sequence[Path | bytes | None], side: Literal["query", "context"] = "query"
    ) -> Features | None:
        """Return the features of a batch's images, zero without one; None if there is no image."""
        import torch

        unique = list(dict.fromkeys(image for image in images if image is not None))
        if not unique:
            return None
        found = self._seen(unique, side)
        pooled, patches = (torch.zeros(len(images), *part.shape) for part in found[unique[0]])
        for i, image in enumerate(images):
            if image is not None:
                pooled[i], patches[i] = found[image]
        place: dict[str, Any] = {
            "device": self._device,
            "dtype": getattr(torch, self.config.dtype),
        }
        return pooled.to(**place), patches.to(**place)

    def _seen(
        self, images: Sequence[Path | bytes], side: Literal["query", "context"]
    ) -> dict[Path | bytes, Features]:
        """Return the vision tower's features of each image, from the cache if possible."""
        # The cache belongs to the tower that sees questions, usually the only one.
        tower = self._tower(side)
        cache = self._features if tower is self._tower("query") else None
        found = {} if cache is None else cache.get(images)
        new = [image for image in images if image not in found]
        for start in range(0, len(new), self.config.batch_queries):
            batch = new[start : start + self.config.batch_queries]
            fresh = dict(zip(batch, self._new_features(batch, tower), strict=True))
            if cache is not None:
                cache.put(fresh)
            found |= fresh
        return found

    def _tower(self, side: Literal["query", "context"]) -> Any:
        return getattr(self._model, f"{side}_vision_encoder", None)

    def _new_features(self, images: Sequence[Path | bytes], tower: Any) -> Iterable[Features]:
        """Return the features that a vision tower makes of images."""
        pixels = self._image_processor([open_image(image) for image in images])
        made = tower.features(pixels.to(self._device, dtype=self._model.dtype))
        return zip(made.pooled.float().cpu(), made.patches.float().cpu(), strict=True)

    def _precision(self) -> AbstractContextManager[Any]:
        import torch

        name = self.config.autocast
        if name == "none":
            return nullcontext()
        mixed: AbstractContextManager[Any] = torch.autocast(
            torch.device(self._device).type, dtype=getattr(torch, name)
        )
        return mixed


def _joined(spans: Sequence[Span]) -> str:
    """Return the text of which `encode_pieces` gives the places of tokens."""
    return " ".join(span.text for span in spans)
