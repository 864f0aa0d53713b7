"""What is fetched, in which order, and what is said of content that is something else."""

import io
import zipfile
from types import SimpleNamespace

import pytest
from messages import said

from ravqa.core.errors import UserError
from ravqa.core.http import FetchError
from ravqa.core.registry import Entry
from ravqa.datasets import DOWNLOADS
from ravqa.datasets import download as module
from ravqa.datasets.download import download, remarks
from ravqa.datasets.remote import JPEG, Images, Remote, Source

SOURCE = Source("A_MIRROR", "https://official/x")
JPEG_BYTES = b"\xff\xd8\xff any"


@pytest.fixture
def served(monkeypatch):
    """Answers by address; what is asked for is noted."""
    files, asked = {}, []

    def fetch(self, url, out, report=None):
        asked.append(url)
        data = files[url.removeprefix("https://official/x/")]
        if isinstance(data, Exception):
            raise data
        if report:
            report(0, len(data))
            report(len(data), len(data))
        out.write(data)

    monkeypatch.setattr(module.Fetcher, "fetch", fetch)
    monkeypatch.delenv("A_MIRROR", raising=False)
    return SimpleNamespace(files=files, asked=asked)


@pytest.fixture
def mine(monkeypatch):
    """A registered source of files: two splits, and images that a function names."""
    named = []

    def names(folder, split, limit):
        named.append((folder, split, limit))
        return ["i/a.jpg", "i/b.jpg"]

    remote = Remote(
        SOURCE,
        {"val": ["v.json", "more.json.zip"], "train": ["t.json"]},
        {"val": "val", "v": "val", "train": "train"},
        images=Images(SOURCE, names),
        remark=lambda folder: f"into {folder}",
    )
    monkeypatch.setitem(DOWNLOADS._entries, "mine", Entry("a:b", "for tests"))
    monkeypatch.setattr(DOWNLOADS, "get", lambda name: remote)
    return named


def zipped(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return out.getvalue()


def test_what_lacks_is_fetched_and_nothing_else(tmp_path, served, mine):
    served.files |= {
        "v.json": b' {"a": 1}',
        "more.json.zip": zipped(**{"readme": "x", "more.json": "{}"}),
        "t.json": b"{}",
        "i/a.jpg": JPEG_BYTES,
        "i/b.jpg": JPEG_BYTES,
    }
    seen = []
    download("mine", tmp_path, None, limit=3, console_progress=lambda *step: seen.append(step))
    assert (tmp_path / "v.json").read_bytes() == b' {"a": 1}'
    assert (tmp_path / "more.json").read_bytes() == b"{}"
    assert (tmp_path / "i" / "b.jpg").read_bytes() == JPEG_BYTES
    assert served.asked[:2] == [f"https://official/x/{n}" for n in ("v.json", "more.json.zip")]
    assert sorted(served.asked[2:]) == [f"https://official/x/i/{n}.jpg" for n in "ab"]
    assert mine == [(tmp_path, "val", 3)]
    assert [step for step in seen if step[0] == "downloading images"] == [
        ("downloading images", done, 2) for done in (0, 1, 2)
    ]
    assert [s for s in seen if "MB" in s[0]] == [
        (f"downloading {name} (MB)", done, 1) for name in ("v.json", "more.json") for done in (0, 1)
    ]
    served.asked.clear()
    (tmp_path / "i" / "a.jpg").unlink()
    download("mine", tmp_path, "v", limit=None, console_progress=None)
    assert served.asked == ["https://official/x/i/a.jpg"]
    assert mine[1] == (tmp_path, "val", None)
    download("mine", tmp_path, "train", limit=None, console_progress=None)
    assert served.asked[1:] == ["https://official/x/t.json"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "t.json").write_text("{}")
    served.asked.clear()
    download("mine", other, None, limit=None, console_progress=None)
    assert mine[-1] == (other, "train", None)  # the split whose file is there
    message = said(UserError, download, "mine", other, "vel", limit=None, console_progress=None)
    assert message.startswith("no split 'vel': did you mean val or v?")


def test_progress_of_a_file_is_in_whole_megabytes(tmp_path, monkeypatch):
    seen = []

    def fetch(self, url, out, report):
        out.write(b"{")
        for received, expected in ((0, None), (0, 2_600_000), (999_999, 2_600_000)):
            report(received, expected)
        for received in (1_000_000, 2_599_999, 2_600_000):
            report(received, 2_600_000)

    monkeypatch.setattr(module.Fetcher, "fetch", fetch)
    fetcher = module._Downloads()
    target = tmp_path / "a.json"
    fetcher.file(SOURCE, "a.json", target, lambda *step: seen.append(step), ("JSON file", b"{"))
    assert seen == [("downloading a.json (MB)", done, 3) for done in (0, 0, 1, 2, 3)]


def test_remarks_come_from_the_dataset(tmp_path, mine):
    assert remarks("mine", tmp_path) == [f"into {tmp_path}"]
    assert remarks("other", tmp_path) == []


def test_a_dataset_without_a_source(tmp_path):
    names = "okvqa, infoseek, evqa"
    assert said(UserError, download, "m2kr", tmp_path, None, limit=None, console_progress=None) == (
        f"--download: the dataset m2kr has no download source (those with one: {names}): put its "
        f"files into {tmp_path} by hand, or read a dataset from the hub with --data hf:OWNER/NAME"
    )


NOT_JSON = "the download is not a JSON file: it begins with b'"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("v.json", FetchError("503"), "503"),
        ("v.json", b"<html>" + b"x" * 99, f"{NOT_JSON}<html>xxxxxxxxxx'"),
        ("v.json", b"", "the download is not a JSON file: it is empty"),
        ("v.json", b"  \n", f"{NOT_JSON}  \\n'"),
        ("more.json.zip", b"{}", "the download is not a usable zip (File is not a zip file)"),
        (
            "more.json.zip",
            zipped(),
            "the zip does not contain more.json (it contains nothing)",
        ),
        (
            "more.json.zip",
            zipped(a="", b="", c="", d=""),
            "the zip does not contain more.json (it contains 'a', 'b', 'c')",
        ),
        ("more.json.zip", zipped(**{"more.json": "x"}), f"{NOT_JSON}x'"),
        ("i/a.jpg", b" " + JPEG_BYTES, "the download is not a JPEG image: it begins with b' "),
    ],
)
def test_what_cannot_be_fetched_is_named_with_the_way_out(
    tmp_path, served, mine, name, data, reason
):
    served.files |= {
        "v.json": b"{}",
        "more.json.zip": zipped(**{"more.json": "{}"}),
        "i/a.jpg": JPEG_BYTES,
        "i/b.jpg": JPEG_BYTES,
        name: data,
    }
    message = said(UserError, download, "mine", tmp_path, None, limit=None, console_progress=None)
    url = f"https://official/x/{name}"
    target = tmp_path / name.removesuffix(".zip")
    assert message.startswith(f"{url} could not be downloaded: {reason}")
    assert message.endswith(
        "; the same command continues where it stopped, A_MIRROR can name a mirror, or put the "
        f"file at {target} by hand"
    )
    assert not target.exists()


def test_limits_of_a_zip(tmp_path, monkeypatch):
    def unpacked(data):
        out = io.BytesIO()
        module._unpack(io.BytesIO(data), "a.json", out)
        return out.getvalue()

    packed = zipped(**{"a.json": "{}" * 50})
    monkeypatch.setattr(module, "_MAX_JSON", 100)
    assert unpacked(packed) == b"{}" * 50
    monkeypatch.setattr(module, "_MAX_JSON", 99)
    assert said(FetchError, unpacked, packed) == "a.json would unpack to 100 bytes"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.json", "{}")
    message = said(FetchError, unpacked, out.getvalue())
    assert message == "the zip is compressed by an unsupported method"


def test_a_disk_that_is_full_is_said(tmp_path, served, mine):
    served.files["t.json"] = OSError(28, "No space left on device")
    message = said(
        UserError, download, "mine", tmp_path, "train", limit=None, console_progress=None
    )
    assert message == (
        f"https://official/x/t.json could not be stored as {tmp_path}/t.json: No space left on "
        "device; the same command continues where it stopped"
    )


def test_kinds_of_content():
    assert JPEG == ("JPEG image", b"\xff\xd8\xff")
    assert (module._THREADS, module._MAX_JSON, module._MEGABYTE) == (8, 2**30, 1_000_000)
