"""What a door offers by name, and that nothing else can be reached through a name."""

import shutil

import pytest

from ravqa.core.errors import UserError
from ravqa.doors.shelf import OWN, SAMPLE, Shelf


@pytest.fixture
def varied(animals, tmp_path):
    """Writes the collection's pipeline with another text in place of one."""

    def write(old, new):
        text = (animals.parent / "hashed.yaml").read_text(encoding="utf-8")
        assert old in text
        path = tmp_path / "other.yaml"
        path.write_text(text.replace(old, new), encoding="utf-8")
        return str(path)

    return write


def test_a_collection_is_offered_by_its_name_as_it_was_built(shelf):
    assert (shelf.names, shelf.pipelines("animals")) == (["animals"], [OWN])
    rules = shelf.rules("animals", OWN)
    assert next(iter(rules)) == "top1"
    assert rules["concat"] == "all passages in one prompt"
    made = shelf.pipeline("animals", OWN)
    assert made.ask("where does the koala live").hits[0].passage_id == "k"
    assert shelf.pipeline("animals", OWN) is made


def test_a_pipeline_with_the_same_encoder_is_offered_beside_it(animals, varied):
    shelf = Shelf([animals], [varied("top1", "vote")])
    assert shelf.pipelines("animals") == [OWN, "other"]  # its folder is nobody's business
    assert next(iter(shelf.rules("animals", "other"))) == "vote"
    assert shelf.pipeline("animals", "other").answerer.config.decision == "vote"


def test_a_pipeline_that_suits_no_collection_is_refused(animals, varied):
    with pytest.raises(UserError, match="another encoder than the collection"):
        Shelf([animals], [varied("name: hashed", "name: hashed\n    seed: 1")])


def test_collections_with_the_same_name_are_numbered(animals, tmp_path):
    second = shutil.copytree(animals, tmp_path / "animals")
    assert Shelf([animals, second, animals]).names == ["animals", "animals (2)"]


@pytest.mark.parametrize("name", ["/etc", "../animals", "", "animals/../animals", "x" * 5000])
def test_only_what_is_offered_can_be_reached(shelf, name):
    for ask in (shelf.pipeline, shelf.config, shelf.rules):
        with pytest.raises(UserError, match="no collection") as error:
            ask(name, OWN)
        assert len(str(error.value)) < 400
        with pytest.raises(UserError, match="no pipeline"):
            ask("animals", name or "sample")


def test_the_sample_is_offered_with_the_pipelines_that_are_named():
    shelf = Shelf(pipelines=["sample"])
    assert (shelf.names, shelf.pipelines(SAMPLE)) == ([SAMPLE], ["sample"])
    assert len(shelf.stand_ins(SAMPLE, "sample")) == 2
    replaced = Shelf(pipelines=["sample"], overrides=["reader=first-words"])
    assert [what[:7] for what in replaced.stand_ins(SAMPLE, "sample")] == ["PreFLMR"]


def test_no_collection_and_no_pipeline_are_errors(tmp_path):
    with pytest.raises(UserError, match="no collection"):
        Shelf([tmp_path])
    with pytest.raises(UserError, match="did you mean sample"):
        Shelf(pipelines=["smaple"])


def test_changes_of_a_collection_show_after_a_refresh(animals, tmp_path):
    shelf = Shelf([shutil.copytree(animals, tmp_path / "changing")])
    found = shelf.pipeline("changing", OWN)
    shelf.collection("changing").delete(["k"])
    shelf.refresh("changing")
    assert len(found.corpus) == 2  # who asks at this moment is not disturbed
    assert list(shelf.pipeline("changing", OWN).corpus) == ["j"]


def test_the_sample_is_no_collection_that_can_be_changed():
    shelf = Shelf(pipelines=["sample"])
    for change in (shelf.collection, shelf.refresh):
        with pytest.raises(UserError, match="build a collection of your own"):
            change(SAMPLE)


def test_who_only_searches_loads_no_reader(animals):
    shelf = Shelf([animals])
    found = shelf.pipeline("animals", OWN, answering=False)
    assert (found.answerer, shelf.pipeline("animals", OWN, answering=False)) == (None, found)
    made = shelf.pipeline("animals", OWN)
    assert made.answerer is not None
    assert shelf.pipeline("animals", OWN, answering=False) is made  # once it is there
