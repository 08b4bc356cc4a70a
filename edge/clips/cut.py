"""Two readings of a recording: who is where, by the very stages that a box runs; then the cutting and the blurring.

Driven by `edge.clips.verb`. The stages and the media time are those of `edge.replay`, with no head but the one asked.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.assembly import build_pipeline, load_models
from edge.box.annotate import BLUR_MARGIN, grown, pixelate
from edge.box.video import open_video
from edge.capture.frames import Frame
from edge.capture.masks import Masks
from edge.capture.sources import open_source
from edge.capture.spec import SourceSpec
from edge.clips.person import Person
from edge.clips.stretches import Stretch, stretches
from edge.clips.whereabouts import Whereabouts
from edge.config import LoadedConfig
from edge.errors import CameraError

LEAD_S = 0.5  # others are blurred so long before they are noticed, and after they are given up
LOOKS = 2  # or for as many looks of a camera that looks less often

Tell = Callable[[str, float, float], None]  # what is being done, seconds done, seconds in all


@dataclass(frozen=True, slots=True)
class Found:
    """What a recording holds of a person; `damage` says what of it could not be read."""

    who_was_where: Whereabouts
    tracks: frozenset[int]
    parts: Sequence[Stretch]
    damage: str


class Clip(msgspec.Struct, frozen=True):
    """One line of the list; times are seconds into the recording."""

    file: str
    start_s: float
    end_s: float
    confidence: float
    visits: int


def look(config: LoadedConfig, spec: SourceSpec, whom: Person, *, gap_s: float, pad_s: float, tell: Tell) -> Found:
    """Run a recording through the stages of the first camera and note when the person is seen.

    Raises:
        CameraError: it cannot be read; ModelError: as `load_models`.
    """
    box = msgspec.structs.replace(config.box, heads=(whom.head,), cameras=config.box.cameras[:1])
    config = msgspec.structs.replace(config, box=box)
    seen = Whereabouts(whom.head.name)
    with open_source(spec) as source:  # before the models, which take longer
        pipeline = build_pipeline(
            config, 0, load_models(config, log=lambda _: None), random.Random(config.digest), grid_s=0.0
        )
        while (frame := source.read(0.0)) is not None:
            seen.add(pipeline.step(frame, frame.media_s), pipeline.sort.everyone())
            tell("looking", frame.media_s, source.duration_s or 0.0)
        damage = source.last_error
    tell("looking", seen.end_s, seen.end_s)
    tracks = seen.tracks_of(whom.label)
    return Found(seen, tracks, stretches(seen.sightings(tracks), gap_s=gap_s, pad_s=pad_s, end_s=seen.end_s), damage)


def cut(
    config: LoadedConfig, spec: SourceSpec, found: Found, folder: Path, name: str, *, blur: bool, tell: Tell
) -> list[Clip]:
    """Write every part as a video into a folder; privacy masks are painted, and others blurred where `blur`."""
    camera = config.box.cameras[0]
    masks, seen = Masks(camera.masks), found.who_was_where
    lead_s = max(LEAD_S, LOOKS / camera.fps if camera.fps else 0.0)

    def shown(frame: Frame) -> NDArray[np.uint8]:
        masks.paint(frame.image)
        if blur:
            others = seen.others(frame.index, frame.media_s, found.tracks, lead_s)
            for face in grown(others.astype(np.float64), BLUR_MARGIN):
                pixelate(frame.image, face)
        return frame.image

    clips: list[Clip] = []
    with open_source(spec) as source:
        frame = source.read(0.0)
        for number, part in enumerate(found.parts, 1):
            while frame is not None and frame.media_s < part.start_s:
                frame = source.read(0.0)
            if frame is None:
                raise CameraError(f"{spec.shown}: ended sooner than when it was read first; is it still being written?")
            began_s, wh = frame.media_s, (frame.image.shape[1], frame.image.shape[0])
            with open_video(folder / f"{name}-{number:02}.mp4", wh, seen.fps) as video:
                while frame is not None and frame.media_s <= part.end_s:
                    image = shown(frame)
                    if image.shape[1::-1] != wh:  # a recording may change its size
                        image = np.asarray(cv2.resize(image, wh, interpolation=cv2.INTER_AREA), np.uint8)
                    video.write(image, frame.media_s - began_s)
                    tell("cutting", frame.media_s, found.parts[-1].end_s)
                    frame = source.read(0.0)
            clips.append(listed(part, video.path.name))
    return clips


def listed(part: Stretch, file: str) -> Clip:
    """Return a part as the list has it."""
    return Clip(file, round(part.start_s, 3), round(part.end_s, 3), round(part.confidence, 3), part.sightings)
