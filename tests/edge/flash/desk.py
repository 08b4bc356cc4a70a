"""An integrator's desk for tests: keys, configs, models that are only bytes; and boxes that are only a file."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec

from edge.box.facts import boot_id
from edge.box.status import BoxStatus, CameraStatus, boottime_s, write_status
from edge.config import LoadedConfig, load_box
from edge.errors import FlashError
from edge.flash.desk import Made, build
from edge.flash.proof import Terms
from edge.flash.signing import load_public, new_key
from edge.flash.slots import Slots
from edge.flash.updater import Parcel, Updater
from edge.models.bundle import MANIFEST, describe
from edge.models.manifest import Input, Manifest

DATABASE = "6c6f6361-6c00-4000-8000-000000000000"
QUICK = Terms(start_s=0.4, hold_s=0.05, every_s=0.01)
BAD_PORT = 9  # a box whose config names this port does not get well


def light_model(models: Path, name: str, data: bytes = b"weights" * 500) -> None:
    """Write a bundle that passes every check but compiling."""
    folder = models / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(data)
    (folder / "checkpoint.pt").write_bytes(b"stays at the desk")
    files: dict[Any, Any] = {
        "onnx": describe(folder, folder / "model.onnx"),
        "checkpoint": describe(folder, folder / "checkpoint.pt"),
    }
    manifest = Manifest(
        name=name, version="1", task="detector", decoder="yolov10", input=Input(32, 32), outputs=("boxes", "scores"),
        files=files, licence="Apache-2.0", source="test", labels=("face",),
    )  # fmt: skip
    (folder / MANIFEST).write_bytes(msgspec.yaml.encode(manifest))


class Desk:
    """A folder with a key, models, and configs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.key = folder / "signing.key"
        new_key(self.key)
        light_model(folder / "models", "tiny")
        self.public = load_public(self.key)

    def write(self, name: str = "box.yaml", **changes: Any) -> Path:
        """Write a config; `cameras` and `mqtt` may be given whole."""
        config = {
            "site": "demo",
            "box": "lobby-1",
            "database": DATABASE,
            "models_dir": "models",
            "heads": [],
            "cameras": [{"id": "door", "detector": "tiny", "source": {"uri": "rtsp://127.0.0.1:1/door"}}],
            "mqtt": {"port": 1883},
        } | changes
        path = self.folder / name
        path.write_text(json.dumps(config))
        return path

    def secret(self, name: str, value: str) -> None:
        """Put a secret beside the configs."""
        path = self.folder / "credentials" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value)
        path.chmod(0o600)

    def made(self, counter: int, *, device_class: str = "any", trust: tuple[Path, ...] = (), **changes: Any) -> Made:
        """Build a bundle of a config."""
        path = self.write(f"box-{counter}.yaml", **changes)
        out = self.folder / f"{counter}.ffbundle"
        return build(path, out, self.key, counter=counter, device_class=device_class, trust=trust)

    def parcel(self, counter: int, **changes: Any) -> Parcel:
        """Build a bundle and put it into a parcel that a new box would take."""
        made = self.made(counter, **changes)
        return Parcel(BytesIO(made.path.read_bytes()), made.contents.secrets, self.public, "x86_64")


def says(config: LoadedConfig, nonce: str) -> BoxStatus:
    """Return what a box with this config says: well, unless its config names BAD_PORT."""
    publisher = "disconnected: refused" if config.box.mqtt.port == BAD_PORT else "connected"
    cameras = {camera.id: CameraStatus("streaming", 10, True) for camera in config.box.cameras}
    now_s = boottime_s()
    return BoxStatus(os.getpid(), boot_id() or "", now_s, now_s, nonce, config.digest, publisher, cameras)


@dataclass
class FileService:
    """A service that is only its `health.json`.

    Attributes:
        fails: its restart reports failure while this is set.
    """

    slots: Slots
    restarts: list[str] = field(default_factory=list)
    fails: str = ""
    stopped: bool = False
    status: Callable[[LoadedConfig, str], BoxStatus] = says

    def restart(self) -> None:
        self.restarts.append(self.slots.current_slot)
        if self.fails and self.slots.current_slot in self.fails:
            raise FlashError(f"unit failed on {self.slots.current_slot}")
        config = load_box(self.slots.current / "config.yaml")
        write_status(config.state_dir, self.status(config, f"nonce-{len(self.restarts)}"))

    def restart_if_running(self) -> None:
        self.restart()

    def stop(self) -> None:
        self.stopped = True


@dataclass
class Box:
    """A state root with an updater."""

    root: Path
    service: FileService = field(init=False)
    updater: Updater = field(init=False)
    steps: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        slots = Slots(self.root)
        self.service = FileService(slots)
        self.updater = Updater(
            slots, self.service, lambda *_: None, QUICK, at=lambda step, what: self.steps.append((str(step), what))
        )

    @property
    def slots(self) -> Slots:
        return self.updater.slots

    def running(self) -> int:
        """Return the counter of the config that runs."""
        return int(self.slots.current_slot or 0)

    def contents(self) -> dict[str, str]:
        """Return the digest of every file below the root that an update must not lose, links by their target."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if path.is_symlink():
                found[name] = os.readlink(path)
            elif path.is_file() and not name.startswith(("health.json", "result.json", "flash.lock")):
                found[name] = sha256(path.read_bytes()).hexdigest()
        return found
