"""Plainer ways to write what the bridge writes, for `facefleet-bridge bench` to compare with."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from os import sysconf
from pathlib import Path

import psycopg

from bridge import ledger, rollups
from bridge import statements as sql
from bridge.batches import Incoming, Parsed, read
from bridge.bench_load import NOW, PER_BATCH, VOCABULARY
from bridge.columns import Columns
from bridge.connection import Connection, adapt, copy
from bridge.meaning import Meaning
from bridge.registry import Registry
from bridge.rows import Rows
from bridge.runs import Run
from bridge.store import OPTIONS

RETENTION_MS = 90 * 86_400_000
INSERT = {
    table: f"INSERT INTO {table} SELECT * FROM in_{table} ON CONFLICT DO NOTHING"
    for table in ("visits", "track_updates", "presence")
}
INSERT_AND_COUNT_VISITS = f"""
WITH changed AS ({INSERT["visits"]} RETURNING camera_id, ended_at, dwell_ms, labels), """ + sql.COUNT_VISITS.format(
    sign=""
)
INSERT_AND_COUNT_PRESENCE = f"""
WITH changed AS ({INSERT["presence"]} RETURNING *)
INSERT INTO in_delta (bucket, camera_id, visits, dwell_ms, person_ms, most, entered)
SELECT date_trunc('minute', at), camera_id, 0, 0, sum(person_ms), max(most), sum(entered) FROM changed GROUP BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """How long one way took for so many events."""

    name: str
    events: int
    seconds: float
    cpu_s: float  # of the process that writes
    backend_s: float  # of its PostgreSQL backend: what counts on a machine that others share

    @property
    def rate(self) -> float:
        """Return events per second."""
        return self.events / self.seconds

    @property
    def total_s(self) -> float:
        """Return CPU seconds of both sides."""
        return self.cpu_s + self.backend_s


@dataclass(frozen=True, slots=True)
class Packed:
    """The rows of one transaction, ready to be sent."""

    rows: Rows
    visits: bytes
    updates: bytes
    presence: bytes
    runs: list[Run]
    columns: Columns


def timed(name: str, messages: int, connection: Connection, work: Callable[[], None]) -> Figure:
    """Run once and return the figure."""
    backend = connection.info.backend_pid
    start, cpu, backend_cpu = time.perf_counter(), time.process_time(), cpu_s(backend)
    work()
    seconds = time.perf_counter() - start
    return Figure(name, messages * PER_BATCH, seconds, time.process_time() - cpu, cpu_s(backend) - backend_cpu)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / sysconf("SC_CLK_TCK")


def raw(dsn: str, messages: Sequence[Incoming], per_write: int, *, beforehand: bool = False) -> Figure:
    """Pack the rows, then time writing them.

    Args:
        dsn: a migrated database; what it holds of other streams may stay.
        messages: in batches of 50.
        per_write: how many in one transaction.
        beforehand: rollups are fed with sums taken from the packed rows, instead of summing in PostgreSQL what
            `INSERT … RETURNING` says.
    """
    with psycopg.connect(dsn, autocommit=True, options=OPTIONS) as connection:
        adapt(connection)
        connection.execute(sql.TEMPORARY)
        meanings = learn(connection, messages)
        packed = [_pack(messages[at : at + per_write], meanings) for at in range(0, len(messages), per_write)]
        name = "raw, sums taken beforehand" if beforehand else "raw: COPY, INSERT … ON CONFLICT, rollups"
        return timed(name, len(messages), connection, lambda: write_raw(connection, packed, beforehand=beforehand))


def learn(connection: Connection, messages: Sequence[Incoming]) -> dict[str, Meaning]:
    """Register every box; return what its events mean."""
    registry = Registry("auto")
    ids = {box: i for (_, box), i in registry.boxes(connection, {(m.site, m.box) for m in messages}).items()}
    for box_id in ids.values():
        registry.learn(connection, box_id, VOCABULARY.digest(), VOCABULARY)
    meanings = registry.meanings(connection, ((box_id, VOCABULARY.digest()) for box_id in ids.values()))
    return {box: meanings[box_id, VOCABULARY.digest()] for box, box_id in ids.items()}


def _pack(messages: Sequence[Incoming], meanings: dict[str, Meaning]) -> Packed:
    parsed: list[Parsed] = [read(message.payload) for message in messages]
    columns = Columns.of(parsed)
    runs = [
        Run(message, one, meanings[message.box], one.envelope.first_seq, one.last_seq, place)
        for place, (message, one) in enumerate(zip(messages, parsed, strict=True))
    ]
    rows = Rows(columns, runs, RETENTION_MS)
    return Packed(rows, rows.visit_rows(), rows.update_rows(), rows.presence_rows(), runs, columns)


def write_raw(connection: Connection, packed: Sequence[Packed], *, beforehand: bool) -> None:
    """COPY and INSERT … ON CONFLICT, a transaction per item: the rows of facts, ledger and rollups."""
    for item in packed:
        with connection.transaction():
            ledger.write(connection, item.runs, item.columns, NOW)
            copy(connection, sql.COPY["in_visits"], [item.visits])
            copy(connection, sql.COPY["in_track_updates"], [item.updates])
            copy(connection, sql.COPY["in_presence"], [item.presence])
            connection.execute(INSERT["track_updates"])
            connection.execute(INSERT["visits"] if beforehand else INSERT_AND_COUNT_VISITS)
            connection.execute(INSERT["presence"] if beforehand else INSERT_AND_COUNT_PRESENCE)
            if beforehand:
                rollups.count(connection, item.rows.visits, item.rows.presence, item.rows.pairs)
            rollups.roll_up(connection)


def one_by_one(connection: Connection, messages: Sequence[Incoming]) -> None:
    """INSERT and commit every event by itself, no dedup, no rollups: what a simple subscriber does."""
    connection.execute("CREATE TABLE simple (stream bigint, seq bigint, t timestamptz, PRIMARY KEY (stream, seq))")
    for stream, seq, at in _singly(messages):
        connection.execute("INSERT INTO simple VALUES (%s, %s, %s)", (stream, seq, at))


def look_and_update(connection: Connection, messages: Sequence[Incoming]) -> None:
    """SELECT, then UPDATE or INSERT, then commit, for every event: how the original project wrote its table."""
    connection.execute("CREATE TABLE people (person bigint PRIMARY KEY, stream bigint, t timestamptz)")
    for stream, seq, at in _singly(messages):
        person = stream << 32 | seq // 3
        with connection.transaction():
            if connection.execute("SELECT FROM people WHERE person = %s", (person,)).fetchone() is None:
                connection.execute("INSERT INTO people VALUES (%s, %s, %s)", (person, stream, at))
            else:
                connection.execute("UPDATE people SET t = %s WHERE person = %s", (at, person))


def _singly(messages: Sequence[Incoming]) -> Iterator[tuple[int, int, datetime]]:
    for message in messages:
        batch = read(message.payload).batch
        for seq, event in enumerate(batch.events, batch.first_seq):
            yield batch.stream, seq, NOW + timedelta(milliseconds=getattr(event, "t_ms", 0))
