"""Peculiarities of multimodal model families, as data; readers have no code for them.

A family that is not listed needs no entry: its processor takes text with one image token, and its
model's own `generate` and `forward` do the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Family:
    """Peculiarities of one family.

    Attributes:
        image: what precedes a plain prompt as a placeholder of its image; {token} is the image
            token. Empty if the processor inserts it itself.
        ending: what the processor appends to a prompt about an image.
        first_position: number of the first token's position.
        limits: model inputs that are cut, and to how many tokens; key and value are paths
            ("qformer_config.max_position_embeddings") into the model's configuration.
        answer_type: `token_type_ids` of an answer's tokens.
    """

    image: str = "{token}\n"
    ending: str = ""
    first_position: int = 0
    limits: dict[str, str] = field(default_factory=dict)
    answer_type: int = 0


_QFORMER = "qformer_config.max_position_embeddings"

FAMILIES: dict[str, Family] = {
    "blip-2": Family(image=""),
    # The Q-Former reads the prompt too, but has learned positions for its beginning only.
    "instructblip": Family(
        image="",
        limits={"qformer_input_ids": _QFORMER, "qformer_attention_mask": _QFORMER},
    ),
    "paligemma": Family(image="{token}", ending="\n", first_position=1, answer_type=1),
    "florence2": Family(image=""),
}


def family_of(model_type: str) -> Family:
    """Return the family of a model type, as named in the model's configuration."""
    return FAMILIES.get(model_type, Family())
