"""Output tensors written by hand, and the boxes they stand for."""

import numpy as np
import pytest

from edge.models.decoders import DECODERS, points, probabilities, unit_vectors
from edge.models.manifest import Input

SQUARE = Input(32, 32)


def test_yolov10_keeps_what_passes_the_threshold_best_first():
    boxes = np.array([[[0, 0, 8, 8], [10, 10, 20, 20], [20, 0, 30, 9]]], np.float32)
    scores = np.array([[[0.5], [0.9], [0.49]]], np.float32)
    found = DECODERS["yolov10"]([boxes, scores], SQUARE, 0.5)
    np.testing.assert_array_equal(found.xyxy, boxes[0, [1, 0]])
    np.testing.assert_array_equal(found.score, np.array([0.9, 0.5], np.float32))
    assert found.landmarks is None


def test_yolov10_suppresses_near_identical_boxes_and_leaves_neighbours():
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 9.5], [4, 0, 14, 10]]], np.float32)
    scores = np.array([[[0.8], [0.9], [0.7]]], np.float32)
    np.testing.assert_array_equal(DECODERS["yolov10"]([boxes, scores], SQUARE, 0.1).xyxy, boxes[0, [1, 2]])


def test_yolov10_takes_at_most_300_boxes():
    corner = np.arange(400, dtype=np.float32)[:, None] * 10
    boxes = (corner + np.array([0, 0, 9, 9], np.float32))[None]
    scores = np.linspace(0.5, 0.9, 400, dtype=np.float32).reshape(1, 400, 1)
    found = DECODERS["yolov10"]([boxes, scores], SQUARE, 0.1)
    assert found.xyxy.shape == (300, 4)
    assert found.score[0] == np.float32(0.9)


def test_yolov10_finds_every_face_of_a_crowd_although_a_dozen_boxes_answer_for_each():
    corner = np.arange(100, dtype=np.float32)[:, None] * 20
    faces = corner + np.array([0, 0, 15, 15], np.float32)
    boxes = np.concatenate([faces + np.float32(0.1 * k) for k in range(12)])[None]
    scores = np.linspace(0.9, 0.5, 1200, dtype=np.float32).reshape(1, 1200, 1)
    found = DECODERS["yolov10"]([boxes, scores], SQUARE, 0.1)
    np.testing.assert_array_equal(found.xyxy, faces)


@pytest.mark.parametrize("name", DECODERS)
def test_no_face_is_an_empty_array(name):
    outputs = {
        "yolov10": [np.zeros((1, 21, 4)), np.zeros((1, 21, 1))],
        "yunet": [np.zeros((1, (32 // s) ** 2, c)) for c in (1, 1, 4, 10) for s in (8, 16, 32)],
        "ssd": [np.zeros((1, 21, 2)), np.zeros((1, 21, 4))],
        "single_box": [np.zeros((1, 1)), np.zeros((1, 4))],
    }[name]
    found = DECODERS[name]([a.astype(np.float32) for a in outputs], SQUARE, 0.5)
    assert (found.xyxy.shape, found.score.shape) == ((0, 4), (0,))
    assert found.xyxy.dtype == np.float32
    assert found.landmarks is None or found.landmarks.shape == (0, 5, 2)


def test_yunet_reads_cell_offsets_in_strides_and_exponential_sizes():
    outputs = [np.zeros((1, (32 // s) ** 2, c), np.float32) for c in (1, 1, 4, 10) for s in (8, 16, 32)]
    cell = 1 * 4 + 2  # stride 8: row 1, column 2
    outputs[0][0, cell], outputs[3][0, cell] = 0.81, 1.0
    outputs[6][0, cell] = [0.5, 0.25, np.log(2), np.log(1)]
    outputs[9][0, cell] = np.arange(10) / 10
    found = DECODERS["yunet"](outputs, SQUARE, 0.5)
    np.testing.assert_allclose(found.score, [0.9], rtol=1e-6)
    np.testing.assert_allclose(found.xyxy, [[20 - 8, 10 - 4, 20 + 8, 10 + 4]], rtol=1e-6)
    np.testing.assert_allclose(found.landmarks[0, 1], [(2 + 0.2) * 8, (1 + 0.3) * 8], rtol=1e-6)


def test_ssd_scales_corners_to_the_input_and_suppresses_overlap():
    scores = np.array([[[0.1, 0.9], [0.2, 0.8], [0.95, 0.05]]], np.float32)
    boxes = np.array([[[0.25, 0.5, 0.5, 1.0], [0.26, 0.5, 0.5, 1.0], [0, 0, 1, 1]]], np.float32)
    found = DECODERS["ssd"]([scores, boxes], Input(320, 240), 0.7)
    np.testing.assert_allclose(found.xyxy, [[80, 120, 160, 240]])


def test_single_box_is_one_face_or_none():
    outputs = [np.array([[0.8]], np.float32), np.array([[0.1, 0.2, 0.5, 0.6]], np.float32)]
    found = DECODERS["single_box"](outputs, Input(120, 120), 0.5)
    np.testing.assert_allclose(found.xyxy, [[12, 24, 60, 72]], rtol=1e-6)
    assert len(DECODERS["single_box"](outputs, Input(120, 120), 0.9).score) == 0


def test_softmax_survives_large_logits_and_sums_to_one():
    chances = probabilities([np.array([[1000.0, 999.0], [-5.0, 5.0]], np.float32)], "softmax")
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(chances[0, 0], 1 / (1 + np.exp(-1)), rtol=1e-5)


def test_single_sigmoid_is_the_chance_of_the_second_label():
    chances = probabilities([np.array([[2.0]], np.float32)], "sigmoid")
    np.testing.assert_allclose(chances, [[0.1192029, 0.8807971]], rtol=1e-5)


def test_points_are_in_input_pixels():
    np.testing.assert_allclose(points([np.array([[0.5, 0.25]], np.float32)], Input(100, 80)), [[[50, 20]]])


def test_embeddings_have_length_one_even_when_zero_comes_in():
    vectors = unit_vectors([np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)])
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0]], rtol=1e-6)
