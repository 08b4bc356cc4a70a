"""Five points on every face of a frame: crops with a margin, one batch, and back to the frame's own pixels."""

import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelError
from edge.models.decoders import points
from edge.models.runtime import Loaded
from edge.track.crops import cut, region

Floats = NDArray[np.float32]


class Landmarks:
    """A landmark bundle at work; what it finds says how frontal a face is, and turns a face upright."""

    def __init__(self, loaded: Loaded) -> None:
        """Take a model that passed its golden check.

        Raises:
            ModelError: the bundle is for another task.
        """
        manifest = loaded.bundle.manifest
        if manifest.task != "landmarks":
            raise ModelError(
                f"{manifest.name}: a {manifest.task}, expected a landmarks bundle; correct landmarks in the config"
            )
        self.source, self.margin = manifest.input, manifest.crop_margin
        self._runtime = loaded.runtime

    def __call__(self, frame: NDArray[np.uint8], xyxy: NDArray[np.floating]) -> Floats:
        """Find the points of some faces.

        Args:
            frame: (H, W, 3) uint8 BGR.
            xyxy: (N, 4) face boxes in pixels of the frame.

        Returns:
            (N, 5, 2) float32 x, y of right eye, left eye, nose, right and left corner of the mouth, in pixels of the
            frame, maybe outside of it.
        """
        if not len(xyxy):
            return np.zeros((0, 5, 2), np.float32)
        crops = np.stack([cut(frame, box, self.margin, self.source) for box in xyxy])
        found = points(self._runtime.infer(crops), self.source)
        regions = np.array([region(box, self.margin, self.source) for box in xyxy], np.float32)
        scale = (regions[:, 2:] - regions[:, :2]) / np.array([self.source.width, self.source.height], np.float32)
        return np.asarray(found * scale[:, None] + regions[:, None, :2], np.float32)
