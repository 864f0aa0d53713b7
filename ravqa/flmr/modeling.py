"""The FLMR models: text and vision encoders, PreFLMR's mapping network, late interaction.

The parameters have the names of the original's released checkpoints, so that both can read each
other's files. An encoder that queries and documents share is stored once, under its `context_`
name.
"""

# transformers and torch are not followed by mypy, so that their classes are Any.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import logging
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ravqa.core.errors import UserError
from ravqa.flmr.checkpoints import SHARED, canonical_names
from ravqa.flmr.configuration import FLMRConfig, FLMRInputError
from ravqa.flmr.encoders import FLMRPreTrainedModel, FLMRTextModel, FLMRVisionModel, place_of
from ravqa.flmr.mapping import MappingNetwork
from ravqa.flmr.outputs import (
    FLMRContextEncoderOutput,
    FLMRModelForRetrievalOutput,
    FLMRQueryEncoderOutput,
    ImageFeatures,
)
from ravqa.flmr.tokenization import FLMRContextEncoderTokenizer, FLMRQueryEncoderTokenizer

logger = logging.getLogger(__name__)

_Chosen = tuple[bool, Tensor | None]
"""Whether an output is used at all, and for which examples if that differs."""

MASKED_SCORE = -9999.0
"""The score of a masked document position, below every product of unit vectors."""


class _Projection(nn.Module):
    """A projection of an image's global feature to several embeddings."""

    def __init__(self, width: int, dim: int, count: int, inner: int | None):
        super().__init__()
        inner = inner or dim * count // 2
        self.model = nn.Sequential(
            nn.Linear(width, inner), nn.Tanh(), nn.Linear(inner, dim * count)
        )

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.model(features)
        return out


class _PhotoProjection(nn.Module):
    """A linear map of low rank from an image's global feature to one embedding."""

    def __init__(self, width: int, dim: int, rank: int):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(width, rank), nn.Linear(rank, dim, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.model(features)
        return out


class FLMRPretrainedModelForRetrieval(FLMRPreTrainedModel):
    """The base of retrieval models: configuration class, parameter names, initialisation."""

    config_class = FLMRConfig
    base_model_prefix = "flmr"
    main_input_name = "query_input_ids"


class FLMRModelForRetrieval(FLMRPretrainedModelForRetrieval):
    """FLMR and PreFLMR: queries of text and images, documents, late-interaction scores.

    `query` and `doc` encode, `score` compares, `forward` does both and gives losses.
    """

    _warned_of_instructions: ClassVar[bool] = False

    def __init__(
        self,
        config: FLMRConfig,
        query_tokenizer: Any = None,
        context_tokenizer: Any = None,
    ):
        """Build the model with random parameters.

        Args:
            config: configuration.
            query_tokenizer, context_tokenizer: give the ids of the instruction's end and of
                punctuation; without them BERT's ids are used.
        """
        config.settle(place_of(config))
        super().__init__(config)
        text_width, vision_width = config.text_config.hidden_size, config.vision_config.hidden_size

        self.context_text_encoder = FLMRTextModel(config.text_config)
        self.context_text_encoder_linear = nn.Linear(text_width, config.dim, bias=False)
        if config.separate_query_and_context_text_encoder:
            self.query_text_encoder = FLMRTextModel(config.text_config)
            self.query_text_encoder_linear = nn.Linear(text_width, config.dim, bias=False)

        sides = ["context"]
        if config.separate_query_and_context_vision_encoder:
            sides.append("query")
        for side in sides:
            if config.use_vision_encoder:
                setattr(self, f"{side}_vision_encoder", FLMRVisionModel(config.vision_config))
            if self.uses_images:
                self._add_projections(side, vision_width)

        if config.use_transformer_mapping_network:
            mapping = config.mapping_config()
            self.transformer_mapping_input_linear = nn.Linear(vision_width, mapping.hidden_size)
            self.transformer_mapping_network = MappingNetwork(mapping, text_width)
            self.transformer_mapping_output_linear = nn.Linear(mapping.hidden_size, config.dim)

        self.query_tokenizer = query_tokenizer
        self.context_tokenizer = context_tokenizer
        self._separator_id = self._find_separator()
        self._document_skip_ids = self._find_skipped()
        self.post_init()

    def _add_projections(self, side: str, width: int) -> None:
        config = self.config
        setattr(
            self,
            f"{side}_vision_projection",
            _Projection(
                width,
                config.dim,
                config.mapping_network_prefix_length,
                config.vision_projection_hidden_size,
            ),
        )
        if config.photo_token_rank is not None:
            photo = _PhotoProjection(width, config.dim, config.photo_token_rank)
            setattr(self, f"{side}_photo_projection", photo)

    # -- parts that queries and documents may share ------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # A shared part is registered once, so that it is saved and counted once.
        if name in SHARED and name not in self.__dict__.get("_modules", {}):
            name = SHARED[name]
        return super().__getattr__(name)

    @property
    def uses_images(self) -> bool:
        """Whether the model uses image features, if given."""
        config = self.config
        return bool(
            config.use_vision_encoder
            or config.use_transformer_mapping_network
            or config.query_concat_output_from_vision_encoder
            or config.context_concat_output_from_vision_encoder
        )

    # -- loading and saving ------------------------------------------------------------------

    @classmethod
    def _load_parts(
        cls, name: str, config: Any, kwargs: dict[str, Any], hub: dict[str, Any]
    ) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        options = {k: v for k, v in hub.items() if k != "subfolder"}
        for key, kind, needed in (
            ("query_tokenizer", FLMRQueryEncoderTokenizer, config.mask_instruction_token),
            ("context_tokenizer", FLMRContextEncoderTokenizer, config.mask_punctuation),
        ):
            if kwargs.get(key) is not None:
                continue
            kwargs.pop(key, None)
            try:
                inside = f"{hub['subfolder']}/{key}" if hub.get("subfolder") else key
                parts[key] = kind.from_pretrained(name, subfolder=inside, **options)
            except UserError:
                if needed:
                    raise
        return parts

    @classmethod
    def _canonical(cls, state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
        return canonical_names(
            state,
            shared_text=not config.separate_query_and_context_text_encoder,
            shared_vision=not config.separate_query_and_context_vision_encoder,
        )

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as torch does, with tensors under any of a checkpoint's names."""
        renamed = self._canonical(dict(state_dict), self.config)
        return super().load_state_dict(renamed, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save configuration, parameters (under the original's names) and tokenizers."""
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            for key in ("query_tokenizer", "context_tokenizer"):
                if getattr(self, key) is not None:
                    getattr(self, key).save_pretrained(str(Path(save_directory) / key))

    # -- masks -------------------------------------------------------------------------------

    def _bert_vocabulary(self) -> bool:
        text = self.config.text_config
        return not text.text_encoder_base_model and text.vocab_size in (30522, 30531)

    def _find_separator(self) -> int | None:
        token = self.config.mask_instruction_token
        if token is None:
            return None
        if self.query_tokenizer is not None:
            return _first_token_id(self.query_tokenizer, token)
        return _BERT_PUNCTUATION.get(token) if self._bert_vocabulary() else None

    def _find_skipped(self) -> tuple[int, ...]:
        skipped = self.config.context_mask_input_ids_skip_list or ()
        return tuple(sorted({0, *skipped, *self._find_punctuation()}))

    def _find_punctuation(self) -> Sequence[int]:
        if not self.config.mask_punctuation:
            return ()
        if self.context_tokenizer is not None:
            return [_first_token_id(self.context_tokenizer, c) for c in string.punctuation]
        return list(_BERT_PUNCTUATION.values()) if self._bert_vocabulary() else ()

    def query_mask(self, input_ids: Tensor) -> Tensor:
        """Return which query tokens count, bool [queries, tokens].

        All count except the instruction, up to its ":", the ids to skip and id 0. [MASK] counts.
        """
        keep = input_ids != 0
        for skipped in self.config.query_mask_input_ids_skip_list:
            keep &= input_ids != skipped
        if self._separator_id is not None and input_ids.numel():
            found = input_ids == self._separator_id
            has_any = found.any(1)
            if not FLMRModelForRetrieval._warned_of_instructions and _any_false(has_any):
                FLMRModelForRetrieval._warned_of_instructions = True
                logger.warning(
                    "a query has no %r: none of it is taken as an instruction and left out",
                    self.config.mask_instruction_token,
                )
            last = torch.where(has_any, found.int().argmax(1), 1)
            position = torch.arange(input_ids.shape[1], device=input_ids.device)
            keep &= (position < 2) | (position > last[:, None])
        return keep

    def doc_mask(self, input_ids: Tensor) -> Tensor:
        """Return which document tokens count, bool [documents, tokens].

        All count except punctuation, the ids to skip and id 0.
        """
        skipped = torch.tensor(self._document_skip_ids, device=input_ids.device)
        return ~torch.isin(input_ids, skipped)

    # -- images ------------------------------------------------------------------------------

    def encode_images(self, pixel_values: Tensor) -> ImageFeatures:
        """Return features of images [images, channels, height, width], which can be cached.

        Pass them to `query` and `doc` as `image_features` (pooled) and `image_patch_features`.
        """
        if not self.config.use_vision_encoder:
            raise FLMRInputError("this model has no vision encoder: give it image_features")
        features: ImageFeatures = self.query_vision_encoder.features(pixel_values)
        return features

    def _image_parts(
        self,
        side: str,
        pixel_values: Tensor | None,
        image_features: Any,
        patch_features: Tensor | None,
        output_attentions: bool,
        output_hidden_states: bool,
    ) -> tuple[Tensor, Tensor | None, Any]:
        """Return global vectors [rows, vectors, dim], patch states, the tower's output.

        The vectors are those of each region, then the regions' photo tokens, if the model has them.
        """
        output = None
        if isinstance(image_features, ImageFeatures):
            patch_features = image_features.patches
            image_features = image_features.pooled
        if image_features is None:
            if pixel_values is None:
                raise FLMRInputError(
                    f"the {side} embeddings of this model are made of images too: give "
                    "pixel_values or image_features, or switch them off with "
                    "concat_output_from_vision_encoder=False"
                )
            if not self.config.use_vision_encoder:
                raise FLMRInputError("this model has no vision encoder: give it image_features")
            if pixel_values.dim() not in (4, 5):
                raise FLMRInputError(
                    "pixel_values must have the shape [rows, channels, height, width], or [rows, "
                    f"regions, channels, height, width]; it is {tuple(pixel_values.shape)}"
                )
            regions = pixel_values.shape[1] if pixel_values.dim() == 5 else 1
            rows = pixel_values.shape[0]
            encoder = getattr(self, f"{side}_vision_encoder")
            features = encoder.features(
                pixel_values.reshape(-1, *pixel_values.shape[-3:]),
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )
            pooled, patch_features, output = features.pooled, features.patches, features.output
            pooled = pooled.reshape(rows, regions, -1)
        else:
            pooled = image_features if image_features.dim() == 3 else image_features[:, None]
            pooled = pooled.to(self.dtype)
        if pooled.shape[-1] != self.config.vision_config.hidden_size:
            raise FLMRInputError(
                f"image features of width {pooled.shape[-1]}: this model's are "
                f"{self.config.vision_config.hidden_size} wide"
            )
        vectors = getattr(self, f"{side}_vision_projection")(pooled)
        vectors = vectors.reshape(pooled.shape[0], -1, self.config.dim)
        if self.config.photo_token_rank is not None:
            photo = getattr(self, f"{side}_photo_projection")(pooled)
            vectors = torch.cat([vectors, photo], 1)
        return vectors, patch_features, output

    def _text_states(
        self,
        side: str,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        output: Any,
        output_attentions: bool,
        output_hidden_states: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the token ids, checked, and the text encoder's states [rows, tokens, width].

        The encoder's attentions and states, if wanted, are put into `output`.
        """
        if input_ids is None or attention_mask is None:
            of = {"query": "queries", "context": "documents"}[side]
            raise FLMRInputError(f"{of} need input_ids and attention_mask")
        text = getattr(self, f"{side}_text_encoder")(
            input_ids,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        _keep(output, "text_encoder", text, output_attentions, output_hidden_states)
        return input_ids, text.last_hidden_state

    def _chosen(self, side: str, vision: Any, text: Any) -> tuple[_Chosen, _Chosen]:
        """Return which outputs the embeddings of one side consist of: vision's and text's."""
        config = self.config
        return (
            _flags(vision, getattr(config, f"{side}_concat_output_from_vision_encoder")),
            _flags(text, getattr(config, f"{side}_concat_output_from_text_encoder")),
        )

    # -- encoding ----------------------------------------------------------------------------

    def query(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | ImageFeatures | None = None,
        image_patch_features: Tensor | None = None,
        concat_output_from_vision_encoder: bool | Sequence[bool] | Tensor | None = None,
        concat_output_from_text_encoder: bool | Sequence[bool] | Tensor | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Any:
        """Embed queries.

        Args:
            input_ids, attention_mask: from the query tokenizer; [queries, tokens].
            pixel_values: [queries, channels, height, width]; FLMR also takes regions of interest,
                [queries, regions, channels, height, width].
            image_features: instead of pixels: [queries, width] or [queries, regions, width], or
                the result of `encode_images`.
            image_patch_features: [queries, patches, width], which the mapping network needs beside
                image_features.
            concat_output_from_vision_encoder, concat_output_from_text_encoder: which outputs the
                embeddings consist of, for all queries or one flag for each; None for the
                configuration's. The rows of an output that is off for one query are zero.
            return_dict: False for a tuple.
            output_attentions, output_hidden_states: also return those of the parts.

        Raises:
            FLMRInputError: an input is missing or has a wrong shape.
        """
        (use_vision, vision_flags), (use_text, text_flags) = self._chosen(
            "query", concat_output_from_vision_encoder, concat_output_from_text_encoder
        )
        wanted = self._wanted(output_attentions, output_hidden_states)
        attentions, hidden = wanted
        output = FLMRQueryEncoderOutput()
        parts: list[Tensor] = []
        mapped = self.config.use_transformer_mapping_network and use_vision
        text = None
        if use_text or mapped:
            input_ids, text = self._text_states("query", input_ids, attention_mask, output, *wanted)
        if use_text:
            vectors = self.query_text_encoder_linear(text)
            output.pooler_output = vectors[:, 0]
            keep = self.query_mask(input_ids).to(vectors.dtype)
            parts.append(_switch(vectors * keep[:, :, None], text_flags))
        if use_vision:
            vectors, patches, tower = self._image_parts(
                "query", pixel_values, image_features, image_patch_features, *wanted
            )
            if output.pooler_output is None:
                output.pooler_output = vectors[:, 0]
            _keep(output, "vision_encoder", tower, *wanted)
            parts.append(_switch(vectors, vision_flags))
            if mapped:
                states, all_states, weights = self._map_patches(
                    patches, text, input_ids, attentions
                )
                output.transformer_mapping_network_attentions = weights if attentions else None
                output.transformer_mapping_network_hidden_states = all_states if hidden else None
                parts.append(_switch(states, vision_flags))
        if not parts:
            raise FLMRInputError("queries of neither text nor images")
        output.late_interaction_output = _normalise(_joined(parts))
        return self._returned(output, return_dict)

    def _map_patches(
        self,
        patches: Tensor | None,
        text: Tensor,
        input_ids: Tensor,
        need_weights: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        if patches is None:
            raise FLMRInputError(
                "the mapping network needs image_patch_features and image_features (both are "
                "what encode_images gives)"
            )
        if patches.shape[0] != text.shape[0]:
            raise FLMRInputError(
                f"{patches.shape[0]} images for {text.shape[0]} queries: a model with a mapping "
                "network takes one image for a query, no regions of interest"
            )
        length = self.config.transformer_mapping_cross_attention_length
        seen = input_ids[:, :length]
        mask = None
        # Instruction and [MASK] positions are attended to; only the ids to skip are not.
        if self.config.query_mask_input_ids_skip_list:
            mask = torch.ones_like(seen, dtype=torch.bool)
            for skipped in self.config.query_mask_input_ids_skip_list:
                mask &= seen != skipped
        states, hidden, weights = self.transformer_mapping_network(
            self.transformer_mapping_input_linear(patches.to(self.dtype)),
            text[:, :length],
            mask,
            need_weights,
        )
        return self.transformer_mapping_output_linear(states), hidden, weights

    def doc(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | ImageFeatures | None = None,
        concat_output_from_vision_encoder: bool | Sequence[bool] | Tensor | None = None,
        concat_output_from_text_encoder: bool | Sequence[bool] | Tensor | None = None,
        keep_dims: bool = True,
        return_mask: bool = True,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Any:
        """Embed documents.

        Args:
            input_ids, attention_mask: from the context tokenizer; [documents, tokens].
            pixel_values: [documents, channels, height, width], for documents with images.
            image_features: instead of pixels, [documents, width].
            concat_output_from_vision_encoder, concat_output_from_text_encoder: as in `query`.
            keep_dims: False gives a list of arrays without the masked rows.
            return_mask: whether the output has the mask.
            return_dict: False for a tuple.
            output_attentions, output_hidden_states: also return those of the parts.

        Raises:
            FLMRInputError: an input is missing or has a wrong shape.
        """
        (use_vision, vision_flags), (use_text, text_flags) = self._chosen(
            "context", concat_output_from_vision_encoder, concat_output_from_text_encoder
        )
        wanted = self._wanted(output_attentions, output_hidden_states)
        output = FLMRContextEncoderOutput()
        parts: list[Tensor] = []
        masks: list[Tensor] = []
        if use_vision:
            vectors, _, tower = self._image_parts(
                "context", pixel_values, image_features, None, *wanted
            )
            output.pooler_output = vectors[:, 0]
            _keep(output, "vision_encoder", tower, *wanted)
            parts.append(vectors)
            masks.append(_switched_on(vectors, vision_flags))
        if use_text:
            input_ids, text = self._text_states(
                "context", input_ids, attention_mask, output, *wanted
            )
            vectors = self.context_text_encoder_linear(text)
            output.pooler_output = vectors[:, 0]
            parts.append(vectors)
            masks.append(self.doc_mask(input_ids) & _switched_on(vectors, text_flags))
        if not parts:
            raise FLMRInputError("documents of neither text nor images")
        mask = torch.cat(masks, 1)[:, :, None]
        vectors = _normalise(_joined(parts) * mask)
        if keep_dims:
            output.late_interaction_output = vectors
        else:
            output.late_interaction_output = [
                rows[kept[:, 0]] for rows, kept in zip(vectors, mask, strict=True)
            ]
        if return_mask:
            output.context_mask = mask
        return self._returned(output, return_dict)

    @property
    def padding_counts(self) -> bool:
        """Whether the padding of documents takes part in scores.

        It does if the vocabulary's padding id is not 0, as in the original: all padding rows of a
        document are then the same vector, so that one of them scores like many.
        """
        pad = self.config.text_config.pad_token_id
        return pad is not None and pad not in self._document_skip_ids

    # -- comparing ---------------------------------------------------------------------------

    def score(self, Q: Tensor, D: Tensor, D_mask: Tensor) -> Tensor:  # noqa: N803
        """Return late-interaction scores, summed in float32.

        Args:
            Q: queries [queries, vectors, dim].
            D: documents [documents, vectors, dim].
            D_mask: bool [documents, vectors] or [documents, vectors, 1].

        Returns:
            [documents] for one query, or one query for each document; [queries, documents per
            query] if each query's documents are consecutive in `D`.

        Raises:
            FLMRInputError: the documents cannot be divided evenly among the queries.
        """
        queries, documents = Q.shape[0], D.shape[0]
        if queries == 0 or documents % queries:
            raise FLMRInputError(f"{documents} documents cannot be shared by {queries} queries")
        count = documents // queries
        mask = D_mask.reshape(documents, -1).bool()
        shape = (queries, count)
        scores = _max_sim(Q[:, None], D.unflatten(0, shape), mask.unflatten(0, shape))
        return scores.flatten() if queries == 1 or count == 1 else scores

    def forward(
        self,
        query_input_ids: Tensor | None = None,
        query_attention_mask: Tensor | None = None,
        query_pixel_values: Tensor | None = None,
        query_image_features: Tensor | ImageFeatures | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        context_pixel_values: Tensor | None = None,
        context_image_features: Tensor | ImageFeatures | None = None,
        use_in_batch_negatives: bool = True,
        in_batch_negatives_from_all_gpus: bool = False,
        num_negative_examples: int = 1,
        query_concat_output_from_vision_encoder: bool | Sequence[bool] | Tensor | None = None,
        query_concat_output_from_text_encoder: bool | Sequence[bool] | Tensor | None = None,
        context_concat_output_from_vision_encoder: bool | Sequence[bool] | Tensor | None = None,
        context_concat_output_from_text_encoder: bool | Sequence[bool] | Tensor | None = None,
        query_image_patch_features: Tensor | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Any:
        """Return scores of queries with their documents, and the loss.

        Every query has 1 + `num_negative_examples` consecutive documents, of which the first is
        the right one.

        Args:
            query_input_ids, query_attention_mask, query_pixel_values, query_image_features,
                query_image_patch_features, query_concat_output_from_vision_encoder,
                query_concat_output_from_text_encoder: see `query`.
            context_input_ids, context_attention_mask, context_pixel_values,
                context_image_features, context_concat_output_from_vision_encoder,
                context_concat_output_from_text_encoder: see `doc`.
            use_in_batch_negatives: also use the other queries' documents as negatives.
            in_batch_negatives_from_all_gpus: also those of the other processes; every process
                must call this. The mean of the processes' losses is the loss of the whole batch.
            num_negative_examples: number of wrong documents given per query.
            return_dict: False for a tuple.
            output_attentions, output_hidden_states: also return those of the parts.

        Raises:
            FLMRInputError: an input is missing, or has a wrong shape or number.
        """
        options: dict[str, Any] = {
            "return_dict": True,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        query = self.query(
            input_ids=query_input_ids,
            attention_mask=query_attention_mask,
            pixel_values=query_pixel_values,
            image_features=query_image_features,
            image_patch_features=query_image_patch_features,
            concat_output_from_vision_encoder=query_concat_output_from_vision_encoder,
            concat_output_from_text_encoder=query_concat_output_from_text_encoder,
            **options,
        )
        context = self.doc(
            input_ids=context_input_ids,
            attention_mask=context_attention_mask,
            pixel_values=context_pixel_values,
            image_features=context_image_features,
            concat_output_from_vision_encoder=context_concat_output_from_vision_encoder,
            concat_output_from_text_encoder=context_concat_output_from_text_encoder,
            **options,
        )
        q, d = query.late_interaction_output, context.late_interaction_output
        mask = context.context_mask
        each = num_negative_examples + 1
        if d.shape[0] != q.shape[0] * each:
            raise FLMRInputError(
                f"{d.shape[0]} documents for {q.shape[0]} queries with {num_negative_examples} "
                f"negative examples each: there must be {q.shape[0] * each}"
            )
        scores = self.score(q, d, mask).reshape(q.shape[0], each)
        in_batch = None
        if use_in_batch_negatives:
            in_batch = self._in_batch_loss(q, d, mask, in_batch_negatives_from_all_gpus)
            loss = in_batch
        else:
            loss = functional.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long))
        output = FLMRModelForRetrievalOutput(
            loss=loss,
            scores=scores,
            in_batch_negative_loss=in_batch,
            query_late_interaction_output=q,
            context_late_interaction_output=d,
        )
        wanted = self._wanted(output_attentions, output_hidden_states)
        for what, is_wanted in zip(("attentions", "hidden_states"), wanted, strict=True):
            if is_wanted:
                encoders = f"text_encoder_{what}", f"vision_encoder_{what}"
                mapping = f"transformer_mapping_network_{what}"
                setattr(output, f"query_{what}", tuple(query.get(n) for n in (*encoders, mapping)))
                setattr(output, f"context_{what}", tuple(context.get(n) for n in encoders))
        return self._returned(output, return_dict)

    def _in_batch_loss(self, q: Tensor, d: Tensor, mask: Tensor, everywhere: bool) -> Tensor:
        """Return the cross entropy of each query's first document against all documents."""
        each = d.shape[0] // q.shape[0]
        first, weight = 0, 1.0
        if everywhere and torch.distributed.is_initialized():
            d, mask, first, weight = gather_documents(d, mask, q.shape[0])
        mask = mask.reshape(d.shape[0], -1).bool()
        # One query at a time: the products of all at once would not fit in memory.
        scores = torch.stack([_max_sim(one[None], d, mask) for one in q])
        labels = first + each * torch.arange(q.shape[0], device=q.device)
        return functional.cross_entropy(scores, labels) * weight

    # -- helpers -----------------------------------------------------------------------------

    def _wanted(self, attentions: bool | None, hidden: bool | None) -> tuple[bool, bool]:
        return (
            bool(self.config.output_attentions if attentions is None else attentions),
            bool(self.config.output_hidden_states if hidden is None else hidden),
        )

    def _returned(self, output: Any, return_dict: bool | None) -> Any:
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


# Ids of punctuation in BERT's uncased vocabulary, for models built without a tokenizer.
_BERT_PUNCTUATION = {c: ord(c) + (966 if ord(c) < 65 else 940) for c in string.punctuation}


def _first_token_id(tokenizer: Any, text: str) -> int:
    if hasattr(tokenizer, "first_token_id"):
        return int(tokenizer.first_token_id(text))
    return int(tokenizer.encode(text, add_special_tokens=False)[0])


def _any_false(flags: Tensor) -> bool:
    return flags.device.type != "meta" and not bool(flags.all())


def _keep(output: Any, name: str, part: Any, attentions: bool, hidden: bool) -> None:
    """Put the wanted of an encoder's attentions and states into the output under its name."""
    if part is not None and attentions:
        setattr(output, f"{name}_attentions", part.attentions)
    if part is not None and hidden:
        setattr(output, f"{name}_hidden_states", part.hidden_states)


def _flags(given: Any, default: bool) -> _Chosen:
    if given is None:
        return default, None
    if isinstance(given, bool):
        return given, None
    flags = torch.as_tensor(given).bool()
    if flags.dim() == 0:
        return bool(flags), None
    return True, flags


def _switched_on(vectors: Tensor, flags: Tensor | None) -> Tensor:
    """Return bool [rows, vectors], True for all vectors of the rows whose flag is set."""
    on = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
    if flags is None:
        return on
    if flags.shape[0] != vectors.shape[0]:
        raise FLMRInputError(f"{flags.shape[0]} flags for {vectors.shape[0]} examples")
    return on & flags.to(vectors.device)[:, None]


def _switch(vectors: Tensor, flags: Tensor | None) -> Tensor:
    return vectors if flags is None else vectors * _switched_on(vectors, flags)[:, :, None]


def _joined(parts: list[Tensor]) -> Tensor:
    rows = {part.shape[0] for part in parts}
    if len(rows) > 1:
        raise FLMRInputError(f"text and images of different numbers of examples: {sorted(rows)}")
    return torch.cat(parts, 1)


def _normalise(vectors: Tensor) -> Tensor:
    # In float32, because the length of a vector of 128 bfloat16 numbers is too coarse.
    return functional.normalize(vectors.float(), dim=-1).to(vectors.dtype)


def _max_sim(q: Tensor, d: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over the query's vectors of the largest product with a document's vector."""
    products = d.float() @ q.float().transpose(-1, -2)
    products = products.masked_fill(~mask[..., None], MASKED_SCORE)
    return products.amax(-2).sum(-1)


def gather_documents(d: Tensor, mask: Tensor, queries: int) -> tuple[Tensor, Tensor, int, float]:
    """Return all processes' documents, this one's offset, and its loss's weight in the mean.

    The documents' gradients flow back to the processes that they came from.
    """
    from torch.distributed.nn.functional import all_gather

    world = torch.distributed.get_world_size()
    rank = torch.distributed.get_rank()
    size = torch.tensor([d.shape[0], d.shape[1], queries], device=d.device)
    sizes = [torch.empty_like(size) for _ in range(world)]
    torch.distributed.all_gather(sizes, size)
    counts, lengths, numbers = torch.stack(sizes).T.tolist()
    padding = (0, 0, 0, max(lengths) - d.shape[1], 0, max(counts) - d.shape[0])
    gathered = all_gather(functional.pad(d, padding).contiguous())
    flat = functional.pad(mask.reshape(*d.shape[:2], 1).to(torch.uint8), padding).contiguous()
    masks = [torch.empty_like(flat) for _ in range(world)]
    torch.distributed.all_gather(masks, flat)
    documents = torch.cat([x[:n] for x, n in zip(gathered, counts, strict=True)])
    kept = torch.cat([x[:n] for x, n in zip(masks, counts, strict=True)]).bool()
    return documents, kept, sum(counts[:rank]), queries * world / sum(numbers)
