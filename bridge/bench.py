"""How fast this machine bridges, MQTT in → partitions, beside plainer ways to write the same: `facefleet-bridge bench`.

All of it runs here, on an embedded PostgreSQL with its default durability (fsync on) and a real broker; this machine
publishes as well. The raw path gets its rows packed beforehand and writes them as fast as PostgreSQL takes them: binary
COPY into temporary tables, INSERT … ON CONFLICT into the same partitions, the ledger's rows, and the same rollups from
what was inserted; afterwards both databases must hold the same. What the bridge does beside: MQTT, decoding, digests,
dedup, open visits, coverage, acks. What it does otherwise: it knows from its coverage what is new, so that rows go
straight into their partitions, and it adds up before PostgreSQL hears of it; the second raw path does the latter too.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import psycopg

from bridge.batches import Incoming
from bridge.bench_load import NOW, PER_BATCH, publish, workload
from bridge.bench_plain import Figure, cpu_s, look_and_update, one_by_one, raw, timed
from bridge.connection import Connection
from bridge.errors import BridgeError
from bridge.local import PARENT, Local, Ready
from bridge.migrate import migrate
from bridge.store import Store
from bridge.subscriber import MOST_MESSAGES

ROUNDS = 3  # ours and raw in turn: whatever else runs on this machine disturbs both alike
PATIENCE_S = 300.0

# What both ways must have written, without ids and times that differ between them.
SAME = """
SELECT (SELECT (count(*), sum(dwell_ms), sum(score), sum(hits)) FROM visits),
    (SELECT (count(*), sum(dwell_ms), sum(score)) FROM track_updates),
    (SELECT (count(*), sum(person_ms), sum(entered)) FROM presence),
    (SELECT (count(*), sum(last_seq - first_seq + 1), sum(length(digests))) FROM batches),
    (SELECT (count(*), sum(visits), sum(dwell_ms), sum(person_ms), sum(entered)) FROM rollup_minutes),
    (SELECT (count(*), sum(visits), sum(dwell_ms), sum(person_ms), sum(entered)) FROM rollup_hours),
    (SELECT (count(*), sum(visits), sum(dwell_ms), sum(person_ms), sum(entered)) FROM rollup_days),
    (SELECT array_agg(t ORDER BY t) FROM (SELECT head, label, sum(visits) FROM attribute_hours GROUP BY 1, 2) t),
    (SELECT array_agg(t ORDER BY t) FROM (SELECT head, label, sum(visits) FROM attribute_days GROUP BY 1, 2) t)
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: a way to write, how ours compares, and what was promised."""

    figure: Figure
    ratio: float | None = None  # ours / it, events per second
    by_cpu: float | None = None  # ours / it, events per CPU second of both sides
    target: str = ""
    met: bool | None = None


def run(events: int, boxes: int, single: int) -> list[Line]:
    """Measure all ways on servers of our own, which are gone afterwards.

    Args:
        events: how many go the fast ways in each of three rounds, in batches of 50.
        boxes: how many boxes they seem to come from.
        single: how many go the slow ways.

    Raises:
        BridgeError: a server does not start, the events do not arrive, or two ways have not written the same.
    """
    rounds = [workload(max(events, PER_BATCH), boxes, seed) for seed in range(1, ROUNDS + 1)]
    few = rounds[0][: max(1, single // PER_BATCH)]
    with _centre() as ready:
        plain = [database(ready.dsn, name, migrated=True) for name in ("bench_raw", "bench_raw_sums")]
        ours: list[Figure] = []
        raws: list[list[Figure]] = [[], []]
        for messages in rounds:
            ours.append(_through_mqtt(ready, messages, "MQTT in → partitions"))
            for number, dsn in enumerate(plain):
                raws[number].append(raw(dsn, messages, MOST_MESSAGES, beforehand=number == 1))
        if len(found := {_written(dsn) for dsn in (ready.dsn, *plain)}) > 1:
            raise BridgeError(f"the ways have not written the same rows: {found}")
        with Store(ready.dsn) as store:
            again = partial(write_all, store, rounds[0], MOST_MESSAGES)
            replay = timed("all of it again: duplicates, no MQTT", len(rounds[0]), store._connection(), again)
        slow = []
        for name, work in (
            ("one INSERT and commit per event", one_by_one),
            ("SELECT, UPDATE, commit per event", look_and_update),
        ):
            with psycopg.connect(database(ready.dsn, f"bench_{work.__name__}"), autocommit=True) as connection:
                slow.append(timed(name, len(few), connection, partial(work, connection, few)))
    return lines(ours, raws, replay, slow)


def lines(
    ours: Sequence[Figure], raws: Sequence[Sequence[Figure]], replay: Figure, slow: Sequence[Figure]
) -> list[Line]:
    """Judge what was measured; of rounds the median counts, and of ratios that of the rounds."""
    mine = middle(ours)
    found = [Line(mine), Line(replay, target="≥ 100,000 /s", met=replay.rate >= 100_000)]
    for number, figures in enumerate(raws):
        ratio = median(a.rate / b.rate for a, b in zip(ours, figures, strict=True))
        by_cpu = median(b.total_s / a.total_s for a, b in zip(ours, figures, strict=True))
        line = Line(middle(figures), ratio, by_cpu)
        found.append(line if number else replace(line, target="≥ 0.70", met=ratio >= 0.7))
    for figure, least in zip(slow, (10.0, 1.0), strict=True):
        ratio = mine.rate / figure.rate
        by_cpu = mine.events / mine.total_s * figure.total_s / figure.events
        found.append(Line(figure, ratio, by_cpu, f"≥ {least:.2f}", ratio >= least))
    return found


def middle(figures: Sequence[Figure]) -> Figure:
    """Return the figure of the median rate."""
    return sorted(figures, key=lambda figure: figure.rate)[len(figures) // 2]


def table(lines: Sequence[Line]) -> str:
    """Return the lines as people read them."""
    head = f"{'':40} {'events/s':>9} {'per CPU s':>10} {'ours / it':>10} {'by CPU':>7}  {'target':12} {'':6}"
    text = [f"{head}  CPU µs per event: writer, PostgreSQL"]
    for line in lines:
        own, theirs = (1e6 * seconds / line.figure.events for seconds in (line.figure.cpu_s, line.figure.backend_s))
        ratio, by_cpu = ("" if x is None else f"{x:.2f}" for x in (line.ratio, line.by_cpu))
        verdict = {None: "", True: "met", False: "missed"}[line.met]
        text.append(
            f"{line.figure.name:40} {line.figure.rate:9,.0f} {line.figure.events / line.figure.total_s:10,.0f} "
            f"{ratio:>10} {by_cpu:>7}  {line.target:12} {verdict:6}"
            f"{own:26.1f} {theirs:11.1f}"
        )
    return "\n".join(text)


def company() -> str:
    """Say how busy this machine is with other things: what the clock says of a way to write is also about them."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load average {load:.1f} on {cores} cores" + ("; believe the CPU columns" if load > cores + 1 else "")


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
    PARENT.mkdir(parents=True, exist_ok=True)

    def on_ready(ready: Ready) -> None:
        found.append(ready)
        up.set()

    def serve() -> None:
        try:
            # With a folder named, PostgreSQL syncs: one that goes away with the process would be spared that.
            with tempfile.TemporaryDirectory(prefix="bench-", dir=PARENT) as folder:
                Path(folder).chmod(0o755)  # the servers run as users of their own
                with Local(data=Path(folder)) as centre:
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
    connected, go = context.Event(), context.Event()
    content = [(message.topic, message.payload) for message in messages]
    publisher = context.Process(target=publish, args=(ready.host, ready.port, content, connected, go))
    with psycopg.connect(ready.dsn, autocommit=True, options="-c search_path=facefleet") as look:
        backend = _number(look, "SELECT pid FROM pg_stat_activity WHERE application_name = 'facefleet-bridge'")
        before = _arrived(look)
        publisher.start()
        if not connected.wait(PATIENCE_S):
            raise BridgeError("the publisher did not connect")
        start, cpu, backend_cpu = time.perf_counter(), _cpu_of_others(), cpu_s(backend)
        go.set()
        while (found := _arrived(look) - before) < events:
            if time.perf_counter() > start + PATIENCE_S:
                raise BridgeError(f"{found} of {events} events arrived within {PATIENCE_S:g} s")
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        figure = Figure(name, events, seconds, _cpu_of_others() - cpu, cpu_s(backend) - backend_cpu)
        publisher.join()
        return figure


def _cpu_of_others() -> float:
    """Return CPU seconds of this process without this thread, which only looks on."""
    return time.process_time() - time.thread_time()


def _arrived(look: Connection) -> int:
    return _number(look, "SELECT coalesce(sum(upto), 0)::bigint FROM streams")


def _written(dsn: str) -> tuple[str, ...]:
    with psycopg.connect(dsn, options="-c search_path=facefleet") as connection:
        row = connection.execute(SAME.encode()).fetchone()
    return tuple(map(str, row or ()))


def _number(look: Connection, statement: str) -> int:
    row = look.execute(statement.encode()).fetchone()
    return int(row[0]) if row else 0


def write_all(store: Store, messages: Sequence[Incoming], per_write: int) -> None:
    """Write messages as the bridge does, so many per transaction."""
    for at in range(0, len(messages), per_write):
        store.write(messages[at : at + per_write])
