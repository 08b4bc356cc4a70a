"""A simulated fleet beside what docs/SCALE.md predicts for it: `python -m tests.bench.fleet --boxes 1000 --seconds 60`.

A real Mosquitto, a real PostgreSQL with its default durability and the real bridge on this machine, and boxes: 50 with
the real outbox and publisher, the others light clients with a real MQTT connection each (light_boxes.py). All of them
share the machine, so CPU times say more than rates do. Lag is counted from the moment a box could first tell of an
event to the commit of its row, by PostgreSQL's own commit timestamps.

`--outage-s 3600` starts the bridge only after every box holds that long an outage's events, and measures how fast they
drain and what live events suffer meanwhile.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import msgspec
import psycopg
import yaml
from psycopg import conninfo

from bridge.child import Child
from bridge.local_servers import postgres_program
from bridge.migrate import migrate
from bridge.sizing import BACKLOG_BATCH, HOUR_S, MEASURED, Fleet, size
from tests.bench.fleet_boxes import ASK, QUIET, BoxesSpec, Report
from tests.broker import Mosquitto, shipped
from tests.chaos import sabotage
from tests.chaos.world import Process

TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 900.0
DATABASE = "facefleet"

# From the moment a box could tell of an event to its row's commit. Confirmed visits are rows that change: left out.
LAGS = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - at)::float8 AS lag_s FROM (
    SELECT xmin, ended_at AS at FROM visits WHERE seq IS NOT NULL
    UNION ALL SELECT xmin, at FROM track_updates
    UNION ALL SELECT xmin, at + period_ms * interval '1 ms' FROM presence) AS events
WHERE at BETWEEN to_timestamp(%(first)s) AND to_timestamp(%(last)s)
"""
PERCENTILES = f"""
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY lag_s), percentile_cont(0.99) WITHIN GROUP (ORDER BY lag_s),
    max(lag_s), count(*) FROM ({LAGS}) AS lags
"""
STORED = """
SELECT sum(upto)::bigint, sum(cardinality(ranges))::bigint, (SELECT sum(last_seq - first_seq + 1)::bigint FROM batches),
    (SELECT count(*) FROM dead_letters) + (SELECT count(*) FROM quarantine) FROM streams
"""
WRITTEN = """
SELECT count(*), coalesce(sum(last_seq - first_seq + 1), 0)::bigint,
    (SELECT count(*) FROM health), pg_database_size(current_database()),
    (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()) FROM batches
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that is counted, at one moment."""

    at_s: float
    light: Report
    real: Report
    bridge_cpu_s: float
    database_cpu_s: float
    broker_cpu_s: float
    messages: int
    events: int
    health: int
    stored_bytes: int
    transactions: int  # ours, when we read, among them

    @property
    def boxes(self) -> Report:
        """Both kinds together."""
        return self.light + self.real


@dataclass(frozen=True, slots=True)
class Truth:
    """What came of all events, at rest."""

    happened: int
    covered: int
    holes: int
    written: int  # by the ledger of batches
    strays: int  # dead letters and quarantine

    @property
    def whole(self) -> bool:
        """Whether each event is there once."""
        return self.happened == self.covered == self.written and not (self.holes or self.strays)

    def __str__(self) -> str:
        said = (
            f"{self.happened:,} events happened, {self.covered:,} covered, {self.written:,} written, {self.holes} "
            f"holes, {self.strays} strays"
        )
        return said if self.whole else f"{said}: WRONG"


class Boxes(Process):
    """A process of boxes that answers when asked."""

    def __init__(self, module: str, spec: BoxesSpec, folder: Path) -> None:
        """Write its spec down; `start` runs it."""
        self.spec = spec
        file = folder / f"{module}.json"
        file.write_bytes(msgspec.json.encode(spec))
        super().__init__(module, [f"tests.bench.{module}", str(file)], folder / f"{module}.log")

    def _output(self) -> int | None:
        return -1  # subprocess.PIPE

    def hear(self) -> Report:
        """Wait for its next report."""
        assert self._popen is not None
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: {self.log.read_text()[-2000:]}")
        return msgspec.json.decode(line, type=Report)

    def ask(self, order: bytes = ASK) -> Report:
        """Return what it has done so far."""
        if self._popen is None:
            return Report()
        assert self._popen.stdin is not None
        self._popen.stdin.write(order + b"\n")
        self._popen.stdin.flush()
        return self.hear()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._popen is not None
        return self._popen.pid


class Bench:
    """The servers, the bridge and the boxes of one measurement."""

    def __init__(self, given: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
        """Start PostgreSQL and the broker; the boxes and the bridge wait."""
        self.given, self.folder, self.uuid = given, folder, uuid4()
        program, admin = postgres_program(folder)
        self.postgres = Child(replace(program, argv=[*program.argv, "-c", "track_commit_timestamp=on"]))
        self.postgres.start()
        stack.callback(self.postgres.stop)
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())
        self.dsn = conninfo.make_conninfo(admin, dbname=DATABASE)
        migrate(self.dsn, database_uuid=self.uuid)
        self.broker = Mosquitto(folder, extra=_broker_lines(folder)).start()
        stack.callback(self.broker.stop)
        self.bridge = _bridge(folder, self.dsn, self.uuid, self.broker.port)
        stack.callback(self.bridge.stop)
        real = min(given.real, given.boxes)
        self.real, self.light = (
            Boxes(module, self._spec(first, count), folder)
            for module, first, count in (("real_boxes", 0, real), ("light_boxes", real, given.boxes - real))
        )
        for boxes in (self.real, self.light):
            if boxes.spec.count:
                stack.callback(boxes.kill)
        self.connection = stack.enter_context(
            psycopg.connect(self.dsn, autocommit=True, options="-c search_path=facefleet -c TimeZone=UTC")
        )

    def _spec(self, first: int, count: int) -> BoxesSpec:
        given = self.given
        return BoxesSpec(
            first, count, self.broker.port, str(self.uuid), str(self.folder / "boxes"), given.rate, given.health_s,
            outage_s=given.outage_s, backlog_batch=given.backlog_batch,
        )  # fmt: skip

    def start_boxes(self) -> None:
        """Start the boxes and wait until all that can be connected are."""
        if self.real.spec.count:
            self.real.start()
            self.real.hear()
        if self.light.spec.count:
            self.light.start()
        ask_s = time.monotonic()
        best, since_s = -1, ask_s
        while (connected := self.ask().connected) < self.given.boxes:
            best, since_s = (connected, time.monotonic()) if connected > best else (best, since_s)
            if time.monotonic() - since_s > 20.0:
                print(f"  only {connected:,} of {self.given.boxes:,} boxes could connect", flush=True)
                return
            time.sleep(0.5)
        print(f"  {connected:,} boxes connected after {time.monotonic() - ask_s:.0f} s", flush=True)

    def ask(self, order: bytes = ASK) -> Report:
        """Return what the boxes say, both kinds together."""
        self.postgres.check()
        if self.bridge.died is not None:
            raise RuntimeError(f"the bridge ended: {self.bridge.log.read_text()[-2000:]}")
        return self.real.ask(order) + self.light.ask(order)

    def read(self) -> Reading:
        """Count everything."""
        light, real = self.light.ask(), self.real.ask()
        row = self.connection.execute(WRITTEN).fetchone()
        assert row is not None
        return Reading(
            time.time(), light, real, cpu_s(_pid(self.bridge)), tree_cpu_s(self.postgres.pid), cpu_s(_pid(self.broker)),
            *row,
        )  # fmt: skip

    def settle(self, what: Literal["backlog", "live", "everything"]) -> Report:
        """Wait until the backlog is acked, or all but what has just happened, or everything, with nothing new."""
        give_up_s = time.monotonic() + PATIENCE_S
        order = QUIET if what == "everything" else ASK
        most = 20 + 3 * self.given.boxes * self.given.rate if what == "live" else 0
        while True:
            said = self.ask(order)
            if (said.backlog if what == "backlog" else said.pending) <= most:
                return said
            if time.monotonic() > give_up_s:
                raise RuntimeError(f"{said.pending:,} events still unacked after {PATIENCE_S:.0f} s")
            time.sleep(0.2)

    def lags(self, first_s: float, last_s: float) -> tuple[float, float, float, int]:
        """Return median, 99th percentile and maximum lag in s of what happened in a time, and how many events."""
        row = self.connection.execute(PERCENTILES, {"first": first_s, "last": last_s}).fetchone()
        assert row is not None
        return row

    def truth(self) -> Truth:
        """Let everything come to rest and compare what the boxes say with what the database says."""
        said = self.settle("everything")
        row = self.connection.execute(STORED).fetchone()
        assert row is not None
        return Truth(said.events, *row)


def steady(bench: Bench, given: argparse.Namespace) -> Truth:
    """Measure a fleet on an ordinary day."""
    bench.bridge.start()
    bench.start_boxes()
    bench.settle("live")
    time.sleep(given.warm_s)
    before = bench.read()
    time.sleep(given.seconds)
    after = bench.read()
    truth = bench.truth()
    print_steady(given, before, after)
    print_lags("live events", bench.lags(before.at_s, after.at_s))
    return truth


def drain(bench: Bench, given: argparse.Namespace) -> Truth:
    """Measure how a backlog drains."""
    bench.start_boxes()
    before = bench.read()
    print(f"  {before.boxes.backlog:,} events wait in batches of {given.backlog_batch}", flush=True)
    bench.bridge.start()
    while bench.ask().backlog == before.boxes.backlog:
        time.sleep(0.05)
    began_s = time.time()
    bench.settle("backlog")
    ended_s = time.time()
    after = bench.read()
    truth = bench.truth()
    took_s, backlog = ended_s - began_s, before.boxes.backlog
    fleet = size(Fleet(given.boxes, given.rate, health_s=given.health_s), MEASURED)
    predicted_s = fleet.drain_s * given.outage_s / HOUR_S
    if given.backlog_batch != BACKLOG_BATCH:
        print(f"  (the model knows batches of {BACKLOG_BATCH} only)")
    done = after.events - before.events
    print("\n| | predicted | measured |\n|---|---|---|")
    print(f"| {backlog:,} events drain in, s | {predicted_s:,.0f} | {took_s:,.1f} |")
    print(f"| events / s while draining, live ones too | | {done / took_s:,.0f} |")
    for name, cpu in cpus(before, after).items():
        print(f"| {name}, cores (CPU µs an event) | | {cpu / took_s:.2f} ({1e6 * cpu / done:.1f}) |")
    print_lags("live events meanwhile", bench.lags(began_s, ended_s))
    return truth


def print_steady(given: argparse.Namespace, before: Reading, after: Reading) -> None:
    """Print what was measured beside what the model predicts."""
    fleet, costs = Fleet(given.boxes, given.rate, health_s=given.health_s), MEASURED
    model = size(fleet, costs)
    span_s = after.at_s - before.at_s
    events, messages = after.events - before.events, after.messages - before.messages
    health = after.health - before.health
    share = given.boxes / max(1, given.boxes - min(given.real, given.boxes))  # real boxes' are counted as light ones'
    acks = (after.light.acks - before.light.acks) * share
    wire = (after.light.wire_bytes - before.light.wire_bytes) * share
    stored = after.stored_bytes - before.stored_bytes
    expected = events * costs.stored_event_bytes + health * costs.stored_health_bytes
    rows: list[tuple[str, float, float, str]] = [
        ("events / s", model.events_per_s, events / span_s, ",.1f"),
        ("messages / s", model.messages_per_s, messages / span_s, ",.1f"),
        ("acks / s", model.acks_per_s, acks / span_s, ",.1f"),
        ("health / s", model.health_per_s, health / span_s, ",.1f"),
        ("transactions / s", model.rounds_per_s, (after.transactions - before.transactions) / span_s, ",.1f"),
        ("wire between boxes and broker, kB/s", model.wire_mbit_per_s * 125.0, wire / span_s / 1e3, ",.1f"),
        *((f"{name}, cores", getattr(model, f"{key}_cores"), cpu / span_s, ".3f")
          for (name, cpu), key in zip(cpus(before, after).items(), ("bridge", "database", "broker"), strict=True)),
        ("bytes on disk an event, health's among them", expected / max(1, events), stored / max(1, events), ",.0f"),
    ]  # fmt: skip
    print(f"\n{given.boxes:,} boxes, {span_s:.0f} s, {events:,} events\n\n| | predicted | measured | ratio |")
    print("|---|---|---|---|")
    for name, predicted, measured, form in rows:
        print(f"| {name} | {predicted:{form}} | {measured:{form}} | {measured / predicted if predicted else 0:.2f} |")
    light = after.light.cpu_s - before.light.cpu_s
    print(
        f"\n  light boxes took {light / span_s:.2f} cores and were at most {after.light.late_s:.2f} s late; "
        f"connections lost {after.boxes.lost}, batches sent again {after.boxes.resent}"
    )


def cpus(before: Reading, after: Reading) -> dict[str, float]:
    """Return the CPU seconds of each server between two readings."""
    return {
        "bridge": after.bridge_cpu_s - before.bridge_cpu_s,
        "PostgreSQL": after.database_cpu_s - before.database_cpu_s,
        "broker": after.broker_cpu_s - before.broker_cpu_s,
    }


def print_lags(what: str, lags: tuple[float, float, float, int]) -> None:
    """Print how old events were when their rows were committed."""
    p50, p99, most, count = lags
    print(f"\n  box to row, {count:,} {what}: p50 {p50:.2f} s, p99 {p99:.2f} s, most {most:.2f} s")


def cpu_s(pid: int) -> float:
    """Return the processor time a process has used; 0 is one that was not started."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def tree_cpu_s(pid: int) -> float:
    """Return the processor time of a process and its children, those that ended among them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    total = sum(int(field) for field in fields[11:15]) / TICKS
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            total += cpu_s(int(child))
        except OSError:
            continue  # it ended meanwhile: its parent has its time
    return total


def _broker_lines(folder: Path) -> str:
    store = folder / "mosquitto"
    store.mkdir()
    return "\n".join((
        f"persistence_location {store}/",
        shipped(
            "persistence", "autosave_interval", "max_inflight_messages", "max_queued_messages", "message_size_limit"
        ),
    ))  # fmt: skip


def _bridge(folder: Path, dsn: str, uuid: UUID, port: int) -> Process:
    config = folder / "bridge.yaml"
    said: dict[str, Any] = {"id": "bench", "dsn": dsn, "database": str(uuid), "mqtt": {"port": port}}
    config.write_text(yaml.safe_dump(said))
    argv = ["tests.chaos.bridge_process", sabotage.HONEST, str(config)]
    return Process("bridge", argv, folder / "bridge.log")


def _pid(process: Process | Mosquitto) -> int:
    popen = process._popen if isinstance(process, Process) else process._child
    return 0 if popen is None else popen.pid


@contextmanager
def started(given: argparse.Namespace) -> Iterator[Bench]:
    """Start the servers in a folder that is gone afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="facefleet-fleet-", dir="/var/tmp")))
        folder.chmod(0o755)
        yield Bench(given, folder, stack)


def parser() -> argparse.ArgumentParser:
    """Return what the command line may say."""
    made = argparse.ArgumentParser(
        prog="python -m tests.bench.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--boxes", type=int, nargs="+", default=[100, 1_000], help="sizes, one after the other")
    made.add_argument("--real", type=int, default=50, help="of them with the real outbox and publisher (default 50)")
    made.add_argument("--rate", type=float, default=0.5, help="events a second and box (default 0.5)")
    made.add_argument("--seconds", type=float, default=60.0, help="to measure for (default 60)")
    made.add_argument("--warm-s", type=float, default=10.0, help="of rest before (default 10)")
    made.add_argument("--health-s", type=float, default=60.0, help="between two health messages (default 60)")
    made.add_argument("--outage-s", type=float, default=0.0, help="drain the events of so long an outage instead")
    made.add_argument("--backlog-batch", type=int, default=50, help="events in a batch of the outage (default 50)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each size; return 0 when every event arrived once, however long that took."""
    given, whole = parser().parse_args(argv), True
    for boxes in given.boxes:
        print(f"\n== {boxes:,} boxes, {given.rate:g} events/s each", flush=True)
        one = argparse.Namespace(**{**vars(given), "boxes": boxes})
        with started(one) as bench:
            truth = (drain if one.outage_s else steady)(bench, one)
        print(f"  {truth}", flush=True)
        whole = whole and truth.whole
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
