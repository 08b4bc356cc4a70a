"""One YAML file per bridge: what it says, as typed structs that check themselves. Read once, by cli.py.

An unknown key is an error, because it is a typo. Paths are relative to the config file. Secrets are named, never
written here.
"""

from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

import msgspec
import psycopg
from msgspec import Meta
from psycopg import conninfo

from bridge.errors import ConfigError
from edge.link import LinkSettings, Will
from edge.strict_yaml import Credential, KeyMistake, YamlErrors, load
from edge.wire import ID

Id = Annotated[str, Meta(pattern=f"^{ID.pattern}$", description="1–63 letters, digits, '.', '_', '-'")]

SESSION_EXPIRY_S = 3600  # of the broker's memory for us; a convenience: boxes resend whatever it forgets
RECEIVE_MAXIMUM = 1000  # deliveries under way to us: rounds for the writer while it waits for a COMMIT


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files for an encrypted connection; `cert` and `key` only where the broker wants a client certificate."""

    ca: str
    cert: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
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


class BridgeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bridge: who it is, which broker it reads, which database it fills, and whether it acknowledges.

    Attributes:
        ack: false never acknowledges: a staging bridge beside the real one, which boxes must not believe.
        sites: only these; none named means all. Several bridges share a fleet by sites.
        registry: "auto" takes every box that speaks; "strict" only those entered in the database before.
        database: if given, the UUID the database must have; the bridge refuses to start on another one.
        queue_mb: how much it holds in memory while the database is slow or away.
    """

    id: Id
    dsn: Annotated[str, Meta(min_length=1, description="postgresql://user@host/database or key=value pairs")]
    password: Credential | None = None
    mqtt: Mqtt = Mqtt()
    ack: bool = True
    sites: tuple[Id, ...] = ()
    retention_days: Annotated[int, Meta(ge=1, le=3660)] = 90
    registry: Literal["auto", "strict"] = "auto"
    database: str | None = None
    queue_mb: Annotated[int, Meta(ge=1, le=4096)] = 64
    credentials_dir: str | None = None

    def __post_init__(self) -> None:
        wrong = []
        try:
            inline = "password" in conninfo.conninfo_to_dict(self.dsn)
        except psycopg.ProgrammingError:
            # Not quoted: a dsn that cannot be parsed may still hold a password.
            wrong.append(KeyMistake("dsn", "not a dsn", "postgresql://user@host/database or key=value pairs"))
        else:
            if inline:
                expected = "`password: {credential: NAME}` on a line of its own: no secret stands in a config"
                wrong.append(KeyMistake("dsn", "an address with a password in it", expected))
        if "bridge" in self.sites:
            wrong.append(KeyMistake("sites", "a list with 'bridge' in it", "names of sites; no site is called that"))
        if self.database is not None:
            try:
                UUID(self.database)
            except ValueError:
                expected = 'a UUID; "facefleet-bridge migrate" prints it'
                wrong.append(KeyMistake("database", repr(self.database), expected))
        if wrong:
            raise ExceptionGroup("bridge", wrong)

    @property
    def database_uuid(self) -> UUID | None:
        """The UUID the database must have, if one is asked for."""
        return UUID(self.database) if self.database else None


def load_bridge(path: Path) -> BridgeConfig:
    """Read a bridge's config.

    Raises:
        ConfigError: all mistakes of the file, one a line, each with file:line, key, finding and expectation.
    """
    try:
        return load(path, BridgeConfig)
    except YamlErrors as error:
        raise ConfigError(f"{error}\nedit {path} and try again") from error


def full_dsn(config: BridgeConfig, base: Path) -> str:
    """Return the dsn with its password, which is looked up in systemd's credentials or beside the config."""
    password = _secret(config.password, config, base)
    return config.dsn if password is None else conninfo.make_conninfo(config.dsn, password=password)


def link_settings(config: BridgeConfig, base: Path, will: Will) -> LinkSettings:
    """Return how to reach the broker; client id and session derive from the bridge's id alone.

    Args:
        config: of the bridge.
        base: folder of the config file.
        will: what the broker says when we vanish.
    """
    mqtt, tls = config.mqtt, config.mqtt.tls
    return LinkSettings(
        host=mqtt.host,
        port=mqtt.port,
        client_id=f"facefleet-bridge-{config.id}",
        protocol=mqtt.protocol,
        user=mqtt.user,
        password=_secret(mqtt.password, config, base),
        ca=base / tls.ca if tls else None,
        cert=base / tls.cert if tls and tls.cert else None,
        key=base / tls.key if tls and tls.key else None,
        keep_alive_s=mqtt.keep_alive_s,
        clean_start=False,
        session_expiry_s=SESSION_EXPIRY_S,
        receive_maximum=RECEIVE_MAXIMUM,
        will=will,
        backoff_s=(0.5, 15.0),
    )


def _secret(name: Credential | None, config: BridgeConfig, base: Path) -> str | None:
    if name is None:
        return None
    try:
        return name.read([base / (config.credentials_dir or "credentials")])
    except ValueError as error:
        raise ConfigError(str(error)) from error
