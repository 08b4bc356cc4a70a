"""From a trained student to `models_int8/<head>-student/`: cut one head out, quantize, threshold, measure, seal."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from converters.bundles.artefacts import write_artefacts
from converters.bundles.measured import check_golden, latency
from converters.bundles.package import (
    ASTRONAUT_FACE,
    DATA,
    astronaut,
    digest_of,
    open_runtimes,
    seal,
    staging,
    write_data_list,
    write_golden,
)
from converters.data.attributes import HEADS, Faces
from converters.data.face_crops import cut, widen
from converters.evaluation.classifier import (
    abstained_on_others,
    held_out,
    measurements,
    predictors,
    reports,
    threshold_for,
)
from converters.nets.student import Student, parameters
from converters.quantization.quantize import OPSET
from edge.models.manifest import Calibration, Input, Manifest, Measurement
from edge.models.runtime import RESEARCH_ONLY

VERSION = "2"
OUTPUT = "logits"
CALIBRATION_PICTURES = 256
MAX_BYTES = 300_000
SOURCES = {
    "utkface": "UTKFace (research use only), aligned crops",
    "fer2013": "FER2013 (research use only), 48 px grey",
}


def student_input(size_px: int) -> Input:
    """Return how every student is fed: RGB in [0, 1], the box stretched to a square, any batch."""
    return Input(width=size_px, height=size_px, batch=0, fit="stretch")


def write_head(
    student: Student,
    head: str,
    learnt: Mapping[str, Faces],
    checked: Faces,
    tests: Mapping[str, Faces],
    folder: Path,
    *,
    margin: float,
    size_px: int,
    how: str,
) -> Manifest:
    """Write the bundle of one head and return its manifest.

    Args:
        student: with the logits of this head only.
        head: a key of HEADS.
        learnt: training faces by data set; calibration is drawn from those the head has labels for.
        checked: validation faces; the score threshold is chosen on them.
        tests: held-out faces by name.
        folder: the bundle's folder, replaced as a whole.
        margin: the crop margin of training.
        size_px: side of the input.
        how: the command that trained it.
    """
    used = {name: faces for name, faces in learnt.items() if any(label.classes(head) for label in faces.labels)}
    source = student_input(size_px)
    calibration, digest = calibration_crops(used, head, margin, size_px)
    manifest = Manifest(
        name=f"{head}-student",
        version=VERSION,
        task="classifier",
        decoder="softmax",
        input=source,
        outputs=(OUTPUT,),
        files={},
        licence=RESEARCH_ONLY,
        source=f"trained by this project ({how}) on {' and '.join(SOURCES[name] for name in learnt)}",
        labels=HEADS[head],
        crop_margin=margin,
        opset=OPSET,
        architecture=f"student CNN, skip connections, widths {'-'.join(map(str, student.widths))}, "
        f"{parameters(student)} weights",
        calibration=Calibration(f"{' and '.join(used)}, training part", len(calibration), digest),
    )
    with staging(folder) as aside:
        write_artefacts(student, student.fused(), source, OUTPUT, calibration, aside, most_bytes=MAX_BYTES)
        manifest = _measured(manifest, aside, head, checked, tests)
        runtimes = open_runtimes(aside, manifest)
        note = write_golden(aside, manifest, list(golden_pictures(margin, size_px)), runtimes["int8_openvino"].infer)
        command = f"facefleet-convert evaluate models_int8/{manifest.name} --data DATA"
        times = latency(aside, manifest, student.fused(), command)
        notes = " ".join(part for part in (manifest.notes, note) if part)
        manifest = msgspec.structs.replace(manifest, latency=times, notes=notes)
        lists = {name: faces.digests for name, faces in learnt.items()}
        write_data_list(aside / DATA, lists, {name: f"training, {SOURCES[name]}" for name in learnt})
        manifest = seal(aside, manifest)
        check_golden(aside, manifest, runtimes)
    return manifest


def calibration_crops(
    learnt: Mapping[str, Faces], head: str, margin: float, size_px: int
) -> tuple[NDArray[np.uint8], str]:
    """Return 256 training crops with a label of this head, (N, size, size, 3) uint8 BGR, and their digest."""
    rng = np.random.default_rng(0)
    crops: list[NDArray[np.uint8]] = []
    digests: list[str] = []
    for faces in learnt.values():
        known = [i for i, label in enumerate(faces.labels) if label.classes(head)]
        picked = rng.choice(known, min(len(known), CALIBRATION_PICTURES // len(learnt)), replace=False)
        part = faces.subset([int(i) for i in picked])
        crops.append(part.crops(margin, size_px))
        digests += part.digests
    return np.concatenate(crops), digest_of(digests)


def golden_pictures(margin: float, size_px: int) -> Iterator[NDArray[np.uint8]]:
    """Yield crops of a public-domain portrait, (1, size, size, 3) uint8 BGR, the plain one first."""
    picture = astronaut()
    for extra in (0.0, 0.1, -0.1, 0.25, -0.2):
        yield cut(picture, widen(ASTRONAUT_FACE, margin + extra), size_px)[0][None]


def _measured(manifest: Manifest, folder: Path, head: str, checked: Faces, tests: Mapping[str, Faces]) -> Manifest:
    """Return the manifest with its score threshold, chosen on validation faces, and the accuracy of every artefact."""
    predict = predictors(folder, manifest)
    known = checked.subset([i for i, label in enumerate(checked.labels) if label.classes(head)])
    threshold = threshold_for(predict["int8_openvino"](known.crops(manifest.crop_margin, manifest.input.width)))
    manifest = msgspec.structs.replace(manifest, score_threshold=threshold)
    command = f"facefleet-convert evaluate models_int8/{manifest.name} --data DATA"
    lines: list[Measurement] = []
    for artefact, each in predict.items():
        lines += measurements(reports(each, head, tests, manifest), artefact, command)
    if head != "race":
        return msgspec.structs.replace(manifest, accuracy=tuple(lines))
    for name, share in abstained_on_others(predict["int8_openvino"], tests, manifest).items():
        lines.append(
            Measurement("abstained on groups without a class", round(share, 4), "int8_openvino", command, dataset=name)
        )
    black = sum(label.race == 1 for label in checked.labels)
    notes = (
        f"Three classes only; UTKFace has about 340 black faces in all ({black} in validation), so that class rests on "
        f"few people. Faces of other groups should abstain more often than the three, and do so only in part."
    )
    return msgspec.structs.replace(manifest, accuracy=tuple(lines), notes=notes)


def write_heads(
    student: Student,
    heads: Mapping[str, tuple[int, int]],
    learnt: Mapping[str, Faces],
    checked: Faces,
    args: argparse.Namespace,
    how: str,
) -> None:
    """Cut a student of several heads apart and write a bundle for each.

    Args:
        student: logits of all heads side by side.
        heads: (first logit, number of logits) of each.
        learnt: training faces by data set.
        checked: validation faces.
        args: `data`, `cache`, `bundles`, `margin` of the command line.
        how: the command that trained it.
    """
    tests, console = held_out(args.data, args.cache), Console()
    torch.set_num_threads(args.threads)
    for head, (first, n) in heads.items():
        manifest = write_head(
            student.head(first, n),
            head,
            learnt,
            checked,
            tests,
            args.bundles / f"{head}-student",
            margin=args.margin,
            size_px=args.size,
            how=how,
        )
        console.print(f"{manifest.name}: score threshold {manifest.score_threshold} {manifest.notes}")
        for line in (*manifest.accuracy, *manifest.latency):
            if line.metric in ("accuracy", "balanced_accuracy", "answered_accuracy") or line.dataset == "":
                console.print(f"  {line.artefact:14} {line.dataset:22} {line.metric:22} {line.value:.3f}")
