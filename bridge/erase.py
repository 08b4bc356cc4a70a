"""Erase a span of one box, so that nothing brings it back. Driven by `facefleet-bridge erase`.

Everything that tells of somebody goes: visits and open visits that reach into the span, their updates, presence,
health, dead letters and quarantined events; what they counted is taken out of the rollups and attribute counts. What
stays says nothing of anybody: the registry, the covered ranges, the ledger's digests, losses, and a tombstone,
by which the bridge counts whatever comes later of the span as covered and drops it.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg

from bridge import erasure
from bridge import statements as sql
from bridge.batches import read
from bridge.connection import Connection
from bridge.errors import BridgeError
from bridge.graves import Span, extent_of
from bridge.rollups import roll_up
from edge.wire import ROOT, WireError, check_id

OPTIONS = "-c search_path=facefleet,pg_temp -c TimeZone=UTC -c lock_timeout=60s"
EVER = datetime(1, 1, 2, tzinfo=UTC)  # before anything: what `from` is when nobody says


@dataclass(frozen=True, slots=True)
class Erased:
    """How many rows went, or would go."""

    visits: int
    open_visits: int
    updates: int
    presence: int
    dead_letters: int
    quarantine: int
    health: int

    def __str__(self) -> str:
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in asdict(self).items())


def erase(dsn: str, box: str, since: datetime | None, until: datetime | None, *, dry_run: bool = False) -> Erased:
    """Erase one span of one box in one transaction; writers of that box wait for it.

    Args:
        dsn: of a member of `facefleet_migrator`.
        box: "site/box".
        since: from when on; None: since ever. Without an offset it is local time at the site.
        until: up to when, without it; None, or a time to come: now.
        dry_run: count only; nothing changes.

    Raises:
        BridgeError: there is no such box, the span is empty, or the role may not do it.
    """
    site, _, name = box.partition("/")
    try:
        check_id(site, "site"), check_id(name, "box")
    except WireError as error:
        raise BridgeError(f"{box!r} is no SITE/BOX: {error}") from error
    options = f"{OPTIONS} {psycopg.conninfo.conninfo_to_dict(dsn).get('options') or ''}"
    try:
        with psycopg.connect(dsn, autocommit=True, options=options, application_name="facefleet-erase") as connection:
            connection.execute(sql.TEMPORARY)
            with connection.transaction() as transaction:
                erased = _erase(connection, site, name, since, until)
                if dry_run:
                    raise psycopg.Rollback(transaction)
    except psycopg.errors.InsufficientPrivilege as error:
        raise BridgeError(
            f"{str(error).strip()}: erasing needs a member of facefleet_migrator; the bridge's own role may not"
        ) from error
    return erased


def _erase(connection: Connection, site: str, name: str, since: datetime | None, until: datetime | None) -> Erased:
    row = connection.execute(
        "SELECT b.box_id, s.timezone, ARRAY(SELECT camera_id FROM cameras c WHERE c.box_id = b.box_id) "
        "FROM boxes b JOIN sites s USING (site_id) WHERE s.name = %s AND b.name = %s FOR UPDATE OF b",
        (site, name),
    ).fetchone()
    if row is None:
        raise BridgeError(f'there is no box {site}/{name}; report.box_status lists them, ids are "SITE/BOX"')
    box_id, timezone, cameras = row
    first, end = span(since, until, timezone, datetime.now(UTC))
    # After this no writer of the box is under way, and every later one reads the tombstone.
    connection.execute("SELECT stream FROM streams WHERE box_id = %s ORDER BY stream FOR UPDATE", (box_id,))
    connection.execute("UPDATE streams SET erased = true WHERE box_id = %s AND NOT erased", (box_id,))
    where = {"box": box_id, "cameras": cameras, "first": first or EVER, "end": end}
    connection.execute(erasure.FIND_TRACKS, where)
    connection.execute("ANALYZE in_erased")
    visits, open_visits, updates = erasure.remove_tracks(connection)
    counted = connection.execute(erasure.DELETE_PRESENCE, where).fetchone()
    roll_up(connection)
    for statement in (*erasure.FIX_MOST, *erasure.DROP_WHOLE):
        connection.execute(statement, where)
    erased = Erased(
        visits, open_visits, updates, counted[0] if counted else 0,
        _delete_letters(connection, f"{ROOT}/{site}/{name}/", where["first"], end),
        _delete_quarantine(connection, where),
        _delete_health(connection, where),
    )  # fmt: skip
    connection.execute(
        "INSERT INTO tombstones (box_id, from_at, to_at, erased) VALUES (%s, %s, %s, %s)",
        (box_id, first, end, json.dumps(asdict(erased))),
    )
    return erased


def span(
    since: datetime | None, until: datetime | None, timezone: str, now: datetime
) -> tuple[datetime | None, datetime]:
    """Return the span as aware times on whole milliseconds, which is what events have.

    Raises:
        BridgeError: it is empty.
    """
    first, end = (_aware(at, timezone) if at is not None else None for at in (since, until))
    end = now if end is None else min(end, now)
    end = _whole(end + timedelta(microseconds=999))  # rather a millisecond more than less
    first = None if first is None else _whole(first)
    if first is not None and first >= end:
        raise BridgeError(f"nothing lies between {first} and {end}; --from must be before --to, and not in the future")
    return first, end


def _aware(at: datetime, timezone: str) -> datetime:
    return (at if at.tzinfo else at.replace(tzinfo=ZoneInfo(timezone))).astimezone(UTC)


def _whole(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _delete_letters(connection: Connection, prefix: str, first: datetime, end: datetime) -> int:
    """Delete the dead letters that hold an event of the span, and those that cannot say when theirs were."""
    rows = connection.execute(
        "SELECT dead_letter_id, first_at, last_at, topic, raw FROM dead_letters WHERE starts_with(topic, %s)", (prefix,)
    ).fetchall()
    wanted = Span(0, _ms(first), _ms(end))
    gone = [
        number
        for number, first_at, last_at, topic, raw in rows
        if (
            _tells_of(raw, wanted, last_at >= first)
            if topic.endswith("/events")
            else first_at < end and last_at >= first
        )
    ]
    connection.execute("DELETE FROM dead_letters WHERE dead_letter_id = ANY(%s)", (gone,))
    return len(gone)


def _tells_of(raw: bytes, wanted: Span, came_after: bool) -> bool:
    """Tell whether a payload has an event in the span; one that cannot be dated does if it came after its beginning."""
    try:
        parsed = read(raw)
    except WireError:
        return came_after
    if parsed.illegible and came_after:
        return True
    extents = (extent_of(event, parsed.batch.base_ms) for event in parsed.batch.events)
    return any(wanted.touches(*extent) for extent in extents if extent is not None)


def _delete_quarantine(connection: Connection, where: dict[str, object]) -> int:
    """Delete quarantined events that claim a time in the span or came after its beginning: nobody believes them."""
    return connection.execute(
        "DELETE FROM quarantine WHERE stream IN (SELECT stream FROM streams WHERE box_id = %(box)s) "
        "AND (received_at >= %(first)s OR at_ms >= extract(epoch FROM %(first)s::timestamptz) * 1000 "
        "AND at_ms < extract(epoch FROM %(end)s::timestamptz) * 1000)",
        where,
    ).rowcount


def _delete_health(connection: Connection, where: dict[str, object]) -> int:
    within = "received_at >= %(first)s AND received_at < %(end)s"
    statements = (
        f"DELETE FROM health WHERE box_id = %(box)s AND {within}",
        f"DELETE FROM camera_health WHERE camera_id = ANY(%(cameras)s) AND {within}",
        f"DELETE FROM health_latest WHERE box_id = %(box)s AND {within}",
    )
    return sum(connection.execute(statement.encode(), where).rowcount for statement in statements)


def _ms(at: datetime) -> int:
    return round((at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))
