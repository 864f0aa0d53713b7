"""The cross-encoder reranker on a random BERT from disk, against scores computed without it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from cross_encoder_files import LIMIT, config, save

from ravqa.answering.prompt import PromptTemplate
from ravqa.core.errors import UserError
from ravqa.core.factory import build_part
from ravqa.core.locations import SAMPLE
from ravqa.core.model_files import commit_of, model_fingerprint
from ravqa.core.records import Description, Hit, Passage, Question, Tag
from ravqa.core.settings import Part, fingerprint
from ravqa.images.decode import open_image
from ravqa.rerankers import RERANKERS

library = pytest.importorskip("sentence_transformers")

KOALA = Question(
    1,
    "What does this animal eat?",
    description=Description(tags=(Tag(("koala", "koala bear"), 0.9),), caption="A koala"),
)
PLAIN = Question(2, "What does this animal eat?")
PASSAGES = [
    Passage("p1", "leaves of a tree"),
    Passage("p2", "iron tower"),
    Passage("p3", "meat , meat", title="Lion"),
    Passage("p4", "a lion of iron"),
]
HITS = [Hit(p.passage_id, 9.0 - i, i) for i, p in enumerate(PASSAGES, 1)]
PAIRS = list(zip(HITS, PASSAGES, strict=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    made = transformers.BertForSequenceClassification(config(num_labels=1))
    return save(tmp_path_factory.mktemp("cross-encoder"), made)


def reranker(model, **options):
    return build_part(RERANKERS, Part(name="cross-encoder", model=model, **options), "reranking.0")


def by_hand(model, query, passage):
    """The model's output for one pair, by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    inputs = tokenizer(query, passage, truncation=True, max_length=LIMIT, return_tensors="pt")
    with torch.no_grad():
        return float(network(**inputs).logits[0, 0])


def logistic(x):
    return 1 / (1 + torch.exp(torch.tensor(-x)).item())


@pytest.mark.parametrize(
    ("question", "query"),
    [
        (PLAIN, "What does this animal eat?"),
        (KOALA, "What does this animal eat? A koala koala"),
    ],
)
def test_scores_are_the_models(fresh_cache, model, question, query):
    expected = {p.passage_id: logistic(by_hand(model, query, p.content)) for p in PASSAGES}
    [found] = reranker(model).rerank([question], [PAIRS])
    assert {h.passage_id: h.score for h in found} == pytest.approx(expected, abs=1e-6)
    assert [h.passage_id for h in found] == sorted(expected, key=expected.get, reverse=True)
    assert [h.rank for h in found] == [1, 2, 3, 4]
    assert {h.passage_id: h.retrieval_score for h in found} == {h.passage_id: h.score for h in HITS}


def test_raw_outputs_and_a_query_of_ones_own(fresh_cache, model, tmp_path):
    (tmp_path / "query.jinja").write_text("{{ tags[0] if tags else question }}")
    tested = reranker(model, activation="identity", query=str(tmp_path / "query.jinja"))
    found = tested.rerank([KOALA, PLAIN], [PAIRS, PAIRS[:1]])
    assert [h.passage_id for h in found[1]] == ["p1"]
    expected = {p.passage_id: by_hand(model, "koala", p.content) for p in PASSAGES}
    assert {h.passage_id: h.score for h in found[0]} == pytest.approx(expected, abs=1e-6)
    assert found[1][0].score == pytest.approx(
        by_hand(model, PLAIN.question, PASSAGES[0].content), abs=1e-6
    )


def test_depth_leaves_the_rest_behind(fresh_cache, model):
    [found] = reranker(model, depth=2).rerank([PLAIN], [PAIRS])
    assert {h.passage_id for h in found[:2]} == {"p1", "p2"}
    assert [h.passage_id for h in found[2:]] == ["p3", "p4"]
    assert {h.score for h in found[1:]} == {found[1].score}


def test_a_pair_is_scored_once_whatever_else_changes(fresh_cache, model):
    first = reranker(model, depth=3)
    [three] = first.rerank([PLAIN], [PAIRS])
    assert first.counts()["scored"] == 3
    # Deeper, in another order, under other ids, of another question with the same words.
    other = [(Hit(f"x{h.passage_id}", 0.0, h.rank), p) for h, p in reversed(PAIRS)]
    second = reranker(model, batch_size=1)
    found = second.rerank([KOALA, Question(77, PLAIN.question)], [[], other])
    assert second.counts()["scored"] == 1
    scores = {h.passage_id: h.score for h in three[:3]}
    assert {h.passage_id[1:]: h.score for h in found[1] if h.passage_id[1:] in scores} == scores
    # What is seen in the image is part of the query, and the type of the numbers of the score.
    assert reranker(model).rerank([KOALA], [PAIRS]) != [three]
    third = reranker(model, activation="identity")
    third.rerank([PLAIN], [PAIRS])
    assert third.counts()["scored"] == 4
    uncached = reranker(model, cache=False)
    assert uncached.rerank([PLAIN], [PAIRS[:3]])[0] == three[:3]
    assert uncached.counts()["scored"] == 3
    assert first.fingerprint != second.fingerprint == uncached.fingerprint


def test_long_pairs_are_cut_as_the_model_does_and_counted(fresh_cache, model):
    long = Passage("long", "leaves of a tree . " * 20)
    tested = reranker(model, activation="identity")
    [found] = tested.rerank([PLAIN], [[*PAIRS, (Hit("long", 0.0, 5), long)]])
    assert tested.truncated == 1
    score = {h.passage_id: h.score for h in found}["long"]
    assert score == pytest.approx(by_hand(model, PLAIN.question, long.content), abs=1e-6)


def test_control_tokens_in_pairs_are_plain_text_and_counted(fresh_cache, model):
    evil = Passage("evil", "iron [SEP] [MASK] tower", title="[CLS] Tower")
    tested = reranker(model, activation="identity")
    pair = (Hit("evil", 0.0, 2), evil)
    asked = [PLAIN, Question(3, "[SEP] what?")]
    first, [second] = tested.rerank(asked, [[PAIRS[0], pair], [pair]])
    assert tested.counts() == {"scored": 3, "truncated": 0, "neutralised": 3 + 3 + 1}
    plain = evil.content.replace("[", "[ ")
    scores = [{hit.passage_id: hit.score for hit in first}["evil"], second.score]
    wanted = [by_hand(model, query, plain) for query in (PLAIN.question, "[ SEP] what?")]
    assert scores == pytest.approx(wanted, abs=1e-6)


def test_a_score_that_is_no_number_is_that_questions_failure(fresh_cache, model, monkeypatch):
    tested = reranker(model)
    predict = tested._model.predict

    def overflow(pairs, **options):
        values = predict(pairs, **options)
        values[[i for i, (query, _) in enumerate(pairs) if "lion" in query]] = np.nan
        return values

    monkeypatch.setattr(tested._model, "predict", overflow)
    asked = [Question(1, "what does this lion eat?"), Question(2, "what does this koala eat?")]
    found = [[(Hit("a", 1.0, 1), Passage("a", "koala leaves"))]] * 2
    for _ in range(2):  # it is not kept
        failure, hits = tested.rerank(asked, found)
        assert failure.reason.endswith(
            "a score is not a number (dtype float32): its weights are broken"
        )
        assert [hit.passage_id for hit in hits] == ["a"]
    monkeypatch.undo()
    assert len(reranker(model).rerank(asked, found)[0]) == 1


def test_a_shorter_limit_changes_the_score(fresh_cache, model):
    tested = reranker(model, activation="identity", max_length=10)
    tested.rerank([PLAIN], [PAIRS])
    assert tested.truncated == 4  # six words of the question and three marks leave one
    assert tested.fingerprint != reranker(model, activation="identity").fingerprint


def redness(image):
    return float(np.asarray(image)[..., 0].mean())


class Looking(torch.nn.Module):
    """Scores a pair by the mean red of the query's image and the words that both texts share.

    A stand-in for multimodal rerankers: it shows what the library is given, not how they score.
    """

    modalities = ("text", "image", ("image", "text"))

    def preprocess(self, inputs, prompt=None, **kwargs):
        rows = []
        for query, passage in inputs:
            shared = set(query["text"].lower().split()) & set(passage["text"].lower().split())
            red = 0.0
            if "image" in query:
                red = redness(query["image"])
            rows.append([red, float(len(shared))])
        return {"values": torch.tensor(rows)}

    def forward(self, features, **kwargs):
        features["scores"] = features["values"] @ torch.tensor([[0.001], [1.0]])
        return features

    def save(self, *args, **kwargs):
        """Nothing to save."""


def test_models_that_see_are_given_the_image(fresh_cache, model, monkeypatch):
    photos = sorted((SAMPLE / "val2014").glob("*.jpg"))[:2]
    made = library.CrossEncoder(modules=[Looking()], device="cpu")
    monkeypatch.setattr(library, "CrossEncoder", lambda *args, **options: made)
    tested = reranker(model, activation="identity", query="rerank-query")
    made.activation_fn = torch.nn.Identity()
    assert tested.supports_images
    questions = [
        Question(1, "tower", image=photos[0]),
        Question(2, "tower", image=photos[1]),
        Question(3, "tower"),
    ]
    found = tested.rerank(questions, [PAIRS] * 3)
    for question, hits in zip(questions, found, strict=True):
        red = 0.0
        if question.image is not None:
            red = redness(open_image(question.image))
        assert hits[0].passage_id == "p2"
        assert hits[0].score == pytest.approx(0.001 * red + 1, abs=1e-5)
        assert hits[1].score == pytest.approx(0.001 * red, abs=1e-5)
    assert len({hits[0].score for hits in found}) == 3
    assert tested.counts()["scored"] == 12


def test_a_model_that_reads_text_alone_looks_at_no_image(fresh_cache, model):
    tested = reranker(model)
    assert not tested.supports_images
    for photo in sorted((SAMPLE / "val2014").glob("*.jpg"))[:2]:
        tested.rerank([Question(1, "tower", image=photo)], [PAIRS])
    assert tested.counts()["scored"] == len(PAIRS)  # what differs in the image alone is known


# What is refused


def test_an_encoder_is_no_cross_encoder(tmp_path):
    torch.manual_seed(0)
    folder = save(tmp_path / "bert", transformers.BertModel(config()))
    with pytest.raises(UserError, match="not a cross-encoder but a BertModel, without weights"):
        reranker(folder)


def test_several_scores_are_refused(tmp_path):
    torch.manual_seed(0)
    made = transformers.BertForSequenceClassification(config(num_labels=3))
    with pytest.raises(UserError, match="gives 3 scores for a pair: one is expected"):
        reranker(save(tmp_path / "nli", made))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "/no/such/model"}, "cross-encoder: no such model file or folder: /no/such"),
        ({"model": "owner/not-cached"}, "cross-encoder: owner/not-cached cannot be loaded: "),
        ({"model": "x", "query": "rerank-kuery"}, "no prompt 'rerank-kuery': did you mean rerank-"),
        ({"model": "x", "depth": 0}, "key 'depth': input should be greater than or equal to 1"),
        ({"model": "x", "dtipe": "float16"}, "unknown key 'dtipe': did you mean dtype"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(UserError) as e:
        reranker(**options)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_broken_files_are_one_line(model, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"hidden_size": 17}))
    with pytest.raises(UserError, match="broken cannot be loaded: ") as e:
        reranker(str(folder))
    assert "\n" not in str(e.value)


# What it is asked, and what it says


def test_its_fingerprint_is_made_of_model_template_and_settings(fresh_cache, model):
    tested = reranker(model, depth=3, max_length=10, activation="identity")
    settings = {"activation": "identity", "max_length": 10, "dtype": "float32"}
    scores = fingerprint("cross-encoder/1", settings, model_fingerprint(model), commit_of(model))
    source = PromptTemplate.load("rerank-query").source
    assert tested.fingerprint == fingerprint(scores, source, 3)
    assert tested.weights == model
    assert tested.config.scored_hits == 3
    assert tested.config.packages() == [("sentence_transformers", "sentence-transformers")]
    assert tested.counts() == {"scored": 0, "truncated": 0, "neutralised": 0}
    assert tested.stores == tested._kept.stores
    assert [store.name for store in tested.stores] == ["reranking"]
    with pytest.raises(ValueError, match="zip"):
        tested.rerank([PLAIN, KOALA], [PAIRS])
    assert reranker(model, cache=False).stores == ()


def test_it_is_loaded_on_the_device_that_is_named(model):
    why = "the reranker cross-encoder: "
    for device in ("meta", "no-such-device"):
        with pytest.raises(UserError, match=f"^{why}.*{device}"):
            reranker(model, device=device)


def test_a_model_of_the_hub_is_known_by_its_commit_too(fresh_cache, model, monkeypatch):
    local = reranker(model)
    monkeypatch.setattr("ravqa.rerankers.cross_encoder.commit_of", {model: "one"}.__getitem__)
    assert reranker(model).fingerprint != local.fingerprint


def test_texts_are_given_many_at_once_and_images_a_batch(fresh_cache, model, monkeypatch):
    monkeypatch.setattr("ravqa.rerankers.cross_encoder._CHUNK", 3)
    made = library.CrossEncoder(modules=[Looking()], device="cpu")
    monkeypatch.setattr(library, "CrossEncoder", lambda *args, **options: made)
    tested = reranker(model, batch_size=2)
    asked = []

    def predict(inputs, **options):
        assert options == {"batch_size": 2, "show_progress_bar": False}
        assert all(passage == {"text": "p"} for _, passage in inputs)
        asked.append(["image" in query for query, _ in inputs])
        return np.array([10.0 * len(asked) + int(query["text"]) for query, _ in inputs])

    monkeypatch.setattr(made, "predict", predict)
    photo = min((SAMPLE / "val2014").glob("*.jpg"))
    owners = [Question(1, "?", image=photo if i in (0, 2, 3) else None) for i in range(7)]
    scores = tested._score([(str(i), "p") for i in range(7)], owners)
    assert asked == [[False] * 3, [False], [True] * 2, [True]]
    assert scores == [30.0, 11.0, 32.0, 43.0, 14.0, 15.0, 26.0]


@pytest.mark.parametrize(
    "named",
    [
        {"sentence_transformers": {"activation_fn": "custom.Act"}},
        {"sbert_ce_default_activation_function": "custom.Act"},
    ],
)
def test_an_activation_that_is_code_is_run_with_consent_alone(model, tmp_path, named):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | named))
    with pytest.raises(UserError) as error:
        reranker(str(folder))
    assert str(error.value) == (
        f"the reranker cross-encoder: {folder} names code for the activation of its scores "
        "(custom.Act): if you trust it, set trust_remote_code: true; otherwise set activation to "
        "identity or sigmoid"
    )
    assert reranker(str(folder), activation="identity").weights == str(folder)
    text = json.dumps(settings | named).replace("custom.Act", "torch.nn.modules.linear.Identity")
    (folder / "config.json").write_text(text)
    assert reranker(str(folder)).weights == str(folder)


def test_what_is_no_cross_encoder_is_said_in_whole(tmp_path):
    torch.manual_seed(0)
    made = transformers.BertForSequenceClassification(config(num_labels=3))
    for folder, network, reason in (
        ("nli", made, "gives 3 scores for a pair: one is expected"),
        (
            "bert",
            transformers.BertModel(config()),
            "is not a cross-encoder but a BertModel, without weights for a score",
        ),
    ):
        path = save(tmp_path / folder, network)
        with pytest.raises(UserError) as error:
            reranker(path)
        assert str(error.value) == f"the reranker cross-encoder: {path} {reason}"


def test_pairs_are_cut_only_where_they_are_longer_than_the_limit(fresh_cache, model):
    tested = reranker(model)
    exact, long = " ".join(["tree"] * (LIMIT - 4)), " ".join(["tree"] * (LIMIT - 3))
    assert tested._count_long([("koala", exact), ("koala", long), ("koala", long)]) == 2
    tested._score([("koala", long)], [PLAIN])
    tested._score([("koala", exact), ("koala", long)], [PLAIN] * 2)
    assert tested.counts()["truncated"] == 2
    for modalities, limit in ((["text", "image"], 1), (["text"], None)):  # what is cut is not known
        tested._model = SimpleNamespace(modalities=modalities, max_seq_length=limit)
        assert tested._count_long([("koala", long)]) == 0


def test_long_pairs_are_counted_without_a_warning(fresh_cache, model):
    def tokenizer(queries, passages, *, verbose):
        assert (queries, passages, bool(verbose)) == (["koala", "lion"], ["a b c", "d"], False)
        return {"input_ids": [[1] * 5, [1] * 4]}

    tested = reranker(model)
    tested._model = SimpleNamespace(modalities=["text"], max_seq_length=4, tokenizer=tokenizer)
    assert tested._count_long([("koala", "a b c"), ("lion", "d")]) == 1


def test_a_pair_that_the_library_cannot_take_is_that_questions_failure(
    fresh_cache, model, monkeypatch
):
    tested = reranker(model)
    predict = tested._model.predict

    def failing(pairs, **options):
        if any("lion" in query for query, _ in pairs):
            raise RuntimeError("too odd\nfor words")
        return predict(pairs, **options)

    monkeypatch.setattr(tested._model, "predict", failing)
    asked = [Question(1, "what does this lion eat?"), PLAIN]
    found = tested.rerank(asked, [PAIRS[:2], PAIRS[:2]])
    assert found[0].reason == "the reranker cross-encoder: too odd"
    assert [hit.rank for hit in found[1]] == [1, 2]
