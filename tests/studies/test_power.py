"""Sample sizes: the closed forms, and what the test really sees when questions are simulated."""

import itertools
import math
import shutil

import numpy as np
import pytest
from study_files import call
from test_compare import runs, samples

from ravqa.core.errors import UserError
from ravqa.metrics.statistics.intervals import paired_test
from ravqa.runs.finished import Measure
from ravqa.studies.power import _spread, detectable, questions_needed, spread

stats = pytest.importorskip("scipy.stats")

__all__ = ["runs"]  # a fixture


@pytest.mark.parametrize(
    ("difference", "deviation", "power", "alpha", "expected"),
    [
        # (1.959964 + 0.841621)^2 = 7.848880; (1.959964 + 1.281552)^2 = 10.507420
        (1, 1, 0.8, 0.05, 8),
        (2, 40, 0.8, 0.05, 3140),
        (5, 40, 0.9, 0.05, 673),
        (2, 40, 0.8, 0.01, 4672),
    ],
)
def test_the_closed_form(difference, deviation, power, alpha, expected):
    found = questions_needed(difference, deviation**2, power=power, alpha=alpha)
    assert found == expected
    z = stats.norm.isf(alpha / 2) + stats.norm.ppf(power)
    assert found == math.ceil(z**2 * deviation**2 / difference**2)
    # Turned round: that many questions show about that difference.
    back = detectable(found, deviation**2, power=power, alpha=alpha)
    assert difference * 0.92 < back <= difference


def test_right_and_wrong_answers_as_in_mcnemars_test():
    # Connor 1987 ("Sample size for testing differences in proportions for the paired-sample
    # design", Biometrics 43), with p10 = 0.15 and p01 = 0.10 of the pairs discordant.
    gain, loss, n = 0.15, 0.10, 2000
    values = [1.0] * int(gain * n) + [-1.0] * int(loss * n) + [0.0] * int((1 - gain - loss) * n)
    found = spread(values)
    assert found.variance == pytest.approx((gain + loss) - (gain - loss) ** 2, rel=1e-3)
    needed = questions_needed(gain - loss, found.variance)
    discordant, delta = gain + loss, gain - loss
    root = stats.norm.ppf(0.975) * math.sqrt(discordant)
    root += stats.norm.ppf(0.8) * math.sqrt(discordant - delta**2)
    assert needed == pytest.approx((root / delta) ** 2, rel=0.01)


def test_without_clusters_it_is_the_usual_variance():
    values = np.random.default_rng(0).normal(2, 7, 50)
    found = spread(list(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.variance == pytest.approx(values.var(ddof=1))
    assert found.design_effect == pytest.approx(1)


def test_clusters_by_hand():
    # Two pictures of two questions: sums of deviations from the mean 1 are 4 and -4.
    found = spread({1: 3.0, 2: 3.0, 3: -1.0, 4: -1.0}, {1: "a", 2: "a", 3: "b", 4: "b"})
    assert (found.questions, found.clusters, found.mean) == (4, 2, 1)
    assert found.variance == 2 / 1 * (16 + 16) / 4
    assert found.design_effect == pytest.approx(16 / (16 / 3))
    with pytest.raises(ValueError, match="two clusters"):
        spread({1: 1.0, 2: 2.0}, {1: "a", 2: "a"})


def test_twins_count_as_one_question():
    rng = np.random.default_rng(1)
    single = list(rng.normal(0, 5, 400))
    twice = {i: single[i // 2] for i in range(800)}
    clusters = {i: i // 2 for i in range(800)}
    alone, both = spread(single), spread(twice, clusters)
    assert both.variance == pytest.approx(2 * alone.variance, rel=1e-6)
    assert both.design_effect == pytest.approx(2, rel=0.01)


def simulated(rng, questions, shift, per_image=3):
    """Paired differences that are alike within an image."""
    images = questions // per_image
    common = np.repeat(rng.normal(0, 20, images), per_image)
    values = shift + common + rng.choice([-50.0, 0.0, 50.0], size=images * per_image)
    return dict(enumerate(values)), {i: i // per_image for i in range(images * per_image)}


@pytest.mark.slow
def test_simulated_questions_are_seen_as_often_as_promised():
    rng = np.random.default_rng(5)
    pilot, clusters = simulated(rng, 6000, shift=3.0)
    needed = questions_needed(8.0, spread(pilot, clusters).variance)
    seen = 0
    for _ in range(300):
        values, clusters = simulated(rng, 3 * math.ceil(needed / 3), shift=8.0)
        nothing = dict.fromkeys(values, 0.0)
        seen += paired_test(values, nothing, clusters, resamples=400).p_value < 0.05
    # The standard error of 300 trials at 0.8 is 0.023.
    assert 0.73 < seen / 300 < 0.87


def numbers_of(out):
    """The numbers of the only table, in order."""
    rows = itertools.takewhile(lambda line: ":" not in line, out.splitlines()[2:])
    return [row.replace(",", "").split()[-1] for row in rows if row]


def test_the_command_says_what_the_runs_give(runs, capsys):
    code, out, err = call(capsys, "power", runs / "a", runs / "b", "--difference", "5,10")
    assert code == 0, err
    a, b = samples(runs / "a"), samples(runs / "b")
    differences = {q: 100 * (b[q]["score"] - a[q]["score"]) for q in a}
    found = spread(differences, {q: sample["image_id"] for q, sample in a.items()})
    assert "Exact match %: b - a" in out
    numbers = numbers_of(out)
    assert numbers[:2] == ["24", "8"]
    assert float(numbers[2]) == pytest.approx(found.mean, abs=0.06)
    assert float(numbers[3]) == pytest.approx(math.sqrt(found.variance), abs=0.06)
    assert [int(n) for n in numbers[-2:]] == [questions_needed(x, found.variance) for x in (5, 10)]
    assert "Fewer than 30 images" in out
    code, corrected, _ = call(capsys, "power", runs / "a", runs / "b", "--comparisons", "10")
    assert code == 0
    assert "alpha 0.05 / 10" in corrected
    code, out, _ = call(capsys, "power", runs / "a", "--metric", "exact_match")
    assert code == 0
    assert "a - a:none" in out


def test_only_questions_of_both_runs_count(runs, capsys):
    """c asks 10 of a's 24 questions: their spread is that of the 10."""
    for order in (("a", "c"), ("c", "a")):
        folders = [runs / name for name in order]
        code, _, err = call(capsys, "power", *folders)
        assert code == 2
        assert "10 are common" in err
        code, _, err = call(capsys, "power", *folders, "--common")
        assert code == 2
        assert "the spread is unknown" in err  # c is a's first questions
    code, out, err = call(capsys, "power", runs / "b", runs / "c", "--common")
    assert code == 0, err
    b, c = samples(runs / "b"), samples(runs / "c")
    assert len(c) == 10
    found = spread(
        {q: 100 * (c[q]["score"] - b[q]["score"]) for q in c},
        {q: sample["image_id"] for q, sample in c.items()},
    )
    numbers = numbers_of(out)
    assert numbers[:2] == ["10", "4"]
    assert float(numbers[2]) == pytest.approx(found.mean, abs=0.06)
    assert float(numbers[3]) == pytest.approx(math.sqrt(found.variance), abs=0.06)


class Known:
    """A run of which only these values are known, each of another image."""

    def __init__(self, values, image=None):
        self._values, self._image = values, image

    def values(self, measure):
        return self._values

    def images(self, ids):
        return {q: self._image or q for q in ids}


def test_only_questions_that_both_runs_have_a_value_of_count():
    ids = dict.fromkeys(range(1, 6))
    run, reference = Known({1: 10.0, 2: 30.0, 3: 90.0}), Known({1: 0.0, 2: 10.0, 4: 50.0})
    found = _spread(Measure("score"), run, reference, ids, "run", "reference")
    assert (found.questions, found.mean) == (2, 15)
    without = dict.fromkeys([3, 4, 5])
    with pytest.raises(UserError, match="run and reference"):
        _spread(Measure("score"), run, reference, without, "run", "reference")
    one = Known({1: 10.0, 2: 30.0}, image="photo")
    with pytest.raises(UserError, match="one image"):
        _spread(Measure("score"), one, reference, ids, "run", "reference")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b"], "no control without retrieval"),
        (["a", "b", "--difference", "0"], "--difference 0: points above 0"),
        (["a", "b", "--difference", "x"], "numbers are expected"),
        (["a", "b", "--power", "1"], "--power 1: a number between 0 and 1"),
        (["a", "b", "--power", "0.01"], "not above --alpha"),
        (["a", "b", "--comparisons", "0"], "--comparisons 0"),
        (["a", "b", "--metric", "seconds"], "metrics in percent"),
        (["a", "a2"], "differ by the same score"),
    ],
)
def test_mistakes_are_one_line(runs, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(runs)
    if "a2" in arguments and not (runs / "a2").exists():
        shutil.copytree(runs / "a", runs / "a2")
    code, _, err = call(capsys, "power", *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
