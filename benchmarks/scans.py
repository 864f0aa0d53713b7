"""Measure what is lost when a document is a scan that OCR reads: letters, and passages found.

The articles of the bundled sample become a PDF file with a page each, and the images of its pages
another one. Both are read as passages, the second one by OCR. Prints for each resolution the
seconds a page, the share of wrong characters (edits per character of the text, spaces apart), and
PRRecall@5 of the sample's questions in both, by BM25 with what a classifier sees in the photo.

    python benchmarks/scans.py [--pages N] [--dpi 100 150 200] [--quality 50]
"""

import argparse
import io
import itertools
import tempfile
import textwrap
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import PIL.Image
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from ravqa.core.locations import SAMPLE
from ravqa.core.outcomes import or_empty
from ravqa.corpora.corpus import Corpus
from ravqa.corpora.kb import Sections
from ravqa.corpora.pdf import render_pages
from ravqa.datasets.base import DatasetRequest, load_dataset
from ravqa.metrics.prrecall import answer_ranks
from ravqa.metrics.statistics.intervals import estimate_of_difference, paired_test
from ravqa.pipeline import Pipeline

WIDTH, HEIGHT, MARGIN, LETTERS = 595, 842, 72, 80  # A4 in points; letters a line


def articles(count):
    texts = defaultdict(list)
    for passage in Corpus.read(SAMPLE / "passages.jsonl").stream():
        texts[passage.title].append(passage.text)
    return ["\n".join(found[:8]) for found in itertools.islice(texts.values(), count)]


def write_text(path, pages):
    """Write a PDF file with the lines of each page in Helvetica, 11 points high."""
    writer = PdfWriter()
    names = {"Type": "Font", "Subtype": "Type1", "BaseFont": "Helvetica"}
    names["Encoding"] = "WinAnsiEncoding"
    font = {NameObject(f"/{key}"): NameObject(f"/{value}") for key, value in names.items()}
    for text in pages:
        page = writer.add_blank_page(WIDTH, HEIGHT)
        fonts = DictionaryObject({NameObject("/F1"): DictionaryObject(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        lines = [line for part in text.split("\n") for line in textwrap.wrap(part, LETTERS)]
        escaped = [line.translate({ord(c): f"\\{c}" for c in "\\()"}) for line in lines]
        drawn = " T* ".join(f"({line}) Tj" for line in escaped)
        stream = DecodedStreamObject()
        start = f"{MARGIN} {HEIGHT - MARGIN}"
        stream.set_data(f"BT /F1 11 Tf 14 TL {start} Td {drawn} ET".encode("cp1252", "replace"))
        page[NameObject("/Contents")] = writer._add_object(stream)
    writer.write(path)


def scan(path, source, dpi, quality):
    """Write a PDF file with grey JPEG images of another one's pages."""
    pictures = []
    for _, png in render_pages(source, dpi=dpi):
        packed = io.BytesIO()
        PIL.Image.open(io.BytesIO(png)).convert("L").save(packed, "JPEG", quality=quality)
        pictures.append(PIL.Image.open(packed))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], resolution=dpi)


def edits(a, b):
    """Return Levenshtein's distance of two strings."""
    b = np.array([ord(letter) for letter in b])
    steps = np.arange(len(b) + 1)
    row = steps
    for i, letter in enumerate(a, 1):
        new = np.concatenate([[i], np.minimum(row[1:] + 1, row[:-1] + (b != ord(letter)))])
        row = np.minimum.accumulate(new - steps) + steps
    return int(row[-1])


def by_page(corpus):
    texts = defaultdict(str)
    for passage in corpus.stream():
        texts[passage.extra["page"]] += "".join(passage.text.split())
    return texts


def recall(pipeline, questions, corpus):
    """Return for each question 100 if one of its first five passages holds an answer, else 0."""
    pipeline.prepare(corpus)
    found = {}
    for question, hits in zip(questions, pipeline.retrieve(questions), strict=True):
        passages = [passage for _, passage in pipeline.passages(or_empty(hits)[:5])]
        texts = [passage.content for passage in passages]
        found[question.question_id] = 100.0 * bool(answer_ranks(texts, question.answers))
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", type=int, default=None)
    parser.add_argument("--dpi", type=int, nargs="+", default=[100, 150, 200])
    parser.add_argument("--quality", type=int, default=50, help="of the JPEG images")
    options = parser.parse_args()
    pipeline = Pipeline.load("sample", "retriever={name: bm25}", "top_k=5", retrieval_only=True)
    questions = pipeline.describe(load_dataset("okvqa", DatasetRequest()).questions)
    images = {question.question_id: question.image_id for question in questions}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.pdf")
        write_text(text, articles(options.pages))
        written = Corpus.read(text)
        expected, best = by_page(written), recall(pipeline, questions, written)
        letters = sum(map(len, expected.values()))
        print(f"{len(expected)} pages, {letters} letters, {len(questions)} questions")
        print(f"text: PRRecall@5 {np.mean(list(best.values())):.1f}")
        for dpi in options.dpi:
            path = Path(folder, f"scan{dpi}.pdf")
            scan(path, text, dpi, options.quality)
            start = time.perf_counter()
            read = Corpus.read(path, sections=Sections(ocr=True, dpi=dpi))
            seconds = time.perf_counter() - start
            texts = by_page(read)
            wrong = sum(edits(own, texts[page]) for page, own in expected.items())
            found = recall(pipeline, questions, read)
            test = paired_test(found, best, images)
            gap = estimate_of_difference(test, found, best, images)
            print(
                f"scan of {dpi} dpi: {seconds / len(expected):.2f} s a page, "
                f"{100 * wrong / letters:.2f} % wrong, PRRecall@5 "
                f"{np.mean(list(found.values())):.1f}, difference {gap.value:+.1f} "
                f"{gap.bounds(1)}, p {test.p_value:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
