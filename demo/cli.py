"""`facefleet-demo`: the whole product on one machine, with nothing to set up."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from demo.errors import DemoError, DemoFailure
from edge.errors import EdgeError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
DESCRIPTION = """\
Start an embedded PostgreSQL and MQTT broker, the bridge and one camera box, and let the box watch a clip whose
visits are known. A live page shows it as it happens. In the end come: a table of the visits, read back from
PostgreSQL; the annotated video; a chart of people over time and attribute shares. Nothing leaves this machine.

  facefleet-demo                                   the built-in clip, about a minute
  facefleet-demo --source clip.mp4                 a video file, as fast as this machine can
  facefleet-demo --source photos/                  a folder of images
  facefleet-demo --source 0 --seconds 60           a USB camera, for a minute
  facefleet-demo --source rtsp://user:pass@host/1  an IP camera, until Ctrl-C
  facefleet-demo --keep                            plays on and leaves everything running until Ctrl-C
  facefleet-demo clip --out out/demo/clip.mp4      only renders the built-in clip
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 done, 1 something gave up, 2 it was asked for something impossible, 130 cut short by Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        if options.verb == "clip":
            return _clip(options.out or Path("out/demo/clip.mp4"))
        return _demo(options)
    except DemoError as error:
        print(f"facefleet-demo: {error}", file=sys.stderr)
        return FAILED if isinstance(error, DemoFailure) else USAGE
    except EdgeError as error:  # no encoder, say
        print(f"facefleet-demo: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED


def _demo(options: argparse.Namespace) -> int:
    from demo.run import Options, run

    asked = Options(
        source=options.source or None,
        seconds=options.seconds,
        keep=options.keep,
        out=options.out or Path("out/demo"),
        page_port=options.port,
        broker_port=options.broker_port,
        broker=options.broker,
    )
    return run(asked, Console())


def _clip(path: Path) -> int:
    from demo.clip import render, rendered_before

    print(rendered_before(path) or render(path))
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="facefleet-demo", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "verb", nargs="?", choices=("run", "clip"), default="run", help="run the demo (default), or clip"
    )
    parser.add_argument("--source", metavar="SOURCE", help="video file, folder, USB index, rtsp:// or http:// address")
    parser.add_argument("--seconds", type=_seconds, metavar="N", help="end after N seconds")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    parser.add_argument("--out", type=Path, metavar="PATH", help="folder of the results (out/demo); file of the clip")
    parser.add_argument("--port", type=_port, metavar="N", help="of the live page (8088, or a free one)")
    parser.add_argument("--broker", choices=("mosquitto", "amqtt"), help="Mosquitto where it is installed, else amqtt")
    parser.add_argument("--broker-port", type=_port, metavar="N", help="of the MQTT broker (a free one)")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, expected 1–65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
