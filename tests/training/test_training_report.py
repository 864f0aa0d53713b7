"""Curves of a training's report: which steps they show, and where they have ticks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.training import report


@pytest.mark.parametrize(
    ("ticks", "kept"),
    [
        ([5], [5]),
        ([2, 3], [2, 3]),
        ([21, 31], [31]),
        ([1, 25, 50, 75, 100], [1, 25, 50, 100]),
        ([1, 2, 3, 4, 5], [1, 2, 3, 5]),
        ([97, 98, 99, 100], [100]),
    ],
)
def test_of_ticks_that_are_too_close_the_last_stays(ticks, kept):
    assert report._apart(ticks) == kept


@given(st.integers(1, 2000))
def test_points_are_slices_of_about_one_length_that_cover_all_steps(size):
    found = [range(size)[part] for part in report._groups(size)]
    assert [i for part in found for i in part] == list(range(size))
    assert len(found) == min(size, report._POINTS)
    lengths = {len(part) for part in found}
    assert max(lengths) - min(lengths) <= 1


def test_steps_without_a_figure_do_not_count_in_a_mean():
    assert report._mean([1.0, None, 4.0]) == 2.5
    assert report._mean(iter([None, None])) is None
    assert report._mean([]) is None


def test_a_curve_has_its_values_a_few_ticks_and_an_axis(monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "curves", lambda *given, **named: drawn.append((given, named)))
    xs = list(range(10, 210, 10))
    values = {"loss": [1.5] * 19 + [None], "other": [2.0] * 20}
    report._curve("Training loss", "A caption.", xs, values, decimals=3)
    report._curve("Loss", "", [1, 2], {})
    (title, caption, places, (loss, other)), named = drawn[0]
    assert (title, caption, places) == ("Training loss", "A caption.", xs)
    assert (loss.name, loss.style, other.name, other.style) == ("loss", 0, "other", 1)
    assert [v if v is None else v.value for v in loss.values] == values["loss"]
    assert named["x_name"] == "step"
    assert named["ticks"][-1] == 200
    assert set(named["ticks"]) <= set(xs)
    assert len(named["ticks"]) > 1
    assert (named["axis"].name, named["axis"].decimals) == ("training loss", 3)
    assert drawn[1][1]["axis"].decimals == 4
