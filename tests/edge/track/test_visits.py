"""A visit's life in events: announced once, told at most once a minute, closed once; presence on a grid."""

from collections.abc import Iterable

import numpy as np

from edge.track.sort import Tracks
from edge.track.visits import VisitParams, Visits
from edge.wire import AnyEvent, Confirmed, Ended, EndReason, Presence, Update

WH = (1000, 500)
BOX = (100.0, 50.0, 200.0, 150.0)


class Street:
    """Feeds a `Visits` with hand-made tracks at 10 frames a second."""

    def __init__(self, **params: float) -> None:
        self.visits = Visits(2, VisitParams(**{"min_hits": 3, **params}), lambda _: (0, 3, 200), first_track=2**32 - 1)  # type: ignore[arg-type]
        self.now_s = 1000.0
        self.events: list[AnyEvent] = []
        self.gone: list[int] = []

    def frames(
        self,
        count: int,
        seen: Iterable[int] = (),
        alive: Iterable[int] | None = None,
        box: tuple[float, ...] = BOX,
        searched: bool = True,
    ) -> "Street":
        ids = np.array(list(seen), dtype=np.int64)
        detection = np.arange(len(ids)) if searched else np.full(len(ids), -1)
        tracks = Tracks(ids, np.tile(np.array(box), (len(ids), 1)), detection)
        for _ in range(count):
            events, gone = self.visits.frame(
                self.now_s,
                tracks,
                np.full(len(ids), 0.8, np.float32),
                frozenset(seen if alive is None else alive),
                WH,
                searched=searched,
            )
            self.events += events
            self.gone += gone
            self.now_s = round(self.now_s + 0.1, 3)
        return self

    def of(self, kind: type) -> list[AnyEvent]:
        return [e for e in self.events if isinstance(e, kind)]


def test_p33_a_visit_is_announced_once_and_closed_once() -> None:
    street = Street().frames(5).frames(20, [1]).frames(1)
    [confirmed], [ended] = street.of(Confirmed), street.of(Ended)
    assert isinstance(confirmed, Confirmed)
    assert isinstance(ended, Ended)
    assert confirmed.track == ended.track == 0  # the first number wraps at 32 bits
    assert confirmed.camera == 2
    assert confirmed.t_ms == ended.t_ms == 1_000_500
    assert ended.dwell_ms == 1900
    assert ended.hits == 20
    assert ended.reason == EndReason.LEFT
    assert ended.attributes == (0, 3, 200)
    assert street.gone == [1]


def test_a_first_sighting_in_the_first_frames_is_not_yet_a_visit() -> None:
    street = Street().frames(1, [1]).frames(10)
    assert not street.of(Confirmed)
    assert not street.of(Ended)


def test_a_first_sighting_after_the_camera_came_back_is_not_yet_a_visit_either() -> None:
    street = Street().frames(5).frames(20, [1])
    street.events += street.visits.close(street.now_s, EndReason.CAMERA_LOST)
    street.frames(1, [2]).frames(10)
    assert len(street.of(Confirmed)) == len(street.of(Ended)) == 1


def test_a_visit_starts_when_its_track_was_born_not_when_it_was_reported() -> None:
    street = Street().frames(5).frames(3, [], alive=[7]).frames(2, [7])
    [confirmed] = street.of(Confirmed)
    assert isinstance(confirmed, Confirmed)
    assert confirmed.t_ms == 1_000_500


def test_a_lost_track_ends_when_it_was_last_seen() -> None:
    street = Street().frames(5).frames(10, [1]).frames(30, [], alive=[1]).frames(1)
    [ended] = street.of(Ended)
    assert isinstance(ended, Ended)
    assert ended.dwell_ms == 900


def test_p33_updates_come_at_most_once_a_minute() -> None:
    street = Street().frames(5).frames(1500, [1])
    updates = street.of(Update)
    assert len(updates) == 2
    assert [e.dwell_ms for e in updates if isinstance(e, Update)] == [60_000, 120_000]


def test_the_path_is_where_somebody_came_in_and_where_they_left() -> None:
    street = Street().frames(5).frames(5, [1], box=(0, 0, 100, 100)).frames(5, [1], box=(900, 400, 1000, 500)).frames(1)
    [ended] = street.of(Ended)
    assert isinstance(ended, Ended)
    assert (ended.entry_x, ended.entry_y) == (round(0.05 * 4096), round(0.1 * 4096))
    assert (ended.exit_x, ended.exit_y) == (round(0.95 * 4096), round(0.9 * 4096))
    assert (ended.w, ended.h) == (410, 819)
    assert ended.score == 204


def test_a_box_that_leaves_the_frame_is_clipped_to_it() -> None:
    street = Street().frames(5).frames(5, [1], box=(-300, -300, 1300, 800)).frames(1)
    [ended] = street.of(Ended)
    assert isinstance(ended, Ended)
    assert (ended.w, ended.h) == (4096, 4096)


def test_closing_ends_everything_with_the_reason_given() -> None:
    street = Street().frames(5).frames(10, [1, 2])
    events = street.visits.close(street.now_s, EndReason.CAMERA_LOST)
    assert [e.reason for e in events if isinstance(e, Ended)] == [EndReason.CAMERA_LOST] * 2
    assert len(street.visits) == 0


def test_p34_presence_counts_people_and_their_time_on_the_grid() -> None:
    street = Street(presence_s=10.0).frames(50).frames(50, [1, 2]).frames(101, [1])
    first, second = (e for e in street.of(Presence) if isinstance(e, Presence))
    assert (first.t_ms, first.period_ms, first.most, first.entered) == (1_000_000, 10_000, 2, 2)
    assert abs(first.person_ms - 2 * 5000) <= 200
    assert (second.t_ms, second.most, second.entered) == (1_010_000, 1, 0)


def test_p34_an_empty_street_is_counted_too() -> None:
    street = Street(presence_s=10.0).frames(101)
    [slot] = street.of(Presence)
    assert isinstance(slot, Presence)
    assert (slot.most, slot.person_ms, slot.entered) == (0, 0, 0)


def test_a_slot_without_frames_says_nothing() -> None:
    street = Street(presence_s=10.0).frames(10)
    street.now_s += 100
    street.frames(1)
    assert [e.t_ms for e in street.of(Presence) if isinstance(e, Presence)] == [1_000_000]


def test_p34_the_grid_is_where_the_clock_puts_it() -> None:
    street = Street(presence_s=10.0, grid_s=3.0).frames(200)
    assert [e.t_ms for e in street.of(Presence) if isinstance(e, Presence)] == [993_000, 1_003_000]


def test_frames_that_were_only_predicted_keep_a_visit_but_do_not_prolong_it() -> None:
    street = Street().frames(5).frames(10, [1]).frames(10, [1], searched=False).frames(1)
    [ended] = street.of(Ended)
    assert isinstance(ended, Ended)
    assert (ended.dwell_ms, ended.hits) == (900, 10)
