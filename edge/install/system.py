"""`facefleet-edge install` and `uninstall`: what goes where, and a record of it, so that all of it can go again.

/opt/facefleet/…                       the program (`program.py`), and installed.json, the record
/usr/local/lib/systemd/system/         links to the units of the program, which come and go with it
/usr/local/lib/{sysusers,tmpfiles}.d/  facefleet.conf
/etc/systemd/system/*.wants/           links that start them at boot
/usr/local/bin/facefleet-edge          for people
/var/lib/facefleet/                    the box's state; kept by `uninstall` unless it is empty, or told otherwise
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from edge.box import keystore
from edge.errors import EdgeError, OutboxError
from edge.flash.slots import remove, write_durably
from edge.install import program, users
from edge.publish import outbox_file

RECORD = program.HOME / "installed.json"
UNITS, WANTS = Path("usr/local/lib/systemd/system"), Path("etc/systemd/system")
STATE = Path("var/lib/facefleet")
AT_BOOT = "facefleet-recover.service"  # it ends before the others begin
ROLES = {
    "edge": (
        "facefleet-edge.service",
        "facefleet-enroll.path",
        "facefleet-enroll.service",
        AT_BOOT,
        "facefleet-spool.path",
        "facefleet-spool.service",
    ),
    "bridge": ("facefleet-bridge.service", "facefleet-ca.service"),
}
# By `current`; the others by what has proven itself.
SERVED = ("facefleet-edge.service", "facefleet-bridge.service", "facefleet-ca.service")
STARTED = (*SERVED, "facefleet-enroll.path", "facefleet-spool.path")
BACKOFF_SINCE = 254  # RestartSteps=

Say = Callable[[str], None]


class Record(msgspec.Struct, frozen=True):
    """What was put there: files and links, folders that were missing, users. Paths relative to the root."""

    role: str
    program: str
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    accounts: users.Made = users.Made()


def install(root: Path, wheels: Path, role: str, say: Say) -> None:
    """Put everything in place; a second time brings the system up to the wheelhouse's version.

    Raises:
        EdgeError: it is no system, the wheels do not fit, or it cannot be written.
    """
    before = _record(root)
    if before is not None and before.role != role:
        raise EdgeError(f"{root} has a {before.role} installed; uninstall that first, or use a machine of its own")
    made = _Maker(root)
    try:
        made.folder(program.HOME)
        name = program.build(root, wheels, role)
        source = program.units(root, name)
        accounts = users.make(root, (source / "facefleet.sysusers").read_text()) if role == "edge" else users.Made()
        enabled = [made.unit(source / unit) for unit in ROLES[role]]
        if role == "edge":
            made.file(Path("usr/local/lib/sysusers.d/facefleet.conf"), (source / "facefleet.sysusers").read_bytes())
            made.file(Path("usr/local/lib/tmpfiles.d/facefleet.conf"), (source / "facefleet.tmpfiles").read_bytes())
            _state(root, made)
        if (there := systemd_version(root)) and there >= BACKOFF_SINCE:
            made.file(UNITS / f"facefleet-{role}.service.d/backoff.conf", (source / "backoff.conf").read_bytes())
        for command in program.COMMANDS[role]:
            made.link(Path("usr/local/bin") / command, f"/{program.HOME}/proven/bin/{command}")
        program.make_current(root, name)
        record = Record(role, name, tuple(made.files), tuple(made.folders), accounts)
        if before is not None:
            folders = tuple(dict.fromkeys((*before.folders, *record.folders)))
            stale = set(before.files) - set(record.files)
            _remove_files(root, stale)
            record = msgspec.structs.replace(record, folders=folders, accounts=before.accounts | accounts)
        write_durably(root / RECORD, msgspec.json.format(msgspec.json.encode(record)))
    except OSError as error:
        raise EdgeError(f"{error.filename} cannot be written ({error.strerror}); are you root?") from error
    os.sync()
    say(f"{root}: facefleet {name}, {role}: {', '.join(filter(None, enabled))}")
    if _live(root):
        _systemctl("daemon-reload")
        for unit in (u for u in enabled if u in STARTED):
            _systemctl("restart", unit)
        say("started; a box begins to work when it is flashed, a bridge when /etc/facefleet/bridge.yaml is there")


def uninstall(root: Path, say: Say, *, purge: bool = False) -> None:
    """Take everything away again; state that a box has gathered stays unless `purge`.

    Raises:
        EdgeError: nothing is installed there.
    """
    record = _record(root)
    if record is None:
        raise EdgeError(f"{root} has no facefleet: {root / RECORD} is missing")
    try:
        if _live(root):
            for unit in ROLES[record.role]:
                _systemctl("disable", "--now", "--no-reload", unit, fail=False)
        _remove_files(root, record.files)
        state = root / STATE
        kept = record.role == "edge" and state.is_dir() and not purge and _holds_something(state)
        if record.role == "edge" and not kept:
            remove(state)
        if kept:
            say(f"kept: {state}, which holds what was flashed and events not yet delivered; --purge removes it too")
        else:
            _forget_keys(root)
            users.remove(root, record.accounts)
        remove(root / program.HOME)
        for folder in sorted(record.folders, key=len, reverse=True):
            with suppress(OSError):  # not empty: somebody else lives there now
                (root / folder).rmdir()
    except OSError as error:
        raise EdgeError(f"{error.filename} cannot be removed ({error.strerror}); are you root?") from error
    os.sync()
    if _live(root):
        _systemctl("daemon-reload")
    say(f"{root}: facefleet is gone")


def reset(root: Path, say: Say, *, discard_events: bool = False) -> None:
    """Let a box forget who it is: config, secrets, keys, certificate, events. The program stays.

    The box is stopped before its events are counted: while it runs, there may be one more. A refusal starts it again.

    Args:
        root: of the system.
        say: told what was done.
        discard_events: also where events wait that the centre has not acknowledged.

    Raises:
        EdgeError: no box is installed there, or events would be lost.
    """
    record, state = _record(root), root / STATE
    if record is None or record.role != "edge":
        raise EdgeError(f"{root} has no box installed: there is nothing to reset")
    if _live(root):
        _systemctl("stop", *(unit for unit in ROLES["edge"] if unit != AT_BOOT))
    try:
        if not discard_events:
            _nothing_waits(state / "outbox.db")
    except EdgeError:
        if _live(root):  # an update that was stopped with it is taken back, as after a power cut
            _systemctl("start", AT_BOOT, *(unit for unit in ROLES["edge"] if unit in STARTED))
        raise
    try:
        for entry in state.iterdir():
            if entry.name != "spool":
                remove(entry)
        for bundle in (state / "spool").iterdir():
            remove(bundle)
        _forget_keys(root)
        os.sync()
        if _live(root):
            _systemctl("start", *(unit for unit in ROLES["edge"] if unit.endswith(".path")))
    except OSError as error:
        raise EdgeError(f"{error.filename} cannot be removed ({error.strerror}); are you root?") from error
    say(f"{root}: this box is nobody now; its next flash makes it somebody")


def _nothing_waits(outbox: Path) -> None:
    if not outbox.exists():
        return
    try:
        waiting = outbox_file.waiting(outbox)
    except OutboxError as error:
        raise EdgeError(f"nobody can say how many events wait: {error}; or say --discard-events") from error
    if waiting:
        raise EdgeError(f"{waiting} events wait in {outbox}; let them be delivered first, or say --discard-events")


def _forget_keys(root: Path) -> None:
    """Remove the box's private key from systemd's stores, where enrolment keeps it."""
    for path in (keystore.STORE / keystore.PLAIN_NAME, keystore.ENCRYPTED / keystore.NAME):
        (root / path.relative_to("/")).unlink(missing_ok=True)


class _Maker:
    """Writes below a root, and remembers what was not there before."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[str] = []
        self.folders: list[str] = []

    def folder(self, path: Path) -> None:
        missing = [p for p in (path, *path.parents) if not (self.root / p).exists()]
        for folder in reversed(missing):
            (self.root / folder).mkdir(mode=0o755)
            self.folders.append(str(folder))

    def file(self, path: Path, data: bytes) -> None:
        self.folder(path.parent)
        write_durably(self.root / path, data)
        self.files.append(str(path))

    def link(self, path: Path, to: str) -> None:
        self.folder(path.parent)
        (self.root / path).unlink(missing_ok=True)
        (self.root / path).symlink_to(to)
        self.files.append(str(path))

    def unit(self, source: Path) -> str:
        """Link a unit into place and enable it if it says by whom it is wanted; return its name then, else ""."""
        of = "current" if source.name in SERVED else "proven"
        self.link(UNITS / source.name, f"/{program.HOME}/{of}/systemd/{source.name}")
        wanted = [
            line.partition("=")[2].split() for line in source.read_text().splitlines() if line.startswith("WantedBy=")
        ]
        for target in (t for targets in wanted for t in targets):
            self.link(WANTS / f"{target}.wants" / source.name, f"/{UNITS / source.name}")
        return source.name if wanted else ""


def _state(root: Path, made: _Maker) -> None:
    fresh = not (root / STATE).exists()
    made.folder(STATE)
    made.folder(STATE / "spool")
    owner = users.ids(root, "facefleet")
    # Not root, in a test's tree: the unit's StateDirectory= then sets owner and mode at the first start.
    if fresh and owner is not None and os.geteuid() == 0:
        os.chown(root / STATE, *owner)
        os.chown(root / STATE / "spool", *owner)
        os.chmod(root / STATE, 0o750)


def _holds_something(state: Path) -> bool:
    return any(path.is_symlink() or not path.is_dir() for path in state.rglob("*"))


def _remove_files(root: Path, files: Iterable[str]) -> None:
    for file in files:
        (root / file).unlink(missing_ok=True)


def _record(root: Path) -> Record | None:
    try:
        return msgspec.json.decode((root / RECORD).read_bytes(), type=Record)
    except OSError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EdgeError(f"{root / RECORD} is damaged ({error}); install again over it after removing it") from error


def systemd_version(root: Path) -> int | None:
    """Return the version of the systemd of a system, from the name of its shared library."""
    for folder in ("usr/lib/systemd", "usr/lib/*/systemd", "usr/lib64/systemd"):
        for path in root.glob(f"{folder}/libsystemd-shared-*.so"):
            digits = path.name.removeprefix("libsystemd-shared-")[:3]
            return int(digits) if digits.isdecimal() else None
    return None


def _live(root: Path) -> bool:
    return root == Path("/") and Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def _systemctl(*words: str, fail: bool = True) -> None:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and fail:
        raise EdgeError(f'"systemctl {" ".join(words)}" failed: {" ".join(done.stderr.split())[:500]}')
