"""Examples of few-shot prompts: questions of another split, with their answers.

Every prompt of a run has the same examples. None of them is a question of the run or shares an
image with one, and no two of them share an image.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ravqa.answering.config import ExamplesConfig
from ravqa.answering.prompt import Example
from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Passage, Question
from ravqa.core.settings import fingerprint
from ravqa.datasets.base import DatasetRequest, load_dataset
from ravqa.images.decode import image_bytes
from ravqa.metrics.evqa import single_answers
from ravqa.metrics.prrecall import answer_ranks


class ExamplePool:
    """Pool of questions from which examples are chosen.

    Attributes:
        label: human-readable name of the dataset.
        fingerprint: changes with the questions and with how examples are chosen.
    """

    def __init__(self, config: ExamplesConfig):
        """Read the dataset.

        Raises:
            UserError: no such dataset or split, or broken data.
        """
        self.config = config
        dataset = load_dataset(
            config.dataset,
            DatasetRequest(
                data=config.data, split=config.split, need_images=False, options=config.options
            ),
        )
        self.label = f"{dataset.label}, {dataset.split}"
        self._questions: Sequence[Question] = dataset.questions
        self._asked = _Asked()
        self._chosen: list[Question] = []
        self.fingerprint = fingerprint(
            "examples/1",
            config.model_dump(exclude={"dataset", "data", "options"}),
            dataset.fingerprint,
        )

    def choose(self, asked: Iterable[Question]) -> list[Question]:
        """Return the examples: always the same ones, as long as none of them is asked.

        Args:
            asked: questions that must not be examples; those of earlier calls are remembered.

        Raises:
            UserError: too few other questions.
        """
        self._asked.add(asked)
        if not self._chosen or any(question in self._asked for question in self._chosen):
            self._chosen = list(self._pick())
        if len(self._chosen) < self.config.count:
            raise UserError(
                f"answering.examples: count is {self.config.count}, but {self.label} has only "
                f"{len(self._chosen)} answered questions about images other than those asked about"
            )
        return self._chosen

    def _pick(self) -> Iterator[Question]:
        order: Sequence[int] = range(len(self._questions))
        if self.config.choose == "random":
            order = random.Random(self.config.seed).sample(order, len(order))
        taken = _Asked()
        found = 0
        for place in order:
            question = self._questions[place]
            if question in self._asked or question in taken:
                continue
            known = question.right_choice is not None
            if known or any(answer.strip() for answer in question.answers):
                yield question
                taken.add([question])
                found += 1
            if found == self.config.count:
                return


class _Asked:
    """The questions asked, identified by their id, their image's id and its bytes."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._image_ids: set[str] = set()
        self._images: dict[int, set[Path | bytes]] = {}  # by size in bytes

    def add(self, questions: Iterable[Question]) -> None:
        for question in questions:
            self._ids.add(str(question.question_id))
            if question.image_id is not None:
                self._image_ids.add(str(question.image_id))
            if question.image is not None:
                self._images.setdefault(_length(question.image), set()).add(question.image)

    def __contains__(self, question: Question) -> bool:
        if str(question.question_id) in self._ids:
            return True
        if question.image_id is not None and str(question.image_id) in self._image_ids:
            return True
        length = 0 if question.image is None else _length(question.image)
        if question.image is None or not length:
            return False
        content = image_bytes(question.image)
        return any(image_bytes(image) == content for image in self._images.get(length, ()))


def _length(image: Path | bytes) -> int:
    """Return the size of an image in bytes; 0 if it cannot be read."""
    if isinstance(image, bytes):
        return len(image)
    try:
        return image.stat().st_size if image.is_file() else len(image_bytes(image))
    except (OSError, DataError):
        return 0


def make_example(question: Question, passages: Sequence[Passage], count: int) -> Example:
    """Make an example of a question: with its answer, and `count` of its passages.

    The answer is the right choice if there are choices, and else the most common reference.

    Passages that hold an answer come first: an example shows that the answer is read from them.
    """
    answer = question.right_choice
    if answer is None:
        answers = [answer.strip() for answer in question.answers if answer.strip()]
        [(answer, _)] = Counter(answers).most_common(1)  # ties go to the first
    parts = single_answers([answer], question.question_type)
    holding = set(
        answer_ranks(
            [p.content for p in passages], single_answers(question.answers, question.question_type)
        )
    )
    ranks = sorted(range(1, len(passages) + 1), key=lambda rank: rank not in holding)
    return Example(question, ", ".join(parts), [passages[rank - 1] for rank in ranks[:count]])
