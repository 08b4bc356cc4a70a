"""The address of a source, checked once, with its credentials kept out of every text."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, get_args
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from edge.capture.address import emptied, filled, keeps_places, secrets_in
from edge.errors import ConfigError

Kind = Literal["file", "folder", "usb", "rtsp", "http"]
Transport = Literal["tcp", "udp"]
_SCHEMES = {"rtsp": ("rtsp", "rtsps"), "http": ("http", "https")}


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """Say which source to open and how.

    A user and password written into the address are moved to their own fields at once, so that neither `location`
    nor `repr` can show them; what stood in path or query leaves `{user}` and `{password}` there.

    Attributes:
        kind: what the location is.
        location: path, USB index or /dev/videoN, or URL.
        user, password: values, already resolved from a credential.
        fps: folder: images per second of media time (10 when None). Live: at most so many frames a second are
            converted and handed out, which saves CPU; None means all. A file is lossless and ignores it.
        hw_decode: ask for hardware decoding; falls back aloud.
        transport: how RTSP carries its video; "tcp" loses nothing, "udp" only where a camera cannot do better.
        silence_s: a live source without a frame for so long counts as dead and is rebuilt; turning it up tolerates
            slower cameras, but notices a hung one later.
        fourcc: pixel format to ask a USB camera for, such as "MJPG"; None leaves its own.
        size: width and height to ask a USB camera for, pixels; None leaves its own.
    """

    kind: Kind
    location: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    fps: float | None = None
    hw_decode: bool = False
    transport: Transport = "tcp"
    silence_s: float = 20.0
    fourcc: str | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"source kind is {self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        if not self.location:
            raise ConfigError(f"the {self.kind} source has no location; give a path, an index or a URL")
        if self.transport not in get_args(Transport):
            raise ConfigError(f"{self.shown}: transport is {self.transport!r}, expected tcp or udp")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"{self.shown}: fps is {self.fps}, must be above 0 and at most 1000")
        if not 0 < self.silence_s <= 3600:
            raise ConfigError(f"{self.shown}: silence_s is {self.silence_s}, must be above 0 and at most 3600")
        if self.fourcc is not None and len(self.fourcc) != 4:
            raise ConfigError(f"{self.shown}: fourcc is {self.fourcc!r}, expected four letters such as MJPG")
        if self.kind in _SCHEMES:
            self._check_url(_SCHEMES[self.kind])

    def _check_url(self, schemes: tuple[str, ...]) -> None:
        try:
            parts = urlsplit(self.location)
            host, _port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"the {self.kind} source's address cannot be read: {_reason(error)}") from None
        if parts.scheme.lower() not in schemes or not host:
            raise ConfigError(
                f"{self.shown}: not an address of kind {self.kind}, expected {schemes[0]}://host[:port]/path"
            )
        if parts.username is not None:
            bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
            object.__setattr__(self, "location", urlunsplit(bare))
            if self.user is None:
                object.__setattr__(self, "user", unquote(parts.username))
                object.__setattr__(self, "password", unquote(parts.password or ""))
        if found := secrets_in(self.location):
            location, user, values = emptied(self.location)
            if len(values | {self.password} - {None}) > 1:
                raise ConfigError(
                    f"the {self.kind} source has more than one secret, besides {', '.join(found)} in its address; "
                    "expected one: ask the camera for a stream that needs no more"
                )
            object.__setattr__(self, "location", location)
            object.__setattr__(self, "user", user if self.user is None else self.user)
            object.__setattr__(self, "password", *values)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the source a person means by one word: a USB index, a device, a URL, a folder or a file."""
        scheme = text.partition("://")[0].lower() if "://" in text else ""
        for kind, schemes in _SCHEMES.items():
            if scheme in schemes:
                return cls(kind=kind, location=text)  # type: ignore[arg-type]
        if text.isdecimal() or text.startswith("/dev/"):
            return cls(kind="usb", location=text)
        return cls(kind="folder" if Path(text).is_dir() else "file", location=text)

    @property
    def shown(self) -> str:
        """The source's name in logs and errors: no user, no password, no query (cameras take passwords there too)."""
        if "://" not in self.location:
            return self.location
        scheme, _, rest = self.location.partition("://")
        authority, slash, path = rest.partition("/")
        return f"{scheme}://{authority.rpartition('@')[2].partition('?')[0]}{slash}{path.partition('?')[0]}"

    @property
    def address(self) -> str:
        """The address as the camera is asked for it: with a secret only where it has a place in path or query."""
        return filled(self.location, self.user, self.password)

    @property
    def url(self) -> str:
        """The address with user and password in it: for FFmpeg's ears only, never for a log."""
        if not self.user or keeps_places(self.location):
            return self.address
        parts = urlsplit(self.location)
        who = f"{quote(self.user, safe='')}:{quote(self.password or '', safe='')}"
        return urlunsplit(parts._replace(netloc=f"{who}@{parts.netloc}"))

    def scrub(self, text: str) -> str:
        """Return a text of somebody else's making without this source's credentials."""
        for secret in (self.url, self.address, self.password, quote(self.password or "", safe="")):
            if secret and secret != self.location:
                text = text.replace(secret, "***")
        return text


def _reason(error: ValueError) -> str:
    # urlsplit quotes what it could not read, and that may be a password; only its own words may pass.
    return "the port is not a number" if "port" in str(error).lower() else "it is malformed"
