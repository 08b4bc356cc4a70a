"""The authority: lets members in, shuts them out, renews them. What it decides stands in its folder (`folder.py`)."""

import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bridge.ca import broker, files, requests, signer
from bridge.ca.folder import Folder
from bridge.ca.names import ClaimName, Name, parse_name
from bridge.ca.register import Claim, Register
from bridge.ca.reload import reload
from bridge.errors import BridgeError, ConfigError
from edge.wire import CertificateRequest

DAYS = 397.0
RENEW_DAYS = 45.0
CLAIM_DAYS = 7.0
SERVE = Name("enroller", "ca")


@dataclass(frozen=True, slots=True)
class Member:
    """One line of `ca list`."""

    name: Name | ClaimName
    until: datetime
    revoked: bool
    used: bool = False


class Authority:
    """An authority that is there. Every change holds a lock and ends with the broker's files rewritten.

    Args:
        folder: as in the docstring of `folder.py`.

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
        self._disk = Folder(folder, self._signer)

    @classmethod
    def make(
        cls, folder: Path, hosts: Sequence[str], port: int, broker_folder: Path, now: datetime, reload_by: str = ""
    ) -> "Authority":
        """Make a new one; `reload_by` is the command that makes the broker read its files again.

        Raises:
            ConfigError: there is one already, whose members a new one would lock out.
        """
        if (folder / "ca.key").exists():
            raise ConfigError(f"{folder} holds an authority already; a new one would lock out every box: name another")
        made = signer.new_signer(f"facefleet CA {now:%Y-%m-%d}", now)
        book = Register(tuple(hosts), port, str(broker_folder.resolve()), reload=reload_by)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / "issued").mkdir(exist_ok=True)
            files.write(folder / "ca.pem", signer.pem(made.certificate))
            files.write(folder / "register.json", book.encoded())
            files.write(folder / "ca.key", signer.pem_key(made.key), mode=0o600)
        except OSError as error:
            raise BridgeError(f"{folder} cannot be written ({error.strerror}); name another with --dir") from error
        authority = cls(folder)
        with authority._disk.changing() as register:
            authority._disk.renew_broker(register, now, DAYS)
            authority._disk.save(register, now)
        return authority

    def certificate(self) -> bytes:
        """Return the authority's own certificate, which boxes verify the broker with."""
        return signer.pem(self._signer.certificate)

    def members(self) -> list[Member]:
        """Return everybody, with the end of the newest certificate."""
        register = self._disk.read()
        found = []
        for user, text in sorted(register.names.items()):
            newest = max(register.issued[user], key=lambda i: i.until)
            revoked = all(i.revoked for i in register.issued[user])
            found.append(Member(parse_name(text), newest.until, revoked))
        claims = (c for c in register.claims.values() if c.closed is None)
        return found + [Member(c.known_as, c.until, False, used=bool(c.key)) for c in claims]

    def enroll(self, name: Name, request: bytes, now: datetime, days: float = DAYS) -> bytes:
        """Sign a request; certificates this member had before with another key are revoked, open claims closed.

        Returns:
            The certificate and the authority's own, PEM.

        Raises:
            ConfigError: the request is no good, or the id belongs to a box of another site.
        """
        public = signer.read_request(request, name)
        with self._disk.changing() as register:
            register.close_claims(name, now)
            return self._enroll(register, name, public, now, days)

    def revoke(self, name: Name, now: datetime) -> None:
        """Revoke every certificate and claim of a member and take its topics away.

        Raises:
            ConfigError: nobody of that name is enrolled or about to be.
        """
        with self._disk.changing() as register:
            if not register.close_claims(name, now) or register.names.get(name.user) == str(name):
                register.check_known(name)
                register.revoke(name.user, now)
            self._disk.save(register, now)

    def claim(self, name: Name, now: datetime, days: float = CLAIM_DAYS) -> bytes:
        """Make a one-time claim for a box; one that it had before is closed.

        Returns:
            Key, certificate and the authority's own certificate, PEM: keep it secret.

        Raises:
            ConfigError: it is no box, or its id belongs to a box of another site.
        """
        if name.kind != "box":
            raise ConfigError(f'{name} is no box; a {name.kind} gets its key with "ca enroll {name} --out DIR"')
        with self._disk.changing() as register:
            register.check_site(name, now)
            register.close_claims(name, now)
            known_as, key = ClaimName(secrets.token_hex(8), name), signer.new_key()
            made = self._signer.claim(known_as, key.public_key(), now, days)
            entry = Claim(known_as.id, str(name), made.not_valid_after_utc)
            register.claims[f"{made.serial_number:x}"] = entry
            self._disk.save(register, now)
        return signer.pem_key(key) + signer.pem(made) + self.certificate()

    def answer(self, name: Name, request: CertificateRequest, now: datetime, days: float = DAYS) -> bytes:
        """Answer a request that came through the broker: a claim's first, or a member's for its own key.

        A request that was answered before gets the same certificate again: whoever asked may have lost power since.

        Returns:
            The certificate and the authority's own, PEM.

        Raises:
            ConfigError: it is refused; the message is for the box.
        """
        asked = requests.judge(request, name, self._signer.certificate, now)
        with self._disk.changing() as register:
            if asked.user == name.user:
                return self._answer_member(register, name, asked, now, days)
            return self._answer_claim(register, name, asked, now, days)

    def _answer_claim(self, register: Register, name: Name, asked: requests.Asked, now: datetime, days: float) -> bytes:
        claim, again = register.claims.get(asked.serial), f'make a new one: "facefleet-bridge ca claim {name}"'
        key = requests.fingerprint(asked.public)
        if claim is None or claim.name != str(name):
            raise ConfigError(f"the certificate shown is no claim of {name}; {again}")
        if claim.closed is not None:
            raise ConfigError(f"the claim was closed at {claim.closed:%Y-%m-%d %H:%M} UTC; {again}")
        if claim.key not in ("", key):
            raise ConfigError(f"the claim was used already, for another key: was its card copied? If so, {again}")
        if claim.key and self._newest(name, asked.public):
            return self._disk.issued(name).read_bytes()
        register.claims[asked.serial] = msgspec.structs.replace(claim, key=key)
        return self._enroll(register, name, asked.public, now, days)

    def _answer_member(
        self, register: Register, name: Name, asked: requests.Asked, now: datetime, days: float
    ) -> bytes:
        known = [i for i in register.issued.get(name.user, ()) if i.serial == asked.serial and not i.revoked]
        if not known or register.names.get(name.user) != str(name):
            raise ConfigError(f"the certificate shown is none that {name} has now; enroll it again")
        if asked.public != asked.shown:
            raise ConfigError(f'a new key needs a claim: "facefleet-bridge ca claim {name}"')
        if register.close_claims(name, now, key=requests.fingerprint(asked.public)):
            self._disk.save(register, now)
        if self._newest(name, asked.public, after=now + timedelta(days=RENEW_DAYS)):
            return self._disk.issued(name).read_bytes()
        chain = self._disk.issue(register, name, asked.public, now, days)
        self._disk.save(register, now)
        return chain

    def _newest(self, name: Name, public: signer.PublicKey, after: datetime | None = None) -> bool:
        """Tell whether the newest certificate of a member is for a key, and good for longer than `after`."""
        try:
            found = x509.load_pem_x509_certificate(self._disk.issued(name).read_bytes())
        except (OSError, ValueError):
            return False
        return found.public_key() == public and (after is None or found.not_valid_after_utc > after)

    def _enroll(self, register: Register, name: Name, public: signer.PublicKey, now: datetime, days: float) -> bytes:
        register.check_site(name, now)
        if not self._newest(name, public):  # with the same key it may still need the one before, until this arrives
            register.revoke(name.user, now)
        register.names[name.user] = str(name)
        chain = self._disk.issue(register, name, public, now, days)
        self._disk.save(register, now)
        return chain

    def renew(self, names: Sequence[Name], now: datetime, *, within_days: float, days: float = DAYS) -> list[Path]:
        """Issue anew for the same keys: for these members, or for all whose certificates end soon; and for the broker.

        Returns:
            The files to bring to the boxes.
        """
        with self._disk.changing() as register:
            for name in names:
                register.check_known(name)
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
                path = self._disk.issued(name)
                self._disk.issue(register, name, signer.public_key(path.read_bytes()), now, days)
                files.append(path)
            if self._disk.broker_ends(register) < soon:
                self._disk.renew_broker(register, now, DAYS)
            self._disk.save(register, now)
        return files

    @property
    def broker_folder(self) -> Path:
        """Return where the broker's files are."""
        return Path(self._disk.read().broker)

    @property
    def broker_address(self) -> tuple[str, int]:
        """Return under which name and port members reach the broker."""
        register = self._disk.read()
        return register.hosts[0], register.port

    def serving(self, now: datetime) -> tuple[Path, Path]:
        """Return certificate and key with which `ca serve` goes to the broker; made when they are missing or end.

        Where the certificate is not the newest one issued, the power went between the two, or `ca renew` was run.
        The key stays, unless it was revoked: whoever connects while the certificate is replaced finds a pair that fits.
        """
        key, certificate = self.folder / "serve.key", self.folder / "serve.pem"
        with self._disk.changing() as register:
            good = [i.until for i in register.issued.get(SERVE.user, ()) if not i.revoked]
        whole = (
            key.is_file()
            and certificate.is_file()
            and certificate.read_bytes() == self._disk.issued(SERVE).read_bytes()
        )
        if not whole or max(good, default=now) < now + timedelta(days=RENEW_DAYS):
            made, asked = request(SERVE, signer.read_key(key.read_bytes()) if good and key.is_file() else None)
            files.write(key, made, mode=0o600)
            files.write(certificate, self.enroll(SERVE, asked, now))  # last: it says that all of this was done
        return certificate, key

    def keep(self, now: datetime) -> tuple[Path, Path]:
        """Renew what nobody asks for before it ends: the broker's certificate and that of `ca serve`.

        Returns:
            Certificate and key of `ca serve`.
        """
        with self._disk.changing() as register:
            if self._disk.broker_ends(register) < now + timedelta(days=RENEW_DAYS):
                self._disk.renew_broker(register, now, DAYS)
                self._disk.save(register, now)
        return self.serving(now)

    def reload(self, command: str = "") -> str:
        """Let the broker read its files again, by a command or the one `ca init` was given.

        Returns:
            What a person still has to do; "" when it is done.

        Raises:
            BridgeError: the command failed.
        """
        return reload(command or self._disk.read().reload)

    def admits(self, now: datetime) -> object:
        """Return what the broker has to know of: it must read its files again when this is another."""
        register = self._disk.read()
        names = {str(name) for name in register.admitted(now)}
        return names, register.revoked(now), self._disk.broker_ends(register)

    def written_ns(self) -> int:
        """Return when the broker's files were last written, by whatever process."""
        return (self.broker_folder / broker.CONF).stat().st_mtime_ns


def request(name: Name, key: ec.EllipticCurvePrivateKey | None = None) -> tuple[bytes, bytes]:
    """Make a request here, for a member that lives on this machine, with a new key unless one is given.

    Returns:
        Key and request, PEM.
    """
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import NameOID

    key = key or signer.new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.user)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return signer.pem_key(key), made.public_bytes(serialization.Encoding.PEM)


def now() -> datetime:
    """Return the time, to the second: certificates know no finer."""
    return datetime.now(UTC).replace(microsecond=0)
