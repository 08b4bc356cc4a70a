"""A wheelhouse without a network: the packages of this environment, packed back into the wheels they came from."""

import base64
import email
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import Distribution, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NOT_IN_A_WHEEL = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")


def make(folder: Path, extra: str) -> Path:
    """Fill a folder with facefleet's wheel, built from this checkout, and everything that `extra` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(folder), str(copy(folder / "source"))], check=True, capture_output=True)
    (wheel,) = folder.glob("facefleet-*.whl")
    with zipfile.ZipFile(wheel) as built:  # not what is installed here: that may be older than pyproject.toml
        (metadata,) = (name for name in built.namelist() if name.endswith(".dist-info/METADATA"))
        ours = email.message_from_bytes(built.read(metadata)).get_all("Requires-Dist") or []
    for name in needed(ours, {extra}):
        pack(distribution(name), folder)
    return folder


def another(wheel: Path, version: str, folder: Path, changes: Mapping[str, bytes]) -> Path:
    """Write a wheel of facefleet once more, as another version and with some files changed."""
    folder.mkdir(parents=True, exist_ok=True)
    before = wheel.name.split("-")[1]
    path = folder / wheel.name.replace(f"-{before}-", f"-{version}-")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = changes.get(name, old.read(name))
            if name.endswith(".dist-info/METADATA"):
                data = data.replace(f"\nVersion: {before}\n".encode(), f"\nVersion: {version}\n".encode())
            new.writestr(name.replace(f"facefleet-{before}.", f"facefleet-{version}."), data)
    return path


def copy(folder: Path) -> Path:
    """Copy what a build reads: pip leaves build/ and egg-info behind in a tree, and others work in the checkout."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("edge", "bridge", "converters", "demo", "systemd"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def needed(requirements: list[str], extras: set[str]) -> list[str]:
    """Return the names of all distributions that some requirements lead to."""
    found: list[str] = []
    queue = [(requirements, extras)]
    while queue:
        texts, wanted = queue.pop()
        for text in texts:
            requirement = Requirement(text)
            if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in wanted or {""}):
                continue
            if requirement.name not in found:
                found.append(requirement.name)
                queue.append((requires(requirement.name) or [], set(requirement.extras)))
    return found


def pack(installed: Distribution, folder: Path) -> Path:
    """Zip an installed distribution into a wheel."""
    name = re.sub(r"[-_.]+", "_", installed.metadata["Name"])
    lines = (installed.read_text("WHEEL") or "").splitlines()
    tags = [line.partition(":")[2].strip().split("-") for line in lines if line.startswith("Tag:")]
    python, abi, platforms = (".".join(dict.fromkeys(tag[i] for tag in tags)) for i in range(3))
    path = folder / f"{name}-{installed.version}-{python}-{abi}-{platforms}.whl"
    if path.exists():
        return path
    files = [f for f in installed.files or () if f.parts[0] != ".." and "__pycache__" not in f.parts]
    record, info = [], ""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as wheel:
        for file in files:
            if file.parts[0].endswith(".dist-info"):
                info = file.parts[0]
                if file.name in NOT_IN_A_WHEEL:
                    continue
            data = Path(str(installed.locate_file(file))).read_bytes()
            wheel.writestr(zipfile.ZipInfo(file.as_posix()), data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{_quoted(file.as_posix())},sha256={digest},{len(data)}")
        wheel.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,", ""]))
    return path


def _quoted(path: str) -> str:
    return f'"{path}"' if "," in path else path
