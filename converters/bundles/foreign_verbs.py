"""The verbs `classifier` and `embedder`, and `detector` for checkpoints that are not ours: arguments to a `Job`."""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from converters.bundles.foreign import Images, Job, Judge, convert
from converters.bundles.foreign_arguments import add_common, command_of, margin
from converters.bundles.foreign_judges import AgreementJudge, BoxJudge, CosineJudge, LabelJudge, keep_threshold
from converters.bundles.package import ASTRONAUT_FACE, astronaut, digest_of
from converters.bundles.steps import steps
from converters.checkpoints.formats import format_of
from converters.checkpoints.network import Told, crop_network, inferred, keras, with_pixels
from converters.checkpoints.onnx import (
    cut_activation,
    detector_input,
    detector_kind,
    fixed,
    picture_input,
    prepared,
    read_onnx,
    rename_output,
    single_output,
)
from converters.checkpoints.ultralytics import load_yolov10
from converters.data.calibration import calibration_pictures
from converters.data.face_crops import cut, widen
from converters.errors import CheckpointError, ConvertError
from converters.quantization.detector_artefacts import OUTPUTS, exported, input_of
from converters.quantization.graphs import starts_at_zero
from converters.quantization.quantize import OPSET, export_onnx
from edge.models.manifest import Calibration, Decoder, Input, Manifest, Task
from edge.track.letterbox import Letterbox

NAMED_MARGIN = 0.0


def run_detector(args: argparse.Namespace) -> int:
    """Convert a foreign detector: ultralytics YOLOv10 `.pt`, a supported ONNX, or a Keras single-face regressor."""
    if args.latency:
        raise ConvertError(f"{args.checkpoint}: --latency is for our own bundles; others are timed when converted")
    if len(args.size) > 1:
        raise ConvertError(f"--size {' '.join(map(str, args.size))}: a foreign detector becomes one bundle; give one")
    folder, size, console = _folder(args), args.size[0] if args.size else 0, Console()
    with steps(console) as say:
        say("reading the checkpoint")
        model, decoder, outputs, source = _detector(args.checkpoint, size, args.only)
        source = with_pixels(source, Told(color=args.color, mean=args.mean, scale=args.scale))
        say("reading pictures")
        letterbox = Letterbox(source.width, source.height, source.fit)
        images, calibration = _calibrate(args, source, lambda image: letterbox(image).copy())
        manifest = _manifest(args, folder, "detector", decoder, source, outputs, ("face",), calibration)
        judge = BoxJudge.of(args.data, args.calibrate, letterbox, manifest)
    job = _job(args, model, manifest, images, [letterbox(view).copy() for view in _views()], judge)
    job = replace(job, tune=judge.tune, float_tail=True, symmetric=starts_at_zero(model))
    convert(job, folder, console)
    return 0


def _detector(path: Path, size: int, only: str) -> tuple[onnx.ModelProto, Decoder, tuple[str, ...], Input]:
    kind = format_of(path)
    if kind == "torch":
        side = size or 640
        if side % 32:
            raise CheckpointError(f"{path}: --size {side}, expected a multiple of 32")
        net = load_yolov10(path, only).net
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(exported(net, side), input_of(side), OUTPUTS, Path(folder) / "model.onnx")
            return prepared(onnx.load(Path(folder) / "model.onnx"), str(path)), "yolov10", OUTPUTS, input_of(side)
    if kind in ("torchscript", "pt2"):
        raise CheckpointError(f"{path}: {kind} detectors are not supported; export it to ONNX")
    model = keras(path) if kind == "keras" else read_onnx(path)
    _, height, width = picture_input(model, str(path), size)
    model = fixed(model, 1, height, width)
    decoder, outputs = detector_kind(model, str(path))
    source = detector_input(decoder, height, width, str(path))
    return model, decoder, outputs, source


def run_classifier(args: argparse.Namespace) -> int:
    """Convert a classifier of face crops."""
    labels = tuple(label.strip() for label in args.labels.split(",") if label.strip())
    if len(labels) < 2:
        raise ConvertError(f"--labels {args.labels}: {len(labels)} found, expected at least two, separated by commas")
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConvertError(f"--labels {args.labels}: {', '.join(twice)} twice, expected a name of its own per output")
    folder, console = _folder(args), Console()
    with steps(console) as say:
        say("reading the checkpoint")
        model, source = crop_network(args.checkpoint, Told.of(args))
    model, cut_off = cut_activation(model)
    width = single_output(inferred(model), str(args.checkpoint))
    # One column is the chance of the second label; several columns under a sigmoid are chances of their own.
    decoder: Decoder = "sigmoid" if width == 1 or cut_off == "Sigmoid" else "softmax"
    if len(labels) != max(width, 2):
        raise CheckpointError(
            f"{args.checkpoint}: {width} output(s), so {max(width, 2)} labels are expected, but --labels names "
            f"{len(labels)}: {', '.join(labels)}"
        )
    with steps(console) as say:
        say("reading pictures")
        images, calibration = _calibrate(args, source, lambda image: _stretched(image, source))
        manifest = _manifest(args, folder, "classifier", decoder, source, ("logits",), labels, calibration)
        judge: Judge = LabelJudge.of(args.data, manifest) if args.data else AgreementJudge(images)
    convert(_job(args, model, manifest, images, _crops(args.margin, source), judge), folder, console)
    return 0


def run_embedder(args: argparse.Namespace) -> int:
    """Convert an embedder of face crops."""
    folder, console = _folder(args), Console()
    with steps(console) as say:
        say("reading the checkpoint")
        model, source = crop_network(args.checkpoint, Told.of(args))
    single_output(inferred(model), str(args.checkpoint))
    rename_output(model, model.graph.output[0].name, "embedding")
    if args.align:
        source = msgspec.structs.replace(source, fit="align")
    with steps(console) as say:
        say("reading pictures")
        images, calibration = _calibrate(args, source, lambda image: _stretched(image, source))
    manifest = _manifest(args, folder, "embedder", "vector", source, ("embedding",), (), calibration)
    convert(_job(args, model, manifest, images, _crops(args.margin, source), CosineJudge(images)), folder, console)
    return 0


def _folder(args: argparse.Namespace) -> Path:
    if args.calibrate is None:
        raise ConvertError("--calibrate FOLDER is missing: 128 to 300 pictures from where the box will stand")
    out: Path = args.out
    return out


def _calibrate(args: argparse.Namespace, source: Input, fit: Any) -> tuple[list[Images], Calibration]:
    images, digests = calibration_pictures(args.calibrate, fit, colour=source.color != "GRAY")
    return images, Calibration(args.calibrate.name, len(images), digest_of(digests))


def _stretched(image: NDArray[np.uint8], source: Input) -> Images:
    height, width = image.shape[:2]
    return cut(image, (0, 0, width, height), source.width)[0][None]


def _manifest(
    args: argparse.Namespace,
    folder: Path,
    task: Task,
    decoder: Decoder,
    source: Input,
    outputs: Sequence[str],
    labels: Sequence[str],
    calibration: Calibration,
) -> Manifest:
    return Manifest(
        name=folder.name,
        version="1",
        task=task,
        decoder=decoder,
        input=source,
        outputs=tuple(outputs),
        files={},
        licence=args.licence,
        source=f"converted from {args.checkpoint.name}",
        labels=tuple(labels),
        score_threshold=args.threshold,
        crop_margin=getattr(args, "margin", NAMED_MARGIN),
        opset=OPSET,
        architecture=f"foreign, {format_of(args.checkpoint)}",
        calibration=calibration,
    )


def _job(
    args: argparse.Namespace,
    model: onnx.ModelProto,
    manifest: Manifest,
    images: Sequence[Images],
    golden: Sequence[Images],
    judge: Judge,
) -> Job:
    how = command_of(args)
    return Job(model, manifest, images, golden, judge, args.max_drop, keep_threshold, False, how, args.named)


def _views() -> list[NDArray[np.uint8]]:
    """Return views of a public-domain portrait for the golden picture of a detector."""
    picture = astronaut()
    return [picture, picture[:400, 60:420], picture[:300, 100:400], picture[20:220, 130:330]]


def _crops(margin: float, source: Input) -> list[Images]:
    """Return crops of a public-domain face for the golden picture of a head or an embedder."""
    picture, extra = astronaut(), (0.0, 0.1, -0.1, 0.25)
    return [cut(picture, widen(ASTRONAUT_FACE, margin + e), source.width)[0][None] for e in extra]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `classifier` and `embedder`."""
    for verb, run, what in (
        ("classifier", run_classifier, "a classifier of face crops"),
        ("embedder", run_embedder, "an embedder of face crops"),
    ):
        parser = subparsers.add_parser(verb, help=f"turn {what} into an INT8 bundle")
        parser.add_argument("checkpoint", type=Path, help="state dict, TorchScript, .pt2, ONNX, Keras hdf5 or .keras")
        parser.add_argument("--size", type=int, default=0, help="side of the input, where the file does not say")
        parser.add_argument(
            "--margin", type=margin, default=0.0, help="of the face box, added on every side (default 0)"
        )
        parser.add_argument("--module", default="", help="package.module:Class of a state dict (default: our student)")
        parser.add_argument("--module-args", default="{}", help="its keyword arguments as JSON")
        parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
        if verb == "classifier":
            parser.add_argument("--labels", required=True, help="in the order of the outputs, separated by commas")
            parser.add_argument("--data", type=Path, help="held-out crops: a folder per label")
        else:
            parser.set_defaults(data=None)
            parser.add_argument(
                "--align",
                action="store_true",
                help="it was trained on upright faces, five points on the usual 112×112 places (ArcFace and its kin); "
                "give such crops to --calibrate too",
            )
        add_common(parser, verb, 0.3 if verb == "classifier" else 1.0)
        parser.set_defaults(run=run)
