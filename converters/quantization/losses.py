"""Which layers INT8 hurts, measured: the error of the network's outputs that goes away when one layer alone is float.

Driven by `ways`, which spares the worst ones when an artefact loses too much, and printed by every conversion.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray

from converters.quantization.graphs import COMPUTED, COMPUTED_ONNX, onnx_name
from converters.quantization.qdq import Calibrated, quantized
from edge.models.manifest import Input

Outputs = Sequence[NDArray[np.float32]]
# The layers with the largest errors of their own are tried one by one; each costs a second or two.
TRIED = 8


@dataclass(frozen=True)
class Loss:
    """What INT8 does at one layer.

    Attributes:
        layer: the ONNX node's name, as `--float` takes it.
        module: where it stands in the network, "" where the file does not say.
        own: relative error of the layer's output in the INT8 graph, errors from before it included.
        gain: the share of the outputs' error that goes away when this layer alone is float; below 0 it grows.
    """

    layer: str
    module: str
    own: float
    gain: float


def losses(
    graph: Calibrated,
    spec: Input,
    exclude: Sequence[str],
    own: Sequence[tuple[str, float]],
    pictures: Sequence[NDArray[np.uint8]],
    floats: Sequence[Outputs],
    tick: Callable[[], None] = lambda: None,
) -> list[Loss]:
    """Put the layers of the largest own error back into float, one at a time, and see what the outputs gain.

    Args:
        graph: the calibrated float graph.
        spec: the manifest's input.
        exclude: what is float anyway.
        own: from `own_errors`, largest first.
        pictures: (1, H, W, 3) uint8 BGR.
        floats: the float network's outputs for them.
        tick: called after each layer.

    Returns:
        The layers tried, largest gain first.
    """
    names = {node.name: _module(node) for node in graph.model.graph.node if node.op_type in COMPUTED_ONNX}
    candidates = [(onnx_name(n), e) for n, e in own if onnx_name(n) in names and onnx_name(n) not in exclude][:TRIED]
    base = _error(quantized(graph, spec, exclude, signed=False), spec, pictures, floats)
    found = []
    for name, error in candidates:
        alone = _error(quantized(graph, spec, [*exclude, name], signed=False), spec, pictures, floats)
        found.append(Loss(name, names[name], error, (base - alone) / (base + 1e-12)))
        tick()
    return sorted(found, key=lambda loss: -loss.gain)


def _module(node: onnx.NodeProto) -> str:
    """Return the innermost module of ours that torch's exporter noted."""
    noted = next((e.value for e in node.metadata_props if e.key.endswith("name_scopes")), "[]")
    scopes = [scope for scope in ast.literal_eval(noted) if "." in scope]
    return scopes[-1].removeprefix("net.") if scopes else ""


def _error(
    model: onnx.ModelProto, spec: Input, pictures: Sequence[NDArray[np.uint8]], floats: Sequence[Outputs]
) -> float:
    import onnxruntime as ort

    from converters.quantization.quantize import network_input

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    entrance = session.get_inputs()[0]
    raw = entrance.type == "tensor(uint8)"
    answers = [session.run(None, {entrance.name: p if raw else network_input(p, spec)}) for p in pictures]
    return float(np.mean([output_error(e, f) for e, f in zip(floats, answers, strict=True)]))


def output_error(expected: Outputs, found: Outputs) -> float:
    """Return the relative RMS error, summed over the outputs.

    Rows of a detector count as much as the float is sure that a face is there: no box of the background is ever used.
    """
    total = 0.0
    scores = next((e for e in expected if e.ndim == 3 and e.shape[-1] == 1), None)
    for e, f in zip(expected, found, strict=True):
        weight = scores if scores is not None and scores.shape[:2] == e.shape[:2] and e is not scores else 1.0
        wrong, size = float(np.sum(weight * (e - f) ** 2)), float(np.sum(weight * e**2))
        total += float(np.sqrt(wrong / (size + 1e-12)))
    return total


def own_errors(plain: ov.Model, int8: ov.Model, picture: NDArray[np.float32]) -> list[tuple[str, float]]:
    """Return each convolution's and matrix product's relative error in INT8 on one input, largest first."""
    outputs = []
    names = {op.get_friendly_name() for op in int8.get_ops() if op.get_type_name() in COMPUTED}
    both = [
        n for n in (op.get_friendly_name() for op in plain.get_ops() if op.get_type_name() in COMPUTED) if n in names
    ]
    for model in (plain.clone(), int8.clone()):
        nodes = {op.get_friendly_name(): op for op in model.get_ops()}
        model.add_outputs([nodes[name].output(0) for name in both])
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled(picture)
        outputs.append([np.array(found[k]) for k in range(len(found) - len(both), len(found))])
    errors = {
        name: float(np.sqrt(np.mean((a - b) ** 2)) / (np.sqrt(np.mean(a**2)) + 1e-9))
        for name, a, b in zip(both, *outputs, strict=True)
    }
    return sorted(errors.items(), key=lambda pair: -pair[1])
