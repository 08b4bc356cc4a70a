"""A clip, a folder or a recording once more, in media time: equal input gives equal events, apart from the stream.

The camera and its settings come from a config; time starts at a fixed epoch and the random numbers from the config's
digest, so that two replays can be compared line by line.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO, TypeGuard

import msgspec
import numpy as np

from edge.assembly import Models, build_attributes, build_pipeline, build_visits, load_models, source_spec
from edge.capture.sources import open_source
from edge.capture.spec import SourceSpec
from edge.config import LoadedConfig
from edge.errors import CameraError, ConfigError
from edge.pipeline import NO_SCORES
from edge.track.recording import Recorder, read_recording
from edge.track.sort import Sort, SortParams
from edge.wire import AnyEvent, EndReason, Vocabulary

EPOCH_MS = 1_577_836_800_000  # 2020-01-01T00:00:00Z, a boundary of every presence grid
RECORDINGS = (".jsonl", ".txt")


def replay(config: LoadedConfig, clip: Path | None, *, record: TextIO | None = None) -> Iterator[AnyEvent]:
    """Yield the events of a clip, folder or recording, `t_ms` counting from its start.

    Args:
        config: The first camera's settings are used; its own source when `clip` is None.
        clip: A video, a folder of images, or a recording (`.jsonl`, MOT `.txt`).
        record: Where to write the detections.

    Raises:
        CameraError: the source cannot be read, or was damaged: then after all its events; ConfigError: it is live, or
            detections are to be recorded of a recording of detections; ModelError: as `load_models`.
    """
    rng = random.Random(config.digest)
    if is_recording(clip):
        if record is not None:
            raise ConfigError(f"{clip} is a recording of detections already; record a video or a folder")
        yield from _from_sort(config, clip, rng)
        return
    spec = recorded(config, clip)
    models: Models = load_models(config, log=lambda _: None)
    recorder = Recorder(record) if record else None
    pipeline = build_pipeline(config, 0, models, rng, grid_s=0.0, recorder=recorder)
    at_s = 0.0
    with open_source(spec) as source:
        while (frame := source.read(0.0)) is not None:
            at_s = frame.media_s
            yield from pipeline.step(frame, at_s).events
        damage = source.last_error
    yield from pipeline.close(at_s, EndReason.SOURCE_ENDED)
    if damage:
        raise CameraError(damage)


def recorded(config: LoadedConfig, clip: Path | None) -> SourceSpec:
    """Return a clip or folder as a source with the first camera's settings; its own source when `clip` is None.

    Raises:
        ConfigError: that is live.
    """
    camera = config.box.cameras[0]
    spec = source_spec(config, camera)
    if clip is not None:
        spec = replace(spec, kind="folder" if clip.is_dir() else "file", location=str(clip), user=None, password=None)
    if spec.kind not in ("file", "folder"):
        raise ConfigError(f"camera {camera.id} is live ({spec.shown}); name a clip, folder or recording to replay")
    return spec


def is_recording(clip: Path | None) -> TypeGuard[Path]:
    """Tell whether a path names recorded detections, and not pictures."""
    return clip is not None and clip.suffix.lower() in RECORDINGS and not clip.is_dir()


def _from_sort(config: LoadedConfig, recording: Path, rng: random.Random) -> Iterator[AnyEvent]:
    """Replay from SORT onwards: without pictures the heads have nothing to look at, so attributes stay out."""
    camera = config.box.cameras[0]
    sort = Sort(SortParams(camera.sort.max_age, camera.sort.min_hits, camera.sort.iou_threshold))
    vocabulary = Vocabulary(tuple(c.id for c in config.box.cameras))
    visits = build_visits(config, 0, build_attributes((), {}), vocabulary, rng, grid_s=0.0)
    at_s = 0.0
    for frame in read_recording(recording):
        at_s = frame.at_s
        searched = frame.found is not None
        tracks = sort.update(frame.found.xyxy.astype(np.float64)) if frame.found is not None else sort.predict()
        scores = frame.found.score if frame.found is not None else NO_SCORES
        yield from visits.frame(at_s, tracks, scores, sort.alive(), frame.frame_wh, searched=searched)[0]
    yield from visits.close(at_s, EndReason.SOURCE_ENDED)


def as_json(event: AnyEvent) -> str:
    """Return an event as one line of JSON with names."""
    fields = {"event": type(event).__name__.lower(), **msgspec.structs.asdict(event)}
    return msgspec.json.encode(fields).decode()
