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
        (
            "<div role=banner>a</div><div role=complementary><h2>b</h2></div>"
            "<div role=contentinfo>c</div><footer><h2>d</h2></footer><p>e</p>",
            {"#top": "page: e"},
        ),
        (
            "<article><div role=navigation>a</div><div role=search>b</div><div role=banner>c</div>"
            "<aside>d</aside>e</article>",
            {"#top": "page: c\nd\ne"},
        ),
        (
            "<h2><a href='#x'>¶</a>T<a>§</a></h2><p><a>#</a>text</p><h2> </h2>more",
            {"#t": "page - T: #text\nmore"},
        ),
        (
            "<table><caption>Cap <b>x</b></caption><thead><tr><th>A</th><th>B</th></tr></thead>"
            "<tr><td>a<br>b</td><td><p>c</p><p>d</p></td></tr></table>after<p>x",
            {"#top": "page: Cap x\nA | B\na b | c d\nafter\nx"},
        ),
        ("<main>a</main><main>b</main>c", {"#top": "page: a\nb\nc"}),
        ("<main>a</main><article>b</article>", {"#top": "page: a"}),
        ("<pre>a<br>b <code>c\n d</code>\n\n</pre>", {"#top": "page: a\nb c\n d"}),
        (
            "<div aria-hidden=false>a</div><div hidden>b</div><ul><li></li><li>c</li></ul>d",
            {"#top": "page: a\n- c\nd"},
        ),
        (
            "<section id=s><p>x</p><h2>T</h2>y</section><section id=r><h2>U</h2>z</section>"
            "<section id=q><h2 id=v>W</h2>w</section>",
            {"#top": "page: x", "#t": "page - T: y", "#r": "page - U: z", "#v": "page - W: w"},
        ),
        # A heading of several lines is one; one within another one ends before it.
        (
            "<p>a</p><h1>One<br>two <span>three</span><div>four</div></h1>x",
            {"#top": "One two three four: a", "#one-two-three-four": "One two three four: x"},
        ),
        (
            "<h2>A<h3>B</h3></h2>x<h2>C</h2>y",
            {"#top": "page: A", "#b": "page - B: x", "#c": "page - C: y"},
        ),
        ("<p>a<i>b</i>c<b> d</b></p>", {"#top": "page: abc d"}),
    ],
    ids=range(25),
)
def test_what_is_a_page_s_text(tmp_path, html, expected):
    assert texts(tmp_path, html) == expected


@pytest.mark.parametrize(
    ("head", "url"),
    [
        ("<link rel=canonical href=/x>", None),
        (
            "<link rel=canonical href=ftp://a/b><link rel=canonical href=' https://a.b/c '>",
            "https://a.b/c",
        ),
        ("<link rel=canonical href='https://a b'>", None),
        ("<link rel=alternate href=https://a.b>", None),
    ],
)
def test_the_address_of_a_page_is_one_on_the_web(tmp_path, head, url):
    html = f"<html><head>{head}</head><body>x</body></html>"
    assert [passage.url for passage in read(tmp_path, html).values()] == [url]


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
