"""Births, deaths and health: what the operator will read about boxes."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from bridge.store import Incoming, Store
from edge.wire import BoxState, CameraHealth, Head, Health, ModelHealth, StageMs, Vocabulary, topic
from tests.bridge.events import NOW, birth, count, death, ended, query, sent

MODEL = ModelHealth("1", "CPU", "model.onnx", "ok")


@pytest.fixture
def store(dsn: str) -> Iterator[Store]:
    with Store(dsn) as opened:
        yield opened


def health(**more: Any) -> Health:
    camera = CameraHealth("live", fps_in=25.0, fps_processed=5.0, dropped=3, stage_ms=StageMs(infer=11.5))
    given: dict[str, Any] = {"cameras": {"door": camera}, "models": {"detector": MODEL}} | more
    return Health("0" * 15 + "1", "n", 0, 12.5, **given)


def test_birth_registers_box_cameras_and_what_the_labels_mean(store: Store, dsn: str) -> None:
    purposeful = Vocabulary(("door", "till"), (Head("race", ("a", "b"), "demonstration"),))
    store.write_state("lab", "b1", birth(7, vocabulary=purposeful, software="0.1", config_digest="abc"), NOW)
    [box] = query(dsn, "SELECT s.name AS site, b.* FROM boxes b JOIN sites s USING (site_id)")
    assert (box["site"], box["name"], box["state"], box["stream"], box["software"]) == ("lab", "b1", "online", 7, "0.1")
    assert [row["name"] for row in query(dsn, "SELECT name FROM cameras ORDER BY 1")] == ["door", "till"]
    assert query(dsn, "SELECT heads FROM vocabularies") == [
        {"heads": [{"name": "race", "labels": ["a", "b"], "purpose": "demonstration"}]}
    ]
    assert query(dsn, "SELECT label, label_index FROM vocabulary_labels ORDER BY 2") == [
        {"label": "a", "label_index": 0},
        {"label": "b", "label_index": 1},
    ]


def test_birth_heard_again_changes_nothing_but_the_time(store: Store, dsn: str) -> None:
    store.write_state("lab", "b1", birth(7), NOW)
    store.write_state("lab", "b1", birth(7), NOW + timedelta(minutes=1))
    assert [count(dsn, table) for table in ("boxes", "cameras", "vocabularies", "streams")] == [1, 2, 1, 1]
    assert query(dsn, "SELECT state_at FROM boxes") == [{"state_at": NOW + timedelta(minutes=1)}]


def test_death_of_a_box_never_heard_alive_registers_it_as_offline(store: Store, dsn: str) -> None:
    store.write_state("lab", "b1", death(7), NOW)
    assert query(dsn, "SELECT state, reason, stream FROM boxes") == [
        {"state": "offline", "reason": "connection lost", "stream": None}
    ]


@pytest.mark.parametrize(
    "state",
    [
        BoxState("online", "not hexadecimal", "b", "m", "n"),
        BoxState("online", "0" * 16, "b", "m", "n"),
        BoxState("online", "f" * 16, "b", "m", "n"),
        BoxState("online", "0" * 15 + "1", "b", "m\0", "n"),
        BoxState("online", "0" * 15 + "1", "b", "m", "n", vocabulary=Vocabulary(("a", "a"))),
    ],
    ids=["stream no number", "stream 0", "stream beyond 63 bits", "NUL", "camera twice"],
)
def test_impossible_state_is_a_dead_letter(store: Store, dsn: str, state: BoxState) -> None:
    store.write_state("lab", "b1", state, NOW)
    [letter] = query(dsn, "SELECT reason, topic, raw FROM dead_letters")
    assert (letter["reason"], letter["topic"]) == ("state", "facefleet/1/lab/b1/state")
    assert msgspec.json.decode(letter["raw"], type=BoxState) == state
    assert query(dsn, "SELECT state FROM boxes WHERE state IS NOT NULL") == []


def test_health_is_kept_latest_and_as_history_per_box_and_camera(store: Store, dsn: str) -> None:
    for minute, fill in enumerate((0.1, 0.2)):
        message = health(outbox_fill=fill, refused={"full": 2, "size": 1})
        store.write_health("lab", "b1", msgspec.json.encode(message), NOW + timedelta(minutes=minute))
    store.write_health("lab", "b1", msgspec.json.encode(health(outbox_fill=0.9)), NOW - timedelta(minutes=9))
    [latest] = query(dsn, "SELECT health FROM health_latest")
    assert latest["health"]["outbox_fill"] == 0.2, "an older message heard late does not become the latest"
    history = query(dsn, "SELECT outbox_fill, refused, uptime_s FROM health ORDER BY received_at")
    assert [(row["refused"], row["uptime_s"]) for row in history] == [(None, 12.5), (3, 12.5), (3, 12.5)]
    cameras = query(dsn, "SELECT state, fps_in, dropped, frame_age_s, stage_ms FROM camera_health LIMIT 1")
    assert cameras == [
        {"state": "live", "fps_in": 25.0, "dropped": 3, "frame_age_s": None, "stage_ms": {"infer": 11.5}}
    ]


def test_p5_health_of_a_newer_version_keeps_its_unknown_fields(store: Store, dsn: str) -> None:
    raw = msgspec.json.decode(msgspec.json.encode(health()))
    raw["fan_rpm"] = 1200
    raw["cameras"]["door"]["lens"] = "clean"
    store.write_health("lab", "b1", msgspec.json.encode(raw), NOW)
    [latest] = query(dsn, "SELECT health FROM health_latest")
    assert (latest["health"]["fan_rpm"], latest["health"]["cameras"]["door"]["lens"]) == (1200, "clean")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"stream": 5}',
        b"\xff\xfe",
        msgspec.json.encode(health()).replace(b"12.5", b"NaN"),
        msgspec.json.encode(health()).replace(b"12.5", b"1e300"),
        msgspec.json.encode(health(publisher="a\0b")),
    ],
    ids=["empty", "cut", "other", "no UTF-8", "NaN", "too large", "NUL"],
)
def test_unreadable_health_is_a_dead_letter_and_blocks_nothing(store: Store, dsn: str, payload: bytes) -> None:
    store.write_health("lab", "b1", payload, NOW)
    [letter] = query(dsn, "SELECT reason, raw FROM dead_letters")
    assert (letter["reason"], letter["raw"]) == ("health", payload)
    assert count(dsn, "health") == 0
    store.write_health("lab", "b1", msgspec.json.encode(health()), NOW)
    assert count(dsn, "health") == 1


def test_health_of_many_boxes_is_written_together_and_one_that_cannot_be_costs_only_itself(
    store: Store, dsn: str
) -> None:
    said = {f"b{n:02}": msgspec.json.encode(health(outbox_events=n)) for n in range(20)}
    said["b07"] = b"{"
    said["b13"] = msgspec.json.encode(health(publisher="a\0b"))
    store.write_healths([Incoming("lab", box, raw, topic("lab", box, "health"), NOW) for box, raw in said.items()])
    written = query(dsn, "SELECT b.name, h.outbox_events FROM health h JOIN boxes b USING (box_id) ORDER BY 1")
    assert [(row["name"], row["outbox_events"]) for row in written] == [
        (f"b{n:02}", n) for n in range(20) if n not in (7, 13)
    ]
    assert (count(dsn, "health_latest"), count(dsn, "camera_health"), count(dsn, "cameras")) == (18, 18, 18)
    letters = query(dsn, "SELECT topic FROM dead_letters ORDER BY 1")
    assert [letter["topic"] for letter in letters] == [topic("lab", box, "health") for box in ("b07", "b13")]


def test_strict_registry_writes_nothing_of_unknown_boxes(dsn: str) -> None:
    with Store(dsn, registry="strict") as store:
        store.write_state("lab", "b1", birth(7), NOW)
        store.write_health("lab", "b1", msgspec.json.encode(health()), NOW)
    assert [count(dsn, table) for table in ("sites", "boxes", "health_latest", "dead_letters")] == [0, 0, 0, 2]


def test_box_status_names_silent_stale_offline_and_online_boxes(store: Store, dsn: str) -> None:
    now = datetime.now(UTC)
    encoded = msgspec.json.encode(health(temperature_c=51.5))
    store.write_state("lab", "live", birth(1), now)
    store.write_health("lab", "live", encoded, now - timedelta(seconds=60))
    store.write_state("lab", "stale", birth(2), now)
    store.write_health("lab", "stale", encoded, now - timedelta(seconds=130))
    store.write_state("lab", "gone", birth(3), now)
    store.write_state("lab", "gone", death(3), now)
    store.write([sent(ended(1), stream=9)])  # box b1 was never born and sent no health
    rows = query(dsn, "SELECT box, status, temperature_c, cameras FROM report.box_status ORDER BY box")
    assert [(row["box"], row["status"]) for row in rows] == [
        ("b1", "silent"),
        ("gone", "offline"),
        ("live", "online"),
        ("stale", "stale"),
    ]
    assert rows[2]["temperature_c"] == 51.5


def test_box_status_says_that_the_disk_of_an_outbox_is_in_trouble(store: Store, dsn: str) -> None:
    now = datetime.now(UTC)
    store.write_health("lab", "full", msgspec.json.encode(health(outbox_trouble="disk full, reserve released")), now)
    store.write_health("lab", "old", msgspec.json.encode(health()), now)
    rows = query(dsn, "SELECT box, outbox_trouble FROM report.box_status ORDER BY box")
    assert [tuple(row.values()) for row in rows] == [("full", "disk full, reserve released"), ("old", None)]
