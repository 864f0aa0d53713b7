"""What the service does, whichever protocol asks for it: forms in, replies out."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from ravqa.collections.changes import Changes
from ravqa.collections.collection import Collection
from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Passage, Question
from ravqa.doors.outside import told
from ravqa.doors.service import forms
from ravqa.doors.service.line import Asked, Line
from ravqa.doors.shelf import OWN, SAMPLE, Shelf
from ravqa.images.decode import sendable
from ravqa.images.uploads import photo, uploaded
from ravqa.pipeline import Response

T = TypeVar("T")
_FETCH_S = 10
_CHANGE_S = 600.0


class UnknownError(UserError):
    """Something that is asked for does not exist here."""


class ForbiddenError(UserError):
    """The service was started without what is asked for."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the service grants.

    Attributes:
        seconds: for waiting and answering of one request.
        waiting: requests that may wait at a time.
        at_once: questions that are answered in one batch.
        changes: whether passages can be added, replaced and deleted.
        image_hosts: names of machines from which images are fetched.
        token: that requests must bring; blank for none.
        contents: whether questions are logged.
    """

    seconds: float = 60
    waiting: int = 64
    at_once: int = 16
    changes: bool = False
    image_hosts: frozenset[str] = frozenset()
    token: str = ""
    contents: bool = False


class Desk:
    """Takes requests to the models' line, and returns replies.

    Attributes:
        line: of the models.
        models: collection and pipeline by the name that chat programs have for both.
    """

    def __init__(
        self, shelf: Shelf, terms: Terms, batches: Callable[[int], object] = lambda size: None
    ):
        """Start the line. Nobody else may use the shelf from now on.

        Args:
            batches: called with the number of questions of each batch.
        """
        self.terms = terms
        self._shelf = shelf
        self.line = Line(
            shelf, most_waiting=terms.waiting, most_at_once=terms.at_once, batches=batches
        )
        self._images = ThreadPoolExecutor(1, "images")  # one bomb at a time
        self._sees: dict[tuple[str, str, bool], bool] = {}
        self.models = {
            _model(collection, pipeline): (collection, pipeline)
            for collection in shelf.names
            for pipeline in shelf.pipelines(collection)
        }

    def close(self) -> None:
        """Take no further requests."""
        self.line.close()
        self._images.shutdown(wait=False)

    def said(self, error: UserError) -> str:
        """Return an error's message without folders; the log has the whole."""
        return told(error, self._shelf.places)[:2000]

    # -- questions --------------------------------------------------------------------------------

    async def search(self, form: forms.SearchForm, data: bytes | None = None) -> forms.SearchReply:
        """Return passages.

        Args:
            data: bytes of the image, if the form does not have it.

        Raises:
            UserError: see `Line.ask`; a name that is not offered; a bad image.
        """
        asked = await self._asked(form, data)
        return await self._reply(asked, await self.line.ask(asked, self.terms.seconds))

    async def answer(self, form: forms.AnswerForm, data: bytes | None = None) -> forms.AnswerReply:
        """Return an answer; as `search`."""
        asked = await self._asked(form, data)
        return await self._answered(asked, await self.line.ask(asked, self.terms.seconds))

    async def stream(
        self, form: forms.AnswerForm, data: bytes | None = None
    ) -> AsyncIterator[forms.SearchReply | str]:
        """Yield passages, pieces of the answer, and the answer with all; as `search`."""
        asked = await self._asked(form, data)
        async for what in self.line.stream(asked, self.terms.seconds):
            if isinstance(what, str):
                yield what
            elif what.answer is None:
                yield await self._reply(asked, what)
            else:
                yield await self._answered(asked, what)

    async def _asked(self, form: forms.SearchForm, data: bytes | None) -> Asked:
        collection, pipeline = self.names(form.collection, form.pipeline)
        if form.where and collection == SAMPLE:
            raise UserError("where: the bundled sample's passages have no metadata")
        if form.image and data is None:
            data = await self._given(form.image)
        image = None if data is None else await self._checked(photo, data, "image")
        if not form.question.strip() and image is None:
            raise UserError("a question, an image, or both are needed")
        answering = isinstance(form, forms.AnswerForm)
        choices = form.choices if isinstance(form, forms.AnswerForm) else []
        if any(not choice.strip() for choice in choices):
            raise UserError("choices: a list of texts is expected, none of them blank")
        asked = Asked(
            Question(0, form.question, image, choices=tuple(choices)),
            collection,
            pipeline,
            form.rule if isinstance(form, forms.AnswerForm) else None,
            form.k,
            json.dumps(form.where, sort_keys=True) if form.where else "",
            answering,
        )
        key = (collection, pipeline, answering)
        if image is not None and key not in self._sees:
            self._sees[key] = await self._do(
                lambda shelf: (
                    shelf.pipeline(collection, pipeline, answering=answering).supports_images
                )
            )
        return asked

    async def _reply(self, asked: Asked, response: Response) -> forms.SearchReply:
        names = asked.collection, asked.pipeline
        unused = asked.question.image is not None and not self._sees[*names, asked.answering]
        return forms.search_reply(response, *names, unused)

    async def _answered(self, asked: Asked, response: Response) -> forms.AnswerReply:
        found = await self._reply(asked, response)
        stand_ins = self._shelf.stand_ins(asked.collection, asked.pipeline)
        return forms.answer_reply(found, response, stand_ins)

    # -- images -----------------------------------------------------------------------------------

    async def _given(self, image: str) -> bytes:
        """Return the bytes of an image in a form: base64, a data URI, or another machine's."""
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]{0,20}:", image) and image[:5].lower() != "data:":
            return await self._fetched(image)
        return forms.decoded_image(image)

    async def _fetched(self, url: str) -> bytes:
        """Return the bytes at an address, if its machine is one of those that were named."""
        try:
            parts = urlsplit(url)
            known = parts.hostname in self.terms.image_hosts
        except ValueError:
            known = False
        if not known or parts.scheme not in {"http", "https"}:
            raise ForbiddenError(
                "image: this service fetches no images from there: send the image itself, in "
                "base64 or as a data URI"
            )
        found = bytearray()
        try:
            async with (
                asyncio.timeout(_FETCH_S),
                httpx.AsyncClient(trust_env=False, follow_redirects=False) as client,
                client.stream("GET", url) as response,
            ):
                if response.status_code != 200:
                    raise DataError(f"image: its server replied {response.status_code}")
                async for part in response.aiter_raw():
                    found += part
                    if len(found) > forms.IMAGES.file:
                        break  # `photo` refuses it
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            raise DataError("image: it could not be fetched from its server") from None
        return bytes(found)

    async def _checked(self, check: Callable[..., bytes], data: bytes, where: str) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._images, check, data, forms.IMAGES)
        except DataError as e:
            raise DataError(f"{where}: {e}") from None

    # -- collections ------------------------------------------------------------------------------

    def names(self, collection: str | None, pipeline: str | None = None) -> tuple[str, str]:
        """Return collection and pipeline, by default the first ones.

        Raises:
            UnknownError: one of them is not offered.
        """
        try:
            name = self._shelf.names[0] if collection is None else collection
            own = self._shelf.pipelines(name)[0]
            self._shelf.config(name, pipeline or own)
        except UserError as e:
            raise UnknownError(str(e)) from None
        return name, pipeline or own

    async def collections(self) -> list[forms.CollectionReply]:
        """Return what can be asked."""
        return await self._do(lambda shelf: [self._described(shelf, name) for name in shelf.names])

    async def collection(self, name: str) -> forms.CollectionReply:
        """Return what is known of a collection; UnknownError if there is none."""
        self.names(name)
        return await self._do(lambda shelf: self._described(shelf, name))

    def _described(self, shelf: Shelf, name: str) -> forms.CollectionReply:
        pipelines = shelf.pipelines(name)
        own = name != SAMPLE
        corpus = _passages_of(shelf, name)
        return forms.CollectionReply(
            name=name,
            passages=len(corpus),
            pipelines=pipelines,
            rules=shelf.rules(name, pipelines[0]),
            can_change=own and self.terms.changes,
        )

    async def passage(self, name: str, passage_id: str) -> Passage:
        """Return a passage.

        Raises:
            UnknownError: there is none.
        """
        self.names(name)

        def read(shelf: Shelf) -> Passage:
            corpus = _passages_of(shelf, name)
            if passage_id not in corpus:
                raise UnknownError(f"no passage {passage_id!r:.200} in {name}")
            return corpus[passage_id]

        return await self._do(read)

    async def picture(self, name: str, passage_id: str) -> tuple[bytes, str]:
        """Return the image of a passage, and its media type.

        Raises:
            UnknownError: there is no such passage, or it has none.
        """
        passage = await self.passage(name, passage_id)
        if passage.image is None:
            raise UnknownError("the passage has no image")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._images, sendable, passage.image)

    async def put(
        self, name: str, form: forms.PassagesForm, files: Mapping[str, bytes], *, replacing: bool
    ) -> forms.ChangesReply:
        """Add passages, or replace them by their ids.

        Args:
            files: images that the form does not have, by the passages' ids.

        Raises:
            UserError: as `Collection.put`; a file for no passage; or passages cannot be changed.
        """
        self._check_changes(name)
        if others := files.keys() - {given.passage_id for given in form.passages}:
            raise DataError(f"a file was sent as {min(others)!r:.200}: no passage has this id")
        passages, images = [], {}
        for i, given in enumerate(form.passages):
            data = files.get(given.passage_id)
            if given.image:
                if data is not None:
                    raise DataError(f"passages[{i}]: it has an image, and a file was sent for it")
                data = await self._given(given.image)
            if data is not None:
                images[i] = await self._checked(uploaded, data, f"passages[{i}].image")
            values = given.model_dump(exclude={"image", "metadata"})
            passages.append(Passage(**values, extra=given.metadata))

        def work(shelf: Shelf) -> Changes:
            with tempfile.TemporaryDirectory(prefix="ravqa-serve-") as folder:
                for i, data in images.items():  # `uploaded` made them JPEG or PNG
                    place = Path(folder, f"{i}{'.png' if data[1:4] == b'PNG' else '.jpg'}")
                    place.write_bytes(data)
                    passages[i] = replace(passages[i], image=place)
                return shelf.collection(name).put(passages, replacing=replacing, source=form.source)

        return await self._change(name, work)

    async def delete(self, name: str, ids: Sequence[str]) -> forms.ChangesReply:
        """Delete passages.

        Raises:
            UnknownError: one does not exist; none is deleted then.
            UserError: as `put`.
        """
        self._check_changes(name)

        def work(shelf: Shelf) -> Changes:
            collection = shelf.collection(name)
            for passage_id in ids:
                if passage_id not in collection:
                    raise UnknownError(f"no passage {passage_id!r:.200} in {name}")
            return collection.delete(ids)

        return await self._change(name, work)

    def _check_changes(self, name: str) -> None:
        self.names(name)
        if not self.terms.changes:
            raise ForbiddenError("this service changes no collections (ravqa serve --changes)")
        if name == SAMPLE:
            raise ForbiddenError("the bundled sample cannot be changed")

    async def _change(self, name: str, work: Callable[[Shelf], Changes]) -> forms.ChangesReply:
        def changed(shelf: Shelf) -> Changes:
            try:
                return work(shelf)
            finally:
                shelf.refresh(name)

        done = await self.line.do(changed, max(_CHANGE_S, self.terms.seconds))
        counts = {field: getattr(done, field) for field in forms.ChangesReply.model_fields}
        return forms.ChangesReply(**counts)

    async def _do(self, work: Callable[[Shelf], T]) -> T:
        return await self.line.do(work, self.terms.seconds)


def _passages_of(shelf: Shelf, name: str) -> Mapping[str, Passage] | Collection:
    """Return what is in a collection, or the bundled sample's passages."""
    if name != SAMPLE:
        return shelf.collection(name)
    corpus = shelf.pipeline(name, shelf.pipelines(name)[0], answering=False).corpus
    assert corpus is not None
    return corpus


def _model(collection: str, pipeline: str) -> str:
    """Return the name under which chat programs know a collection with a pipeline."""
    if collection == SAMPLE:
        return pipeline
    return collection if pipeline == OWN else f"{collection}/{pipeline}"
