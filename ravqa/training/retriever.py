"""Training of retrievers: any model of the FLMR family, with in-batch and hard negatives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import filter as matches
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ravqa.core.checkpoints import loading
from ravqa.core.errors import UserError
from ravqa.core.model_files import commit_of, model_fingerprint, resolve
from ravqa.core.progress import Progress
from ravqa.core.records import Question
from ravqa.corpora.tables import read_jsonl
from ravqa.flmr import FLMRModelForRetrieval, FLMRProcessor
from ravqa.flmr.modeling import gather_documents
from ravqa.runs.console import Console
from ravqa.training.command import run_task
from ravqa.training.examples import Example, Examples, load_examples
from ravqa.training.inputs import Inputs, keep_text_states
from ravqa.training.loop import device_of, matching
from ravqa.training.losses import contrastive, distilled, interaction
from ravqa.training.options import TrainRequest
from ravqa.training.retriever_settings import RetrieverTraining
from ravqa.training.sampling import Drawn, step_seed
from ravqa.training.search import Searcher
from ravqa.training.settings import read_settings
from ravqa.training.task import Task

_WHY = "the retriever's training"
_MINED = "mined.jsonl"
_KS = (1, 5, 10)
_KEPT_MIB = 2048  # of text states, on a CPU


def train_retriever(request: TrainRequest, console: Console) -> Path:
    """Train a retriever as `ravqa train retriever` does; return the run's folder.

    Raises:
        UserError: any mistake in the options, the settings or the data.
    """
    config = read_settings(request, RetrieverTraining)

    def make() -> RetrieverTask:
        with console.status("reading data and model"):
            return RetrieverTask(config)

    return run_task(request, config.loop, console, "retriever", make)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An example of a batch with its passages, of which the first is relevant."""

    source: Examples
    example: Example
    passages: tuple[str, ...]


class RetrieverTask(Task):
    """The training of a retriever."""

    kind = "retriever"
    parts: ClassVar[Mapping[str, Sequence[str]]] = {
        "text_encoders": ("*_text_encoder.*", "*_text_encoder_linear.*"),
        "vision_encoder": ("*_vision_encoder.*",),
        "vision_projection": ("*_vision_projection.*",),
        "mapping_network": ("transformer_mapping_*",),
    }

    def __init__(self, config: RetrieverTraining):
        """Read the data and load the model.

        Raises:
            UserError: any mistake in the settings or the data.
        """
        self.config = config
        self.sources = [load_examples(c, f"train.{i}") for i, c in enumerate(config.train)]
        self.sizes = [len(source.examples) for source in self.sources]
        self.ratios = [source.ratio for source in self.sources]
        self.validation = (
            None if config.validation is None else load_examples(config.validation, "validation")
        )
        self._load()
        self.inputs = Inputs(
            self.model,
            self.processor,
            image_only=config.image_only_queries,
            cache_images=config.cache_images,
        )
        self._mined: dict[Drawn, tuple[str, ...]] = {}
        self.metric = self._metric()
        self.facts = self._facts()

    def _load(self) -> None:
        config = self.config
        path = resolve(config.model, extra="cpu", why=_WHY)
        lengths = {} if config.doc_maxlen is None else {"doc_maxlen": config.doc_maxlen}
        with loading(_WHY, config.model, path):
            self.model = FLMRModelForRetrieval.from_pretrained(path, dtype=torch.float32)
            self.processor = FLMRProcessor.from_pretrained(path, **lengths)
        self._weights = [model_fingerprint(path), commit_of(path)]
        self.model.to(device_of(config.loop))
        names = dict(self.model.named_parameters())
        if config.train_only:
            self.model.requires_grad_(False)
        for pattern in config.train_only:
            for name in matching(names, pattern, self.parts, "train_only"):
                names[name].requires_grad_(True)
        for pattern in config.freeze:
            if pattern in self.parts and not any(matches(names, p) for p in self.parts[pattern]):
                continue  # this model has no such part
            for name in matching(names, pattern, self.parts, "freeze"):
                names[name].requires_grad_(False)
        kept = config.keep_text_mib
        if kept is None:
            kept = _KEPT_MIB if self.model.device.type == "cpu" else 0
        if kept:
            keep_text_states(self.model, kept)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Settings, and fingerprints of model and data."""
        settings = self.config.model_dump(mode="json", exclude={"loop", "keep_text_mib"})
        prints = [source.fingerprint for source in self.sources]
        return {
            **settings,
            "fingerprints": {
                "model": self._weights,
                "train": prints,
                "validation": None if self.validation is None else self.validation.fingerprint,
            },
        }

    def _facts(self) -> Mapping[str, Any]:
        """What was trained on, and on what it was validated."""
        found = [source.facts for source in self.sources]
        validation = None if self.validation is None else self.validation.facts
        pseudo = sum(source.pseudo for source in self.sources)
        notes = []
        if pseudo:
            notes.append(
                f"{pseudo} training questions have no passage that is known to be relevant: "
                "passages that hold an answer stand in (pseudo-positives)"
            )
        return {
            "model": self.config.model,
            "train": found,
            "validation": validation,
            "notes": notes,
        }

    # -- the loss ----------------------------------------------------------------------------

    def backward(self, batch: Sequence[Drawn], weight: float, seed: int) -> dict[str, float]:
        """Add the gradients of a batch, encoded at once or in chunks; return the losses."""
        everyone = self.chosen(batch, seed)
        size = len(everyone) // self.world
        own = everyone[self.rank * size : (self.rank + 1) * size]
        step = self.config.loss.chunk_size or size
        chunks = [own[i : i + step] for i in range(0, size, step)]
        seeds = [step_seed(seed, self.rank, i) for i in range(len(chunks))]
        if len(chunks) == 1:
            torch.manual_seed(seeds[0])
            q, d, mask = self._encoded(own)
            losses = self._losses(everyone, q, d, mask)
            if losses["loss"].requires_grad:
                (losses["loss"] * weight).backward()
            return _numbers(losses)
        # First without gradients: the loss needs all vectors, but not how they were made.
        made = []
        with torch.no_grad():
            for chunk, chunk_seed in zip(chunks, seeds, strict=True):
                torch.manual_seed(chunk_seed)
                made.append(self._encoded(chunk))
        qs = [q.requires_grad_() for q, _, _ in made]
        ds = [d.requires_grad_() for _, d, _ in made]
        masks = [mask for _, _, mask in made]
        losses = self._losses(everyone, _together(qs), _together(ds), _together(masks))
        (losses["loss"] * weight).backward()
        for chunk, chunk_seed, q, d in zip(chunks, seeds, qs, ds, strict=True):
            torch.manual_seed(chunk_seed)  # the same dropout as before
            again_q, again_d, _ = self._encoded(chunk)
            pairs = [(again_q, q.grad), (again_d, d.grad)]
            if wanted := [(x, g) for x, g in pairs if x.requires_grad]:
                torch.autograd.backward([x for x, _ in wanted], [g for _, g in wanted])
        return _numbers(losses)

    def chosen(self, batch: Sequence[Drawn], seed: int) -> list[_Chosen]:
        """Return the examples of a batch with the passages that a seed chooses."""
        rows = []
        for i, (number, place) in enumerate(batch):
            source = self.sources[number]
            example = source.examples[place]
            draw = np.random.default_rng([seed, i])
            positive = example.positives[int(draw.integers(len(example.positives)))]
            negatives = self._negatives(source, example, (number, place), draw)
            rows.append(_Chosen(source, example, (positive, *negatives)))
        return rows

    def _negatives(
        self, source: Examples, example: Example, drawn: Drawn, draw: np.random.Generator
    ) -> list[str]:
        wanted = self.config.loss.negatives
        hard = self._mined.get(drawn) or example.negatives
        order = draw.permutation(len(hard))[:wanted] if hard else ()
        found = [hard[int(i)] for i in order]
        tries = 0
        while len(found) < wanted:
            other = source.ids[int(draw.integers(len(source.ids)))]
            tries += 1
            if tries > 100 * (wanted + 1):
                raise UserError(
                    f"{source.name}: question {example.question.question_id}: too few of the "
                    f"{len(source.ids)} passages are not relevant to it: "
                    "loss.negatives is too large"
                )
            if other not in found and not self._relevant(source, example, other):
                found.append(other)
        return found

    def _relevant(self, source: Examples, example: Example, passage_id: str) -> bool:
        return source.relevance.relevant(example.question, passage_id, example.positives)

    def _encoded(self, rows: Sequence[_Chosen]) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors of questions and of their passages, and the passages' mask [.., .., 1]."""
        questions = [_asked(row.source, row.example) for row in rows]
        passages = [row.source.corpus[i] for row in rows for i in row.passages]
        with self.autocast():
            query = self.model.query(**self.inputs.queries(questions), return_dict=True)
            context = self.model.doc(**self.inputs.documents(passages), return_dict=True)
        mask = context.context_mask.reshape(*context.late_interaction_output.shape[:2], 1)
        return (
            query.late_interaction_output.float(),
            context.late_interaction_output.float(),
            mask,
        )

    def _losses(
        self, everyone: Sequence[_Chosen], q: Tensor, d: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of this process's vectors against those of all processes."""
        config = self.config.loss
        size = len(q)
        first = self.rank * size
        own = everyone[first : first + size]
        each = d.shape[0] // size
        losses: dict[str, Tensor] = {}
        places = torch.arange(size, device=q.device)
        if config.in_batch:
            offset = 0
            if self.world > 1:
                d, mask, offset, _ = gather_documents(d, mask, size)
            scores = interaction(self.model, q, d, mask)
            left_out = self._left_out(own, everyone, each).to(q.device)
            labels = offset + each * places
            losses["contrastive"] = contrastive(scores, labels, left_out, config.temperature)
            rows = labels[:, None] + torch.arange(each, device=q.device)
            scores = scores.gather(1, rows)
        else:
            scores = self.model.score(q, d, mask).reshape(size, each)
            labels = torch.zeros_like(places)
            losses["contrastive"] = contrastive(scores, labels, None, config.temperature)
        if not config.distillation:
            return {"loss": losses["contrastive"]}
        teachers = torch.tensor(
            [[row.example.scores.get(i, float("nan")) for i in row.passages] for row in everyone]
        )
        total = int(((~teachers.isnan()).sum(1) > 1).sum())
        teacher = teachers[first : first + size].to(q.device)
        summed, _ = distilled(scores, teacher, config.temperature, config.teacher_temperature)
        # The mean over the processes is then the mean over all questions that count.
        losses["distilled"] = summed * self.world / max(1, total)
        loss = (1 - config.distillation) * losses["contrastive"] + config.distillation * losses[
            "distilled"
        ]
        return {"loss": loss, **losses}

    def _left_out(self, own: Sequence[_Chosen], everyone: Sequence[_Chosen], each: int) -> Tensor:
        """Return which passages of the batch are relevant to each question, bool [own, all]."""
        passages = {(id(other.source), i): (other, i) for other in everyone for i in other.passages}
        relevant = [
            {key for key, (other, i) in passages.items() if self._also_relevant(row, other, i)}
            for row in own
        ]
        columns = [(id(other.source), i) for other in everyone for i in other.passages]
        rows = [[key in found for key in columns] for found in relevant]
        return torch.tensor(rows).reshape(len(own), len(everyone) * each)

    def _also_relevant(self, row: _Chosen, other: _Chosen, passage_id: str) -> bool:
        if other.source is row.source:
            return self._relevant(row.source, row.example, passage_id)
        # The same id means another passage in another corpus, unless their texts are the same.
        there = other.source.corpus[passage_id]
        here = row.source.corpus.get(passage_id)
        if here is not None and here.content == there.content:
            return self._relevant(row.source, row.example, passage_id)
        return other.source.relevance.holds(row.example.question, passage_id)

    # -- mined negatives ---------------------------------------------------------------------

    def before_step(self, step: int, progress: Progress) -> None:
        """Mine negatives, if it is time."""
        config = self.config.mining
        if config is None or step < config.start or (step - config.start) % config.every:
            return
        self._mined = {}
        drawn = self.upcoming(step, config.every)
        for number, source in enumerate(self.sources):
            own = sorted(place for n, place in drawn if n == number)
            if not own:
                continue
            draw = np.random.default_rng([self.config.loop.seed, step, number])
            ids = _some(source.ids, config.passages, draw)
            rankings = self._searcher().search(
                [_asked(source, source.examples[place]) for place in own],
                source.corpus,
                ids,
                config.depth,
                progress,
                f"mining at step {step}",
            )
            for place, ranking in zip(own, rankings, strict=True):
                example = source.examples[place]
                hard = [i for i, _ in ranking if not self._relevant(source, example, i)]
                self._mined[number, place] = tuple(hard)

    def write_state(self, folder: Path) -> None:
        """Write the negatives that were mined."""
        rows = (
            {"source": number, "example": place, "negatives": hard}
            for (number, place), hard in sorted(self._mined.items())
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / _MINED).write_text(text, encoding="utf-8")

    def read_state(self, folder: Path) -> None:
        """Read the negatives that were mined."""
        self._mined = {
            (row["source"], row["example"]): tuple(row["negatives"])
            for _, row in read_jsonl(folder / _MINED)
        }

    # -- validation --------------------------------------------------------------------------

    def _metric(self) -> str:
        config, found = self.config.validation, self.validation
        if config is None or found is None:
            return "loss"
        names = [f"{kind}@{k}" for kind in self._kinds(found) for k in _KS]
        if config.metric is None:
            return names[_KS.index(5)]
        if config.metric not in names:
            raise UserError(f"validation.metric: {config.metric!r} is none of {', '.join(names)}")
        return config.metric

    def _kinds(self, found: Examples) -> list[str]:
        known = found.pseudo < len(found.examples)
        answers = any(example.question.answers for example in found.examples)
        return [*(["recall"] if known else []), *(["pseudo_recall"] if answers else [])]

    def evaluate(self, progress: Progress) -> Mapping[str, float]:
        """Return recall in percent, by known passages and by passages that hold an answer."""
        config, found = self.config.validation, self.validation
        if config is None or found is None:
            return {}
        draw = np.random.default_rng(self.config.loop.seed)
        relevant = dict.fromkeys(i for e in found.examples for i in e.positives)
        others = [i for i in found.ids if i not in relevant]
        count = None if config.passages is None else max(0, config.passages - len(relevant))
        kept = {*relevant, *_some(others, count, draw)}
        rankings = self._searcher().search(
            [_asked(found, example) for example in found.examples],
            found.corpus,
            [i for i in found.ids if i in kept],
            max(_KS),
            progress,
            "validation",
        )
        hits: dict[str, list[bool]] = {}
        for example, ranking in zip(found.examples, rankings, strict=True):
            ids = [i for i, _ in ranking]
            question = example.question
            if known := {*question.pos_item_ids}:
                for k in _KS:
                    hits.setdefault(f"recall@{k}", []).append(not known.isdisjoint(ids[:k]))
            if question.answers:
                held = [found.relevance.holds(question, i) for i in ids]
                for k in _KS:
                    hits.setdefault(f"pseudo_recall@{k}", []).append(any(held[:k]))
        return {name: 100 * sum(row) / len(row) for name, row in hits.items()}

    def _searcher(self) -> Searcher:
        return Searcher(self.model, self.inputs, self.autocast, self.rank, self.world)

    # -- checkpoints -------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the checkpoint as the encoder `flmr` loads it."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def _asked(source: Examples, example: Example) -> Question:
    """Return the question with its own instruction, or else its source's."""
    question = example.question
    return question if question.instruction else replace(question, instruction=source.instruction)


def _numbers(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}


def _some(ids: Sequence[str], count: int | None, draw: np.random.Generator) -> list[str]:
    """Return `count` of the ids at random, in their order; all for None."""
    if count is None or count >= len(ids):
        return list(ids)
    return [ids[int(i)] for i in sorted(draw.choice(len(ids), size=count, replace=False))]


def _together(parts: Sequence[Tensor]) -> Tensor:
    """Join chunks [rows, vectors, ...] of different numbers of vectors, filled with zeros."""
    rows: Iterator[Tensor] = (row for part in parts for row in part)
    joined: Tensor = pad_sequence(list(rows), batch_first=True)
    return joined
