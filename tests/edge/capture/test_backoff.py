"""Waits grow, stay bounded, are spread by jitter, and start small again after a good connection."""

from random import Random

import pytest

from edge.capture.backoff import Backoff


def test_waits_stay_between_floor_and_a_doubling_ceiling() -> None:
    for seed in range(50):
        backoff, rng = Backoff(base_s=0.5, cap_s=30.0, floor_s=0.1), Random(seed)
        for attempt in range(12):
            wait_s = backoff.failed(0.0, rng)
            assert 0.1 <= wait_s <= min(30.0, 0.5 * 2**attempt)


def test_full_jitter_spreads_a_fleet_over_the_whole_wait() -> None:
    waits = []
    for seed in range(300):
        backoff = Backoff(failures=10)
        waits.append(backoff.failed(0.0, Random(seed)))
    assert min(waits) < 3.0
    assert max(waits) > 27.0
    assert 13.0 < sum(waits) / len(waits) < 17.0


def test_a_thousand_failures_do_not_overflow() -> None:
    backoff, rng = Backoff(), Random(1)
    assert all(backoff.failed(0.0, rng) <= backoff.cap_s for _ in range(2000))


@pytest.mark.parametrize(("held_s", "failures_after"), [(9.9, 6), (10.0, 1)])
def test_only_a_connection_that_held_makes_waits_small_again(held_s: float, failures_after: int) -> None:
    backoff = Backoff(failures=5, stable_s=10.0)
    backoff.connected(100.0)
    backoff.failed(100.0 + held_s, Random(1))
    assert backoff.failures == failures_after


def test_a_refused_password_waits_minutes() -> None:
    assert 240.0 <= Backoff().failed(0.0, Random(1), refused=True) <= 300.0
