"""Every benchmark, one table after the other: `make bench`, or `python -m tests.bench --quick --skip cameras peers`."""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One benchmark, a module that prints; `quick` are its arguments when only the rows are wanted."""

    title: str
    module: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()


PARTS = {
    "sort": Part("SORT", "tests.bench.sort", quick=("--frames", "40", "--rounds", "2")),
    "bytes": Part("Bytes on the wire", "tests.bench.bytes"),
    "store": Part(
        "The bridge's store",
        "tests.bench.bridge_store",
        quick=("--events", "4000", "--boxes", "8", "--per-write", "20"),
    ),
    "fleet": Part(
        "A simulated fleet",
        "tests.bench.fleet",
        quick=("--boxes", "100", "--real", "10", "--seconds", "5", "--warm-s", "1"),
    ),
    "pipeline": Part("The pipeline, stage by stage", "tests.bench.pipeline", quick=("--seconds", "2", "--rounds", "1")),
    "peers": Part(
        "Beside the usual loop",
        "tests.bench.peers",
        quick=("--seconds", "2", "--rounds", "1", "--detector", "yolov10n-face-640"),
    ),
    "cameras": Part(
        "Cameras per box",
        "tests.bench.cameras",
        quick=("--seconds", "5", "--settle-s", "2", "--step", "12", "--most-s", "60"),
    ),
}


def run(name: str, *, quick: bool) -> int:
    """Run one part in a process of its own, so that none warms or fills the memory of another; return its status."""
    part = PARTS[name]
    print(f"\n== {part.title} ({name})", flush=True)
    started_s = time.monotonic()
    command = [sys.executable, "-m", part.module, *part.arguments, *(part.quick if quick else ())]
    status = subprocess.run(command, check=False).returncode
    print(f"-- {name}: {time.monotonic() - started_s:.0f} s{f', failed with {status}' if status else ''}", flush=True)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 if all of them ran. What the figures are decides nothing: machines differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: all rows, rough figures, about two minutes")
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="only these")
    args = parser.parse_args(argv)
    failed = [n for n in PARTS if n in args.only and n not in args.skip and run(n, quick=args.quick)]
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
