"""What stops `ravqa run` stops it before anything is built, and `ravqa doctor` says the same."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from ravqa.cli import main
from ravqa.pipeline import Pipeline
from ravqa.runs import load as module

GONE = "cuda:77"  # no machine has so many
NO_DEVICE = "the device 'cuda:77' cannot be used: "
SERVER = "{name: openai, model: m, url: 'http://127.0.0.1:9/v1'%s}"
DENSE = {"name": "late-interaction", "encoder": {"name": "token-bert"}, "index": {"name": "exact"}}
BASE = {
    "retriever": DENSE,
    "reader": {"name": "first-words"},
    "answering": {"decision": "top1"},
}
VLM = "reader={name: transformers-vlm, model: model%s}"

REFUSALS = {
    # devices
    "encoder": (["--set", f"retriever.encoder.device={GONE}"], f"retriever.encoder: {NO_DEVICE}"),
    "index": (["--set", f"retriever.index.device={GONE}"], f"retriever.index: {NO_DEVICE}"),
    "compressed": (
        ["--set", f"retriever.index={{name: compressed, device: '{GONE}'}}"],
        f"retriever.index: {NO_DEVICE}",
    ),
    "reader": (["--set", VLM % f", device: '{GONE}'"], f"reader: {NO_DEVICE}"),
    "reranker": (
        ["--set", f"reranking=[{{name: cross-encoder, model: model, device: '{GONE}'}}]"],
        f"reranking.0: {NO_DEVICE}",
    ),
    "reranker's reader": (
        [
            "--set",
            f"reranking=[{{name: vlm, reader: {{name: transformers-vlm, model: model, device: "
            f"'{GONE}'}}}}]",
        ],
        f"reranking.0.reader: {NO_DEVICE}",
    ),
    # abilities of readers
    "rule": (
        ["--set", f"reader={SERVER % ''}", "--set", "answering={decision: joint_max, passages: 3}"],
        "answering.decision joint_max compares log-probabilities, which this reader does not give: "
        "set reader.log_probs=true if the server can do that, or choose concat or vote",
    ),
    "rule of tokens": (
        [
            *("--set", f"reader={SERVER % ', log_probs: true'}"),
            *("--set", "answering={decision: mixture, passages: 3}"),
        ],
        "answering.decision mixture decodes from next-token distributions, which this reader does "
        "not give: choose concat, joint_max, marginal or vote",
    ),
    "rule that scores": (
        [
            *("--set", f"reader={SERVER % ', prompt_form: plain'}"),
            *("--set", "answering={decision: marginal, marginal: thorough, passages: 3}"),
        ],
        "set reader.scoring=echo if the server can do that, or choose concat or vote",
    ),
    "reranker's probabilities": (
        ["--set", f"reader={SERVER % ''}", "--set", "reranking=[{name: vlm}]"],
        "reranking.0: vlm asks a reader for probabilities, which this reader does not give: set "
        "scoring=prompt_logprobs of the reader, or choose another reader for it",
    ),
    "gate": (
        ["--set", "reranking=[{name: gate, rule: reader, at_least: 0.5}]"],
        "reranking.0: gate asks a reader for probabilities",
    ),
    "gate without answers": (
        [
            "--retrieval-only",
            *("--set", "reranking=[{name: gate, rule: reader, at_least: 0.5, way: score}]"),
            *("--set", f"reader={SERVER % ''}"),
        ],
        "reranking.0: gate asks a reader for probabilities",
    ),
    # packages, files, keys
    "torchvision": (["--set", VLM % ""], "reader: the processor of model needs the package "),
    "torchvision by name": (
        ["--set", "reader={name: transformers-vlm, model: Qwen/Qwen2-VL-2B-Instruct}"],
        "reader: the processor of Qwen/Qwen2-VL-2B-Instruct needs the package 'torchvision'",
    ),
    "num2words": (
        ["--set", "reader={name: transformers-vlm, model: HuggingFaceTB/SmolVLM-Instruct}"],
        "reader: the processor of HuggingFaceTB/SmolVLM-Instruct needs the package 'num2words'",
    ),
    "flash-attn": (
        ["--set", VLM % ", device: cpu, attention: flash_attention_2"],
        "reader: attention flash_attention_2 needs a GPU",
    ),
    "quantisation": (
        ["--set", VLM % ", quantization: nf4"],
        "reader: the package 'bitsandbytes' is not installed: pip install 'ravqa[quantization]'",
    ),
    "bm25": (
        ["--set", "retriever={name: bm25}"],
        "retriever: the package 'bm25s' is not installed: pip install 'ravqa[bm25]'",
    ),
    "model": (["--set", "reader={name: transformers-vlm, model: ./no}"], "reader: no such model"),
    "weights": (
        ["--set", "reader={name: transformers-vlm, model: empty}"],
        "reader: there are no weights in empty",
    ),
    "hub": (
        ["--set", "retriever.encoder={name: flmr, model: owner/name}"],
        "retriever.encoder: owner/name is not on this machine, and HF_HUB_OFFLINE forbids",
    ),
    "memory": (
        ["--set", "reader={name: transformers-llm, model: model}"],
        "the models' weights need about ",
    ),
    "key": (
        ["--set", f"reader={SERVER % ', api_key_env: NO_SUCH_KEY'}"],
        "reader: the environment variable NO_SUCH_KEY (api_key_env) is not set",
    ),
    "plain images": (
        ["--set", f"reader={SERVER % ', prompt_form: plain, images: true'}"],
        "reader: images: the plain form takes no images: set prompt_form to chat",
    ),
    "ranking": (["--retriever", "static:no.json"], "retriever: no such file: no.json"),
    "index server": (
        ["--set", "retriever.index={name: qdrant, url: 'http://127.0.0.1:9'}"],
        "retriever.index: no server answers at http://127.0.0.1:9",
    ),
    # settings
    "key of a setting": (["--set", "reader.name=first-wrds"], "did you mean first-words"),
    "limit": (["--limit", "0"], "--limit 0: at least one question is needed"),
    "control": (["--controls", "nne"], "--controls: no control 'nne'"),
    "oracle": (
        ["--retriever", "none", "--controls", "oracle"],
        "--controls oracle needs a retriever whose order it keeps",
    ),
    "wrong image": (["--retriever", "none", "--controls", "wrong-image"], "changes nothing with"),
    "both": (["--resume", "--overwrite", "--output", "x"], "exclude each other"),
    # the folder
    "folder": (["--output", "old"], "the output folder old exists: --resume continues it"),
    "resume": (
        ["--output", "old", "--resume", "--limit", "2"],
        "the run in old had other settings (dataset.limit: 1 then, 2 now): it cannot be resumed",
    ),
    "resume with another pipeline": (
        ["--output", "old", "--resume", "--limit", "1", "--set", "top_k=7"],
        "the run in old had other settings (pipeline.top_k: null then, 7 now)",
    ),
    "resume with another split": (
        ["--output", "old", "--resume", "--limit", "1", "--split", "train"],
        "the run in old had other settings (dataset.split: ",
    ),
    # the data
    "dataset": (["--dataset", "okvaq"], "did you mean okvqa"),
    "data": (["--data", "nowhere", "--corpus", "x.jsonl"], "nowhere"),
    "corpus": (["--corpus", "no.jsonl"], "no.jsonl"),
    "examples": (
        ["--set", "answering={decision: top1, prompt: few-shot, examples: {count: 9999}}"],
        "answering.examples: count is 9999, but ",
    ),
}


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code, *capsys.readouterr()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a pipeline and models; many packages look as if they were not installed."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    for name, settings in (("model", {"model_type": "qwen2_vl"}), ("empty", {})):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(settings))
    with Path("model", "model.safetensors").open("wb") as out:
        out.truncate(10**9)
    found = importlib.util.find_spec
    absent = {"torchvision", "num2words", "bitsandbytes", "bm25s", "flash_attn", "kernels"}

    def find(name, *arguments):
        return None if name in absent else found(name, *arguments)

    for module_name in ("ravqa.readers.loading", "ravqa.readers.transformers_vlm"):
        monkeypatch.setattr(f"{module_name}.find_spec", find)
    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    return tmp_path


def spied(monkeypatch):
    """Return a list of what runs build, which ends them."""
    calls = []

    def build(*arguments, **options):
        calls.append(arguments)
        raise AssertionError("a part is built")

    monkeypatch.setattr(Pipeline, "from_config", build)
    monkeypatch.setattr(module, "build_part", build)
    return calls


@pytest.mark.parametrize("case", REFUSALS)
def test_a_run_is_refused_before_anything_is_built_and_doctor_says_why(
    case, here, capsys, monkeypatch
):
    given, message = REFUSALS[case]
    arguments = ("--dataset", "okvqa", "--pipeline", "base.yaml")
    if case == "memory":
        monkeypatch.setattr("ravqa.runs.needs.total_memory", lambda: 10**8)
        monkeypatch.setattr("ravqa.runs.needs.has_accelerator", lambda: False)
    if "old" in given:
        given = [*given, "--retriever", "none"]
        finished = ("--retriever", "none", "--limit", "1", "--output", "old", "--no-report")
        assert call(capsys, "run", *arguments, *finished)[0] == 0
    arguments += tuple(given)
    built = spied(monkeypatch)
    code, _, err = call(capsys, "run", *arguments)
    said = err.strip().splitlines()[-1]
    assert code == 2
    assert said.startswith("error: ")
    assert message in said
    assert not built
    line = re.sub(r" \(\d+ more: ravqa doctor [^)]*\)$", "", said.removeprefix("error: "))

    code, out, err = call(capsys, "doctor", *arguments, "--json")
    if code == 2:  # settings that are not valid
        found = [err.strip().splitlines()[-1].removeprefix("error: ")]
        line = line.replace("(ravqa run --help", "(ravqa doctor --help")
    else:
        assert code == 1
        found = json.loads(out)["pipeline"]["stops"]
    assert line in found
    assert not built


def test_without_refusals_both_go_on(here, capsys, monkeypatch):
    arguments = ("--dataset", "okvqa", "--pipeline", "base.yaml", "--limit", "2")
    assert call(capsys, "doctor", *arguments)[0] == 0
    spied(monkeypatch)
    with pytest.raises(AssertionError, match="a part is built"):
        main(["run", *arguments])


def test_a_run_needs_only_what_it_builds(here, capsys, monkeypatch):
    arguments = (
        *("--dataset", "okvqa", "--pipeline", "base.yaml", "--limit", "2", "--retrieval-only"),
        *("--set", "reader={name: transformers-vlm, model: ./no}"),
        *("--set", f"judge={{name: bem, model: owner/name, device: '{GONE}'}}"),
    )
    assert call(capsys, "doctor", *arguments)[0] == 0
    spied(monkeypatch)
    with pytest.raises(AssertionError, match="a part is built"):
        main(["run", *arguments])
    # A pipeline alone may be used with any dataset.
    code, out, _ = call(capsys, "doctor", *arguments[2:4], *arguments[-2:], "--json")
    assert code == 1
    assert json.loads(out)["pipeline"]["stops"][0].startswith(f"judge: {NO_DEVICE}")
