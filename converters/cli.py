"""`facefleet-convert`: one verb per module that has an `add_parser`; a verb's function returns the exit code."""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module

from converters.errors import ConvertError
from converters.telemetry import forbid
from edge.errors import EdgeError

# Imported when the command runs, not when this module is: torch alone takes two seconds.
MODULES = (
    "converters.evaluation.evaluate",
    "converters.training.student",
    "converters.training.distill",
    "converters.training.detector",
    "converters.training.landmarks",
    "converters.training.embedder",
    "converters.bundles.detector",
    "converters.bundles.foreign_verbs",
)


def main(argv: list[str] | None = None) -> int:
    """Run `facefleet-convert`; 0 done, 1 refused with a message, 2 wrong usage, 130 interrupted."""
    forbid()
    args = parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except (ConvertError, EdgeError, OSError) as error:
        print(f"facefleet-convert: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("facefleet-convert: stopped; run the same command again to go on", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the parser with every verb."""
    top = argparse.ArgumentParser(prog="facefleet-convert", description="Checkpoints in, INT8 bundles out.")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in MODULES:
        import_module(name).add_parser(verbs)
    return top


if __name__ == "__main__":
    raise SystemExit(main())
