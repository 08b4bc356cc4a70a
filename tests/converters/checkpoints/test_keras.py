"""Keras files become ONNX graphs that compute what Keras computes; expected values are worked out here in NHWC."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs the extra convert")
pytest.importorskip("onnx", reason="needs the extra convert")
ort = pytest.importorskip("onnxruntime", reason="needs the extra edge")

from converters.checkpoints.keras import keras_to_onnx  # noqa: E402
from converters.errors import CheckpointError  # noqa: E402
from tests.converters.checkpoints.keras_maker import (  # noqa: E402
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

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore")]

PICTURE = np.random.default_rng(0).random((2, 9, 12, 3), np.float32)


def run(path: Path, picture: np.ndarray = PICTURE) -> list[np.ndarray]:
    session = ort.InferenceSession(keras_to_onnx(path).SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {"images": np.ascontiguousarray(picture.transpose(0, 3, 1, 2))})
    return found


def windows(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Return (N, H', W', kernel, kernel, C) of x padded as TensorFlow's "same": the odd pixel below and right."""
    pads = []
    for size in x.shape[1:3]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    return views[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


def numpy_conv(x: np.ndarray, entry: Entry, stride: int) -> np.ndarray:
    kernel = entry[3]["kernel"]
    y = np.einsum("nhwklc,klco->nhwo", windows(x, kernel.shape[0], stride), kernel) + entry[3]["bias"]
    return np.maximum(y, 0)


@pytest.mark.parametrize("write", [write_hdf5, write_keras])
def test_mobilenet_like_binary_head_equals_its_own_arithmetic(write: object, tmp_path: Path) -> None:
    """Stride 2 with "same" padding is asymmetric in Keras; norms, ReLU6 and Flatten in NHWC order must hold too."""
    layers = [
        input_layer(9, 12, 3),
        conv("conv", "input", normal(1, 3, 3, 3, 8), stride=2),
        depthwise("dw", "conv", normal(2, 3, 3, 8, 1), stride=2),
        norm("bn", "dw", 8, 3),
        plain("ReLU", "relu6", "bn", max_value=6.0, negative_slope=0.0, threshold=0.0),
        plain("Dropout", "drop", "relu6", rate=0.5),
        plain("Flatten", "flat", "drop"),
        dense("me", "flat", normal(4, 3 * 3 * 8, 1), "sigmoid"),
    ]
    path = tmp_path / "model"
    write(path, layers, ["me"])  # type: ignore[operator]
    y = numpy_conv(PICTURE, layers[1], 2)
    y = np.einsum("nhwklc,klc->nhwc", windows(y, 3, 2), layers[2][3]["depthwise_kernel"][..., 0])
    bn = layers[3][3]
    y = (y - bn["moving_mean"]) / np.sqrt(bn["moving_variance"] + 1e-3) * bn["gamma"] + bn["beta"]
    logit = np.clip(y, 0, 6).reshape(2, -1) @ layers[7][3]["kernel"]
    np.testing.assert_allclose(run(path)[0], 1 / (1 + np.exp(-logit)), atol=1e-5)


def test_two_outputs_and_a_residual_sum(tmp_path: Path) -> None:
    layers = [
        input_layer(8, 8, 3),
        conv("a", "input", normal(1, 1, 1, 3, 4)),
        conv("b", "input", normal(2, 3, 3, 3, 4)),
        plain("Add", "sum", "a", "b"),
        plain("MaxPooling2D", "pool", "sum", pool_size=[2, 2], strides=[2, 2], padding="valid"),
        plain("GlobalMaxPooling2D", "top", "pool"),
        dense("score", "top", normal(3, 4, 1), "sigmoid"),
        dense("box", "top", normal(4, 4, 4), "sigmoid"),
    ]
    write_hdf5(tmp_path / "m.h5", layers, ["score", "box"])
    x = PICTURE[:, :8, :8]
    top = (numpy_conv(x, layers[1], 1) + numpy_conv(x, layers[2], 1)).max(axis=(1, 2))
    found = run(tmp_path / "m.h5", x)
    assert [a.shape for a in found] == [(2, 1), (2, 4)]
    for a, name in zip(found, (6, 7), strict=True):
        np.testing.assert_allclose(a, 1 / (1 + np.exp(-(top @ layers[name][3]["kernel"]))), atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        pytest.param([plain("Lambda", "code", "input")], "code is a Lambda, which is not supported", id="code"),
        pytest.param([plain("LSTM", "memory", "input")], "memory is a LSTM.*supported are", id="unknown layer"),
        pytest.param([plain("Activation", "act", "input", activation="mish")], "activation mish", id="activation"),
        pytest.param(
            [("Conv2D", {"name": "c", "strides": [1, 1], "padding": "same"}, ["input"], {})],
            "no 'kernel'",
            id="missing tensor",
        ),
        pytest.param([plain("Flatten", "c", "nowhere")], "waits for .*nowhere", id="loose end"),
    ],
)
def test_what_cannot_be_converted_is_named(layers: list[Entry], said: str, tmp_path: Path) -> None:
    write_hdf5(tmp_path / "m.h5", [input_layer(8, 8, 3), *layers], [layers[-1][1]["name"]])
    with pytest.raises(CheckpointError, match=said):
        keras_to_onnx(tmp_path / "m.h5")


def test_dynamic_input_is_refused(tmp_path: Path) -> None:
    entry = input_layer(8, 8, 3)
    entry[1]["batch_input_shape"] = [None, None, None, 3]
    write_hdf5(tmp_path / "m.h5", [entry, plain("GlobalMaxPooling2D", "g", "input")], ["g"])
    with pytest.raises(CheckpointError, match=r"its input is \[None, None, None, 3\], expected a fixed"):
        keras_to_onnx(tmp_path / "m.h5")


def test_weights_without_a_graph_and_garbage_are_refused(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["conv/kernel"] = np.zeros(3)
    with pytest.raises(CheckpointError, match="weights without a graph"):
        keras_to_onnx(tmp_path / "weights.h5")
    (tmp_path / "noise.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(CheckpointError, match="not a readable Keras model"):
        keras_to_onnx(tmp_path / "noise.h5")


# What Keras 3.15 on torch gives for the published files on the seeded pictures below.
KNOWN = {
    "gender_mini_XCEPTION.21-0.95.hdf5": [0.376411, 0.623589],
    "fer2013_mini_XCEPTION.102-0.66.hdf5": [0.038347, 0.000000, 0.046278, 0.255893, 0.645128, 0.001706, 0.012648],
}


@pytest.mark.shared
@pytest.mark.parametrize("name", KNOWN)
def test_published_mini_xception_gives_what_keras_gives(name: str, shared: Path) -> None:
    picture = np.random.default_rng(0).uniform(-1, 1, (4, 64, 64, 1)).astype(np.float32)
    found = run(shared / "weights" / "oarriaga_mit" / name, picture)[0]
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[0], KNOWN[name], atol=1e-4)
