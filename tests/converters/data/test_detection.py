"""The data folder is read as its README says, and nothing leaks from test into training."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from converters.data.detection import (
    WALKING,
    digests,
    evenly_spaced,
    face_mask,
    fairface,
    filmed,
    held_out,
    mik1i_negatives,
    read_yolo_labels,
    redraw,
    yolo_folder,
)
from converters.errors import ConvertError


def test_yolo_lines_become_corners_in_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    np.testing.assert_allclose(read_yolo_labels(tmp_path / "a.txt", 100, 50), [[40, 15, 60, 35]], atol=1e-4)


def test_empty_label_file_means_no_faces_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    assert read_yolo_labels(tmp_path / "a.txt", 100, 50).shape == (0, 4)
    (tmp_path / "b.txt").write_text("0 0.5 0.5\n")
    with pytest.raises(ConvertError, match="expected five numbers a line"):
        read_yolo_labels(tmp_path / "b.txt", 100, 50)


def test_redraw_takes_tight_boxes_and_blots_out_heads_without_one() -> None:
    image = np.full((100, 100, 3), 7, np.uint8)
    loose = np.array([[0, 0, 40, 40], [60, 60, 90, 90]], np.float32)
    tight = np.array([[8, 8, 30, 34]], np.float32)
    painted, boxes = redraw(image, loose, tight)
    assert boxes.tolist() == tight.tolist()
    assert (painted[60:90, 60:90] == 114).all()
    assert (painted[:50, :50] == 7).all()
    assert (image == 7).all()


def test_unreadable_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_text("no picture")
    with pytest.raises(ConvertError, match=r"a\.jpg: not a readable picture"):
        list(yolo_folder(tmp_path))


@pytest.mark.shared
def test_face_mask_splits_share_no_picture(shared: Path) -> None:
    lists = {split: digests(face_mask(shared, split))["face_mask"] for split in ("val", "test")}
    assert len(lists["test"]) == 100
    assert not set(lists["val"].values()) & set(lists["test"].values())


@pytest.mark.shared
def test_held_out_negatives_have_no_face_and_belong_to_held_out_groups(shared: Path) -> None:
    samples = list(mik1i_negatives(shared))
    assert len(samples) >= 50
    assert all(len(s.boxes) == 0 for s in samples)
    assert held_out("IMG_5491_mp4")
    assert not held_out("youtube")


@pytest.mark.shared
def test_fairface_faces_are_large(shared: Path) -> None:
    sides = [np.ptp(s.boxes[:, [0, 2]], axis=1).max() / s.image.shape[1] for s in fairface(shared) if len(s.boxes)]
    assert len(sides) > 300
    assert float(np.median(sides)) > 0.3


@pytest.mark.shared
def test_filmed_frames_leave_the_walking_clips_for_reporting(shared: Path) -> None:
    samples = list(filmed(shared, frames=2))
    assert {s.source for s in samples} <= {"filmed", "negative"}
    assert sum(len(s.boxes) for s in samples) >= len(samples)
    assert not any(word in s.name for s in samples for word in WALKING)


def test_evenly_spaced_frames_are_those_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for level in range(0, 200, 10):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    found = {index: int(image.mean()) for index, image in evenly_spaced(path, 3)}
    assert list(found) == [0, 9, 19]
    assert all(abs(level - 10 * index) <= 3 for index, level in found.items())
