"""Archives as they are read in place: each fault with its reason, every limit, and their order."""

import io
import tarfile
import zipfile

import pytest

from ravqa.core.errors import DataError
from ravqa.images import archives
from ravqa.images.archives import Archive, ArchiveError, archive, archive_of

DATA = bytes(range(256)) * 4


def zipped(path, method=zipfile.ZIP_STORED, data=DATA, name="a.jpg"):
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr(name, data)
    return path


def tarred(path, **members):
    with tarfile.open(path, "w") as made:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return path


def altered(path, change):
    path.write_bytes(change(path.read_bytes()))
    return path


def encrypted(data):
    """The same zip with the mark of encryption in its list of files."""
    place = data.index(b"PK\x01\x02") + 8
    return data[:place] + bytes([data[place] | 1]) + data[place + 1 :]


def headless(data):
    return b"PK\x03\x05" + data[4:]


FAULTS = {
    "encrypted": (zipfile.ZIP_STORED, encrypted, "encrypted"),
    "method": (zipfile.ZIP_BZIP2, bytes, "compressed by an unsupported method"),
    "header": (zipfile.ZIP_STORED, headless, "no zip header where one should be"),
    "content": (
        zipfile.ZIP_STORED,
        lambda data: data.replace(DATA, DATA[:-1] + b"x"),
        "its checksum is wrong",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_zip_file_is_named(tmp_path, fault):
    method, change, reason = FAULTS[fault]
    path = altered(zipped(tmp_path / "x.zip", method), change)
    with pytest.raises(DataError) as error:
        archive(path).read("a.jpg")
    assert str(error.value) == f"{path}/a.jpg: broken image ({reason})"


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_file_that_was_cut_off_since_it_was_opened_is_named(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    opened = Archive(zipped(path) if kind == "zip" else tarred(path, **{"a.jpg": DATA}))
    assert opened.read("a.jpg") == DATA
    altered(path, lambda data: data[: data.index(DATA) + len(DATA) - 1])
    with pytest.raises(DataError) as error:
        opened.read("a.jpg")
    assert str(error.value) == f"{path}/a.jpg: broken image (cut off)"
    path.unlink()
    with pytest.raises(DataError, match=r"a\.jpg: broken image \(.*No such file"):
        opened.read("a.jpg")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, None])
def test_the_limit_of_a_member_is_the_largest_allowed(tmp_path, monkeypatch, method):
    path = tmp_path / "x"
    opened = archive(tarred(path, **{"a.jpg": DATA}) if method is None else zipped(path, method))
    monkeypatch.setattr(archives, "MAX_BYTES", 1024)
    assert opened.read("a.jpg") == DATA
    monkeypatch.setattr(archives, "MAX_BYTES", 1023)
    with pytest.raises(DataError) as error:
        opened.read("a.jpg")
    reason = "1024 bytes, more than the limit of 1023"
    assert str(error.value) == f"{path}/a.jpg: broken image ({reason})"


@pytest.mark.parametrize("extra", [1, -1])
def test_a_member_of_another_size_than_the_list_says_is_broken(tmp_path, extra):
    path = zipped(tmp_path / "x.zip", zipfile.ZIP_DEFLATED)
    size, wrong = (n.to_bytes(4, "little") for n in (1024, 1024 + extra))
    altered(path, lambda data: data.replace(size, wrong))
    with pytest.raises(DataError, match="checksum"):
        archive(path).read("a.jpg")


def test_extra_fields_of_the_header_are_passed_over(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        for name in ("a.jpg", "folder/b.jpg"):
            info = zipfile.ZipInfo(name)
            info.extra = b"\x99\x99\x02\x01" + bytes(0x102)  # longer than 256 bytes
            made.writestr(info, DATA + name.encode())
        made.mkdir("empty")
    opened = archive(tmp_path / "x.zip")
    assert sorted(opened.members) == ["a.jpg", "folder/b.jpg"]
    for name in opened.members:
        assert opened.read(name) == DATA + name.encode()


def test_the_first_of_two_members_of_one_name_counts(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        for data in (b"first", b"second"):
            entry = tarfile.TarInfo("./a.jpg")
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    opened = archive(tmp_path / "x.tar")
    assert list(opened.members) == ["a.jpg"]
    assert opened.read("a.jpg") == b"first"


def test_names_with_backslashes_are_paths(tmp_path):
    zipped(tmp_path / "x.zip", name="folder\\a.jpg")
    assert list(archive(tmp_path / "x.zip").members) == ["folder/a.jpg"]


LINKS = archives._MOST_LINKS


def test_links_are_followed_up_to_a_limit(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        entry = tarfile.TarInfo("real.jpg")
        entry.size = len(DATA)
        made.addfile(entry, io.BytesIO(DATA))
        for number in range(LINKS + 1):
            link = tarfile.TarInfo(f"{number + 1}.jpg")
            link.type = tarfile.SYMTYPE
            link.linkname = f"{number}.jpg" if number else "real.jpg"
            made.addfile(link)
    opened = archive(tmp_path / "x.tar")
    assert set(opened.members) == {"real.jpg", *(f"{n}.jpg" for n in range(1, LINKS + 1))}
    assert opened.read(f"{LINKS}.jpg") == DATA


def test_links_are_relative_to_their_folder_and_hard_links_to_the_top(tmp_path):
    targets = {
        "d/e/up.jpg": (tarfile.SYMTYPE, "../a.jpg"),
        "d/top.jpg": (tarfile.LNKTYPE, "/d/a.jpg"),
        "X.jpg": (tarfile.LNKTYPE, "X/a.jpg"),
        "d/wrong.jpg": (tarfile.LNKTYPE, "a.jpg"),
        "d/absolute.jpg": (tarfile.SYMTYPE, "/d/a.jpg"),
        "d/a.jpg": (tarfile.SYMTYPE, "other.jpg"),  # a file of this name is there: it counts
    }
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        for name, data in (("d/a.jpg", b"a"), ("d/other.jpg", b"other"), ("X/a.jpg", b"x")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
        for name, (kind, target) in targets.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            made.addfile(link)
    opened = archive(tmp_path / "x.tar")
    assert {name: opened.read(name) for name in opened.members} == {
        "d/a.jpg": b"a",
        "d/other.jpg": b"other",
        "d/e/up.jpg": b"a",
        "d/top.jpg": b"a",
        "X/a.jpg": b"x",
        "X.jpg": b"x",
    }


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("x.zip", b"\x1f\x8b" + bytes(600), "it is compressed as a whole: unpack it"),
        ("x.tar", b"BZh9" + bytes(600), "it is compressed as a whole: unpack it"),
        ("x.tar", b"\xfd7zXZ" + bytes(600), "it is compressed as a whole: unpack it"),
        ("x.zip", b"7z\xbc\xaf" + bytes(600), "it is compressed as a whole: unpack it"),
        ("x.zip", b"Rar!" + bytes(600), "it is compressed as a whole: unpack it"),
        ("x.tar", b"\x28\xb5\x2f\xfd" + bytes(600), "it is compressed as a whole: unpack it"),
        ("x.ZIP", b"nothing", "File is not a zip file"),
        ("x.tar", b"", "empty file"),
    ],
)
def test_what_cannot_be_read_in_place_is_named(tmp_path, name, data, reason):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ArchiveError) as error:
        archive(path)
    assert str(error.value) == f"{path} is not an archive that can be read in place: {reason}"


def test_a_missing_member_is_named(tmp_path):
    path = zipped(tmp_path / "x.zip")
    with pytest.raises(DataError) as error:
        archive(path).read("b.jpg")
    assert str(error.value) == f"no such image: {path}/b.jpg"


def test_the_archive_of_a_path_is_a_file_above_it(tmp_path):
    path = zipped(tmp_path / "x.ZIP")
    (tmp_path / "folder.tar").mkdir()
    inner = zipped(tmp_path / "folder.tar" / "y.zip")
    assert archive_of(path / "d" / "a.jpg") == path
    assert archive_of(inner / "a.jpg") == inner
    assert archive_of(path) is None
    assert archive_of(tmp_path / "folder.tar" / "a.jpg") is None
    assert archive_of(tmp_path / "gone.zip" / "a.jpg") is None
