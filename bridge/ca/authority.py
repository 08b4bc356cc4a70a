"""The authority on disk: a folder with its key, a register of who was enrolled, and the files the broker reads.

<folder>/            0700
  ca.key  ca.pem     the authority; who has the key can enroll anybody
  register.json      everybody ever enrolled, with serial numbers and revocations
  issued/<user>.pem  the newest certificate of each, followed by ca.pem
  broker/            what Mosquitto reads: facefleet.conf, facefleet.acl, ca.pem, crl.pem, broker.pem, broker.key
"""

import fcntl
import grp
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509

from bridge.ca import broker, signer
from bridge.ca.names import Name, parse_name
from bridge.errors import BridgeError, ConfigError

DAYS = 397.0
RENEW_DAYS = 45.0


class Issued(msgspec.Struct, frozen=True, omit_defaults=True):
    """One certificate: its serial number, when it ends, and when it was revoked."""

    serial: str
    until: datetime
    revoked: datetime | None = None


class Register(msgspec.Struct, frozen=True):
    """Where the broker is, and whom it may let in. `members` by user name."""

    hosts: tuple[str, ...]
    port: int
    broker: str
    names: dict[str, str] = {}
    issued: dict[str, tuple[Issued, ...]] = {}
    lists: int = 0  # how many revocation lists were written


@dataclass(frozen=True, slots=True)
class Member:
    """One line of `ca list`."""

    name: Name
    until: datetime
    revoked: bool


class Authority:
    """An authority that is there. Every change holds a lock and ends with the broker's files rewritten.

    Args:
        folder: as in the module's docstring.

    Raises:
        ConfigError: there is none, or others than its owner may read its key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        key = folder / "ca.key"
        if not key.is_file():
            raise ConfigError(f'{folder} holds no authority; make one with "facefleet-bridge ca init --host BROKER"')
        if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f'{key} can be read by others; run "chmod 600 {key}", and think about who has read it')
        self._signer = signer.read_signer(key.read_bytes(), (folder / "ca.pem").read_bytes())

    @classmethod
    def make(cls, folder: Path, hosts: Sequence[str], port: int, broker_folder: Path, now: datetime) -> "Authority":
        """Make a new one.

        Raises:
            ConfigError: there is one already, whose members a new one would lock out.
        """
        if (folder / "ca.key").exists():
            raise ConfigError(f"{folder} holds an authority already; a new one would lock out every box: name another")
        made = signer.new_signer(f"facefleet CA {now:%Y-%m-%d}", now)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / "issued").mkdir(exist_ok=True)
            write(folder / "ca.pem", signer.pem(made.certificate))
            write(folder / "register.json", _encode(Register(tuple(hosts), port, str(broker_folder.resolve()))))
            write(folder / "ca.key", signer.pem_key(made.key), mode=0o600)
        except OSError as error:
            raise BridgeError(f"{folder} cannot be written ({error.strerror}); name another with --dir") from error
        authority = cls(folder)
        with authority._changing() as register:
            authority._renew_broker(register, now)
            authority._write(register, now)
        return authority

    def certificate(self) -> bytes:
        """Return the authority's own certificate, which boxes verify the broker with."""
        return signer.pem(self._signer.certificate)

    def members(self) -> list[Member]:
        """Return everybody, with the end of the newest certificate."""
        register = self._read()
        found = []
        for user, text in sorted(register.names.items()):
            newest = max(register.issued[user], key=lambda i: i.until)
            revoked = all(i.revoked for i in register.issued[user])
            found.append(Member(parse_name(text), newest.until, revoked))
        return found

    def enroll(self, name: Name, request: bytes, now: datetime, days: float = DAYS) -> bytes:
        """Sign a request; certificates this member had before with another key are revoked.

        Returns:
            The certificate and the authority's own, PEM.

        Raises:
            ConfigError: the request is no good, or the id belongs to a box of another site.
        """
        public = signer.read_request(request, name)
        with self._changing() as register:
            if register.names.get(name.user, str(name)) != str(name) and self._alive(register, name.user, now):
                raise ConfigError(
                    f"{name.id} is enrolled as {register.names[name.user]}, and ids are unique in the fleet; "
                    f'to move it, first run "facefleet-bridge ca revoke {register.names[name.user]}"'
                )
            before = tuple(
                msgspec.structs.replace(i, revoked=i.revoked or now) for i in register.issued.get(name.user, ())
            )
            register.names[name.user] = str(name)
            register.issued[name.user] = before
            chain = self._issue(register, name, public, now, days)
            self._write(register, now)
        return chain

    def revoke(self, name: Name, now: datetime) -> None:
        """Revoke every certificate of a member and take its topics away.

        Raises:
            ConfigError: nobody of that name is enrolled.
        """
        with self._changing() as register:
            self._known(register, name)
            register.issued[name.user] = tuple(
                msgspec.structs.replace(i, revoked=i.revoked or now) for i in register.issued[name.user]
            )
            self._write(register, now)

    def renew(self, names: Sequence[Name], now: datetime, *, within_days: float, days: float = DAYS) -> list[Path]:
        """Issue anew for the same keys: for these members, or for all whose certificates end soon; and for the broker.

        Returns:
            The files to bring to the boxes.
        """
        with self._changing() as register:
            for name in names:
                self._known(register, name)
            soon = now + timedelta(days=within_days)
            chosen = list(names) or [
                parse_name(register.names[user])
                for user, issued in sorted(register.issued.items())
                if any(not i.revoked for i in issued) and max(i.until for i in issued) < soon
            ]
            files = []
            for name in chosen:
                if all(i.revoked for i in register.issued[name.user]):
                    raise ConfigError(f"{name} was revoked; enroll it again with a request of its own")
                path = self._issued(name)
                self._issue(register, name, signer.public_key(path.read_bytes()), now, days)
                files.append(path)
            current = x509.load_pem_x509_certificate((Path(register.broker) / broker.CERTIFICATE).read_bytes())
            if current.not_valid_after_utc < soon:
                self._renew_broker(register, now)
            self._write(register, now)
        return files

    @property
    def broker_folder(self) -> Path:
        """Return where the broker's files are."""
        return Path(self._read().broker)

    # -- the folder --------------------------------------------------------------------------------------------------

    def _issue(self, register: Register, name: Name, public: signer.PublicKey, now: datetime, days: float) -> bytes:
        made = self._signer.member(name, public, now, days)
        entry = Issued(f"{made.serial_number:x}", made.not_valid_after_utc)
        register.issued[name.user] = (*register.issued.get(name.user, ()), entry)
        # First the register: a certificate it does not know could not be revoked.
        write(self.folder / "register.json", _encode(register))
        chain = signer.pem(made) + self.certificate()
        write(self._issued(name), chain)
        return chain

    def _issued(self, name: Name) -> Path:
        return self.folder / "issued" / f"{name.user}.pem"

    def _renew_broker(self, register: Register, now: datetime) -> None:
        folder, key = Path(register.broker), signer.new_key()
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        write(folder / broker.KEY, signer.pem_key(key), mode=0o600)
        write(folder / broker.CERTIFICATE, signer.pem(self._signer.server(register.hosts, key.public_key(), now, DAYS)))
        with suppress(KeyError, PermissionError):  # Mosquitto reads it again on each reload, no longer as root
            os.chown(folder / broker.KEY, -1, grp.getgrnam("mosquitto").gr_gid)
            os.chmod(folder / broker.KEY, 0o640)

    def _write(self, register: Register, now: datetime) -> None:
        """Write the register, then what the broker reads of it."""
        register = msgspec.structs.replace(register, lists=register.lists + 1)
        write(self.folder / "register.json", _encode(register))
        folder = Path(register.broker)
        revoked = [(int(i.serial, 16), i.revoked) for some in register.issued.values() for i in some if i.revoked]
        alive = [parse_name(text) for user, text in register.names.items() if self._alive(register, user, now)]
        try:
            write(folder / broker.CA, self.certificate())
            write(folder / broker.CRL, self._signer.revocations(revoked, register.lists, now))
            write(folder / broker.ACL, broker.rules(alive).encode())
            write(folder / broker.CONF, broker.configuration(folder, register.port).encode())
        except OSError as error:
            raise BridgeError(f"{folder} cannot be written ({error.strerror}); mend that and run it again") from error

    @staticmethod
    def _alive(register: Register, user: str, now: datetime) -> bool:
        return any(not i.revoked and i.until > now for i in register.issued.get(user, ()))

    @staticmethod
    def _known(register: Register, name: Name) -> None:
        if register.names.get(name.user) != str(name):
            known = ", ".join(sorted(register.names.values())) or "nobody"
            raise ConfigError(f"{name} was never enrolled; enrolled are: {known}")

    def _read(self) -> Register:
        try:
            return msgspec.json.decode((self.folder / "register.json").read_bytes(), type=Register)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BridgeError(f"{self.folder}/register.json cannot be read ({error}); restore it") from error

    @contextmanager
    def _changing(self) -> Iterator[Register]:
        with (self.folder / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self._read()


def request(name: Name) -> tuple[bytes, bytes]:
    """Make a key and a request for it here, for a member that lives on this machine: (key PEM, request PEM)."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    key = signer.new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.user)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return signer.pem_key(key), made.public_bytes(serialization.Encoding.PEM)


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file durably; a secret one is never readable by others, not even for a moment."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def now() -> datetime:
    """Return the time, to the second: certificates know no finer."""
    return datetime.now(UTC).replace(microsecond=0)


def _encode(register: Register) -> bytes:
    return msgspec.json.format(msgspec.json.encode(register))
