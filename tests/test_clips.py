"""Every clip of the data folder through the whole pipeline: no crash, sane counts, ids that hold, twice the same."""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edge.assembly import build_pipeline, load_models
from edge.capture.sources import open_source
from edge.capture.spec import SourceSpec
from edge.config import LoadedConfig, load_box
from edge.geometry import iou, xywh_to_xyxy
from edge.wire import AnyEvent, Confirmed, Ended, EndReason, Presence

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(300)]

# Clips whose pseudo ground truth covers faces large enough for the detector at 640: the walking and head-pose ones.
FOLLOWED = {
    "face-demographics-walking": "intel/preview_face-demographics-walking.gif",
    "head-pose-face-detection-female": "intel/preview_head-pose-face-detection-female.gif",
    "head-pose-face-detection-male": "intel/preview_head-pose-face-detection-male.gif",
    "classroom": "intel/preview_classroom.gif",
    "asl_gestures_thanks": "intel/asl_gestures_thanks.mkv",
    "asl_gestures_school": "intel/asl_gestures_school.mkv",
}


@dataclass
class Run:
    """What one pass over a clip gave."""

    events: list[AnyEvent]
    tracks: list[dict[int, list[float]]]  # frame by frame: track id → xyxy
    frames: int


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> LoadedConfig:
    folder = tmp_path_factory.mktemp("clips")
    camera = {"id": "clip", "detector": "yolov10n-face-640", "source": {"uri": "x.mp4"}}
    text = {
        "site": "test",
        "box": "clips",
        "database": "6c6f6361-6c00-4000-8000-000000000000",
        "state_dir": str(folder / "state"),
        "presence_s": 5,
        "cameras": [camera],
    }
    (folder / "box.yaml").write_text(json.dumps(text))
    return load_box(folder / "box.yaml")


def play(config: LoadedConfig, clip: Path) -> Run:
    models = load_models(config, log=lambda _: None)
    pipeline = build_pipeline(config, 0, models, random.Random(1), grid_s=0.0)
    run = Run([], [], 0)
    at_s = 0.0
    with open_source(SourceSpec("file", str(clip))) as source:
        while (frame := source.read(0.0)) is not None:
            at_s = frame.media_s
            seen = pipeline.step(frame, at_s)
            run.events += seen.events
            run.tracks.append(dict(zip(seen.tracks.track_id.tolist(), seen.tracks.xyxy.tolist(), strict=True)))
            run.frames += 1
        assert not source.last_error
    run.events += pipeline.close(at_s, EndReason.SOURCE_ENDED)
    return run


def clips(shared: Path) -> list[Path]:
    found = [p for p in sorted((shared / "video").rglob("*")) if p.suffix in (".mp4", ".mkv", ".gif")]
    assert len(found) >= 24
    return found


def test_every_clip_runs_with_sane_counts(config: LoadedConfig, shared: Path) -> None:
    for clip in clips(shared):
        run = play(config, clip)
        kinds = Counter(type(e) for e in run.events)
        assert run.frames > 10, clip.name
        assert kinds[Confirmed] == kinds[Ended] <= 40, clip.name
        assert kinds[Presence] >= 1, clip.name
        assert all(e.dwell_ms >= 0 for e in run.events if isinstance(e, Ended)), clip.name


def test_two_replays_are_equal(config: LoadedConfig, shared: Path) -> None:
    clip = shared / "video" / FOLLOWED["head-pose-face-detection-female"]
    assert play(config, clip).events == play(config, clip).events


@pytest.mark.parametrize("name", FOLLOWED)
def test_ids_hold_on_clips_with_pseudo_ground_truth(config: LoadedConfig, shared: Path, name: str) -> None:
    """Most true boxes are followed, and a person keeps one id for most of the time."""
    truth = np.loadtxt(shared / f"video/intel/face_tracks_gt/{name}.gt.txt", delimiter=",", ndmin=2)
    run = play(config, shared / "video" / FOLLOWED[name])
    followed: dict[int, Counter[int]] = {int(person): Counter() for person in np.unique(truth[:, 1])}
    present = Counter(int(person) for person in truth[:, 1])
    for frame, person, x, y, w, h in truth[:, :6]:
        here = run.tracks[int(frame) - 1] if int(frame) <= run.frames else {}
        if not here:
            continue
        overlap = iou(xywh_to_xyxy(np.array([[x, y, w, h]])), np.array(list(here.values())))[0]
        if overlap.max() >= 0.3:
            followed[int(person)][list(here)[int(overlap.argmax())]] += 1
    long_ones = [p for p in present if present[p] >= 15]
    kept = {p: (followed[p].most_common(1) or [(0, 0)])[0][1] / present[p] for p in long_ones}
    assert sum(k >= 0.6 for k in kept.values()) >= 0.7 * len(kept), kept
