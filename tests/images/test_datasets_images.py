"""Images are found inside their folder only: under other suffixes, in folders and archives."""

import io
import os
import re
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.errors import DataError, PromptError
from ravqa.core.records import Question
from ravqa.datasets.base import DatasetRequest, Problems
from ravqa.datasets.checks import check_images
from ravqa.images import archives
from ravqa.images import decode as module
from ravqa.images.decode import (
    BLACK,
    broken_images,
    image_bytes,
    image_digest,
    image_size,
    kept_image,
    open_for_library,
    open_image,
    scaled,
    sendable,
    to_rgb,
)
from ravqa.images.folder import ImageFolder


def photo(color=(200, 30, 30), form="JPEG", size=(8, 6)):
    out = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(out, form)
    return out.getvalue()


def put(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photo() if data is None else data)
    return path


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tarred(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


PACKERS = {
    "deflated.zip": zipped,
    "stored.zip": lambda path, members: zipped(path, members, zipfile.ZIP_STORED),
    "plain.tar": tarred,
}


# Names


@pytest.mark.parametrize(
    ("there", "name"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpg", "a"),
        ("a.JPEG", "a.jpg"),
        ("a.JPG", "a"),
        ("a.png", "a.jpg"),
        ("a.jpg", "a.JPEG"),
        ("a.webp", "a"),
        ("v1.2.jpg", "v1.2"),  # a dot in the name is no suffix
        ("v1.2.PNG", "v1.2.jpg"),
        ("val2014/a.jpg", "val2014/a.jpg"),
        ("coco/val2014/a.jpg", "val2014/a.jpg"),  # folders before it
        ("00/a.jpg", "a.jpg"),
        ("val/x/a.jpg", "inat/val/x/a.jpg"),  # its own first folder is missing
        ("a.jpg", "val2014/a.jpg"),
    ],
)
def test_an_image_is_found_under_another_suffix_and_in_other_folders(tmp_path, there, name):
    path = put(tmp_path / there)
    put(tmp_path / "other" / "b.jpg")
    assert ImageFolder(tmp_path).find(name) == path


@pytest.mark.parametrize(
    ("there", "name"),
    [
        ("b/a.jpg", "c/a.jpg"),
        ("a.txt", "a"),
        ("a", "b"),
        ("aa.jpg", "a.jpg"),
        ("x/b/a.jpg", "c/b2/a.jpg"),
    ],
)
def test_another_image_is_never_taken_for_it(tmp_path, there, name):
    put(tmp_path / there)
    folder = ImageFolder(tmp_path)
    assert folder.find(name) is None
    assert folder.path(name) == tmp_path / name  # where it should be


def test_a_name_that_is_an_id_is_found_in_any_folder(tmp_path):
    path = put(tmp_path / "train" / "a" / "b" / "abc.JPEG")
    assert ImageFolder(tmp_path).find("a/b/c/abc.jpg") is None
    assert ImageFolder(tmp_path).find("a/b/c/abc.jpg", by_stem=True) == path


def test_of_several_files_the_nearest_name_wins_and_a_tie_is_an_error(tmp_path):
    put(tmp_path / "x" / "val" / "a.jpg")
    right = put(tmp_path / "y" / "test" / "a.jpg")
    folder = ImageFolder(tmp_path)
    assert folder.find("test/a.jpg") == right
    with pytest.raises(DataError, match=r"2 files below .* could be the image 'a.jpg'.*images=DIR"):
        folder.find("a.jpg")
    put(tmp_path / "a.png")
    assert folder.find("a.jpg") == tmp_path / "a.png"  # in the folder itself


def test_a_plain_file_comes_before_one_in_an_archive(tmp_path):
    zipped(tmp_path / "photos.zip", {"photos/a.jpg": photo()})
    plain = put(tmp_path / "extracted" / "photos" / "a.jpg")
    assert ImageFolder(tmp_path).find("photos/a.jpg") == plain


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.avif", "0123abcd", "a.dat"])
def test_an_image_is_found_by_its_name_whatever_its_suffix(tmp_path, name):
    for folder in ("here", "below/photos"):
        path = put(tmp_path / folder / name, photo())
        assert ImageFolder(tmp_path / folder.partition("/")[0]).find(name) == path
    zipped(tmp_path / "packed" / "x.zip", {f"photos/{name}": photo()})
    tarred(tmp_path / "packed" / "y.tar", {f"others/{name}": photo()})
    for wanted in (f"photos/{name}", f"others/{name}"):
        found = ImageFolder(tmp_path / "packed").find(wanted)
        assert image_bytes(found) == photo()
    put(tmp_path / "text" / name, b"no image")
    if name.partition(".")[2] in {"", "dat"}:  # a suffix that no image has: the content decides
        assert ImageFolder(tmp_path / "text").find(name) is None
        put(tmp_path / "text" / "more" / name, photo())
        found = ImageFolder(tmp_path / "text").find(name)
        assert found == tmp_path / "text" / "more" / name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a")
    (tmp_path / "below").mkdir()
    os.mkfifo(tmp_path / "below" / "b")
    for name in ("a", "b"):
        assert ImageFolder(tmp_path).find(name) is None


@pytest.mark.parametrize(("asked", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_found_however_they_are_written(tmp_path, asked, written):
    """Some systems write an accented letter as two characters."""
    names = ("caf\u00e9", "caf\u00e9/a", "\u00fc/\u00e9")
    for number, name in enumerate(names):
        root, there = tmp_path / str(number), unicodedata.normalize(written, name)
        wanted = unicodedata.normalize(asked, name)
        put(root / "plain" / f"{there}.png")
        assert ImageFolder(root / "plain").find(wanted) == root / "plain" / f"{there}.png"
        (root / "packed").mkdir()
        with zipfile.ZipFile(root / "packed" / "x.zip", "w") as archive:
            archive.writestr(f"below/{there}.png", photo())
        assert image_bytes(ImageFolder(root / "packed").find(wanted)) == photo()


def test_of_two_names_the_one_with_the_very_letters_counts(tmp_path):
    for number, form in enumerate(("NFC", "NFD")):
        name = unicodedata.normalize(form, "caf\u00e9.jpg")
        put(tmp_path / "below" / name, photo((number, 0, 0)))
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "caf\u00e9")
        assert ImageFolder(tmp_path).find(name).stem == name


def test_links_in_a_tar_file_lead_to_its_own_files(tmp_path):
    links = {
        "hard.jpg": (tarfile.LNKTYPE, "d/a.jpg"),
        "d/soft.jpg": (tarfile.SYMTYPE, "a.jpg"),
        "d/dotted.jpg": (tarfile.LNKTYPE, "./d/a.jpg"),
        "twice.jpg": (tarfile.LNKTYPE, "hard.jpg"),
        "up.jpg": (tarfile.SYMTYPE, "../../etc/passwd"),
        "gone.jpg": (tarfile.LNKTYPE, "gone/b.jpg"),
        "self.jpg": (tarfile.SYMTYPE, "self.jpg"),
        "round1.jpg": (tarfile.SYMTYPE, "round2.jpg"),
        "round2.jpg": (tarfile.SYMTYPE, "round1.jpg"),
        "pipe.jpg": (tarfile.FIFOTYPE, ""),
    }
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, (kind, target) in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
        held = tarfile.TarInfo("d/a.jpg")
        held.size = len(photo())
        archive.addfile(held, io.BytesIO(photo()))
    folder = ImageFolder(tmp_path)
    there = {name for name in links if folder.find(name) is not None}
    assert there == {"hard.jpg", "d/soft.jpg", "d/dotted.jpg", "twice.jpg"}
    assert {image_bytes(folder.find(name)) for name in there} == {photo()}


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_archives_are_known_by_their_content(tmp_path, suffix):
    packed = io.BytesIO()
    if suffix == ".tar":  # a zip file by another name
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("a.jpg", photo())
    else:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            held = tarfile.TarInfo("a.jpg")
            held.size = len(photo())
            archive.addfile(held, io.BytesIO(photo()))
    put(tmp_path / f"x{suffix}", packed.getvalue())
    assert image_bytes(ImageFolder(tmp_path).find("a.jpg")) == photo()


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.tar.gz", "x.TAR.BZ2", "x.7z"])
def test_a_compressed_archive_is_named_where_an_image_is_missing(tmp_path, name):
    put(tmp_path / "more" / "b.jpg")
    put(tmp_path / name, b"\x1f\x8b" + bytes(600))
    assert ImageFolder(tmp_path).look("b.jpg") == (tmp_path / "more" / "b.jpg", "")
    _, missing = ImageFolder(tmp_path).look("a.jpg")
    assert re.search(rf"no image 'a\.jpg'.*{name}.* is compressed.*: unpack it", missing)


def test_links_in_a_circle_are_broken_images(tmp_path):
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "self").symlink_to(".")
    put(tmp_path / "below" / "c.jpg")
    folder = ImageFolder(tmp_path)
    assert folder.find("c.jpg") == tmp_path / "below" / "c.jpg"
    assert "broken image" in broken_images([folder.path("a.jpg")])[tmp_path / "a.jpg"]


def test_a_name_may_climb_within_the_folder(tmp_path):
    put(tmp_path / "a.jpg")
    assert ImageFolder(tmp_path).find("gone/../a.jpg") == tmp_path / "a.jpg"


@pytest.mark.parametrize("name", ["a.jpg", "below/a.jpg", "a.zip", "below/a.tar"])
def test_pipes_with_the_names_of_images_and_archives_are_not_waited_for(tmp_path, name):
    put(tmp_path / "more" / "b.jpg")
    (tmp_path / "below").mkdir()
    os.mkfifo(tmp_path / name)
    assert ImageFolder(tmp_path).find("b") == tmp_path / "more" / "b.jpg"
    path, missing = ImageFolder(tmp_path).look("a.jpg")
    reason = missing or broken_images([path])[path]
    assert reason.endswith(("a pipe, socket or device, where a file is expected", "expected)"))
    for read in (open_image, image_size, image_bytes, sendable):
        with pytest.raises(DataError, match="a pipe, socket or device, where a file is expected"):
            read(tmp_path / name)


# Nothing leaves the folder


@pytest.mark.parametrize("name", ["../a.jpg", "x/../../a.jpg", "/etc/a.jpg", "..\\a.jpg", "C:\\a"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    put(tmp_path / "a.jpg")
    (tmp_path / "inside").mkdir()
    with pytest.raises(DataError, match="leaves the image folder"):
        ImageFolder(tmp_path / "inside").find(name)


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("by_stem", [False, True])
def test_a_link_out_of_the_folder_is_refused(tmp_path, what, by_stem):
    secret = put(tmp_path / "secret" / "a.jpg")
    inside = tmp_path / "inside"
    inside.mkdir()
    if what == "file":
        (inside / "a.jpg").symlink_to(secret)
        name = "a.jpg"
    else:
        (inside / "photos").symlink_to(secret.parent)
        name = "photos/a.jpg"
    with pytest.raises(DataError, match=r"leaves the image folder .* through a link.*images=DIR"):
        ImageFolder(inside).find(name, by_stem=by_stem)
    assert ImageFolder(secret.parent).find("a.jpg") == secret


def test_links_inside_the_folder_and_to_the_folder_are_followed(tmp_path):
    real = tmp_path / "real"
    put(real / "store" / "a.jpg")
    (real / "b.jpg").symlink_to(real / "store" / "a.jpg")
    (tmp_path / "link").symlink_to(real)
    assert ImageFolder(tmp_path / "link").find("b.jpg") == tmp_path / "link" / "b.jpg"


def test_a_name_that_no_file_system_has_is_not_found(tmp_path):
    folder = ImageFolder(tmp_path)
    for name in ("x" * 5000, "a\0b.jpg", ""):
        assert folder.find(name) is None


@given(st.text(max_size=12))
def test_whatever_the_name_nothing_outside_is_found(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / "any-name"
    if not root.is_dir():
        put(root / "outside.jpg")
        put(root / "inside" / "in.jpg")
    try:
        found = ImageFolder(root / "inside").find(name)
    except DataError:
        return
    assert found is None or found.resolve().is_relative_to((root / "inside").resolve())


# Archives


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("val2014/a.jpg", "val2014/a.jpg"),
        ("./val2014/a.jpg", "val2014/a.JPEG"),
        ("a.png", "a.jpg"),
        ("deep/down/val2014/a.jpg", "val2014/a.jpg"),
        ("val/x/a.jpg", "inat/val/x/a.jpg"),
    ],
)
def test_images_in_archives_are_found_and_read_in_place(tmp_path, kind, member, name):
    data = photo((1, 2, 200), "PNG")
    archive = PACKERS[kind](
        tmp_path / "sub" / kind, {"readme.txt": b"no image", member: data, "b.jpg": photo()}
    )
    found = ImageFolder(tmp_path).find(name)
    assert found.is_relative_to(archive)
    assert image_bytes(found) == data
    assert image_digest(found) == image_digest(put(tmp_path / "copy.bin", data))
    assert open_image(found).getpixel((0, 0)) == (1, 2, 200)
    assert broken_images([found]) == {}
    assert not (tmp_path / "sub" / "val2014").exists()  # nothing was unpacked


def test_an_archives_name_stands_for_the_folder_that_it_was(tmp_path):
    zipped(tmp_path / "val2014.zip", {"a.jpg": photo()})
    zipped(tmp_path / "train2014.zip", {"a.jpg": photo()})
    found = ImageFolder(tmp_path).find("val2014/a.jpg")
    assert found == tmp_path / "val2014.zip" / "a.jpg"


@pytest.mark.parametrize("kind", PACKERS)
def test_members_that_lead_out_of_an_archive_are_not_there(tmp_path, kind):
    PACKERS[kind](
        tmp_path / kind, {"../a.jpg": photo(), "/b.jpg": photo(), "x/../../c.jpg": photo()}
    )
    folder = ImageFolder(tmp_path)
    assert [folder.find(name, by_stem=True) for name in ("a.jpg", "b.jpg", "c.jpg")] == [None] * 3


def test_links_in_a_tar_file_are_not_images(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert ImageFolder(tmp_path).find("a.jpg") is None


def test_a_tar_file_with_very_many_headers_and_long_names_is_read(tmp_path):
    members = {f"{'deep/' * 30}{i:05d}.png": photo((i, 0, 0), "PNG") for i in range(200)}
    tarred(tmp_path / "x.tar", members)
    folder = ImageFolder(tmp_path)
    for i in (0, 99, 199):
        assert open_image(folder.find(f"{i:05d}.png")).getpixel((0, 0)) == (i, 0, 0)


@pytest.mark.parametrize("kind", PACKERS)
def test_archives_are_read_by_threads_and_after_a_fork(tmp_path, kind):
    data = {f"{i}.png": photo((i, i, i), "PNG", (40 + i, 30)) for i in range(60)}
    PACKERS[kind](tmp_path / kind, data)
    paths = [ImageFolder(tmp_path).find(name) for name in data]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(image_bytes, paths)) == list(data.values())
    assert broken_images(paths) == {}
    archives._opened.cache_clear()  # a process of its own has nothing open
    assert [image_bytes(path) for path in paths] == list(data.values())


def test_a_changed_archive_is_read_anew(tmp_path):
    path = zipped(tmp_path / "x.zip", {"a.png": photo((1, 1, 1), "PNG")})
    image = ImageFolder(tmp_path).find("a.png")
    assert open_image(image).getpixel((0, 0)) == (1, 1, 1)
    zipped(path, {"b.png": photo(form="PNG"), "a.png": photo((9, 9, 9), "PNG")})
    os.utime(path, ns=(1, 1))
    assert open_image(image).getpixel((0, 0)) == (9, 9, 9)


def test_a_missing_member_and_a_missing_archive_are_named(tmp_path):
    zipped(tmp_path / "x.zip", {"a.jpg": photo()})
    for path in (tmp_path / "x.zip" / "b.jpg", tmp_path / "y.zip" / "b.jpg"):
        with pytest.raises(DataError, match=f"no such image: {path}"):
            open_image(path)
        assert image_digest(path) is None


def test_a_damaged_member_is_named(tmp_path):
    data = photo(form="PNG")
    path = zipped(tmp_path / "x.zip", {"a.png": data}, zipfile.ZIP_STORED)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(data, data[:-20] + b"x" * 20))
    image = tmp_path / "x.zip" / "a.png"
    with pytest.raises(DataError, match=r"a\.png: broken image \(its checksum is wrong\)"):
        image_bytes(image)
    assert list(broken_images([image])) == [image]


def test_a_packing_that_cannot_be_read_is_named(tmp_path):
    zipped(tmp_path / "x.zip", {"a.jpg": photo()}, zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="compressed by an unsupported method"):
        image_bytes(ImageFolder(tmp_path).find("a.jpg"))


def test_a_member_that_unpacks_to_very_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    zipped(tmp_path / "x.zip", {"a.jpg": bytes(100_000)})
    tarred(tmp_path / "y.tar", {"b.jpg": bytes(100_000)})
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(DataError, match="more than the limit of 1000"):
            image_bytes(ImageFolder(tmp_path).find(name))


def test_a_member_that_lies_about_its_size_is_refused(tmp_path):
    path = zipped(tmp_path / "x.zip", {"a.jpg": bytes(50_000)})
    size = (50_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match="checksum"):
        image_bytes(ImageFolder(tmp_path).find("a.jpg"))


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_what_is_no_archive_is_named(tmp_path, name):
    put(tmp_path / name, b"not an archive" * 100)
    with pytest.raises(DataError, match=rf"{name} is not an archive that can be read in place"):
        ImageFolder(tmp_path).find("a.jpg")


def test_an_archive_that_is_broken_does_not_hide_what_is_there(tmp_path):
    path = put(tmp_path / "photos" / "a.jpg")
    put(tmp_path / "x.zip", b"PK\x03\x04 half a download")
    tarred(tmp_path / "y.tar", {"b.jpg": photo()})
    folder = ImageFolder(tmp_path)
    assert folder.find("a.jpg", by_stem=True) == path
    assert image_bytes(folder.find("b.jpg")) == photo()
    assert folder.look("a.jpg") == (path, "")
    where, missing = folder.look("c.jpg")
    assert where == tmp_path / "c.jpg"
    assert "no image 'c.jpg'" in missing
    assert "x.zip is not an archive" in missing


def test_a_compressed_tar_file_is_no_archive_to_read_in_place(tmp_path):
    tarred(tmp_path / "x.tar", {"a.jpg": photo()}, "w:gz")
    with pytest.raises(DataError, match="is not an archive that can be read in place"):
        ImageFolder(tmp_path).find("a.jpg")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"\(perhaps HEIC\): save it as JPEG or PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<html>", "not an image$"),
    ],
)
def test_what_else_a_file_is_is_said(tmp_path, data, reason):
    for source in (put(tmp_path / "a.jpg", data), data):
        with pytest.raises(DataError, match=reason):
            open_image(source)


# The check before work starts


def test_every_image_is_opened_once_however_many_questions_ask_about_it(tmp_path, monkeypatch):
    paths = [put(tmp_path / f"{i}.jpg") for i in range(3)]
    opened = []
    real = module._open
    monkeypatch.setattr(
        module, "_open", lambda path, read: (opened.append(path), real(path, read))[1]
    )
    questions = [Question(i, "?", image=paths[i % 3]) for i in range(1200)]
    assert check_images(iter(questions), DatasetRequest()) == questions
    assert sorted(opened) == paths


def test_all_questions_about_a_broken_image_are_left_out(tmp_path):
    good, bad = put(tmp_path / "good.jpg"), put(tmp_path / "bad.jpg", b"nothing")
    gone = tmp_path / "gone.jpg"
    images = [good, bad, gone, good, bad, None, BLACK]
    questions = [Question(i, "?", image=image) for i, image in enumerate(images)]
    problems = Problems("skip")
    kept = check_images(questions, DatasetRequest(problems=problems))
    assert [q.question_id for q in kept] == [0, 3, 5, 6]
    assert [p.question_id for p in problems.found] == [1, 2, 4]
    with pytest.raises(
        DataError, match=r"question 1: .*bad.jpg: not an image \(3 questions have no usable"
    ):
        check_images(questions, DatasetRequest())


def test_the_black_image_is_the_published_one():
    image = open_image(BLACK)
    assert (image.size, image.mode) == ((336, 336), "RGB")
    assert not np.asarray(image).any()


def test_bytes_are_kept_once_in_the_cache_folder(fresh_cache):
    first, second = kept_image(b"abc"), kept_image(b"abc")
    assert first == second
    assert first.read_bytes() == b"abc"
    assert first.is_relative_to(fresh_cache)
    assert kept_image(b"abd") != first
    assert len([p for p in fresh_cache.rglob("*") if p.is_file()]) == 2


def test_the_path_of_an_image_is_a_path_like_any_other(tmp_path):
    zipped(tmp_path / "x.zip", {"a.jpg": photo()})
    found = ImageFolder(tmp_path).find("a.jpg")
    assert isinstance(found, Path)
    assert str(found) == f"{tmp_path}/x.zip/a.jpg"


def test_grey_images_of_sixteen_bits_are_scaled_down_not_cut_to_white(tmp_path):
    path = tmp_path / "grey.png"
    PIL.Image.fromarray(np.full((8, 8), 25_700, dtype=np.uint16)).save(path)
    assert module.open_image(path).getpixel((3, 3)) == (100, 100, 100)
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    PIL.Image.fromarray(levels * 257).save(path)  # 0xNN is 0xNNNN
    assert (np.asarray(module.open_image(path)) == levels[..., None]).all()


@pytest.mark.parametrize("orientation", [None, *range(1, 10)])
def test_the_size_in_the_header_is_that_of_the_upright_image(tmp_path, orientation):
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    out = io.BytesIO()
    PIL.Image.new("RGB", (8, 6)).save(out, "JPEG", exif=exif)
    assert image_size(out.getvalue()) == open_image(out.getvalue()).size
    path = zipped(tmp_path / "a.zip", {"a.jpg": out.getvalue()}) / "a.jpg"
    assert image_size(path) == ((6, 8) if orientation in {5, 6, 7, 8} else (8, 6))


def test_what_has_no_size_is_refused():
    with pytest.raises(DataError, match="not an image"):
        image_size(b"no image")
    with pytest.raises(DataError, match="no such image"):
        image_size(Path("gone.jpg"))


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def with_chunks(*chunks, last=False, color=(200, 10, 10)):
    """A PNG of 20 x 10 pixels with more chunks, before the pixels or after them."""
    data = photo(color, "PNG", (20, 10))
    place = data.index(b"IEND") - 4 if last else data.index(b"IDAT") - 4
    return data[:place] + b"".join(chunks) + data[place:]


LONG = zlib.compress(b"A" * 2_000_000)
LONG_TEXTS = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + LONG),
    "iTXt": chunk(b"iTXt", b"prompt\0\1\0\0\0" + LONG),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LONG),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_a_png_is_opened_whatever_its_texts_and_profile_unpack_to(tmp_path, kind, last):
    data = with_chunks(LONG_TEXTS[kind], last=last)
    path = put(tmp_path / "a.png", data)
    archive = zipped(tmp_path / "a.zip", {"b.png": data})
    for source in (data, path, archive / "b.png"):
        image = open_image(source)
        assert image.size == (20, 10)
        assert image.getpixel((3, 3)) == (200, 10, 10)
        assert image_size(source) == (20, 10)
    assert broken_images([path]) == {}
    with PIL.Image.open(io.BytesIO(sendable(data)[0])) as sent:  # as a server opens it
        sent.load()
        assert sent.size == (20, 10)


def test_a_png_with_very_many_texts_is_opened(monkeypatch):
    monkeypatch.setattr(PIL.PngImagePlugin, "MAX_TEXT_MEMORY", 1000)
    texts = [chunk(kind, b"note%d\0" % i + b"A" * 300) for i, kind in enumerate([b"tEXt"] * 5)]
    plain = chunk(b"iTXt", b"more\0\0\0\0\0" + b"A" * 990)
    assert open_image(with_chunks(*texts, plain)).getpixel((3, 3)) == (200, 10, 10)


def test_a_long_text_does_not_hide_how_the_picture_is_turned():
    exif = PIL.Image.Exif()
    exif[274] = 6
    raw = b"\nexif\n%d\n" % len(exif.tobytes()) + exif.tobytes().hex().encode()
    turned = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))
    assert open_image(with_chunks(turned)).size == (10, 20)
    assert open_image(with_chunks(LONG_TEXTS["zTXt"], turned)).size == (10, 20)


def test_a_broken_png_with_a_long_text_is_still_broken():
    data = with_chunks(LONG_TEXTS["zTXt"])
    with pytest.raises(DataError, match="broken image"):
        open_image(data[: data.index(b"IDAT") + 8])


def test_other_pngs_are_sent_as_they_are():
    data = with_chunks(chunk(b"tEXt", b"note\0short"), chunk(b"zTXt", b"x\0\0no zlib"))
    assert sendable(data) == (data, "image/png")


@pytest.mark.parametrize("form", ["TIFF", "JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_size_of_an_image_is_that_of_the_upright_one(form, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    PIL.Image.new("RGB", (16, 8)).save(out, form, exif=exif)
    size = (8, 16) if orientation in {5, 6, 7, 8} else (16, 8)
    assert open_image(out.getvalue()).size == image_size(out.getvalue()) == size


@pytest.mark.parametrize("size", [(3, 1000), (1000, 3), (1, 5000), (40, 30), (30, 500)])
def test_the_middle_of_a_long_thin_image_is_as_of_the_whole_one(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = PIL.Image.fromarray(noise)
    edge, kept = 20, 16
    sides = tuple(edge * side // min(size) for side in size)
    whole = image.resize(sides, PIL.Image.Resampling.BICUBIC)
    made = scaled(image, sides, (kept, kept), PIL.Image.Resampling.BICUBIC)

    def middle(of):
        left, top = (of.width - kept) // 2, (of.height - kept) // 2
        return np.asarray(of.crop((left, top, left + kept, top + kept)), int)

    assert np.abs(middle(made) - middle(whole)).max() <= 1
    assert max(made.size) <= 16 * kept
    assert (made.size == whole.size) == (max(sides) <= 16 * kept)


def test_an_image_that_another_library_could_not_scale_is_refused():
    def line(width, height):
        out = io.BytesIO()
        PIL.Image.new("RGB", (width, height)).save(out, "PNG")
        return out.getvalue()

    assert open_for_library(line(200, 1)).size == (200, 1)
    for size in ((201, 1), (1, 10_000), (10_000, 3)):
        with pytest.raises(PromptError, match="one side is more than 200 times the other"):
            open_for_library(line(*size))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_images_are_scaled_a_few_rows_at_a_time(mode, monkeypatch):
    values = np.arange(35 * 7).reshape(35, 7) * 260
    if mode == "F":
        values = (values / values.max()).astype(np.float32)
    values = values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
    image = PIL.Image.fromarray(values)
    assert image.mode == mode
    top = 1.0 if mode == "F" else 65535.0
    expected = np.rint(values.astype(float) * (255 / top))
    for strip in (1, 50, 10**6):
        monkeypatch.setattr(module, "_STRIP", strip)
        assert (np.asarray(to_rgb(image))[..., 0] == expected).all()


def test_values_that_are_no_numbers_are_black():
    values = np.array([[np.nan, 0.5, np.inf, -np.inf]], np.float32)
    found = np.asarray(to_rgb(PIL.Image.fromarray(values)))[0, :, 0]
    assert found[0] == 0
    assert found[3] == 0


def test_links_in_a_circle_are_missing_images(tmp_path):
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "photos").symlink_to("photos")
    images = ImageFolder(tmp_path)
    for name in ("a.jpg", "photos/c.jpg"):
        assert images.path(name) == tmp_path / name  # which is not there


def test_a_file_of_gigabytes_is_not_read_as_an_image(tmp_path):
    path = tmp_path / "film.jpg"
    with path.open("wb") as file:
        file.truncate(2**30 + 1)  # takes no room on disk
    for read in (open_image, image_size, image_bytes, sendable):
        with pytest.raises(DataError, match=r"film\.jpg: more than the limit of 1073741824 bytes"):
            read(path)
    assert "more than the limit" in broken_images([path])[path]
