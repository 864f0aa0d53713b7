"""What a reader needs and can do, as it is known before any model is loaded."""

import json
from types import SimpleNamespace

import pytest
import torch

from ravqa.readers import loading, transformers_vlm
from ravqa.readers.base import Abilities
from ravqa.readers.controls import FirstWords, Majority
from ravqa.readers.loading import LocalConfig, Placement
from ravqa.readers.openai import OpenAIReader
from ravqa.readers.transformers_vlm import TransformersVLM

VIDEOS = ["torchvision"]
SMOL = ["num2words", "torchvision"]


@pytest.fixture
def only(monkeypatch):
    """Lets only the packages that are named be installed."""

    def installed(*names):
        for module in (loading, transformers_vlm):
            monkeypatch.setattr(module, "find_spec", lambda name: name if name in names else None)

    return installed


@pytest.mark.parametrize(
    ("attention", "device", "gpu", "installed", "found"),
    [
        (None, "auto", False, (), []),
        ("sdpa", "cpu", False, (), []),
        ("flash_attention_2", "cpu", True, ("kernels",), ["GPU"]),
        ("flash_attention_2", "auto", False, ("kernels",), ["GPU"]),
        ("flash_attention_2", "auto", True, (), ["package"]),
        ("flash_attention_3", "cuda", True, (), ["package"]),
        ("flash_attention_2", "auto", True, ("kernels",), []),
        ("flash_attention_2", "auto", True, ("flash_attn",), []),
    ],
)
def test_flash_attention_needs_a_gpu_and_a_package(
    attention, device, gpu, installed, found, only, monkeypatch
):
    only(*installed)
    monkeypatch.setattr(loading, "has_accelerator", lambda: gpu)
    said = {
        "GPU": f"attention {attention} needs a GPU",
        "package": f"attention {attention} needs the package 'flash_attn', which is not "
        "installed: pip install flash-attn",
    }
    config = LocalConfig(model="m", attention=attention, device=device)
    assert list(config.problems()) == [said[what] for what in found]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, []),
        ({"config.json": {"model_type": "llava"}}, []),
        ({"config.json": {"model_type": "qwen2_5_vl"}}, VIDEOS),
        ({"config.json": {"model_type": "qwen3_vl_moe"}}, VIDEOS),
        ({"config.json": {"model_type": "my_qwen3_vl"}}, []),
        ({"config.json": {"model_type": "smolvlm"}}, SMOL),
        ({"config.json": {"model_type": None}}, []),
        ({"config.json": {"model_type": "x"}, "video_preprocessor_config.json": {}}, VIDEOS),
        ({"processor_config.json": {"video_processor": {}}}, VIDEOS),
        ({"processor_config.json": {"image_processor": {}}}, []),
    ],
)
def test_the_packages_of_a_processor_are_known_by_the_models_files(files, wanted, tmp_path):
    folder = tmp_path / "Qwen2-VL"  # the name of a folder says nothing
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    assert transformers_vlm._wanted_by_processor(str(folder)) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("someone/LLaVA-1.5", []),
        ("Qwen/Qwen2.5-VL-3B-Instruct", VIDEOS),
        ("someone/qwen3_vl-tuned", VIDEOS),
        ("HuggingFaceTB/SmolVLM2-256M-Instruct", SMOL),
        ("/no/such/qwen2_vl", []),
    ],
)
def test_the_packages_of_a_model_that_is_not_here_are_known_by_its_name(name, wanted, monkeypatch):
    monkeypatch.setattr(transformers_vlm, "on_this_machine", lambda place: None)
    assert transformers_vlm._wanted_by_processor(name) == wanted


def test_packages_that_a_processor_lacks_are_named(tmp_path, only):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "smolvlm"}')
    config = TransformersVLM.Config(model=str(model), attention="flash_attention_2", device="cpu")

    def needs(package):
        return (
            f"the processor of {model} needs the package {package!r}, which is not installed: "
            "pip install 'ravqa[vision]'"
        )

    attention = "attention flash_attention_2 needs a GPU"
    only()
    assert config.problems() == [attention, needs("num2words"), needs("torchvision")]
    only("torchvision")
    assert config.problems() == [attention, needs("num2words")]
    only("torchvision", "num2words")
    assert config.problems() == [attention]


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_quantised_weights_are_multiplied_in_the_type_of_numbers(kind):
    made = object.__new__(Placement)
    made._config, made.dtype = SimpleNamespace(quantization=kind), torch.float16
    found = made._quantization()
    assert (found.load_in_8bit, found.load_in_4bit) == (kind == "int8", kind != "int8")
    if kind != "int8":
        assert found.bnb_4bit_quant_type == kind
        assert found.bnb_4bit_compute_dtype == torch.float16


def test_a_reader_without_a_model_can_do_nothing_else():
    nothing = Abilities(
        supports_images=False,
        gives_log_probs=False,
        scores_answers=False,
        gives_next_token_logprobs=False,
    )
    assert FirstWords.declared(FirstWords.Config()) == nothing
    assert Majority.declared(None) == nothing
    assert dict(nothing.ways) == {}


@pytest.mark.parametrize(
    ("options", "able", "scoring"),
    [
        ({}, (True, False, False), "prompt_logprobs"),
        ({"images": False}, (False, False, False), "prompt_logprobs"),
        ({"log_probs": True, "scoring": "prompt_logprobs"}, (True, True, True), "prompt_logprobs"),
        ({"prompt_form": "plain", "scoring": "echo"}, (False, False, True), "echo"),
        ({"prompt_form": "plain", "log_probs": True}, (False, True, False), "echo"),
    ],
)
def test_a_server_can_do_what_the_settings_say(options, able, scoring):
    config = OpenAIReader.Config(model="m", url="http://localhost", **options)
    ways = {"gives_log_probs": "log_probs=true", "scores_answers": f"scoring={scoring}"}
    if scoring == "prompt_logprobs":  # the chat form
        ways["supports_images"] = "images=true"
    assert OpenAIReader.declared(config) == Abilities(*able, False, ways)


def test_settings_that_would_each_be_enough():
    ways = {"gives_log_probs": "log_probs=true", "scores_answers": "api=plain"}
    able = Abilities(False, False, False, True, ways)
    asked = []

    def either(found):
        asked.append((found.gives_log_probs, found.scores_answers, found.supports_images))
        return found.gives_log_probs or found.scores_answers

    assert able.ways_to(either) == ["log_probs=true", "api=plain"]
    assert asked == [(True, False, False), (False, True, False)]
    assert able.ways_to(lambda found: found.scores_answers is True) == ["api=plain"]
    assert able.ways_to(lambda found: found.supports_images) == []
    assert Abilities().ways_to(lambda _: True) == []
