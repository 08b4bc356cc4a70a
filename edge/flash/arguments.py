"""The command-line arguments of flashing; light, because every call of `facefleet-edge` passes through here."""

import argparse
from collections.abc import Callable
from pathlib import Path

ROOT = Path("/var/lib/facefleet")
PROGRAMS = Path("/opt/facefleet")

Verb = Callable[[argparse.Namespace], int]
Add = Callable[[str, Verb, str, str], argparse.ArgumentParser]


def add_verbs(add: Add) -> None:
    """Register `bundle`, `keys`, `flash` and `apply`."""
    _bundle(add)
    _keys(add)
    _flash(add)
    _apply(add)


def _bundle(add: Add) -> None:
    bundle = add(
        "bundle",
        _late("bundle"),
        "Build, show or verify a bundle: one signed file that brings a box its config, or boxes their program.",
        "build lobby.yaml",
    )
    bundle.add_argument("action", choices=("build", "show", "verify"))
    bundle.add_argument("file", type=Path, help="build: the box's YAML, or wheels; show, verify: the bundle")
    bundle.add_argument("-o", "--out", type=Path, help="where to write it (default: beside the YAML, .ffbundle)")
    bundle.add_argument("--counter", type=int, help="default: seconds of the clock, and more than this key's last")
    _trust(bundle)
    bundle.add_argument("--for", dest="addressee", default="", metavar="SITE/BOX", help="wheels for one box only")
    _software(bundle)
    _key(bundle)


def _keys(add: Add) -> None:
    keys = add("keys", _late("keys"), "Make a signing key, or show what a key is called.", "new")
    keys.add_argument("action", choices=("new", "show"))
    keys.add_argument("file", type=Path, nargs="?", help="default: $FACEFLEET_KEY or ~/.config/facefleet/signing.key")


def _flash(add: Add) -> None:
    flash = add(
        "flash",
        _late("flash"),
        "Bring a config and its models to a box: onto the mounted root of a card, or over SSH to a running box, which "
        "tries it and goes back by itself when it is no good. "
        "Exit codes: 0 done, 1 refused or failed, 2 the config is wrong, 3 rolled back.",
        "config/lobby.yaml root@lobby-1",
    )
    flash.add_argument("config", type=Path, help="the box's YAML; with --software a wheel or a folder of them")
    flash.add_argument("target", help="a mounted card's root folder, or user@host")
    flash.add_argument("-y", "--yes", action="store_true", help="do not ask")
    flash.add_argument("--dry-run", action="store_true", help="say what would change, and stop")
    flash.add_argument(
        "--wait", type=float, nargs="?", const=600.0, metavar="SECONDS", help="wait for the box's first birth over MQTT"
    )
    flash.add_argument("--ssh", default="", metavar="COMMAND", help='such as "ssh -p 2222 -i key"')
    flash.add_argument("--remote", default="facefleet-edge", metavar="COMMAND", help='such as "sudo facefleet-edge"')
    _trust(flash)
    _software(flash)
    _certificate(flash)
    _key(flash)
    _root(flash)
    _terms(flash)


def _apply(add: Add) -> None:
    apply = add(
        "apply",
        _late("apply"),
        "On the box: take a bundle, try it, keep it or go back. Exit codes as for flash.",
        "lobby-1.ffbundle",
    )
    what = apply.add_mutually_exclusive_group(required=True)
    what.add_argument("file", type=Path, nargs="?", help="the bundle")
    what.add_argument("--stdin", action="store_true", help="a parcel from `flash` over SSH")
    what.add_argument("--spool", action="store_true", help="all bundles in the spool folder, which is empty afterwards")
    what.add_argument("--recover", action="store_true", help="finish what a power cut left; before the service starts")
    what.add_argument("--status", action="store_true", help="print as JSON what runs here and how it fares")
    apply.add_argument("--software", action="store_true", help="what comes with --stdin is a program")
    apply.add_argument("--json", action="store_true", help="one line of JSON a step")
    apply.add_argument("--unit", default="facefleet-edge.service", help="what is restarted (default %(default)s)")
    _root(apply)
    _terms(apply)


def _certificate(parser: argparse.ArgumentParser) -> None:
    """Four ways to bring a box its certificate; the config says `mqtt: {tls: {own: true}}`."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--claim", type=Path, metavar="FILE", help="card: put this claim on it (`facefleet-bridge ca claim`)"
    )
    how.add_argument("--ca", type=Path, metavar="DIR", help="SSH: sign the box's request with the authority in DIR")
    how.add_argument("--csr", type=Path, metavar="FILE", help="SSH: only fetch the box's request into FILE, and stop")
    how.add_argument("--certificate", type=Path, metavar="FILE", help="SSH: bring what was signed elsewhere")
    parser.add_argument(
        "--reader", type=Path, metavar="DIR",
        help="with --wait: whose certificate to listen with (`facefleet-bridge ca enroll reader:NAME --out DIR`)",
    )  # fmt: skip


def _trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust", type=Path, action="append", default=[], metavar="PUB",
        help="key the box believes afterwards, and no other; may be said again: how a signing key is rotated",
    )  # fmt: skip


def _software(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--software", action="store_true", help="bring the program itself up to date, from wheels")
    parser.add_argument("--downgrade", action="store_true", help="boxes with a newer program shall take it too")


def _key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", type=Path, help="signing key (default: $FACEFLEET_KEY or ~/.config/facefleet/…)")
    parser.add_argument("--device-class", default="any", metavar="CLASS", help="only boxes of this class take it")


def _root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=ROOT, help="state folder on the box (default %(default)s)")
    parser.add_argument("--programs", type=Path, default=PROGRAMS, help="folder of its programs (default %(default)s)")


def _terms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--start", type=float, default=120.0, metavar="S", help="time to come up (default %(default)g)")
    parser.add_argument(
        "--hold", type=float, default=60.0, metavar="S", help="all must be well for (default %(default)g)"
    )


def _late(name: str) -> Verb:
    def verb(args: argparse.Namespace) -> int:
        from edge.flash import verbs

        done: int = getattr(verbs, name)(args)
        return done

    return verb
