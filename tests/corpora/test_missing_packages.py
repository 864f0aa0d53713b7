"""A format whose package is not installed is refused with the file and the extra."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from ravqa.core.errors import MissingExtraError
from ravqa.corpora import hub, kb, office, pdf, tables, web


@pytest.fixture
def without(monkeypatch):
    """Let one package be missing; the others are there and empty: nothing is imported."""

    def missing(package):
        def import_module(name):
            if name == package:
                raise ModuleNotFoundError(name=name)
            return SimpleNamespace()

        monkeypatch.setattr(
            "ravqa.core.errors.importlib", SimpleNamespace(import_module=import_module)
        )

    return missing


@pytest.mark.parametrize(
    ("module", "extra", "read"),
    [
        ("docx", "office", office.read_docx),
        ("pptx", "office", office.read_pptx),
        ("pypdf", "pdf", pdf.read),
        ("pypdf.errors", "pdf", pdf.read),
        ("lxml.html", "html", web.read),
        ("lxml.etree", "html", web.read),
        ("pyarrow", "datasets", tables.parquet_columns),
        ("pyarrow.parquet", "datasets", tables.parquet_columns),
    ],
)
def test_the_package_of_a_format(module, extra, read, without):
    without(module)
    with pytest.raises(MissingExtraError) as error:
        read(Path("own.file"))
    assert str(error.value) == (
        f"reading own.file needs the package {module.partition('.')[0]!r}, which is not installed: "
        f"pip install 'ravqa[{extra}]'"
    )


def test_the_packages_of_streams_and_of_the_hub(without):
    end = "which is not installed: pip install 'ravqa[datasets]'"
    without("ijson")
    with pytest.raises(MissingExtraError) as error:
        next(kb._stream(Path("own.json"), "items", "item"))
    assert str(error.value) == f"reading own.json as a stream needs the package 'ijson', {end}"
    without("datasets")
    with pytest.raises(MissingExtraError) as error:
        hub.split_names(Path("hf:own/name"), None)
    assert str(error.value) == f"reading own/name from the hub needs the package 'datasets', {end}"
