"""Marks that language models write around their answers: thinking, and special tokens.

Models write their thinking between marks of their own family before they answer. It is never part
of an answer, and thinking that breaks off is followed by none. All functions take linear time.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

from ravqa.core.texts import is_wordless

_WORDS = "think|thinking|thought|thoughts|reason|reasoning"
# Of models that answer in named parts (LLaVA-CoT), or are asked to.
_PARTS = "summary|caption|analysis|scratchpad|reflection|rationale"
# Of each family of models: how opening and closing mark are found, and how they are written. Tags
# may have a prefix: <seed:think>, <mm:think>.
_TAG = rf"(?:[\w.-]{{1,20}}:)?(?:{_WORDS}|{_PARTS})"
_PAIRS = {
    "tag": (rf"<{_TAG}\s{{0,3}}>", rf"</{_TAG}\s{{0,3}}>", "<think>", "</think>"),
    "magistral": (r"\[THINK\]", r"\[/THINK\]", "[THINK]", "[/THINK]"),
    "kimi": (
        *("\u25c1think\u25b7", "\u25c1/think\u25b7"),
        *("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ),
    "cohere": (
        *(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
        *("<|START_THINKING|>", "<|END_THINKING|>"),
    ),
    "openthinker": (
        *(rf"<\|(?:begin|start)_of_(?:{_WORDS})\|>", rf"<\|end_of_(?:{_WORDS})\|>"),
        *("<|begin_of_thought|>", "<|end_of_thought|>"),
    ),
    "apertus": (
        *(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
        *("<|inner_prefix|>", "<|inner_suffix|>"),
    ),
    "gemma": (r"<\|channel>(?:thought\b)?", r"<channel\|>", "<|channel>thought\n", "<channel|>"),
    "medgemma": (r"<unused94>(?:thought\b)?", r"<unused95>", "<unused94>thought\n", "<unused95>"),
    # gpt-oss; servers that drop its special tokens leave the words.
    "harmony": (
        r"<\|channel\|>(?:analysis|commentary)<\|message\|>|(?-i:\Aanalysis(?=[A-Z]))",
        r"(?:<\|channel\|>|assistant)final(?:<\|message\|>)?",
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
}
_MARK = re.compile(
    "|".join(f"(?P<open_{n}>{a})|(?P<close_{n}>{b})" for n, (a, b, *_) in _PAIRS.items()),
    re.IGNORECASE,
)

# Special tokens of chat templates, which a server with a wrong template leaves in its text. Those
# of a box enclose an answer.
_TOKEN = (
    r"(?:</?s>|<(?:[be]os|pad|unk|(?:start|end)_of_turn|end_of_utterance|\|turn|turn\|)>|\[/?INST\]"
    r"|<(?:extra_id_\d+|[be]os_token|0x0A)>|(?-i:\[(?:BOS|EOS|PAD|CLS|SEP|UNK)\])|\[end of text\]"
    r"|\[\|/?\w{1,30}\|\]"
    r"|<\|(?!begin_of_box|end_of_box)[\w ]{1,40}\|>|<\uff5c[^\uff5c<>\n]{1,40}\uff5c>)"
)
_BEGIN = re.compile(
    rf"\A(?:\s*{_TOKEN}(?:(?:assistant|model)(?=\s*\n|\s*{_TOKEN}|\s*\Z))?)+\s*", re.IGNORECASE
)
_END = re.compile(_TOKEN, re.IGNORECASE)
# The beginning of a token at the end of a text, where a limit of tokens has cut it in two.
_TORN = re.compile(r"<(?:\|[\w ]{0,40}\|?|/s?|end_of_\w{0,20})?\s*\Z", re.IGNORECASE)
# Marks around an answer; between them there may be none.
_EMPTY = re.compile(r"<\|(?:begin|end)_of_box\|>|</?answer>|\\boxed\{\s*\}", re.IGNORECASE)

# Calls of tools that a server has not taken out of the text: Hermes, Qwen and MiniMax; Llama 3 and
# Phi; FunctionGemma; Kimi; InternLM; DeepSeek; Gemma; Mistral, Granite; gpt-oss.
_CALL = re.compile(
    r"<((?:[\w.-]{1,20}:)?(?:tool_calls?|function_calls?|tool_use|tool_code|invoke))"
    r"(?:\s[^<>\n]{0,200})?>.*?(?:</\1>|\Z)"
    r"|<function=[\w.-]{1,60}>.*?(?:</function>|\Z)"
    r"|<start_function_call>.*?(?:<end_function_call>|\Z)"
    r"|<\|tool_calls_section_begin\|>.*?(?:<\|tool_calls_section_end\|>|\Z)"
    r"|<\|action_start\|>.*?(?:<\|action_end\|>|\Z)"
    r"|<\uff5ctool\u2581calls\u2581begin\uff5c>.*?(?:<\uff5ctool\u2581calls\u2581end\uff5c>|\Z)"
    r"|```tool_code\b.*?(?:```|\Z)"
    r"|(?:\[TOOL_CALLS\]|<\|python_tag\|>|<\|tool_call(?:_begin)?\|>).*\Z"
    r"|(?:<\|channel\|>)?commentary to=.*\Z",
    re.IGNORECASE | re.DOTALL,
)


BOXES = frozenset({"<|begin_of_box|>", "<|end_of_box|>"})
"""Special tokens around an answer (GLM-V): they are part of what the model says."""


class Thinking(NamedTuple):
    """A generation, split into answer and thinking.

    Attributes:
        answer: the text outside of the thinking, without white space before it.
        thinking: the text of the thinking, without its marks; blank if there is none.
        cut: the thinking does not end.
        start: position in the generation where the last part of the answer begins.
    """

    answer: str
    thinking: str
    cut: bool
    start: int


def split_thinking(text: str, *, opened: bool = False) -> Thinking:
    """Split a generation into its answer and its thinking.

    A closing mark without an opening one ends thinking that began in the prompt.

    Args:
        opened: the prompt ends within an open mark, so that the text begins with thinking.

    >>> split_thinking("<think>a bear?</think>\\n\\nA koala.")
    Thinking(answer='A koala.', thinking='a bear?', cut=False, start=24)
    >>> split_thinking("<think>It could be a").cut
    True
    """
    answer: list[str] = []
    thinking: list[str] = []
    within, start, found = ("any" if opened else ""), 0, opened
    for mark in _MARK.finditer(text):
        side, _, pair = str(mark.lastgroup).partition("_")
        if side == "open" and not within:
            answer.append(text[start : mark.start()])
            within, start, found = pair, mark.end(), True
        elif side == "open" and within == "any" and not text[start : mark.start()].strip():
            within, start = pair, mark.end()  # a model that writes the mark once more
        elif side == "close" and within in (pair, "any"):
            thinking.append(text[start : mark.start()])
            within, start = "", mark.end()
        elif side == "close" and not within:
            thinking = [text[: mark.start()]]
            answer, start, found = [], mark.end(), True
    if within:
        thinking.append(text[start:])
        start = len(text)
    else:
        rest = text[start:]
        if found:
            start += len(rest) - len(rest.lstrip())
        answer.append(text[start:])
    whole = "".join(answer)
    return Thinking(
        whole.lstrip() if found else whole,
        "\n".join(part.strip() for part in thinking if part.strip()),
        bool(within),
        start,
    )


def open_thinking(prompt: str) -> str:
    """Return the mark that closes the thinking within which a prompt ends; blank if it does not.

    >>> open_thinking("user: What is it?\\nassistant: <think>\\n")
    '</think>'
    """
    mark = next(iter(deque(_MARK.finditer(prompt), maxlen=1)), None)
    if mark is None or prompt[mark.end() :].strip():
        return ""
    side, _, pair = str(mark.lastgroup).partition("_")
    if side == "close":
        return ""
    return mark.group().replace("<", "</", 1) if pair == "tag" else _PAIRS[pair][3]


def has_thinking_mark(text: str) -> bool:
    """Return whether a text has a mark that opens or closes thinking."""
    return _MARK.search(text) is not None


def may_open_thinking(text: str) -> bool:
    """Return whether a text, continued, may begin with a mark that opens thinking.

    >>> may_open_thinking(" <th"), may_open_thinking("<b>")
    (True, False)
    """
    begun = text.lstrip().lower()
    tags = re.fullmatch(r"<(?:[\w.-]{1,20}(?::\w*)?\s{0,3})?", begun)
    return tags is not None or any(p[2].lower().startswith(begun) for p in _PAIRS.values())


def without_tokens(text: str) -> str:
    """Return a text up to the first special token after its beginning, without those before it.

    Calls of tools are left out.
    """
    text = _BEGIN.sub("", _CALL.sub("", text))
    return _TORN.sub("", _END.split(text, maxsplit=1)[0])


def bare(text: str) -> str:
    """Return what a text says: without thinking, special tokens, boxes, and calls of tools.

    >>> bare("<think>a bear?</think> a koala</s>")
    'a koala'
    """
    said = without_tokens(split_thinking(text).answer)
    return re.sub("|".join(map(re.escape, BOXES)), "", said).strip()


def is_no_answer(text: str) -> bool:
    """Return whether a text without its thinking says nothing.

    It is blank, or holds only marks and calls of tools.
    """
    return is_wordless(without_tokens(_EMPTY.sub("", text)))
