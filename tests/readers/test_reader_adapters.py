"""Adapters and full training of local readers: what trains, and what is saved.

The models are tiny and random.
"""

import json
import sys

import pytest
import reader_models
import torch

from ravqa.core.errors import MissingExtraError, UserError
from ravqa.core.settings import validate
from ravqa.readers.adapters import LoraConfig, add_adapter, merged_weights, train_all
from ravqa.readers.base import Prompt
from ravqa.readers.training import answer_losses, training_batches
from ravqa.readers.transformers_llm import TransformersLLM
from ravqa.readers.transformers_seq2seq import TransformersSeq2Seq
from ravqa.readers.transformers_vlm import TransformersVLM

KINDS = {"llama": TransformersLLM, "t5": TransformersSeq2Seq}
PROMPTS = [Prompt("Question: what is it? Answer:"), Prompt("Passage: koalas eat leaves. Answer:")]
ANSWERS = ["a koala", "leaves"]


def load(path, name, **options):
    kind = KINDS.get(name, TransformersVLM)
    given = {"model": str(path), "device": "cpu", "max_new_tokens": 6, **options}
    return kind(validate(kind.Config, given, "reader"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            made[name] = getattr(reader_models, name)(tmp_path_factory.mktemp(name))
        return made[name]

    return make


def trained(reader, steps=3):
    """One adapted reader after a few steps of gradient descent."""
    pytest.importorskip("peft", reason="adapters need peft")
    adapted = add_adapter(reader, LoraConfig(rank=4, dropout=0.0), seed=0)
    descend(reader, steps)
    return adapted


def descend(reader, steps):
    weights = [p for p in reader.network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.05)
    [batch] = training_batches(reader, PROMPTS, ANSWERS)
    for _ in range(steps):
        optimizer.zero_grad()
        answer_losses(reader, batch).mean().backward()
        optimizer.step()
    reader.forget()


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_only_the_adapter_trains_and_begins_with_the_same_answers(folder, name):
    reader = load(folder(name), name)
    before = {n: w.clone() for n, w in reader.network.state_dict().items()}
    scores = reader.score(PROMPTS, ANSWERS)
    adapted = add_adapter(reader, LoraConfig(rank=4, dropout=0.0), seed=0)
    assert reader.score(PROMPTS, ANSWERS) == pytest.approx(scores, abs=1e-5)
    own = [n for n, p in reader.network.named_parameters() if p.requires_grad]
    assert own
    assert all(".lora_" in n for n in own)
    descend(reader, 3)
    after = reader.score(PROMPTS, ANSWERS)
    assert sum(after) > sum(scores) + 0.1
    changed = {n: w for n, w in reader.network.state_dict().items() if ".lora_" not in n}
    assert {n.replace(".base_layer.", ".") for n in changed} == before.keys()
    for n, w in changed.items():
        assert torch.equal(w, before[n.replace(".base_layer.", ".")]), n
    # Every linear layer but the output layer has an adapter.
    layers = {n.rpartition(".lora_")[0] for n in own}
    linear = {n for n, module in reader.network.named_modules() if hasattr(module, "base_layer")}
    assert layers == linear
    outputs = adapted.get_base_model().get_output_embeddings()
    assert isinstance(outputs, torch.nn.Linear)
    assert not hasattr(outputs, "base_layer")


def test_the_same_seed_gives_the_same_adapter_and_the_generator_is_left_alone(folder):
    pytest.importorskip("peft", reason="adapters need peft")

    def begun(seed):
        reader = load(folder("llama"), "llama")
        add_adapter(reader, LoraConfig(rank=2), seed=seed)
        return [p.detach().clone() for n, p in reader.network.named_parameters() if "lora_A" in n]

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = begun(1)
    assert torch.equal(torch.rand(3), expected)
    assert all(map(torch.equal, first, begun(1)))
    assert not any(map(torch.equal, first, begun(2)))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_saved_adapter_is_a_setting_of_the_reader(folder, name, tmp_path):
    reader = load(folder(name), name)
    plain = reader.fingerprint
    adapted = trained(reader)
    adapted.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    told = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(folder(name))
    loaded = load(folder(name), name, adapter=str(tmp_path / "a"))
    assert loaded.score(PROMPTS, ANSWERS) == pytest.approx(reader.score(PROMPTS, ANSWERS), abs=1e-4)
    assert [g.text for g in loaded.generate(PROMPTS)] == [g.text for g in reader.generate(PROMPTS)]
    assert loaded.fingerprint != plain
    descend(reader, 1)
    adapted.save_pretrained(tmp_path / "b", save_embedding_layers=False)
    other = load(folder(name), name, adapter=str(tmp_path / "b"))
    assert other.fingerprint not in {plain, loaded.fingerprint}


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_merged_model_answers_alike_and_the_adapter_stays(folder, name, tmp_path):
    reader = load(folder(name), name)
    trained(reader)
    before = {n: w.clone() for n, w in reader.network.state_dict().items()}
    reader.save(tmp_path, merged_weights(reader))
    assert all(torch.equal(w, before[n]) for n, w in reader.network.state_dict().items())
    loaded = load(tmp_path, name)
    assert loaded.score(PROMPTS, ANSWERS) == pytest.approx(reader.score(PROMPTS, ANSWERS), abs=1e-4)


def test_the_language_model_is_adapted_and_not_what_sees(folder):
    pytest.importorskip("peft", reason="adapters need peft")

    def layers(config):
        reader = load(folder("llava"), "llava")
        add_adapter(reader, config, seed=0)
        return {
            n.rpartition(".lora_A")[0]
            for n, _ in reader.network.named_parameters()
            if "lora_A" in n
        }

    everything = layers(LoraConfig())
    assert len(everything) == 2 * 7  # of each layer: q, k, v, o, gate, up, down
    assert all("language_model" in name for name in everything)
    named = layers(LoraConfig(layers=("q_proj", "v_proj")))
    assert named == {n for n in everything if n.endswith(("q_proj", "v_proj"))}
    seeing = layers(LoraConfig(layers=("fc1",)))  # only the vision encoder has this one
    assert seeing
    assert all("vision" in name for name in seeing)


@pytest.mark.parametrize("name", ["llama", "llava", "blip2_t5"])
def test_all_weights_train_but_those_of_the_vision_encoder(folder, name):
    reader = load(folder(name), name)
    train_all(reader, vision=False)
    frozen = {n for n, p in reader.network.named_parameters() if not p.requires_grad}
    seeing = {n for n, _ in reader.network.named_parameters() if "vision" in n}
    assert frozen == seeing
    assert bool(seeing) == (name != "llama")
    train_all(reader, vision=True)
    assert all(p.requires_grad for p in reader.network.parameters())


def test_a_trained_model_is_saved_with_its_own_generation_settings(folder, tmp_path):
    reader = load(folder("llama"), "llama")
    train_all(reader, vision=False)
    descend(reader, 3)
    reader.save(tmp_path)
    told = json.loads((tmp_path / "generation_config.json").read_text())
    assert "output_logits" not in told  # which the reader needs, and nobody else
    assert told["eos_token_id"] == 1
    loaded = load(tmp_path, "llama")
    assert loaded.score(PROMPTS, ANSWERS) == pytest.approx(reader.score(PROMPTS, ANSWERS), abs=1e-5)
    assert reader.generate(PROMPTS) == loaded.generate(PROMPTS)


def test_a_processor_is_saved_too(folder, tmp_path):
    reader = load(folder("llava"), "llava")
    name, own = next(iter(reader.network.named_parameters()))
    given = {**reader.network.state_dict(), name: own.detach() + 1}
    reader.save(tmp_path, given)
    loaded = load(tmp_path, "llava")
    assert loaded.count_tokens(PROMPTS) == reader.count_tokens(PROMPTS)
    assert torch.equal(dict(loaded.network.named_parameters())[name], own + 1)


def test_mistakes_are_one_line_each(folder, tmp_path, monkeypatch):
    reader = load(folder("llama"), "llama")
    adapted = trained(reader, steps=0)
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    line = (
        f"^reader.adapter {tmp_path}: a new adapter would build on it and be of no use alone: "
        "train without it, or use the merged model as reader.model$"
    )
    with pytest.raises(UserError, match=line):
        add_adapter(load(folder("llama"), "llama", adapter=str(tmp_path)), LoraConfig(), seed=0)
    fresh = load(folder("llama"), "llama")
    with pytest.raises(
        UserError, match=r"^no linear layer of /.* is named 'q_prj': did you mean q_proj"
    ):
        add_adapter(fresh, LoraConfig(layers=("q_prj",)), seed=0)
    half = load(folder("llama"), "llama", dtype="bfloat16")
    line = (
        "^small changes of half-precision weights are lost in rounding: set reader.dtype to "
        "float32 and loop.precision to bfloat16$"
    )
    with pytest.raises(UserError, match=line):
        train_all(half, vision=False)
    with pytest.raises(UserError, match="key 'rank'"):
        validate(LoraConfig, {"rank": 0}, "lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"^training a LoRA .*'ravqa\[train\]'$"):
        add_adapter(fresh, LoraConfig(), seed=0)


def test_nothing_of_earlier_weights_is_left(folder, tmp_path):
    reader = load(folder("llama"), "llama")
    begin = "Passage: koalas eat leaves of the eucalyptus tree in Australia. " * 2
    prompts = [Prompt(f"{begin}Question: {asked}? Answer:") for asked in ("who", "what is it")]
    reader.score(prompts, ANSWERS)  # keeps the common beginning
    reader.next_token_logprobs(prompts, [[], []])
    with torch.no_grad():
        for weight in reader.network.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.manual_seed(1)) * 0.05)
    reader.forget()
    reader.save(tmp_path)
    fresh = load(tmp_path, "llama")
    assert reader.score(prompts, ANSWERS) == pytest.approx(fresh.score(prompts, ANSWERS), abs=1e-4)
    for mine, theirs in zip(
        reader.next_token_logprobs(prompts, [[], []]),
        fresh.next_token_logprobs(prompts, [[], []]),
        strict=True,
    ):
        assert mine == pytest.approx(theirs, abs=1e-4)
