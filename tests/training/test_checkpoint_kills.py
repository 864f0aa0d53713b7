"""A training that is killed, at any moment of a save, leaves one whole checkpoint."""

import shutil
from pathlib import Path

import pytest
from kills import Killed, begin, kills, report

FILES = ("weights", "training.pt", "tokenizer/vocab.txt")


class Saves(Killed):
    """The replacement of a checkpoint, or the first one."""

    def __init__(self, folder, change):
        self.folder, self.change = Path(folder), change
        self.path = self.folder / "run"
        self.folder.mkdir()

    def fresh(self):
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        (self.path / "config.yaml").write_text("training: test\n")
        if self.change == "replace":
            self.save("before")

    def training(self):
        from ravqa.training.folder import TrainingFolder

        return TrainingFolder(self.path, resume=True)

    def save(self, text):
        with self.training().replaced("last") as filled:
            (filled / "tokenizer").mkdir()
            for name in FILES:
                (filled / name).write_text(text)

    def act(self):
        self.save("after")

    def check(self, where):
        """The last checkpoint is one of the two, and whole; the next save works.

        Returns:
            Whether it is the new one.
        """
        where = f"{self.change} killed at {where}"
        found = self.training().last()
        if found is None:
            assert self.change == "first", where
            done = False
        else:
            [text] = {(found / name).read_text() for name in FILES}
            assert text == "after" or (text == "before" and self.change == "replace"), where
            done = text == "after"
        self.save("next")
        assert {(self.path / "last" / name).read_text() for name in FILES} == {"next"}, where
        assert {p.name for p in self.path.iterdir()} == {"config.yaml", "last"}, where
        return done


def helper():
    task = begin()
    folder = Path(task["folder"])
    warm = Saves(folder / "warm", "replace")  # imports here what each child would import again
    warm.fresh()
    report(task, lambda change: Saves(folder / change, change))


@pytest.mark.slow
def test_a_kill_at_every_step_and_at_some_moments(tmp_path):
    results = kills(__file__, tmp_path, ["first", "replace"], steps=0, times=10)
    for result in results.values():
        assert len(result["states"]) == result["steps"] > 8
        assert set(result["states"]) == {False, True}


if __name__ == "__main__":
    helper()
