"""The user's own questions and passages; many questions on disk instead of in memory."""

import gc
import json
import os

import pytest
from dataset_files import write_image
from hypothesis import given
from hypothesis import strategies as st

from ravqa.cli import main, run_main
from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Description, Question, Region, Tag
from ravqa.corpora import disk
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.disk import DiskQuestions
from ravqa.corpora.kb import Sections
from ravqa.datasets import checks, files
from ravqa.datasets.base import DatasetRequest, Problems, RetrievalMetric
from ravqa.images.decode import BLACK

QUESTIONS = [
    {
        "question_id": 7,
        "question": "Which bridge is this?",
        "image": "photos/bridge.jpg",
        "answers": ["Tower Bridge", "the Tower Bridge"],
        "question_type": "String",
        "pos_item_ids": ["p1"],
        "source": "mine",
    },
    {"question_id": "b", "question": "When was it built?", "image": "photos/bridge.jpg"}
    | {"answers": ["1894"], "split": "test", "pos_articles": ["Tower Bridge"]},
    {"question_id": 0, "question": "", "instruction": "Find its passage:", "answers": ["x"]},
]
PASSAGES = [
    {"passage_id": "p1", "title": "Tower Bridge", "text": "Tower Bridge was built by 1894."},
    {"passage_id": "p2", "title": "Fish", "text": "Fish swim."},
]


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def folder_of(root):
    lines(root / "questions.jsonl", QUESTIONS)
    lines(root / "passages.jsonl", PASSAGES)
    write_image(root / "photos" / "bridge.jpg")
    return root


def test_questions_and_passages_of_a_folder(tmp_path):
    folder = folder_of(tmp_path / "mine")
    dataset = files.load_jsonl(DatasetRequest(data=folder))
    assert (dataset.name, dataset.label, dataset.split) == ("jsonl", "mine", "all")
    named = files.load_jsonl(DatasetRequest(data=folder / "questions.jsonl"))
    assert named.label == "questions"  # the folder may be anything, such as a checkout
    assert dataset.metric == "exact_match"
    assert list(dataset.corpus) == ["p1", "p2"]
    assert list(dataset.retrieval_metrics) == [
        RetrievalMetric("recall_at_k", 5),
        RetrievalMetric("pseudo_recall_at_k", 5),
    ]
    one, two, three = dataset.questions
    assert one == Question(
        question_id=7,
        question="Which bridge is this?",
        image=folder / "photos" / "bridge.jpg",
        image_id="photos/bridge.jpg",
        answers=("Tower Bridge", "the Tower Bridge"),
        answer_eval=("Tower Bridge", "the Tower Bridge"),
        question_type="String",
        pos_item_ids=("p1",),
        extra={"source": "mine"},
    )
    assert (two.question_id, two.split, two.pos_articles) == ("b", "test", ("Tower Bridge",))
    assert (three.question_id, three.question, three.image) == (0, "", None)
    assert three.instruction == "Find its passage:"


@pytest.mark.parametrize(("name", "mark"), [("questions.csv", ","), ("questions.tsv", "\t")])
def test_a_table_says_the_same_with_bars_between_answers(tmp_path, name, mark):
    header = ["id", "question", "img_path", "answer", "pos_item_ids", "note"]
    rows = [
        ["7", "Which bridge?", "photos/bridge", "Tower Bridge|the bridge", "p1|p2", "x"],
        ["8", "When?", "", "1894", "", ""],
    ]
    folder = folder_of(tmp_path / "mine")
    (folder / "questions.jsonl").unlink()
    text = "\n".join(mark.join(row) for row in (header, *rows)) + "\n"
    (folder / name).write_text(text, encoding="utf-8")
    dataset = files.load_csv(DatasetRequest(data=folder))
    one, two = dataset.questions
    assert (one.question_id, one.answers) == ("7", ("Tower Bridge", "the bridge"))
    assert (one.pos_item_ids, dict(one.extra)) == (("p1", "p2"), {"note": "x"})
    assert one.image == folder / "photos" / "bridge.jpg"
    assert (two.image, two.image_id, two.pos_item_ids) == (None, None, ())


def test_a_file_of_any_name_without_answers_is_not_scored(tmp_path):
    path = lines(tmp_path / "asked.jsonl", [{"id": 1, "question": "What is it?"}])
    dataset = files.load_jsonl(DatasetRequest(data=path))
    assert (dataset.label, dataset.metric, dataset.corpus) == ("asked", None, None)
    assert list(dataset.retrieval_metrics) == []


def test_a_split_is_the_rows_that_say_so(tmp_path):
    request = DatasetRequest(data=folder_of(tmp_path), split="test")
    dataset = files.load_jsonl(request)
    assert [q.question_id for q in dataset.questions] == ["b"]
    assert dataset.split == "test"
    with pytest.raises(DataError, match="no usable question"):
        files.load_jsonl(DatasetRequest(data=tmp_path, split="tset"))


@pytest.mark.parametrize("metric", ["vqa_accuracy", "infoseek", "evqa_score"])
def test_the_metric_is_an_option(tmp_path, metric):
    rows = [{"id": 1, "question": "How long?", "answers": ["25"]}]
    if metric == "infoseek":
        rows[0] |= {"answer_eval": [{"wikidata": 25, "range": [23, 28]}]}
    path = lines(tmp_path / "q.jsonl", rows)
    dataset = files.load_jsonl(DatasetRequest(data=path, options={"metric": metric}))
    assert dataset.metric == metric
    assert dataset.info["metric"] == metric
    forms = ({"wikidata": 25, "range": [23, 28]},) if metric == "infoseek" else ("25",)
    assert dataset.questions[0].answer_eval == forms


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "?"}, r"no question id \(column question_id or id\)"),
        ({"id": "", "question": "?"}, "no question id"),
        ({"id": [1], "question": "?"}, "no question id"),
        ({"id": 7, "question": "?"}, "duplicate question id 7"),
        ({"id": 1, "question": " "}, "no 'question'"),
        ({"id": 1, "question": "?", "answers": [{"answer": "x"}]}, "'answers': a list of strings"),
        ({"id": 1, "question": "?", "image": "../x.jpg"}, ".*leaves the image folder"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, row, reason):
    path = lines(tmp_path / "q.jsonl", [{"id": 7, "question": "?"}, row])
    with pytest.raises(DataError, match=rf"q\.jsonl, line 2: {reason}"):
        files.load_jsonl(DatasetRequest(data=path))
    problems = Problems("skip")
    dataset = files.load_jsonl(DatasetRequest(data=path, problems=problems))
    assert len(dataset.questions) == len(problems.found) == 1


def test_a_missing_image_is_named(tmp_path):
    path = lines(tmp_path / "q.jsonl", [{"id": 1, "question": "?", "image": "a.jpg"}])
    with pytest.raises(DataError, match=r"question 1: no such image: .*a\.jpg"):
        files.load_jsonl(DatasetRequest(data=path))


def test_what_is_no_question_file_is_named(tmp_path):
    for data, reason in (
        (None, r"needs --data: a file, or a folder with questions\.jsonl"),
        (tmp_path, r"no questions\.jsonl in"),
        (tmp_path / "gone", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=reason):
            files.load_jsonl(DatasetRequest(data=data))
    path = lines(tmp_path / "q.jsonl", QUESTIONS)
    with pytest.raises(UserError, match=r"a \.csv or \.tsv file is expected"):
        files.load_csv(DatasetRequest(data=path))


def test_own_files_run_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "mine")
    arguments = ["--dataset", "jsonl", "--data", "mine", "--retriever", "random", "--output", "run"]
    arguments += ["--reader", "first-words", "--set", "describer=null"]
    arguments += ["--dataset-option", "metric=exact_match"]
    with pytest.raises(SystemExit) as end:
        run_main(arguments)
    assert end.value.code == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["dataset"]["label"] == "mine"
    assert results["dataset"]["questions"] == 3
    assert results["provenance"]["corpus"]["passages"] == 2


# Quotes in tables


def passages_of(path, text, **sections):
    path.write_text(text, encoding="utf-8", newline="")
    return {i: p.text for i, p in Corpus.read(path, sections=Sections(**sections)).items()}


MELTED = 'id\ttext\n1\tfirst\n2\t"To be, or not\n3\tmiddle\n4\tto be"\n5\tlast\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('id\ttext\n1\t"Hello" he said\n2\tok\n', ['"Hello" he said', "ok"]),  # not quoted
        ('id\ttext\n1\t"To be\n2\tok\n', ['"To be', "ok"]),
        ('id\ttext\n1\tsay "hi"\n2\tok\n', ['say "hi"', "ok"]),
        ('"id"\t"text"\n"1"\t"To be"\n"2"\t"ok"\n', ["To be", "ok"]),  # quoted
        ('id\ttext\n1\t"He said ""hi"""\n2\tok\n', ['He said "hi"', "ok"]),
        ('id\ttext\n1\t"two\nlines"\n2\tok\n', ["two\nlines", "ok"]),
        ('id\ttext\r\n1\t"a\ttab"\r\n2\tok\r\n', ["a\ttab", "ok"]),
        ("\n\nid\ttext\n\n1\tfirst\n2\tok\n", ["first", "ok"]),
    ],
)
def test_a_tsv_file_is_read_in_the_one_way_that_it_can_be(tmp_path, text, expected):
    found = passages_of(tmp_path / "p.tsv", text)
    assert found == dict(zip("12", expected, strict=True))


@pytest.mark.parametrize("text", [MELTED, 'id\ttext\n1\t"Hello"\n'])
def test_a_tsv_file_that_can_be_read_in_two_ways_needs_an_option(tmp_path, text):
    path = tmp_path / "p.tsv"
    with pytest.raises(DataError, match=r"p\.tsv, line \d: .* quotes=true .* --no-quotes"):
        passages_of(path, text)
    one, two = (passages_of(path, text, quotes=quotes) for quotes in (True, False))
    assert (len(one), len(two)) == ((3, 5) if text == MELTED else (1, 1))
    assert all('"' not in t for t in one.values())
    assert sum(t.count('"') for t in two.values()) == 2
    questions = tmp_path / "questions.tsv"
    questions.write_text('id\tquestion\n1\t"Hello"\n')
    for quotes, asked in ((True, "Hello"), (False, '"Hello"')):
        request = DatasetRequest(data=questions, options={"quotes": quotes})
        assert files.load_csv(request).questions[0].question == asked


def test_passages_are_rewritten_with_the_option_for_quotes(tmp_path):
    source, target = tmp_path / "p.tsv", tmp_path / "p.jsonl"
    source.write_text(MELTED)
    for option, count in (("--quotes", 3), ("--no-quotes", 5)):
        with pytest.raises(SystemExit) as end:
            main(["passages", str(source), "--output", str(target), option, "--overwrite"])
        assert end.value.code == 0
        assert len(target.read_text(encoding="utf-8").splitlines()) == count


def test_a_table_with_a_column_twice_or_short_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"p\.csv, line 2: the column 'text' occurs twice"):
        passages_of(tmp_path / "p.csv", "\nid,text,text\n1,a,b\n")
    with pytest.raises(DataError, match=r"p\.csv, line 4: 2 fields are expected .*, not 1"):
        passages_of(tmp_path / "p.csv", "\nid,text\n1,a\n2\n")
    assert passages_of(tmp_path / "p.csv", "\n \nid,text\n1,a\n") == {"1": "a"}


# Questions on disk


TEXT = st.text(max_size=10)
VALUES = st.none() | st.integers() | TEXT
REGIONS = st.lists(
    st.builds(
        Region,
        label=TEXT,
        box=st.tuples(*[st.floats(0, 100)] * 4),
        attributes=st.lists(st.tuples(TEXT, st.floats(0, 1)), max_size=2).map(tuple),
        ocr=st.lists(TEXT, max_size=2).map(tuple),
    ),
    max_size=2,
).map(tuple)
STRINGS = st.lists(TEXT, max_size=3).map(tuple)
ASKED = st.lists(
    st.builds(
        Question,
        question_id=st.integers() | TEXT,
        question=TEXT,
        image=st.none() | st.sampled_from([BLACK, b"other"]) | st.sampled_from("ab").map(disk.Path),
        image_id=VALUES,
        answers=STRINGS,
        answer_eval=st.just(({"wikidata": 1.5, "range": [1, 2.0]},)) | STRINGS,
        instruction=st.none() | TEXT,
        question_type=st.none() | TEXT,
        split=st.none() | TEXT,
        pos_item_ids=STRINGS,
        description=st.none()
        | st.builds(
            Description,
            tags=st.just((Tag(("a", "b"), 0.5, ("c",)),)) | st.just(()),
            caption=TEXT,
            ocr=STRINGS,
            objects=REGIONS,
            regions=REGIONS,
        ),
        extra=st.dictionaries(TEXT, VALUES, max_size=2),
        pos_articles=STRINGS,
        choices=st.tuples(TEXT, TEXT),
        correct_choice=st.none() | st.sampled_from([0, 1]),
    ),
    max_size=8,
)


@given(ASKED)
@pytest.mark.slow
def test_questions_on_disk_are_the_same_sequence_as_in_memory(questions):
    kept = DiskQuestions(questions)
    assert len(kept) == len(questions)
    assert list(kept) == questions
    assert [kept[i] for i in range(-len(questions), len(questions))] == questions * 2
    assert kept[1:5:2] == questions[1:5:2]
    assert kept[::-1] == questions[::-1]
    for wrong in (len(questions), -len(questions) - 1):
        with pytest.raises(IndexError):
            kept[wrong]


def test_many_questions_are_kept_on_disk_and_leave_nothing_there(
    tmp_path, fresh_cache, monkeypatch
):
    rows = [{"id": i, "question": f"What is {i}?", "answers": [str(i)]} for i in range(500)]
    path = lines(tmp_path / "q.jsonl", rows)
    few = files.load_jsonl(DatasetRequest(data=path))
    assert isinstance(few.questions, list)
    monkeypatch.setattr(disk, "QUESTIONS_IN_MEMORY", 100)
    gc.collect()  # files that other tests left open would be closed meanwhile
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    many = files.load_jsonl(DatasetRequest(data=path))
    assert isinstance(many.questions, DiskQuestions)
    assert list(many.questions) == few.questions
    assert many.fingerprint == few.fingerprint
    assert [p for p in fresh_cache.rglob("*") if p.is_file()] == []
    limited = files.load_jsonl(DatasetRequest(data=path, limit=3))
    assert [q.question_id for q in limited.questions] == [0, 1, 2]
    del many
    gc.collect()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_loader_reads_no_further_than_the_limit(tmp_path):
    def questions():
        yield Question(1, "?")
        yield Question(2, "?")
        raise AssertionError("read on")

    request = DatasetRequest(limit=2, need_images=False)
    kept, _ = checks.gather(questions(), request, "test")
    assert [q.question_id for q in kept] == [1, 2]


def test_the_fingerprint_follows_everything_that_is_scored_and_not_the_place():
    base = Question(1, "What?", image=disk.Path("a.jpg"), image_id="a", answers=("x",))

    def fingerprint(question):
        return checks.gather([question], DatasetRequest(need_images=False), "test")[1]

    changed = [
        Question(2, "What?", image_id="a", answers=("x",)),
        Question(1, "Who?", image_id="a", answers=("x",)),
        Question(1, "What?", image_id="b", answers=("x",)),
        Question(1, "What?", image_id="a", answers=("y",)),
        Question(1, "What?", image_id="a", answers=("x",), instruction="Find"),
        Question(1, "What?", image_id="a", answers=("x",), pos_item_ids=("p",)),
        Question(1, "What?", image_id="a", answers=("x",), description=Description(caption="c")),
    ]
    values = [fingerprint(q) for q in (base, *changed)]
    assert len(set(values)) == len(values)
    assert fingerprint(Question(1, "What?", image_id="a", answers=("x",))) == values[0]
