"""Entity search by image: articles whose pictures look like the question's photo, then sections.

Systems for Encyclopedic-VQA and InfoSeek first find the article of the thing in the photo by
comparing images, and then the section by text (EchoSight, Yan and Xie 2024, arXiv 2407.12735). This
retriever does the first: an article scores as its most similar picture does, and stands for its
passages, which all have its score. A reranker judges them by text, and `blend` joins both scores.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from ravqa.core.errors import DataError, UserError
from ravqa.core.factory import Session, part_config
from ravqa.core.progress import Progress
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import LocalPath, Part, Strict, fingerprint
from ravqa.core.texts import number_of
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.galleries import (
    GalleryImage,
    gallery_key,
    missing_images,
    passage_image,
    plain_name,
    read_gallery,
)
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import EncodingStats
from ravqa.images.decode import broken_images
from ravqa.indexes import INDEXES
from ravqa.retrievers.base import Retriever, to_hits
from ravqa.retrievers.late_interaction import LateInteractionRetriever

_log = logging.getLogger(__name__)

_WHY = "the retriever gallery"
_SKIP = "missing: skip leaves them out"
_SEVERAL = ""  # in place of an article: a name that several have
_BYTES = 1000  # of an image's record, roughly
_WIDER = 4  # times the pictures that are looked at next, if they show too few articles


class GalleryRetriever(Retriever):
    """Finds articles by their pictures: the best of an article's pictures counts.

    Pictures are those of the corpus's passages, or of a list or folder, which names articles by
    URL, entity or title (`ravqa.corpora.galleries`). A question without a photo finds nothing.
    """

    class Config(Strict):
        """Options.

        Attributes:
            encoder: turns images into vectors; it must see passages' images.
            index: stores the vectors and searches them.
            images: a list of images, or a folder; None for the images of the corpus's passages.
            folder: where the images of a list lie; None for the list's own folder.
            missing: whether a picture that is missing or broken stops the run, or is left out.
            expand: what a found picture stands for: its article's "sections", or (if images is
                None) the "passage" whose picture it is.
            per_article: most passages of an article, the first ones; None for all.
            articles: how many articles are looked for.
        """

        builds_parts: ClassVar[bool] = True
        encoder: Part = Part(name="image")
        index: Part = Part(name="faiss")
        images: LocalPath | None = None
        folder: LocalPath | None = None
        missing: Literal["fail", "skip"] = "fail"
        expand: Literal["sections", "passage"] = "sections"
        per_article: int | None = Field(default=None, ge=1)
        articles: int = Field(default=20, ge=1)

        @model_validator(mode="after")
        def _check_parts(self) -> Self:
            part_config(ENCODERS, self.encoder, "retriever.encoder")
            part_config(INDEXES, self.index, "retriever.index")
            if self.images is not None and self.expand == "passage":
                raise ValueError("expand: passage is for the images of the passages themselves")
            if self.folder is not None and self.images is None:
                raise ValueError("folder is that of a list's images: set images to the list")
            return self

        def problems(self) -> Sequence[str]:
            """Return what is missing of the list and, unless they are left out, its images."""
            for path in (self.images, self.folder):
                if path is not None and not path.exists():
                    return [f"no such file or folder: {path}"]
            if self.images is None or self.missing == "skip":
                return ()
            try:
                found = missing_images(list(read_gallery(self.images, self.folder)))
            except UserError as e:
                return [str(e)]
            return [f"{found} ({_SKIP})"] if found else ()

    config: Config

    def __init__(self, config: Config | None = None, *, session: Session | None = None):
        """Load the encoder, or take it from the session.

        Raises:
            UserError: a part cannot be built, or the encoder sees no images of passages.
            DataError: the list or folder of images cannot be read.
        """
        self.config = config or self.Config()
        images = [gallery_key(self.config.images)] if self.config.images is not None else []
        inner = LateInteractionRetriever.Config(
            encoder=self.config.encoder, index=self.config.index, depth=1
        )
        self._search = LateInteractionRetriever(inner, session=session)
        if not self._search.encoder.supports_passage_images:
            raise UserError(
                f"{_WHY}: the encoder {self.config.encoder.name} sees no images of passages: "
                "choose the encoder image"
            )
        self.weights = self._search.weights
        self.stores = self._search.stores
        self.fingerprint = fingerprint(
            "gallery/1",
            self._search.fingerprint,
            self.config.model_dump(mode="json", exclude={"encoder", "index"}),
            *images,
        )
        self._gallery: Corpus | None = None
        self._made_for = ""
        self._left_out: Sequence[str] = ()
        self._owners: dict[str, str] = {}
        self._passages: dict[str, list[str]] = {}

    @classmethod
    def sees_images(cls, config: Config) -> bool:
        """True: it looks at nothing else."""
        return True

    @classmethod
    def corpus_problem(cls, config: Config, corpus: Corpus) -> str:
        """Return how many images of the passages are missing; "" if none, or all are elsewhere."""
        if config.images is not None or config.missing == "skip":
            return ""
        found = missing_images([image for p in corpus.stream() if (image := passage_image(p))])
        return found and f"{found} ({_SKIP})"

    @property
    def supports_images(self) -> bool:
        """True: it looks at nothing else."""
        return True

    @property
    def encodes(self) -> bool:
        """True: this retriever encodes pictures."""
        return True

    @property
    def encoded(self) -> Mapping[str, EncodingStats]:
        """Statistics of the pictures ("passages"), if known, and of the "queries"."""
        return self._search.encoded

    @property
    def left_out(self) -> Sequence[str]:
        """Pictures that are missing or broken."""
        return self._left_out

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Encode the pictures and index them, or open their index in the cache.

        Raises:
            UserError: the corpus is missing.
            DataError: pictures are missing or broken, or show no article of the corpus.
        """
        pictures = self._pictures(corpus)
        with _naming_skip():
            self._search.prepare(pictures, progress)

    def encode(self, corpus: Corpus, progress: Progress | None = None) -> EncodingStats | None:
        """Encode the pictures that are not encoded yet; None if they are indexed."""
        pictures = self._pictures(corpus)
        with _naming_skip():
            return self._search.encode(pictures, progress)

    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """Return the passages of the best articles, at most k: each with its article's score.

        Passages of an article follow one another, in the order of the corpus.

        Raises:
            PromptError: a photo cannot be encoded.
        """
        if self._gallery is None:
            raise ValueError("call prepare(corpus) first")
        # Only the photo counts: questions about one share its ranking.
        photos = [replace(q, question="", instruction=None) for q in questions]
        found = self._articles(photos, min(self.config.articles, len(self._passages)))
        return [to_hits(self._expanded(ranking)[:k]) for ranking in found]

    def _articles(self, photos: Sequence[Question], wanted: int) -> list[dict[str, float]]:
        """Return each photo's best articles with their scores, best first."""
        out: list[dict[str, float]] = [{} for _ in photos]
        assert self._gallery is not None
        todo = [i for i, photo in enumerate(photos) if photo.image is not None]
        depth, total = 2 * wanted, len(self._gallery)
        while todo:
            depth = min(depth, total)
            rankings = self._search.retrieve([photos[i] for i in todo], depth)
            for i, hits in zip(todo, rankings, strict=True):
                best: dict[str, float] = {}
                for hit in hits:  # the first picture of an article is its best
                    best.setdefault(self._owners[hit.passage_id], hit.score)
                out[i] = dict(list(best.items())[:wanted])
            todo = [
                i
                for i, hits in zip(todo, rankings, strict=True)
                if len(out[i]) < wanted and len(hits) == depth < total
            ]
            depth *= _WIDER
        return out

    def _expanded(self, ranking: Mapping[str, float]) -> list[tuple[str, float]]:
        most = self.config.per_article
        return [
            (passage, score)
            for article, score in ranking.items()
            for passage in self._passages[article][:most]
        ]

    # -- the pictures -------------------------------------------------------------------------

    def _pictures(self, corpus: Corpus | None) -> Corpus:
        """Return the pictures as a corpus: a passage without text for each."""
        if corpus is None:
            raise UserError(f"{_WHY} needs passages: give a file with --corpus")
        if self._gallery is not None and self._made_for == corpus.fingerprint:
            return self._gallery
        by_name, own = self._read_articles(corpus)
        pictures = own
        if self.config.images is not None:
            pictures = list(
                self._of_list(read_gallery(self.config.images, self.config.folder), by_name, corpus)
            )
        found, pictures = len(pictures), self._whole(pictures)
        if not found and self.config.images is None:
            raise DataError(
                f"{_WHY}: no passage of {corpus.source} has an image: set images to a list or "
                "folder of pictures"
            )
        if not pictures:
            raise DataError(
                f"{_WHY}: none of {number_of(found, 'picture')} of "
                f"{self.config.images or corpus.source} is left"
            )
        self._owners = {str(i): article for i, (article, _) in enumerate(pictures)}
        shown = set(self._owners.values())
        self._passages = {a: ids for a, ids in self._passages.items() if a in shown}
        self._gallery = Corpus.build(
            (Passage(str(i), "", image=image.path) for i, (_, image) in enumerate(pictures)),
            source=str(self.config.images or corpus.source),
            size=_BYTES * len(pictures),
            key=lambda: fingerprint([_stamp(image) for _, image in pictures]),
        )
        self._made_for = corpus.fingerprint
        return self._gallery

    def _read_articles(
        self, corpus: Corpus
    ) -> tuple[dict[str, str], list[tuple[str, GalleryImage]]]:
        """Read which passages each article has; return articles by name, and their own pictures."""
        exact: dict[str, str] = {}
        plain: dict[str, str] = {}
        own: list[tuple[str, GalleryImage]] = []
        self._passages = {}
        for passage in corpus.stream():
            names = passage.article_names or (passage.passage_id,)
            article = names[0] if self.config.expand == "sections" else passage.passage_id
            self._passages.setdefault(article, []).append(passage.passage_id)
            for name in names:
                for known, key in ((exact, name), (plain, plain_name(name))):
                    if known.setdefault(key, article) != article:
                        known[key] = _SEVERAL
            if self.config.images is None and (image := passage_image(passage)):
                own.append((article, image))
        return plain | exact, own

    def _of_list(
        self, images: Iterable[GalleryImage], by_name: Mapping[str, str], corpus: Corpus
    ) -> Iterable[tuple[str, GalleryImage]]:
        """Yield the pictures of articles of the corpus, each with its article.

        Raises:
            DataError: there are none.
        """
        strange: dict[str, list[GalleryImage]] = {"no article": [], "several articles": []}
        total = known = 0
        for image in images:
            names = itertools.chain(*image.forms)
            article = next((by_name[name] for name in names if name in by_name), None)
            total += 1
            if article is None:
                strange["no article"].append(image)
            elif article == _SEVERAL:
                strange["several articles"].append(image)
            else:
                known += 1
                yield article, image
        for of, found in strange.items():
            if not found:
                continue
            listed = ", ".join(dict.fromkeys(image.names[0] for image in found[:5]))
            problem = (
                f"{_WHY}: {len(found)} of {total} pictures of {self.config.images} are of {of} of "
                f"{corpus.source}: {listed}"
            )
            if not known:
                raise DataError(problem)
            _log.warning("%s", problem)

    def _whole(self, pictures: list[tuple[str, GalleryImage]]) -> list[tuple[str, GalleryImage]]:
        """Return the pictures that can be used; all of them must be, unless others are left out."""
        if self.config.missing == "fail":
            if problem := missing_images([image for _, image in pictures]):
                raise DataError(f"{_WHY}: {problem} ({_SKIP})")
            return pictures
        broken = broken_images([image.path for _, image in pictures])
        self._left_out = tuple(broken.values())
        if broken:
            first = self._left_out[0]
            count = number_of(len(broken), "picture is", "pictures are")
            _log.warning("%s: %s left out: %s", _WHY, count, first)
        return [(article, image) for article, image in pictures if image.path not in broken]


@contextmanager
def _naming_skip() -> Iterator[None]:
    """Say in the error of a picture that cannot be decoded how to leave such out."""
    try:
        yield
    except DataError as e:
        raise DataError(f"{_WHY}: {e} ({_SKIP})") from None


def _stamp(image: GalleryImage) -> tuple[str, int, int]:
    """Return what changes when a picture does, without reading it."""
    path = image.path
    file = next(p for p in (path, *path.parents) if p.is_file())  # or the archive it is in
    found = file.stat()
    return str(path), found.st_size, found.st_mtime_ns
