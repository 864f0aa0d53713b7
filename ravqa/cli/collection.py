"""`ravqa collection`, `search`, `ask` and `chat`: collections of your own passages."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from ravqa.cli.options import from_request
from ravqa.cli.shared import Json, opened_console, say, say_json
from ravqa.core.errors import DataError, UserError, near_matches
from ravqa.core.options import Option
from ravqa.core.texts import number_of, printable

if TYPE_CHECKING:
    from ravqa.collections import Changes, Collection
    from ravqa.core.records import Answer, Hit, Passage
    from ravqa.corpora.corpus import Corpus
    from ravqa.corpora.remarks import Remarks
    from ravqa.pipeline import Response
    from ravqa.runs.console import Console

_MANY = 1000  # passages of which it is said beforehand what they need

app = typer.Typer(
    help="Create and change a collection: passages, settings and search structure in one folder.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="COLLECTION", help="Folder of the collection.")]
_FOLDER = Option("Folder of the collection.", "COLLECTION", argument=True)
_SOURCES = Option(
    "Folders or files: text, Markdown, HTML, PDF, .docx, .pptx, images, .jsonl, .csv, .tsv, "
    ".parquet.",
    "SOURCE...",
    argument=True,
)
_WORDS = Option(
    "Cut pages and articles into passages of at most N words; build remembers N.", "N", least=1
)
_PAGES = Option("What pages of PDF files are read as; build remembers it. Default: text.")
_DPI = Option("Resolution of images of pages; build remembers N. Default: 150.", "N", least=1)
_OCR = Option(
    "Read pages of PDF files without text by OCR (the extra ocr); build remembers it.",
)
_ON_ERROR = Option("If a file cannot be read: stop, or leave it out and list it.")
_ENCODING = Option("Encoding of tables and texts; recognized if not given.", "NAME")
_DELIMITER = Option("What separates the fields of a .csv; recognized if not given.", "CHAR|tab")
_SET = Option("Change one setting; repeatable.", "KEY.PATH=VALUE", "--set")
_TRUST = Option(
    "Use all settings that came with the collection, even those that name servers, "
    "environment variables, files or code. The choice is remembered."
)
_WHERE = Option("Only passages with this metadata, such as page=3; repeatable.", "KEY=VALUE")


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The options of `ravqa collection build`."""

    folder: Annotated[Path, _FOLDER]
    sources: Annotated[Sequence[Path], _SOURCES]
    pipeline: Annotated[
        str,
        Option(
            "Settings of encoder, index and reader: a name in pipelines/, or a YAML file.",
            "NAME|PATH",
        ),
    ] = "sample"
    overrides: Annotated[Sequence[str], _SET] = ()
    words: Annotated[int | None, _WORDS] = None
    pages: Annotated[Literal["text", "images", "both"] | None, _PAGES] = None
    dpi: Annotated[int | None, _DPI] = None
    ocr: Annotated[bool, _OCR] = False
    on_error: Annotated[Literal["fail", "skip"], _ON_ERROR] = "fail"
    encoding: Annotated[str | None, _ENCODING] = None
    delimiter: Annotated[str | None, _DELIMITER] = None
    dry_run: Annotated[
        bool, Option("Build nothing; say how much time, disk and memory it would need.")
    ] = False


@dataclass(frozen=True, slots=True)
class PutRequest:
    """The options of `ravqa collection add` and `update`."""

    folder: Annotated[Path, _FOLDER]
    sources: Annotated[Sequence[Path], _SOURCES]
    words: Annotated[int | None, _WORDS] = None
    pages: Annotated[Literal["text", "images", "both"] | None, _PAGES] = None
    dpi: Annotated[int | None, _DPI] = None
    ocr: Annotated[bool, _OCR] = False
    on_error: Annotated[Literal["fail", "skip"], _ON_ERROR] = "fail"
    encoding: Annotated[str | None, _ENCODING] = None
    delimiter: Annotated[str | None, _DELIMITER] = None
    overrides: Annotated[Sequence[str], _SET] = ()
    trust_settings: Annotated[bool, _TRUST] = False


@dataclass(frozen=True, slots=True)
class ChooseRequest:
    """The passages that `ravqa collection delete` and `info` are about."""

    folder: Annotated[Path, _FOLDER]
    ids: Annotated[Sequence[str], Option("Ids of passages.", "[ID...]", argument=True)] = ()
    where: Annotated[Sequence[str], _WHERE] = ()


_QUESTION = Option("The question; optional with --image.", "[QUESTION]", argument=True)
_IMAGE = Option("The image that the question is about.", "FILE")
_PIPELINE = Option(
    "Use these settings instead of the collection's; the encoder must be the same.", "NAME|PATH"
)
_READER = Option("Use another reader (ravqa ls readers lists all).", "NAME")
_JSON = Option("Print JSON, for scripts.", flag="--json")


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """The options of `ravqa search`."""

    folder: Annotated[Path, _FOLDER]
    question: Annotated[str, _QUESTION] = ""
    image: Annotated[Path | None, _IMAGE] = None
    where: Annotated[Sequence[str], _WHERE] = ()
    pipeline: Annotated[str | None, _PIPELINE] = None
    overrides: Annotated[Sequence[str], _SET] = ()
    as_json: Annotated[bool, _JSON] = False
    trust_settings: Annotated[bool, _TRUST] = False


@dataclass(frozen=True, slots=True)
class AskRequest:
    """The options of `ravqa ask`."""

    folder: Annotated[Path, _FOLDER]
    question: Annotated[str, _QUESTION] = ""
    image: Annotated[Path | None, _IMAGE] = None
    choices: Annotated[
        Sequence[str],
        Option("An answer to choose from; repeatable.", "TEXT", flag="--choice"),
    ] = ()
    where: Annotated[Sequence[str], _WHERE] = ()
    pipeline: Annotated[str | None, _PIPELINE] = None
    reader: Annotated[str | None, _READER] = None
    overrides: Annotated[Sequence[str], _SET] = ()
    as_json: Annotated[bool, _JSON] = False
    trust_settings: Annotated[bool, _TRUST] = False


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The options of `ravqa chat`."""

    folder: Annotated[Path, _FOLDER]
    image: Annotated[Path | None, Option("The image of the first questions.", "FILE")] = None
    where: Annotated[Sequence[str], _WHERE] = ()
    pipeline: Annotated[str | None, _PIPELINE] = None
    reader: Annotated[str | None, _READER] = None
    overrides: Annotated[Sequence[str], _SET] = ()
    trust_settings: Annotated[bool, _TRUST] = False


@app.command()
@from_request(BuildRequest)
def build(request: BuildRequest) -> None:
    """Create a collection of passages, pages and images. If interrupted, repeat the command."""
    with opened_console() as console:
        from ravqa.collections import Collection

        Collection.check_new(request.folder)
        corpus, remarks = _read(request, console)
        with contextlib.ExitStack() as stack:
            folder = request.folder
            if request.dry_run:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "collection"
            with console.status("loading models"):
                collection = Collection.create(
                    folder,
                    request.pipeline,
                    *request.overrides,
                    words=request.words,
                    pages=request.pages,
                    dpi=request.dpi,
                    ocr=request.ocr or None,
                )
            _foresee(console, collection, corpus, request.folder, always=request.dry_run)
            if request.dry_run:
                return
        changes = collection.add(corpus, progress=console.progress)
        _report(console, changes, remarks.lines())


@app.command()
@from_request(PutRequest)
def add(request: PutRequest) -> None:
    """Add passages; skip those already there. If interrupted, repeat the command."""
    _put(request)


@app.command()
@from_request(PutRequest)
def update(
    request: PutRequest,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Delete passages that came from these sources and are not in them any more.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; list what would change.")
    ] = False,
) -> None:
    """Add passages, and replace those whose content has changed (same id)."""
    _put(request, replacing=True, prune=prune, dry_run=dry_run)


@app.command()
@from_request(ChooseRequest)
def delete(request: ChooseRequest) -> None:
    """Delete passages by id or by metadata."""
    with opened_console() as console:
        collection = _open(request.folder)
        wanted = _chosen(collection, request)
        if not wanted and not request.where:
            raise UserError("give the passages' ids, or use --where KEY=VALUE")
        _report(console, collection.delete(wanted), [])


@app.command()
@from_request(ChooseRequest)
def info(request: ChooseRequest, as_json: Json = False) -> None:
    """Show statistics of the collection or, with ids or --where, its passages."""
    with opened_console() as console:
        collection = _open(request.folder)
        if not request.ids and not request.where:
            _print_stats(console, collection, as_json)
            return
        for passage_id in _chosen(collection, request):
            _print_passage(console, collection[passage_id], as_json)


@app.command()
def verify(folder: Folder) -> None:
    """Check every file against its checksum; exit code 2 if one is damaged."""
    with opened_console() as console:
        with console.status("comparing every file with its checksum"):
            faults = _open(folder).verify()
        for fault in faults:
            say(fault)
        if faults:
            raise UserError(f"the collection in {folder} is damaged: build it again")
        say("no file is missing or damaged")


@app.command()
def compact(folder: Folder) -> None:
    """Rewrite the collection without deleted and replaced passages, to free disk space."""
    with opened_console() as console:
        collection = _open(folder)
        with console.status("compacting"):
            collection.compact()
        say(f"{number_of(len(collection), 'passage')}, and nothing deleted or replaced is left")


@app.command()
def rebuild(
    folder: Folder,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar=_SET.metavar, help=_SET.help)
    ] = None,
    trust_settings: Annotated[bool, typer.Option("--trust-settings", help=_TRUST.help)] = False,
) -> None:
    """Encode every passage again and build a new index, also of another kind (--set).

    For an index that was lost with its server. If interrupted, repeat the command.
    """
    with opened_console() as console:
        from ravqa.collections import Collection

        collection = Collection.rebuild(
            folder,
            *(overrides or ()),
            trust_settings=trust_settings,
            progress=console.progress,
        )
        console.close()
        say(f"the index of {number_of(len(collection), 'passage')} was built again")


@app.command()
def pack(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .tar file to write.")],
) -> None:
    """Write the collection to one file with checksums, for sharing."""
    with opened_console() as console:
        collection = _open(folder)
        size = collection.pack(file, progress=console.progress)
        console.close()
        say(f"{number_of(len(collection), 'passage')}, {size:,} bytes: {file}")
        if collection.local_models:
            console.note(
                f"the encoder is a folder on this machine ({', '.join(collection.local_models)}): "
                "to open the collection elsewhere, copy the same weights there and add --set "
                "retriever.encoder.model=DIR"
            )


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file written by pack.")],
    folder: Annotated[Path, typer.Argument(metavar="COLLECTION", help="The new folder.")],
    trust_settings: Annotated[bool, typer.Option("--trust-settings", help=_TRUST.help)] = False,
) -> None:
    """Create a collection from a packed file, after comparing every byte with its checksum.

    Settings in the file that name servers, paths, environment variables or code are listed and not
    used, unless --trust-settings is given.
    """
    with opened_console() as console:
        from ravqa.collections import Collection
        from ravqa.collections.trust import listed as listed_settings

        collection = Collection.unpack(
            file, folder, trust_settings=trust_settings, progress=console.progress
        )
        console.close()
        say(f"{number_of(len(collection), 'passage')}: {folder}")
        reader = collection.config.reader
        model = " ".join(str(v) for k in ("model", "url") if (v := reader.options.get(k)))
        console.note(
            f"encoder: {collection.stats()['encoder']}; reader: {reader.name} {model}".rstrip()
        )
        if collection.withheld:
            console.note(
                "settings not used, because they name something outside the collection: "
                f"{listed_settings(collection.withheld)}: --trust-settings with ravqa search or "
                "ask uses them, --set KEY=VALUE replaces one"
            )


@from_request(SearchRequest)
def search(
    request: SearchRequest,
    k: Annotated[
        int, typer.Option("-k", metavar="N", min=1, help="Number of passages to show.")
    ] = 5,
) -> None:
    """Search a collection with a question about an image; print passages and scores."""
    with opened_console() as console:
        collection = _asked(request)
        with console.status("loading models"):
            _note_blind(collection, request.image, console)
            found = collection.search(
                request.question, request.image, k=k, where=_where(request.where)
            )
        if request.as_json:
            say_json([_hit(*pair) for pair in found], indent=1)
        else:
            _print_hits(console, found)


@from_request(AskRequest)
def ask(request: AskRequest) -> None:
    """Answer a question about an image from the passages of a collection."""
    with opened_console() as console:
        collection = _asked(request)
        with console.status("loading models"):
            _note_reader(collection, request.image, console)
            response = collection.ask(
                request.question,
                request.image,
                choices=request.choices,
                where=_where(request.where),
            )
        answer = response.answer
        assert answer is not None
        found = _read_pairs(response)
        if request.as_json:
            passages = [_hit(*pair) for pair in found]
            values: dict[str, Any] = {"answer": answer.text, "decision": answer.decision}
            values["passages"] = passages
            if answer.pictures is not None:
                values["pictures"] = asdict(answer.pictures)
            stand_ins = dict(_stand_ins(collection, request))
            say_json(values | ({"stand_ins": stand_ins} if stand_ins else {}), indent=1)
        else:
            _print_answer(console, answer)
            _print_hits(console, found)
            _note_stand_ins(collection, request, console)


@from_request(ChatRequest)
def chat(request: ChatRequest) -> None:
    """Answer questions about images from a collection, one after the other, until /quit.

    Each question stands alone: earlier ones are not remembered. /help lists the commands.
    """
    with opened_console() as console:
        collection = _opened(request)
        with console.status("loading models"):
            _note_reader(collection, request.image, console)
        _note_stand_ins(collection, request, console)
        _Chat(collection, console, request.image, _where(request.where)).run()


class _Chat:
    """A loop over lines: questions, and commands that begin with a slash."""

    _COMMANDS: ClassVar[Mapping[str, str]] = {
        "/image": "/image FILE: ask about this image; /image alone: about none",
        "/passages": "/passages: show the passages that the last answer was read from",
        "/help": "/help: list the commands",
        "/quit": "/quit: end (so does Ctrl-D)",
    }

    def __init__(
        self,
        collection: Collection,
        console: Console,
        image: Path | None,
        where: dict[str, list[str]] | None,
    ):
        self._collection = collection
        self._console = console
        self._image = image
        self._where = where
        self._last: Response | None = None

    def run(self) -> None:
        """Read lines until the input ends; an error of one line is shown and does not end it."""
        for line in _lines():
            if not sys.stdin.isatty():  # where nobody sees what was typed
                self._console.out.print(f"> {line}", soft_wrap=True)
            try:
                if line == "/quit":
                    return
                self._do(line)
            except UserError as e:
                say(f"error: {e}", error=True)
            except KeyboardInterrupt:
                say("interrupted", error=True)

    def _do(self, line: str) -> None:
        if not line.startswith("/"):
            self._ask(line)
            return
        command, _, rest = line.partition(" ")
        if command not in self._COMMANDS:
            near = near_matches(command, self._COMMANDS)
            raise UserError(f"{command!r} is not a command; {near}")
        if rest.strip() and command != "/image":
            raise UserError(f"nothing may follow {command}, got {rest.strip()!r}")
        if command == "/image":
            self._look(rest.strip())
        elif command == "/passages":
            if self._last is None:
                raise UserError("nothing has been asked")
            _print_hits(self._console, _read_pairs(self._last))
        else:
            for what in self._COMMANDS.values():
                self._console.out.print(what, markup=False, highlight=False)

    def _look(self, name: str) -> None:
        image = Path(name).expanduser() if name else None
        _check_image(image)
        self._image = image

    def _ask(self, question: str) -> None:
        with self._console.status("answering"):
            self._last = self._collection.ask(question, self._image, where=self._where)
        assert self._last.answer is not None
        _print_answer(self._console, self._last.answer)


def _lines() -> Iterator[str]:
    """Yield the lines of a terminal, with editing and history, or of another standard input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 (input uses it)

        read: Callable[[], str] = partial(input, "> ")
    else:
        read = partial(next, sys.stdin)
    while True:
        try:
            line = read().strip()
        except (EOFError, StopIteration):
            return
        if line:
            yield line


# -- what the commands share ------------------------------------------------------------------


def _open(
    folder: Path,
    pipeline: str | None = None,
    overrides: Sequence[str] = (),
    trust_settings: bool = False,
) -> Collection:
    from ravqa.collections import Collection

    return Collection.open(folder, pipeline, *overrides, trust_settings=trust_settings)


def _read(
    request: BuildRequest | PutRequest, console: Console, collection: Collection | None = None
) -> tuple[Corpus, Remarks]:
    """Return the passages of the sources, and remarks on what was left out.

    Args:
        collection: the collection that they are for; None for a new one.
    """
    from ravqa.corpora.corpus import Corpus
    from ravqa.corpora.kb import Sections
    from ravqa.corpora.remarks import Remarks

    remarks = Remarks(request.on_error)
    names = ("words", "pages", "dpi", "encoding", "delimiter")
    given = {name: getattr(request, name) for name in names}
    sections = Sections(**given, ocr=request.ocr or None)
    with console.status(f"reading {', '.join(map(str, request.sources))}"):
        if collection is None:
            corpus = Corpus.read(
                *request.sources,
                sections=sections,
                remarks=remarks,
                uncaptioned=True,
                numbered=True,
            )
        else:
            corpus = collection.read_files(*request.sources, sections=sections, remarks=remarks)
    return corpus, remarks


def _put(
    request: PutRequest, *, replacing: bool = False, prune: bool = False, dry_run: bool = False
) -> None:
    with opened_console() as console:
        collection = _open(request.folder, None, request.overrides, request.trust_settings)
        corpus, remarks = _read(request, console, collection)
        if prune:
            remarks.check_prune()
        if not dry_run:
            with console.status("loading models"):
                collection.load()
            _foresee(console, collection, corpus, request.folder)
        changes = collection.put(
            corpus, replacing=replacing, prune=prune, dry_run=dry_run, progress=console.progress
        )
        if dry_run:
            console.close()
            for kind, ids in changes.ids.items():
                for passage_id in ids:
                    say(printable(f"{kind} {passage_id}"))
        _report(console, changes, remarks.lines(), "dry run: " if dry_run else "")


def _foresee(
    console: Console,
    collection: Collection,
    corpus: Corpus,
    folder: Path,
    *,
    always: bool = False,
) -> None:
    """Say what encoding many passages will need.

    Args:
        always: also for few, as the command's result.

    Raises:
        UserError: the disk is too small.
    """
    if not always and len(corpus) < _MANY:
        return
    with console.status("encoding the first passages to see what all of them need"):
        needs = collection.needs(corpus)
    if needs is None or not (always or needs.passages >= _MANY):
        return
    console.close()
    if always:
        say(str(needs))
    else:
        console.note(str(needs))
    needs.check_disk(folder)


def _report(console: Console, changes: Changes, remarks: list[str], begin: str = "") -> None:
    console.close()
    names = ("added", "changed", "relabelled", "deleted", "unchanged")
    counts = [(n, name) for name in names if (n := getattr(changes, name))]
    if counts:
        (n, name), *others = counts
        first = f"{number_of(n, 'passage')} {name}"
        said = ", ".join([first, *(f"{n:,} {name}" for n, name in others)])
    else:
        said = "nothing to change"
    say(f"{begin}{said}")
    if changes.truncated:
        console.note(
            number_of(changes.truncated, "passage was", "passages were")
            + " longer than the encoder's limit, and cut: --words N makes passages shorter"
        )
    for line in remarks:
        console.note(line)


def _asked(request: SearchRequest | AskRequest) -> Collection:
    """Check the question, and open the collection."""
    if not request.question.strip() and request.image is None:
        raise UserError("a QUESTION, an --image, or both are needed")
    return _opened(request)


def _opened(request: SearchRequest | AskRequest | ChatRequest) -> Collection:
    """Check the image, and open the collection, with another reader if one is named."""
    _check_image(request.image)
    return _open(request.folder, request.pipeline, _changes(request), request.trust_settings)


def _changes(request: SearchRequest | AskRequest | ChatRequest) -> list[str]:
    """Return the settings that the command line changes; its reader is one of them."""
    from ravqa.collections.folder import CollectionFolder
    from ravqa.core.settings import load_pipeline
    from ravqa.readers import READERS

    changes = list(request.overrides)
    if isinstance(request, SearchRequest) or request.reader is None:
        return changes
    READERS.check(request.reader)
    if request.pipeline is None:
        own = CollectionFolder(request.folder).manifest().settings
    else:
        own, _ = load_pipeline(request.pipeline)
    if own["reader"].get("name") == request.reader:  # whose options stay
        return changes
    return [f"reader={request.reader}", *changes]


def _check_image(image: Path | None) -> None:
    from ravqa.images.decode import broken_images

    for reason in broken_images([] if image is None else [image]).values():
        raise DataError(reason)


def _note_blind(
    collection: Collection, image: Path | None, console: Console, *, answering: bool = False
) -> None:
    if image is not None and not collection.pipeline(answering=answering).supports_images:
        console.note("no part of this pipeline uses the image: only the question is used")


def _note_reader(collection: Collection, image: Path | None, console: Console) -> None:
    """Load the models, and say what they cannot do."""
    from ravqa.readers import READERS

    collection.pipeline(answering=True)
    _note_blind(collection, image, console, answering=True)
    name = collection.config.reader.name
    if not READERS.get(name).has_model:
        console.note(f"no model answers: the reader {name} is a rule; name another with --reader")


def _stand_ins(
    collection: Collection, request: AskRequest | ChatRequest
) -> Iterator[tuple[str, str]]:
    """Yield the parts that stand in for larger ones and were not replaced, and what they are."""
    changed = {change.partition("=")[0].partition(".")[0] for change in _changes(request)}
    for part, what in collection.config.stand_ins.items():
        if part not in changed:
            yield part, what


def _note_stand_ins(
    collection: Collection, request: AskRequest | ChatRequest, console: Console
) -> None:
    for part, what in _stand_ins(collection, request):
        console.note(f"stand-in {part}: {what}")


def _read_pairs(response: Response) -> list[tuple[Hit, Passage]]:
    """Return the passages that the answer was read from, with their hits."""
    assert response.answer is not None
    read = set(response.answer.passage_ids)
    pairs = zip(response.hits, response.passages, strict=True)
    return [(hit, passage) for hit, passage in pairs if hit.passage_id in read]


def _where(texts: Sequence[str]) -> dict[str, list[str]] | None:
    """Parse KEY=VALUE texts; several values of one key are alternatives."""
    if not texts:
        return None
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--where {text!r}: KEY=VALUE is expected")
        found.setdefault(key, []).append(value)
    return found


def _chosen(collection: Collection, request: ChooseRequest) -> list[str]:
    for passage_id in request.ids:
        if passage_id not in collection:
            raise collection.unknown(passage_id)
    chosen = _where(request.where)
    if chosen is None:
        return list(request.ids)
    matching = collection.matching(chosen)
    found = set(matching)
    return [i for i in request.ids if i in found] if request.ids else matching


def _values(passage: Passage) -> dict[str, Any]:
    """Return a passage for JSON, without empty fields."""
    names = ("passage_id", "title", "section", "text", "article", "entity", "url", "image")
    values = {name: getattr(passage, name) for name in names}
    values |= {"metadata": dict(passage.extra)}
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items() if v}


def _hit(hit: Hit, passage: Passage) -> dict[str, Any]:
    return {"rank": hit.rank, "score": hit.score, **_values(passage)}


def _print_answer(console: Console, answer: Answer) -> None:
    console.out.print(answer.text, markup=False, soft_wrap=True, style="bold")
    for reason in answer.pictures.unread if answer.pictures else ():
        console.note(f"the picture of {reason}")


def _print_hits(console: Console, found: list[tuple[Hit, Passage]]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not found:
        console.out.print("no passage found")
        return
    table = Table(show_lines=True)
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    table.add_column("passage", overflow="fold")
    for hit, passage in found:
        head = Text(printable(passage.passage_id), style="bold")
        if passage.image is not None:
            head.append(printable(f"  {passage.image}"), style="dim")
        content = passage.content or "(an image without text)"
        table.add_row(str(hit.rank), f"{hit.score:.3f}", head + Text(printable(f"\n{content}")))
    console.out.print(table)


def _print_passage(console: Console, passage: Passage, as_json: bool) -> None:
    values = _values(passage)
    if as_json:
        say_json(values)
        return
    for name, value in values.items():
        console.out.print(f"{name}: {value}", markup=False, soft_wrap=True)
    console.out.print()


def _print_stats(console: Console, collection: Collection, as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    stats, sources = collection.stats(), collection.sources()
    if as_json:
        say_json(stats | {"sources": {name or "": n for name, n in sources.items()}})
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in stats.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    label = "sources"
    for source, count in sources.items():
        named = "of no known source" if source is None else f"of {printable(source)}"
        table.add_row(label, Text(f"{count:,} {named}"))
        label = ""
    console.out.print(table)
