"""Detections on disk, so that a bug report replays from SORT onwards without a picture of anybody.

Ours is JSON lines: a header, then one line a frame with time, frame size, boxes and scores. MOTChallenge `det.txt`
files (frame, -1, x, y, w, h, score, …) are read too.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from edge.errors import CameraError
from edge.track.detector import Detections

MAX_FRAMES = 10_000_000  # four days at 30 a second
HEADER = {"facefleet": "detections", "version": 1}


@dataclass(frozen=True, slots=True)
class Recorded:
    """One frame as recorded; `found` is None where the gate skipped it."""

    at_s: float
    frame_wh: tuple[int, int]
    found: Detections | None


class Recorder:
    """Writes what the detector found, frame by frame."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._out.write(json.dumps(HEADER) + "\n")

    def write(self, at_s: float, frame_wh: tuple[int, int], found: Detections | None) -> None:
        """Add one frame."""
        row: dict[str, object] = {"t_s": at_s, "wh": frame_wh}
        if found is not None:
            row["xyxy"] = found.xyxy.tolist()
            row["score"] = found.score.tolist()
        self._out.write(json.dumps(row, separators=(",", ":")) + "\n")


def read_recording(path: Path, *, fps: float = 25.0, frame_wh: tuple[int, int] = (1920, 1080)) -> Iterator[Recorded]:
    """Yield the frames of a recording.

    Args:
        path: `.jsonl` of `Recorder`, or a MOTChallenge `det.txt`.
        fps: Frame rate of a MOT file, which carries none.
        frame_wh: Frame size of a MOT file, px.

    Raises:
        CameraError: the file is missing or is neither; the message names the line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CameraError(f"recording {path} cannot be read ({error}); expected a .jsonl or a MOT det.txt") from error
    lines = text.splitlines()
    if not lines:
        raise CameraError(f"recording {path} is empty; record one with `facefleet-edge replay CLIP --record {path}`")
    return _ours(path, lines) if lines[0].startswith("{") else _mot(path, lines, fps, frame_wh)


def _ours(path: Path, lines: list[str]) -> Iterator[Recorded]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if number == 1:
                if row != HEADER:
                    raise CameraError(f"recording {path} begins with {line[:60]!r}, expected {json.dumps(HEADER)}")
                continue
            width, height = row["wh"]
            if not (min(width, height) >= 1 and math.isfinite(row["t_s"])):
                raise ValueError(f"time {row['t_s']}, frame {width}×{height}")
            found = _found(row["xyxy"], row["score"]) if "xyxy" in row else None
            yield Recorded(float(row["t_s"]), (int(width), int(height)), found)
        except (KeyError, TypeError, ValueError) as error:
            raise CameraError(f"recording {path}:{number} is damaged ({error}); record it again") from error


def _mot(path: Path, lines: list[str], fps: float, frame_wh: tuple[int, int]) -> Iterator[Recorded]:
    try:
        rows = np.array([[float(v) for v in line.split(",")[:7]] for line in lines if line.strip()], dtype=np.float64)
    except ValueError as error:
        raise CameraError(f"recording {path} is neither JSON lines nor a MOT det.txt ({error})") from error
    if rows.ndim != 2 or rows.shape[1] < 7:
        raise CameraError(f"recording {path} has rows of unequal length, expected frame, id, x, y, w, h, score")
    last = rows[:, 0].max()
    if not np.isfinite(rows).all() or not 1 <= rows[:, 0].min() <= last <= MAX_FRAMES:
        raise CameraError(f"recording {path} has numbers that are none, or frames outside 1–{MAX_FRAMES}")
    for frame in range(1, int(last) + 1):
        here = rows[rows[:, 0] == frame]
        xyxy = np.hstack([here[:, 2:4], here[:, 2:4] + here[:, 4:6]])
        yield Recorded((frame - 1) / fps, frame_wh, _found(xyxy, here[:, 6]))


def _found(xyxy: object, score: object) -> Detections:
    boxes: NDArray[np.float32] = np.asarray(xyxy, dtype=np.float32).reshape(-1, 4)
    scores: NDArray[np.float32] = np.asarray(score, dtype=np.float32).reshape(-1).clip(0, 1)
    if len(boxes) != len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"{len(boxes)} boxes with {len(scores)} scores")
    return Detections(boxes, scores, None)
