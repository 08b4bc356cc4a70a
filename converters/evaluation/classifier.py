"""Accuracy of an attribute head on faces it never saw: per class, per set, per artefact, with and without abstaining.

Everything is predicted through the runtimes of a box and the crops of `data.attributes`.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from converters.bundles.package import FILES, open_fp16, open_runtimes
from converters.data.attributes import HEADS, OTHER_RACE, Faces, Label, load
from converters.errors import ConvertError
from converters.evaluation.latency import latency_ms
from converters.nets.student import Student
from converters.quantization.quantize import network_input
from edge.models.bundle import Bundle
from edge.models.decoders import probabilities
from edge.models.manifest import Manifest, Measurement

Chances = NDArray[np.float32]
Predict = Callable[[NDArray[np.uint8]], Chances]
FOLD = 64  # pictures per call


@dataclass(frozen=True)
class Report:
    """One head on one set.

    Attributes:
        dataset: such as "utkface test adults".
        faces: how many had a known answer.
        accuracy: share of right answers when the head may not abstain.
        balanced: mean of the classes' recalls.
        recalls: per class, where the set has any of it.
        answered: share that reached the score threshold.
        answered_accuracy: accuracy among those.
        confusion: rows are truth, columns answers, in the labels' order.
    """

    dataset: str
    faces: int
    accuracy: float
    balanced: float
    recalls: dict[str, float]
    answered: float
    answered_accuracy: float
    confusion: list[list[int]]


def report(
    dataset: str, chances: Chances, truths: Sequence[tuple[int, ...]], labels: Sequence[str], threshold: float
) -> Report:
    """Score (N, C) probabilities against the right answers of each face (several: any of them is right)."""
    answers, sure = chances.argmax(axis=1), chances.max(axis=1) >= threshold
    right = np.array([a in truth for a, truth in zip(answers.tolist(), truths, strict=True)])
    confusion = np.zeros((len(labels), len(labels)), int)
    for answer, truth in zip(answers.tolist(), truths, strict=True):
        confusion[answer if answer in truth else truth[0], answer] += 1
    totals = confusion.sum(axis=1)
    recalls = {label: float(confusion[i, i] / totals[i]) for i, label in enumerate(labels) if totals[i]}
    return Report(
        dataset,
        len(truths),
        float(right.mean()),
        float(np.mean(list(recalls.values()))),
        recalls,
        float(sure.mean()),
        float(right[sure].mean()) if sure.any() else float("nan"),
        confusion.tolist(),
    )


def reports(predict: Predict, head: str, sets: Mapping[str, Faces], manifest: Manifest) -> list[Report]:
    """Return the reports of a head on every set that has labels for it."""
    found = []
    for name, faces in sets.items():
        known = [i for i, label in enumerate(faces.labels) if label.classes(head)]
        if not known:
            continue
        part = faces.subset(known)
        chances = predict(part.crops(manifest.crop_margin, manifest.input.width))
        truths = [label.classes(head) for label in part.labels]
        found.append(report(name, chances, truths, manifest.labels, manifest.score_threshold))
    return found


def abstained_on_others(predict: Predict, sets: Mapping[str, Faces], manifest: Manifest) -> dict[str, float]:
    """Return per set the share of faces of unlisted groups on which the race head stays silent."""
    shares = {}
    for name, faces in sets.items():
        others = [i for i, label in enumerate(faces.labels) if label.race == OTHER_RACE]
        if others:
            chances = predict(faces.subset(others).crops(manifest.crop_margin, manifest.input.width))
            shares[name] = float((chances.max(axis=1) < manifest.score_threshold).mean())
    return shares


def held_out(root: Path, cache: Path | None) -> dict[str, Faces]:
    """Return the held-out faces by name: tests of the training sets, and sets never trained on."""
    utk, fair = load(root, "utkface", cache).split("test"), load(root, "fairface", cache)
    return {
        "utkface test adults": _where(utk, lambda label: label.adult),
        "utkface test children": _where(utk, lambda label: not label.adult),
        "fer2013 test": load(root, "fer2013", cache).split("test"),
        "fairface adults": _where(fair, lambda label: label.ages[0] >= 20),
        "fairface children": _where(fair, lambda label: label.ages[0] < 20),
        "london": load(root, "london", cache),
    }


def predictors(folder: Path, manifest: Manifest, threads: int = 1) -> dict[str, Predict]:
    """Return a function from crops to probabilities for each artefact: fp32 (the checkpoint), int8_*, fp16_openvino."""

    def through(infer: Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]]) -> Predict:
        def predict(crops: NDArray[np.uint8]) -> Chances:
            parts = [crops[i : i + FOLD] for i in range(0, len(crops), FOLD)]
            return np.concatenate([probabilities(infer(part), manifest.decoder) for part in parts])

        return predict

    found: dict[str, Predict] = {}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.is_file():
        student = load_student(checkpoint)

        def infer_float(crops: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
            with torch.inference_mode():
                return [student(torch.from_numpy(network_input(crops, manifest.input))).numpy()]

        found["fp32"] = through(infer_float)
    found |= {name: through(runtime.infer) for name, runtime in open_runtimes(folder, manifest, threads).items()}
    if (folder / FILES["fp16_xml"]).is_file():
        found["fp16_openvino"] = through(open_fp16(folder, manifest, threads).infer)
    return found


def load_student(checkpoint: Path) -> Student:
    """Rebuild a student from a bundle's checkpoint; its widths are read off the tensors."""
    saved = torch.load(checkpoint, weights_only=True)
    if "classify.weight" not in saved:
        raise ConvertError(
            f"{checkpoint}: no tensor classify.weight, so this is no student; expected our own checkpoint"
        )
    blocks = len({key.split(".")[1] for key in saved if key.startswith("blocks.")})
    widths = tuple(saved[f"blocks.{i}.conv2.0.weight"].shape[0] for i in range(blocks))
    student = Student(saved["classify.weight"].shape[0], widths)
    student.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in saved.items()})
    return student.eval()


def threshold_for(chances: Chances, share: float = 0.85) -> float:
    """Return the score threshold at which `share` of these faces get an answer, rounded to a hundredth."""
    return round(float(np.quantile(chances.max(axis=1), 1 - share)), 2)


def measurements(found: Sequence[Report], artefact: str, command: str) -> list[Measurement]:
    """Return a manifest's accuracy lines."""
    lines = []
    for r in found:
        figures = {
            "accuracy": r.accuracy,
            "balanced_accuracy": r.balanced,
            "answered": r.answered,
            "answered_accuracy": r.answered_accuracy,
            **{f"recall {label}": value for label, value in r.recalls.items()},
        }
        lines += [
            Measurement(
                metric=metric,
                value=round(value, 4),
                artefact=artefact,  # type: ignore[arg-type]
                command=command,
                dataset=r.dataset,
                images=r.faces,
            )
            for metric, value in figures.items()
        ]
    return lines


def head_of(manifest: Manifest) -> str:
    """Return which of our heads a bundle's labels belong to.

    Raises:
        ConvertError: when they are nobody's; the data sets then hold no answers for it.
    """
    for head, labels in HEADS.items():
        if tuple(manifest.labels) == labels:
            return head
    raise ConvertError(f"{manifest.name} has the labels {manifest.labels}; the data sets know {dict(HEADS)}")


def evaluate(bundle: Bundle, args: argparse.Namespace) -> int:
    """Print the tables of every artefact of a bundle; write them as JSON where asked to."""
    manifest, console = bundle.manifest, Console()
    head = head_of(manifest)
    sets = held_out(args.data, args.cache)
    kept: dict[str, object] = {}
    for artefact, predict in predictors(bundle.folder, manifest, args.threads).items():
        found = reports(predict, head, sets, manifest)
        console.print(_table(f"{manifest.name}, {artefact}", found, manifest.labels))
        kept[artefact] = [asdict(r) for r in found]
        if head == "race":
            kept[f"{artefact} abstained on others"] = abstained_on_others(predict, sets, manifest)
            console.print("abstained on groups it has no class for:", kept[f"{artefact} abstained on others"])
    for artefact, runtime in open_runtimes(bundle.folder, manifest, args.threads).items():
        times = {f"batch {n}": latency_ms(runtime, manifest.input, n) / n for n in (1, 4)}
        kept[f"{artefact} ms per face"] = times
        console.print(f"{artefact}: " + ", ".join(f"{name} {ms:.2f} ms a face" for name, ms in times.items()))
    if args.json:
        args.json.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


def _table(title: str, found: Sequence[Report], labels: Sequence[str]) -> Table:
    table = Table(title=title)
    for column in ("set", "faces", "accuracy", "balanced", "answered", "accuracy then", *labels):
        table.add_column(column, justify="left" if column == "set" else "right")
    for r in found:
        shares = (r.accuracy, r.balanced, r.answered, r.answered_accuracy)
        recalls = [f"{r.recalls[label]:.2f}" if label in r.recalls else "" for label in labels]
        table.add_row(r.dataset, str(r.faces), *(f"{share:.3f}" for share in shares), *recalls)
    return table


def _where(faces: Faces, keep: Callable[[Label], bool]) -> Faces:
    return faces.subset([i for i, label in enumerate(faces.labels) if keep(label)])
