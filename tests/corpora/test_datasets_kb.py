"""Knowledge bases in their published layouts, passages of articles, and corpora on disk."""

import gzip
import json
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.cli import main
from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Passage
from ravqa.corpora import corpus as corpus_module
from ravqa.corpora import kb, sources
from ravqa.corpora.corpus import Corpus, DiskCorpus
from ravqa.corpora.remarks import Remarks
from ravqa.corpora.sources import write_passages

pytest.importorskip("ijson")

KOALA = "https://en.wikipedia.org/wiki/Koala"
TOWER = "https://en.wikipedia.org/wiki/Tower_(Łódź)"
PAGES = {
    KOALA: {
        "title": "Koala",
        "section_titles": ["Koala", "Diet", "Gallery", "Status"],
        "section_texts": ["A marsupial.", "It eats leaves.\nMostly eucalypt.", "  ", "Vulnerable."],
        "image_urls": ["https://upload.wikimedia.org/koala.jpg"],
        "image_reference_descriptions": ["a koala"],
        "image_section_indices": [0],
        "url": KOALA,
    },
    TOWER: {
        "title": "Tower (Łódź)",
        "section_titles": ["Tower (Łódź)"],
        "section_texts": ["Es steht in Łódź 塔."],
        "image_urls": [],
        "image_reference_descriptions": [],
        "image_section_indices": [],
        "url": TOWER,
    },
}
SECTIONS = [
    Passage(f"{KOALA}#0", "A marsupial.", "Koala", url=KOALA, article=KOALA),
    Passage(
        f"{KOALA}#1",
        "It eats leaves.\nMostly eucalypt.",
        "Koala",
        url=KOALA,
        section="Diet",
        article=KOALA,
    ),
    Passage(f"{KOALA}#3", "Vulnerable.", "Koala", url=KOALA, section="Status", article=KOALA),
    Passage(f"{TOWER}#0", "Es steht in Łódź 塔.", "Tower (Łódź)", url=TOWER, article=TOWER),
]


def write_kb(path, pages=None):
    text = json.dumps(PAGES if pages is None else pages, ensure_ascii=False)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("encyclopedic_kb_wiki.json", text)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


WIKI = [
    {
        "wikidata_id": "Q36101",
        "wikipedia_title": "Koala",
        "wikipedia_content": "The koala is a marsupial.\nIt eats leaves. It sleeps a lot.",
        "wikipedia_summary": "The koala is a marsupial.",
        "wikipedia_image_url": "https://upload.wikimedia.org/koala.jpg",
    },
    {
        "wikidata_id": "Q1",
        "wikipedia_title": "Universe",
        "wikipedia_content": "All of space.",
        "wikipedia_image_url": None,
    },
]


def write_wiki(path, rows=WIKI):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


# Encyclopedic-VQA's layout, which EchoSight's InfoSeek knowledge base has too


@pytest.mark.parametrize("name", ["kb.json", "kb.json.gz", "encyclopedic_kb_wiki.zip"])
def test_a_knowledge_base_becomes_its_sections_with_their_article(tmp_path, name):
    corpus = Corpus.read(write_kb(tmp_path / name))
    assert list(corpus.values()) == SECTIONS
    assert corpus[f"{KOALA}#1"].content == "Koala - Diet: It eats leaves.\nMostly eucalypt."
    assert corpus[f"{KOALA}#0"].content == "Koala: A marsupial."
    assert corpus[f"{KOALA}#3"].article_names == (KOALA, "Koala")


def test_sections_are_cut_into_parts_of_at_most_so_many_words(tmp_path):
    path = write_kb(tmp_path / "kb.json")
    corpus = Corpus.read(path, sections=kb.Sections(words=3))
    assert [(p.passage_id, p.text) for p in corpus.values() if p.section == "Diet"] == [
        (f"{KOALA}#1", "It eats leaves."),
        (f"{KOALA}#1.1", "Mostly eucalypt."),
    ]
    assert all(p.article in (KOALA, TOWER) for p in corpus.values())


def test_only_the_wanted_articles_are_kept(tmp_path):
    path = write_kb(tmp_path / "kb.json")
    names = tmp_path / "names.txt"
    csv = tmp_path / "test.csv"
    csv.write_text(f"question,wikipedia_url\na,{KOALA}|https://x.y/z\n", encoding="utf-8")
    for keep, text in ((names, f"{KOALA}\n\n"), (names, "Koala\n"), (csv, None)):
        if text is not None:
            keep.write_text(text, encoding="utf-8")
        corpus = Corpus.read(path, sections=kb.Sections(keep=keep))
        assert {p.article for p in corpus.values()} == {KOALA}
    names.write_text("Nobody\n", encoding="utf-8")
    with pytest.raises(DataError, match="the corpus is empty"):
        Corpus.read(path, sections=kb.Sections(keep=names))
    names.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="no article is listed"):
        Corpus.read(path, sections=kb.Sections(keep=names))


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ([], "an object of articles by URL is expected"),
        ({}, "an object of articles by URL is expected"),
        ({"u": 5}, r"article 1 \(u\): an object is expected"),
        ({"u": {"title": "x"}}, "'section_titles' and 'section_texts'"),
        ({"u": {"section_titles": ["a"], "section_texts": []}}, "of equal length"),
    ],
)
def test_a_knowledge_base_of_another_layout_is_named(tmp_path, pages, reason):
    with pytest.raises(DataError, match=reason):
        Corpus.read(write_kb(tmp_path / "kb.json", pages))


def test_a_knowledge_base_that_is_cut_off_is_named(tmp_path):
    path = write_kb(tmp_path / "kb.json")
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("Tower")], encoding="utf-8")
    with pytest.raises(DataError, match=r"kb\.json: not JSON .*is it cut off"):
        Corpus.read(path)
    path = write_kb(tmp_path / "kb.zip")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"kb\.zip cannot be read"):
        Corpus.read(path)


def test_a_large_knowledge_base_is_read_in_little_memory(tmp_path):
    text = "word " * 4000  # 20 kB an article, 40 MB in all
    with (tmp_path / "kb.json").open("w", encoding="utf-8") as out:
        out.write("{")
        for i in range(2000):
            page = {"title": f"T{i}", "section_titles": [f"T{i}"], "section_texts": [text]}
            out.write(("," if i else "") + f'"https://x/{i}":' + json.dumps(page))
        out.write("}")
    tracemalloc.start()
    try:
        count = sum(1 for _ in sources.read_passages(tmp_path / "kb.json", kb.Sections()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 2000
    assert peak < 2_000_000


# Wiki6M


@pytest.mark.parametrize("name", ["Wiki6M_ver_1_0.jsonl.gz", "Wiki6M_ver_1_0.jsonl"])
def test_wiki6m_is_streamed_into_passages_of_its_entities(tmp_path, name):
    path = write_wiki(tmp_path / name)
    corpus = Corpus.read(path, sections=kb.Sections(words=5))
    assert list(corpus) == ["Q36101#0", "Q36101#1", "Q36101#2", "Q1#0"]
    assert corpus["Q36101#1"] == Passage(
        "Q36101#1", "It eats leaves.", "Koala", entity="Q36101", article="Q36101"
    )
    assert [p.text for p in corpus.values()] == [
        "The koala is a marsupial.",
        "It eats leaves.",
        "It sleeps a lot.",
        "All of space.",
    ]
    assert "Koala" in corpus["Q36101#0"].article_names  # InfoSeek's entity_text


def test_wiki6m_is_cut_to_the_entities_of_infoseek(tmp_path):
    path = write_wiki(tmp_path / "wiki.jsonl.gz")
    keep = tmp_path / "infoseek_val_withkb.jsonl"
    rows = [{"data_id": "infoseek_val_00000000", "entity_id": "Q1", "entity_text": "Universe"}]
    keep.write_text("".join(json.dumps(r) + "\n" for r in rows))
    corpus = Corpus.read(path, sections=kb.Sections(keep=keep))
    assert {p.entity for p in corpus.values()} == {"Q1"}


def test_articles_of_wiki6m_are_cut_even_if_nobody_asks(tmp_path):
    long = {**WIKI[1], "wikipedia_content": "One two three. " * 400}
    corpus = Corpus.read(write_wiki(tmp_path / "w.jsonl", [long]))
    assert len(corpus) == 4
    assert all(len(p.text.split()) <= kb.WIKI_WORDS for p in corpus.values())


def test_the_file_with_titles_only_is_refused(tmp_path):
    rows = [{"wikidata_id": "Q1", "wikipedia_title": "Universe"}]
    with pytest.raises(
        DataError, match=r"^/.*line 1: no 'wikipedia_content'; is this the file with"
    ):
        Corpus.read(write_wiki(tmp_path / "title_only.jsonl", rows))


# Cutting


@given(
    st.lists(st.sampled_from(["word", "end.", "\n", "Über", "x! ", " "]), max_size=60).map(
        " ".join
    ),
    st.integers(1, 9),
)
def test_nothing_is_lost_in_cutting_and_no_piece_is_too_long(text, words):
    pieces = list(kb.cut(text, words))
    assert [w for p in pieces for w in p.split()] == text.split()
    assert all(1 <= len(p.split()) <= words for p in pieces)


def test_lines_end_where_those_of_files_do(tmp_path):
    marks = "\u2028\u2029\x85\f\v\x1c"
    assert list(kb.cut(f"a{marks}b\rc\r\nd\ne", 2)) == [f"a{marks}b", "c\nd", "e"]
    names = tmp_path / "keep.txt"
    names.write_bytes("One\u2028Two\rThree\r\nFour\x85Five\n".encode())
    assert kb.read_names(names) == {"One\u2028Two", "Three", "Four\x85Five"}


def test_cutting_keeps_sentences_and_paragraphs_whole_where_they_fit():
    text = "One two. Three four five.\nSix seven.\n\nEight nine ten eleven twelve thirteen."
    assert list(kb.cut(text, 5)) == [
        "One two. Three four five.",
        "Six seven.",
        "Eight nine ten eleven twelve",
        "thirteen.",
    ]
    assert next(kb.cut(text, 7)) == "One two. Three four five.\nSix seven."
    assert list(kb.cut(text, None)) == [text]


# RA-VQA's static results hold passages


def test_static_results_of_ravqa_give_the_passages_that_they_hold(tmp_path):
    top = [
        {"passage_index": 3, "passage_id": "GS_3", "content": "<BOK> three <EOK>", "score": 2.5},
        {"passage_index": 1, "passage_id": "GS_1", "content": "one", "score": 1.5},
    ]
    items = [
        {"question_id": "1", "top_ranking_passages": top},
        {"question_id": "2", "top_ranking_passages": top[:1]},
    ]
    path = tmp_path / "test_predictions.json"
    path.write_text(json.dumps({"output": items}))
    assert list(Corpus.read(path).values()) == [Passage("GS_3", "three"), Passage("GS_1", "one")]


def test_entries_of_static_results_that_cannot_be_used_are_left_out(tmp_path):
    def entry(passage_id, content="x"):
        return {"passage_id": passage_id, "content": content}

    items = [
        {"question_id": "1", "top_ranking_passages": [entry("a"), entry("b", 5), entry("c")]},
        {"question_id": "2"},
        {"question_id": "3", "top_ranking_passages": [entry("a"), entry(1.5), 7, entry("d")]},
        5,
    ]
    path = tmp_path / "test_predictions.json"
    path.write_text(json.dumps({"output": items}))
    with pytest.raises(DataError, match=r"question 1: passage 'b' has no id or no 'content'$"):
        Corpus.read(path)
    with pytest.raises(DataError, match=r"question 1: .*; .*question 4: .* \(--on-error skip"):
        Corpus.read(path, remarks=Remarks())
    found = Corpus.read(path, remarks=Remarks("skip"))
    assert list(found) == ["a", "c", "d"]
    places = [line.removeprefix(f"{path}, ").partition(":")[0] for line in found.left_out]
    assert places == ["question 1", "question 2", "question 3", "question 3", "question 4"]


# Published passage files


def test_google_search_and_m2kr_passages_are_read_as_published(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "okvqa_full_corpus.csv"
    path.write_text('kid,text\n0,"a vase, blue"\n1,b\n', encoding="utf-8")
    assert list(Corpus.read(path).values()) == [Passage("0", "a vase, blue"), Passage("1", "b")]
    rows = [
        {
            "passage_id": "wiki_1",
            "passage_content": "title: Koala content: It eats leaves.",
            "language": "en",
            "title": "Koala",
        },
        {"passage_id": "GS_1", "passage_content": "plain", "language": "en", "title": None},
    ]
    parquet = tmp_path / "test_passages-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    koala, plain = Corpus.read(parquet).values()
    # The text has its title already.
    assert koala.content == "title: Koala content: It eats leaves."
    assert (koala.article, plain.article) == ("Koala", None)
    assert dict(plain.extra) == {"language": "en"}


def test_parquet_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"pip install 'ravqa\[datasets\]'"):
        Corpus.read(tmp_path / "p.parquet")


def test_a_broken_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"p\.parquet cannot be read"):
        Corpus.read(tmp_path / "p.parquet")


def test_a_gzipped_corpus_that_is_cut_off_is_named(tmp_path):
    path = write_wiki(tmp_path / "w.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"w\.jsonl\.gz cannot be read"):
        Corpus.read(path)


# ravqa passages


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["passages", *map(str, arguments)])
    return end.value.code


def test_passages_written_once_are_the_same_corpus(tmp_path, capsys):
    source = write_kb(tmp_path / "kb.zip")
    target = tmp_path / "passages.jsonl"
    assert run(source, "--output", target) == 0
    assert f"4 passages of 2 articles: {target}" in capsys.readouterr().out
    direct, written = Corpus.read(source), Corpus.read(target)
    assert list(written.values()) == list(direct.values())
    assert written.fingerprint == direct.fingerprint

    assert run(source, "--output", target) == 2
    assert "--overwrite" in capsys.readouterr().err
    keep = tmp_path / "keep.txt"
    keep.write_text("Koala\n")
    arguments = ("--output", target, "--keep", keep, "--words", "2", "--overwrite")
    assert run(source, *arguments) == 0
    assert {p.title for p in Corpus.read(target).values()} == {"Koala"}
    keep.write_text("Nobody\n")
    assert run(source, *arguments) == 2
    assert "none of the wanted articles" in capsys.readouterr().err
    assert len(Corpus.read(target)) > 3  # the old file stays
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kb.zip", "keep.txt", "passages.jsonl"]


def test_passages_are_written_into_a_jsonl_file_only(tmp_path):
    source = write_kb(tmp_path / "kb.json")
    with pytest.raises(UserError, match=r"must end in \.jsonl"):
        write_passages([source], source, kb.Sections(), overwrite=True)
    assert json.loads(source.read_text(encoding="utf-8")) == PAGES


# Corpora on disk


TEXT = st.text(max_size=20)
PASSAGES = st.lists(
    st.builds(
        Passage,
        passage_id=st.text(min_size=1, max_size=8),
        text=TEXT,
        title=st.none() | TEXT,
        entity=st.none() | TEXT,
        url=st.none() | TEXT,
        extra=st.dictionaries(TEXT, st.none() | st.integers() | TEXT, max_size=2),
        section=st.none() | TEXT,
        article=st.none() | TEXT,
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda p: p.passage_id,
)


@given(PASSAGES, st.text(max_size=8))
@pytest.mark.slow
def test_a_corpus_on_disk_is_the_same_mapping_as_one_in_memory(passages, other):
    memory = Corpus(passages)
    disk = DiskCorpus(f"test-{memory.fingerprint}-{hash(str(passages))}", passages, source="test")
    assert len(disk) == len(memory)
    assert list(disk) == list(memory)
    assert list(disk.values()) == passages
    assert list(disk.items()) == list(memory.items())
    assert [disk[p.passage_id] for p in reversed(passages)] == passages[::-1]
    assert disk.fingerprint == memory.fingerprint
    assert (other in disk) == (other in memory)
    assert disk.get(other) == memory.get(other)


def jsonl(path, count, start=0):
    rows = [{"id": f"p{i}", "text": f"text {i}"} for i in range(start, start + count)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def small(monkeypatch):
    """Every file is large."""
    monkeypatch.setattr(corpus_module, "IN_MEMORY", 0)


@pytest.mark.usefixtures("small")
def test_large_files_become_a_corpus_on_disk_once_per_content(tmp_path, fresh_cache, monkeypatch):
    path = jsonl(tmp_path / "p.jsonl", 3000)
    first = Corpus.read(path)
    assert isinstance(first, DiskCorpus)
    assert first["p2999"].text == "text 2999"
    assert (
        first.fingerprint
        == Corpus([Passage(f"p{i}", f"text {i}") for i in range(3000)]).fingerprint
    )
    reads = []
    real = sources.read_passages

    def read(*arguments, **options):
        reads.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(sources, "read_passages", read)
    again = Corpus.read(path)
    assert list(again.values()) == list(first.values())
    assert reads == []  # nothing was parsed
    jsonl(path, 2999)
    assert len(Corpus.read(path)) == 2999
    assert len(reads) == 1
    assert len(Corpus.read(path, sections=kb.Sections(words=1))) == 2999
    assert len(reads) == 2  # other settings, another corpus
    names = {p.name for p in (fresh_cache / "corpora").iterdir()}
    assert len(names) == 3
    assert not any(name.startswith(".") for name in names)


@pytest.mark.usefixtures("small")
def test_errors_of_a_large_corpus_are_those_of_a_small_one(tmp_path, fresh_cache):
    path = jsonl(tmp_path / "p.jsonl", 50)
    with path.open("a") as out:
        out.write('{"id": "p7", "text": "again"}\n')
    with pytest.raises(DataError, match="passage id 'p7' occurs twice"):
        Corpus.read(path)
    assert Corpus.read(path, repeats="first").repeated == 1
    assert Corpus.read(path, repeats="first")["p7"].text == "text 7"  # from the cache
    assert Corpus.read(path, repeats="first").repeated == 1
    path.write_text('{"id": 1, "text": "a"}\n{"id": 2}\n')
    with pytest.raises(DataError, match="line 2: no text"):
        Corpus.read(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="the corpus is empty"):
        Corpus.read(path)
    with pytest.raises(DataError, match="no such file"):
        Corpus.read(path, tmp_path / "gone.jsonl")
    # What failed left nothing behind.
    assert len(list((fresh_cache / "corpora").iterdir())) == 1


def test_repeated_ids_in_memory_are_left_out_if_the_first_shall_stand():
    passages = [Passage("a", "1"), Passage("b", "2"), Passage("a", "3")]
    corpus = Corpus(passages, repeats="first")
    assert (list(corpus.values()), corpus.repeated) == (passages[:2], 1)


@pytest.mark.usefixtures("small")
def test_a_corpus_on_disk_is_read_by_several_threads(tmp_path):
    corpus = Corpus.read(jsonl(tmp_path / "p.jsonl", 500))
    ids = [f"p{i}" for i in range(500)] * 4
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: corpus[i].text, ids))
    assert texts == [f"text {i[1:]}" for i in ids]


def test_of_two_builders_of_one_corpus_the_first_wins(fresh_cache):
    def passages():
        yield Passage("a", "1")
        # Meanwhile another process has made it.
        DiskCorpus("key", [Passage("a", "1")], source="other")

    corpus = DiskCorpus("key", passages(), source="this")
    assert list(corpus.values()) == [Passage("a", "1")]
    assert [p.name for p in (fresh_cache / "corpora").iterdir()] == ["key"]


def test_passages_are_not_written_over_a_file_of_a_run(tmp_path, capsys):
    source = tmp_path / "p.jsonl"
    source.write_text('{"passage_id": "a", "text": "one"}\n')
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "samples.jsonl"):
        (run / name).write_text("of the run")
    with pytest.raises(SystemExit) as end:
        main(["passages", str(source), "--output", str(run / "samples.jsonl"), "--overwrite"])
    assert end.value.code == 2
    assert "is a file of a run: choose another --output" in capsys.readouterr().err
    assert (run / "samples.jsonl").read_text() == "of the run"


def test_a_number_and_its_digits_are_one_id_in_static_results(tmp_path):
    entries = [{"passage_id": i, "content": "text"} for i in (1, "1", 2)]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"output": [{"question_id": 1, "top_ranking_passages": entries}]}))
    assert list(Corpus.read(path)) == ["1", "2"]
