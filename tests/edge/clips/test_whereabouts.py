"""Who was where, and what must be hidden when one of them is shown."""

import numpy as np

from edge.capture.frames import Frame
from edge.clips.whereabouts import Whereabouts
from edge.pipeline import Seen
from edge.track.ballot import NOTHING, Vote
from edge.track.sort import Tracks

ME, OTHER = Vote("me", 1, 0.9, 4), Vote("other", 0, 0.8, 4)


def life(here: dict[int, Vote | None], frame: int) -> tuple[Seen, np.ndarray]:
    """Return a frame, ten a second, in which these tracks are: voted on, or with None thought of but not reported."""
    ids = np.array(sorted(here), np.int64)
    boxes = np.array([[100.0 * i + frame, 0, 100 * i + frame + 50, 50] for i in ids], np.float64).reshape(-1, 4)
    told = np.array([here[i] is not None for i in ids.tolist()], bool)
    tracks = Tracks(ids[told], boxes[told], np.zeros(told.sum(), np.int64))
    votes = {i: {"me": vote} for i, vote in here.items() if vote is not None}
    picture = Frame(np.zeros((1, 1, 3), np.uint8), frame, frame / 10, frame / 10)
    return Seen(picture, tracks, boxes, np.zeros(0, np.float32), True, (), votes, 0), ids


def played(*frames: dict[int, Vote | None]) -> Whereabouts:
    where = Whereabouts("me")
    for i, here in enumerate(frames):
        where.add(*life(here, i))
    return where


def test_the_last_vote_is_the_answer() -> None:
    where = played({1: NOTHING, 2: ME}, {1: ME, 2: ME}, {1: ME, 2: OTHER})
    assert where.tracks_of("me") == {1}
    (one,) = where.sightings(where.tracks_of("me"))
    assert (one.start_s, one.end_s, one.confidence) == (0.0, 0.2, 0.9)


def test_a_face_of_which_nothing_is_known_is_another_s() -> None:
    where = played({1: ME, 2: NOTHING, 3: None})
    assert where.others(0, 0.0, frozenset({1}), 0.5).tolist() == [[200, 0, 250, 50], [300, 0, 350, 50]]


def test_the_person_alone_leaves_nothing_to_hide() -> None:
    assert played({1: ME}).others(0, 0.0, frozenset({1}), 0.5).shape == (0, 4)


def test_others_are_hidden_before_they_are_noticed_and_after_they_are_given_up() -> None:
    where = played(*[{}] * 10, {2: OTHER}, {2: OTHER}, *[{}] * 10)
    hidden = [len(where.others(i, i / 10, frozenset(), 0.5)) for i in range(22)]
    assert hidden == [0] * 5 + [1] * 12 + [0] * 5
    assert where.others(6, 0.6, frozenset(), 0.5).tolist() == [[210, 0, 260, 50]]  # where it came up
    assert where.others(15, 1.5, frozenset(), 0.5).tolist() == [[211, 0, 261, 50]]  # where it went down


def test_a_person_in_one_frame_has_a_length_of_nothing_and_a_pace_all_the_same() -> None:
    where = played({1: ME})
    assert (where.end_s, where.fps) == (0.0, 25.0)
    assert played({1: ME}, {1: ME}, {1: ME}).fps == 10
