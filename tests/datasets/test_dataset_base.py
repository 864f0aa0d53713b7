"""Requests, problems, splits, options and checks of questions: each rule and each message whole."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import PIL.Image
import pytest
from messages import said

from ravqa.core.errors import ContractError, DataError, UserError
from ravqa.core.records import Description, Question, Tag
from ravqa.core.registry import Entry
from ravqa.datasets import (
    DATASETS,
    DOWNLOADS,
    base,
    checks,
    evqa,
    files,
    infoseek,
    load_dataset,
    m2kr,
    okvqa,
)
from ravqa.datasets.base import (
    Dataset,
    DatasetRequest,
    ImageOptions,
    Problem,
    Problems,
    RetrievalMetric,
    options_of,
    parse_options,
    pick_split,
)
from ravqa.datasets.checks import check_images, gather, usable
from ravqa.datasets.processed import as_number, image_id_of, question_id_of
from ravqa.datasets.published import PublishedScore, published_scores
from ravqa.datasets.remote import Source

SKIP = "(--on-error skip leaves such questions out)"


# Problems


def test_questions_about_images_listed_as_unavailable_are_left_out(tmp_path):
    listed = tmp_path / "gone.txt"
    listed.write_text("# no longer there\na/one.jpg\n\n 42  # a number\nabc.def\n", "utf-8")
    request = DatasetRequest(options={"unavailable": str(listed)})
    options_of(ImageOptions, request)
    problems = request.problems
    for question, names in ((1, ["one"]), (2, [42]), (3, [7, Path("p/one.png")]), (4, ["abc.jpg"])):
        problems.image("a.csv", "no image", question, names)
    problems.count_images()
    assert problems.found == [
        Problem("a.csv", "no image (listed as unavailable)", number) for number in (1, 2, 3, 4)
    ]
    problems.image("a.csv, line 9", "no image", 5, ["two", None])
    problems.image("a.csv, line 10", "no image", 6)
    message = said(DataError, problems.count_images)
    assert message == (
        "a.csv, line 9: no image (2 questions have no usable image, also: a.csv, line 10: no "
        f"image) {SKIP}"
    )
    gone = {"unavailable": str(tmp_path / "none.txt")}
    assert said(UserError, options_of, ImageOptions, DatasetRequest(options=gone)) == (
        f"--dataset-option unavailable={tmp_path / 'none.txt'}: no such file"
    )


def test_a_broken_record_stops_or_is_kept():
    message = said(DataError, Problems().report, "a.json, line 3", "no question", 7)
    assert message == f"a.json, line 3: no question {SKIP}"
    problems = Problems("skip")
    problems.report("a.json, line 3", "no question", 7)
    problems.report("a.json, line 4", "no id")
    assert problems.found == [
        Problem("a.json, line 3", "no question", 7),
        Problem("a.json, line 4", "no id", None),
    ]
    assert [str(problem) for problem in problems.found][1] == "a.json, line 4: no id"


@pytest.mark.parametrize("count", [1, 2, 10, 11, 12])
def test_missing_images_are_counted_and_ten_are_listed(count):
    problems = Problems()
    for i in range(count):
        problems.image(f"q{i}", f"gone {i}", i)
    assert problems.found == []
    others = "; ".join(f"q{i}: gone {i}" for i in range(1, min(count, 10)))
    more = f"; and {count - 10} more" if count > 10 else ""
    counted = f" ({count} questions have no usable image, also: {others}{more})" if others else ""
    assert said(DataError, problems.count_images) == f"q0: gone 0{counted} {SKIP}"
    problems.count_images()  # they were told
    skipping = Problems("skip")
    for i in range(count):
        skipping.image(f"q{i}", f"gone {i}", i)
    skipping.count_images()
    skipping.count_images()
    assert skipping.found == [Problem(f"q{i}", f"gone {i}", i) for i in range(count)]


# Splits

ALIASES = {"val2014": "val2014", "val": "val2014", "train": "train"}


@pytest.mark.parametrize(
    ("wanted", "present", "found"),
    [
        (None, ["train", "val2014"], ("val2014", [])),
        (None, [], ("val2014", [])),
        (None, ["train"], ("train", ["here has only the split train, which is used"])),
        ("val", ["val2014"], ("val2014", [])),
        ("train", ["val2014", "train"], ("train", [])),
        (None, ["a", "b"], "here has the splits a, b: choose one with --split"),
        ("vel", ["val2014"], "no split 'vel': did you mean val? (known: train, val, val2014)"),
        ("val", ["train", "b"], "here has no files of split val2014; it has: train, b"),
        ("val", [], "here has no files of split val2014; it has: no split"),
    ],
)
def test_the_split_that_is_used(wanted, present, found):
    arguments = wanted, "val2014", ALIASES, present, Path("here")
    if isinstance(found, str):
        assert said(UserError, pick_split, *arguments) == found
    else:
        assert pick_split(*arguments) == found


# Options


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"], "--dataset-option 'a': key=value is expected"),
        (["=1"], "--dataset-option '=1': key=value is expected"),
        (["a=1", "a=2"], "--dataset-option: 'a' is given twice"),
    ],
)
def test_options_that_cannot_be_read_are_named(texts, message):
    assert said(UserError, parse_options, texts) == message
    assert said(UserError, parse_options, texts, "--other") == message.replace(
        "--dataset-option", "--other"
    )


@pytest.mark.parametrize("text", ["a=[1", "a=2020-13-45", "a=" + "[" * 1000])
def test_a_value_that_is_not_yaml_is_named(text):
    message = said(UserError, parse_options, [text])
    assert message.startswith(f"--dataset-option {text!r}: the value is not YAML")
    assert parse_options(["a=x=1", "b="]) == {"a": "x=1", "b": None}


def test_a_folder_of_images_must_exist(tmp_path):
    request = DatasetRequest(options={"images": str(tmp_path / "gone")})
    expected = f"--dataset-option images={tmp_path / 'gone'}: no such folder"
    assert said(UserError, options_of, ImageOptions, request) == expected
    request = DatasetRequest(options={"images": str(tmp_path)})
    assert options_of(ImageOptions, request).images == tmp_path
    assert options_of(ImageOptions, DatasetRequest()).images is None
    request = DatasetRequest(options={"imags": "x"})
    message = said(UserError, options_of, ImageOptions, request)
    assert message.startswith("--dataset-option: unknown key 'imags': did you mean images?")


# Datasets


def dataset(**changes):
    given = {"name": "mine", "label": "Mine", "split": "val", "questions": [Question(1, "?")]}
    return Dataset(**{**given, "metric": "exact_match", "fingerprint": "f", **changes})


def test_a_dataset_with_a_metric_that_is_not_there_is_refused():
    for changes in ({"metric": "exact_mach"}, {"metric": None, "submission": "exact_mach"}):
        message = said(UserError, dataset, **changes)
        assert "'exact_mach': did you mean exact_match?" in message
        assert "dataset mine" in message
    wrong = [RetrievalMetric("recal_at_k", 5)]
    known = "article_recall_at_k, pseudo_recall_at_k, recall_at_k"
    near = "did you mean recall_at_k or pseudo_recall_at_k or article_recall_at_k?"
    expected = f"dataset mine: no retrieval metric 'recal_at_k': {near} (known: {known})"
    assert said(UserError, dataset, retrieval_metrics=wrong) == expected
    message = said(UserError, dataset, metric_options={"nothing": 1})
    assert message.startswith("exact_match: unknown key 'nothing'")
    message = said(UserError, dataset, metric=None, metric_options={"nothing": 1})
    assert message == "dataset mine: it has no metric to take options"


def test_the_metric_of_a_dataset_and_of_its_predictions():
    assert type(dataset().answer_metric).__name__ == "ExactMatch"
    judged = dataset(metric="evqa_score")
    assert type(judged.answer_metric) is type(judged.submission_form)
    blind = dataset(metric=None)
    expected = "the split val has no answers to score with"
    assert said(UserError, lambda: blind.answer_metric) == expected
    official = type(dataset(metric="vqa_accuracy").answer_metric)
    assert type(blind.submission_form) is official
    infoseek = dataset(metric=None, submission="infoseek")
    assert type(infoseek.submission_form) is type(dataset(metric="infoseek").answer_metric)
    assert type(dataset(submission="infoseek").submission_form).__name__ == "ExactMatch"


def test_a_loader_gets_what_was_asked_for(monkeypatch):
    asked = []
    monkeypatch.setitem(DATASETS._entries, "mine", Entry("a:b", "for tests"))
    monkeypatch.setattr(DATASETS, "get", lambda name: asked.append)
    message = said(ContractError, load_dataset, "mine")
    expected = "the loader of the dataset 'mine' breaks its contract: it returned a NoneType, not a"
    assert message == f"{expected} Dataset"
    [request] = asked
    assert replace(request, problems=None) == DatasetRequest(problems=None)
    assert request.problems.on_error == "fail"
    made = dataset()
    monkeypatch.setattr(DATASETS, "get", lambda name: lambda r: (asked.append(r), made)[1])
    options = {"a": 1}
    found = load_dataset("mine", "x/y", "val", limit=3, on_error="skip", options=options)
    assert found is made
    request = asked[-1]
    assert replace(request, problems=None) == DatasetRequest(
        Path("x/y"), "val", 3, None, options=options
    )
    assert request.problems.on_error == "skip"
    assert base.load_dataset("mine", request) is made


def test_there_are_sources_of_the_official_files_of_three_datasets():
    assert [name for name, _ in DOWNLOADS] == ["okvqa", "infoseek", "evqa"]


# Questions as they are read

ROWS = [("line 1", {"id": 1}), ("line 2", {"id": "1"}), ("line 3", {"id": 3}), ("line 4", {})]


def made(row, question_id):
    if row["id"] == 3:
        raise DataError("bad")
    return Question(question_id, "?"), row.get("missing", "")


def id_of(row):
    if "id" not in row:
        raise DataError("no id")
    return row["id"]


def test_a_record_that_cannot_be_used_is_reported_with_place_and_id():
    request = DatasetRequest(problems=Problems("skip"))
    assert [q.question_id for q in usable(ROWS, id_of, made, request)] == [1]
    assert request.problems.found == [
        Problem("line 2", "duplicate question id '1'", "1"),
        Problem("line 3", "bad", 3),
        Problem("line 4", "no id", None),
    ]
    request = DatasetRequest(problems=Problems("skip"))
    list(usable(ROWS, id_of, made, request, id_column="data_id"))
    assert request.problems.found[0].reason == "duplicate data_id '1'"


def test_a_question_whose_image_is_missing_is_left_out_where_images_are_needed():
    rows = [("line 1", {"id": 1, "missing": "gone"}), ("line 2", {"id": 2})]
    for needed, kept in ((True, [2]), (False, [1, 2])):
        request = DatasetRequest(problems=Problems("skip"), need_images=needed)
        assert [q.question_id for q in usable(rows, id_of, made, request)] == kept
        assert request.problems.found == []
        request.problems.count_images()
        missing = [] if kept == [1, 2] else [Problem("line 1", "gone", 1)]
        assert request.problems.found == missing


SEEN = Description(tags=(Tag(("koala",), 0.5),), caption="a tree")
WHOLE = Question(
    question_id="q",
    question="What?",
    image=b"any",
    image_id=4,
    answers=("a", "b"),
    answer_eval=({"range": [1, 2]},),
    instruction="Look.",
    question_type="time",
    split="val",
    pos_item_ids=("p",),
    description=SEEN,
    extra={"gold": "a"},
    pos_articles=("A",),
)


def test_the_fingerprint_of_questions_is_a_hash_of_what_is_scored():
    questions = [WHOLE, Question(2, "Where?")]
    digest = hashlib.sha256()
    for q in questions:
        content = [
            *(q.question_id, q.question, q.image_id, q.answers, q.answer_eval, q.question_type),
            *(q.split, q.instruction, q.pos_item_ids, q.pos_articles),
            asdict(q.description) if q.description else None,
        ]
        digest.update(json.dumps(content).encode() + b"\n")
    request = DatasetRequest(need_images=False)
    assert gather(iter(questions), request, "here") == (questions, digest.hexdigest()[:32])


def test_questions_are_read_up_to_the_limit(tmp_path):
    questions = [Question(i, "?") for i in range(5)]
    for limit in (1, 4, 5, 6, 2**80):
        kept, _ = gather(questions, DatasetRequest(limit=limit), "here")
        assert kept == questions[:limit]
    assert said(DataError, gather, [], DatasetRequest(), "here") == "here: no usable question"
    gone = [Question(1, "?", image=tmp_path / "gone.jpg")]
    request = DatasetRequest(problems=Problems("skip"))
    assert said(DataError, gather, gone, request, "here") == "here: no usable question"
    kept, _ = gather(gone, DatasetRequest(need_images=False), "here")
    assert kept == gone


def test_images_are_checked_a_few_questions_at_a_time(tmp_path, monkeypatch):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"bad")
    names = ["good.png", "bad.png", None, "good.png", "gone.png", "bad.png"]
    questions = [Question(i, "?", image=name and tmp_path / name) for i, name in enumerate(names)]
    questions.append(Question(6, "?", image=b"given as bytes"))
    opened = []
    real = checks.broken_images
    monkeypatch.setattr(
        checks, "broken_images", lambda paths: (opened.append(paths), real(paths))[1]
    )
    monkeypatch.setattr(checks, "_CHUNK", 2)
    request = DatasetRequest(problems=Problems("skip"))
    assert [q.question_id for q in check_images(questions, request)] == [0, 2, 3, 6]
    assert [[path.name for path in paths] for paths in opened] == [
        ["good.png", "bad.png"],
        [],
        ["gone.png"],
        [],
    ]
    bad = f"{tmp_path / 'bad.png'}: not an image"
    assert request.problems.found == [
        Problem("question 1", bad, 1),
        Problem("question 4", f"no such image: {tmp_path / 'gone.png'}", 4),
        Problem("question 5", bad, 5),
    ]
    message = said(DataError, check_images, questions, DatasetRequest())
    assert message.startswith(f"question 1: {bad} (3 questions have no usable image, also: quest")


# Small rules


@pytest.mark.parametrize(
    ("value", "number"),
    [("7", 7), ("0", 0), ("10", 10), ("007", "007"), ("00", "00"), ("x7", "x7"), ("\u0664", None)],
)
def test_digits_are_a_number_where_they_are_one_way_to_write_it(value, number):
    assert as_number(value) == (value if number is None else number)
    assert type(as_number(value)) is type(value if number is None else number)


def test_ids_of_processed_rows():
    assert question_id_of({"question_id": 7}) == "7"
    assert said(DataError, question_id_of, {"question_id": None}) == "no 'question_id'"
    assert image_id_of({"img_key": 1, "image_id": 2, "img_id": 3}) == 1
    assert image_id_of({"img_key": None, "image_id": "2", "img_id": 3}) == "2"
    assert image_id_of({"img_id": 3}) == 3
    assert image_id_of({}) is None


def test_published_scores_are_those_of_a_benchmark_and_subset():
    every = published_scores("m2kr")
    assert all(isinstance(score, PublishedScore) and score.dataset == "m2kr" for score in every)
    assert {score.subset for score in every} <= set(m2kr.SUBSETS)
    one = published_scores("m2kr", "WIT")
    assert one == [score for score in every if score.subset == "WIT"] != []
    assert {score.metric for score in one} == {RetrievalMetric("recall_at_k", 10)}
    assert all(0 < score.percent < 100 and score.model and score.source for score in every)
    assert published_scores("m2kr_cn") != []
    assert published_scores("other") == []


@pytest.mark.parametrize(
    ("mirror", "address"),
    [
        (None, "https://official/x/a/b.zip"),
        ("", "https://official/x/a/b.zip"),
        (" http://mirror/y/ ", "http://mirror/y/a/b.zip"),
        ("https://mirror:8080", "https://mirror:8080/a/b.zip"),
    ],
)
def test_files_are_at_the_official_address_or_a_mirror(monkeypatch, mirror, address):
    monkeypatch.delenv("A_MIRROR", raising=False)
    if mirror is not None:
        monkeypatch.setenv("A_MIRROR", mirror)
    assert Source("A_MIRROR", "https://official/x/").address("a/b.zip") == address


@pytest.mark.parametrize(
    "mirror", ["ftp://mirror", "http://", "mirror", "http://x:0", "http://x:y"]
)
def test_a_mirror_is_an_address(monkeypatch, mirror):
    monkeypatch.setenv("A_MIRROR", mirror)
    message = said(UserError, Source("A_MIRROR", "https://official").address, "a")
    base = mirror.rstrip("/")
    assert message == f"A_MIRROR: {base!r} is not an http:// or https:// address"
    monkeypatch.setenv("A_MIRROR", "http://user:secret@mirror")
    message = said(UserError, Source("A_MIRROR", "https://official").address, "a")
    assert message == "A_MIRROR: an address with a user name is not supported"


# What holds where nothing is said


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (okvqa.Options(), {"answer_field": "answer", "captions": None}),
        (okvqa.Options(), {"dev_share": 0.1, "dev_seed": 0}),
        (infoseek.Options(), {"setting": "official"}),
        (evqa.Options(), {"triplets": False, "single_hop": False}),
        (
            files.Options(),
            {"metric": "exact_match", **dict.fromkeys(("quotes", "encoding", "delimiter"))},
        ),
        (ImageOptions(), {"images": None}),
    ],
    ids=lambda value: type(value).__qualname__,
)
def test_options_that_are_not_given(options, values):
    assert {name: getattr(options, name) for name in values} == values
    assert options.images is None


def test_names_of_splits_and_numbers_of_test_queries():
    assert (okvqa.SPLITS, okvqa.DEV, okvqa.REST) == (
        ("val2014", "train2014"),
        "dev",
        "train-minus-dev",
    )
    assert {
        **dict.fromkeys(("val2014", "val"), "val2014"),
        **dict.fromkeys(("train2014", "train", "dev", "train-minus-dev"), "train2014"),
    } == okvqa.ALIASES
    assert infoseek.SPLITS == ("val", "train", "test")
    assert infoseek.TYPES == ("string", "time", "numerical")
    assert evqa.SPLITS == ("test", "val", "train")
    assert evqa.TYPES == ("templated", "automatic", "multi_answer", "2_hop")
    assert {name: subset.test for name, subset in m2kr.SUBSETS.items()} == {
        "WIT": 5120,
        "IGLUE": 685,
        "KVQA": 5120,
        "CC": None,
        "MSMARCO": 5120,
        "OVEN": 5120,
        "LLaVA": 5120,
        "EVQA": 3750,
        "OKVQA": 5046,
        "Infoseek": 4708,
    }
    every = ("train", "valid", "test")
    few = {"IGLUE": ("test",), "CC": ("train",)} | dict.fromkeys(
        ("LLaVA", "Infoseek"), ("train", "test")
    )
    assert {name: s.splits for name, s in m2kr.SUBSETS.items()} == {
        name: few.get(name, every) for name in m2kr.SUBSETS
    }
    assert {name: s.metric for name, s in m2kr.SUBSETS.items() if s.metric} == {
        "EVQA": "evqa_score",
        "OKVQA": "vqa_accuracy",
        "Infoseek": "infoseek",
    }
    assert m2kr.TEXT_ONLY == ("MSMARCO",)


def test_where_official_files_are():
    assert okvqa.image_name("val2014", 42) == "val2014/COCO_val2014_000000000042.jpg"
    assert okvqa.question_file("x") == "OpenEnded_mscoco_x_questions.json"
    assert okvqa.annotation_file("x") == "mscoco_x_annotations.json"
    addresses = {
        name: (remote.source.variable, remote.source.official)
        for name, remote in (("o", okvqa.REMOTE), ("i", infoseek.REMOTE), ("e", evqa.REMOTE))
    }
    storage = "https://storage.googleapis.com"
    assert addresses == {
        "o": ("RAVQA_OKVQA_URL", "https://okvqa.allenai.org/static/data"),
        "i": (
            "RAVQA_INFOSEEK_URL",
            f"{storage}/gresearch/open-vision-language/infoseek",
        ),
        "e": ("RAVQA_EVQA_URL", f"{storage}/encyclopedic-vqa"),
    }
    images = okvqa.REMOTE.images.source
    assert (images.variable, images.official) == (
        "RAVQA_COCO_URL",
        "http://images.cocodataset.org",
    )
    assert okvqa.REMOTE.files["val2014"] == [
        "OpenEnded_mscoco_val2014_questions.json.zip",
        "mscoco_val2014_annotations.json.zip",
    ]
    assert okvqa.REMOTE.remark(Path("any")) == ""
    assert okvqa.REMOTE.kind == ("JSON file", b"{")
    assert evqa.REMOTE.kind == ("CSV file of questions", b"question")
