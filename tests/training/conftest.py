"""Examples that several files of tests train on; none of them changes the files."""

import pytest
from training_files import write_examples


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("examples"), negatives=1)


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("texts"), images=False)
