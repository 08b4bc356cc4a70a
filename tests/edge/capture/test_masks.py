"""What is under a mask is black before anybody sees it; the rest is untouched."""

import time

import numpy as np
import pytest

from edge.capture.masks import Masks
from edge.errors import ConfigError

LEFT_HALF = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)]
TRIANGLE = [(0.5, 0.2), (0.9, 0.8), (0.1, 0.8)]


def white(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def test_inside_is_black_and_outside_untouched() -> None:
    image = white(200, 100)
    Masks([LEFT_HALF]).paint(image)
    assert not image[:, :100].any()
    assert (image[:, 102:] == 255).all()


@pytest.mark.parametrize(("width", "height"), [(320, 240), (1920, 1080), (64, 48)])
def test_a_mask_covers_the_same_part_at_every_resolution(width: int, height: int) -> None:
    image = white(width, height)
    Masks([TRIANGLE]).paint(image)
    covered = (image == 0).all(axis=2).mean()
    assert covered == pytest.approx(0.24, abs=0.03)
    assert not image[int(0.6 * height), width // 2].any()


def test_resolution_may_change_from_frame_to_frame() -> None:
    masks = Masks([LEFT_HALF])
    for width in range(20, 60, 2):
        image = white(width, 10)
        masks.paint(image)
        assert not image[:, : width // 2].any()
        assert image[:, width // 2 + 1 :].all()


def test_the_whole_frame_can_be_masked() -> None:
    image = white(64, 48)
    Masks([[(0, 0), (1, 0), (1, 1), (0, 1)]]).paint(image)
    assert not image.any()


def test_without_masks_nothing_is_painted() -> None:
    image = white(8, 8)
    Masks([]).paint(image)
    assert (image == 255).all()


@pytest.mark.parametrize(
    ("polygon", "said"),
    [
        ([(0.1, 0.1), (0.5, 0.5)], "polygon of 2 points"),
        ([(0.1, 0.1), (0.5, 0.5), (0.9, 0.9)], "without area"),
        ([(0.1, 0.1), (0.1, 0.1), (0.1, 0.1)], "without area"),
        ([(0.0, 0.0), (1.2, 0.0), (1.0, 1.0)], r"leaves the frame at \(1.2, 0\)"),
        ([(0.0, -0.1), (1.0, 0.0), (1.0, 1.0)], "leaves the frame"),
        ([(0.0, float("nan")), (1.0, 0.0), (1.0, 1.0)], "leaves the frame"),
    ],
    ids=["two points", "one line", "one point", "beyond the right edge", "above the top", "not a number"],
)
def test_a_polygon_that_masks_nothing_is_refused(polygon: list[tuple[float, float]], said: str) -> None:
    with pytest.raises(ConfigError, match=f"yard: mask 1: .*{said}"):
        Masks([LEFT_HALF, polygon], camera="yard")


def test_painting_a_1080p_frame_costs_next_to_nothing() -> None:
    """0.08 ms where it was measured; the bound leaves room for a busy machine."""
    masks, image = Masks([TRIANGLE, LEFT_HALF[:3]]), white(1920, 1080)
    masks.paint(image)
    best_s = 1.0
    for _ in range(50):
        started_s = time.perf_counter()
        masks.paint(image)
        best_s = min(best_s, time.perf_counter() - started_s)
    assert best_s < 0.002
