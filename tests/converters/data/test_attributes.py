"""Faces with labels: splits that cannot leak, answers that count as right, crops as the box cuts them."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters.data.attributes import (
    CONTEXT,
    CONTEXT_PX,
    HEADS,
    OTHER_RACE,
    Faces,
    Label,
    fairface,
    fer2013,
    load,
    london,
    utkface,
    utkface_split,
)
from converters.data.face_crops import cut, widen
from converters.errors import ConvertError
from edge.models.manifest import Input
from edge.track import crops


@pytest.mark.parametrize(
    ("ages", "bands"),
    [
        pytest.param((6, 6), (0,), id="last year of a band"),
        pytest.param((7, 7), (1,), id="first year of the next"),
        pytest.param((20, 29), (2, 3), id="a group over two bands: both are right"),
        pytest.param((70, 116), (5,), id="open group"),
        pytest.param((0, 0), (), id="a baby belongs to none"),
        pytest.param((95, 95), (), id="nor does 95"),
        pytest.param((-1, -1), (), id="unknown"),
    ],
)
def test_age_band_is_right_when_it_overlaps_the_age(ages: tuple[int, int], bands: tuple[int, ...]) -> None:
    assert Label("x", "test", ages=ages).classes("age") == bands


def test_a_face_of_another_group_has_no_right_answer_in_the_race_head() -> None:
    assert Label("x", "test", race=OTHER_RACE).classes("race") == ()
    assert Label("x", "test", race=1).classes("race") == (1,)


def test_utkface_test_split_is_the_first_hex_digit_of_the_name() -> None:
    names = [f"{i}.jpg" for i in range(2000)]
    first = {name: hashlib.sha256(name.encode()).hexdigest()[0] for name in names}
    for name in names:
        assert (utkface_split(name) == "test") == (first[name] in "01")
    counts = {split: sum(utkface_split(name) == split for name in names) for split in ("train", "val", "test")}
    assert 190 < counts["test"] < 310
    assert 160 < counts["val"] < 280


def test_cut_repeats_the_border_and_says_what_is_real() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[:50] = 200
    crop, inside = cut(picture, (-20.0, -40.0, 80.0, 60.0), 50)
    assert crop.shape == (50, 50, 3)
    assert inside == pytest.approx((0.2, 0.4, 1.0, 1.0))
    assert (crop[:44] == 200).all()
    assert (crop[46:] == 0).all()


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_training_crops_are_those_the_box_cuts(margin: float) -> None:
    """Resampled twice through the context crop and rounded to whole pixels, so equal but for a little blur."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
    frame = cv2.resize(coarse, (300, 300), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    box = (100.0, 90.0, 180.0, 200.0)
    context, inside = cut(frame, widen(box, CONTEXT), CONTEXT_PX)
    faces = Faces(context[None], np.array([inside], np.float32), (Label("x", "test"),), ("",))
    ours = faces.crops(margin, 64)[0].astype(float)
    theirs = crops.cut(frame, np.array(box, np.float32), margin, Input(64, 64, fit="stretch")).astype(float)
    wider = crops.cut(frame, np.array(box, np.float32), margin + 0.1, Input(64, 64, fit="stretch")).astype(float)
    assert np.abs(ours - theirs).mean() < 8
    assert np.abs(ours - wider).mean() > 16


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"labels\.csv is missing; --data names the folder"):
        next(utkface(tmp_path))


@pytest.mark.shared
def test_every_set_yields_pictures_with_labels_of_its_heads(shared: Path) -> None:
    heads = {utkface: ("age", "gender"), fer2013: ("emotion",), fairface: ("age", "gender"), london: ("gender",)}
    for read, expected in heads.items():
        picture, digest, label = next(sample for sample in read(shared) if sample[2].classes(expected[0]))
        assert picture.ndim == 3
        assert picture.dtype == np.uint8
        assert len(digest) == 64
        for head in expected:
            assert all(0 <= c < len(HEADS[head]) for c in label.classes(head))
            assert label.classes(head)


@pytest.mark.shared
def test_reporting_sets_are_test_only(shared: Path) -> None:
    assert {label.split for _, _, label in london(shared)} == {"test"}


@pytest.mark.shared
def test_faces_are_found_and_kept_between_runs(shared: Path, tmp_path: Path) -> None:
    first = load(shared, "london", tmp_path)
    again = load(shared, "london", tmp_path)
    assert len(first.labels) == 160
    assert first.labels == again.labels
    assert first.digests == again.digests
    np.testing.assert_array_equal(first.pictures, again.pictures)
