"""`facefleet-edge`: what an integrator and a service manager can ask of a box. One function per verb."""

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from edge.errors import ConfigError, DuplicateIdError, EdgeError
from edge.flash.arguments import add_verbs

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2
EXIT_DUPLICATE = 75  # EX_TEMPFAIL: the service manager may try again, until the other box is gone


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 when done, 1 when it failed, 2 when the command or the config is wrong, 75 when another box has our id.
    """
    args = _parser().parse_args(argv)
    try:
        verb: Callable[[argparse.Namespace], int] = args.verb
        return verb(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except EdgeError as error:
        print(f"facefleet-edge: {error}", file=sys.stderr)
        return EXIT_DUPLICATE if isinstance(error, DuplicateIdError) else EXIT_FAILURE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left: nothing to say, and nobody to say it to
        return EXIT_OK
    except OSError as error:  # a file that cannot be written, a disk that is full
        print(f"facefleet-edge: {error}", file=sys.stderr)
        return EXIT_FAILURE


def _run(args: argparse.Namespace) -> int:
    from edge.app import run_box
    from edge.box.logs import name_box, set_up
    from edge.config import load_box

    set_up(logging.DEBUG if args.verbose else logging.INFO)
    stop = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        config = load_box(args.config)
        name_box(config.box.site, config.box.box)
        return run_box(config, stop=stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check(args: argparse.Namespace) -> int:
    from edge.box.check import check

    print(check(args.config))
    return EXIT_OK


def _schema(_args: argparse.Namespace) -> int:
    import msgspec

    from edge.config import Box

    schema = msgspec.json.schema(Box)
    print(
        json.dumps(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "facefleet box"} | schema, indent=2
        )
    )
    return EXIT_OK


def _doctor(args: argparse.Namespace) -> int:
    from edge.box.doctor import examine
    from edge.config import load_box

    worst = EXIT_OK
    for finding in examine(load_box(args.config) if args.config else None):
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.thing:<28} {finding.text}", flush=True)
        worst = worst if finding.ok else EXIT_FAILURE
    return worst


def _replay(args: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from edge.config import load_box
    from edge.replay import as_json, is_recording, replay

    config = load_box(args.config)
    if args.record and is_recording(args.clip):
        raise ConfigError(f"{args.clip} is a recording of detections already; --record wants a video or a folder")
    with ExitStack() as closing:
        record = closing.enter_context(args.record.open("w")) if args.record else None
        for event in replay(config, args.clip, record=record):
            print(as_json(event))
    return EXIT_OK


def _clips(args: argparse.Namespace) -> int:
    from edge.clips.verb import clips

    return clips(args)


def _bench(args: argparse.Namespace) -> int:
    from edge.bench import bench

    return bench(args)


def _tail(args: argparse.Namespace) -> int:
    from edge.publish.tail import tail

    return tail(args)


def _certificate(args: argparse.Namespace) -> int:
    try:
        from edge.box import certificate
    except ImportError as error:
        raise EdgeError(f'{error.name} is not installed; pip install "facefleet[edge]"') from error

    if "config" in args:
        return _enroll(args)
    folder: Path = args.folder or certificate.FOLDER
    if "site" in args:
        print(certificate.request(folder, args.site, args.box).decode(), end="")
        return EXIT_OK
    try:
        chain = sys.stdin.buffer.read(1 << 16) if args.file == "-" else Path(args.file).read_bytes()
    except OSError as error:
        raise EdgeError(f"{args.file} cannot be read ({error.strerror})") from error
    print(certificate.accept(folder, chain))
    return EXIT_OK


def _enroll(args: argparse.Namespace) -> int:
    from edge.box.enrollment import enroll
    from edge.box.logs import set_up
    from edge.config import load_box

    set_up(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(enroll(load_box(args.config), stop=stop), flush=True)
    return EXIT_OK


def _install(args: argparse.Namespace) -> int:
    from edge.install.system import install

    install(args.root.resolve(), args.wheels, "bridge" if args.bridge else "edge", print)
    return EXIT_OK


def _uninstall(args: argparse.Namespace) -> int:
    from edge.install.system import uninstall

    uninstall(args.root.resolve(), print, purge=args.purge)
    return EXIT_OK


def _reset(args: argparse.Namespace) -> int:
    from edge.install.system import reset

    reset(args.root.resolve(), print, discard_events=args.discard_events)
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="facefleet-edge",
        description="The camera box: quantized models find and follow faces; compact events leave over MQTT.",
        epilog="Start with: facefleet-edge doctor; then: facefleet-edge check config/demo.yaml",
    )
    parser.add_argument("--version", action="version", version=version("facefleet"))
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def add(name: str, verb: Callable[[argparse.Namespace], int], text: str, example: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, epilog=f"Example: facefleet-edge {name} {example}")
        sub.set_defaults(verb=verb)
        return sub

    run = add("run", _run, "Run the box until it is told to stop, or its recordings end.", "config/demo.yaml")
    run.add_argument("config", type=Path, help="the box's YAML")
    run.add_argument("-v", "--verbose", action="store_true", help="log what each part does")

    check = add(
        "check", _check, "Check a config, its credentials and its bundles; list every mistake.", "config/demo.yaml"
    )
    check.add_argument("config", type=Path, help="the box's YAML")

    add("schema", _schema, "Print the JSON Schema of the config, for editors.", "> facefleet.schema.json")

    doctor = add("doctor", _doctor, "Look at devices, versions, models, cameras, broker and disk.", "config/demo.yaml")
    doctor.add_argument("config", type=Path, nargs="?", help="the box's YAML; without it only the machine is examined")

    replay = add(
        "replay",
        _replay,
        "Print the events of a clip, a folder of images, or recorded detections, in media time. "
        "Equal input gives equal output, to compare two versions line by line.",
        "config/demo.yaml clip.mp4 --record clip.jsonl",
    )
    replay.add_argument("config", type=Path, help="the box's YAML; its first camera's settings are used")
    replay.add_argument("clip", type=Path, nargs="?", help="video, folder, .jsonl recording or MOT det.txt")
    replay.add_argument("--record", type=Path, metavar="FILE", help="keep the detections, to replay without pictures")

    clips = add(
        "clips",
        _clips,
        "Cut the parts out of a video in which one person is seen, who has agreed to it: the config has a head that "
        "recognizes that person, with the consent beside it. Everybody else's face is blurred. Train such a head with "
        "facefleet-convert train-student --pictures.",
        "box.yaml party.mp4 --head me --out clips/ --dry-run",
    )
    clips.add_argument("config", type=Path, help="the box's YAML; its first camera's settings are used, as by replay")
    clips.add_argument("video", type=Path, help="video, or folder of images")
    clips.add_argument("--head", metavar="NAME", help="the head that knows the person (default: the only one)")
    clips.add_argument("--label", help="the person, where the head knows several (default: the only one)")
    clips.add_argument("--out", type=Path, metavar="FOLDER", help="new folder of the videos and their clips.json")
    clips.add_argument("--gap", type=_seconds, default=2.0, metavar="S", help="join what is closer (default 2 s)")
    clips.add_argument("--pad", type=_seconds, default=1.0, metavar="S", help="add on either side (default 1 s)")
    clips.add_argument("--show-others", action="store_true", help="do not blur the faces of others")
    clips.add_argument("--dry-run", action="store_true", help="only list the stretches; write nothing")

    bench = add("bench", _bench, "Measure this box: milliseconds per stage, frames a second, memory.", "--seconds 10")
    bench.add_argument("config", type=Path, nargs="?", help="the box's YAML; default: the shipped models, a made scene")
    bench.add_argument("--clip", type=Path, help="a video to measure on instead")
    bench.add_argument("--seconds", type=float, default=10, help="per round (default 10)")
    bench.add_argument("--rounds", type=int, default=3, help="rounds; median and spread are printed (default 3)")

    tail = add("tail", _tail, "Print what goes over the wire as readable JSON, one line a message.", "'demo/+/events'")
    tail.add_argument("topic", nargs="?", default="#", help="below facefleet/1/, default everything: #")
    tail.add_argument("--host", default="127.0.0.1", help="broker (default 127.0.0.1)")
    tail.add_argument("--port", type=int, default=1883, help="its port (default 1883)")
    tail.add_argument("--config", type=Path, help="take broker, user and password from this box's YAML")

    certificate = add(
        "certificate",
        _certificate,
        "Make this box's key and print a request for it; take the certificate that comes back. The key stays here.",
        "request munich lobby-1 > lobby-1.csr",
    )
    actions = certificate.add_subparsers(required=True, metavar="ACTION")
    request = actions.add_parser("request", help="print a signing request, for `facefleet-bridge ca enroll`")
    request.add_argument("site")
    request.add_argument("box")
    accept = actions.add_parser("accept", help="take what `facefleet-bridge ca enroll` or `renew` made")
    accept.add_argument("file", help="a file, or - for standard input")
    enroll = actions.add_parser("enroll", help="at a first boot: turn the claim that came with the card into both")
    enroll.add_argument("config", type=Path, help="the box's YAML, for its broker")
    for action in (request, accept):
        action.add_argument("--folder", type=Path, help="of key and certificate (default /var/lib/facefleet/tls)")

    install = add(
        "install",
        _install,
        "Put program, units and user into a system, live or on a mounted card, from a folder of wheels, without a "
        "network. A second time brings it up to date.",
        "wheels/ --root /mnt/card",
    )
    install.add_argument("wheels", type=Path, help="made with: pip wheel -w wheels '.[edge]'")
    install.add_argument("--bridge", action="store_true", help="the centre's program instead of a box's")
    uninstall = add("uninstall", _uninstall, "Take all of it away again.", "--root /mnt/card")
    uninstall.add_argument("--purge", action="store_true", help="what was flashed, and events not delivered, too")
    reset = add(
        "reset",
        _reset,
        "Let a box forget who it is: config, secrets, keys, certificate, events. Its program stays. For when it is "
        "renamed, moved to another site, or handed on.",
        "--root /mnt/card",
    )
    reset.add_argument("--discard-events", action="store_true", help="also where the centre has not acknowledged all")
    for sub in (install, uninstall, reset):
        sub.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="of the system (default /)")

    add_verbs(add)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0 on")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
