"""A plugin for processes that show the demo: an encoder of hashes that can say what matched."""

import os
import re
import time
from pathlib import Path

from collection_files import HashEncoder

from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Label, Labelled


class LabelledHashes(HashEncoder):
    """One vector a word, with a label. Questions wait while the file $RAVQA_HOLD exists."""

    labels = True

    def encode_query(self, queries):
        while Path(os.environ.get("RAVQA_HOLD") or "/nowhere").exists():
            time.sleep(0.05)
        return super().encode_query(queries)

    def label_passage(self, passage):
        return self._labelled(passage.content)

    def label_query(self, spans):
        return self._labelled(" ".join(span.text for span in spans))

    def _labelled(self, text):
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        return Labelled(text, [Label("word", text[slice(*s)], s, s) for s in spans])


ENCODERS.add("labelled", f"{__name__}:LabelledHashes", "tests only: hashes of words, with labels")
