"""Encyclopedic-VQA in its official CSV files, with image ids of iNaturalist and Landmarks."""

import csv
import json
from dataclasses import replace

import httpx
import PIL.Image
import pytest

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Question
from ravqa.corpora.corpus import Corpus
from ravqa.datasets import evqa
from ravqa.datasets.base import DatasetRequest, Problems, RetrievalMetric
from ravqa.datasets.download import download, remarks
from ravqa.metrics.evqa import evqa_score

COLUMNS = [
    *("question", "answer", "dataset_image_ids", "dataset_name", "dataset_category_id"),
    *("question_type", "wikipedia_url", "wikipedia_title", "evidence", "evidence_section_id"),
    *("evidence_section_title", "encyclopedic_vqa_split", "question_original"),
    "wikipedia_url_used_in_train",
]
FIR = "https://en.wikipedia.org/wiki/Abies_alba"
INN = "https://en.wikipedia.org/wiki/Menger_Hotel"
MAN = "https://en.wikipedia.org/wiki/William_Menger"
ROWS = [
    {
        "question": "How tall can this tree become (in meter)?",
        "answer": "50 m|fifty metres",
        "dataset_image_ids": "1205613|2882487|77",
        "dataset_name": "inaturalist",
        "dataset_category_id": "5729",
        "question_type": "templated",
        "wikipedia_url": FIR,
        "wikipedia_title": "Abies alba",
        "evidence": "It is up to 50 m tall, rarely more.",
        "evidence_section_id": "1",
        "evidence_section_title": "Description",
        "question_original": "How tall can this tree become?",
        "wikipedia_url_used_in_train": "True",
    },
    {
        "question": "Which animals eat this tree?",
        "answer": "deer&&bears&&squirrels",
        "dataset_image_ids": "2882487",
        "dataset_name": "inaturalist",
        "dataset_category_id": "5729",
        "question_type": "multi_answer",
        "wikipedia_url": FIR,
        "wikipedia_title": "Abies alba",
        "evidence_section_id": "2",
        "evidence_section_title": "Ecology",
        "question_original": "Which animals eat this tree?",
        "wikipedia_url_used_in_train": "True",
    },
    {
        "question": "Where was the founder of this hotel born?",
        "answer": "Germany",
        "dataset_image_ids": "ae67170774ef5750|0123456789abcdef",
        "dataset_name": "landmarks",
        "dataset_category_id": "1011",
        "question_type": "2_hop",
        "wikipedia_url": f"{INN}|{MAN}",
        "wikipedia_title": "Menger Hotel|William Menger",
        "evidence_section_id": "0|3",
        "evidence_section_title": "Menger Hotel|Life",
        "question_original": "Where was the founder of the Menger Hotel born?",
        "wikipedia_url_used_in_train": "False",
    },
    {
        "question": "Who designed this hotel?",
        "answer": "John Fries",
        "dataset_image_ids": "ae67170774ef5750",
        "dataset_name": "landmarks",
        "dataset_category_id": "1011",
        "question_type": "automatic",
        "wikipedia_url": INN,
        "wikipedia_title": "Menger Hotel",
        "evidence_section_id": "0",
        "evidence_section_title": "Menger Hotel",
        "question_original": "Who designed the Menger Hotel?",
        "wikipedia_url_used_in_train": "False",
    },
]
NAMES = {
    "1205613": "val/05729_Plantae_Abies_alba/aa11-bb22.jpg",
    "2882487": "train/05729_Plantae_Abies_alba/cc33-dd44.jpg",
    "77": "train/05729_Plantae_Abies_alba/ee55.jpg",
}
LANDMARKS = ("ae67170774ef5750", "0123456789abcdef")


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (4, 4), (9, 9, 9)).save(path)


def write_csv(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows({"encyclopedic_vqa_split": path.stem, **row} for row in rows)


def folder_of(root, names="annotations"):
    """The official CSV, and both image collections as they are published."""
    write_csv(root / "test.csv")
    for name in NAMES.values():
        photo(root / "inaturalist" / name)
    for name in LANDMARKS:
        photo(root / "landmarks" / "train" / name[0] / name[1] / name[2] / f"{name}.jpg")
    if names == "annotations":
        for split in ("train", "val"):
            images = [
                {"id": int(i), "file_name": name, "width": 4, "height": 4}
                for i, name in NAMES.items()
                if name.startswith(split)
            ]
            images.append({"id": 5, "file_name": f"{split}/other.jpg", "width": 4, "height": 4})
            document = {"info": {}, "images": images, "categories": [], "annotations": []}
            (root / "inaturalist" / f"{split}.json").write_text(json.dumps(document))
    elif names == "id2name":
        for split in ("train", "val"):
            found = {i: name for i, name in NAMES.items() if name.startswith(split)}
            (root / "inaturalist" / f"{split}_id2name.json").write_text(json.dumps(found))
    return root


@pytest.mark.parametrize("names", ["annotations", "id2name"])
def test_the_official_files_are_read(tmp_path, names):
    if names == "annotations":
        pytest.importorskip("ijson")
    folder = folder_of(tmp_path / "evqa", names)
    dataset = evqa.load(DatasetRequest(data=folder))
    assert (dataset.name, dataset.split, dataset.metric) == ("evqa", "test", "evqa_score")
    assert dataset.info == {"setting": "all types", "asked_about": "first image"}
    assert dataset.retrieval_metrics[0] == RetrievalMetric("article_recall_at_k", 1)
    one, multi, hops, automatic = dataset.questions
    assert one == Question(
        question_id="evqa_test_0000000",
        question="How tall can this tree become (in meter)?",
        image=folder / "inaturalist" / NAMES["1205613"],
        image_id="inaturalist/1205613",
        answers=("50 m", "fifty metres"),
        question_type="templated",
        split="test",
        pos_item_ids=(f"{FIR}#1",),
        pos_articles=(FIR,),
        extra={
            "wikipedia_title": "Abies alba",
            "evidence": "It is up to 50 m tall, rarely more.",
            "question_original": "How tall can this tree become?",
            "wikipedia_url_used_in_train": "True",
        },
    )
    assert multi.answers == ("deer&&bears&&squirrels",)
    assert multi.image == folder / "inaturalist" / NAMES["2882487"]
    assert (hops.pos_articles, hops.pos_item_ids) == ((INN, MAN), (f"{INN}#0", f"{MAN}#3"))
    assert hops.image == folder / "landmarks/train/a/e/6/ae67170774ef5750.jpg"
    assert [q.question_type for q in dataset.questions] == [
        "templated",
        "multi_answer",
        "2_hop",
        "automatic",
    ]
    assert automatic.question_id == "evqa_test_0000003"


def test_answers_are_scored_as_the_official_code_takes_them(tmp_path):
    dataset = evqa.load(DatasetRequest(data=folder_of(tmp_path / "evqa"), need_images=False))
    given = ["Fifty metres.", "bears, squirrels and deer", "germany", "Jane Doe"]
    scores = [
        evqa_score(answer, q.answers, q.question, q.question_type)
        for answer, q in zip(given, dataset.questions, strict=True)
    ]
    assert scores == [1.0, 1.0, 1.0, 0.0]


def test_every_image_asks_for_itself_if_triplets_are_wanted(tmp_path):
    folder = folder_of(tmp_path / "evqa", "id2name")
    dataset = evqa.load(DatasetRequest(data=folder, options={"triplets": True}))
    assert [(q.question_id, q.image_id) for q in dataset.questions] == [
        ("evqa_test_0000000.0", "inaturalist/1205613"),
        ("evqa_test_0000000.1", "inaturalist/2882487"),
        ("evqa_test_0000000.2", "inaturalist/77"),
        ("evqa_test_0000001.0", "inaturalist/2882487"),
        ("evqa_test_0000002.0", "landmarks/ae67170774ef5750"),
        ("evqa_test_0000002.1", "landmarks/0123456789abcdef"),
        ("evqa_test_0000003.0", "landmarks/ae67170774ef5750"),
    ]
    assert dataset.info["asked_about"] == "every image"


def test_single_hop_questions_keep_their_ids(tmp_path):
    folder = folder_of(tmp_path / "evqa", "id2name")
    dataset = evqa.load(DatasetRequest(data=folder, options={"single_hop": True}))
    assert [q.question_id for q in dataset.questions] == ["evqa_test_0000000", "evqa_test_0000003"]
    assert dataset.info["setting"] == "templated and automatic questions"


def test_images_named_by_their_ids_need_no_annotations(tmp_path):
    folder = folder_of(tmp_path / "evqa", names=None)
    for image_id in NAMES:
        photo(folder / "flat" / f"{image_id}.jpg")
    dataset = evqa.load(DatasetRequest(data=folder))
    assert dataset.questions[0].image == folder / "flat" / "1205613.jpg"


def test_images_elsewhere_are_named_by_an_option(tmp_path):
    folder = folder_of(tmp_path / "evqa", "id2name")
    (folder / "test.csv").rename(tmp_path / "test.csv")
    options = {"images": str(folder)}
    dataset = evqa.load(DatasetRequest(data=tmp_path, options=options))
    assert dataset.questions[0].image == folder / "inaturalist" / NAMES["1205613"]


def test_missing_images_are_counted(tmp_path):
    folder = folder_of(tmp_path / "evqa", "id2name")
    (folder / "inaturalist" / NAMES["1205613"]).unlink()
    (folder / "landmarks/train/a/e/6/ae67170774ef5750.jpg").unlink()
    with pytest.raises(DataError, match=r"evqa_test_0000000.*3 questions have no usable image"):
        evqa.load(DatasetRequest(data=folder))


def test_missing_images_that_are_listed_as_unavailable(tmp_path):
    folder = folder_of(tmp_path / "evqa", "id2name")
    lost = {"dataset_name": "landmarks", "dataset_image_ids": "160a34689b4542f2"}
    write_csv(folder / "test.csv", [ROWS[0], ROWS[3] | lost])
    with pytest.raises(DataError, match=r"evqa_test_0000001: no such image: .*160a34689b4542f2"):
        evqa.load(DatasetRequest(data=folder))
    (tmp_path / "lost.txt").write_text("160a34689b4542f2\n")
    request = DatasetRequest(data=folder, options={"unavailable": str(tmp_path / "lost.txt")})
    assert len(evqa.load(request).questions) == 1
    assert [p.question_id for p in request.problems.found] == ["evqa_test_0000001"]
    (folder / "inaturalist" / NAMES["1205613"]).unlink()  # it is not listed
    with pytest.raises(DataError, match=r"^question evqa_test_0000000: no such image"):
        evqa.load(replace(request, problems=Problems()))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": " "}, "no 'question'"),
        ({"answer": ""}, "no 'answer'"),
        ({"dataset_image_ids": ""}, "no 'dataset_image_ids'"),
        ({"dataset_name": "imagenet"}, "dataset_name 'imagenet' is neither"),
        ({"question_type": "three_hop"}, "question_type 'three_hop' is not one of"),
        (
            {"dataset_name": "landmarks", "dataset_image_ids": "../../x"},
            ".* leaves the image folder",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, changes, reason):
    write_csv(tmp_path / "test.csv", [ROWS[3], ROWS[3] | changes])
    request = DatasetRequest(data=tmp_path, need_images=False)
    with pytest.raises(DataError, match=rf"test\.csv, line 3: {reason}"):
        evqa.load(request)
    problems = Problems("skip")
    dataset = evqa.load(DatasetRequest(data=tmp_path, need_images=False, problems=problems))
    assert len(dataset.questions) == 1
    assert [p.question_id for p in problems.found] == ["evqa_test_0000001"]


def test_splits_are_their_files(tmp_path):
    write_csv(tmp_path / "val.csv")
    dataset = evqa.load(DatasetRequest(data=tmp_path, need_images=False))
    assert dataset.split == "val"
    assert "only the split val" in dataset.notes[0]
    with pytest.raises(UserError, match="no files of split test; it has: val"):
        evqa.load(DatasetRequest(data=tmp_path, split="test"))
    for data in (None, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"encyclopedic_vqa.*test\.csv"):
            evqa.load(DatasetRequest(data=data))


def test_the_evidence_names_passages_of_the_knowledge_base(tmp_path):
    pytest.importorskip("ijson")
    dataset = evqa.load(DatasetRequest(data=folder_of(tmp_path / "evqa"), need_images=False))
    texts = ["A fir.", "Up to 50 m tall.", "Deer eat it."]
    page = {"title": "Abies alba", "section_titles": ["Abies alba", "Description", "Ecology"]}
    (tmp_path / "kb.json").write_text(json.dumps({FIR: page | {"section_texts": texts}}))
    corpus = Corpus.read(tmp_path / "kb.json")
    one, multi = dataset.questions[:2]
    assert corpus[one.pos_item_ids[0]].text == "Up to 50 m tall."
    assert corpus[multi.pos_item_ids[0]].text == "Deer eat it."
    assert all(set(p.article_names) & set(one.pos_articles) for p in corpus.values())


def test_the_csv_is_downloaded_and_the_images_are_not(tmp_path, monkeypatch):
    write_csv(tmp_path / "there" / "test.csv")
    content = (tmp_path / "there" / "test.csv").read_bytes()
    asked = []

    def opened(_fetcher, url, _left):
        asked.append(url)
        return httpx.Response(200, stream=httpx.ByteStream(content))

    monkeypatch.setattr("ravqa.core.http.Fetcher._open", opened)
    download("evqa", tmp_path / "data", None, limit=None, console_progress=None)
    assert asked == ["https://storage.googleapis.com/encyclopedic-vqa/test.csv"]
    assert (tmp_path / "data" / "test.csv").read_bytes() == content
    [remark] = remarks("evqa", tmp_path / "data")
    assert "iNaturalist" in remark
