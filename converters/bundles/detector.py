"""`facefleet-convert detector`: a float checkpoint becomes a bundle that was measured before it was written.

What it takes: the weights of our YOLOv10n (a training checkpoint or the `checkpoint.pt` of a bundle) and the data
folder, whose validation pictures set the score threshold and whose test pictures give the figures.
"""

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from converters.bundles.foreign_arguments import add_common
from converters.bundles.package import (
    DATA,
    FILES,
    astronaut,
    digest_of,
    open_fp16,
    open_runtimes,
    save_checkpoint,
    seal,
    staging,
    write_data_list,
    write_golden,
)
from converters.bundles.steps import show_layers, steps
from converters.checkpoints.formats import format_of
from converters.checkpoints.inert_pickle import read_checkpoint
from converters.checkpoints.ultralytics import CLASS_BIAS
from converters.data.detection import PURPOSES, Sample, digests, face_mask, training_set
from converters.errors import ConvertError, QuantizeError
from converters.evaluation.detector import (
    Judge,
    Report,
    average_precision,
    evaluate_runtimes,
    float_runtimes,
    samples_of,
    show,
    tune_threshold,
    unseen,
)
from converters.evaluation.latency import cpu_name, in_turn
from converters.nets.yolov10 import YOLOv10, load_weights
from converters.quantization.detector_artefacts import (
    OUTPUTS,
    input_of,
    letterboxed,
    pick,
    write_float,
    write_fp16,
)
from converters.quantization.quantize import OPSET
from converters.quantization.ways import Workshop, choose
from edge.models.bundle import MANIFEST, load_bundle
from edge.models.golden import difference
from edge.models.manifest import Calibration, Manifest, Measurement
from edge.models.runtime import Runtime

HOW = "facefleet-convert train-detector --data DATA --work WORK --minutes 66"
# Half of the calibration pictures show crowds and half large faces, or the ranges of the coarse level come out short.
CALIBRATION_PICTURES = 160
THREADS = 2
MAX_DROP = 0.5
# The ways of quantizing are compared on these, taken together; nobody learnt from them, and no figure is of them.
JUDGED = ("face_mask/val", "mik1i/people")
LICENCE = (
    "Apache-2.0 (weights); trained on pictures under CC0 as declared by their uploader (face_mask), CC BY 4.0 (mik1i: "
    "Mohamed Traore and Justin Brady; FairFace: Karkkainen & Joo; sample-videos: Intel; Young Adult White Faces: "
    "DeBruine & Jones) and MIT (LivePortrait examples)"
)
INFERRED = ("onnx", "bin", "fp16_bin")  # the files whose size a box feels
Artefact = Literal["source", "fp32", "int8_onnx", "int8_openvino", "fp16_openvino"]


@dataclass(frozen=True)
class Origin:
    """Where the weights come from.

    Attributes:
        source: how they were trained, for the manifest.
        licence: of the weights.
        data: a finished `data.json`; None: the training set of the data folder.
    """

    source: str
    licence: str = LICENCE
    data: Path | None = None

    @classmethod
    def of(cls, checkpoint: Path, how: str) -> "Origin":
        """Return what the bundle says in which the checkpoint lies, so that quantizing anew tells no other story."""
        data, beside = checkpoint.with_name(DATA), checkpoint.with_name(MANIFEST)
        if data.exists() and beside.exists():
            known = load_bundle(checkpoint.parent).manifest
            return cls(known.source, known.licence, data)
        return cls(f"trained by this project from scratch: {how}; {DATA} lists the pictures")


def describe_bundle(net: YOLOv10, size: int, origin: Origin, calibration: Sequence[Sample]) -> Manifest:
    """Return the manifest as far as it is known before anything was measured."""
    weights = sum(p.numel() for p in net.parameters())
    return Manifest(
        name=f"yolov10{net.scale}-face-{size}",
        version="1",
        task="detector",
        decoder="yolov10",
        input=input_of(size),
        outputs=OUTPUTS,
        files={},
        licence=origin.licence,
        source=origin.source,
        labels=("face",),
        opset=OPSET,
        architecture=f"YOLOv10{net.scale} (arXiv 2405.14458), {net.act}, {weights} weights with both heads; "
        f"one-to-{net.answers} head, decoded in the graph, no top-k",
        calibration=Calibration(
            "training part of face_mask, mik1i, canada, liveportrait",
            len(calibration),
            digest_of([s.sha256 for s in calibration]),
        ),
    )


def calibration_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Return the training pictures that fix the quantization ranges, the same ones every time."""
    crowds = [s for s in samples if s.source == "face_mask"]
    others = [s for s in samples if s.source in ("crowd", "webcam", "portrait")]
    return [*pick(crowds, CALIBRATION_PICTURES // 2), *pick(others, CALIBRATION_PICTURES // 2)]


def write_bundle(
    net: YOLOv10,
    size: int,
    data: Path,
    samples: Sequence[Sample],
    folder: Path,
    origin: Origin,
    console: Console,
    *,
    max_drop: float = MAX_DROP,
    named: Sequence[str] = (),
) -> Manifest:
    """Quantize, tune, measure and write one bundle.

    Args:
        net: the float network.
        size: side of the square input.
        data: the data folder.
        samples: the training set.
        folder: the bundle's folder, replaced as a whole.
        origin: of the weights.
        console: told of every step.
        max_drop: points of AP50 that INT8 may lose on the pictures of `JUDGED`.
        named: nodes of the float graph that stay in float.

    Raises:
        QuantizeError: INT8 loses more in every way tried, or the two artefacts disagree on every golden picture.
    """
    calibration = calibration_samples(samples)
    manifest = describe_bundle(net, size, origin, calibration)
    with staging(folder) as aside, tempfile.TemporaryDirectory() as floats:
        with steps(console) as say:
            say("exporting")
            write_float(net, size, Path(floats))
            write_fp16(net, size, aside)
            reference = open_runtimes(Path(floats), msgspec.structs.replace(manifest, calibration=None), THREADS)
            pictures = [sample for part in samples_of(data, JUDGED).values() for sample in part]
            judge = _Judge(manifest, pictures, reference["fp32_openvino"])
            shop = Workshop(
                Path(floats) / FILES["onnx"], manifest.input, OUTPUTS,
                [letterboxed(s.image, size) for s in calibration],
                tail=True, named=named, symmetric=net.act == "relu",
            )  # fmt: skip
            what = f"{manifest.name}: INT8 loses more than --max-drop {max_drop} points of AP50"
            choice = choose(shop, aside, judge, max_drop, what, say)
            save_checkpoint(net, aside / FILES["checkpoint"])
            int8 = open_runtimes(aside, manifest, THREADS)
            say("tuning the score threshold")
            manifest = tuned(manifest, int8["int8_openvino"], list(face_mask(data, "val")), samples)
        runtimes = reference | int8
        # FP32 on onnxruntime equals FP32 on OpenVINO to 1e-3 (a test holds it), so only its speed is measured.
        judged = {name: runtime for name, runtime in runtimes.items() if name != "fp32_onnx"}
        judged["fp16_openvino"] = open_fp16(aside, manifest, THREADS)
        if origin.data:
            shutil.copy(origin.data, aside / DATA)
        else:
            write_data_list(aside / DATA, digests(samples), PURPOSES)
        table = evaluate_runtimes(judged, manifest, samples_of(data, unseen(aside)))
        show(table, console)
        show_layers(choice.layers, console)
        note = agreed_golden(aside, manifest, int8)
        manifest = msgspec.structs.replace(
            manifest,
            accuracy=tuple(accuracy_lines(manifest, table)),
            latency=tuple(latency_lines(manifest, runtimes)),
            notes=" ".join(part for part in (choice.note, note) if part),
        )
        manifest = seal(aside, manifest)
    return manifest


class _Judge:
    """How many points of AP50 each artefact loses against the float."""

    def __init__(self, manifest: Manifest, samples: Sequence[Sample], reference: Runtime) -> None:
        self._manifest, self._samples = manifest, samples
        self._float = self._ap50(reference)

    def __call__(self, folder: Path) -> tuple[dict[str, float], None]:
        runtimes = open_runtimes(folder, self._manifest, THREADS)
        return {name: 100 * (self._float - self._ap50(runtime)) for name, runtime in runtimes.items()}, None

    def _ap50(self, runtime: Runtime) -> float:
        judge = Judge(runtime, self._manifest)
        return average_precision([(judge(s.image), s.boxes) for s in self._samples], 0.5)


def tuned(manifest: Manifest, runtime: Runtime, validation: Sequence[Sample], samples: Sequence[Sample]) -> Manifest:
    """Return the manifest with the score threshold that suits its INT8 artefact best."""
    judge = Judge(runtime, manifest)
    negatives = [s for s in samples if s.source == "negative"]
    found, false = ([(judge(s.image), s.boxes) for s in part] for part in (validation, negatives))
    return msgspec.structs.replace(manifest, score_threshold=tune_threshold(found, false))


def golden_pictures(size: int) -> list[NDArray[np.uint8]]:
    """Return letterboxed views of a public-domain portrait, (1, size, size, 3) uint8 BGR, the whole picture first."""
    picture = astronaut()
    views = [picture]
    for side in (900, 1400, 700):
        wall = np.full((side, side, 3), 114, np.uint8)
        corner = (side - 512) // 2
        wall[corner : corner + 512, corner : corner + 512] = picture
        views.append(wall)
    views += [picture[:400, 60:420], picture[:, ::-1], picture[:300, 100:400]]
    return [letterboxed(np.ascontiguousarray(view), size) for view in views]


def agreed_golden(aside: Path, manifest: Manifest, runtimes: Mapping[str, Runtime]) -> str:
    """Write the first golden pair that every runtime passes as at a box's start; return a note for the manifest.

    Raises:
        QuantizeError: no view of the portrait means the same to all runtimes.
    """
    first, *others = runtimes.values()
    reason: str | None = "no picture"
    for picture in golden_pictures(manifest.input.width):
        note = write_golden(aside, manifest, [picture], first.infer)
        with np.load(aside / FILES["golden"]) as arrays:
            image, expected = arrays["input"], [arrays[name] for name in manifest.outputs]
        reasons = [difference(manifest, expected, runtime.infer(image)) for runtime in others]
        reason = next((r for r in [note, *reasons] if r), None)
        if reason is None:
            return note
    raise QuantizeError(f"{manifest.name}: the INT8 artefacts disagree on every golden picture, the last one: {reason}")


NAMES: dict[str, Artefact] = {
    "fp32_openvino": "fp32",
    "fp32_onnx": "source",
    "int8_openvino": "int8_openvino",
    "int8_onnx": "int8_onnx",
    "fp16_openvino": "fp16_openvino",
}


def accuracy_lines(manifest: Manifest, table: Mapping[str, Mapping[str, Report]]) -> list[Measurement]:
    """Return the figures of all artefacts and sets as the manifest keeps them."""
    command = f"facefleet-convert evaluate models_int8/{manifest.name} --data DATA"
    lines = []
    for artefact, reports in table.items():
        for name, found in reports.items():
            metrics = ("ap50", "ap50_95", "ap50_small", "ap50_medium", "ap50_large", "recall", "precision")
            for metric in metrics if found.faces else ("false_boxes",):
                value = getattr(found, metric)
                if value == value:  # a set without large faces has no AP for them
                    value = round(float(value), 4)
                    lines.append(Measurement(metric, value, NAMES[artefact], command, name, images=found.images))
    return lines


def latency_lines(manifest: Manifest, runtimes: Mapping[str, Runtime]) -> list[Measurement]:
    """Measure all artefacts in turn, pixels in, outputs out: the time that passes and the time of all threads."""
    command = f"facefleet-convert detector models_int8/{manifest.name}/checkpoint.pt --latency"
    times = in_turn(runtimes, golden_pictures(manifest.input.width)[0])
    lines = []
    for name, time in times.items():
        suffix = ", FP32 on onnxruntime" if name == "fp32_onnx" else ""
        for metric, value in (("median_ms", time.median), ("cpu_ms", time.cpu)):
            line = Measurement(metric + suffix, round(value, 3), NAMES[name], command, cpu=cpu_name(), threads=THREADS)
            lines.append(line)
    return lines


def measure_again(folder: Path, console: Console) -> None:
    """Measure a finished bundle's latency on a machine that has become quieter; only its manifest changes."""
    bundle = load_bundle(folder)
    with tempfile.TemporaryDirectory() as floats, steps(console) as say:
        say("exporting")
        runtimes = float_runtimes(bundle, Path(floats), THREADS) | open_runtimes(folder, bundle.manifest, THREADS)
        say("measuring latency")
        lines = tuple(latency_lines(bundle.manifest, runtimes))
    show_latency(seal(folder, msgspec.structs.replace(bundle.manifest, latency=lines)), console)


def show_latency(manifest: Manifest, console: Console) -> None:
    """Print what a manifest says of speed."""
    for line in manifest.latency:
        console.print(f"  {line.artefact:14} {line.value:7.2f}  {line.metric}")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `detector`."""
    parser = subparsers.add_parser(
        "detector",
        help="turn a detector checkpoint into an INT8 bundle",
        description="Quantize for OpenVINO and onnxruntime, set the score threshold, measure before and after, write. "
        "Our own checkpoints need --data alone; foreign ones --calibrate, and --data for their accuracy.",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="checkpoint.pt of train-detector or of a bundle; ultralytics YOLOv10 .pt; ONNX (YOLOv10, YuNet, SSD); "
        "Keras single-face regressor",
    )
    parser.add_argument("--size", type=int, nargs="+", default=[], help="sides of the input, one bundle each if ours")
    parser.add_argument(
        "--data", type=Path, help="the data folder, or one with images/ and labels/: threshold, figures"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("models_int8"), help="where our bundles go; a foreign one's own folder"
    )
    parser.add_argument(
        "--how",
        default=HOW,
        help="the training command, for the manifest (default: %(default)s; a bundle's checkpoint knows its own)",
    )
    parser.add_argument(
        "--latency", action="store_true", help="measure only the latency anew, of the finished bundle of the checkpoint"
    )
    parser.add_argument("--only", default="", help="the class to keep of a foreign YOLOv10 of several")
    add_common(parser, "detector", MAX_DROP)
    parser.set_defaults(run=run)


def is_ours(path: Path) -> bool:
    """Say whether a file holds named tensors, as ours do; foreign detectors come with their graph or their modules."""
    if format_of(path) != "torch":
        return False
    content = read_checkpoint(path)
    content = content.get("average", content) if isinstance(content, Mapping) else content
    return isinstance(content, Mapping) and CLASS_BIAS in content


def run(args: argparse.Namespace) -> int:
    """Write one bundle per size."""
    if not is_ours(args.checkpoint):
        from converters.bundles.foreign_verbs import run_detector

        return run_detector(args)
    if args.latency:
        measure_again(args.checkpoint.parent, Console())
        return 0
    if args.data is None:
        raise ConvertError(f"{args.checkpoint}: our own detector is calibrated on its data folder; give --data")
    console = Console()
    net = load_weights(args.checkpoint)
    samples, origin = training_set(args.data), Origin.of(args.checkpoint, args.how)
    for size in args.size or [320]:
        folder = args.out / f"yolov10n-face-{size}"
        manifest = write_bundle(
            net, size, args.data, samples, folder, origin, console, max_drop=args.max_drop, named=args.named
        )
        console.print(f"{folder}: score threshold {manifest.score_threshold} {manifest.notes}")
        show_latency(manifest, console)
        sizes = [f"{f.path} {f.bytes / 1000:.0f}" for role, f in manifest.files.items() if role in INFERRED]
        console.print(f"  kB: {', '.join(sizes)}")
    return 0
