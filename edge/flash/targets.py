"""Where a flash goes: a mounted card, or a box over OpenSSH. Both show what is there, and take a bundle."""

import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

import msgspec

from edge.box.certificate import held
from edge.box.status import read_status
from edge.config import OWN_TLS, load_box
from edge.errors import EdgeError, FlashError
from edge.flash.archive import CHUNK_BYTES, damaged
from edge.flash.arguments import PROGRAMS
from edge.flash.desk import Made, Seen, SeenProgram
from edge.flash.manifest import CONFIG, read_manifest
from edge.flash.parcel import Said, write_header
from edge.flash.proof import Terms, report
from edge.flash.signing import decode_public, load_trust
from edge.flash.slots import ROOT, Result, Slots
from edge.flash.updater import Parcel, Updater

SSH = "ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
SSH_FAILED = 255
LINE_BYTES = 1 << 20

Progress = Callable[[int], None]
Say = Callable[[str], None]


class Target(Protocol):
    """Something that can be flashed."""

    def look(self) -> Seen:
        """Say what is on it.

        Raises:
            FlashError: it cannot be reached.
        """

    def send(self, made: Made, adopt: str, progress: Progress, say: Say) -> tuple[Result, str]:
        """Flash a bundle; return how it ended and a report for a person.

        Raises:
            FlashError: it was refused; nothing changed.
        """


def open_target(
    text: str,
    *,
    root: Path = ROOT,
    programs: Path = PROGRAMS,
    ssh: str = "",
    remote: str = "facefleet-edge",
    terms: Terms,
) -> Target:
    """Return the target a user named: `user@host`, or a directory.

    Raises:
        FlashError: it is neither.
    """
    if Path(text).is_dir():
        return CardTarget(Path(text) / root.relative_to("/"))
    if "/" not in text and ("@" in text or ssh):
        if text.startswith("-"):
            raise FlashError(f"target {text!r} looks like an option; name user@host")
        return SshTarget(text, root, shlex.split(ssh or "ssh"), shlex.split(remote), terms, programs)
    raise FlashError(f"target {text!r} is neither a folder here nor user@host; is the card mounted?")


def look_at(slots: Slots, software: SeenProgram | None = None) -> Seen:
    """Say what a state root holds; `software` is the program beside it."""
    try:
        config = load_box(slots.current / CONFIG)
        manifest = read_manifest((slots.current / "manifest.json").read_bytes())
        text, status = (slots.current / CONFIG).read_text("utf-8"), read_status(config.state_dir)
    except (EdgeError, OSError):
        manifest, text, status = None, "", None
    return Seen(
        identity=slots.identity(),
        manifest=manifest,
        config=text,
        state=slots.state(),
        result=slots.result(),
        status=status,
        trusted=tuple(load_trust(slots.trust)),
        free_bytes=slots.free_bytes() if slots.root.is_dir() else 0,
        software=software,
        certificate=held(slots.root / OWN_TLS),
    )


class CardTarget:
    """A state root below a mount point. What is written is read back; the box proves itself when it boots it."""

    def __init__(self, root: Path) -> None:
        self.slots = Slots(root)

    def look(self) -> Seen:
        """Say what is on the card."""
        return look_at(self.slots)

    def send(self, made: Made, adopt: str, progress: Progress, say: Say) -> tuple[Result, str]:
        """Write the card and read it back."""
        manifest = made.head.manifest

        def read_back(folder: Path, *_: object) -> None:
            say("reading back")
            if wrong := damaged(manifest, folder):
                raise FlashError(f"read back with other contents: {', '.join(wrong)}; the card is failing, use another")

        updater = Updater(self.slots, service=None, check=read_back, progress=progress)
        with made.path.open("rb") as bundle:
            parcel = Parcel(bundle, made.contents.secrets, decode_public(adopt), manifest.device_class)
            result = updater.apply(parcel)
        os.sync()
        return result, f"{len(manifest.files)} files, {manifest.total_bytes} bytes, read back with equal digests"


class SshTarget:
    """A box over OpenSSH: its own `facefleet-edge apply` does the work, one connection carries all of it.

    Args:
        host: user@host.
        root: of the box.
        ssh: the command and options.
        remote: how to call facefleet-edge there, such as `sudo facefleet-edge`.
        terms: of the proof.
        programs: folder of the box's programs.
    """

    def __init__(
        self,
        host: str,
        root: Path,
        ssh: Sequence[str],
        remote: Sequence[str],
        terms: Terms,
        programs: Path = PROGRAMS,
    ) -> None:
        self.host, self.root, self.terms, self.programs = host, root, terms, programs
        ours = shlex.split(SSH)[1:]
        self._ssh = [*ssh, *ours, "--", host]
        self._remote = list(remote)
        self._result_before: Result | None = None

    def look(self) -> Seen:
        """Ask the box what it runs."""
        seen = self._look()
        self._result_before = seen.result  # of configs and programs alike
        return seen

    def _look(self) -> Seen:
        done = subprocess.run(self._command("--status"), capture_output=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise self._failed(done.returncode, done.stderr.decode(errors="replace"))
        try:
            return msgspec.json.decode(done.stdout, type=Seen)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FlashError(
                f"{self.host} answered {done.stdout[:80]!r}, expected its status; does its login shell print something?"
            ) from error

    def send(self, made: Made, adopt: str, progress: Progress, say: Say) -> tuple[Result, str]:
        """Send everything, follow the box's steps, return its verdict and health report."""
        kind = ["--software"] if made.head.manifest.kind == "software" else []
        command = self._command(
            "--stdin", *kind, "--json", "--start", f"{self.terms.start_s:g}", "--hold", f"{self.terms.hold_s:g}"
        )
        errors: list[bytes] = []
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            header = write_header(made.contents.secrets, adopt)
            threads = [
                threading.Thread(target=_feed, args=(process.stdin, header, made.path, progress), daemon=True),
                threading.Thread(target=_drain, args=(process.stderr, errors), daemon=True),
            ]
            for thread in threads:
                thread.start()
            last = _follow(process.stdout, say)
            code = process.wait()
            for thread in threads:
                thread.join(10)
        if last.result is not None:
            return last.result, last.report
        if last.error:
            raise FlashError(f"{self.host} refused it: {last.error}")
        if last.step and (code == SSH_FAILED or code < 0):
            return self._await(say)
        raise self._failed(code, b"".join(errors).decode(errors="replace"))

    def certificate(self, *words: str, given: bytes = b"") -> bytes:
        """Run `facefleet-edge certificate …` on the box, for the certificate of its state root; return what it says.

        Raises:
            FlashError: the box cannot be reached, or refuses.
        """
        command = shlex.join([*self._remote, "certificate", *words, "--folder", str(self.root / OWN_TLS)])
        done = subprocess.run([*self._ssh, command], input=given, capture_output=True, check=False)
        if done.returncode:
            raise self._failed(done.returncode, done.stderr.decode(errors="replace"))
        return done.stdout

    def _await(self, say: Say) -> tuple[Result, str]:
        """Ask again until the box, which goes on without us, is done."""
        say("the connection broke; the box goes on by itself, asking again")
        give_up_s = time.monotonic() + 2 * (self.terms.start_s + self.terms.hold_s) + 60
        while time.monotonic() < give_up_s:
            time.sleep(5)
            try:
                seen = self._look()
            except FlashError:
                continue
            settled = all(it.state.phase == "settled" for it in (seen, seen.software) if it is not None)
            if seen.result is not None and seen.result != self._result_before and settled:
                return seen.result, report(seen.status)
        raise FlashError(
            f"{self.host} did not come back; it goes back to its old config by itself if need be. Ask it later: "
            f'"ssh {self.host} facefleet-edge apply --status"'
        )

    def _command(self, *words: str) -> list[str]:
        # Said only where they are not where they belong: an older box does not know the word.
        programs = [] if self.programs == PROGRAMS else ["--programs", str(self.programs)]
        return [*self._ssh, shlex.join([*self._remote, "apply", "--root", str(self.root), *programs, *words])]

    def _failed(self, code: int, said: str) -> FlashError:
        """Translate how ssh or the remote shell failed; nothing was changed."""
        host, text = self.host, " ".join(said.split())[-600:]
        unchanged = "the box was not touched"
        name = host.rpartition("@")[2]
        if code == SSH_FAILED and "IDENTIFICATION HAS CHANGED" in said:
            return FlashError(
                f"the host key of {name} changed: either the box was set up anew, or somebody stands in between; "
                f'{unchanged}. If you know why, run "ssh-keygen -R {name}", connect by hand and compare the fingerprint'
            )
        if code == SSH_FAILED and "Host key verification failed" in said:
            return FlashError(
                f"the host key of {name} is not known here; {unchanged}. "
                f'Run "ssh {host}" once and compare the fingerprint with the box\'s'
            )
        if code == SSH_FAILED and re.search(r"Permission denied", said):
            return FlashError(f"{host} does not let us in ({text}); {unchanged}. Put your SSH key on the box")
        if code == SSH_FAILED:
            return FlashError(f"{host} cannot be reached ({text}); {unchanged}. Is it on, and the name right?")
        if code == 127:
            return FlashError(
                f'{host} has no {self._remote[-1]} ({text}); {unchanged}. Install it, or name it with "--remote"'
            )
        return FlashError(f"{host}: {text or f'ended with {code} and said nothing'}")


def _feed(pipe: IO[bytes], header: bytes, path: Path, progress: Progress) -> None:
    try:
        with pipe, path.open("rb") as file:
            pipe.write(header)
            while chunk := file.read(CHUNK_BYTES // 16):
                pipe.write(chunk)
                progress(len(chunk))
    except OSError:
        return  # the other side closed: it says why on its own


def _drain(pipe: IO[bytes], into: list[bytes]) -> None:
    while chunk := pipe.read1(4096):  # type: ignore[attr-defined]
        into.append(chunk)
        del into[:-16]


def _follow(pipe: IO[bytes], say: Say) -> Said:
    """Show steps until the box has said how it ended; return the last thing it said."""
    last = Said()
    while line := pipe.readline(LINE_BYTES):
        try:
            said = msgspec.json.decode(line, type=Said)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # a login shell's greeting
        if said.step:
            say(f"{said.step}: {said.what}" if said.what else said.step)
        last = said
    return last
