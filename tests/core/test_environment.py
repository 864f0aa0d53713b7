"""Environment variables that are no numbers: one line that names them."""

import sys

import pytest

from ravqa.cli import main
from ravqa.core.devices import processes
from ravqa.core.environment import check_environment
from ravqa.core.errors import UserError

WRONG = [
    ("LOCAL_RANK", "x"),
    ("LOCAL_RANK", ""),
    ("WORLD_SIZE", "1.5"),
    ("RANK", "9" * 5000),
    ("MASTER_PORT", "70000"),
    ("SOURCE_DATE_EPOCH", "yesterday"),
    ("SOURCE_DATE_EPOCH", "99999999999999999999"),
    ("SOURCE_DATE_EPOCH", "-1"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "10s"),
    ("HF_HUB_ETAG_TIMEOUT", "none"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_variable_that_is_no_number_is_named_in_one_line(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        main(["ls", "rules"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: the environment variable {name} is ")
    assert len(err) < 250
    assert err.count("\n") == 1


@pytest.mark.parametrize("value", ["0", " 3 ", "-1", "1580601600"])
def test_numbers_are_taken(monkeypatch, value):
    monkeypatch.setenv("LOCAL_RANK", value)
    check_environment()


def test_processes_that_cannot_be_joined_are_one_line(monkeypatch):
    def refused(**_):
        raise ValueError("MASTER_ADDR expected, but not set\nmore")

    monkeypatch.setitem(sys.modules, "accelerate", type("A", (), {"PartialState": refused}))
    with pytest.raises(UserError, match=r"cannot be joined \(MASTER_ADDR expected, but not set\)"):
        processes()
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(UserError, match="the environment variable LOCAL_RANK is 'x'"):
        processes()
