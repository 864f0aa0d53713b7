"""The parts of readers without a model: settings, limits, chats, keys, what is refused."""

import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from ravqa.core.errors import DataError, PromptError, UserError
from ravqa.core.factory import build_part
from ravqa.core.outcomes import Failure
from ravqa.core.settings import Part, fingerprint
from ravqa.readers import READERS, loading, transformers_vlm
from ravqa.readers import openai as served
from ravqa.readers.base import Generation, Prompt, Reader, Wordless, settled
from ravqa.readers.cached import CachedReader
from ravqa.readers.chat import ChatConfig, chat_text
from ravqa.readers.loading import LocalConfig, model_context, stop_ids, vocabulary

# --- the base


class Plain(Reader):
    """Answers with the prompt; keeps the sizes of its calls."""

    fingerprint = weights = "plain"

    def __init__(self):
        self.sizes = []

    def generate(self, prompts):
        self.sizes.append(len(prompts))
        return [Generation(p.text) for p in prompts]

    def score(self, prompts, answers):
        self.sizes.append(len(prompts))
        return [float(f"-{p.text}.{a}") for p, a in zip(prompts, answers, strict=True)]


def test_a_reader_is_asked_64_prompts_at_a_time():
    reader = Plain()
    asked = [Prompt(str(i)) for i in range(130)]
    found = list(reader.generate_each(asked))
    assert [position for position, _ in found] == list(range(130))
    assert [made.text for _, made in found] == [str(i) for i in range(130)]
    assert reader.sizes == [64, 64, 2]
    found = list(reader.score_each(asked, [str(9 - i % 10) for i in range(130)]))
    assert found == [(i, float(f"-{i}.{9 - i % 10}")) for i in range(130)]
    assert reader.sizes[3:] == [64, 64, 2]
    assert list(reader.generate_each([])) == []


class Bare(Reader):
    fingerprint = weights = "bare"

    def generate(self, prompts):
        return []


def test_what_a_reader_cannot_do_it_says():
    reader = Bare()
    for call, said in (
        (lambda: reader.score([], []), "score answers"),
        (lambda: reader.next_token_logprobs([], []), "give next-token probabilities"),
        (lambda: reader.decode([]), "decode tokens"),
        (lambda: reader.count_tokens([]), "count tokens"),
        (lambda: reader.stream(Prompt("")), "stream"),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value) == f"the reader bare cannot {said}"
    assert reader.problem() == ""
    assert (reader.deterministic, reader.context, reader.workers) == (False, None, 1)
    assert (reader.max_new_tokens, reader.max_thinking_tokens, reader.ends) == (0, 0, frozenset())
    abilities = ("supports_images", "gives_log_probs", "scores_answers", "counts_tokens", "streams")
    assert not any(getattr(reader, name) for name in (*abilities, "gives_next_token_logprobs"))
    assert reader.switched_off == {}


CUT = "the model's output is reasoning without an answer: raise reader.max_new_tokens"


@pytest.mark.parametrize(
    ("made", "text", "thinking"),
    [
        (Generation("a"), "a", ""),
        (Generation("<think>b</think> a"), "a", "b"),
        (Generation("<think>b</think>a", thinking="c"), "a", "c\nb"),
        (Generation("<think></think>a", thinking="c"), "a", "c"),
    ],
)
def test_thinking_is_set_apart(made, text, thinking):
    found = settled(made)
    assert (found.text, found.thinking) == (text, thinking)


def test_a_generation_without_an_answer_is_a_failure():
    assert settled(Generation("<think>b")) == Failure(CUT)
    assert settled(Generation("<think>b</think>")) == Failure(f"{CUT} if it was cut short")
    assert settled(Generation(" ", thinking="b"), "x.y") == Failure(
        "the model's output is reasoning without an answer: raise x.y if it was cut short"
    )
    silent = Generation("</s>", -0.5, 1)
    found = settled(silent)
    assert found == Wordless("the model ended its answer before the first word", generation=silent)
    assert (found.text, found.log_prob, found.tokens) == ("</s>", -0.5, 1)
    assert not found.fatal


# --- the cache


def test_keys_are_the_same_in_every_version(fresh_cache):
    """Kept answers are found again by later versions."""

    class Seeing(Plain):
        supports_images = True
        deterministic = True

    own = frozenset({"<b>", "<a>"})
    asked = [Prompt("t", b"x", own), Prompt("t")]
    reader = CachedReader(Seeing())
    first, second = reader.keys(asked)
    assert first == fingerprint("plain", "t", b"x", "<a>", "<b>")
    assert second == fingerprint("plain", "t", b"")
    assert CachedReader(Plain()).keys(asked) == [
        fingerprint("plain", "t", b"", "<a>", "<b>"),
        second,
    ]
    numbers = CachedReader(Seeing())
    assert numbers.score([Prompt("7")], ["5"]) == [-7.5]
    [kept] = numbers.stores
    key = fingerprint("score/2", numbers.keys([Prompt("7")])[0], "5")
    assert kept.get([key]) == {key: -7.5}


def test_a_cached_reader_is_as_the_one_within(fresh_cache):
    inner = Plain()
    inner.context, inner.workers = 77, 3
    inner.problem = lambda: "no room"
    inner.decode = lambda tokens: f"decoded {tokens}"
    inner.count_tokens = lambda prompts: [len(p.text) for p in prompts]
    reader = CachedReader(inner)
    assert (reader.context, reader.workers, reader.fingerprint) == (77, 3, "plain")
    assert (reader.problem(), reader.decode([1])) == ("no room", "decoded [1]")
    assert reader.count_tokens([Prompt("abc")]) == [3]
    assert reader.stores == ()  # not deterministic
    assert (reader.generated, reader.scored, reader.decoded) == (0, 0, 0)
    with pytest.raises(UserError) as error:
        reader.stream(Prompt("a"))
    assert str(error.value) == "the reader plain does not stream"


def test_values_made_by_other_means_are_counted_unless_they_fail(fresh_cache):
    reader = CachedReader(Plain())
    made = [(0, 5), (1, Failure("no")), (2, 7)]
    found = reader.recall(["a", "b", "c"], lambda rows: made, lambda value: value, lambda v: v)
    assert found == [5, Failure("no"), 7]
    assert reader.decoded == 2


# --- settings of local models


def local(**options):
    return LocalConfig(model=options.pop("model", "m"), **options)


def test_packages_and_models_of_local_settings():
    gguf, peft = ("gguf", "sample"), ("peft", "lora")
    quantised = ("bitsandbytes", "quantization")
    assert local().packages() == []
    assert local(model="a.gguf").packages() == [gguf]
    assert local(adapter="x").packages() == [peft]
    for kind in ("int8", "nf4", "fp4"):
        assert local(quantization=kind).packages() == [quantised]
    everything = local(model="a.gguf", adapter="x", quantization="nf4")
    assert everything.packages() == [gguf, peft, quantised]
    assert local().models() == ["m"]
    assert local(adapter="x").models() == ["m", "x"]


def test_the_type_of_numbers_follows_the_device(monkeypatch):
    assert loading._dtype("float16", "cpu") == torch.float16
    assert loading._dtype("auto", "cpu") == torch.float32
    assert loading._dtype("auto", "mps") == torch.float32
    assert loading._dtype("auto", "xpu:0") == torch.bfloat16
    for capability, expected in (
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((9, 0), torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert loading._dtype("auto", "cuda:1") == expected
    assert loading._dtype("float32", "cuda") == torch.float32


def settings(limit=None, encodes=False, rows=7):
    text = SimpleNamespace(max_position_embeddings=limit, vocab_size=rows)
    if limit is None:
        del text.max_position_embeddings
    return SimpleNamespace(get_text_config=lambda: text, is_encoder_decoder=encodes)


@pytest.mark.parametrize(
    ("limit", "encodes", "tokenizer", "expected"),
    [
        (512, False, 100, (512, True)),
        (None, False, 100, (None, True)),
        (512, True, 10**30, (512 + 8, True)),
        (512, True, 100, (100 + 8, True)),
        (None, True, 100, (100 + 8, False)),  # relative positions go on
        (None, True, 10**30, (None, False)),
        (None, True, 10**9, (None, False)),
    ],
)
def test_the_context_of_a_model(limit, encodes, tokenizer, expected):
    found = model_context(settings(limit, encodes), SimpleNamespace(model_max_length=tokenizer), 8)
    assert found == expected


def test_the_vocabulary_is_what_the_embeddings_have():
    def model(rows, size):
        return SimpleNamespace(
            get_input_embeddings=lambda: SimpleNamespace(num_embeddings=rows),
            config=settings(rows=size),
        )

    assert vocabulary(model(10, 7)) == 10
    assert vocabulary(model(3, 7)) == 7
    odd = SimpleNamespace(get_input_embeddings=object, config=settings(rows=7))
    assert vocabulary(odd) == 7


class Letters:
    """A tokenizer of letters; line breaks are tokens 50 and up."""

    eos_token_id = 9
    breaks: ClassVar = {"\n": [1, 50], "\n\n": [51], "\n\n\n": [50, 51], " \n": [52], "\r\n": [9]}

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": self.breaks[text]}


def test_end_tokens_are_the_models_else_the_tokenizers():
    def found(ends, newline=False, known=None, eos=9):
        tokenizer = Letters()
        tokenizer.eos_token_id = eos
        own = SimpleNamespace(eos_token_id=ends)
        return stop_ids(tokenizer, own, newline=newline, why="the test", known=known)

    assert found(3) == [3]
    assert found([3, 4]) == [3, 4]
    assert found((0, 5)) == [0, 5]
    assert found([3, 60, -1, "x"], known=60) == [3]
    assert found(None) == found([]) == [9]
    assert found(3, newline=True) == [3, 50, 51, 52, 9]
    assert found(None, newline=True) == [9, 50, 51, 52]
    assert found(None, newline=True, eos=None) == [50, 51, 52, 9]
    for ends in (60, [60, 61]):
        with pytest.raises(UserError) as error:
            found(ends, known=60)
        assert str(error.value) == (
            f"the test: generation never ends: the end token {ends!r} of its generation "
            "configuration is not one of the model's 60 tokens"
        )
    with pytest.raises(UserError) as error:
        found(None, eos=None)
    assert str(error.value) == "the test: the model has no end-of-sequence token"


def test_inputs_go_where_the_embeddings_run():
    weight = SimpleNamespace(device=torch.device("cpu"))
    plain = SimpleNamespace(weight=weight)
    hooked = SimpleNamespace(weight=weight, _hf_hook=SimpleNamespace(execution_device="meta"))
    for embeddings, device in ((plain, "cpu"), (hooked, "meta")):
        model = SimpleNamespace(get_input_embeddings=lambda e=embeddings: e)
        assert loading.input_device(model) == torch.device(device)


# --- chats


class Renderer:
    """Keeps what it was to render; its template may fail."""

    def __init__(self, fails=None, text="rendered"):
        self.fails, self.text = fails, text

    def apply_chat_template(self, messages, tokenize, **options):
        assert tokenize is False
        self.asked = messages, options
        if self.fails:
            raise self.fails
        return self.text


def test_a_chat_is_rendered_as_the_settings_say():
    def asked(content, **options):
        renderer = Renderer()
        config = ChatConfig(model="m", **options)
        assert chat_text(config, renderer, "TEMPLATE", content) == "rendered"
        messages, given = renderer.asked
        assert given.pop("chat_template") == "TEMPLATE"
        assert given.pop("add_generation_prompt") is True
        return messages, given

    user = {"role": "user", "content": "hi"}
    assert asked("hi") == ([user], {})
    system = {"role": "system", "content": "Be brief."}
    chat_options = {"enable_thinking": False}
    found = asked("hi", system="Be brief.", chat_options=chat_options)
    assert found == ([system, user], chat_options)
    assert asked("hi", system="")[0][0] == {"role": "system", "content": ""}
    parts = [{"type": "image"}, {"type": "text", "text": "hi"}]
    told = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert asked(parts, system="Be brief.")[0] == [told, {"role": "user", "content": parts}]


@pytest.mark.parametrize(
    ("renderer", "said"),
    [
        (Renderer(ValueError("no roles\nat all")), "no roles"),
        (Renderer(text="\ud83d"), "it writes half a character (a surrogate)"),
    ],
)
def test_a_chat_template_that_fails_is_named(renderer, said):
    with pytest.raises(PromptError) as error:
        chat_text(ChatConfig(model="m"), renderer, "T", "hi")
    assert str(error.value) == f"the chat template of m fails: {said}"


def test_which_template_is_used():
    def template(form, own):
        return ChatConfig(model="m", prompt_form=form).template(own, "the test")

    assert [template(form, "T") for form in ("auto", "chat", "plain")] == ["T", "T", None]
    assert [template(form, None) for form in ("auto", "plain")] == [None, None]
    assert template("plain", "") is None
    with pytest.raises(UserError) as error:
        template("chat", None)
    assert str(error.value) == "the test: m has no chat template: set prompt_form to plain"
    for form in ("auto", "chat"):
        with pytest.raises(UserError) as error:
            template(form, "")
        assert str(error.value) == (
            "the test: the chat template of m is empty, as after half a download: copy it again, "
            "or set prompt_form to plain"
        )


# --- controls


def test_fingerprints_of_controls_are_the_same_in_every_version():
    def control(name, **options):
        return build_part(READERS, Part(name=name, **options), "reader").fingerprint

    assert control("first-words", words=4) == fingerprint("first-words/3", 4)
    assert control("best-span", words=4) == fingerprint("best-span/2", 4)
    assert control("majority", answer="yes") == fingerprint("majority/1", "yes")


def test_files_of_training_answers_that_cannot_be_used_are_named(tmp_path):
    def said(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError) as error:
            build_part(READERS, Part(name="majority", answers=str(path)), "reader")
        return str(error.value).removeprefix(str(path))

    assert said("a.txt", " \n\n") == " has no answers"
    assert said("a.json", json.dumps({"annotations": []})) == " has no answers"
    known = ": no training answers in a known format ("
    assert said("b.json", "{}") == f"{known}KeyError('annotations'))"
    assert said("c.jsonl", '{"x": 1}') == f"{known}KeyError('answer'))"
    assert said("d.csv", "a,b\n1,2\n").startswith(known)


# --- defaults, which decide results where nothing is set


def test_the_defaults_of_readers():
    from ravqa.readers.transformers_llm import TransformersLLM
    from ravqa.readers.transformers_seq2seq import TransformersSeq2Seq

    shared = {
        "model": "m",
        "max_new_tokens": 12,
        "max_thinking_tokens": 1024,
        "beams": 1,
        "batch_size": 16,
        "batch_tokens": 16384,
        "context": None,
        "dtype": "auto",
        "device": "auto",
        "device_map": None,
        "attention": None,
        "quantization": "none",
        "adapter": None,
        "trust_remote_code": False,
    }
    talks = {"prompt_form": "auto", "system": None, "chat_options": {}, "stop_at_newline": False}
    assert TransformersSeq2Seq.Config(model="m").model_dump() == shared
    completes = {"prompt_form": "plain", "stop_at_newline": True}
    assert TransformersLLM.Config(model="m").model_dump() == shared | talks | completes
    sees = {"max_new_tokens": 32, "keep_images_mib": 1024, "processor": {}}
    assert transformers_vlm.TransformersVLM.Config(model="m").model_dump() == shared | talks | sees
    assert served.OpenAIReader.Config(url="http://h", model="m").model_dump() == {
        "url": "http://h",
        "model": "m",
        "workers": 8,
        "timeout": 120,
        "retries": 6,
        "api_key_env": "OPENAI_API_KEY",
        "revision": "",
        "prompt_form": "chat",
        "system": "",
        "max_tokens_name": "max_tokens",
        "max_thinking_tokens": 0,
        "temperature": 0.0,
        "seed": None,
        "extra_body": {},
        "prices": None,
        "images": None,
        "image_size": 2048,
        "max_new_tokens": 32,
        "stop_at_newline": None,
        "log_probs": False,
        "scoring": "none",
        "context": None,
        "tokenizer": None,
        "image_tokens": 0,
    }


def test_each_prompt_has_its_answer(fresh_cache):
    served_reader = build_part(
        READERS,
        Part(name="openai", url="http://h", model="m", scoring="echo", prompt_form="plain"),
        "reader",
    )
    for reader in (CachedReader(Plain()), served_reader):
        for prompts, answers in ((1, 2), (2, 1)):
            with pytest.raises(ValueError, match="zip"):
                reader.score([Prompt("1")] * prompts, ["1"] * answers)
