"""A plugin for workers of a Ray cluster: parts that say which process works, and may be slow."""

import os
import time
from pathlib import Path

from collection_files import HashEncoder

from ravqa.core.accounts import Usage
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoded
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader


def note(config):
    """Leave the process's number in the folder, and take so many seconds."""
    if config.folder:
        Path(config.folder, str(os.getpid())).touch()
    time.sleep(config.pause)


class WatchedHashes(HashEncoder):
    """Hashes of words, slowly."""

    class Config(HashEncoder.Config):
        folder: str = ""
        pause: float = 0

    def encode_document(self, texts, progress=None):
        note(self.config)
        return Encoded(super().encode_document(texts, progress))


class WatchedReader(Reader):
    """Answers with the last words of a prompt, and scores by lengths."""

    class Config(Reader.Config):
        folder: str = ""
        pause: float = 0

    deterministic = True
    weights = "none"
    fingerprint = "watched/1"
    gives_log_probs = True
    scores_answers = True
    charges = False

    def generate(self, prompts):
        note(self.config)
        return [
            Generation(" ".join(p.text.split()[-3:-1]), -len(p.text) / 7, 2, usage=Usage(9, 2))
            for p in prompts
        ]

    def score(self, prompts, answers):
        note(self.config)
        return [-len(a) - len(p.text) / 9 for p, a in zip(prompts, answers, strict=True)]


ENCODERS.add("watched", f"{__name__}:WatchedHashes", "tests only: hashes of words, slowly")
READERS.add("watched", f"{__name__}:WatchedReader", "tests only: repeats words, slowly")
