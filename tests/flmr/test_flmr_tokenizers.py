"""The tokenizers' options and files, against transformers' own and counts by hand."""

import json
import shutil

import flmr_parity as parity
import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from ravqa.core.errors import UserError
from ravqa.flmr import FLMRContextEncoderTokenizer, FLMRQueryEncoderTokenizer
from ravqa.flmr.tokenization import FLMRBertContextEncoderTokenizer

FOLDER = parity.checkpoint("preflmr")
OTHER = parity.checkpoint("preflmr_encn")  # of a vocabulary without markers, padding id 1
VOCABULARY = FOLDER / "context_tokenizer" / "vocab.txt"


def context(**options):
    return FLMRContextEncoderTokenizer.from_pretrained(FOLDER, **options)


def query(**options):
    return FLMRQueryEncoderTokenizer.from_pretrained(FOLDER, **options)


def lists(encoding):
    return {k: [list(row) for row in v] for k, v in encoding.items()}


# -- padding, cutting and forms of results


@pytest.mark.parametrize("padding", [True, "longest"])
def test_documents_are_padded_to_the_longest_with_bert_without_a_row_of_padding(padding):
    made = context()(["paris", "the the"], padding=padding, return_tensors=None)
    assert lists(made) == {
        "input_ids": [[4, 2, 117, 5, 0], [4, 2, 113, 113, 5]],
        "attention_mask": [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    }


def test_documents_of_another_vocabulary_keep_one_row_of_padding_below_the_limit():
    tokenizer = FLMRContextEncoderTokenizer.from_pretrained(OTHER)
    assert (tokenizer.marks, tokenizer.pad_token_id, tokenizer.max_tokens) == (False, 1, 512)
    texts = ["paris", "the the"]
    short, long = ([0, 6, 10, 47, 147, 15, 2], [0, 6, 10, 13, 5, 13, 5, 2])
    for padding in (True, "longest"):
        made = lists(tokenizer(texts, padding=padding, return_tensors=None))
        assert made["input_ids"] == [[*short, 1, 1], [*long, 1]]
        assert made["attention_mask"] == [[1] * 7 + [0] * 2, [1] * 8 + [0]]
        for limit, width in ((9, 9), (8, 8), (7, 7)):
            made = tokenizer(texts, padding=padding, max_length=limit)
            assert made["input_ids"].shape == (2, width)
    assert lists(tokenizer(texts, padding=False, return_tensors=None))["input_ids"] == [short, long]
    limited = FLMRContextEncoderTokenizer.from_pretrained(OTHER, doc_maxlen=8)
    assert limited(texts, padding=True)["input_ids"].shape == (2, 8)


def test_queries_of_another_vocabulary_have_plain_padding():
    tokenizer = FLMRQueryEncoderTokenizer.from_pretrained(OTHER)
    made = tokenizer("paris", return_tensors=None)
    assert made["input_ids"] == [0, 6, 10, 47, 147, 15, 2, *[1] * 25]
    assert made["attention_mask"] == [1] * 7 + [0] * 25


def test_texts_are_cut_at_the_length_that_is_asked_for_unless_they_are_to_stay_whole():
    text = "paris " * 70
    whole = context()(text, padding=False, truncation=False, return_tensors=None)
    assert whole["input_ids"] == [4, 2, *[117] * 70, 5]
    assert whole.truncated == [False]
    for options, length in (({}, 64), ({"max_length": 9}, 9)):
        cut = context()([text, "paris"], return_tensors=None, **options)
        assert cut["input_ids"] == [
            [4, 2, *[117] * (length - 3), 5],
            [4, 2, 117, 5, *[0] * (length - 4)],
        ]
        assert cut.truncated == [True, False]
    padded = context()("paris", truncation=False, max_length=6, return_tensors=None)
    assert padded["input_ids"] == [4, 2, 117, 5, 0, 0]


def test_filling_of_queries_is_not_attended_to_unless_asked():
    for attended in (False, True):
        made = query(query_maxlen=6, attend_to_mask_tokens=attended)(["paris"])
        assert made["input_ids"].tolist() == [[4, 1, 117, 5, 6, 6]]
        assert made["attention_mask"].tolist() == [[1, 1, 1, 1, *[int(attended)] * 2]]


@pytest.mark.parametrize(("form", "kind"), [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_results_have_the_form_that_is_asked_for_also_without_texts(form, kind):
    tokenizer = context()
    for texts, rows in ((["paris", "the"], 2), ([], 0)):
        made = tokenizer(texts, return_tensors=form)
        assert made.keys() == {"input_ids", "attention_mask"}
        for values in made.values():
            assert isinstance(values, kind)
            assert len(values) == rows
            if form:
                assert values.shape == (rows, 64)
                assert str(values.dtype).endswith("int64")
        assert made.truncated == [False] * rows
    if form:
        assert tokenizer([], max_length=7, return_tensors=form)["input_ids"].shape == (0, 7)


def test_one_text_is_a_row_for_tensors_and_none_for_lists():
    assert context()("paris", padding=False)["input_ids"].tolist() == [[4, 2, 117, 5]]
    made = context()("paris the", padding=False, return_tensors=None)
    assert made["input_ids"] == [4, 2, 117, 113, 5]
    assert made["attention_mask"] == [1] * 5
    assert made.truncated == [False]
    [encoding] = made.encodings
    spans = [(a - 2, b - 2) for a, b in encoding.offsets[2:4]]  # without the ". " put before
    assert context().prefix_length == 2
    assert spans == [(0, 5), (6, 9)]


def test_a_pair_and_plain_word_pieces_are_encoded_as_by_bert():
    tokenizer, bert = context(), BertTokenizer(str(VOCABULARY))
    assert tokenizer("paris is", "the")["input_ids"] == bert("paris is", "the")["input_ids"]
    plain = tokenizer("paris is", add_special_tokens=False)
    assert dict(plain) == {"input_ids": [117, 112], "attention_mask": [1, 1]}
    assert tokenizer.first_token_id("paris is") == 117
    assert tokenizer.decode([117, 77, 112]) == "parisc is"


def test_control_tokens_may_be_let_through():
    made = context()("[SEP]", padding=False, split_special_tokens=False, return_tensors=None)
    assert made["input_ids"] == [4, 2, 5, 5]


# -- word-pieces


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": False},
        {"strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
    ],
    ids=str,
)
def test_a_vocabulary_is_used_as_by_transformers(tmp_path, options):
    file = tmp_path / "vocab.txt"
    words = [
        *VOCABULARY.read_text(encoding="utf-8").split(),
        "Paris",
        "caf\u00e9",
        "中",
        "##中",
        "文",
    ]
    file.write_text("\n".join(words), encoding="utf-8")
    # Not read from a folder: the values of its files would be used.
    ours = FLMRContextEncoderTokenizer(vocab_file=str(file), doc_maxlen=64, **options)
    theirs = BertTokenizer(str(file), **options)
    for text in (
        "Paris PARIS caf\u00e9 cafe",
        "中文 c中文",
        "a\u0000b\tc\u00a0d",
        "It's [SEP] x-y.",
    ):
        made = ours(text, padding=False, return_tensors=None)
        expected = theirs(". " + text, split_special_tokens=True)["input_ids"]
        assert made["input_ids"] == [4, 2, *expected[2:]]
        assert ours.decode(expected) == theirs.decode(expected)


def test_a_vocabulary_of_any_line_ends_is_the_same(tmp_path):
    text = VOCABULARY.read_text(encoding="utf-8")
    for form in (text, text.rstrip("\n"), text.replace("\n", "\r\n")):
        (tmp_path / "vocab.txt").write_bytes(form.encode())
        made = FLMRContextEncoderTokenizer(vocab_file=str(tmp_path / "vocab.txt"))
        assert len(made) == 159
        assert made.first_token_id("played") == 158
    (tmp_path / "vocab.txt").write_text(text + "\u2028\nmore \n", encoding="utf-8")
    made = FLMRContextEncoderTokenizer(vocab_file=str(tmp_path / "vocab.txt"))
    assert made.convert_ids_to_tokens([159, 160]) == ["\u2028", "more "]


def test_special_tokens_may_have_other_names(tmp_path):
    words = VOCABULARY.read_text(encoding="utf-8").replace("[CLS]", "<s>").replace("[SEP]", "</s>")
    (tmp_path / "vocab.txt").write_text(words, encoding="utf-8")
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"cls_token": {"content": "<s>"}, "sep_token": "[SEP]"}), encoding="utf-8"
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"sep_token": "</s>", "doc_maxlen": 9, "other": 3}), encoding="utf-8"
    )
    made = FLMRContextEncoderTokenizer.from_pretrained(tmp_path)
    assert made("paris", return_tensors=None)["input_ids"] == [4, 2, 117, 5, 0, 0, 0, 0, 0]
    assert (made.cls_token, made.sep_token, made.doc_maxlen) == ("<s>", "</s>", 9)
    with pytest.raises(UserError, match=r"vocab\.txt lacks the tokens \[SEP\], \[CLS\]$"):
        FLMRContextEncoderTokenizer(vocab_file=str(tmp_path / "vocab.txt"))


def test_without_a_vocabulary_there_is_no_tokenizer():
    with pytest.raises(UserError, match=r"^a tokenizer needs a vocab\.txt or a tokenizer\.json$"):
        FLMRContextEncoderTokenizer()


def test_lengths_are_kept_as_attributes_and_have_the_originals_defaults():
    plain = FLMRContextEncoderTokenizer(vocab_file=str(VOCABULARY))
    assert (plain.doc_maxlen, plain.max_tokens) == (512, 512)
    plain = FLMRQueryEncoderTokenizer(vocab_file=str(VOCABULARY))
    assert (plain.query_maxlen, plain.max_tokens, plain.attend_to_mask_tokens) == (32, 32, False)
    assert (query(query_maxlen=9).query_maxlen, query(query_maxlen=9).max_tokens) == (9, 9)
    assert (context().doc_maxlen, context().model_max_length) == (64, 512)


# -- files


def test_what_is_saved_is_read_back(tmp_path):
    before = context(doc_maxlen=11)
    files = before.save_pretrained(tmp_path)
    assert str(tmp_path / "vocab.txt") in files
    assert len(files) == len(set(files)) == len(list(tmp_path.iterdir()))
    after = FLMRContextEncoderTokenizer.from_pretrained(tmp_path)
    assert after.doc_maxlen == 11
    assert after.name_or_path == str(tmp_path)
    assert after("paris is")["input_ids"].tolist() == before("paris is")["input_ids"].tolist()
    # From its vocabulary alone it is the same, too.
    (tmp_path / "tokenizer.json").unlink()
    again = FLMRContextEncoderTokenizer.from_pretrained(tmp_path)
    assert again("paris is")["input_ids"].tolist() == before("paris is")["input_ids"].tolist()


def test_vocabularies_of_word_pieces_alone_are_written(tmp_path):
    text = VOCABULARY.read_text(encoding="utf-8")
    for prefix, name in ((None, "vocab.txt"), ("a", "a-vocab.txt")):
        assert context().save_vocabulary(str(tmp_path), prefix) == (str(tmp_path / name),)
        assert (tmp_path / name).read_text(encoding="utf-8") == text
    (tmp_path / "other").mkdir()
    other = FLMRContextEncoderTokenizer.from_pretrained(OTHER)
    assert other.save_vocabulary(str(tmp_path / "other")) == ()
    assert not list((tmp_path / "other").iterdir())
    files = other.save_pretrained(str(tmp_path / "other"), filename_prefix="b")
    assert {file.rsplit("/", 1)[1] for file in files} >= {"b-tokenizer_config.json"}
    files = context().save_pretrained(str(tmp_path / "prefixed"), filename_prefix="b")
    assert str(tmp_path / "prefixed" / "b-vocab.txt") in files


def test_a_subfolder_that_is_named_is_the_only_one_looked_into(tmp_path):
    shutil.copytree(FOLDER / "context_tokenizer", tmp_path, dirs_exist_ok=True)
    shutil.copytree(FOLDER / "context_tokenizer", tmp_path / "mine")
    config = json.loads((tmp_path / "mine" / "tokenizer_config.json").read_text())
    (tmp_path / "mine" / "tokenizer_config.json").write_text(json.dumps(config | {"doc_maxlen": 7}))
    named = FLMRContextEncoderTokenizer.from_pretrained(tmp_path, subfolder="mine")
    assert named.doc_maxlen == 7
    assert FLMRContextEncoderTokenizer.from_pretrained(tmp_path).doc_maxlen == 64
    with pytest.raises(UserError) as error:
        FLMRContextEncoderTokenizer.from_pretrained(tmp_path, subfolder="other")
    assert str(error.value) == (
        f"{tmp_path} has no tokenizer in other/ (a tokenizer.json or a vocab.txt): copy that "
        "folder from where the checkpoint came from"
    )
    (tmp_path / "mine").rename(tmp_path / "context_tokenizer")
    assert FLMRContextEncoderTokenizer.from_pretrained(tmp_path).doc_maxlen == 7


@pytest.mark.parametrize("name", ["nobody/nothing", "./gone", "/gone/away", "~/gone"])
def test_a_tokenizer_that_is_nowhere_is_named(name):
    with pytest.raises(UserError, match=f"{name} has no tokenizer in context_tokenizer/"):
        FLMRContextEncoderTokenizer.from_pretrained(name)


def test_a_tokenizer_in_a_file_is_none(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="file has no tokenizer in query_tokenizer/"):
        FLMRQueryEncoderTokenizer.from_pretrained(tmp_path / "file")


@pytest.mark.parametrize("file", ["special_tokens_map.json", "tokenizer_config.json"])
def test_values_of_a_tokenizer_that_are_not_json_are_named(tmp_path, file):
    shutil.copytree(FOLDER / "query_tokenizer", tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=f"^{tmp_path / file} is not JSON$"):
        FLMRQueryEncoderTokenizer.from_pretrained(tmp_path)


def test_what_calls_for_the_original_pass_is_no_option_of_the_tokenizer():
    passed = {
        "_from_auto": True,
        "_commit_hash": None,
        "trust_remote_code": True,
        "use_fast": False,
        "text_config": object(),
        "local_files_only": True,
        "revision": "main",
    }
    made = FLMRBertContextEncoderTokenizer.from_pretrained(FOLDER, **passed, doc_maxlen=9)
    assert made.doc_maxlen == 9
    assert not passed.keys() & made.init_kwargs.keys()
