"""Code that comes with a checkpoint runs only where a setting allows it."""

import ast
import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
import transformers
from cases import slow_but
from checkpoint_files import PARTS, TRUSTING, build, refused
from flmr_parity import one_thread  # noqa: F401 (a fixture)

from ravqa.core.errors import UserError
from ravqa.readers.base import Prompt
from ravqa.readers.openai import OpenAIReader

ROOT = Path(__file__).parents[2]

MODULES = {
    "model": """
from transformers import {base}, {config}
class Own({base}):
    config_class = {config}
""",
    "AutoConfig": """
from transformers import {config}
class Own({config}):
    model_type = "of_its_own"
""",
    "AutoTokenizer": """
from transformers import PreTrainedTokenizerFast
class Own(PreTrainedTokenizerFast):
    pass
""",
    "AutoProcessor": """
from transformers import {processor}
class Own({processor}):
    pass
""",
}


def settings(file):
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def with_code(folder, file, entry, source, **changes):
    """Names code in one of a checkpoint's files; gives the file that the code writes when run."""
    marker = folder.with_name("marker")
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n{source}"
    (folder / f"code_{entry.lower()}.py").write_text(code, encoding="utf-8")
    own = f"code_{entry.lower()}.Own"
    auto_map = {entry: [None, own] if entry == "AutoTokenizer" else own}
    values = settings(folder / file) | {"auto_map": auto_map} | changes
    values = {key: value for key, value in values.items() if value is not None}
    (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return marker


def code_of_config(folder):
    kind = type(transformers.AutoConfig.from_pretrained(folder)).__name__
    source = MODULES["AutoConfig"].format(config=kind)
    return with_code(folder, "config.json", "AutoConfig", source, model_type="of_its_own")


def code_of_tokenizer(folder):
    # A class that transformers does not know: else it takes its own.
    return with_code(
        folder,
        "tokenizer_config.json",
        "AutoTokenizer",
        MODULES["AutoTokenizer"],
        tokenizer_class="OwnTokenizer",
    )


def code_of_processor(folder):
    source = MODULES["AutoProcessor"].format(processor="LlavaProcessor")
    return with_code(
        folder, "processor_config.json", "AutoProcessor", source, processor_class="OwnProcessor"
    )


def code_of_hidden_tokenizer(folder):
    """Only the model's type tells which processor it is: transformers forgets what is allowed."""
    marker = code_of_tokenizer(folder)
    for name in ("processor_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        values = settings(folder / name)
        values.pop("processor_class", None)
        if values:
            (folder / name).write_text(json.dumps(values), encoding="utf-8")
    images = settings(folder / "processor_config.json").get("image_processor")
    if images:
        (folder / "processor_config.json").unlink()
        (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    return marker


def code_of_base(folder):
    """The configuration that an FLMR checkpoint names as its mapping network's."""
    return code_of_config(folder / "bert-base-stand-in")


def code_of_generation(folder):
    marker = folder.with_name("marker")
    (folder / "custom_generate").mkdir()
    source = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    (folder / "custom_generate" / "generate.py").write_text(source, encoding="utf-8")
    return marker


def code_of_module(folder):
    marker = folder.with_name("marker")
    source = f"""
from pathlib import Path
Path({str(marker)!r}).touch()
from sentence_transformers.base.modules import Normalize
class Own(Normalize):
    pass
"""
    (folder / "code_own.py").write_text(source, encoding="utf-8")
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    own = {"idx": 9, "name": "9", "path": "", "type": "code_own.Own"}
    (folder / "modules.json").write_text(json.dumps([*modules, own]), encoding="utf-8")
    return marker


CARRIERS = [
    *((kind, code_of_config) for kind in TRUSTING),
    ("llm", code_of_tokenizer),
    ("paligemma", code_of_tokenizer),
    ("paligemma", code_of_hidden_tokenizer),
    ("vlm", code_of_processor),
    ("flmr", code_of_base),
    ("dense", code_of_module),
    ("multi-vector", code_of_module),
]


@pytest.fixture
def yes(monkeypatch):
    """Somebody, or some pipe, who says yes to everything."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))


@pytest.mark.parametrize(("kind", "carry"), CARRIERS)
def test_code_of_a_checkpoint_is_refused(copied, yes, kind, carry):
    folder = copied(kind)
    marker = carry(folder)
    line = refused(kind, folder)
    assert "contains its own code" in line
    assert ("set trust_remote_code: true" in line) == (kind in TRUSTING)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("kind", "carry"),
    slow_but(
        [("llm", code_of_config), ("llm", code_of_tokenizer)],
        [c for c in CARRIERS if c[0] in TRUSTING],
    ),
)
def test_code_runs_where_the_setting_allows_it(copied, yes, kind, carry):
    folder = copied(kind)
    marker = carry(folder)
    if carry is code_of_hidden_tokenizer:  # transformers does not pass on that it is allowed
        refused(kind, folder, trust_remote_code=True)
        return
    try:
        build(kind, folder, trust_remote_code=True)
    except UserError:
        assert carry is code_of_config  # a class of its own may fit no auto class
    assert marker.exists()


@pytest.mark.parametrize("kind", PARTS)
def test_code_that_is_not_needed_is_not_run(copied, yes, kind):
    folder = copied(kind)
    entries = [("config.json", "AutoConfig"), ("config.json", "AutoModel")]
    for file, entry in [*entries, ("tokenizer_config.json", "AutoTokenizer")]:
        marker = with_code(folder, file, entry, "class Own: pass")
    with contextlib.suppress(UserError):  # tokenizers that transformers has no class for
        build(kind, folder)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["llm", "vlm", "seq2seq"])
def test_a_generation_of_its_own_is_not_taken(copied, yes, kind):
    folder = copied(kind)
    marker = code_of_generation(folder)
    build(kind, folder)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_an_activation_that_is_code_is_not_replaced_by_another(copied, yes, key):
    folder = copied("cross-encoder")
    values = settings(folder / "config.json")
    values[key] = {"activation_fn": "own.Scale"} if key.startswith("sent") else "own.Scale"
    (folder / "config.json").write_text(json.dumps(values))
    assert "own.Scale" in refused("cross-encoder", folder)
    build("cross-encoder", folder, activation="identity")


def test_code_beside_a_gguf_file_is_refused(copied, yes):
    pytest.importorskip("gguf", reason="GGUF files need gguf")
    folder = copied("llm")
    marker = code_of_tokenizer(folder)
    (folder / "model.gguf").write_bytes(b"GGUF")
    refused("llm", folder / "model.gguf")
    refused("llm", folder / "model.gguf", trust_remote_code=True)
    assert not marker.exists()


def test_code_of_a_servers_tokenizer_is_refused(copied, yes):
    folder = copied("llm")
    marker = code_of_tokenizer(folder)
    config = OpenAIReader.Config(model="x", url="http://127.0.0.1:9/v1", tokenizer=str(folder))
    with pytest.raises(UserError, match="contains its own code, which this part never runs"):
        OpenAIReader(config).count_tokens([Prompt("a")])
    assert not marker.exists()


def test_no_setting_of_the_processor_allows_it(copied):
    with pytest.raises(UserError, match="trust_remote_code is a setting of the reader itself"):
        build("vlm", copied("vlm"), processor={"trust_remote_code": True})


def test_what_is_allowed_is_part_of_a_readers_fingerprint(checkpoint):
    folder = checkpoint("llm")
    without, again = build("llm", folder), build("llm", folder, trust_remote_code=False)
    assert without.fingerprint == again.fingerprint
    assert build("llm", folder, trust_remote_code=True).fingerprint != without.fingerprint


METHODS = {"from_pretrained", "from_config", "load_adapter"}
CLASSES = {"SentenceTransformer", "CrossEncoder", "MultiVectorEncoder", "SparseEncoder"}
LIBRARIES = {"transformers", "sentence_transformers", "peft", "library"}
# Of classes of this project, which run no code of a checkpoint.
OWN = ("FLMR", "Pipeline", "kind", "cls", "config_class", "super()")
NO_SUCH_OPTION = {"library.from_pretrained"}  # peft's
ONE_LOADER = ROOT / "ravqa" / "core" / "checkpoints.py"


def loads(path):
    """Each use of a loader in a file, and the call, if it is called there."""
    source = path.read_text(encoding="utf-8")
    if not any(word in source for word in METHODS | CLASSES | LIBRARIES):
        return
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        call = calls.get(id(node))
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            if not ast.unparse(node.value).split(".")[-1].startswith(OWN):
                yield node, call
        elif call is not None and isinstance(node, ast.Call) and len(node.args) > 1:
            if ast.unparse(node.func) == "getattr" and ast.unparse(node.args[0]) in LIBRARIES:
                yield node, call
        elif call is not None and getattr(node, "attr", getattr(node, "id", "")) in CLASSES:
            yield node, call


def test_everything_is_loaded_in_one_module_which_says_whether_code_may_run():
    found, wrong = [], []
    sources = [*(ROOT / "ravqa").rglob("*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("*.py")]
    for path in sources:
        for node, call in loads(path):
            where = f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
            if path != ONE_LOADER:
                wrong.append(where)
            elif call is not None and ast.unparse(node) not in NO_SUCH_OPTION:
                found.append(where)
                if not any(option.arg == "trust_remote_code" for option in call.keywords):
                    wrong.append(f"{where}: leaves it open")
    assert not wrong
    assert len(found) >= 5


@pytest.mark.parametrize(
    "line",
    [
        "transformers.AutoTokenizer.from_pretrained(x, trust_remote_code=False)",
        "load = AutoModel.from_pretrained",
        "getattr(transformers, name)(x)",
        "SentenceTransformer(x, trust_remote_code=False)",
        "library.CrossEncoder(x)",
        "AutoModel.from_config(x)",
        "peft.PeftModel.from_pretrained(a, b)",
        "GenerationConfig.from_pretrained(x)",
    ],
)
def test_a_load_elsewhere_would_be_found(tmp_path, line):
    (tmp_path / "some.py").write_text(line)
    assert len(list(loads(tmp_path / "some.py"))) == 1


def test_callers_of_the_loader_say_whether_code_may_run():
    loader = ast.parse(ONE_LOADER.read_text(encoding="utf-8"))
    asked = {
        node.name
        for node in loader.body
        if isinstance(node, ast.FunctionDef)
        and "trust_remote_code" in [argument.arg for argument in node.args.kwonlyargs]
    }
    for node in ast.walk(loader):
        if isinstance(node, ast.FunctionDef) and node.name in asked:
            assert all(default is None for default in node.args.kw_defaults)  # it must be given
    assert {"load_config", "load_tokenizer", "load_processor", "load_model"} <= asked
