"""The authority's book: who was let in, by which certificates and claims, and what of that still counts. Pure."""

from collections.abc import Iterator
from datetime import datetime

import msgspec

from bridge.ca.names import ClaimName, Name, parse_name
from bridge.errors import ConfigError


class Issued(msgspec.Struct, frozen=True, omit_defaults=True):
    """One certificate: its serial number, when it ends, and when it was revoked."""

    serial: str
    until: datetime
    revoked: datetime | None = None


class Claim(msgspec.Struct, frozen=True, omit_defaults=True):
    """A one-time claim of a box.

    Attributes:
        id: what the broker knows it by.
        name: of the box it is for.
        key: SHA-256 of the one public key it was used for, "" before. It stays good for asking after *that* certificate
            again, because a box may lose power before it has stored the answer.
        closed: when the box had shown itself with its own certificate, or the claim was taken back.
    """

    id: str
    name: str
    until: datetime
    key: str = ""
    closed: datetime | None = None

    @property
    def known_as(self) -> ClaimName:
        """Return its name at the broker."""
        return ClaimName(self.id, parse_name(self.name))


class Register(msgspec.Struct, frozen=True):
    """Where the broker is, and whom it may let in. `names` and `issued` by user name, `claims` by serial number."""

    hosts: tuple[str, ...]
    port: int
    broker: str
    names: dict[str, str] = {}
    issued: dict[str, tuple[Issued, ...]] = {}
    lists: int = 0  # how many revocation lists were written
    claims: dict[str, Claim] = {}
    reload: str = ""  # what makes the broker read its files again

    def encoded(self) -> bytes:
        """Return it as its file has it."""
        return msgspec.json.format(msgspec.json.encode(self))

    def alive(self, user: str, now: datetime) -> bool:
        """Tell whether a member has a certificate that counts."""
        return any(not i.revoked and i.until > now for i in self.issued.get(user, ()))

    def admitted(self, now: datetime) -> Iterator[Name | ClaimName]:
        """Yield who may use topics: members, open claims, and the boxes of these, which are about to be members."""
        members = {str(name): name for user, text in self.names.items() if self.alive(user, now)
                   for name in [parse_name(text)]}  # fmt: skip
        claims = [claim for claim in self.claims.values() if claim.closed is None and claim.until > now]
        members |= {claim.name: parse_name(claim.name) for claim in claims}
        yield from members.values()
        yield from (claim.known_as for claim in claims)

    def revoked(self, now: datetime) -> list[tuple[int, datetime]]:
        """Return the serial numbers for the revocation list. An expired claim is refused without standing on it."""
        members = [(i.serial, i.revoked) for some in self.issued.values() for i in some if i.revoked]
        claims = [(serial, c.closed) for serial, c in self.claims.items() if c.closed and c.until > now]
        return [(int(serial, 16), at) for serial, at in (*members, *claims)]

    def revoke(self, user: str, now: datetime) -> None:
        """Revoke all certificates of a member."""
        self.issued[user] = tuple(
            msgspec.structs.replace(i, revoked=i.revoked or now) for i in self.issued.get(user, ())
        )

    def close_claims(self, name: Name, now: datetime, *, key: str | None = None) -> bool:
        """Close the open claims of a box, or only those used for a key; tell whether there were any."""
        open_ = [s for s, c in self.claims.items() if c.name == str(name) and c.closed is None and key in (None, c.key)]
        for serial in open_:
            self.claims[serial] = msgspec.structs.replace(self.claims[serial], closed=now)
        return bool(open_)

    def check_site(self, name: Name, now: datetime) -> None:
        """Refuse an id that belongs to a box of another site.

        Raises:
            ConfigError: it does.
        """
        if self.names.get(name.user, str(name)) != str(name) and self.alive(name.user, now):
            raise ConfigError(
                f"{name.id} is enrolled as {self.names[name.user]}, and ids are unique in the fleet; "
                f'to move it, first run "facefleet-bridge ca revoke {self.names[name.user]}"'
            )

    def check_known(self, name: Name) -> None:
        """Refuse whoever was never enrolled.

        Raises:
            ConfigError: it is so.
        """
        if self.names.get(name.user) != str(name):
            known = ", ".join(sorted(self.names.values())) or "nobody"
            raise ConfigError(f"{name} was never enrolled; enrolled are: {known}")
