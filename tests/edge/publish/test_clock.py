"""P31: what a clock that jumps, or was never set, does to the dates of events."""

import time

from edge.publish.clock import BoxClock, MediaClock, synchronized
from edge.wire import Clock

DAY_S = 86_400.0
NOW_S = 1_790_000_000.0


class Times:
    """A wall and a monotonic clock that tests move."""

    def __init__(self, wall_s: float, synchronized: bool | None = True) -> None:
        self.wall_s, self.mono_s, self.synchronized = wall_s, 1000.0, synchronized

    def clock(self, floor_s: float = 0.0) -> BoxClock:
        return BoxClock(
            floor_s, wall=lambda: self.wall_s, mono=lambda: self.mono_s, synchronized=lambda: self.synchronized
        )

    def go(self, seconds: float) -> None:
        self.wall_s += seconds
        self.mono_s += seconds


def test_p31_a_moment_is_dated_by_when_it_was_not_by_when_it_is_told() -> None:
    times = Times(NOW_S)
    clock = times.clock()
    times.go(30.0)
    assert clock.stamp(1000.0) == (int(NOW_S * 1000), Clock.SYNCHRONIZED)
    assert clock.stamp(1030.0)[0] - clock.stamp(1000.0)[0] == 30_000


def test_p31_jitter_of_the_readings_does_not_move_dates() -> None:
    times = Times(NOW_S)
    clock = times.clock()
    first = clock.stamp(999.0)
    for jitter_s in (0.01, -0.02, 0.03):
        times.wall_s = NOW_S + jitter_s
        assert clock.stamp(999.0) == first


def test_p31_a_step_moves_what_comes_after_it_and_no_duration() -> None:
    times = Times(NOW_S)
    clock = times.clock()
    before_ms, _ = clock.stamp(1000.0)
    for step_s in (DAY_S, -2 * DAY_S):
        times.wall_s += step_s
        start_ms, _ = clock.stamp(1000.0)
        assert start_ms == int(times.wall_s * 1000)
        assert clock.stamp(1060.0)[0] - start_ms == 60_000
    assert before_ms == int(NOW_S * 1000)


def test_p31_before_synchronization_dates_are_estimates_and_never_before_the_floor() -> None:
    """A box without a battery starts in 1970; what its outbox wrote down last is the better guess."""
    times = Times(120.0, synchronized=False)
    clock = times.clock(floor_s=NOW_S)
    assert clock.stamp(1000.0) == (int(NOW_S * 1000), Clock.ESTIMATED)
    times.go(60.0)
    assert clock.stamp(1060.0) == (int((NOW_S + 60) * 1000), Clock.ESTIMATED)
    times.wall_s, times.synchronized = NOW_S + DAY_S, True
    times.go(11.0)
    assert clock.stamp(times.mono_s) == (round(times.wall_s * 1000), Clock.SYNCHRONIZED)


def test_p31_a_synchronized_clock_is_believed_even_below_the_floor() -> None:
    """Otherwise one day with a clock in the future would spoil the dates of all days until then."""
    clock = Times(NOW_S).clock(floor_s=NOW_S + 400 * DAY_S)
    assert clock.stamp(1000.0) == (int(NOW_S * 1000), Clock.SYNCHRONIZED)


def test_p31_a_year_before_2024_is_never_synchronized() -> None:
    assert Times(1000.0).clock().stamp(1000.0)[1] is Clock.ESTIMATED
    assert Times(NOW_S, synchronized=None).clock().stamp(1000.0)[1] is Clock.SYNCHRONIZED


def test_p31_the_kernel_is_asked_again_only_now_and_then() -> None:
    times = Times(NOW_S, synchronized=False)
    clock = times.clock()
    assert clock.stamp(1000.0)[1] is Clock.ESTIMATED
    times.synchronized = True
    assert clock.stamp(1000.0)[1] is Clock.ESTIMATED
    times.go(11.0)
    assert clock.stamp(1000.0)[1] is Clock.SYNCHRONIZED


def test_the_real_clock_can_be_asked() -> None:
    assert synchronized() in (True, False, None)
    at_ms, _ = BoxClock().stamp(time.monotonic())
    assert abs(at_ms - time.time() * 1000) < 1000


def test_media_time_counts_from_its_epoch() -> None:
    clock = MediaClock(5_000)
    assert clock.stamp(1.5) == (6_500, Clock.MEDIA)
