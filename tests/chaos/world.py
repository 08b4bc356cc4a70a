"""The processes of a run: PostgreSQL, broker, bridges, fleets of boxes, and the wires between them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self
from uuid import UUID, uuid4

import msgspec
import psycopg
import yaml
from psycopg import conninfo

from bridge.child import Child
from bridge.local_servers import postgres_program
from bridge.migrate import migrate
from tests.broker import Amqtt, Mosquitto, shipped
from tests.chaos import sabotage
from tests.chaos.echo import Echo
from tests.chaos.fleet_process import NO_ROOM, BoxSpec, FleetSpec
from tests.chaos.judge import OPTIONS
from tests.chaos.proxy import Proxy, Wire

ROOT = Path(__file__).resolve().parents[2]
MANY_BYTES = 256 << 20
LIVE, OLDER, STAGING = "facefleet", "older", "staging"


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is to be.

    Attributes:
        events: how many to accept before it ends; decides how much each box says.
        kills: how many SIGKILLs.
        seconds: the longest time that faults and new events go on.
        fleets: processes of boxes; the last one lives on a small disk.
        boxes: in each process.
        small_bytes: bound of the outboxes on the small disk.
        all_small: every outbox is bounded so.
        sabotage: see sabotage.py.
        script: "drawn" from the seed, or the one that a sabotaged build must fail.
    """

    events: int = 20_000
    kills: int = 10
    seconds: float = 30.0
    seed: int = 1
    protocol: Literal["5", "3.1.1"] = "5"
    broker: Literal["mosquitto", "amqtt"] = "mosquitto"
    fleets: int = 4
    boxes: int = 3
    small_bytes: int = 512 << 10
    all_small: bool = False
    sabotage: str = sabotage.HONEST
    script: Literal["drawn", "stalled bridge", "read-only", "unheard restore"] = "drawn"
    keep: Path | None = None


class Process:
    """A child of ours that can be killed and started again, with its log in a file."""

    def __init__(self, name: str, argv: list[str], log: Path) -> None:
        self.name, self.argv, self.log = name, argv, log
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its orders come through a pipe that closes when we die."""
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", *self.argv], cwd=ROOT, stdin=subprocess.PIPE, stdout=self._output(), stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _output(self) -> int | None:
        return subprocess.DEVNULL

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def died(self) -> int | None:
        """How it ended by itself; None while it lives or when we ended it."""
        return None if self._popen is None else self._popen.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        if self._popen is not None:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no last words."""
        self._end(signal.SIGKILL, 10.0)

    def stop(self) -> None:
        """SIGTERM, and patience."""
        self._end(signal.SIGTERM, 20.0)

    def _end(self, how: signal.Signals, wait_s: float) -> None:
        popen, self._popen = self._popen, None
        if popen is None:
            return
        popen.send_signal(how)
        try:
            popen.wait(wait_s)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait(10.0)
        for pipe in (popen.stdin, popen.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


class Fleet(Process):
    """A process of boxes."""

    def __init__(self, name: str, spec: FleetSpec, sabotaged: str, folder: Path, wire: Wire) -> None:
        self.spec, self.wire = spec, wire
        self.said: dict[str, dict[str, Any]] = {}
        self.losses: Counter[str] = Counter()
        self._file = folder / f"{name}.json"
        argv = ["tests.chaos.fleet_process", sabotaged, str(self._file)]
        super().__init__(name, argv, folder / f"{name}.log")

    def _output(self) -> int | None:
        return subprocess.PIPE

    def start(self) -> None:
        """Start it with the present spec."""
        self._file.write_bytes(msgspec.json.encode(self.spec))
        self.said = {}
        super().start()
        threading.Thread(target=self._listen, args=(self._popen,), daemon=True).start()

    def change(self, **more: Any) -> None:
        """Change the spec of the next life."""
        self.spec = msgspec.structs.replace(self.spec, **more)

    def order(self, **order: Any) -> None:
        """Tell the boxes something."""
        if self._popen is not None and self._popen.stdin is not None:
            with suppress(OSError):
                self._popen.stdin.write(json.dumps(order).encode() + b"\n")
                self._popen.stdin.flush()

    def stop(self) -> None:
        """A clean stop: the boxes say goodbye."""
        self.order(stop=True)
        popen = self._popen
        if popen is not None:
            with suppress(subprocess.TimeoutExpired):
                popen.wait(30.0)
        super().stop()

    @property
    def drained(self) -> bool:
        """Whether every box has said that nothing of it waits for an ack."""
        return len(self.said) == len(self.spec.boxes) and all(said["idle"] for said in self.said.values())

    def outboxes(self) -> list[Path]:
        """Return the outbox files."""
        return [Path(box.folder) / "outbox.db" for box in self.spec.boxes]

    def _listen(self, popen: "subprocess.Popen[bytes]") -> None:
        assert popen.stdout is not None
        with suppress(ValueError, OSError):
            for line in popen.stdout:
                if popen is self._popen:
                    self.said = json.loads(line)


class World:
    """Everything that runs, started by `with`; faults.py does things to it."""

    def __init__(self, options: Options, folder: Path, rng: random.Random) -> None:
        """Prepare; nothing runs yet."""
        self.options, self.folder, self.rng = options, folder, rng
        self.uuid, self.staging_uuid = uuid4(), uuid4()
        self.ledger = folder / "accepted.ledger"
        self.kills: Counter[str] = Counter()
        self.deaths: list[str] = []  # of processes that nobody killed
        self.fleets: list[Fleet] = []
        self.twins: list[Fleet] = []
        self.small_disk: Path | None = None
        self.small: list[str] = []  # names of boxes whose outbox cannot hold much
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            program, self._admin = postgres_program(self.folder, durable=False)  # processes die, the machine does not
            self.postgres = Child(replace(program, argv=[*program.argv, "-c", "autovacuum_naptime=10s"]),
                                  most_restarts=1 << 30)  # fmt: skip
            self.postgres.start()
            stack.callback(self.postgres.stop)
            self._databases()
            self.broker = self._make_broker().start()
            stack.callback(self.broker.stop)
            self.proxy = stack.enter_context(Proxy(self.broker.port))
            self.bridge_wire = self.proxy.wire()
            self.bridge = self._bridge("live", LIVE, self.uuid, self.bridge_wire.port, ack=True)
            self.bridge.start()
            stack.callback(lambda: self.bridge.stop())
            self.staging = self._bridge("staging", STAGING, self.staging_uuid, self.broker.port, ack=True)
            stack.callback(lambda: self.staging.stop())
            self.echo = Echo(self.broker.port, self.rng)
            self.echo.start()
            stack.callback(self.echo.stop)
            for number in range(self.options.fleets):
                fleet = self._fleet(stack, number)
                self.fleets.append(fleet)
                fleet.start()
                stack.callback(fleet.kill)
            stack.callback(self._kill_twins)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- PostgreSQL --------------------------------------------------------------------------------------------------

    def dsn(self, name: str = LIVE) -> str:
        """Return how an administrator reaches a database."""
        return conninfo.make_conninfo(self._admin, dbname=name, options=OPTIONS, connect_timeout=5)

    def admin(self, *statements: str) -> None:
        """Run statements, each on its own, outside any of our databases."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def _databases(self) -> None:
        for name, uuid in ((LIVE, self.uuid), (STAGING, self.staging_uuid)):
            self.admin(f"CREATE DATABASE {name}")
            migrate(conninfo.make_conninfo(self._admin, dbname=name), database_uuid=uuid)
        self.admin("CREATE ROLE chaos_ingest LOGIN IN ROLE facefleet_ingest")

    # -- the others --------------------------------------------------------------------------------------------------

    def _make_broker(self) -> Mosquitto | Amqtt:
        if self.options.broker == "amqtt":
            return Amqtt(self.folder)
        store = self.folder / "mosquitto"
        store.mkdir()
        lines = (
            "persistence true", f"persistence_location {store}/", "autosave_interval 10",
            shipped("max_inflight_messages", "max_queued_messages", "message_size_limit"),
        )  # fmt: skip
        return Mosquitto(self.folder, extra="\n".join(lines))

    def _bridge(self, name: str, database: str, uuid: UUID, port: int, *, ack: bool) -> Process:
        dsn = conninfo.make_conninfo(self._admin, dbname=database, user="chaos_ingest")
        config = self.folder / f"{name}.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "id": name, "dsn": dsn, "database": str(uuid), "ack": ack,
                    "mqtt": {"port": port, "protocol": self.options.protocol, "keep_alive_s": 5},
                }
            )
        )  # fmt: skip
        sabotaged = self.options.sabotage if name == "live" else sabotage.HONEST
        return Process(name, ["tests.chaos.bridge_process", sabotaged, str(config)], self.folder / f"bridge-{name}.log")

    def stage(self, ack: bool) -> None:
        """Start the staging bridge: one that acknowledges from another database, or one that never does."""
        self.staging = self._bridge("staging", STAGING, self.staging_uuid, self.broker.port, ack=ack)
        self.staging.start()

    def _fleet(self, stack: ExitStack, number: int) -> Fleet:
        small = number == self.options.fleets - 1 or self.options.all_small
        home = self.folder / f"boxes-{number}"
        home.mkdir()
        if number == self.options.fleets - 1:
            size = self.options.boxes * (self.options.small_bytes + (2 << 20))
            self.small_disk = home if stack.enter_context(small_disk(home, size)) else None
        names = [f"box-{number}-{i}" for i in range(self.options.boxes)]
        self.small += names if small else []
        boxes = tuple(
            BoxSpec(
                "chaos", name, str(home / name), self.options.small_bytes if small else MANY_BYTES,
                (self.options.small_bytes // 4) if small else 1 << 20,
            )
            for name in names
        )  # fmt: skip
        return self.fleet(f"fleet-{number}", boxes)

    def fleet(self, name: str, boxes: tuple[BoxSpec, ...]) -> Fleet:
        """Make a process of boxes with a wire of its own."""
        o = self.options
        wire = self.proxy.wire()
        rate_hz = 1.15 * o.events / o.seconds / (o.fleets * o.boxes)
        spec = FleetSpec(boxes, wire.port, o.protocol, str(self.uuid), str(self.ledger), rate_hz)
        return Fleet(name, spec, o.sabotage, self.folder, wire)

    def _kill_twins(self) -> None:
        for twin in self.twins:
            twin.kill()

    def tend(self) -> None:
        """Bring back what died although nobody killed it, and remember that it did."""
        for process in (self.bridge, self.staging, *self.fleets, *self.twins):
            if (code := process.died) is not None:
                if not (isinstance(process, Fleet) and code == NO_ROOM):
                    self.deaths.append(f"{process.name}: exit status {code}, see {process.log}")
                process.kill()
                process.start()


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[bool]:
    """Mount a small disk where we may and say so; without it the folder is bounded by the outboxes in it alone."""
    mounted = (
        os.geteuid() == 0
        and shutil.which("mount") is not None
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


@contextmanager
def run_folder(keep: Path | None) -> Iterator[Path]:
    """Yield a folder that PostgreSQL's own user may pass through; kept where asked for."""
    folder = Path(tempfile.mkdtemp(prefix="facefleet-chaos-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for file in [*folder.glob("*.log"), *folder.glob("*.ledger"), *folder.glob("*.txt")]:
                shutil.copy(file, keep / file.name)
        shutil.rmtree(folder, ignore_errors=True)
