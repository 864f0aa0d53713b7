"""Which of several files an image's name means, and what is said where none or many could be."""

import hashlib
import io
import struct
import zipfile
import zlib
from pathlib import Path

import PIL.Image
import PIL.PngImagePlugin
import pytest
from messages import said

from ravqa.core.errors import DataError, PromptError
from ravqa.core.settings import fingerprint
from ravqa.images import archives, decode
from ravqa.images.archives import ArchiveError
from ravqa.images.decode import as_source, image_bytes, is_image, is_image_file, open_image
from ravqa.images.folder import ImageFolder, composed, inside


def png():
    out = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


def put(root, *names, data=None):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png() if data is None else data)
    return ImageFolder(root)


def zipped(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, png())


@pytest.mark.parametrize(
    ("files", "name", "found"),
    [
        # In the folder itself: the name, then other suffixes.
        (["a.png", "a.jpg"], "a.png", "a.png"),
        (["a.png", "a.jpg"], "a.gif", "a.jpg"),
        (["a.png", "a.jpeg"], "a", "a.jpeg"),
        (["a.png", "x/a.jpg"], "a.jpg", "a.png"),
        # Below: the longest common path, then the suffix that was named, then the likeliest.
        (["x/a.gif", "y/z/a.jpg"], "z/a.gif", "y/z/a.jpg"),
        (["x/a.gif", "x/a.jpg"], "a.gif", "x/a.gif"),
        (["x/a.gif", "x/a.webp"], "a.bmp", "x/a.webp"),
        (["x/a.JPG", "x/a.gif"], "a.jpg", "x/a.JPG"),
        (["x/v1.2/a.jpg"], "v1.2/a.jpg", "x/v1.2/a.jpg"),
        # Not another folder's image, unless its name says all.
        (["x/v1.2/a.jpg"], "v1/a.jpg", None),
        (["x/b/a.jpg"], "c/a.jpg", None),
        (["b/a.jpg"], "c/b/a.jpg", "b/a.jpg"),
        (["x/a.b.jpg"], "a.b", "x/a.b.jpg"),
        (["x/.jpg"], "a", None),
    ],
)
def test_the_file_that_a_name_means(tmp_path, files, name, found):
    folder = put(tmp_path, *files)
    expected = None if found is None else tmp_path / found
    assert folder.find(name) == expected
    assert folder.look(name) == (expected or tmp_path / name, "")
    assert folder.path(name) == (expected or tmp_path / name)


def test_an_archive_counts_as_a_folder_of_its_name(tmp_path):
    zipped(tmp_path / "val.zip", "x/a.jpg", "b.jpg")
    zipped(tmp_path / "more" / "test.zip", "x/a.jpg")
    folder = ImageFolder(tmp_path)
    assert folder.find("val/b.jpg") == tmp_path / "val.zip" / "b.jpg"
    assert folder.find("test/x/a.png") == tmp_path / "more" / "test.zip" / "x" / "a.jpg"
    # Folder and name are enough for a member, one of them is not.
    expected = f"2 files below {tmp_path} could be the image 'any/x/a.jpg': more/test.zip/x/a.jpg"
    assert said(DataError, folder.find, "any/x/a.jpg").startswith(expected)
    zipped(tmp_path / "deep.zip", "x/c.jpg", "x/y/d.jpg")
    folder = ImageFolder(tmp_path)
    assert folder.find("any/x/c.jpg") == tmp_path / "deep.zip" / "x" / "c.jpg"
    assert folder.find("any/c.jpg") is None
    assert folder.find("any/y/d.jpg") is None
    put(tmp_path, "plain/x/a.jpg")
    assert ImageFolder(tmp_path).find("x/a.jpg") == tmp_path / "plain" / "x" / "a.jpg"


def test_several_files_that_a_name_could_mean(tmp_path):
    folder = put(tmp_path, "x/a.jpg", "y/a.jpg", "z/a.jpg", "z/a.png")
    assert said(DataError, folder.find, "a.jpg") == (
        f"3 files below {tmp_path} could be the image 'a.jpg': x/a.jpg, y/a.jpg: set the right "
        "folder with --dataset-option images=DIR"
    )
    assert folder.find("a.png") == tmp_path / "z" / "a.png"
    assert folder.find("y/a.jpg") == tmp_path / "y" / "a.jpg"
    assert folder.find("other/a.jpg") is None
    assert said(DataError, folder.look, "other/a.jpg", by_stem=True).startswith("3 files below ")
    assert folder.path("q/z/a.png") == tmp_path / "z" / "a.png"


def test_an_image_that_may_be_in_an_archive_that_cannot_be_read(tmp_path):
    folder = put(tmp_path, "x.zip", "y/z.tar.gz", data=b"PK\x03\x04 half")
    reason = f"no image 'a.jpg' below {tmp_path}: {tmp_path}/x.zip is not an archive that can be"
    assert said(ArchiveError, folder.find, "a.jpg").startswith(reason)
    path, missing = folder.look("a.jpg")
    assert (path, missing.startswith(reason)) == (tmp_path / "a.jpg", True)
    (tmp_path / "x.zip").unlink()
    packed = tmp_path / "y" / "z.tar.gz"
    expected = f"no image 'a.jpg' below {tmp_path}: {packed} is compressed: unpack it"
    assert ImageFolder(tmp_path).look("a.jpg") == (tmp_path / "a.jpg", expected)


@pytest.mark.parametrize("name", ["../a.jpg", "x/../../a.jpg", "..\\a.jpg", "C:\\a.jpg", "c:a.jpg"])
def test_a_name_that_leads_out(tmp_path, name):
    expected = f"image path {name!r} leaves the image folder {tmp_path}"
    for call in (ImageFolder(tmp_path).find, lambda name: inside(tmp_path, name)):
        assert said(DataError, call, name) == expected


def test_absolute_names_and_links(tmp_path):
    folder = put(tmp_path / "in", "x/a.jpg")
    put(tmp_path, "secret.jpg")
    assert folder.find(str(tmp_path / "in" / "x" / "a.jpg")) == tmp_path / "in" / "x" / "a.jpg"
    name = str(tmp_path / "secret.jpg")
    assert said(DataError, folder.find, name) == (
        f"image path {name!r} is absolute and leaves the image folder {tmp_path}/in: "
        "set --dataset-option images=DIR to the folder of the images"
    )
    link = tmp_path / "in" / "x" / "b.jpg"
    link.symlink_to(tmp_path / "secret.jpg")
    for wanted in ("x/b.jpg", "b.jpg", "y/x/b.jpg"):
        assert said(DataError, folder.find, wanted) == (
            f"image path {str(link)!r} leaves the image folder {tmp_path}/in through a link: "
            "give the folder that it leads to with --dataset-option images=DIR"
        )
    (tmp_path / "link").symlink_to(tmp_path / "in")
    linked = ImageFolder(tmp_path / "link")
    real = str(tmp_path / "in" / "x" / "a.jpg")
    assert linked.find(real) == tmp_path / "link" / "x" / "a.jpg"
    assert inside(tmp_path, "a/../b\\c.jpg") == tmp_path / "b" / "c.jpg"
    assert inside(tmp_path, "a:b/c.jpg".replace("a:b", "a/b:")) == tmp_path / "a" / "b:" / "c.jpg"


def test_letters_are_composed():
    assert composed("cafe\u0301") == "caf\u00e9"
    assert composed("cafe") == "cafe"


# What is an image

BEGINNINGS = {
    b"\xff\xd8\xff": True,
    b"\xff\xd8\xfe": False,
    b"\x89PNG\r\n\x1a\n": True,
    b"GIF87a": True,
    b"GIF89a": True,
    b"GIF88a": False,
    b"RIFF\n\0\0\0WEBP": True,
    b"RIFF\n\0\0\0WAVE": False,
    b"II*\0": True,
    b"MM\0*": True,
    b"MM*\0": False,
    b"BM\1\2\3\4\0\0\0\0": True,
    b"BM\1\2\3\4\0\0\0\1": False,
    b"\0\0\0\x20ftypavif": True,
    b"\0\0\0\x20ftypavis": True,
    b"\0\0\0\x20ftypheic": False,
    b" \xff\xd8\xff": False,
    b"": False,
}


@pytest.mark.parametrize("data", BEGINNINGS, ids=repr)
def test_images_are_known_by_their_first_bytes(tmp_path, data):
    assert is_image(data) is BEGINNINGS[data]
    (tmp_path / "file").write_bytes(data + bytes(9))
    assert is_image_file(tmp_path / "file") is is_image(data + bytes(9))
    assert is_image_file(tmp_path / "any.JPeG")
    assert not is_image_file(tmp_path / "gone")
    assert not is_image_file(tmp_path)
    zipped(tmp_path / "x.zip", "a", "b.jpg")
    assert is_image_file(tmp_path / "x.zip" / "a")
    assert not is_image_file(tmp_path / "x.zip" / "c")


def test_sources_as_callers_name_them():
    assert [as_source(value) for value in ("a/b", Path("a"), b"x", None, "")] == [
        Path("a/b"),
        Path("a"),
        b"x",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"text", "not an image"),
        (
            b"\0\0\0\x18ftypheic" + bytes(9),
            "not an image in a supported format (perhaps HEIC): save it as JPEG or PNG",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "not an image, but a Git LFS pointer: `git lfs pull` fetches the image",
        ),
    ],
)
def test_what_a_file_is_instead(tmp_path, data, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for read in (open_image, decode.image_size):
        assert said(DataError, read, path) == f"{path}: {reason}"
        assert said(DataError, read, data) == f"image given as bytes: {reason}"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.jpg", data)
    packed = tmp_path / "x.zip" / "a.jpg"
    assert said(DataError, open_image, packed) == f"{packed}: {reason}"


def test_files_that_are_not_there_or_too_large(tmp_path, monkeypatch):
    gone = tmp_path / "gone.png"
    assert said(DataError, open_image, gone) == f"no such image: {gone}"
    assert decode.broken_images([gone]) == {gone: f"no such image: {gone}"}
    path = tmp_path / "a.png"
    path.write_bytes(png())
    monkeypatch.setattr(decode, "MAX_FILE", len(png()))
    assert image_bytes(path) == png()
    assert open_image(path).size == (4, 4)
    monkeypatch.setattr(decode, "MAX_FILE", len(png()) - 1)
    expected = f"{path}: more than the limit of {len(png()) - 1} bytes for an image"
    for read in (open_image, image_bytes, decode.image_size, decode.sendable):
        assert said(DataError, read, path) == expected
    folder = said(DataError, open_image, tmp_path)
    assert folder.startswith(f"{tmp_path}: broken image (a folder, where a file is expected)")


def test_images_are_known_by_a_hash_of_their_bytes_and_read_once(tmp_path, monkeypatch):
    path, copy = tmp_path / "a.png", tmp_path / "b.png"
    for name in (path, copy):
        name.write_bytes(png())
    read = []
    monkeypatch.setattr(decode, "image_bytes", lambda i: (read.append(i), image_bytes(i))[1])
    expected = fingerprint(png())
    found = decode.image_prints([path, None, copy, path, png(), b"other", None])
    assert found == [expected, "", expected, expected, expected, fingerprint(b"other"), ""]
    assert read == [path, copy, png(), b"other"]
    assert decode.image_digest(path) == hashlib.sha256(png()).hexdigest()
    assert decode.image_digest(tmp_path / "gone.png") is None


def test_kept_bytes_are_named_by_their_hash(fresh_cache):
    name = hashlib.sha256(b"abc").hexdigest()[:32]
    assert decode.kept_image(b"abc") == fresh_cache / "images" / name[:2] / name


def test_an_image_that_is_too_long_for_other_libraries(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_RATIO", 4)
    path = tmp_path / "a.png"
    for size in ((9, 2), (2, 9)):
        PIL.Image.new("RGB", size).save(path)
        reason = f"{size[0]}x{size[1]} pixels: one side is more than 4 times the other"
        for source, name in ((path, path), (path.read_bytes(), "image given as bytes")):
            assert said(PromptError, decode.open_for_library, source) == f"{name}: {reason}"
    for size in ((8, 2), (2, 8)):
        PIL.Image.new("RGB", size).save(path)
        assert decode.open_for_library(path).size == size


# Texts in a PNG


def chunk(kind, content):
    size, check = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
    return size + kind + content + check


@pytest.mark.parametrize(
    ("kind", "content", "size"),
    [
        (b"tEXt", b"key\0" + b"A" * 7, 7),
        (b"zTXt", b"key\0\0" + zlib.compress(b"A" * 9), 9),
        (b"zTXt", b"key\0\0" + zlib.compress(b"A" * 99), float("inf")),
        (b"zTXt", b"key\0\0" + b"no zlib", 0),
        (b"iCCP", b"key\0\0" + zlib.compress(b"A" * 20), 20),
        (b"iCCP", b"key\0\0" + zlib.compress(b"A" * 21), float("inf")),
        (b"iTXt", b"key\0\0\0en\0\0" + b"A" * 7, 13),
        (b"iTXt", b"key\0\1\0en\0\0" + zlib.compress(b"A" * 9), 9),
        (b"iTXt", b"key\0\1\0en\0\0" + zlib.compress(b"A" * 99), float("inf")),
    ],
)
def test_the_size_of_a_text_is_that_of_what_it_holds(kind, content, size):
    assert decode._text_size(kind, content, 20) == size


def test_texts_are_kept_as_long_as_there_is_room(monkeypatch):
    plain = png()
    place = plain.index(b"IDAT") - 4
    texts = [chunk(b"tEXt", b"n%d\0" % i + b"A" * 400) for i in range(3)]
    other = chunk(b"prIv", b"A" * 5000)
    data = plain[:place] + b"".join([*texts, other]) + plain[place:]
    for room, kept in ((1200, 3), (1199, 2), (800, 2), (799, 1), (0, 0)):
        monkeypatch.setattr(PIL.PngImagePlugin, "MAX_TEXT_MEMORY", room)
        slim = decode._without_long_texts(data)
        assert slim == plain[:place] + b"".join([*texts[:kept], other]) + plain[place:]
        assert (slim is data) == (kept == 3)
        assert open_image(data).size == (4, 4)
    jpeg = b"\xff\xd8\xff" + data
    assert decode._without_long_texts(jpeg) is jpeg


def test_suffixes_and_limits():
    assert (
        *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".jfif", ".jpe", ".jif", ".avif"),
    ) == decode.SUFFIXES
    assert archives.ARCHIVES == (".zip", ".tar")
    assert (
        *(".tgz", ".tar.gz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar"),
    ) == archives.COMPRESSED
    assert (decode.MAX_PIXELS, decode.MAX_FILE, decode.MAX_RATIO) == (100_000_000, 2**30, 200)
    assert archives.MAX_BYTES == 2**28
