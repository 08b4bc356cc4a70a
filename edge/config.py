"""One YAML file per box: what it says, as typed structs that check themselves. Read once, in `app.py`.

An unknown key is an error, because it is a typo. Paths are relative to the config file. Secrets are named, never
written here.
"""

import os
import stat
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from msgspec import Meta

from edge.capture.address import keeps_places, secrets_in
from edge.consent import Consent
from edge.errors import ConfigError
from edge.geometry import polygon_fault
from edge.strict_yaml import Credential, KeyMistake, YamlErrors, load
from edge.wire import ID

SENSITIVE = ("race", "emotion")  # heads that stay off until the site writes down why they are on
DEFAULT_HEADS = ("age", "gender")
OWN_TLS = "tls"  # in the state folder: what a box got when it was enrolled (`edge.box.certificate`)
OWN_KEY, OWN_CERTIFICATE, OWN_CA = "box.key", "box.pem", "ca.pem"
OWN_KEY_CREDENTIALS = ("box.key", "box.plain.key")  # as systemd hands it over: it was encrypted at rest, or not
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHIPPED_MODELS = Path(__file__).resolve().parent.parent / "models_int8"

Id = Annotated[str, Meta(pattern=f"^{ID.pattern}$", description="1–63 letters, digits, '.', '_', '-'")]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Point = tuple[float, float]
SourceKind = Literal["file", "folder", "usb", "rtsp", "http"]
NETWORK: dict[str, SourceKind] = {"rtsp": "rtsp", "rtsps": "rtsp", "http": "http", "https": "http"}


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where frames come from: a video file, a folder of images, a USB index, an rtsp:// or http:// address."""

    uri: Annotated[
        str | int, Meta(description="clip.mp4, images/, 0, /dev/video0, rtsp://host/stream, http://host/mjpeg")
    ]
    user: str | None = None
    password: Credential | None = None
    fps: Annotated[float, Meta(gt=0, le=240)] | None = None
    transport: Literal["tcp", "udp"] = "tcp"
    hw_decode: bool = False
    silence_s: Annotated[float, Meta(ge=1, le=600)] = 20.0
    realtime: Annotated[bool, Meta(description="play a file at its own pace instead of as fast as possible")] = False
    recorded_at: (
        Annotated[datetime, Meta(tz=True, description="when a recording began; else: so that it ends now")] | None
    ) = None

    def __post_init__(self) -> None:
        text = str(self.uri)
        if not text.strip():
            raise KeyMistake("uri", "empty", "a path, a USB index, or an rtsp:// or http:// address")
        if "://" not in text:
            return
        scheme = text.partition("://")[0].lower()
        if scheme not in (*NETWORK, "file"):
            raise KeyMistake("uri", f"an address of kind {scheme!r}", "a path, a USB index, rtsp:// or http://")
        if scheme in NETWORK and "@" in text:  # wherever it stands: a password may hold a slash
            raise KeyMistake(
                "uri",
                "an address with credentials in it",
                f"{_without_credentials(text)} with `user: …` and `password: {{credential: NAME}}` beside it: "
                "no secret stands in a config; an @ that belongs to the path is written %40",
            )
        if scheme in NETWORK and (found := secrets_in(text)):
            raise KeyMistake(
                "uri",
                f"an address with credentials in it ({', '.join(found)})",
                "`…={password}` in its place, and `password: {credential: NAME}` beside it (`{user}` likewise): no "
                "secret stands in a config",
            )
        if keeps_places(text) and self.password is None:
            raise KeyMistake("password", "missing", "`password: {credential: NAME}`, for {password} stands in the uri")
        if scheme in NETWORK and not _readable(text):
            raise KeyMistake("uri", "an address without a host, or with a port that is no number", f"{scheme}://host/…")

    def kind(self, base: Path) -> SourceKind:
        """Tell what the address stands for; `base` is the folder that relative paths start from."""
        text = str(self.uri)
        if text.isdecimal() or text.startswith("/dev/video"):
            return "usb"
        if (scheme := text.partition("://")[0].lower()) in NETWORK and "://" in text:
            return NETWORK[scheme]
        return "folder" if text.endswith("/") or self.location(base).is_dir() else "file"

    def location(self, base: Path) -> Path:
        """Return the absolute path of a file or folder source."""
        return (base / str(self.uri).removeprefix("file://")).resolve()


class SortConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SORT's three numbers, in frames that were looked at: a larger max_age survives occlusion but swaps ids more."""

    max_age: Annotated[int, Meta(ge=1, le=10_000)] = 30
    min_hits: Annotated[int, Meta(ge=1, le=1000)] = 3
    iou_threshold: Annotated[float, Meta(gt=0, lt=1)] = 0.3


class GateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Look for faces only where something moves: saves most of the work on a quiet camera."""

    enabled: bool = False
    luma_step: Annotated[int, Meta(ge=1, le=254, description="luma steps a pixel must change by")] = 18
    motion_area: Annotated[float, Meta(gt=0, le=1, description="share of the frame that must change")] = 0.002
    linger_s: Annotated[float, Meta(ge=0, le=60, description="keep looking so long after motion")] = 1.0
    recheck_s: Annotated[float, Meta(gt=0, le=60, description="look at standing faces this often")] = 1.0
    idle_s: Annotated[float, Meta(gt=0, le=600, description="look at an empty, still picture this often")] = 5.0


class Camera(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One camera: where its frames come from, what must not be seen, what looks for faces, how they are followed."""

    id: Id
    source: Source
    detector: str = "yolov10n-face-320"
    score_threshold: Annotated[float, Meta(gt=0, lt=1)] | None = None
    fps: Annotated[float, Meta(gt=0, le=60, description="detections a second; between them SORT predicts")] | None = (
        None
    )
    masks: tuple[tuple[Point, ...], ...] = ()
    gate: GateConfig = GateConfig()
    sort: SortConfig = SortConfig()

    def __post_init__(self) -> None:
        wrong = []
        for i, polygon in enumerate(self.masks):
            if fault := polygon_fault(polygon):
                found, _, expected = fault.partition(", expected ")
                wrong.append(KeyMistake(f"masks[{i}]", found, expected))
        if wrong:
            raise ExceptionGroup("masks", wrong)


class HeadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One classifier over faces. `race` and `emotion` need a written purpose; it is kept in the database.

    One that recognizes a person needs that person's consent, by the label of the bundle; it stays on the box.
    """

    name: Id
    bundle: str | None = None
    purpose: str | None = None
    consent: Annotated[
        dict[str, Consent], Meta(description="of each person whom the bundle recognizes, by its label, such as `me`")
    ] = {}
    min_face_px: Annotated[int, Meta(ge=16, le=1024)] = 64
    threshold: (
        Annotated[Fraction, Meta(description="below this the head abstains; the bundle's own unless set")] | None
    ) = None

    def __post_init__(self) -> None:
        if (
            any(word in f"{self.name} {self.bundle or ''}".lower() for word in SENSITIVE)
            and not (self.purpose or "").strip()
        ):
            raise KeyMistake(
                "purpose",
                "missing",
                f"one sentence why this site infers {self.name}: it is off until a purpose is written",
            )

    @property
    def bundle_name(self) -> str:
        """Return the bundle of this head: `<name>-student` unless the config names another."""
        return self.bundle or f"{self.name}-student"


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files for an encrypted connection, or `own`: those that this box got when it was enrolled.

    `cert` and `key` only where the broker wants a client certificate.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    own: Annotated[bool, Meta(description="key and certificate from this box's enrolment")] = False

    def __post_init__(self) -> None:
        if self.own and (self.ca or self.cert or self.key):
            raise KeyMistake("own", "true beside ca, cert or key", "either `own: true` or files")
        if not self.own and self.ca is None:
            raise KeyMistake("ca", "missing", "the file of the broker's authority, or `own: true` for an enrolled box")
        if (self.cert is None) != (self.key is None):
            missing = "cert" if self.cert is None else "key"
            raise KeyMistake(missing, "missing", "cert and key together, or neither")


class Mqtt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 1883
    protocol: Literal["5", "3.1.1"] = "5"
    user: str | None = None
    password: Credential | None = None
    tls: Tls | None = None
    keep_alive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    deflate: bool = False


class OutboxConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how much a box remembers while the centre is away, and how often it writes to its card."""

    max_mb: Annotated[int, Meta(ge=8, le=65536)] = 256
    max_days: Annotated[float, Meta(gt=0, le=365)] = 7
    commit_s: Annotated[float, Meta(gt=0, le=1)] = 1.0


class Preview(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The live page. Off loopback it needs a token and blurs faces."""

    enabled: bool = False
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="0 takes a free one")] = 8088
    token: Credential | None = None
    blur: bool | None = None
    width: Annotated[int, Meta(ge=160, le=3840)] = 960
    fps: Annotated[float, Meta(gt=0, le=60)] = 10

    @property
    def loopback(self) -> bool:
        """Tell whether only this machine can open the page."""
        return self.host in LOOPBACK

    @property
    def blurred(self) -> bool:
        """Tell whether faces are blurred: off loopback unless the site says otherwise in writing."""
        return not self.loopback if self.blur is None else self.blur

    def __post_init__(self) -> None:
        if not self.loopback and self.token is None:
            raise KeyMistake("token", "missing", "`token: {credential: NAME}`, because the page is not on loopback")


class Box(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A camera box: who it is, what it sees, where its events go."""

    site: Id
    box: Id
    database: Annotated[str, Meta(description="UUID of the one database whose acks this box believes")]
    cameras: Annotated[tuple[Camera, ...], Meta(min_length=1)]
    heads: tuple[HeadConfig, ...] = tuple(HeadConfig(name) for name in DEFAULT_HEADS)
    landmarks: (
        Annotated[str, Meta(description="bundle of five points: of a visit's crops the frontal ones are asked about")]
        | None
    ) = None
    models_dir: str | None = None
    state_dir: str = "/var/lib/facefleet"
    credentials_dir: str | None = None
    devices: Annotated[tuple[Literal["NPU", "GPU", "CPU"], ...], Meta(min_length=1)] = ("CPU",)
    threads: Annotated[int, Meta(ge=0, le=256, description="of the detector; 0: half of the cores, others decode")] = 0
    mqtt: Mqtt = Mqtt()
    outbox: OutboxConfig = OutboxConfig()
    presence_s: Annotated[int, Meta(ge=1, le=3600, description="grid of the presence counts")] = 60
    update_s: Annotated[int, Meta(ge=60, le=86400, description="an update per visit at most this often")] = 60
    health_s: Annotated[float, Meta(ge=1, le=3600)] = 60
    preview: Preview = Preview()

    def __post_init__(self) -> None:
        if self.site == "bridge":
            raise KeyMistake("site", "'bridge'", "another name: that topic is the bridges' own")
        for key, names in (("cameras", [c.id for c in self.cameras]), ("heads", [h.name for h in self.heads])):
            if twice := sorted({n for n in names if names.count(n) > 1}):
                raise KeyMistake(key, f"a list that names {', '.join(twice)} twice", "each name once")
        try:
            UUID(self.database)
        except ValueError:
            raise KeyMistake("database", repr(self.database), "a UUID; `facefleet-bridge migrate` prints it") from None

    def bundles(self) -> tuple[tuple[str, str, str], ...]:
        """Return every bundle this box runs, as (name, key that names it, task it must be for), without repeats."""
        wanted = [(camera.detector, f"cameras[{i}].detector", "detector") for i, camera in enumerate(self.cameras)]
        wanted += [(head.bundle_name, f"heads[{i}].bundle", "classifier") for i, head in enumerate(self.heads)]
        wanted += [(self.landmarks, "landmarks", "landmarks")] if self.landmarks else []
        return tuple(dict.fromkeys(wanted))


class TlsFiles(msgspec.Struct, frozen=True):
    """Where the files of an encrypted connection lie."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


class LoadedConfig(msgspec.Struct, frozen=True):
    """A box's config with the folder its relative paths start from and the digest that names this very text."""

    box: Box
    path: Path
    digest: str

    @property
    def base(self) -> Path:
        """Return the folder of the config file."""
        return self.path.parent

    @property
    def state_dir(self) -> Path:
        """Return where the outbox and the caches live."""
        return (self.base / self.box.state_dir).resolve()

    @property
    def models_dir(self) -> Path:
        """Return where bundles are looked for: the shipped ones unless the config names a folder."""
        return (self.base / self.box.models_dir).resolve() if self.box.models_dir else SHIPPED_MODELS

    @property
    def credential_dirs(self) -> tuple[Path, ...]:
        """Return the folders that named secrets may lie in, besides systemd's."""
        return ((self.base / (self.box.credentials_dir or "credentials")).resolve(),)

    @property
    def has_own_tls(self) -> bool:
        """Tell whether this box goes to the broker with what it got when it was enrolled."""
        return self.box.mqtt.tls is not None and self.box.mqtt.tls.own

    @property
    def own_tls_dir(self) -> Path:
        """Return where an enrolled box keeps its certificate."""
        return self.state_dir / OWN_TLS

    def tls_files(self) -> TlsFiles | None:
        """Return the files of the broker connection, None where it is not encrypted."""
        tls, folder = self.box.mqtt.tls, self.own_tls_dir
        if tls is None:
            return None
        if not tls.own:
            assert tls.ca is not None, "the struct asks for it"
            cert, key = (self.base / name if name else None for name in (tls.cert, tls.key))
            return TlsFiles(self.base / tls.ca, cert, key)
        given = Path(os.environ.get("CREDENTIALS_DIRECTORY") or folder)  # the unit's LoadCredential= of both kinds
        key = next((given / name for name in OWN_KEY_CREDENTIALS if (given / name).is_file()), folder / OWN_KEY)
        return TlsFiles(folder / OWN_CA, folder / OWN_CERTIFICATE, key)

    def secret(self, credential: Credential | None, whose: str) -> str | None:
        """Return a named secret, None where none is named.

        Raises:
            ConfigError: it cannot be read; begins with `whose`.
        """
        try:
            return None if credential is None else credential.read(self.credential_dirs)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{whose}: {error}") from error


def _readable(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _without_credentials(address: str) -> str:
    """Return an address that may be printed: what stands before its last @, and any query, is left out."""
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def refuse_open_key(path: Path) -> None:
    """Refuse a private key that others than its owner may read; one that is not there is somebody else's to find.

    Raises:
        ConfigError: its mode is open.
    """
    if path.parent == Path(os.environ.get("CREDENTIALS_DIRECTORY", "/")):
        return  # systemd guards it, with an access list that a mode does not show
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f'{path} has mode {mode:04o} and can be read by others, expected 0600; run "chmod 600 {path}", and enroll '
            "this box anew if you do not know who has read it"
        )


def load_box(path: Path) -> LoadedConfig:
    """Read a box's config.

    Raises:
        ConfigError: all mistakes of the file, one a line, each with file:line, key, finding and expectation.
    """

    try:
        box = load(path, Box)
    except YamlErrors as error:
        count = len(error.mistakes)
        raise ConfigError(
            f'{error}\n{count} mistake{"s"[: count != 1]}; edit the file and run "facefleet-edge check {path}"'
        ) from error
    return LoadedConfig(box, path.resolve(), sha256(path.read_bytes()).hexdigest()[:12])
