"""A rewrite for speed changes no bit of an INT8 answer, and leaves alone what it does not know."""

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs the extra edge")
onnx = pytest.importorskip("onnx", reason="needs the extra convert")

import onnxruntime as ort  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from converters.quantization.onnx_rewrites import (  # noqa: E402
    drop_unused,
    forget_source,
    pixel_range,
    pixels_first,
    repeat_pixels,
    rows_first,
    two_columns,
)
from edge.models.manifest import Input  # noqa: E402
from edge.models.preprocess import to_tensor  # noqa: E402

SIDE = 16


def model_of(nodes: list, constants: dict[str, np.ndarray], shape: list[int], output: list[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto, value: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": value})[0]


def entrance(spec: Input, stride: int = 2, relu: bool = True) -> onnx.ModelProto:
    """Return a quantized first convolution, 3×3, of five channels."""
    rng = np.random.default_rng(3)
    low, high = pixel_range(spec) or (0.0, 1.0)
    constants = {
        "s": np.float32((high - low) / 255),
        "z": np.uint8(round(-low * 255 / (high - low))),
        "w": rng.integers(-127, 128, (5, 3, 3, 3)).astype(np.int8),
        "ws": (rng.uniform(0.001, 0.01, 5) / (high - low)).astype(np.float32),
        "wz": np.zeros(5, np.int8),
        "b": rng.integers(-2000, 2000, 5).astype(np.int32),
        "bs": rng.uniform(1e-5, 1e-4, 5).astype(np.float32),
        "bz": np.zeros(5, np.int32),
        "os": np.float32(0.05),
        "oz": np.uint8(0 if relu else 100),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], "x"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["kernel"], "kernel", axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bias"], "bias", axis=0),
        helper.make_node(
            "Conv", ["x", "kernel", "bias"], ["c"], "c", kernel_shape=[3, 3], strides=[stride] * 2, pads=[1] * 4
        ),
        *([helper.make_node("Relu", ["c"], ["r"], "r")] if relu else []),
        helper.make_node("QuantizeLinear", ["r" if relu else "c", "os", "oz"], ["o"], "o"),
        helper.make_node("DequantizeLinear", ["o", "os", "oz"], ["y"], "y"),
    ]
    side = SIDE // stride
    return model_of(nodes, constants, [1, 3, SIDE, SIDE], [1, 5, side, side])


@pytest.mark.parametrize(
    ("spec", "relu"),
    [
        pytest.param(Input(SIDE, SIDE), True, id="RGB in [0, 1]"),
        pytest.param(Input(SIDE, SIDE, color="BGR", scale=(1.0,) * 3), True, id="BGR as it is"),
        pytest.param(Input(SIDE, SIDE, mean=(127.0,) * 3, scale=(128.0,) * 3), False, id="around zero, no ReLU"),
    ],
)
def test_pixels_give_the_very_bits_that_floats_gave(spec: Input, relu: bool) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    model = entrance(spec, relu=relu)
    before = run(model, to_tensor(picture, spec))
    assert pixels_first(model, spec)
    after = run(model, picture)
    assert len(np.unique(before)) > 20
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("spec", "stride"),
    [
        pytest.param(Input(SIDE, SIDE), 1, id="stride of one"),
        pytest.param(Input(SIDE, SIDE, mean=(1.0, 2.0, 3.0)), 2, id="a mean per channel"),
        pytest.param(Input(SIDE, SIDE, mean=(127.5,) * 3), 2, id="a mean between two pixels"),
    ],
)
def test_another_entrance_stays_as_it_is(spec: Input, stride: int) -> None:
    model = entrance(spec, stride)
    before = model.SerializeToString()
    assert not pixels_first(model, spec)
    assert model.SerializeToString() == before


def test_two_columns_answer_for_an_even_and_an_odd_one() -> None:
    kernel = np.arange(27, dtype=np.int8).reshape(1, 3, 3, 3)
    wide = two_columns(kernel)
    assert wide.shape == (2, 12, 3, 2)
    np.testing.assert_array_equal(wide[0, 9:, :, 0], kernel[0, :, :, 0])  # the pixel left of the block
    np.testing.assert_array_equal(wide[1, 3:6, :, 1], kernel[0, :, :, 0])
    assert (wide[0] != 0).sum() + (wide[1] != 0).sum() == 2 * (kernel != 0).sum()


def resize(scale: float) -> onnx.ModelProto:
    constants = {"s": np.float32(0.1), "z": np.uint8(3), "r": np.array([1, 1, scale, scale], np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], "x"),
        helper.make_node(
            "Resize", ["x", "", "r"], ["d"], "d", mode="nearest", coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("QuantizeLinear", ["d", "s", "z"], ["p"], "p"),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"], "y"),
    ]  # fmt: skip
    return model_of(nodes, constants, [1, 4, 6, 6], [1, 4, int(6 * scale), int(6 * scale)])


def test_doubling_by_copies_gives_the_very_bits_of_a_resize() -> None:
    value = np.random.default_rng(2).uniform(-1, 20, (1, 4, 6, 6)).astype(np.float32)
    model = resize(2)
    before = run(model, value)
    assert repeat_pixels(model) == 1
    drop_unused(model)
    assert "Resize" not in {node.op_type for node in model.graph.node}
    np.testing.assert_array_equal(before, run(model, value))


def test_tripling_stays_a_resize() -> None:
    model = resize(3)
    assert repeat_pixels(model) == 0
    assert "Resize" in {node.op_type for node in model.graph.node}


def pointwise(kernel: int) -> onnx.ModelProto:
    rng = np.random.default_rng(4)
    constants = {
        "w": rng.normal(size=(6, 8, kernel, kernel)).astype(np.float32),
        "b": rng.normal(size=6).astype(np.float32),
    }
    pads = [kernel // 2] * 4
    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["c"], "c", kernel_shape=[kernel] * 2, pads=pads),
        helper.make_node("Transpose", ["c"], ["y"], "t", perm=[0, 2, 3, 1]),
    ]
    return model_of(nodes, constants, [1, 8, 5, 5], [1, 5, 5, 6])


def test_last_convolution_as_a_product_gives_the_same_numbers() -> None:
    value = np.random.default_rng(5).normal(size=(1, 8, 5, 5)).astype(np.float32)
    model = pointwise(1)
    before = run(model, value)
    assert rows_first(model) == ["c"]
    drop_unused(model)
    assert {node.op_type for node in model.graph.node} == {"Transpose", "Reshape", "Gemm"}
    np.testing.assert_allclose(before, run(model, value), atol=1e-5)


def test_convolution_over_neighbours_stays_a_convolution() -> None:
    assert rows_first(pointwise(3)) == []


def test_what_the_exporter_noted_of_the_machine_is_gone() -> None:
    model = pointwise(1)
    for holder in (model, model.graph, *model.graph.node):
        entry = holder.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.stack_trace", "File /home/someone/net.py"
    assert b"/home/someone" in model.SerializeToString()
    forget_source(model)
    assert b"/home/someone" not in model.SerializeToString()
