"""Box arithmetic, as tables of named cases."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.geometry import (
    area,
    clip,
    cxcywh_to_xyxy,
    expand,
    iou,
    nms,
    overlapping_pairs,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from tests.bench.scenes import crowd

Box = tuple[float, float, float, float]
NO_BOXES = np.empty((0, 4))


def boxes(*rows: Box) -> NDArray[np.float64]:
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


IOU = {
    "identical": ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
    "disjoint": ((0, 0, 10, 10), (20, 20, 30, 30), 0.0),
    "touching edge": ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
    "touching corner": ((0, 0, 10, 10), (10, 10, 20, 20), 0.0),
    "overlap in x only": ((0, 0, 10, 10), (5, 20, 15, 30), 0.0),
    "contained": ((0, 0, 10, 10), (0, 0, 5, 10), 0.5),
    "a quarter each": ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175),
    "negative coordinates": ((-10, -10, 0, 0), (-5, -10, 5, 0), 50 / 150),
    "no area": ((5, 5, 5, 5), (0, 0, 10, 10), 0.0),
    "both without area": ((5, 5, 5, 5), (5, 5, 5, 5), 0.0),
    "inside out": ((10, 10, 0, 0), (0, 0, 10, 10), 0.0),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", IOU)
def test_iou(case: str, dtype: type[np.float32] | type[np.float64]) -> None:
    a, b, expected = IOU[case]
    result = iou(boxes(a).astype(dtype), boxes(b).astype(dtype))
    assert result.dtype == dtype
    np.testing.assert_allclose(result, [[expected]], rtol=1e-6)


def test_iou_is_a_table_of_every_a_by_every_b() -> None:
    result = iou(boxes((0, 0, 10, 10), (20, 0, 30, 10)), boxes((0, 0, 10, 10), (20, 0, 30, 10), (25, 0, 35, 10)))
    np.testing.assert_allclose(result, [[1, 0, 0], [0, 1, 1 / 3]])


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 2), (2, 0)])
def test_iou_of_no_boxes_is_an_empty_table(n: int, m: int) -> None:
    assert iou(np.ones((n, 4)), np.ones((m, 4))).shape == (n, m)


@pytest.mark.parametrize("objects", [0, 1, 30])
def test_overlapping_pairs_are_the_positive_cells_of_iou(objects: int) -> None:
    a, b = crowd(np.random.default_rng(1), objects, 2, frame_wh=(300, 300), miss=0)
    dense = iou(a, b)
    i, j, value = overlapping_pairs(a, b)
    np.testing.assert_array_equal((i, j), np.nonzero(dense))
    np.testing.assert_allclose(value, dense[i, j], rtol=1e-12)


def test_touching_boxes_are_no_overlapping_pair() -> None:
    i, j, value = overlapping_pairs(boxes((0, 0, 10, 10)), boxes((10, 0, 20, 10), (0, 10, 10, 20)))
    assert i.size == j.size == value.size == 0


FORMATS = {  # xyxy, xywh, cxcywh
    "square": ((0, 0, 10, 10), (0, 0, 10, 10), (5, 5, 10, 10)),
    "offset": ((10, 20, 14, 28), (10, 20, 4, 8), (12, 24, 4, 8)),
    "partly outside": ((-4, -2, 4, 2), (-4, -2, 8, 4), (0, 0, 8, 4)),
    "no area": ((3, 3, 3, 3), (3, 3, 0, 0), (3, 3, 0, 0)),
}


@pytest.mark.parametrize("case", FORMATS)
def test_formats_name_the_same_box(case: str) -> None:
    xyxy, xywh, cxcywh = (boxes(row) for row in FORMATS[case])
    np.testing.assert_array_equal(xyxy_to_xywh(xyxy), xywh)
    np.testing.assert_array_equal(xywh_to_xyxy(xywh), xyxy)
    np.testing.assert_array_equal(xyxy_to_cxcywh(xyxy), cxcywh)
    np.testing.assert_array_equal(cxcywh_to_xyxy(cxcywh), xyxy)


@pytest.mark.parametrize("convert", [xyxy_to_xywh, xywh_to_xyxy, xyxy_to_cxcywh, cxcywh_to_xyxy])
def test_formats_keep_float32_and_no_boxes(convert: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
    result = convert(np.empty((0, 4), dtype=np.float32))
    assert result.shape == (0, 4)
    assert result.dtype == np.float32


AREA = {
    "square": ((0, 0, 10, 10), 100),
    "offset": ((5, 5, 7, 8), 6),
    "line": ((0, 0, 10, 0), 0),
    "inside out": ((10, 10, 0, 0), 0),
    "inside out in x only": ((10, 0, 0, 10), 0),
}


@pytest.mark.parametrize("case", AREA)
def test_area(case: str) -> None:
    box, expected = AREA[case]
    np.testing.assert_array_equal(area(boxes(box)), [expected])


CLIP = {  # in a frame of 100 × 50
    "inside": ((10, 10, 20, 20), (10, 10, 20, 20)),
    "over the left edge": ((-5, 10, 20, 20), (0, 10, 20, 20)),
    "over every edge": ((-5, -5, 200, 200), (0, 0, 100, 50)),
    "wholly right of it": ((150, 10, 160, 20), (100, 10, 100, 20)),
    "wholly above it": ((10, -20, 20, -10), (10, 0, 20, 0)),
}


@pytest.mark.parametrize("case", CLIP)
def test_clip(case: str) -> None:
    box, expected = CLIP[case]
    np.testing.assert_array_equal(clip(boxes(box), (100, 50)), [expected])


EXPAND = {
    "nothing": ((10, 10, 20, 30), 0.0, (10, 10, 20, 30)),
    "a quarter": ((10, 10, 20, 30), 0.25, (7.5, 5, 22.5, 35)),
    "out of the frame": ((0, 0, 10, 10), 0.5, (-5, -5, 15, 15)),
    "shrink": ((0, 0, 10, 10), -0.25, (2.5, 2.5, 7.5, 7.5)),
}


@pytest.mark.parametrize("case", EXPAND)
def test_expand(case: str) -> None:
    box, margin, expected = EXPAND[case]
    np.testing.assert_allclose(expand(boxes(box), margin), [expected])


@pytest.mark.parametrize("result", [area(NO_BOXES)[:, None].repeat(4, 1), clip(NO_BOXES, (9, 9)), expand(NO_BOXES, 1)])
def test_no_boxes_stay_no_boxes(result: NDArray[np.float64]) -> None:
    assert result.shape == (0, 4)


A, A_NEAR, A_HALF, FAR = (0, 0, 10, 10), (0, 0, 10, 9), (0, 0, 10, 5), (50, 50, 60, 60)
NMS = {  # boxes, scores, threshold, kept
    "empty": ((), (), 0.5, []),
    "one": ((A,), (0.5,), 0.5, [0]),
    "disjoint, best first": ((A, FAR), (0.2, 0.9), 0.5, [1, 0]),
    "duplicate": ((A, A), (0.2, 0.9), 0.5, [1]),
    "duplicate of equal score": ((A, A), (0.9, 0.9), 0.5, [0]),
    "near-identical only": ((A, A_NEAR, A_HALF), (0.9, 0.8, 0.7), 0.85, [0, 2]),
    "at the threshold stays": ((A, A_HALF), (0.9, 0.8), 0.5, [0, 1]),
    "the dropped one drops nobody": ((A, A_NEAR, A_HALF), (0.9, 0.8, 0.7), 0.52, [0, 2]),
    "crossing lines have no area to share": (((0, 5, 9, 5), (5, 0, 5, 9)), (0.2, 0.9), 0.5, [1, 0]),
    "three of a kind and one": ((A, A_NEAR, FAR, A), (0.5, 0.6, 0.1, 0.7), 0.5, [3, 2]),
}


@pytest.mark.parametrize("case", NMS)
def test_nms(case: str) -> None:
    rows, score, threshold, kept = NMS[case]
    assert nms(boxes(*rows), np.array(score), threshold).tolist() == kept
