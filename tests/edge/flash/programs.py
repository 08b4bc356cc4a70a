"""Programs for tests that are only a few files, in wheels as pip would make them; and a box that has one installed."""

import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edge.box.status import BoxStatus, write_status
from edge.config import LoadedConfig, load_box
from edge.errors import FlashError
from edge.flash.slots import FlashState
from edge.flash.software import SoftwareUpdater
from edge.flash.updater import Parcel
from edge.flash.wheelhouse import build
from edge.install import wheels
from edge.install.program import Programs, assemble
from tests.edge.flash.desk import QUICK, Box, Desk, says

PYTHON = Path(sys.executable).resolve().with_name(f"python3.{sys.version_info.minor}")
BAD = "bad"  # a wheel with this in its program does not get well


def wheel(
    folder: Path, name: str, version: str, files: Mapping[str, bytes], tag: str = "py3-none-any", **head: Any
) -> Path:
    """Write a wheel; `head` are further lines of its METADATA, such as Requires_Dist."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    lines += [f"{key.replace('_', '-')}: {v}" for key, values in head.items() for v in values]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, data in files.items():
            archive.writestr(file, data)
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def our_wheel(folder: Path, version: str, text: str = "", needs: str = "tinylib>=1", tag: str = "py3-none-any") -> Path:
    """Write a wheel of facefleet that needs one other package."""
    data = f"facefleet-{version}.data"
    files = {
        "edge/__init__.py": f"TEXT = {text!r}\n".encode(),
        f"{data}/data/share/facefleet/systemd/facefleet-edge.service": f"# {version} {text}\n".encode(),
        f"{data}/scripts/facefleet-edge": b"#!python\n",
    }
    extra = {"Provides_Extra": ["edge"], "Requires_Dist": [f'{needs}; extra == "edge"']}
    return wheel(folder, "facefleet", version, files, tag, **extra)


def install(programs: Programs, made: list[Path], name: str) -> None:
    """Put a program there as `facefleet-edge install` leaves it."""
    programs.prepare()
    folder = programs.new_folder(name)

    def fill(into: Path) -> None:
        for one in made:
            wheels.unpack(one, into, 1 << 20)

    assemble(folder, programs.folder(name), PYTHON, "edge", fill)
    programs.seal(name)
    programs.point_current(name)
    programs.point_proven(name)
    programs.write_state(FlashState(slot=name))


def how_it_is(programs: Programs, config: LoadedConfig, nonce: str) -> BoxStatus:
    """Return what a box says that runs `current`: well, unless its program is bad."""
    found = replace(says(config, nonce), program=programs.current_slot)
    text = (programs.packages(programs.current_slot) / "edge/__init__.py").read_text()
    return replace(found, publisher="disconnected: bad program") if BAD in text else found


@dataclass
class ProgramService:
    """A service that is only its `health.json`; a unit that fails is named in `fails`."""

    programs: Programs
    box: Box
    restarts: list[str] = field(default_factory=list)
    fails: str = ""

    def restart(self) -> None:
        slot = self.programs.current_slot
        self.restarts.append(slot)
        if self.fails and self.fails in slot:
            raise FlashError(f"unit failed on {slot}")
        config = load_box(self.box.slots.current / "config.yaml")
        write_status(config.state_dir, how_it_is(self.programs, config, f"program-{len(self.restarts)}"))

    def restart_if_running(self) -> None:
        self.restart()

    def stop(self) -> None:
        raise AssertionError("there is always an older program")


@dataclass
class ProgramBox:
    """A flashed box with an installed program 1.0, and the updater of programs."""

    desk: Desk
    folder: Path
    box: Box = field(init=False)
    service: ProgramService = field(init=False)
    updater: SoftwareUpdater = field(init=False)
    steps: list[tuple[str, str]] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.box = Box(self.folder / "state")
        self.box.updater.apply(self.desk.parcel(1))
        programs = Programs(self.folder / "opt")
        lib = wheel(self.folder / "old", "tinylib", "1.5", {"tinylib/__init__.py": b"", "tinylib/data.bin": b"x" * 100})
        install(programs, [our_wheel(self.folder / "old", "1.0"), lib], "1.0-abcdef12")
        self.service = ProgramService(programs, self.box)
        self.service.restart()
        self.updater = SoftwareUpdater(
            programs,
            self.service,
            None,
            QUICK,
            at=lambda step, what: self.steps.append((str(step), what)),
            state=self.box.slots,
            try_out=lambda folder, *_: self.tried.append(folder.name),
        )

    @property
    def programs(self) -> Programs:
        return self.updater.slots

    def made(self, version: str, counter: int, text: str = "", **changes: Any) -> Path:
        """Build a bundle of facefleet's wheel alone."""
        options = {key: changes.pop(key) for key in ("downgrade", "addressee", "device_class") if key in changes}
        source = our_wheel(self.folder / f"new-{counter}", version, text, **changes)
        return build(source, self.folder / f"{counter}.ffbundle", self.desk.key, counter=counter, **options).path

    def parcel(self, version: str, counter: int, text: str = "", **changes: Any) -> Parcel:
        """Put such a bundle into a parcel."""
        return Parcel(BytesIO(self.made(version, counter, text, **changes).read_bytes()), {})
