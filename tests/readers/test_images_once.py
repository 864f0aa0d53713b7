"""An image is looked at once for all prompts about it, and nothing else changes.

The models are tiny and random.
"""

from dataclasses import dataclass, replace
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reader_models
import torch
from PIL import Image
from transformers import GenerationMixin
from transformers.utils import ModelOutput

from ravqa.core.settings import validate
from ravqa.readers.base import Prompt
from ravqa.readers.transformers_vlm import TransformersVLM
from ravqa.readers.vision import ImageFeatures

# Processors of the others want torchvision.
VIDEO = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "llava_onevision", "mistral3"]
ONCE = ["llava", "llava_next", "paligemma", "idefics3", "gemma3", *VIDEO]
WHOLE = {"paligemma", "gemma3"}  # every prompt is read from its beginning
EACH_TIME = ["blip2_t5", "blip2_opt", "instructblip", "florence2", "mllama"]


def picture(seed, width, height):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    data = BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


WIDE, HIGH = picture(0, 60, 40), picture(1, 30, 90)
TEXTS = ["Question: what is it? Answer:", "Passage: koalas eat leaves. What do they eat?", "Who?"]
PROMPTS = [Prompt(text, image) for text in TEXTS for image in (WIDE, HIGH)]
PROMPTS.append(Prompt("Q: who?"))
BEGINNING = "Koalas sleep in one tree for most of a day, and so do many other beasts. "
SHARING = [replace(prompt, text=BEGINNING + prompt.text) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load a reader of a tiny model, by name and options."""
    made = {}

    def read(name, **options):
        if name in VIDEO:
            pytest.importorskip("torchvision", reason=f"the processor of {name} needs torchvision")
        if name == "smolvlm":
            pytest.importorskip("num2words", reason="the processor of SmolVLM needs num2words")
        if name not in made:
            made[name] = getattr(reader_models, name)(tmp_path_factory.mktemp(name))
        given = {"model": str(made[name]), "device": "cpu", "max_new_tokens": 6, **options}
        return TransformersVLM(validate(TransformersVLM.Config, given, "reader"))

    return read


@pytest.fixture(scope="module")
def llava(load):
    return load("llava"), load("llava", keep_images_mib=0)


def looks(reader):
    """Numbers of images that the vision tower is given from now on."""
    seen = []
    for name, module in reader._model.named_modules():
        if name.endswith(("vision_tower", "visual", "vision_model")):
            kept = module.forward

            def forward(*args, kept=kept, **options):
                seen.append(1)
                return kept(*args, **options)

            module.forward = forward
            return seen
    raise AssertionError("it has no vision tower")


def same(made, others):
    assert [one.text for one in made] == [one.text for one in others]
    assert [one.log_prob for one in made] == pytest.approx(
        [one.log_prob for one in others], abs=1e-4
    )


def equal(reader, plain, prompts=PROMPTS):
    """Everything that a reader gives is what one gives that looks at every prompt's image."""
    same(reader.generate(prompts), plain.generate(prompts))
    if reader.scores_answers:
        answers = ["Paris is large"] * len(prompts)
        expected = plain.score(prompts, answers)
        assert reader.score(prompts, answers) == pytest.approx(expected, abs=1e-4)
    if reader.gives_next_token_logprobs:
        prefixes = [[5, 6]] * len(prompts)
        found = reader.next_token_logprobs(prompts, prefixes)
        expected = plain.next_token_logprobs(prompts, prefixes)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_image_is_looked_at_once_over_all_calls(llava):
    reader, plain = llava
    seen, often = looks(reader), looks(plain)
    equal(reader, plain)
    reader.generate([PROMPTS[1], PROMPTS[0]])
    assert len(seen) == 1  # two images in one batch
    plain.generate(PROMPTS)
    assert len(often) == 4
    reader.generate([Prompt("Who?", picture(2, 50, 50)), PROMPTS[0]])
    assert len(seen) == 2
    reader.forget()  # other weights give other features
    reader.generate(PROMPTS)
    assert len(seen) == 3


def widths(reader, monkeypatch):
    """Rows and columns of the batches that the language model reads from now on."""
    read = []
    inner = reader._model.model.language_model
    kept = inner.forward

    def forward(*args, **options):
        read.append(tuple(options["inputs_embeds"].shape[:2]))
        return kept(*args, **options)

    monkeypatch.setattr(inner, "forward", forward)
    return read


def test_prompts_about_an_image_share_their_beginning(llava, monkeypatch):
    reader, plain = llava
    reader._free()
    read, whole = widths(reader, monkeypatch), widths(plain, monkeypatch)
    about = SHARING[0:6:2]
    state, other = reader._prefill(about), plain._prefill(about)
    assert torch.allclose(state.logits, other.logits, atol=1e-4)
    [(rows, columns)] = whole
    assert rows == 3
    [(one, beginning), (three, rest)] = read
    assert (one, three, rest) == (1, 3, columns - beginning)
    assert beginning > 50  # the image is among them, and need not be read again
    read.clear()
    reader._prefill(about[:2])  # as the beginning is kept
    assert [rows for rows, _ in read] == [2]


def test_two_images_in_one_batch_share_what_is_their_own(llava, monkeypatch):
    reader, plain = llava
    reader._free()
    read = widths(reader, monkeypatch)
    reader._prefill(SHARING[:6])
    assert [rows for rows, _ in read] == [1, 1, 6]
    equal(reader, plain, SHARING)
    equal(reader, plain, SHARING[:3])  # only one prompt about the second image
    equal(reader, plain, SHARING[1:2])
    equal(reader, plain, [*SHARING[:6], *PROMPTS])
    small = [replace(prompt, text=prompt.text * 5) for prompt in SHARING]
    equal(reader, plain, [*SHARING[:4], *small[2:6]])  # parts of images are read again


def test_prompts_about_an_image_are_answered_in_one_batch(llava):
    reader, plain = llava
    grouped = [reader._group(prompt) for prompt in SHARING]
    assert grouped == [(WIDE,), (HIGH,), (WIDE,), (HIGH,), (WIDE,), (HIGH,), None]
    assert reader._group(Prompt("Who?", WIDE, pictures=(HIGH,))) is None
    assert {plain._group(prompt) for prompt in SHARING} == {None}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gemma3", "not all of its layers keep the keys and values of all tokens"),
        ("paligemma", "its prompts are read in both directions"),
        ("florence2", "transformers takes no features of images in place of their pixels for it"),
    ],
)
def test_models_that_read_every_prompt_whole_say_so(load, monkeypatch, caplog, name, why):
    monkeypatch.setattr("ravqa.readers.local.check_model", lambda reader: {})
    said = f"{load(name, keep_images_mib=0).weights}: {why}: it reads every prompt from its"
    assert not caplog.records
    assert not load(name)._shares
    [record] = caplog.records
    assert record.getMessage() == f"the reader transformers-vlm: {said} beginning"


def test_what_is_kept_does_not_grow(llava):
    reader, plain = llava
    kept = reader._features
    [row] = reader._model.get_image_features(
        reader._inputs([PROMPTS[0]])["pixel_values"]
    ).pooler_output
    kept.clear()
    kept._limit, before = 2 * row.nbytes, kept._limit
    images = [picture(seed, 40, 40) for seed in range(4)]
    about = [Prompt("Who?", image) for image in images]
    equal(reader, plain, about)  # a batch of more images than are kept
    assert len(kept._kept) == 2
    reader.generate([about[0]])
    reader.generate([about[1]])
    seen = looks(reader)
    reader.generate([about[0]])
    reader.generate([about[2]])  # in place of what was not used for longest
    reader.generate([about[0]])
    assert len(seen) == 1
    kept._limit = before


def test_images_of_one_prompt_are_looked_at_once_together(llava):
    reader, plain = llava
    reader._free()
    seen = looks(reader)
    several = [replace(prompt, pictures=(HIGH,)) for prompt in PROMPTS[:3]]
    several += [replace(several[0], pictures=(WIDE,)), Prompt("Who?", pictures=(WIDE,))]
    equal(reader, plain, several)
    equal(reader, plain, [Prompt("Who?", WIDE)])
    # WIDE or HIGH with HIGH, and WIDE with WIDE; WIDE alone.
    assert len(seen) == 2
    assert len(reader._features._kept) == 4


def test_the_size_of_what_is_kept_changes_no_answer(llava):
    reader, plain = llava
    assert reader.fingerprint == plain.fingerprint
    assert not plain._keeps_features
    assert plain._features.missing(["a"]) == ["a"]


@dataclass
class Output(ModelOutput):
    """Of a tower; transformers has one such class per form."""

    pooler_output: Any = None
    deepstack_features: Any = None
    hidden_states: Any = None


class Tower:
    """Writes all its outputs into one buffer."""

    def __init__(self, listed=True):
        self.listed = listed
        self.buffer = torch.zeros(2, 3, 4)

    def get_image_features(self, pixel_values, return_dict):
        assert return_dict
        out = self.buffer[: len(pixel_values)]
        out[:] = pixel_values[:, None, None]
        pooled = list(out) if self.listed else out
        return Output(pooler_output=pooled, deepstack_features=[2 * out, [*out]], hidden_states=0)

    def get_reading(self, pixel_values, qformer_input_ids): ...


class Model(GenerationMixin):
    def __init__(self, tower, **config):
        ids = {"is_encoder_decoder": False, "image_token_id": 9}
        self.base_model, self.config = tower, SimpleNamespace(**ids | config)

    def forward(self, input_ids, mm_encoder_outputs=None): ...


class Other(Model):
    def forward(self, input_ids, pixel_values=None): ...


class Inner(Model):
    def generate(self, **inputs): ...


def test_models_that_take_no_features_are_known_by_what_they_are():
    assert ImageFeatures(Model(Tower()), 1).supported
    assert ImageFeatures(Model(Tower()), 1).pixels == {"pixel_values"}
    other = Tower()
    other.get_image_features = other.get_reading  # what it makes of an image depends on the prompt
    for model in (
        Model(None),
        Model(Tower(), image_token_id=None),
        Model(Tower(), is_encoder_decoder=True),
        Model(other),
        Other(Tower()),
        Inner(Tower()),
    ):
        assert not ImageFeatures(model, 1).supported


def inputs(*values):
    return {
        "pixel_values": torch.tensor(values),
        "input_ids": torch.tensor([[1, 9, 9, 9, 2]] * len(values)),
        "other": None,
    }


@pytest.mark.parametrize("listed", [True, False])
def test_features_are_copies_in_the_form_of_the_tower(listed):
    kept = ImageFeatures(Model(Tower(listed)), 0)
    kept.add(["a", "b"], inputs(1.0, 2.0))
    kept.add(["c"], inputs(3.0))  # overwrites the tower's buffer
    made = kept.output(["b", "a", "c", "b"]).pooler_output
    assert isinstance(made, list) == listed
    assert [row.shape for row in made] == [(3, 4)] * 4
    assert [float(row.unique()) for row in made] == [2, 1, 3, 2]
    made[0].zero_()
    again = kept.output(["b"])
    assert float(again.pooler_output[0].unique()) == 2
    assert set(again) == {"pooler_output", "deepstack_features"}
    layers = kept.output(["c", "a"]).deepstack_features
    assert [[float(row.unique()) for row in layer] for layer in layers] == [[6, 2], [3, 1]]
    kept.shrink()
    assert kept.missing(["a", "c", "a"]) == ["a", "c"]


def test_other_numbers_of_features_than_tokens_are_refused():
    kept = ImageFeatures(Model(Tower()), 0)
    given = inputs(1.0, 2.0) | {"input_ids": torch.tensor([[9, 9], [9, 1]])}
    with pytest.raises(ValueError, match=r"^6 features of images for 3 tokens of images$"):
        kept.add(["a", "b"], given)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ONCE, *EACH_TIME])
def test_every_family_reads_the_same(load, name):
    reader, plain = load(name), load(name, keep_images_mib=0)
    assert reader.switched_off == plain.switched_off == {}
    assert reader._keeps_features == (name in ONCE)
    assert reader._shares == (name in ONCE and name not in WHOLE)
    seen, often = looks(reader), looks(plain)
    equal(reader, plain)
    assert (len(seen) == 1) == (name in ONCE)
    assert len(often) > 1
    reader.forget()
    reader.generate(SHARING)
    assert (reader._beginnings._kept is not None) == reader._shares
    for asked in (SHARING, SHARING[:3], [*SHARING[:5], *PROMPTS]):
        equal(reader, plain, asked)
    if reader.max_images is None:
        pictures = [replace(p, pictures=(HIGH, picture(2, 50, 50))) for p in SHARING[:5]]
        equal(reader, plain, [*pictures, *SHARING])
    longer = [replace(prompt, text=prompt.text * 3) for prompt in SHARING[:5]]
    equal(reader, plain, [*SHARING, *longer])
    same([reader.generate([p])[0] for p in SHARING], plain.generate(SHARING))


@pytest.mark.slow
@pytest.mark.parametrize("name", ONCE)
def test_beams_are_those_of_prompts_alone(load, name):
    reader, plain = load(name, beams=2), load(name, beams=2, keep_images_mib=0)
    assert reader._keeps_features
    assert not reader._shares
    prompts = [replace(PROMPTS[0], text=text) for text in TEXTS]
    for asked in (PROMPTS, prompts, prompts[:1]):
        same(reader.generate(asked), plain.generate(asked))
