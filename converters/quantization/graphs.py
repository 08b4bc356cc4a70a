"""One float ONNX graph, read for both runtimes with the same node names, and the parts of it that stay in float.

Driven by `ways`; the two INT8 artefacts of a detector start from what `fused` returns.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray
from onnx import numpy_helper
from openvino.frontend import OpConversionFailure

from converters.errors import QuantizeError
from converters.quantization.quantize import INPUT_NAME

COMPUTED = ("Convolution", "GroupConvolution", "MatMul")
COMPUTED_ONNX = ("Conv", "Gemm", "MatMul")
BIASED = "/WithoutBiases"  # what OpenVINO appends to a convolution when it splits its bias off


def fused(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Fold constants and batch norms, so that both INT8 artefacts start from the same nodes with the same names.

    Raises:
        QuantizeError: onnxruntime does not know an operator, or the graph contradicts itself.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    before, after = folder / "before.onnx", folder / "after.onnx"
    onnx.save(model, before)
    try:
        quant_pre_process(str(before), str(after), skip_symbolic_shape=True)
    except Exception as error:  # onnxruntime's have no base class of their own
        raise QuantizeError(
            f"onnxruntime cannot compute this graph: {str(error).splitlines()[0]}; export the network again"
        ) from error
    return onnx.load(after)


def read_openvino(source: Path, outputs: Sequence[str]) -> ov.Model:
    """Read a float ONNX as a graph whose Sigmoid·Mul became Swish, outputs in the given order.

    Raises:
        QuantizeError: an operator that OpenVINO does not know, sizes that do not fit, or an output that is not there.
    """
    try:
        model = ov.convert_model(source)
    except (OpConversionFailure, RuntimeError) as error:
        if strange := re.search(r"No conversion rule found for operations: (.*)", str(error)):
            raise QuantizeError(f"OpenVINO does not know {strange[1]}; export the network again without it") from error
        told = [line.strip() for line in str(error).split("Summary:")[0].splitlines() if line.strip()]
        raise QuantizeError(f"the graph contradicts itself: {told[-1]} Export the network again") from error
    found = {name for port in model.outputs for name in port.get_names()}
    if missing := [name for name in outputs if name not in found]:
        raise QuantizeError(f"{source.name}: outputs {missing} are not in the graph, found {sorted(found)}")
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    model.validate_nodes_and_infer_types()
    return model


def onnx_name(name: str) -> str:
    """Return the ONNX name of an OpenVINO node: a convolution with a bias became two there."""
    return name.removesuffix(BIASED)


def openvino_names(model: ov.Model, names: Iterable[str]) -> list[str]:
    """Return the OpenVINO names of ONNX nodes.

    Raises:
        QuantizeError: a name that neither graph has, because a silently ignored one costs accuracy.
    """
    known = {op.get_friendly_name() for op in model.get_ops()}
    found = {name: [n for n in (name, name + BIASED) if n in known] for name in names}
    if missing := [name for name, hits in found.items() if not hits]:
        raise QuantizeError(
            f"no node {missing[:3]} to keep in float among {len(known)}, such as {sorted(known)[:3]}; "
            "--float takes the names of the printed table"
        )
    return [name for hits in found.values() for name in hits]


def tail_openvino(model: ov.Model) -> list[str]:
    """Return the exact names of everything between the last convolutions and the outputs, DFL included.

    Raises:
        QuantizeError: nothing is there to keep in float, or no convolution comes before it.
    """
    found: dict[str, None] = {}
    ends: set[str] = set()
    todo: list[Any] = [result.input_value(0).get_node() for result in model.get_results()]
    while todo:
        node = todo.pop()
        kind, name = node.get_type_name(), node.get_friendly_name()
        if name in found or kind in ("Constant", "ShapeOf"):
            continue
        if kind == "Parameter":
            raise QuantizeError(f"the walk back from the outputs reached the input {name}: no detector's head here")
        if kind in COMPUTED and not is_dfl(_constant(node.input_value(1).get_node())):
            ends.add(name)
            continue
        found[name] = None
        todo += [node.input_value(k).get_node() for k in range(node.get_input_size())]
    return _checked(found, ends)


def tail_onnx(model: onnx.ModelProto) -> list[str]:
    """Return the same for ONNX, and the last convolutions too: QDQ would round their outputs to 8 bits.

    Raises:
        QuantizeError: as above.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    weights = {weight.name: weight for weight in model.graph.initializer}
    inputs = {value.name for value in model.graph.input} - weights.keys()
    found: dict[str, None] = {}
    ends: set[str] = set()
    todo = [output.name for output in model.graph.output]
    while todo:
        tensor = todo.pop()
        if tensor in inputs:
            raise QuantizeError(f"the walk back from the outputs reached the input {tensor}: no detector's head here")
        node = makers.get(tensor)
        if node is None or node.name in found or node.name in ends:
            continue
        weight = weights.get(node.input[1]) if node.op_type in COMPUTED_ONNX else None
        if node.op_type in COMPUTED_ONNX and not is_dfl(None if weight is None else numpy_helper.to_array(weight)):
            ends.add(node.name)
            continue
        found[node.name] = None
        todo += list(node.input)
    return [*_checked(found, ends), *sorted(ends)]


def _checked(found: Iterable[str], ends: set[str]) -> list[str]:
    names = list(found)
    if not ends:
        raise QuantizeError(
            f"{len(names)} nodes of arithmetic and no convolution before them: this graph has no detector's head; "
            "export it again with its boxes decoded"
        )
    return names


def is_dfl(values: NDArray[Any] | None) -> bool:
    """Say whether a kernel takes the expectation over a distribution of side lengths: its weights count 0, 1, 2, ….

    Args:
        values: the weights, None where they are no constant.
    """
    if values is None or values.size < 8 or values.size > 128:
        return False
    rows = values.reshape(-1, values.shape[-1]) if values.ndim == 2 else values.reshape(1, -1)
    return any(len(bins) >= 8 and np.array_equal(bins, np.arange(len(bins))) for bins in (rows[0], rows[:, 0]))


def _constant(node: Any) -> NDArray[Any] | None:
    return np.asarray(node.data) if node.get_type_name() == "Constant" else None


def attention_onnx(model: onnx.ModelProto) -> list[str]:
    """Return the names of attention's products and softmaxes: matrix products of two activations and what is between.

    Empty for a network without attention.
    """
    weights = {weight.name for weight in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type == "MatMul" and not weights & set(n.input)]
    if not products:  # whose only softmax is its answer
        return []
    softmaxes = [n for n in model.graph.node if n.op_type == "Softmax"]
    tail = set(tail_onnx(model))
    return [n.name for n in (*products, *softmaxes) if n.name not in tail]


def starts_at_zero(model: onnx.ModelProto) -> bool:
    """Say whether ReLU is the network's only activation."""
    tail = set(tail_onnx(model))
    kinds = {node.op_type for node in model.graph.node if node.name not in tail}
    return "Relu" in kinds and not kinds & {"Sigmoid", "HardSwish", "LeakyRelu", "PRelu", "Elu", "Tanh", "Mish", "Gelu"}
