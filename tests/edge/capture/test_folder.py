"""A folder of images plays in human order; what is no image does not stop it."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.capture.folder import natural
from edge.capture.frames import Source, SourceState
from edge.capture.sources import open_source, probe
from edge.capture.spec import SourceSpec
from edge.errors import CameraError


def opened(folder: Path, fps: float | None = None) -> Source:
    return open_source(SourceSpec("folder", str(folder), fps=fps))


def write(path: Path, grey: int, size: tuple[int, int] = (32, 24)) -> None:
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), grey, np.uint8))


def greys(source: Source) -> list[int]:
    got = []
    while (frame := source.read(0.0)) is not None:
        got.append(int(frame.image.mean()))
    return got


def test_images_come_in_the_order_a_person_counts(tmp_path: Path) -> None:
    for number in (1, 2, 10, 20, 100):
        write(tmp_path / f"img{number}.png", number)
    with opened(tmp_path) as source:
        assert greys(source) == [1, 2, 10, 20, 100]
        assert source.state is SourceState.ENDED


def test_natural_order_knows_names_that_begin_differently() -> None:
    names = ["b1.png", "10.png", "a2.png", "9.png", "a10.png", "a.png"]
    assert sorted(names, key=lambda name: natural(Path(name))) == [
        "9.png",
        "10.png",
        "a2.png",
        "a10.png",
        "a.png",
        "b1.png",
    ]


@pytest.mark.parametrize(("fps", "step_s"), [(None, 0.1), (4.0, 0.25)])
def test_media_time_goes_by_the_playback_rate(tmp_path: Path, fps: float | None, step_s: float) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.png", number)
    with opened(tmp_path, fps) as source:
        times = [frame.media_s for frame in iter(lambda: source.read(0.0), None)]
    assert times == pytest.approx([0, step_s, 2 * step_s, 3 * step_s])


def test_a_text_file_is_skipped_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.png", 7)
    write(tmp_path / "b.jpg", 9)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    with opened(tmp_path) as source:
        assert greys(source) == [7, 9]
        assert source.damaged == 0
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{tmp_path}: skips what is no image (1): notes.txt"]


def test_an_unreadable_image_is_skipped_counted_and_named(tmp_path: Path) -> None:
    write(tmp_path / "1.png", 1)
    (tmp_path / "2.png").write_text("no png")
    (tmp_path / "3.jpg").write_bytes(b"")
    write(tmp_path / "4.png", 4)
    with opened(tmp_path) as source:
        assert greys(source) == [1, 4]
        assert source.damaged == 2
        assert source.last_error == f"{tmp_path}: 2 images could not be decoded: 2.png, 3.jpg"


def test_images_may_differ_in_size_and_depth(tmp_path: Path) -> None:
    write(tmp_path / "1.png", 1, (32, 24))
    write(tmp_path / "2.png", 2, (100, 80))
    cv2.imwrite(str(tmp_path / "3.png"), np.full((10, 12), 3, np.uint8))
    cv2.imwrite(str(tmp_path / "4.png"), np.full((10, 12, 4), 4, np.uint8))
    cv2.imwrite(str(tmp_path / "5.png"), np.full((10, 12), 5 << 8, np.uint16))
    with opened(tmp_path) as source:
        got = [frame.image for frame in iter(lambda: source.read(0.0), None)]
    assert [image.shape for image in got] == [(24, 32, 3), (80, 100, 3), (10, 12, 3), (10, 12, 3), (10, 12, 3)]
    assert all(image.dtype == np.uint8 for image in got)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "holds no image, found nothing"),
        (["notes.txt", "data.csv"], r"holds no image, found 2 other files \(data.csv, notes.txt\)"),
        (["a.png", "b.png"], "none of its 2 images can be decoded: a.png, b.png"),
    ],
    ids=["empty", "only other files", "only broken images"],
)
def test_a_folder_without_a_picture_is_refused(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(CameraError, match=said):
        opened(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="does not exist"):
        opened(tmp_path / "nowhere")
    write(tmp_path / "a.png", 1)
    with pytest.raises(CameraError, match="is a file"):
        opened(tmp_path / "a.png")


def test_probe_gives_the_first_image(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 7)
    assert probe(SourceSpec("folder", str(tmp_path))).image.mean() == 7
