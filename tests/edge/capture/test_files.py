"""A clip is read to its last frame, in order, at its own times; a bad one says what is wrong with it."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.capture.files import FileSource
from edge.capture.frames import Frame, Image, Source, SourceState
from edge.capture.sources import open_source, probe
from edge.capture.spec import SourceSpec
from edge.errors import CameraError
from tests.edge.capture.conftest import write_clip


def opened(path: Path) -> Source:
    return open_source(SourceSpec("file", str(path)))


def frames(source: Source) -> list[Frame]:
    got = []
    with source:
        while (frame := source.read(0.0)) is not None:
            got.append(frame)
    return got


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_every_frame_comes_once_and_in_order(tmp_path: Path, suffix: str) -> None:
    source = opened(write_clip(tmp_path / f"clip{suffix}", frames=50))
    got = frames(source)
    assert [frame.index for frame in got] == list(range(50))
    assert np.abs([frame.image.mean() / 4 - frame.index for frame in got]).max() < 0.5
    assert (source.dropped, source.damaged, source.last_error) == (0, 0, "")


def test_media_time_is_the_container_s(clip: Path) -> None:
    got = frames(opened(clip))
    assert [frame.media_s for frame in got] == pytest.approx([number / 20 for number in range(40)], abs=0.001)
    assert all(frame.captured_at_s == frame.media_s for frame in got)


def test_two_readings_are_equal(clip: Path) -> None:
    first, second = frames(opened(clip)), frames(opened(clip))
    assert [frame.media_s for frame in first] == [frame.media_s for frame in second]
    assert all((a.image == b.image).all() for a, b in zip(first, second, strict=True))


def test_frames_do_not_share_memory(clip: Path) -> None:
    with opened(clip) as source:
        first = source.read(0.0)
        assert first is not None
        before = first.image.copy()
        source.read(0.0)
        assert (first.image == before).all()
        assert first.image.flags.writeable
        assert first.image.flags.c_contiguous


def test_a_clip_without_timestamps_gets_them_from_its_frame_rate(tmp_path: Path) -> None:
    """Pictures one after the other, no container at all."""
    path = tmp_path / "bare.mjpeg"
    pictures = [cv2.imencode(".jpg", np.full((48, 64, 3), 4 * number, np.uint8))[1].tobytes() for number in range(12)]
    path.write_bytes(b"".join(pictures))
    times = [frame.media_s for frame in frames(opened(path))]
    assert times == pytest.approx([number / 25 for number in range(len(times))], abs=0.001)
    assert len(times) == 12


def test_reading_past_the_end_stays_at_the_end(clip: Path) -> None:
    with opened(clip) as source:
        while source.read(0.0) is not None:
            assert source.state is SourceState.STREAMING
        assert source.state is SourceState.ENDED
        assert source.read(0.0) is None


def test_a_clip_cut_short_gives_what_is_there_and_says_so(tmp_path: Path, clip: Path) -> None:
    whole = clip.read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    source = opened(path)
    got = frames(source)
    assert 10 <= len(got) < 30
    assert np.abs([frame.image.mean() / 4 - frame.index for frame in got[:-1]]).max() < 0.5
    assert source.damaged == 40 - len(got)
    assert source.last_error.startswith(f"{path}: {len(got)} frames read")
    assert "40 expected" in source.last_error


def test_a_clip_broken_in_the_middle_goes_on_behind_the_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "broken.avi", frames=60)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    source = opened(path)
    got = frames(source)
    assert 20 < len(got) <= 60
    assert got[-1].media_s > 2.0
    times = [frame.media_s for frame in got]
    assert times == sorted(set(times))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"this is a letter, not a video\n" * 20, "74 68 69 73 .* are no video"),
        (os.urandom(50_000), "50000 bytes .* are no video"),
    ],
    ids=["missing", "zero length", "text", "noise"],
)
def test_a_bad_file_is_refused_with_path_finding_and_next_step(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CameraError, match=said) as caught:
        opened(path)
    assert str(caught.value).startswith(str(path))
    assert "copy it again" in str(caught.value) or "correct the path" in str(caught.value)


def test_a_clip_without_its_end_is_refused_when_nothing_can_be_read(tmp_path: Path) -> None:
    """An MP4 has its index at the end; cut short it is a pile of bytes."""
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CameraError, match="no video FFmpeg can read"):
        opened(path)


def test_a_folder_given_as_a_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="is a folder"):
        opened(tmp_path)


def test_hardware_decoding_that_is_not_there_is_said_aloud(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_source(SourceSpec("file", str(clip), hw_decode=True)) as source:
        if source.decoder != "software (hardware was asked for)":
            pytest.skip(f"this machine decodes in hardware: {source.decoder}")
        assert source.read(0.0) is not None
    assert "hardware decoding was asked for" in caplog.text


def test_probe_returns_the_first_frame_and_leaves_nothing_open(clip: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert probe(SourceSpec("file", str(clip))).image.shape == (48, 64, 3)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.shared
def test_clips_people_have_are_read_whole(shared: Path) -> None:
    """GIF, MKV and MP4; a frame count that a container guessed may be two off."""
    folder = shared / "video" / "intel"
    clips = [*folder.glob("preview_*.gif"), *sorted(folder.glob("asl_*.mkv"))[:3]]
    assert clips
    for path in clips:
        source = opened(path)
        got = frames(source)
        times = [frame.media_s for frame in got]
        assert times == sorted(set(times)), path
        assert len(got) >= 20
        assert source.last_error == "", path


class Stamped:
    """A clip of black frames with the stamps it is told."""

    decoder, fps = "software", 25.0

    def __init__(self, stamps_s: list[float], frame_count: int) -> None:
        self.frame_count, self.stamp_s = frame_count, 0.0
        self._stamps_s = list(stamps_s)

    def grab(self) -> bool:
        if not self._stamps_s:
            return False
        self.stamp_s = self._stamps_s.pop(0)
        return True

    def retrieve(self) -> Image:
        return np.zeros((4, 4, 3), np.uint8)

    def close(self) -> None:
        pass


DAY_S = 86400.0


@pytest.mark.parametrize(
    ("stamps_s", "frame_count", "expected_s"),
    [
        ([0, 0.04, DAY_S, DAY_S + 0.04], 4, [0, 0.04, 0.08, 0.12]),
        ([0, 0.04, DAY_S, 0.12, 0.16], 5, [0, 0.04, 0.08, 0.12, 0.16]),
        ([0, 0.04, DAY_S, DAY_S + 0.5, 0.62], 5, [0, 0.04, 0.08, 0.58, 0.62]),
        ([0, 0.04, DAY_S], 0, [0, 0.04, 0.08]),
        ([0, 0.04, 600, 600.04], 0, [0, 0.04, 600, 600.04]),
        ([0, 0.04, 600, 600.04], 20_000, [0, 0.04, 600, 600.04]),
        ([0, 5, 10, 15], 4, [0, 5, 10, 15]),
        ([0, 0.04, 0.02, 0.12], 4, [0, 0.04, 0.08, 0.12]),
        ([0, float("nan"), 0.08], 3, [0, 0.04, 0.08]),
    ],
    ids=["a jump past the end", "one broken stamp", "found back later", "no end stated", "a gap, no end stated",
         "a gap within the stated length", "slower than stated", "a step back", "no number"],
)  # fmt: skip
def test_a_stamp_out_of_all_reason_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, stamps_s: list[float], frame_count: int, expected_s: list[float]
) -> None:
    monkeypatch.setattr("edge.capture.files._open", lambda *_: Stamped(stamps_s, frame_count))
    got = frames(FileSource(SourceSpec("file", "made.mp4")))
    assert [frame.media_s for frame in got] == pytest.approx(expected_s)
