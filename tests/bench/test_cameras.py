"""The search for the number of cameras, against boxes that can do a known number."""

import pytest

from tests.bench.cameras import Step, ramp, table, verdict


def step(cameras: int, capacity: int) -> Step:
    """Return what a box that sustains `capacity` cameras does with so many."""
    late_s = 0.03 if cameras <= capacity else 0.9
    return Step(cameras, 25.0, 5.0, 2.0 * cameras, 0, late_s, 0.1 * cameras, 0.05, 0.1 * cameras + 0.3)


@pytest.mark.parametrize("capacity", [0, 1, 7, 8, 9, 11, 12, 13, 30])
def test_ramp_finds_the_largest_number_that_is_sustained(capacity: int) -> None:
    steps = list(ramp(lambda n: step(n, capacity), first=8, step=4, time_left=lambda: True))
    assert max((s.cameras for s in steps if not s.trouble), default=0) == capacity
    assert len({s.cameras for s in steps}) == len(steps)  # no number is tried twice
    assert verdict(steps).startswith(f"{capacity} live 720p cameras sustained; with {capacity + 1} ")


def test_ramp_stops_when_the_time_is_up_and_says_so() -> None:
    left = iter([True, True, False])
    steps = list(ramp(lambda n: step(n, 100), first=8, step=4, time_left=lambda: next(left)))
    assert [s.cameras for s in steps] == [8, 12]
    assert verdict(steps).startswith("12 live 720p cameras sustained; the time was up")


def test_trouble_names_what_was_not_kept_up() -> None:
    good = {"cameras": 3, "received_hz": 25, "processed_hz": 5, "detections_hz": 6, "dropped": 0, "late_s": 0.1}
    cores = {"box_cores": 1.0, "server_cores": 0.1, "machine_cores": 1.2}
    assert Step(**good, **cores).trouble == ""
    assert "decoded at 20.0 of 25" in Step(**(good | {"received_hz": 20}), **cores).trouble
    assert "looked at 4.00 times" in Step(**(good | {"processed_hz": 4}), **cores).trouble
    assert "2 frames dropped" in Step(**(good | {"dropped": 2}), **cores).trouble
    assert "0.50 s old" in Step(**(good | {"late_s": 0.5}), **cores).trouble


def test_table_has_a_row_for_every_step() -> None:
    assert table([step(8, 9), step(12, 9), step(10, 9)], "here").row_count == 3
