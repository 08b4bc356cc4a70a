"""What a student gets to see of a face, and how good it promises to be."""

import cv2
import numpy as np
import pytest

from edge.models.manifest import Input
from edge.track.crops import cut, frontality, region, sharpness, side_px

FACE = np.array([40, 30, 60, 70], np.float32)  # 20 × 40
STRETCH, KEEP = Input(16, 16, fit="stretch"), Input(16, 16, fit="letterbox")


@pytest.mark.parametrize(
    ("margin", "source", "expected"),
    [
        (0.0, STRETCH, (40, 30, 60, 70)),
        (0.25, STRETCH, (35, 20, 65, 80)),
        (0.0, KEEP, (30, 30, 70, 70)),
        (0.25, KEEP, (20, 20, 80, 80)),
        (0.0, Input(32, 16, fit="letterbox"), (10, 30, 90, 70)),
    ],
    ids=["bare", "margin on every side", "square keeps the aspect", "square with margin", "wide input"],
)
def test_region_is_the_box_with_margin_in_the_students_aspect(margin, source, expected):
    assert region(FACE, margin, source) == expected


def test_crop_inside_the_frame_is_the_frames_own_pixels():
    frame = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    np.testing.assert_array_equal(cut(frame, np.array([10, 20, 26, 36]), 0.0, KEEP), frame[20:36, 10:26])


def test_crop_over_the_border_repeats_the_edge_and_stays_centred():
    frame = np.zeros((100, 100, 3), np.uint8)
    frame[:, :8] = 200
    crop = cut(frame, np.array([-8, 0, 8, 16]), 0.0, KEEP)
    assert (crop == 200).all()
    corner = cut(frame, np.array([92, 92, 108, 108]), 0.0, KEEP)
    assert (corner == 0).all()


@pytest.mark.parametrize("xyxy", [(-50, -50, -30, -30), (200, 200, 220, 220), (-10, -10, 300, 300), (5, 5, 5, 5)])
def test_any_box_gives_a_crop_of_the_right_size(xyxy):
    frame = np.full((100, 100, 3), 7, np.uint8)
    crop = cut(frame, np.array(xyxy, np.float32), 0.2, KEEP)
    assert crop.shape == (16, 16, 3)
    assert (crop == 7).all()


def test_crop_is_written_into_the_batch():
    frame = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    batch = np.zeros((3, 16, 16, 3), np.uint8)
    cut(frame, np.array([-20, 10, 60, 90]), 0.1, KEEP, out=batch[1])
    assert batch[1].any()
    assert not batch[[0, 2]].any()
    np.testing.assert_array_equal(batch[1], cut(frame, np.array([-20, 10, 60, 90]), 0.1, KEEP))


def test_side_is_that_of_the_square_of_equal_area():
    np.testing.assert_allclose(side_px(np.array([[0, 0, 40, 90], [5, 5, 5, 9]])), [60, 0])


def test_nose_between_the_eyes_is_frontal_however_the_head_is_tilted():
    eyes_nose = np.array([[-10, 0], [10, 0], [0, 12], [-8, 20], [8, 20]], np.float32)
    turned = eyes_nose.copy()
    turned[2, 0] = 8
    profile = eyes_nose.copy()
    profile[2, 0] = 15
    c, s = np.cos(0.5), np.sin(0.5)
    tilted = (eyes_nose @ np.array([[c, s], [-s, c]])).astype(np.float32)
    points = np.stack([eyes_nose, tilted, turned, profile])
    np.testing.assert_allclose(frontality(np.zeros((4, 4)), points), [1, 1, 0.2, 0], atol=1e-5)


def test_without_landmarks_the_aspect_of_the_box_must_do():
    upright, narrow, wide = [0, 0, 78, 100], [0, 0, 39, 100], [0, 0, 156, 100]
    boxes = np.array([upright, narrow, wide], np.float32)
    np.testing.assert_allclose(frontality(boxes, None), [1, 0.5, 0.5], rtol=1e-5)
    unknown = np.full((3, 5, 2), np.nan, np.float32)
    np.testing.assert_allclose(frontality(boxes, unknown), [1, 0.5, 0.5], rtol=1e-5)


def test_blur_lowers_sharpness_and_size_does_not_raise_it():
    small = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    box = np.array([0, 0, 48, 48])
    sharp = sharpness(small, box)
    assert sharpness(cv2.GaussianBlur(small, (0, 0), 2), box) < sharp / 2
    large = cv2.resize(small, (192, 192), interpolation=cv2.INTER_NEAREST)
    assert sharpness(large, box * 4) == pytest.approx(sharp, rel=0.05)


def test_flat_or_absent_face_is_not_sharp_at_all():
    frame = np.full((50, 50, 3), 90, np.uint8)
    assert sharpness(frame, np.array([0, 0, 40, 40])) == 0
    assert sharpness(frame, np.array([60, 60, 90, 90])) == 0
