"""Made-up detections of people milling about, for tests and benchmarks of the tracker."""

import numpy as np
from numpy.typing import NDArray


def crowd(
    rng: np.random.Generator,
    objects: int,
    frames: int,
    frame_wh: tuple[int, int] = (1920, 1080),
    width_px: tuple[float, float] = (40.0, 120.0),
    miss: float = 0.05,
) -> list[NDArray[np.float64]]:
    """Return one (N, 4) xyxy set of detections per frame.

    Args:
        rng: Source of all randomness.
        objects: People in the picture, all of them all the time; they turn back at its border.
        frames: Length of the scene.
        frame_wh: Picture, pixels. Smaller makes people overlap more.
        width_px: Least and greatest width of a person's box; it is 1.3 times as high.
        miss: Share of detections that are left out, in [0, 1].
    """
    centre = rng.uniform((0, 0), frame_wh, (objects, 2))
    velocity = rng.normal(0, 3, (objects, 2))
    wh = rng.uniform(*width_px, (objects, 1)) * (1, 1.3)
    scene = []
    for _ in range(frames):
        centre = centre + velocity
        velocity = np.where((centre < 0) & (velocity < 0) | (centre > frame_wh) & (velocity > 0), -velocity, velocity)
        seen_wh = wh * rng.normal(1, 0.02, (objects, 1))
        seen_at = centre + rng.normal(0, 1, (objects, 2))
        boxes = np.concatenate((seen_at - seen_wh / 2, seen_at + seen_wh / 2), axis=1)
        scene.append(boxes[rng.random(objects) >= miss])
    return scene
