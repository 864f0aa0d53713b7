"""ravqa doctor: what is installed, and what would stop a pipeline."""

import ast
import importlib
import json
import os
import socket
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from pydantic import BaseModel

from ravqa.cli import doctor, main
from ravqa.core import devices
from ravqa.core.registry import PARTS
from ravqa.core.settings import Part, Strict
from ravqa.describers import DESCRIBERS
from ravqa.encoders import ENCODERS
from ravqa.indexes import INDEXES
from ravqa.metrics.judges import JUDGES
from ravqa.pipeline import check_settings
from ravqa.readers import READERS
from ravqa.rerankers import RERANKERS
from ravqa.retrievers import RETRIEVERS
from ravqa.runs import needs
from ravqa.runs.options import RunRequest
from ravqa.testing.asserting import picture

ROOT = Path(__file__).parents[2]
REGISTRIES = [DESCRIBERS, ENCODERS, INDEXES, JUDGES, READERS, RERANKERS, RETRIEVERS]


def settings(**changes):
    return {"retriever": {"name": "none"}, "reader": {"name": "first-words"}, **changes}


def examined(**changes):
    return needs.examine(check_settings(settings(**changes), "test"))


def stops(**changes):
    return examined(**changes).stops


@pytest.fixture
def without(monkeypatch):
    """A function that makes packages look as if they were not installed."""
    found = importlib.util.find_spec

    def hide(*modules):
        def find(name, *arguments):
            return None if name in modules else found(name, *arguments)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    return hide


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    # The library reads the variables HF_HUB_CACHE and HF_HUB_OFFLINE when it is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def model(folder, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    return folder


def test_pictures_of_articles_that_are_not_there_are_a_stop():
    answering = {"passage_images": 1, "article_images": "gone", "article_folder": "away"}
    found = stops(answering={**answering, "prompt": "chat"})
    assert [stop for stop in found if stop.startswith("answering: ")] == [
        "answering: no such file or folder: gone",
        "answering: no such file or folder: away",
    ]


def test_an_address_that_is_none_is_a_stop():
    for url in ("http://localhost:80x/v1", "http://localhost:99999/v1", "http://[::1/v1"):
        found = examined(reader={"name": "openai", "model": "m", "url": url})
        assert found.silent == [f"reader: no server answers at {url}"]


def test_a_cache_folder_that_cannot_be_made_is_a_row(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path / "file" / "cache"))
    report = doctor.examine()
    assert (
        "cannot be created (Not a directory): set RAVQA_CACHE to another" in report.devices["disk"]
    )
    assert all(cache.name == "Hugging Face hub" for cache in report.caches)


def test_every_extra_is_described():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - {"test", "dev"}


def test_every_package_that_a_part_imports_is_told_by_its_options():
    """`import_extra` in a part's module, and no `packages` in its Config: doctor would not know."""
    silent = []
    for registry in REGISTRIES:
        for name, _ in registry:
            part = registry.get(name)
            source = Path(sys.modules[part.__module__].__file__).read_text(encoding="utf-8")
            calls = [
                node
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "import_extra"
            ]
            if calls and part.Config.packages is Strict.packages:
                silent.append(f"{registry.kind} {name}")
    assert silent == []


def test_every_option_that_holds_a_part_is_known():
    def fields(config, seen):
        for key, info in config.model_fields.items():
            kinds = [info.annotation, *getattr(info.annotation, "__args__", ())]
            if Part in kinds:
                seen.add(key)
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    fields(kind, seen)
        return seen

    seen = set()
    for registry in REGISTRIES:
        for name, _ in registry:
            fields(registry.get(name).Config, seen)
    assert {"encoder", "index", "shard", "retrievers"} <= seen <= set(PARTS)


def test_extras_lack_what_is_not_installed(monkeypatch):
    version = doctor._version
    hidden = {"bm25s", "faiss-cpu", "torchvision"}
    monkeypatch.setattr(doctor, "_version", lambda n: None if n in hidden else version(n))
    missing = {extra.name: extra.missing for extra in doctor.extras()}
    assert missing["bm25"] == ("bm25s",)
    assert missing["cpu"] == ("faiss-cpu",)
    assert missing["vision"][-1] == "torchvision"


def test_an_extra_made_of_another_lacks_what_that_lacks(monkeypatch):
    monkeypatch.setattr(
        doctor.metadata,
        "requires",
        lambda name: ["a; extra == 'lora'", "ravqa[lora]; extra == 'train'", "b"],
    )
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    missing = {extra.name: extra.missing for extra in doctor.extras()}
    assert missing["lora"] == missing["train"] == ("a",)
    assert missing["pdf"] == ()


def test_missing_packages_stop_a_pipeline(without, tmp_path):
    retriever = {"name": "bm25", "stemming": True}
    assert stops(retriever=retriever) == []
    without("Stemmer", "bm25s", "sentence_transformers")
    assert [line.split(": pip")[0] for line in stops(retriever=retriever)] == [
        "retriever: the package 'bm25s' is not installed",
        "retriever: the package 'Stemmer' is not installed",
    ]
    inner = {"name": "late-interaction", "encoder": {"name": "dense", "model": str(tmp_path)}}
    found = stops(retriever={"name": "fusion", "retrievers": [retriever, inner]})
    assert found[-2].startswith("retriever.retrievers.1.encoder: the package 'sentence_transf")
    assert found[-1].endswith(f"there are no weights in {tmp_path}")


def last_line(found):
    report = doctor.PipelineReport(**vars(found), name="own.yaml")
    shown = doctor.lines(doctor.Report({}, [], {}, [], offline=False, pipeline=report))
    return list(shown)[-1][1][-1][1]


def test_models_are_looked_for(hub, tmp_path, monkeypatch):
    def reader(name, **options):
        return examined(reader={"name": "transformers-vlm", "model": str(name), **options})

    assert stops(reader={"name": "transformers-llm", "model": "./gone"}) == [
        "reader: no such model file or folder: ./gone"
    ]
    found = reader("owner/name")
    assert found.notes == ["reader: owner/name will be downloaded from the hub"]
    assert last_line(found) == "ready to run after a download of owner/name"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    [stop] = reader("owner/name").stops
    assert "HF_HUB_OFFLINE forbids" in stop
    assert stop.endswith("--set reader.model=DIR")
    kept = hub / "models--owner--name"
    model(kept / "snapshots" / "abc", model_type="llava", dtype="bfloat16")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    found = reader("owner/name")
    assert found.stops == []
    assert last_line(found) == "ready to run"
    assert (found.models[0].bytes, found.models[0].memory) == (1000, 2000)
    local = model(tmp_path / "local", model_type="llava")
    assert reader(local).stops == []
    assert reader(local, adapter="./x").stops == ["reader: no such model file or folder: ./x"]


@pytest.mark.parametrize("how", ["type", "file", "processor"])
def test_a_processor_that_wants_torchvision(how, tmp_path, without):
    folder = model(tmp_path / "m", model_type="qwen2_5_vl" if how == "type" else "new")
    if how == "file":
        (folder / "video_preprocessor_config.json").write_text("{}")
    if how == "processor":
        (folder / "processor_config.json").write_text('{"video_processor": {}}')
    without("torchvision")
    [line] = stops(reader={"name": "transformers-vlm", "model": str(folder)})
    assert line.endswith("'torchvision', which is not installed: pip install 'ravqa[vision]'")


def test_weights_that_do_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(needs, "total_memory", lambda: 1500)
    folder = model(tmp_path / "m", model_type="llava", torch_dtype="float16")
    [line] = stops(reader={"name": "transformers-vlm", "model": str(folder)})
    assert "weights need about 2.0 KB of memory, this machine has 1.5 KB" in line


def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        reader = {"name": "openai", "url": url, "model": "m"}
        assert stops(reader=reader) == []
    assert examined(reader=reader).silent == [f"reader: no server answers at {url}"]
    retriever = {"name": "late-interaction", "encoder": {"name": "token-bert"}}
    index = {"name": "qdrant", "url": url.removesuffix("/v1")}
    assert stops(retriever=retriever | {"index": index})[-1] == (
        f"retriever.index: no server answers at {index['url']}"
    )


def test_what_torch_was_built_for(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for text, expected in (
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", ""),
        ("cuda: Optional[str] = '12.8'\nhip = None\n", "CUDA 12.8"),
        ("cuda = None\nhip = '6.4'\n", "HIP 6.4"),
    ):
        (tmp_path / "torch" / "version.py").write_text(f"from typing import Optional\n{text}")
        assert devices.torch_build() == expected


def test_caches_are_counted(fresh_cache, hub):
    (fresh_cache / "indexes" / "a").mkdir(parents=True)
    (fresh_cache / "indexes" / "a" / "x").write_bytes(b"1234")
    (fresh_cache / "rankings.sqlite").write_bytes(b"12")
    (fresh_cache / "rankings.sqlite-wal").write_bytes(b"3")
    (hub / "blobs").mkdir(parents=True)
    (hub / "blobs" / "b").write_bytes(b"12345")
    sizes = {cache.name: cache.bytes for cache in doctor.caches()}
    assert sizes == {"indexes": 4, "rankings": 3, "Hugging Face hub": 5}
    (fresh_cache / "indexes" / ".b.0123abcd.part").mkdir()
    (fresh_cache / "indexes" / ".b.0123abcd.part" / "x").write_bytes(b"123456")
    (fresh_cache / "indexes" / ".c.part").write_bytes(b"someone else's")
    assert {cache.name: cache.bytes for cache in doctor.caches()}["left by 1 killed writer"] == 6


def test_the_command(capsys, hub):
    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["doctor", *arguments])
        return end.value.code, *capsys.readouterr()

    code, out, _ = call("--pipeline", "bm25-retrieval")
    assert code == 0
    assert "ready to run" in out
    code, out, _ = call("--pipeline", "bm25-retrieval", "--set", "reader.name=firstwords")
    assert code == 2
    change = "reader={name: transformers-llm, model: ./gone}"
    code, out, _ = call("--pipeline", "bm25-retrieval", "--set", change, "--json")
    assert code == 1
    report = json.loads(out)
    assert report["pipeline"]["stops"] == ["reader: no such model file or folder: ./gone"]
    assert report["versions"]["torch"]


def test_doctor_imports_neither_torch_nor_transformers():
    code = (
        "import sys\n"
        "from ravqa.cli import doctor\n"
        "from ravqa.core import devices\n"
        "doctor.torch_build = devices.torch_build = lambda: ''\n"
        "sys.platform = 'linux'\n"
        "from ravqa.runs.options import RunRequest\n"
        "doctor.examine(RunRequest('', pipeline='preflmr-l-retrieval', retrieval_only=True))\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "HEAVY []\n"


def test_missing_images_of_questions_and_passages_are_counted(tmp_path, fresh_cache):
    (tmp_path / "there.png").write_bytes(picture(8, 8, 100))
    rows = [
        {"question_id": i, "question": "What is this?", "image": f"{name}.png", "answers": ["x"]}
        for i, name in enumerate(("there", "gone", "lost"))
    ]
    passages = [
        {"passage_id": name, "text": "text", "title": name, "image": f"{name}.png"}
        for name in ("there", "absent")
    ]
    for name, lines in (("questions", rows), ("passages", passages)):
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def found():
        request = RunRequest(
            "jsonl",
            data=tmp_path / "questions.jsonl",
            corpus=(tmp_path / "passages.jsonl",),
            pipeline="bm25-retrieval",
            overrides=("retriever={name: gallery}", "describer=null"),
            retrieval_only=True,
        )
        return doctor.examine_run(request).stops

    assert "2 questions have" in "".join(found())
    for name in ("gone", "lost"):
        (tmp_path / f"{name}.png").write_bytes(picture(8, 8, 200))
    [problem] = found()
    assert "line 2: no image 'absent.png'" in problem
    (tmp_path / "absent.png").write_bytes(picture(8, 8, 50))
    assert found() == []


def test_where_the_hubs_cache_is_and_whether_it_is_offline_come_from_the_environment(tmp_path):
    code = (
        "from ravqa.cli import doctor\n"
        "report = doctor.examine()\n"
        "print(report.offline, [cache.path for cache in report.caches])\n"
    )
    (tmp_path / "hub").mkdir()
    for offline in ("1", "0"):
        environment = {
            **os.environ,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": offline,
            "RAVQA_CACHE": str(tmp_path / "cache"),
        }
        environment.pop("HF_HUB_CACHE", None)
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert done.stdout == f"{offline == '1'} {[str(tmp_path / 'hub')]}\n"


def test_questions_that_are_left_out_are_counted(tmp_path, fresh_cache):
    rows = [
        {"question_id": i, "question": "What is this?", "image": f"{name}.png", "answers": ["x"]}
        for i, name in enumerate(("there", "gone", "lost"))
    ]
    for name, lines in (("questions", rows), ("passages", [{"passage_id": "p", "text": "x"}])):
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "there.png").write_bytes(picture(8, 8, 100))
    (tmp_path / "listed.txt").write_text("gone\nlost.png\n", encoding="utf-8")
    request = RunRequest(
        "jsonl",
        data=tmp_path / "questions.jsonl",
        corpus=(tmp_path / "passages.jsonl",),
        pipeline="bm25-retrieval",
        overrides=("describer={name: file, files: [listed.jsonl], missing: empty}",),
        retrieval_only=True,
    )
    listed = (f"unavailable={tmp_path / 'listed.txt'}",)
    for options, remark in (
        ({"on_error": "skip"}, ""),
        ({"dataset_options": listed}, " (listed as unavailable)"),
    ):
        [note] = doctor.examine_run(replace(request, **options)).notes
        assert note == (
            "2 questions are left out, the first for question 1: no such image: "
            f"{tmp_path / 'gone.png'}{remark}"
        )
