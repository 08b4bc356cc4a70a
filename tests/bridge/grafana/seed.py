"""A fleet that has been working for days, written through the store as the bridge writes it: real payloads, no SQL.

Two sites in two time zones with four boxes that live, and one each that was never heard, has died, went stale, was
retired. Some of them are in trouble, so that every panel and every alarm has something to show.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg

from bridge.retire import find, registry, retire
from bridge.store import Incoming, Store
from edge.wire import (
    SCHEMA,
    AnyEvent,
    Batch,
    BoxState,
    CameraHealth,
    Confirmed,
    Ended,
    Head,
    Health,
    Loss,
    LossReason,
    ModelHealth,
    Presence,
    StageMs,
    Update,
    Vocabulary,
    encode_batch,
    stream_name,
    topic,
)

HEADS = (
    Head("age", ("1-6", "7-13", "14-25", "26-45", "46-60", "61-90")),
    Head("gender", ("female", "male")),
    Head("race", ("white", "black", "asian"), "demonstration"),
    Head("emotion", ("angry", "fear", "happy", "neutral"), "demonstration"),
)
SHARES = ((4, 6, 22, 38, 20, 10), (52, 48), (50, 20, 30), (8, 4, 48, 40))
DETECTOR = ModelHealth("1.0.0", "CPU", "model.xml", "ok", licence="Apache-2.0")
FALLEN = ModelHealth(
    "1.0.0", "CPU", "model.onnx", "ok", ("NPU fp16_xml openvino: golden check failed: score 0.12, expected 0.88",)
)
DAYS = 9
EVENTS = 400  # in a batch of long ago
LIVE_FOR = timedelta(hours=3, minutes=30)  # before that, events came in large batches


@dataclass(frozen=True, slots=True)
class Seen:
    """One box of the seeded fleet."""

    site: str
    box: str
    cameras: tuple[str, ...] = ("entrance", "checkout")
    visitors: float = 40.0  # an hour and camera, at noon
    software: str = "0.1.0"
    digest: str = "5e1f0c2a9b7d"
    trouble: bool = False
    stream: int = field(default_factory=lambda: random.getrandbits(62) | 1)

    @property
    def vocabulary(self) -> Vocabulary:
        """What its events mean."""
        return Vocabulary(self.cameras, HEADS)


LIVE = (
    Seen("berlin", "hall-1", visitors=90),
    Seen("berlin", "hall-2", ("window",), visitors=60, digest="77aa01fe2233"),
    Seen("lisbon", "kiosk-1", visitors=50, software="0.2.0"),
    Seen("lisbon", "kiosk-2", ("door",), visitors=30, trouble=True),
)
STALE, DEAD, SILENT = Seen("lisbon", "stale-1"), Seen("berlin", "dead-1"), Seen("berlin", "silent-1")
RETIRED = Seen("berlin", "old-1")


def seed(dsn: str, now: datetime) -> None:
    """Fill a migrated database; `dsn` is its owner's, `now` the moment up to which the fleet has lived."""
    rng = random.Random(1)
    with psycopg.connect(dsn) as connection:  # what an operator does before the first box is switched on
        connection.execute(
            "INSERT INTO facefleet.sites (name, timezone) "
            "VALUES ('berlin', 'Europe/Berlin'), ('lisbon', 'Europe/Lisbon')"
        )
        connection.execute(
            "INSERT INTO facefleet.boxes (site_id, name) SELECT site_id, 'silent-1' FROM facefleet.sites "
            "WHERE name = 'berlin'"
        )
    moment = now
    with Store(dsn, clock=lambda: moment) as store:
        for box in (*LIVE, STALE, DEAD, RETIRED):
            store.write_state(box.site, box.box, birth(box), now - timedelta(days=DAYS))
        store.write_state(DEAD.site, DEAD.box, death(DEAD), now - timedelta(hours=5))
        waiting: list[tuple[datetime, Incoming]] = []
        for box in LIVE:
            waiting += messages(box, rng, now)
        waiting.sort(key=lambda item: item[0])
        for moment, message in waiting:  # one by one, as they came: their lag is looked at
            moment += timedelta(seconds=rng.uniform(0.02, 0.3))
            store.write([message])
        moment = now
        bad = topic("lisbon", "kiosk-2", "events")
        store.write([Incoming("lisbon", "kiosk-2", b"not a batch", bad, now - timedelta(minutes=20))])
        for box in LIVE:
            for at, health in healths(box, rng, now):
                store.write_health(box.site, box.box, msgspec.json.encode(health), at)
        old = next(iter(healths(STALE, rng, now)))[1]
        store.write_health(STALE.site, STALE.box, msgspec.json.encode(old), now - timedelta(minutes=40))
        store.write_health(RETIRED.site, RETIRED.box, msgspec.json.encode(old), now - timedelta(days=2))
        store.maintain(now)
    with registry(dsn) as connection:
        retire(connection, find(connection, RETIRED.box, RETIRED.site))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ANALYZE")


def birth(box: Seen) -> BoxState:
    """Return a birth message."""
    return BoxState(
        "online", stream_name(box.stream), "boot-1", "machine-1", "nonce-1", t_ms=0, software=box.software,
        config_digest=box.digest, vocabulary=box.vocabulary,
    )  # fmt: skip


def death(box: Seen) -> BoxState:
    """Return what the broker says for a box that fell silent."""
    return BoxState("offline", stream_name(box.stream), "boot-1", "machine-1", "nonce-1", "connection lost")


def crowd(at: datetime) -> float:
    """Return how busy it is, in [0, 1]: shops that open at nine, fullest in the afternoon and on Saturdays."""
    hour = (at.hour + at.minute / 60 - 14) / 4.5
    return (0.03 + math.exp(-hour * hour)) * (1.0, 0.8, 0.8, 0.9, 1.1, 1.4, 0.25)[at.weekday()] / 1.45


def messages(box: Seen, rng: random.Random, now: datetime) -> list[tuple[datetime, Incoming]]:
    """Return (when it came, message) of one box: visits over days, a count a minute on the last, people still here."""
    events: list[tuple[datetime, AnyEvent]] = []
    base = now - timedelta(days=DAYS)
    base_ms = int(base.timestamp() * 1000)

    def ms(at: datetime) -> int:
        return int(at.timestamp() * 1000) - base_ms

    track = 0
    for camera in range(len(box.cameras)):
        minute = base
        while minute < now - timedelta(minutes=3):
            mean = box.visitors * crowd(minute) / 6
            for _ in range(int(mean) + (rng.random() < mean % 1)):
                track += 1
                start = minute + timedelta(seconds=rng.uniform(0, 600))
                end = min(start + timedelta(seconds=rng.gammavariate(2, 14)), now - timedelta(seconds=90))
                if end > start:
                    events.append((end, _ended(camera, track, ms(start), ms(end) - ms(start), rng)))
            minute += timedelta(minutes=10)
        for step in range(26 * 60, 1, -1):
            at = (now - timedelta(minutes=step)).replace(second=0, microsecond=0)
            people = rng.gammavariate(2, box.visitors * crowd(at) * 28 / 3600 / 2)
            entered = int(box.visitors * crowd(at) / 60)
            most = math.ceil(people)
            events.append(
                (at + timedelta(minutes=1), Presence(camera, ms(at), 60_000, most, int(people * 60_000), entered))
            )
        for _ in range(rng.randrange(1, 4)):
            track += 1
            seen = now - timedelta(seconds=80)
            came = seen - timedelta(seconds=60)
            events.append((came, Confirmed(camera, track, ms(came), 2000, 2000, 300, 400, 220)))
            events.append((seen, Update(camera, track, ms(seen), 60_000, 2100, 2000, 300, 400, 225, (1, 0, 240))))
    if box.trouble:
        here = now - timedelta(minutes=35)
        events.append((here, Loss(box.stream - 2, 1, 250, LossReason.SIZE)))
        events.append((here, Loss(box.stream - 2, 251, 290, LossReason.AGE)))
        events.append((here, Presence(0, ms(now + timedelta(days=400)), 60_000, 1, 0, 0)))  # a clock gone mad
    events.sort(key=lambda event: event[0])
    return [item for item in _batches(box, events, base_ms, rng, now - LIVE_FOR) if item[0] <= now]


def _batches(
    box: Seen, events: list[tuple[datetime, AnyEvent]], base_ms: int, rng: random.Random, live_from: datetime
) -> Iterator[tuple[datetime, Incoming]]:
    first, old = 0, sum(at < live_from for at, _ in events)
    while first < len(events):
        live = first >= old
        part = events[first : first + 8] if live else events[first : min(first + EVENTS, old)]
        late = timedelta(seconds=rng.uniform(0.2, 1.2) + (240 if box.trouble and live else 0))
        came = part[-1][0] + late
        batch = Batch(
            SCHEMA, box.stream, first + 1, base_ms, 0, box.vocabulary.digest(), tuple(event for _, event in part)
        )
        name = topic(box.site, box.box, "events")
        yield came, Incoming(box.site, box.box, encode_batch(batch, deflate=True), name, came)
        first += len(part)


def _ended(camera: int, track: int, start_ms: int, dwell_ms: int, rng: random.Random) -> Ended:
    flat: list[int] = []
    for head, weights in enumerate(SHARES):
        if rng.random() < 0.85:  # else it abstained
            flat += (head, rng.choices(range(len(weights)), weights)[0], rng.randrange(150, 255))
    return Ended(
        camera, track, start_ms, dwell_ms, 0, 500, 2000, 3500, 2100, 300, 400, 225, dwell_ms // 200, tuple(flat)
    )


def healths(box: Seen, rng: random.Random, now: datetime) -> Iterator[tuple[datetime, Health]]:
    """Yield health messages: every ten minutes through the last day, every minute in the last hour; newest last."""
    ages = [*range(24 * 60, 60, -10), *range(60, -1, -1)]
    for age in ages:
        at = now - timedelta(minutes=age) - timedelta(seconds=5)
        yield at, health(box, rng, at, age)


def health(box: Seen, rng: random.Random, at: datetime, age_min: int) -> Health:
    """Return one health message."""
    busy = crowd(at)
    waiting = int(rng.expovariate(1 / 20)) + (4000 if box.trouble else 0)
    cameras = {
        name: CameraHealth(
            "streaming", fps_in=25 + rng.gauss(0, 0.3), fps_processed=4 + 4 * busy, fps_skipped=21 - 4 * busy,
            dropped=3 * (1440 - age_min), reconnects=1, frame_age_s=0.04, inference_age_s=0.2, tracks=int(6 * busy),
            width=1920, height=1080, hardware_decode=False,
            stage_ms=StageMs(
                decode=3 + rng.gauss(0, 0.2), mask=0.1, gate=0.4, letterbox=0.7, infer=7 + rng.gauss(0, 0.5), boxes=0.2,
                sort=0.3 + 0.3 * busy, attributes=1.5 * busy, events=0.05,
            ),
        )
        for name in box.cameras
    }  # fmt: skip
    if box.trouble:
        cameras["yard"] = CameraHealth("reconnecting", "no answer within 5 s", reconnects=77, frame_age_s=1800.0)
    return Health(
        stream_name(box.stream), "nonce-1", int(at.timestamp() * 1000), (1440 - age_min) * 60.0 + 1, cameras,
        {"yolov10n-face-320": FALLEN if box.trouble else DETECTOR, "age-student": DETECTOR},
        ack_age_s=rng.uniform(0, 8), outbox_events=waiting, outbox_bytes=waiting * 60, outbox_oldest_s=waiting / 10,
        outbox_fill=0.86 if box.trouble else 0.02 + rng.uniform(0, 0.01),
        refused={"buffer": 1440 - age_min} if box.trouble else {},
        losses={"size": 250, "age": 40} if box.trouble else {},
        publisher="connected", boot="boot-1", reboots=3 + (age_min < 200 and box.trouble),
        temperature_c=46 + 14 * busy + rng.gauss(0, 0.4) + (18 if box.trouble else 0), throttled=box.trouble,
        disk_free_bytes=300_000_000 if box.trouble else 21_000_000_000 - 2_000_000 * (1440 - age_min),
        rss_bytes=181_000_000 + int(rng.gauss(0, 500_000)), cpu_percent=30 + 40 * busy, load_1m=0.6 + busy,
        certificate_days=9.0 if box.trouble else 300.0, clock="synchronized", config_digest=box.digest,
        software=box.software, outbox_trouble="disk full, reserve released" if box.trouble else None,
    )  # fmt: skip


def fresh(now: datetime | None = None) -> datetime:
    """Return the moment to seed up to."""
    return (now or datetime.now(UTC)).replace(microsecond=0)
