"""The student network: shapes, budget, cutting heads apart, folding batch norm."""

import pytest

torch = pytest.importorskip("torch")

from converters.nets.student import Student, parameters  # noqa: E402 needs torch

pytestmark = pytest.mark.convert


def seasoned(classes: int, widths: tuple[int, ...] = (8, 16)) -> Student:
    """Return a student whose batch norms have seen data, so that folding them changes something."""
    torch.manual_seed(1)
    student = Student(classes, widths)
    for _ in range(3):
        student.train()(torch.rand(8, 3, 32, 32) * 2 - 0.5)
    return student.eval()


def test_logits_have_one_row_per_face_whatever_the_input_size() -> None:
    student = Student(6).eval()
    assert student(torch.zeros(5, 3, 64, 64)).shape == (5, 6)
    assert student(torch.zeros(1, 3, 96, 80)).shape == (1, 6)


def test_shipped_widths_stay_within_the_weights_of_300_kilobytes() -> None:
    """One byte a weight plus scales and graph; the ONNX file adds about 65 kB."""
    assert parameters(Student(6)) < 230_000


def test_shortcut_is_a_convolution_only_where_the_width_changes() -> None:
    blocks = Student(2, (8, 8, 16)).blocks
    kinds = [type(block.shortcut).__name__ for block in blocks]
    assert kinds == ["Sequential", "Identity", "Sequential"]


def test_every_block_but_the_last_halves_the_picture() -> None:
    blocks = Student(2, (8, 8, 16)).blocks
    assert blocks(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 16, 16)


def test_a_head_cut_out_gives_the_same_logits_as_its_columns() -> None:
    student = seasoned(5)
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(student.head(1, 3).eval()(x), student(x)[:, 1:4])


def test_folding_batch_norm_leaves_the_logits_and_no_norm() -> None:
    student = seasoned(4)
    fused = student.fused()
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(fused(x), student(x), atol=1e-5, rtol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in student.modules())
