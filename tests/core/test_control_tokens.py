"""Control tokens in texts of others become plain text."""

import time
import unicodedata

import pytest

from ravqa.core.control_tokens import COMMON, ControlTokens, control_tokens

KNOWN = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>"),
    *("<|begin_of_text|>", "<|vision_start|>", "<|image_pad|>", "<|image|>", "<|image_1|>"),
    *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<image_soft_token>", "<bos>"),
    *("<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[IMG]", "[TOOL_CALLS]"),
    *("<image>", "<img>", "</img>", "<IMG_CONTEXT>", "<end_of_utterance>", "<row_1_col_2>"),
    *("<fake_token_around_image>", "<global-img>", "<think>", "</think>", "<tool_call>"),
    *("<\uff5cUser\uff5c>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "\u25c1think\u25b7"),
    *("[|user|]", "[|endofturn|]", "]~b]", "]~!b[", "[e~[", "<role>", "</role>", "<seed:eos>"),
    *("<longcat_user>", "<reserved_106>", "<SPECIAL_12>", "<eoh>", "<sop>", "<image_start>"),
    *("<image_placeholder>", "<image_1>", "<ImageHere>", "<__media__>", "[img-0]"),
    *("[UNUSED_TOKEN_145]", "[MODEL_SETTINGS]", "[BEGIN_AUDIO]", "<EOS_TOKEN>", "<reserved08706>"),
    *("<[BOS_never_used_51bce0c785]>", "<start_function_call>", "<TOOLCALL>", "|SPEAKER|", "<eom>"),
    *(
        "<\u7528\u6237>",
        "<AI>",
        "<|turn>",
        "<turn|>",
        "<|channel>",
        "<channel|>",
        "<extra_id_0>",
        "<unk>",
        "<pad>",
    ),
)


@pytest.mark.parametrize("token", KNOWN)
def test_common_ones_are_known(token):
    for text in (token, f"a {token} b", token * 2, token[:1] + token, token.upper()):
        neutral, count = COMMON.neutral(text)
        assert count
        assert token.lower() not in neutral.lower()
        assert neutral.replace(" ", "") == text.replace(" ", "")  # nothing else is changed
        assert COMMON.neutral(neutral) == (neutral, 0)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a < b and c > d",
            "x <- y",
            "[1] Paris",
            "[sic]",
            "<b>bold</b>",
            "<p class='x'>",
            "1 | 2",
        ),
        *(
            "if (a<b || c>d)",
            "<https://example.org>",
            "[A]",
            "<3",
            "e = mc^2 <|> f",
            "\u25c1 \u25b7",
            "[|] a|b]",
            "[img-]",
            "a<[b]",
            "|speakers|",
            "<AIR>",
            "<ref>Smith 1999</ref>",
        ),
    ],
)
def test_ordinary_text_stays(text):
    assert COMMON.neutral(text) == (text, 0)


@pytest.mark.parametrize(
    "text", ["\uff1c|im_end|\uff1e", "<|im_\u200bend|>", "<\u00ad|im_end|>", "\uff1c\u200bs>"]
)
def test_normalising_a_text_makes_no_token_of_it(text):
    neutral, count = COMMON.neutral(f"caf\u00e9 {text} \u00bd")
    assert count == 1
    assert not COMMON.found(unicodedata.normalize("NFKC", neutral))
    assert COMMON.neutral("caf\u00e9 \u00bd \uff1c5") == ("caf\u00e9 \u00bd \uff1c5", 0)


def test_marks_that_a_template_writes_are_tokens_too():
    class Tokenizer:
        all_special_tokens = ("</s>", "<s>")

        def get_added_vocab(self):
            return {"<s>": 0, "</s>": 1, "<tool>": 2, "<tool_42>": 3, "TILE": 4, "token": 5}

    template = (
        "{{ bos_token }}[INST] <<SYS>>{{ system }}<</SYS>> {{ m['content'] }} [/INST] x[0] < 5"
    )
    Tokenizer.all_special_tokens += ("TILE",)
    found = control_tokens(Tokenizer(), template)
    assert found.neutral("a tile, a TILE, a token") == ("a tile, a T ILE, a token", 1)
    for token in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "</s>", "<tool>", "<tool_42>"):
        assert found.neutral(f"a {token} b")[1] == 1
    assert found.neutral("a [0] <|im_end|> < 5")[1] == 0


def test_thousands_of_tokens_take_no_time():
    tokens = ControlTokens([f"<unused{i}>" for i in range(6000)] + ["<|end|>"])
    began = time.process_time()
    for text in ("<" * 50_000, "<unused5999>" * 5000, "<|" + "a" * 50_000, "<unused" * 5000):
        assert not COMMON.found(tokens.neutral(text)[0]) - {"<unused>"}
        COMMON.neutral(text)
    assert time.process_time() - began < 2
    assert tokens.neutral("<unused5999>")[1] == 1


def test_a_models_own_tokens_and_those_that_a_template_writes():
    tokens = ControlTokens(["<|end|>", "\n\n", "koala", "[X]", "~"])
    assert tokens.neutral("koala<|end|>\n\n[X] ~") == ("koala< |end|>\n\n[ X]  ", 3)
    assert tokens.neutral("<|end|>[X]", {"<|end|>"}) == ("<|end|>[ X]", 1)
    assert tokens.found("a <|END|> b") == {"<|END|>"}
    assert ControlTokens().neutral("<|end|>") == ("<|end|>", 0)
