"""`facefleet-convert detector`: a float checkpoint becomes a bundle that was measured before it was written.

What it takes: the weights of our YOLOv10n (a training checkpoint or the `checkpoint.pt` of a bundle) and the data
folder, whose validation pictures set the score threshold and whose test pictures give the figures.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
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
    open_runtimes,
    save_checkpoint,
    seal,
    staging,
    write_data_list,
    write_golden,
)
from converters.checkpoints.formats import format_of
from converters.checkpoints.inert_pickle import read_checkpoint
from converters.checkpoints.ultralytics import CLASS_BIAS
from converters.data.detection import PURPOSES, Sample, digests, face_mask, training_set
from converters.errors import ConvertError, QuantizeError
from converters.evaluation.detector import (
    REPORTED,
    Judge,
    Report,
    evaluate_runtimes,
    latency_ms,
    samples_of,
    show,
    tune_threshold,
)
from converters.evaluation.latency import cpu_name
from converters.nets.yolov10 import YOLOv10, load_weights
from converters.quantization.detector_artefacts import OUTPUTS, input_of, letterboxed, pick, write_float, write_int8
from converters.quantization.quantize import OPSET
from edge.models.golden import difference
from edge.models.manifest import Calibration, Manifest, Measurement
from edge.models.runtime import Runtime

HOW = "facefleet-convert train-detector --data DATA --work WORK --minutes 66"
# Half of the calibration pictures show crowds and half large faces, or the ranges of the coarse level come out short.
CALIBRATION_PICTURES = 160
THREADS = 2
LICENCE = (
    "Apache-2.0 (weights); trained on pictures under CC0 as declared by their uploader (face_mask), CC BY 4.0 (mik1i: "
    "Mohamed Traore and Justin Brady; FairFace: Karkkainen & Joo; Young Adult White Faces: DeBruine & Jones) and MIT "
    "(LivePortrait examples)"
)
Artefact = Literal["source", "fp32", "int8_onnx", "int8_openvino", "fp16_openvino"]


def describe_bundle(net: YOLOv10, size: int, how: str, calibration: Sequence[Sample]) -> Manifest:
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
        licence=LICENCE,
        source=f"trained by this project from scratch: {how}; {DATA} lists the pictures",
        labels=("face",),
        opset=OPSET,
        architecture=f"YOLOv10{net.scale} (arXiv 2405.14458), {net.act}, {weights} weights with both heads; "
        "one-to-one head, decoded in the graph, no top-k",
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
    net: YOLOv10, size: int, data: Path, samples: Sequence[Sample], folder: Path, how: str, console: Console
) -> Manifest:
    """Quantize, tune, measure and write one bundle.

    Args:
        net: the float network.
        size: side of the square input.
        data: the data folder.
        samples: the training set.
        folder: the bundle's folder, replaced as a whole.
        how: the command that trained the weights.
        console: told of every step.

    Raises:
        QuantizeError: the two INT8 artefacts disagree on the golden picture.
    """
    calibration = calibration_samples(samples)
    manifest = describe_bundle(net, size, how, calibration)
    with staging(folder) as aside, tempfile.TemporaryDirectory() as floats:
        write_float(net, size, Path(floats))
        write_int8(net, size, [s.image for s in calibration], aside)
        save_checkpoint(net, aside / FILES["checkpoint"])
        int8 = open_runtimes(aside, manifest, THREADS)
        manifest = tuned(manifest, int8["int8_openvino"], list(face_mask(data, "val")), samples)
        float_runtimes = open_runtimes(Path(floats), msgspec.structs.replace(manifest, calibration=None), THREADS)
        runtimes = float_runtimes | int8
        # FP32 on onnxruntime equals FP32 on OpenVINO to 1e-3 (a test holds it), so only its speed is measured.
        judged = {name: runtime for name, runtime in runtimes.items() if name != "fp32_onnx"}
        table = evaluate_runtimes(judged, manifest, samples_of(data, REPORTED))
        show(table, console)
        note = agreed_golden(aside, manifest, int8)
        manifest = msgspec.structs.replace(
            manifest,
            accuracy=tuple(accuracy_lines(manifest, table)),
            latency=tuple(latency_lines(manifest, runtimes)),
            notes=note,
        )
        write_data_list(aside / DATA, digests(samples), PURPOSES)
        manifest = seal(aside, manifest)
    return manifest


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
    """Measure all artefacts in turn, pixels in, outputs out."""
    command = f"facefleet-convert evaluate models_int8/{manifest.name} --data DATA --threads {THREADS}"
    image = golden_pictures(manifest.input.width)[0]
    metrics = {"fp32_onnx": "median_ms, FP32 on onnxruntime"}
    return [
        Measurement(metrics.get(name, "median_ms"), round(ms, 3), NAMES[name], command, cpu=cpu_name(), threads=THREADS)
        for name, ms in latency_ms(runtimes, image).items()
    ]


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
    parser.add_argument("--how", default=HOW, help="the training command, for the manifest (default: %(default)s)")
    parser.add_argument("--only", default="", help="the class to keep of a foreign YOLOv10 of several")
    add_common(parser, "detector", 0.5)
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
    if args.data is None:
        raise ConvertError(f"{args.checkpoint}: our own detector is calibrated on its data folder; give --data")
    console = Console()
    net = load_weights(args.checkpoint)
    samples = training_set(args.data)
    for size in args.size or [320]:
        folder = args.out / f"yolov10n-face-{size}"
        manifest = write_bundle(net, size, args.data, samples, folder, args.how, console)
        console.print(f"{folder}: score threshold {manifest.score_threshold} {manifest.notes}")
        for line in manifest.latency:
            console.print(f"  {line.artefact:14} {line.value:7.2f} ms  {line.metric}")
    return 0
