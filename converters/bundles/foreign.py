"""From a float ONNX graph of any origin to a measured bundle: quantize, compare with the float, fall back, write.

Driven by the verbs `detector`, `classifier` and `embedder` for checkpoints that are not ours. A `Judge` says how good
an artefact is; what it says decides whether the next, more careful way of quantizing is tried.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from converters.bundles.package import FILES, open_fp16, open_runtimes, seal, staging
from converters.errors import QuantizeError
from converters.evaluation.detector import latency_ms
from converters.evaluation.latency import cpu_name
from converters.quantization.quantize import (
    INPUT_NAME,
    QDQ_OPS,
    Ranges,
    network_input,
    quantize_onnx,
    quantize_openvino,
    save_openvino,
)
from edge.errors import ModelError
from edge.models.golden import Golden, choose_golden, difference, save_golden
from edge.models.manifest import Manifest, Measurement, Role
from edge.models.runtime import Runtime

Images = NDArray[np.uint8]
ARTEFACTS = {"fp32_openvino": "fp32", "fp32_onnx": "source"}
THREADS = 2
WEIGHED: dict[str, Role] = {"int8_openvino": "bin", "int8_onnx": "onnx", "fp16_openvino": "fp16_bin"}
COMPUTED = ("Convolution", "GroupConvolution", "MatMul")


@dataclass(frozen=True)
class Figure:
    """One number of one artefact; `metric` in [0, 1], more is better."""

    metric: str
    value: float
    dataset: str
    images: int


class Judge(Protocol):
    """How good an artefact is."""

    def __call__(self, runtime: Runtime, manifest: Manifest) -> list[Figure]:
        """Return figures, the first of which decides."""


@dataclass(frozen=True)
class Job:
    """What is to become a bundle.

    Attributes:
        model: float ONNX, opset 18, nodes named.
        manifest: all that is known before anything is measured; its calibration says where the pictures are from.
        calibration: batches (N, H, W, 3) uint8 BGR of the network's size.
        golden: candidates for the golden picture, (1, H, W, 3) uint8 BGR.
        judge: see `Judge`.
        max_drop: how many points of the judge's first figure INT8 may cost.
        tune: returns the manifest with the score threshold of this INT8 artefact, given the float and the INT8 one.
        float_tail: keep the arithmetic behind the last convolutions in float (detectors: boxes and scores).
        how: the command, for the manifest.
        beside: writes more files into the staging folder, such as the list of what a network has learnt from.
    """

    model: onnx.ModelProto
    manifest: Manifest
    calibration: Sequence[Images]
    golden: Sequence[Images]
    judge: Judge
    max_drop: float
    tune: Callable[[Manifest, Runtime, Runtime], Manifest]
    float_tail: bool
    how: str
    beside: Callable[[Path], None] = lambda _: None


@dataclass(frozen=True)
class Way:
    """One way of quantizing: how ranges are found, and how many of the worst layers stay in float."""

    ranges: Ranges
    spared: int = 0


# From the fastest to the most careful.
WAYS = (Way("minmax"), Way("mean"), Way("minmax", 4), Way("minmax", 10))


def convert(job: Job, folder: Path, console: Console) -> Manifest:
    """Write the bundle; print its table.

    Raises:
        QuantizeError: no way of quantizing stays within `max_drop`; nothing is written.
    """
    with staging(folder) as aside, tempfile.TemporaryDirectory() as floats, _progress(console) as progress:
        source = Path(floats) / FILES["onnx"]
        _say(progress, "reading the graph")
        onnx.save(fused(job.model, Path(floats)), source)
        graph = _openvino(source, job.manifest)
        save_openvino(graph, Path(floats) / FILES["xml"])
        plain = msgspec.structs.replace(job.manifest, calibration=None)
        runtimes = open_runtimes(Path(floats), plain, THREADS)
        _say(progress, "judging FP32")
        expected = job.judge(runtimes["fp32_openvino"], job.manifest)
        save_openvino(graph, aside / FILES["fp16_xml"], fp16=True)
        manifest, int8, figures, worst = _quantized(job, source, aside, runtimes["fp32_openvino"], expected, progress)
        figures = {"fp32_openvino": expected, **figures}
        figures["fp16_openvino"] = job.judge(open_fp16(aside, manifest, THREADS), manifest)
        _say(progress, "measuring latency")
        times = latency_ms(runtimes | int8, job.golden[0])
        note = _write_golden(aside, manifest, job.golden, int8)
        manifest = msgspec.structs.replace(
            manifest,
            accuracy=_accuracy(figures, job.how),
            latency=tuple(
                Measurement(
                    "median_ms" if name != "fp32_onnx" else "median_ms, FP32 on onnxruntime", round(ms, 3),
                    ARTEFACTS.get(name, name), job.how, cpu=cpu_name(), threads=THREADS,  # type: ignore[arg-type]
                )
                for name, ms in times.items()
            ),
            notes=" ".join(part for part in (manifest.notes, note) if part),
        )  # fmt: skip
        job.beside(aside)
        manifest = seal(aside, manifest)
        sizes = {"fp32_onnx": source.stat().st_size}
        for name, file in WEIGHED.items():
            sizes[name] = (aside / FILES[file]).stat().st_size
    _show(manifest, figures, times, sizes, worst, console)
    return manifest


def _quantized(
    job: Job, source: Path, aside: Path, reference: Runtime, expected: Sequence[Figure], progress: Progress
) -> tuple[Manifest, dict[str, Runtime], dict[str, list[Figure]], list[tuple[str, float]]]:
    """Quantize, ever more carefully, until no artefact loses more than allowed.

    Returns:
        The manifest with its threshold, the runtimes, their figures, the layers whose output INT8 changes most.
    """
    tried: list[str] = []
    worst: list[tuple[str, float]] = []
    for number, way in enumerate(WAYS, 1):
        spared = [name for name, _ in worst[: way.spared]]
        _say(progress, f"quantizing, way {number} of {len(WAYS)}: {way.ranges} ranges, {way.spared} layers in float")
        layers = _write_int8(job, source, aside, way.ranges, spared)
        worst = worst or layers
        int8 = open_runtimes(aside, job.manifest, THREADS)
        manifest = job.tune(job.manifest, reference, int8["int8_openvino"])
        figures = {name: job.judge(runtime, manifest) for name, runtime in int8.items()}
        drops = {name: 100 * (expected[0].value - found[0].value) for name, found in figures.items()}
        if max(drops.values()) <= job.max_drop:
            note = f"Quantized with {way.ranges} ranges; kept in float: {', '.join(spared)}." if number > 1 else ""
            notes = " ".join(part for part in (manifest.notes, note) if part)
            return msgspec.structs.replace(manifest, notes=notes), int8, figures, worst
        tried.append(", ".join(f"{name} −{drop:.2f}" for name, drop in drops.items()))
    raise QuantizeError(
        f"{job.manifest.name}: INT8 loses more than --max-drop {job.max_drop} points of {expected[0].metric} in each "
        f"of {len(WAYS)} ways ({'; '.join(tried)}); give more or better calibration pictures, or allow more"
    )


def _write_int8(job: Job, source: Path, aside: Path, ranges: Ranges, spared: Sequence[str]) -> list[tuple[str, float]]:
    """Write both INT8 artefacts; return the relative error of each layer, worst first."""
    spec = job.manifest.input
    graph = _openvino(source, job.manifest)
    known = {op.get_friendly_name() for op in graph.get_ops()}
    ignored = list(
        dict.fromkeys([*(tail_openvino(graph) if job.float_tail else []), *(s for s in spared if s in known)])
    )
    quantized = quantize_openvino(graph, spec, job.calibration, ignored=ignored, ranges=ranges)
    save_openvino(quantized, aside / FILES["xml"])
    model = onnx.load(source)
    names = {node.name for node in model.graph.node}
    exclude = list(
        dict.fromkeys(
            [*(tail_onnx(model) if job.float_tail else []), *(s for s in map(_onnx_name, spared) if s in names)]
        )
    )
    # Sigmoid and Mul: a Swish left in float would tear the INT8 graph apart at every convolution.
    operators = (*QDQ_OPS, "Split", "Sigmoid", "Mul", "Clip", "LeakyRelu")
    quantize_onnx(
        source, aside / FILES["onnx"], spec, job.calibration, exclude=exclude, op_types=operators, signed=False
    )
    return layer_errors(_openvino(source, job.manifest), quantized, network_input(job.calibration[0][:1], spec))


def _onnx_name(name: str) -> str:
    """Return the ONNX name of an OpenVINO node: a convolution with a bias became two there."""
    return name.removesuffix("/WithoutBiases")


def fused(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Fold constants and batch norms, so that both INT8 artefacts start from the same nodes with the same names."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    before, after = folder / "before.onnx", folder / "after.onnx"
    onnx.save(model, before)
    quant_pre_process(str(before), str(after), skip_symbolic_shape=True)
    return onnx.load(after)


def _openvino(source: Path, manifest: Manifest) -> ov.Model:
    """Read the float ONNX as a graph whose Sigmoid·Mul became Swish, outputs in the manifest's order."""
    model = ov.convert_model(source)
    found = {name: port for port in model.outputs for name in port.get_names()}
    if missing := [name for name in manifest.outputs if name not in found]:
        raise QuantizeError(f"{manifest.name}: outputs {missing} are not in the graph, found {sorted(found)}")
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    model.validate_nodes_and_infer_types()
    return model


def tail_openvino(model: ov.Model) -> list[str]:
    """Return the exact names of everything between the last convolutions and the outputs."""
    found: dict[str, None] = {}
    todo: list[Any] = [result.input_value(0).get_node() for result in model.get_results()]
    while todo:
        node = todo.pop()
        kind, name = node.get_type_name(), node.get_friendly_name()
        last = kind in COMPUTED and not _is_dfl(tuple(node.input(1).get_shape()))
        if last or name in found or kind in ("Constant", "ShapeOf", "Parameter"):
            continue
        found[name] = None
        todo += [node.input_value(k).get_node() for k in range(node.get_input_size())]
    return list(found)


def tail_onnx(model: onnx.ModelProto) -> list[str]:
    """Return the same for ONNX, and the last convolutions too: QDQ would round their outputs to 8 bits."""
    makers = {output: node for node in model.graph.node for output in node.output}
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    found: dict[str, None] = {}
    todo = [output.name for output in model.graph.output]
    while todo:
        node = makers.get(todo.pop())
        if node is None or node.name in found:
            continue
        found[node.name] = None
        if node.op_type not in ("Conv", "Gemm", "MatMul") or _is_dfl(shapes.get(node.input[1], ())):
            todo += list(node.input)
    return list(found)


def _is_dfl(shape: tuple[int, ...]) -> bool:
    """Say whether a kernel is the expectation over a distribution of side lengths: one output of 1×1 inputs."""
    return len(shape) == 4 and shape[0] == 1 and shape[1] > 1 and shape[2:] == (1, 1)


def layer_errors(plain: ov.Model, int8: ov.Model, picture: NDArray[np.float32]) -> list[tuple[str, float]]:
    """Return each convolution's and matrix product's relative error in INT8 on one input, largest first."""
    outputs = []
    names = {op.get_friendly_name() for op in int8.get_ops() if op.get_type_name() in COMPUTED}
    shared = [
        n for n in (op.get_friendly_name() for op in plain.get_ops() if op.get_type_name() in COMPUTED) if n in names
    ]
    for model in (plain.clone(), int8.clone()):
        nodes = {op.get_friendly_name(): op for op in model.get_ops()}
        model.add_outputs([nodes[name].output(0) for name in shared])
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled(picture)
        outputs.append([np.array(found[k]) for k in range(len(found) - len(shared), len(found))])
    errors = {
        name: float(np.sqrt(np.mean((a - b) ** 2)) / (np.sqrt(np.mean(a**2)) + 1e-9))
        for name, a, b in zip(shared, *outputs, strict=True)
    }
    return sorted(errors.items(), key=lambda pair: -pair[1])


def _write_golden(aside: Path, manifest: Manifest, pictures: Sequence[Images], runtimes: Mapping[str, Runtime]) -> str:
    """Choose a golden picture on which all artefacts agree; return a note where none notices swapped colours.

    Raises:
        QuantizeError: the artefacts disagree on every candidate: a box would refuse one of them.
    """
    first, *others = (runtime.infer for runtime in runtimes.values())
    try:
        save_golden(aside / FILES["golden"], manifest, choose_golden(manifest, pictures, first, others))
        return ""
    except ModelError as error:
        note = f"The golden input cannot tell swapped colour channels: {error}"
    reason: str | None = None
    for picture in pictures:
        golden = Golden(picture, tuple(np.array(a, np.float32) for a in first(picture)))
        reason = next((r for o in others if (r := difference(manifest, golden.outputs, o(picture)))), None)
        if reason is None:
            save_golden(aside / FILES["golden"], manifest, golden)
            return note
    raise QuantizeError(f"{manifest.name}: the INT8 artefacts disagree on every golden picture, the last one: {reason}")


def _accuracy(figures: Mapping[str, Sequence[Figure]], how: str) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(f.metric, round(f.value, 4), ARTEFACTS.get(name, name), how, f.dataset, images=f.images)  # type: ignore[arg-type]
        for name, found in figures.items()
        for f in found
        if f.value == f.value
    )


def _show(
    manifest: Manifest,
    figures: Mapping[str, Sequence[Figure]],
    times: Mapping[str, float],
    sizes: Mapping[str, int],
    worst: Sequence[tuple[str, float]],
    console: Console,
) -> None:
    first = figures["fp32_openvino"]
    table = Table("artefact", "ms", "kB", *(f"{f.metric}\n{f.dataset}" for f in first), title=manifest.name)
    for name in ("fp32_openvino", "int8_openvino", "fp32_onnx", "int8_onnx", "fp16_openvino"):
        found = [f"{f.value:.4f}" for f in figures.get(name, ())]
        size = f"{sizes[name] / 1000:.0f}" if name in sizes else ""
        table.add_row(name, f"{times[name]:.2f}" if name in times else "", size, *found)
    console.print(table)
    layers = ", ".join(f"{name} {error:.0%}" for name, error in worst[:5])
    console.print(f"layers that INT8 changes most: {layers}")
    console.print(f"score threshold {manifest.score_threshold} {manifest.notes}")


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )


def _say(progress: Progress, what: str) -> None:
    for task in progress.task_ids:
        progress.remove_task(task)
    progress.add_task(what, total=None)
