"""Studies that come with the project, on real photos: a tiny checkpoint, and real weights.

The checkpoint is random: it proves that passages are encoded once and image vectors left out.
"""

import json
from pathlib import Path

import pytest
from study_files import call, read_table

from ravqa.core.locations import SAMPLE, cache_dir
from ravqa.encoders.flmr import FLMREncoder

DATA = Path(__file__).parents[1] / "data"
CHECKPOINT = DATA / "flmr-parity" / "preflmr" / "checkpoint_context_names"


@pytest.fixture
def few_passages(tmp_path):
    lines = (SAMPLE / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "passages.jsonl"
    path.write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_image_tokens_share_the_passages(few_passages, fresh_cache, tmp_path, monkeypatch, capsys):
    encoded = []
    encode = FLMREncoder.encode_passages

    def counted(encoder, passages, *arguments):
        encoded.append(len(passages))
        return encode(encoder, passages, *arguments)

    monkeypatch.setattr(FLMREncoder, "encode_passages", counted)
    code, out, err = call(
        capsys,
        *("study", "image-tokens", "--set", f"retriever.encoder.model={CHECKPOINT}"),
        *("--corpus", few_passages, "--limit", 4, "--output", tmp_path / "out"),
    )
    assert code == 0, err
    assert "image_tokens=patches" in out
    assert sum(encoded) == 40
    assert len([p for p in cache_dir("indexes").iterdir() if p.is_dir()]) == 1
    rankings = {}
    for row in read_table(tmp_path / "out")["tables"][0]["rows"]:
        lines = (tmp_path / "out" / row["folder"] / "samples.jsonl").read_text().splitlines()
        rankings[row["run"]] = [json.loads(line)["hits"] for line in lines]
    assert len(rankings) == 5
    scores = [json.dumps(hits) for hits in rankings.values()]
    assert len(set(scores)) == 5  # each variant asks otherwise


@pytest.mark.slow
def test_decision_rules_with_real_weights(few_passages, fresh_cache, tmp_path, capsys):
    code, out, err = call(
        capsys,
        *("study", "decision", "--corpus", few_passages, "--limit", 6),
        *("--output", tmp_path / "out"),
    )
    assert code == 0, err
    assert "bundled sample" in out
    rows = {row["run"]: row for row in read_table(tmp_path / "out")["tables"][0]["rows"]}
    results = {
        name: json.loads((tmp_path / "out" / row["folder"] / "results.json").read_text())
        for name, row in rows.items()
    }
    prompts = {name: found["timing"]["prompts_generated"] for name, found in results.items()}
    # Six questions. The first of the rules that read passages one by one asks for four more than
    # the rule of the first passage did; those that come then have nothing left to generate.
    assert prompts == {
        "no passage": 6,
        "first passage": 6,
        "all in one prompt": 6,
        "likeliest pair": 24,
        "likeliest pair, milder": 0,
        "likeliest answer": 0,
        "likeliest answer, thorough": 0,
        "majority": 0,
        "mixture of tokens": prompts["mixture of tokens"],
    }
    for name, found in results.items():
        score = found["answers"]["conditions"]["main"]["score"]
        assert rows[name]["measures"]["score"]["value"] == pytest.approx(score, abs=0.01)
    assert "seconds" in rows["no passage"]["measures"]
