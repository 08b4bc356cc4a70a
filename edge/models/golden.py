"""The golden check: does this runtime on this machine compute what the model computed when it was converted?

Compared on the task's level, not bit by bit: processors with and without VNNI differ harmlessly (YuNet INT8: 0.06 in
score, 0.8 px), while bf16 (0.18, 1.2 px) and a broken kernel (0.85, 23 px) must not pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelError
from edge.geometry import iou
from edge.models.bundle import Bundle
from edge.models.decoders import DECODERS, Detections, points, probabilities, unit_vectors
from edge.models.manifest import Manifest

Floats = NDArray[np.float32]
Infer = Callable[[NDArray[np.uint8]], Sequence[Floats]]

MIN_IOU = 0.9
SCORE_TOLERANCE = 0.1
MIN_COSINE = 0.98
POINT_TOLERANCE = 0.02  # of the input's width: 2 px at 96


@dataclass(frozen=True, slots=True)
class Golden:
    """An input (N, H, W, 3) uint8 BGR, N = 1, and the outputs that belong to it, float32, in manifest order."""

    image: NDArray[np.uint8]
    outputs: tuple[Floats, ...]


def load_golden(bundle: Bundle) -> Golden:
    """Read the bundle's golden file.

    Raises:
        ModelError: the bundle has none, or it does not fit the manifest.
    """
    path, manifest = bundle.path("golden"), bundle.manifest
    shape = (1, manifest.input.height, manifest.input.width, 3)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            golden = Golden(arrays["input"], tuple(arrays[name].astype(np.float32) for name in manifest.outputs))
    except (KeyError, ValueError, OSError, BadZipFile) as error:
        raise ModelError(f"{path}: {error}; build the bundle again with facefleet-convert") from error
    if golden.image.shape != shape or golden.image.dtype != np.uint8:
        raise ModelError(f"{path}: input is {golden.image.dtype} {golden.image.shape}, expected uint8 {shape}")
    return golden


def save_golden(path: Path, manifest: Manifest, golden: Golden) -> None:
    """Write what `load_golden` reads."""
    named: dict[str, NDArray[np.generic]] = dict(zip(manifest.outputs, golden.outputs, strict=True))
    np.savez_compressed(path, allow_pickle=False, input=golden.image, **named)


def difference(manifest: Manifest, expected: Sequence[Floats], found: Sequence[Floats]) -> str | None:
    """Say how two sets of outputs differ beyond the task's tolerance, or None if they mean the same."""
    shapes = [tuple(a.shape for a in outputs) for outputs in (expected, found)]
    if shapes[0] != shapes[1]:
        return f"output shapes {shapes[1]}, expected {shapes[0]}"
    if not all(np.isfinite(a).all() for a in found):
        return "outputs contain NaN or infinity"
    match manifest.task:
        case "detector":
            return _boxes_differ(manifest, expected, found) or _boxes_differ(manifest, found, expected)
        case "classifier":
            a, b = (probabilities(outputs, manifest.decoder)[0] for outputs in (expected, found))
            if a.argmax() != b.argmax():
                return f"label {manifest.labels[b.argmax()]}, expected {manifest.labels[a.argmax()]}"
            gap = float(np.abs(a - b).max())
            return f"probability off by {gap:.2f}, allowed {SCORE_TOLERANCE}" if gap > SCORE_TOLERANCE else None
        case "landmarks":
            distance = np.linalg.norm(points(expected, manifest.input) - points(found, manifest.input), axis=-1)
            worst, allowed = float(distance.max()), POINT_TOLERANCE * manifest.input.width
            return f"a point is {worst:.1f} px off, allowed {allowed:.1f}" if worst > allowed else None
        case "embedder":
            cosine = float((unit_vectors(expected) * unit_vectors(found)).sum(axis=1).min())
            return f"cosine {cosine:.3f}, expected ≥ {MIN_COSINE}" if cosine < MIN_COSINE else None


def _boxes_differ(manifest: Manifest, these: Sequence[Floats], those: Sequence[Floats]) -> str | None:
    """Look for each box of `these` in `those`; one that the tolerance may push under the threshold is not missed."""
    decode, threshold = DECODERS[manifest.decoder], manifest.score_threshold
    ours = decode(these, manifest.input, threshold)
    # A threshold a little lower, so that a box just above it on one side and just below it on the other still meets.
    theirs = decode(those, manifest.input, max(threshold - SCORE_TOLERANCE, 1e-3))
    for xyxy, score in zip(ours.xyxy, ours.score, strict=True):
        box = [round(float(v)) for v in xyxy]
        overlap = iou(xyxy[None], theirs.xyxy)[0]
        near = np.flatnonzero(overlap >= MIN_IOU)
        if not len(near):
            best = float(overlap.max(initial=0.0))
            return f"box {box}, score {score:.2f}, has no counterpart: best IoU {best:.2f}, expected ≥ {MIN_IOU}"
        gap = float(np.abs(theirs.score[near] - score).min())
        if gap > SCORE_TOLERANCE:
            return f"box {box} is off by {gap:.2f} in score, allowed {SCORE_TOLERANCE}"
    return None


def blind_spot(manifest: Manifest, golden: Golden, infer: Infer) -> str | None:
    """Say why this golden input is no test, or None: it must show something, and swapped channels must fail.

    Raises nothing; the converters ask before they ship a bundle and `bundle verify` asks again.
    """
    if manifest.task == "detector" and not len(_decoded(manifest, golden.outputs).score):
        return f"the golden input shows no box above the threshold {manifest.score_threshold}"
    if manifest.input.color == "GRAY":
        return None  # a swap of red and blue moves the luma too little; grey networks have no colour order to get wrong
    swapped = np.ascontiguousarray(golden.image[..., ::-1])
    if difference(manifest, golden.outputs, infer(swapped)) is None:
        return "swapping red and blue in the golden input changes nothing beyond the tolerance"
    return None


def _decoded(manifest: Manifest, outputs: Sequence[Floats]) -> Detections:
    return DECODERS[manifest.decoder](outputs, manifest.input, manifest.score_threshold)


# Red and blue pulled apart, milder first: a natural face is often found whatever its colour order.
TINTS_BGR = ((1.0, 1.0, 1.0), (0.6, 1.0, 1.0), (1.0, 1.0, 0.6), (0.3, 0.9, 1.0), (1.0, 0.9, 0.3), (0.1, 0.8, 1.0),
             (1.0, 0.8, 0.1), (0.0, 0.5, 1.0), (1.0, 0.5, 0.0))  # fmt: skip


def choose_golden(
    manifest: Manifest, images: Sequence[NDArray[np.uint8]], infer: Infer, others: Sequence[Infer] = ()
) -> Golden:
    """Return the first image, tinted as little as needed, whose answer swapped channels would change.

    Args:
        manifest: the model's, with its final score threshold.
        images: candidates, each (1, H, W, 3) uint8 BGR of the input's size; some faces near the threshold help.
        infer: the runtime whose outputs become the expected ones.
        others: the bundle's other artefacts, which must pass; a picture on which two right answers differ is no test.

    Raises:
        ModelError: no candidate in any tint notices the swap, or the artefacts disagree on all that do.
    """
    reason = "no candidate images were given"
    for tint in TINTS_BGR:
        for image in images:
            tinted = np.clip(image * np.array(tint, np.float32), 0, 255).astype(np.uint8)
            golden = Golden(tinted, tuple(np.array(a, np.float32) for a in infer(tinted)))
            found = blind_spot(manifest, golden, infer)
            for other in others:
                found = found or difference(manifest, golden.outputs, other(tinted))
            if found is None:
                return golden
            reason = found
    raise ModelError(f"{manifest.name}: no golden input found, {reason}; give more or other images")
