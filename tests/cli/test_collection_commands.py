"""ravqa collection, ravqa search, ravqa ask, ravqa chat."""

import io
import json
import shutil
from pathlib import Path

import collection_files
import pytest
from collection_files import pipeline
from document_files import pdf

from ravqa.cli import main
from ravqa.cli.collection import _print_hits
from ravqa.cli.shared import opened_console
from ravqa.collections import Collection
from ravqa.core.errors import PromptError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Hit, Passage

PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"

collection_files.register()


@pytest.fixture
def ravqa(capsys):
    def call(*arguments, code=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert end.value.code == code, err
        call.err = err
        return out if code == 0 else err

    return call


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "koala.md").write_text("# Koala\n\nIt eats leaves.\n\n## Life\n\nIt sleeps a lot.\n")
    (folder / "bridge.txt").write_text("It was built in 1894.")
    shutil.copy(PHOTO, folder / "zoo.jpg")
    (folder / "zoo.txt").write_text("A koala in a tree.")
    return folder


@pytest.fixture
def collection(ravqa, docs, tmp_path):
    path = tmp_path / "animals"
    out = ravqa("collection", "build", path, docs, "--pipeline", pipeline(tmp_path))
    assert out == "4 passages added\n"
    return path


def shown(ravqa, collection):
    return json.loads(ravqa("collection", "info", collection, "--json"))["passages"]


def test_add_update_and_prune(ravqa, collection, docs, tmp_path):
    assert ravqa("collection", "add", collection, docs) == "4 passages unchanged\n"
    more = tmp_path / "more.csv"
    more.write_text("id,text,year\nm1,More text,1999\nm2,Even more,2001\n")
    assert ravqa("collection", "add", collection, more) == "2 passages added\n"
    more.write_text("id,text,year\nm1,Other text,1999\nm2,Even more,2002\n")
    assert "another passage 'm1'" in ravqa("collection", "add", collection, more, code=2)
    assert ravqa("collection", "update", collection, more) == "1 passage changed, 1 relabelled\n"
    (docs / "bridge.txt").unlink()
    more.write_text("id,text,year\nm2,Even more,2002\nm3,New text,2003\n")
    update = ("collection", "update", collection)
    assert ravqa(*update, docs, "--prune", "--dry-run").splitlines() == [
        "deleted bridge.txt#0",
        "dry run: 1 passage deleted, 3 unchanged",
    ]
    assert ravqa(*update, docs, "--prune") == "1 passage deleted, 3 unchanged\n"
    assert ravqa(*update, more, "--prune", "--dry-run").splitlines() == [
        "added m3",
        "deleted m1",
        "dry run: 1 passage added, 1 deleted, 1 unchanged",
    ]
    assert shown(ravqa, collection) == 5  # a source beside it is not touched
    assert ravqa(*update, more, docs, "--prune") == "1 passage added, 1 deleted, 4 unchanged\n"
    assert ravqa(*update, more, "--dry-run") == "dry run: 2 passages unchanged\n"
    err = ravqa(*update, docs / "koala.md", "--prune", code=2)
    assert "has no passage of " in err
    assert "koala.md to prune; its sources: " in err


def test_info_lists_the_sources(ravqa, collection, docs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Collection.open(collection).add([Passage("x", "a passage of my own")])
    lines = [line.strip() for line in ravqa("collection", "info", collection).splitlines()]
    assert [line.split() for line in lines[-2:]] == [
        ["sources", *"4 of docs".split()],
        "1 of no known source".split(),
    ]
    found = json.loads(ravqa("collection", "info", collection, "--json"))
    assert found["sources"] == {"docs": 4, "": 1}


def test_show_delete_verify_compact(ravqa, collection):
    assert "It sleeps a lot." in ravqa("collection", "info", collection, "koala.md#life")
    info = ("collection", "info", collection)
    lines = ravqa(*info, "--where", "article=koala.md", "--json").splitlines()
    assert [json.loads(line)["passage_id"] for line in lines] == ["koala.md#koala", "koala.md#life"]
    assert "did you mean koala.md#life" in ravqa(*info, "koala.md#lif", code=2)
    both = (*info, "koala.md#lif", "--where", "article=koala.md")
    assert "did you mean koala.md#life" in ravqa(*both, code=2)
    assert "no passage has 'artcle'" in ravqa(
        "collection", "delete", collection, "--where", "artcle=x", code=2
    )
    assert "give the passages' ids" in ravqa("collection", "delete", collection, code=2)
    assert (
        ravqa("collection", "delete", collection, "--where", "article=koala.md")
        == "2 passages deleted\n"
    )
    assert shown(ravqa, collection) == 2
    assert "no file is missing or damaged" in ravqa("collection", "verify", collection)
    out = ravqa("collection", "compact", collection)
    assert out == f"{shown(ravqa, collection)} passages, and nothing deleted or replaced is left\n"
    [image] = (collection / "images").rglob("*.jpg")
    image.write_bytes(b"x")
    err = ravqa("collection", "verify", collection, code=2)
    assert "is damaged: build it again" in err


def test_pages_as_images(ravqa, tmp_path):
    pytest.importorskip("pypdfium2", reason="pip install 'ravqa[pdf]'")
    path, file = tmp_path / "manuals", tmp_path / "koala.pdf"
    settings = ("--pipeline", pipeline(tmp_path), "--pages", "images", "--dpi", 40)
    file.write_bytes(pdf("It eats leaves.", "It sleeps.", title="The life of koalas"))
    assert ravqa("collection", "build", path, file, *settings) == "2 passages added\n"
    out = ravqa("search", path, "leaves", "-k", 1)
    assert "koala.pdf#page=1" in out
    assert "The life of koalas: It eats leaves." in out
    file.write_bytes(pdf("It eats leaves.", ""))
    err = ravqa("collection", "add", path, file, "--on-error", "skip", code=2)
    assert err.splitlines()[-1] == (
        f"error: {file}: the image 'koala.pdf#page=2' has no caption: write one, or choose a "
        "pipeline with a describer, or an encoder that sees images of passages"
    )


def test_a_found_image_without_text_is_named(capsys):
    found = Passage("scan.pdf#page=3", "", image=Path("images/0.png"))
    titled = Passage("book.pdf#page=4", "", "Koalas", image=Path("images/1.png"))
    with opened_console() as console:
        _print_hits(console, [(Hit("a", 0.5, 1), found), (Hit("b", 0.25, 2), titled)])
    lines = [line.strip(" │") for line in capsys.readouterr().out.splitlines()]
    assert lines[3:5] == [
        "1 │ 0.500 │ scan.pdf#page=3  images/0.png",
        "(an image without text)",
    ]
    assert lines[6:8] == [
        "2 │ 0.250 │ book.pdf#page=4  images/1.png",
        "Koalas",
    ]


def test_search_and_ask(ravqa, collection):
    out = ravqa("search", collection, "who eats leaves", "-k", 2)
    assert out.index("koala.md#koala") < out.index("It eats leaves.")
    found = json.loads(ravqa("search", collection, "who eats leaves", "--json", "-k", 1))
    assert [(f["rank"], f["passage_id"]) for f in found] == [(1, "koala.md#koala")]
    found = json.loads(ravqa("search", collection, "koala", "--json", "--where", "article=zoo.jpg"))
    assert [f["passage_id"] for f in found] == ["zoo.jpg"]
    assert found[0]["image"].startswith(str(collection))
    answer = json.loads(ravqa("ask", collection, "who eats leaves", "--json"))
    assert answer["answer"] == "koala: it eats"
    assert [p["passage_id"] for p in answer["passages"]] == ["koala.md#koala"]
    assert "stand_ins" not in answer
    chosen = ("--choice", "Bear", "--choice", "Koala")
    chosen = json.loads(ravqa("ask", collection, "who eats leaves", "--json", *chosen))
    assert chosen["answer"] == "Koala"
    small = ("--set", "stand_ins={reader: a rule for a model, retriever: a hash}")
    answer = json.loads(ravqa("ask", collection, "who eats leaves", "--json", *small))
    assert answer["stand_ins"] == {"reader": "a rule for a model", "retriever": "a hash"}
    replaced = ("--reader", "best-span", *small)
    answer = json.loads(ravqa("ask", collection, "who eats leaves", "--json", *replaced))
    assert answer["stand_ins"] == {"retriever": "a hash"}
    assert "koala: it eats" in ravqa("ask", collection, "who eats leaves")
    assert "an --image, or both" in ravqa("search", collection, code=2)
    assert "no such image" in ravqa("search", collection, "--image", "gone.jpg", code=2)
    ravqa("search", collection, "leaves", "--image", PHOTO)
    assert "no part of this pipeline uses the image" in ravqa.err
    assert "KEY=VALUE" in ravqa("search", collection, "x", "--where", "page", code=2)


def test_another_reader_is_named_by_its_name_alone(ravqa, collection):
    asked = ("ask", collection, "who eats leaves")
    ravqa(*asked, "--json")
    assert "no model answers: the reader first-words is a rule" in ravqa.err
    assert "eats leaves" in ravqa(*asked, "--reader", "best-span", "--json")
    assert "the reader best-span is a rule" in ravqa.err
    assert json.loads(ravqa(*asked, "--set", "reader=best-span", "--json"))["passages"]
    assert "the reader best-span is a rule" in ravqa.err
    own = ravqa(*asked, "--set", "reader.words=1", "--reader", "first-words", "--json")
    assert json.loads(own)["answer"] == "koala"
    line = ravqa(*asked, "--reader", "openai", code=2)
    assert line == (f"error: {collection}: reader: key 'url' is missing; key 'model' is missing\n")
    assert "did you mean openai" in ravqa(*asked, "--reader", "openia", code=2)


def test_several_questions_are_asked_in_one_process(ravqa, collection, monkeypatch):
    def chat(*lines, code=0):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        return ravqa("chat", collection, code=code)

    out = chat("who eats leaves", "", "/passages", "/quit", "never asked")
    asked, answer, *shown = out.splitlines()
    assert (asked, answer) == ("> who eats leaves", "koala: it eats")
    assert any("koala.md#koala" in line for line in shown)
    assert out.count("koala: it eats") == 1
    assert "no model answers: the reader first-words is a rule" in ravqa.err

    out = chat("/passages", "/pasages", "/passages 3", "/image gone.jpg", "bridge built", "/help")
    answer, *commands = [line for line in out.splitlines() if not line.startswith("> ")]
    assert answer == "bridge: it was"
    assert [line.partition(":")[0] for line in commands] == [
        "/image FILE",
        "/passages",
        "/help",
        "/quit",
    ]
    for reason in (
        "error: nothing has been asked",
        "error: '/pasages' is not a command; did you mean /passages",
        "error: nothing may follow /passages, got '3'",
        "error: no such image: gone.jpg",
    ):
        assert reason in ravqa.err
    assert chat() == ""


def test_a_chat_asks_about_its_image_until_another_is_named(ravqa, collection, monkeypatch):
    asked = []

    def ask(self, question, image=None, *, where=None):
        asked.append((question, image, where))
        if question == "stop":
            raise KeyboardInterrupt
        raise PromptError("too long")

    monkeypatch.setattr(Collection, "ask", ask)
    lines = ["one", f"/image {PHOTO}", "two", "stop", "/image", "three"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    ravqa("chat", collection, "--where", "page=3")
    where = {"page": ["3"]}
    expected = [("one", None), ("two", PHOTO), ("stop", PHOTO), ("three", None)]
    assert asked == [(*pair, where) for pair in expected]
    assert ravqa.err.count("error: too long") == 3
    assert "interrupted" in ravqa.err


def test_brackets_in_names_are_no_markup(ravqa, docs, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    folder = tmp_path / "a[/b] [old] :smile:"
    shutil.copytree(docs, folder)
    ravqa("collection", "build", tmp_path / "i", folder, "--pipeline", pipeline(tmp_path))
    assert "reading" in ravqa.err
    assert "a[/b] [old] :smile:" in " ".join(ravqa.err.split())
    moved = Collection.open(tmp_path / "i")
    monkeypatch.setattr(
        Collection, "stats", lambda _: {"encoder": "model[/x] [old]", "passages": 3}
    )
    assert "model[/x] [old]" in ravqa("collection", "info", moved.path)


def test_settings_that_do_not_fit(ravqa, collection):
    err = ravqa("search", collection, "x", "--set", "retriever.encoder.seed=1", code=2)
    assert "was encoded by hashes of seed 0, not by hashes of seed 1" in err
    assert "unknown key" in ravqa("search", collection, "x", "--set", "retriver=1", code=2)


@pytest.mark.parametrize(
    ("arguments", "present"),
    [
        (["index", "build", "animals", "docs", "--words", "9"], "ravqa collection build"),
        (["index", "show", "animals", "--json"], "ravqa collection info"),
        (["index", "--help"], "ravqa collection --help"),
        (["index"], "ravqa collection --help"),
        (["index", "bild", "--words", "9"], "ravqa collection --help"),
        (["collection", "show", "animals"], "ravqa collection info"),
        (["evaluate-retrieval", "--dataset", "m2kr"], "ravqa run --retrieval-only"),
    ],
)
def test_a_former_command_names_the_present_one(ravqa, arguments, present):
    [line] = ravqa(*arguments, code=2).splitlines()
    assert line.startswith("error: `ravqa ")
    assert line.endswith(f"has been renamed: use `{present}`")


def test_pack_and_unpack(ravqa, collection, tmp_path):
    assert "4 passages" in ravqa("collection", "pack", collection, tmp_path / "x.tar")
    assert "4 passages" in ravqa("collection", "unpack", tmp_path / "x.tar", tmp_path / "new")
    assert shown(ravqa, tmp_path / "new") == 4


def test_nothing_is_pruned_of_what_cannot_be_read(ravqa, collection, docs):
    (docs / "bridge.txt").write_bytes(b"caf\xe9")
    update = ("collection", "update", collection, docs, "--prune")
    assert "bridge.txt: not a text in UTF-8" in ravqa(*update, code=2)
    assert "leave out --prune" in ravqa(*update, "--on-error", "skip", code=2)
    assert shown(ravqa, collection) == 4
    assert ravqa(*update[:-1], "--on-error", "skip") == "3 passages unchanged\n"


def test_mistakes_leave_nothing(ravqa, docs, tmp_path):
    file = pipeline(tmp_path)
    (docs / "broken.pdf").write_text("x")
    path = tmp_path / "new"
    err = ravqa("collection", "build", path, docs, "--pipeline", file, code=2)
    assert "broken.pdf: no PDF file" in err
    assert not path.exists()
    out = ravqa("collection", "build", path, docs, "--pipeline", file, "--on-error", "skip")
    assert out == "4 passages added\n"
    err = ravqa("collection", "build", path, docs, "--pipeline", file, code=2)
    assert f"ravqa collection add {path}" in err
    assert "is not empty" in ravqa(
        "collection", "build", docs, docs, "--pipeline", file, "--on-error", "skip", code=2
    )
    assert "needs the retriever late-interaction" in ravqa(
        "collection", "build", tmp_path / "n", docs, "--pipeline", "bm25-retrieval",
        "--on-error", "skip", code=2,
    )  # fmt: skip


def test_a_killed_build_goes_on(ravqa, docs, tmp_path, monkeypatch):
    file = pipeline(tmp_path)
    path = tmp_path / "new"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collection_files.HashEncoder, "encode_document", killed)
        ravqa("collection", "build", path, docs, "--pipeline", file, code=130)
    assert shown(ravqa, path) == 0
    assert ravqa("collection", "build", path, docs, "--pipeline", file) == "4 passages added\n"


def test_a_build_that_failed_may_be_repeated_with_another_pipeline(ravqa, docs, tmp_path):
    file = pipeline(tmp_path)
    path = tmp_path / "new"
    (docs / "zoo.txt").unlink()  # the picture has no caption then
    err = ravqa("collection", "build", path, docs, "--pipeline", file, code=2)
    assert "has no caption" in err
    (docs / "zoo.txt").write_text("A koala in a tree.")
    other = ("--set", "retriever.encoder.seed=1")
    assert (
        ravqa("collection", "build", path, docs, "--pipeline", file, *other) == "4 passages added\n"
    )
    ravqa("collection", "delete", path, "--where", "article=koala.md")
    ravqa("collection", "delete", path, "bridge.txt#0", "zoo.jpg")
    err = ravqa("collection", "build", path, docs, "--pipeline", file, code=2)
    assert f"add to it with ravqa collection add {path}" in err


def test_tables_as_other_programs_write_them(ravqa, collection, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("text;more,still\nSüßes für 5 €;x\n", encoding="cp1252")
    form = ("--encoding", "cp1252", "--delimiter", ";")
    assert ravqa("collection", "add", collection, table, *form) == "1 passage added\n"
    assert ravqa("collection", "update", collection, table, *form) == "1 passage unchanged\n"
    assert "Süßes für 5 €" in ravqa("collection", "info", collection, "table.csv#row=1")
    err = ravqa("collection", "add", collection, table, "--encoding", "rot13", code=2)
    assert err.endswith("error: no encoding 'rot13': utf-8, utf-16 and cp1252 are some\n")
    table.write_text("id;text\n1;Süßes\n", encoding="utf-16-le")
    out = tmp_path / "out.jsonl"
    assert "nor in an encoding that is recognized: --encoding" in ravqa(
        "passages", table, "--output", out, code=2
    )
    ravqa("passages", table, "--output", out, "--encoding", "utf-16-le", "--delimiter", ";")
    assert json.loads(out.read_text()) == {"passage_id": "1", "text": "Süßes"}


def test_a_file_of_another_kind_is_told_what_is_read(ravqa, tmp_path):
    page = tmp_path / "page.odt"
    page.write_text("x")
    err = ravqa("collection", "build", tmp_path / "new", page, code=2)
    assert err.startswith(f"reading {page}\nerror: {page}: .odt is not read: .txt, .md, ")
    assert ".html, .htm, .xhtml, .pdf, .docx, .pptx, .jsonl, " in err
