"""Control tokens in texts of others: in a prompt they are text, and never speak as the system.

A passage or question may contain what a model reads as a control token: the end of a turn, the
beginning of another, the place of an image. A space after its first character makes it plain text,
for every tokenizer, processor and server.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any

# The control tokens and image marks of common families, for servers whose tokenizer is not known.
_COMMON = "|".join(
    (
        r"<\|[^|<>\n]{1,60}\|>",  # ChatML, Llama 3 and 4, Phi, GLM, Qwen, gpt-oss
        r"<\uff5c[^\uff5c<>\n]{1,60}\uff5c>",  # DeepSeek
        r"\u25c1/?\w{1,60}\u25b7",  # Kimi
        r"<\|?/?(?:turn|channel|tool|tool_call|tool_response|image|audio|video|think)\|?>",
        r"</?s>|<(?:bos|eos|pad|unk|mask|cls|sep)>|<<?/?SYS>>?",
        r"</?(?:start|end)_of_(?:turn|image|audio|utterance)>|<end_of_utterance>",
        r"</?(?:image|img|img_context|video|audio|vision|boi|eoi|boa|eoa|global-img)>",
        r"<(?:image_soft_token|audio_soft_token|image_pad|fake_token_around_image|grounding)>",
        r"<(?:row_\d+_col_\d+|extra_id_\d+|unused_?\d+|loc_?\d+|seg\d+|im_patch|im_start|im_end)>",
        r"</?(?:[\w.-]{1,20}:)?(?:think|thinking|thought|tool_call|tool_response|tool_calls)>",
        r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK|IMG|IMG_BREAK"
        r"|IMG_END|PREFIX|SUFFIX|MIDDLE|ARGS|CALL_ID|MODEL_SETTINGS|TOOL_CONTENT|(?:BEGIN_)?AUDIO"
        r"|gMASK|sMASK|UNUSED_TOKEN_\d+)\]",
        r"<(?:BOS|EOS|PAD|UNK|MASK|CLS|SEP)_TOKEN>|<eo[mt]>|<\[[^\[\]<>\n]{1,60}\]>",  # Seed
        r"<(?:start|end)_function_(?:call|response|declaration)>|</?(?:TOOLCALL|AVAILABLE_TOOLS)>",
        r"<reserved\d+>|\|(?:SPEAKER|NEWLINE)\||<\u7528\u6237>|<AI>",  # Chameleon, Fuyu, MiniCPM
        r"\[\|/?\w{1,30}\|\]|\]~!?b[\[\]]|\[e~\[|</?role>",  # EXAONE, MiniMax, Ling
        r"<seed:[\w/]{1,30}>|<longcat_\w{1,30}>|<reserved_(?:token_)?\d+>|<SPECIAL_\d+>|<[es]o[adhp]>",
        r"<(?:image|img|video)_(?:start|end|newline|placeholder|\d+)>|<(?:ImageHere|video_soft_token)>",
        r"<__media__>|\[img-\d+\]",  # llama.cpp, Ollama
    )
)
# How the literal text of a chat template writes marks that are no tokens of the vocabulary.
_LIKE_A_MARK = re.compile(r"\[/?[A-Z_]{3,30}\]|<\|[\w ]{1,60}\|>|<</?SYS>>|</?[a-z]+_of_[a-z]+>")


class Mark(str):
    """A control token that is meant as one; in any other string its characters are plain text."""

    __slots__ = ()


class ControlTokens:
    """The texts that a model reads as control tokens or as places of images.

    Letter case is ignored, as some tokenizers ignore it, but for words.
    """

    def __init__(
        self, tokens: Iterable[str] = (), *, words: Iterable[str] = (), common: bool = False
    ):
        """Collect the tokens.

        Args:
            tokens: of a model's vocabulary; those that are words or white space are left out.
            words: control tokens that are words, such as Aya Vision's TILE.
            common: those of common families too.
        """
        # Added words and white space are ordinary text.
        own = {token.strip() for token in tokens if not token.strip().isalnum()} - {""}
        longest_first = sorted(own, key=lambda token: (-len(token), token))
        # <unused0> to <unused6241> are one pattern: thousands would be slow.
        numbered = (re.sub(r"\d+", r"\\d+", re.escape(token)) for token in longest_first)
        exact = sorted({f"(?-i:{re.escape(word)})" for word in words}, key=len, reverse=True)
        patterns = [*dict.fromkeys(numbered), *exact, *([_COMMON] if common else [])]
        self._pattern = re.compile("|".join(patterns), re.IGNORECASE) if patterns else None

    def found(self, text: str) -> frozenset[str]:
        """Return the control tokens in a text."""
        if self._pattern is None:
            return frozenset()
        return frozenset(match.group() for match in self._pattern.finditer(text))

    def neutral(self, text: str, own: Collection[str] = ()) -> tuple[str, int]:
        """Return a text whose control tokens are plain text, and how many those were.

        Args:
            own: tokens that stay: a prompt's template has them.

        >>> ControlTokens(["<|im_end|>"]).neutral("a<|im_end|>b")
        ('a< |im_end|>b', 1)
        """
        if self._pattern is None:
            return text, 0
        count = 0

        def broken(match: re.Match[str]) -> str:
            nonlocal count
            found = match.group()
            if found in own:
                return found
            count += 1
            return f"{found[0]} {found[1:]}" if len(found) > 1 else " "

        for _ in range(8):  # what is left and right of a token may be another one
            before = count
            text = self._pattern.sub(broken, text)
            # Tokenizers may normalise a text before they look for tokens in it.
            folded = text if text.isascii() else _folded(text)
            if folded != text and self.found(folded) - set(own):
                text = folded
            elif count == before:
                break
        return text, count

    def count(self, texts: Iterable[str]) -> int:
        """Return how many control tokens are in texts that a tokenizer will read as plain text."""
        return sum(self.neutral(text)[1] for text in texts)


def _folded(text: str) -> str:
    """Return a text as tokenizers may normalise it: NFKC, without characters of no width."""
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", visible)


COMMON = ControlTokens(common=True)
"""The control tokens of common families of models."""


def control_tokens(
    tokenizer: Any, template: str | None, marks: Iterable[str] = ()
) -> ControlTokens:
    """Return the control tokens of a model.

    Args:
        tokenizer: all tokens that were added to its vocabulary count, special ones or not. It may
            be a processor, or a tokenizer of the package tokenizers.
        template: the chat template, which may write marks that are no tokens.
        marks: texts that stand for images, video or sound.
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    added: list[Any] = []
    special: list[Any] = []
    if hasattr(inner, "get_added_vocab"):
        added, special = [*inner.get_added_vocab()], [*inner.all_special_tokens]
    elif hasattr(inner, "get_added_tokens_decoder"):
        tokens = inner.get_added_tokens_decoder().values()
        added, special = [t.content for t in tokens], [t.content for t in tokens if t.special]
    written = _LIKE_A_MARK.findall(template or "")
    texts = [token for token in (*added, *special) if isinstance(token, str)]
    words = [token for token in special if isinstance(token, str) and token.isalnum()]
    return ControlTokens([*texts, *written, *marks], words=words)
