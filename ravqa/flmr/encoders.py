"""The encoders of text and images, and the common base of all models of the family."""

# transformers and torch are not followed by mypy, so that their classes are Any.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ravqa.core.checkpoints import build_model, check_finite
from ravqa.core.errors import UserError
from ravqa.flmr.checkpoints import canonical_names, read_checkpoint
from ravqa.flmr.configuration import (
    FLMRConfig,
    FLMRInputError,
    FLMRTextConfig,
    FLMRVisionConfig,
    config_from_dict,
    read_config,
)
from ravqa.flmr.outputs import ImageFeatures

_PLAIN_PREFIXES = ("bert.", "roberta.", "deberta.", "distilbert.", "electra.", "mpnet.", "model.")
"""Prefixes that task checkpoints (masked words, ...) put before their encoder's names."""


class FLMRPreTrainedModel(PreTrainedModel):
    """The base of all models of the family: loading, saving and settings."""

    config_class: ClassVar[Any] = FLMRConfig
    base_model_prefix = "flmr"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The pooler's output is not used, and some checkpoints leave it out.
    _keys_to_ignore_on_load_missing: ClassVar[Any] = [r"\.pooler\."]

    @classmethod
    def _checkpoint_config(cls, name: str, hub: dict[str, Any]) -> Any:
        return cls.config_class.from_pretrained(name, **hub)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        allow_missing: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint: safetensors or .bin, in shards or one file, with any parameter names.

        Args:
            pretrained_model_name_or_path: folder or hub name; None with `state_dict`.
            model_args: further arguments of the model.
            config: configuration to use instead of the checkpoint's.
            allow_missing: initialise parameters that the checkpoint lacks at random, instead of
                rejecting it.
            kwargs: as for transformers' `from_pretrained`; fields of the configuration to change.

        Raises:
            UserError: the checkpoint has another architecture, is truncated, or lacks parameters.
        """
        name = pretrained_model_name_or_path
        hub: dict[str, Any] = {
            k: kwargs.pop(k)
            for k in (
                "cache_dir",
                "force_download",
                "local_files_only",
                "proxies",
                "revision",
                "token",
                "subfolder",
            )
            if k in kwargs
        }
        for option in ("trust_remote_code", "code_revision", "_from_auto", "_commit_hash"):
            kwargs.pop(option, None)
        if kwargs.pop("weights_only", True) is not True:
            raise UserError("checkpoints are read with weights_only=True only")
        if config is None:
            config = cls._checkpoint_config(str(name), hub)
        elif not isinstance(config, PretrainedConfig):
            config = cls._checkpoint_config(str(config), hub)
        else:
            config = copy.deepcopy(config)
        for option in [
            k for k in kwargs if hasattr(config, k) and k not in ("dtype", "torch_dtype")
        ]:
            setattr(config, option, kwargs.pop(option))
        place = str(name) if name else place_of(config)
        if hasattr(config, "settle"):  # now: transformers loses the place later
            config.settle(place)
        state = kwargs.pop("state_dict", None)
        variant = kwargs.pop("variant", None)
        use_safetensors = kwargs.pop("use_safetensors", None)
        if state is None:
            state = read_checkpoint(
                str(name), variant=variant, use_safetensors=use_safetensors, **hub
            )
        state = cls._canonical(state, config)
        if hasattr(config, "fit_mapping"):
            config.fit_mapping({k: tuple(v.shape) for k, v in state.items()})
        kwargs = {**cls._load_parts(str(name), config, kwargs, hub), **kwargs}
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # they are rejected below, by name
        model, info = super().from_pretrained(
            None,
            *model_args,
            config=config,
            state_dict=state,
            output_loading_info=True,
            **kwargs,
        )
        model.config.name_or_path = model.name_or_path = place
        if info["mismatched_keys"]:
            key, found, wanted = min(info["mismatched_keys"])
            raise UserError(
                f"{place}: its parameters do not have the sizes in its config.json: {key} is "
                f"{list(found)}, {list(wanted)} is expected"
            )
        missing = sorted(info["missing_keys"])
        if missing and not allow_missing:
            raise UserError(
                f"{place} lacks {len(missing)} of the model's parameters ({', '.join(missing[:3])}"
                f"{', ...' if len(missing) > 3 else ''}): a checkpoint of another architecture, or "
                "incomplete; allow_missing=True starts them at random"
            )
        check_finite(model)
        return (model, info) if wants_info else model

    @classmethod
    def _load_parts(
        cls, name: str, config: Any, kwargs: dict[str, Any], hub: dict[str, Any]
    ) -> dict[str, Any]:
        """Return further arguments of the model that come with a checkpoint."""
        return {}

    @classmethod
    def _canonical(cls, state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
        return state

    @contextmanager
    def _attention_for(self, output_attentions: bool) -> Iterator[None]:
        """Use the eager implementation for attention weights; no other returns them."""
        if not output_attentions:
            yield
            return
        configs = {id(m.config): m.config for m in self.modules() if hasattr(m, "config")}
        before = [(c, c._attn_implementation) for c in configs.values()]
        try:
            for config, _ in before:
                config._attn_implementation_internal = "eager"
            yield
        finally:
            for config, name in before:
                config._attn_implementation_internal = name


class FLMRTextModel(FLMRPreTrainedModel):
    """A text encoder: BERT, or another encoder that transformers knows, as `bert_model`."""

    config_class = FLMRTextConfig
    base_model_prefix = "bert_model"
    main_input_name = "input_ids"

    def __init__(self, config: FLMRTextConfig):
        encoder = config.encoder_config(place_of(config))
        super().__init__(config)
        if encoder is config:
            from transformers import BertModel

            self.bert_model = BertModel(config)
        else:
            encoder._attn_implementation = config._attn_implementation
            self.bert_model = build_model(AutoModel, encoder)
        self.post_init()

    @classmethod
    def _checkpoint_config(cls, name: str, hub: dict[str, Any]) -> Any:
        values, _ = read_config(name, **hub)
        kind = values.get("model_type")
        if kind == "flmr":
            config = FLMRConfig.from_pretrained(name, **hub).text_config
        elif kind in ("bert", "flmr_text_model"):
            config = FLMRTextConfig(**{k: v for k, v in values.items() if k != "model_type"})
        else:
            config = FLMRTextConfig(text_encoder_config=config_from_dict(values).to_dict())
        config.name_or_path = name
        return config

    @classmethod
    def _canonical(cls, state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
        """Rename parameters from a checkpoint of this class, a plain encoder, or the family."""
        out: dict[str, Tensor] = {}
        for key, tensor in canonical_names(state).items():
            for prefix in ("context_text_encoder.", "bert_model.", *_PLAIN_PREFIXES):
                key = key.removeprefix(prefix)
            if not key.startswith(
                ("query_", "context_", "transformer_mapping_", "cls.", "lm_head")
            ):
                out[f"bert_model.{key}"] = tensor
        return out

    def get_input_embeddings(self) -> Any:
        """Return the embeddings of the word-pieces."""
        return self.bert_model.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return the output with `last_hidden_state`, `hidden_states` and `attentions`."""
        if attention_mask is not None and attention_mask.device.type == "meta":
            attention_mask = None  # shapes only; transformers would read the mask's values
        with self._attention_for(output_attentions):
            return self.bert_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                **{**kwargs, "return_dict": True},
            )


class _Tower(nn.Module):
    """A module that holds the vision tower one level down, as the original's names require."""

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        if isinstance(config, FLMRVisionConfig):
            from transformers import CLIPVisionModel

            self.vision_model = CLIPVisionModel(config)
        else:
            self.vision_model = build_model(AutoModel, config)


class FLMRVisionModel(FLMRPreTrainedModel):
    """A vision encoder: CLIP's, or any vision tower that transformers' `AutoModel` knows."""

    config_class = FLMRVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"

    def __init__(self, config: FLMRVisionConfig):
        tower = config.tower_config()
        super().__init__(config)
        if tower is not config:
            tower._attn_implementation = config._attn_implementation
        self.vision_model = _Tower(tower)
        self.post_init()

    @classmethod
    def _checkpoint_config(cls, name: str, hub: dict[str, Any]) -> Any:
        values, _ = read_config(name, **hub)
        kind = values.get("model_type")
        if kind == "flmr":
            config = FLMRConfig.from_pretrained(name, **hub).vision_config
        elif kind == "clip":
            config = FLMRVisionConfig(**_without_type(values.get("vision_config") or {}))
        elif kind in ("clip_vision_model", "flmr_vision_model"):
            config = FLMRVisionConfig(**_without_type(values))
        else:
            whole = config_from_dict(values)
            part = getattr(whole, "vision_config", None) or whole
            config = FLMRVisionConfig(vision_tower=part.to_dict())
        config.name_or_path = name
        return config

    @classmethod
    def _canonical(cls, state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
        """Rename parameters from a checkpoint of this class, a plain tower, or the family."""
        out: dict[str, Tensor] = {}
        whole = any(k.startswith(("vision_model.", "context_vision_encoder.")) for k in state)
        for key, tensor in canonical_names(state, shared_vision=True).items():
            if whole and not key.startswith(("vision_model.", "context_vision_encoder.")):
                continue  # text tower or projections
            key = key.removeprefix("context_vision_encoder.")
            while key.startswith("vision_model."):
                key = key.removeprefix("vision_model.")
            if not key.endswith("embeddings.position_ids"):
                out[f"vision_model.vision_model.{key}"] = tensor
        return out

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return the output with `last_hidden_state`, `hidden_states` and `attentions`.

        Raises:
            FLMRInputError: the images do not have the model's size.
        """
        if pixel_values is None:
            raise FLMRInputError("no pixel_values given")
        self._check_size(pixel_values)
        with self._attention_for(output_attentions):
            output = self.vision_model.vision_model(
                pixel_values=pixel_values.to(self.dtype),
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                **{**kwargs, "return_dict": True},
            )
        if "attentions" in output and not output.attentions:
            output["attentions"] = None
        return output

    def features(
        self,
        pixel_values: Tensor,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> ImageFeatures:
        """Return global and patch features of images [images, channels, height, width]."""
        with self._before_last_layer() as caught:
            output: BaseModelOutputWithPooling = self(
                pixel_values,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states or caught is None,
            )
        last = output.last_hidden_state
        earlier = caught[0] if caught else output.hidden_states[-2]
        prefix = self.num_prefix_tokens(last.shape[1])
        if prefix > 0:
            pooled = last[:, 0]
        elif getattr(output, "pooler_output", None) is not None:
            pooled = output.pooler_output
        else:
            pooled = last.mean(1)
        return ImageFeatures(pooled, earlier[:, prefix:], output)

    @contextmanager
    def _before_last_layer(self) -> Iterator[list[Tensor] | None]:
        """Yield a list that receives the input of CLIP's last layer; None for other towers.

        Keeping the states of all layers just for this one takes gigabytes for large towers.
        """
        if self.config.vision_tower is not None:
            yield None
            return
        caught: list[Tensor] = []
        layer = self.vision_model.vision_model.encoder.layers[-1]

        def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])

        handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield caught
        finally:
            handle.remove()

    def num_prefix_tokens(self, positions: int) -> int:
        """Return the number of the tower's output positions before the patches."""
        if self.config.num_prefix_tokens is not None:
            return int(self.config.num_prefix_tokens)
        height, width = self.image_size
        patch = self.config.patch_size
        sides = (patch, patch) if isinstance(patch, int) else tuple(patch)
        prefix = int(positions - (height // sides[0]) * (width // sides[1]))
        if prefix < 0:
            raise FLMRInputError(
                "which outputs of the vision tower are patches cannot be told from the sizes: set "
                "num_prefix_tokens in the vision configuration"
            )
        return prefix

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the tower takes."""
        size = self.config.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def _check_size(self, pixel_values: Tensor) -> None:
        found = tuple(pixel_values.shape[-2:])
        if pixel_values.dim() != 4 or found != self.image_size:
            raise FLMRInputError(
                f"images of shape {tuple(pixel_values.shape)} do not fit this model, which takes "
                f"[images, {self.config.num_channels}, {self.image_size[0]}, "
                f"{self.image_size[1]}]: prepare them with the checkpoint's FLMRProcessor"
            )


def place_of(config: Any) -> str:
    """Return the checkpoint's folder or hub name, if known."""
    return "" if config.name_or_path in (None, "None") else str(config.name_or_path)


def _without_type(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != "model_type"}
