"""Turn a float torch module into the two INT8 artefacts a box runs: an OpenVINO IR and an ONNX QDQ graph.

Driven by the trainers and by `facefleet-convert detector|classifier|embedder`. Calibration images come in exactly as
the box sees them: (N, H, W, 3) uint8 BGR, already letterboxed or stretched to the network's size.
"""

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import openvino as ov
import torch
from numpy.typing import NDArray

from converters.errors import QuantizeError
from converters.quantization.qdq import calibrated, quantized
from converters.quantization.ranges import Ranges
from edge.models.manifest import Input
from edge.models.preprocess import tensor_shape, to_tensor

INPUT_NAME = "images"
OPSET = 18  # the lowest the torch exporter writes without a version conversion
# What onnxruntime's CPU provider runs in INT8 without falling back; Sigmoid, Softmax, Mul stay float unless asked for.
QDQ_OPS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize")

Images = NDArray[np.uint8]
Preset = Literal["mixed", "performance"]
BiasCorrection = Literal["fast", "full"]


def network_input(images: Images, spec: Input) -> NDArray[np.float32]:
    """Return what the network eats for pictures as the box holds them.

    Args:
        images: (N, H, W, 3) uint8 BGR of the size in `spec`.
        spec: the manifest's input: colour order, mean and scale per channel, layout.

    Returns:
        (N, C, H, W) or (N, H, W, C) float32, `(x - mean) / scale`.

    Raises:
        QuantizeError: for pictures of another shape or type.
    """
    expected = (spec.height, spec.width, 3)
    if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8:
        raise QuantizeError(
            f"pictures are {images.dtype} {images.shape}, expected uint8 (N, {spec.height}, {spec.width}, 3) BGR; "
            "letterbox or stretch them to the network's size first"
        )
    return to_tensor(images, spec)


def network_shape(spec: Input, batch: int | None = None) -> tuple[int, int, int, int]:
    """Return (N, C, H, W) or (N, H, W, C); N is `batch` where given, else the manifest's (0 = dynamic)."""
    return tensor_shape(spec, spec.batch if batch is None else batch)


def single_pictures(calibration: Iterable[Images], spec: Input, limit: int) -> Iterator[NDArray[np.float32]]:
    """Yield at most `limit` network inputs of batch 1; raise QuantizeError when there is none."""
    count = 0
    for images in calibration:
        for image in images:
            if count == limit:
                return
            count += 1
            yield network_input(image[None], spec)
    if count == 0:
        raise QuantizeError("no calibration pictures: 0 found, expected 128 to 300 from where the box will stand")


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


def to_openvino(module: torch.nn.Module, spec: Input, outputs: Sequence[str]) -> ov.Model:
    """Convert a float module; the conversion fuses Sigmoid·Mul into Swish, which must happen *before* NNCF looks.

    Quantizing what `read_model` makes of an ONNX file instead leaves 2.6 times as many FakeQuantize nodes (design, 3).

    Args:
        module: takes the network input, returns one tensor or a tuple of them.
        spec: input shape; `batch` 0 leaves the batch dynamic.
        outputs: names given to the output tensors, in order.
    """
    example = torch.zeros(network_shape(spec, batch=max(spec.batch, 1)))
    shape = [-1 if n == 0 else n for n in network_shape(spec)]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about every Python branch in foreign modules
        model = ov.convert_model(module.eval(), example_input=example, input=[ov.PartialShape(shape)])
    if len(model.outputs) != len(outputs):
        raise QuantizeError(f"the module has {len(model.outputs)} outputs, {len(outputs)} were named: {list(outputs)}")
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    for port, name in zip(model.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    return model


def openvino_nodes(model: ov.Model, *patterns: str) -> list[str]:
    """Return the exact names of the nodes whose name matches one of the regular expressions (`re.search`).

    Raises:
        QuantizeError: when a pattern matches nothing, because a silently ignored scope costs accuracy.
    """
    return _matching(
        [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() != "Constant"], patterns
    )


def quantize_openvino(
    model: ov.Model,
    spec: Input,
    calibration: Iterable[Images],
    *,
    ignored: Sequence[str] = (),
    preset: Preset = "mixed",
    ranges: Ranges = "mean",
    bias_correction: BiasCorrection = "fast",
    limit: int = 300,
) -> ov.Model:
    """Return `model` in INT8, leaving the nodes named in `ignored` in float.

    Args:
        model: from `to_openvino`.
        spec: how calibration pictures become network input.
        calibration: batches of (N, H, W, 3) uint8 BGR.
        ignored: exact node names (see `openvino_nodes`); a name that is not in the graph is an error.
        preset: "mixed" has asymmetric activations, better for anything but ReLU; "performance" is symmetric.
        ranges: "mean" averages every picture's extremes and clips the loud ones; "minmax" clips nothing.
        bias_correction: "full" corrects layer after layer, in minutes for a detector and seconds for a student.
            On a student, "minmax" and "full" together leave a third of the error of the defaults (logits' RMS error
            0.048 instead of 0.151), "full" alone two thirds.
        limit: pictures used; more than 300 only costs time.
    """
    import nncf  # 2 s to import, and only converting needs it

    known = {op.get_friendly_name() for op in model.get_ops()}
    if missing := sorted(set(ignored) - known):
        raise QuantizeError(
            f"the converted graph has no node {missing[:3]}; list its names with openvino_nodes(model, '.')"
        )
    pictures = list(single_pictures(calibration, spec, limit))
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(pictures),
        preset=nncf.QuantizationPreset(preset),
        subset_size=len(pictures),
        fast_bias_correction=bias_correction == "fast",
        advanced_parameters=_ranges(ranges),
        ignored_scope=nncf.IgnoredScope(names=list(ignored)) if ignored else None,
    )


def _ranges(ranges: Ranges) -> Any:
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    chosen = {"mean": RangeEstimatorParametersSet.MEAN_MINMAX, "minmax": RangeEstimatorParametersSet.MINMAX}[ranges]
    return AdvancedQuantizationParameters(activations_range_estimator_params=chosen)


def save_openvino(model: ov.Model, xml: Path, *, fp16: bool = False) -> None:
    """Write `xml` and the `.bin` beside it; `fp16` halves float weights (for an NPU, not for an INT8 graph)."""
    ov.save_model(model, xml, compress_to_fp16=fp16)


# --- ONNX -------------------------------------------------------------------------------------------------------------


def export_onnx(module: torch.nn.Module, spec: Input, outputs: Sequence[str], path: Path, opset: int = OPSET) -> None:
    """Write the float module as ONNX; a manifest's batch of 0 becomes the dynamic dimension `batch`."""
    dynamic = spec.batch == 0
    # torch.export specialises a dimension of 1: the example must have two pictures to stay dynamic.
    example = torch.zeros(network_shape(spec, batch=2 if dynamic else spec.batch))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision's operators; we use none
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    found = [output.name for output in onnx.load(path).graph.output]
    if found != list(outputs):
        raise QuantizeError(f"{path.name} has the outputs {found}, expected {list(outputs)}")


def onnx_nodes(path: Path, *patterns: str) -> list[str]:
    """Return the exact names of ONNX nodes whose name or module path matches one of the regular expressions.

    The exporter keeps the module path (`model.head.cv2`) of every node in its metadata, and names nodes by number.

    Raises:
        QuantizeError: when a pattern matches nothing.
    """
    scopes = {node.name: _scope(node) for node in onnx.load(path).graph.node}
    hits = set(_matching([f"{name} {scope}" for name, scope in scopes.items()], patterns))
    return [name for name, scope in scopes.items() if f"{name} {scope}" in hits]


def quantize_onnx(
    source: Path,
    target: Path,
    spec: Input,
    calibration: Iterable[Images],
    *,
    exclude: Sequence[str] = (),
    op_types: Sequence[str] = QDQ_OPS,
    signed: bool = True,
    rewrite: bool = False,
    ranges: Ranges = "minmax",
    limit: int = 300,
) -> None:
    """Write `source` as a QDQ graph with 8-bit activations and per-channel signed 8-bit weights.

    Args:
        source: float ONNX from `export_onnx`.
        target: the INT8 file to write.
        spec: how calibration pictures become network input.
        calibration: batches of (N, H, W, 3) uint8 BGR.
        exclude: exact node names kept in float (see `onnx_nodes`); an unknown name is an error.
        op_types: operators that are quantized at all.
        signed: of activations. onnxruntime makes signed ones unsigned when it loads, but not where a tensor is split
            or used twice; such graphs fall apart into float islands (YOLOv10n 320, one thread: 11.4 ms signed,
            4.8 ms unsigned, 9.5 ms in FP32).
        rewrite: for detectors of fixed size and unsigned activations: pixels in, copies in place of a Resize, the last
            convolutions in INT8 (`onnx_rewrites`); YOLOv10n 320, one thread: 3.4 ms instead of 4.8.
        ranges: see `quantize_openvino`.
        limit: pictures used.
    """
    graph = calibrated(source, single_pictures(calibration, spec, limit), op_types, ranges, rewrite)
    onnx.save(quantized(graph, spec, exclude, signed), target)


def _scope(node: Any) -> str:
    return " ".join(entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes"))


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        hits = [name for name in names if re.search(pattern, name)]
        if not hits:
            raise QuantizeError(f"no node matches {pattern!r} among {len(names)}, such as {list(names[:3])}")
        found.update(dict.fromkeys(hits))
    return list(found)
