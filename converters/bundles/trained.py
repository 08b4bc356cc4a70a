"""Seal a head that was trained here on an integrator's own pictures: quantize, measure on held-out people, list them.

Driven by `distill` and `train-student --pictures`; quantizing and its fall-backs are those of foreign checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray
from rich.console import Console

from converters.bundles.foreign import Job, convert
from converters.bundles.foreign_judges import LabelJudge, keep_threshold
from converters.bundles.package import DATA, digest_of, write_data_list
from converters.bundles.student import golden_pictures
from converters.data.album import Album
from converters.quantization.quantize import OPSET
from edge.models.manifest import Calibration, Input, Manifest

CALIBRATION_PICTURES = 256
FEW = 64  # fewer faces than this are shown wider, tighter and mirrored too, so that the ranges do not rest on a handful


@dataclass(frozen=True)
class Origin:
    """What the manifest tells of where a head comes from.

    Attributes:
        source: one sentence: from what it was made.
        architecture: of the network.
        licence: of its weights.
        how: the command that makes it and measures it.
        notes: what a reader should know of the figures.
    """

    source: str
    architecture: str
    licence: str
    how: str
    notes: str


def write_trained(
    model: onnx.ModelProto,
    source: Input,
    album: Album,
    folder: Path,
    *,
    margin: float,
    threshold: float,
    origin: Origin,
    max_drop: float,
    console: Console,
    identifies: tuple[str, ...] | UnsetType = UNSET,
    beside: Callable[[Path], None] = lambda _: None,
) -> Manifest:
    """Write the bundle of a softmax head and print its table.

    Args:
        model: float ONNX, opset 18, with the one output `logits`.
        source: its input.
        album: calibration is drawn from its training faces, figures come from its test faces.
        folder: the bundle's, replaced as a whole.
        margin: the crop margin of training.
        threshold: below it the head abstains; chosen on faces that are not test.
        origin: for the manifest.
        max_drop: points of accuracy INT8 may lose; one face of the test may always change.
        console: for the table.
        identifies: labels that each stand for one person, for the manifest.
        beside: writes more files into the bundle.
    """

    def more(aside: Path) -> None:
        _list_data(album, aside)
        beside(aside)

    learnt, tests = album.split("train"), album.split("test")
    judged = list(tests.faces.crops(margin, source.width)[:, None])
    manifest = Manifest(
        name=folder.name,
        version="1",
        task="classifier",
        decoder="softmax",
        input=source,
        outputs=("logits",),
        files={},
        licence=origin.licence,
        source=origin.source,
        labels=album.labels,
        score_threshold=threshold,
        crop_margin=margin,
        opset=OPSET,
        architecture=origin.architecture,
        calibration=Calibration("its training faces", *_drawn(learnt)),
        notes=origin.notes,
        identifies=identifies,
    )
    job = Job(
        model=model,
        manifest=manifest,
        calibration=[calibration_crops(learnt, margin, source.width)],
        golden=list(golden_pictures(margin, source.width)),
        judge=LabelJudge(judged, tests.truth.tolist(), f"held-out faces ({tests.counts()})"),
        max_drop=max(max_drop, 100 / len(judged) + 1e-6),
        tune=keep_threshold,
        float_tail=False,
        how=origin.how,
        beside=more,
    )
    return convert(job, folder, console)


def calibration_crops(learnt: Album, margin: float, size_px: int) -> NDArray[np.uint8]:
    """Return (N, size, size, 3) uint8 BGR of training faces, the same ones every time."""
    crops = learnt.subset(_picked(learnt)).faces.crops(margin, size_px)
    if len(crops) >= FEW:
        return crops
    views = [crops, *(learnt.faces.crops(margin + extra, size_px) for extra in (0.1, -0.1))]
    return np.concatenate([*views, *(view[:, :, ::-1] for view in views)])


def _picked(learnt: Album) -> list[int]:
    count = len(learnt.truth)
    return np.linspace(0, count - 1, min(count, CALIBRATION_PICTURES)).round().astype(int).tolist()


def _drawn(learnt: Album) -> tuple[int, str]:
    """Return how many faces calibrate, and the digest of their files."""
    picked = _picked(learnt)
    return len(picked), digest_of([learnt.faces.digests[i] for i in picked])


def _list_data(album: Album, aside: Path) -> None:
    parts = {name: album.split(name).faces.digests for name in ("train", "val", "test")}
    used_for = {"train": "learning and calibration", "val": "the score threshold", "test": "the figures"}
    write_data_list(aside / DATA, {k: v for k, v in parts.items() if v}, used_for)
