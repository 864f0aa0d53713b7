"""What is special to families of multimodal models, as data; nothing of it stands in a reader.

A family that is not here needs nothing: its processor takes text with one image token, and its
model's own `generate` and `forward` do the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Family:
    """One family.

    Attributes:
        image: what stands before a plain prompt for its image; {token} is the image token. Empty
            where the processor puts it there itself.
        ending: what the processor writes behind a prompt about an image.
        language_model: attribute of the language model that the model's `generate` hands over to,
            where it has none of its own.
        first_position: number of the first token's position.
        limits: inputs of the model that are cut to so many tokens; key and value are paths
            ("qformer_config.max_position_embeddings") into the model's configuration.
    """

    image: str = "{token}\n"
    ending: str = ""
    language_model: str | None = None
    first_position: int = 0
    limits: dict[str, str] = field(default_factory=dict)


_QFORMER = "qformer_config.max_position_embeddings"

FAMILIES: dict[str, Family] = {
    "blip-2": Family(image="", language_model="language_model"),
    # The Q-Former reads the prompt too, but has learned positions for its beginning only.
    "instructblip": Family(
        image="",
        language_model="language_model",
        limits={"qformer_input_ids": _QFORMER, "qformer_attention_mask": _QFORMER},
    ),
    "paligemma": Family(image="{token}", ending="\n", first_position=1),
    "florence2": Family(image=""),
}


def family_of(model_type: str) -> Family:
    """The family of a model type, as its configuration names it."""
    return FAMILIES.get(model_type, Family())
