"""Dual assignment on grids small enough to check by hand."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")

from converters.nets.yolov10 import anchors  # noqa: E402
from converters.training.detector_loss import assign, candidates, ciou, dfl_loss  # noqa: E402

pytestmark = pytest.mark.convert

POINTS, STRIDES = anchors(64, 64)
CENTRES = POINTS * STRIDES  # 64 cells of 8 px, 16 of 16 px, 4 of 32 px


def around(faces: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([faces]), torch.tensor([len(faces)])


def test_ciou_is_one_for_equal_boxes_and_negative_far_apart() -> None:
    box = torch.tensor([[0.0, 0, 10, 20]])
    assert float(ciou(box, box)) == pytest.approx(1, abs=1e-5)
    assert float(ciou(box, box + 100)) < -0.5


def test_only_anchors_inside_a_face_may_be_assigned() -> None:
    faces, counts = around([[0, 0, 16, 16]])
    pairs = candidates(faces, counts, CENTRES)
    inside = CENTRES[pairs.anchor]
    assert len(pairs.anchor) == 4 + 1  # four fine cells, one middle cell; the coarse centre (16, 16) is on the border
    assert bool(((inside > 0) & (inside < 16)).all())


def test_face_smaller_than_a_cell_still_has_an_anchor() -> None:
    faces, counts = around([[9.5, 9.5, 12.5, 12.5]])
    assert len(candidates(faces, counts, CENTRES).anchor) >= 1


def test_padding_rows_get_no_anchor() -> None:
    faces = torch.tensor([[[0.0, 0, 32, 32], [0, 0, 0, 0]]])
    pairs = candidates(faces, torch.tensor([1]), CENTRES)
    assert int(pairs.face.max()) == 0


def test_one_to_one_gives_a_face_its_best_anchor_and_many_gives_ten() -> None:
    faces, counts = around([[0, 0, 40, 40]])
    pairs = candidates(faces, counts, CENTRES)
    scores = torch.full((1, len(CENTRES)), 0.5)
    boxes = torch.tensor([0.0, 0, 30, 30]).repeat(1, len(CENTRES), 1)
    boxes[0, 9] = torch.tensor([0.0, 0, 39, 39])
    one = assign(pairs, scores, boxes, 1)
    many = assign(pairs, scores, boxes, 10)
    assert one.anchor.tolist() == [9]
    assert len(many.anchor) == 10
    assert 9 in many.anchor.tolist()
    best = many.target[many.anchor == 9]
    assert float(best) == pytest.approx(float(ciou(boxes[0, 9:10], faces[0])), abs=1e-4)
    assert float(best) == float(many.target.max())


def test_anchor_wanted_by_two_faces_goes_to_the_one_it_fits() -> None:
    faces, counts = around([[0, 0, 32, 32], [0, 0, 62, 62]])
    pairs = candidates(faces, counts, CENTRES)
    boxes = torch.tensor([0.0, 0, 60, 60]).repeat(1, len(CENTRES), 1)
    found = assign(pairs, torch.full((1, len(CENTRES)), 0.5), boxes, 10)
    assert len(set(found.anchor.tolist())) == len(found.anchor)
    assert set(found.boxes[:, 2].tolist()) <= {32.0, 62.0}
    assert 62.0 in found.boxes[:, 2].tolist()


def test_empty_pictures_assign_nothing() -> None:
    pairs = candidates(torch.zeros(2, 1, 4), torch.tensor([0, 0]), CENTRES)
    found = assign(pairs, torch.full((2, len(CENTRES)), 0.5), torch.zeros(2, len(CENTRES), 4), 10)
    assert len(found.anchor) == 0


def test_distribution_loss_is_least_when_the_mass_lies_around_the_distance() -> None:
    logits = torch.full((1, 64), -10.0)
    logits.view(1, 4, 16)[:, :, 3] = logits.view(1, 4, 16)[:, :, 4] = 10.0
    near, far = torch.full((1, 4), 3.5), torch.full((1, 4), 9.5)
    assert float(dfl_loss(logits, near)) == pytest.approx(0.693, abs=1e-2)
    assert float(dfl_loss(logits, far)) > 10
