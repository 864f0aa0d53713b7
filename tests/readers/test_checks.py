"""What local readers find out about their models: right ones are not accused, wrong ones caught."""

import functools
import json
import logging
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import reader_models
import torch
from transformers.models.llama import modeling_llama
from transformers.models.llava import modeling_llava
from transformers.models.t5.modeling_t5 import T5Stack

from ravqa.core.errors import UserError
from ravqa.core.settings import validate
from ravqa.readers import checks, loading
from ravqa.readers.base import Prompt
from ravqa.readers.cached import CachedReader
from ravqa.readers.transformers_llm import TransformersLLM
from ravqa.readers.transformers_seq2seq import TransformersSeq2Seq
from ravqa.readers.transformers_vlm import TransformersVLM

PROMPTS = [Prompt("Q: who?"), Prompt("Passage: koalas eat leaves. Question: what do they eat?")]
SHARING = [Prompt(f"USER: the quick brown fox jumps over the lazy dog. {p.text}") for p in PROMPTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a tiny model, by name, made once."""
    return functools.cache(
        lambda name: str(getattr(reader_models, name)(tmp_path_factory.mktemp(name)))
    )


def load(path, kind=TransformersLLM, **options):
    options = {"model": path, "device": "cpu", "max_new_tokens": 4, **options}
    return kind(validate(kind.Config, options, "reader"))


@pytest.fixture
def wrong(monkeypatch):
    """Makes Llama wrong: takes a change of the arguments of its forward pass."""
    forward = modeling_llama.LlamaForCausalLM.forward

    def make(change):
        @functools.wraps(forward)
        def changed(self, input_ids=None, **options):
            return forward(self, input_ids, **change(input_ids, options))

        monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "forward", changed)

    return make


def seen(options):
    past = options.get("past_key_values")
    return past.get_seq_length() if past is not None else 0


def unmasked(_, options):
    return options | {"attention_mask": None}


def restarting(least, most):
    """Positions begin again where so many tokens are read after others."""

    def change(input_ids, options):
        width = input_ids.shape[1]
        if seen(options) and least <= width <= most:
            options["position_ids"] = torch.arange(width)[None]
        return options

    return change


def test_a_model_that_sees_padding_reads_one_prompt_at_a_time(folder, wrong, caplog, monkeypatch):
    monkeypatch.setattr(checks._log, "level", logging.INFO)
    monkeypatch.setattr(checks._log, "_cache", {})  # of what an earlier level let through
    right = load(folder("llama"))
    expected, scores = right.generate(PROMPTS), right.score(PROMPTS, ["a"] * 2)
    wrong(unmasked)
    caplog.clear()
    reader = load(folder("llama"))
    assert list(reader.switched_off) == ["batches"]
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith(f"the reader transformers-llm: {folder('llama')}: generating in a ")
    assert warning.endswith(": it reads one prompt at a time")
    line = rf"the reader transformers-llm: the check of {folder('llama')} took \d+\.\d\d s"
    assert any(re.fullmatch(line, record.getMessage()) for record in caplog.records)
    alone = [reader.generate([prompt])[0] for prompt in PROMPTS]
    assert reader.generate(PROMPTS) == alone
    assert [made.text for made in alone] == [made.text for made in expected]
    assert reader.score(PROMPTS, ["a"] * 2) == pytest.approx(scores, 1e-3)
    assert reader.fingerprint != right.fingerprint


@pytest.mark.parametrize(
    ("least", "most", "off"),
    [(1, 1, "next_token_logprobs"), (2, 4, "score"), (5, 999, "sharing")],
)
def test_what_a_model_gets_wrong_after_kept_tokens_is_not_done(folder, wrong, least, most, off):
    right = load(folder("llama"))
    scores = right.score(SHARING, ["a"] * 2)
    rows = right.next_token_logprobs(PROMPTS, [[5], [6]])
    wrong(restarting(least, most))
    reader = load(folder("llama"))
    assert list(reader.switched_off) == [off]
    assert CachedReader(reader, keep=False).switched_off == reader.switched_off
    assert reader.gives_next_token_logprobs == reader.streams == (off != "next_token_logprobs")
    assert reader.scores_answers == (off == "sharing")
    if off == "sharing":
        assert reader.score(SHARING, ["a"] * 2) == pytest.approx(scores, 1e-3)
        return
    with pytest.raises(UserError, match=r"cannot score answers: .*ing .* log-probabilities by"):
        reader.score(PROMPTS, ["a"] * 2)
    if off == "score":
        found = reader.next_token_logprobs(PROMPTS, [[5], [6]])
        np.testing.assert_allclose(found, rows, atol=1e-3)


def test_a_mask_of_images_that_is_lost_after_the_prompt_is_noticed(folder, monkeypatch):
    assert load(folder("mllama"), TransformersVLM).switched_off == {}
    prefill = TransformersVLM._prefill
    lost = {"across": None}
    monkeypatch.setattr(
        TransformersVLM, "_prefill", lambda self, prompts: replace(prefill(self, prompts), **lost)
    )
    reader = load(folder("mllama"), TransformersVLM)
    assert list(reader.switched_off) == ["next_token_logprobs"]
    assert not reader.scores_answers


def test_padding_that_an_encoder_sees_is_noticed(folder, monkeypatch):
    forward = T5Stack.forward

    def unmasked_encoder(self, attention_mask=None, **options):
        return forward(self, attention_mask=attention_mask if self.is_decoder else None, **options)

    monkeypatch.setattr(T5Stack, "forward", unmasked_encoder)
    assert list(load(folder("t5"), TransformersSeq2Seq).switched_off) == ["batches"]


def test_what_is_wrong_with_an_image_alone_is_noticed(folder, monkeypatch):
    forward = modeling_llava.LlavaForConditionalGeneration.forward

    def unmasked(self, pixel_values=None, attention_mask=None, **options):
        mask = attention_mask if pixel_values is None else None
        return forward(self, pixel_values=pixel_values, attention_mask=mask, **options)

    monkeypatch.setattr(modeling_llava.LlavaForConditionalGeneration, "forward", unmasked)
    assert list(load(folder("llava"), TransformersVLM).switched_off) == ["batches"]


def test_a_model_that_hands_over_to_an_inner_one_generates_alone(folder):
    reader = load(folder("kosmos2"), TransformersVLM)
    assert set(reader.switched_off) == {"batches", "next_token_logprobs"}
    assert reader.generate(PROMPTS) == [reader.generate([prompt])[0] for prompt in PROMPTS]


def test_a_model_whose_generation_cannot_be_understood_is_refused(folder, monkeypatch):
    monkeypatch.setattr(
        modeling_llama.LlamaForCausalLM, "generate", lambda self, **_: torch.tensor([[1]])
    )
    with pytest.raises(UserError, match=r"llama\d+ cannot read an ordinary prompt: .* no logits$"):
        load(folder("llama"))


def test_a_model_that_fails_on_every_image_is_refused(folder, monkeypatch):
    def fails(*_, **__):
        raise ValueError("no images today\nreally")

    monkeypatch.setattr("transformers.LlavaProcessor.__call__", fails)
    with pytest.raises(
        UserError, match=r"llava\d+ cannot read an ordinary image: no images today$"
    ):
        load(folder("llava"), TransformersVLM)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_measured_by_what_moving_a_prompt_changes(folder, wrong, dtype):
    assert load(folder("llama"), dtype=dtype).switched_off == {}
    wrong(unmasked)
    assert list(load(folder("llama"), dtype=dtype).switched_off) == ["batches"]


def test_a_model_with_a_context_too_short_for_the_check_says_so(folder, tmp_path, wrong, caplog):
    wrong(unmasked)
    # A shorter context by choice is none of the model.
    assert list(load(folder("llama"), context=20).switched_off) == ["batches"]
    path = shutil.copytree(folder("llama"), tmp_path / "short")
    settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    settings["max_position_embeddings"] = 20
    (path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    caplog.clear()
    reader = load(str(path))
    [(ability, reason)] = reader.switched_off.items()
    assert ability == "unchecked"
    assert reason.startswith("its context of 20 tokens is too short for a check with an ordinary ")
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.endswith("neither batches nor kept keys and values change an answer")
    assert reader.scores_answers
    assert reader.streams


def test_a_large_model_is_checked_once(folder, fresh_cache, monkeypatch):
    runs = []
    run = checks._Check.run
    monkeypatch.setattr(checks._Check, "run", lambda self, **o: (runs.append(1), run(self, **o))[1])
    load(folder("llama"))
    load(folder("llama"))
    assert len(runs) == 2  # checks of small ones are not kept
    monkeypatch.setattr(checks, "_LARGE", 0)
    load(folder("llama"))
    load(folder("llama"), batch_size=2)
    assert len(runs) == 3
    load(folder("llama"), dtype="bfloat16")
    assert len(runs) == 4


def test_a_way_to_read_that_fails_is_not_used(folder, wrong):
    def change(input_ids, options):
        if seen(options) and 1 < input_ids.shape[1] < 5:
            raise ValueError("one token at a time\nplease")
        return options

    wrong(change)
    reader = load(folder("llama"))
    assert reader.switched_off == {
        "score": "reading several tokens at once fails: one token at a time"
    }


def test_a_template_that_never_shows_the_question_is_refused(folder, tmp_path):
    path = shutil.copytree(folder("llama"), tmp_path / "deaf")
    (path / "chat_template.jinja").write_text("USER: hello ASSISTANT:", encoding="utf-8")
    end = "set prompt_form to plain, or replace the template"
    line = f"the chat template of {path} never shows the question: {end}"
    with pytest.raises(UserError, match=f"^the reader transformers-llm: {line}$"):
        load(str(path), prompt_form="chat")


@pytest.mark.parametrize(
    ("name", "kind", "file"),
    [
        ("llama", TransformersLLM, "chat_template.jinja"),
        ("llava", TransformersVLM, "chat_template.jinja"),
        ("llava", TransformersVLM, "processor_config.json"),
    ],
)
def test_an_empty_template_is_refused_before_the_plain_form_is_taken(
    folder, tmp_path, name, kind, file
):
    path = shutil.copytree(folder(name), tmp_path / "empty")
    if file == "processor_config.json":
        (path / "chat_template.jinja").unlink()
        settings = json.loads((path / file).read_text(encoding="utf-8"))
        (path / file).write_text(json.dumps(settings | {"chat_template": ""}), encoding="utf-8")
    else:
        (path / file).write_text("", encoding="utf-8")
    line = (
        rf"^the reader transformers-[lv]lm: the chat template of {path} is empty, as after half a "
        "download: copy it again, or set prompt_form to plain$"
    )
    for form in ("auto", "chat"):
        with pytest.raises(UserError, match=line):
            load(str(path), kind, prompt_form=form)
    assert load(str(path), kind, prompt_form="plain").switched_off == {}


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[0].content[:3] }} ASSISTANT:", "does not show the question as it is"),
        ("{{ messages[0].content | upper }} ASSISTANT:", "does not show the question as it is"),
        ("{{ messages[0].content }} {{ range(99999) | random }}", "writes another text each time"),
    ],
)
def test_a_template_that_changes_the_question_or_itself_is_refused(
    folder, tmp_path, template, problem
):
    path = shutil.copytree(folder("llama"), tmp_path / "changing")
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(UserError, match=f"the chat template of .*changing {problem}: set prompt_"):
        load(str(path), prompt_form="chat")


# transformers leaves these files open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("name", "kind"), [("llama", TransformersLLM), ("llava", TransformersVLM)])
def test_of_several_templates_the_default_one_is_taken(folder, tmp_path, name, kind):
    expected = load(folder(name), kind, prompt_form="chat")
    path = shutil.copytree(folder(name), tmp_path / "several")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "rag.jinja").write_text("RAG", encoding="utf-8")
    reader = load(str(path), kind, prompt_form="chat")
    assert reader.generate(PROMPTS) == expected.generate(PROMPTS)
    (path / "chat_template.jinja").unlink()
    message = (
        f"^the reader {kind.__name__.lower().replace('transformers', 'transformers-')}: {path} has "
        "no default chat template, but those for rag: set prompt_form to plain, or name one "
        "default$"
    )
    with pytest.raises(UserError, match=message):
        load(str(path), kind, prompt_form="auto")
    assert load(str(path), kind, prompt_form="plain").switched_off == {}


def test_a_template_that_is_no_text_is_refused(folder, tmp_path):
    path = shutil.copytree(folder("llama"), tmp_path / "odd")
    (path / "chat_template.jinja").unlink()
    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    for value, said in ((5, "is no text, but 5"), ([{"name": "rag", "template": "x"}], "rag")):
        text = json.dumps(settings | {"chat_template": value})
        (path / "tokenizer_config.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=said):
            load(str(path), prompt_form="chat")


def test_a_tokenizer_that_fails_at_its_first_text_is_refused_in_one_line(folder, tmp_path):
    path = shutil.copytree(folder("llama"), tmp_path / "odd")
    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = json.dumps(settings | {"model_max_length": "x"})
    (path / "tokenizer_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="odd cannot be loaded: '>' not supported between"):
        load(str(path))


def test_what_was_answered_with_another_date_is_not_used(folder, tmp_path, monkeypatch):
    plain = load(folder("llama"), prompt_form="chat")
    path = shutil.copytree(folder("llama"), tmp_path / "dated")
    template = path / "chat_template.jinja"
    dated = "{{ strftime_now('%d %b %Y') }}" + template.read_text(encoding="utf-8")
    template.write_text(dated, encoding="utf-8")
    reader = load(str(path), prompt_form="chat")
    assert reader._text(PROMPTS[0]).startswith("26 Jul 2024USER: ")
    monkeypatch.setattr(loading, "TODAY", loading.TODAY.replace(year=2026))
    assert load(str(path), prompt_form="chat").fingerprint != reader.fingerprint
    assert load(folder("llama"), prompt_form="chat").fingerprint == plain.fingerprint


def test_a_template_that_never_shows_the_image_is_refused(folder, tmp_path):
    path = shutil.copytree(folder("llava"), tmp_path / "blind")
    template = "USER: {{ messages[0].content[-1].text }} ASSISTANT:"
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(
        UserError,
        match=r"blind never shows the image: set prompt_form to plain, or replace the template$",
    ):
        load(str(path), TransformersVLM)
    assert load(str(path), TransformersVLM, prompt_form="plain").switched_off == {}
