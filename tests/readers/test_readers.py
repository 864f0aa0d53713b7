"""Local readers: batches, log-probabilities and next tokens against plain forward passes.

Most models here are tiny and random: they prove plumbing. SmolLM2 (real weights) is at the end.
"""

import functools
import json
import math
import re
import shutil
import sys
import types
import warnings
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
import reader_models
import torch
import transformers
from abilities import abilities_of
from cases import slow_but
from PIL import Image

from ravqa.answering.answerer import Answerer
from ravqa.answering.config import AnsweringConfig
from ravqa.core.errors import MissingExtraError, PromptError, UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Question
from ravqa.core.settings import validate
from ravqa.readers.base import Generation, Prompt
from ravqa.readers.cached import CachedReader
from ravqa.readers.checks import check_model
from ravqa.readers.families import FAMILIES
from ravqa.readers.loading import Placement, model_context, stop_ids
from ravqa.readers.transformers_llm import TransformersLLM
from ravqa.readers.transformers_seq2seq import TransformersSeq2Seq
from ravqa.readers.transformers_vlm import TransformersVLM, _loader

TEXT = dict.fromkeys(["llama", "mistral", "lfm2"], TransformersLLM) | {"t5": TransformersSeq2Seq}
# Those whose processors want torchvision, and the others.
VIDEO = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "llava_onevision", "mistral3"]
SEEING = ["llava", "llava_next", "blip2_t5", "blip2_opt", "instructblip", "paligemma", "idefics3"]
SEEING += ["gemma3", "florence2", *VIDEO]
ALL = [*TEXT, *SEEING]
# One model of each way to be asked; the others are its kind, and slow as there are many.
QUICK = ["llama", "lfm2", "t5", "llava", "blip2_t5", "paligemma", "qwen2_5_vl", "florence2"]
TEXT |= dict.fromkeys(["mpt", "gpt_neo"], TransformersLLM)
PLAIN = {"blip2_t5", "blip2_opt", "instructblip", "paligemma", "florence2"}
IMAGE_TOKEN = dict.fromkeys(SEEING, "<image>") | {
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "internvl": "<IMG_CONTEXT>",
    "gemma3": "<start_of_image>",
    "mistral3": "[IMG]",
    "mllama": "<|image|>",
}
TOKENS = 6


def picture(seed, width, height):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    data = BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


WIDE, HIGH = picture(0, 60, 40), picture(1, 30, 90)
SHORT = Prompt("Question: what is it? Answer:", WIDE)
LONG = Prompt("Passage: koalas eat leaves. Question: what do they eat? Answer:", HIGH)
BLIND = Prompt("Q: who?")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Folder of a tiny model, by name, made once."""

    @functools.cache
    def make(name):
        if name in VIDEO:
            pytest.importorskip("torchvision", reason=f"the processor of {name} needs torchvision")
        if name == "smolvlm":
            pytest.importorskip("num2words", reason="the processor of SmolVLM needs num2words")
        return str(getattr(reader_models, name)(tmp_path_factory.mktemp(name)))

    return make


def load(path, name, **options):
    kind = TEXT.get(name, TransformersVLM)
    options.setdefault("max_new_tokens", TOKENS)
    return kind(validate(kind.Config, {"model": path, "device": "cpu", **options}, "reader"))


CHECKED = {}


@pytest.fixture(autouse=True)
def checked_once(monkeypatch):
    """Every model is checked when it is first loaded, which is the same each time."""

    def check(reader):
        key = (reader.weights, reader._model.dtype)
        if key not in CHECKED:
            CHECKED[key] = check_model(reader)
        return CHECKED[key]

    monkeypatch.setattr("ravqa.readers.local.check_model", check)


@pytest.fixture(scope="session")
def tiny(folder):
    """A reader of a tiny model, by name, loaded once."""
    return functools.cache(lambda name: load(folder(name), name))


@pytest.fixture(scope="session")
def plain(folder):
    """The same model and its processor (or tokenizer), loaded apart from any reader."""

    @functools.cache
    def loaded(name):
        path = folder(name)
        auto = transformers.AutoModelForImageTextToText
        if name in TEXT:
            auto = transformers.AutoModelForCausalLM
        if name == "t5":
            auto = transformers.AutoModelForSeq2SeqLM
        prepare = transformers.AutoTokenizer if name in TEXT else transformers.AutoProcessor
        return auto.from_pretrained(path).eval(), prepare.from_pretrained(path)

    return loaded


def prompts_of(name):
    prompts = [SHORT, LONG, BLIND]
    return [replace(p, image=None) for p in prompts] if name in TEXT else prompts


def rendered(name, prompt):
    """What the model is given, written by hand."""
    if name in TEXT:
        return prompt.text
    if name in PLAIN:
        return ("<image>" * len(prompt.images) if name == "paligemma" else "") + prompt.text
    image = f"{IMAGE_TOKEN[name]}\n" * len(prompt.images)
    begin = "<s>" if name == "gemma3" else ""
    return f"{begin}USER: {image}{prompt.text}\nASSISTANT:"


def opened(prompt):
    return [Image.open(BytesIO(image)).convert("RGB") for image in prompt.images]


def inputs_of(name, plain, prompt):
    """Model inputs of one prompt, unpadded, by the processor alone."""
    _, processor = plain(name)
    text = rendered(name, prompt)
    if prompt.image is None:
        tokenizer = processor if name in TEXT else processor.tokenizer
        return dict(tokenizer(text, return_tensors="pt"))
    inputs = dict(processor(text=[text], images=[opened(prompt)], return_tensors="pt"))
    inputs.pop("labels", None)
    if name == "instructblip":
        for key in ("qformer_input_ids", "qformer_attention_mask"):
            inputs[key] = inputs[key][:, :16]
    return inputs


def reference(name, plain, prompt, tokens):
    """Log-probabilities [len(tokens) + 1, vocabulary] of one pass without any cache."""
    model, _ = plain(name)
    inputs = inputs_of(name, plain, prompt)
    if prompt.image is None and name.startswith(("blip2", "instructblip")):
        model = model.language_model
    behind = torch.tensor([tokens], dtype=torch.long)
    start = {"t5": [0], "blip2_t5": [0], "instructblip": [0], "florence2": [1, 2]}.get(name)
    if start is not None:
        inputs["decoder_input_ids"] = torch.cat([torch.tensor([start]), behind], dim=1)
    else:
        inputs["input_ids"] = torch.cat([inputs["input_ids"], behind], dim=1)
        ones = torch.ones_like(behind)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], ones], dim=1)
        if name == "paligemma":  # attends both ways in the prompt (0), not behind it (1)
            inputs["token_type_ids"] = torch.cat(
                [torch.zeros_like(inputs["input_ids"][:, : -len(tokens) or None]), ones], dim=1
            )
        if name == "mllama" and prompt.image is not None:
            across = inputs["cross_attention_mask"]
            more = across[:, -1:].expand(-1, len(tokens), -1, -1)
            inputs["cross_attention_mask"] = torch.cat([across, more], dim=1)
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in inputs and name != "paligemma":
                inputs[key] = torch.cat([inputs[key], 0 * ones], dim=1)
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -len(tokens) - 1 :]
    return logits.float().log_softmax(-1).numpy()


def answer_tokens(name, plain, prompt, answer):
    tokenizer = plain(name)[1] if name in TEXT else plain(name)[1].tokenizer
    encoder = name in {"t5", "blip2_t5", "instructblip", "florence2"}
    apart = encoder or (name == "paligemma" and prompt.image)  # it writes a line break
    return tokenizer(answer if apart else f" {answer}", add_special_tokens=False)["input_ids"]


def same(a, b):
    assert [g.text for g in a] == [g.text for g in b]
    assert [g.tokens for g in a] == [g.tokens for g in b]
    assert [g.log_prob for g in a] == pytest.approx([g.log_prob for g in b], abs=1e-4)


# --- what every reader does


@pytest.mark.parametrize("name", slow_but(QUICK, ALL))
def test_a_batch_equals_single_prompts(tiny, name):
    reader, prompts = tiny(name), prompts_of(name)
    batch = reader.generate(prompts)
    same(batch, [reader.generate([p])[0] for p in prompts])
    same(batch[::-1], reader.generate(prompts[::-1]))
    assert all(0 < g.tokens <= TOKENS and g.log_prob < 0 for g in batch)
    assert len({round(g.log_prob, 3) for g in batch}) == 3


@pytest.mark.parametrize("name", slow_but(QUICK, ALL))
def test_a_right_model_is_not_accused(tiny, name):
    assert tiny(name).switched_off == {}


@pytest.mark.parametrize("name", slow_but(QUICK, ALL))
def test_generations_are_greedy_and_their_log_probabilities_those_of_a_forward_pass(
    tiny, plain, name
):
    reader = tiny(name)
    for prompt in prompts_of(name):
        tokens, total = [], 0.0
        while len(tokens) < TOKENS and not set(tokens) & reader.ends:
            row = reference(name, plain, prompt, tokens)[-1]
            tokens.append(int(row.argmax()))
            total += row[tokens[-1]]
        [made] = reader.generate([prompt])
        assert made.text == reader.decode(tokens)
        assert made.tokens == len(tokens)
        assert made.log_prob == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("name", slow_but(QUICK, [*ALL, "mllama"]))
def test_scores_equal_teacher_forcing(tiny, plain, name):
    reader, prompts = tiny(name), prompts_of(name)
    answers = ["Paris", "large brown fox", "the"]
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = answer_tokens(name, plain, prompt, answer)
        rows = reference(name, plain, prompt, tokens)
        ends = [rows[len(tokens), end] for end in reader.ends]
        expected.append(
            sum(float(rows[i, token]) for i, token in enumerate(tokens))
            + math.log(sum(math.exp(end) for end in ends))
        )
    assert reader.score(prompts, answers) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["llama", "llava", "t5"])
def test_control_tokens_in_an_answer_are_scored_as_plain_text(tiny, plain, name):
    """What a model cannot write as an answer is not read as its own marks."""
    reader, prompt = tiny(name), replace(SHORT, image=None)
    tokenizer = plain(name)[1] if name in TEXT else plain(name)[1].tokenizer
    control = sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens})
    answers = [f"Paris{token}" for token in control] + control + ["".join(control)]
    given = [reader._answer_ids(prompt, answer) for answer in answers]
    ids = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(control)}
    assert ids.isdisjoint(token for row in given for token in row)
    with_space = [answer.replace("<", "< ") for answer in answers]
    assert reader.score([prompt] * len(answers), answers) == pytest.approx(
        reader.score([prompt] * len(answers), with_space), abs=1e-3
    )


@pytest.mark.parametrize("name", slow_but(QUICK, [*ALL, "mllama"]))
def test_next_tokens_equal_a_forward_pass_step_by_step(tiny, plain, name):
    reader, prompts = tiny(name), prompts_of(name)
    prefixes = [[], [], []]
    total = np.zeros(3)
    for _ in range(4):
        rows = np.stack(reader.next_token_logprobs(prompts, prefixes))
        assert rows.dtype == np.float32
        assert np.exp(rows).sum(1) == pytest.approx(1, abs=1e-4)
        for row, prompt, prefix in zip(rows, prompts, prefixes, strict=True):
            expected = reference(name, plain, prompt, prefix)[-1]
            np.testing.assert_allclose(row, expected, atol=1e-3)
        best = rows.argmax(1)
        total += rows[range(3), best]
        prefixes = [[*prefix, int(token)] for prefix, token in zip(prefixes, best, strict=True)]


@pytest.mark.parametrize("name", slow_but(QUICK, ALL))
def test_tokens_are_counted_with_those_of_the_image(tiny, plain, name):
    prompts = prompts_of(name)
    expected = [int(inputs_of(name, plain, p)["attention_mask"].sum()) for p in prompts]
    assert tiny(name).count_tokens(prompts) == expected
    assert tiny(name).count_tokens([]) == []


@pytest.mark.parametrize("name", slow_but(QUICK[3:], SEEING))
def test_the_image_is_looked_at(tiny, name):
    reader = tiny(name)
    other = replace(SHORT, image=picture(2, 60, 40))
    one, two, none = reader.score([SHORT, other, replace(SHORT, image=None)], ["Paris"] * 3)
    assert abs(one - two) > 1e-3
    assert abs(one - none) > 1e-3


ONE_IMAGE = ["blip2_t5", "blip2_opt", "instructblip", "florence2"]
SEVERAL = [name for name in SEEING if name not in ONE_IMAGE]
PICTURES = replace(SHORT, pictures=(HIGH, picture(3, 40, 40)))


@pytest.mark.parametrize("name", slow_but(QUICK[3:], SEEING))
def test_readers_say_how_many_images_a_prompt_may_have(tiny, folder, name):
    reader = tiny(name)
    declared = TransformersVLM.declared(reader.config)
    assert reader.max_images == declared.max_images == (1 if name in ONE_IMAGE else None)


def test_readers_of_text_say_that_they_take_no_images(tiny):
    for name in ("llama", "t5"):
        assert not TEXT[name].declared(tiny(name).config).supports_images


@pytest.mark.parametrize("name", slow_but(["llava", "qwen2_5_vl"], SEVERAL))
def test_a_prompt_with_several_images_is_read_as_the_processor_and_the_model_do(tiny, plain, name):
    reader = tiny(name)
    prompts = [PICTURES, replace(LONG, pictures=(WIDE,)), SHORT, BLIND]
    expected = [int(inputs_of(name, plain, p)["attention_mask"].sum()) for p in prompts]
    assert reader.count_tokens(prompts) == expected
    tokens = answer_tokens(name, plain, PICTURES, "Paris")
    logs = reference(name, plain, PICTURES, tokens)
    ends = np.logaddexp.reduce(logs[-1][list(reader.ends)])
    wanted = sum(row[t] for row, t in zip(logs, tokens, strict=False)) + ends
    turned = replace(PICTURES, pictures=PICTURES.pictures[::-1])
    found = reader.score([*prompts, turned], ["Paris"] * 5)
    assert found[0] == pytest.approx(wanted, abs=1e-3)
    assert abs(found[0] - found[4]) > 1e-3
    same(reader.generate(prompts), [reader.generate([p])[0] for p in prompts])


@pytest.mark.parametrize("name", [name for name in SEVERAL if name not in PLAIN])
@pytest.mark.parametrize("asked", [PICTURES, replace(PICTURES, image=None)])
def test_images_stand_where_the_processors_own_chat_template_puts_them(tiny, plain, name, asked):
    processor = plain(name)[1]
    shown = [{"type": "image", "image": image} for image in opened(asked)]
    content = [*shown, {"type": "text", "text": asked.text}]
    wanted = processor.apply_chat_template(
        [[{"role": "user", "content": content}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    found = tiny(name)._inputs([asked])
    assert found["input_ids"].tolist() == wanted["input_ids"].tolist()
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key])


def test_images_beyond_what_a_model_takes_fail_their_prompt_alone(tiny):
    found = tiny("florence2").generate([PICTURES, SHORT])
    assert found[0] == Failure("the reader transformers-vlm takes 1 image in a prompt, but got 3")
    assert found[1] == tiny("florence2").generate([SHORT])[0]


@pytest.mark.parametrize("name", slow_but(QUICK, ALL))
def test_control_tokens_in_a_passage_are_plain_text(tiny, plain, name):
    """Neither turns nor images are begun or ended by a text, whatever stands in it."""
    reader = tiny(name)
    prepare = plain(name)[1]
    tokenizer = prepare if name in TEXT else prepare.tokenizer
    control = sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens})
    ids = tokenizer.convert_tokens_to_ids(control)
    marks = IMAGE_TOKEN.get(name, "").replace("<|vision_start|>", "").replace("<|vision_end|>", "")
    said = " in ".join([marks, *control, *(token.upper() for token in control)])
    said += "".join(control) + "".join(token[:1] + token for token in control)
    evil = Prompt(f"Passage: {said} HTML. Question: what? Answer:", None if name in TEXT else WIDE)
    calm = replace(evil, text="Passage: HTML. Question: what? Answer:")
    blind = [replace(prompt, image=None) for prompt in (evil, calm)]

    def counts(prompt):
        read = reader._inputs([prompt])["input_ids"][0].tolist()
        return {token: read.count(token) for token in ids}

    assert counts(evil) == counts(calm)
    assert counts(blind[0]) == counts(blind[1])
    [length] = reader.count_tokens([evil])
    assert length == reader._inputs([evil])["attention_mask"].sum()
    assert len(reader.generate([evil, *blind])) == 3
    # A prompt's own template may write them, but no marks of images.
    mine = replace(blind[1], text=f"</s>{calm.text}", own=frozenset({"</s>", marks}))
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert counts(mine)[end] == 1 + counts(blind[1])[end]


BEGINNING = (
    "USER: the quick brown fox jumps over the lazy dog. Passage: koalas eat leaves of trees. "
)


SHARING = dict.fromkeys(["llama", "mpt", "gpt_neo"], True) | dict.fromkeys(
    ["mistral", "lfm2"], False
)


def beginnings_read(reader, monkeypatch):
    """Tokens of the beginnings that a reader shares from now on."""
    read = []
    past = reader._beginnings.past

    def counted(ids, keys, least, first):
        def counting(row, tokens):
            read.append(ids[row][:tokens])
            return first(row, tokens)

        return past(ids, keys, least, counting)

    monkeypatch.setattr(reader._beginnings, "past", counted)
    return read


@pytest.mark.parametrize(
    ("name", "shares"), slow_but([("llama", True), ("mistral", False)], list(SHARING.items()))
)
def test_a_shared_beginning_is_run_once_where_its_keys_and_values_are_kept_whole(
    folder, plain, monkeypatch, name, shares
):
    reader = load(folder(name), name)
    runs = beginnings_read(reader, monkeypatch)
    ends = ["Q: who?", "Question: what is the capital of France? Answer:", "x y z 1 2 3 4"]
    prompts = [Prompt(BEGINNING + end) for end in ends]
    rows = reader.next_token_logprobs(prompts, [[9], [9], [9]])
    for row, prompt in zip(rows, prompts, strict=True):
        np.testing.assert_allclose(row, reference(name, plain, prompt, [9])[-1], atol=1e-3)
    batch = reader.generate(prompts)
    assert bool(runs) == shares
    assert all(len(beginning) > 20 for beginning in runs)
    same(batch, [reader.generate([p])[0] for p in prompts])
    beams = load(folder(name), name, beams=2)
    same(beams.generate(prompts), [beams.generate([p])[0] for p in prompts])


def test_prompts_one_at_a_time_share_what_the_last_one_began_with(folder, monkeypatch):
    reader, other = load(folder("llama"), "llama"), load(folder("llama"), "llama")
    prompts = [Prompt(BEGINNING + end) for end in ("Q: who?", "Q: when was it?", "x y z 1 2 3")]
    tokens = beginnings_read(reader, monkeypatch)
    same([reader.generate([p])[0] for p in prompts], other.generate(prompts))
    assert len(tokens) == 1  # the first prompt has none before it, the third one has its beginning
    assert all(len(prefix) > 20 for prefix in tokens)
    reader.generate([Prompt("the quick fox")])
    assert len(tokens) == 1


def test_a_model_without_keys_and_values_generates_only(folder):
    reader = load(folder("mamba2"), "llama")
    assert abilities_of(reader) == {"log_probs", "count"}
    prompts = prompts_of("llama")
    same(reader.generate(prompts), [reader.generate([p])[0] for p in prompts])
    begin = f"^the reader transformers-llm: {folder('mamba2')} cannot"
    with pytest.raises(UserError, match=f"{begin} score answers$"):
        reader.score(prompts, ["a"] * 3)
    with pytest.raises(UserError, match=f"{begin} give next-token probabilities$"):
        reader.next_token_logprobs(prompts, [[]] * 3)


def test_every_oddity_in_the_table_has_a_model_here():
    types = {"blip2_t5": "blip-2", "blip2_opt": "blip-2"}
    assert set(FAMILIES) <= {types.get(name, name) for name in SEEING}


@pytest.mark.parametrize("name", ["llama", "t5", "llava"])
def test_no_prompts_are_no_generations(tiny, name):
    reader = tiny(name)
    assert reader.generate([]) == []
    assert reader.score([], []) == []
    assert len(reader.next_token_logprobs([], [])) == 0


# --- next tokens, kept between calls


def counted(reader, monkeypatch):
    """Prompts that are read from the beginning, as they are."""
    read = []
    prefill = reader._prefill

    def wrapper(prompts):
        read.extend(prompts)
        return prefill(prompts)

    monkeypatch.setattr(reader, "_prefill", wrapper)
    return read


@pytest.mark.parametrize("name", ["llama", "t5", "llava", "blip2_t5"])
def test_rows_may_leave_return_end_or_stand_twice(tiny, plain, monkeypatch, name):
    reader, prompts = tiny(name), prompts_of(name)
    read = counted(reader, monkeypatch)

    def check(rows, keys):
        for row, (i, prefix) in zip(rows, keys, strict=True):
            expected = reference(name, plain, prompts[i], prefix)[-1]
            np.testing.assert_allclose(row, expected, atol=1e-3)

    def step(*keys):
        rows = reader.next_token_logprobs([prompts[i] for i, _ in keys], [p for _, p in keys])
        check(rows, keys)

    step((0, []), (1, []), (2, []))
    assert len(read) == 3
    step((2, [5]), (0, [7]), (1, [9]))  # another order
    step((2, [5]), (0, [7, 8]), (0, [7, 30]))  # one has left, one waits, one branches
    step((0, [7, 8]), (0, [7, 30]))  # asked for again
    step((0, [7, 8, 4]), (0, [7, 8, 6]))
    assert len(read) == 3
    step((1, [9, 9]), (0, [7, 8, 4, 4]))  # the one that had left is read anew
    assert read[3:] == [prompts[1]]
    step((0, []))
    assert read[4:] == [prompts[0]]


def test_a_finished_row_that_waits_costs_nothing(tiny, monkeypatch):
    reader, prompts = tiny("llama"), prompts_of("llama")
    read = counted(reader, monkeypatch)
    steps = []
    extend = reader._extend
    monkeypatch.setattr(
        reader, "_extend", lambda state, tokens: (steps.append(len(tokens)), extend(state, tokens))
    )
    first = reader.next_token_logprobs(prompts, [[1], [4], [4]])
    read.clear()
    steps.clear()
    again = reader.next_token_logprobs(prompts, [[1], [4, 5], [4, 6]])
    last = reader.next_token_logprobs(prompts, [[1], [4, 5, 5], [4, 6, 6]])
    assert read == []
    assert steps == [2, 2]
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[0], last[0])


def test_a_prompt_with_several_answers_is_read_once_a_batch(folder, tiny, monkeypatch):
    reader = load(folder("llava"), "llava", batch_size=7)
    read = counted(reader, monkeypatch)
    prompts = [SHORT, LONG] * 7
    answers = [f"answer {'x' * (i % 5)}{i}" for i in range(14)]
    together = reader.score(prompts, answers)
    assert read == [SHORT, LONG]
    apart = [tiny("llava").score([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    assert together == pytest.approx(apart, abs=1e-3)
    assert dict(reader.score_each(prompts, answers)) == dict(enumerate(together))


def test_an_empty_answer_is_the_end_alone(tiny, plain):
    reader = tiny("t5")
    prompt = prompts_of("t5")[0]
    expected = float(reference("t5", plain, prompt, [])[-1][1])
    assert reader.score([prompt, prompt], ["", "  "]) == pytest.approx([expected] * 2, abs=1e-4)


def test_all_ends_of_an_answer_are_added_up(tiny, plain):
    reader = tiny("llama")
    newline = plain("llama")[1]("\n", add_special_tokens=False)["input_ids"][-1]
    assert reader.ends == {1, newline}  # "\n\n" is two tokens here
    prompt = prompts_of("llama")[0]
    row = np.exp(reference("llama", plain, prompt, [])[-1])
    assert reader.score([prompt], [""]) == pytest.approx([math.log(row[1] + row[newline])], 1e-3)


class BreakingTokenizer:
    """Knows "\\n" and "\\n\\n" as tokens 7 and 8, and writes "\\r\\n" with two."""

    eos_token_id = 1

    def __call__(self, text, add_special_tokens):
        known = {"\n": [5, 7], "\n\n": [8], "\r\n": [6, 7]}
        return {"input_ids": known.get(text, [5, 6, 7])}


@pytest.mark.parametrize("ends", [9, -1, 2**70, "</s>", [9, 2**70], ["a", None]])
def test_end_tokens_that_a_model_cannot_write_are_refused(ends):
    own = types.SimpleNamespace(eos_token_id=ends)
    with pytest.raises(UserError) as error:
        stop_ids(BreakingTokenizer(), own, newline=False, why="x", known=9)
    assert str(error.value) == (
        f"x: generation never ends: the end token {ends!r} of its generation configuration is not "
        "one of the model's 9 tokens"
    )
    own.eos_token_id = [8, ends]
    assert stop_ids(BreakingTokenizer(), own, newline=False, why="x", known=9) == [8]


def test_tokens_that_a_model_does_not_know_fail_their_prompt(folder, tmp_path):
    copied = tmp_path / "model"
    shutil.copytree(folder("llama"), copied)
    file = copied / "tokenizer.json"
    values = json.loads(file.read_text())
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {"id": 9000, "content": "okapi", "special": False, **mark}
    values["added_tokens"].append(added)
    file.write_text(json.dumps(values))
    config = TransformersLLM.Config(model=str(copied), prompt_form="plain")
    tested = TransformersLLM(config)
    good, bad = tested.generate([Prompt("What is it?"), Prompt("Is it an okapi?")])
    assert isinstance(good, Generation)
    known = tested._known
    assert bad.reason == (
        f"the reader transformers-llm: the tokenizer gives 'okapi' the number {known}, but the "
        f"model has only {known} tokens"
    )


def test_tokens_of_several_line_breaks_end_an_answer_too():
    own = transformers.GenerationConfig(eos_token_id=[1, 2])
    assert stop_ids(BreakingTokenizer(), own, newline=True, why="x") == [1, 2, 7, 8]
    assert stop_ids(BreakingTokenizer(), own, newline=False, why="x") == [1, 2]
    none = transformers.GenerationConfig()
    assert stop_ids(BreakingTokenizer(), none, newline=False, why="x") == [1]
    BreakingTokenizer.eos_token_id = None
    with pytest.raises(UserError, match=r"^x: the model has no end-of-sequence token$"):
        stop_ids(BreakingTokenizer(), none, newline=False, why="x")


# --- batches and memory


def test_batches_keep_to_both_budgets(folder, monkeypatch):
    reader = load(folder("llama"), "llama", batch_size=3, batch_tokens=60)
    texts = ["what is it? " * n for n in (1, 9, 2, 1, 3, 1, 1, 4, 2, 1)]
    prompts = [Prompt(text) for text in texts]
    seen = []
    inner = reader._generate
    monkeypatch.setattr(reader, "_generate", lambda batch: (seen.append(batch), inner(batch))[1])
    made = reader.generate(prompts)
    needed = {p: n + TOKENS for p, n in zip(prompts, reader.count_tokens(prompts), strict=True)}
    assert sorted(p.text for batch in seen for p in batch) == sorted(texts)
    assert all(len(batch) <= 3 for batch in seen)
    assert all(len(b) * max(needed[p] for p in b) <= 60 for b in seen if len(b) > 1)
    assert max(map(len, seen)) == 3
    lengths = [needed[p] for batch in seen for p in batch]
    assert lengths == sorted(lengths)  # neighbours in length share a batch
    monkeypatch.undo()
    same(made, load(folder("llama"), "llama").generate(prompts))


def small_memory(rows, sizes):
    """Wraps a method that takes a batch so that it runs out of memory with more than `rows`."""

    def wrap(method):
        def wrapper(batch, *rest):
            sizes.append(len(batch))
            if len(batch) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return method(batch, *rest)

        return wrapper

    return wrap


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_a_batch_that_does_not_fit_is_halved(folder, tiny, monkeypatch, name):
    prompts = [Prompt(f"Question {i}: what?", None if name == "llama" else WIDE) for i in range(8)]
    reader, sizes = load(folder(name), name), []
    monkeypatch.setattr(reader, "_generate", small_memory(2, sizes)(reader._generate))
    same(reader.generate(prompts), tiny(name).generate(prompts))
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    sizes.clear()
    reader.generate(prompts)
    assert sizes == [2, 2, 2, 2]  # what was learned is kept

    reader, sizes = load(folder(name), name), []
    monkeypatch.setattr(reader, "_prefill", small_memory(3, sizes)(reader._prefill))
    answers = [f"answer {i}" for i in range(8)]
    assert reader.score(prompts, answers) == pytest.approx(
        tiny(name).score(prompts, answers), abs=1e-3
    )
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


def gather(pairs, into):
    for row, value in pairs:
        into[row] = value


def test_prompts_that_do_not_fit_are_named_when_the_others_are_answered(folder, tiny, monkeypatch):
    prompts = [Prompt(f"Question {'what is it? ' * n}?") for n in (1, 20, 2, 30, 3)]
    reader = load(folder("llama"), "llama", context=110)
    most = max(reader.count_tokens([prompts[i] for i in (0, 2, 4)]))
    assert reader.count_tokens([prompts[3]])[0] + TOKENS > 110
    for method in ("_generate", "_prefill"):
        real = getattr(reader, method)

        def limited(batch, real=real):
            if max(reader.count_tokens(batch)) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(batch)

        monkeypatch.setattr(reader, method, limited)
    answers = ["Paris"] * 5
    expected = [tiny("llama").generate(prompts), tiny("llama").score(prompts, answers)]
    calls = [reader.generate_each(prompts), reader.score_each(prompts, answers)]
    for call, right in zip(calls, expected, strict=True):
        given = {}
        gather(call, given)
        assert sorted(given) == [0, 1, 2, 3, 4]
        assert [i for i, value in given.items() if isinstance(value, Failure)] == [3, 1]
        for i, value in given.items():
            if isinstance(value, Failure):
                continue
            if isinstance(value, float):
                assert value == pytest.approx(right[i], abs=1e-3)
            else:
                same([value], [right[i]])
        assert "does not fit into the memory of" in given[1].reason
        assert "longer than the context of 110" in given[3].reason
    good, bad = reader.generate(prompts[:2])
    assert isinstance(good, Generation)
    assert "does not fit into the memory" in bad.reason


def test_memory_is_freed_before_a_batch_is_tried_again(folder, monkeypatch):
    reader, prompts = load(folder("llama"), "llama"), prompts_of("llama")
    reader.next_token_logprobs(prompts, [[], [], []])
    held = []
    inner = reader._generate

    def full(batch):
        held.append(len(reader._states))
        if reader._states:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(batch)

    monkeypatch.setattr(reader, "_generate", full)
    assert len(reader.generate(prompts)) == 3
    assert held == [1, 0, 0]


def test_next_tokens_go_on_after_memory_ran_out(folder, plain, monkeypatch):
    reader, prompts = load(folder("llama"), "llama"), prompts_of("llama")
    reader.next_token_logprobs(prompts, [[], [], []])
    extend, failures = reader._extend, [torch.OutOfMemoryError("CUDA out of memory")]

    def once(state, tokens):
        if failures:
            raise failures.pop()
        return extend(state, tokens)

    monkeypatch.setattr(reader, "_extend", once)
    rows = reader.next_token_logprobs(prompts, [[4], [5], [6]])
    for row, prompt, token in zip(rows, prompts, (4, 5, 6), strict=True):
        expected = reference("llama", plain, prompt, [token])[-1]
        np.testing.assert_allclose(row, expected, atol=1e-3)


class Strict:
    """A processor that refuses images of one shape, as Qwen's refuse very thin ones."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *, images, **options):
        if any(image.size == (2, 90) for row in images for image in row):
            raise ValueError("absolute aspect ratio must be smaller than 20\nsays the library")
        return self.inner(images=images, **options)


THIN = replace(SHORT, image=picture(2, 2, 90))


def refuse(reader, monkeypatch):
    """A prompt that a library refuses, and what it says: the processor, or the tokenizer."""
    if reader.supports_images:
        monkeypatch.setattr(reader, "_processor", Strict(reader._processor))
        return THIN, "absolute aspect ratio must be smaller than 20$"
    lengths = reader._lengths

    def strict(prompts):
        if any("refused" in prompt.text for prompt in prompts):
            raise TypeError("no text")
        return lengths(prompts)

    monkeypatch.setattr(reader, "_lengths", strict)
    return Prompt("to be refused"), "no text$"


def failed(given):
    return [row for row, value in sorted(given.items()) if isinstance(value, Failure)]


@pytest.mark.parametrize("name", ["llava", "llama", "t5"])
def test_what_a_library_refuses_costs_its_own_prompt_alone(folder, monkeypatch, name):
    reader = load(folder(name), name)
    good = prompts_of(name)
    texts = [generation.text for generation in reader.generate(good)]
    scores = reader.score(good, ["a", "b", "c"])
    bad, reason = refuse(reader, monkeypatch)
    asked = [good[0], bad, *good[1:]]
    given = dict(reader.generate_each(asked))
    assert failed(given) == [1]
    assert re.search(reason, given[1].reason)
    assert [given[row].text for row in (0, 2, 3)] == texts
    given = dict(reader.score_each(asked, ["a", "x", "b", "c"]))
    assert failed(given) == [1]
    assert re.search(reason, given[1].reason)
    assert [given[row] for row in (0, 2, 3)] == pytest.approx(scores, abs=1e-4)
    for call in (lambda p: reader.next_token_logprobs(p, [()] * len(p)), reader.count_tokens):
        given = dict(enumerate(call(asked)))
        assert failed(given) == [1]
        assert re.search(reason, given[1].reason)
        assert failed(dict(enumerate(call(good)))) == []
        assert len(call(good)) == 3


def test_an_end_mark_alone_is_no_answer(folder, tmp_path, fresh_cache):
    reader = load(folder("llama"), "llama")
    answerer = Answerer(AnsweringConfig(decision="none"), reader)
    [answer] = answerer.answer([Question(1, "what?")], [[]])
    assert answer.raw
    prompt = Prompt(answerer.asked[answer.drafts[0].prompt_hash])
    first = int(reader.next_token_logprobs([prompt], [()])[0].argmax())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    model.generation_config.eos_token_id = first  # what it writes first
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder("llama")).save_pretrained(tmp_path)
    silent = load(str(tmp_path), "llama")
    assert silent.generate([prompt])[0].tokens == 1
    answerer = Answerer(AnsweringConfig(decision="none"), silent)
    for _ in range(2):  # nothing is kept
        [failure] = answerer.answer([Question(1, "what?")], [[]])
        assert failure == Failure("the model ended its answer before the first word")
    assert answerer.cached.generated == 2
    stream = answerer.stream(Question(1, "what?"), [])
    with pytest.raises(PromptError, match="before the first word"):
        list(stream)


@pytest.mark.parametrize("step", ["_generate", "_prefill", "_extend"])
def test_a_model_that_fails_is_one_line(folder, monkeypatch, step):
    reader = load(folder("llama"), "llama")
    good = prompts_of("llama")
    expected = reader.next_token_logprobs(good, [(5,)] * 3)

    def broken(*_):
        raise RuntimeError("not of memory\nat all")

    monkeypatch.setattr(reader, step, broken)

    def ask():
        if step == "_generate":
            return reader.generate(good)
        return reader.next_token_logprobs(good, [(7, 8)] * 3)

    assert ask() == [Failure("the reader transformers-llm: not of memory")] * 3
    monkeypatch.undo()
    np.testing.assert_allclose(reader.next_token_logprobs(good, [(5,)] * 3), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "a prompt of .* tokens does not fit into the memory of cpu"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), "does not fit into"),
        (RuntimeError("CUDA error: device-side assert triggered\n..."), "the device failed"),
    ],
)
def test_memory_and_devices_that_fail_are_said_to(folder, monkeypatch, error, message):
    reader = load(folder("llama"), "llama")

    def broken(prompts):
        raise error

    monkeypatch.setattr(reader, "_generate", broken)
    if "device" in message:  # nothing can be done with it any more: the run is not to go on
        with pytest.raises(UserError, match=message):
            reader.generate(prompts_of("llama"))
        return
    failures = reader.generate(prompts_of("llama"))
    assert all(re.search(message, failure.reason) for failure in failures)


def test_a_template_that_refuses_one_prompt_costs_it_alone(folder, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder("llama"))
    transformers.AutoModelForCausalLM.from_pretrained(folder("llama")).save_pretrained(tmp_path)
    for condition in ("'bad' in messages[0].content", "true"):
        tokenizer.chat_template = (
            f"{{% if {condition} %}}{{{{ raise_exception('not so') }}}}{{% endif %}}"
            "{{ messages[0].content }}"
        )
        tokenizer.save_pretrained(tmp_path)
        if condition == "true":  # whatever the prompt: said before a run begins
            with pytest.raises(UserError, match=r"the chat template of .* fails: not so$"):
                load(str(tmp_path), "llama", prompt_form="chat")
            return
        reader = load(str(tmp_path), "llama", prompt_form="chat")
        good, bad = reader.generate([Prompt("good"), Prompt("bad")])
        assert isinstance(good, Generation)
        assert bad.reason.endswith("fails: not so")


@pytest.mark.parametrize("name", [name for name in SEEING if name not in VIDEO])
def test_marks_of_images_in_a_passage_stand_for_no_image(tiny, name):
    reader = tiny(name)
    marks = {mark for mark in reader._tokenizer.all_special_tokens if "image" in mark}
    # What the processor expands is among them, whoever knows it.
    assert marks <= set(reader._marks)
    told, plain = (
        f"{' '.join(sorted(own))} Where is it?"
        for own in (marks, [f"{m[0]} {m[1:]}" for m in marks])
    )
    same(*(reader.generate([replace(SHORT, text=text)]) for text in (told, plain)))


def test_words_are_no_marks_of_images(tiny):
    reader = tiny("gemma3")
    assert reader._marks[0] == "<image_soft_token>"
    assert set(reader._marks) == {"<image_soft_token>", "<start_of_image>", "<end_of_image>"}


# --- settings


def test_beams_are_those_of_transformers(folder, plain):
    for name in ("t5", "llama", "blip2_t5"):
        reader, prompts = load(folder(name), name, beams=3), prompts_of(name)[:2]
        same(reader.generate(prompts), [reader.generate([p])[0] for p in prompts])
        model, _ = plain(name)
        for prompt, made in zip(prompts, reader.generate(prompts), strict=True):
            result = model.generate(
                **inputs_of(name, plain, prompt),
                num_beams=3,
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=sorted(reader.ends),
                pad_token_id=0,
                output_scores=True,
                return_dict_in_generate=True,
            )
            written = result.sequences[0, -made.tokens :].tolist()
            assert made.text == reader.decode(written)
            # their score is normalised by the length: RA-VQA's log p(y) / |y|
            score = float(result.sequences_scores[0])
            assert made.log_prob / made.tokens == pytest.approx(score, abs=1e-4)


def test_a_checkpoints_own_sampling_settings_are_left_out(folder, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=2.0, eos_token_id=[1, 7]
    )
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder("llama")).save_pretrained(tmp_path)
    reader, prompts = load(str(tmp_path), "llama"), prompts_of("llama")
    same(reader.generate(prompts), load(folder("llama"), "llama").generate(prompts))
    assert 7 in reader.ends


def test_the_context_is_the_models_own_or_as_set(tiny, folder):
    assert tiny("llama").context == 512
    assert tiny("llava").context == 512
    assert tiny("t5").context == 512 + TOKENS  # the tokenizer's limit is the encoder's
    assert tiny("florence2").context == 256 + TOKENS
    assert load(folder("llama"), "llama", context=40).context == 40
    unknown = transformers.T5Config()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder("t5"))
    tokenizer.model_max_length = int(1e30)
    assert model_context(unknown, tokenizer, 10) == (None, False)


def test_a_prompt_longer_than_the_context_is_refused(folder, tiny):
    reader = load(folder("llama"), "llama", context=40)
    long = Prompt("what is it? " * 30)
    for failure in (
        reader.generate([BLIND, long])[1],
        *reader.score([long], ["x"]),
        *reader.next_token_logprobs([long], [[]]),
    ):
        assert re.search(r"tokens, .* longer than the context of 40", failure.reason)
    assert len(reader.generate([BLIND])) == 1
    # relative positions go on beyond the tokenizer's limit; absolute ones end
    far = Prompt("what is it? " * 300)
    assert tiny("t5").count_tokens([far])[0] > 512
    assert len(tiny("t5").generate([far])) == 1
    [failure] = tiny("florence2").generate([replace(far, image=WIDE)])
    assert "longer than the context" in failure.reason


def test_chat_prompts_of_a_text_model(folder, plain):
    reader = load(folder("llama"), "llama", prompt_form="chat", stop_at_newline=False)
    assert reader.ends == {1}
    tokenizer = plain("llama")[1]
    text = "USER: Q: who?\nASSISTANT:"
    assert reader.count_tokens([BLIND]) == [len(tokenizer(text)["input_ids"])]
    raw = load(folder("llama"), "llama", stop_at_newline=False)
    same(reader.generate([BLIND]), raw.generate([Prompt(text)]))


def test_a_system_message_comes_first(folder):
    told = load(folder("llava"), "llava", system="Be brief.")
    assert told._text(BLIND) == "SYSTEM: Be brief.\nUSER: Q: who?\nASSISTANT:"
    assert told._text(SHORT) == f"SYSTEM: Be brief.\nUSER: <image>\n{SHORT.text}\nASSISTANT:"
    plain = load(folder("llava"), "llava", prompt_form="plain")
    assert plain._text(SHORT) == f"<image>\n{SHORT.text}"


def test_variables_of_a_chat_template(folder, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder("llama"))
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}|{% endif %}"
        "{{ messages[-1].content }}{% if not thinking %} no{% endif %}"
        "{% if thinking == 'loud' %}{{ raise_exception('too\nloud') }}{% endif %}"
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def text(**options):
        return load(str(tmp_path), "llama", **options)._text(Prompt("x"))

    assert text() == "x"
    assert text(prompt_form="auto") == "x no"
    assert text(prompt_form="chat", system="s") == "s|x no"
    assert text(prompt_form="chat", chat_options={"thinking": True}) == "x"
    with pytest.raises(UserError, match=r"the chat template of .* fails: too$"):
        text(prompt_form="chat", chat_options={"thinking": "loud"})


def test_the_loader_is_the_auto_class_that_knows_the_configuration():
    assert _loader(transformers.LlavaConfig()) is transformers.AutoModelForImageTextToText
    assert _loader(transformers.Qwen2_5OmniConfig()) is transformers.AutoModelForMultimodalLM


def test_a_beginning_mark_is_not_written_twice(tiny, plain):
    tokenizer = plain("gemma3")[1].tokenizer
    tokenizer.add_bos_token = True
    reader = tiny("gemma3")
    ids = reader._inputs([BLIND])["input_ids"][0].tolist()
    assert ids.count(2) == 1


def test_prompt_forms_that_a_model_has_not_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no chat template: set prompt_form to plain"):
        load(folder("blip2_t5"), "blip2_t5", prompt_form="chat")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder("llama"))
    tokenizer.chat_template = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no chat template: set prompt_form to plain"):
        load(str(tmp_path), "llama", prompt_form="chat")


def test_options_reach_the_processor(folder):
    small = load(folder("idefics3"), "idefics3", processor={"size": {"longest_edge": 56}})
    large = load(folder("idefics3"), "idefics3")
    assert small.count_tokens([SHORT])[0] < large.count_tokens([SHORT])[0]
    assert small.fingerprint != large.fingerprint


def test_the_fingerprint_follows_weights_and_settings(folder, tiny, tmp_path):
    base = tiny("llama").fingerprint
    again = load(folder("llama"), "llama", batch_size=2, batch_tokens=100, dtype="float32")
    assert again.fingerprint == base  # on a CPU auto is float32
    others = [
        load(folder("llama"), "llama", **options).fingerprint
        for options in ({"dtype": "bfloat16"}, {"beams": 2}, {"max_new_tokens": 3}, {"context": 9})
    ]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder("llama")).save_pretrained(tmp_path)
    others.append(load(str(tmp_path), "llama").fingerprint)
    assert len({base, *others}) == 6


def test_overflow_is_a_failure_that_names_the_dtype(folder, tmp_path, fresh_cache):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    with torch.no_grad():
        for layer in model.model.layers:  # products of gates leave float16
            layer.mlp.gate_proj.weight.mul_(3e5).clamp_(-6e4, 6e4)
            layer.mlp.up_proj.weight.mul_(3e5).clamp_(-6e4, 6e4)
    shutil.copytree(folder("llama"), tmp_path / "hot")
    model.save_pretrained(tmp_path / "hot")
    asked = [Prompt("What is it?"), Prompt("Who?")]
    options = {"dtype": "float16", "batch_size": 1}
    reader = CachedReader(load(str(tmp_path / "hot"), "llama", **options))
    message = "a log-probability is not a number (dtype float16): set dtype to float32"
    for outcomes in (
        reader.generate(asked),
        reader.generate(asked),
        reader.score(asked, ["a", "b"]),
        reader.next_token_logprobs(asked, [(), ()]),
    ):
        assert [message in outcome.reason for outcome in outcomes] == [True, True]
    assert reader.generated == reader.scored == 0


@pytest.mark.parametrize("name", slow_but(["llama"], ["llama", "t5", "llava", "blip2_t5"]))
def test_bfloat16_reads_too(folder, name):
    reader, prompts = load(folder(name), name, dtype="bfloat16"), prompts_of(name)
    assert len(reader.generate(prompts)) == 3
    exact = load(folder(name), name).score(prompts, ["Paris"] * 3)
    assert reader.score(prompts, ["Paris"] * 3) == pytest.approx(exact, rel=0.1)
    rows = reader.next_token_logprobs(prompts, [[], [], []])
    assert [row.dtype for row in rows] == [np.float32] * 3


class Loaded:
    """An auto class that keeps what its `from_pretrained` was given."""

    def from_pretrained(self, path, **options):
        self.options = options
        return self, {"missing_keys": set(), "mismatched_keys": set()}

    def eval(self):
        return self


@pytest.mark.parametrize(
    ("capability", "options", "expected"),
    [
        ((8, 0), {}, {"dtype": torch.bfloat16, "device_map": "cuda:1"}),
        ((7, 5), {}, {"dtype": torch.float16, "device_map": "cuda:1"}),
        ((9, 0), {"dtype": "float32"}, {"dtype": torch.float32, "device_map": "cuda:1"}),
        (
            (9, 0),
            {"device_map": "auto", "attention": "flash_attention_2"},
            {
                "dtype": torch.bfloat16,
                "device_map": "auto",
                "attn_implementation": "flash_attention_2",
            },
        ),
    ],
)
def test_on_a_gpu_weights_go_straight_there(folder, monkeypatch, capability, options, expected):
    monkeypatch.setattr("ravqa.core.devices.usable_device", lambda name, why: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    config = {"model": folder("llama"), "device": "cuda:1", **options}
    placement = Placement(validate(TransformersLLM.Config, config, "reader"), "a reader")
    always = {
        "trust_remote_code": False,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    assert placement.load(Loaded()).options == expected | always


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_weights_that_are_moved_to_the_device_as_needed(folder, tiny, monkeypatch, name):
    from accelerate import cpu_offload

    kind = {"llama": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM"}[name]
    real = getattr(transformers, kind).from_pretrained

    def offloaded(path, **options):
        model, report = real(path, **options)
        return cpu_offload(model, execution_device=torch.device("cpu")), report

    monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", offloaded)
    reader, prompts = load(folder(name), name), prompts_of(name)
    assert reader._model.get_input_embeddings().weight.device.type == "meta"
    same(reader.generate(prompts), tiny(name).generate(prompts))
    expected = tiny(name).score(prompts, ["Paris"] * 3)
    assert reader.score(prompts, ["Paris"] * 3) == pytest.approx(expected, abs=1e-3)


def test_a_device_map_and_an_attention_implementation_by_name(folder, tiny):
    reader = load(folder("llama"), "llama", device_map="auto", attention="eager")
    same(reader.generate(prompts_of("llama")), tiny("llama").generate(prompts_of("llama")))
    with pytest.raises(UserError, match=r"transformers-llm: .* cannot be loaded"):
        load(folder("llama"), "llama", attention="quick")


# --- adapters and quantised weights


def _adapted(peft, model, config):
    with warnings.catch_warnings():  # peft asks transformers in a way that will go
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, config)


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """Folder of a LoRA adapter for the tiny Llama, and the adapted model as peft runs it."""
    peft = pytest.importorskip("peft", reason="adapters need peft")
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    adapted = _adapted(peft, model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(path)
    return str(path), adapted.eval()


def test_a_lora_adapter_changes_what_is_read(folder, tiny, adapter):
    path, model = adapter
    reader = load(folder("llama"), "llama", adapter=path)
    prompt = prompts_of("llama")[0]
    [row] = reader.next_token_logprobs([prompt], [[]])
    inputs = transformers.AutoTokenizer.from_pretrained(folder("llama"))(
        prompt.text, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = model(**inputs).logits[0, -1].log_softmax(-1)
    np.testing.assert_allclose(row, expected.numpy(), atol=1e-3)
    [base] = tiny("llama").next_token_logprobs([prompt], [[]])
    assert np.abs(row - base).max() > 0.1
    assert reader.fingerprint != tiny("llama").fingerprint
    assert reader.weights.endswith(f" + {path}")


def test_an_adapter_beside_quantised_weights_is_not_merged(folder, adapter):
    pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
    path, _ = adapter
    prompts = prompts_of("llama")
    exact = load(folder("llama"), "llama", adapter=path)
    reader = load(folder("llama"), "llama", adapter=path, quantization="int8")
    assert any("lora_A" in name for name, _ in reader._model.named_parameters())
    rows = [r.next_token_logprobs(prompts, [[], [], []]) for r in (exact, reader)]
    assert np.corrcoef(rows[0].ravel(), rows[1].ravel())[0, 1] > 0.9
    assert len(reader.generate(prompts)) == 3


def test_an_adapter_that_is_no_lora_is_refused(folder, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("llama"))
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    _adapted(peft, model, config).save_pretrained(tmp_path)
    line = f"{tmp_path} is not a LoRA adapter but PeftType.PROMPT_TUNING, which is not supported"
    with pytest.raises(UserError, match=f"^the reader transformers-llm: {line}$"):
        load(folder("llama"), "llama", adapter=str(tmp_path))


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_quantised_weights_read_nearly_the_same(folder, kind):
    pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
    exact = load(folder("wide_llama"), "llama")
    reader = load(folder("wide_llama"), "llama", quantization=kind)
    prompts = prompts_of("llama")
    rows = [r.next_token_logprobs(prompts, [[], [], []]) for r in (exact, reader)]
    assert not np.array_equal(*rows)
    assert np.corrcoef(rows[0].ravel(), rows[1].ravel())[0, 1] > 0.6
    assert len(reader.generate(prompts)) == 3
    assert reader.fingerprint != exact.fingerprint


@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [
        ("peft", {"adapter": "some/adapter"}, "lora"),
        ("bitsandbytes", {"quantization": "nf4"}, "quantization"),
    ],
)
def test_a_missing_package_names_its_extra(folder, monkeypatch, package, options, extra):
    monkeypatch.setitem(sys.modules, package, None)
    [option] = options
    needs = rf"^the reader transformers-llm: {option} needs the package '{package}', "
    with pytest.raises(MissingExtraError, match=rf"{needs}.*: pip install 'ravqa\[{extra}\]'$"):
        load(folder("llama"), "llama", **options)


def qwen_files(path):
    """A Qwen2-VL checkpoint as far as the processor reads it."""
    transformers.Qwen2VLConfig().save_pretrained(path)
    reader_models.tokenizer(*reader_models.QWEN).save_pretrained(path)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }
    (path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def test_a_processor_that_wants_torchvision_names_the_extra(tmp_path):
    if find_spec("torchvision"):
        pytest.skip("torchvision is installed")
    qwen_files(tmp_path)
    with pytest.raises(MissingExtraError, match=r"'torchvision', .*'ravqa\[vision\]'") as caught:
        load(str(tmp_path), "qwen2_vl")
    assert "\n" not in str(caught.value)


def test_models_of_another_kind_are_refused(folder, tmp_path):
    with pytest.raises(UserError) as error:
        load(folder("llama"), "llava")
    assert str(error.value) == (
        f"the reader transformers-vlm: transformers {transformers.__version__} has no multimodal "
        "model of the type 'llama' that generates text"
    )
    with pytest.raises(UserError, match=r"transformers-seq2seq: .* cannot be loaded"):
        load(folder("llama"), "t5")
    with pytest.raises(UserError, match=r"transformers-llm: .* cannot be loaded"):
        load(str(tmp_path), "llama")
    with pytest.raises(
        UserError, match=r"^the reader transformers-vlm: no such model file or folder: ./gone$"
    ):
        load("./gone", "llava")


# --- real weights


@pytest.mark.slow
def test_batch_size_does_not_change_answers_of_a_real_model(reader, monkeypatch):
    fact = "Passage: The koala eats leaves.\n"
    asked = ["What does the koala eat?", "Where is Rome?", "What is it?"]
    prompts = [Prompt(f"{fact * i}Question: {q}\nAnswer:") for i, q in enumerate(asked)]
    batch = reader.generate(prompts)
    monkeypatch.setattr(reader, "_options", reader._options.model_copy(update={"batch_size": 1}))
    same(batch, reader.generate(prompts))
    scores = reader.score(prompts, [g.text for g in batch])
    ended = [i for i, g in enumerate(batch) if g.tokens < reader.max_new_tokens]
    assert ended
    # the other end tokens add to the one that was written
    assert all(batch[i].log_prob <= scores[i] + 1e-3 for i in ended)
    assert all(batch[i].log_prob >= scores[i] - 3 for i in ended)


@pytest.mark.slow
def test_next_tokens_of_a_real_model_spell_its_generation(reader):
    prompts = [Prompt("The capital of France is"), Prompt("Question: 2 + 2?\nAnswer:")]
    made = reader.generate(prompts)
    prefixes = [[], []]
    total = [0.0, 0.0]
    for _ in range(reader.max_new_tokens):
        rows = reader.next_token_logprobs(prompts, prefixes)
        for i, row in enumerate(rows):
            if not set(prefixes[i]) & reader.ends:
                prefixes[i] = [*prefixes[i], int(row.argmax())]
                total[i] += float(row.max())
    assert [reader.decode(p) for p in prefixes] == [g.text for g in made]
    assert "Paris" in made[0].text
    assert total == pytest.approx([g.log_prob for g in made], abs=1e-3)
