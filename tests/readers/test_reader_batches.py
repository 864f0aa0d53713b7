"""Batches of prompts and answers: every token of them, and their losses by other ways.

The models are tiny and random.
"""

import functools
from io import BytesIO

import numpy as np
import pytest
import reader_models
import torch
import transformers
from cases import slow_but
from PIL import Image

from ravqa.core.errors import UserError
from ravqa.core.settings import validate
from ravqa.readers import training
from ravqa.readers.base import Prompt
from ravqa.readers.training import (
    IGNORED,
    answer_losses,
    check_training,
    target_lengths,
    training_batches,
)
from ravqa.readers.transformers_llm import TransformersLLM
from ravqa.readers.transformers_seq2seq import TransformersSeq2Seq
from ravqa.readers.transformers_vlm import TransformersVLM

TEXT = dict.fromkeys(["llama", "mistral", "lfm2", "mpt", "gpt_neo", "mamba2"], TransformersLLM)
TEXT |= {"t5": TransformersSeq2Seq}
# Those whose processors want torchvision, and the others.
VIDEO = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "llava_onevision", "mistral3"]
SEEING = ["llava", "llava_next", "blip2_t5", "blip2_opt", "instructblip", "paligemma", "idefics3"]
SEEING += ["gemma3", "florence2", "mllama", *VIDEO]
QUICK = ["llama", "mamba2", "t5", "llava", "blip2_t5", "mllama", "qwen2_5_vl"]  # of each kind one


def picture(seed, width, height):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    data = BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


WIDE, HIGH = picture(0, 60, 40), picture(1, 30, 90)
SHORT = "Question: what is it? Answer:"
LONG = "Passage: koalas eat leaves. Question: what do they eat? Answer:"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A reader of a tiny model, by name and options, loaded once."""

    @functools.cache
    def make(name, **options):
        if name in VIDEO:
            pytest.importorskip("torchvision", reason=f"the processor of {name} needs torchvision")
        if name == "smolvlm":
            pytest.importorskip("num2words", reason="the processor of SmolVLM needs num2words")
        path = str(getattr(reader_models, name)(tmp_path_factory.mktemp(name)))
        kind = TEXT.get(name, TransformersVLM)
        settings = {"model": path, "device": "cpu", "max_new_tokens": 6, **options}
        return kind(validate(kind.Config, settings, "reader"))

    return make


def prompts_of(name):
    if name in TEXT:
        return [Prompt(SHORT), Prompt(LONG)]
    return [Prompt(SHORT, WIDE), Prompt(LONG, HIGH)]


def shown(reader, row):
    return [reader._tokenizer.decode([token]) for token in row]


def test_a_decoder_reads_prompt_and_answer_and_learns_the_answer_alone(tiny):
    reader = tiny("llama")
    [batch] = training_batches(
        reader, [Prompt(SHORT), Prompt(LONG)], ["Paris", "koalas eat leaves"]
    )
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert batch.whole
    tokenizer = reader._tokenizer
    for row, (text, answer) in enumerate([(SHORT, " Paris"), (LONG, " koalas eat leaves")]):
        head = tokenizer(text)["input_ids"]
        tail = tokenizer(answer, add_special_tokens=False)["input_ids"] + [1]  # </s>
        pads = ids.shape[1] - len(head) - len(tail)
        assert ids[row].tolist() == head + tail + [0] * pads
        assert mask[row].tolist() == [1] * (len(head) + len(tail)) + [0] * pads
        # The logits at a place predict the next token.
        expected = [IGNORED] * (len(head) - 1) + tail + [IGNORED] * (1 + pads)
        assert batch.labels[row].tolist() == expected
    assert batch.tokens == int((batch.labels != IGNORED).sum()) > 4


def test_the_chat_form_trains_what_follows_the_template(tiny):
    reader = tiny("llama", prompt_form="chat")
    [batch] = training_batches(reader, [Prompt(SHORT)], ["Paris"])
    text = f"USER: {SHORT}\nASSISTANT: Paris</s>"
    assert "".join(shown(reader, batch.inputs["input_ids"][0])) == text
    learned = batch.labels[0][batch.labels[0] != IGNORED]
    assert "".join(shown(reader, learned)) == " Paris</s>"


@pytest.mark.parametrize(("name", "form"), [("llama", "plain"), ("llama", "chat"), ("t5", "plain")])
def test_a_target_has_as_many_tokens_as_are_learned(tiny, name, form):
    reader = tiny(name) if name == "t5" else tiny(name, prompt_form=form)
    prompts, answers = [Prompt(SHORT), Prompt(LONG)], ["Paris", "koalas eat leaves"]
    [batch] = training_batches(reader, prompts, answers)
    learned = (batch.labels != IGNORED).sum(1).tolist()
    assert target_lengths(reader, prompts, answers) == learned
    assert learned[0] < learned[1]


def test_an_encoder_decoder_encodes_the_prompt_and_decodes_the_answer(tiny):
    reader = tiny("t5")
    [batch] = training_batches(reader, [Prompt(SHORT), Prompt(LONG)], ["Paris", "koalas"])
    tokenizer = reader._tokenizer
    for row, (text, answer) in enumerate([(SHORT, "Paris"), (LONG, "koalas")]):
        head = tokenizer(text)["input_ids"]
        tail = tokenizer(answer)["input_ids"] + [1]  # </s>
        pads = batch.labels.shape[1] - len(tail)
        kept = batch.inputs["attention_mask"][row].bool()
        assert batch.inputs["input_ids"][row][kept].tolist() == head
        # It begins with its start token, and never reads the end mark that it learns to write.
        assert batch.inputs["decoder_input_ids"][row].tolist() == [0, *tail[:-1]] + [0] * pads
        assert batch.labels[row].tolist() == tail + [IGNORED] * pads


def test_a_start_token_that_is_forced_has_no_loss(tiny):
    reader = tiny("florence2")
    [batch] = training_batches(reader, [Prompt(SHORT, WIDE)], ["koalas"])
    tail = reader._tokenizer("koalas", add_special_tokens=False)["input_ids"]
    assert batch.inputs["decoder_input_ids"][0].tolist() == [1, 2, *tail]
    assert batch.labels[0].tolist() == [IGNORED, *tail, 1]


def test_tokens_of_images_have_no_loss(tiny):
    reader = tiny("llava")
    prompts = [Prompt(SHORT, WIDE), Prompt(LONG, HIGH)]
    [batch] = training_batches(reader, prompts, ["Paris", "koalas"])
    image = reader._tokenizer.convert_tokens_to_ids("<image>")
    for row, answer in enumerate(["Paris", "koalas"]):
        ids = batch.inputs["input_ids"][row]
        assert (ids == image).sum() == 4  # 2 x 2 patches
        learned = batch.labels[row][batch.labels[row] != IGNORED]
        assert "".join(shown(reader, learned)) == f" {answer}</s>"
        # And they are the next tokens at their places.
        places = (batch.labels[row] != IGNORED).nonzero()[:, 0]
        assert ids[places + 1].tolist() == learned.tolist()
        assert "".join(shown(reader, ids[: places[0] + 1])).endswith("ASSISTANT:")
    alone = reader._inputs([prompts[1]])["pixel_values"]
    assert torch.equal(batch.inputs["pixel_values"][1:], alone)


def test_prompts_without_an_image_come_apart_from_the_others(tiny):
    reader = tiny("llava")
    prompts = [Prompt(SHORT, WIDE), Prompt(SHORT), Prompt(LONG, HIGH)]
    seeing, blind = training_batches(reader, prompts, ["Paris", "koalas", "leaves"])
    assert "pixel_values" in seeing.inputs
    assert "pixel_values" not in blind.inputs
    assert (len(seeing.labels), len(blind.labels)) == (2, 1)
    # A model that needs an image reads a prompt without one by its language model.
    delegates = tiny("blip2_opt")
    seeing, blind = training_batches(delegates, prompts, ["Paris", "koalas", "leaves"])
    assert (seeing.whole, blind.whole) == (True, False)


@pytest.mark.parametrize("name", slow_but(QUICK, [*TEXT, *SEEING]))
def test_losses_are_those_of_answering_and_those_of_transformers(tiny, name):
    reader = tiny(name)
    prompts = prompts_of(name)
    check_training(reader, prompts)
    if name not in TEXT:
        check_training(reader, [Prompt(SHORT), *prompts])
    answers = ["Paris is large", "it"]
    [batch] = training_batches(reader, prompts, answers)
    losses = answer_losses(reader, batch).detach()
    sums = [float(own.sum()) for own in losses.split((batch.labels != IGNORED).sum(1).tolist())]
    if reader.scores_answers and len(reader._stops) == 1:
        assert sums == pytest.approx([-value for value in reader.score(prompts, answers)], abs=2e-3)
    labels = batch.labels
    if "decoder_input_ids" not in batch.inputs:  # its own labels are those of the input's tokens
        labels = torch.full_like(batch.labels, IGNORED)
        labels[:, 1:] = batch.labels[:, :-1]
    own = reader._model(**batch.inputs, labels=labels).loss.detach()
    assert float(losses.mean()) == pytest.approx(float(own), rel=1e-4)


def test_a_template_may_end_answers_with_another_mark(tmp_path):
    end = "{% if m['role'] == 'user' %}</s>{% else %}<end>{% endif %}"
    chat = reader_models.CHAT.replace("{{ '\\n' }}{% endfor %}{% if", f"{end}{{% endfor %}}{{% if")
    tok = reader_models.tokenizer("<end>", chat_template=chat)
    config = transformers.LlamaConfig(**reader_models.text_config(tok))
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [1, tok.convert_tokens_to_ids("<end>")]
    reader_models.save(tmp_path, model, tok)

    def last(**options):
        reader = TransformersLLM(TransformersLLM.Config(model=str(tmp_path), **options))
        return reader._tokenizer.decode([training.end_token(reader)])

    assert last(prompt_form="chat") == "<end>"
    assert last(prompt_form="plain") == "</s>"


def test_a_beginning_that_is_shared_when_answering_is_read_whole(tiny):
    reader = tiny("llama")
    begin = "Passage: koalas eat leaves of the eucalyptus tree in Australia. "
    prompts = [Prompt(begin + "Who?"), Prompt(begin + "Where are they?")]
    reader.generate(prompts)
    [batch] = training_batches(reader, prompts, ["it", "it"])
    assert "past_key_values" not in batch.inputs
    assert shown(reader, batch.inputs["input_ids"][0])[:3] == shown(
        reader, reader._tokenizer(begin)["input_ids"][:3]
    )
    assert reader._shares


def test_a_model_whose_forward_pass_differs_from_its_generation_is_refused(tiny, monkeypatch):
    reader = tiny("paligemma")
    check_training(reader, [Prompt(SHORT, WIDE)])
    wrong = type(reader._family)(image="{token}", ending="\n", first_position=1, answer_type=0)
    monkeypatch.setattr(reader, "_family", wrong)  # the prompt would see its answer
    line = (
        r"^the reader transformers-vlm: \S+ cannot be trained: reading an answer at once changes "
        r"its log-probabilities by up to [\d.e+]+ from those with which it is generated$"
    )
    with pytest.raises(UserError, match=line):
        check_training(reader, [Prompt(SHORT, WIDE)])


def test_what_the_encoder_made_of_a_prompt_is_kept(tiny):
    reader = tiny("t5")
    prompts = [Prompt(SHORT), Prompt(LONG)]
    with torch.no_grad():
        made = reader.network.get_encoder()(**reader._inputs(prompts)).last_hidden_state
    torch.testing.assert_close(reader._prefill(prompts).encoded, made)
