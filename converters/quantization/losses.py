"""Where INT8 hurts, measured: the error of the network's outputs that goes away when one part alone is float.

Driven by `ways`, which spares the worst ones when an artefact loses too much, and printed by every conversion.
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray

from converters.errors import QuantizeError
from converters.quantization.graphs import COMPUTED, COMPUTED_ONNX, onnx_name
from converters.quantization.qdq import Calibrated, quantized
from edge.models.manifest import Input

Outputs = Sequence[NDArray[np.float32]]
# Parts tried where a file does not name its modules: single layers, those with the largest errors of their own. Each
# try costs a second or two.
TRIED = 16


@dataclass(frozen=True)
class Loss:
    """What INT8 does in one part of the network.

    Attributes:
        part: a module of the exporter's notes, or a single node's name; `--float` takes it.
        nodes: the convolutions and products in it.
        own: the largest relative error of their outputs in the INT8 graph, errors from before them included.
        gain: the share of the outputs' error that goes away when this part alone is float; below 0 it grows.
    """

    part: str
    nodes: tuple[str, ...]
    own: float
    gain: float


def losses(
    graph: Calibrated,
    spec: Input,
    exclude: Sequence[str],
    own: Sequence[tuple[str, float]],
    pictures: Sequence[NDArray[np.uint8]],
    floats: Sequence[Outputs],
) -> list[Loss]:
    """Put one part after the other back into float, each alone, and see what the outputs gain.

    Args:
        graph: the calibrated float graph.
        spec: the manifest's input.
        exclude: what is float anyway.
        own: from `own_errors`, largest first.
        pictures: (1, H, W, 3) uint8 BGR.
        floats: the float network's outputs for them.

    Returns:
        The parts, largest gain first.
    """
    errors = {onnx_name(name): error for name, error in own}
    parts = parts_of(graph.model, [name for name in errors if name not in exclude])
    base = _error(quantized(graph, spec, exclude, signed=False), spec, pictures, floats)
    found = []
    for part, nodes in parts.items():
        alone = _error(quantized(graph, spec, [*exclude, *nodes], signed=False), spec, pictures, floats)
        found.append(Loss(part, nodes, max(errors[n] for n in nodes), (base - alone) / (base + 1e-12)))
    return sorted(found, key=lambda loss: -loss.gain)


def parts_of(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the parts of a network and their nodes: one for each stage and each branch of a head.

    Args:
        model: the float graph.
        names: its convolutions and products, largest error first.
    """
    modules = {node.name: module_of(node) for node in model.graph.node if node.op_type in COMPUTED_ONNX}
    known = [name for name in names if name in modules]
    if not all(modules[name] for name in known):
        return {name: (name,) for name in known[:TRIED]}
    parts: dict[str, tuple[str, ...]] = {}
    for name in known:
        # model.8.m.0.cv1 belongs to stage model.8, model.23.cv2.0.1 of the head to its branch model.23.cv2.0.
        words = modules[name].split(".")
        part = ".".join(words[: 4 if words[1:2] == ["23"] else 2])
        parts[part] = (*parts.get(part, ()), name)
    return parts


def named_nodes(model: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """Return the nodes that the user named: by their own name, or by a module and all that is in it.

    Raises:
        QuantizeError: a name that matches nothing, because a part silently left in INT8 costs accuracy.
    """
    modules = {node.name: module_of(node) for node in model.graph.node if node.op_type in COMPUTED_ONNX}
    found: dict[str, None] = {}
    for name in names:
        hits = [n for n, module in modules.items() if name in (n, module) or module.startswith(f"{name}.")]
        if not hits:
            raise QuantizeError(
                f"no layer {name!r} to keep in float among {len(modules)}, such as {list(modules)[:3]}; --float takes "
                "the names of the printed table"
            )
        found.update(dict.fromkeys(hits))
    return list(found)


def module_of(node: onnx.NodeProto) -> str:
    """Return the innermost module that torch's exporter noted, "" where the file says nothing."""
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
    """Return each convolution's and matrix product's relative error in INT8 on one input, largest first.

    A layer is read behind its bias. OpenVINO 2026 computes the layers behind a convolution wrongly, by 50 to 280 %, in
    an INT8 graph where something else than its bias reads it too; those without a bias are read in another graph.
    """
    computed, other = (
        {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() in COMPUTED}
        for model in (plain, int8)
    )
    errors: dict[str, float] = {}
    for biased in (True, False):
        part = [n for n in computed if n in other and bool(_bias(computed[n]) and _bias(other[n])) == biased]
        pairs = zip(layers(plain, part, picture, biased), layers(int8, part, picture, biased), strict=True)
        errors |= {
            name: float(np.sqrt(np.mean((a - b) ** 2)) / (np.sqrt(np.mean(a**2)) + 1e-9))
            for name, (a, b) in zip(part, pairs, strict=True)
        }
    return sorted(errors.items(), key=lambda pair: -pair[1])


def layers(
    model: ov.Model, names: Sequence[str], picture: NDArray[np.float32], biased: bool
) -> list[NDArray[np.float32]]:
    """Return what the named layers give for one input, behind their bias or before it."""
    if not names:
        return []
    model = model.clone()
    nodes = {op.get_friendly_name(): op for op in model.get_ops()}
    model.add_outputs([(_bias(nodes[name]) if biased else nodes[name]).output(0) for name in names])
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(picture)
    return [np.array(found[k]) for k in range(len(found) - len(names), len(found))]


def _bias(layer: Any) -> Any:
    """Return the addition of a layer's bias, None where something else reads the layer."""
    readers = [entry.get_node() for entry in layer.output(0).get_target_inputs()]
    if len(readers) != 1 or readers[0].get_type_name() != "Add":
        return None
    kinds = {readers[0].input_value(k).get_node().get_type_name() for k in (0, 1)}
    return readers[0] if kinds & {"Constant", "Convert", "Reshape"} else None
