"""Points onto the template: found turns, scales and shifts, and pixels that land where they should."""

import numpy as np
import pytest

from edge.models.manifest import Input
from edge.track.alignment import TEMPLATE, TEMPLATE_PX, align, similarity

SQUARE = Input(TEMPLATE_PX, TEMPLATE_PX, fit="align")


def moved(points, degrees, scale, shift):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(points @ turn.T * scale + shift, np.float32)


@pytest.mark.parametrize(
    ("degrees", "scale", "shift"),
    [
        pytest.param(0, 1, (0, 0), id="identical"),
        pytest.param(0, 1, (30, -12), id="shifted"),
        pytest.param(25, 1, (0, 0), id="tilted"),
        pytest.param(-170, 2.5, (200, 300), id="upside down, large, elsewhere"),
    ],
)
def test_a_similarity_is_found_whatever_it_did(degrees, scale, shift):
    face = moved(TEMPLATE, degrees, scale, shift)
    matrix = similarity(face, TEMPLATE)
    np.testing.assert_allclose(face @ matrix[:, :2].T + matrix[:, 2], TEMPLATE, atol=1e-3)


def test_a_mirrored_face_is_turned_but_never_reflected():
    matrix = similarity(TEMPLATE * np.array([-1, 1], np.float32), TEMPLATE)
    assert np.linalg.det(matrix[:, :2]) > 0


def test_no_other_similarity_brings_a_profile_nearer():
    """The least squares claim, against small changes of each of the four numbers."""
    profile = moved(TEMPLATE, 12, 0.7, (40, 60)) + np.array([[4, 0], [-9, 1], [6, 0], [2, 2], [-3, 1]], np.float32)
    best = similarity(profile, TEMPLATE)

    def error(cos, sin, x, y):
        turn = np.array([[cos, -sin], [sin, cos]])
        return float(((profile @ turn.T + [x, y] - TEMPLATE) ** 2).sum())

    at = np.array([best[0, 0], best[1, 0], best[0, 2], best[1, 2]])
    for step in np.concatenate([np.eye(4), -np.eye(4)]) * [0.01, 0.01, 0.5, 0.5]:
        assert error(*at) < error(*(at + step))


def test_points_that_coincide_give_a_picture_and_no_error():
    assert align(np.zeros((50, 50, 3), np.uint8), np.full((5, 2), 20, np.float32), SQUARE).shape == (112, 112, 3)


@pytest.mark.parametrize("scale", [0.8, 1.0, 3.0, 6.0])
def test_marked_points_land_on_the_template(scale):
    """Bright spots at the points of a tilted face of any size are bright at the template's places afterwards."""
    face = moved(TEMPLATE, 20, scale, (150, 100))
    frame = np.zeros((900, 900, 3), np.uint8)
    y, x = np.mgrid[:900, :900]
    for point in face:
        frame[np.hypot(x - point[0], y - point[1]) < 4 * scale] = 255
    upright = align(frame, face, SQUARE).astype(float)[..., 0]
    y, x = np.mgrid[:TEMPLATE_PX, :TEMPLATE_PX]
    for point in TEMPLATE:
        near = np.hypot(x - point[0], y - point[1]) < 8
        spot = upright * near
        centre = np.array([(spot * x).sum(), (spot * y).sum()]) / spot.sum()
        np.testing.assert_allclose(centre, point, atol=0.35)


def test_context_shows_more_and_not_larger():
    frame = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    face = moved(TEMPLATE, 0, 1.0, (60, 60))
    plain = align(frame, face, SQUARE)
    wide = align(frame, face, Input(140, 140, fit="align"), context=0.125)
    assert np.abs(wide[14:-14, 14:-14].astype(int) - plain).max() <= 1


def test_an_input_of_another_size_scales_the_template():
    frame = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    face = moved(TEMPLATE, 0, 2.0, (20, 20))
    np.testing.assert_array_equal(align(frame, face, Input(224, 224, fit="align")), frame[20:244, 20:244])
