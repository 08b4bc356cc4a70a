"""The integrator's desk: a config and a key become a bundle; what a flash would change is said before it is done."""

import difflib
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from edge.box.certificate import Held
from edge.box.status import BoxStatus
from edge.config import load_box
from edge.errors import FlashError
from edge.flash.archive import Head, describe, write_bundle
from edge.flash.manifest import ANY_CLASS, CONFIG, Manifest
from edge.flash.portable import Contents, gather
from edge.flash.signing import decode_public, encode_public, key_id, load_private, load_public
from edge.flash.slots import SUFFIX, FlashState, Identity, Result, write_durably
from edge.identity import head_manifests, require_consents, today_utc


class SeenProgram(msgspec.Struct, frozen=True):
    """The program of a target; `packages` are versions by canonical name, without manifest it was not flashed."""

    slot: str
    packages: dict[str, str]
    manifest: Manifest | None = None
    state: FlashState = FlashState()
    result: Result | None = None
    free_bytes: int = 0


class Seen(msgspec.Struct, frozen=True):
    """What a target says about itself before anything is sent; secrets stay where they are."""

    identity: Identity | None = None
    manifest: Manifest | None = None
    config: str = ""
    state: FlashState = FlashState()
    result: Result | None = None
    status: BoxStatus | None = None
    trusted: tuple[str, ...] = ()
    free_bytes: int = 0
    software: SeenProgram | None = None
    certificate: Held | None = None


@dataclass(frozen=True)
class Made:
    """A bundle that was built, and what travels beside it."""

    path: Path
    head: Head
    contents: Contents

    @property
    def config(self) -> str:
        """Return the config as it will lie on the box."""
        data = self.contents.files[CONFIG]
        assert isinstance(data, bytes), "portable.gather rewrites it"
        return data.decode()


def build(
    config_path: Path,
    out: Path,
    key_path: Path,
    *,
    counter: int | None = None,
    device_class: str = ANY_CLASS,
    trust: Sequence[Path] = (),
) -> Made:
    """Check a config, gather its models and sign them.

    Args:
        config_path: the box's YAML, as it lies on the desk.
        out: the bundle to write.
        key_path: the signing key.
        counter: default: the time in seconds, or one more than this key's last, whichever is greater.
        device_class: of the boxes it fits.
        trust: public keys that the box shall believe afterwards, and no others.

    Raises:
        ConfigError: the config has mistakes: it never leaves the desk.
        EdgeError: key or models are not usable.
    """
    config = load_box(config_path)
    load_private(key_path)  # before models are read
    contents = gather(config)
    require_consents(config, head_manifests(config), today_utc())
    manifest = Manifest(
        site=config.box.site,
        box=config.box.box,
        device_class=device_class,
        counter=counter or next_counter(key_path),
        files=tuple(describe(path, source) for path, source in contents.files.items()),
        created=now_text(),
        software=version("facefleet"),
        trust=tuple(encode_public(load_public(path)) for path in trust),
    )
    return signed(manifest, contents, out, key_path)


def signed(manifest: Manifest, contents: Contents, out: Path, key_path: Path) -> Made:
    """Write a bundle, and note its counter beside the key.

    Raises:
        FlashError: the key is not usable, the manifest breaks a limit, or it cannot be written.
    """
    key = load_private(key_path)
    try:
        head = write_bundle(out, manifest, contents.files, key)
        write_durably(_counter_file(key_path), f"{max(manifest.counter, _last_counter(key_path))}\n".encode())
    except OSError as error:
        raise FlashError(f"{error.filename or out} cannot be written ({error.strerror})") from error
    return Made(out, head, contents)


@contextmanager
def built(config_path: Path, key_path: Path, device_class: str, trust: Sequence[Path] = ()) -> Iterator[Made]:
    """Build a bundle that lives as long as the `with` block."""
    with tempfile.TemporaryDirectory(prefix="facefleet-flash-") as folder:
        yield build(config_path, Path(folder) / f"bundle{SUFFIX}", key_path, device_class=device_class, trust=trust)


def difference(seen: Seen, made: Made) -> list[str]:
    """Return what a flash would change, for a person; empty when it would change nothing."""
    old, new = seen.manifest, made.head.manifest
    before = old.models if old else {}
    lines = list(
        difflib.unified_diff(
            seen.config.splitlines(), made.config.splitlines(), "config on the box", "config to flash", lineterm="", n=2
        )
    )
    for model in sorted(before.keys() | new.models.keys()):
        if model not in before:
            lines.append(f"model {model}: added")
        elif model not in new.models:
            lines.append(f"model {model}: removed")
        elif before[model] != new.models[model]:
            lines.append(f"model {model}: changed")
    believed = {key_id(decode_public(name)) for name in new.trust}
    if believed and believed != set(seen.trusted):
        lines.append(f"keys believed afterwards: {', '.join(sorted(believed))}")
    if made.contents.secrets:
        lines.append(f"secrets written anew: {', '.join(sorted(made.contents.secrets))}")
    if missing := sorted(made.contents.wanted - made.contents.secrets.keys()):
        note = f"credentials not on this desk, so the box must have them already: {', '.join(missing)}"
        lines += [note] if lines else []
    return lines


def now_text() -> str:
    """Return the time as a manifest has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def next_counter(key_path: Path) -> int:
    """Return the counter of a key's next bundle, of either kind: the clock's seconds, but always more than the last."""
    return max(int(time.time()), _last_counter(key_path) + 1)


def _last_counter(key_path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(_counter_file(key_path).read_text())
    return 0


def _counter_file(key_path: Path) -> Path:
    return key_path.with_name(key_path.name + ".counter")
