"""Training of local readers: batches whose loss is on the answer alone, and saved weights.

A batch shows the model exactly what the reader shows it when it answers, followed by the wanted
answer and an end mark. Tokens of prompt, image and padding have no loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from ravqa.core.errors import UserError
from ravqa.readers.base import Prompt

if TYPE_CHECKING:
    from ravqa.readers.local import LocalReader

IGNORED = -100
"""The label of a place that has no loss."""

_FLOAT32 = 1e-3  # largest difference between log-probabilities of training and of answering
_COARSE = 0.3  # the same in half precision, on average over an answer's tokens
_WRITTEN = 4  # tokens that are compared


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Prompts with answers as a model's forward pass takes them.

    Attributes:
        inputs: arguments of the forward pass; tensors whose first dimension is the batch, and those
            of images.
        labels: int64 [rows, width]: the token that the logits at each place are to predict, or
            `IGNORED`. A decoder's width is that of its input; an encoder-decoder's, that of its
            decoder's input.
        whole: whether the whole model reads the batch, and not its language model alone.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    whole: bool

    @property
    def tokens(self) -> int:
        """The number of tokens that have a loss."""
        return int((self.labels != IGNORED).sum())


def training_batches(
    reader: LocalReader, prompts: Sequence[Prompt], answers: Sequence[str]
) -> list[TrainingBatch]:
    """Return the prompts, each with its answer and an end mark after it, as batches.

    Prompts with and without an image come in different batches. If the model may think, its
    thinking is closed before the answer, as when answers are scored.

    Raises:
        PromptError: tokenizer, processor or template cannot take a prompt.
    """
    closed = reader._closed(prompts)
    tails = [
        [*reader._answer_ids(*pair), end_token(reader)]
        for pair in zip(closed, answers, strict=True)
    ]
    kinds: dict[object, list[int]] = {}
    for row, prompt in enumerate(closed):
        kinds.setdefault(reader._kind(prompt), []).append(row)
    return [
        _batch(reader, [closed[row] for row in rows], [tails[row] for row in rows])
        for rows in kinds.values()
    ]


def target_lengths(
    reader: LocalReader, prompts: Sequence[Prompt], answers: Sequence[str]
) -> list[int]:
    """Return the number of tokens of each answer after its prompt, the end mark included."""
    closed = reader._closed(prompts)
    return [len(reader._answer_ids(*pair)) + 1 for pair in zip(closed, answers, strict=True)]


def end_token(reader: LocalReader) -> int:
    """Return the token that ends a trained answer.

    It is the one that the chat template writes after an answer, if that is an end mark of the
    model; else the tokenizer's, or the model's first one.
    """
    from ravqa.core.templates import apply_chat_template

    ends = reader._own_stops
    tokenizer: Any = reader._tokenizer
    if reader._template is not None:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "zebra"}]
        try:
            text = apply_chat_template(tokenizer, messages, chat_template=reader._template)
        except Exception:  # some templates take no plain text, or no answer
            text = ""
        after = text.rpartition("zebra")[2]
        for token in tokenizer(after, add_special_tokens=False)["input_ids"]:
            if token in ends:
                return int(token)
    return int(tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0])


def _batch(
    reader: LocalReader, prompts: Sequence[Prompt], tails: Sequence[Sequence[int]]
) -> TrainingBatch:
    with reader._in_use:
        inputs = reader._inputs(prompts)
    whole = reader._generator(inputs) is reader._model
    if reader._encodes:
        start = reader._start
        before = [IGNORED] * (len(start) - 1)
        shown = [[*start, *tail[:-1]] for tail in tails]
        inputs["decoder_input_ids"] = _padded(shown, reader._pad, reader._device)
        labels = _padded([[*before, *tail] for tail in tails], IGNORED, reader._device)
        return TrainingBatch(inputs, labels, whole)
    mask = inputs["attention_mask"].bool()
    lengths = mask.sum(-1).tolist()
    for name, value in inputs.items():
        if _is_per_token(name, value, mask):
            rows = [row[kept] for row, kept in zip(value, mask, strict=True)]
            inputs[name] = _joined(reader, name, rows, tails)
    predicted = [
        [IGNORED] * (length - 1) + [*tail, IGNORED]
        for length, tail in zip(lengths, tails, strict=True)
    ]
    return TrainingBatch(inputs, _padded(predicted, IGNORED, reader._device), whole)


def _is_per_token(name: str, value: Any, mask: Tensor) -> bool:
    # A Q-Former reads the prompt apart from the answer.
    return (
        isinstance(value, Tensor)
        and not value.is_floating_point()
        and value.shape[:2] == mask.shape
        and not name.startswith("qformer")
    )


def _joined(
    reader: LocalReader, name: str, rows: Sequence[Tensor], tails: Sequence[Sequence[int]]
) -> Tensor:
    """Return the rows of one input, each continued over its answer, padded on the right."""
    joined = []
    for row, tail in zip(rows, tails, strict=True):
        if name == "input_ids":
            more = row.new_tensor(tail)
        elif (
            name == "cross_attention_mask"
        ):  # an answer sees of the image what the prompt's end does
            more = row[-1:].expand(len(tail), *row.shape[1:])
        else:
            value = 1 if name == "attention_mask" else reader._family.answer_type
            more = row.new_full((len(tail), *row.shape[1:]), value)
        joined.append(torch.cat([row, more]))
    pad = reader._pad if name == "input_ids" else 0
    return pad_sequence(joined, batch_first=True, padding_value=pad)


def _padded(rows: Sequence[Sequence[int]], value: int, device: Any) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value).to(device)


def answer_losses(reader: LocalReader, batch: TrainingBatch) -> Tensor:
    """Return -log p of each answer token given all before it: float32 [tokens].

    Natural log; row by row, each answer's end mark last.
    """
    model: Any = reader._model if batch.whole else reader._decoder
    options: dict[str, Any] = {}
    if "decoder_input_ids" not in batch.inputs:
        options["use_cache"] = False
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            # Logits over the vocabulary cost much, and most places have no loss.
            first = int((batch.labels != IGNORED).any(0).nonzero()[0])
            options["logits_to_keep"] = batch.labels.shape[1] - first
    logits = model(**batch.inputs, **options).logits
    labels = batch.labels[:, -logits.shape[1] :].to(logits.device)
    wanted = labels != IGNORED
    return cross_entropy(logits[wanted].float(), labels[wanted], reduction="none")


def check_training(reader: LocalReader, prompts: Sequence[Prompt]) -> None:
    """Check that a training batch gives what the model's `generate` gives, token by token.

    Models differ in how a forward pass with an answer masks tokens and counts positions.

    Args:
        prompts: a few prompts; they are read in one batch.

    Raises:
        UserError: the log-probabilities differ.
    """
    prompts = reader._closed(prompts)
    with reader._in_use:
        options = {"max_new_tokens": _WRITTEN, "min_new_tokens": _WRITTEN, "num_beams": 1}
        made = [reader._run(reader._inputs([prompt]), **options) for prompt in prompts]
    tails = [one.sequences[0, -len(one.logits) :].tolist() for one in made]
    off = 0.0
    for prompt, tail, one in zip(prompts, tails, made, strict=True):
        logits = torch.stack(one.logits, 1)[0].float()
        off = max(off, _gap(reader, [prompt], [tail], [logits]))
    kinds = {reader._kind(prompt) for prompt in prompts}
    if len(kinds) == 1 and "batches" not in reader.switched_off:
        written = [torch.stack(one.logits, 1)[0].float() for one in made]
        off = max(off, _gap(reader, prompts, tails, written))
    exact = all(p.dtype == torch.float32 for p in reader._model.parameters())
    if not off <= (_FLOAT32 if exact else _COARSE):
        raise UserError(
            f"{reader._why}: {reader.weights} cannot be trained: reading an answer at once changes "
            f"its log-probabilities by up to {off:.2g} from those with which it is generated"
        )


def _gap(
    reader: LocalReader,
    prompts: Sequence[Prompt],
    tails: Sequence[Sequence[int]],
    written: Sequence[Tensor],
) -> float:
    """Return how far log-probabilities of tokens are from those of the logits they came from."""
    with torch.inference_mode():
        losses = answer_losses(reader, _batch(reader, prompts, tails)).cpu()
    rows = losses.split([len(tail) for tail in tails])
    off = 0.0
    for logits, tail, row in zip(written, tails, rows, strict=True):
        known = logits.cpu().log_softmax(-1).gather(-1, torch.tensor(tail)[:, None])[:, 0]
        off = max(off, float((known + row).abs().max()))
    return off
