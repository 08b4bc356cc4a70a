"""Distillation: the loss, teachers of any kind, a student that learns from answers alone, bad input."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")
onnx = pytest.importorskip("onnx", reason="needs the extra convert")
pytest.importorskip("onnxruntime", reason="needs the extra edge")

from converters.checkpoints.network import Told, crop_network  # noqa: E402
from converters.cli import main  # noqa: E402
from converters.evaluation.classifier import load_student  # noqa: E402
from converters.training.distill import Teacher, distillation_loss  # noqa: E402
from edge.models.bundle import load_bundle  # noqa: E402
from edge.models.runtime import load_model  # noqa: E402
from tests.converters.checkpoints.keras_maker import Entry, dense, input_layer, plain, write_hdf5  # noqa: E402

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore")]

COLOURS = ("red", "green", "blue")


def colour_teacher(path: Path, activation: str = "softmax", columns: int = 3) -> Path:
    """Write a Keras classifier that answers with the colour of a picture: its mean over red, green, blue, times 20."""
    kernel = 20 * np.eye(3, dtype=np.float32)[:, :columns]
    layers: list[Entry] = [
        input_layer(16, 16, 3),
        plain("GlobalAveragePooling2D", "mean", "input"),
        dense("colour", "mean", kernel, activation),
    ]
    write_hdf5(path, layers, ["colour"])
    return path


def paint(folder: Path, count: int, labels: tuple[str, ...] = COLOURS) -> Path:
    rng = np.random.default_rng(3)
    for label in labels:
        (folder / label).mkdir(parents=True)
        for k in range(count):
            picture = rng.integers(0, 90, (48, 48, 3), np.uint8)
            picture[..., 2 - COLOURS.index(label)] += 100
            cv2.imwrite(str(folder / label / f"{k}.png"), picture)
    return folder


def teacher(path: Path, labels: tuple[str, ...] = COLOURS, wanted: tuple[str, ...] = COLOURS) -> Teacher:
    return Teacher(*crop_network(path, Told()), labels, wanted, path.name)


def test_loss_is_alpha_cross_entropy_and_the_rest_kl_times_t_squared() -> None:
    torch.manual_seed(0)
    logits, answers, truth = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    alpha, t = 0.3, 4.0
    by_hand = 0.0
    for z, w, y in zip(logits.tolist(), answers.tolist(), truth.tolist(), strict=True):
        p = [math.exp(v / t) for v in w]
        q = [math.exp(v / t) for v in z]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        hard = -math.log(math.exp(z[y]) / sum(map(math.exp, z)))
        by_hand += (alpha * hard + (1 - alpha) * t**2 * kl) / 5
    assert distillation_loss(logits, answers, truth, alpha, t).item() == pytest.approx(by_hand, rel=1e-5)


def test_student_that_agrees_with_its_teacher_has_only_the_labels_left_to_learn() -> None:
    logits, truth = torch.tensor([[2.0, -1.0]]), torch.tensor([0])
    whole = distillation_loss(logits, logits, truth, 1.0, 4.0)
    assert distillation_loss(logits, logits, truth, 0.25, 4.0).item() == pytest.approx(0.25 * whole.item())


def test_without_the_labels_weight_the_teacher_is_not_asked() -> None:
    logits, truth = torch.tensor([[2.0, -1.0]]), torch.tensor([0])
    nan = torch.full((1, 2), math.nan)
    assert distillation_loss(logits, nan, truth, 1.0, 4.0).isfinite()


def test_teacher_answers_in_logits_for_the_wanted_labels_in_their_order(tmp_path: Path) -> None:
    ask = teacher(colour_teacher(tmp_path / "t.h5"), wanted=("blue", "red"))
    x = torch.zeros(1, 3, 48, 48)
    x[:, 0] = 1.0
    torch.testing.assert_close(ask(x), torch.tensor([[0.0, 20.0]]))


def test_teacher_with_one_column_says_the_second_label_against_the_first(tmp_path: Path) -> None:
    path = colour_teacher(tmp_path / "t.h5", "sigmoid", columns=1)
    x = torch.zeros(2, 3, 16, 16)
    x[1, 0] = 1.0
    found = teacher(path, ("other", "red"), ("other", "red"))(x)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.0, 20.0]]))


def distil(folder: Path, path: Path, out: Path, *more: str) -> int:
    arguments = ["--whole", "--widths", "4", "8", "--size", "32", "--rate", "0.02", "--state", str(out) + ".state"]
    return main(["distill", str(path), "--data", str(folder), *arguments, *more, "--out", str(out)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "onnx", "torchscript"])
def test_student_learns_from_the_teachers_answers_alone(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With alpha 0 no label is looked at: what the student knows in the end, the teacher told it."""
    pytest.importorskip("nncf", reason="needs the extra convert")
    pytest.importorskip("skimage", reason="needs the extra demo")
    path, more = tmp_path / "teacher", ["--teacher-labels", "red,green,blue"]
    if kind == "keras":
        colour_teacher(path)
    elif kind == "onnx":
        onnx.save(crop_network(colour_teacher(tmp_path / "t.h5"), Told())[0], path)
    else:
        net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))
        net[2].weight.data = 20 * torch.eye(3)
        torch.jit.trace(net, torch.zeros(2, 3, 16, 16)).save(str(path))
        more += ["--teacher-size", "16"]
    out = tmp_path / "student"
    more += ["--epochs", "14", "--alpha", "0", "--labels", "red,green,blue", "--compare"]
    assert distil(paint(tmp_path / "faces", 48), path, out, *more) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "teacher, teacher: accuracy 1.000" in said
    assert "student, labels alone: accuracy" in said
    bundle = load_bundle(out)
    figures = {line.artefact: line.value for line in bundle.manifest.accuracy if line.metric == "accuracy"}
    assert figures["int8_openvino"] > 0.9
    assert "student, distilled: accuracy" in bundle.manifest.notes
    assert "--alpha 0" in bundle.manifest.accuracy[0].command
    assert load_student(out / "checkpoint.pt").widths == (4, 8)
    assert load_model(bundle, ["CPU"], threads=1, log=lambda _: None).attempts == ()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        pytest.param("count", "3 output(s), but 2 labels", id="wrong label count"),
        pytest.param("label", "knows red, green, violet, not blue", id="label the teacher does not know"),
        pytest.param("alpha", "--alpha 2.0, expected 0", id="alpha"),
        pytest.param("temperature", "--temperature 0.0, expected more than 0", id="temperature"),
        pytest.param("teacher", "not a valid ONNX file", id="teacher that is not what it claims"),
        pytest.param("none", "no such file", id="no teacher"),
        pytest.param("few", "expected at least 3 and 1", id="too few pictures"),
        pytest.param("val", "no faces to choose the score threshold on", id="none for the threshold"),
    ],
)
def test_bad_input_is_named_and_leaves_no_bundle(
    case: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, more = colour_teacher(tmp_path / "t.h5"), ["--epochs", "1"]
    folder = paint(tmp_path / "faces", {"few": 2, "val": 4}.get(case, 8))
    match case:
        case "count":
            more += ["--teacher-labels", "red,green"]
        case "label":
            more += ["--teacher-labels", "red,green,violet"]
        case "alpha" | "temperature":
            more += [f"--{case}", "2" if case == "alpha" else "0"]
        case "teacher":
            path.write_bytes(b"certainly no protobuf")
        case "none":
            path.unlink()
    assert distil(folder, path, tmp_path / "never", *more) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "never").exists()
    assert not list(tmp_path.glob(".never*"))
