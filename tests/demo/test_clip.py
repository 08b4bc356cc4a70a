"""The built-in clip: the same pictures every time, and a truth that follows from the story alone."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo.clip import render, rendered_before
from demo.portraits import PORTRAITS, Portrait, cutout, portrait_path
from demo.scene import COUNTER_TOP_PX, Scene
from demo.story import DURATION_S, FPS, FRAME_WH, STORY, GroundTruth, Key, Walk, frame_count, ground_truth, pose


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    return ground_truth()


def test_two_scenes_draw_the_same_bytes() -> None:
    one, other = Scene(), Scene()
    for index in (0, 160, 400, 760, 924):
        assert np.array_equal(one.frame(index), other.frame(index)), index


def test_frame_depends_on_its_number_alone_and_not_on_those_before() -> None:
    scene = Scene()
    alone = scene.frame(300)
    for index in (10, 500, 299):
        scene.frame(index)
    assert np.array_equal(scene.frame(300), alone)


def test_story_has_six_visits_of_two_people_in_order_of_entering(truth: GroundTruth) -> None:
    assert [v.name for v in truth.visits] == [
        "collins-looks",
        "hopper-crosses",
        "hopper-waits",
        "collins-approaches",
        "hopper-returns",
        "collins-hurries",
    ]
    assert {v.person for v in truth.visits} == {"collins", "hopper"}
    assert [v.first for v in truth.visits] == sorted(v.first for v in truth.visits)


def test_everybody_enters_and_leaves_within_the_clip(truth: GroundTruth) -> None:
    assert truth.frames == frame_count() == round(DURATION_S * FPS)
    for visit in truth.visits:
        assert 0 < visit.first < visit.last < truth.frames - 1, visit.name
    assert truth.people_at(0) == truth.people_at(truth.frames - 1) == 0
    people = [truth.people_at(f) for f in range(truth.frames)]
    assert max(people) == 3
    assert people.count(3) >= FPS  # for so long that no detector's way with the edges matters


def test_boxes_lie_inside_the_frame_and_above_the_counter(truth: GroundTruth) -> None:
    for visit in truth.visits:
        x0, y0, x1, y1 = visit.boxes.T
        assert (x0 >= 0).all(), visit.name
        assert (y0 >= 0).all(), visit.name
        assert (x1 <= FRAME_WH[0]).all(), visit.name
        assert (y1 <= COUNTER_TOP_PX).all(), visit.name
        assert ((x1 - x0) >= 30).all(), visit.name
        assert ((y1 - y0) >= 90).all(), visit.name


def test_faces_move_at_most_fifteen_pixels_between_frames(truth: GroundTruth) -> None:
    for visit in truth.visits:
        centres = (visit.boxes[:, :2] + visit.boxes[:, 2:]) / 2
        steps = np.abs(np.diff(centres, axis=0)).max()
        assert steps <= 15, (visit.name, steps)


def test_one_stays_still_for_fourteen_seconds(truth: GroundTruth) -> None:
    (waiting,) = (v for v in truth.visits if v.name == "hopper-waits")
    standing = waiting.boxes[round(9 * FPS) - waiting.first : round(23 * FPS) - waiting.first]
    assert len(standing) == 14 * FPS
    assert np.ptp(standing[:, 0]) < 4


def test_one_comes_nearer_until_the_face_has_twice_its_height(truth: GroundTruth) -> None:
    (coming,) = (v for v in truth.visits if v.name == "collins-approaches")
    heights = coming.boxes[:, 3] - coming.boxes[:, 1]
    assert heights.max() > 2 * heights[0]


def test_crossings_hide_part_of_a_face_and_never_all_of_it(truth: GroundTruth) -> None:
    hidden = {v.name: float(v.hidden.max()) for v in truth.visits}
    assert 0.5 < hidden["collins-looks"] < 0.8
    assert 0.2 < hidden["hopper-returns"] < 0.5
    assert hidden["hopper-crosses"] == hidden["collins-hurries"] == 0


def test_who_comes_back_was_gone_for_longer_than_a_lost_track_lives(truth: GroundTruth) -> None:
    crossed, back = (v for name in ("hopper-crosses", "hopper-returns") for v in truth.visits if v.name == name)
    assert back.first - crossed.last > 10 * FPS


def test_sides_of_the_frame_rest_two_seconds_between_leaving_and_entering(truth: GroundTruth) -> None:
    """SORT, which knows no faces, would take the one who enters for the one who just left."""

    def left(box: np.ndarray) -> bool:
        return bool(box[0] + box[2] < FRAME_WH[0])

    for gone in truth.visits:
        for came in truth.visits:
            if came.first > gone.last and left(gone.boxes[-1]) == left(came.boxes[0]):
                assert came.first - gone.last >= 2 * FPS, (gone.name, came.name)


def test_boxes_at_agree_with_people_at(truth: GroundTruth) -> None:
    for frame in range(0, truth.frames, 25):
        assert len(truth.boxes_at(frame)) == truth.people_at(frame)


def test_pose_is_none_outside_the_walk_and_passes_through_its_keys() -> None:
    walk = Walk("x", STORY[0].look, (Key(1, 0.1, 100), Key(2, 0.5, 120), Key(3, 0.9, 100)))
    assert pose(walk, 0.99) is None
    assert pose(walk, 3.01) is None
    for key in walk.keys:
        at = pose(walk, key.t_s)
        assert at is not None
        assert at.x_px == pytest.approx(key.x * FRAME_WH[0], abs=2)
        assert at.face_h == pytest.approx(key.face_h)


def test_drawn_face_lies_where_the_truth_says(truth: GroundTruth) -> None:
    """The picture with and without one person differs inside the face box, and centrally so."""
    (walk,) = (w for w in STORY if w.name == "collins-approaches")
    box = truth.boxes_at(470)["collins-approaches"].astype(int)
    others = tuple(w for w in STORY if w is not walk)
    changed = np.abs(Scene().frame(470).astype(int) - Scene(others).frame(470)).max(axis=2) > 12
    assert changed[box[1] : box[3], box[0] : box[2]].mean() > 0.95
    columns = np.flatnonzero(changed[box[1] - 40 : box[1] + 20].any(axis=0))
    assert abs(columns.mean() - (box[0] + box[2]) / 2) < 0.2 * (box[2] - box[0])


def test_mirrored_look_mirrors_picture_and_face_box() -> None:
    plain, mirrored = cutout(STORY[0].look), cutout(replace(STORY[0].look, mirrored=True))
    assert np.array_equal(plain.levels[0][:, ::-1], mirrored.levels[0])
    width = plain.levels[0].shape[1]
    assert mirrored.face_xyxy[0] == width - plain.face_xyxy[2]


def test_another_suit_leaves_the_face_alone() -> None:
    plain, blue = cutout(STORY[0].look), cutout(replace(STORY[0].look, suit_shift=98))
    x0, y0, x1, y1 = (int(v) for v in plain.face_xyxy)
    face = np.s_[y0:y1, x0:x1]
    assert np.array_equal(plain.levels[0][face], blue.levels[0][face])
    assert np.abs(plain.levels[0][300:500].astype(int) - blue.levels[0][300:500]).mean() > 5


def test_cutouts_are_premultiplied_with_soft_edges() -> None:
    bgra = cutout(STORY[1].look).levels[0]
    assert (bgra[..., :3].max(axis=2) <= bgra[..., 3]).all()
    assert bgra[0, 0, 3] == 0
    alpha = bgra[..., 3]
    assert ((alpha > 20) & (alpha < 235)).sum() > 1000


@pytest.mark.parametrize("portrait", PORTRAITS.values(), ids=PORTRAITS)
def test_portraits_come_with_their_packages(portrait: Portrait) -> None:
    assert cv2.imread(str(portrait_path(portrait))) is not None


def test_rendered_clip_opens_in_opencv_with_every_frame(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = render(tmp_path / "clip.mp4", duration_s=2.0, progress=lambda done, all_: told.append((done, all_)))
    video = cv2.VideoCapture(str(path))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) == 50
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    assert frames[0].shape == (720, 1280, 3)
    drawn = Scene().frame(40)
    assert np.abs(frames[40].astype(int) - drawn).mean() < 3
    assert told[-1] == (50, 50)


def test_rendering_that_is_stopped_leaves_no_file(tmp_path: Path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(KeyboardInterrupt):
        render(tmp_path / "clip.mp4", duration_s=1.0, stopping=lambda: next(asked))
    assert list(tmp_path.iterdir()) == []


def test_clip_of_this_version_is_not_rendered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    assert rendered_before(path) is None
    path.write_bytes(b"no video")
    assert rendered_before(path) is None
    path = render(path, duration_s=0.2)
    assert rendered_before(path) == path
    monkeypatch.setattr("demo.clip.version", lambda: "another story")
    assert rendered_before(path) is None
