"""Libraries with an encoder that needs no model: vectors are made of hashes of the words."""

import hashlib
from pathlib import Path

import numpy as np
import yaml

from ravqa.core.settings import Strict
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoded, Encoder

DIM = 16


class HashEncoder(Encoder):
    """One vector a word, the same for the same word."""

    class Config(Strict):
        """Options: another seed gives another encoder."""

        seed: int = 0

    def __init__(self, config):
        self.config = config
        self.dim = DIM
        self.weights = f"hashes of seed {config.seed}"
        self.fingerprint = f"hashes/{config.seed}"

    def encode_document(self, texts, progress=None):
        arrays = Encoded([self.vectors(text) for text in texts])
        if progress:
            progress(len(texts))
        return arrays

    def encode_query(self, queries):
        return Encoded([self.vectors(" ".join(s.text for s in spans)) for spans in queries])

    def vectors(self, text):
        rows = [np.zeros((0, DIM), np.float32)]
        for word in text.lower().split():
            digest = hashlib.sha256(f"{self.config.seed} {word}".encode()).digest()
            values = np.frombuffer(digest[:DIM], np.int8).astype(np.float32)
            rows.append(values[None] / np.linalg.norm(values))
        return np.concatenate(rows)


def register():
    ENCODERS.add("hashed", f"{__name__}:HashEncoder", "tests only: hashes of words")


def pipeline(folder: Path, **retriever) -> str:
    """A pipeline's file with this encoder; the reader repeats the first words of a passage."""
    register()
    settings = {
        "retriever": {
            "name": "late-interaction",
            "encoder": {"name": "hashed"},
            "query": {"question": 1.0, "replaced": 0.0, "appended": 0.0},
            **retriever,
        },
        "answering": {"decision": "top1"},
        "reader": {"name": "first-words"},
    }
    file = folder / "hashed.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(file)
