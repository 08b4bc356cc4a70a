"""The sizing model: what it says of fleets whose answer is plain, and that docs/SCALE.md shows what it says."""

from dataclasses import replace
from pathlib import Path

import pytest

from bridge.sizing import BUSY, MEASURED, Fleet, size, table

ROOT = Path(__file__).resolve().parents[2]
FLEETS = (Fleet(10), Fleet(1_000), Fleet(100_000))


def test_messages_acks_and_health_are_counted_beside_events() -> None:
    found = size(Fleet(600, events_per_s=10.0, batch_s=1.0, health_s=60.0), MEASURED)
    assert (found.events_per_s, found.messages_per_s, found.acks_per_s, found.health_per_s) == (6000, 600, 600, 10)
    slow = size(Fleet(600, events_per_s=0.1), MEASURED)
    assert (slow.messages_per_s, slow.acks_per_s) == (60, 60), "an event every ten seconds is a message each"


def test_cores_add_up_what_each_message_event_and_health_costs() -> None:
    costs = replace(MEASURED, bridge_message_us=100.0, bridge_event_us=10.0, bridge_health_us=1000.0)
    found = size(Fleet(60, events_per_s=2.0, health_s=60.0), costs)
    assert found.bridge_cores == pytest.approx((60 * 100 + 120 * 10 + 1 * 1000) / 1e6)


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
