"""`facefleet-bridge ca …`: one function per action. Certificates go to standard output, words to standard error."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from bridge.ca import authority, files
from bridge.ca.authority import CLAIM_DAYS, DAYS, RENEW_DAYS, Authority, now
from bridge.ca.broker import CONF
from bridge.ca.names import parse_name
from bridge.ca.serve import serve
from bridge.errors import ConfigError

DEFAULT = Path("~/.config/facefleet/ca")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Register the actions of `ca`."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.add_argument(
            "--dir", type=Path, metavar="DIR", help=f"the authority's folder (default $FACEFLEET_CA or {DEFAULT})"
        )
        action.add_argument(
            "--reload", default="", metavar="COMMAND", help="makes the broker read its files again, such as "
            "'systemctl reload mosquitto'; init remembers it for all others",
        )  # fmt: skip
        action.set_defaults(verb=function)
        return action

    init = add("init", _init, "Make an authority and the broker's TLS config; the key never leaves the folder.")
    init.add_argument(
        "--host", action="append", required=True, metavar="NAME", help="the broker, as boxes reach it; may be repeated"
    )
    init.add_argument("--port", type=int, default=8883, help="of its TLS listener (default %(default)s)")
    init.add_argument(
        "--broker", type=Path, metavar="DIR", help="where Mosquitto reads its files (default: broker/ in DIR)"
    )

    enroll = add("enroll", _enroll, "Sign the request of a box, a bridge or a reader, and let it use its topics.")
    enroll.add_argument("name", metavar="NAME", help="SITE/BOX, bridge:ID or reader:NAME")
    how = enroll.add_mutually_exclusive_group()
    how.add_argument("--csr", metavar="FILE", default="-", help="the request (default -: standard input)")
    how.add_argument(
        "--out", type=Path, metavar="DIR", help="make the key here: writes NAME.key, NAME.pem and ca.pem into DIR"
    )
    enroll.add_argument("--days", type=float, default=DAYS, help="how long it lasts (default %(default)g)")

    claim = add(
        "claim", _claim,
        "Make a one-time claim for a box that is flashed from a card: with it the box asks for its certificate, at its "
        "first boot, and `ca serve` answers.",
    )  # fmt: skip
    claim.add_argument("name", metavar="SITE/BOX")
    claim.add_argument("--out", type=Path, metavar="FILE", help="where to put it (default: BOX.claim); keep it secret")
    claim.add_argument("--days", type=float, default=CLAIM_DAYS, help="how long it is good (default %(default)g)")

    answering = add("serve", _serve, "Answer boxes that ask through the broker, with a claim or for a renewal.")
    answering.add_argument("-v", "--verbose", action="store_true", help="say more")

    revoke = add("revoke", _revoke, "Shut a member out: its topics at once, its certificates at the next connection.")
    revoke.add_argument("name", metavar="NAME", help="SITE/BOX, bridge:ID or reader:NAME")

    renew = add("renew", _renew, "Issue new certificates for the same keys, for all that end soon unless named.")
    renew.add_argument("names", metavar="NAME", nargs="*", help="SITE/BOX, bridge:ID or reader:NAME")
    renew.add_argument("--within", type=float, default=RENEW_DAYS, metavar="DAYS", help="soon (default %(default)g)")
    renew.add_argument("--days", type=float, default=DAYS, help="how long they last (default %(default)g)")

    add("list", _list, "Print everybody who was enrolled, and until when.")


def _init(options: argparse.Namespace) -> int:
    there = _folder(options)
    broker = options.broker or there / "broker"
    made = Authority.make(there, options.host, options.port, broker, now(), options.reload)
    _say(f"{there}: keep ca.key secret and keep a copy; who has it can enroll anybody")
    _say(f"let Mosquitto include {made.broker_folder / CONF}, and start it")
    return 0


def _enroll(options: argparse.Namespace) -> int:
    name, there = parse_name(options.name), Authority(_folder(options))
    out: Path | None = options.out
    if out is None:
        sys.stdout.write(there.enroll(name, _request(options.csr), now(), options.days).decode())
    else:
        key, request = authority.request(name)
        chain = there.enroll(name, request, now(), options.days)
        out.mkdir(parents=True, exist_ok=True)
        files.write(out / f"{name.id}.key", key, mode=0o600)
        files.write(out / f"{name.id}.pem", chain)
        files.write(out / "ca.pem", there.certificate())
        _say(f"{out}: {name.id}.key, {name.id}.pem and ca.pem")
    _say(f"{name} may speak to the broker as {name.user!r}")
    return _reloaded(there, options)


def _claim(options: argparse.Namespace) -> int:
    name, there = parse_name(options.name), Authority(_folder(options))
    out: Path = options.out or Path(f"{name.id}.claim")
    if out.exists():
        raise ConfigError(f"{out} is there already; remove it, or name another with --out")
    made = there.claim(name, now(), options.days)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write(out, made, mode=0o600)
    _say(
        f'{out}: good once, within {options.days:g} days; "facefleet-edge flash CONFIG CARD --claim {out}" puts it on '
        'the card. "facefleet-bridge ca serve" answers the box'
    )
    return _reloaded(there, options)


def _serve(options: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.INFO, format="%(levelname)-7s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(_folder(options), stop, now, options.reload)
    return 0


def _revoke(options: argparse.Namespace) -> int:
    name, there = parse_name(options.name), Authority(_folder(options))
    there.revoke(name, now())
    _say(f"{name} is revoked")
    return _reloaded(there, options)


def _renew(options: argparse.Namespace) -> int:
    names, there = [parse_name(text) for text in options.names], Authority(_folder(options))
    files = there.renew(names, now(), within_days=options.within, days=options.days)
    for path in files:
        print(path)
    _say(f'{len(files)} renewed; bring each to its box: "facefleet-edge certificate accept FILE"')
    return _reloaded(there, options)


def _list(options: argparse.Namespace) -> int:
    at = now()
    for member in Authority(_folder(options)).members():
        left = (member.until - at).days
        state = "revoked" if member.revoked else f"{left} days" if left >= 0 else "expired"
        state += ", used" if member.used else ""
        print(f"{member.name!s:<40} {member.until:%Y-%m-%d}  {state}")
    return 0


def folder(given: Path | None) -> Path:
    """Return where the authority is: as given, else as the environment says, else where `init` makes one."""
    return Path(given or os.environ.get("FACEFLEET_CA") or DEFAULT).expanduser()


def _folder(options: argparse.Namespace) -> Path:
    return folder(options.dir)


def _request(path: str) -> bytes:
    try:
        return sys.stdin.buffer.read(65536) if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error


def _reloaded(there: Authority, options: argparse.Namespace) -> int:
    if todo := there.reload(options.reload):
        _say(todo)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)
