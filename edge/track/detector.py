"""Faces in one frame: letterbox, one inference, decode, and back to the frame's own pixels."""

import time

import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelError
from edge.models.decoders import DECODERS
from edge.models.decoders import Detections as Detections
from edge.models.runtime import Loaded
from edge.track.letterbox import Letterbox


class Detector:
    """A detector bundle at work; frames may change size at any time.

    `letterbox_s`, `infer_s` and `decode_s` are the wall-clock seconds of the last call, for the per-stage benchmark.
    """

    def __init__(self, loaded: Loaded, *, score_threshold: float | None = None, max_detections: int = 100) -> None:
        """Prepare the buffers.

        Args:
            loaded: a model that passed its golden check.
            score_threshold: instead of the manifest's; higher drops doubtful faces.
            max_detections: at most so many faces per frame, the best first.

        Raises:
            ModelError: the bundle is no detector.
        """
        manifest = loaded.bundle.manifest
        if manifest.task != "detector":
            raise ModelError(
                f"{manifest.name}: a {manifest.task}, expected a detector; correct detector.bundle in the config"
            )
        self.loaded = loaded
        self.score_threshold = manifest.score_threshold if score_threshold is None else score_threshold
        self.max_detections = max_detections
        self.letterbox_s = self.infer_s = self.decode_s = 0.0
        self._source = manifest.input
        self._decode = DECODERS[manifest.decoder]
        self._letterbox = Letterbox(manifest.input.width, manifest.input.height, manifest.input.fit)

    def __call__(self, frame: NDArray[np.uint8]) -> Detections:
        """Find faces in a (H, W, 3) uint8 BGR frame; `xyxy` is in its pixels and inside it, best score first."""
        started = time.perf_counter()
        pixels = self._letterbox(frame)
        drawn = time.perf_counter()
        outputs = self.loaded.runtime.infer(pixels)
        inferred = time.perf_counter()
        detections = self._to_frame(self._decode(outputs, self._source, self.score_threshold), frame)
        self.letterbox_s, self.infer_s = drawn - started, inferred - drawn
        self.decode_s = time.perf_counter() - inferred
        return detections

    def _to_frame(self, found: Detections, frame: NDArray[np.uint8]) -> Detections:
        """Leave the letterbox: clip to the frame, drop what lies wholly in the padding, keep the best."""
        placement = self._letterbox.placement
        corners = placement.to_frame(found.xyxy.reshape(-1, 2, 2))
        corners = np.clip(corners, 0, np.array([frame.shape[1], frame.shape[0]], np.float32))
        kept = np.flatnonzero((corners[:, 1] > corners[:, 0]).all(axis=1))[: self.max_detections]
        landmarks = None if found.landmarks is None else placement.to_frame(found.landmarks[kept])
        return Detections(corners[kept].reshape(-1, 4), found.score[kept], landmarks)
