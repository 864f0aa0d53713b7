"""Web pages as passages: what is their text, their headings, and their encodings."""

import sys

import pytest

from ravqa.core.errors import DataError, MissingExtraError
from ravqa.corpora import documents, pages
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.pages import Pages
from ravqa.corpora.remarks import Remarks

pytest.importorskip("lxml")

PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>Opening hours - Zoo</title>
<link rel="canonical" href="https://zoo.example/hours"><style>p {}</style></head><body>
<header><a href="/">Zoo</a></header><nav><ul><li>Home</li></ul></nav>
<main><nav>Contents</nav><h1>Opening <em>hours</em></h1>
<p>Open
daily.<!-- nothing --> Always<br>at nine.</p>
<table><tr><th>Day</th><th>From</th></tr><tr><td><p>Monday</p></td><td>9:00</td></tr></table>
<h2 id="prices">Prices<a class="headerlink" href="#prices">¶</a></h2>
<ul><li>Adults: <b>12</b> €</li><li>Children<ul><li>free</li></ul></li></ul>
<section id="feed"><h2>Feeding</h2><aside>By the keeper.</aside><pre>8:00  koala

  9:00  lion</pre><p hidden>never</p><span aria-hidden="true">icon</span></section>
<script>var x = 1;</script><form><label>Ask us</label><input value="no"></form></main>
<aside>Elsewhere</aside><footer>Imprint</footer></body></html>
"""


def read(tmp_path, text, name="page.html", encoding="utf-8"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return Corpus.read(tmp_path / name, remarks=Remarks())


def texts(tmp_path, text, **options):
    found = read(tmp_path, text, **options).items()
    return {i.removeprefix("page.html"): p.content for i, p in found}


def test_a_page_is_cut_at_its_headings_without_what_surrounds_it(tmp_path):
    corpus = read(tmp_path, PAGE)
    assert {i: p.content for i, p in corpus.items()} == {
        "page.html#opening-hours": "Opening hours: Open daily. Always\nat nine.\n"
        "Day | From\nMonday | 9:00",
        "page.html#prices": "Opening hours - Prices: - Adults: 12 €\n- Children\n- free",
        "page.html#feed": "Opening hours - Feeding: By the keeper.\n8:00  koala\n  9:00  lion\n"
        "Ask us",
    }
    assert {p.url for p in corpus.values()} == {"https://zoo.example/hours"}


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>One</p>two<div>three</div>", {"#top": "page: One\ntwo\nthree"}),
        # Without a main element or a single article, what surrounds the body's text is left out.
        ("<header>a</header><aside>b</aside><p>c</p><footer>d</footer>", {"#top": "page: c"}),
        ("<header><h1>T</h1>by me</header><p>c</p>", {"#t": "T: by me\nc"}),
        ("<div>menu</div><article><p>c</p></article>", {"#top": "page: c"}),
        ("<div role=main><header>b</header><p>c</p></div>d", {"#top": "page: b\nc"}),
        (
            "<pre>a\n  b</pre><p>c\nd</p><pre>e\nf</pre>g\nh",
            {"#top": "page: a\n  b\nc d\ne\nf\ng h"},
        ),
        (
            "<table><tr><td><ul><li>a</li></ul></td><td><ol><li>b</li></ol></td></tr></table>"
            "<table><tr><td>c<ul><li>d</li></ul></td><td>e</td></tr></table>"
            "<table><tr><td>f<ol><li>g</li></ol></td><td>h</td></tr></table>"
            "<table><tr><td><pre>i\nj</pre></td><td>k</td></tr></table>",
            {"#top": "page: - a\n- b\nc\n- d\ne\nf\n- g\nh\ni\nj\nk"},
        ),
        (
            "<article>a</article><article>b<footer>c</footer></article>",
            {"#top": "page: a\nb\nc"},
        ),
        # Older pages are laid out by tables.
        (
            "<table><tr><td>x</td><td><h1>T</h1>text<table><tr><td>1</td><td>2</td></tr></table>"
            "</td></tr></table>",
            {"#top": "T: x", "#t": "T: text\n1 | 2"},
        ),
        ("<title>Koalas</title><p>x", {"#top": "Koalas: x"}),
        ("<title>index.html</title><p>x", {"#top": "page: x"}),
        (
            "<title>Zoo</title><h1>A</h1>x<h1>B</h1>y<h2 id=B>C</h2>z",
            {"#a": "Zoo - A: x", "#b": "Zoo - B: y", "#B": "Zoo - B > C: z"},
        ),
        ("<p>a&nbsp;&lt;b&gt; &eacute;\0c</p>", {"#top": "page: a <b> é c"}),
        ("<p>a<i>b</i>c<b> d</b></p>", {"#top": "page: abc d"}),
    ],
    ids=range(14),
)
def test_what_is_a_page_s_text(tmp_path, html, expected):
    assert texts(tmp_path, html) == expected


@pytest.mark.slow
def test_a_long_text_is_whole(tmp_path):
    long = "a" * 11_000_000  # more than the parser takes by default
    assert texts(tmp_path, f"<p>{long}</p><p>end</p>") == {"#top": f"page: {long}\nend"}


@pytest.mark.parametrize(
    ("encoding", "meta"),
    [
        ("utf-8", ""),
        ("utf-16", ""),
        ("utf-8", "<meta charset=iso-8859-1>"),  # it is wrong
        ("cp1252", "<meta charset='ISO-8859-1'>"),  # browsers read cp1252
        ("cp1252", '<meta http-equiv="Content-Type" content="text/html; charset=windows-1252">'),
        ("cp1252", ""),  # guessed
    ],
)
def test_the_encoding_of_a_page(tmp_path, encoding, meta):
    html = f"<html><head>{meta}</head><body><p>Käse für 5 €</p></body></html>"
    assert texts(tmp_path, html, encoding=encoding) == {"#top": "page: Käse für 5 €"}


def test_an_encoding_that_is_declared_and_wrong_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"^page\.html: not a text in utf-8-sig; --encoding can name another \("
    ):
        read(tmp_path, "<meta charset=utf-8><p>süß", encoding="cp1252")
    assert texts(tmp_path, "<meta charset=utf-16><p>süß") == {"#top": "page: süß"}


def test_a_few_broken_bytes_are_no_reason_to_leave_a_page_out(tmp_path):
    content = f"<meta charset=utf-8><p>{'a' * 200}".encode() + b"\xff b"
    (tmp_path / "page.html").write_bytes(content)
    [passage] = Corpus.read(tmp_path).values()
    assert passage.text == "a" * 200 + "\ufffd b"


def test_what_is_too_deep_or_too_large_is_refused_at_once(tmp_path, monkeypatch):
    deep = "<div>" * 200_000
    with pytest.raises(DataError, match=r"page\.html: no page that can be read \(Excessive depth"):
        read(tmp_path, f"<p>first</p>{deep}text")
    assert texts(tmp_path, f"{'<div>' * 1500}text") == {"#top": "page: text"}
    monkeypatch.setattr(documents, "LONGEST_LINE", 100)
    with pytest.raises(DataError, match=r"^page\.html: a page of more than 100 bytes: split it \("):
        read(tmp_path, "<p>" + "a" * 100)


def test_a_page_without_text_is_said_to_have_none(tmp_path):
    (tmp_path / "a.html").write_text("<script>1</script>")
    (tmp_path / "b.htm").write_text("")
    (tmp_path / "c.xhtml").write_text('<?xml version="1.0"?><html><body><p>x</p></body></html>')
    remarks = Remarks()
    assert [p.content for p in Corpus.read(tmp_path, remarks=remarks).values()] == ["c: x"]
    assert remarks.blank == ["a.html", "b.htm"]


def test_kinds_whose_package_is_missing_are_listed_with_their_extras(tmp_path, monkeypatch):
    gone = {"lxml", "docx", "pypdf"}
    monkeypatch.setattr(pages, "find_spec", lambda name: None if name in gone else name)
    for name in ("a.pdf", "b.docx", "c.HTM", "d.html", "e.html", "f.txt"):
        (tmp_path / name).write_text(name)
    listed = (
        f"{tmp_path}: 2 .html, 1 .htm, 1 .pdf, 1 .docx cannot be read: "
        "pip install 'ravqa[html,pdf,office]'"
    )
    with pytest.raises(DataError) as raised:
        Corpus.read(tmp_path, remarks=Remarks())
    assert str(raised.value) == f"{listed} (--on-error skip leaves it out)"
    remarks = Remarks("skip")
    assert list(Corpus.read(tmp_path, remarks=remarks)) == ["f.txt#0"]
    assert remarks.broken == [listed]
    with pytest.raises(DataError, match="leave out --prune"):
        remarks.check_prune()
    (tmp_path / "f.txt").unlink()
    with pytest.raises(DataError, match=r"2 \.html, 1 \.htm"):
        Pages(tmp_path)
    monkeypatch.setitem(sys.modules, "lxml.html", None)
    with pytest.raises(MissingExtraError, match=r"reading d\.html needs .*'ravqa\[html\]'"):
        Corpus.read(tmp_path / "d.html")
