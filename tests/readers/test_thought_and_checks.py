"""Thinking followed token by token, marks of images, and what checks of a model compare."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from ravqa.core.errors import UserError
from ravqa.core.settings import fingerprint
from ravqa.readers import checks, transformers_vlm
from ravqa.readers.base import Prompt
from ravqa.readers.families import FAMILIES, Family, family_of
from ravqa.readers.thinking import Marks, Thought

# --- thinking


WORDS = ["<think>", "</think>", *map(chr, range(10, 127))]


def thought(text="", **options):
    """Follows letters and whole marks as tokens; "." ends any text, ";" or a new line an answer."""
    options = {"opened": False, "budget": 100, "longest": 5, **options}
    made = Thought(
        lambda tokens: "".join(WORDS[token] for token in tokens),
        ends=frozenset({WORDS.index(".")}),
        stops=frozenset(map(WORDS.index, ".;\n")),
        **options,
    )
    for word in re.findall(r"</?think>|.", text, re.DOTALL):
        made.feed(WORDS.index(word))
    return made


def said(made):
    return "".join(WORDS[token] for token in made.answer)


@pytest.mark.parametrize(
    ("text", "options", "answer", "thinking", "done"),
    [
        ("Kola", {}, "Kola", "", False),
        ("Koala", {}, "Koala", "", True),  # as long as an answer may be
        ("Ko;al", {}, "Ko;", "", True),
        ("Ko.al", {}, "Ko.", "", True),
        ("<think>h;m</think>Ko", {}, "Ko", "h;m", False),
        ("<think>h;m</think>Ko;x", {}, "Ko;", "h;m", True),
        ("<think>hm</think>\n Koalas", {}, "Koala", "hm", True),
        ("<think>hm</think>\n;", {}, ";", "hm", True),
        ("<think>hm</think>\n\nKo\nx", {}, "Ko\n", "hm", True),  # no line ends before its answer
        ("h;m</think>Ko", {"opened": True}, "Ko", "h;m", False),
        ("h;m</think>Koalas", {"opened": True}, "Koala", "h;m", True),
        ("h.m</think>", {"opened": True}, "", "h.", True),
        ("<think>hm", {}, "", "hm", False),
        ("<think>hmmm", {"budget": 5}, "", "hmmm", True),
        ("<think>hmm", {"budget": 5}, "", "hmm", False),
        ("hmmm", {"opened": True, "budget": 4}, "", "hmmm", True),
        ("hmm", {"opened": True, "budget": 4}, "", "hmm", False),
        ("<", {}, "<", "", False),
        ("<th;", {}, "<th;", "", True),
        ("<thi;", {"longest": 50}, "<thi;", "", True),
        ("a<think>b", {"longest": 50}, "a<think>b", "", False),
    ],
)
def test_a_generation_is_followed_token_by_token(text, options, answer, thinking, done):
    made = thought(text, **options)
    assert (said(made), made.text, made.done) == (answer, thinking, done)
    cut = bool(thinking) and not answer
    assert made.cut is cut
    assert made.thinks is bool(thinking)
    if done:
        before = list(made.tokens)
        made.feed(WORDS.index("x"))
        assert made.tokens == before


def test_before_the_first_token_nothing_is_known():
    assert (thought().answer, thought().cut, thought().text) == ([], False, "")
    opened = thought(opened=True)
    assert (opened.answer, opened.cut, opened.thinks, opened.text) == ([], True, True, "")
    assert thought("<").start is None
    assert thought("K").start == 0
    blank = thought(" " * 15, longest=50)
    assert blank.start is None
    blank.feed(WORDS.index(" "))  # a model that thinks begins to within 16 tokens
    assert blank.start == 0


class Tokenizer:
    def __init__(self, added=(), response=None, text=""):
        self.added, self.text = added, text
        if response is not None:
            self.response_template = response

    def get_added_vocab(self):
        return dict.fromkeys(self.added, 0)

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens is False
        return self.text.join(map(chr, tokens))


def declared(**fields):
    return Tokenizer(response={"fields": fields})


def test_marks_of_thinking_are_found_where_a_model_has_them():
    assert not Marks(Tokenizer(), None).some
    assert not Marks(Tokenizer(["<s>", "<pad>"]), "{{ content }}").some
    assert Marks(Tokenizer(), "...<think>...").some
    assert Marks(Tokenizer(["</think>"]), None).some
    for name in ("thinking", "reasoning", "reasoning_content"):
        own = Marks(declared(**{name: {"open": "<A>", "close": "<B>"}}), None)
        assert own.some
        assert own.decode([ord(c) for c in "<A>x<B>"]) == "<think>x</think>"
        assert own.closing("prompt <A>\n") == "<B>"
        assert own.closing("prompt") == ""
    several = Marks(declared(thinking={"open": ["<A>", "<C>"], "close": ["<B>", "<D>"]}), None)
    assert several.decode([ord(c) for c in "<C>x<B>"]) == "<think>x</think>"
    assert several.closing("<C>") == "<B>"
    for odd in ({"open": "<A>"}, {"close": "<B>"}, {"open": None, "close": None}, "x"):
        assert not Marks(declared(thinking=odd), None).some
    for response in ("x", {"fields": "x"}, {}):
        assert not Marks(Tokenizer(response=response), None).some


def test_thinking_is_closed_before_an_answer():
    marks = Marks(Tokenizer(), None)
    assert marks.closed("ask") == "ask"
    assert marks.closed("ask <think>") == "ask <think></think>"
    assert marks.closed("ask <think>\n") == "ask <think>\n\n</think>\n\n"
    assert marks.closed("ask", "<think>") == "ask<think>\n\n</think>\n\n"
    assert marks.closed("<think>\n", "<think>") == "<think>\n\n</think>\n\n"


# --- families of models that see


def test_families_that_are_not_listed_are_ordinary():
    assert family_of("llava") == Family() == Family("{token}\n", "", 0, {})
    for name, family in FAMILIES.items():
        assert family_of(name) is family


def test_a_missing_package_is_recognised_by_what_was_said(monkeypatch):
    def missing(text, installed=()):
        monkeypatch.setattr(transformers_vlm, "find_spec", lambda n: n if n in installed else None)
        return transformers_vlm._missing(ValueError(text))

    assert missing("Package `num2words` is required") == "num2words"
    assert missing("NUM2WORDS", ["torchvision"]) == "num2words"
    assert missing("num2words", ["num2words"]) is None
    assert missing("needs Torchvision") == missing("no VideoProcessor") == "torchvision"
    assert missing("needs torchvision video", ["torchvision"]) is None
    assert missing("something else") is None


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({}, True),
        ({"size": {"height": 3, "width": 2.5}, "min_pixels": 7}, True),
        ({"crop_size": 3, "max_pixels": 3, "longest_edge": 3, "patch_size": 3}, True),
        ({"size": {"height": "3"}}, False),
        ({"size": "3"}, False),
        ({"other": 3}, False),
        ([("size", 3)], False),
    ],
)
def test_only_sizes_of_images_are_passed_on(options, fits):
    assert transformers_vlm._only_sizes(options) is fits


def test_a_processor_runs_no_code_by_its_options():
    with pytest.raises(ValueError, match="trust_remote_code is a setting of the reader itself"):
        transformers_vlm.TransformersVLM.Config(
            model="m", processor={"trust_remote_code": True, "size": 3}
        )


def test_a_model_that_is_not_multimodal_is_refused():
    import transformers

    llava = transformers.LlavaConfig()
    found = transformers_vlm._loader(llava)
    assert found is transformers.AutoModelForImageTextToText
    with pytest.raises(UserError) as error:
        transformers_vlm._loader(transformers.T5Config())
    assert str(error.value) == (
        f"the reader transformers-vlm: transformers {transformers.__version__} has no multimodal "
        "model of the type 't5' that generates text"
    )


class Vocabulary:
    """A tokenizer of five tokens, two of them added."""

    special_tokens_map: ClassVar = {
        "image_token": "<img-own>",
        "bos_token": "<s>",
        "boi_token": "[BOI]",
    }
    names = ("a", "b", "<image>", "<wide image pad>", "<pad>")

    def get_added_vocab(self):
        return {name: i for i, name in enumerate(self.names) if i > 1}

    def __len__(self):
        return len(self.names)

    def convert_ids_to_tokens(self, number):
        return self.names[number]


def test_marks_of_images_are_found_wherever_a_model_has_them():
    processor = SimpleNamespace(video_token="<vid>", image_token=" ", other_token="<other>")
    config = SimpleNamespace(
        image_token_id=4, audio_token_index=1, vision_start_token_id=99, image_token_index=-1
    )
    found = transformers_vlm.image_marks(Vocabulary(), processor, config)
    # "b" (1) is an ordinary word; 99 and -1 are none.
    assert sorted(found) == sorted(
        ["<wide image pad>", "<img-own>", "<image>", "[BOI]", "<vid>", "<pad>"]
    )
    assert [len(mark) for mark in found] == sorted(map(len, found), reverse=True)


# --- checks of models


def written(tokens, logits):
    return checks._Written(torch.tensor([tokens]), torch.tensor([logits], dtype=torch.float32))


def check():
    return checks._Check(SimpleNamespace(), [Prompt("a"), Prompt("b"), Prompt("c")], {})


def test_differences_are_looked_at_while_both_wrote_the_same():
    made = check()
    alone = written([1, 2, 3], [[0.0, 1.0], [2.0, 0.0], [5.0, 5.0]])
    assert made.difference(alone, alone) == 0
    # The second token differs: the step after it is not compared, the step before it is.
    other = written([1, 9, 3], [[0.0, 1.0], [2.0, 0.5], [9.0, 0.0]])
    expected = torch.tensor([2.0, 0.0]).log_softmax(-1) - torch.tensor([2.0, 0.5]).log_softmax(-1)
    assert made.difference(other, alone) == pytest.approx(float(expected.abs().max()), abs=1e-6)
    shorter = written([1], [[0.0, 1.0]])
    assert made.difference(shorter, alone) == 0
    never = -math.inf
    same = written([1], [[0.0, never]])
    assert made.difference(same, same) == 0
    assert made.difference(written([1], [[0.0, 0.0]]), same) == math.inf
    assert made.problem == ""
    broken = written([1], [[math.nan, 0.0]])
    assert made.difference(broken, shorter) == math.inf
    assert made.problem == " gives log-probabilities that are no numbers"
    made.least = math.log(0.5)
    unlikely = written([1], [[0.0, -20.0]])
    assert made.difference(written([1], [[0.0, -10.0]]), unlikely) < 1e-3


def test_what_fails_is_noted_once_with_how_far_off_it_is():
    made = check()
    made.note("batches", "generating in a batch", 0.123456)
    made.note("batches", "something else", 7.0)
    made.problem = " fails: no room"
    made.note("score", "reading on", math.inf)
    assert made.found == {
        "batches": "generating in a batch changes its log-probabilities by up to 0.12",
        "score": "reading on fails: no room",
    }


def test_what_a_check_found_is_kept_for_this_machine(monkeypatch):
    import platform

    import transformers

    cpu = SimpleNamespace(fingerprint="f", _device=torch.device("cpu"))
    versions = [torch.__version__, transformers.__version__]
    assert checks._key(cpu) == fingerprint("check/5", "f", versions, "cpu", platform.machine())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    card = SimpleNamespace(fingerprint="f", _device=torch.device("cuda:1"))
    assert checks._key(card) == fingerprint("check/5", "f", versions, "cuda", "card cuda:1")


def test_pictures_of_the_checks_have_their_sizes():
    import io

    import PIL.Image

    for size in checks._SIZES:
        image = PIL.Image.open(io.BytesIO(checks._picture(*size)))
        assert (image.size, image.mode) == (size, "RGB")
        assert len(set(np.asarray(image).reshape(-1, 3)[:, 0].tolist())) > 100
    without = [p for _, prompts in checks._prompts(SimpleNamespace(supports_images=False))
               for p in prompts]  # fmt: skip
    assert [p.image for p in without] == [None] * 3
    kinds = dict(checks._prompts(SimpleNamespace(supports_images=True)))
    assert list(kinds) == ["an ordinary prompt", "an ordinary image"]
    seen = kinds["an ordinary image"]
    assert [p.text for p in seen] == [p.text for p in without]
    assert seen[0].image == seen[1].image != seen[2].image


class Scripted(checks._Check):
    """Its ways to read give names; `off` says how far off each is, by name and rows."""

    def __init__(self, off, *, scores=True, shares=False, keeps=False):
        reader = SimpleNamespace(scores_answers=scores, _shares=shares, _keeps_features=keeps)
        super().__init__(reader, [Prompt("short"), Prompt("other"), Prompt("long")], {})
        self.most = 1.0
        self.off = off
        self.asked = [self.short, self.long]
        self.read = []  # what was read, and whether beginnings were shared
        self.tolerated = []

    def tolerate(self, other):
        self.tolerated.append(other.text)

    def written(self, prompts, count=2, **options):
        if count == checks._TOKENS:
            return written([1], [[self.off.get("alone", 0.0), 0.0]])
        assert options in ({}, {"use_cache": False})
        return ("uncached" if options else "generated", tuple(p.text for p in prompts))

    def looked_at_once(self, prompts, _):
        assert self.reader._keeps_features
        return "looked at", tuple(p.text for p in prompts)

    def read_on(self, *widths):
        assert not self.reader._keeps_features
        return lambda prompts, alone: (widths, tuple(p.text for p in prompts))

    def gap(self, read, rows):
        asked = [self.asked[row] for row in rows]
        name, texts = read(asked, None)
        assert texts == tuple(prompt.text for prompt in asked)
        if self.reader._shares:
            name = f"shared {name}"
        self.read.append((name, tuple(rows)))
        return self.off.get((name, tuple(rows)), 0.0)


BOTH, FIRST, SECOND = (0, 1), (0,), (1,)


def test_a_right_model_is_read_in_as_few_ways_as_will_do():
    made = Scripted({}, shares=True)
    made.run(even=True)
    assert made.found == {}
    assert made.read == [
        ("generated", BOTH),
        ("uncached", FIRST),
        ((2, 1), BOTH),
        ("shared generated", BOTH),
    ]
    assert made.reader._shares
    assert made.tolerated == ["other"]
    uneven = Scripted({}, scores=False)
    uneven.run(even=False)
    assert (uneven.tolerated, uneven.read) == (["short"], [("generated", BOTH)])


@pytest.mark.parametrize(
    ("off", "found"),
    [
        ({("generated", BOTH): 2.0}, {"batches": "generating in a batch{}"}),
        ({("generated", BOTH): 2.0, ("generated", FIRST): 2.0}, {"batches": "generating{}"}),
        ({("generated", BOTH): 2.0, ("generated", SECOND): 2.0}, {"batches": "generating{}"}),
        ({("generated", BOTH): 1.0}, {}),
        ({("uncached", FIRST): 2.0}, {"next_token_logprobs": "keeping keys and values{}"}),
        ({("uncached", FIRST): 1.0}, {}),
        ({("uncached", FIRST): math.inf}, {}),  # not all models can
        (
            {((2, 1), BOTH): 2.0, ((1, 1, 1), BOTH): 2.0, ((1, 1, 1), FIRST): 2.0},
            {"next_token_logprobs": "reading token by token{}"},
        ),
        (
            {((2, 1), BOTH): 2.0, ((3,), BOTH): 2.0, ((3,), SECOND): 2.0},
            {"score": "reading several tokens at once{}"},
        ),
        (
            {((2, 1), BOTH): 2.0, ((3,), BOTH): 2.0},
            {"batches": "reading several tokens at once in a batch{}"},
        ),
        ({((2, 1), BOTH): 2.0}, {}),
        ({("shared generated", BOTH): 2.0}, {"sharing": "reading a shared beginning once{}"}),
        ({("shared generated", BOTH): 1.0}, {}),
        ({"alone": math.nan, ("generated", BOTH): 2.0}, {}),  # every prompt will report it
    ],
)
def test_what_a_check_notes(off, found):
    made = Scripted(off, shares=True)
    made.run(even=True)
    said = " changes its log-probabilities by up to 2"
    assert made.found == {ability: what.format(said) for ability, what in found.items()}
    assert made.reader._shares


@pytest.mark.parametrize("image", [None, b"x"])
@pytest.mark.parametrize("off", [1.0, 2.0])
def test_features_of_images_are_checked_where_there_are_images(image, off):
    made = Scripted({("looked at", BOTH): off}, keeps=True)
    made.short = replace(made.short, image=image)
    made.run(even=True)
    assert (("looked at", BOTH) in made.read) == (image is not None)
    said = "computing the features of an image once changes its log-probabilities by up to 2"
    assert made.found == ({"features": said} if off == 2 and image else {})
    assert made.reader._keeps_features


def test_without_batches_every_prompt_is_checked_alone():
    off = {("generated", BOTH): 2.0, ("shared generated", SECOND): 2.0, ((1, 1, 1), SECOND): 3.0}
    made = Scripted(off, shares=True)
    made.run(even=True)
    assert list(made.found) == ["batches", "next_token_logprobs", "sharing"]
    assert ((2, 1), BOTH) not in made.read
    assert made.read[-2:] == [("shared generated", FIRST), ("shared generated", SECOND)]
    assert made.found["next_token_logprobs"].endswith("by up to 3")
