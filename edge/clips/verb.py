"""`facefleet-edge clips`: the parts of a recording in which one consenting person is seen, each as a video."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from edge.box.video import playable
from edge.capture.spec import SourceSpec
from edge.clips.cut import Clip, Found, Tell, cut, listed, look
from edge.clips.person import Person, person
from edge.clips.whereabouts import Whereabouts
from edge.config import load_box
from edge.errors import CameraError, ConfigError, EdgeError
from edge.identity import today_utc
from edge.replay import is_recording, recorded

LIST = "clips.json"


class ClipList(msgspec.Struct, frozen=True):
    """What is written beside the clips. They show a person: keep them no longer than `consent_until`."""

    recording: str
    config: str
    head: str
    label: str
    consent_until: date
    others: str
    clips: list[Clip]


def clips(args: argparse.Namespace) -> int:
    """Find, cut and list; see `facefleet-edge clips --help`.

    Raises:
        ConfigError: it cannot be done with this config, or not into that folder.
        EdgeError: the person is not seen; nothing was written. CameraError: the recording cannot be read, or in part.
    """
    config = load_box(args.config)
    whom = person(config, args.head, args.label, today_utc())
    if is_recording(args.video):
        raise ConfigError(f"{args.video} is a recording of detections; clips are cut out of a video or a folder")
    spec = recorded(config, args.video)
    if not args.dry_run:
        _require_room(args.out)
    with _progress() as tell:
        found = look(config, spec, whom, gap_s=args.gap, pad_s=args.pad, tell=tell)
        if not found.parts:
            raise EdgeError(_nobody(spec, whom, found.who_was_where))
        if args.dry_run:
            made = [listed(part, "") for part in found.parts]
        else:
            with _whole(args.out) as folder:
                made = cut(config, spec, found, folder, Path(spec.location).stem, blur=not args.show_others, tell=tell)
                there = ClipList(
                    recording=Path(spec.location).name,
                    config=config.digest,
                    head=whom.head.name,
                    label=whom.label,
                    consent_until=whom.until,
                    others="shown" if args.show_others else "blurred",
                    clips=made,
                )
                (folder / LIST).write_bytes(msgspec.json.format(msgspec.json.encode(there)) + b"\n")
    for line in _told(made, found, whom, args):
        print(line)
    if found.damage:
        raise CameraError(found.damage)
    return 0


def _told(made: Sequence[Clip], found: Found, whom: Person, args: argparse.Namespace) -> Iterator[str]:
    for i, clip in enumerate(made, 1):
        times = f"{_clock(clip.start_s)} – {_clock(clip.end_s)}  {clip.end_s - clip.start_s:6.1f} s"
        yield f"{i:3}  {times}  {clip.confidence:4.0%}  {clip.file}".rstrip()
    total_s = sum(clip.end_s - clip.start_s for clip in made)
    count = f"{len(made)} clip{'s' if len(made) > 1 else ''}, {total_s:.1f} s of {found.who_was_where.end_s:.1f} s"
    if args.dry_run:
        yield f"{count}; nothing was written"
        return
    others = "everybody is shown" if args.show_others else "the faces of others are blurred"
    yield f"{count}, in {args.out}; {others}; {whom.label!r} agrees until {whom.until}: delete them by then"
    if not playable():
        yield 'written as MPEG-4, which browsers do not play; for H.264: pip install "av>=14"'


def _nobody(spec: SourceSpec, whom: Person, seen: Whereabouts) -> str:
    asked = sum(life.vote.samples > 0 for life in seen.lives.values())
    return (
        f"{spec.shown}: head {whom.head.name} recognizes nobody as {whom.label!r}; it was asked about {asked} of "
        f"{len(seen.lives)} tracks in {seen.end_s:.1f} s (faces from {whom.head.min_face_px} px on); nothing was "
        "written"
    )


def _clock(at_s: float) -> str:
    minutes, seconds = divmod(round(at_s, 1), 60)
    return f"{int(minutes) // 60}:{int(minutes) % 60:02}:{seconds:04.1f}"


def _require_room(out: Path | None) -> None:
    if out is None:
        raise ConfigError("--out FOLDER is missing: where the clips go; --dry-run only lists them")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise ConfigError(f"--out {out} {what}, expected a new folder or an empty one: clips of two runs do not mix")


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that takes its name only when all is written; of anything less nothing is left.

    Nobody but its owner may look into it: it shows a person.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        yield aside
        os.replace(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextmanager
def _progress() -> Iterator[Tell]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {what: progress.add_task(what, total=None, start=False) for what in ("looking", "cutting")}

        def tell(what: str, done_s: float, all_s: float) -> None:
            if not progress.tasks[tasks[what]].started:
                progress.start_task(tasks[what])
            progress.update(tasks[what], completed=done_s, total=max(all_s, done_s) or None)

        yield tell
