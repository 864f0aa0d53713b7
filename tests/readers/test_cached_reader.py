"""The cache of generations and scores: what is asked again, what survives, who may share it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ravqa.core.cache import Store
from ravqa.core.errors import PromptError, ServerError
from ravqa.readers.base import Generation, Prompt
from ravqa.readers.cached import CachedReader


class Counting:
    """A reader that answers by rule and keeps what it was asked."""

    weights = "a rule"
    context = 100
    max_new_tokens = 4
    ends = frozenset({2})

    def __init__(self, *, deterministic=True, abilities=("score",), fingerprint="counting/1"):
        self.deterministic = deterministic
        self.abilities = frozenset(abilities)
        self.fingerprint = fingerprint
        self.asked = []
        self.calls = 0

    def generate(self, prompts):
        self.calls += 1
        self.asked += [p.text for p in prompts]
        return [Generation(f"{p.text}! {len(self.asked)}", -0.5, 2) for p in prompts]

    def score(self, prompts, answers):
        self.calls += 1
        self.asked += [p.text + "/" + a for p, a in zip(prompts, answers, strict=True)]
        return [-float(len(p.text) + len(a)) for p, a in zip(prompts, answers, strict=True)]


class Streaming(Counting):
    """Gives its results one by one, the last first, and fails as told."""

    def __init__(self, *, stop_before=None, refuses=(), **options):
        super().__init__(**options)
        self.stop_before = stop_before
        self.refuses = refuses

    def generate_each(self, prompts):
        failed = {}
        for i, prompt in reversed(list(enumerate(prompts))):
            if prompt.text == self.stop_before:
                raise ServerError("gone")
            self.asked.append(prompt.text)
            if prompt.text in self.refuses:
                failed[i] = f"{prompt.text} is refused"
                continue
            yield i, Generation(prompt.text.upper(), -1.0, 1)
        if failed:
            raise PromptError(next(iter(failed.values())), failed)

    def score_each(self, prompts, answers):
        yield from reversed(list(enumerate(self.score(prompts, answers))))


def prompts(*texts):
    return [Prompt(text) for text in texts]


@pytest.mark.parametrize("kind", [Counting, Streaming])
def test_a_second_reader_over_the_same_calls_is_never_asked(kind, fresh_cache):
    inner = kind()
    reader = CachedReader(inner)
    texts = ["one", "two", "one", "three"]
    generations = reader.generate(prompts(*texts))
    scores = reader.score(prompts("one", "one", "two"), ["a", "bc", "a"])
    assert scores == [-4, -5, -4]
    assert sorted(inner.asked) == sorted(["one", "two", "three", "one/a", "one/bc", "two/a"])
    assert (reader.generated, reader.scored) == (3, 3)
    assert generations[0] == generations[2]

    silent = kind()
    again = CachedReader(silent)
    assert again.generate(prompts(*texts)) == generations
    assert again.score(prompts("two", "one", "one"), ["a", "bc", "a"]) == [-4, -5, -4]
    assert again.generate(prompts("two")) == [generations[1]]
    assert (silent.calls, silent.asked) == (0, [])
    assert (again.generated, again.scored) == (0, 0)
    assert again.score(prompts("one"), ["b"]) == [-4]  # another answer is another entry
    assert silent.asked == ["one/b"]


def test_the_key_is_made_of_reader_text_and_image_bytes(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"one")
    seeing, blind = (
        CachedReader(Counting(abilities=abilities), keep=False) for abilities in (["images"], [])
    )
    other = CachedReader(Counting(fingerprint="counting/2"), keep=False)
    same = [Prompt("t", path), Prompt("t", b"one")]
    [key, by_bytes] = seeing.keys(same)
    assert key == by_bytes
    path.write_bytes(b"two")
    different = [
        key,
        *seeing.keys([Prompt("t", path), Prompt("t"), Prompt("u", b"one")]),
        *other.keys([Prompt("t")]),
    ]
    assert len(set(different)) == 5
    assert len({*blind.keys([Prompt("t", path), Prompt("t", b"one"), Prompt("t")])}) == 1


def test_what_is_not_deterministic_is_not_kept(fresh_cache):
    inner = Counting(deterministic=False)
    reader = CachedReader(inner)
    assert reader.generate(prompts("a")) != reader.generate(prompts("a"))
    assert inner.calls == 2
    assert not list(fresh_cache.rglob("*.sqlite"))


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_was_finished_before_an_error_is_not_asked_again(deterministic, fresh_cache):
    texts = [f"t{i}" for i in range(40)]
    inner = Streaming(stop_before="t5", deterministic=deterministic)
    reader = CachedReader(inner)
    with pytest.raises(ServerError, match="gone"):
        reader.generate(prompts(*texts))
    assert len(inner.asked) == 34
    with reader.only_known():
        assert reader.generate(prompts("t6", "t39"))[1].text == "T39"
        with pytest.raises(PromptError, match="was not asked"):
            reader.generate(prompts("t5"))
    inner.stop_before = None
    made = reader.generate(prompts(*(t for t in texts if t not in {"t6", "t39"})))
    assert [g.text for g in made[:8]] == ["T0", "T1", "T2", "T3", "T4", "T5", "T7", "T8"]
    assert sorted(inner.asked) == sorted(texts)  # each one once
    assert reader.generated == 40


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_refused_prompt_costs_no_other(deterministic, fresh_cache):
    inner = Streaming(refuses={"b", "d"}, deterministic=deterministic)
    reader = CachedReader(inner)
    with pytest.raises(PromptError, match="d is refused"):
        reader.generate(prompts("a", "b", "c", "d"))
    # Asked again one by one, as a run does to find out which questions are affected.
    assert [reader.generate(prompts(t))[0].text for t in "ac"] == ["A", "C"]
    for text in "bd":
        with pytest.raises(PromptError, match=f"{text} is refused"):
            reader.generate(prompts(text))
    assert sorted(inner.asked) == ["a", "b", "c", "d"]
    with pytest.raises(PromptError):  # that was remembered for one call
        reader.generate(prompts("b"))
    assert sorted(inner.asked) == ["a", "b", "b", "c", "d"]


def test_a_question_of_several_prompts_keeps_what_was_rescued(fresh_cache):
    inner = Streaming(refuses={"b"}, deterministic=False)
    reader = CachedReader(inner)
    with pytest.raises(PromptError):
        reader.generate(prompts("a", "b", "c"))
    with pytest.raises(PromptError):
        reader.generate(prompts("a", "b"))
    assert [g.text for g in reader.generate(prompts("a", "c"))] == ["A", "C"]
    assert sorted(inner.asked) == ["a", "b", "c"]


def test_what_is_decoded_by_other_means_is_kept_too(fresh_cache):
    made = []

    def make(rows):
        made.append(rows)
        return [(place, (f"row {row}", row)) for place, row in enumerate(rows)]

    def recall(*keys):
        return CachedReader(Counting()).recall(keys, make, list, tuple)

    assert recall("x", "y", "x") == [("row 0", 0), ("row 1", 1), ("row 0", 0)]
    assert recall("z", "y") == [("row 0", 0), ("row 1", 1)]
    assert made == [[0, 1], [0]]


WORKER = """
    import sys, time
    from pathlib import Path
    from ravqa.readers.base import Generation, Prompt
    from ravqa.readers.cached import CachedReader

    name, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

    class Reader:
        abilities, deterministic, fingerprint = frozenset(), True, "shared/1"
        weights, context, max_new_tokens, ends = "a rule", None, 4, frozenset()

        def generate_each(self, prompts):
            for i, prompt in enumerate(prompts):
                with (folder / f"asked.{name}").open("a") as log:
                    print(prompt.text, file=log, flush=True)
                time.sleep(0.002)
                yield i, Generation(prompt.text.upper())

        def score_each(self, prompts, answers):
            raise AssertionError

    reader = CachedReader(Reader())
    (folder / f"ready.{name}").touch()
    while len(list(folder.glob("ready.*"))) < 2:
        time.sleep(0.002)
    # The same work from both ends, a few prompts a call, as two runs would ask.
    texts = [f"prompt {i}" for i in range(count)]
    texts = texts if name == "a" else texts[::-1]
    for start in range(0, count, 5):
        part = texts[start : start + 5]
        made = reader.generate([Prompt(text) for text in part])
        assert [g.text for g in made] == [text.upper() for text in part]
    print("done")
"""


def test_two_processes_share_the_cache(fresh_cache, tmp_path):
    count = 60
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER), name, str(tmp_path), str(count)],
            cwd=Path(__file__).parents[2],
            env=dict(os.environ, RAVQA_CACHE=str(fresh_cache)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    try:
        ended = [worker.communicate(timeout=600) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [out for out, _ in ended] == ["done\n", "done\n"], ended
    asked = {name: (tmp_path / f"asked.{name}").read_text().splitlines() for name in "ab"}
    # Each found what the other had finished: they met in the middle, give or take a few calls.
    assert len(asked["a"]) + len(asked["b"]) < 1.5 * count
    assert {*asked["a"], *asked["b"]} == {f"prompt {i}" for i in range(count)}
    silent = CachedReader(Counting(fingerprint="shared/1"))
    assert silent.generate(prompts("prompt 7", "prompt 50"))[0].text == "PROMPT 7"
    assert silent.generated == 0


@pytest.mark.slow
def test_a_killed_process_leaves_what_it_had_answered(fresh_cache, tmp_path):
    (tmp_path / "ready.b").touch()
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER), "a", str(tmp_path), "100000"],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ, RAVQA_CACHE=str(fresh_cache)),
    )
    log = tmp_path / "asked.a"
    try:
        while not (log.is_file() and len(log.read_text().splitlines()) > 205):
            assert worker.poll() is None
    finally:
        worker.kill()
        worker.wait()
    asked = log.read_text().splitlines()
    reader = CachedReader(Counting(fingerprint="shared/1"))
    with reader.only_known():
        kept = [text for text in asked if _known(reader, text)]
    assert len(asked) - len(kept) <= 16
    assert kept == asked[: len(kept)]


def _known(reader, text):
    try:
        return reader.generate(prompts(text))[0].text == text.upper()
    except PromptError:
        return False


def test_a_generation_without_a_word_is_not_kept_nor_taken_from_an_older_cache(fresh_cache):
    class Silent(Counting):
        says = " \n"

        def generate(self, prompts):
            super().generate(prompts)
            return [Generation(self.says) for _ in prompts]

    inner = Silent()
    reader = CachedReader(inner)
    [key] = reader.keys(prompts("a"))
    Store("generations").put({key: {"text": "", "log_prob": -1.0, "tokens": 1}})  # as it was once
    assert reader.generate(prompts("a")) == [Generation(" \n")]
    assert CachedReader(inner).generate(prompts("a")) == [Generation(" \n")]
    assert inner.calls == 2
    inner.says = "koala"
    for _ in range(2):
        assert CachedReader(inner).generate(prompts("a")) == [Generation("koala")]
    assert inner.calls == 3


@pytest.mark.parametrize("deterministic", [True, False])
def test_work_that_fails_later_asks_nothing_again(deterministic, fresh_cache):
    class Half(Counting):
        def generate(self, prompts):
            made = super().generate(prompts)
            return [
                Generation("") if p.text == "b" else g for p, g in zip(prompts, made, strict=True)
            ]

    inner = Half(deterministic=deterministic)
    reader = CachedReader(inner)
    made = []

    def work():
        with reader.held():
            made.extend(reader.generate(prompts("a", "b")))
            raise PromptError("later")

    with pytest.raises(PromptError, match="later"):
        work()
    assert [reader.generate(prompts(t))[0] for t in "ab"] == made
    assert inner.asked == ["a", "b"]
