"""Devices that are not there: one line, before anything is loaded or written."""

import pytest
from checkpoint_files import PARTS, build

from ravqa.cli import run_main
from ravqa.core.devices import usable_device
from ravqa.core.errors import UserError
from ravqa.indexes.maxsim import device_of

# A number that no machine has, a typing mistake, no device at all, one without numbers.
UNUSABLE = ["cuda:99", "gpu", "", "meta"]


@pytest.mark.parametrize("device", UNUSABLE)
@pytest.mark.parametrize("kind", PARTS)
def test_a_device_that_is_not_there_is_one_line(tmp_path, kind, device):
    (tmp_path / "config.json").write_text("{}")  # what else is wrong is not looked at
    with pytest.raises(UserError) as e:
        build(kind, tmp_path, device=device)
    assert f"the device {device!r} cannot be used: " in str(e.value)
    assert "\n" not in str(e.value)


# Of each kind that torch knows: it raises RuntimeError, AssertionError or ImportError, by the kind.
KINDS = (
    "cpu cuda ipu xpu mkldnn opengl opencl ideep hip ve fpga maia xla lazy vulkan mps meta hpu mtia"
    " privateuseone"
).split()


def problem(device):
    try:
        usable_device(device, "the reader")
    except UserError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_device_is_usable_or_one_line(kind):
    for device in (kind, f"{kind}:99"):
        line = problem(device)
        begins = f"the reader: the device {device!r} cannot be used: "
        assert not line or (line.startswith(begins) and "\n" not in line)
    assert bool(problem(f"{kind}:99")) == (kind not in ("cpu", "meta"))  # these are not counted


@pytest.mark.parametrize("device", UNUSABLE[:3])
def test_an_index_says_so_too(device):
    with pytest.raises(UserError, match=r"index: the device .* cannot be used: "):
        device_of(device)


def test_a_run_ends_before_it_begins(checkpoint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["--dataset", "okvqa", "--retriever", "none", "--reader", "transformers-llm"]
    command += ["--set", "describer=null", "--set", f"reader.model={checkpoint('llm')}"]
    with pytest.raises(SystemExit) as end:
        run_main([*command, "--set", "reader.device=cuda:99", "--limit", "1"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: reader: the device 'cuda:99' cannot be used: " in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
