"""The cache of generations and scores: what is asked again, what survives, who may share it."""

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from abilities import give

from ravqa.core.cache import Store
from ravqa.core.errors import ContractError
from ravqa.core.outcomes import Failure
from ravqa.readers.base import Generation, Prompt, Reader
from ravqa.readers.cached import CachedReader


class Counting(Reader):
    """A reader that answers by rule and keeps what it was asked."""

    weights = "a rule"
    context = 100
    max_new_tokens = 4
    ends = frozenset({2})

    def __init__(self, *, deterministic=True, abilities=("score",), fingerprint="counting/1"):
        self.deterministic = deterministic
        give(self, abilities)
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
    """Gives its results one by one, the last first, and fails as told: one, or all from there."""

    def __init__(self, *, stop_before=None, refuses=(), **options):
        super().__init__(**options)
        self.stop_before = stop_before
        self.refuses = refuses

    def generate_each(self, prompts):
        gone = False
        for i, prompt in reversed(list(enumerate(prompts))):
            gone = gone or prompt.text == self.stop_before
            if gone:
                yield i, Failure("gone", fatal=True)
                continue
            self.asked.append(prompt.text)
            refused = prompt.text in self.refuses
            yield (
                i,
                Failure(f"{prompt.text} is refused")
                if refused
                else Generation(prompt.text.upper(), -1.0, 1),
            )

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


def test_the_key_has_the_bytes_of_the_pictures_in_their_order(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"one")
    seeing, blind = (
        CachedReader(Counting(abilities=abilities), keep=False) for abilities in (["images"], [])
    )
    shown = [(), (path,), (b"one",), (path, b"two"), (b"two", path), (b"onetwo",)]
    asked = [Prompt("t", b"photo", pictures=pictures) for pictures in shown]
    keys = seeing.keys([*asked, Prompt("t", None, pictures=(b"photo",))])
    assert keys[1] == keys[2]
    assert len(set(keys)) == 6
    assert keys[0] == seeing.keys([Prompt("t", b"photo")])[0]
    path.write_bytes(b"three")
    assert seeing.keys(asked[1:2]) != keys[1:2]
    assert len(set(blind.keys(asked))) == 1


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
    made = reader.generate(prompts(*texts))
    assert made[:6] == [Failure("gone", fatal=True)] * 6
    assert [g.text for g in made[6:]] == [t.upper() for t in texts[6:]]
    assert len(inner.asked) == reader.generated == 34
    inner.stop_before = None
    again = reader.generate(prompts(*texts))
    assert [g.text for g in again] == [t.upper() for t in texts]
    if deterministic:
        assert again[6:] == made[6:]
        assert sorted(inner.asked) == sorted(texts)  # each one once
        assert reader.generated == 40


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_refused_prompt_costs_no_other(deterministic, fresh_cache):
    inner = Streaming(refuses={"b", "d"}, deterministic=deterministic)
    reader = CachedReader(inner)
    made = reader.generate(prompts("a", "b", "c", "d", "b"))
    assert [made[i].text for i in (0, 2)] == ["A", "C"]
    assert [made[i] for i in (1, 3, 4)] == [Failure(f"{text} is refused") for text in "bdb"]
    assert sorted(inner.asked) == ["a", "b", "c", "d"]
    assert reader.generated == 2
    assert reader.generate(prompts("b")) == [made[1]]  # a failure is not kept
    assert sorted(inner.asked) == ["a", "b", "b", "c", "d"]


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
    from ravqa.readers.base import Generation, Prompt, Reader
    from ravqa.readers.cached import CachedReader

    name, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

    class Slow(Reader):
        deterministic, fingerprint, weights = True, "shared/1", "a rule"

        def generate(self, prompts):
            raise AssertionError

        def generate_each(self, prompts):
            for i, prompt in enumerate(prompts):
                with (folder / f"asked.{name}").open("a") as log:
                    print(prompt.text, file=log, flush=True)
                time.sleep(0.002)
                yield i, Generation(prompt.text.upper())

    reader = CachedReader(Slow())
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
    silent = Counting(fingerprint="shared/1")
    CachedReader(silent).generate(prompts(*asked))
    kept = [text for text in asked if text not in silent.asked]
    assert len(asked) - len(kept) <= 16
    assert kept == asked[: len(kept)]


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
    for made in (reader.generate(prompts("a")), CachedReader(inner).generate(prompts("a"))):
        assert [outcome.generation for outcome in made] == [Generation(" \n")]
        assert isinstance(made[0], Failure)
    assert inner.calls == 2
    inner.says = "\u200b"
    [silence] = CachedReader(inner).generate(prompts("a"))
    assert silence.generation == Generation("\u200b")
    inner.calls = 2
    inner.says = "koala"
    for _ in range(2):
        assert CachedReader(inner).generate(prompts("a")) == [Generation("koala")]
    assert inner.calls == 3


def returning(call, value):
    """A reader one of whose calls returns a value, whatever it is asked."""

    def answer(self, *_):
        return value

    members = {"generate": answer, "fingerprint": "odd", "weights": "odd", call: answer}
    return type("Odd", (Reader,), {"__module__": __name__, **members})()


ROW = np.log(np.full(4, 0.25, np.float32))
NAN = np.array([np.nan, 0.0], np.float32)


@pytest.mark.parametrize(
    ("call", "value", "message"),
    [
        ("generate", [Generation("a")], "returned 1 results from generate for 2 items"),
        ("generate", [Generation("a")] * 3, "returned 3 results from generate for 2 items"),
        ("generate", None, "returned NoneType from generate: a list is expected"),
        ("generate", "ab", "returned str from generate: a list is expected"),
        ("generate", ["a", "b"], "returned from generate str instead of a Generation"),
        ("generate", [Generation(None)] * 2, "a Generation whose text is NoneType"),
        ("generate", [Generation("a", math.nan)] * 2, "a log-probability that is not a number"),
        ("generate", [Generation("a", "x")] * 2, "a log-probability of type str, not a number"),
        ("generate", [Generation("a", -1, None)] * 2, "a number of tokens of type NoneType"),
        ("generate_each", [(0, Generation("a"))], "returned 1 results from generate for 2 items"),
        ("generate_each", [(0, Generation("a"))] * 2, "a result from generate for no prompt"),
        ("generate_each", [(2, Generation("a"))], "a result from generate for no prompt"),
        ("score", [-1.0], "returned 1 results from score for 2 items"),
        ("score", [-1.0, math.nan], "a log-probability that is not a number"),
        ("generate", [Generation("a", 3.0, 1)] * 2, "a log-probability above 0"),
        ("generate", [Generation("a", -1.0, -1)] * 2, "a negative number of tokens"),
        ("next_token_logprobs", [ROW, ROW + 3], "a log-probability above 0"),
        ("next_token_logprobs", [ROW, ROW - np.inf], "a log-probability that is not a number"),
        ("score", [-1.0, None], "a log-probability of type NoneType, not a number"),
        ("next_token_logprobs", [ROW], "returned 1 results from next_token_logprobs for 2"),
        ("next_token_logprobs", [ROW, [0.0]], "something other than one row of log-prob"),
        ("next_token_logprobs", [NAN, NAN], "a log-probability that is not a number"),
        ("count_tokens", [3], "returned 1 results from count_tokens for 2 items"),
        ("count_tokens", ["3", "3"], "a count of tokens of type str, not a number"),
    ],
)
def test_a_reader_that_breaks_its_contract_is_named_in_one_line(call, value, message, fresh_cache):
    reader = CachedReader(returning(call, value))
    asked = prompts("a", "b")
    more = {"score": [["x", "y"]], "next_token_logprobs": [[(), ()]]}
    with pytest.raises(ContractError) as raised:
        getattr(reader, call.removesuffix("_each"))(asked, *more.get(call, []))
    begin = "the reader test_cached_reader.Odd breaks its contract: it returned "
    assert str(raised.value).startswith(begin)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_reader_without_a_fingerprint_is_named(fresh_cache):
    class Nameless(Counting):
        def __init__(self):
            self.weights = "none"

    with pytest.raises(ContractError, match=r"Nameless breaks .* it does not set `fingerprint`"):
        CachedReader(Nameless())


def test_what_a_contract_allows_passes(fresh_cache):
    reader = CachedReader(returning("score", (np.float32(-1.5), -math.inf)))
    assert reader.score(prompts("a", "b"), ["x", "y"]) == [-1.5, -math.inf]
    reader = CachedReader(returning("next_token_logprobs", [ROW, Failure("too long")]))
    assert reader.next_token_logprobs(prompts("a", "b"), [(), ()])[1] == Failure("too long")


def test_numbers_of_numpy_are_kept(fresh_cache):
    made = Generation("a", np.float32(-1.5), np.int64(2))
    for call, value in (("generate", [made]), ("score", [np.float32(-1.5)])):
        for _ in range(2):
            odd = returning(call, value)
            odd.deterministic = True
            reader = CachedReader(odd)
            asked = prompts("a")
            found = reader.generate(asked) if call == "generate" else reader.score(asked, ["x"])
            assert found == value
        assert (reader.generated, reader.scored) == (0, 0)


class Raising(Counting):
    """Raises for some prompts, before or after it has answered others."""

    def __init__(self, *bad, each=False):
        super().__init__()
        self.bad = bad
        if each:
            self.generate_each = self._each

    def generate(self, prompts):
        if found := [p.text for p in prompts if p.text in self.bad]:
            raise KeyError(found[0])
        return super().generate(prompts)

    def score(self, prompts, answers):
        self.generate(prompts)
        return [-1.0 for _ in prompts]

    def _each(self, prompts):
        for i, prompt in enumerate(prompts):
            yield i, self.generate([prompt])[0]


@pytest.mark.parametrize("each", [False, True])
def test_an_error_for_one_prompt_costs_no_other(each, fresh_cache):
    inner = Raising("c", "f", each=each)
    reader = CachedReader(inner)
    asked = prompts(*"abcdefgh")
    made = reader.generate(asked)
    failed = [i for i, outcome in enumerate(made) if isinstance(outcome, Failure)]
    assert [asked[i].text for i in failed] == ["c", "f"]
    assert [made[i].reason for i in failed] == [
        "the reader Raising: 'c'",
        "the reader Raising: 'f'",
    ]
    for outcome, prompt in zip(made, asked, strict=True):
        assert isinstance(outcome, Failure) or outcome.text[0] == prompt.text
    assert reader.generated == 6
    assert [isinstance(s, Failure) for s in reader.score(asked, ["x"] * 8)] == [
        prompt.text in "cf" for prompt in asked
    ]
    inner.bad = ()
    inner.asked = []
    assert not any(isinstance(outcome, Failure) for outcome in CachedReader(inner).generate(asked))
    assert inner.asked == ["c", "f"]  # the others were kept


@pytest.mark.parametrize(
    "damaged", [[], "x", 5, {"text": 5}, {"txt": "a"}, {"text": "a", "tokens": "b"}, None]
)
def test_a_damaged_entry_is_made_again(damaged, fresh_cache, caplog):
    inner = Counting()
    reader = CachedReader(inner)
    [key] = reader.keys(prompts("a"))
    Store("generations").put({key: damaged})
    assert reader.generate(prompts("a"))[0].text.startswith("a!")
    assert CachedReader(inner).generate(prompts("a"))[0].text.startswith("a!")
    assert inner.calls == 1
