"""Biographies of tracks: birth, growth, occlusion, crossing, death; and the assignment between them."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from edge.geometry import iou
from edge.track.sort import Sort, SortParams, Tracks, assign, associate
from tests.bench.scenes import crowd
from tests.bench.sort_peer import PeerSort

AT_ONCE = SortParams(max_age=1, min_hits=0)  # every matched track is reported


def face(x: float, y: float = 100, side: float = 50) -> list[float]:
    return [float(x), float(y), float(x + side), float(y + side)]


def see(sort: Sort, *faces: list[float]) -> Tracks:
    return sort.update(np.array(faces, dtype=np.float64).reshape(-1, 4))


def ids(tracks: Tracks) -> list[int]:
    return [int(i) for i in tracks.track_id]


def warm(params: SortParams, empty_frames: int = 20) -> Sort:
    """Return a tracker past its first frames, in which every match is reported."""
    sort = Sort(params)
    for _ in range(empty_frames):
        see(sort)
    return sort


# Birth


def test_ids_start_at_one_and_belong_to_the_tracker_instance() -> None:
    assert sorted(ids(see(Sort(AT_ONCE), face(0), face(500)))) == [1, 2]
    assert sorted(ids(see(Sort(AT_ONCE), face(0), face(500)))) == [1, 2]


def test_everyone_names_who_is_everywhere_the_tentative_and_the_lost_included() -> None:
    sort = Sort(SortParams(max_age=3, min_hits=2))
    see(sort, face(0), face(500))
    see(sort, face(500), face(900))  # the first is lost, the third is new
    where = dict(zip(sort.everyone().tolist(), sort.everywhere()[:, 0].round().tolist(), strict=True))
    assert where == {1: 0, 2: 500, 3: 900}
    assert sort.alive() == frozenset(where)


def test_track_is_confirmed_by_min_hits_matches_after_its_birth() -> None:
    sort = warm(SortParams(min_hits=3))
    assert [ids(see(sort, face(0))) for _ in range(5)] == [[], [], [], [1], [1]]


def test_first_min_hits_frames_report_every_match() -> None:
    sort = Sort(SortParams(min_hits=3))
    assert [ids(see(sort, face(0))) for _ in range(5)] == [[1], [1], [1], [1], [1]]


def test_track_born_just_before_the_first_frames_are_over_disappears_until_confirmed() -> None:
    sort = warm(SortParams(min_hits=3), empty_frames=2)
    assert [ids(see(sort, face(0))) for _ in range(5)] == [[1], [], [], [1], [1]]


def test_a_miss_before_confirmation_starts_the_count_again() -> None:
    sort = warm(SortParams(max_age=5, min_hits=3))
    seen = [[face(0)], [face(0)], [face(0)], [], [face(0)], [face(0)], [face(0)], [face(0)]]
    assert [ids(see(sort, *faces)) for faces in seen] == [[], [], [], [], [], [], [1], [1]]


def test_youngest_track_is_reported_first() -> None:
    sort = Sort(AT_ONCE)
    see(sort, face(0))
    assert ids(see(sort, face(300), face(0), face(600))) == [3, 2, 1]


# Growth


def test_track_keeps_its_id_while_it_moves_and_grows() -> None:
    sort = Sort(AT_ONCE)
    for frame in range(40):
        tracks = see(sort, face(8 * frame, side=50 + frame))
        assert ids(tracks) == [1]
    np.testing.assert_allclose(tracks.xyxy, [face(8 * 39, side=50 + 39)], atol=2)


def test_track_names_the_detection_it_was_matched_with() -> None:
    sort = Sort(AT_ONCE)
    see(sort, face(0), face(300))
    tracks = see(sort, face(600), face(300), face(0))
    assert dict(zip(ids(tracks), tracks.detection.tolist(), strict=True)) == {1: 2, 2: 1, 3: 0}


def test_face_that_jumps_becomes_a_new_track() -> None:
    sort = Sort(AT_ONCE)
    see(sort, face(0))
    assert ids(see(sort, face(45))) == [2]


# Occlusion


def test_lost_track_is_not_reported_but_alive() -> None:
    sort = Sort(SortParams(max_age=3, min_hits=0))
    see(sort, face(0))
    assert ids(see(sort)) == []
    assert sort.alive() == {1}


def test_track_lost_for_max_age_frames_comes_back_with_its_id() -> None:
    sort = Sort(SortParams(max_age=3, min_hits=0))
    see(sort, face(0))
    for _ in range(3):
        see(sort)
    assert ids(see(sort, face(0))) == [1]


def test_lost_track_moves_on_and_is_met_where_it_reappears() -> None:
    sort = Sort(SortParams(max_age=10, min_hits=0))
    for frame in range(20):
        see(sort, face(10 * frame))
    for _ in range(9):
        see(sort)
    assert ids(see(sort, face(10 * 29))) == [1]


def test_returning_track_is_confirmed_again_by_min_hits_matches() -> None:
    sort = warm(SortParams(max_age=5, min_hits=2))
    for _ in range(4):
        see(sort, face(0))
    see(sort)
    assert [ids(see(sort, face(0))) for _ in range(3)] == [[], [1], [1]]


# Death


@pytest.mark.parametrize("max_age", [0, 1, 5])
def test_track_dies_after_max_age_frames_without_match(max_age: int) -> None:
    sort = Sort(SortParams(max_age=max_age, min_hits=0))
    see(sort, face(0))
    for _ in range(max_age):
        see(sort)
        assert sort.alive() == {1}
    see(sort)
    assert sort.alive() == frozenset()
    assert ids(see(sort, face(0))) == [2], "an id is never used again"


def test_survivors_keep_their_state_when_another_dies() -> None:
    sort, alone = Sort(AT_ONCE), Sort(AT_ONCE)
    see(sort, face(900), face(0))
    see(alone, face(0))
    for frame in range(1, 6):
        both, one = see(sort, face(6 * frame)), see(alone, face(6 * frame))
    assert ids(both) == [2]
    np.testing.assert_array_equal(both.xyxy, one.xyxy)


# Skipped frames


def test_predict_moves_reported_tracks_on_without_detection() -> None:
    sort = Sort(AT_ONCE)
    for frame in range(20):
        see(sort, face(10 * frame))
    tracks = sort.predict()
    assert ids(tracks) == [1]
    assert tracks.detection.tolist() == [-1]
    np.testing.assert_allclose(tracks.xyxy, [face(10 * 20)], atol=1)


def test_track_does_not_age_while_frames_are_skipped() -> None:
    sort = Sort(SortParams(max_age=1, min_hits=0))
    see(sort, face(0))
    for _ in range(50):
        assert ids(sort.predict()) == [1]
    assert ids(see(sort, face(0))) == [1]


def test_streak_survives_skipped_frames_but_does_not_grow_in_them() -> None:
    sort = warm(SortParams(min_hits=2))
    reported = [(ids(see(sort, face(0))), ids(sort.predict())) for _ in range(4)]
    assert reported == [([], []), ([], []), ([1], [1]), ([1], [1])]


def test_lost_track_is_not_reported_on_skipped_frames() -> None:
    sort = Sort(SortParams(max_age=5, min_hits=0))
    see(sort, face(0))
    see(sort)
    assert ids(sort.predict()) == []
    assert sort.alive() == {1}


# Frames that are odd


def test_frames_without_detections_report_nothing() -> None:
    sort = Sort(AT_ONCE)
    for tracks in (see(sort), sort.predict()):
        assert tracks.track_id.shape == tracks.detection.shape == (0,)
        assert tracks.xyxy.shape == (0, 4)
    assert sort.alive() == frozenset()


UNUSABLE = {
    "no area": [10.0, 10, 10, 10],
    "no height": [10.0, 10, 20, 10],
    "inside out": [20.0, 20, 10, 10],
    "not a number": [float("nan"), 0, 10, 10],
    "infinite": [0, 0, float("inf"), 10],
    "from minus infinity": [float("-inf"), 0, 10, 10],
    "too small for its square": [0, 0, 1e-200, 1e-200],
    "too large for its square": [0, 0, 1e200, 1e200],
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_box_without_area_is_ignored_and_the_others_keep_their_row(case: str) -> None:
    sort = Sort(AT_ONCE)
    for _ in range(3):
        tracks = see(sort, UNUSABLE[case], face(0), UNUSABLE[case], face(300))
        assert dict(zip(ids(tracks), tracks.detection.tolist(), strict=True)) == {1: 1, 2: 3}
    assert np.isfinite(tracks.xyxy).all()


def test_float32_detections_are_followed_in_float64() -> None:
    sort = Sort(AT_ONCE)
    detections = np.array([face(0.1)], dtype=np.float32)
    sort.update(detections)
    assert sort.update(detections).xyxy.dtype == np.float64
    np.testing.assert_array_equal(detections, np.array([face(0.1)], dtype=np.float32))


def test_the_same_frames_give_the_same_tracks_again() -> None:
    scene = crowd(np.random.default_rng(5), 40, 60, frame_wh=(640, 480))
    first, second = Sort(SortParams()), Sort(SortParams())
    for boxes in scene:
        a, b = first.update(boxes), second.update(boxes)
        np.testing.assert_array_equal(a.track_id, b.track_id)
        np.testing.assert_array_equal(a.xyxy, b.xyxy)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_age": -1}, "max_age is -1, must be 0 or more frames"),
        ({"min_hits": -1}, "min_hits is -1, must be 0 or more matches"),
        ({"iou_threshold": 0.0}, "iou_threshold is 0.0, must be above 0 and at most 1"),
        ({"iou_threshold": 1.5}, "iou_threshold is 1.5, must be above 0 and at most 1"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SortParams(**params)  # type: ignore[arg-type]


# Crossings and ties


def paths(sort: Sort, frames: Iterable[list[list[float]]]) -> list[dict[int, int]]:
    """Return which track id each detection row was given, frame by frame."""
    result = []
    for faces in frames:
        tracks = see(sort, *faces)
        result.append(dict(zip(tracks.detection.tolist(), ids(tracks), strict=True)))
    return result


def test_faces_crossing_in_front_of_each_other_keep_their_ids() -> None:
    """Both are always seen; in the middle they overlap by more than the threshold and motion decides."""
    frames = [[face(10 * n), face(600 - 10 * n, y=110)] for n in range(61)]
    assert paths(Sort(AT_ONCE), frames) == [{0: 1, 1: 2}] * 61


def test_crossing_face_that_is_hidden_in_the_middle_keeps_its_id() -> None:
    sort = Sort(SortParams(max_age=15, min_hits=0))
    for n in range(61):
        hidden = 26 <= n <= 34
        tracks = see(sort, face(10 * n), *([] if hidden else [face(600 - 10 * n, y=110)]))
        assert sorted(ids(tracks)) == ([1] if hidden else [1, 2])
    np.testing.assert_allclose(tracks.xyxy[ids(tracks).index(1)], face(600), atol=1)


def test_sum_of_overlap_wins_over_the_single_best_pair() -> None:
    """Taking the best pair first would leave the others with less than the threshold."""
    tracks = np.array([face(20, 100, 100), face(-25, 100, 100)])
    detections = np.array([face(0, 100, 100), face(20, 125, 100)])
    np.testing.assert_allclose(iou(detections, tracks), [[0.67, 0.6], [0.6, 0.26]], atol=0.01)
    detection, track = associate(detections, tracks, 0.3)
    assert dict(zip(detection.tolist(), track.tolist(), strict=True)) == {0: 1, 1: 0}


def test_pairs_above_the_threshold_are_taken_as_they_are_when_no_box_is_in_two() -> None:
    """A chain: the sum prefers two pairs below the threshold; like the reference we do not look at them."""
    tracks = np.array([face(-38, 100, 100), face(31, 100, 100)])
    detections = np.array([face(0, 100, 100), face(69, 100, 100)])
    np.testing.assert_allclose(iou(detections, tracks), [[0.45, 0.53], [0, 0.45]], atol=0.01)
    detection, track = associate(detections, tracks, 0.5)
    assert list(zip(detection.tolist(), track.tolist(), strict=True)) == [(0, 1)]


def test_match_at_the_threshold_counts_only_where_there_was_something_to_decide() -> None:
    """The reference takes unambiguous pairs above the threshold, but drops assigned ones only below it."""
    track, half = face(0, side=100), [0.0, 100, 100, 150]
    detection, _ = associate(np.array([half]), np.array([track]), 0.5)
    assert detection.tolist() == [0]
    other, same = face(500), face(500)
    detection, _ = associate(np.array([half, other]), np.array([track, same]), 0.5)
    assert detection.tolist() == [1]


def test_two_detections_of_one_face_share_it_out_once() -> None:
    """Of exactly equal boxes the first row is taken; the other starts a track of its own."""
    sort = Sort(SortParams(max_age=1, min_hits=0))
    see(sort, face(0))
    tracks = see(sort, face(0), face(0))
    assert dict(zip(tracks.detection.tolist(), ids(tracks), strict=True)) == {0: 1, 1: 2}


def test_two_identical_tracks_and_two_identical_detections_stay_two() -> None:
    sort = Sort(AT_ONCE)
    for _ in range(10):
        tracks = see(sort, face(0), face(0))
        assert dict(zip(tracks.detection.tolist(), ids(tracks), strict=True)) == {0: 1, 1: 2}


def test_detection_midway_between_two_tracks_goes_to_exactly_one() -> None:
    sort = Sort(SortParams(max_age=1, min_hits=0))
    see(sort, face(0), face(20))
    tracks = see(sort, face(10))
    assert ids(tracks) == [1], "of equals the older track wins"
    assert sort.alive() == {1, 2}


def test_ties_are_settled_as_by_the_plain_loop() -> None:
    """A grid of equal boxes moving by half a cell: every detection lies midway between its neighbours."""
    grid = np.array([face(40 * x, 40 * y) for y in range(4) for x in range(4)])
    sort, peer = Sort(AT_ONCE), PeerSort(AT_ONCE)
    for n in range(12):
        boxes = grid + 20 * (n % 2)
        ours, theirs = sort.update(boxes), peer.update(boxes)
        assert ids(ours) == [track_id for track_id, _ in theirs]
        np.testing.assert_allclose(ours.xyxy, [box for _, box in theirs], atol=1e-6)


# Claims about any scene


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    objects=st.integers(1, 25),
    miss=st.sampled_from([0.0, 0.1, 0.4]),
    params=st.builds(
        SortParams,
        max_age=st.integers(0, 10),
        min_hits=st.integers(0, 4),
        iou_threshold=st.sampled_from([0.1, 0.3, 0.6]),
    ),
)
def test_any_scene_gives_what_the_plain_loop_gives(seed: int, objects: int, miss: float, params: SortParams) -> None:
    """On a picture so small that nearly everybody overlaps."""
    sort, peer = Sort(params), PeerSort(params)
    for boxes in crowd(np.random.default_rng(seed), objects, 30, frame_wh=(400, 300), miss=miss):
        ours, theirs = sort.update(boxes), peer.update(boxes)
        assert ids(ours) == [track_id for track_id, _ in theirs]
        if theirs:
            np.testing.assert_allclose(ours.xyxy, [box for _, box in theirs], atol=1e-6)
        assert sort.alive() == {track.track_id for track in peer.tracks}


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    density=st.floats(0, 1),
    levels=st.sampled_from([2, 5, 10**6]),
)
def test_sum_of_the_assignment_is_the_optimum_over_all_pairs(
    seed: int, shape: tuple[int, int], density: float, levels: int
) -> None:
    """Few levels make ties; density makes anything from lone pairs to one knot."""
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random(shape) < density, rng.integers(1, levels, shape, endpoint=True) / levels, 0.0)
    i, j = np.nonzero(dense)
    pair = assign(i, j, dense[i, j])
    assert len(set(i[pair])) == len(set(j[pair])) == len(pair), "a row or a column was used twice"
    best = dense[linear_sum_assignment(dense, maximize=True)].sum()
    assert dense[i[pair], j[pair]].sum() == pytest.approx(best, abs=1e-9)
