"""Progress in log files: what is said, and when, by a clock that the tests move."""

import gc
import itertools
import threading
import weakref

import pytest

from ravqa.core.progress import ProgressLines, duration


class Log(list):
    """Lines with the time at which each was written."""

    def __init__(self, **options):
        super().__init__()
        self.now = 0.0
        self.progress = ProgressLines(
            lambda line: self.append((self.now, line)), clock=lambda: self.now, **options
        )


def test_long_work_says_count_speed_and_time_left_at_least_every_thirty_seconds():
    log = Log(watch=False)
    for done in range(0, 112_725, 25):  # 100 passages per second
        log.now = done / 100
        log.progress("encoding passages", min(done, 112_724), 112_724)
    log.progress("encoding passages", 112_724, 112_724)
    times = [at for at, _ in log]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 30.25
    assert len(log) == 39  # 1127 s: the first, one per 30 s, the last
    assert log[0][1] == "encoding passages: 0/112,724"
    assert log[1] == (30, "encoding passages: 3,000/112,724, 100.0 per second, 18 min left")
    assert log[20][1] == "encoding passages: 60,000/112,724, 100.0 per second, 9 min left"
    assert log[-1][1] == "encoding passages: 112,724/112,724, 100.0 per second, 19 min"


def test_short_work_says_its_first_and_last_step_alone():
    log = Log(watch=False)
    for done in range(5):
        log.progress("questions", done, 4)
    log.progress("questions", 4, 4)
    assert [line for _, line in log] == ["questions: 0/4", "questions: 4/4"]


def test_work_that_reports_nothing_is_not_silent():
    log = Log(watch=False)
    log.progress("questions", 0, 5046)
    for log.now in (10.0, 29.9, 30.0, 45.0, 60.0):
        log.progress.tick()
    log.now = 64.0
    log.progress("questions", 32, 5046)
    log.now = 90.0
    assert log.progress.tick() == 30.0
    log.now = 120.0
    log.progress.tick()
    assert log == [
        (0, "questions: 0/5,046"),
        (30, "questions: 0/5,046, 30 s so far"),
        (60, "questions: 0/5,046, 60 s so far"),
        (90, "questions: 32/5,046, 30.0 per minute, 2 h 47 min left"),
        (120, "questions: 32/5,046, 30.0 per minute, 2 h 47 min left, none for 56 s"),
    ]


def test_the_speed_is_that_of_the_last_minutes_and_in_the_end_that_of_the_whole():
    log = Log(watch=False)
    for log.now in range(0, 900, 30):  # 10 passages per second, and 1 from the fifth minute on
        done = log.now * 10 if log.now <= 300 else 2700 + log.now
        log.progress("encoding passages", done, 3600)
    lines = dict(log)
    assert lines[270] == "encoding passages: 2,700/3,600, 10.0 per second, 90 s left"
    assert lines[600] == "encoding passages: 3,300/3,600, 1.0 per second, 5 min left"
    log.now = 900.0
    log.progress("encoding passages", 3600, 3600)
    assert log[-1][1] == "encoding passages: 3,600/3,600, 4.0 per second, 15 min"


def test_work_kept_from_an_earlier_run_does_not_count_as_fast():
    log = Log(watch=False)
    log.progress("questions", 900, 1000)
    log.now = 50.0
    log.progress("questions", 910, 1000)
    assert log[-1][1] == "questions: 910/1,000, 12.0 per minute, 8 min left"


def test_work_of_unknown_length_says_how_long_it_took_so_far():
    log = Log(watch=False)
    with log.progress.during("loading models"):
        log.now = 31.0
        log.progress.tick()
    log.now = 100.0
    log.progress.tick()  # nothing is under way
    assert log == [(0, "loading models"), (31, "loading models, 31 s so far")]


def test_the_work_that_reported_last_is_told_of_and_then_that_around_it():
    log = Log(watch=False)
    log.progress("runs", 0, 2)
    log.progress("questions", 0, 9)
    log.now = 30.0
    log.progress.tick()
    log.progress("questions", 9, 9)
    log.now = 60.0
    log.progress.tick()
    assert [line for at, line in log if at >= 30] == [
        "questions: 0/9, 30 s so far",
        "questions: 9/9, 18.0 per minute, 30 s",
        "runs: 0/2, 60 s so far",
    ]


def test_the_same_work_begun_again_is_told_of_again():
    log = Log(watch=False)
    for _ in range(2):
        log.progress("shard", 0, 2)
        log.progress("shard", 2, 2)
    log.progress("shard", 1, 2)
    log.progress("shard", 0, 2)  # begun again before it ended
    assert [line[7:] for _, line in log] == ["0/2", "2/2", "0/2", "2/2", "1/2", "0/2"]


def test_a_thread_writes_lines_until_the_work_is_closed_or_forgotten():
    written = threading.Event()
    before = threading.active_count()
    lines = ProgressLines(lambda line: "so far" in line and written.set(), every=0.001, clock=count)
    lines("questions", 0, 9)
    assert written.wait(10)
    lines.close()
    other = ProgressLines(lambda line: None, every=0.001)
    other("questions", 0, 9)
    gone = weakref.ref(other)
    del other
    for _ in range(1000):
        if threading.active_count() == before and gone() is None:
            return
        gc.collect()
        threading.Event().wait(0.005)
    pytest.fail("a thread outlived the work that it watched")


_seconds = iter(range(10**9))


def count():
    """Return a time ten seconds after that of the call before."""
    return 10.0 * next(_seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5999, "1 h 40 min"), (12000, "3 h 20 min")],
)
def test_times_are_words(seconds, text):
    assert duration(seconds) == text
