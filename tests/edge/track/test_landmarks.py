"""The five points on their way from a crop back to the frame."""

from pathlib import Path

import numpy as np
import pytest

from edge.errors import ModelError
from edge.models.bundle import Bundle
from edge.models.manifest import Input, Manifest
from edge.models.runtime import Loaded
from edge.track.landmarks import Landmarks


class FindsBrightest:
    """Says that all five points are where the crop is brightest."""

    device, artefact = "CPU", "fake"

    def infer(self, images):
        found = []
        for image in images:
            y, x = np.unravel_index(image[..., 0].argmax(), image.shape[:2])
            found.append([(x + 0.5) / image.shape[1], (y + 0.5) / image.shape[0]] * 5)
        return [np.array(found, np.float32)]


def loaded(task="landmarks", margin=0.25):
    manifest = Manifest(
        name="fake", version="1", task=task, decoder="points", input=Input(64, 64, batch=0, fit="stretch"),
        outputs=("points",), files={}, licence="Apache-2.0", source="test", crop_margin=margin,
    )  # fmt: skip
    return Loaded(FindsBrightest(), Bundle(Path("fake"), manifest), "ok", ())


@pytest.mark.parametrize(
    ("x", "y"), [pytest.param(130, 90, id="inside"), pytest.param(96, 76, id="in the margin, outside the box")]
)
def test_points_come_back_in_pixels_of_the_frame(x, y):
    frame = np.zeros((200, 300, 3), np.uint8)
    frame[y - 1 : y + 2, x - 1 : x + 2] = 255
    points = Landmarks(loaded())(frame, np.array([[100, 80, 180, 160]]))
    assert points.shape == (1, 5, 2)
    np.testing.assert_allclose(points[0], [[x + 0.5, y + 0.5]] * 5, atol=2)  # a pixel of the crop is 1.9 of the frame


def test_every_face_gets_its_own_points():
    frame = np.zeros((200, 300, 3), np.uint8)
    frame[50, 40] = frame[150, 240] = 255
    points = Landmarks(loaded(margin=0.0))(frame, np.array([[20, 30, 60, 70], [220, 130, 260, 170]]))
    np.testing.assert_allclose(points[:, 0], [[40.5, 50.5], [240.5, 150.5]], atol=1)


def test_no_face_asks_nothing():
    assert Landmarks(loaded())(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 4))).shape == (0, 5, 2)


def test_a_bundle_for_another_task_is_refused():
    with pytest.raises(ModelError, match="a detector, expected a landmarks bundle"):
        Landmarks(loaded(task="detector"))
