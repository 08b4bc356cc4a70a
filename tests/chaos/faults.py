"""What goes wrong, and when: a list drawn from a seed, and how each of them is done to a world.

A fault that lasts undoes itself later; what cannot be done at the moment (the database is down already) is put off by
a second. Whatever a fault destroys for good is written down as an excuse before it is destroyed.
"""

import heapq
import logging
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psycopg

from tests.chaos.judge import Excuse, spans_in
from tests.chaos.proxy import Mode, Wire
from tests.chaos.witness import held_in
from tests.chaos.world import LIVE, OLDER, Fleet, Options, World

log = logging.getLogger(__name__)

DAY_S = 86_400.0
KILLS = {"kill box": 50, "kill bridge": 20, "kill broker": 15, "kill PostgreSQL": 15}
OTHERS = {
    "cut link": 10, "half-open link": 8, "slow link": 6, "clock step": 6, "disk full": 8, "read-only database": 6,
    "dropped sessions": 4, "echo": 8, "twin": 3, "cloned folder": 3, "wiped folder": 4, "staging bridge": 5,
}  # fmt: skip
QUIET_SHARE = 0.04  # of the run, at its beginning and end


@dataclass(frozen=True, order=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at_s: float
    what: str
    seed: int = 0  # decides the rest: whom, how long


def drawn(options: Options) -> list[Fault]:
    """Return the faults of a run; the same options give the same list."""
    rng = random.Random(options.seed)
    begin_s, end_s = QUIET_SHARE * options.seconds, (1 - 2 * QUIET_SHARE) * options.seconds
    kills = _spread(rng, KILLS, options.kills, begin_s, end_s)
    others = _spread(rng, OTHERS, max(len(OTHERS), options.kills), begin_s, end_s)
    found = kills + others
    restores = max(1, round(options.seconds / 400.0))
    for i in range(restores):  # in the first half: all that came since the backup has to come once more
        part_s = (end_s - begin_s) / 2.0 / restores
        found.append(Fault(begin_s + (i + rng.uniform(0.2, 0.5)) * part_s, "backup"))
        found.append(Fault(begin_s + (i + rng.uniform(0.6, 0.9)) * part_s, "restore"))
    return sorted(found)


def script(options: Options) -> list[Fault]:
    """Return the faults of a run."""
    match options.script:
        case "stalled bridge":  # the broker has what the bridge has not, and dies
            return [Fault(at, what) for t in (3.0, 9.0) for at, what in ((t, "stall bridge"), (t + 2, "kill broker"))]
        case "read-only":  # the bridge has what the database has not, and dies
            return [
                Fault(at, what) for t in (3.0, 8.0) for at, what in ((t, "read-only database"), (t + 1, "kill bridge"))
            ]
        case "unheard restore":  # the streams the older database does not know have ended before it is back
            times = ((2.0, "stop boxes"), (3.0, "backup"), (9.0, "stop boxes"), (10.0, "restore"))
            return [Fault(at_s, what) for at_s, what in times]
    return drawn(options)


def _spread(rng: random.Random, kinds: dict[str, int], count: int, begin_s: float, end_s: float) -> list[Fault]:
    step_s = (end_s - begin_s) / max(1, count)
    every = list(kinds) if count >= len(kinds) else []  # each kind at least once
    names = every + rng.choices(list(kinds), list(kinds.values()), k=count - len(every))
    rng.shuffle(names)
    return [Fault(begin_s + (i + rng.random()) * step_s, name, rng.getrandbits(32)) for i, name in enumerate(names)]


class NotNow(Exception):
    """Something that this fault needs is down at the moment."""


class Faults:
    """Does faults to a world, one after the other, from the supervisor's thread."""

    def __init__(self, world: World, plan: list[Fault]) -> None:
        """Take a plan; its times count from the first `turn`."""
        self.done: Counter[str] = Counter()
        self.excuses: list[Excuse] = []
        self._world = world
        self._began_s: float | None = None
        self._later: list[tuple[float, int, str, Callable[[], None]]] = []
        self._number = 0
        self._rng = random.Random()
        self._have_backup = False
        self._drawn = world.options.script == "drawn"
        self._read_from: int | None = None  # of the bridge's log, since the database was made read-only
        for fault in plan:
            self._at(fault.at_s, fault.what, lambda fault=fault: self._do(fault))  # type: ignore[misc]

    @property
    def left(self) -> int:
        """How many things are still to be done or undone."""
        return len(self._later)

    def turn(self) -> None:
        """Do what is due."""
        now_s = time.monotonic()
        self._began_s = self._began_s if self._began_s is not None else now_s
        while self._later and self._later[0][0] <= time.monotonic() - self._began_s:
            _, _, what, act = heapq.heappop(self._later)
            try:
                act()
                log.info("%7.1f s  %s", now_s - self._began_s, what)
            except (NotNow, psycopg.OperationalError) as error:
                log.info("%7.1f s  put off: %s: %s", now_s - self._began_s, what, str(error).split("\n")[0])
                self._in(1.0 if self._drawn else 0.2, what, act)

    def finish(self) -> None:
        """Undo at once whatever still lasts, and forget faults that were not done."""
        undo = [act for _, _, what, act in sorted(self._later, key=lambda entry: entry[:2]) if what.startswith("end ")]
        self._later.clear()
        for act in undo:
            for _ in range(20):
                try:
                    act()
                    break
                except (NotNow, psycopg.OperationalError):
                    self._world.postgres.check()
                    time.sleep(0.5)
            else:
                raise RuntimeError("a fault could not be undone")

    # -- how ---------------------------------------------------------------------------------------------------------

    def _do(self, fault: Fault) -> None:
        self._rng = random.Random(fault.seed)
        acts: dict[str, Callable[[], None]] = {
            "kill box": self._kill_box,
            "kill bridge": self._kill_bridge,
            "kill broker": self._kill_broker,
            "kill PostgreSQL": self._kill_postgres,
            "cut link": lambda: self._link("cut"),
            "half-open link": lambda: self._link("half-open"),
            "slow link": lambda: self._link("slow"),
            "stall bridge": self._stall_bridge,
            "clock step": self._clock_step,
            "disk full": self._disk_full,
            "read-only database": self._read_only,
            "dropped sessions": self._drop_sessions,
            "echo": self._echo,
            "twin": lambda: self._twin(cloned=False),
            "cloned folder": lambda: self._twin(cloned=True),
            "wiped folder": self._wipe,
            "staging bridge": self._stage,
            "stop boxes": self._stop_boxes,
            "backup": self._backup,
            "restore": self._restore,
        }
        acts[fault.what]()
        self.done[fault.what] += 1

    def _at(self, at_s: float, what: str, act: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._later, (at_s, self._number, what, act))

    def _in(self, wait_s: float, what: str, act: Callable[[], None]) -> None:
        assert self._began_s is not None
        self._at(time.monotonic() - self._began_s + wait_s, what, act)

    def _brief_s(self) -> float:
        return self._rng.choice((0.1, 0.5, 1.0, 2.5))

    def _fleet(self) -> Fleet:
        fleet = self._rng.choice(self._world.fleets)
        if not fleet.running:
            raise NotNow(f"{fleet.name} is down")
        return fleet

    # -- kills -------------------------------------------------------------------------------------------------------

    def _kill_box(self) -> None:
        fleet = self._fleet()
        fleet.kill()
        self._world.kills["box"] += 1
        unset = self._rng.random() < 0.15
        fleet.change(at_1970=unset)
        if unset:
            self.done["boot at 1970"] += 1
        self._in(self._brief_s(), f"end kill of {fleet.name}", fleet.start)

    def _kill_bridge(self) -> None:
        bridge = self._world.bridge
        if not bridge.running:
            raise NotNow("the bridge is down")
        if not self._drawn:
            self._expect_waiting(bridge.log)
        bridge.kill()
        self._world.kills["bridge"] += 1
        self._in(self._brief_s(), "end kill of the bridge", bridge.start)

    def _kill_broker(self) -> None:
        if "end kill of the broker" in self._lasting():
            raise NotNow("the broker is down")
        if not self._drawn and self._world.bridge_wire.mode == "open":
            raise NotNow("the bridge hears everything")
        self._world.broker.kill()
        self._world.kills["broker"] += 1
        self._in(self._brief_s(), "end kill of the broker", lambda: void(self._world.broker.start()))

    def _kill_postgres(self) -> None:
        postgres = self._world.postgres
        if not postgres.running:
            raise NotNow("PostgreSQL is down")
        os.kill(postgres.pid, signal.SIGKILL)
        self._world.kills["PostgreSQL"] += 1
        self._in(self._brief_s(), "end kill of PostgreSQL", lambda: void(postgres.check()))

    def _lasting(self) -> set[str]:
        return {what for _, _, what, _ in self._later}

    # -- links -------------------------------------------------------------------------------------------------------

    def _link(self, mode: Mode) -> None:
        wires = [self._world.bridge_wire, *(fleet.wire for fleet in self._world.fleets)]
        self._turn_wire(self._rng.choice(wires), mode, self._rng.choice((0.1, 2.0, 5.0, 9.0)))

    def _turn_wire(self, wire: Wire, mode: Mode, for_s: float) -> None:
        if wire.mode != "open":
            raise NotNow(f"the wire is {wire.mode}")
        self._world.proxy.turn(wire, mode)
        self._in(for_s, f"end {mode} link", lambda: self._world.proxy.turn(wire, "open"))

    def _echo(self) -> None:
        self._world.echo.active = True
        self._in(self._rng.uniform(2.0, 8.0), "end echo", lambda: setattr(self._world.echo, "active", False))

    # -- boxes -------------------------------------------------------------------------------------------------------

    def _clock_step(self) -> None:
        fleet = self._fleet()
        step_s = self._rng.choice((DAY_S, -DAY_S))
        fleet.order(clock_offset_s=step_s)
        fleet.change(clock_offset_s=step_s)

        def back() -> None:
            fleet.order(clock_offset_s=0.0)
            fleet.change(clock_offset_s=0.0)

        self._in(self._rng.uniform(1.0, 6.0), f"end clock step of {fleet.name}", back)

    def _disk_full(self) -> None:
        folder = self._world.small_disk
        if folder is None:
            return
        filler = folder / "filler"
        if filler.exists():
            raise NotNow("the disk is full")
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 12))
            except OSError:
                pass
        self._in(self._rng.uniform(2.0, 8.0), "end disk full", lambda: filler.unlink(missing_ok=True))

    def _stop_boxes(self) -> None:
        """Stop all boxes in good order for some seconds, nothing left to send."""
        for fleet in self._world.fleets:
            fleet.stop()
            self._in(3.0, f"end stop of {fleet.name}", fleet.start)

    def _twin(self, *, cloned: bool) -> None:
        """Start a second box under the id of another, on a fresh folder or on a copy of the other's."""
        world = self._world
        fleet = self._rng.choice(world.fleets[:-1])
        if not fleet.running or any(twin.running for twin in world.twins):
            raise NotNow("another twin lives, or nobody to be the twin of")
        box = self._rng.choice(fleet.spec.boxes)
        folder = world.folder / f"twin-{len(world.twins)}"
        folder.mkdir()
        if cloned:
            fleet.stop()
            for file in Path(box.folder).iterdir():
                shutil.copy(file, folder / file.name)
            fleet.start()
        twin = world.fleet(folder.name, (msgspec.structs.replace(box, folder=str(folder)),))
        world.twins.append(twin)
        twin.start()
        self._in(self._rng.uniform(8.0, 20.0), f"end {twin.name}", twin.stop)

    def _wipe(self) -> None:
        """Take everything from a box; what the database does not hold by then is gone, by our own hand."""
        world, fleet = self._world, self._rng.choice(self._world.fleets)
        if not fleet.running:
            raise NotNow(f"{fleet.name} is down")
        before = spans_in(world.dsn())  # raises while the database is down, before anything is destroyed
        fleet.stop()
        box = self._rng.choice(fleet.spec.boxes)
        self.excuses.append(Excuse("state folder wiped", held_in(Path(box.folder) / "outbox.db"), before))
        shutil.rmtree(box.folder)
        fleet.start()

    # -- the centre --------------------------------------------------------------------------------------------------

    def _expect_waiting(self, bridge_log: Path) -> None:
        """Let a story go on only when the bridge has in memory what the database has refused."""
        if self._read_from is None:
            raise NotNow("the database is not read-only")
        with bridge_log.open("rb") as said:
            said.seek(self._read_from)
            if not re.search(rb"; [1-9][0-9]* batches wait", said.read()):
                raise NotNow("nothing waits in the bridge")
        self._read_from = None

    def _expect_flow(self) -> None:
        """Let a story begin only when every box sends and is acknowledged."""
        said = [said for fleet in self._world.fleets for said in fleet.said.values()]
        if len(said) < sum(len(fleet.spec.boxes) for fleet in self._world.fleets) or any(
            one["status"] != "connected" for one in said
        ):
            raise NotNow("not every box sends")

    def _stall_bridge(self) -> None:
        self._expect_flow()
        self._turn_wire(self._world.bridge_wire, "half-open", 2.5)

    def _read_only(self) -> None:
        if not self._drawn:
            self._expect_flow()
            self._read_from = self._world.bridge.log.stat().st_size
        self._world.admin("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        self._in(
            self._rng.uniform(1.0, 6.0) if self._drawn else 3.0,
            "end read-only database",
            lambda: self._world.admin("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"),
        )

    def _drop_sessions(self) -> None:
        self._world.admin(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'facefleet-bridge'"
        )

    def _stage(self) -> None:
        if self._world.staging.running:
            raise NotNow("the staging bridge runs")
        self._world.stage(ack=self._rng.random() < 0.5)
        self._in(self._rng.uniform(6.0, 12.0), "end staging bridge", self._world.staging.kill)

    def _backup(self) -> None:
        self._world.admin(f"DROP DATABASE IF EXISTS {OLDER}")
        self._alone(LIVE, f"CREATE DATABASE {OLDER} TEMPLATE {LIVE} STRATEGY file_copy")
        self._have_backup = True

    def _restore(self) -> None:
        """Put the older database in the place of the live one.

        What came in between must come again, unless its box may not hold it any more: a wiped or a small one.
        """
        if not self._have_backup:
            return
        world = self._world
        older = spans_in(world.dsn(OLDER))
        world.admin(f"ALTER DATABASE {LIVE} CONNECTION LIMIT 0", _TERMINATE.format(name=LIVE))  # we still get in
        try:
            newer = spans_in(world.dsn())
            excuse = Excuse("restored, no longer held", newer, older + self._held())
            with psycopg.connect(world.dsn("postgres"), autocommit=True) as connection:
                connection.execute(_TERMINATE.format(name=LIVE).encode())
                connection.execute(_TERMINATE.format(name=OLDER).encode())
                with connection.transaction():
                    connection.execute(f"ALTER DATABASE {LIVE} RENAME TO newer".encode())
                    connection.execute(f"ALTER DATABASE {OLDER} RENAME TO {LIVE}".encode())
                connection.execute(b"DROP DATABASE newer WITH (FORCE)")
        finally:
            world.admin(f"ALTER DATABASE {LIVE} CONNECTION LIMIT -1")
        self.excuses.append(excuse)
        self._have_backup = False

    def _held(self) -> list[tuple[int, int, int]]:
        """Return what the large outboxes hold, read while their processes stand still."""
        held = []
        for fleet in self._world.fleets:
            if fleet.running:
                fleet.send(signal.SIGSTOP)
            for path, box in zip(fleet.outboxes(), fleet.spec.boxes, strict=True):
                if box.box not in self._world.small:
                    held += held_in(path)
            if fleet.running:
                fleet.send(signal.SIGCONT)
        return held

    def _alone(self, name: str, statement: str) -> None:
        """Run a statement that nobody may be connected to a database for."""
        self._world.admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            self._world.admin(_TERMINATE.format(name=name), statement)
        finally:
            self._world.admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


_TERMINATE = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"


def void(_: object) -> None:
    """Drop a result."""
