"""How near the landmark student's points are to YuNet's, on faces nobody learnt from, in eye distances.

One look of YuNet at a picture wavers itself; `MarkedFaces.points` is the mean of four looks, `glance` a single one.
Both distances are told, and how far YuNet's own glance lies from its mean: no student can be nearer to a glance.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from converters.data.face_crops import cut
from converters.data.landmarks import CONTEXT, CONTEXT_PX, HELD_OUT, MarkedFaces, load
from converters.errors import ConvertError
from converters.evaluation import artefacts, plots
from converters.evaluation.artefacts import Floats, Predict
from converters.nets.landmarks import LandmarkNet
from edge.models.bundle import Bundle
from edge.models.manifest import Manifest, Measurement

# Eyes nearer than this share of the box's side are a profile's: there an error in eye distances means nothing.
PROFILE = 0.2


@dataclass(frozen=True)
class Report:
    """One artefact on one set of faces; errors are means over the five points, in eye distances.

    Attributes:
        dataset: such as "london".
        faces, profiles: how many were judged, and how many more were left out because their eyes nearly coincide.
        error: against YuNet's mean of four looks; `median`, `p95` of the faces' errors.
        error_to_glance: against YuNet's single look.
        glance_to_mean: YuNet's single look against its own mean.
        within_4pct: share of faces with an error of at most 0.04.
    """

    dataset: str
    faces: int
    profiles: int
    error: float
    median: float
    p95: float
    error_to_glance: float
    glance_to_mean: float
    within_4pct: float


def crops_of(faces: MarkedFaces, margin: float, size_px: int) -> NDArray[np.uint8]:
    """Return (N, size, size, 3) uint8 BGR: YuNet's box widened by `margin` on every side, as a box cuts it."""
    low = (CONTEXT - margin) / (1 + 2 * CONTEXT) * CONTEXT_PX
    box = (low, low, CONTEXT_PX - low, CONTEXT_PX - low)
    return np.stack([cut(picture, box, size_px)[0] for picture in faces.pictures])


def to_context(points: Floats, margin: float) -> Floats:
    """Bring (N, 5, 2) points in [0, 1] of a crop with `margin` to [0, 1] of the context crop."""
    # The crop begins and ends at whole pixels of the context crop.
    low = round((CONTEXT - margin) / (1 + 2 * CONTEXT) * CONTEXT_PX) / CONTEXT_PX
    return np.asarray(points * (1 - 2 * low) + low, np.float32)


def errors(found: Floats, wanted: Floats, sizes: Floats) -> Floats:
    """Return the (N,) mean distances of five points in eye distances.

    Args:
        found: (N, 5, 2) in [0, 1] of the context crop.
        wanted: the same; its eyes give the unit.
        sizes: (N, 2) width and height of the face boxes in pixels.
    """
    context = (sizes * (1 + 2 * CONTEXT))[:, None]
    off = np.linalg.norm((found - wanted) * context, axis=2).mean(axis=1)
    return np.asarray(off / eye_distance(wanted, sizes), np.float32)


def eye_distance(points: Floats, sizes: Floats) -> Floats:
    """Return the (N,) distances between the eyes in pixels of the picture."""
    return np.asarray(np.linalg.norm((points[:, 1] - points[:, 0]) * sizes * (1 + 2 * CONTEXT), axis=1), np.float32)


def frontal(faces: MarkedFaces) -> NDArray[np.bool_]:
    """Say which faces show both eyes well apart."""
    return eye_distance(faces.points, faces.sizes) >= PROFILE * np.sqrt(faces.sizes.prod(axis=1))


def report(dataset: str, found: Floats, faces: MarkedFaces) -> tuple[Report, Floats]:
    """Judge (N, 5, 2) points in [0, 1] of the context crop; return the errors of the judged faces too."""
    keep = np.flatnonzero(frontal(faces))
    part = faces.subset(keep)
    off = errors(found[keep], part.points, part.sizes)
    return (
        Report(
            dataset=dataset,
            faces=len(part),
            profiles=len(faces) - len(part),
            error=float(off.mean()),
            median=float(np.median(off)),
            p95=float(np.quantile(off, 0.95)),
            error_to_glance=float(errors(found[keep], part.glance, part.sizes).mean()),
            glance_to_mean=float(errors(part.glance, part.points, part.sizes).mean()),
            within_4pct=float((off <= 0.04).mean()),
        ),
        off,
    )


def reports(predict: Predict, sets: Mapping[str, MarkedFaces], manifest: Manifest) -> tuple[list[Report], list[Floats]]:
    """Return the reports and the faces' errors of every set, and of all faces together."""
    found, off = [], []
    every = {**sets, "all held-out faces": merge(list(sets.values()))} if len(sets) > 1 else sets
    for name, faces in every.items():
        points = predict(crops_of(faces, manifest.crop_margin, manifest.input.width))
        one, each = report(name, to_context(points, manifest.crop_margin), faces)
        found.append(one)
        off.append(each)
    return found, off


def merge(parts: Sequence[MarkedFaces]) -> MarkedFaces:
    """Return several sets as one."""
    pictures, points, glance, boxes = (
        np.concatenate([getattr(p, key) for p in parts]) for key in ("pictures", "points", "glance", "boxes")
    )
    names, digests = (tuple(text for p in parts for text in getattr(p, key)) for key in ("names", "digests"))
    return MarkedFaces(pictures, points, glance, boxes, names, digests)


def predictors(folder: Path, manifest: Manifest, threads: int = 1) -> dict[str, Predict]:
    """Return a function from crops to (N, 5, 2) points in [0, 1] for each artefact, the checkpoint's as fp32."""
    return artefacts.predictors(
        folder, manifest, load_net, lambda outputs: outputs[0].reshape(len(outputs[0]), -1, 2), threads=threads
    )


def load_net(checkpoint: Path) -> LandmarkNet:
    """Rebuild the network of a bundle's checkpoint; its widths are read off the tensors."""
    saved = torch.load(checkpoint, weights_only=True)
    if "heat.weight" not in saved:
        raise ConvertError(f"{checkpoint}: no tensor heat.weight; expected the checkpoint of our landmark student")
    keys = ("stem.0.weight", "fine.conv2.0.weight", "middle.conv2.0.weight", "coarse.1.conv2.0.weight")
    stem, fine, middle, coarse = (saved[key].shape[0] for key in keys)
    net = LandmarkNet((stem, fine, middle, coarse))
    net.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in saved.items()})
    return net.eval()


def measurements(found: Sequence[Report], artefact: str, command: str) -> list[Measurement]:
    """Return a manifest's accuracy lines."""
    metrics = ("error", "median", "p95", "error_to_glance", "glance_to_mean", "within_4pct")
    return [
        Measurement(metric, round(getattr(r, metric), 4), artefact, command, r.dataset, images=r.faces)  # type: ignore[arg-type]
        for r in found
        for metric in metrics
    ]


def evaluate(bundle: Bundle, args: argparse.Namespace) -> dict[str, object]:
    """Measure every artefact of a landmark bundle; `errors.png` in `args.out` has the faces' errors.

    Args:
        bundle: of landmarks, five points.
        args: `data`, `cache`, `threads`, `out` of `facefleet-convert evaluate`.
    """
    manifest, console = bundle.manifest, Console()
    sets = {name: load(args.data, name, args.cache) for name in HELD_OUT}
    kept: dict[str, object] = {}
    for artefact, predict in predictors(bundle.folder, manifest, args.threads).items():
        found, off = reports(predict, sets, manifest)
        console.print(table(f"{manifest.name}, {artefact}: mean error in eye distances", found))
        kept[artefact] = [asdict(r) for r in found]
        if artefact == "int8_openvino":
            names = [r.dataset for r in found]
            title = f"{manifest.name}, {artefact}, against YuNet's mean look"
            plots.cumulative_errors(args.out / "errors.png", title, dict(zip(names, off, strict=True)))
    return kept | artefacts.ms_per_face(bundle, load_net, args.threads, console)


def table(title: str, found: Sequence[Report]) -> Table:
    """Return one row per set."""
    columns = ("error", "median", "p95", "within_4pct", "error_to_glance", "glance_to_mean")
    short = ("mean", "median", "p95", "≤ 4 %", "to a glance", "glance to mean")
    grid = Table("set", "faces", "profiles", *short, title=title)
    for r in found:
        grid.add_row(r.dataset, str(r.faces), str(r.profiles), *(f"{getattr(r, c):.4f}" for c in columns))
    return grid
