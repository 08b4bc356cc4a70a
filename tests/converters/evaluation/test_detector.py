"""Average precision and the threshold, against cases worked out by hand."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra convert")

from converters.errors import ConvertError
from converters.evaluation.detector import (
    average_precision,
    precision_recall,
    report,
    samples_of,
    tune_threshold,
)
from edge.models.decoders import Detections

pytestmark = pytest.mark.convert

FACE = [0.0, 0, 10, 10]
AWAY = [50.0, 50, 60, 60]


def found(*boxes: tuple[list[float], float]) -> Detections:
    xyxy = np.array([box for box, _ in boxes], np.float32).reshape(-1, 4)
    return Detections(xyxy, np.array([score for _, score in boxes], np.float32))


def faces(*boxes: list[float]) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 4)


def test_perfect_detections_have_ap_one() -> None:
    assert average_precision([(found((FACE, 0.9), (AWAY, 0.8)), faces(FACE, AWAY))], 0.5) == pytest.approx(1)


def test_a_better_scored_false_box_halves_the_precision() -> None:
    assert average_precision([(found((AWAY, 0.9), (FACE, 0.8)), faces(FACE))], 0.5) == pytest.approx(0.5)


def test_second_box_on_the_same_face_is_false() -> None:
    pictures = [(found((FACE, 0.9), (FACE, 0.8), (AWAY, 0.7)), faces(FACE, AWAY))]
    assert average_precision(pictures, 0.5) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_missed_face_costs_recall() -> None:
    assert average_precision([(found((FACE, 0.9)), faces(FACE, AWAY))], 0.5) == pytest.approx(0.5)


def test_looser_box_counts_only_at_the_lower_iou() -> None:
    pictures = [(found(([0, 0, 10, 7], 0.9)), faces(FACE))]
    assert average_precision(pictures, 0.65) == pytest.approx(1)
    assert average_precision(pictures, 0.75) == 0


def test_faces_of_other_sizes_neither_help_nor_harm() -> None:
    large = [100.0, 100, 200, 200]
    pictures = [(found((large, 0.9), (FACE, 0.8)), faces(FACE, large))]
    assert average_precision(pictures, 0.5, (0, 32)) == pytest.approx(1)
    assert average_precision(pictures, 0.5, (96, 1e9)) == pytest.approx(1)
    assert np.isnan(average_precision(pictures, 0.5, (32, 96)))


def test_report_counts_recall_precision_and_false_boxes_at_the_threshold() -> None:
    pictures = [(found((FACE, 0.9), (AWAY, 0.6)), faces(FACE)), (found(), faces(FACE))]
    result = report(pictures, 0.5)
    assert (result.recall, result.precision, result.false_boxes) == (0.5, 0.5, 1)
    assert report(pictures, 0.7).false_boxes == 0


def test_threshold_rises_until_negatives_are_quiet() -> None:
    pictures = [(found((FACE, 0.8)), faces(FACE)) for _ in range(4)]
    quiet = [(found(), faces()) for _ in range(50)]
    loud = [(found((AWAY, 0.6)), faces()) for _ in range(50)]
    assert tune_threshold(pictures, quiet) < 0.6
    assert 0.6 < tune_threshold(pictures, loud) <= 0.8


def test_threshold_rises_until_nearly_everything_found_is_a_face() -> None:
    sure = [(found((FACE, 0.9)), faces(FACE)) for _ in range(100)]
    wrong = [(found((AWAY, 0.4)), faces()) for _ in range(10)]
    assert 0.4 < tune_threshold([*sure, *wrong], []) <= 0.42
    assert tune_threshold([*sure, *wrong[:2]], []) < 0.1, "two of a hundred are few enough"


def test_precision_is_not_bought_with_many_faces() -> None:
    sure = [(found((FACE, 0.9)), faces(FACE)) for _ in range(80)]
    unsure = [(found((FACE, 0.5)), faces(FACE)) for _ in range(20)]
    wrong = [(found((AWAY, 0.6)), faces()) for _ in range(10)]
    assert tune_threshold([*sure, *unsure, *wrong], []) <= 0.5


def test_folder_without_a_known_set_is_refused(tmp_path: object) -> None:
    with pytest.raises(ConvertError, match="expected images/ and labels/"):
        samples_of(tmp_path, ["face_mask/test"])  # type: ignore[arg-type]


def test_precision_and_recall_follow_the_scores() -> None:
    recall, precision = precision_recall(
        [(found((FACE, 0.9), ([30, 30, 40, 40], 0.8), (AWAY, 0.7)), faces(FACE, AWAY))], 0.5
    )
    assert recall.tolist() == [0.5, 0.5, 1.0]
    assert precision.tolist() == pytest.approx([1, 0.5, 2 / 3])


def test_a_set_without_faces_has_no_curve() -> None:
    assert [len(values) for values in precision_recall([(found((FACE, 0.9)), faces())], 0.5)] == [0, 0]
