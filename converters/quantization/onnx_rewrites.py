"""Say the same in operators that onnxruntime's CPU kernels run fast; not one bit of an INT8 answer changes.

Driven by `quantize.quantize_onnx` for detectors. Where a pattern is not found the graph stays as it is. Measured on
YOLOv10n-ReLU INT8, 320 px, one thread, in microseconds (onnxruntime 1.31, AVX-512 VNNI):

| rewrite | before | after | why |
|---|---|---|---|
| `rows_first` | 230 | 76 | the head's last 1×1 convolutions keep INT8 as a matrix product with float output |
| `repeat_pixels` | 191 | 17 | Resize walks every byte, Expand copies rows |
| `pixels_first` | 650 | 155 | the INT8 convolution kernel wants channels in fours; four pixels are twelve |
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge.models.manifest import Input

CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


class Graph:
    """An ONNX graph with the questions a rewrite asks; what it changes, it changes in `model`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.makers = {output: node for node in self.graph.node for output in node.output}
        self.constants = {weight.name: weight for weight in self.graph.initializer}
        self.outputs = {output.name for output in self.graph.output}

    def users(self, tensor: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor."""
        return [node for node in self.graph.node if tensor in node.input]

    def only_user(self, tensor: str, kind: str) -> onnx.NodeProto | None:
        """Return the single reader of a tensor if it is of this kind and the tensor is no output of the graph."""
        found = self.users(tensor)
        return found[0] if len(found) == 1 and found[0].op_type == kind and tensor not in self.outputs else None

    def value(self, name: str) -> NDArray[Any]:
        """Return a constant."""
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def put(self, name: str, value: NDArray[Any]) -> str:
        """Store a constant, in the place of one of that name if there is one; return its name."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.graph.initializer.append(tensor)
            self.constants[name] = self.graph.initializer[-1]
        return name

    def shape(self, name: str, *sides: int) -> str:
        """Store the shape that a Reshape or an Expand reads."""
        return self.put(name, np.array(sides, np.int64))

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Put `new`, in order, where the first of `old` stands, and take all of `old` out."""
        names = {node.name for node in old}
        kept: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if node.name == old[0].name:
                kept += new
            if node.name not in names:
                kept.append(node)
        del self.graph.node[:]
        self.graph.node.extend(kept)
        self.makers = {output: node for node in self.graph.node for output in node.output}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors; 0 for a side that is not known."""
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute of a node, lists as tuples."""
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            return tuple(value) if isinstance(value, list) or hasattr(value, "extend") else value
    return default


def rows_first(model: onnx.ModelProto) -> list[str]:
    """Turn every 1×1 convolution that only a transpose to channels last reads into a Gemm over rows of channels.

    For the float graph, before quantization: a Gemm may keep INT8 inputs and a float output, a convolution may not.

    Returns:
        The names of the new Gemm nodes, those of their convolutions.
    """
    graph, found = Graph(model), []
    shapes = graph.shapes()
    for conv in [node for node in model.graph.node if node.op_type == "Conv"]:
        transpose = graph.only_user(conv.output[0], "Transpose")
        if transpose is None or attribute(transpose, "perm", ()) != CHANNELS_LAST:
            continue
        if conv.input[1] not in graph.constants:
            continue
        weight, (batch, _, height, width) = graph.value(conv.input[1]), shapes[conv.input[0]]
        plain = attribute(conv, "group", 1) == 1 and set(attribute(conv, "strides", (1,))) == {1}
        if weight.shape[2:] != (1, 1) or not plain or not all((batch, height, width)) or len(conv.input) != 3:
            continue
        wide, narrow, name = weight.shape[1], weight.shape[0], conv.name
        matrix = graph.put(f"{name}/matrix", weight[:, :, 0, 0].T)
        rows = graph.shape(f"{name}/rows_shape", batch * height * width, wide)
        cells = graph.shape(f"{name}/cells_shape", batch, height, width, narrow)
        graph.replace(
            [conv, transpose],
            [
                helper.make_node(
                    "Transpose", [conv.input[0]], [f"{name}/last"], f"{name}/last", perm=list(CHANNELS_LAST)
                ),
                helper.make_node("Reshape", [f"{name}/last", rows], [f"{name}/rows"], f"{name}/rows"),
                helper.make_node("Gemm", [f"{name}/rows", matrix, conv.input[2]], [f"{name}/product"], name),
                helper.make_node("Reshape", [f"{name}/product", cells], [transpose.output[0]], f"{name}/cells"),
            ],
        )
        found.append(name)
    return found


def repeat_pixels(model: onnx.ModelProto) -> int:
    """Double 8-bit maps by copying, where the QDQ graph has a nearest Resize by two; return how many it had."""
    graph, count = Graph(model), 0
    shapes = graph.shapes()
    for resize in [node for node in model.graph.node if node.op_type == "Resize"]:
        dequantize, quantize = graph.makers[resize.input[0]], graph.only_user(resize.output[0], QUANTIZE)
        if dequantize.op_type != DEQUANTIZE or quantize is None or attribute(resize, "mode", b"nearest") != b"nearest":
            continue
        batch, channels, height, width = shapes[resize.input[0]]
        doubled = shapes[resize.output[0]] == (batch, channels, 2 * height, 2 * width)
        same = all(
            np.array_equal(graph.value(a), graph.value(b))
            for a, b in zip(dequantize.input[1:], quantize.input[1:], strict=True)
        )
        if not (doubled and same and batch):
            continue
        name = resize.name
        apart = graph.shape(f"{name}/apart_shape", batch * height, 1, width, 1, channels)
        twice = graph.shape(f"{name}/twice_shape", batch * height, 2, width, 2, channels)
        whole = graph.shape(f"{name}/whole_shape", batch, 2 * height, 2 * width, channels)
        last, first = list(CHANNELS_LAST), list(CHANNELS_FIRST)
        graph.replace(
            [resize, quantize],
            [
                helper.make_node("Transpose", [dequantize.input[0]], [f"{name}/last"], f"{name}/last", perm=last),
                helper.make_node("Reshape", [f"{name}/last", apart], [f"{name}/apart"], f"{name}/apart"),
                helper.make_node("Expand", [f"{name}/apart", twice], [f"{name}/twice"], f"{name}/twice"),
                helper.make_node("Reshape", [f"{name}/twice", whole], [f"{name}/whole"], f"{name}/whole"),
                helper.make_node("Transpose", [f"{name}/whole"], list(quantize.output), f"{name}/first", perm=first),
            ],
        )
        if not graph.users(dequantize.output[0]):
            graph.replace([dequantize], [])
        count += 1
    return count


def pixel_range(spec: Input) -> tuple[float, float] | None:
    """Return the range of the network's input whose 8-bit steps are exactly those of the pixels, or None."""
    mean, scale = set(spec.mean), set(spec.scale)
    if len(mean) > 1 or len(scale) > 1 or spec.color == "GRAY" or spec.layout != "NCHW":
        return None
    middle, step = mean.pop(), scale.pop()
    return ((0 - middle) / step, (255 - middle) / step) if middle == round(middle) else None


def pixels_first(model: onnx.ModelProto, spec: Input) -> bool:
    """Let the QDQ graph read what the box holds, (1, H, W, 3) uint8 BGR, instead of floats that it makes pixels again.

    The first convolution, 3×3 with stride 2, reads four pixels as twelve channels and writes two at once.

    Args:
        model: quantized with the input's range from `pixel_range`.
        spec: the manifest's input.

    Returns:
        False, and the graph untouched, where the first convolution is of another kind.
    """
    graph = Graph(model)
    entrance = model.graph.input[0].name
    quantize = graph.only_user(entrance, QUANTIZE)
    dequantize = graph.only_user(quantize.output[0], DEQUANTIZE) if quantize else None
    conv = graph.only_user(dequantize.output[0], "Conv") if dequantize else None
    if quantize is None or dequantize is None or conv is None or pixel_range(spec) is None:
        return False
    relu = graph.only_user(conv.output[0], "Relu")
    after = graph.only_user((relu or conv).output[0], QUANTIZE)
    geometry = [attribute(conv, key, ()) for key in ("kernel_shape", "strides", "pads")]
    dilated = set(attribute(conv, "dilations", (1,))) != {1}
    usual = geometry[:2] == [(3, 3), (2, 2)] and geometry[2] in ((1, 1, 1, 1), (1, 1, 0, 0)) and not dilated
    if after is None or not usual or spec.width % 4 or spec.height % 2 or len(conv.input) != 3:
        return False
    weights, bias = (graph.makers[name] for name in conv.input[1:])
    kernel = graph.value(weights.input[0])
    for node in (weights, bias):  # one scale and zero point per output channel; there are twice as many now
        for name in node.input[1:]:
            graph.put(name, np.tile(np.atleast_1d(graph.value(name)), 2 if graph.value(name).size > 1 else 1))
    graph.put(bias.input[0], np.tile(graph.value(bias.input[0]), 2))
    graph.put(weights.input[0], two_columns(kernel if spec.color == "BGR" else kernel[:, ::-1]))
    for key, value in (("kernel_shape", (3, 2)), ("strides", (2, 1)), ("pads", (1, 1, 0, 0)), ("dilations", (1, 1))):
        for entry in [entry for entry in conv.attribute if entry.name == key]:
            conv.attribute.remove(entry)
        conv.attribute.append(helper.make_attribute(key, value))
    height, width, channels = spec.height, spec.width, len(kernel)
    fours = graph.shape("pixels/fours_shape", 1, height, width // 4, 12)
    single = graph.shape("pixels/single_shape", 1, height // 2, width // 2, channels)
    wide, last, first = f"{after.output[0]}/wide", list(CHANNELS_LAST), list(CHANNELS_FIRST)
    graph.replace(
        [quantize],
        [
            helper.make_node("Reshape", [entrance, fours], ["pixels/fours"], "pixels/fours"),
            helper.make_node("Transpose", ["pixels/fours"], list(quantize.output), "pixels/first", perm=first),
        ],
    )
    result = after.output[0]
    after.output[0] = wide
    graph.replace(
        [after],
        [
            after,
            helper.make_node("Transpose", [wide], [f"{wide}/last"], f"{wide}/last", perm=last),
            helper.make_node("Reshape", [f"{wide}/last", single], [f"{wide}/single"], f"{wide}/single"),
            helper.make_node("Transpose", [f"{wide}/single"], [result], f"{wide}/first", perm=first),
        ],
    )
    del model.graph.value_info[:]
    picture = helper.make_tensor_value_info(entrance, TensorProto.UINT8, [1, height, width, 3])
    model.graph.input[0].CopyFrom(picture)
    return True


def two_columns(kernel: NDArray[Any]) -> NDArray[Any]:
    """Spread a 3×3 kernel of stride 2 over blocks of four pixels.

    Args:
        kernel: (C, 3, 3, 3), output, input channel, row, column.

    Returns:
        (2C, 12, 3, 2): the answers of an even and an odd column; input channels are pixel 0 to 3, three channels each;
        of the two blocks the first gives only its last pixel.
    """
    count = len(kernel)
    wide = np.zeros((2 * count, 12, 3, 2), kernel.dtype)
    for second in (0, 1):
        for column in range(3):
            block, pixel = divmod(4 + 2 * second - 1 + column, 4)
            wide[second * count : (second + 1) * count, 3 * pixel : 3 * pixel + 3, :, block] = kernel[..., column]
    return wide


def drop_unused(model: onnx.ModelProto) -> None:
    """Take out the constants that nobody reads any more, and the shapes that were inferred before a rewrite."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]


def forget_source(model: onnx.ModelProto) -> None:
    """Take out what the exporter noted about the Python it came from: paths of the machine that converted."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del holder.metadata_props[:]
