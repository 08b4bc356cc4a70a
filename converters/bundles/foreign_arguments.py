"""The command-line arguments that every verb for foreign checkpoints shares, and the command a manifest keeps."""

import argparse
import shlex
from pathlib import Path

from edge.models.bundle import MANIFEST

UNKNOWN = "unknown; ask whoever made the checkpoint before you ship it (--licence)"


def add_common(parser: argparse.ArgumentParser, verb: str, max_drop: float) -> None:
    """Add what every foreign checkpoint is told."""
    parser.add_argument("--calibrate", type=Path, help="folder of pictures that fix the INT8 ranges")
    parser.add_argument("--color", choices=("RGB", "BGR", "GRAY"), help="what the network eats (default: by its kind)")
    parser.add_argument("--mean", type=float, nargs="+", help="subtracted from each channel, 0 to 255")
    parser.add_argument("--scale", type=float, nargs="+", help="each channel is divided by it then")
    parser.add_argument("--threshold", type=_share, default=0.5, help="score threshold (default %(default)s)")
    parser.add_argument("--licence", default=UNKNOWN, help="of the checkpoint, for the manifest")
    parser.add_argument(
        "--max-drop", type=float, default=max_drop, help="points INT8 may lose, or it falls back (default %(default)s)"
    )
    parser.add_argument(
        "--float",
        nargs="+",
        default=[],
        metavar="PART",
        dest="named",
        help="parts or nodes to keep in float in any case, named as in the printed table of where INT8 loses most",
    )
    parser.set_defaults(verb=verb)


def command_of(args: argparse.Namespace) -> str:
    """Return the command as it was given, its paths cut to their names: a bundle tells nothing of anybody's folders."""
    names = {path: name_of(path) for path in vars(args).values() if isinstance(path, Path)}

    def told(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return f"{option}{equals}{names.get(Path(value), value)}"

    return shlex.join(["facefleet-convert", *map(told, args.argv)])


def name_of(path: Path) -> str:
    """Keep the folder of a bundle's checkpoint: they all have one name."""
    return f"{path.parent.name}/{path.name}" if (path.parent / MANIFEST).is_file() else path.name


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}, expected 0 to 1")
    return value


def margin(text: str) -> float:
    """Read a crop margin; at -0.5 nothing would be left of the box."""
    value = float(text)
    if not -0.5 < value <= 5:
        raise argparse.ArgumentTypeError(f"{text}, expected a fraction of the face box, such as 0.2")
    return value
