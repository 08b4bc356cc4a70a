"""Views keep boxes on the faces they belong to."""

import numpy as np
import pytest

from converters.data.augment_detection import PADDING, Pool, Rates, blank, mosaic, recolour, view, visible, warp, zoomed
from converters.data.detection import Sample

RED = (0, 0, 255)


def red_square(source: str = "face_mask", side: int = 40) -> Sample:
    """A grey picture with one red face at (60, 30)."""
    image = np.full((120, 160, 3), 90, np.uint8)
    image[30 : 30 + side, 60 : 60 + side] = RED
    boxes = np.array([[60, 30, 60 + side, 30 + side]], np.float32)
    return Sample(f"{source}/x", image, boxes, source, "")


def covered(image: np.ndarray) -> list[int]:
    """Bounding box of what is red."""
    rows, columns = np.nonzero((image[..., 2] > 180) & (image[..., 0] < 60))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_warp_moves_pixels_and_box_alike(scale: float) -> None:
    sample, canvas = red_square(), blank(450, 320)
    boxes = warp(sample.image, sample.boxes, scale, (12.0, 7.0), canvas)
    assert np.abs(boxes[0] - covered(canvas)).max() <= 2
    assert (canvas[-1, -1] == PADDING).all()


def test_mosaic_keeps_boxes_on_faces_in_all_quarters() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        image, boxes = mosaic([red_square()] * 4, 256, rng)
        for x0, y0, x1, y1 in boxes.round().astype(int):
            inner = image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
            assert (inner[..., 2] > 180).mean() > 0.9


def test_zoom_makes_faces_that_fill_the_frame() -> None:
    rng = np.random.default_rng(0)
    sides = [np.ptp(boxes[0, [0, 2]]) / 256 for _ in range(60) if len(boxes := zoomed(red_square(), 256, rng)[1])]
    assert max(sides) > 0.85
    assert min(sides) < 0.45


def test_faces_mostly_cut_away_are_dropped() -> None:
    boxes = np.array([[-30, 0, 10, 40], [-10, 0, 30, 40], [5, 5, 7, 7]], np.float32)
    assert visible(boxes, 100, 100).tolist() == [[0, 0, 30, 40]]


def test_kinds_come_at_their_rates_however_many_pictures_they_have() -> None:
    samples = [red_square("face_mask")] * 90 + [red_square("negative")] * 10
    pool = Pool(samples, Rates(sources=(("face_mask", 0.5), ("negative", 0.5), ("absent", 0.3))))
    rng = np.random.default_rng(0)
    share = np.mean([pool.draw(rng).source == "negative" for _ in range(1000)])
    assert share == pytest.approx(0.5, abs=0.05)


def test_views_are_the_same_for_the_same_seed() -> None:
    pool = Pool([red_square()], Rates())
    a, b = (view(pool, 128, Rates(), np.random.default_rng([7, 1])) for _ in range(2))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_recolour_keeps_shape_and_sometimes_takes_the_colour_away() -> None:
    rng = np.random.default_rng(0)
    image = recolour(red_square().image, Rates(grey=1.0, blur=0.0), rng)
    assert image.shape == (120, 160, 3)
    assert image.dtype == np.uint8
