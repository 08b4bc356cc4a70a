"""Put 8-bit steps into a float ONNX graph once the ranges of its tensors are known, leaving any nodes in float.

Driven by `quantize.quantize_onnx`, and by `losses`, which asks for the same graph many times with one more in float.
"""

import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from converters.errors import QuantizeError
from converters.quantization.onnx_rewrites import (
    drop_unused,
    forget_source,
    pixel_range,
    pixels_first,
    repeat_pixels,
    rows_first,
)
from converters.quantization.ranges import Range, Ranges, observed
from edge.models.manifest import Input


@dataclass(frozen=True)
class Calibrated:
    """A float graph ready to be quantized.

    Attributes:
        model: float, constants folded, convolutions of the head as products where rewritten.
        ranges: of every tensor that may be quantized.
        products: nodes with INT8 inputs and float output.
        origin: for each output tensor of the graph it came from the node's name there.
        op_types: operators that are quantized at all.
        rewrite: see `quantize.quantize_onnx`.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    products: tuple[str, ...]
    origin: Mapping[str, str]
    op_types: tuple[str, ...]
    rewrite: bool


def calibrated(
    source: Path,
    pictures: Iterable[NDArray[np.float32]],
    op_types: Sequence[str],
    ranges: Ranges = "minmax",
    rewrite: bool = False,
) -> Calibrated:
    """Prepare `source` and look at every tensor on the pictures, network inputs of batch 1."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    origin = {output: node.name for node in onnx.load(source).graph.node for output in node.output}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = Path(folder) / "prepared.onnx"
        # Symbolic shape inference trips over the exporter's dynamic batch and changes nothing for these networks.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        products = rows_first(model) if rewrite else []
        drop_unused(model)
        onnx.save(model, prepared)
        found = observed(prepared, pictures, op_types, ranges)
    return Calibrated(model, found, tuple(products), origin, tuple(op_types), rewrite)


def quantized(graph: Calibrated, spec: Input, exclude: Sequence[str] = (), signed: bool = True) -> onnx.ModelProto:
    """Return the QDQ graph with per-channel signed 8-bit weights.

    Args:
        graph: from `calibrated`.
        spec: the manifest's input.
        exclude: names of nodes of the graph it came from that stay in float; a product stays INT8 inside all the same,
            because nothing rounds what it gives.
        signed: of activations.

    Raises:
        QuantizeError: an excluded name that is not in the graph.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    nodes = graph.model.graph.node
    known = {*graph.origin.values(), *(node.name for node in nodes)}
    if missing := sorted(set(exclude) - known):
        raise QuantizeError(
            f"the graph has no node {missing[:3]} to keep in float, among {len(known)} such as {sorted(known)[:3]}; "
            "list its names with onnx_nodes(path, '.')"
        )
    # Preparing merges nodes and renames them; what they give keeps its name.
    kept = [n.name for n in nodes if {n.name, *(graph.origin.get(o, "") for o in n.output)} & set(exclude)]
    kept = [name for name in kept if name not in graph.products]
    found = dict(graph.ranges)
    if graph.rewrite and (pixels := pixel_range(spec)) is not None:
        found[graph.model.graph.input[0].name] = pixels
    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in found.items()
    }
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(graph.model),  # a copy: the quantizer changes what it is given
        True,  # per channel
        False,  # not to seven bits: VNNI does not saturate
        QuantType.QInt8,
        QuantType.QInt8 if signed else QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        [],
        kept,
        list(graph.op_types),
        {"OpTypesToExcludeOutputQuantization": ["Gemm"]} if graph.products else {},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    if graph.rewrite:
        repeat_pixels(result)
        pixels_first(result, spec)
        drop_unused(result)
    forget_source(result)
    return result
