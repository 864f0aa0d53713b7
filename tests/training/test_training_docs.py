"""The settings of the guide, and the bundled ones."""

import re
from pathlib import Path

import pytest
import yaml
from training_files import task

from ravqa.core.locations import PIPELINES
from ravqa.core.settings import read_yaml, validate
from ravqa.training.reader import ReaderTraining, pipeline_settings
from ravqa.training.retriever_settings import RetrieverTraining

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_page_of_settings_and_the_bundled_ones_are_valid():
    page = PAGE.read_text(encoding="utf-8")
    files = dict(re.findall(r"<!-- file: (\w+\.yaml) -->\n```yaml\n(.*?)```", page, re.S))
    assert files.keys() == {"settings.yaml", "reader.yaml"}
    validate(RetrieverTraining, yaml.safe_load(files["settings.yaml"]), "docs")
    pipeline_settings(validate(ReaderTraining, yaml.safe_load(files["reader.yaml"]), "docs"))
    bundled = sorted((PIPELINES / "training").glob("preflmr-*.yaml"))
    assert [path.stem for path in bundled] == ["preflmr-all", "preflmr-mapping"]
    for path in bundled:
        validate(RetrieverTraining, read_yaml(path), path.name)


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ("mapping", ("transformer_mapping_", "context_vision_projection.")),
        ("all", ("transformer_mapping_", "context_vision_projection.", "_text_encoder")),
    ],
)
def test_the_stages_train_what_they_say(stage, trained, texts):
    settings = read_yaml(PIPELINES / "training" / f"preflmr-{stage}.yaml")
    kept = {key: settings[key] for key in ("freeze", "loss", "loop")}
    made = task(texts, **kept)
    names = [n for n, p in made.model.named_parameters() if p.requires_grad]
    assert names == [
        n for n, _ in made.model.named_parameters() if any(part in n for part in trained)
    ]
