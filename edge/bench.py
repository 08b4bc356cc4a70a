"""`facefleet-edge bench`: what a box can do, measured on the box: milliseconds per stage, memory, start, overhead.

Needs no camera and no broker: the scene is made on the spot, and each figure comes from a fresh process that runs the
stages a camera runs (`edge.box.measurement`).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
from rich.console import Console
from rich.table import Table

import edge
from edge.assembly import find_bundle
from edge.box import facts
from edge.box.made_scene import CALM_SHARE, Scene, surest_face, write_clip
from edge.box.measurement import Job, Report, Round
from edge.config import LoadedConfig, load_box
from edge.errors import EdgeError

SIZES = {"1080p": (1920, 1080), "720p": (1280, 720)}
STAGES = {
    "decode": "decode",
    "mask": "mask",
    "gate": "gate",
    "letterbox": "letterbox",
    "infer": "infer",
    "boxes": "decode boxes",
    "sort": "SORT",
    "attributes": "attributes",
    "students": "· their inference",
    "events": "events",
    "publish": "publish",
}
AIM_RATIO, AIM_RSS_BYTES, AIM_START_S = 1.35, 260e6, 1.5  # at 1080p with detector 640 and four students
CHILD_S = 900.0

SHIPPED = f"""\
site: bench
box: bench
database: 00000000-0000-0000-0000-000000000000
cameras:
  - id: wide
    source: {{uri: scene.mp4}}
    detector: yolov10n-face-640
    masks: &mask [[[0, 0], [1, 0], [1, {CALM_SHARE}], [0, {CALM_SHARE}]]]
  - id: narrow
    source: {{uri: scene.mp4}}
    detector: yolov10n-face-320
    masks: *mask
heads:
  - name: age
  - name: gender
  - {{name: race, purpose: a made scene is measured}}
  - {{name: emotion, purpose: a made scene is measured}}
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One column of the table: a clip and a detector; `cold` is the start without compiled models in the cache."""

    clip: str
    detector: str
    cold: Report
    warm: Report


def bench(args: argparse.Namespace) -> int:
    """Measure this box and print the table; return 0, whatever the figures.

    Args:
        args: `config` or None, `clip` or None, `seconds` a round, `rounds`.

    Raises:
        EdgeError: config, bundle or clip are not what they should be.
    """
    console = Console(highlight=False)
    if args.rounds < 1 or args.seconds <= 0:
        raise EdgeError(f"--rounds {args.rounds} --seconds {args.seconds:g}: expected at least one round of some time")
    with tempfile.TemporaryDirectory(prefix="facefleet-bench-") as folder:
        path = args.config or shipped_config(Path(folder))
        config = load_box(path)
        with console.status("making the scene …") as status:
            clips = {args.clip.name: args.clip} if args.clip else made_clips(config, Path(folder))
            results = measure_all(config, clips, Path(folder), args.seconds, args.rounds, status.update)
    show(results, config, console)
    return 0


def shipped_config(folder: Path) -> Path:
    """Write the config that measures the shipped bundles: both detectors, four heads, a mask where no face goes."""
    path = folder / "bench.yaml"
    path.write_text(SHIPPED)
    return path


def made_clips(
    config: LoadedConfig, folder: Path, sizes: Mapping[str, tuple[int, int]] = SIZES, period_s: float = 10.0
) -> dict[str, Path]:
    """Write the made scene at every size, played once; return the files by name."""
    bundles = [find_bundle(config.models_dir, name, "detector") for name in detectors(config)]
    face = surest_face(bundles)
    clips = {name: folder / f"{name}.mp4" for name in sizes}
    for name, path in clips.items():
        write_clip(path, Scene(face, sizes[name], period_s=period_s), period_s)
    return clips


def detectors(config: LoadedConfig) -> tuple[str, ...]:
    """Return the detectors of a config, each once."""
    return tuple(dict.fromkeys(camera.detector for camera in config.box.cameras))


def measure_all(
    config: LoadedConfig,
    clips: Mapping[str, Path],
    folder: Path,
    seconds: float,
    rounds: int,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Measure every detector of a config on every clip, each in processes of its own."""
    results = []
    for detector in detectors(config):
        # One cache per detector: its first start compiles, every later one finds the models compiled.
        state = Path(tempfile.mkdtemp(prefix="state-", dir=folder))
        tell(f"{detector}: the first start …")
        cold = measured(config, detector, state)
        for name, clip in clips.items():
            tell(f"{detector} on {name}: {rounds} rounds of {seconds:g} s …")
            warm = measured(config, detector, state, clip, seconds, rounds)
            results.append(Measured(name, detector, cold, warm))
    return results


def measured(
    config: LoadedConfig,
    detector: str,
    state: Path,
    clip: Path | None = None,
    seconds: float = 10.0,
    rounds: int = 0,
) -> Report:
    """Run one job in a fresh process.

    Raises:
        EdgeError: it failed; the message is its own.
    """
    root = str(Path(edge.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    started_s = time.monotonic()
    job = Job(str(config.path), detector, str(state), started_s, str(clip or ""), seconds, rounds)
    command = [sys.executable, "-m", "edge.box.measurement", msgspec.json.encode(job).decode()]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CHILD_S, env={**os.environ, "PYTHONPATH": path})
    except subprocess.TimeoutExpired as error:
        raise EdgeError(
            f"{detector}: not measured within {CHILD_S:g} s; ask for fewer --rounds or --seconds"
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise EdgeError(f"{detector} could not be measured: {said[-1]}")
    return msgspec.json.decode(done.stdout, type=Report)


def show(results: Sequence[Measured], config: LoadedConfig, console: Console) -> None:
    """Print a table per detector, what its figures mean, and how they stand to what we aim at."""
    for detector in dict.fromkeys(result.detector for result in results):
        console.print(table([result for result in results if result.detector == detector]))
    heads = ", ".join(head.name for head in config.box.heads) or "none"
    console.print(
        f"{facts.cpu_name()}, {os.cpu_count()} cores; heads: {heads}; every frame searched; median (range) of "
        f"{len(results[0].warm.rounds)} rounds. CPU is processor time of all threads; inference is what the inferences "
        f"of these frames took, students' included; repeated: as many inferences with nothing between them, so that "
        f"they find weights and pixels in the caches, which those of a pipeline never do."
    )
    for line in remarks(results):
        console.print(line)


def table(results: Sequence[Measured]) -> Table:
    """Lay out one detector's figures, a column per clip."""
    first = results[0]
    table = Table(title=f"{first.detector} on {first.warm.runs_on[first.detector]}: ms a frame")
    table.add_column("stage")
    for result in results:
        table.add_column(result.clip, justify="right")
    for stage, label in STAGES.items():
        table.add_row(label, *(_stage_ms(result, stage) for result in results))
    table.add_row("all", *(_of(r, lambda x: 1000 * x.wall_s / x.frames, ".2f") for r in results), end_section=True)
    for label, figure, form in FIGURES:
        table.add_row(label, *(_of(r, figure, form, spread=True) for r in results))
    table.add_row(
        "RSS now, peak", *(f"{r.warm.rss_bytes / 1e6:.0f}, {r.warm.peak_rss_bytes / 1e6:.0f} MB" for r in results)
    )
    table.add_row("start, cold cache", *(f"{r.cold.start_s:.2f} s" for r in results))
    table.add_row("start, warm cache", *(f"{r.warm.start_s:.2f} s" for r in results))
    return table


FIGURES: tuple[tuple[str, Callable[[Round], float], str], ...] = (
    ("frames a second", lambda r: r.frames / r.wall_s, ".1f"),
    ("faces a frame", lambda r: r.faces / r.frames, ".1f"),
    ("CPU ms a frame", lambda r: 1000 * r.cpu_s / r.frames, ".1f"),
    ("· inference", lambda r: 1000 * r.inference_cpu_s / r.frames, ".1f"),
    ("· inference, repeated", lambda r: 1000 * r.repeated_cpu_s / r.frames, ".1f"),
    ("CPU whole / inference", lambda r: ratio(r), ".2f"),
    ("CPU whole / repeated", lambda r: r.cpu_s / max(r.repeated_cpu_s, 1e-9), ".2f"),
)


def ratio(measured: Round) -> float:
    """Return the processor time of the whole pipeline by that of its inferences; 1 would be no overhead at all."""
    return measured.cpu_s / max(measured.inference_cpu_s, 1e-9)


def remarks(results: Sequence[Measured]) -> list[str]:
    """Say how the figures stand to what we aim at, for the columns the aims are about."""
    lines = []
    for result in results:
        if result.clip == "1080p" and result.detector.endswith("640"):
            found = median(ratio(r) for r in result.warm.rounds)
            lines.append(_aim("1080p, 640: CPU whole / inference", found, AIM_RATIO, ".2f", ""))
            lines.append(_aim("RSS, peak", result.warm.peak_rss_bytes / 1e6, AIM_RSS_BYTES / 1e6, ".0f", " MB"))
            lines.append(_aim("start, warm cache", result.warm.start_s, AIM_START_S, ".2f", " s"))
    if any(r.faces < 4 * r.frames for result in results if result.clip in SIZES for r in result.warm.rounds):
        lines.append("note: fewer than four of the scene's five faces were found in some columns")
    return lines


def _aim(what: str, found: float, aim: float, form: str, unit: str) -> str:
    verdict = "met" if found <= aim else "[bold]missed[/bold]"
    return f"{what}: {found:{form}}{unit}, aim ≤ {aim:{form}}{unit}: {verdict}"


def _stage_ms(result: Measured, stage: str) -> str:
    return _of(result, lambda r: 1000 * r.stage_s[stage] / r.frames, ".3f")


def _of(result: Measured, figure: Callable[[Round], float], form: str, *, spread: bool = False) -> str:
    """Return the median over rounds, with the range where it is asked for."""
    values = [figure(r) for r in result.warm.rounds]
    middle = f"{median(values):{form}}"
    return f"{middle} ({min(values):{form}}–{max(values):{form}})" if spread else middle
