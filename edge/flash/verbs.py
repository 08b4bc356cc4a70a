"""The verbs of flashing: `bundle`, `keys` and `flash` at the desk, `apply` on the box."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from edge.box.logs import also_to_the_journal, name_box, set_up
from edge.config import load_box
from edge.errors import EdgeError, FlashError
from edge.flash import desk, enrolling, signing, wheelhouse
from edge.flash.archive import check_files, read_head
from edge.flash.manifest import Manifest
from edge.flash.parcel import Said, read_parcel
from edge.flash.proof import Terms, report
from edge.flash.service import Systemd
from edge.flash.slot_check import check_slot
from edge.flash.slots import Result, Slots
from edge.flash.software import SoftwareUpdater, look_at_programs, try_program
from edge.flash.spool import kind_of, take_spool
from edge.flash.targets import CardTarget, look_at, open_target
from edge.flash.updater import Parcel, Step, Updater
from edge.install.program import Programs

EXIT_OK, EXIT_FAILURE, EXIT_ROLLED_BACK = 0, 1, 3


def keys(args: argparse.Namespace) -> int:
    """Make a signing key, or show what a key is called."""
    path: Path = args.file or signing.default_key()
    if args.action == "new":
        signing.new_key(path)
        print(f"{path}: keep it secret and keep a copy; who has it can flash every box that trusts it", file=sys.stderr)
    key = signing.load_public(path)
    print(f"key {signing.key_id(key)}\n{signing.public_pem(key).decode()}", end="")
    return EXIT_OK


def bundle(args: argparse.Namespace) -> int:
    """Build, show or verify a bundle."""
    key: Path = args.key or signing.default_key()
    if args.action == "build":
        out: Path = args.out or args.file.with_suffix(".ffbundle")
        made = _built(args, out, key)
        print(f"{out}: {_described(made.head.manifest)}, {made.head.bytes} bytes, signed by {made.head.key_id}")
        if made.contents.wanted:
            print(f"the box needs these credentials beside it: {', '.join(sorted(made.contents.wanted))}")
        return EXIT_OK
    public = signing.load_public(key)
    try:
        with args.file.open("rb") as stream:
            head = read_head(stream, {signing.key_id(public): public})
            if args.action == "verify":
                check_files(head, stream)
    except OSError as error:
        raise FlashError(f"{args.file} cannot be read ({error.strerror})") from error
    if args.action == "show":
        print(msgspec.json.format(head.signed).decode())
    else:
        print(f"{args.file}: {_described(head.manifest)}, signed by {head.key_id}, all digests fit")
    return EXIT_OK


def _built(args: argparse.Namespace, out: Path, key: Path) -> desk.Made:
    if args.software:
        return wheelhouse.build(
            args.file,
            out,
            key,
            counter=args.counter,
            device_class=args.device_class,
            addressee=args.addressee,
            downgrade=args.downgrade,
        )
    if args.addressee or args.downgrade:
        raise FlashError("--for and --downgrade belong to --software; a config says itself for which box it is")
    return desk.build(args.file, out, key, counter=args.counter, device_class=args.device_class, trust=args.trust)


def flash(args: argparse.Namespace) -> int:
    """Show what would change, ask, send, and end with the target's own word."""
    key: Path = args.key or signing.default_key()
    terms = Terms(start_s=args.start, hold_s=args.hold)
    if args.software and args.wait is not None:
        raise FlashError("--wait belongs to a card; a program is proven before the command ends")
    if args.trust and args.software:
        raise FlashError("--trust belongs to a config")
    if args.software and (args.claim or args.ca or args.csr or args.certificate):
        raise FlashError("a certificate comes with a config, not with --software; flash them one after the other")
    if args.downgrade and not args.software:
        raise FlashError("--downgrade belongs to --software; an old config is flashed like any other")
    with (
        wheelhouse.built(args.config, key, args.device_class, args.downgrade)
        if args.software
        else desk.built(args.config, key, args.device_class, args.trust)
    ) as made:
        target = open_target(
            args.target, root=args.root, programs=args.programs, ssh=args.ssh, remote=args.remote, terms=terms
        )
        if args.software and isinstance(target, CardTarget):
            raise FlashError(
                f'{args.target} is a card: write its program with "facefleet-edge install WHEELS --root {args.target}"'
            )
        if args.csr:
            print(enrolling.fetch_request(target, load_box(args.config), args.csr))
            return EXIT_OK
        seen = target.look()
        errand = None if args.software else enrolling.errand(args, load_box(args.config), target, seen)
        manifest, card = made.head.manifest, isinstance(target, CardTarget)
        print(f"{args.target}: {_occupant(seen)}\nto flash: {_described(manifest)}")
        changes = (wheelhouse if args.software else desk).difference(seen, made)
        if not changes and errand is None:
            print("nothing would change; nothing is sent")
            return EXIT_OK
        print("\n".join([*([errand.text] if errand else []), *changes]))
        end = "read back; the box starts it when it boots" if card else "then the service restarts and proves itself"
        print(f"{made.head.bytes} bytes to send, {end}" if changes else "the config stays")
        if args.dry_run:
            return EXIT_OK
        if not args.yes and not _agreed():
            print("nothing was sent")
            return EXIT_FAILURE
        adopt = signing.encode_public(signing.load_public(key))
        with _bar(made.head.bytes) as (progress, say):
            told = [errand.bring(say)] if errand and errand.first else []
            if changes:
                result, said = target.send(made, adopt, progress, say)
                told.append(said)
            else:
                result = Result("unchanged", desk.now_text(), seen.manifest.counter if seen.manifest else 0)
            if errand and not errand.first and _code(result) == EXIT_OK:
                told.append(errand.bring(say))
        print("\n".join(told))
        print(_verdict(args.target, result))
        digest = "" if args.software else sha256(made.config.encode()).hexdigest()[:12]
    if args.wait is not None and result.outcome in ("committed", "unchanged"):
        from edge.flash.birth import wait_for_birth

        print(f"waiting up to {args.wait:g} s for the first birth", flush=True)
        state = wait_for_birth(args.config, digest, args.wait, args.reader)
        print(f"born: machine {state.machine}, software {state.software}, config {state.config_digest}")
    return _code(result)


def apply(args: argparse.Namespace) -> int:
    """Take a bundle on the box: from a file, from SSH, from the spool; or finish an interrupted update."""
    slots, programs = Slots(args.root), Programs(args.programs)
    if args.status:
        sys.stdout.buffer.write(msgspec.json.encode(look_at(slots, look_at_programs(programs))) + b"\n")
        return EXIT_OK
    set_up(logging.INFO)
    also_to_the_journal()
    if (identity := slots.identity()) is not None:
        name_box(identity.site, identity.box)
    _end_in_order()
    say = _Speaker(args.json)
    terms = Terms(args.start, args.hold)
    updater = Updater(slots, Systemd(args.unit), check_slot, terms, at=say.step)
    software = SoftwareUpdater(
        programs, Systemd(args.unit, reload=True), None, terms, at=say.step, state=slots, try_out=try_program
    )
    try:
        if args.recover:
            return max(_recovered(one, say) for one in (software, updater))
        software.recover()
        if args.spool:
            taken = list(take_spool(updater, software))
            for name, came in taken:
                print(f"{name}: {came if isinstance(came, FlashError) else _verdict(name, came)}")
            return max((EXIT_FAILURE if isinstance(c, FlashError) else _code(c) for _, c in taken), default=EXIT_OK)
        if args.stdin:
            taker = software if args.software else updater
            return say.end(taker.apply(read_parcel(sys.stdin.buffer)), report(look_at(slots).status))
        with _opened(args.file) as stream:
            taker = software if kind_of(stream, slots) == "software" else updater
            return say.end(taker.apply(Parcel(stream, {})), report(look_at(slots).status))
    except EdgeError as error:
        if not args.json:
            raise
        say.line(Said(error=str(error)))
        return EXIT_FAILURE


def _recovered(updater: Updater, say: "_Speaker") -> int:
    """Recover one kind of thing; that it fails must not keep the other from it."""
    try:
        result = updater.recover()
    except EdgeError as error:
        say.line(Said(step="recover", what=str(error)))
        return EXIT_FAILURE
    return say.end(result, "") if result else EXIT_OK


class _Speaker:
    """Tells a person, or over SSH the desk, where an update stands. A listener who left stops nothing."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._last = ("", "")
        self._turn = threading.Lock()

    def step(self, step: Step, what: str) -> None:
        """Say a step once, however often it is announced."""
        if (step, what) != self._last:
            self._last = (step, what)
            self.line(Said(step=str(step), what=what))

    def end(self, result: Result, text: str) -> int:
        """Say how it ended; return the exit code."""
        self.line(Said(result=result, report=text))
        return _code(result)

    def line(self, said: Said) -> None:
        """Print one line."""
        if self._json:
            text = msgspec.json.encode(said).decode()
        elif said.result is not None:
            text = f"{said.report}\n{_verdict('this box', said.result)}".strip()
        else:
            text = f"{said.step}: {said.what}"
        with self._turn, suppress(OSError, ValueError):
            print(text, flush=True)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise FlashError(f"{path} cannot be read ({error.strerror})") from error


def _end_in_order() -> None:
    """Go back to the old config when told to end in the middle; go on when the one who started us hangs up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextmanager
def _bar(total: int) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Show a bar of the bytes sent and the box's last word; only lines where nobody watches."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("sending", total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)

        def say(text: str) -> None:
            if console.is_terminal:
                progress.update(task, description=text[:60])
            else:
                print(text, file=sys.stderr, flush=True)

        yield advance, say


def _agreed() -> bool:
    try:
        return input("flash it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _described(manifest: Manifest) -> str:
    if manifest.kind == "software":
        what = f"facefleet {manifest.version} in {len(manifest.files)} wheels"
        return f"{what} for {manifest.addressee}, counter {manifest.counter}, for {manifest.device_class} boxes"
    who = f"{manifest.site}/{manifest.box}, counter {manifest.counter}, for {manifest.device_class} boxes"
    return f"{who}, models {', '.join(manifest.models) or 'none'}"


def _occupant(seen: desk.Seen) -> str:
    if seen.identity is None:
        return "nothing flashed yet; it will take on this box's name and trust your key"
    at = seen.manifest.counter if seen.manifest else "none"
    program = f", program {seen.software.slot}" if seen.software else ""
    return f"{seen.identity.site}/{seen.identity.box} ({seen.identity.device_class}), counter {at}{program}"


def _verdict(name: str, result: Result) -> str:
    reason = f": {result.reason}" if result.reason else ""
    return f"{name}: {result.outcome}, counter {result.counter}{reason}"


def _code(result: Result) -> int:
    return {"committed": EXIT_OK, "unchanged": EXIT_OK, "rolled_back": EXIT_ROLLED_BACK}.get(
        result.outcome, EXIT_FAILURE
    )
