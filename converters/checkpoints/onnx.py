"""Read foreign ONNX files: check them, raise their opset, name their nodes, cut what the box's decoders do."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import version_converter

from converters.errors import CheckpointError
from converters.quantization.quantize import INPUT_NAME
from edge.models.manifest import Decoder, Input

OPSET = 18  # per-channel QDQ needs 13; this is what our own exporter writes
KNOWN = ("", "ai.onnx")  # operator domains that both runtimes compute
LEVELS = (8, 16, 32)
YUNET = tuple(f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in LEVELS)


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file as the rest of the converters want it.

    Raises:
        CheckpointError: not ONNX, inconsistent, foreign operators, or an opset that cannot be raised.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise CheckpointError(f"{path}: not a valid ONNX file: {str(error).splitlines()[0]}") from error
    if strangers := sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in KNOWN}):
        raise CheckpointError(
            f"{path}: operators {', '.join(strangers)} are not ONNX's own and neither runtime knows them; export it "
            "again without them"
        )
    return prepared(model, str(path))


def prepared(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return a copy with weights that are no inputs, opset 18 and a name for every node.

    Raises:
        CheckpointError: an operator that the newer opset does not know.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {weight.name for weight in copy.graph.initializer}
    inputs = [value for value in copy.graph.input if value.name not in weights]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    copy.ir_version = max(copy.ir_version, 8)  # older files must list their weights among the inputs
    opset = next((entry.version for entry in copy.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OPSET:
        try:
            copy = version_converter.convert_version(copy, OPSET)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{name}: opset {opset} cannot be raised to {OPSET}: {error}; export it again"
            ) from error
    _rename_input(copy)
    used = {name for node in copy.graph.node for name in node.input} | {output.name for output in copy.graph.output}
    kept = [weight for weight in copy.graph.initializer if weight.name in used]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)  # torch used to write counters nobody reads, and onnxruntime warns of each
    for number, node in enumerate(copy.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return copy


def _rename_input(model: onnx.ModelProto) -> None:
    """Call the picture what the quantizers call it."""
    if len(model.graph.input) != 1 or model.graph.input[0].name == INPUT_NAME:
        return
    old = model.graph.input[0].name
    model.graph.input[0].name = INPUT_NAME
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name == old:
                node.input[k] = INPUT_NAME


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return a tensor's shape, 0 where it is dynamic."""
    return tuple(d.dim_value if d.HasField("dim_value") else 0 for d in value.type.tensor_type.shape.dim)


def picture_input(model: onnx.ModelProto, name: str, size: int = 0) -> tuple[int, int, int]:
    """Return (channels, height, width) of the one input, NCHW.

    Args:
        model: the graph.
        name: what messages call it.
        size: side to use where height and width are dynamic.

    Raises:
        CheckpointError: several inputs, no picture, no single precision, weights that are no numbers, dynamic without
            `size`, or another size than asked for.
    """
    refuse_not_finite(((w.name, onnx.numpy_helper.to_array(w)) for w in model.graph.initializer), name)
    inputs = [(value.name, shape_of(value)) for value in model.graph.input]
    if len(inputs) != 1 or len(inputs[0][1]) != 4 or inputs[0][1][1] not in (1, 3):
        raise CheckpointError(f"{name}: inputs {inputs}, expected one picture (N, 1 or 3, height, width)")
    kind = model.graph.input[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        raise CheckpointError(
            f"{name}: its input is {onnx.TensorProto.DataType.Name(kind)}, expected FLOAT; export it again in single "
            "precision, with no arithmetic on pixels before it"
        )
    channels, height, width = inputs[0][1][1:]
    if not (height and width):
        if not size:
            raise CheckpointError(f"{name}: its input {inputs[0][1]} is dynamic; say which size to fix with --size")
        return channels, size, size
    if size and size not in (height, width):
        raise CheckpointError(f"{name}: made for {width}×{height} pixels, --size says {size}; export it at that size")
    return channels, height, width


def refuse_not_finite(weights: Iterable[tuple[str, NDArray[Any]]], name: str) -> None:
    """Refuse weights that are no numbers: a training that diverged, or a file damaged on its way.

    Raises:
        CheckpointError: with the first such tensor's name.
    """
    for tensor, values in weights:
        if values.dtype.kind == "f" and (wrong := int((~np.isfinite(values)).sum())):
            raise CheckpointError(
                f"{name}: {wrong} of {values.size} values of tensor {tensor} are NaN or infinite; take an earlier "
                "checkpoint of that training"
            )


def fixed(model: onnx.ModelProto, batch: int, height: int, width: int) -> onnx.ModelProto:
    """Return a copy with this input size; batch 0 stays dynamic. Output shapes are inferred anew."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dims = copy.graph.input[0].type.tensor_type.shape.dim
    for dim, value in zip((dims[0], dims[2], dims[3]), (batch, height, width), strict=True):
        if value:
            dim.dim_value = value
        else:
            dim.dim_param = "batch"
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def detector_kind(model: onnx.ModelProto, name: str) -> tuple[Decoder, tuple[str, ...]]:
    """Return the decoder that reads these outputs, and their names in its order.

    Raises:
        CheckpointError: outputs of no supported kind.
    """
    shapes = {value.name: shape_of(value) for value in model.graph.output}
    if set(YUNET) <= shapes.keys():
        return "yunet", YUNET
    last = {output: shape[-1] for output, shape in shapes.items() if shape}
    match sorted(last.values()), {len(shape) for shape in shapes.values()}:
        case [2, 4], _:
            return "ssd", _by_width(last, 2, 4)
        case [1, 4], ranks if ranks == {3}:
            return "yolov10", _by_width(last, 4, 1)
        case [1, 4], ranks if ranks == {2}:
            return "single_box", _by_width(last, 1, 4)
    raise CheckpointError(
        f"{name}: outputs {shapes}, expected those of YOLOv10 (boxes (1, A, 4), scores (1, A, 1)), YuNet "
        f"({YUNET[0]} …), an SSD (scores (1, A, 2), boxes (1, A, 4)) or one face (score (1, 1), box (1, 4))"
    )


def _by_width(last: dict[str, int], *widths: int) -> tuple[str, ...]:
    return tuple(next(name for name, width in last.items() if width == wanted) for wanted in widths)


# How each kind of detector was trained to see pixels; --color, --mean and --scale say otherwise.
PIXELS: dict[str, dict[str, Any]] = {
    "yolov10": {"color": "RGB", "mean": (0.0,) * 3, "scale": (255.0,) * 3},
    "yunet": {"color": "BGR", "mean": (0.0,) * 3, "scale": (1.0,) * 3},
    "ssd": {"color": "RGB", "mean": (127.0,) * 3, "scale": (128.0,) * 3},
    "single_box": {"color": "RGB", "mean": (0.0,) * 3, "scale": (255.0,) * 3},
}


def detector_input(decoder: str, height: int, width: int, name: str) -> Input:
    """Return how a detector is fed.

    Raises:
        CheckpointError: a size its decoder cannot have.
    """
    if decoder in ("yolov10", "yunet") and (height != width or height % 32):
        raise CheckpointError(
            f"{name}: input {width}×{height}, expected a square whose side is divisible by 32; export it as a square"
        )
    return Input(width=width, height=height, **PIXELS[decoder])


def cut_activation(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Return a copy whose single output are logits, and the operator that was cut off ("" for none).

    A box's decoders apply softmax and sigmoid themselves; twice would flatten every answer.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    makers = {output: node for node in copy.graph.node for output in node.output}
    tensor, cut = copy.graph.output[0].name, ""
    while (node := makers.get(tensor)) is not None and node.op_type in ("Softmax", "Sigmoid", "Identity"):
        if node.op_type != "Identity":
            if cut:
                break
            cut = node.op_type
        tensor = node.input[0]
    rename_output(copy, tensor, "logits")
    return copy, cut


def rename_output(model: onnx.ModelProto, tensor: str, name: str) -> None:
    """Make `tensor` the first output under a new name, and drop what only led to the old one."""
    model.graph.node.append(onnx.helper.make_node("Identity", [tensor], [name], f"{name}_output"))
    model.graph.output[0].name = name
    _drop_unused(model)


def _drop_unused(model: onnx.ModelProto) -> None:
    needed = {output.name for output in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.insert(0, node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    weights = [weight for weight in model.graph.initializer if weight.name in needed]
    del model.graph.initializer[:]  # onnxruntime warns of each that nobody reads
    model.graph.initializer.extend(weights)


def single_output(model: onnx.ModelProto, name: str) -> int:
    """Return the width of the only output, a matrix (N, width).

    Raises:
        CheckpointError: more outputs, or one of another rank.
    """
    shapes: Sequence[tuple[str, tuple[int, ...]]] = [(value.name, shape_of(value)) for value in model.graph.output]
    if len(shapes) != 1 or len(shapes[0][1]) != 2 or not shapes[0][1][1]:
        raise CheckpointError(f"{name}: outputs {list(shapes)}, expected one matrix (N, classes or dimensions)")
    return shapes[0][1][1]
