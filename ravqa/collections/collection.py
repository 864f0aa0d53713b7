"""A collection: passages, settings and search index in one folder, to search and ask."""

from __future__ import annotations

import copy
import difflib
import os
import threading
from collections import Counter, abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

from ravqa.collections import archive, trust
from ravqa.collections.changes import Changes, Plan, plan
from ravqa.collections.filters import Where
from ravqa.collections.folder import (
    FIRST_FORMAT,
    CollectionCorpus,
    CollectionFolder,
    Manifest,
    State,
    Writer,
)
from ravqa.collections.needs import Needs, estimate
from ravqa.collections.settings import checked, own_settings, refusal, with_own_index
from ravqa.collections.sources import shown_name, stored_name
from ravqa.collections.trust import Setting
from ravqa.core.errors import DataError, UserError, check_number, check_text, checked_choices
from ravqa.core.factory import Session, part_config
from ravqa.core.progress import Progress
from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import load_pipeline
from ravqa.corpora.corpus import Corpus, Selection
from ravqa.corpora.kb import Sections
from ravqa.corpora.origins import Origin, folder_prefixes
from ravqa.corpora.pdf import PagesAs
from ravqa.corpora.remarks import Remarks
from ravqa.corpora.sources import is_folder
from ravqa.describers.text import as_text
from ravqa.images.decode import as_source, image_bytes
from ravqa.indexes import INDEXES
from ravqa.indexes.exact import ExactIndex
from ravqa.pipeline import Pipeline, Response
from ravqa.rerankers.build import asks_own_reader
from ravqa.retrievers.base import Retriever, to_hits
from ravqa.retrievers.late_interaction import LateInteractionRetriever

_NEAR = 10_000  # most ids that are searched for similar ones
_SEARCHING = frozenset({"describer", "retriever", "reranking"})
_ANSWERING = frozenset({"reader", "answering"})
_PIECES = 32  # more are merged: each costs time and open files


class Collection:
    """Passages in one folder, which can be added, replaced, deleted, searched and asked.

    Models are loaded on first use: for adding, searching and asking. One process writes at a time;
    any number can read, each the state that it last saw (`refresh`). Searches may run in several
    threads.

    Attributes:
        withheld: settings that came from elsewhere, name something outside the collection, and are
            not followed: operations that need them raise UserError.
    """

    def __init__(
        self,
        folder: CollectionFolder,
        settings: Mapping[str, Any],
        where: str,
        session: Session | None = None,
        withheld: Sequence[Setting] = (),
        state: State | None = None,
    ):
        """See `create`, `open` and `rebuild`."""
        self._folder = folder
        self._settings = dict(settings)
        self._where = where
        self.withheld = tuple(withheld)
        for section in ("answering", "reranking"):
            if self._withheld({section}):  # not even read: their prompts may be files
                self._settings.pop(section)
        self.config, self._late = checked(self._settings, where)
        self._index = self._late.index
        self._mutex = threading.RLock()
        self._session = Session() if session is None else session
        self._pipelines: dict[bool, Pipeline] = {}
        led = [s for s in withheld if s.path.startswith("retriever.index.")]
        if led:  # it would be opened at a server, or with options for other programs
            raise refusal(led, where)
        self._state = folder.read(self._index) if state is None else state

    @classmethod
    def create(
        cls,
        path: Path | str,
        pipeline: str = "sample",
        *overrides: str,
        words: int | None = None,
        pages: PagesAs | None = None,
        dpi: int | None = None,
        ocr: bool | None = None,
    ) -> Collection:
        """Create an empty collection in a new folder, or over one that never had a passage.

        Args:
            pipeline: a YAML file or a name in `pipelines/`; its settings are kept with the
                collection.
            overrides: "key.path=value".
            words: longest passage of a page or article, in words; kept with the collection.
            pages: what pages of PDF files are read as, by default "text"; kept with the collection
                (`ravqa.corpora.pdf.PageForm`).
            dpi: resolution of the images of pages; kept with the collection.
            ocr: whether OCR reads pages of PDF files without text; kept with the collection.

        Raises:
            UserError: the folder is not empty; invalid settings, or a retriever other than
                late-interaction; a missing package or model; a `dpi` that cannot be used.
        """
        sections = Sections(words=words, pages=pages, dpi=dpi, ocr=ocr)
        _ = sections.page_form  # raises
        folder = CollectionFolder(
            Path(path), mend="open it with Collection.open, or use Collection.open_or_create"
        )
        settings, where = load_pipeline(pipeline, overrides)
        checked(settings, where)
        folder.check_new(begun=True)
        if folder.exists():
            there = folder.manifest()
            if there.settings == settings and _reading(there) == sections:
                _trust(settings)
                return cls(folder, settings, where)
        session = Session()
        built = Pipeline.from_config(settings, where=where, retrieval_only=True, session=session)
        encoder = _late(built).encoder
        folder.create(
            settings,
            {
                "fingerprint": encoder.passages_fingerprint,
                "weights": encoder.weights,
                "dim": encoder.dim,
            },
            sections,
        )
        _trust(settings)
        return cls(folder, settings, where, session)

    @classmethod
    def open_or_create(
        cls,
        path: Path | str,
        pipeline: str = "sample",
        *overrides: str,
        words: int | None = None,
        pages: PagesAs | None = None,
        dpi: int | None = None,
        ocr: bool | None = None,
    ) -> Collection:
        """Open the collection in a folder, or create an empty one if there is none.

        A script that begins with this, and then calls `update` or `add_files`, can run any number
        of times: what is there already is neither added nor encoded again.

        Args:
            pipeline, overrides: as for `create`. An existing collection is opened with these
                settings; its encoder must be the same.
            words, pages, dpi, ocr: as for `create`.

        Raises:
            UserError: as `create` and `open`; an existing collection has other `words`, `pages`,
                `dpi` or `ocr`.
        """
        folder = CollectionFolder(Path(path))
        if not folder.exists() or folder.manifest().index is None:
            return cls.create(
                path, pipeline, *overrides, words=words, pages=pages, dpi=dpi, ocr=ocr
            )
        collection = cls.open(path, pipeline, *overrides)
        own = _reading(collection._state.manifest)
        given = {"words": words, "pages": pages, "dpi": dpi, "ocr": ocr}
        for name, wanted in given.items():
            if wanted not in (None, there := getattr(own, name)):
                raise UserError(
                    f"{path} was created with {name}={there}, not {wanted}: open it with "
                    "Collection.open, or create another collection in a new folder"
                )
        return collection

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Return whether this folder contains a collection."""
        return CollectionFolder(Path(path)).exists()

    @staticmethod
    def check_new(path: Path | str) -> None:
        """Raise UserError if `ravqa collection build` would reject this folder."""
        mend = f"add to it with ravqa collection add {path}, or choose a new folder"
        CollectionFolder(Path(path), mend=mend).check_new(begun=True)

    @classmethod
    def open(
        cls,
        path: Path | str,
        pipeline: str | None = None,
        *overrides: str,
        trust_settings: bool = False,
        session: Session | None = None,
    ) -> Collection:
        """Open the collection in a folder.

        Settings that were not given on this machine are followed unless they name something outside
        the collection: a server, environment variable, local path or code (`withheld`).

        Args:
            pipeline: settings in place of the collection's own. The encoder must be the same; query
                text, reader and so on may differ. The index `auto` is the collection's.
            overrides: "key.path=value".
            trust_settings: follow the collection's own settings wherever they come from, now and
                later: they are remembered on this machine (`ravqa.collections.trust`).
            session: collections and pipelines opened with the same session share their models.

        Raises:
            DataError: an image is outside the collection's folder.
            UserError: there is no collection, it is damaged, or has links that lead out of it;
                invalid settings, another encoder, or settings that would run a model's code without
                your consent.
        """
        folder = CollectionFolder(Path(path))
        own = folder.manifest().settings
        folder.check_links()
        if trust_settings:
            _trust(own)
        withheld: Sequence[Setting] = ()
        if pipeline is None:
            settings, withheld = own_settings(own, overrides)
            where = str(path)
        else:
            settings, where = load_pipeline(pipeline, overrides)
            settings, withheld = with_own_index(settings, own, overrides)
        collection = cls(folder, settings, where, session, withheld)
        code = [s for s in collection._withheld(_SEARCHING) if s.names == trust.CODE]
        if code:
            raise refusal(code, where)
        collection._state.corpus.check_images()
        if settings["retriever"].get("encoder") != own["retriever"].get("encoder"):
            collection._pipeline()  # which compares the encoders
        return collection

    @classmethod
    def rebuild(
        cls,
        path: Path | str,
        *overrides: str,
        trust_settings: bool = False,
        progress: Progress | None = None,
    ) -> Collection:
        """Encode all passages of a collection again, build its index anew, and open it.

        For an index that was lost with a server or some shards, and for one of another kind. The
        old index serves searches until the new one takes its place; a killed call leaves it as it
        was, and resumes the encoding when it is called again.

        Args:
            overrides: "key.path=value", which the collection keeps; its encoder must be the same.
            trust_settings: as for `open`.

        Raises:
            UserError: as `open`, but not if the index is lost of a kind that does not commit
                changes itself (shards, Qdrant); another process is writing.
        """
        folder = CollectionFolder(Path(path))
        own = folder.manifest().settings
        folder.check_links()
        if trust_settings:
            _trust(own)
        _, late = checked(own, str(path))
        settings, withheld = own_settings(own, overrides)
        collection = cls(
            folder, settings, str(path), withheld=withheld, state=folder.listed(late.index)
        )
        if not withheld:
            _trust(settings)
        encoder = _late(collection._pipeline())
        with folder.writing(late.index, listed=True) as writer:
            passages = Selection(writer.state.corpus, list(writer.state.corpus))
            if not passages:
                raise UserError(f"{path} has no passage: there is nothing to build an index of")
            with encoder.embedded(passages, progress) as vectors:
                writer.rebuild(collection._index, settings, list(passages), vectors, progress)
            collection._state = writer.state
        return collection

    # -- reading ------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The collection's folder."""
        return self._folder.path

    @property
    def words(self) -> int | None:
        """Longest passage of a page or article in words, as passed to `create`."""
        return self._state.manifest.words

    @property
    def corpus(self) -> Corpus:
        """The passages, by id."""
        return self._state.corpus

    def __len__(self) -> int:
        return len(self._state.corpus)

    def __contains__(self, passage_id: object) -> bool:
        return _is_id(passage_id) and str(passage_id) in self._state.corpus

    def __iter__(self) -> Iterator[str]:
        """Iterate over ids, in the order in which their vectors were added."""
        return iter(self._state.corpus)

    def __getitem__(self, passage_id: str | int) -> Passage:
        return self._state.corpus[own_id(passage_id)]

    def refresh(self) -> None:
        """Load what other processes have changed."""
        state = self._folder.read(self._index)
        with self._mutex:
            self._state = state

    def stats(self) -> dict[str, Any]:
        """Return statistics of passages, encoder and index."""
        state = self._state
        numbers = {} if state.index is None else state.index.stats()
        numbers.pop("fingerprint", None)
        left_out = len(state.corpus.left_out)
        return {
            "passages": len(state.corpus),
            **({"left_out": left_out} if left_out else {}),
            "encoder": state.manifest.encoder["weights"],
        } | numbers

    def verify(self) -> list[str]:
        """Check every file; return a line for each fault."""
        return list(self._folder.faults(self._folder.read(self._index)))

    @property
    def local_models(self) -> list[str]:
        """Return local paths among the encoder's weights."""
        model = self._late.encoder.options.get("model")
        return [model] if isinstance(model, str) and Path(model).expanduser().exists() else []

    def load(self) -> None:
        """Load now what searching and adding need, instead of on first use.

        Raises:
            UserError: a missing package or model; the encoder differs from the index's.
        """
        self._pipeline()

    # -- searching ----------------------------------------------------------------------------

    def search(
        self,
        question: str,
        image: Path | str | bytes | None = None,
        *,
        k: int = 5,
        instruction: str | None = None,
        where: Where | None = None,
        allowed_ids: abc.Collection[str] | None = None,
    ) -> list[tuple[Hit, Passage]]:
        """Return the k best passages for a question about an image, best first.

        Args:
            image: a path, or the encoded bytes.
            instruction: replaces the default instruction of encoders that take one.
            where: only passages with these metadata; see `ravqa.collections.filters`.
            allowed_ids: only these passages.

        Raises:
            DataError: the image cannot be decoded.
            UserError: k is below 1; `where` names a key that no passage has; a missing package or
                model.
        """
        check_number("k", k)
        record = _asked(question, image, instruction)
        found = self._ask(record, k, where, allowed_ids, answering=False)
        return list(zip(found.hits[:k], found.passages[:k], strict=True))

    def ask(
        self,
        question: str,
        image: Path | str | bytes | None = None,
        *,
        choices: Sequence[str] = (),
        instruction: str | None = None,
        where: Where | None = None,
        allowed_ids: abc.Collection[str] | None = None,
    ) -> Response:
        """Answer a question about an image from the passages, with the pipeline's reader.

        Args:
            choices: the answers to choose from; the prompt shows them if its template does.
            question, image, instruction, where, allowed_ids: as for `search`.

        Raises:
            DataError, UserError: as `search`.
        """
        record = replace(_asked(question, image, instruction), choices=checked_choices(choices))
        return self._ask(record, 1, where, allowed_ids, answering=True)

    def retrieve(
        self,
        questions: Sequence[Question],
        k: int,
        *,
        where: Where | None = None,
        allowed_ids: abc.Collection[str] | None = None,
    ) -> list[list[Hit]]:
        """Return the k best passages per question, before any reranking.

        Raises:
            DataError, UserError: as `search`.
        """
        check_number("k", k)
        pipeline = self.pipeline(where=where, allowed_ids=allowed_ids)
        return pipeline.retriever.retrieve(pipeline.describe(questions), k)

    def pipeline(
        self,
        *,
        where: Where | None = None,
        allowed_ids: abc.Collection[str] | None = None,
        answering: bool = False,
    ) -> Pipeline:
        """Return the current state as a prepared pipeline; later changes do not affect it.

        Args:
            where, allowed_ids: limit what may be found, as for `search`.
            answering: whether to include its reader.

        Raises:
            UserError: `where` names a key that no passage has; a missing package or model.
        """
        state = self._state
        pipeline = copy.copy(self._pipeline(answering=answering))
        allowed = self._allowed(state, where, allowed_ids)
        pipeline.retriever = _StateRetriever(_late(pipeline), state, allowed)
        pipeline.corpus = state.corpus
        return pipeline

    def matching(self, where: Where) -> list[str]:
        """Return ids of the passages with these metadata, in order; see `collections.filters`."""
        found = self._state.matching(where)
        return [passage_id for passage_id in self._state.corpus if passage_id in found]

    def _ask(
        self,
        question: Question,
        k: int,
        where: Where | None,
        allowed_ids: abc.Collection[str] | None,
        *,
        answering: bool,
    ) -> Response:
        pipeline = self.pipeline(where=where, allowed_ids=allowed_ids, answering=answering)
        pipeline.top_k = max(k, pipeline.top_k)
        return pipeline.ask(question)

    @staticmethod
    def _allowed(
        state: State, where: Where | None, allowed_ids: abc.Collection[str] | None
    ) -> abc.Collection[str] | None:
        if allowed_ids is not None:
            allowed_ids = frozenset(map(own_id, allowed_ids))
        if where is None:
            return allowed_ids
        found = state.matching(where)
        return found if allowed_ids is None else found.intersection(allowed_ids)

    # -- changing -----------------------------------------------------------------------------

    def add(
        self,
        passages: Iterable[Passage] | Corpus,
        *,
        source: str | None = None,
        progress: Progress | None = None,
    ) -> Changes:
        """Add passages; skip those that are already present with the same content.

        A killed call leaves the collection as it was; called again, it resumes the encoding where
        it stopped.

        Args:
            source: a name for where they come from, which `update` can prune by; None for what a
                corpus itself knows of its files.

        Raises:
            DataError: an id occurs twice, or is present with other content.
            UserError: another process is writing.
        """
        return self.put(passages, source=source, progress=progress)

    def add_files(
        self,
        *paths: Path | str,
        words: int | None = None,
        pages: PagesAs | None = None,
        dpi: int | None = None,
        ocr: bool | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
        replacing: bool = False,
        prune: bool = False,
        dry_run: bool = False,
        remarks: Remarks | None = None,
        progress: Progress | None = None,
    ) -> Changes:
        """Add the content of files and folders: passages, pages and pictures (`Corpus.read`).

        Args:
            words: longest passage of a page or article, in words; None for the collection's own
                choice (`create`).
            pages, dpi, ocr: how pages of PDF files are read, as for `create`.
            encoding: of tables and texts; None to recognize it.
            delimiter: between the fields of CSV files, or "tab"; None to recognize it.
            replacing: replace passages whose content differs, as `update` does.
            prune: delete passages that came from these files and folders, and are not in them any
                more.
            dry_run: change nothing; return what would change.
            remarks: collects notes of what was left out.

        Raises:
            DataError: as `add` and `Corpus.read`; or `prune`, and something cannot be read.
            UserError: as `add`; or `prune`, and no passage is known to come from one of them.
        """
        sections = Sections(
            words=words,
            pages=pages,
            dpi=dpi,
            ocr=ocr,
            encoding=encoding,
            delimiter=delimiter,
        )
        remarks = remarks or Remarks()
        corpus = self.read_files(*paths, sections=sections, remarks=remarks)
        if prune:
            remarks.check_prune()
        return self.put(
            corpus, replacing=replacing, prune=prune, dry_run=dry_run, progress=progress
        )

    def read_files(
        self,
        *paths: Path | str,
        sections: Sections | None = None,
        remarks: Remarks | None = None,
    ) -> Corpus:
        """Return the content of files and folders, with the ids that it has in this collection.

        Those of a folder begin with its name, unless it is the first one here and given alone
        (`ravqa.corpora.origins`). A folder that is known keeps what they began with.

        Args:
            sections: as for `Corpus.read`; where it has no `words`, `pages`, `dpi` or
                `ocr`, the collection's own are used.
            remarks: collects notes of what was left out.

        Raises:
            DataError, UserError: as `Corpus.read`.
        """
        places = [Path(path) for path in paths]
        own = _reading(self._state.manifest)
        if sections is not None:
            chosen = sections.model_dump(exclude_none=True)
            if chosen.get("pages") == "text" and not chosen.get("ocr", own.ocr):
                own = own.model_copy(update={"dpi": None})
            own = own.model_copy(update=chosen)
        return Corpus.read(
            *places,
            sections=own,
            remarks=remarks or Remarks(),
            uncaptioned=True,
            numbered=True,
            prefixes=self._prefixes([place for place in places if is_folder(place)]),
        )

    def update(
        self,
        passages: Iterable[Passage] | Corpus,
        *,
        source: str | None = None,
        prune: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Changes:
        """Replace passages by their ids and add new ones, in one change.

        Args:
            source: as for `add`.
            prune: delete passages of the same source that are not among these.
            dry_run: change nothing; return what would change.

        Raises:
            DataError, UserError: as `add`.
            UserError: `prune` without a source.
        """
        return self.put(
            passages, replacing=True, prune=prune, source=source, dry_run=dry_run, progress=progress
        )

    def delete(self, ids: Iterable[str]) -> Changes:
        """Delete passages; they are no longer found. `compact` removes their bytes.

        Raises:
            UserError: an id does not exist, or another process is writing.
        """
        ids = list(dict.fromkeys(map(own_id, ids)))
        with self._changing() as writer:
            for passage_id in ids:
                if passage_id not in writer.state.corpus:
                    raise self.unknown(passage_id)
            if ids:
                writer.commit(delete=ids)
        return Changes(deleted=len(ids))

    def compact(self) -> None:
        """Rewrite all files without what was deleted or replaced."""
        with self._changing() as writer:
            writer.compact()

    def pack(self, target: Path | str, *, progress: Progress | None = None) -> int:
        """Pack the collection into one file for sharing; return its size in bytes.

        It is compacted first if anything was deleted or replaced, so that none of that is shared.

        Raises:
            UserError: the file exists or cannot be written; another process is writing.
        """
        if not os.access(self.path, os.W_OK):
            state = self._folder.read(self._index)
            if state.tidy:  # nothing to write, so no lock is needed
                return archive.pack(self._folder, state, Path(target), progress)
        with self._changing() as writer:
            if not writer.state.tidy:
                writer.compact()
            return archive.pack(self._folder, writer.state, Path(target), progress)

    @classmethod
    def unpack(
        cls,
        source: Path | str,
        path: Path | str,
        *,
        trust_settings: bool = False,
        progress: Progress | None = None,
    ) -> Collection:
        """Unpack a packed collection into a new folder and open it.

        Args:
            trust_settings: as for `open`. Without it, `withheld` has the packed settings that name
                something outside, and an index whose files are used without a check (faiss) is
                refused.

        Raises:
            UserError: the file is not a packed collection, or damaged; the folder is not empty.
        """
        archive.unpack(Path(source), Path(path), progress, trusted=trust_settings)
        folder = CollectionFolder(Path(path))
        own = folder.manifest().settings
        if trust_settings:
            _trust(own)
        settings, withheld = own_settings(own, ())
        return cls(folder, settings, str(path), withheld=withheld)

    def unknown(self, passage_id: str) -> UserError:
        """Return the error for an id that no passage has."""
        near = difflib.get_close_matches(passage_id, self, cutoff=0.5) if len(self) <= _NEAR else []
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        return UserError(f"no passage {passage_id!r} in {self.path}{hint}")

    @contextmanager
    def _changing(self) -> Iterator[Writer]:
        with self._folder.writing(self._index) as writer:
            if writer.state.manifest.encoder != self._state.manifest.encoder:
                raise UserError(f"{self.path} was rebuilt with another encoder: open it again")
            self._finish(writer)
            try:
                yield writer
                if writer.state.pieces > _PIECES:
                    writer.compact()
            finally:
                with self._mutex:
                    self._state = writer.state

    def _finish(self, writer: Writer) -> None:
        """Complete the change of a writer that was killed."""
        unfinished = writer.unfinished
        if not unfinished:
            if unfinished is not None:
                writer.finish((), ())
            return
        missing = Selection(writer.state.corpus, unfinished)
        with _late(self._pipeline()).embedded(missing) as vectors:
            writer.finish(unfinished, vectors)

    def put(
        self,
        passages: Iterable[Passage] | Corpus,
        *,
        replacing: bool = False,
        prune: bool = False,
        source: str | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Changes:
        """Add, replace and delete in one change, for `add`, `update` and `add_files`.

        Args:
            replacing: replace passages whose content differs; else they are an error.
            prune, source, dry_run: as for `update`.

        Raises:
            DataError, UserError: as `add` and `update`.
        """
        if not isinstance(passages, Corpus):
            passages = Corpus(replace(p, passage_id=own_id(p.passage_id)) for p in passages)
        incoming = passages
        for passage_id in incoming:
            own_id(passage_id, texts_only=True)
        runs = self._runs(incoming, source)
        if prune and not runs:
            raise UserError("only passages of a known source can be pruned: name it with source=")

        def compared(own: Mapping[str, Passage], state: State) -> Plan:
            if prune and source is None:
                self._check_known(runs, state)
            self._check_prefixes(runs, state)
            return plan(
                Selection(incoming, list(incoming), own),
                state.corpus,
                runs,
                replacing=replacing,
                prune=prune,
                claims=state.index is None or state.index.can_change,
                sees_images=lambda: _late(self._pipeline()).encoder.supports_passage_images,
            )

        if dry_run:
            state = self._folder.read(self._index)
            return compared(self._expected_pictures(incoming, state.corpus), state).changes()
        pipeline = self._pipeline()
        late = _late(pipeline)
        with self._changing() as writer:
            own = self._pictures(incoming, writer, pipeline, progress)
            made = compared(own, writer.state)
            put = ((own.get(i) or incoming[i], made.origins[i]) for i in made.written)
            truncated = 0
            if made.written or made.deleted:
                writer.check_growth()
            if made.encoded:
                with late.embedded(Selection(incoming, made.encoded, own), progress) as vectors:
                    truncated = vectors.stats.truncated
                    writer.commit(
                        made.encoded, vectors, put=put, delete=made.deleted, progress=progress
                    )
                self._outgrown(writer, progress)
            elif made.written or made.deleted:
                writer.commit(put=put if made.written else None, delete=made.deleted)
            writer.note_left_out(incoming.source, incoming.left_out)
        return made.changes(truncated)

    def needs(self, passages: Corpus) -> Needs | None:
        """Return what adding passages will need; None if all of their ids are there already.

        The first ones are encoded for it.

        Raises:
            DataError: an image of one of these cannot be decoded.
            UserError: a missing package or model.
        """
        encoder = _late(self._pipeline()).encoder
        ids = [i for i in passages if i not in self]
        if not ids:
            return None
        kind = INDEXES.get(self._index.name)
        config = part_config(INDEXES, self._index, "retriever.index")
        footprint = kind.footprint(config, encoder.dim, len(self) + len(ids))
        return estimate(passages, ids, encoder, footprint, elsewhere=kind.elsewhere(config))

    # -- sources ------------------------------------------------------------------------------

    def sources(self) -> dict[str | None, int]:
        """Return the number of passages by source; None for those whose source is not known.

        Files and folders are named by their paths from the current folder. Reads every passage.
        """
        origins = (origin for _, origin in self._state.corpus.with_origins())
        found = Counter(origin.source if origin else None for origin in origins)
        names = sorted(found, key=lambda name: (name is None, name))
        return {name and shown_name(name, self.path): found[name] for name in names}

    def _prefixes(self, folders: Sequence[Path]) -> dict[Path, str]:
        """Return what the ids of each folder's passages begin with."""
        state = self._folder.read(self._index)
        if state.manifest.format == FIRST_FORMAT:
            return {}
        known = state.corpus.known_origins
        found = {}
        for folder in folders:
            origin = known.get(stored_name(folder, self.path))
            if origin is not None:
                found[folder] = origin.prefix or ""
        new = [folder for folder in folders if folder not in found]
        if len(folders) == 1 and all(origin.prefix is None for origin in known.values()):
            return dict.fromkeys(new, "")

        def taken(prefix: str) -> bool:
            return any(passage_id.startswith(prefix) for passage_id in state.corpus)

        return found | dict(zip(new, folder_prefixes(new, taken=taken), strict=True))

    def _runs(self, incoming: Corpus, source: str | None) -> list[tuple[Origin, int]]:
        """Return the sources of passages under their names in this collection."""
        if source is not None:
            check_text("source", source)
            return [(Origin(source), len(incoming))]
        return [
            (replace(origin, source=stored_name(Path(origin.source), self.path)), count)
            for origin, count in incoming.origins
        ]

    def _check_known(self, runs: Sequence[tuple[Origin, int]], state: State) -> None:
        """Raise UserError if nothing came from a source: its path may be another one's."""
        known = state.corpus.known_origins
        for origin, _ in runs:
            if len(state.corpus) and origin.source not in known:
                there = ", ".join(shown_name(name, self.path) for name in sorted(known)) or "none"
                raise UserError(
                    f"{self.path} has no passage of {shown_name(origin.source, self.path)} to "
                    f"prune; its sources: {there}: update it once without pruning"
                )

    def _check_prefixes(self, runs: Sequence[tuple[Origin, int]], state: State) -> None:
        """Raise UserError if a folder's ids would be other ones than those it has here."""
        known = state.corpus.known_origins
        for origin, _ in runs:
            if (known.get(origin.source) or origin).prefix != origin.prefix:
                raise UserError(
                    f"in {self.path}, ids of {shown_name(origin.source, self.path)} begin with "
                    f"{known[origin.source].prefix!r}: read it with read_files or add_files"
                )

    # -- pictures -----------------------------------------------------------------------------

    def _expected_pictures(self, incoming: Corpus, there: CollectionCorpus) -> dict[str, Passage]:
        """Return passages with an image as `_pictures` would, but write and describe nothing.

        A picture without text has its description if the collection has the same picture.
        """
        own = {}
        for passage in incoming.values():
            if passage.image is None:
                continue
            place = self._folder.image_place(passage.image, image_bytes(passage.image))
            new = replace(passage, image=place)
            if not new.text.strip() and new.passage_id in there:
                old = there[new.passage_id]
                new = replace(new, text=old.text) if old.image == place else new
            own[new.passage_id] = new
        return own

    def _pictures(
        self, incoming: Corpus, writer: Writer, pipeline: Pipeline, progress: Progress | None
    ) -> dict[str, Passage]:
        """Return passages with an image as stored: with a copy of it, and a searchable text."""
        own = {
            p.passage_id: replace(p, image=writer.keep_image(p.image))
            for p in incoming.values()
            if p.image is not None
        }
        blank = [p for p in own.values() if not p.text.strip()]
        if blank and pipeline.describer is not None:
            # Not the copies: descriptions of others are looked up by the names of the files.
            given = [incoming[p.passage_id].image for p in blank]
            images = [image for image in given if image is not None]
            described = pipeline.describer.describe(images, progress)
            for passage, seen in zip(blank, described, strict=True):
                own[passage.passage_id] = replace(passage, text=as_text(seen))
        elif blank and not _late(pipeline).encoder.supports_passage_images:
            raise DataError(
                f"{incoming.source}: the image {blank[0].passage_id!r} has no caption: write one, "
                "or choose a pipeline with a describer, or an encoder that sees images of passages"
            )
        return own

    def _outgrown(self, writer: Writer, progress: Progress | None) -> None:
        """Convert the exact index, `auto`'s choice for a small corpus, once the corpus is large."""
        index = writer.state.index
        if self._index.name == "auto" and isinstance(index, ExactIndex):
            above = part_config(INDEXES, self._index, "retriever.index").above
            if len(index) >= above:
                writer.convert(self._index, progress)

    def _withheld(self, sections: abc.Collection[str]) -> list[Setting]:
        """Return those of `withheld` that belong to these keys of a pipeline."""
        return [s for s in self.withheld if s.path.partition(".")[0] in sections]

    # -- models -------------------------------------------------------------------------------

    def _pipeline(self, *, answering: bool = False) -> Pipeline:
        """Return the pipeline, with reader if `answering`; built on first use."""
        reads = answering or asks_own_reader(self.config.reranking)
        if withheld := self._withheld(_SEARCHING | _ANSWERING if reads else _SEARCHING):
            raise refusal(withheld, self._where)
        with self._mutex:
            if answering not in self._pipelines:
                built = Pipeline.from_config(
                    self._settings,
                    where=self._where,
                    retrieval_only=not answering,
                    session=self._session,
                )
                encoder = _late(built).encoder
                expected = self._state.manifest.encoder
                if encoder.passages_fingerprint != expected["fingerprint"]:
                    now, then = encoder.weights, expected["weights"]
                    how = f"by {then}, not by {now} as in {self._where}, or with other options"
                    if now == then:
                        how = f"by another version of {now}, or with other options"
                    raise UserError(
                        f"the collection in {self.path} was encoded {how}: open it with its own "
                        "settings, or build another"
                    )
                for other in self._pipelines.values():
                    built.retriever = other.retriever  # threads take turns at one encoder
                self._pipelines[answering] = built
            return self._pipelines[answering]


class _StateRetriever(Retriever):
    """A collection's state, as the pipeline's retriever."""

    def __init__(
        self, late: LateInteractionRetriever, state: State, allowed_ids: abc.Collection[str] | None
    ):
        self.fingerprint = late.fingerprint
        self.weights = late.weights
        self.stores = late.stores
        self._late = late
        self._state = state
        self._allowed = allowed_ids

    @property
    def supports_images(self) -> bool:
        """Return whether the encoder looks at questions' images."""
        return self._late.supports_images

    @property
    def explainer(self) -> Retriever | None:
        """Return the retriever whose encoder made the index."""
        return self._late.explainer

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Do nothing: the index exists."""

    def retrieve(
        self, questions: Sequence[Question], k: int, allowed_ids: abc.Collection[str] | None = None
    ) -> list[list[Hit]]:
        """Return at most k passages per question, best first.

        Args:
            allowed_ids: only these passages, in place of those that it was made for.
        """
        index = self._state.index
        if index is None or not len(index):
            return [[] for _ in questions]
        allowed = self._allowed if allowed_ids is None else allowed_ids
        found = self._late.rank(questions, k, index, self._state.content, allowed)
        if index.commits:
            return found
        # Another process may be changing it: what it has of another state is not found here.
        corpus = self._state.corpus
        return [
            to_hits([(hit.passage_id, hit.score) for hit in hits if hit.passage_id in corpus])
            for hits in found
        ]


def _asked(question: Any, image: Any, instruction: str | None) -> Question:
    check_text("the question", question)
    if not (image is None or isinstance(image, str | Path | bytes)):
        raise UserError(f"an image as {type(image).__name__}: a path or encoded bytes are expected")
    return Question(0, question, as_source(image), instruction=instruction)


def own_id(value: object, *, texts_only: bool = False) -> str:
    """Return a passage's id as text: a number is the id of its digits.

    Raises:
        UserError: it is neither a text nor a whole number.
    """
    if not isinstance(value, str) if texts_only else not _is_id(value):
        raise UserError(f"{value!r:.60} is not an id of a passage: a text is expected")
    return str(value)


def _is_id(value: object) -> bool:
    return isinstance(value, str | Integral) and not isinstance(value, bool)


def _reading(manifest: Manifest) -> Sections:
    """Return how the sources of a collection are read."""
    names = ("words", "pages", "dpi", "ocr")
    return Sections(**{name: getattr(manifest, name) for name in names})


def _trust(settings: Mapping[str, Any]) -> None:
    if trust.outside(settings):
        trust.remember(settings)


def _late(pipeline: Pipeline) -> LateInteractionRetriever:
    retriever = pipeline.retriever
    assert isinstance(retriever, LateInteractionRetriever)
    return retriever
