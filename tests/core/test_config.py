"""Configuration: validation, overrides, files, content hashes, and registries that load late."""

import copy
import json
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from ravqa.cli import main
from ravqa.core import registry
from ravqa.core.errors import ContractError, UserError, near_matches
from ravqa.core.factory import build_part, part_config
from ravqa.core.locations import PIPELINES, packaged
from ravqa.core.registry import Registry
from ravqa.core.settings import (
    Part,
    PipelineConfig,
    Strict,
    apply_override,
    dump_yaml,
    fingerprint,
    load_pipeline,
    read_yaml,
    validate,
)
from ravqa.indexes import INDEXES
from ravqa.pipeline import check_settings
from ravqa.readers import READERS


class Inner(Strict):
    depth: int = Field(default=3, ge=1)
    words: tuple[str, ...] = ()


class Outer(Strict):
    name: str
    inner: Inner = Inner()
    share: float = 0.5


# --- validate


def test_valid_settings_become_a_frozen_model_with_defaults():
    config = validate(Outer, {"name": "x", "inner": {"words": ["a"]}}, "here")
    assert config == Outer(name="x", inner=Inner(depth=3, words=("a",)), share=0.5)
    with pytest.raises(ValidationError):
        config.share = 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "here: key 'name' is missing"),
        (
            {"name": "x", "shar": 1},
            "here: unknown key 'shar': did you mean share? (known: inner, name, share)",
        ),
        (
            {"name": "x", "inner": {"dept": 1}},
            "here: unknown key 'inner.dept': did you mean depth? (known: depth, words)",
        ),
        ({"name": "x", "zzz": 1}, "here: unknown key 'zzz': known: inner, name, share"),
        (
            {"name": "x", "inner": {"depth": 0}},
            "here: key 'inner.depth': input should be greater than or equal to 1, got 0",
        ),
        (
            {"name": "x", "inner": {"words": ["a", 5]}},
            "here: key 'inner.words.1': input should be a valid string, got 5",
        ),
        (
            {"name": "x", "share": float("nan")},
            "here: key 'share': input should be a finite number, got nan",
        ),
        (
            {"name": "x", "share": "-inf"},
            "here: key 'share': input should be a finite number, got '-inf'",
        ),
    ],
)
def test_errors_are_one_line_that_names_the_key(data, message):
    with pytest.raises(UserError) as caught:
        validate(Outer, data, "here")
    assert str(caught.value) == message


def test_what_does_not_hold_between_keys_is_told_in_its_own_words():
    class Range(Strict):
        low: int
        high: int

        @model_validator(mode="after")
        def _check(self):
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    with pytest.raises(UserError) as caught:
        validate(Range, {"low": 2, "high": 1}, "here")
    assert str(caught.value) == "here: low is above high"


def test_all_errors_are_told_at_once_and_long_values_cut():
    with pytest.raises(UserError) as caught:
        validate(Outer, {"shar": 1, "share": "y" * 500}, "here")
    text = str(caught.value)
    assert text.startswith("here: ")
    assert "'name' is missing" in text
    assert "'shar'" in text
    assert "'share'" in text
    assert len(text) < 400


def test_a_part_keeps_its_options_for_later():
    part = validate(Part, {"name": "exact", "storage": "float32"}, "here")
    assert part.options == {"storage": "float32"}
    assert Part(name="exact").options == {}


# --- near matches


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("readr", "did you mean reader? (known: describer, reader, retriever)"),
        ("retreiver", "did you mean retriever"),
        ("xyz", "known: describer, reader, retriever"),
    ],
)
def test_near_matches(name, expected):
    assert near_matches(name, ["retriever", "reader", "describer"]).startswith(expected)


def test_near_matches_is_never_empty():
    assert near_matches("x", []) == "none is known"
    assert near_matches("", ["a"]) == "known: a"


# --- overrides


def overridden(settings, *overrides):
    settings = copy.deepcopy(settings)
    for override in overrides:
        apply_override(settings, override)
    return settings


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("top_k=5", {"top_k": 5, "a": {"b": [1, {"c": 2}]}}),
        ("a.b.0=x", {"top_k": 20, "a": {"b": ["x", {"c": 2}]}}),
        ("a.b.1.c=true", {"top_k": 20, "a": {"b": [1, {"c": True}]}}),
        ("a.b.1.d=1", {"top_k": 20, "a": {"b": [1, {"c": 2, "d": 1}]}}),
        ("a.b=[]", {"top_k": 20, "a": {"b": []}}),
        ("a={x: [1, two]}", {"top_k": 20, "a": {"x": [1, "two"]}}),
        (
            "a.new.deep.key=1.5",
            {"top_k": 20, "a": {"b": [1, {"c": 2}], "new": {"deep": {"key": 1.5}}}},
        ),
        ("a=", {"top_k": 20, "a": None}),
        ("a=x=y", {"top_k": 20, "a": "x=y"}),
        ("a='5'", {"top_k": 20, "a": "5"}),
        ("a=null", {"top_k": 20, "a": None}),
    ],
)
def test_overrides_by_hand(override, expected):
    assert overridden({"top_k": 20, "a": {"b": [1, {"c": 2}]}}, override) == expected


def test_an_empty_part_can_be_filled():
    assert overridden({"describer": None}, "describer.name=imagenet-tags") == {
        "describer": {"name": "imagenet-tags"}
    }


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("reader=openai", {"reader": {"name": "openai"}}),
        ("retriever.encoder=token-bert", {"retriever": {"encoder": {"name": "token-bert"}}}),
        ("reader={name: a, b: 1}", {"reader": {"name": "a", "b": 1}}),
        ("stand_ins.reader=a small one", {"stand_ins": {"reader": "a small one"}}),
        ("reader=5", {"reader": 5}),
    ],
)
def test_a_part_can_be_set_to_its_name(override, expected):
    assert overridden({}, override) == expected
    whole = {"reader": {"name": "first-words", "words": 2}}
    assert overridden(whole, "reader=openai") == {"reader": {"name": "openai"}}


def test_later_overrides_win():
    assert overridden({}, "a.b=1", "a.b=2", "a.c=3") == {"a": {"b": 2, "c": 3}}


@pytest.mark.parametrize(
    "override",
    [
        "a",
        "=1",
        ".=1",
        "a.=1",
        ".a=1",
        "a..b=1",
        "list.2=1",
        "list.-1=1",
        "list.x=1",
        "list.\u00b2=1",
        "list.0.x=1",
        "plain.x=1",
        "plain.x.y=1",
        "a=[1",
        "a={b: c: d}",
    ],
)
def test_a_bad_override_is_refused_and_quoted(override):
    with pytest.raises(UserError) as caught:
        overridden({"list": [1, 2], "plain": 5}, override)
    assert repr(override) in str(caught.value)


keys = st.text("abcxyz019_-", min_size=1, max_size=4)
text = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)


@st.composite
def places(draw):
    """Settings, and the path of something inside them (a mapping's key or a list's number)."""
    settings = draw(st.dictionaries(keys, values, min_size=1, max_size=3))
    path, node = [], settings
    while isinstance(node, dict | list) and node and (not path or draw(st.booleans())):
        step = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        path.append(step)
        node = node[step]
    return settings, path


@given(places(), values)
def test_an_override_changes_its_place_and_nothing_else(place, value):
    settings, path = place
    expected = copy.deepcopy(settings)
    node = expected
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    key = ".".join(str(step) for step in path)
    written = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    assert overridden(settings, f"{key}={written}") == expected


@given(values, st.lists(keys, min_size=1, max_size=4))
def test_an_override_makes_the_mappings_that_lack(value, path):
    written = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    node = overridden({}, f"{'.'.join(path)}={written}")
    for step in path:
        assert list(node) == [step]
        node = node[step]
    assert node == value


@given(st.dictionaries(keys, values))
def test_settings_survive_being_written_and_read(settings):
    again = yaml.safe_load(dump_yaml(settings))
    assert again == settings
    assert list(again) == list(settings)  # in the given order


# --- files


def test_pipelines_are_loaded_by_name_or_file_and_overridden(tmp_path):
    settings, where = load_pipeline("sample", ["top_k=7", "reader.batch_size=2"])
    assert where == "sample.yaml"
    expected = yaml.safe_load((PIPELINES / "sample.yaml").read_text(encoding="utf-8"))
    expected["top_k"] = 7
    expected["reader"]["batch_size"] = 2
    assert settings == expected
    own = tmp_path / "own.yaml"
    own.write_text(dump_yaml(settings), encoding="utf-8")
    assert load_pipeline(str(own)) == (settings, "own.yaml")


def test_an_unknown_pipeline_lists_near_names():
    with pytest.raises(UserError, match=r"no pipeline 'sampel': did you mean sample"):
        load_pipeline("sampel")


def test_a_packaged_name_cannot_lead_out_of_its_folder(tmp_path):
    folder = tmp_path / "pipelines"
    folder.mkdir()
    for path in (folder / "in.yaml", tmp_path / "out.yaml"):
        path.write_text("a: 1", encoding="utf-8")
    (folder / "link.yaml").symlink_to(tmp_path / "out.yaml")
    assert packaged(folder, "in.yaml") == folder / "in.yaml"
    for name in ("../out.yaml", "link.yaml", str(tmp_path / "out.yaml"), "gone.yaml"):
        assert packaged(folder, name) is None


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_bundled_pipeline_is_valid_and_says_what_it_is(path):
    settings, where = load_pipeline(path.stem)
    config = check_settings(settings, where)
    assert config.description


def test_options_of_parts_are_checked_with_their_path():
    settings, where = load_pipeline("sample", ["retriever.query.replced=1"])
    with pytest.raises(
        UserError, match=r"retriever: unknown key 'query\.replced': did you mean rep"
    ):
        check_settings(settings, where)
    settings, where = load_pipeline("sample", ["reader.name=transformers-ll"])
    with pytest.raises(
        UserError, match="no reader 'transformers-ll': did you mean transformers-llm"
    ):
        check_settings(settings, where)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n- 2\n", "a mapping is expected, got list"),
        ("", "a mapping is expected, got NoneType"),
        ("a: 1\nb: ]\nc: 2\n", "line 2: not YAML"),
    ],
)
def test_a_yaml_file_that_is_no_mapping_is_named(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_yaml_cannot_make_python_objects(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1"):
        read_yaml(path)
    with pytest.raises(UserError, match="not YAML"):
        apply_override({}, "a=!!python/object/apply:os.getcwd []")


def test_a_pipeline_needs_retriever_and_reader():
    with pytest.raises(UserError, match="'retriever' is missing; key 'reader' is missing"):
        validate(PipelineConfig, {}, "here")
    with pytest.raises(UserError, match="'top_k'"):
        validate(
            PipelineConfig,
            {"retriever": {"name": "none"}, "reader": {"name": "first-words"}, "top_k": 0},
            "here",
        )


# --- content hashes


def test_fingerprints_differ_with_content_and_its_division_only():
    base = fingerprint("ab", "c")
    assert base == fingerprint("ab", "c")
    assert len(base) == 32
    others = [
        fingerprint("a", "bc"),
        fingerprint("abc"),
        fingerprint("ab", "c", ""),
        fingerprint(["ab", "c"]),
        fingerprint("c", "ab"),
        fingerprint(b"ab", b"c"),
        fingerprint(b"a", b"bc"),
        fingerprint(1, 2),
        fingerprint(12),
        fingerprint("ab", None),
        fingerprint(1),
        fingerprint("1"),
        fingerprint(1.5),
        fingerprint(),
    ]
    assert len({base, *others}) == len(others) + 1
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_fingerprints_do_not_depend_on_the_process():
    code = (
        "from ravqa.core.settings import fingerprint\n"
        "print(fingerprint({'b': 1, 'a': ['\\u00fc', 2.5]}, b'x'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == fingerprint({"a": ["\u00fc", 2.5], "b": 1}, b"x")


# --- registries

REGISTRIES = {kind: registry.table(kind) for kind in registry.TABLES}


def test_listing_names_imports_no_part():
    code = """
import json, sys
from ravqa.core import registry
names = [list(registry.table(kind)) for kind in registry.TABLES]
assert sum(map(len, names)) >= 10
heavy = ("torch", "transformers", "numpy", "ravqa")
packages = {target.partition(":")[0] for target in registry.TABLES.values()}
modules = sorted(m for m in sys.modules if m.partition(".")[0] in heavy and m not in packages)
registry.table("readers").get("first-words")
print(json.dumps([modules, sorted(m for m in sys.modules if m.startswith("ravqa.readers"))]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    before, readers = json.loads(done.stdout)
    names = {"ravqa", "ravqa.core", "ravqa.core.registry", "ravqa.core.errors"}
    assert set(before) <= names | {"ravqa.metrics.released"}  # a table, as the others
    # asking for one reader imports its module, not the others'
    assert "ravqa.readers.controls" in readers
    assert "ravqa.readers.transformers_llm" not in readers


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_registered_name_is_there_and_described(kind):
    for name, summary in REGISTRIES[kind]:
        part = REGISTRIES[kind].get(name)
        assert callable(part)
        assert summary
        if kind not in ("datasets", "retrieval metrics"):
            assert issubclass(part.Config, Strict)


def test_a_registered_target_is_imported_when_it_is_asked_for():
    parts = Registry("part", {"known": ("json:loads", "reads JSON")})
    parts.add("gone", "no_such_module:Thing", "is not there")
    assert "gone" in parts
    assert list(parts) == [("known", "reads JSON"), ("gone", "is not there")]
    assert parts.get("known") is json.loads
    with pytest.raises(ContractError) as error:
        parts.get("gone")
    expected = "the part 'gone' (no_such_module:Thing) cannot be imported: No module named"
    assert str(error.value) == f"{expected} 'no_such_module'"


def test_unknown_names_list_near_ones():
    parts = Registry("part", {"exact": ("json:loads", "")})
    assert parts.check("exact") == "exact"
    for use in (parts.get, parts.check):
        with pytest.raises(UserError, match=r"no part 'exakt': did you mean exact\?"):
            use("exakt")


def test_a_name_is_registered_once():
    parts = Registry("part", {"a": ("json:loads", "one")})
    parts.add("a", "json:loads", "said better")
    assert dict(parts) == {"a": "said better"}
    with pytest.raises(ValueError, match="registered twice"):
        parts.add("a", "json:dumps", "another")


def test_parts_are_built_from_their_options():
    built = build_part(READERS, Part(name="first-words", words=5), "reader")
    assert built.config.words == 5
    assert part_config(INDEXES, Part(name="exact"), "index").storage == "float16"
    with pytest.raises(UserError, match=r"reader: unknown key 'word': did you mean words\?"):
        build_part(READERS, Part(name="first-words", word=5), "reader")


@pytest.mark.parametrize("value", [2**63, -(2**63), 10**30])
@pytest.mark.parametrize("key", ["top_k", "reader.words", "reranking.0.options.deep"])
def test_numbers_that_no_counter_can_hold_are_refused(key, value):
    settings = {
        "retriever": {"name": "none"},
        "reader": {"name": "x"},
        "reranking": [{"name": "y"}],
    }
    apply_override(settings, f"{key}={value}")
    with pytest.raises(UserError, match=f"a file: key '{key}': a number beyond {2**63 - 1}"):
        validate(PipelineConfig, settings, "a file")
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--dataset", "okvqa", "--limit", str(value)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"description": "a\ud800"}, r"key 'description': half a character .* in 'a.ud800'"),
        ({"chosen_on": "\udce9"}, "key 'chosen_on': half a character"),
        ({"reader": {"name": "x", "body": {"a": ["\ud83d"]}}}, "key 'reader.body.a.0': half"),
        ({"reader": {"name": "x", "k\udc80": 1}}, "in the key 'k.udc80'"),
    ],
)
def test_text_that_cannot_be_written_is_refused(values, message):
    settings = {"retriever": {"name": "none"}, "reader": {"name": "x"}, **values}
    with pytest.raises(UserError, match=f"a file: .*{message}"):
        validate(PipelineConfig, settings, "a file")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ("a.tsv", "test: key 'files': a list is expected, got 'a.tsv'"),
        ([], "test: key 'files': a list of at least 1 is expected, got []"),
    ],
)
def test_a_list_is_called_a_list(files, problem):
    class Files(Strict):
        files: tuple[str, ...] = Field(min_length=1)

    with pytest.raises(UserError) as error:
        validate(Files, {"files": files}, "test")
    assert str(error.value) == problem
