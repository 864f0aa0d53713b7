"""A study's file: which variants come of it; what is wrong with it is said before anything runs."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from study_files import write_data, write_study

from ravqa.core.errors import UserError
from ravqa.core.locations import STUDIES
from ravqa.core.settings import as_override, split_override
from ravqa.studies.options import StudyRequest
from ravqa.studies.plan import load_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("study"))


def plan(folder, **changes):
    return load_plan(StudyRequest(str(write_study(folder / "study.yaml", **changes))))


WORDS = {"reader.words": [1, 2, 3]}
RULES = {"rule": {"first": {"answering.passages": 1}, "all": {"answering.decision": "concat"}}}


def test_a_grid_is_every_combination_in_order(folder):
    made = plan(folder, axes={**WORDS, **RULES})
    assert list(made.variants) == [
        f"words={words}, {rule}" for words in (1, 2, 3) for rule in ("first", "all")
    ]
    assert made.reference == "words=1, first"
    last = made.runs[-1]
    assert last.pipeline.settings["reader"] == {"name": "first-words", "words": 3}
    assert last.pipeline.settings["answering"]["decision"] == "concat"
    assert last.pipeline.config.top_k == 10
    # Each run can be asked for by itself.
    assert "reader.words=3" in last.request.overrides


def test_one_at_a_time_changes_the_first_levels_one_by_one(folder):
    made = plan(folder, axes={**WORDS, **RULES}, design="one-at-a-time")
    assert list(made.variants) == ["words=1, first", "words=2", "words=3", "all"]
    assert [run.pipeline.settings["reader"]["words"] for run in made.runs] == [1, 2, 3, 1]
    assert [run.pipeline.settings["answering"]["decision"] for run in made.runs] == [
        *["top1"] * 3,
        "concat",
    ]
    assert made.variants["words=2"] == {"reader.words": "2", "rule": "first"}


@pytest.mark.parametrize("design", ["grid", "one-at-a-time"])
def test_an_axis_with_one_level_is_not_in_the_names(folder, design):
    one = {"decision": {"vote": {"answering.decision": "vote", "answering.passages": 3}}}
    made = plan(folder, axes={**one, **WORDS}, design=design)
    assert list(made.variants) == ["words=1", "words=2", "words=3"]
    assert made.reference == "words=1"
    assert made.variants["words=2"] == {"decision": "vote", "reader.words": "2"}
    assert all(run.pipeline.config.answering["decision"] == "vote" for run in made.runs)
    alone = plan(folder, axes={**one, "reader.words": [2]}, design=design)
    assert list(alone.variants) == ["vote, words=2"]


def test_excluded_combinations_and_further_variants(folder):
    made = plan(
        folder,
        axes={**WORDS, **RULES},
        exclude=[{"reader.words": 3, "rule": "all"}, {"reader.words": "words=2"}],
        variants={"no passages": {"retriever": {"name": "none"}}},
        reference="no passages",
    )
    assert list(made.variants) == [
        "words=1, first",
        "words=1, all",
        "words=3, first",
        "no passages",
    ]
    assert made.reference == "no passages"
    assert made.runs[-1].pipeline.config.retriever.name == "none"


def test_every_dataset_has_every_variant_in_a_folder_of_its_own(folder):
    data = {"name": "jsonl", "data": str(folder)}
    made = plan(folder, datasets=[{**data, "label": "A/B"}, {**data, "label": "a b", "limit": 5}])
    assert [(r.dataset, r.variant) for r in made.runs] == [
        (label, f"words={words}") for label in ("A/B", "a b") for words in (1, 2)
    ]
    assert [r.folder for r in made.runs] == [
        "A-B-words=1",
        "A-B-words=2",
        "a-b-words=1-2",
        "a-b-words=2-2",
    ]
    assert [r.request.limit for r in made.runs] == [None, None, 5, 5]


def test_another_base_and_parts_are_levels_too(folder):
    made = plan(
        folder,
        set={"reader": {"name": "first-words"}},
        axes={
            "base": {"words": {}, "vectors": {"pipeline": "minilm-retrieval"}},
            "retriever": [{"name": "bm25"}, {"name": "random"}],
        },
        exclude=[{"base": "vectors"}],
        variants={"as it is": {"pipeline": "minilm-retrieval"}},
    )
    assert list(made.variants) == ["words, retriever=bm25", "words, retriever=random", "as it is"]
    assert made.runs[-1].pipeline.config.retriever.name == "late-interaction"
    assert made.runs[-1].request.pipeline == "minilm-retrieval"


def test_the_command_line_changes_the_base_and_the_data(folder, tmp_path):
    path = write_study(folder / "study.yaml")
    made = load_plan(
        StudyRequest(
            str(path),
            overrides=["top_k=7", "reader.words=9"],
            corpus=[tmp_path / "p.jsonl"],
            limit=3,
            split="x",
        )
    )
    assert {run.pipeline.config.top_k for run in made.runs} == {7}
    assert [run.pipeline.settings["reader"]["words"] for run in made.runs] == [
        1,
        2,
    ]  # the axis has it
    [request] = {run.request.limit for run in made.runs}
    assert request == 3
    assert made.runs[0].request.corpus == (tmp_path / "p.jsonl",)
    assert made.config.set["top_k"] == 7  # and so it stands in the folder's study.yaml


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, r"unknown key 'axis': did you mean axes"),
        (
            {"datasets": [{"name": "jsonl", "dat": "x"}]},
            r"unknown key 'datasets\.0\.dat': did you mean data",
        ),
        ({"axes": {"reader.wordz": [1]}}, r"variant 'wordz=1': .*unknown key 'wordz'.*words"),
        (
            {"axes": {"answering.decison": ["top1"]}},
            r"unknown key 'decison': did you mean decision",
        ),
        ({"axes": {"reader.words": [1, 0]}}, r"variant 'words=0': .*reader: key 'words'"),
        ({"axes": {"reader": [{"name": "first-wurds"}]}}, r"no reader 'first-wurds'.*first-words"),
        ({"axes": {"reader.words": 3}}, r"axes\.reader\.words: a list of values, or a mapping"),
        ({"axes": {"reader.words": []}}, r"a list of values"),
        (
            {"axes": {"x": {"a": 3}}},
            r"axes\.x\.a: a mapping from keys to values is expected, got 3",
        ),
        ({"axes": {}}, r"nothing to vary"),
        ({"axes": {"reader.words": [1, 1]}}, r"two values would be called 'words=1'"),
        (
            {"axes": {"prompt": {"a": {"top_k": 1}}, "top_k": [2]}},
            r"'prompt' and 'top_k' both set top_k",
        ),
        ({"axes": {"a": {"x": {}, "y": {}}}}, r"the variants 'x' and 'y' have the same settings"),
        ({"variants": {"words=1": {}}}, r"two variants are called 'words=1'"),
        ({"reference": "words=3"}, r"no reference variant 'words=3': did you mean words="),
        ({"exclude": [{"reader.word": 1}]}, r"no axis 'reader\.word': did you mean reader\.words"),
        ({"exclude": [{"reader.words": 7}]}, r"has no level 7: .*words=1"),
        (
            {
                "axes": {**WORDS, **RULES},
                "exclude": [{"rule": "all"}, {"rule": "all", "reader.words": 1}],
            },
            None,
        ),
        ({"metrics": ["prrecall@5"]}, r"no metric 'prrecall@5': .*PRRecall@5"),
        ({"metrics": ["PRRecall@11"]}, r"PRRecall@11, but top_k is 10"),
        ({"metrics": ["score", "score"]}, r"named twice"),
        ({"metrics": ["score"], "retrieval_only": True}, r"score needs answers"),
        ({"controls": ["non"]}, r"no control 'non': did you mean none"),
        ({"datasets": []}, r"key 'datasets'"),
        ({"datasets": [{"name": "jsonl"}, {"name": "jsonl"}]}, r"two datasets are called 'jsonl'"),
        ({"datasets": [{"name": "okvqua"}]}, r"no dataset 'okvqua': did you mean okvqa"),
        (
            {"pipeline": "bm25-retreival"},
            r"no pipeline 'bm25-retreival': did you mean bm25-retrieval",
        ),
        ({"axes": {"reader.words": ["x" * 60]}}, r"too long for a name"),
    ],
)
def test_mistakes_are_one_line(folder, changes, message):
    if message is None:
        plan(folder, **changes)
        return
    with pytest.raises(UserError, match=message) as error:
        plan(folder, **changes)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("study.yaml: ")


def test_unknown_studies_name_near_ones():
    with pytest.raises(UserError, match="no study 'decisions': did you mean decision"):
        load_plan(StudyRequest("decisions"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(VALUES)
def test_any_value_goes_through_the_command_line_form(value):
    text = as_override("a.b", value)
    assert len(text.splitlines()) == 1
    assert split_override(text) == ("a.b", value)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_valid_and_explained(path):
    made = load_plan(StudyRequest(path.stem))
    assert len(made.variants) >= 2
    assert made.config.description
    assert path.read_text(encoding="utf-8").startswith("#")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["datasets"]


def test_the_guides_example_is_valid(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    (tmp_path / "study.yaml").write_text(guide.partition("```yaml\n")[2].partition("```")[0])
    made = load_plan(StudyRequest(str(tmp_path / "study.yaml")))
    assert list(made.variants) == [
        *("passages=3, likeliest", "passages=5, likeliest", "passages=5, vote", "no passages"),
    ]


def test_there_is_an_example_for_every_ablation():
    names = {path.stem for path in STUDIES.glob("*.yaml")}
    assert names >= {
        *("top-k", "retriever", "text-vision", "image-tokens", "decision", "prompt"),
        *("reranker", "index", "reader"),
    }
