"""Rates and areas against values counted by hand."""

import numpy as np
import pytest

from converters.evaluation.verification import area, rate_at, report, roc

GENUINE = np.array([0.9, 0.8, 0.6, 0.3])
IMPOSTOR = np.array([0.7, 0.5, 0.4, 0.2, 0.1])


def test_area_is_the_chance_that_a_genuine_pair_is_more_alike() -> None:
    wins = np.mean([g > i for g in GENUINE for i in IMPOSTOR])
    assert area(*roc(GENUINE, IMPOSTOR)) == pytest.approx(wins)


@pytest.mark.parametrize(
    ("allowed", "rate"),
    [
        pytest.param(0.0, 0.5, id="no false alarm: 0.9 and 0.8 are above every impostor"),
        pytest.param(0.19, 0.5, id="less than one impostor in five"),
        pytest.param(0.2, 0.75, id="one impostor let in"),
        pytest.param(0.6, 1.0, id="three let in"),
        pytest.param(1.0, 1.0, id="all"),
    ],
)
def test_true_positive_rate_at_a_false_positive_rate(allowed: float, rate: float) -> None:
    assert rate_at(*roc(GENUINE, IMPOSTOR), allowed) == rate


def test_ties_count_half() -> None:
    assert area(*roc(np.array([0.5, 0.5]), np.array([0.5, 0.5, 0.5]))) == pytest.approx(0.5)


def test_perfect_and_useless_embedders() -> None:
    assert area(*roc(np.array([0.9]), np.array([0.1, 0.2]))) == 1
    assert area(*roc(np.array([0.1]), np.array([0.9, 0.8]))) == 0


def test_report_says_what_the_set_cannot_tell() -> None:
    similarity = np.concatenate([GENUINE, IMPOSTOR])
    same = np.array([True] * 4 + [False] * 5)
    found = report("a set", similarity, same, pictures=9, left_out=1)
    assert (found.genuine, found.impostor, found.finest_fpr) == (4, 5, 0.2)
    assert found.tpr["0.25"] == 0.75
    assert found.tpr["0.001"] == 0.5  # the rate without any false alarm
    assert found.genuine_mean == pytest.approx(0.65)
