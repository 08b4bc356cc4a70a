"""Batches, messages and readings of the database, for tests of the store."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
from hypothesis import strategies as st
from psycopg.rows import dict_row

from bridge.store import Incoming
from edge.wire import AnyEvent, Batch, BoxState, Confirmed, Ended, Head, Presence, Update, Vocabulary, encode_batch
from edge.wire import stream_name as name_of
from edge.wire import topic as topic_of

AGE = Head("age", ("0-19", "20-39", "40+"))
GENDER = Head("gender", ("female", "male"))
VOCABULARY = Vocabulary(("door", "till"), (AGE, GENDER))
NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=2)  # well inside one hour
BASE_MS = int(NOW.timestamp() * 1000) - 60_000


def confirmed(track: int = 1, t_ms: int = 200, *, camera: int = 0, score: int = 200) -> Confirmed:
    return Confirmed(camera, track, t_ms, 100, 200, 300, 400, score)


def update(track: int = 1, t_ms: int = 10_000, dwell_ms: int = 10_000, *, camera: int = 0, **more: Any) -> Update:
    return Update(camera, track, t_ms, dwell_ms, 110, 210, 310, 410, more.get("score", 210), more.get("attributes", ()))


def ended(track: int = 1, t_ms: int = 0, dwell_ms: int = 20_000, *, camera: int = 0, **more: Any) -> Ended:
    attributes = more.get("attributes", (0, 1, 204, 1, 1, 255))
    return Ended(camera, track, t_ms, dwell_ms, 0, 100, 200, 900, 800, 310, 410, more.get("score", 220), 25, attributes)


def presence(t_ms: int = 0, *, camera: int = 0, most: int = 2, person_ms: int = 9000, entered: int = 1) -> Presence:
    return Presence(camera, t_ms, 10_000, most, person_ms, entered)


def batch(
    events: Sequence[AnyEvent], *, stream: int = 77, first_seq: int = 1, base_ms: int = BASE_MS, inline: bool = True
) -> Batch:
    return Batch(1, stream, first_seq, base_ms, 0, VOCABULARY.digest(), tuple(events), VOCABULARY if inline else None)


def message(content: Batch | bytes, *, site: str = "lab", box: str = "b1", received_at: datetime = NOW) -> Incoming:
    payload = content if isinstance(content, bytes) else encode_batch(content)
    return Incoming(site, box, payload, topic_of(site, box, "events"), received_at)


def sent(*events: AnyEvent, **more: Any) -> Incoming:
    """Return one message with these events."""
    return message(batch(events, **more))


def birth(stream: int, **more: Any) -> BoxState:
    given: dict[str, Any] = {"boot": "boot", "machine": "m", "nonce": "n", "vocabulary": VOCABULARY} | more
    return BoxState("online", name_of(stream), **given)


def death(stream: int, reason: str = "connection lost") -> BoxState:
    return BoxState("offline", name_of(stream), "boot", "m", "n", reason)


def query(dsn: str, statement: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> list[dict[str, Any]]:
    """Return rows as dictionaries; tables of schema facefleet need no prefix."""
    with psycopg.connect(dsn, row_factory=dict_row, options="-c search_path=facefleet -c TimeZone=UTC") as connection:
        return connection.execute(statement.encode(), parameters).fetchall()


def count(dsn: str, table: str) -> int:
    return int(query(dsn, f"SELECT count(*) AS n FROM {table}")[0]["n"])


def rollups(dsn: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rollup rows that count something, in key order."""
    keys = "bucket, camera_id, visits, dwell_ms, person_ms, most, entered"
    counts = "visits <> 0 OR person_ms <> 0 OR entered <> 0"
    found = {
        table: query(dsn, f"SELECT {keys} FROM {table} WHERE {counts} ORDER BY 2, 1")
        for table in ("rollup_minutes", "rollup_hours", "rollup_days")
    }
    found["attribute_hours"] = query(dsn, "SELECT * FROM attribute_hours WHERE visits <> 0 ORDER BY 2, 1, 3, 4")
    return {table: [tuple(row.values()) for row in rows] for table, rows in found.items()}


def pieces(events: Sequence[AnyEvent], sizes: Iterable[int], **more: Any) -> list[Incoming]:
    """Cut events into consecutive batches of the given sizes."""
    cut, at = [], 0
    for size in sizes:
        cut.append(message(batch(events[at : at + size], first_seq=at + 1, **more)))
        at += size
    return cut


_numbers = st.integers(-(2**63), 2**64 - 1) | st.integers(-5, 300)
_ARITIES = {1: 8, 2: 9, 3: 13, 4: 6, 5: 4}  # numbers in each kind of event, attributes aside


@st.composite
def absurd_batches(draw: st.DrawFn) -> bytes:
    """Draw the payload of a batch of the right form whose events hold any integers."""
    events = []
    for kind in draw(st.lists(st.sampled_from(sorted(_ARITIES)), min_size=1, max_size=6)):
        row: list[object] = [kind, *draw(st.lists(_numbers, min_size=_ARITIES[kind], max_size=_ARITIES[kind]))]
        if draw(st.booleans()):
            row[1], row[3] = 0, draw(st.integers(-(10**6), 10**6))  # a camera there is, a time to believe
        events.append([*row, draw(st.lists(_numbers, max_size=6))] if kind in (2, 3) else row)
    envelope = [1, draw(st.integers(1, 2**63 - 1)), 1, BASE_MS, 0, VOCABULARY.digest(), events, VOCABULARY]
    return msgspec.msgpack.encode(envelope)
