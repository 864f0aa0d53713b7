"""Tokenizers of queries and documents.

Both put ". " before the text. With BERT's vocabulary the dot is then replaced by the marker of
queries or documents, and a query is padded with [MASK] tokens, which are not attended to but whose
vectors count in the score. A vocabulary without the markers keeps the dot and plain padding.
"""

# transformers and torch are not followed by mypy, so that their classes are Any.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BatchEncoding, PretrainedConfig, PreTrainedTokenizerFast
from transformers.utils import cached_file

from ravqa.core.checkpoints import load_tokenizer
from ravqa.core.control_tokens import Mark
from ravqa.core.errors import UserError

_PREFIX = ". "
_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_TOKEN_NAMES = (*_BERT_TOKENS, "bos_token", "eos_token")
# Values of a saved tokenizer_config.json that are kept; the rest describes how to rebuild classes
# of other versions of transformers.
_KEPT = (*_TOKEN_NAMES, "model_max_length", "do_lower_case", "strip_accents")


@dataclass(slots=True)
class PiecesEncoding:
    """The tokens of one text made of pieces, with what `tokenizers.Encoding` says of a plain one.

    Attributes:
        offsets: start and end of each token in the pieces joined by spaces, shifted by the prefix;
            (0, 0) for tokens that are no part of it.
        word_ids: the word of each token; None for marks and other special tokens.
        pieces: the piece of each token; None for special tokens that are no mark.
        overflowing: whether the text was cut.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    pieces: list[int | None]
    attention_mask: list[int]
    overflowing: bool

    def word_to_chars(self, word: int) -> tuple[int, int]:
        """Return the start and end of a word."""
        own = [place for place, i in zip(self.offsets, self.word_ids, strict=True) if i == word]
        return own[0][0], own[-1][1]


class _FLMRTokenizer(PreTrainedTokenizerFast):
    """The common base of the tokenizers of queries and documents."""

    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "vocab.txt",
        "tokenizer_file": "tokenizer.json",
    }
    folder_name: ClassVar[str]
    _marker: ClassVar[str]
    _length_name: ClassVar[str]
    _default_length: ClassVar[int]

    def __init__(
        self,
        vocab_file: str | None = None,
        tokenizer_file: str | None = None,
        tokenizer_object: Any = None,
        added_tokens: Mapping[int, str] | None = None,
        **kwargs: Any,
    ):
        if tokenizer_object is None and tokenizer_file is not None:
            tokenizer_object = Tokenizer.from_file(str(tokenizer_file))
        if tokenizer_object is None and vocab_file is not None:
            tokenizer_object = _wordpiece(Path(vocab_file), kwargs)
            _add_tokens(tokenizer_object, added_tokens or {}, Path(vocab_file))
        if tokenizer_object is None:
            raise UserError("a tokenizer needs a vocab.txt or a tokenizer.json")
        if isinstance(tokenizer_object.model, models.WordPiece):
            kwargs = {**_BERT_TOKENS, **kwargs}
        tokenizer_object.no_truncation()
        tokenizer_object.no_padding()
        kwargs.setdefault(self._length_name, self._default_length)
        self._max_tokens = int(kwargs[self._length_name])
        self._marker_id: int | None = tokenizer_object.token_to_id(self._marker)
        super().__init__(tokenizer_object=tokenizer_object, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load from a checkpoint's folder, from the tokenizer's own folder, or from the hub.

        Args:
            pretrained_model_name_or_path: folder or hub name.
            args: not used; accepted for calls written for the original.
            kwargs: options of the tokenizer (`query_maxlen`, `doc_maxlen`, ...), of the hub, and
                `subfolder`.

        Raises:
            UserError: no tokenizer is found.
        """
        hub = {k: kwargs.pop(k) for k in _HUB_OPTIONS if k in kwargs}
        subfolder = kwargs.pop("subfolder", None)
        for name in ("_from_auto", "_commit_hash", "trust_remote_code", "use_fast", "text_config"):
            kwargs.pop(name, None)  # AutoTokenizer and the original's calls pass these
        name = str(pretrained_model_name_or_path)
        folder = _find_folder(name, subfolder or cls.folder_name, subfolder is None, hub)
        if folder is None:
            raise UserError(
                f"{name} has no tokenizer in {subfolder or cls.folder_name}/ (a tokenizer.json or "
                "a vocab.txt): copy that folder from where the checkpoint came from"
            )
        tokenizer = cls(**{**_read_folder(folder), **kwargs})
        tokenizer.name_or_path = name
        return tokenizer

    @property
    def marks(self) -> bool:
        """Whether the vocabulary has the marker token, as BERT's does."""
        return self._marker_id is not None

    @property
    def prefix_length(self) -> int:
        """Number of characters put before a text, by which its tokens' offsets are shifted."""
        return len(_PREFIX)

    @property
    def max_tokens(self) -> int:
        """The maximum input length in tokens; longer texts are cut."""
        return self._max_tokens

    def first_token_id(self, text: str) -> int:
        """Return the id of the first word-piece of a text, without special tokens."""
        return int(self._tokenizer.encode(text, add_special_tokens=False).ids[0])

    def _encode_texts(
        self,
        texts: Sequence[str],
        padding: Any,
        truncation: Any,
        max_length: int | None,
        **kwargs: Any,
    ) -> BatchEncoding:
        length = max_length or self._max_tokens
        kwargs.setdefault("split_special_tokens", True)  # [SEP] and [MASK] in a text are text
        encoding = super().__call__(
            [_PREFIX + text for text in texts],
            padding=padding,
            truncation=truncation,
            max_length=length if truncation or padding == "max_length" else None,
            **kwargs,
        )
        if self._marker_id is not None:
            for ids in encoding["input_ids"]:
                ids[1] = self._marker_id
        encoding.truncated = [bool(e.overflowing) for e in encoding.encodings]
        return encoding

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        *,
        padding: Any = "max_length",
        truncation: Any = "longest_first",
        max_length: int | None = None,
        return_tensors: Any = "pt",
        add_special_tokens: bool = True,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Return token ids and masks of one text or several.

        The result's attribute `truncated` says for each text whether it was cut.

        Args:
            text: a string, or a list of strings.
            text_pair: not supported.
            padding: "max_length", "longest" (or True), or False.
            truncation: False keeps longer texts whole.
            max_length: in tokens; None for the checkpoint's own.
            return_tensors: "pt", "np", or None for lists.
            add_special_tokens: False gives the plain word-pieces of the text.
            kwargs: further options of transformers' tokenizers.
        """
        if not add_special_tokens or text_pair is not None:
            plain: Any = super().__call__(
                text, text_pair, add_special_tokens=add_special_tokens, **kwargs
            )
            return plain
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        if not texts:
            return _no_rows(max_length or self._max_tokens, return_tensors)
        encoding = self._encode_texts(texts, padding, truncation, max_length, **kwargs)
        self._fill(encoding)
        truncated = encoding.truncated
        if single and return_tensors is None:
            encoding = BatchEncoding({k: v[0] for k, v in encoding.items()}, encoding.encodings)
        elif return_tensors is not None:
            encoding = encoding.convert_to_tensors(return_tensors)
        encoding.truncated = truncated
        return encoding

    def missing(self, marks: Sequence[Mark], size: int) -> list[Mark]:
        """Return the marks that the vocabulary lacks, or that a model of `size` tokens lacks."""
        ids = {mark: self._tokenizer.token_to_id(mark) for mark in marks}
        return [mark for mark, number in ids.items() if number is None or number >= size]

    def encode_pieces(
        self,
        texts: Sequence[Sequence[str]],
        *,
        padding: Any = "max_length",
        return_tensors: Any = "pt",
    ) -> BatchEncoding:
        """Return token ids and masks of texts in pieces; longer ones are cut.

        The result has the attributes `truncated`, as that of a call, and `pieces`, a
        `PiecesEncoding` of each text.

        Args:
            texts: the pieces of each text in order: plain text, or a `Mark` of the vocabulary.
            padding: "max_length", "longest" (or True), or False.
            return_tensors: "pt", "np", or None for lists.
        """
        rows = [self._joined(pieces) for pieces in texts]
        encoding = self.pad(
            {
                "input_ids": [row.ids for row in rows],
                "attention_mask": [row.attention_mask for row in rows],
            },
            padding=padding,
            max_length=self._max_tokens if padding == "max_length" else None,
        )
        self._fill(encoding)
        for row, mask in zip(rows, encoding["attention_mask"], strict=True):
            more = len(mask) - len(row.ids)
            row.attention_mask = list(mask)
            row.offsets += [(0, 0)] * more
            row.word_ids += [None] * more
            row.pieces += [None] * more
        made = BatchEncoding(dict(encoding), tensor_type=return_tensors)
        made.truncated = [row.overflowing for row in rows]
        made.pieces = rows
        return made

    def _joined(self, pieces: Sequence[str]) -> PiecesEncoding:
        """Return the tokens of a text in pieces, cut at the limit and not padded."""
        *before, last = self._encode_texts([""], False, False, None)["input_ids"][0]
        nowhere = (0, 0)
        tokens: list[tuple[int, tuple[int, int], int | None, int | None]]
        tokens = [(number, nowhere, None, None) for number in before]
        start, words = self.prefix_length, 0
        for i, piece in enumerate(pieces):
            if isinstance(piece, Mark):
                number = self._tokenizer.token_to_id(piece)
                tokens.append((number, (start, start + len(piece)), None, i))
            else:
                [found] = (
                    super()
                    .__call__([piece], add_special_tokens=False, split_special_tokens=True)
                    .encodings
                )
                for number, (a, b), word in zip(
                    found.ids, found.offsets, found.word_ids, strict=True
                ):
                    tokens.append((number, (start + a, start + b), words + word, i))
                words += 1 + max(found.word_ids, default=-1)
            start += len(piece) + 1
        room = self._max_tokens - 1
        kept = [*tokens[:room], (last, nowhere, None, None)]
        ids, offsets, word_ids, own = (list(values) for values in zip(*kept, strict=True))
        return PiecesEncoding(ids, offsets, word_ids, own, [1] * len(ids), len(tokens) > room)

    def _fill(self, encoding: BatchEncoding) -> None:
        """Change the padding tokens, where a kind of tokenizer needs others."""

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write a vocab.txt, which the original reads, if the vocabulary is of word-pieces."""
        if not isinstance(self._tokenizer.model, models.WordPiece):
            return ()
        by_id = sorted(
            self._tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda p: p[1]
        )
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}vocab.txt"
        path.write_text("".join(f"{token}\n" for token, _ in by_id), encoding="utf-8")
        return (str(path),)

    def _save_pretrained(
        self,
        save_directory: Any,
        file_names: Any,
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> Any:
        files = super()._save_pretrained(
            save_directory, file_names, legacy_format=legacy_format, filename_prefix=filename_prefix
        )
        return tuple(files) + self.save_vocabulary(str(save_directory), filename_prefix)


class FLMRQueryEncoderTokenizer(_FLMRTokenizer):
    """Tokenizer of queries: `query_maxlen` tokens, padded with [MASK].

    The instruction counts towards the length, so that long questions are cut.
    """

    folder_name = "query_tokenizer"
    _marker = "[unused0]"
    _length_name = "query_maxlen"
    _default_length = 32

    def __init__(
        self, *args: Any, query_maxlen: int = 32, attend_to_mask_tokens: bool = False, **kwargs: Any
    ):
        super().__init__(
            *args,
            query_maxlen=query_maxlen,
            attend_to_mask_tokens=attend_to_mask_tokens,
            **kwargs,
        )
        self.query_maxlen = query_maxlen
        self.attend_to_mask_tokens = attend_to_mask_tokens

    def _fill(self, encoding: BatchEncoding) -> None:
        if not self.marks or self.mask_token_id is None:
            return
        for ids, mask in zip(encoding["input_ids"], encoding["attention_mask"], strict=True):
            for i in range(len(ids)):
                if mask[i] == 0 or ids[i] == self.pad_token_id:
                    ids[i] = self.mask_token_id
                    mask[i] = int(self.attend_to_mask_tokens)


class FLMRContextEncoderTokenizer(_FLMRTokenizer):
    """Tokenizer of documents: at most `doc_maxlen` tokens.

    They are padded to that length as in the original; `padding="longest"` is faster and gives the
    same scores.
    """

    folder_name = "context_tokenizer"
    _marker = "[unused1]"
    _length_name = "doc_maxlen"
    _default_length = 512

    def __init__(self, *args: Any, doc_maxlen: int = 512, **kwargs: Any):
        super().__init__(*args, doc_maxlen=doc_maxlen, **kwargs)
        self.doc_maxlen = doc_maxlen

    def _encode_texts(
        self,
        texts: Sequence[str],
        padding: Any,
        truncation: Any,
        max_length: int | None,
        **kwargs: Any,
    ) -> BatchEncoding:
        encoding = super()._encode_texts(texts, padding, truncation, max_length, **kwargs)
        rows = encoding["input_ids"]
        # Without BERT's padding id, 0, the original counts padding in scores. All padding rows of
        # a document are the same vector, so one of them is enough.
        if (
            padding in (True, "longest")
            and self.pad_token_id != 0
            and len(rows[0]) < (max_length or self.max_tokens)
        ):
            for ids, mask in zip(rows, encoding["attention_mask"], strict=True):
                ids.append(self.pad_token_id)
                mask.append(0)
        return encoding


class FLMRBertQueryEncoderTokenizer(FLMRQueryEncoderTokenizer):
    """The name of the query tokenizer in some checkpoints' files."""


class FLMRBertContextEncoderTokenizer(FLMRContextEncoderTokenizer):
    """The name of the document tokenizer in some checkpoints' files."""


# Since transformers 5 every tokenizer is a fast one.
FLMRQueryEncoderTokenizerFast = FLMRQueryEncoderTokenizer
FLMRContextEncoderTokenizerFast = FLMRContextEncoderTokenizer


def register_tokenizers(
    config: type[PretrainedConfig], text_config: type[PretrainedConfig]
) -> None:
    """Register the classes with `AutoTokenizer` under every name that checkpoints' files use."""
    # The "slow" class is only a second name to register; the first is returned for a checkpoint's
    # root, where no file says which of the two is meant.
    AutoTokenizer.register(
        config,
        tokenizer_class=FLMRQueryEncoderTokenizer,
        slow_tokenizer_class=FLMRContextEncoderTokenizer,
        exist_ok=True,
    )
    AutoTokenizer.register(
        text_config,
        tokenizer_class=FLMRBertContextEncoderTokenizer,
        slow_tokenizer_class=FLMRBertQueryEncoderTokenizer,
        exist_ok=True,
    )


def _no_rows(length: int, return_tensors: Any) -> BatchEncoding:
    """Return tensors without rows, so that callers need no special case for no texts."""
    import numpy as np

    empty: Any = [] if return_tensors is None else np.zeros((0, length), dtype=np.int64)
    encoding = BatchEncoding({"input_ids": empty, "attention_mask": empty})
    if return_tensors is not None:
        encoding = encoding.convert_to_tensors(return_tensors)
    encoding.truncated = []
    return encoding


def _find_folder(name: str, subfolder: str, or_root: bool, hub: dict[str, Any]) -> Path | None:
    """Return the folder with a tokenizer's files: the subfolder, or the root if `or_root`."""
    root = Path(name)
    if root.is_dir():
        places = [root / subfolder] + ([root] if or_root else [])
        return next((p for p in places if _has_vocabulary(p)), None)
    if root.exists() or name.startswith((".", "/", "~")):
        return None
    for place in [subfolder] + ([""] if or_root else []):
        found = [
            cached_file(
                name,
                file,
                subfolder=place,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                _raise_exceptions_for_gated_repo=False,
                **hub,
            )
            for file in _FILES
        ]
        folder = next((Path(f).parent for f in found if f), None)
        if folder is not None and _has_vocabulary(folder):
            return folder
    return None


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES[1:4])


def _read_folder(folder: Path) -> dict[str, Any]:
    """Return arguments for the constructor from a tokenizer's files."""
    values: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            try:
                values |= json.loads((folder / file).read_text(encoding="utf-8"))
            except ValueError:
                raise UserError(f"{folder / file} is not JSON") from None
    kept = (*_KEPT, "tokenize_chinese_chars", "query_maxlen", "doc_maxlen", "attend_to_mask_tokens")
    arguments = {k: values[k] for k in kept if values.get(k) is not None}
    for name in _TOKEN_NAMES:
        if isinstance(arguments.get(name), dict):
            arguments[name] = arguments[name]["content"]
    if (folder / "tokenizer.json").is_file():
        try:
            arguments["tokenizer_object"] = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as e:  # the Rust code raises bare Exceptions
            raise UserError(f"{folder / 'tokenizer.json'} cannot be read: {e}") from None
    elif (folder / "vocab.txt").is_file():
        arguments["vocab_file"] = str(folder / "vocab.txt")
        arguments["added_tokens"] = _added_tokens(folder, values)
    else:
        arguments["tokenizer_object"] = load_tokenizer(
            str(folder), trust_remote_code=False
        ).backend_tokenizer
    return arguments


def _added_tokens(folder: Path, values: dict[str, Any]) -> dict[int, str]:
    """Return the tokens by id that were added to the vocabulary of a folder with a vocab.txt.

    They are in the file added_tokens.json, in newer folders also in tokenizer_config.json.
    """
    found: dict[int, str] = {}
    try:
        if (folder / "added_tokens.json").is_file():
            text = (folder / "added_tokens.json").read_text(encoding="utf-8")
            found = {int(number): str(token) for token, number in json.loads(text).items()}
        for number, token in (values.get("added_tokens_decoder") or {}).items():
            found[int(number)] = str(token["content"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{folder}: its added tokens cannot be read") from None
    return dict(sorted(found.items()))


def _add_tokens(tokenizer: Tokenizer, added: Mapping[int, str], vocab_file: Path) -> None:
    for number, token in added.items():
        if tokenizer.token_to_id(token) is None:
            tokenizer.add_special_tokens([token])
        if tokenizer.token_to_id(token) != number:
            raise UserError(
                f"{vocab_file} does not fit the added tokens beside it: {token} has the id "
                f"{number} there, but would get {tokenizer.token_to_id(token)}"
            )


def _wordpiece(vocab_file: Path, options: dict[str, Any]) -> Tokenizer:
    """Return BERT's tokenizer, built from its vocabulary."""
    tokens = vocab_file.read_text(encoding="utf-8").split("\n")
    if tokens and not tokens[-1]:
        tokens.pop()
    vocab = {token.rstrip("\r"): i for i, token in enumerate(tokens)}
    names = {k: str(options.get(k, v)) for k, v in _BERT_TOKENS.items()}
    missing = [t for t in names.values() if t not in vocab]
    if missing:
        raise UserError(f"{vocab_file} lacks the tokens {', '.join(missing)}")
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=names["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = names["cls_token"], names["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer
