"""Files that are written as a whole: permissions, leftovers of killed writers, several at once."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from ravqa.core import files
from ravqa.core.files import (
    LockedError,
    atomic_write,
    final_name,
    folder_written_beside,
    leftovers,
    lock,
    written_beside,
)


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o777


def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    atomic_write(tmp_path / "new", "text")
    assert mode(tmp_path / "new") == 0o666 & ~umask
    with folder_written_beside(tmp_path / "folder") as folder:
        (folder / "x").write_text("x")
    assert mode(tmp_path / "folder") == 0o777 & ~umask
    assert (tmp_path / "folder" / "x").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == ["folder", "new"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    atomic_write(tmp_path / "file", b"old")
    with pytest.raises(FileNotFoundError), written_beside(tmp_path / "file") as beside:
        beside.write_bytes((tmp_path / "none").read_bytes())
    with pytest.raises(FileNotFoundError), folder_written_beside(tmp_path / "folder") as beside:
        beside.joinpath("none").read_bytes()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from ravqa.core.files import {function}
    with {function}(Path(sys.argv[1])) as beside:
        print("begun", flush=True)
        sys.stdin.read()
"""


def begun(function, path):
    code = textwrap.dedent(KILLED.format(function=function))
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"begun\n"
    return process


@pytest.mark.parametrize("function", ["written_beside", "folder_written_beside"])
def test_a_killed_writers_leftover_goes_with_the_next_write_and_a_living_ones_stays(
    tmp_path, function
):
    target = tmp_path / "target"
    with begun(function, target) as killed, begun(function, target) as living:
        assert [final_name(name) for name in os.listdir(tmp_path)] == ["target"] * 2
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        atomic_write(tmp_path / "other", "")  # another file's leftovers are not looked for
        assert len(os.listdir(tmp_path)) == 3
        if function == "written_beside":
            atomic_write(target, "new")
        else:
            with folder_written_beside(target):
                pass
        assert len(os.listdir(tmp_path)) == 3  # the target, the other, the living one's
        living.communicate(b"")
        assert living.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["other", "target"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_new_file_that_others_removed_before_it_was_marked_is_made_again(
    tmp_path, monkeypatch, folder
):
    """Somebody who writes the same file finds it without its mark, and takes it for a leftover."""
    path, marked, removed = tmp_path / "out", files._marked, []

    def late(handle):
        if not removed:
            [entry] = tmp_path.glob(".out.*.part")
            removed.append(entry)
            files.remove_leftovers(path)
            assert not entry.exists()
        return marked(handle)

    monkeypatch.setattr(files, "_marked", late)
    write = folder_written_beside if folder else written_beside
    with write(path) as temporary:
        assert temporary not in removed
        files.remove_leftovers(path)
        assert temporary.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_in_the_cache_every_leftover_beside_a_file_goes(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("RAVQA_CACHE", str(cache))
    with (
        begun("folder_written_beside", cache / "a") as killed,
        begun("written_beside", cache / "b") as living,
    ):
        assert list(leftovers(cache)) == []
        killed.kill()
        killed.communicate()
        [left] = leftovers(tmp_path)
        assert final_name(left.name) == "a"
        os.mkfifo(cache / ".c.01234567.part")  # is not waited for
        atomic_write(cache / "other", "")
        assert list(leftovers(cache)) == []
        living.communicate(b"")
        assert living.returncode == 0
    assert {"b", "other"} <= set(os.listdir(cache))


def test_of_two_makers_of_a_folder_the_first_wins_only_if_that_is_meant(tmp_path):
    for first_wins in (True, False):
        target = tmp_path / str(first_wins)

        def make(target=target, first_wins=first_wins):
            with folder_written_beside(target, first_wins=first_wins) as beside:
                (beside / "mine").touch()
                target.mkdir()
                (target / "theirs").touch()

        if first_wins:
            make()
        else:
            with pytest.raises(OSError, match="not empty"):
                make()
        assert os.listdir(target) == ["theirs"]
    assert len(os.listdir(tmp_path)) == 2


def test_locks_of_other_names_are_apart(tmp_path):
    with lock(tmp_path, "the shard", name="a.lock"):
        with lock(tmp_path, "the shard", name="b.lock", wait=0):
            pass
        with (
            pytest.raises(LockedError, match=f"the shard in .* by process {os.getpid()} since"),
            lock(tmp_path, "the shard", name="a.lock", wait=0),
        ):
            pass


def test_a_pipe_in_place_of_a_locks_owner_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".lock.owner")
    with (
        lock(tmp_path, "it"),
        pytest.raises(LockedError, match=f"process {os.getpid()} since"),
        lock(tmp_path, "it", wait=0),
    ):
        pass
    os.mkfifo(tmp_path / ".lock.owner")
    with lock(tmp_path, "it"):
        (tmp_path / ".lock.owner").unlink()
        os.mkfifo(tmp_path / ".lock.owner")
        with (
            pytest.raises(LockedError, match="written by another process"),
            lock(tmp_path, "it", wait=0),
        ):
            pass


def test_in_the_cache_what_any_killed_writer_left_goes_with_the_next_write(fresh_cache, tmp_path):
    folder = fresh_cache / "bm25"
    folder.mkdir(parents=True)
    for place in (folder, tmp_path):
        (place / ".one.0123abcd.part").write_text("half a file")
        (place / ".two.0123abcd.part").mkdir()
        (place / ".two.0123abcd.part" / "file").touch()
        os.mkfifo(place / ".pipe.0123abcd.part")
        (place / "kept.part").touch()
    with written_beside(folder / "living") as living:
        atomic_write(folder / "three", "")
        assert living.is_file()  # in use, if by this process
    atomic_write(tmp_path / "three", "")
    assert {p.name for p in folder.iterdir()} == {"living", "three", "kept.part"}
    assert (tmp_path / ".one.0123abcd.part").is_file()  # that folder is not ours
    assert (tmp_path / ".two.0123abcd.part").is_dir()
