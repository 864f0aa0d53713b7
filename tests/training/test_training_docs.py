"""The guide and the bundled settings against the settings' types."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from training_files import task

from ravqa.core.locations import PIPELINES
from ravqa.core.settings import read_yaml, validate
from ravqa.readers.adapters import LoraConfig
from ravqa.training.reader import ReaderTraining, TrainSource, pipeline_settings
from ravqa.training.retriever_settings import (
    LossConfig,
    MiningConfig,
    RetrieverTraining,
    ValidationConfig,
)
from ravqa.training.settings import LoopConfig
from ravqa.training.targets import TargetConfig

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
TABLES = {
    "`ravqa train retriever`": RetrieverTraining,
    "`train`, `validation`": ValidationConfig,
    "`loss`": LossConfig,
    "`mining`": MiningConfig,
    "`ravqa train reader`": ReaderTraining,
    "`train`, `validation` of readers": TrainSource,
    "`targets`": TargetConfig,
    "`lora`": LoraConfig,
    "`loop`": LoopConfig,
}


@pytest.mark.parametrize("title", TABLES)
def test_the_tables_list_every_setting_with_its_default(title):
    text = PAGE.read_text(encoding="utf-8")
    start = text.index(f"| {title} | Default | Meaning |")
    lines = text[start : text.index("\n\n", start) if "\n\n" in text[start:] else None].split("\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:] if line]
    fields = TABLES[title].model_fields
    assert [row[0].strip("`") for row in rows] == sorted(
        fields, key=[row[0].strip("`") for row in rows].index
    )
    for name, default, meaning in rows:
        assert meaning
        field = fields[name.strip("`")]
        made = field.get_default(call_default_factory=True)
        if field.is_required() or isinstance(made, BaseModel):
            assert default == ""
        elif default == "none":
            assert made is None
        else:
            shown = yaml.safe_load(re.fullmatch("`(.+)`", default)[1])
            shown = float(shown) if isinstance(made, float) else shown
            assert shown == (list(made) if isinstance(made, tuple) else made)


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
