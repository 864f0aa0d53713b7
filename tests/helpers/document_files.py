"""Small documents, made by the libraries that read them."""

import io

import pytest

_GLYPHS = {"ﬀ": (1, "ff"), "ﬁ": (2, "fi"), "ﬂ": (3, "fl"), "\xad": (4, "uni00AD")}
_BROWSER_HYPHEN = ") Tj /Span <</ActualText <FEFF00AD>>> BDC ( ) Tj EMC ("


def pdf(*pages, password=None, title=None):
    """A PDF file: a text on each page, its lines under each other.

    "{shy}" is a soft hyphen as browsers write it: a space that is marked to stand for one.
    """
    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import ArrayObject as Array
    from pypdf.generic import DecodedStreamObject, NumberObject
    from pypdf.generic import DictionaryObject as Dictionary
    from pypdf.generic import NameObject as Name

    writer = pypdf.PdfWriter()
    differences = [item for code, glyph in _GLYPHS.values() for item in (code, glyph)]
    encoding = Dictionary(
        {
            Name("/Type"): Name("/Encoding"),
            Name("/BaseEncoding"): Name("/WinAnsiEncoding"),
            Name("/Differences"): Array(
                NumberObject(i) if isinstance(i, int) else Name(f"/{i}") for i in differences
            ),
        }
    )
    font = Dictionary(
        {
            Name("/Type"): Name("/Font"),
            Name("/Subtype"): Name("/Type1"),
            Name("/BaseFont"): Name("/Helvetica"),
            Name("/Encoding"): encoding,
        }
    )
    codes = str.maketrans({letter: chr(code) for letter, (code, _) in _GLYPHS.items()})
    for text in pages:
        page = writer.add_blank_page(300, 300)
        fonts = Dictionary({Name("/F1"): font})
        page[Name("/Resources")] = Dictionary({Name("/Font"): fonts})
        stream = DecodedStreamObject()
        lines = " T* ".join(f"({line}) Tj" for line in text.translate(codes).split("\n"))
        lines = lines.replace("{shy}", _BROWSER_HYPHEN)
        stream.set_data(f"BT /F1 12 Tf 14 TL 20 200 Td {lines} ET".encode("latin-1"))
        page[Name("/Contents")] = writer._add_object(stream)
    if title is not None:
        writer.add_metadata({"/Title": title})
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def docx(path, *blocks, title=None):
    """A document: (style, text) for each paragraph, a list of rows for each table."""
    document = pytest.importorskip("docx").Document()
    for block in blocks:
        if isinstance(block, list):
            table = document.add_table(len(block), len(block[0]))
            for row, texts in zip(table.rows, block, strict=True):
                for cell, text in zip(row.cells, texts, strict=True):
                    cell.text = text
        else:
            style, text = block
            document.add_paragraph(text, style=style)
    document.core_properties.title = title or ""
    document.save(str(path))
    return document


def pptx(path, *slides, title=None):
    """A presentation: (heading, text, notes) for each slide."""
    presentation = pytest.importorskip("pptx").Presentation()
    for heading, text, notes in slides:
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = heading
        slide.placeholders[1].text = text
        if notes:
            slide.notes_slide.notes_text_frame.text = notes
    if title is not None:
        presentation.core_properties.title = title
    presentation.save(str(path))
    return presentation
