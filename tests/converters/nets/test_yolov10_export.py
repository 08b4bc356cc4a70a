"""What a bundle carries: boxes in pixels and scores, for inputs whose cells come out even."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")

from converters.nets.yolov10 import YOLOv10, anchors  # noqa: E402
from converters.nets.yolov10_export import Exported  # noqa: E402

pytestmark = pytest.mark.convert


def test_boxes_are_pixels_around_their_cell_and_scores_lie_between_0_and_1() -> None:
    net = YOLOv10().eval()
    with torch.inference_mode():
        boxes, scores = Exported(net, 64, 96)(torch.rand(2, 3, 96, 64))
    points, strides = anchors(64, 96)
    assert boxes.shape == (2, 126, 4)
    assert scores.shape == (2, 126, 1)
    centres = points * strides
    assert bool((boxes[..., :2] <= centres).all())
    assert bool((boxes[..., 2:] >= centres).all())
    assert 0 <= float(scores.min()) <= float(scores.max()) <= 1


def test_input_that_is_no_multiple_of_32_is_refused() -> None:
    with pytest.raises(ValueError, match="300×320, both sides must be divisible by 32"):
        Exported(YOLOv10(), 300, 320)


def test_the_head_that_answers_is_the_one_that_is_exported() -> None:
    torch.manual_seed(0)
    one, many = YOLOv10().eval(), YOLOv10(answers="many").eval()
    with torch.no_grad():
        for branch in one.head.one2one_cv3:
            branch[2].bias.fill_(0.5)
        many.load_state_dict(one.state_dict())
        picture = torch.rand(1, 3, 64, 64)
        (_, many_logits), (_, one_logits) = one(picture)
        by_one, by_many = Exported(one, 64, 64)(picture)[1], Exported(many, 64, 64)(picture)[1]
    torch.testing.assert_close(by_one[..., 0], one_logits[:, 0].sigmoid())
    torch.testing.assert_close(by_many[..., 0], many_logits[:, 0].sigmoid())
    assert float((by_one - by_many).abs().max()) > 0.3
