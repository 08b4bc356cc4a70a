"""The sizing model: what it says of fleets whose answer is plain, and that docs/SCALE.md shows what it says."""

from dataclasses import replace
from pathlib import Path

import pytest

from bridge.sizing import BUSY, GATHER_S, LULL_S, MEASURED, Fleet, rounds_per_s, size, table

ROOT = Path(__file__).resolve().parents[2]
FLEETS = (Fleet(10), Fleet(1_000), Fleet(100_000))


def test_messages_acks_and_health_are_counted_beside_events() -> None:
    found = size(Fleet(600, events_per_s=10.0, batch_s=1.0, health_s=60.0), MEASURED)
    assert (found.events_per_s, found.messages_per_s, found.acks_per_s, found.health_per_s) == (6000, 600, 600, 10)
    slow = size(Fleet(600, events_per_s=0.1), MEASURED)
    assert (slow.messages_per_s, slow.acks_per_s) == (60, 60), "an event every ten seconds is a message each"


def test_cores_add_up_what_each_message_event_and_health_costs() -> None:
    costs = replace(
        MEASURED, bridge_round_us=500.0, bridge_message_us=100.0, bridge_event_us=10.0, bridge_health_us=1000.0
    )
    found = size(Fleet(60, events_per_s=2.0, health_s=60.0), costs)
    rounds = rounds_per_s(60, 1, costs)
    assert found.bridge_cores == pytest.approx((rounds * 500 + 60 * 100 + 120 * 10 + 1 * 1000) / 1e6)


def test_rounds_are_single_messages_of_a_few_boxes_and_fill_as_the_fleet_grows() -> None:
    assert rounds_per_s(1.0, 0.0, MEASURED) == pytest.approx(1.0, rel=0.05)
    assert rounds_per_s(0.0, 0.0, MEASURED) == 0.0
    for messages in (10.0, 100.0, 1_000.0, 10_000.0, 1e6):
        assert rounds_per_s(messages, 100.0, MEASURED) <= min(messages + 100.0, 2 / LULL_S)
    free = replace(MEASURED, bridge_message_us=0.0, database_message_us=0.0, bridge_round_us=0.0, database_round_us=0.0)
    assert rounds_per_s(1e6, 0.0, free) == pytest.approx(1 / GATHER_S, rel=0.01)
    assert rounds_per_s(1_000.0, 0.0, MEASURED) < 1 / GATHER_S, "while it writes, more gathers"
    assert rounds_per_s(1_000.0, 1e6, free) == pytest.approx(2 / GATHER_S, rel=0.03), "health in its own, as seldom"


def test_bridges_are_busy_at_most_half_the_time() -> None:
    for fleet in FLEETS:
        found = size(fleet, MEASURED)
        assert (found.bridge_cores + found.database_cores) / found.bridges <= BUSY
        assert found.bridges == 1 or (found.bridge_cores + found.database_cores) / (found.bridges - 1) > BUSY


def test_disk_is_events_and_health_for_as_long_as_they_are_kept() -> None:
    costs = replace(MEASURED, stored_event_bytes=100.0, stored_health_bytes=10.0)
    found = size(Fleet(1, events_per_s=1.0, health_s=60.0, open_hours=1.0, retention_days=10), costs)
    assert found.disk_gb * 1e9 == pytest.approx((3600 * 100 + 1440 * 10) * 10)


def test_backlog_drains_beside_live_events_and_larger_fleets_cost_more() -> None:
    sizes = [size(fleet, MEASURED) for fleet in FLEETS]
    assert all(0 < found.drain_s < 600 for found in sizes)
    assert sorted(found.bridge_cores for found in sizes) == [found.bridge_cores for found in sizes]


def test_scale_page_shows_what_the_model_says() -> None:
    shown = (ROOT / "docs/SCALE.md").read_text("utf-8")
    for line in table({fleet: size(fleet, MEASURED) for fleet in FLEETS}).splitlines():
        assert line in shown, 'docs/SCALE.md is older than the model: run "python -m bridge.sizing"'
