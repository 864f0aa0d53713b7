"""Names of columns and files that users rely on, and limits of sizes."""

from ravqa.corpora import corpus, disk, kb, pages, row_images, rows, sources, tables
from ravqa.images.decode import SUFFIXES


def test_columns_of_passages():
    assert rows.ID_COLUMNS == ("passage_id", "id", "_id", "kid")
    assert rows.TEXT_COLUMNS == ("text", "passage_content", "content", "contents")
    held = ("image", "images", "img", "imgs", "image_bytes", "img_bytes", "picture", "photo")
    assert held == row_images.HELD
    assert (
        *("img_path", "image_path", "img_file", "image_file", "img_file_name", "image_file_name"),
        *("image_filename", "image_name", "image_url", "img_url", "coco_url", "image_file_path"),
        *("img_file_path", "image_uri", "image_link", "photo_path", "photo_url", "picture_path"),
    ) == row_images.NAMED


def test_suffixes_of_files():
    assert tables.JSON_LINES == (".jsonl", ".ndjson")
    assert tables.TABLES == (".csv", ".tsv")
    assert tables.PARQUET == ".parquet"
    assert pages.MARKDOWN == (".md", ".markdown")
    assert pages.MANIFESTS == ("collection.json", "library.json")
    web = (".html", ".htm", ".xhtml")
    texts = (".txt", ".md", ".markdown", *web, ".pdf", ".docx", ".pptx")
    assert (*texts, *SUFFIXES) == pages.PAGES


def test_limits():
    assert (kb.WIKI_WORDS, pages.PAGE_WORDS) == (300, 150)
    assert (corpus.IN_MEMORY, disk.QUESTIONS_IN_MEMORY) == (2**25, 100_000)
    assert sources.PASSAGE_BYTES == 1000
    sections = kb.Sections()
    names = ("words", "keep", "quotes", "encoding", "delimiter", "pages", "dpi", "ocr")
    assert sections.model_dump() == dict.fromkeys(names)
