"""The demo's page, in Gradio: what is on it, and what happens when people use it."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE as SAMPLE_FOLDER
from ravqa.core.records import Question
from ravqa.doors.demo import view
from ravqa.doors.feedback import Feedback, Verdict
from ravqa.doors.outside import told
from ravqa.doors.shelf import SAMPLE, Shelf
from ravqa.images.uploads import Limits, uploaded
from ravqa.pipeline import Response
from ravqa.reports.matches import PASSAGES, match_page
from ravqa.reports.photos import thumbnails

_log = logging.getLogger(__name__)

MOST_PASSAGES = 10
_QUESTION = 500
"""Most letters of a question, or of a right answer."""
_MODELS = "models"
"""What asking takes turns at."""
_WAITING = 20
"""Most people who wait for their turn; who comes later is asked to try again."""
_ICON = 4000
"""Bytes of an example's small picture."""
_KEPT_S = 3600
"""How long uploads and what a visitor saw last are kept."""
_QUICK = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
"""Options of events that ask no model."""
_BROKEN = "Something went wrong here. The terminal in which the demo runs has the details."
EXAMPLES = (
    ("val2014/COCO_val2014_000009000010.jpg", "In which country does this animal live?"),
    ("val2014/COCO_val2014_000009000049.jpg", "By whom was this building put up?"),
    ("val2014/COCO_val2014_000009000001.jpg", "What is the main food of this animal?"),
    ("val2014/COCO_val2014_000009000031.jpg", "Which town or city is this building in or near?"),
)
"""Photos of the bundled sample below its folder, and a question about each."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is to be seen of an answer.

    Attributes:
        answers, passages, matched: HTML; blank for nothing.
        verdict: that the answer is right; None until there is one.
    """

    answers: str
    passages: str = ""
    matched: str = ""
    verdict: Verdict | None = None


class Page:
    """The page's functions, apart from how it looks.

    Attributes:
        folder: of uploads, and of copies of the examples.
    """

    def __init__(self, shelf: Shelf, feedback: Feedback, folder: Path, limits: Limits):
        """Store what the page offers, and where it keeps what people say of answers."""
        self.shelf = shelf
        self.feedback = feedback
        self.folder = folder.resolve()
        self.limits = limits

    def ask(
        self, photo: Any, question: Any, collection: Any, pipeline: Any, k: Any, rule: Any
    ) -> Iterator[Seen]:
        """Answer, and yield what is to be seen as it becomes known.

        Arguments are what a browser sent, and can be anything.
        """
        try:
            asked = self._question(photo, question)
            count = _number(k)
            names = str(collection), str(pipeline), str(rule)
            yield from self._answered(asked, names, count)
        except UserError as e:
            yield Seen(view.failed(told(e, self.shelf.places)))
        except Exception:
            _log.exception("a question could not be answered")
            yield Seen(view.failed(_BROKEN))

    def _answered(self, asked: Question, names: tuple[str, str, str], k: int) -> Iterator[Seen]:
        collection, pipeline, rule = names
        if rule not in self.shelf.rules(collection, pipeline):
            raise UserError(f"The rule {rule!r:.40} does not suit this pipeline's reader.")
        yield Seen(view.waiting("Looking for passages"))
        found = self.shelf.pipeline(collection, pipeline).answering_by(rule, k)
        found.top_k = max(k, found.top_k)
        blind = asked.image is not None and not found.supports_images
        response: Response | None = None
        for response in found.ask_in_steps(asked, unaided=True):
            yield Seen(view.answers(response, blind), view.passages(response, k))
        assert response is not None
        assert response.answer is not None
        assert response.question is not None
        verdict = Verdict(
            question_id=uuid.uuid4().hex,
            question=asked.question,
            image=asked.image,
            answer=response.answer.text,
            right=response.answer.text,
            shown={
                "collection": collection,
                "pipeline": pipeline,
                "decision": rule,
                "k": k,
                "shown_passages": [hit.passage_id for hit in response.hits[:k]],
            },
        )
        seen = Seen(view.answers(response, blind), view.passages(response, k), verdict=verdict)
        yield seen
        page = match_page(found, response.question, response.passages[: min(k, PASSAGES)])
        yield replace(seen, matched=view.match_frame(page))

    def say(self, shown: Verdict | None, right: bool, correction: str = "") -> str:
        """Keep a verdict, and return what is said about it as HTML.

        Args:
            shown: that the answer which is seen is right; None if there is none.
            right: whether the shown answer is right.
            correction: the right answer, if the shown one is not; blank if nobody knows.
        """
        if shown is None:
            return view.said("Ask something first.", "bad")
        given = " ".join(str(correction).split())[:_QUESTION]
        answer = shown.answer if right else given or None
        if right and not (answer or "").strip():
            return view.said("An empty answer cannot be kept as right.", "bad")
        try:
            self.feedback.keep(replace(shown, right=answer))
        except (OSError, UserError):
            _log.exception("a verdict could not be kept")
            return view.said("That could not be kept: the terminal has the details.", "bad")
        if answer is None:
            return view.said("Noted as wrong.")
        return view.said(f"Kept, with “{answer}” as the right answer.")

    def example(self, number: int) -> tuple[str, str]:
        """Return an example's photo, as a file in the folder of uploads, and its question."""
        name, question = EXAMPLES[number]
        copy = self.folder / "examples" / Path(name).name
        if not copy.is_file():  # uploads are removed after a while
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SAMPLE_FOLDER / name, copy)
        return str(copy), question

    def _question(self, photo: Any, question: Any) -> Question:
        """Return what is asked.

        Raises:
            UserError: a question without words, one that is too long, or a photo that cannot be
                used.
        """
        text = " ".join(question.split()) if isinstance(question, str) else ""
        if not text:
            raise UserError("Type a question first.")
        if len(text) > _QUESTION:
            raise UserError(f"The question is too long: at most {_QUESTION} letters.")
        return Question(0, text, self._photo(photo))

    def _photo(self, photo: Any) -> bytes | None:
        """Return the bytes of an uploaded photo; None without one."""
        if photo is None:
            return None
        try:
            path = Path(photo["path"]).resolve(strict=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            raise UserError("The photo is not here any more: choose it again.") from None
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise UserError("The photo is not here any more: choose it again.")
        if path.stat().st_size > self.limits.file:  # not even read
            data = bytes(self.limits.file + 1)
        else:
            data = path.read_bytes()
        try:
            return uploaded(data, self.limits)
        except DataError as e:
            raise UserError(f"The photo cannot be used: {e}.") from None


def _number(k: Any) -> int:
    if isinstance(k, bool) or not isinstance(k, int | float) or not 1 <= k <= MOST_PASSAGES:
        raise UserError(f"The number of passages is from 1 to {MOST_PASSAGES}.")
    return int(k)


def blocks(page: Page, gr: Any) -> Any:
    """Return the page as Gradio's blocks.

    Args:
        gr: the module gradio.
    """
    keeping = {"analytics_enabled": False, "delete_cache": (_KEPT_S // 4, _KEPT_S)}
    with gr.Blocks(title="Ask about a photo - ravqa", **keeping) as made:
        first = page.shelf.names[0]
        default = page.shelf.pipelines(first)[0]
        head = gr.HTML(view.head(page.shelf.stand_ins(first, default)), elem_id="rv-head")
        with gr.Row(elem_id="rv-main"):
            with gr.Column(scale=4, min_width=300, elem_id="rv-ask"):
                photo, question, ask = _form(gr)
                examples = _examples(gr) if SAMPLE in page.shelf.names else []
                settings = _settings(page.shelf, head, gr)
            with gr.Column(scale=7, min_width=300, elem_id="rv-seen"):
                answers = gr.HTML(view.empty(bool(examples)), elem_id="rv-result")
                verdict = _verdict(page, gr)
                matched = gr.HTML("", elem_id="rv-matched")
                passages = gr.HTML("", elem_id="rv-passages")

        def asking(*given: Any) -> Iterator[list[Any]]:
            for seen in page.ask(*given):
                shown = gr.Column(visible=seen.verdict is not None)
                folded = gr.Row(visible=False)
                yield [
                    *(seen.answers, seen.passages, seen.matched),
                    *(seen.verdict, shown, folded, "", ""),
                ]

        given = {
            "fn": asking,
            "inputs": [photo, question, *settings],
            "outputs": [answers, passages, matched, *verdict],
            "preprocess": False,  # photos are not decoded before they are checked
            "concurrency_id": _MODELS,
            "concurrency_limit": 1,
            "trigger_mode": "once",
            "show_progress": "minimal",
            "show_progress_on": [answers],
            "scroll_to_output": True,
            "api_visibility": "private",
        }
        gr.on([ask.click, question.submit], **given)
        for number, button in enumerate(examples):
            taken = button.click(partial(page.example, number), None, [photo, question], **_QUICK)
            taken.then(**given)
    made.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)
    return made


def style() -> str:
    """Return the page's style sheet, with small pictures of the examples."""
    photos = [SAMPLE_FOLDER / name for name, _ in EXAMPLES]
    rules = [
        f"#rv-example-{number}::before {{ background-image: url({url}); }}"
        for number, url in enumerate(thumbnails(photos, len(photos) * _ICON))
    ]
    return "\n".join([view.source("demo.css"), *rules])


def _form(gr: Any) -> tuple[Any, Any, Any]:
    """Return the photo, the question, and the button that asks."""
    photo = gr.Image(
        label="Photo",
        type="filepath",
        sources=["upload", "clipboard"],
        buttons=[],
        height=280,
        elem_id="rv-photo",
    )
    question = gr.Textbox(
        label="Question",
        placeholder="What do you want to know about it?",
        max_length=_QUESTION,
        lines=1,
        max_lines=3,
        elem_id="rv-question",
    )
    return photo, question, gr.Button("Ask", variant="primary", elem_id="rv-go")


def _examples(gr: Any) -> list[Any]:
    with gr.Column(elem_id="rv-examples"):
        gr.HTML('<p class="rv-said">Or try one of these</p>')
        with gr.Row(elem_id="rv-example-row"):
            return [
                gr.Button(
                    question,
                    size="sm",
                    min_width=130,
                    elem_id=f"rv-example-{number}",
                    elem_classes="rv-example",
                )
                for number, (_, question) in enumerate(EXAMPLES)
            ]


def _settings(shelf: Shelf, head: Any, gr: Any) -> list[Any]:
    """Return what can be chosen: collection, pipeline, number of passages, and decision rule.

    Args:
        head: the top of the page, which says what stands in for larger parts.
    """
    first = shelf.names[0]
    offered = shelf.pipelines(first)
    with gr.Accordion("Settings", open=False, elem_id="rv-settings"):
        several = len(shelf.names) > 1
        collection = gr.Dropdown(shelf.names, value=first, label="Collection", visible=several)
        pipeline = gr.Dropdown(offered, value=offered[0], label="Pipeline")
        rules = _rule_choices(shelf, first, offered[0])
        rule = gr.Dropdown(rules, value=rules[0][1], label="Decision rule")
        k = gr.Slider(1, MOST_PASSAGES, value=3, step=1, label="Passages to find and read")

    def chosen(name: str) -> Any:
        names = shelf.pipelines(name)
        return gr.Dropdown(names, value=names[0])

    def suited(name: str, of: str) -> tuple[Any, str]:
        found = _rule_choices(shelf, name, of)
        return gr.Dropdown(found, value=found[0][1]), view.head(shelf.stand_ins(name, of))

    changed = collection.change(chosen, [collection], [pipeline], **_QUICK)
    for event in (changed.then, pipeline.change):
        event(suited, [collection, pipeline], [rule, head], **_QUICK)
    return [collection, pipeline, k, rule]


def _rule_choices(shelf: Shelf, collection: str, pipeline: str) -> Sequence[tuple[str, str]]:
    rules = shelf.rules(collection, pipeline)
    return [(f"{name}: {summary}", name) for name, summary in rules.items()]


class _Verdict(NamedTuple):
    """The state that a verdict is about, and the components that asking changes."""

    shown: Any
    group: Any
    correcting: Any
    correction: Any
    note: Any


def _verdict(page: Page, gr: Any) -> _Verdict:
    shown = gr.State(None, time_to_live=_KEPT_S)
    with gr.Column(visible=False, elem_id="rv-verdict") as group:
        with gr.Row(equal_height=True, elem_id="rv-thumbs"):
            gr.HTML('<p class="rv-said">Is the answer with passages right?</p>')
            up = gr.Button("👍 Right", size="sm", min_width=100, scale=0, elem_id="rv-up")
            down = gr.Button("👎 Wrong", size="sm", min_width=100, scale=0, elem_id="rv-down")
        with gr.Row(visible=False, equal_height=True, elem_id="rv-correcting") as correcting:
            correction = gr.Textbox(
                label="What is the right answer? Leave it blank if you do not know.",
                max_length=_QUESTION,
                elem_id="rv-correction",
            )
            send = gr.Button("Keep", size="sm", min_width=100, scale=0, elem_id="rv-send")
        note = gr.HTML("", elem_id="rv-note")

    def right(seen: Verdict | None) -> tuple[Any, str]:
        return gr.Row(visible=False), page.say(seen, right=True)

    def wrong(seen: Verdict | None) -> tuple[Any, str]:
        return gr.Row(visible=True), page.say(seen, right=False)

    def correct(seen: Verdict | None, text: str) -> str:
        return page.say(seen, right=False, correction=text)

    up.click(right, [shown], [correcting, note], **_QUICK)
    down.click(wrong, [shown], [correcting, note], **_QUICK)
    gr.on([send.click, correction.submit], correct, [shown, correction], [note], **_QUICK)
    return _Verdict(shown, group, correcting, correction, note)
