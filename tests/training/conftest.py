"""Examples and settings that several files of tests train on."""

import json

import pytest
import yaml
from dataset_files import write_image
from training_files import PLANTS, write_examples


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("examples"), negatives=1)


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("texts"), images=False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Folder of a tiny model, by name."""
    import reader_models

    made = {}

    def make(name):
        if name not in made:
            made[name] = str(getattr(reader_models, name)(tmp_path_factory.mktemp(name)))
        return made[name]

    return make


@pytest.fixture
def data(tmp_path):
    """Six questions, each about another image, and six passages; the last has no good answer."""
    rows, passages = [], []
    for i, plant in enumerate(PLANTS):
        write_image(tmp_path / "data" / f"{i}.png", (40 * i, 90, 200 - 30 * i))
        answers = ["a tree", plant, plant] if plant != "box" else ["zqunknown1", "zqunknown2"]
        rows.append(
            {
                "question_id": i,
                "image_id": i,
                "question": f"Which plant is number {i}?",
                "image": f"{i}.png",
                "answers": answers,
            }
        )
        passages.append({"passage_id": f"p{i}", "text": f"Number {i} is an {plant}."})
    for name, lines in (("questions", rows), ("passages", passages)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "data" / f"{name}.jsonl").write_text(text)
    return tmp_path / "data"


@pytest.fixture
def settings(folder, data, tmp_path):
    """The settings of a training, and the file of its pipeline."""

    def make(name="llama", pipeline=(), **changes):
        kind = {"llama": "llm", "t5": "seq2seq"}.get(name, "vlm")
        part = {
            "retriever": {"name": "random", "seed": 0},
            "top_k": 3,
            "answering": {"prompt": "ravqa", "decision": "joint_max", "passages": 2},
            "reader": {
                "name": f"transformers-{kind}",
                "model": folder(name),
                "device": "cpu",
                "max_new_tokens": 8,
            },
        }
        for key, value in dict(pipeline).items():
            part[key] = {**part[key], **value} if isinstance(value, dict) else value
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(part))
        source = {"dataset": "jsonl", "data": str(data), "split": None}
        source["options"] = {"metric": "vqa_accuracy"}
        loop = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "schedule": "constant"}
        given = {
            "pipeline": str(tmp_path / "pipeline.yaml"),
            "train": [source | changes.pop("source", {})],
            "targets": {"exclude": r"zqunknown\d+"},
            "lora": {"rank": 2},
            "loop": loop | changes.pop("loop", {}),
            **changes,
        }
        if "validation" in given:
            given["validation"] = source | given["validation"]
        if given.get("method") == "full":
            del given["lora"]
        return {key: value for key, value in given.items() if value is not None}

    return make
