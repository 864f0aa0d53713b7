"""Reading numpy's files from several threads."""

import numpy as np
import pytest

from ravqa.core.arrays import load_array


def test_arrays_are_read_whole_or_mapped(tmp_path):
    written = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", written)
    for mode in (None, "r"):
        read = load_array(tmp_path / "a.npy", mode)
        assert isinstance(read, np.memmap) is (mode == "r")
        np.testing.assert_array_equal(read, written)


def test_pickles_are_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        load_array(tmp_path / "a.npy")


@pytest.mark.parametrize("times", [1, 2])
def test_a_parser_that_other_threads_disturb_is_asked_again_once(tmp_path, monkeypatch, times):
    np.save(tmp_path / "a.npy", np.zeros(1))
    load, failures = np.load, [SystemError("AST constructor recursion depth mismatch")] * times

    def disturbed(*args, **options):
        if failures:
            raise failures.pop()
        return load(*args, **options)

    monkeypatch.setattr(np, "load", disturbed)
    if times == 1:
        assert load_array(tmp_path / "a.npy").shape == (1,)
    else:
        with pytest.raises(SystemError):
            load_array(tmp_path / "a.npy")
