"""The letterbox and its way back, as a table of frame sizes."""

import cv2
import numpy as np
import pytest

from edge.track.letterbox import PADDING, Letterbox, place

FRAMES = {
    "1080p": (1920, 1080), "720p": (1280, 720), "portrait phone": (720, 1280), "square": (640, 640),
    "smaller than the input": (160, 90), "odd": (641, 359), "very wide": (2000, 10), "one pixel": (1, 1),
}  # fmt: skip


@pytest.mark.parametrize("frame_wh", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_points_survive_the_way_there_and_back(frame_wh, fit):
    placement = place(frame_wh, (320, 256), fit)
    points = np.array([[0, 0], frame_wh, [frame_wh[0] / 3, frame_wh[1] / 7]], np.float32)
    np.testing.assert_allclose(placement.to_frame(placement.to_input(points)), points, atol=1e-3)
    inside = placement.to_input(points)
    assert (inside >= -1e-3).all()
    assert (inside <= np.array([320, 256]) + 1e-3).all()


@pytest.mark.parametrize(
    ("frame_wh", "fit", "expected"),
    [
        ((1920, 1080), "letterbox", (0, 140, 640, 360)),
        ((1080, 1920), "letterbox", (140, 0, 360, 640)),
        ((640, 640), "letterbox", (0, 0, 640, 640)),
        ((320, 320), "letterbox", (0, 0, 640, 640)),
        ((1920, 1080), "stretch", (0, 0, 640, 640)),
    ],
)
def test_frame_is_whole_and_centred(frame_wh, fit, expected):
    p = place(frame_wh, (640, 640), fit)
    assert (p.left, p.top, p.width, p.height) == expected


def test_picture_lies_where_the_placement_says_and_grey_around_it():
    letterbox = Letterbox(64, 64)
    pixels = letterbox(np.full((90, 160, 3), (10, 20, 30), np.uint8))
    p = letterbox.placement
    assert (p.top, p.height) == (14, 36)
    assert (pixels[0, p.top : p.top + p.height] == (10, 20, 30)).all()
    assert (pixels[0, : p.top] == PADDING).all()
    assert (pixels[0, p.top + p.height :] == PADDING).all()


def test_buffer_is_reused_and_a_new_resolution_leaves_nothing_of_the_old():
    letterbox = Letterbox(64, 64)
    first = letterbox(np.full((90, 160, 3), 255, np.uint8))
    second = letterbox(np.full((160, 90, 3), 0, np.uint8))
    assert np.shares_memory(first, second)
    assert (second[0, :, 0] == PADDING).all()
    assert not (second == 255).any()
    again = letterbox(np.full((90, 160, 3), 255, np.uint8))
    assert (again[0, 0] == PADDING).all()
    assert (again[0, 32] == 255).all()


@pytest.mark.parametrize(
    ("frame_wh", "size"),
    [((1920, 1080), 640), ((960, 540), 320), ((320, 320), 64), ((640, 360), 640), ((200, 600), 200)],
)
def test_pixels_picked_straight_are_the_bilinear_ones(frame_wh, size):
    """A side that shrinks by 1, 3, 5 … has a middle pixel, which is all that bilinear interpolation looks at."""
    frame = np.random.default_rng(0).integers(0, 256, (*frame_wh[::-1], 3), np.uint8)
    letterbox = Letterbox(size, size)
    drawn = letterbox(frame)[0]
    p = letterbox.placement
    expected = cv2.resize(frame, (p.width, p.height), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(drawn[p.top : p.top + p.height, p.left : p.left + p.width], expected)
