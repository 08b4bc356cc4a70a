"""Videos that browsers play, and those that OpenCV alone can write."""

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge.box import video as writing
from edge.box.video import Mp4vWriter, VideoWriter, comment_of, open_video, playable

av = pytest.importorskip("av", reason="needs the extra demo")


def picture(level: int, wh: tuple[int, int] = (320, 180)) -> NDArray[np.uint8]:
    return np.full((wh[1], wh[0], 3), level, dtype=np.uint8)


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    video = cv2.VideoCapture(str(path))
    frames = []
    while (read := video.read())[0]:
        frames.append(np.asarray(read[1], np.uint8))
    return frames


def test_every_picture_comes_out_again_in_order(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", (320, 180), 25) as video:
        for i in range(40):
            video.write(picture(40 + 4 * i), i / 25)
    levels = [frame.mean() for frame in frames_of(video.path)]
    assert len(levels) == 40
    assert levels == sorted(levels)
    assert levels[10] == pytest.approx(80, abs=3)


def test_codec_and_container_are_what_browsers_play(tmp_path: Path) -> None:
    """H.264 in yuv420p with the index in front, so that it plays while it loads; VP9 where there is no x264."""
    with VideoWriter(tmp_path / "a.mp4", (320, 180), 25) as video:
        video.write(picture(100), 0.0)
    with av.open(str(video.path)) as file:
        context = file.streams.video[0].codec_context
        assert context.pix_fmt == "yuv420p"
        assert context.name in ("h264", "vp9", "libvpx-vp9")
        if context.name == "h264":
            data = video.path.read_bytes()
            assert data.index(b"moov") < data.index(b"mdat")
            assert context.colorspace == 1  # BT.709


def test_pictures_of_a_stuttering_camera_keep_their_times(tmp_path: Path) -> None:
    times_s = [0.0, 0.04, 0.5, 0.5, 1.75]
    with VideoWriter(tmp_path / "a.mp4", (320, 180), 25) as video:
        for at_s in times_s:
            video.write(picture(100), at_s)
    with av.open(str(video.path)) as file:
        shown_s = [float(frame.time) for frame in file.decode(video=0) if frame.time is not None]
    assert shown_s == pytest.approx(times_s, abs=0.002)


def test_odd_sizes_lose_their_last_row_and_column(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", (321, 181), 25) as video:
        video.write(picture(100, (321, 181)), 0.0)
    assert frames_of(video.path)[0].shape == (180, 320, 3)


def test_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", (320, 180), 25, comment="version 7") as video:
        video.write(picture(100), 0.0)
        assert not video.path.exists()
    assert [path.name for path in tmp_path.iterdir()] == [video.path.name]
    assert comment_of(video.path) == "version 7"


def test_a_video_that_fails_or_has_no_pictures_leaves_nothing(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), VideoWriter(tmp_path / "a.mp4", (320, 180), 25) as video:
        video.write(picture(100), 0.0)
        raise ZeroDivisionError
    with VideoWriter(tmp_path / "b.mp4", (320, 180), 25):
        pass
    assert list(tmp_path.iterdir()) == []


def test_comment_of_what_is_no_video_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert comment_of(tmp_path / "a.mp4") == ""
    assert comment_of(tmp_path / "missing.mp4") == ""


def test_without_pyav_opencv_writes_and_nobody_is_told_that_browsers_play_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert playable()
    monkeypatch.setattr(writing, "CODECS", ())
    assert not playable()
    with open_video(tmp_path / "a.webm", (321, 181), 25) as video:
        for i in range(20):
            video.write(picture(40 + 8 * i, (321, 181)), i / 25)
        assert not video.path.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    frames = frames_of(video.path)
    assert (len(frames), frames[0].shape) == (20, (180, 320, 3))
    assert frames[10].mean() == pytest.approx(120, abs=3)


def test_opencv_repeats_a_picture_until_the_next_one_is_due(tmp_path: Path) -> None:
    with Mp4vWriter(tmp_path / "a.mp4", (320, 180), 10) as video:
        for at_s, level in ((0.0, 40), (0.1, 80), (1.0, 200)):
            video.write(picture(level), at_s)
    levels = [round(frame.mean() / 40) for frame in frames_of(video.path)]
    assert levels == [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 5]


def test_what_opencv_wrote_of_a_video_that_fails_is_gone(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), Mp4vWriter(tmp_path / "a.mp4", (320, 180), 25) as video:
        video.write(picture(100), 0.0)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
