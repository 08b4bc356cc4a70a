"""Our pipeline beside the usual loop, with the same models and with FP32 PyTorch: `python -m tests.bench.peers`.

Same clip, five faces, every frame detected on every side, and everything ends in PostgreSQL: ours through the outbox
and the bridge's store, theirs row by row. In turn, warm; whoever wins, the stages say why.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles

import psycopg
from rich.console import Console
from rich.table import Table

from bridge.migrate import migrate
from bridge.store import Incoming, Store
from edge.assembly import Models, load_models
from edge.bench import detectors, made_clips, shipped_config
from edge.box import facts
from edge.box.measurement import Rig, prepared
from edge.config import Camera, LoadedConfig, Source, load_box
from edge.publish.outbox import Outbox
from edge.track.sort import SortParams
from edge.wire import topic
from tests.bench.database import database
from tests.bench.plain_loop import STAGES, PlainLoop

OURS, PLAIN, TORCH = "ours", "plain loop,\nsame bundles", "plain loop,\nFP32 PyTorch"
AIMS = {PLAIN: 2.5, TORCH: 8.0}
SIZE = {"720p": (1280, 720)}
# Stages of ours, under the names of theirs.
SAME = {
    "decode": ("decode",),
    "detect": ("letterbox", "infer", "boxes"),
    "SORT": ("sort",),
    "classify": ("attributes", "students"),
    "database": ("events", "publish"),
}
HOUR_MS = 3_600_000
DEFAULT = Camera("any", Source(0)).detector


@dataclass(slots=True)
class Turns:
    """What one contender did: frames a second of each turn, and totals."""

    fps: list[float] = field(default_factory=list)
    frames: int = 0
    cpu_s: float = 0.0
    stage_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


class Ours:
    """The pipeline with its outbox; what it commits goes through the bridge's store and is acknowledged."""

    def __init__(self, config: LoadedConfig, models: Models, clip: Path, store: Store) -> None:
        self.events = 0
        self._store, self._box = store, (config.box.site, config.box.box)
        self._database = store.database_uuid()
        epoch_ms = time.time_ns() // 1_000_000 - HOUR_MS  # media time runs ahead; dates in the future are quarantined
        self._rig = Rig(config, models, clip, epoch_ms=epoch_ms, deliver=self._deliver)
        self.stage_s = dict.fromkeys(STAGES, 0.0)

    def run(self, seconds: float) -> int:
        """Work for so long; return how many frames that were."""
        done = self._rig.run(seconds=seconds)
        for name, parts in SAME.items():
            self.stage_s[name] += sum(done.stage_s[part] for part in parts)
        return done.frames

    def close(self) -> None:
        """Let go of the clip and the outbox."""
        self._rig.close()

    def _deliver(self, outbox: Outbox, now_s: float) -> None:
        outbox.use(self._database)
        while rows := outbox.pending():
            messages = [
                Incoming(*self._box, payload, topic(*self._box, "events"), datetime.now(UTC))
                for row in rows
                if (payload := outbox.payload(row, inline_vocabulary=True)) is not None
            ]
            written = self._store.write(messages)
            self.events += written.inserted
            if not outbox.cover(self._database, written.covered.get(self._box, ()), now_s):
                raise RuntimeError(f"the store took {len(messages)} messages and covers none: {written}")


def compare(
    config: LoadedConfig, detector: str, clip: Path, folder: Path, dsn: str, *, seconds: float, rounds: int
) -> dict[str, Turns]:
    """Let all contenders run in turn; the first turn of each is not counted.

    Args:
        config: the box; its heads are used, and the camera with this detector.
        detector: name of its bundle.
        clip: a video file.
        folder: for the outbox and the compiled models.
        dsn: of a migrated database, written to.
        seconds: of a turn.
        rounds: turns of each.
    """
    measured = prepared(config, detector, folder)
    sort = measured.box.cameras[0].sort
    params = SortParams(sort.max_age, sort.min_hits, sort.iou_threshold)
    models = load_models(measured, log=lambda _: None)
    with ExitStack() as closing:
        store = closing.enter_context(Store(dsn))
        found, heads = models.detectors[detector], dict(models.heads)
        contenders: dict[str, Ours | PlainLoop] = {
            OURS: Ours(measured, models, clip, store),
            PLAIN: PlainLoop(found, heads, params, clip, closing.enter_context(psycopg.connect(dsn))),
        }
        if find_spec("torch") is not None:
            from tests.bench.torch_models import in_torch

            if floats := in_torch({**heads, "": found}):
                contenders[TORCH] = PlainLoop(
                    floats.pop(""), floats, params, clip, closing.enter_context(psycopg.connect(dsn))
                )
        for contender in contenders.values():
            closing.callback(contender.close)
        return _in_turn(contenders, seconds, rounds)


def _in_turn(contenders: dict[str, Ours | PlainLoop], seconds: float, rounds: int) -> dict[str, Turns]:
    turns = {name: Turns() for name in contenders}
    for contender in contenders.values():
        contender.run(seconds)
    before = {name: dict(contender.stage_s) for name, contender in contenders.items()}
    for _ in range(rounds):
        for name, contender in contenders.items():
            cpu_s, started_s = time.process_time(), time.perf_counter()
            frames = contender.run(seconds)
            turns[name].fps.append(frames / (time.perf_counter() - started_s))
            turns[name].cpu_s += time.process_time() - cpu_s
            turns[name].frames += frames
    for name, contender in contenders.items():
        turns[name].stage_s = {stage: s - before[name][stage] for stage, s in contender.stage_s.items()}
    return turns


def table(detector: str, turns: dict[str, Turns]) -> Table:
    """Lay the contenders side by side."""
    caption = f"{facts.cpu_name()}; median (range) of {len(turns[OURS].fps)} turns; CPU without PostgreSQL's own"
    which = f"{detector}, what a camera gets by default" if detector == DEFAULT else detector
    table = Table(title=f"{which}: 720p, five faces, the same work", caption=caption, caption_justify="left")
    table.add_column("")
    for name in turns:
        table.add_column(name, justify="right")
    table.add_row(
        "frames a second", *(f"{median(t.fps):.1f} ({min(t.fps):.1f}–{max(t.fps):.1f})" for t in turns.values())
    )
    table.add_row("CPU ms a frame", *(f"{1000 * t.cpu_s / t.frames:.1f}" for t in turns.values()), end_section=True)
    for stage in STAGES:
        table.add_row(f"{stage}, ms", *(f"{1000 * t.stage_s[stage] / t.frames:.2f}" for t in turns.values()))
    return table


def remarks(turns: dict[str, Turns]) -> list[str]:
    """Say how many times as many frames as each peer we take, and what we aim at."""
    lines = []
    for name, aim in AIMS.items():
        label = name.replace("\n", " ")
        if name not in turns:
            lines.append(f"{label}: not run, torch or a checkpoint is missing")
            continue
        ratios = [a / b for a, b in zip(turns[OURS].fps, turns[name].fps, strict=True)]
        verdict = "met" if median(ratios) >= aim else "missed"
        cpu_s, ours_s = (turns[side].cpu_s / turns[side].frames for side in (name, OURS))
        lines.append(
            f"ours / {label}: {median(ratios):.2f}× (half of the turns {_middle_half(ratios)}, all "
            f"{min(ratios):.2f}–{max(ratios):.2f}), aim ≥ {aim}×: {verdict}; {cpu_s / ours_s:.2f}× by processor time, "
            f"{_without_database(turns[name]) / _without_database(turns[OURS]):.2f}× were no row ever written"
        )
    return lines


def _middle_half(values: Sequence[float]) -> str:
    low, _, high = quantiles(values, method="inclusive") if len(values) > 1 else (values[0], 0, values[0])
    return f"{low:.2f}–{high:.2f}"


def _without_database(turns: Turns) -> float:
    """Return the seconds a frame takes apart from publishing or writing it."""
    return sum(s for stage, s in turns.stage_s.items() if stage != "database") / turns.frames


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table per detector."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, help="a box's YAML instead of the shipped bundles")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each side (default: %(default)s)")
    parser.add_argument("--detector", action="append", help="only these bundles of the config")
    args = parser.parse_args(argv)

    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="facefleet-peers-") as name, database() as dsn:
        folder = Path(name)
        config = load_box(args.config or shipped_config(folder))
        clip = made_clips(config, folder, SIZE)["720p"]
        migrate(dsn)
        with Store(dsn) as store:
            store.maintain(datetime.now(UTC))
        for detector in args.detector or detectors(config):
            turns = compare(config, detector, clip, folder / detector, dsn, seconds=args.seconds, rounds=args.rounds)
            console.print(table(detector, turns))
            for line in remarks(turns):
                console.print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
