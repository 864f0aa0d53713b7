"""What a model's files are known by."""

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from ravqa.core.checkpoints import reading
from ravqa.core.errors import UserError
from ravqa.core.model_files import commit_of, model_fingerprint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache with one model in it, as huggingface_hub lays it out."""
    repository = tmp_path / "models--group--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_hub_model_is_known_by_its_commit(hub_cache):
    assert commit_of("group/model") == COMMIT
    assert commit_of("group/other") is None


def test_a_local_model_has_no_commit_and_is_known_by_its_content(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"one")
    assert commit_of(str(tmp_path)) is None
    before = model_fingerprint(str(tmp_path))
    Path(tmp_path / "weights.bin").write_bytes(b"two!")
    assert model_fingerprint(str(tmp_path)) != before


@pytest.mark.parametrize("here", [False, True])
def test_a_model_that_the_hub_cannot_give_may_be_brought(here, tmp_path):
    name = str(tmp_path) if here else "nobody/nothing"
    failure = OSError("No connection.")
    failure.__cause__ = LocalEntryNotFoundError("not in the cache")
    with pytest.raises(UserError) as error, reading("reader", name, name):
        raise failure
    mend = ": download it elsewhere, and set the model to its folder"
    assert str(error.value).endswith("No connection." if here else f"No connection{mend}")
