"""Judge a face detector on labelled pictures: AP at IoU 0.5 and 0.5–0.95, by face size, recall and false boxes.

Everything goes through `edge`'s own letterbox and decoders, so that the figures are those of a box in the field.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from converters.bundles.package import DATA, open_fp16, open_runtimes
from converters.bundles.steps import steps
from converters.data.detection import Sample, face_mask, fairface, london, mik1i_negatives, mik1i_people, yolo_folder
from converters.errors import ConvertError
from converters.evaluation import plots
from converters.evaluation.latency import in_turn
from converters.nets.yolov10 import YOLOv10, load_weights
from converters.nets.yolov10_export import Exported
from edge.geometry import area, iou
from edge.models.bundle import Bundle
from edge.models.decoders import DECODERS, Detections
from edge.models.manifest import Input, Manifest
from edge.models.preprocess import to_tensor
from edge.models.runtime import LIBRARIES, Runtime, candidates
from edge.track.letterbox import Letterbox

LOW_SCORE = 0.001  # AP needs the whole curve, not what a box would publish
# What a threshold is set for: a face missed in one frame is found in the next, a false visit stays for ever. So nearly
# everything found shall be a face, as long as that costs no more than so much F1.
PRECISION, AT_MOST = 0.975, 0.05
IOUS = tuple(np.arange(0.5, 1.0, 0.05).round(2).tolist())

Sides = tuple[float, float]
ANY: Sides = (0.0, 1e9)
# COCO's words for the square root of a box's area, in pixels of the picture.
SIZES: dict[str, Sides] = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, 1e9)}

Scored = tuple[Detections, NDArray[np.float32]]


def average_precision(pictures: Sequence[Scored], iou_threshold: float, sides: Sides = ANY) -> float:
    """Return the area under the interpolated precision-recall curve (Everingham et al. 2010, all points).

    Args:
        pictures: per picture the detections and its (N, 4) float32 faces, in the same pixels.
        iou_threshold: a detection hits the best face not yet hit at or above this.
        sides: faces whose square root of area, in pixels of the picture, is outside [low, high) neither help nor harm.
    """
    recall, precision = precision_recall(pictures, iou_threshold, sides)
    if not len(recall):
        return float("nan")
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def precision_recall(
    pictures: Sequence[Scored], iou_threshold: float, sides: Sides = ANY
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return recall and precision after each detection, best score first; empty where there are no faces.

    Args: those of `average_precision`.
    """
    scores, hits, total = [np.zeros(0, np.float32)], [np.zeros(0, bool)], 0
    for found, faces in pictures:
        side = np.sqrt(area(faces))
        counted = (side >= sides[0]) & (side < sides[1])
        total += int(counted.sum())
        hit, kept = match(found, faces, counted, iou_threshold, sides)
        scores.append(found.score[kept])
        hits.append(hit[kept])
    if total == 0:
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.concatenate(hits)[order]
    return np.cumsum(hit) / total, np.cumsum(hit) / np.arange(1, len(hit) + 1)


def match(
    found: Detections,
    faces: NDArray[np.float32],
    counted: NDArray[np.bool_],
    iou_threshold: float,
    sides: Sides,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match detections, best first, to faces.

    Returns:
        (N,) bool: hit a counted face; (N,) bool: takes part (False: hit an uncounted face, or missed at another size).
    """
    hit, kept = np.zeros(len(found.score), bool), np.ones(len(found.score), bool)
    overlap = iou(found.xyxy, faces) if len(faces) else np.zeros((len(found.score), 0), np.float32)
    free = np.ones(len(faces), bool)
    side = np.sqrt(area(found.xyxy))
    for row in np.argsort(-found.score, kind="stable"):
        fits = np.where(free, overlap[row], 0.0)
        best = int(fits.argmax()) if len(faces) else -1
        if best >= 0 and fits[best] >= iou_threshold:
            free[best] = False
            hit[row] = kept[row] = bool(counted[best])
        else:
            kept[row] = sides[0] <= side[row] < sides[1]
    return hit, kept


def to_frame(found: Detections, letterbox: Letterbox) -> Detections:
    """Bring boxes from input pixels back to the picture that was last drawn."""
    corners = letterbox.placement.to_frame(found.xyxy.reshape(-1, 2, 2))
    return Detections(corners.reshape(-1, 4).astype(np.float32), found.score)


@torch.inference_mode()
def predict_torch(net: YOLOv10, image: NDArray[np.uint8], size: int, threshold: float = LOW_SCORE) -> Detections:
    """Run a float network in torch on one (H, W, 3) uint8 BGR picture; boxes in its pixels."""
    spec = Input(width=size, height=size)
    letterbox = Letterbox(size, size)
    tensor = torch.from_numpy(to_tensor(letterbox(image), spec))
    boxes, scores = Exported(net.eval(), size, size)(tensor)
    return to_frame(DECODERS["yolov10"]([boxes.numpy(), scores.numpy()], spec, threshold), letterbox)


class Judge:
    """A runtime with `edge`'s letterbox before it and its decoder behind it, at whatever threshold is asked for."""

    def __init__(self, runtime: Runtime, manifest: Manifest) -> None:
        self._runtime, self._manifest = runtime, manifest
        self._letterbox = Letterbox(manifest.input.width, manifest.input.height, manifest.input.fit)

    def __call__(self, image: NDArray[np.uint8], threshold: float = LOW_SCORE) -> Detections:
        """Find faces in one (H, W, 3) uint8 BGR picture; boxes in its pixels."""
        outputs = self._runtime.infer(self._letterbox(image))
        decoded = DECODERS[self._manifest.decoder](outputs, self._manifest.input, threshold)
        return to_frame(decoded, self._letterbox)


@dataclass(frozen=True)
class Report:
    """What one artefact does on one set of pictures.

    Attributes:
        ap50, ap50_95: over all faces; `ap50_small`, `ap50_medium`, `ap50_large` by COCO's sizes; NaN without faces.
        recall, precision: at the score threshold and IoU 0.5; `false_boxes` is what precision misses, counted.
    """

    images: int
    faces: int
    ap50: float
    ap50_95: float
    ap50_small: float
    ap50_medium: float
    ap50_large: float
    recall: float
    precision: float
    false_boxes: int


def report(pictures: Sequence[Scored], threshold: float) -> Report:
    """Sum up detections that were collected at `LOW_SCORE`."""
    true, found, faces = counts(pictures, threshold)
    sizes = {f"ap50_{name}": average_precision(pictures, 0.5, sides) for name, sides in SIZES.items()}
    return Report(
        images=len(pictures),
        faces=faces,
        ap50=average_precision(pictures, 0.5),
        ap50_95=statistics.fmean(average_precision(pictures, t) for t in IOUS),
        recall=true / faces if faces else float("nan"),
        precision=true / found if found else float("nan"),
        false_boxes=found - true,
        **sizes,
    )


def tune_threshold(pictures: Sequence[Scored], negatives: Sequence[Scored], per_negatives: int = 50) -> float:
    """Return the lowest score threshold with `PRECISION`, or with the best F1 where that would cost too much of it.

    Only those count that leave at most one false box per `per_negatives` negatives.

    Args:
        pictures: the validation set, detections at `LOW_SCORE`.
        negatives: pictures without faces the model was tuned beside, not those it is reported on; may be empty.
    """
    f1: dict[float, float] = {}
    precise: list[float] = []
    scores = np.concatenate([found.score for found, _ in negatives] or [np.zeros(0, np.float32)])
    for threshold in np.arange(0.05, 0.90, 0.01).round(2).tolist():
        if int((scores >= threshold).sum()) * per_negatives > len(negatives):
            continue
        true, found, faces = counts(pictures, threshold)
        f1[threshold] = 2 * true / max(found + faces, 1)
        if true >= PRECISION * found:
            precise.append(threshold)
    if not f1:
        return 0.5
    best = max(f1, key=lambda t: f1[t])
    return next((t for t in precise if f1[t] >= f1[best] - AT_MOST), best)


def counts(pictures: Sequence[Scored], threshold: float) -> tuple[int, int, int]:
    """Return true boxes, boxes found and faces at one threshold and IoU 0.5."""
    true = found = faces = 0
    for detections, boxes in pictures:
        hit, _ = match(detections, boxes, np.ones(len(boxes), bool), 0.5, ANY)
        published = detections.score >= threshold
        true, found, faces = true + int(hit[published].sum()), found + int(published.sum()), faces + len(boxes)
    return true, found, faces


SETS: dict[str, Callable[[Path], Iterable[Sample]]] = {
    "face_mask/test": lambda data: face_mask(data, "test"),
    "face_mask/val": lambda data: face_mask(data, "val"),
    "fairface": fairface,
    "london": london,
    "mik1i/negatives": mik1i_negatives,
    "mik1i/people": mik1i_people,
}


def samples_of(data: Path, names: Sequence[str]) -> dict[str, list[Sample]]:
    """Read the named sets of the data folder, or `images/` and `labels/` (YOLO txt) of any other folder."""
    if (data / "images").is_dir() and (data / "labels").is_dir():
        return {data.name: list(yolo_folder(data))}
    unknown = sorted(set(names) - SETS.keys())
    if unknown or not (data / "detection").is_dir():
        raise ConvertError(
            f"{data}: no set {unknown or names} here; expected images/ and labels/, or the data folder with one of "
            f"{sorted(SETS)}"
        )
    return {name: list(SETS[name](data)) for name in names}


def evaluate_runtimes(
    runtimes: Mapping[str, Runtime], manifest: Manifest, sets: Mapping[str, Sequence[Sample]]
) -> dict[str, dict[str, Report]]:
    """Return a report per artefact and set."""
    return {
        artefact: {name: report(scored, manifest.score_threshold) for name, scored in found.items()}
        for artefact, found in detections(runtimes, manifest, sets).items()
    }


def detections(
    runtimes: Mapping[str, Runtime], manifest: Manifest, sets: Mapping[str, Sequence[Sample]]
) -> dict[str, dict[str, list[Scored]]]:
    """Return what each artefact finds above `LOW_SCORE` on each set, beside the faces that are there."""
    found: dict[str, dict[str, list[Scored]]] = {}
    for artefact, runtime in runtimes.items():
        judge = Judge(runtime, manifest)
        found[artefact] = {
            name: [(judge(s.image), s.boxes) for s in track(samples, f"{artefact} {name}", transient=True)]
            for name, samples in sets.items()
        }
    return found


def show(table: Mapping[str, Mapping[str, Report]], console: Console) -> None:
    """Print one row per set and artefact."""
    columns = ["ap50", "ap50_95", "ap50_small", "ap50_medium", "ap50_large", "recall", "precision", "false_boxes"]
    grid = Table("set", "artefact", "images", "faces", *columns)
    for artefact, reports in table.items():
        for name, r in reports.items():
            values = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in (getattr(r, c) for c in columns)]
            grid.add_row(name, artefact, str(r.images), str(r.faces), *values)
    console.print(grid)


REPORTED = ("face_mask/test", "london", "mik1i/negatives")
FAIRFACE = "fairface"


def unseen(folder: Path) -> tuple[str, ...]:
    """Return the sets a bundle is measured on: FairFace too, unless its `data.json` says that it has learnt from it."""
    path = folder / DATA
    learnt = json.loads(path.read_text()).get(FAIRFACE, {}).get("pictures", 0) if path.exists() else 0
    return REPORTED if learnt else (*REPORTED, FAIRFACE)


def evaluate(bundle: Bundle, args: argparse.Namespace) -> dict[str, object]:
    """Measure every artefact of a bundle on the CPU, and its float checkpoint where it has one.

    Args:
        bundle: of a detector.
        args: `data`, `threads`, `out` of `facefleet-convert evaluate`.

    Returns:
        What is kept as JSON; `pr.png` in `args.out` has the curves at IoU 0.5.
    """
    console, ways, threshold = Console(), candidates(bundle, "CPU"), bundle.manifest.score_threshold
    with steps(console) as say:
        say("reading pictures")
        sets = samples_of(args.data, unseen(bundle.folder))
    runtimes = {way.artefact: LIBRARIES[way.library](bundle, way, args.threads, None) for way in ways}
    with tempfile.TemporaryDirectory() as aside:
        if bundle.manifest.decoder == "yolov10" and "checkpoint" in bundle.manifest.files:
            runtimes = float_runtimes(bundle, Path(aside), args.threads) | runtimes
        if "fp16_xml" in bundle.manifest.files:
            runtimes["fp16_openvino"] = open_fp16(bundle.folder, bundle.manifest, args.threads)
        found = detections(runtimes, bundle.manifest, sets)
        source = bundle.manifest.input
        with steps(console) as say:
            say("measuring latency")
            times = in_turn(runtimes, np.full((1, source.height, source.width, 3), 114, np.uint8))
    table = {a: {name: report(scored, threshold) for name, scored in sets.items()} for a, sets in found.items()}
    show(table, console)
    console.print("median ms (of rounds), CPU ms: " + "  ".join(f"{n} {t}, {t.cpu:.2f}" for n, t in times.items()))
    draw(found, args.out / "pr.png", bundle.manifest.name)
    plain = {a: {name: asdict(r) for name, r in reports.items()} for a, reports in table.items()}
    return {"accuracy": plain, "latency_ms": {n: asdict(t) for n, t in times.items()}}


def draw(found: Mapping[str, Mapping[str, Sequence[Scored]]], path: Path, title: str) -> None:
    """Draw the precision-recall curves at IoU 0.5 of every set that has faces."""
    curves: dict[str, dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    for artefact, sets in found.items():
        for name, scored in sets.items():
            if any(len(faces) for _, faces in scored):
                curves.setdefault(name, {})[artefact] = precision_recall(scored, 0.5)
    if curves:
        plots.precision_recall(path, f"{title}, IoU 0.5", curves)


def float_runtimes(bundle: Bundle, folder: Path, threads: int) -> dict[str, Runtime]:
    """Compile the checkpoint's FP32 network for both runtimes, under the names fp32_openvino and fp32_onnx."""
    from converters.quantization.detector_artefacts import write_float

    write_float(load_weights(bundle.path("checkpoint")), bundle.manifest.input.width, folder)
    return open_runtimes(folder, msgspec.structs.replace(bundle.manifest, calibration=None), threads)
