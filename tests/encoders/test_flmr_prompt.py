"""FLMR's text prompt: token ids against transformers' own tokenizer, and what becomes of marks."""

import json
import shutil

import flmr_parity as parity
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from ravqa.cli import main
from ravqa.core.control_tokens import Mark
from ravqa.core.errors import UserError
from ravqa.core.records import Description, Passage, Question, Region
from ravqa.encoders.flmr import FLMREncoder
from ravqa.encoders.text_prompt import MARKS, TextPrompt, query_spans
from ravqa.flmr import FLMRContextEncoderTokenizer, FLMRQueryEncoderTokenizer

# In the order in which RA-VQA added them to BERT's vocabulary.
ADDED = ["<BOV>", "<SOV>", "<EOV>", "<BOQ>", "<EOQ>", "<BOC>", "<EOC>", "<BOK>", "<EOK>"]
WORDS = 159  # in the vocabulary of the fixture

DOG = Region("dog", (0, 0, 4, 4), (("red", 0.9), ("wooden", 0.04), ("a", 0.5)))
SEEN = Description(
    caption="which animal is this",
    objects=(DOG, Region("bird", (0, 0, 1, 1))),
    ocr=("paris", "1889"),
)
OBJECTS = "<BOV> red a dog <SOV> bird <SOV> paris 1889 <EOV>"
CAPTION = "<BOC> which animal is this <EOC>"


def with_marks(folder):
    """Write the fixture's checkpoint as the original writes one with added tokens."""
    shutil.copytree(parity.checkpoint("flmr"), folder)
    added = {token: WORDS + i for i, token in enumerate(ADDED)}
    for name in ("query_tokenizer", "context_tokenizer"):
        (folder / name / "added_tokens.json").write_text(json.dumps(added))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = WORDS + len(ADDED)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in tensors:
        if name.endswith("word_embeddings.weight"):
            new = torch.randn(len(ADDED), tensors[name].shape[1], generator=generator)
            tensors[name] = torch.cat([tensors[name], new])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_marks(tmp_path_factory.mktemp("marked") / "flmr")


def encoder(folder, prompt=None, **options):
    values = {"model": str(folder), "instruction": None, "device": "cpu", **options}
    return FLMREncoder(FLMREncoder.Config(text_prompt={} if prompt is None else prompt, **values))


@pytest.fixture(scope="module")
def made(folder):
    return encoder(folder)


@pytest.fixture(scope="module")
def bert(folder):
    """transformers' tokenizer, which finds added tokens in a text by itself."""
    tokenizer = BertTokenizer.from_pretrained(str(folder / "query_tokenizer"))
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED})
    assert tokenizer.convert_tokens_to_ids(ADDED) == list(range(WORDS, WORDS + len(ADDED)))
    return tokenizer


def expected(bert, text, marker, length):
    """The ids that the original makes of a text: ". " before it, its dot replaced."""
    ids = bert(". " + text, truncation=True, max_length=length)["input_ids"]
    ids[1] = bert.convert_tokens_to_ids(marker)
    return ids


def queries(made, *questions):
    inputs, weights = made._prompted(list(questions), [""] * len(questions))
    return inputs, weights


def asked(text="What is the dog?", description=SEEN, image=None):
    return Question(1, text, image, description=description)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ({}, [CAPTION, OBJECTS]),
        ({"caption_last": True}, [OBJECTS, CAPTION]),
        ({"caption": 0}, [OBJECTS]),
        ({"objects": 0}, [CAPTION, "<BOV> paris 1889 <EOV>"]),
        ({"ocr": 0}, [CAPTION, "<BOV> red a dog <SOV> bird <SOV> <EOV>"]),
        ({"objects": 0, "ocr": 0}, [CAPTION]),
        ({"caption": 0, "objects": 0, "ocr": 0}, []),
    ],
)
def test_queries_have_the_ids_of_the_marked_text(folder, bert, prompt, parts):
    tokenizer = FLMRQueryEncoderTokenizer.from_pretrained(folder)
    spans = query_spans(asked(), "What is the dog?", TextPrompt(**prompt))
    found = tokenizer.encode_pieces([[span.text for span in spans]])
    ids = expected(bert, " ".join(["<BOQ> What is the dog? <EOQ>", *parts]), "[unused0]", 64)
    filler = [bert.mask_token_id] * (64 - len(ids))
    assert found["input_ids"].tolist() == [ids + filler]
    assert found["attention_mask"].tolist() == [[1] * len(ids) + [0] * len(filler)]
    assert found.truncated == [False]


def test_blank_parts_keep_their_marks_and_a_question_without_description_is_alone(made, bert):
    found, _ = queries(made, asked(description=Description()), asked(description=None))
    for row, rest in zip(
        found["input_ids"].tolist(), (" <BOC> <EOC> <BOV> <EOV>", ""), strict=True
    ):
        ids = expected(bert, f"<BOQ> What is the dog? <EOQ>{rest}", "[unused0]", 64)
        assert row[: len(ids)] == ids
        assert set(row[len(ids) :]) == {bert.mask_token_id}


def test_long_queries_and_passages_are_cut_as_the_original_cuts_them(folder, made, bert):
    long = "which bird is this " * 30
    found, _ = queries(made, asked(long))
    assert found["input_ids"].tolist() == [expected(bert, f"<BOQ> {long} <EOQ>", "[unused0]", 64)]
    assert found.truncated == [True]
    tokens = made._passage_tokens([long, "paris"])
    for row, text in zip(tokens["input_ids"], (long, "paris"), strict=True):
        assert row == expected(bert, f"<BOK> {text} <EOK>", "[unused1]", 64)
    assert tokens.truncated == [True, False]


def test_marks_in_texts_are_text(made, bert):
    text = "<BOQ> [SEP] dog <EOK>"
    own = {bert.convert_tokens_to_ids(mark) for mark in (*MARKS, "[SEP]")}
    plain = bert(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not own & set(plain)
    found, _ = queries(made, asked(text, None))
    q, eoq, bok, eok = (bert.convert_tokens_to_ids(t) for t in ("<BOQ>", "<EOQ>", "<BOK>", "<EOK>"))
    row = found["input_ids"][0].tolist()
    assert row[2 : 4 + len(plain)] == [q, *plain, eoq]
    [row] = made._passage_tokens([text])["input_ids"]
    assert row[2:-1] == [bok, *plain, eok]
    described = Description(caption=text, ocr=(text,), objects=(Region(text, (0, 0, 1, 1)),))
    found, _ = queries(made, asked("dog", described))
    row = found["input_ids"][0].tolist()
    assert sum(token in own for token in row) == 8  # two of each pair, <SOV>, and [SEP]
    assert made.encode_question([asked(text, None)]).stats.neutralised == 3
    assert made.encode_question([asked("dog", described)]).stats.neutralised == 9
    assert made.encode_document([text]).stats.neutralised == 3


def test_vectors_are_the_models_of_these_ids(folder, made, bert):
    from ravqa.flmr import FLMRModelForRetrieval

    model = FLMRModelForRetrieval.from_pretrained(str(folder)).eval()
    inputs, _ = queries(made, asked())
    with torch.inference_mode():
        truth = model.query(**inputs, concat_output_from_vision_encoder=False)
    [vectors] = made.encode_question([asked()])
    np.testing.assert_allclose(
        vectors, truth.late_interaction_output[0, : len(vectors)].numpy(), atol=1e-5
    )
    ids = torch.tensor([expected(bert, "<BOK> paris, dog <EOK>", "[unused1]", 64)])
    with torch.inference_mode():
        truth = model.doc(input_ids=ids, attention_mask=torch.ones_like(ids))
    kept = truth.late_interaction_output[0][truth.context_mask[0, :, 0].bool()]
    [vectors] = made.encode_document(["paris, dog"])
    assert len(vectors) == 7  # without the comma
    np.testing.assert_allclose(vectors, kept.numpy(), atol=1e-5)


def test_weights_scale_the_vectors_of_their_part(folder, made):
    half = encoder(folder, {"ocr": 0.5, "caption": 2})
    [whole], [weighted] = made.encode_question([asked()]), half.encode_question([asked()])
    ratio = np.linalg.norm(weighted, axis=1) / np.linalg.norm(whole, axis=1)
    names = [label.name for label in made.label_question(asked()).labels]
    assert len(names) == len(ratio)
    bounds = [names.index(mark) for mark in ("<BOC>", "<EOC>", "paris", "<EOV>")]
    caption, ocr = range(bounds[0], bounds[1] + 1), range(bounds[2], bounds[3])
    assert ratio == pytest.approx(
        [2.0 if i in caption else 0.5 if i in ocr else 1.0 for i in range(len(names))], abs=1e-5
    )


def test_labels_name_words_in_the_marked_text(made):
    found = made.label_question(asked("Dogs?", Description(caption="Paris")))
    assert found.text == "<BOQ> Dogs? <EOQ> <BOC> Paris <EOC> <BOV> <EOV>"
    words = {label.name: label.word for label in found.labels if label.kind == "word"}
    assert {found.text[slice(*words[name])] for name in words if name != "?"} <= {"Dogs", "Paris"}
    kinds = [label.kind for label in found.labels if label.name in MARKS]
    assert kinds == ["mark"] * 6
    passage = made.label_passage(Passage("1", "A dog."))
    assert passage.text == "<BOK> A dog. <EOK>"
    assert len(passage.labels) == len(made.encode_passages([Passage("1", "A dog.")])[0])


def test_rankings_and_fingerprints_tell_prompts_apart(folder, made):
    plain = FLMREncoder(FLMREncoder.Config(model=str(folder), instruction=None, device="cpu"))
    other = encoder(folder, {"ocr": 0})
    assert len({plain.fingerprint, made.fingerprint, other.fingerprint}) == 3
    assert made.passages_fingerprint == other.passages_fingerprint != plain.passages_fingerprint
    assert made.seen_beside(asked()) != made.seen_beside(asked(description=Description()))
    assert plain.seen_beside(asked()) is None


def test_saved_tokenizers_have_the_marks(folder, tmp_path):
    FLMRContextEncoderTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    saved = FLMRContextEncoderTokenizer.from_pretrained(tmp_path)
    assert saved.missing(MARKS, WORDS + len(ADDED)) == []
    pieces = [[Mark("<BOK>"), "paris", Mark("<EOK>")]]
    assert saved.encode_pieces(pieces, padding=False)["input_ids"].tolist() == [
        [4, 2, WORDS + 7, 117, WORDS + 8, 5]
    ]


def test_what_cannot_be_prompted_is_refused(folder, made, tmp_path):
    for name in ("flmr", "preflmr"):
        model = str(parity.checkpoint(name))
        with pytest.raises(UserError) as error:
            FLMREncoder(FLMREncoder.Config(model=model, instruction=None, text_prompt={}))
        assert str(error.value) == (
            "the encoder flmr: text_prompt needs a checkpoint that was trained with marks, as FLMR "
            f"was; {model} does not have the tokens {', '.join(MARKS)}"
        )
    with pytest.raises(ValueError, match="text_prompt needs instruction: null"):
        FLMREncoder.Config(model=str(folder), text_prompt={})
    with pytest.raises(UserError) as error:
        made.encode_question([asked(description=None, image=b"photo")])
    assert str(error.value) == (
        "the encoder flmr: text_prompt has parts of the image's description, but the questions "
        "have none: name a describer, or set caption, objects and ocr to 0"
    )
    other = tmp_path / "other"
    shutil.copytree(folder / "query_tokenizer", other)
    (other / "added_tokens.json").write_text('{"<BOQ>": 200}')
    with pytest.raises(UserError, match=r"<BOQ> has the id 200 there, but would get 159"):
        FLMRQueryEncoderTokenizer.from_pretrained(other)
    (other / "added_tokens.json").write_text("[1]")
    with pytest.raises(UserError, match="its added tokens cannot be read"):
        FLMRQueryEncoderTokenizer.from_pretrained(other)


def processed_rows(folder, *rois):
    """RA-VQA's processed questions in a Parquet file, one per region of interest, and passages."""
    rows = []
    for number, roi in enumerate(rois):
        Image.new("RGB", (40, 30), (80 * number, 9, 9)).save(folder / f"{number}.png")
        found = {"class": "dog", "rect": [0.0, 0.0, 9.0, 9.0], "ocr": [{"text": "1889"}]}
        rows.append(
            {
                "question_id": str(number),
                "question": "which animal is this?",
                "img_path": f"{number}.png",
                "answers": ["dog"] * 10,
                "img_caption": {"caption": "a dog", "conf": 1.0},
                "objects": [found | {"attributes": ["red"], "attribute_scores": [0.9]}],
                "img_ocr": [{"description": "paris"}],
                "ROIs": [f"{number}.png|||dog_{roi}"],
            }
        )
    parquet.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    passages = [{"passage_id": str(i), "text": text} for i, text in enumerate(["a dog", "a river"])]
    text = "".join(json.dumps(row) + "\n" for row in passages)
    (folder / "passages.jsonl").write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_a_run_on_processed_questions_sees_all_of_them(folder, tmp_path, fresh_cache, capsys):
    processed_rows(tmp_path, "0_0_20_20", "900_0_910_9", "5_5_30_30")
    options = {
        "--pipeline": "flmr-retrieval",
        "--dataset": "okvqa",
        "--data": tmp_path,
        "--split": "test",
        "--corpus": tmp_path / "passages.jsonl",
        "--output": tmp_path / "run",
        "--set": f"retriever.encoder.model={folder}",
    }
    command = ["run", "--retrieval-only", *(str(word) for pair in options.items() for word in pair)]

    def ended(*more):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--no-report", *more])
        return stopped.value.code

    problem = "the region [900.0, 0.0, 910.0, 9.0] of 'dog' is not inside the picture of 40x30"
    assert ended() == 2
    assert f"error: question 1: {problem} pixels; --on-error skip" in capsys.readouterr().err
    assert ended("--overwrite", "--on-error", "skip") == 0
    lines = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = sorted(map(json.loads, lines), key=lambda sample: sample["question_id"])
    assert [len(sample["hits"]) for sample in samples] == [2, 0, 2]
    assert {(sample["caption"], *sample["ocr"]) for sample in samples} == {("a dog", "paris")}
