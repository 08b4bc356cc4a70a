"""The authority on disk: a folder with its key, a register of who was enrolled, and the files the broker reads.

<folder>/            0700
  ca.key  ca.pem     the authority; who has the key can enroll anybody
  register.json      everybody ever enrolled, with serial numbers, revocations and claims
  issued/<user>.pem  the newest certificate of each, followed by ca.pem
  serve.key  serve.pem  who `ca serve` is at the broker
  broker/            what Mosquitto reads: facefleet.conf, facefleet.acl, ca.pem, crl.pem, broker.pem, broker.key
"""

import fcntl
import grp
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography import x509

from bridge.ca import broker, files, signer
from bridge.ca.names import Name
from bridge.ca.register import Issued, Register
from bridge.errors import BridgeError


class Folder:
    """Register, certificates and the broker's files, as `authority.py` reads and changes them."""

    def __init__(self, path: Path, signs: signer.Signer) -> None:
        self.path, self._signer = path, signs

    def issue(self, register: Register, name: Name, public: signer.PublicKey, now: datetime, days: float) -> bytes:
        """Sign a member's key and write it down; return the certificate and the authority's own, PEM."""
        made = self._signer.member(name, public, now, days)
        entry = Issued(f"{made.serial_number:x}", made.not_valid_after_utc)
        register.issued[name.user] = (*register.issued.get(name.user, ()), entry)
        # First the register: a certificate it does not know could not be revoked.
        files.write(self.path / "register.json", register.encoded())
        chain = signer.pem(made) + signer.pem(self._signer.certificate)
        files.write(self.issued(name), chain)
        return chain

    def issued(self, name: Name) -> Path:
        """Return where the newest certificate of a member is."""
        return self.path / "issued" / f"{name.user}.pem"

    @staticmethod
    def broker_ends(register: Register) -> datetime:
        """Return when the broker's certificate ends."""
        pem = (Path(register.broker) / broker.CERTIFICATE).read_bytes()
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc

    def renew_broker(self, register: Register, now: datetime, days: float) -> None:
        """Make a new key and certificate for the broker."""
        folder, key = Path(register.broker), signer.new_key()
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        files.write(folder / broker.KEY, signer.pem_key(key), mode=0o600)
        files.write(
            folder / broker.CERTIFICATE, signer.pem(self._signer.server(register.hosts, key.public_key(), now, days))
        )
        with suppress(KeyError, PermissionError):  # Mosquitto reads it again on each reload, no longer as root
            os.chown(folder / broker.KEY, -1, grp.getgrnam("mosquitto").gr_gid)
            os.chmod(folder / broker.KEY, 0o640)

    def save(self, register: Register, now: datetime) -> None:
        """Write the register, then what the broker reads of it."""
        register = msgspec.structs.replace(register, lists=register.lists + 1)
        files.write(self.path / "register.json", register.encoded())
        folder = Path(register.broker)
        try:
            files.write(folder / broker.CA, signer.pem(self._signer.certificate))
            files.write(folder / broker.CRL, self._signer.revocations(register.revoked(now), register.lists, now))
            files.write(folder / broker.ACL, broker.rules(register.admitted(now)).encode())
            files.write(folder / broker.CONF, broker.configuration(folder, register.port).encode())
        except OSError as error:
            raise BridgeError(f"{folder} cannot be written ({error.strerror}); mend that and run it again") from error

    def read(self) -> Register:
        """Return the register.

        Raises:
            BridgeError: it is gone or damaged.
        """
        try:
            return msgspec.json.decode((self.path / "register.json").read_bytes(), type=Register)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BridgeError(f"{self.path}/register.json cannot be read ({error}); restore it") from error

    @contextmanager
    def changing(self) -> Iterator[Register]:
        """Hold the lock that every change needs, and give the register."""
        with (self.path / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self.read()
