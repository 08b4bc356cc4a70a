"""The parcel as it goes through a pipe to a box: one line of JSON with the secrets, then the bundle.

Back come lines of JSON (`Said`): steps as they are taken, and the end. Both sides of an SSH connection use this file.
"""

import base64
from collections.abc import Mapping
from typing import BinaryIO

import msgspec

from edge.errors import FlashError
from edge.flash.signing import decode_public
from edge.flash.slots import Result
from edge.flash.updater import MAX_SECRET_BYTES, MAX_SECRETS, Parcel

MAX_HEADER_BYTES = 2 * MAX_SECRETS * MAX_SECRET_BYTES


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands before the bundle; `adopt` is the desk's public key, for a box that knows none yet."""

    secrets: dict[str, str]
    adopt: str = ""
    schema: int = 1


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line from the box: a step, or the end with the box's own health report, or why it was refused."""

    step: str = ""
    what: str = ""
    result: Result | None = None
    report: str = ""
    error: str = ""


def write_header(secrets: Mapping[str, bytes], adopt: str) -> bytes:
    """Return the line before the bundle."""
    packed = {name: base64.b64encode(value).decode() for name, value in secrets.items()}
    return msgspec.json.encode(Header(packed, adopt)) + b"\n"


def read_parcel(stream: BinaryIO) -> Parcel:
    """Read the line; the stream then stands at the bundle.

    Raises:
        FlashError: it is malformed or too long.
    """
    line = stream.readline(MAX_HEADER_BYTES)
    try:
        header = msgspec.json.decode(line, type=Header)
        secrets = {name: base64.b64decode(value, validate=True) for name, value in header.secrets.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        kind = type(error).__name__  # the error's text might hold a secret
        raise FlashError(f"what was sent begins with no header of a parcel ({kind}); do both sides match?") from error
    return Parcel(stream, secrets, decode_public(header.adopt) if header.adopt else None)
