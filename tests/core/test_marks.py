"""Thinking and special tokens around answers."""

import time

import pytest

from ravqa.core.marks import (
    is_no_answer,
    may_open_thinking,
    open_thinking,
    split_thinking,
    without_tokens,
)

FAMILIES = {
    "<think>": "</think>",
    "<THINK>": "</THINK>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<think >": "</think >",
    "<scratchpad>": "</scratchpad>",
    "<CAPTION>": "</CAPTION>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "<mm:think>": "</mm:think>",
    "[THINK]": "[/THINK]",
    "\u25c1think\u25b7": "\u25c1/think\u25b7",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
    "<unused94>thought": "<unused95>",
    "<|channel|>analysis<|message|>": "<|end|><|start|>assistant<|channel|>final<|message|>",
}


@pytest.mark.parametrize(("opening", "closing"), FAMILIES.items())
def test_thinking_is_set_apart_in_every_familys_marks(opening, closing):
    whole = f"{opening}\nA bear? No.\n{closing}\n\nA koala."
    found = split_thinking(whole)
    assert (found.answer, found.cut) == ("A koala.", False)
    assert found.thinking.startswith("A bear? No.")
    assert whole[found.start :] == "A koala."
    begun_in_the_prompt = split_thinking(whole.removeprefix(opening), opened=True)
    assert begun_in_the_prompt.answer == "A koala."
    assert split_thinking(whole.removeprefix(opening)).answer == "A koala."
    cut = split_thinking(f"{opening}\nA bear? N")
    assert (cut.answer, cut.cut) == ("", True)
    assert split_thinking("\nA bear? N", opened=True).cut
    assert open_thinking(f"user: What is it?\nassistant:{opening}\n") == closing
    assert open_thinking(f"{opening}a{closing}assistant:") == ""
    assert open_thinking(f"{opening} assistant:") == ""  # the mark is part of a text
    assert all(may_open_thinking(opening[:n]) for n in range(len(opening)))


@pytest.mark.parametrize(
    ("text", "answer", "thinking", "cut"),
    [
        ("Paris", "Paris", "", False),
        (" Paris\n", " Paris\n", "", False),
        ("a < b > c [x]", "a < b > c [x]", "", False),
        ("<b>Paris</b>", "<b>Paris</b>", "", False),
        ("analysis of water", "analysis of water", "", False),
        ("analysisThe user asks", "", "The user asks", True),
        ("<think></think>Paris", "Paris", "", False),
        ("<think>a</think>Paris<think>b</think>", "Paris", "a\nb", False),
        ("<think>a<think>b</think>Paris", "Paris", "a<think>b", False),
        ("<think>a[/THINK]b</think>Paris", "Paris", "a[/THINK]b", False),
        ("a</think>b</think>Paris", "Paris", "a</think>b", False),
        ("Paris <think>or", "Paris ", "or", True),
        ("", "", "", False),
    ],
)
def test_what_is_answer_and_what_is_thinking(text, answer, thinking, cut):
    found = split_thinking(text)
    assert (found.answer, found.thinking, found.cut) == (answer, thinking, cut)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant", ""),
        ("<s><|im_start|>assistant", ""),
        ("<start_of_turn>model\n<end_of_turn>", ""),
        ("<|turn>model\nPosters<turn|>", "Posters"),
        ("<|im_start|>assistant\nassistant", "assistant"),
        ("model<end_of_turn>", "model"),
        ("assistant", "assistant"),
        ("</s>", ""),
        ("koala</s>", "koala"),
        ("<\uff5cend\u2581of\u2581sentence\uff5c>", ""),
        ("<pad><extra_id_0> koala<extra_id_1> b", "koala"),
        ("koala[|endofturn|]", "koala"),
        ("koala[PAD][PAD]", "koala"),
        ("koala [end of text]", "koala "),
        ("koala<unk>", "koala"),
        ("koala<0x0A>", "koala"),
        ("[pad] thai", "[pad] thai"),
        # what a limit has cut in two
        ("koala<", "koala"),
        ("koala<|im_e", "koala"),
        ("koala<|im_end|", "koala"),
        ("koala</s", "koala"),
        ("koala<end_of_t", "koala"),
        ("<|im_st", ""),
        ("a < b", "a < b"),
        ("koala <b", "koala <b"),
        # calls of tools beside an answer
        ('koala<tool_call>{"name": "search"}</tool_call>', "koala"),
    ],
)
def test_special_tokens_are_no_part_of_an_answer(text, kept):
    assert without_tokens(text) == kept
    assert is_no_answer(text) == (kept == "")


@pytest.mark.parametrize(
    "text",
    [
        *("<|begin_of_box|> <|end_of_box|>", "<answer></answer>", r"\boxed{ }", "<answer>\n</s>"),
        '<tool_call>\n{"name": "search"}\n</tool_call>',
        '<tool_call>{"name": "a"}</tool_call> <tool_call>{"name": "b"',
        '[TOOL_CALLS] [{"name": "search"}]</s>',
        '<minimax:tool_call><invoke name="s"><parameter name="q">x</parameter></invoke>',
        '<function_calls>\n<invoke name="search">\n</invoke>\n</function_calls>',
        '<invoke name="search"><parameter>a',
        '<function=search>{"q": "koala"}</function>',
        "<start_function_call>call:search{q:koala}<end_function_call>",
        '<|python_tag|>search(query="koala")',
        '<|tool_call|>[{"name": "search"}]',
        '<|action_start|><|plugin|>{"name": "search"}<|action_end|>',
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.s:0<|tool_call_argument_begin|>{}",
        "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5c",
        "```tool_code\nsearch('koala')\n```",
        '<|channel|>commentary to=functions.search <|constrain|>json<|message|>{"q": 1}<|call|>',
        'commentary to=functions.search json{"q": "koala"}',
    ],
)
def test_marks_around_no_answer_are_none(text):
    assert is_no_answer(text)
    assert not is_no_answer(f"7 {text}")


@pytest.mark.parametrize(
    "text",
    [
        *("<think>", "</think>", "[THINK", "<|channel", "<" * 9, "<a:", "<tool_call>"),
        *(
            "<invoke a",
            "<function=",
            "<|action_start|>",
            "```tool_code ",
            "< ",
            "<|",
            "<think ",
            "[|a",
        ),
    ],
)
def test_endless_marks_take_no_time(text):
    began = time.process_time()
    split_thinking(text * 10_000)
    is_no_answer(text * 10_000)
    open_thinking(text * 10_000)
    assert time.process_time() - began < 2
