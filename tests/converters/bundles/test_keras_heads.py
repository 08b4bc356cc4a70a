"""Keras heads through the command line, judged before and after INT8: published ones, and one over MobileNet."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra convert")
pytest.importorskip("nncf", reason="needs the extra convert")
pytest.importorskip("h5py", reason="needs the extra convert")
pytest.importorskip("skimage", reason="needs the extra demo")

from converters.checkpoints.network import Told
from converters.cli import main
from converters.training.transfer import base_of, fit
from edge.models.bundle import load_bundle
from edge.models.runtime import load_model
from tests.converters.checkpoints.keras_maker import (
    Entry,
    conv,
    dense,
    depthwise,
    input_layer,
    norm,
    normal,
    plain,
    write_hdf5,
    write_keras,
)

pytestmark = [pytest.mark.convert, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SIDE = 64
# MobileNet's 13 blocks at an eighth of the width: (channels, stride).
BLOCKS = ((8, 1), (16, 2), (16, 1), (32, 2), (32, 1), (64, 2), *[(64, 1)] * 5, (128, 2), (128, 1))


def mobilenet() -> list[Entry]:
    """Return the layers of a MobileNet without its top, seeded, every convolution with its norm and ReLU6."""
    layers = [input_layer(SIDE, SIDE, 3)]

    def settled(entry: Entry, channels: int) -> None:
        layers.append(entry)
        name = entry[1]["name"]
        layers.append(norm(f"{name}_bn", name, channels, len(layers)))
        layers.append(plain("ReLU", f"{name}_relu", f"{name}_bn", max_value=6.0, negative_slope=0.0, threshold=0.0))

    def last() -> str:
        return str(layers[-1][1]["name"])

    settled(conv("conv1", "input", normal(1, 3, 3, 3, 8), stride=2, activation="linear"), 8)
    width = 8
    for number, (channels, stride) in enumerate(BLOCKS, 1):
        settled(depthwise(f"conv_dw_{number}", last(), normal(number, 3, 3, width, 1, scale=0.5), stride), width)
        kernel = normal(100 + number, 1, 1, width, channels, scale=(2 / width) ** 0.5)
        settled(conv(f"conv_pw_{number}", last(), kernel, activation="linear"), channels)
        width = channels
    layers.append(plain("GlobalAveragePooling2D", "pool", last()))
    layers.append(plain("Dropout", "dropout", "pool", rate=0.3))
    return layers


def faces_of_two_colours(folder: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for label, channel in (("other", 0), ("me", 2)):
        (folder / label).mkdir(parents=True)
        for k in range(count):
            picture = cv2.resize(rng.integers(0, 120, (8, 8, 3), np.uint8), (SIDE, SIDE))
            picture[..., channel] += 130
            cv2.imwrite(str(folder / label / f"{k}.png"), picture)
    return folder


def pixels(folder: Path, label: str) -> np.ndarray:
    return np.stack([cv2.imread(str(path)) for path in sorted((folder / label).iterdir())])


def figures(out: Path) -> dict[str, float]:
    return {m.artefact: m.value for m in load_bundle(out).manifest.accuracy if m.metric == "accuracy"}


@pytest.mark.parametrize("write", [write_hdf5, write_keras], ids=["hdf5", "keras"])
def test_binary_head_over_mobilenet_tells_me_from_others_before_and_after_int8(
    write: Callable[[Path, list[Entry], list[str]], None], tmp_path: Path
) -> None:
    learnt = faces_of_two_colours(tmp_path / "learnt", 40, seed=1)
    trunk, path = tmp_path / "trunk.h5", tmp_path / "head"
    write_hdf5(trunk, mobilenet(), ["dropout"])
    crops = np.concatenate([pixels(learnt, label) for label in ("other", "me")])
    head = fit(base_of(trunk, Told()).features(crops), np.repeat([0, 1], 40), 2)
    top = dense("me", "dropout", (head.weight[:, 1:] - head.weight[:, :1]).astype(np.float32), "sigmoid")
    top[3]["bias"] = np.array([head.bias[1] - head.bias[0]], np.float32)
    write(path, [*mobilenet(), top], ["me"])

    held = faces_of_two_colours(tmp_path / "held", 20, seed=2)
    arguments = ["--labels", "other,me", "--margin", "0.2", "--calibrate", str(learnt), "--data", str(held)]
    assert main(["classifier", str(path), *arguments, "--max-drop", "2.6", "--out", str(tmp_path / "me-head")]) == 0
    manifest = load_bundle(tmp_path / "me-head").manifest
    assert (manifest.decoder, manifest.labels, manifest.input.width) == ("sigmoid", ("other", "me"), SIDE)
    found = figures(tmp_path / "me-head")
    assert found["fp32"] >= 0.85  # features that nobody trained
    assert min(found["int8_openvino"], found["int8_onnx"]) >= found["fp32"] - 0.026
    assert load_model(load_bundle(tmp_path / "me-head"), ["CPU"], threads=1, log=lambda _: None).attempts == ()


def test_a_mobilenet_without_its_top_is_a_base_for_twenty_pictures(tmp_path: Path) -> None:
    write_keras(tmp_path / "trunk.keras", mobilenet()[:-2], [str(mobilenet()[-3][1]["name"])])
    folder = faces_of_two_colours(tmp_path / "faces", 10, seed=3)
    arguments = ["--base", str(tmp_path / "trunk.keras"), "--whole", "--times", "3", "--labels", "me,other"]
    assert main(["train-student", "--pictures", str(folder), *arguments, "--bundle", str(tmp_path / "me-head")]) == 0
    manifest = load_bundle(tmp_path / "me-head").manifest
    assert manifest.architecture == "trunk.keras to 128 features, linear to 2"
    assert manifest.licence.startswith("unknown")
    assert figures(tmp_path / "me-head")["int8_openvino"] >= 0.75  # four held-out faces


def fer2013(data: Path, folder: Path) -> None:
    """Write 40 test pictures of each of FER2013's classes and, to calibrate, training pictures of all."""
    arrays = np.load(data / "research_only/fer2013/fer2013_48.npz")
    names = [str(name) for name in arrays["classes"]]
    for index, name in enumerate(names):
        for part, split, count in (("test", 2, 40), ("calibration", 0, 20)):
            for k in np.flatnonzero((arrays["labels"] == index) & (arrays["split"] == split))[:count]:
                target = folder / part / name / f"{k}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(target), arrays["images"][k])


def utkface(data: Path, folder: Path) -> None:
    """Write 60 test adults of each gender, and training faces to calibrate; the published head wants hair and chin."""
    from converters.data.attributes import utkface as faces

    counts = {("test", g): 60 for g in (0, 1)} | {("train", g): 40 for g in (0, 1)}
    for picture, _, label in faces(data):
        if label.adult and counts.get((label.split, label.gender), 0):
            counts[label.split, label.gender] -= 1
            part = "test" if label.split == "test" else "calibration"
            target = folder / part / ("woman", "man")[label.gender] / f"{label.name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(target), cv2.copyMakeBorder(picture, 30, 30, 30, 30, cv2.BORDER_REPLICATE))
        if not any(counts.values()):
            return


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "labels", "write", "least"),
    [
        pytest.param(
            "fer2013_mini_XCEPTION.102-0.66.hdf5", "angry,disgust,fear,happy,sad,surprise,neutral", fer2013, 0.6,
            id="emotion on FER2013's test",
        ),
        pytest.param("gender_mini_XCEPTION.21-0.95.hdf5", "woman,man", utkface, 0.8, id="gender on UTKFace's test"),
    ],
)  # fmt: skip
def test_published_head_keeps_its_accuracy_in_int8(
    file: str, labels: str, write: Callable[[Path, Path], None], least: float, shared: Path, tmp_path: Path
) -> None:
    """On the whole test sets: 0.684 → 0.683 (OpenVINO) and 0.689 (onnxruntime); gender 0.889 in all three."""
    write(shared, tmp_path)
    arguments = ["--labels", labels, "--mean", "127.5", "--scale", "127.5", "--max-drop", "2.5"]
    arguments += ["--calibrate", str(tmp_path / "calibration"), "--data", str(tmp_path / "test")]
    path = shared / "weights" / "oarriaga_mit" / file
    assert main(["classifier", str(path), *arguments, "--out", str(tmp_path / "head")]) == 0
    found = figures(tmp_path / "head")
    assert found["fp32"] > least
    assert min(found["int8_openvino"], found["int8_onnx"]) >= found["fp32"] - 0.025
