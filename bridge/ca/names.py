"""Who can be enrolled, by what name the broker knows them, and which topics are theirs. Pure."""

import re
from dataclasses import dataclass
from typing import Literal, cast

from bridge.errors import ConfigError
from edge.wire import ID, ROOT

Kind = Literal["box", "bridge", "reader", "enroller"]
Right = tuple[Literal["read", "write", "readwrite"], str]
MAX_COMMON_NAME = 64  # X.520's bound; a longer one is refused by TLS libraries

_BOX = re.compile(rf"({ID.pattern})/({ID.pattern})")
_OTHER = re.compile(rf"(bridge|reader|enroller):({ID.pattern})")


@dataclass(frozen=True, slots=True)
class Name:
    """One member of the fleet, as a person writes it: `munich/lobby-1`, `bridge:centre`, `reader:anna`.

    Ids of boxes are unique in the fleet, so a box is known to the broker by its id alone; a colon cannot stand in an
    id, so no box can be called like a bridge.
    """

    kind: Kind
    id: str
    site: str = ""

    @property
    def user(self) -> str:
        """Return the common name of the certificate, which is the user name at the broker."""
        return self.id if self.kind == "box" else f"{self.kind}:{self.id}"

    def __str__(self) -> str:
        return f"{self.site}/{self.id}" if self.kind == "box" else self.user

    def topics(self) -> list[Right]:
        """Return what this member may read and write; everything else is refused.

        A box hears its own state and health back: that is how it finds a twin that lives under its id.
        """
        if self.kind == "reader":
            return [("read", f"{ROOT}/#")]
        if self.kind == "bridge":
            return [
                ("read", f"{ROOT}/+/+/events"),
                ("read", f"{ROOT}/+/+/state"),
                ("read", f"{ROOT}/+/+/health"),
                ("read", f"{ROOT}/+/+/flash"),
                ("write", f"{ROOT}/+/+/ack"),
                ("write", f"{ROOT}/+/+/offer"),
                ("write", f"{ROOT}/bridge/{self.id}/state"),
            ]
        if self.kind == "enroller":
            return [("read", f"{ROOT}/+/+/request"), ("write", f"{ROOT}/+/+/certificate")]
        own = f"{ROOT}/{self.site}/{self.id}"
        return [
            ("write", f"{own}/events"),
            ("readwrite", f"{own}/state"),
            ("readwrite", f"{own}/health"),
            ("write", f"{own}/flash"),
            ("read", f"{own}/ack"),
            ("read", f"{own}/offer"),
            ("read", f"{ROOT}/bridge/+/state"),
            *_provisioning(own),
        ]


@dataclass(frozen=True, slots=True)
class ClaimName:
    """A one-time claim: of one box, known to the broker by an id of its own, so that two of a box are two."""

    id: str
    box: Name

    @property
    def user(self) -> str:
        """Return the common name of its certificate."""
        return f"claim:{self.id}"

    def __str__(self) -> str:
        return f"{self.box} {self.user}"

    def topics(self) -> list[Right]:
        """Return what it may read and write: its box's provisioning, and nothing else."""
        return _provisioning(f"{ROOT}/{self.box.site}/{self.box.id}")


def _provisioning(own: str) -> list[Right]:
    return [("write", f"{own}/request"), ("read", f"{own}/certificate")]


def parse_name(text: str) -> Name:
    """Read a name as a person writes it.

    Raises:
        ConfigError: it is none, or cannot stand in a topic or a certificate.
    """
    if match := _BOX.fullmatch(text):
        if match[1] == "bridge":
            raise ConfigError(f'{text!r}: no site can be called "bridge", because that topic is the bridges\' own')
        return Name("box", match[2], match[1])
    if match := _OTHER.fullmatch(text):
        name = Name(cast(Kind, match[1]), match[2])
        if len(name.user) > MAX_COMMON_NAME:
            raise ConfigError(f"{text!r} has {len(name.user)} characters, expected at most {MAX_COMMON_NAME}")
        return name
    raise ConfigError(
        f"{text!r} is no name, expected SITE/BOX, bridge:ID or reader:NAME, "
        "of letters, digits, '.', '_' and '-', such as munich/lobby-1"
    )
