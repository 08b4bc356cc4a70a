"""What is told after a run, from a real PostgreSQL with events written by the real store."""

import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from bridge.store import Store
from demo import report
from demo.chart import write_chart
from demo.report import Outcome, Presence, Traffic, Visit
from edge.wire import EndReason
from tests.bridge.events import NOW, batch, confirmed, ended, message, presence, query

NOTHING = Outcome((), (), Traffic(0, 0, 0, 0, 0, 0))


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    with Store(dsn) as opened:
        yield opened


@pytest.fixture
def outcome(store: Store, dsn: str) -> Outcome:
    """Two visits that ended, one that has not, and three slots of presence on two cameras."""
    store.write(
        [
            message(batch([ended(1), presence(0, most=2, person_ms=9000)])),
            message(batch([ended(2, 5000, 4000, attributes=(1, 0, 255))], first_seq=3)),
            message(batch([confirmed(3, 12_000), presence(10_000, most=1, person_ms=2500)], first_seq=4)),
            message(batch([presence(0, camera=1, most=3, person_ms=1000)], first_seq=6)),
        ]
    )
    return report.read(dsn)


def printed(outcome: Outcome, width: int = 120, most: int = 40) -> str:
    text = io.StringIO()
    report.show(Console(file=text, width=width), outcome, most=most)
    return text.getvalue()


def test_visits_come_in_order_with_what_the_heads_said(outcome: Outcome) -> None:
    first, second, third = outcome.visits
    assert (first.dwell_s, first.reason, dict(first.labels)) == (20.0, "left", {"age": "20-39", "gender": "male"})
    assert (second.dwell_s, second.reason, dict(second.labels)) == (4.0, "left", {"gender": "female"})
    assert (third.reason, dict(third.labels)) == ("open", {})
    assert outcome.heads == ("age", "gender")


def test_presence_adds_up_cameras_slot_by_slot(outcome: Outcome) -> None:
    assert [(p.people, p.most, p.period_s) for p in outcome.presence] == [(1.0, 5, 10.0), (0.25, 1, 10.0)]
    assert outcome.most_at_once == 5


def test_traffic_counts_events_and_batches_and_finds_nothing_doubled(outcome: Outcome) -> None:
    assert outcome.traffic == Traffic(events=6, batches=4, doubled=0, dead_letters=0, streams=1, lost=0)


def test_an_event_stored_in_two_batches_would_be_told(outcome: Outcome, dsn: str) -> None:
    query(dsn, "INSERT INTO batches SELECT * FROM batches WHERE first_seq = 1 RETURNING stream")
    assert report.read(dsn).traffic.doubled == 2


def test_shares_put_the_frequent_first_and_abstentions_last(outcome: Outcome) -> None:
    assert outcome.shares("gender") == [("female", 1), ("male", 1), ("?", 1)]
    assert outcome.shares("age") == [("20-39", 1), ("?", 2)]


def test_table_tells_each_visit_once(outcome: Outcome) -> None:
    text = printed(outcome)
    assert "20.0 s" in text
    assert "20-39 80%" in text
    assert "still here" in text
    assert "3 visits, staying 8.0 s on average, at most 5 at once" in text
    assert "6 events in 4 batches over MQTT, 0 lost, 0 doubled, 0 unreadable" in text
    assert "camera" not in text.splitlines()[2]  # one camera alone needs no column


def test_narrow_terminals_get_labels_without_confidences(outcome: Outcome) -> None:
    text = printed(outcome, width=80)
    assert "20-39" in text
    assert "80%" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_of_many_visits_the_newest_are_shown(outcome: Outcome) -> None:
    text = printed(outcome, most=1)
    assert "still here" in text
    assert "20.0 s" not in text
    assert "and 2 earlier visits" in text


def test_a_visit_cut_off_by_a_restart_is_called_longer_than_what_is_known() -> None:
    visit = Visit("door", NOW, 3.0, "box_restarted", 0.9, {}, {})
    text = printed(Outcome((visit,), (), Traffic(1, 1, 0, 0, 1, 0)))
    assert "> 3.0 s" in text
    assert "box restarted" in text


def test_nobody_is_said_in_words() -> None:
    assert "nobody came" in printed(NOTHING)


def test_opening_up_lets_the_views_show_single_visits(outcome: Outcome, dsn: str) -> None:
    assert outcome.visits
    assert query(dsn, "SELECT * FROM report.attribute_hours") == []
    report.open_up(dsn)
    rows = query(dsn, "SELECT head, label, visits FROM report.attribute_hours ORDER BY 1, 2")
    assert [tuple(row.values()) for row in rows] == [
        ("age", "20-39", 1),
        ("gender", "female", 1),
        ("gender", "male", 1),
    ]


@pytest.mark.parametrize("heads", [True, False], ids=["with heads", "without heads"])
def test_chart_is_a_picture_with_ink_where_people_were(outcome: Outcome, tmp_path: Path, heads: bool) -> None:
    visits = (
        outcome.visits if heads else tuple(Visit("door", v.started_at, 1, "left", 1, {}, {}) for v in outcome.visits)
    )
    path = write_chart(Outcome(visits, outcome.presence, outcome.traffic), tmp_path / "new" / "people.png")
    image = cv2.imread(str(path))
    assert image is not None
    assert image.shape == (900, 1600, 3)
    filled = np.all(np.abs(image.astype(int) - (0xF4, 0xDE, 0xC9)) < 4, axis=2)  # the area under the curve, BGR
    assert 0.01 < filled.mean() < 0.5


def test_chart_of_nobody_is_drawn_too(tmp_path: Path) -> None:
    assert write_chart(NOTHING, tmp_path / "people.png").stat().st_size > 5000


def test_chart_leaves_words_out_where_a_share_is_too_narrow_for_them(tmp_path: Path) -> None:
    visits = tuple(Visit("door", NOW, 1, "left", 1, {"age": f"label-{i}"}, {}) for i in range(60))
    slot = Presence(NOW, 1.0, 2.0, 3)
    assert write_chart(Outcome(visits, (slot,), Traffic(60, 1, 0, 0, 1, 0)), tmp_path / "people.png").is_file()


def test_reasons_are_told_for_every_way_a_visit_can_end() -> None:
    assert {reason.name.lower() for reason in EndReason} <= set(report.REASONS)
