"""The program as a folder of its own: a virtual environment filled from wheels, without network.

    /opt/facefleet/<version>-<digest>/    bin/  lib/pythonX.Y/site-packages/  pyvenv.cfg
    /opt/facefleet/current -> <version>-<digest>

A version never changes once it is there; the next one is built beside it, and `current` is swapped in one rename.
"""

import os
import shutil
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from edge.errors import EdgeError
from edge.flash.slots import remove

HOME = Path("opt/facefleet")
SHARE = Path("share/facefleet/systemd")
COMMANDS = {"edge": ("facefleet-edge",), "bridge": ("facefleet-bridge", "facefleet-edge")}
MODULES = {"facefleet-edge": "edge.cli", "facefleet-bridge": "bridge.cli"}
PIP_S = 1800.0


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
    folder = root / HOME / name
    if folder.is_dir():
        return name
    python = _python(root)
    aside = root / HOME / f"{name}.new"
    try:
        remove(aside)
        (aside / "bin").mkdir(parents=True)
        packages = aside / "lib" / python.name / "site-packages"
        packages.mkdir(parents=True)
        _pip(wheels, packages, f"facefleet[{role}] @ {wheel.resolve().as_uri()}", python)
        shutil.rmtree(packages / "bin", ignore_errors=True)  # they begin with our Python, not the box's
        (aside / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
        (aside / "bin/python").symlink_to(python)
        for command in COMMANDS[role]:
            _command(aside / "bin" / command, f"/{HOME}/{name}/bin/python", MODULES[command])
        os.rename(aside, folder)
    except OSError as error:
        raise EdgeError(f"{root / HOME} cannot be written ({error.strerror}); are you root, is there room?") from error
    return name


def units(root: Path, name: str) -> Path:
    """Return the folder of the units that came with a program."""
    found = list((root / HOME / name).glob(f"lib/*/site-packages/{SHARE}"))
    if not found:
        raise EdgeError(f"{root / HOME / name} holds no units: is the facefleet wheel from this project?")
    return found[0]


def make_current(root: Path, name: str) -> None:
    """Swap `current`; the one before stays, older ones go."""
    home = root / HOME
    link, before = home / "current", _target(home / "current")
    aside = home / ".current.new"
    aside.unlink(missing_ok=True)
    aside.symlink_to(name)
    os.replace(aside, link)
    for folder in home.iterdir():
        if folder.is_dir() and not folder.is_symlink() and folder.name not in (name, before):
            remove(folder)


def _target(link: Path) -> str:
    return os.readlink(link) if link.is_symlink() else ""


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
    return f"{wheel.name.split('-')[1]}-{digest.hexdigest()[:8]}"


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
