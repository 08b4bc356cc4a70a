"""The closed form is the 7 × 7 filter of the paper, and keeps boxes drawable."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.track.kalman import Kalman, measure
from tests.bench.sort_peer import PeerTrack

BOXES = np.array([[100.0, 50, 180, 170], [-20, 0, 20, 30], [1000, 500, 1010, 512]])
ALL = np.arange(3)


def born(boxes: NDArray[np.float64] = BOXES) -> Kalman:
    filters = Kalman()
    filters.birth(measure(boxes))
    return filters


def test_measurement_is_centre_area_and_aspect() -> None:
    np.testing.assert_array_equal(measure(np.array([[10.0, 20, 14, 28]])), [[12], [24], [32], [0.5]])


def test_born_filter_shows_the_box_it_was_born_with() -> None:
    np.testing.assert_allclose(born().xyxy(), BOXES, atol=1e-9)


def test_born_filter_rests() -> None:
    filters = born()
    filters.predict()
    np.testing.assert_allclose(filters.xyxy(), BOXES, atol=1e-9)


def test_filter_learns_the_velocity_it_is_shown() -> None:
    filters = born()
    step = np.array([4.0, -2, 4, -2])
    for frame in range(1, 40):
        filters.predict()
        filters.update(ALL, measure(BOXES + frame * step))
    before = filters.xyxy()
    filters.predict()
    np.testing.assert_allclose(filters.xyxy() - before, np.tile(step, (3, 1)), atol=0.05)


def test_mean_and_covariance_are_those_of_the_matrix_filter() -> None:
    """Random boxes, some frames missed: every block of P equal, and P zero everywhere else."""
    rng = np.random.default_rng(0)
    filters = born()
    matrix = [PeerTrack(n, box) for n, box in enumerate(BOXES)]
    for _ in range(60):
        filters.predict()
        for track in matrix:
            track.predict()
        seen = np.flatnonzero(rng.random(3) < 0.8)
        boxes = BOXES + rng.normal(0, 3, (3, 4)) * [1, 1, 0.1, 0.1] + [0, 0, 8, 8]
        filters.update(seen, measure(boxes[seen]))
        for n in seen.tolist():
            matrix[n].update(boxes[n])
    x, dx, p00, p01, p11 = filters.state
    for n, track in enumerate(matrix):
        np.testing.assert_allclose(track.x, [*x[:, n], *dx[:3, n]], rtol=1e-9, atol=1e-9)
        P = np.diag([*p00[:, n], *p11[:3, n]])
        P[range(3), range(4, 7)] = P[range(4, 7), range(3)] = p01[:3, n]
        np.testing.assert_allclose(track.P, P, rtol=1e-6, atol=1e-9)


def test_aspect_never_gains_a_velocity() -> None:
    filters = born()
    for frame in range(20):
        filters.predict()
        filters.update(ALL, measure(BOXES + np.array([0, 0, frame, 0])))
    _, dx, _, p01, p11 = filters.state
    assert not dx[3].any()
    assert not p01[3].any()
    assert not p11[3].any()


def test_shrinking_box_never_loses_its_area() -> None:
    """A face walking away, then lost for a thousand frames, still has a box to match and to draw."""
    filters = born(BOXES[:1])
    for frame in range(8):
        filters.predict()
        filters.update(ALL[:1], measure(BOXES[:1] + 4 * frame * np.array([1, 1, -1, -1])))
    assert filters.state[1, 2, 0] < 0, "the filter was meant to see it shrink"
    for _ in range(1000):
        filters.predict()
    assert filters.state[0, 2, 0] > 0
    assert np.isfinite(filters.xyxy()).all()


def test_update_leaves_the_others_alone() -> None:
    filters, untouched = born(), born()
    filters.update(np.array([1]), measure(BOXES[:1]))
    np.testing.assert_array_equal(filters.state[:, :, [0, 2]], untouched.state[:, :, [0, 2]])
    assert (filters.state[:, :, 1] != untouched.state[:, :, 1]).any()


def test_update_pairs_measurements_with_indices_in_the_order_given() -> None:
    forth, back = born(), born()
    z = measure(BOXES + 5)
    forth.update(ALL, z)
    back.update(ALL[::-1], z[:, ::-1])
    np.testing.assert_array_equal(forth.state, back.state)


@pytest.mark.parametrize("kept", [[0, 1, 2], [2], [0, 2], []])
def test_keep_drops_all_others(kept: list[int]) -> None:
    filters = born()
    filters.keep(np.array(kept, dtype=np.intp))
    assert len(filters) == len(kept)
    np.testing.assert_allclose(filters.xyxy(), BOXES[kept], atol=1e-9)


def test_no_filters_predict_update_and_show_nothing() -> None:
    filters = Kalman()
    filters.predict()
    filters.update(np.empty(0, dtype=np.intp), np.empty((4, 0)))
    filters.birth(measure(np.empty((0, 4))))
    assert len(filters) == 0
    assert filters.xyxy().shape == (0, 4)
