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
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from converters.bundles.package import FILES, open_fp16, open_runtimes, seal, staging
from converters.bundles.steps import show_layers, steps
from converters.errors import QuantizeError
from converters.evaluation.latency import Timing, cpu_name, in_turn
from converters.quantization.graphs import fused, read_openvino
from converters.quantization.quantize import save_openvino
from converters.quantization.ways import Choice, Workshop, choose
from edge.errors import ModelError
from edge.models.golden import Golden, choose_golden, difference, save_golden
from edge.models.manifest import Manifest, Measurement, Role
from edge.models.runtime import Runtime

Images = NDArray[np.uint8]
ARTEFACTS = {"fp32_openvino": "fp32", "fp32_onnx": "source"}
THREADS = 2
WEIGHED: dict[str, Role] = {"int8_openvino": "bin", "int8_onnx": "onnx", "fp16_openvino": "fp16_bin"}


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
        named: nodes kept in float in any case; one that is not in the graph is an error.
        symmetric: every activation starts at zero (ReLU), which OpenVINO computes faster.
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
    named: Sequence[str] = ()
    symmetric: bool = False
    beside: Callable[[Path], None] = lambda _: None


@dataclass(frozen=True)
class Judged:
    """What an attempt is worth: its manifest with the threshold tuned, its runtimes, their figures."""

    manifest: Manifest
    runtimes: dict[str, Runtime]
    figures: dict[str, list[Figure]]


def convert(job: Job, folder: Path, console: Console) -> Manifest:
    """Write the bundle; print its table.

    Raises:
        QuantizeError: no way of quantizing stays within `max_drop`; nothing is written.
    """
    with staging(folder) as aside, tempfile.TemporaryDirectory() as floats, steps(console) as say:
        source = Path(floats) / FILES["onnx"]
        say("reading the graph")
        onnx.save(fused(job.model, Path(floats)), source)
        graph = read_openvino(source, job.manifest.outputs)
        save_openvino(graph, Path(floats) / FILES["xml"])
        plain = msgspec.structs.replace(job.manifest, calibration=None)
        runtimes = open_runtimes(Path(floats), plain, THREADS)
        say("judging FP32")
        expected = job.judge(runtimes["fp32_openvino"], job.manifest)
        other = job.judge(runtimes["fp32_onnx"], job.manifest)
        save_openvino(graph, aside / FILES["fp16_xml"], fp16=True)
        shop = Workshop(
            source, job.manifest.input, job.manifest.outputs, job.calibration,
            tail=job.float_tail, named=job.named, symmetric=job.symmetric,
        )  # fmt: skip
        choice = choose(
            shop, aside, lambda tried: _judged(job, tried, runtimes["fp32_openvino"], expected), job.max_drop,
            f"{job.manifest.name}: INT8 loses more than --max-drop {job.max_drop} points of {expected[0].metric}", say,
        )  # fmt: skip
        manifest, int8 = choice.kept.result.manifest, choice.kept.result.runtimes
        figures = {"fp32_openvino": expected, "fp32_onnx": other, **choice.kept.result.figures}
        say("judging FP16")
        figures["fp16_openvino"] = job.judge(open_fp16(aside, manifest, THREADS), manifest)
        say("measuring latency")
        times = in_turn(runtimes | int8, job.golden[0])
        note = _write_golden(aside, manifest, job.golden, int8)
        manifest = msgspec.structs.replace(
            manifest,
            accuracy=_accuracy(figures, job.how),
            latency=tuple(_latency(name, time, job.how) for name, time in times.items()),
            notes=" ".join(part for part in (manifest.notes, choice.note, note) if part),
        )
        job.beside(aside)
        manifest = seal(aside, manifest)
        sizes = {"fp32_onnx": source.stat().st_size}
        for name, file in WEIGHED.items():
            sizes[name] = (aside / FILES[file]).stat().st_size
    _show(manifest, figures, times, sizes, choice, console)
    return manifest


def _judged(job: Job, folder: Path, reference: Runtime, expected: Sequence[Figure]) -> tuple[dict[str, float], Judged]:
    """Return the points that each artefact of a folder loses of the first figure, and what was found out."""
    runtimes = open_runtimes(folder, job.manifest, THREADS)
    manifest = job.tune(job.manifest, reference, runtimes["int8_openvino"])
    figures = {name: job.judge(runtime, manifest) for name, runtime in runtimes.items()}
    drops = {name: 100 * (expected[0].value - found[0].value) for name, found in figures.items()}
    return drops, Judged(manifest, runtimes, figures)


def _latency(name: str, time: Timing, how: str) -> Measurement:
    metric = "median_ms" if name != "fp32_onnx" else "median_ms, FP32 on onnxruntime"
    artefact: Any = ARTEFACTS.get(name, name)
    return Measurement(metric, round(time.median, 3), artefact, how, cpu=cpu_name(), threads=THREADS)


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
    times: Mapping[str, Timing],
    sizes: Mapping[str, int],
    choice: Choice[Judged],
    console: Console,
) -> None:
    first = figures["fp32_openvino"]
    table = Table("artefact", "ms", "CPU ms", "kB", *(f"{f.metric}\n{f.dataset}" for f in first), title=manifest.name)
    for name in ("fp32_openvino", "int8_openvino", "fp32_onnx", "int8_onnx", "fp16_openvino"):
        found = [f"{f.value:.4f}" for f in figures.get(name, ())]
        size = f"{sizes[name] / 1000:.0f}" if name in sizes else ""
        time = times.get(name)
        table.add_row(name, str(time or ""), f"{time.cpu:.2f}" if time else "", size, *found)
    console.print(table)
    show_layers(choice.layers, console)
    console.print(f"score threshold {manifest.score_threshold} {manifest.notes}")
