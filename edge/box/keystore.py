"""Where a box's private key lies at rest: encrypted by systemd-creds, in systemd's store, or in a file of mode 0600.

An installed box keeps it where only root and, through the unit's LoadCredential lines, the service can get at it. The
encrypted form opens on this machine only: by its TPM where it has one, else by the host key on its own disk, which
guards a copied file or a backup, and not a stolen card.
"""

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Protocol

from edge.config import OWN_KEY, OWN_KEY_CREDENTIALS, refuse_open_key
from edge.errors import EdgeError
from edge.flash.slots import write_durably

STORE, ENCRYPTED = Path("/etc/credstore"), Path("/etc/credstore.encrypted")
# Two names: LoadCredentialEncrypted= looks into both stores, and the service would not start on a plain one.
NAME, PLAIN_NAME = "facefleet.box.key", "facefleet.box.plain.key"
INSTALLED = Path("/var/lib/facefleet/tls")  # of the box that the units run
BOOTED = Path("/run/systemd/system")  # sd_booted(3): in a plain container nobody would hand the key to the program
CREDS_S = 60.0


class KeyStore(Protocol):
    """Keeps one private key, as PEM."""

    def read(self) -> bytes | None:
        """Return the key, None when there is none yet.

        Raises:
            EdgeError: it cannot be read, or others may read it.
        """

    def write(self, pem: bytes) -> str:
        """Keep a new key, durably; return how it is kept, for a person.

        Raises:
            EdgeError: it cannot be written.
        """


def key_store(folder: Path) -> KeyStore:
    """Return the store of a box whose certificate lies in `folder`.

    A key that lies beside the certificate stays there: its config may name it.
    """
    beside = KeyFile(folder / OWN_KEY)
    if folder != INSTALLED or os.geteuid() != 0 or not BOOTED.is_dir() or beside.path.exists():
        return beside
    return SystemStore()


class KeyFile:
    """A file of mode 0600; it belongs to whom the folder above its own belongs: the service's user."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """Return the key."""
        refuse_open_key(self.path)
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EdgeError(f"{self.path} cannot be read ({error.strerror}); are you root?") from error

    def write(self, pem: bytes) -> str:
        """Keep a new key."""
        try:
            write_durably(self.path, pem, mode=0o600)
            give(self.path)
        except OSError as error:
            raise EdgeError(f"{self.path} cannot be written ({error.strerror}); are you root?") from error
        return f"{self.path}, mode 0600, not encrypted"


class SystemStore:
    """systemd's credential stores: the encrypted one where systemd-creds works, else the plain one.

    Args:
        plain: folder of the store whose files the unit gets by LoadCredential=.
        encrypted: of those it gets by LoadCredentialEncrypted=.
        command: systemd-creds.
    """

    def __init__(self, plain: Path = STORE, encrypted: Path = ENCRYPTED, command: str = "systemd-creds") -> None:
        self.plain, self.encrypted = KeyFile(plain / PLAIN_NAME), encrypted / NAME
        self._command = command

    def read(self) -> bytes | None:
        """Return the key."""
        if self.encrypted.exists():
            return self._creds("decrypt", f"--name={OWN_KEY_CREDENTIALS[0]}", str(self.encrypted), "-")
        return self.plain.read()

    def write(self, pem: bytes) -> str:
        """Keep a new key, encrypted if that can be had and read back."""
        if shutil.which(self._command) is None:
            return self._write_plain(pem, "systemd-creds is not installed")
        try:
            sealed = self._creds("encrypt", f"--name={OWN_KEY_CREDENTIALS[0]}", "-", "-", given=pem)
            self.encrypted.parent.mkdir(mode=0o700, exist_ok=True)
            write_durably(self.encrypted, sealed, mode=0o600)
            if self.read() != pem:
                raise EdgeError("it was read back as something else")
        except (EdgeError, OSError) as error:
            self.encrypted.unlink(missing_ok=True)
            return self._write_plain(pem, str(error))
        self.plain.path.unlink(missing_ok=True)
        return f"{self.encrypted}, encrypted by systemd-creds"

    def _write_plain(self, pem: bytes, why: str) -> str:
        try:
            self.plain.path.parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise EdgeError(f"{self.plain.path} cannot be written ({error.strerror}); are you root?") from error
        return f"{self.plain.write(pem)} ({why})"

    def _creds(self, *words: str, given: bytes = b"") -> bytes:
        try:
            done = subprocess.run(
                [self._command, *words], input=given, capture_output=True, timeout=CREDS_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EdgeError(f"systemd-creds failed ({error})") from error
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
            raise EdgeError(
                f"systemd-creds {words[0]} failed: {said}; a key from another machine, or from before a TPM's "
                f"reset, is lost: remove {self.encrypted}, and enroll this box again"
            )
        return done.stdout


def give(path: Path) -> None:
    """Let a file or folder in a folder of the state belong to whom the state belongs; links are not followed."""
    if os.geteuid() == 0:
        owner = path.parent.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def make_folder(folder: Path) -> None:
    """Make the folder of a box's certificate, which the service may write: it renews by itself.

    Raises:
        EdgeError: it cannot be made, or is a link.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise EdgeError(f"{folder} is a link, expected a folder; someone put it there: look into it")
        if os.geteuid() == 0:
            owner = folder.parent.stat()
            os.chown(folder, owner.st_uid, owner.st_gid, follow_symlinks=False)
    except OSError as error:
        raise EdgeError(f"{folder} cannot be made ({error.strerror}); are you root?") from error
