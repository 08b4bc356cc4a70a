"""How fast the bridge writes: `Store.write` against the raw path and against one INSERT and commit per event.

    python -m tests.bench.bridge_store --events 60000

All on one PostgreSQL with its default durability (fsync on), same events, fresh database each. The raw path gets rows
packed beforehand: binary COPY into temp tables, INSERT … ON CONFLICT into the same partitioned tables, with the same
rollups and without. What Store.write adds: decoding, digests, ledger, dedup, open visits, coverage.
"""

import argparse
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from bridge import statements as sql
from bridge.batches import Incoming, read
from bridge.connection import Connection, copy
from bridge.meaning import Meaning
from bridge.migrate import migrate
from bridge.registry import Registry
from bridge.rows import Rows, Run
from bridge.store import OPTIONS, Store
from bridge.transaction import COPY_PRESENCE, COPY_UPDATES, COPY_VISITS, roll_up
from edge.wire import AnyEvent, Batch, Confirmed, Ended, Head, Presence, Update, Vocabulary, encode_batch, topic
from tests.postgres import create_database, running

PER_BATCH = 50
VOCABULARY = Vocabulary(("door", "till"), (Head("age", ("0-19", "20-39", "40+")), Head("gender", ("f", "m"))))
NOW = datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table."""

    name: str
    events: int
    seconds: float
    cpu_s: float  # of this process
    backend_s: float  # of its PostgreSQL backend: what counts on a machine that others share

    @property
    def rate(self) -> float:
        """Return events per second."""
        return self.events / self.seconds

    @property
    def total_s(self) -> float:
        """Return CPU seconds of both sides."""
        return self.cpu_s + self.backend_s


def workload(events: int, boxes: int, seed: int = 1) -> list[Incoming]:
    """Return messages of 50 events, boxes taking turns: visits with confirmed, now and then an update, and presence."""
    rng = random.Random(seed)
    base_ms = int((NOW - timedelta(hours=1)).timestamp() * 1000)
    messages = []
    for number in range(events // PER_BATCH):
        box, turn = number % boxes, number // boxes
        content = Batch(
            1, 1000 + box, turn * PER_BATCH + 1, base_ms + turn * 60_000 % 3_000_000, 0, VOCABULARY.digest(),
            tuple(_events(rng, turn * 100)), VOCABULARY if turn == 0 else None,
        )  # fmt: skip
        name = f"b{box:04d}"
        messages.append(Incoming("lab", name, encode_batch(content), topic("lab", name, "events"), NOW))
    return messages


def _events(rng: random.Random, first_track: int) -> Sequence[AnyEvent]:
    found: list[AnyEvent] = []
    for track in range(first_track, first_track + 14):
        camera, t_ms, x = rng.randrange(2), rng.randrange(30_000), rng.randrange(4096)
        found.append(Confirmed(camera, track, t_ms + 300, x, 700, 300, 400, 200))
        if track % 2:
            age = (0, rng.randrange(3), 180)
            found.append(Update(camera, track, t_ms + 9000, 9000, x, 700, 300, 400, 210, age))
        attributes = (0, rng.randrange(3), 200, 1, rng.randrange(2), 220)
        found.append(Ended(camera, track, t_ms, 20_000, 0, x, 700, 90, 800, 320, 420, 220, 90, attributes))
    return found + [Presence(i % 2, i * 4000, 10_000, 2, 9000, 1) for i in range(PER_BATCH - len(found))]


def compare(postgres: str, messages: Sequence[Incoming], per_write: int) -> list[Figure]:
    """Time ours, ours again, and the raw path with and without rollups, on a fresh database each."""
    size, count = f"{per_write * PER_BATCH} events a transaction", len(messages)
    with Store(fresh(postgres, f"ours_{per_write}")) as store:
        connection = store._connection()
        ours = timed(f"Store.write, {size}", count, connection, lambda: write_all(store, messages, per_write))
        again = timed("  again, all duplicates", count, connection, lambda: write_all(store, messages, per_write))
    counted, bare = (
        raw(fresh(postgres, f"{word}_{per_write}"), messages, per_write, word) for word in ("with", "without")
    )
    print(
        f"{size}: ours / raw with rollups {ours.rate / counted.rate:.2f} "
        f"({counted.total_s / ours.total_s:.2f} by CPU), "
        f"/ bare {ours.rate / bare.rate:.2f} ({bare.total_s / ours.total_s:.2f} by CPU)",
        flush=True,
    )
    return [ours, again, counted, bare]


def timed(name: str, messages: int, connection: Connection, work: Callable[[], None]) -> Figure:
    """Run once and return the figure."""
    backend = connection.info.backend_pid
    start, cpu, backend_cpu = time.perf_counter(), time.process_time(), _cpu_s(backend)
    work()
    seconds = time.perf_counter() - start
    return Figure(name, messages * PER_BATCH, seconds, time.process_time() - cpu, _cpu_s(backend) - backend_cpu)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fresh(postgres: str, name: str) -> str:
    """Return the DSN of a migrated database with partitions for today."""
    dsn = create_database(postgres, name)
    migrate(dsn)
    with Store(dsn) as store:
        store.maintain(NOW)
    return dsn


def write_all(store: Store, messages: Sequence[Incoming], per_write: int) -> None:
    """Write messages as the bridge does, so many per transaction."""
    for at in range(0, len(messages), per_write):
        store.write(messages[at : at + per_write])


def raw(dsn: str, messages: Sequence[Incoming], per_write: int, word: str) -> Figure:
    """Pack the rows, then time writing them, "with" or "without" rollups."""
    rollups = word == "with"
    meanings = learn(dsn, messages)
    packed = []
    for at in range(0, len(messages), per_write):
        rows = Rows(90 * 86_400_000)
        for message in messages[at : at + per_write]:
            parsed = read(message.payload)
            first = parsed.batch.first_seq
            rows.add(Run(message, parsed, meanings[message.box], first, first + PER_BATCH - 1))
        packed.append(rows)
    with psycopg.connect(dsn, autocommit=True, options=OPTIONS) as connection:
        connection.execute(sql.TEMPORARY)
        return timed(
            f"raw {word} rollups", len(messages), connection, lambda: write_raw(connection, packed, rollups=rollups)
        )


def learn(dsn: str, messages: Sequence[Incoming]) -> dict[str, Meaning]:
    """Register every box; return what its events mean."""
    births = [message for message in messages if read(message.payload).batch.vocabulary is not None]
    with psycopg.connect(dsn, autocommit=True, options=OPTIONS) as connection:
        registry = Registry("auto")
        ids = {box: i for (_, box), i in registry.boxes(connection, ((m.site, m.box) for m in births)).items()}
        for box_id in ids.values():
            registry.learn(connection, box_id, VOCABULARY.digest(), VOCABULARY)
        meanings = registry.meanings(connection, ((box_id, VOCABULARY.digest()) for box_id in ids.values()))
    return {box: meanings[box_id, VOCABULARY.digest()] for box, box_id in ids.items()}


def write_raw(connection: Connection, packed: Sequence[Rows], *, rollups: bool) -> None:
    """COPY and INSERT … ON CONFLICT, a transaction per item."""
    for rows in packed:
        with connection.transaction():
            copy(connection, COPY_VISITS, rows.visits)
            copy(connection, COPY_UPDATES, rows.updates)
            copy(connection, COPY_PRESENCE, rows.presence)
            connection.execute(sql.INSERT_UPDATES)
            if rollups:
                connection.execute(sql.INSERT_VISITS, {"earliest": NOW - timedelta(hours=2)})
                connection.execute(sql.INSERT_PRESENCE)
                roll_up(connection)
            else:
                connection.execute("INSERT INTO visits SELECT * FROM in_visits ON CONFLICT DO NOTHING")
                connection.execute("INSERT INTO presence SELECT * FROM in_presence ON CONFLICT DO NOTHING")


def one_by_one(connection: Connection, messages: Sequence[Incoming]) -> None:
    """INSERT and commit every event by itself, no dedup, no rollups: what a simple subscriber does."""
    connection.execute("CREATE TABLE simple (stream bigint, seq bigint, t timestamptz, PRIMARY KEY (stream, seq))")
    for message in messages:
        batch = read(message.payload).batch
        for i, event in enumerate(batch.events):
            at = NOW + timedelta(milliseconds=getattr(event, "t_ms", 0))
            connection.execute("INSERT INTO simple VALUES (%s, %s, %s)", (batch.stream, batch.first_seq + i, at))


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=60_000, help="how many events (default 60000)")
    parser.add_argument("--boxes", type=int, default=40, help="how many boxes send them (default 40)")
    parser.add_argument("--per-write", type=int, nargs="*", default=[4, 20, 100], help="messages per transaction")
    parser.add_argument("--single", type=int, default=2000, help="events for one commit each (default 2000)")
    given = parser.parse_args()
    messages = workload(given.events, given.boxes)
    figures: list[Figure] = []
    with running() as postgres:
        for per_write in given.per_write:
            figures += compare(postgres, messages, per_write)
        few = messages[: given.single // PER_BATCH]
        with psycopg.connect(fresh(postgres, "simple"), autocommit=True, options=OPTIONS) as single:
            name = "one INSERT and commit per event"
            figures.append(timed(name, len(few), single, lambda: one_by_one(single, few)))
    print(f"\n{'':44} events/s   CPU µs per event: bridge  PostgreSQL")
    for figure in figures:
        own, theirs = (1e6 * seconds / figure.events for seconds in (figure.cpu_s, figure.backend_s))
        print(f"{figure.name:44} {figure.rate:8,.0f} {own:26.1f} {theirs:11.1f}")


if __name__ == "__main__":
    main()
