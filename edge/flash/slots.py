"""The folders a flashed box lives in, and the only ways they change: written aside, synced, renamed.

    <root>/                      /var/lib/facefleet; also the box's state_dir (outbox.db, boots, cache/, health.json)
      identity.json              who this box is: site, box, device_class; written by the first flash or by install
      trust/<key id>.pub         public keys (PEM) whose bundles are taken
      slots/<counter>/           one flashed config, complete and never changed again:
        manifest.json            the signed bytes; manifest.sig: key id and signature
        config.yaml              with `models_dir: models`, `credentials_dir: credentials`, `state_dir: ../..`
        models/<bundle>/…        exactly the bundles it names
        credentials/<name>       its secrets, folder 0700, files 0600; carried over from the slot before
      slots/<counter>.new/       one being written; rubbish after a power cut
      current -> slots/<counter> what the service runs: `facefleet-edge run <root>/current/config.yaml`
      previous -> slots/<counter>  the one before it
      flash.json                 where an update stands (`FlashState`)
      flash.lock                 held (flock) by whoever changes any of this
      result.json                how the last update ended, for people, SSH and dashboards
      offer.json                 the last offer that was put into the spool (`edge.flash.offers`)
      spool/*.ffbundle           an inbox: `facefleet-edge apply --spool` takes what is there, and empties it
      health.json                written by the running service (`edge.box.status`)

`current` always leads to a complete slot: it is swapped by one rename, after everything behind it was synced.
"""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edge.errors import FlashError
from edge.flash.manifest import counter_of

ROOT = Path("/var/lib/facefleet")
SUFFIX = ".ffbundle"
CREDENTIALS = "credentials"

T = TypeVar("T")
Outcome = Literal["committed", "unchanged", "rolled_back", "refused"]


class FlashState(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where an update stands. `slot` is the one known to be good; `trial` the one being tried or taken back."""

    phase: Literal["settled", "trial", "rolling_back"] = "settled"
    slot: str = ""
    trial: str = ""
    reason: str = ""
    counters: dict[str, int] = {}  # by key id: the highest committed, below which everything is a downgrade


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an update ended."""

    outcome: Outcome
    at: str
    counter: int = 0
    slot: str = ""
    reason: str = ""


class Identity(msgspec.Struct, frozen=True):
    """Who a box is; a bundle for another is refused."""

    site: str
    box: str
    device_class: str


class Slots:
    """One state root.

    Args:
        root: usually /var/lib/facefleet; below the mount point of a card it is made when missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.slots, self.spool, self.trust = root / "slots", root / "spool", root / "trust"
        self.current, self.previous = root / "current", root / "previous"

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            FlashError: the root cannot be written, or a link stands where a folder belongs.
        """
        try:
            for folder in (self.root, self.slots, self.spool, self.trust):
                folder.mkdir(parents=folder is self.root, exist_ok=True, mode=0o755)
                if not stat.S_ISDIR(folder.lstat().st_mode) and folder is not self.root:
                    raise FlashError(f"{folder} is a link, expected a folder; someone put it there: look into it")
            if os.geteuid() == 0:  # the service puts offered bundles there; they are signed
                os.chown(self.spool, *self.owner, follow_symlinks=False)
        except OSError as error:
            raise self._not_writable(error) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other updater of this root out; a killed one lets go by itself.

        Raises:
            FlashError: another one is at work.
        """
        self.prepare()
        try:
            file = (self.root / "flash.lock").open("ab")
        except OSError as error:
            raise self._not_writable(error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(f"{self.root}: another update is at work; wait for it to end") from error
            yield

    def _not_writable(self, error: OSError) -> FlashError:
        return FlashError(
            f"{self.root} cannot be written ({error.strerror}); is the disk mounted read-only, or are you not root?"
        )

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def current_slot(self) -> str:
        """Return the name of the slot the service runs, "" when there is none."""
        return target(self.current)

    @property
    def previous_slot(self) -> str:
        """Return the name of the slot before the current one, "" when there is none."""
        return target(self.previous)

    def folder(self, slot: str) -> Path:
        """Return the folder of a slot."""
        return self.slots / slot

    def state(self) -> FlashState:
        """Return where an update stands. A lost file means: what `current` says is settled."""
        if (found := read_json(self.root / "flash.json", FlashState)) is not None:
            return found
        slot = self.current_slot
        try:
            key = (self.folder(slot) / "manifest.sig").read_text().split()[0]
            return FlashState(slot=slot, counters={key: counter_of(slot)})
        except (OSError, ValueError, IndexError):
            return FlashState(slot=slot)

    def result(self) -> Result | None:
        """Return how the last update ended."""
        return read_json(self.root / "result.json", Result)

    def identity(self) -> Identity | None:
        """Return who this box is, None before its first flash."""
        return read_json(self.root / "identity.json", Identity)

    def free_bytes(self) -> int:
        """Return the space an unprivileged writer has."""
        return shutil.disk_usage(self.root).free

    @property
    def owner(self) -> tuple[int, int]:
        """Return the user and group the service runs as: whoever owns the root."""
        found = self.root.stat()
        return found.st_uid, found.st_gid

    # -- what changes it ---------------------------------------------------------------------------------------------

    def write_state(self, state: FlashState) -> None:
        """Replace flash.json, durably."""
        write_durably(self.root / "flash.json", msgspec.json.encode(state))

    def write_result(self, result: Result) -> None:
        """Replace result.json, durably."""
        write_durably(self.root / "result.json", msgspec.json.format(msgspec.json.encode(result)))

    def write_identity(self, identity: Identity) -> None:
        """Replace identity.json, durably."""
        write_durably(self.root / "identity.json", msgspec.json.format(msgspec.json.encode(identity)))

    def point_current(self, slot: str) -> None:
        """Swap `current` to a slot in one rename, or take it away where "" is meant; durable on return."""
        swap(self.current, slot)

    def point_previous(self, slot: str) -> None:
        """Swap `previous` likewise."""
        swap(self.previous, slot)

    def new_folder(self, slot: str) -> Path:
        """Return an empty `slots/<slot>.new`."""
        folder = self.slots / f"{slot}.new"
        remove(folder)
        folder.mkdir(mode=0o755)
        return folder

    def seal(self, slot: str) -> None:
        """Turn the synced `<slot>.new` into `<slot>`, durably."""
        remove(self.folder(slot))
        os.rename(self.slots / f"{slot}.new", self.folder(slot))
        sync_folder(self.slots)

    def kept(self) -> set[str]:
        """Name the slots that `tidy` leaves."""
        return {self.current_slot, self.previous_slot, self.state().slot, self.state().trial}

    def tidy(self) -> None:
        """Remove every slot that is neither current, previous nor known as good."""
        keep = self.kept()
        for folder in list(self.slots.iterdir()):
            if folder.name not in keep:
                remove(folder)


class BusyError(FlashError):
    """Another updater holds the lock."""


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a small file: new content aside, synced, renamed, folder synced. Readers see the old or the new."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    write_new(aside, data, mode=mode)
    os.replace(aside, path)
    sync_folder(path.parent)


def write_new(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that must not exist, through no link, synced; its mode does not depend on the umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make the names in a folder and all folders below it durable; files are synced as they are written."""
    for inner, _, _ in os.walk(folder):
        sync_folder(Path(inner))


def remove(path: Path) -> None:
    """Remove a file, link or whole folder, if it is there; links are not followed."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def swap(link: Path, slot: str) -> None:
    """Let a link beside `slots/` lead to a slot, in one rename, or take it away for ""; durable on return."""
    if not slot:
        link.unlink(missing_ok=True)
    else:
        aside = link.with_name(f".{link.name}.new")
        aside.unlink(missing_ok=True)
        os.symlink(f"slots/{slot}", aside)
        os.replace(aside, link)
    sync_folder(link.parent)


def target(link: Path) -> str:
    """Return the name of the slot that a link leads to, "" when there is none."""
    try:
        return Path(os.readlink(link)).name
    except OSError:
        return ""


def read_json(path: Path, kind: type[T]) -> T | None:
    """Return what a small file of ours says, None where it is missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
