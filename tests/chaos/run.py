"""One run: start a world, let things go wrong, let it come to rest, judge. Driven by __main__.py and the tests."""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.faults import Faults, script
from tests.chaos.judge import Excuse, Verdict, judge
from tests.chaos.witness import accepted_in, held_in, spans
from tests.chaos.world import Fleet, Options, World, run_folder

log = logging.getLogger(__name__)

TURN_S = 0.1
PATIENCE_S = 60.0  # without any progress, before what is still unacked counts as stuck
LEARN_S = 9.0  # boxes go on a little, so that acks tell them of a restored database
Progress = Callable[[str, float, int, int], None]  # phase, share done, accepted, kills


@dataclass(slots=True)
class Result:
    """What a run came to."""

    verdict: Verdict
    kills: Counter[str]
    faults: Counter[str]
    deaths: list[str]
    undelivered: dict[str, dict[str, Any]]  # boxes that still wait for acks after all the patience
    refused: Counter[str]
    duplicates: int  # events the bridge saw again, as far as its log survived the kills
    echoed: int
    retakes: int
    seconds: float
    plan: list[str] = field(default_factory=list)

    @property
    def green(self) -> bool:
        """Whether the promise held and nothing of ours died."""
        return self.verdict.green and not self.deaths and not self.undelivered


def run(options: Options, progress: Progress = lambda *_: None) -> Result:
    """Do all of it; everything that was started is gone when this returns or raises."""
    began_s = time.monotonic()
    progress("starting", 0.0, 0, 0)
    with (
        run_folder(options.keep) as folder,
        _log_file(folder / "faults.txt"),
        World(options, folder, random.Random(options.seed)) as world,
    ):
        faults = Faults(world, script(options))
        _havoc(world, faults, options, progress)
        undelivered = _rest(world, faults, progress)
        progress("judging", 1.0, _accepted(world), sum(world.kills.values()))
        files = [path for fleet in (*world.fleets, *world.twins) for path in fleet.outboxes()]
        accepted = spans(world.ledger) + [span for path in files for span in accepted_in(path)]
        held = [span for path in files for span in held_in(path)] if undelivered else []
        verdict = judge(world.dsn(), accepted, [*faults.excuses, Excuse("nobody: still in an outbox", held, [])])
        said = [said for fleet in (*world.fleets, *world.twins) for said in fleet.said.values()]
        return Result(
            verdict, world.kills, faults.done, world.deaths, undelivered,
            sum((Counter(one["refused"]) for one in said), Counter()),
            _duplicates(folder / "bridge-live.log"), world.echo.repeated, sum(one["retakes"] for one in said),
            time.monotonic() - began_s,
        )  # fmt: skip


def _havoc(world: World, faults: Faults, options: Options, progress: Progress) -> None:
    began_s = time.monotonic()
    looked_s, accepted = 0.0, 0
    while (now_s := time.monotonic() - began_s) < options.seconds:
        faults.turn()
        world.tend()
        world.echo.turn()
        if now_s - looked_s > 1.0:
            looked_s, accepted = now_s, _accepted(world)
            progress("havoc", now_s / options.seconds, accepted, sum(world.kills.values()))
            if accepted >= options.events and sum(world.kills.values()) >= options.kills and not faults.left:
                return
        time.sleep(TURN_S)


def _rest(world: World, faults: Faults, progress: Progress) -> dict[str, dict[str, Any]]:
    """Mend everything, wait until nothing is owed, stop the boxes; return what boxes say that still wait."""
    faults.finish()
    world.echo.active = False
    end_s = time.monotonic() + (LEARN_S if faults.done["restore"] else 0.5)
    kills = sum(world.kills.values())
    while time.monotonic() < end_s:
        world.postgres.check()
        world.tend()
        progress("mended", 1.0, _accepted(world), kills)
        time.sleep(0.5)
    left = _drain(world, world.fleets, progress)
    for fleet in world.fleets:
        fleet.stop()
    while twins := _different(world):  # what the younger of two kept to itself
        for twin in twins:
            twin.change(rate_hz=0.0, at_1970=False, clock_offset_s=0.0)
            twin.start()
        left |= _drain(world, twins, progress)
        for twin in twins:
            twin.stop()
    world.bridge.stop()
    return left


def _different(world: World) -> list[Fleet]:
    """Return twins that have not been emptied yet, no two of them of one box: those would be twins of each other."""
    by_box = {twin.spec.boxes[0].box: twin for twin in world.twins if twin.spec.rate_hz}
    return list(by_box.values())


def _drain(world: World, fleets: list[Fleet], progress: Progress) -> dict[str, dict[str, Any]]:
    for fleet in fleets:
        fleet.order(rate_hz=0.0)
    time.sleep(1.5)
    end_s, least = time.monotonic() + PATIENCE_S, 1 << 60
    while not all(fleet.drained for fleet in fleets) and time.monotonic() < end_s:
        world.tend()
        waiting = sum(said["pending"] for fleet in fleets for said in fleet.said.values())
        if waiting < least:
            end_s, least = time.monotonic() + PATIENCE_S, waiting
        progress(f"draining {waiting:,}", 1.0, _accepted(world), sum(world.kills.values()))
        time.sleep(0.3)
    silent = {fleet.name: {"pending": 0, "status": "silent"} for fleet in fleets if not fleet.said}
    return silent | {
        f"{fleet.name} {box}": said for fleet in fleets for box, said in fleet.said.items() if not said["idle"]
    }


_seen: dict[Path, tuple[int, int]] = {}


def _accepted(world: World) -> int:
    """Return how many events the ledger knows of so far; for the progress bar."""
    if not world.ledger.exists():
        return 0
    at, count = _seen.get(world.ledger, (0, 0))
    with world.ledger.open("rb") as file:
        file.seek(at)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    for line in whole.splitlines():
        _, first, last = line.split()
        if first != b"1":  # an earlier life's, or the first few of a new one
            count += int(last) - int(first) + 1
    _seen[world.ledger] = (at + len(whole), count)
    return count


def _duplicates(log_file: Path) -> int:
    """Sum up what each life of the bridge last said about duplicates."""
    total = life = 0
    for line in log_file.read_text(errors="replace").splitlines():
        if "duplicates " in line:
            count = int(line.split("duplicates ", 1)[1].split(",")[0].split()[0])
            total, life = (total + life, count) if count < life else (total, count)
    return total + life


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Keep our own log in a file while a run lasts."""
    handler = logging.FileHandler(path)
    ours = logging.getLogger("tests.chaos")
    level, ours.propagate = ours.level, False
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        handler.close()
        ours.setLevel(level)
        ours.propagate = True
