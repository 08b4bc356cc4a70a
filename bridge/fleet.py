"""Births, deaths and health of boxes → registry and history. Driven by `store.py` inside its transactions."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import psycopg

from bridge.batches import Incoming, check_vocabulary
from bridge.connection import Connection
from bridge.letters import bury
from bridge.registry import Registry
from bridge.rollups import roll_up
from bridge.runs import DeadLetter
from bridge.statements import CLOSE_OPEN, RETRACT_CLOSED
from edge.wire import BoxState, EndReason, Health, WireError, topic

Heard = tuple[str, str, BoxState, datetime]  # site, box, what it said, when

_health = msgspec.json.Decoder(Health)
_HEALTH_COLUMNS = (
    "uptime_s", "ack_age_s", "outbox_events", "outbox_bytes", "outbox_fill", "outbox_oldest_s", "publisher",
    "reboots", "temperature_c", "throttled", "disk_free_bytes", "rss_bytes", "cpu_percent", "load_1m",
    "certificate_days", "clock",
)  # fmt: skip
_CAMERA_COLUMNS = (
    "state", "error", "fps_in", "fps_processed", "fps_skipped", "dropped", "reconnects", "frame_age_s",
    "inference_age_s", "tracks",
)  # fmt: skip


def write_states(connection: Connection, registry: Registry, states: Sequence[Heard]) -> None:
    """Write births and deaths; one that says something impossible becomes a dead letter. Of one box they keep order."""
    moved = False
    for site, box, state, received_at in sorted(states, key=lambda heard: heard[:2]):  # two bridges lock in one order
        moved |= _write_state(connection, registry, site, box, state, received_at)
    if moved:
        roll_up(connection)


def _write_state(
    connection: Connection, registry: Registry, site: str, box: str, state: BoxState, received_at: datetime
) -> bool:
    """Write one; return whether visits were closed or opened again, and stand in `in_delta`."""
    box_id = registry.boxes(connection, [(site, box)]).get((site, box))
    try:
        if box_id is None:
            raise WireError(f"box {site}/{box} is not registered, and the registry is strict")
        stream = _check(state)
    except WireError as error:
        message = Incoming(site, box, msgspec.json.encode(state), topic(site, box, "state"), received_at)
        bury(connection, [DeadLetter("state", str(error), message, message.payload)])
        return False
    row = connection.execute("SELECT stream FROM boxes WHERE box_id = %s FOR UPDATE", (box_id,)).fetchone()
    newest, moved = row[0] if row else None, False
    if state.state == "online":
        if stream != newest:
            born = _born(connection, box_id, stream, received_at)
            if born is None:
                return False
            moved = born
        if state.vocabulary is not None:
            registry.learn(connection, box_id, state.vocabulary.digest(), state.vocabulary)
    elif newest not in (None, stream):
        return False  # P27: the death of a process that has a successor
    connection.execute(
        "UPDATE boxes SET state = %s, state_at = %s, reason = %s, boot = %s, machine = %s, nonce = %s, "
        "software = coalesce(nullif(%s, ''), software), config_digest = coalesce(nullif(%s, ''), config_digest) "
        "WHERE box_id = %s",
        (
            state.state, received_at, state.reason, state.boot, state.machine, state.nonce,
            state.software, state.config_digest, box_id,
        ),
    )  # fmt: skip
    return moved


def _check(state: BoxState) -> int:
    texts = (state.boot, state.machine, state.nonce, state.reason, state.software, state.config_digest)
    if any(len(text) > 200 or "\0" in text for text in texts):
        raise WireError("state has a text of more than 200 characters, or with NUL")
    if state.vocabulary is not None:
        check_vocabulary(state.vocabulary)
    try:
        stream = int(state.stream, 16)
    except ValueError:
        stream = 0
    if not 0 < stream < 2**63:
        raise WireError(f"state has stream {state.stream[:40]!r}, expected 16 hexadecimal digits, positive")
    return stream


def _born(connection: Connection, box_id: int, stream: int, at: datetime) -> bool | None:
    """Make `stream` the newest of the box and close what older ones left open (P28).

    Returns:
        Whether visits were closed or opened again; None for old news, which changes nothing.
    """
    row = connection.execute("SELECT born, superseded FROM streams WHERE stream = %s", (stream,)).fetchone()
    if row == (True, True):
        return None  # a birth heard again after its successor's
    made = connection.execute(
        "INSERT INTO streams (stream, box_id, born, first_at, last_at, erased) VALUES "
        "(%s, %s, true, %s, %s, EXISTS (SELECT FROM tombstones WHERE box_id = %s)) ON CONFLICT DO NOTHING",
        (stream, box_id, at, at, box_id),
    ).rowcount
    locked = connection.execute(
        "SELECT stream FROM streams WHERE (box_id = %s AND NOT superseded) OR stream = %s ORDER BY stream FOR UPDATE",
        (box_id, stream),
    ).fetchall()
    older = [other for (other,) in locked if other != stream]
    # Where its events came before its birth, they were taken for those of an older process.
    reopened = None if made else connection.execute(RETRACT_CLOSED, {"streams": [stream]}).fetchone()
    connection.execute("UPDATE streams SET born = true, superseded = false WHERE stream = %s", (stream,))
    connection.execute("UPDATE boxes SET stream = %s WHERE box_id = %s", (stream, box_id))
    if not older:
        return reopened is not None and reopened != (0,)
    connection.execute("UPDATE streams SET superseded = true WHERE stream = ANY(%s)", (older,))
    closed = connection.execute(CLOSE_OPEN, {"streams": older, "reason": int(EndReason.BOX_RESTARTED)}).fetchone()
    return (reopened or (0,)) != (0,) or closed != (0,)


def write_healths(connection: Connection, registry: Registry, messages: Sequence[Incoming]) -> None:
    """Write the latest health of boxes whole, and its figures into the history: all messages in a few round trips.

    Raises:
        WireError: one is not a health message, or of a box that a strict registry does not know.
    """
    box_ids = registry.boxes(connection, ((message.site, message.box) for message in messages))
    heard: list[tuple[int, Incoming, Health]] = []
    for message in messages:
        box_id = box_ids.get((message.site, message.box))
        if box_id is None:
            raise WireError(f"box {message.site}/{message.box} is not registered, and the registry is strict")
        heard.append((box_id, message, _read_health(message.payload)))
    heard.sort(key=lambda item: item[0])  # in key order, as everybody locks
    # QoS 0, and said again in a minute: not worth a wait for the disk, with which 10,000 boxes starved the events.
    connection.execute("SET LOCAL synchronous_commit = off")
    cursor = connection.cursor()
    cursor.executemany(
        "INSERT INTO health_latest AS h (box_id, received_at, health) VALUES (%s, %s, %s) "
        "ON CONFLICT (box_id) DO UPDATE SET received_at = excluded.received_at, health = excluded.health "
        "WHERE h.received_at <= excluded.received_at",
        [(box_id, message.received_at, message.payload.decode()) for box_id, message, _ in heard],
    )
    _insert(
        cursor,
        "health",
        ("box_id", "received_at", "refused", "losses", *_HEALTH_COLUMNS),
        [
            (
                box_id, message.received_at, _total(health.refused), _total(health.losses),
                *(getattr(health, column) for column in _HEALTH_COLUMNS),
            )
            for box_id, message, health in heard
        ],
    )  # fmt: skip
    ids = registry.cameras(connection, ((box_id, name) for box_id, _, health in heard for name in health.cameras))
    _insert(
        cursor,
        "camera_health",
        ("camera_id", "received_at", "stage_ms", *_CAMERA_COLUMNS),
        [
            (
                ids[box_id, name], message.received_at,
                None if camera.stage_ms is None else msgspec.json.encode(camera.stage_ms).decode(),
                *(getattr(camera, column) for column in _CAMERA_COLUMNS),
            )
            for box_id, message, health in heard
            for name, camera in health.cameras.items()
        ],
    )  # fmt: skip


def _read_health(payload: bytes) -> Health:
    try:
        return _health.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a health message: {error}") from error


def _total(counts: dict[str, int] | None) -> int | None:
    return None if counts is None else sum(counts.values())


def _insert(cursor: psycopg.Cursor[Any], table: str, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    marks = ", ".join(["%s"] * len(columns))
    cursor.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})".encode(), rows)
