"""Videos that browsers play, and the annotated video as an observer writes it."""

import threading
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from demo.video import AnnotatedVideo
from edge.capture.frames import Frame
from edge.pipeline import Seen
from edge.track.attributes import Vote
from edge.track.sort import Tracks


def picture(level: int, wh: tuple[int, int] = (320, 180)) -> NDArray[np.uint8]:
    return np.full((wh[1], wh[0], 3), level, dtype=np.uint8)


def seen(index: int, media_s: float, wh: tuple[int, int] = (320, 180)) -> Seen:
    tracks = Tracks(np.array([7]), np.array([[40.0, 40, 90, 100]]), np.array([0]))
    votes = {7: {"age": Vote("26-45", 3, 0.9, 4), "gender": Vote(None, -1, 0.4, 1)}}
    frame = Frame(picture(120, wh), index, media_s, media_s)
    return Seen(frame, tracks, tracks.xyxy, np.array([0.9], np.float32), True, (), votes, 1)


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    video = cv2.VideoCapture(str(path))
    frames = []
    while (read := video.read())[0]:
        frames.append(np.asarray(read[1], np.uint8))
    return frames


def test_annotated_video_has_every_frame_of_a_recording_with_boxes_drawn(tmp_path: Path) -> None:
    with AnnotatedVideo(tmp_path / "annotated.mp4", live=False) as video:
        for i in range(30):
            video("hall", seen(i, i / 25))
    frames = frames_of(video.written["hall"])
    assert len(frames) == 30
    assert video.left_out == 0
    assert np.abs(frames[20][95:105, 40:90].astype(int) - 120).max() > 40  # the box's lower edge
    assert np.abs(frames[20][110:, 200:].astype(int) - 120).max() < 12  # nothing where nothing is


def test_each_camera_has_a_video_of_its_own_at_its_own_pace(tmp_path: Path) -> None:
    with AnnotatedVideo(tmp_path / "annotated.mp4", live=False) as video:
        for i in range(10):
            video("hall", seen(i, 100 + i / 10))
            video("yard", seen(i, i / 5, (160, 90)))
    assert sorted(path.stem for path in video.written.values()) == ["annotated", "annotated-yard"]
    with av.open(str(video.written["yard"])) as file:
        shown_s = [float(frame.time) for frame in file.decode(video=0) if frame.time is not None]
    assert shown_s[-1] == pytest.approx(1.8, abs=0.01)
    with av.open(str(video.written["hall"])) as file:
        assert next(file.decode(video=0)).time == 0  # a camera's clock starts where the video does


def test_a_live_camera_never_waits_for_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    drawn = AnnotatedVideo._show

    def slow(self: AnnotatedVideo, camera: str, shown: Seen) -> None:
        assert go.wait(20)
        drawn(self, camera, shown)

    monkeypatch.setattr(AnnotatedVideo, "_show", slow)
    with AnnotatedVideo(tmp_path / "annotated.mp4", live=True) as video:
        for i in range(60):
            video("hall", seen(i, i / 25))  # returns at once, although nothing is written
        go.set()
    assert video.left_out > 30
    assert len(frames_of(video.written["hall"])) == 60 - video.left_out


def test_a_video_that_cannot_be_written_stops_no_counting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with AnnotatedVideo(tmp_path / "file" / "annotated.mp4", live=False) as video:
        for i in range(40):
            video("hall", seen(i, i / 25))
    assert isinstance(video.error, OSError)
    assert video.written == {}
