"""The conformance suite of readers: whole parts pass, broken ones do not."""

from dataclasses import replace

import numpy as np
import pytest
import reader_models
from cases import slow_but
from own_parts import from_docs
from scripted_server import chat, streamed

from ravqa.core.outcomes import Failure
from ravqa.images.decode import open_image
from ravqa.readers.base import Generation, Prompt
from ravqa.readers.controls import BestSpan, FirstWords, Majority
from ravqa.readers.transformers_llm import TransformersLLM
from ravqa.readers.transformers_seq2seq import TransformersSeq2Seq
from ravqa.readers.transformers_vlm import TransformersVLM
from ravqa.testing import check_reader
from ravqa.testing.rules import SmallReader

NearestSentence = from_docs("nearest_sentence.py")["NearestSentence"]
PLAIN = [Prompt("leaves leaves"), Prompt("fish and fish in rivers")]


@pytest.mark.parametrize(
    "reader",
    [
        FirstWords(FirstWords.Config()),
        BestSpan(BestSpan.Config()),
        Majority(Majority.Config(answer="leaves")),
        NearestSentence(NearestSentence.Config()),
        SmallReader(),
    ],
    ids=lambda reader: type(reader).__name__,
)
def test_readers_without_a_model(reader):
    check_reader(reader)


@pytest.mark.parametrize(
    ("kind", "model", "options"),
    slow_but(
        [(TransformersLLM, "llama", {})],
        [
            (TransformersLLM, "llama", {}),
            (TransformersLLM, "llama", {"beams": 2, "prompt_form": "chat"}),
            (TransformersSeq2Seq, "t5", {}),
            (TransformersVLM, "llava", {}),
        ],
    ),
)
def test_local_readers(kind, model, options, tmp_path):
    folder = getattr(reader_models, model)(tmp_path)
    check_reader(kind(kind.Config(model=str(folder), device="cpu", max_new_tokens=3, **options)))


def test_the_reader_of_a_server(serve):
    pytest.importorskip("openai")
    from ravqa.readers.openai import OpenAIReader

    def reply(number, body):
        text = "leaves" if "Koalas" in str(body["messages"]) else "fish"
        return streamed(text) if body.get("stream") else chat(text)

    server = serve(reply)
    check_reader(OpenAIReader(OpenAIReader.Config(url=server.url, model="m")))


class Positive(SmallReader):
    def _generation(self, prompt):
        return replace(super()._generation(prompt), log_prob=0.5)


class Silent(SmallReader):
    def _generation(self, prompt):
        return replace(super()._generation(prompt), log_prob=None)


class Drifts(SmallReader):
    asked = 0

    def generate(self, prompts):
        self.asked += 1
        return [Generation(f"answer {self.asked}", -1.0, 2) for _ in prompts]


class Backwards(SmallReader):
    def generate(self, prompts):
        return super().generate(prompts[::-1])


class Short(SmallReader):
    def generate(self, prompts):
        return super().generate(prompts[1:])


class Fails(SmallReader):
    def generate(self, prompts):
        return [Failure("no") for _ in prompts]


class Raises(SmallReader):
    def generate(self, prompts):
        raise KeyError("model")


class Unnormalised(SmallReader):
    def _row(self, prompt, prefix):
        return super()._row(prompt, prefix) - np.float32(0.5)


class Double(SmallReader):
    def _row(self, prompt, prefix):
        return super()._row(prompt, prefix).astype(np.float64)


class Endless(SmallReader):
    ends = frozenset()


class Scores(SmallReader):
    def score(self, prompts, answers):
        return [-float(len(prompts)) for _ in prompts]


class Streams(SmallReader):
    streams = True


class Stammers(Streams):
    def stream(self, prompt):
        yield from ("leaves", "leaves")


class Counts(SmallReader):
    counts_tokens = True

    def count_tokens(self, prompts):
        return [7 for _ in prompts]


class Blind(SmallReader):
    supports_images = True


class HalfBlind(SmallReader):
    supports_images = True
    max_images = None

    def generate(self, prompts):
        for prompt in prompts:
            if prompt.image is not None:
                open_image(prompt.image)
        return super().generate(prompts)


class Countless(SmallReader):
    max_images = 0


class Unnamed(SmallReader):
    fingerprint = ""


class Listed(SmallReader):
    control_tokens = ("<|im_end|>",)


class Maybe(SmallReader):
    deterministic = None


@pytest.mark.parametrize(
    ("reader", "sentence"),
    [
        (Positive(), "a log-probability above 0"),
        (Silent(), "a generation has a log-probability of at most 0"),
        (Drifts(), "it generates the same whatever is asked with a prompt"),
        (Backwards(), "it generates the same whatever is asked with a prompt"),
        (Short(), "it returned 1 results from generate for 2 items"),
        (Fails(), "completes the suite's prompts"),
        (Raises(), "completes the suite's prompts, got Failure.*the reader Raises: 'model'"),
        (Unnormalised(), "exponentials sum to 1"),
        (Double(), "returns float32"),
        (Endless(), "sets `max_new_tokens` and `ends`"),
        (Scores(), "the same score whatever is scored with it"),
        (Streams(), "cannot stream"),
        (Stammers(), "stream yields the generation in pieces"),
        (Counts(), "more of a longer text"),
        (Blind(), "generate raises DataError for one that cannot be decoded"),
        (
            HalfBlind(),
            r"supports images and `pictures` \(`max_images`\): generate raises DataError",
        ),
        (Countless(), "max_images is a number from 1, got 0"),
        (Unnamed(), "Unnamed.fingerprint is a text that is not blank"),
        (Listed(), "control_tokens are ControlTokens"),
        (Maybe(), "Maybe.deterministic is True or False, got None"),
        (object(), "object is a subclass of"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_reader_that_breaks_its_contract(reader, sentence):
    with pytest.raises(AssertionError, match=f"{sentence}.*ravqa.readers.base.Reader"):
        check_reader(reader, PLAIN)
