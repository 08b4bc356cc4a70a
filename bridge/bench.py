"""How fast this machine bridges, MQTT in → partitions, beside plainer ways to write the same: `facefleet-bridge bench`.

All of it runs here, on an embedded PostgreSQL with its default durability (fsync on) and a real broker; this machine
publishes as well. The raw path gets its rows packed beforehand and writes them as fast as
PostgreSQL takes them: binary COPY into temporary tables, INSERT … ON CONFLICT into the same partitions, with the same
rollups. What the bridge adds: MQTT, decoding, digests, ledger, dedup, open visits, coverage, acks.
"""

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

import paho.mqtt.client as mqtt
import psycopg
from paho.mqtt.enums import CallbackAPIVersion

from bridge import statements as sql
from bridge.batches import Incoming, read
from bridge.connection import Connection, copy
from bridge.errors import BridgeError
from bridge.local import Local, Ready
from bridge.meaning import Meaning
from bridge.migrate import migrate
from bridge.registry import Registry
from bridge.rows import Rows, Run
from bridge.store import OPTIONS, Store
from bridge.transaction import COPY_PRESENCE, COPY_UPDATES, COPY_VISITS, roll_up
from edge.wire import AnyEvent, Batch, Confirmed, Ended, Head, Presence, Update, Vocabulary, encode_batch, topic

PER_BATCH = 50
PER_WRITE = 100  # batches in one transaction of the raw path; the bridge takes up to 200
VOCABULARY = Vocabulary(("door", "till"), (Head("age", ("0-19", "20-39", "40+")), Head("gender", ("f", "m"))))
NOW = datetime.now(UTC)
PATIENCE_S = 300.0


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


# The whole way ---------------------------------------------------------------------------------------------------


def run(events: int, boxes: int, single: int) -> list[Figure]:
    """Measure all ways on servers of our own, which are gone afterwards.

    Args:
        events: how many go the fast ways, in batches of 50.
        boxes: how many boxes they seem to come from.
        single: how many go the slow ways.

    Raises:
        BridgeError: a server does not start, or the events do not arrive.
    """
    messages = workload(max(events, PER_BATCH), boxes)
    few = messages[: max(1, single // PER_BATCH)]
    with _centre() as ready:
        figures = [_through_mqtt(ready, messages, "MQTT in → partitions")]
        with Store(ready.dsn) as store:
            again = partial(write_all, store, messages, PER_WRITE)
            figures.append(timed("  all of it again: duplicates, no MQTT", len(messages), store._connection(), again))
        figures.append(raw(database(ready.dsn, "bench_raw", migrated=True), messages, PER_WRITE, "with"))
        for name, work in (
            ("one INSERT and commit per event", one_by_one),
            ("SELECT, UPDATE, commit per event", look_and_update),
        ):
            with psycopg.connect(database(ready.dsn, f"bench_{work.__name__}"), autocommit=True) as connection:
                figures.append(timed(name, len(few), connection, partial(work, connection, few)))
    return figures


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as people read them; the first is ours, the ratio says how it stands to each other way."""
    lines = [f"{'':40} {'events/s':>9} {'ours / it':>10}   CPU µs per event: this process, PostgreSQL"]
    for figure in figures:
        own, theirs = (1e6 * seconds / figure.events for seconds in (figure.cpu_s, figure.backend_s))
        ratio = figures[0].rate / figure.rate
        lines.append(f"{figure.name:40} {figure.rate:9,.0f} {ratio:10.2f} {own:24.1f} {theirs:17.1f}")
    return "\n".join(lines)


def database(dsn: str, name: str, *, migrated: bool = False) -> str:
    """Make a database on the server of `dsn` and return its DSN."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    made = psycopg.conninfo.make_conninfo(dsn, dbname=name)
    if migrated:
        migrate(made)
        with Store(made) as store:
            store.maintain(NOW)
    return made


@contextmanager
def _centre() -> Iterator[Ready]:
    stop, up, found = threading.Event(), threading.Event(), list[Ready]()
    failed: list[BaseException] = []

    def on_ready(ready: Ready) -> None:
        found.append(ready)
        up.set()

    def serve() -> None:
        try:
            with Local() as centre:
                centre.run(stop, on_ready=on_ready)
        except BaseException as error:
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=serve, name="centre")
    thread.start()
    try:
        up.wait()
        if failed:
            raise BridgeError(f"the centre did not start: {failed[0]}") from failed[0]
        yield found[0]
    finally:
        stop.set()
        thread.join()


def _through_mqtt(ready: Ready, messages: Sequence[Incoming], name: str) -> Figure:
    """Publish from a process of its own and wait until the last event is in the ledger."""
    events = len(messages) * PER_BATCH
    context = multiprocessing.get_context("spawn")
    connected = context.Event()
    publisher = context.Process(
        target=publish, args=(ready.host, ready.port, [(m.topic, m.payload) for m in messages], connected)
    )
    with psycopg.connect(ready.dsn, autocommit=True) as look:
        backend = _number(look, "SELECT pid FROM pg_stat_activity WHERE application_name = 'facefleet-bridge'")
        publisher.start()
        if not connected.wait(PATIENCE_S):
            raise BridgeError("the publisher did not connect")
        start, cpu, backend_cpu = time.perf_counter(), time.process_time(), _cpu_s(backend)
        while (found := _arrived(look)) < events:
            if time.perf_counter() > start + PATIENCE_S:
                raise BridgeError(f"{found} of {events} events arrived within {PATIENCE_S:g} s")
            time.sleep(0.02)
        figure = Figure(
            name, events, time.perf_counter() - start, time.process_time() - cpu, _cpu_s(backend) - backend_cpu
        )
        publisher.join()
        return figure


def publish(host: str, port: int, messages: Sequence[tuple[str, bytes]], connected: Event) -> None:
    """Publish all, say when that begins, and return when the broker has them."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(100)
    client.connect(host, port)
    client.loop_start()
    connected.set()
    sent = [client.publish(name, payload, qos=1) for name, payload in messages]
    for one in sent:
        one.wait_for_publish(PATIENCE_S)
    client.disconnect()
    client.loop_stop()


def _arrived(look: Connection) -> int:
    return _number(look, "SELECT coalesce(sum(last_seq - first_seq + 1), 0)::bigint FROM facefleet.batches")


def _number(look: Connection, statement: str) -> int:
    row = look.execute(statement.encode()).fetchone()
    return int(row[0]) if row else 0


def write_all(store: Store, messages: Sequence[Incoming], per_write: int) -> None:
    """Write messages as the bridge does, so many per transaction."""
    for at in range(0, len(messages), per_write):
        store.write(messages[at : at + per_write])
