"""A collection without models, made once."""

import pytest


@pytest.fixture(scope="package")
def animals(tmp_path_factory):
    """A collection of two passages; its pipeline's file lies beside it."""
    from collection_files import pipeline

    from ravqa.collections import Collection
    from ravqa.core.records import Passage

    folder = tmp_path_factory.mktemp("one")
    collection = Collection.create(folder / "animals", pipeline(folder))
    script = "<img src=x onerror=alert(1)>"
    koala = Passage("k", f"The koala lives in Australia. {script}", title=script)
    collection.add([koala, Passage("j", "jaguars eat")])
    return collection.path


@pytest.fixture(scope="package")
def shelf(animals):
    """The collection on a shelf, opened once."""
    from ravqa.doors.shelf import Shelf

    return Shelf([animals])
