"""How good an artefact of a foreign checkpoint is: on labelled pictures if there are any, else against its float."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from converters.bundles.foreign import Figure, Images
from converters.data.calibration import picture_files, read_picture
from converters.data.detection import Sample
from converters.evaluation.classifier import labelled_crops
from converters.evaluation.detector import Judge as Finder
from converters.evaluation.detector import report, samples_of, tune_threshold
from edge.models.decoders import Detections, probabilities, unit_vectors
from edge.models.manifest import Manifest
from edge.models.runtime import Runtime
from edge.track.letterbox import Letterbox

PICTURES = 60  # calibration pictures on which INT8 is compared with its float where nothing is labelled


def keep_threshold(manifest: Manifest, _reference: Runtime, _int8: Runtime) -> Manifest:
    """Return the manifest as it is: a classifier's threshold is chosen by whoever deploys it."""
    return manifest


class BoxJudge:
    """AP50 on labelled pictures; without any, agreement with the float artefact's own boxes.

    Args:
        tuning: pictures on which the score threshold is chosen; with boxes, or without when `labelled` is False.
        reported: pictures on which figures are reported.
        labelled: their boxes are known.
        name: of the reported set.
    """

    def __init__(self, tuning: Sequence[Sample], reported: Sequence[Sample], labelled: bool, name: str) -> None:
        self._tuning, self._reported, self._labelled, self._name = tuning, reported, labelled, name
        self._truth: list[NDArray[np.float32]] | None = [s.boxes for s in reported] if labelled else None

    @classmethod
    def of(cls, data: Path | None, calibrate: Path, letterbox: Letterbox, manifest: Manifest) -> "BoxJudge":
        """Read the pictures: the data folder's validation and test part, or halves of any labelled folder."""
        if data is None:
            empty = np.zeros((0, 4), np.float32)
            files = picture_files(calibrate)[:PICTURES]
            samples = [Sample(f.name, read_picture(f), empty, "folder", "") for f in files]
            return cls(samples, samples, False, f"{calibrate.name}, against FP32")
        sets = samples_of(data, ("face_mask/val", "face_mask/test"))
        if len(sets) == 2:
            tuning, reported = sets.values()
            return cls(tuning, reported, True, "face_mask/test")
        (name, samples) = next(iter(sets.items()))
        return cls(samples[::2], samples[1::2], True, f"{name}, every second picture")

    def __call__(self, runtime: Runtime, manifest: Manifest) -> list[Figure]:
        """Return AP50 first."""
        finder = Finder(runtime, manifest)
        found = [finder(s.image) for s in self._reported]
        if self._truth is None:  # the float artefact is judged first: its boxes are what INT8 has to find again
            self._truth = [_sure(f, manifest.score_threshold) for f in found]
        r = report(list(zip(found, self._truth, strict=True)), manifest.score_threshold)
        values = {"ap50": r.ap50, "ap50_95": r.ap50_95, "recall": r.recall, "precision": r.precision}
        return [Figure(metric, float(np.nan_to_num(v)), self._name, r.images) for metric, v in values.items()]

    def tune(self, manifest: Manifest, reference: Runtime, int8: Runtime) -> Manifest:
        """Return the manifest with the threshold at which INT8 does best on the tuning pictures."""
        finder, teacher = Finder(int8, manifest), Finder(reference, manifest)
        pairs = [
            (finder(s.image), s.boxes if self._labelled else _sure(teacher(s.image), manifest.score_threshold))
            for s in self._tuning
        ]
        if not any(len(truth) for _, truth in pairs):
            return manifest  # nothing to tune on: no face in these pictures, says the float
        return msgspec.structs.replace(manifest, score_threshold=tune_threshold(pairs, ()))


def _sure(found: Detections, threshold: float) -> NDArray[np.float32]:
    return found.xyxy[found.score >= threshold]


class LabelJudge:
    """Accuracy on crops whose label is known.

    Args:
        crops: each (1, H, W, 3) uint8 BGR of the network's size.
        truth: index of the right label of each.
        name: of the set they are from.
    """

    def __init__(self, crops: Sequence[Images] | Images, truth: Sequence[int], name: str) -> None:
        self._crops, self._truth, self._name = crops, np.array(truth), name

    @classmethod
    def of(cls, data: Path, manifest: Manifest) -> "LabelJudge":
        """Read a folder of crops with one subfolder per label."""
        crops, truth = labelled_crops(data, manifest)
        return cls(crops[:, None], truth, data.name)

    def __call__(self, runtime: Runtime, manifest: Manifest) -> list[Figure]:
        """Return accuracy, then the mean of the classes' recalls."""
        chances = np.concatenate([probabilities(runtime.infer(crop), manifest.decoder) for crop in self._crops])
        right, truth = chances.argmax(axis=1) == self._truth, self._truth
        recalls = [float(right[truth == k].mean()) for k in np.unique(truth)]
        count = len(truth)
        return [
            Figure("accuracy", float(right.mean()), self._name, count),
            Figure("balanced_accuracy", float(np.mean(recalls)), self._name, count),
        ]


class AgreementJudge:
    """How often INT8 gives the label that the float gives, on the calibration crops; the float is judged first."""

    def __init__(self, images: Sequence[Images]) -> None:
        self._images = images
        self._truth: NDArray[np.float32] | None = None

    def __call__(self, runtime: Runtime, manifest: Manifest) -> list[Figure]:
        """Return the share of equal labels, then one minus the mean difference in probability."""
        chances = np.concatenate([probabilities(runtime.infer(i), manifest.decoder) for i in self._images])
        if self._truth is None:
            self._truth = chances
        same = float((chances.argmax(axis=1) == self._truth.argmax(axis=1)).mean())
        near = 1 - float(np.abs(chances - self._truth).mean())
        name, count = "calibration, against FP32", len(chances)
        return [Figure("agreement", same, name, count), Figure("nearness", near, name, count)]


class CosineJudge:
    """Mean cosine between INT8 and float embeddings of the calibration crops; the float is judged first."""

    def __init__(self, images: Sequence[Images]) -> None:
        self._images = images
        self._truth: NDArray[np.float32] | None = None

    def __call__(self, runtime: Runtime, manifest: Manifest) -> list[Figure]:
        """Return the mean, then the worst."""
        vectors = np.concatenate([unit_vectors(runtime.infer(i)) for i in self._images])
        if self._truth is None:
            self._truth = vectors
        cosine = (vectors * self._truth).sum(axis=1)
        name, count = "calibration, against FP32", len(vectors)
        return [
            Figure("cosine", float(cosine.mean()), name, count),
            Figure("worst_cosine", float(cosine.min()), name, count),
        ]
