"""From a float YOLOv10 to its artefacts: FP32 and INT8, ONNX and IR, with the head's arithmetic left in float.

Driven by `bundles.detector`, which measures the files and makes a bundle of them.
"""

import copy
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray
from onnx import numpy_helper

from converters.bundles.package import FILES
from converters.errors import QuantizeError
from converters.nets.yolov10 import REG_MAX, STRIDES, Exported, YOLOv10
from converters.quantization.quantize import (
    QDQ_OPS,
    Preset,
    export_onnx,
    quantize_onnx,
    quantize_openvino,
    save_openvino,
    to_openvino,
)
from edge.models.manifest import Input
from edge.track.letterbox import Letterbox

OUTPUTS = ("boxes", "scores")
DFL_WEIGHT = (1, REG_MAX, 1, 1)
# Each level of the one-to-one head ends in a convolution for boxes and one for scores; they are the last in INT8.
LAST_CONVOLUTIONS = 2 * len(STRIDES)


def input_of(size: int) -> Input:
    """Return how every detector of ours is fed: RGB in [0, 1], letterboxed into a square."""
    return Input(width=size, height=size)


def exported(net: YOLOv10, size: int) -> Exported:
    """Return a fused copy of the one-to-one path for one input size; `net` stays as it is."""
    return Exported(copy.deepcopy(net).cpu().eval().fuse(), size, size).eval()


def write_float(net: YOLOv10, size: int, folder: Path) -> None:
    """Write the FP32 ONNX and IR under a bundle's usual names: what INT8 is measured against."""
    module = exported(net, size)
    export_onnx(module, input_of(size), OUTPUTS, folder / FILES["onnx"])
    save_openvino(to_openvino(module, input_of(size), OUTPUTS), folder / FILES["xml"])


def write_int8(net: YOLOv10, size: int, images: Iterable[NDArray[np.uint8]], folder: Path) -> None:
    """Write the INT8 ONNX, the INT8 IR and the FP16 IR under a bundle's usual names.

    Args:
        net: float weights.
        size: side of the square input, a multiple of 32.
        images: calibration pictures (H, W, 3) uint8 BGR of any size, 128 to 300 from where the box will stand.
        folder: must exist.
    """
    module, spec = exported(net, size), input_of(size)
    calibration = [letterboxed(image, size) for image in images]
    with tempfile.TemporaryDirectory() as aside:
        floats = Path(aside) / "float.onnx"
        export_onnx(module, spec, OUTPUTS, floats)
        quantize_onnx(
            floats,
            folder / FILES["onnx"],
            spec,
            calibration,
            exclude=head_nodes_onnx(onnx.load(floats)),
            op_types=(*QDQ_OPS, "Split"),
            signed=False,
        )
    model = to_openvino(module, spec, OUTPUTS)
    save_openvino(model, folder / FILES["fp16_xml"], fp16=True)
    # ReLU outputs start at zero: the symmetric preset loses nothing there and spares the zero-point arithmetic.
    preset: Preset = "performance" if net.act == "relu" else "mixed"
    # Averaged extremes clip what only some pictures excite: large faces (FairFace AP50 0.592 instead of 0.715).
    int8 = quantize_openvino(
        model, spec, calibration, ignored=head_nodes_openvino(model), preset=preset, ranges="minmax"
    )
    save_openvino(int8, folder / FILES["xml"])


def letterboxed(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return (1, size, size, 3) uint8 BGR, drawn by the box's own letterbox."""
    return Letterbox(size, size)(image).copy()


def head_nodes_openvino(model: ov.Model) -> list[str]:
    """Return the exact names of everything between the head's last convolutions and the outputs, DFL included.

    Raises:
        QuantizeError: the graph does not end like a YOLOv10 head.
    """
    found: dict[str, None] = {}
    ends: set[str] = set()
    todo: list[Any] = [result.input_value(0).get_node() for result in model.get_results()]
    while todo:
        node = todo.pop()
        name, kind = node.get_friendly_name(), node.get_type_name()
        if name in found or name in ends or kind in ("Constant", "ShapeOf"):
            continue
        if kind == "Convolution" and tuple(node.input(1).get_shape()) != DFL_WEIGHT:
            ends.add(name)
            continue
        if kind == "Parameter":
            raise QuantizeError(f"the walk back from the outputs reached the input {name}: no YOLOv10 head here")
        found[name] = None
        todo += [node.input_value(k).get_node() for k in range(node.get_input_size())]
    _check(len(ends), len(found))
    return list(found)


def head_nodes_onnx(model: onnx.ModelProto) -> list[str]:
    """Return the same for an ONNX graph, and the last convolutions too.

    A QDQ convolution rounds its output to 8 bits; the DFL's logits would pay, and these six cost next to nothing.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    shapes = {w.name: tuple(numpy_helper.to_array(w).shape) for w in model.graph.initializer}
    found: dict[str, None] = {}
    ends: set[str] = set()
    todo = [output.name for output in model.graph.output]
    inputs = {value.name for value in model.graph.input}
    while todo:
        tensor = todo.pop()
        if tensor in inputs:
            raise QuantizeError(f"the walk back from the outputs reached the input {tensor}: no YOLOv10 head here")
        node = makers.get(tensor)
        if node is None or node.name in found or node.name in ends:
            continue
        if node.op_type == "Conv" and shapes.get(node.input[1]) != DFL_WEIGHT:
            ends.add(node.name)
            continue
        found[node.name] = None
        todo += list(node.input)
    _check(len(ends), len(found))
    return [*found, *sorted(ends)]


def _check(ends: int, found: int) -> None:
    if ends != LAST_CONVOLUTIONS or not found:
        raise QuantizeError(
            f"the head ends in {ends} convolutions and {found} nodes of arithmetic, expected {LAST_CONVOLUTIONS} "
            "convolutions: this graph is not the one-to-one head of a YOLOv10; export it again with converters"
        )


Item = TypeVar("Item")


def pick(items: Sequence[Item], count: int, seed: int = 0) -> list[Item]:
    """Return `count` items at random, always the same ones; all of them when there are fewer."""
    order = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[k] for k in sorted(order)]
