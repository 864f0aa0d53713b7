"""Documents and slides of office programs as passages; the files are made by the libraries."""

import zipfile
from types import SimpleNamespace

import pytest
from document_files import docx, pptx

from ravqa.core.errors import DataError
from ravqa.corpora import office
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.remarks import Remarks

BODY = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def contents(path):
    return {i: p.content for i, p in Corpus.read(path, remarks=Remarks()).items()}


def test_a_document_is_cut_at_its_headings(tmp_path):
    docx(
        tmp_path / "guide.docx",
        ("Title", "Zoo handbook"),
        ("Normal", "Open daily."),
        ("Heading 1", "Koala"),
        ("Normal", "Sleeps 20 hours."),
        [["Day", "From"], ["Monday", "9:00\nor ten"]],
        ("Heading 2", "Food"),
        ("List Bullet", "Leaves"),
        ("List Bullet", "Branches"),
        ("Heading 1", "Panda"),
        title="Another",
    )
    corpus = Corpus.read(tmp_path / "guide.docx")
    assert {i: p.content for i, p in corpus.items()} == {
        "guide.docx#top": "Zoo handbook: Open daily.",
        "guide.docx#koala": "Zoo handbook - Koala: Sleeps 20 hours.\n"
        "Day | From\nMonday | 9:00 or ten",
        # A heading that nothing follows stays as text.
        "guide.docx#food": "Zoo handbook - Koala > Food: Leaves\nBranches\nPanda",
    }
    assert corpus["guide.docx#food"].article == "guide.docx"


@pytest.mark.parametrize(
    ("blocks", "title", "expected"),
    [
        ([("Heading 1", "Koalas"), ("Normal", "x")], "From Word", {"#koalas": "Koalas: x"}),
        ([("Normal", "x")], "On koalas", {"#top": "On koalas: x"}),
        ([("Normal", "x")], "Microsoft Word - a.doc", {"#top": "a b: x"}),
        (
            [("Heading 1", "A"), ("Normal", "x"), ("Heading 1", "B"), ("Normal", "y")],
            None,
            {"#a": "a b - A: x", "#b": "a b - B: y"},
        ),
    ],
)
def test_the_title_of_a_document(tmp_path, blocks, title, expected):
    docx(tmp_path / "a_b.docx", *blocks, title=title)
    found = contents(tmp_path / "a_b.docx")
    assert {i.removeprefix("a_b.docx"): text for i, text in found.items()} == expected


def test_texts_that_the_library_passes_over_are_read(tmp_path):
    from docx.oxml import parse_xml

    document = docx(tmp_path / "a.docx")
    names = (
        'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
        'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    )
    box = "<w:txbxContent><w:p><w:r><w:t>Boxed.</w:t></w:r></w:p></w:txbxContent>"
    body = document.element.body
    for xml in (
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>Controlled.</w:t></w:r></w:p></w:sdtContent></w:sdt>",
        "<w:p><w:r><w:t>Old </w:t></w:r><w:ins><w:r><w:t>new</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom>"
        "<w:r><w:tab/><w:t>end</w:t><w:br/><w:t>next</w:t></w:r></w:p>",
        f"<w:p><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:t>Around.</w:t></w:r><w:r>"
        f"<mc:AlternateContent><mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback>"
        "</mc:AlternateContent></w:r></w:p>",
        '<w:p><w:pPr><w:outlineLvl w:val="1"/></w:pPr><w:r><w:t>Level</w:t></w:r></w:p>',
        "<w:p><w:r><w:t>Last.</w:t></w:r></w:p>",
    ):
        opening, _, rest = xml.partition(">")
        body.insert(len(body) - 1, parse_xml(f"{opening} {names}>{rest}"))
    document.save(str(tmp_path / "a.docx"))
    assert contents(tmp_path / "a.docx") == {
        "a.docx#top": "a: Controlled.\nOld new end\nnext\nAround.\nBoxed.",
        "a.docx#level": "a - Level: Last.",
    }


def test_slides_are_passages_with_their_numbers(tmp_path):
    from pptx.util import Inches

    path = tmp_path / "talk.pptx"
    presentation = pptx(
        path,
        ("Koalas", "Eat\nleaves", "Say hello."),
        ("Only a heading", "", ""),
        ("", "", ""),
    )
    slide = presentation.slides.add_slide(presentation.slide_layouts[6])
    size = [Inches(1)] * 4
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(*size).text_frame.text = "In a group."
    table = slide.shapes.add_table(2, 2, *size).table
    for number in range(4):
        table.cell(*divmod(number, 2)).text = "abcd"[number]
    presentation.save(str(path))
    remarks = Remarks()
    corpus = Corpus.read(path, remarks=remarks)
    assert {i: p.content for i, p in corpus.items()} == {
        "talk.pptx#slide=1": "Koalas - Koalas: Eat\nleaves\nSay hello.",
        "talk.pptx#slide=2": "Koalas: Only a heading",
        "talk.pptx#slide=4": "Koalas: In a group.\na | b\nc | d",
    }
    assert corpus["talk.pptx#slide=4"].extra == {"slide": 4}
    assert remarks.blank == ["talk.pptx#slide=3"]
    pptx(path, ("Koalas", "x", ""), title="On koalas")
    assert Corpus.read(path)["talk.pptx#slide=1"].title == "On koalas"


@pytest.mark.parametrize("name", ["a.docx", "a.pptx"])
def test_files_that_cannot_be_read_are_named(tmp_path, name, monkeypatch):
    path = tmp_path / name
    (docx if name == "a.docx" else pptx)(path)
    whole = path.read_bytes()

    def reason():
        with pytest.raises(DataError) as raised:
            Corpus.read(path, remarks=Remarks())
        return str(raised.value).removesuffix(" (--on-error skip leaves it out)")

    path.write_bytes(whole[: len(whole) // 2])
    assert reason() == f"{name}: no such document: it is not packed as one; is it cut off?"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    assert reason() == f"{name}: encrypted, or of the format before 2007: save it as a new file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "no XML")
    assert reason().startswith(f"{name}: broken: ")
    path.write_bytes(whole)
    monkeypatch.setattr(office, "LARGEST", 1000)
    assert reason() == f"{name}: unpacks to too much: split it"


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(office, "LONGEST_LINE", 10**6)
    docx(tmp_path / "a.docx")
    with zipfile.ZipFile(tmp_path / "a.docx", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/more.xml", b" " * 10**6)
    assert (tmp_path / "a.docx").stat().st_size < 100_000
    with pytest.raises(DataError, match=r"^a\.docx: unpacks to too much: split it( \(|$)"):
        Corpus.read(tmp_path / "a.docx")


@pytest.mark.parametrize("kind", ["DATE", "FOOTER", "SLIDE_NUMBER", "BODY", "SUBTITLE", None])
def test_what_is_on_every_slide_is_left_out(kind):
    shape = SimpleNamespace(
        is_placeholder=kind is not None,
        placeholder_format=SimpleNamespace(type=SimpleNamespace(name=kind)),
        has_text_frame=True,
        text_frame=SimpleNamespace(text="one\vtwo  words"),
    )
    left_out = kind in ("DATE", "FOOTER", "SLIDE_NUMBER")
    expected = [] if left_out else ["one", "two words"]
    assert list(office._shape(shape)) == expected
    group = SimpleNamespace(is_placeholder=False, shapes=[shape, shape])
    assert list(office._shape(group)) == expected * 2
