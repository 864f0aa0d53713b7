"""Configurations of the FLMR family: FLMR, PreFLMR and PreFLMR with another text encoder."""

# transformers and torch are not followed by mypy, so that their classes are Any.
# mypy: disallow-subclassing-any=False

# No `from __future__ import annotations`: transformers turns configurations into dataclasses and
# reads their annotations.
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    BertConfig,
    CLIPVisionConfig,
    PretrainedConfig,
    XLMRobertaConfig,
)

from ravqa.core.checkpoints import load_config
from ravqa.core.errors import UserError


class FLMRInputError(UserError, ValueError):
    """An error for inputs that do not fit the model: wrong image sizes, missing features, etc."""


def _bert_base() -> PretrainedConfig:
    return BertConfig()


def _xlm_roberta(size: str, positions: int) -> PretrainedConfig:
    shape = (
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
        if size == "base"
        else {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    )
    return XLMRobertaConfig(
        vocab_size=250002,
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        intermediate_size=4 * shape["hidden_size"],
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        **shape,
    )


# The base models that released checkpoints name; these need no download.
_BUILT_IN: dict[str, Callable[[], PretrainedConfig]] = {
    "bert-base-uncased": _bert_base,
    "google-bert/bert-base-uncased": _bert_base,
    "xlm-roberta-base": lambda: _xlm_roberta("base", 514),
    "FacebookAI/xlm-roberta-base": lambda: _xlm_roberta("base", 514),
    "xlm-roberta-large": lambda: _xlm_roberta("large", 514),
    "FacebookAI/xlm-roberta-large": lambda: _xlm_roberta("large", 514),
    "BAAI/bge-m3": lambda: _xlm_roberta("large", 8194),
}


def base_config(name: str, near: str = "") -> PretrainedConfig:
    """Return the configuration that a checkpoint names as its base model.

    Searched among the built-in ones, then as a folder: as given, inside the folder `near` (the
    checkpoint's own) and beside it. The hub is asked only for a checkpoint from the hub.

    Raises:
        UserError: the configuration is not found.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    here = Path(near) if near else None
    local = here is not None and here.exists()
    places = [Path(name)]
    if here is not None and local and not Path(name).is_absolute():
        here = here.resolve()
        places += [folder / name for folder in (here, *list(here.parents)[:2])]
    for place in places:
        if (place / "config.json").is_file():
            return load_config(str(place), trust_remote_code=False)
    try:
        return load_config(name, trust_remote_code=False, local_files_only=local or not near)
    except (OSError, ValueError):
        raise UserError(
            f"the configuration of {name!r}, which the checkpoint {near or '(without a folder)'} "
            "builds on, is not built in and not on this machine: put its config.json into a "
            f"folder {name!r} beside the checkpoint"
        ) from None


def read_config(name: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of a checkpoint's config.json, and the options not used in reading it.

    Raises:
        UserError: the file does not exist or is not JSON.
    """
    path = Path(name)
    if path.is_dir() and not (path / options.get("subfolder", "") / "config.json").is_file():
        raise UserError(f"{name} has no config.json: not a checkpoint folder")
    if not path.exists() and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1):
        raise UserError(f"no such checkpoint folder: {name}")
    try:
        values, rest = PretrainedConfig.get_config_dict(name, **options)
    except OSError as e:
        reason = str(e).strip().partition("\n")[0]
        raise UserError(f"the configuration of {name} cannot be read: {reason}") from None
    if not values:
        raise UserError(f"{name} has no config.json: not a checkpoint")
    return values, rest


def config_from_dict(values: dict[str, Any]) -> PretrainedConfig:
    """Return a configuration of transformers from its dict, by its model_type.

    Raises:
        UserError: transformers has no such model type.
    """
    model_type = values.get("model_type", "")
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"transformers knows no model of type {model_type!r}")
    return CONFIG_MAPPING[model_type].from_dict(dict(values))


class FLMRTextConfig(BertConfig):
    """Configuration of a text encoder: BERT's, or that of another base model.

    Attributes:
        text_encoder_base_model: name of the base model whose configuration is used instead of the
            BERT fields here (PreFLMR for English and Chinese names a multilingual one).
        text_encoder_config: that configuration as a dict; filled in when the model is built, so
            that a saved checkpoint is complete.
    """

    model_type = "flmr_text_model"
    base_config_key = "text_config"

    def __init__(
        self,
        text_encoder_base_model: str | None = None,
        text_encoder_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.text_encoder_base_model = text_encoder_base_model
        self.text_encoder_config = text_encoder_config

    def settle(self, near: str = "") -> None:
        """Fill in the configurations that the checkpoint in folder `near` gives only by name.

        Raises:
            UserError: the base model is unknown.
        """
        self.encoder_config(near)

    def to_dict(self) -> dict[str, Any]:
        """Return the values for config.json."""
        return _without_unset(super().to_dict(), "text_encoder_base_model", "text_encoder_config")

    def encoder_config(self, near: str = "") -> PretrainedConfig:
        """Return the configuration from which to build the text encoder.

        Raises:
            UserError: the base model is unknown.
        """
        if self.text_encoder_config is None and not self.text_encoder_base_model:
            return self
        if self.text_encoder_config is None:
            base = base_config(str(self.text_encoder_base_model), near)
            self.text_encoder_config = _plain(base)
        config = config_from_dict(self.text_encoder_config)
        self.hidden_size = config.hidden_size
        # Callers must see the encoder's own values, not BERT's defaults.
        for name in ("pad_token_id", "vocab_size", "max_position_embeddings", "num_hidden_layers"):
            setattr(self, name, getattr(config, name))
        config._attn_implementation = self._attn_implementation
        return config


class FLMRVisionConfig(CLIPVisionConfig):
    """Configuration of a vision encoder: CLIP's, or that of any vision tower of transformers.

    Attributes:
        vision_tower: configuration of another tower as a dict with its model_type (SigLIP,
            DINOv2, ...); the CLIP fields here are then not used.
        num_prefix_tokens: positions before the patches in the tower's output (class token and
            registers); None derives it from the sizes.
    """

    model_type = "flmr_vision_model"
    base_config_key = "vision_config"

    def __init__(
        self,
        vision_tower: dict[str, Any] | None = None,
        num_prefix_tokens: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if isinstance(vision_tower, PretrainedConfig):
            vision_tower = _plain(vision_tower)
        self.vision_tower = vision_tower
        self.num_prefix_tokens = num_prefix_tokens
        if vision_tower is not None:
            tower = self.tower_config()
            for name in ("hidden_size", "image_size", "patch_size", "num_hidden_layers"):
                if getattr(tower, name, None) is not None:
                    setattr(self, name, getattr(tower, name))

    def to_dict(self) -> dict[str, Any]:
        """Return the values for config.json."""
        return _without_unset(super().to_dict(), "vision_tower", "num_prefix_tokens")

    def tower_config(self) -> PretrainedConfig:
        """Return the configuration from which to build the vision tower.

        Raises:
            UserError: the model type is unknown.
        """
        if self.vision_tower is None:
            return self
        config = config_from_dict(self.vision_tower)
        config._attn_implementation = self._attn_implementation
        return config


class FLMRConfig(PretrainedConfig):
    """Configuration of a retrieval model.

    Attributes:
        text_config, vision_config: configurations of the encoders.
        dim: length of an embedding.
        mapping_network_prefix_length: number of vectors made from an image's global feature.
        vision_projection_hidden_size: width of the hidden layer between them; None for the
            original's, half of the output's.
        photo_token_rank: rank of a linear map from the global feature to one more vector, the
            photo token; None for models without it, such as the original's.
        use_vision_encoder: False builds no vision tower; image features can still be given.
        use_transformer_mapping_network: PreFLMR's mapping of patches, with cross-attention to the
            text.
        transformer_mapping_config_base, transformer_mapping_num_hidden_layers,
            transformer_mapping_cross_attention_length: its base configuration, its layers, and how
            many text positions it sees.
        transformer_mapping_config: the base configuration as a dict; filled in when the model is
            built, so that a saved checkpoint is complete.
        mask_instruction_token: the query's text up to the first such token is left out; None keeps
            all text.
        mask_punctuation: leave a document's punctuation out.
        query_mask_input_ids_skip_list: token ids left out of queries.
        context_mask_input_ids_skip_list: token ids left out of documents, beside punctuation; the
            original has none.
        separate_query_and_context_text_encoder, separate_query_and_context_vision_encoder: two
            encoders, or one shared.
        query_concat_output_from_text_encoder, query_concat_output_from_vision_encoder,
            context_concat_output_from_text_encoder, context_concat_output_from_vision_encoder:
            which outputs the embeddings of queries and documents consist of.
        vision_model_version: name of the vision tower's checkpoint, for information only.
        load_cpu_extension: not used; kept for files written by the original.
    """

    model_type = "flmr"
    sub_configs = {"text_config": FLMRTextConfig, "vision_config": FLMRVisionConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: Any = None,
        vision_config: Any = None,
        *,
        dim: int = 128,
        mapping_network_prefix_length: int = 32,
        vision_projection_hidden_size: int | None = None,
        photo_token_rank: int | None = None,
        use_vision_encoder: bool = True,
        use_transformer_mapping_network: bool = False,
        transformer_mapping_config_base: str | None = None,
        transformer_mapping_num_hidden_layers: int | None = None,
        transformer_mapping_cross_attention_length: int = 32,
        transformer_mapping_config: dict[str, Any] | None = None,
        mask_instruction_token: str | None = None,
        mask_punctuation: bool = True,
        query_mask_input_ids_skip_list: list[int] | None = None,
        context_mask_input_ids_skip_list: list[int] | None = None,
        separate_query_and_context_text_encoder: bool = False,
        separate_query_and_context_vision_encoder: bool = False,
        query_concat_output_from_text_encoder: bool = True,
        query_concat_output_from_vision_encoder: bool = True,
        context_concat_output_from_text_encoder: bool = True,
        context_concat_output_from_vision_encoder: bool = False,
        vision_model_version: str | None = None,
        initializer_range: float = 0.02,
        load_cpu_extension: bool = False,
        **kwargs: Any,
    ):
        self.text_config = _sub_config(text_config, FLMRTextConfig)
        self.vision_config = _sub_config(vision_config, FLMRVisionConfig)
        self.dim = dim
        self.mapping_network_prefix_length = mapping_network_prefix_length
        self.vision_projection_hidden_size = vision_projection_hidden_size
        self.photo_token_rank = photo_token_rank
        self.use_vision_encoder = use_vision_encoder
        self.use_transformer_mapping_network = use_transformer_mapping_network
        self.transformer_mapping_config_base = transformer_mapping_config_base
        self.transformer_mapping_num_hidden_layers = transformer_mapping_num_hidden_layers
        self.transformer_mapping_cross_attention_length = transformer_mapping_cross_attention_length
        self.transformer_mapping_config = transformer_mapping_config
        self.mask_instruction_token = mask_instruction_token
        self.mask_punctuation = mask_punctuation
        self.query_mask_input_ids_skip_list = list(query_mask_input_ids_skip_list or [])
        self.context_mask_input_ids_skip_list = context_mask_input_ids_skip_list
        self.separate_query_and_context_text_encoder = separate_query_and_context_text_encoder
        self.separate_query_and_context_vision_encoder = separate_query_and_context_vision_encoder
        self.query_concat_output_from_text_encoder = query_concat_output_from_text_encoder
        self.query_concat_output_from_vision_encoder = query_concat_output_from_vision_encoder
        self.context_concat_output_from_text_encoder = context_concat_output_from_text_encoder
        self.context_concat_output_from_vision_encoder = context_concat_output_from_vision_encoder
        self.vision_model_version = vision_model_version
        self.initializer_range = initializer_range
        self.load_cpu_extension = load_cpu_extension
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Read a checkpoint's configuration.

        Raises:
            UserError: the checkpoint has another architecture.
        """
        found = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        # The file's own value is its authors' path; base models are searched beside the checkpoint.
        config.name_or_path = str(pretrained_model_name_or_path)
        return found

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Return the raw values of a checkpoint's configuration file.

        Raises:
            UserError: the file does not exist, or the checkpoint has another architecture.
        """
        values, rest = read_config(pretrained_model_name_or_path, **kwargs)
        found = values.get("model_type")
        if found != cls.model_type:
            raise UserError(
                f"{pretrained_model_name_or_path} is a checkpoint of another architecture: its "
                f"config.json says model_type {found!r}, not {cls.model_type!r}"
            )
        return values, rest

    def to_dict(self) -> dict[str, Any]:
        """Return the values for config.json."""
        ours = "vision_projection_hidden_size", "photo_token_rank"
        return _without_unset(super().to_dict(), *ours, "context_mask_input_ids_skip_list")

    @property
    def global_vectors(self) -> int:
        """The number of vectors made from an image's global feature, the photo token included."""
        return int(self.mapping_network_prefix_length) + (self.photo_token_rank is not None)

    def settle(self, near: str = "") -> None:
        """Fill in the configurations that the checkpoint in folder `near` gives only by name.

        Raises:
            UserError: a base model is unknown.
        """
        self.text_config.settle(near)
        if self.use_transformer_mapping_network:
            self.mapping_config(near)

    def fit_mapping(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Take the mapping network's sizes from a checkpoint's parameters, where they show them.

        The base configuration is given only by name, and with another text encoder may differ from
        the trained sizes.
        """
        width = shapes.get("transformer_mapping_input_linear.weight")
        if not self.use_transformer_mapping_network or width is None:
            return
        config = self.mapping_config()
        values: dict[str, Any] = dict(self.transformer_mapping_config or {})
        if width[0] != config.hidden_size:
            values["hidden_size"] = width[0]
            values["num_attention_heads"] = max(1, width[0] // 64)
        inner = shapes.get("transformer_mapping_network.layer.0.intermediate.dense.weight")
        if inner is not None:
            values["intermediate_size"] = inner[0]
        self.transformer_mapping_config = values

    def mapping_config(self, near: str = "") -> PretrainedConfig:
        """Return the configuration of the mapping network's layers.

        Raises:
            UserError: its base configuration is unknown.
        """
        if self.transformer_mapping_config is None:
            name = self.transformer_mapping_config_base or "bert-base-uncased"
            self.transformer_mapping_config = _plain(base_config(name, near))
        config = config_from_dict(self.transformer_mapping_config)
        config.num_hidden_layers = self.transformer_mapping_num_hidden_layers or 1
        return config


def _sub_config(value: Any, kind: Any) -> Any:
    if isinstance(value, PretrainedConfig):
        return value
    return kind(**{k: v for k, v in (value or {}).items() if k != "model_type"})


def _without_unset(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """Drop values that are None: the original also reads the file, and may have defaults."""
    return {k: v for k, v in values.items() if v is not None or k not in names}


def _plain(config: PretrainedConfig) -> dict[str, Any]:
    """Return a configuration as values for JSON, without those that belong to one run."""
    values: dict[str, Any] = config.to_dict()
    for name in ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"):
        values.pop(name, None)
    return values
