"""Parametrised cases of which some are enough for the quick tests."""

import pytest


def slow_but(quick, cases):
    """`cases`, of which all but those in `quick` are slow; a tuple has a value per argument."""
    assert all(case in cases for case in quick)
    return [
        case
        if case in quick
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
