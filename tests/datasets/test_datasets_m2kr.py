"""M2KR's subsets in their published columns, with their passages and reporting rules."""

import re
from pathlib import Path

import pytest
from dataset_files import OBJECTS, write_image, write_parquet

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Question
from ravqa.corpora import corpus as corpus_module
from ravqa.corpora.corpus import Corpus
from ravqa.datasets import infoseek, m2kr, processed
from ravqa.datasets.base import DatasetRequest, Problems, RetrievalMetric
from ravqa.datasets.published import published_scores
from ravqa.images.decode import BLACK

pa = pytest.importorskip("pyarrow")

QUERY = {
    "question_id": "q1",
    "question": "how big can this plant become?",
    "instruction": "Obtain documents that correspond to the inquiry alongside the provided image:",
    "pos_item_ids": ["WikiWeb_Cornus canadensis_1"],
    "pos_item_contents": ["x" * 100],
    "img_id": "i1",
    "img_path": "inat/val/05729/aa.jpg",
    "image_id": "i1",
}
ROWS = {
    "EVQA": QUERY
    | {"answers": ["20 cm", "8 inches"], "gold_answer": "20 cm", "question_type": "templated"},
    "WIT": QUERY | {"question": None, "pos_item_ids": ["WIT_7"], "img_path": "7.jpg"},
    "IGLUE": QUERY | {"question": None, "pos_item_ids": ["IGLUE_3"]},
    "KVQA": QUERY | {"question": None, "pos_item_ids": ["KVQA_3"]},
    "MSMARCO": QUERY
    | {"question": "what is a fir", "pos_item_ids": ["MSMARCO_3"], "img_id": None}
    | {"img_path": None, "image_id": None},
    "OVEN": QUERY | {"pos_item_ids": ["Q1"]},
    "LLaVA": QUERY | {"pos_item_ids": ["LLaVA_3"]},
    "CC": {
        "original_data_id": "GCC_train_000000001",
        "pos_item_ids": ["CC_0"],
        "pos_item_contents": ["a cat"],
        "img_id": "GCC_train_000000001",
        "img_path": "GCC_train_000000001.jpg",
        "image_id": "GCC_train_000000001",
        "question_id": "CC_0",
        "question": None,
        "instruction": "Describe the image concisely.:",
    },
    "OKVQA": QUERY
    | {
        "question_id": "425",
        "answers": ["soup"] * 8 + ["stew", ""],
        "gold_answer": "soup",
        "img_caption": {"caption": "a table", "conf": 0.9},
        "objects": OBJECTS,
        "img_key": 42,
        "ROIs": ["val2014/COCO_val2014_000000000042.jpg|||cup_5_6_7_8"],
        "img_path": "val2014/COCO_val2014_000000000042.jpg",
        "pos_item_ids": ["OKVQA_1"],
    },
    "Infoseek": QUERY
    | {
        "question_id": "infoseek_val_00000001",
        "question": "How long is it?",
        "answers": ["25.5"],
        "answer_eval": ["25.5"],
        "gold_answer": "25.5",
        "data_split": "val_unseen_entity",
        "wikidata_value": 25.5,
        "wikidata_range": [23.0, 28.0],
        "entity_id": "Q178185",
        "entity_text": "Heat engine",
        "image_path": "oven_00000001.jpg",
        "img_path": "oven_00000001.jpg",
        "related_item_ids": ["Q178185_0"],
        "found": True,
        "question_type": "Numerical",
        "pos_item_ids": ["Q178185_0"],
    },
}
INFOSEEK_STRING = ROWS["Infoseek"] | {
    "question_id": "infoseek_val_00000002",
    "question": "Who built it?",
    "answers": ["Watt"],
    "answer_eval": ["Watt", "James Watt"],
    "wikidata_value": None,
    "wikidata_range": None,
    "data_split": "val_unseen_question",
    "question_type": "String",
}
PASSAGES = {
    "EVQA": [
        ("WikiWeb_Cornus canadensis_1", "title: Cornus canadensis section title: Size content: .."),
        ("WikiWeb_Cornus canadensis_12", "title: Cornus canadensis ..."),
    ],
    "OKVQA": [("OKVQA_1", "title: Soup content: Soup is hot."), ("OKVQA_2", "no title here")],
}


def m2kr_folder(root, subset, rows=None, split="test", passages=None):
    """The files of the hub repository for one subset and split."""
    rows = [ROWS[subset]] if rows is None else rows
    write_parquet(root / f"{subset}_data" / f"{split}-00000-of-00001.parquet", rows)
    found = passages or PASSAGES.get(subset) or [(f"{subset}_0", "zero"), (f"{subset}_3", "three")]
    columns = [
        {"passage_id": p, "passage_content": text, "language": "en"}
        | ({"title": "Heat engine"} if subset == "Infoseek" else {})
        for p, text in found
    ]
    path = root / f"{subset}_passages" / f"{split}_passages-00000-of-00001.parquet"
    write_parquet(path, columns)
    for row in rows:
        if row["img_path"]:
            write_image(root / row["img_path"])
    return root


def load(root, subset, split=None, **options):
    options = {"subset": subset, **options}
    return m2kr.load(DatasetRequest(data=root, split=split, options=options))


@pytest.mark.parametrize("subset", m2kr.SUBSETS)
def test_every_subset_is_read_in_its_published_columns(tmp_path, subset):
    published = m2kr.SUBSETS[subset]
    split = "train" if subset == "CC" else "test"
    dataset = load(m2kr_folder(tmp_path, subset, split=split), subset)
    assert (dataset.name, dataset.label, dataset.split) == ("m2kr", f"M2KR {subset}", split)
    assert dataset.metric == published.metric
    assert dataset.retrieval_metrics == published.retrieval_metrics
    [question] = dataset.questions
    row = ROWS[subset]
    assert str(question.question_id) == row["question_id"]
    assert question.question == (row["question"] or "")
    assert question.instruction == row["instruction"]
    assert question.pos_item_ids == tuple(row["pos_item_ids"])
    assert len(dataset.corpus) == 2
    if row["img_path"]:
        assert question.image == tmp_path / row["img_path"]


class Watched(dict):
    """A row that remembers which of its columns were asked for by name."""

    def __init__(self, row, asked):
        super().__init__(row)
        self.asked = asked

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)


def documented(heading):
    """The columns in a table of the guide, and those of them that it says are not read."""
    guide = Path(__file__).parents[2] / "docs" / "datasets.md"
    part = guide.read_text(encoding="utf-8").split(heading)[1].split("\n## ")[0]
    table = re.search(r"(?:^\|.*\n)+", part, re.MULTILINE)[0]
    rows = [line.split("|")[1:4] for line in table.splitlines()[2:]]
    columns = {name: row[2].strip() for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    return set(columns), {name for name, text in columns.items() if text == "not read"}


def test_the_guide_lists_the_columns_that_are_read(tmp_path):
    listed, unread = documented("Columns of `{SUBSET}_data`")
    images = m2kr.hub.image_folder(tmp_path, None)
    asked = set()
    for subset, row in [*ROWS.items(), ("Infoseek", INFOSEEK_STRING)]:
        for ids in (("img_key", "image_id"), ("img_path",)):  # what is read in their place
            watched = Watched(row | dict.fromkeys(ids), asked)
            processed.question_id_of(watched)
            m2kr._question(watched, "1", subset, "test", images)
    assert asked == listed - unread
    assert set().union(*ROWS.values()) <= listed
    assert set(m2kr.UNREAD) <= unread


def test_the_guide_lists_the_columns_of_passages(tmp_path):
    listed, unread = documented("Columns of `{SUBSET}_passages`")
    images = m2kr.hub.image_folder(tmp_path, None)
    row = {"passage_id": "CC_1", "passage_content": "a cat", "language": "en", "title": "Cat"}
    row |= dict.fromkeys(("original_data_id", "img_id", "img_path"), "GCC_1")
    assert set(row) == listed
    assert not unread
    passage = m2kr._passage(row, "CC", images)
    assert (passage.passage_id, passage.text, passage.article) == ("CC_1", "a cat", "Cat")
    kept = {"language", "original_data_id", "img_id", "img_path", "title"}
    assert set(passage.extra) == kept
    assert passage.image is None


def test_the_reporting_rules_are_the_published_ones():
    """FLMR's docs/MODEL_ZOO.md, examples/evaluate_all.sh and examples/report.py."""
    rules = {
        name: [(m.name, m.k) for m in subset.retrieval_metrics]
        for name, subset in m2kr.SUBSETS.items()
    }
    pseudo = [("pseudo_recall_at_k", 5), ("recall_at_k", 5)]
    assert rules == {
        "WIT": [("recall_at_k", 10)],
        "IGLUE": [("recall_at_k", 1)],
        "KVQA": [("recall_at_k", 5)],
        "CC": [],
        "MSMARCO": [("recall_at_k", 5)],
        "OVEN": [("recall_at_k", 5)],
        "LLaVA": [("recall_at_k", 1)],
        "EVQA": pseudo,
        "OKVQA": pseudo,
        "Infoseek": pseudo,
    }


def test_a_row_without_an_image_gets_the_black_one(tmp_path):
    [question] = load(m2kr_folder(tmp_path, "MSMARCO"), "MSMARCO").questions
    assert question.image == BLACK
    assert question.image_id is None


def test_okvqa_rows_have_official_ids_and_what_was_seen_in_the_image(tmp_path):
    [question] = load(m2kr_folder(tmp_path, "OKVQA"), "OKVQA").questions
    assert question.question_id == 425
    assert question.image_id == 42
    assert question.answers == ("soup",) * 8 + ("stew",)
    assert question.description.caption == "a table"
    assert [o.label for o in question.description.objects] == ["dining_table", "cup"]
    assert [r.label for r in question.description.regions] == ["cup"]
    assert question.extra == {"gold_answer": "soup"}


def test_infoseek_rows_have_the_official_evaluation_forms(tmp_path):
    rows = [ROWS["Infoseek"], INFOSEEK_STRING]
    dataset = load(m2kr_folder(tmp_path, "Infoseek", rows), "Infoseek")
    number, string = dataset.questions
    assert number.answer_eval == ({"wikidata": 25.5, "range": [23.0, 28.0]},)
    assert (number.question_type, number.split) == ("Numerical", "val_unseen_entity")
    assert string.answer_eval == ("Watt", "James Watt")
    assert string.answers == ("Watt", "James Watt")
    assert number.pos_articles == ("Q178185", "Heat engine")
    assert all("Heat engine" in p.article_names for p in dataset.corpus.values())


def test_infoseek_can_be_run_on_m2kr_and_the_results_say_so(tmp_path):
    rows = [ROWS["Infoseek"], INFOSEEK_STRING]
    folder = m2kr_folder(tmp_path, "Infoseek", rows)
    dataset = infoseek.load(DatasetRequest(data=folder, options={"setting": "m2kr"}))
    assert (dataset.name, dataset.metric) == ("infoseek", "infoseek")
    assert dataset.label == "InfoSeek, M2KR's questions"
    assert dataset.info["setting"] == "M2KR's test split"
    assert list(dataset.questions) == list(load(folder, "Infoseek").questions)
    assert len(dataset.corpus) == 2


def test_passages_are_encoded_as_they_stand_and_know_their_article(tmp_path):
    corpus = load(m2kr_folder(tmp_path, "EVQA"), "EVQA").corpus
    assert [p.content for p in corpus.values()] == [text for _, text in PASSAGES["EVQA"]]
    assert {p.article for p in corpus.values()} == {"WikiWeb_Cornus canadensis"}
    [question] = load(tmp_path, "EVQA").questions
    assert question.pos_articles == ("WikiWeb_Cornus canadensis",)
    soup, plain = load(m2kr_folder(tmp_path, "OKVQA"), "OKVQA").corpus.values()
    assert (soup.article, plain.article) == ("Soup", None)


def test_passages_that_are_published_twice_are_left_out_and_counted(tmp_path):
    passages = [("a", "1"), ("b", "2"), ("a", "1")]
    dataset = load(m2kr_folder(tmp_path, "OVEN", passages=passages), "OVEN")
    assert list(dataset.corpus) == ["a", "b"]
    assert any("left out: 1 passage" in note for note in dataset.notes)


def test_a_large_corpus_is_kept_on_disk(tmp_path, monkeypatch, fresh_cache):
    folder = m2kr_folder(tmp_path, "OVEN")
    before = load(folder, "OVEN").corpus
    monkeypatch.setattr("ravqa.corpora.corpus.IN_MEMORY", 0)
    after = load(folder, "OVEN").corpus
    assert (fresh_cache / "corpora").is_dir()
    assert list(after.values()) == list(before.values())
    assert after.fingerprint == before.fingerprint


def test_files_of_several_shards_and_odd_names_belong_to_their_split(tmp_path):
    folder = m2kr_folder(tmp_path, "OVEN")
    (folder / "OVEN_data" / "test-00000-of-00001.parquet").rename(
        folder / "OVEN_data" / "test-00000-of-00002-2.parquet"
    )
    row = ROWS["OVEN"] | {"question_id": "q2"}
    write_parquet(folder / "OVEN_data" / "test-00001-of-00002.parquet", [row])
    dataset = load(folder, "OVEN")
    assert [q.question_id for q in dataset.questions] == ["q1", "q2"]


@pytest.mark.parametrize("name", ["okvqa", "e-vqa", "E-VQA", "CC3M", "llava"])
def test_subsets_are_known_by_their_other_spellings(name):
    assert m2kr.subset_name(name) in m2kr.SUBSETS


def test_what_is_not_there_is_named(tmp_path):
    folder = m2kr_folder(tmp_path, "OKVQA")
    with pytest.raises(UserError, match="subset=OKVAQ: no such subset: did you mean OKVQA"):
        load(folder, "OKVAQ")
    with pytest.raises(UserError, match="needs --dataset-option subset=NAME: WIT, IGLUE"):
        m2kr.load(DatasetRequest(data=folder))
    with pytest.raises(UserError, match="unknown key 'subest': did you mean subset"):
        m2kr.load(DatasetRequest(data=folder, options={"subest": "OKVQA"}))
    with pytest.raises(UserError, match=r"needs --data: .*hf:BByrneLab/multi_task"):
        m2kr.load(DatasetRequest(options={"subset": "OKVQA"}))
    with pytest.raises(UserError, match=r"no EVQA_data/\*\.parquet in"):
        load(folder, "EVQA")
    with pytest.raises(UserError, match="no split 'valid'"):
        load(m2kr_folder(tmp_path, "IGLUE"), "IGLUE", split="valid")
    with pytest.raises(UserError, match="no files of split train; it has: test"):
        load(folder, "OKVQA", split="train")
    (folder / "OKVQA_passages" / "test_passages-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"no files .*OKVQA_passages/test_passages-\*\.parquet"):
        load(folder, "OKVQA")


@pytest.mark.parametrize(
    ("subset", "changes", "reason"),
    [
        ("OVEN", {"question_id": None}, "no 'question_id'"),
        ("OVEN", {"question": None, "instruction": None}, "neither question nor instruction"),
        ("EVQA", {"answers": []}, "no 'answers'"),
        ("OVEN", {"question_id": "q1"}, "duplicate question id 'q1'"),
        ("OVEN", {"img_path": "../x.jpg"}, ".* leaves the image folder"),
        ("Infoseek", {"wikidata_range": None}, "a Numerical question needs"),
    ],
)
def test_a_bad_row_is_named(tmp_path, subset, changes, reason):
    rows = [ROWS[subset], ROWS[subset] | {"question_id": "q2"} | changes]
    folder = m2kr_folder(tmp_path / "m2kr", subset, [ROWS[subset]])
    write_parquet(folder / f"{subset}_data" / "test-00000-of-00001.parquet", rows)
    with pytest.raises(DataError, match=rf"test-00000-of-00001\.parquet, row 2: {reason}"):
        load(folder, subset)
    problems = Problems("skip")
    request = DatasetRequest(data=folder, options={"subset": subset}, problems=problems)
    assert len(m2kr.load(request).questions) == 1
    assert len(problems.found) == 1


@pytest.mark.parametrize("on_disk", [False, True])
def test_passages_that_cannot_be_used_are_left_out_and_reported(
    tmp_path, fresh_cache, monkeypatch, on_disk
):
    if on_disk:
        monkeypatch.setattr(corpus_module, "IN_MEMORY", 0)
    folder = m2kr_folder(tmp_path, "OVEN", passages=[("a", "1"), ("b", None), (None, "3")])
    with pytest.raises(DataError, match=r"row 2: no 'passage_id' or .*; .*row 3: .*\(--on"):
        load(folder, "OVEN")
    request = DatasetRequest(data=folder, options={"subset": "OVEN"}, problems=Problems("skip"))
    for _ in range(2):
        dataset = m2kr.load(request)
        assert list(dataset.corpus) == ["a"]
        assert [line.rpartition(", ")[2] for line in dataset.corpus.left_out] == [
            "row 2: no 'passage_id' or no 'passage_content'",
            "row 3: no 'passage_id' or no 'passage_content'",
        ]
        [note] = [note for note in dataset.notes if note.startswith("cannot be read, left out")]
        assert "row 2" in note
        assert "row 3" in note
    with pytest.raises(DataError, match="row 2: no"):  # not from the corpus on disk
        load(folder, "OVEN")


def test_missing_images_are_counted(tmp_path):
    rows = [ROWS["OVEN"] | {"question_id": f"q{i}", "img_path": f"{i}.jpg"} for i in range(3)]
    folder = m2kr_folder(tmp_path, "OVEN", rows)
    for i in (1, 2):
        (folder / f"{i}.jpg").unlink()
    with pytest.raises(
        DataError, match=r"question q1: no such image.*2 questions have no usable image"
    ):
        load(folder, "OVEN")


def test_the_valid_split_of_okvqa_carries_a_warning(tmp_path):
    dataset = load(m2kr_folder(tmp_path, "OKVQA", split="valid"), "OKVQA", split="valid")
    assert any("choose no settings on it" in note for note in dataset.notes)


def test_the_chinese_twin_is_scored_by_retrieval_only(tmp_path):
    folder = m2kr_folder(tmp_path, "OKVQA")
    dataset = m2kr.load_cn(DatasetRequest(data=folder, options={"subset": "OKVQA"}))
    assert (dataset.name, dataset.label, dataset.metric) == ("m2kr_cn", "M2KR_CN OKVQA", None)
    assert dataset.retrieval_metrics == m2kr.SUBSETS["OKVQA"].retrieval_metrics


def test_the_hub_is_read_through_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = m2kr_folder(tmp_path / "repo", "OKVQA")
    card = "---\nconfigs:\n"
    for config, split in (("OKVQA_data", "test"), ("OKVQA_passages", "test_passages")):
        files = f"{config}/{split}-*.parquet"
        card += f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {files}\n"
    (folder / "README.md").write_text(card + "---\n")
    files = load(folder, "OKVQA")
    hub = load(Path(f"hf:{folder}"), "OKVQA", images=str(folder))
    assert list(hub.questions) == list(files.questions)
    assert list(hub.corpus.values()) == list(files.corpus.values())
    assert (hub.fingerprint, hub.corpus.fingerprint) == (
        files.fingerprint,
        files.corpus.fingerprint,
    )


def test_passages_of_the_hub_are_a_corpus(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = m2kr_folder(tmp_path / "repo", "OKVQA") / "OKVQA_passages"
    file = folder / "test_passages-00000-of-00001.parquet"
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test_passages\n"
        "    path: test_passages-*.parquet\n---\n"
    )
    for name in (f"hf:{folder}:test_passages", f"hf:{folder}:default:test_passages"):
        assert list(Corpus.read(Path(name)).values()) == list(Corpus.read(file).values())
    with pytest.raises(UserError, match="hf:OWNER/NAME:SPLIT or"):
        Corpus.read(Path("hf:somebody/passages"))


def test_published_scores_follow_the_reporting_rules():
    scores = published_scores("m2kr")
    for score in scores:
        assert score.metric in m2kr.SUBSETS[score.subset].retrieval_metrics
        assert 0 < score.percent < 100
        assert "FLMR" in score.source
    vit_l = {(s.subset, s.metric.name): s.percent for s in scores if s.model == "PreFLMR ViT-L"}
    assert vit_l == {  # FLMR/README, hub checkpoints
        ("WIT", "recall_at_k"): 60.5,
        ("IGLUE", "recall_at_k"): 69.9,
        ("KVQA", "recall_at_k"): 44.0,
        ("MSMARCO", "recall_at_k"): 77.9,
        ("OVEN", "recall_at_k"): 60.8,
        ("LLaVA", "recall_at_k"): 72.9,
        ("EVQA", "recall_at_k"): 60.9,
        ("EVQA", "pseudo_recall_at_k"): 70.8,
        ("OKVQA", "recall_at_k"): 31.4,
        ("OKVQA", "pseudo_recall_at_k"): 69.0,
        ("Infoseek", "recall_at_k"): 37.4,
        ("Infoseek", "pseudo_recall_at_k"): 57.8,
    }
    [paper] = [s for s in published_scores("m2kr", "EVQA") if s.model == "PreFLMR ViT-G (paper)"]
    assert (paper.metric, paper.percent) == (RetrievalMetric("pseudo_recall_at_k", 5), 73.1)
    assert {s.model for s in published_scores("m2kr_cn")} == {"PreFLMR ViT-L ENCN"}


def test_questions_of_two_subsets_do_not_share_fingerprints(tmp_path):
    oven = load(m2kr_folder(tmp_path, "OVEN"), "OVEN")
    llava = load(m2kr_folder(tmp_path, "LLaVA"), "LLaVA")
    assert isinstance(oven.questions[0], Question)
    assert oven.fingerprint != llava.fingerprint
