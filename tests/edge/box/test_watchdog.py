"""Which loops hang."""

from edge.box.watchdog import Loop, stuck


def test_a_loop_that_stopped_turning_is_named() -> None:
    loops = [Loop("camera door", 100.0), Loop("publisher", 70.0)]
    assert stuck(loops, now_s=105.0, limit_s=20.0) == ["publisher"]
    assert stuck(loops, now_s=80.0, limit_s=20.0) == []
