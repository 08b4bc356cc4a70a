"""The program as a folder of its own: a virtual environment filled from wheels, without network.

    /opt/facefleet/
      slots/<version>-x<digest>/ put there by `install`; by `flash --software`: <version>-<counter>, with manifest.json
        bin/  lib/pythonX.Y/site-packages/  pyvenv.cfg
        systemd -> lib/…         its units
      current -> slots/…         what the service runs
      proven -> slots/…          what has proven itself: it recovers, updates, and is what people call
      previous -> slots/…        the one before
      flash.json, result.json, flash.lock   as for configs (`edge.flash.slots`)

A version never changes once it is there; the next one is built beside it, and `current` is swapped in one rename.
`proven` follows when the new one has proven itself, so that a program that does not even start can be taken back.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from edge.errors import EdgeError
from edge.flash.slots import FlashState, Slots, swap, target

HOME = Path("opt/facefleet")
SHARE = Path("share/facefleet/systemd")
COMMANDS = {"edge": ("facefleet-edge",), "bridge": ("facefleet-bridge", "facefleet-edge")}
MODULES = {"facefleet-edge": "edge.cli", "facefleet-bridge": "bridge.cli"}
PIP_S = 1800.0

Fill = Callable[[Path], None]


class Programs(Slots):
    """The folder of all versions; it belongs to root, and holds neither keys nor an inbox."""

    def __init__(self, root: Path = Path("/") / HOME) -> None:
        super().__init__(root)
        self.proven = root / "proven"

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            FlashError: the root cannot be written.
        """
        try:
            for folder in (self.root, self.slots):
                folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise self._not_writable(error) from error

    @property
    def proven_slot(self) -> str:
        """Return the name of the slot that recovers the others, "" when there is none."""
        return target(self.proven)

    def point_proven(self, slot: str) -> None:
        """Swap `proven` likewise; what it leads to is believed to start."""
        swap(self.proven, slot)

    def kept(self) -> set[str]:
        """Name the slots that `tidy` leaves."""
        return super().kept() | {self.proven_slot}

    def packages(self, slot: str) -> Path:
        """Return the site-packages folder of a slot."""
        return packages(self.folder(slot))


def packages(folder: Path) -> Path:
    """Return the site-packages folder of a program.

    Raises:
        EdgeError: there is none.
    """
    found = list(folder.glob("lib/python3.*/site-packages"))
    if len(found) != 1:
        raise EdgeError(f"{folder} holds {len(found)} lib/python3.X/site-packages, expected one: no program of ours")
    return found[0]


def build(root: Path, wheels: Path, role: str) -> str:
    """Build the program of a wheelhouse beside those that are there.

    Args:
        root: of the system it is for.
        wheels: a folder with facefleet's wheel and all it needs, for that system's Python.
        role: "edge" or "bridge".

    Returns:
        The name of its folder, not yet current.

    Raises:
        EdgeError: a wheel is missing or unfit, or the system has no Python of its own.
    """
    wheel, name = _wheel(wheels), _name(wheels, role)
    programs = Programs(root / HOME)
    if programs.folder(name).is_dir():
        return name
    python = _python(root)

    def fill(packages: Path) -> None:
        _pip(wheels, packages, f"facefleet[{role}] @ {wheel.resolve().as_uri()}", python)
        shutil.rmtree(packages / "bin", ignore_errors=True)  # they begin with our Python, not the box's

    try:
        programs.slots.mkdir(parents=True, exist_ok=True)
        assemble(programs.new_folder(name), Path("/") / HOME / "slots" / name, python, role, fill)
        os.sync()
        programs.seal(name)
    except OSError as error:
        raise EdgeError(f"{root / HOME} cannot be written ({error.strerror}); are you root, is there room?") from error
    return name


def assemble(folder: Path, home: Path, python: Path, role: str, fill: Fill) -> None:
    """Make a program in an empty folder.

    Args:
        folder: where it is made.
        home: where it will lie, as the system it is for sees it.
        python: the interpreter of that system, named after its version.
        role: "edge" or "bridge".
        fill: puts the packages into site-packages.

    Raises:
        EdgeError: the packages hold no units.
    """
    (folder / "bin").mkdir()
    into = folder / "lib" / python.name / "site-packages"
    into.mkdir(parents=True)
    fill(into)
    if not (into / SHARE).is_dir():
        raise EdgeError(f"the facefleet wheel holds no units ({SHARE}): is it from this project?")
    (folder / "systemd").symlink_to((into / SHARE).relative_to(folder))
    (folder / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    (folder / "bin/python").symlink_to(python)
    for command in COMMANDS[role]:
        _command(folder / "bin" / command, f"{home}/bin/python", MODULES[command])


def units(root: Path, name: str) -> Path:
    """Return the folder of the units that came with a program."""
    return Programs(root / HOME).folder(name) / "systemd"


def make_current(root: Path, name: str) -> None:
    """Swap `current`, believing the new one; the one before stays, older ones go.

    Raises:
        EdgeError: an update is at work.
    """
    programs = Programs(root / HOME)
    with programs.locked():
        before, counters = programs.current_slot, programs.state().counters
        programs.point_current(name)
        programs.write_state(FlashState(slot=name, counters=counters))
        programs.point_proven(name)
        if before not in ("", name):
            programs.point_previous(before)
        programs.tidy()


def _wheel(wheels: Path) -> Path:
    found = sorted(wheels.glob("facefleet-*.whl"))
    if len(found) != 1:
        there = ", ".join(p.name for p in found) or "none"
        raise EdgeError(
            f"{wheels} holds {there} of facefleet's wheels, expected one; where there is a network, make it with "
            f"\"pip wheel -w {wheels} '.[edge]'\""
        )
    return found[0]


def _name(wheels: Path, role: str) -> str:
    wheel = _wheel(wheels)
    digest = sha256(role.encode() + wheel.read_bytes())
    for other in sorted(p.name for p in wheels.glob("*.whl")):
        digest.update(other.encode())
    return f"{wheel.name.split('-')[1]}-x{digest.hexdigest()[:8]}"  # never all digits: those are a counter


def _python(root: Path) -> Path:
    """Return the absolute path of the system's own Python, as that system sees it, named after its version."""
    if root == Path("/"):
        python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        if python.exists():
            return python
    found = sorted(p for p in (root / "usr/bin").glob("python3.*") if p.suffix[1:].isdecimal() and not p.is_symlink())
    if not found:
        raise EdgeError(f"{root} has no usr/bin/python3.X; expected a system with Python 3.11 or newer (apt: python3)")
    python = max(found, key=lambda p: int(p.suffix[1:]))
    if int(python.suffix[1:]) < 11:
        raise EdgeError(f"{root} has {python.name}, expected Python 3.11 or newer")
    if (there := _machine(python)) != (here := _machine(Path(sys.executable).resolve())):
        raise EdgeError(
            f"{root} is a system for another processor (ELF machine {there}, this one is {here}); "
            "install it on the box itself"
        )
    return Path("/") / python.relative_to(root)


def _machine(program: Path) -> int:
    """Return the e_machine of an ELF file (elf(5)); 62 is x86-64, 183 aarch64."""
    with program.open("rb") as file:
        return int.from_bytes(file.read(20)[18:20], "little")


def _pip(wheels: Path, target: Path, what: str, python: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--find-links", str(wheels), "--target", str(target), "--only-binary=:all:", what]
    if python.name != f"python{sys.version_info.major}.{sys.version_info.minor}":
        command += ["--python-version", python.name.removeprefix("python"), "--no-compile"]
    # Cleared: an environment of the one who installs must not leak its packages into the box.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_S, check=False, env=environment)
    if done.returncode:
        said = " ".join(done.stderr.split())[-800:]
        raise EdgeError(f"the wheels in {wheels} do not make a program for {python.name}: {said}")


def _command(path: Path, python: str, module: str) -> None:
    path.write_text(f"#!{python} -sE\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
