"""Wheels on a box: which fit, unpacked without pip, joined with what is there already. Drives: `edge.flash.software`.

A box has no pip: its program was installed by one that stayed behind. A wheel is a zip whose files lie as they will be
used, so taking one is unpacking it; what must fit is checked by `packaging`, the library that pip uses for it.
"""

import base64
import hashlib
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from edge.errors import FlashError

PROJECT = "facefleet"
MAX_MEMBERS = 50_000
DATA = ("purelib", "platlib", "data")  # of NAME.data/; scripts and headers are nothing a box runs
CHUNK_BYTES = 1 << 20
# What zipfile raises on damage, found by feeding it some.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
)


def parts(name: str) -> tuple[str, str]:
    """Return the canonical project name and the version that a wheel's file name says.

    Raises:
        FlashError: it is no name of a wheel.
    """
    try:
        project, version, _, _ = parse_wheel_filename(name)
    except InvalidWheelFilename as error:
        raise FlashError(f"{name} is no wheel: {error}") from error
    return str(project), str(version)


def unfit(names: Iterable[str]) -> list[str]:
    """Return which wheels this interpreter on this machine cannot use, by their file names."""
    fitting = frozenset(sys_tags())
    return [name for name in names if not parse_wheel_filename(name)[3] & fitting]


def here() -> str:
    """Return the closest tag of this interpreter and machine, such as cp311-cp311-manylinux_2_36_x86_64."""
    return str(next(sys_tags()))


def unpacked_bytes(wheel: Path) -> int:
    """Return the size of what is in a wheel.

    Raises:
        FlashError: it is no wheel that can be read.
    """
    with _opened(wheel) as archive:
        return sum(member.file_size for member in archive.infolist())


def unpack(wheel: Path, packages: Path, at_most_bytes: int) -> int:
    """Put a wheel's files below a site-packages folder, and a RECORD of where they really are.

    Args:
        wheel: one that fits.
        packages: the folder; nothing is written outside of it.
        at_most_bytes: more is refused.

    Returns:
        How many bytes were written.

    Raises:
        FlashError: it is damaged, too large, or names a file outside of the folder.
    """
    records: list[str] = []
    info, written = "", 0
    with _opened(wheel) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) > MAX_MEMBERS:
            raise FlashError(f"{wheel.name} holds {len(members)} files, expected at most {MAX_MEMBERS}")
        for member in members:
            path = _place(wheel, member)
            if path is None:
                continue
            if path.parent.suffix == ".dist-info":
                info = path.parent.name
                if path.name == "RECORD":
                    continue
            target = packages / path
            target.parent.mkdir(parents=True, exist_ok=True)
            digest, size = hashlib.sha256(), 0
            try:
                with archive.open(member) as source, target.open("xb") as out:
                    while chunk := source.read(CHUNK_BYTES):
                        size += len(chunk)
                        if (written := written + len(chunk)) > at_most_bytes:
                            raise FlashError(f"{wheel.name} grows beyond the {at_most_bytes} bytes its bundle says")
                        digest.update(chunk)
                        out.write(chunk)
            except DAMAGED as error:
                raise FlashError(f"{wheel.name}: {path} cannot be unpacked ({error}); make the wheel again") from error
            except FileExistsError as error:
                raise FlashError(f"{wheel.name} brings {path}, which is there already") from error
            target.chmod(0o755 if member.external_attr >> 16 & stat.S_IXUSR else 0o644)
            records.append(f"{_quoted(str(path))},sha256={_base64(digest.digest())},{size}")
    if not info:
        raise FlashError(f"{wheel.name} has no .dist-info folder: it is no wheel")
    (packages / info / "RECORD").write_text("\n".join([*records, f"{_quoted(f'{info}/RECORD')},,", ""]))
    return written


def take_over(old: Path, new: Path, but: Iterable[str]) -> list[str]:
    """Link all packages of one site-packages folder into another; return their names.

    Args:
        old: where they are; it is never changed, so both may share the files.
        new: where they are missing.
        but: names of packages that are not wanted, canonical.
    """
    unwanted, taken = set(but), []
    for found in distributions(path=[str(old)]):
        if (name := _name(found)) in unwanted:
            continue
        for file in _files(found, old):
            target = new / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                _link(old / file, target)
        taken.append(name)
    return taken


def packages_in(folder: Path) -> dict[str, str]:
    """Return the packages of a site-packages folder and their versions, by canonical name."""
    return {_name(found): found.version for found in distributions(path=[str(folder)])}


def unmet(folder: Path, requirement: str) -> list[str]:
    """Return what a site-packages folder lacks to fulfil a requirement and all that follow from it."""
    there = {_name(found): found for found in distributions(path=[str(folder)])}
    wrong: dict[str, None] = {}
    seen: set[str] = set()
    queue = [Requirement(requirement)]
    while queue:
        wanted = queue.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        found = there.get(canonicalize_name(wanted.name))
        if found is None:
            wrong[f"{wanted} is missing"] = None
        elif not wanted.specifier.contains(found.version, prereleases=True):
            wrong[f"{wanted} is wanted, {found.version} is there"] = None
        else:
            queue += [one for one in map(Requirement, found.requires or []) if _applies(one, wanted.extras)]
    return sorted(wrong)


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, ""))


def _name(found: Distribution) -> str:
    return str(canonicalize_name(found.metadata["Name"]))


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (OSError, *DAMAGED) as error:
        raise FlashError(f"{wheel} is no wheel that can be read ({error})") from error


def _place(wheel: Path, member: zipfile.ZipInfo) -> Path | None:
    """Return where a member goes below site-packages; None for what is not taken.

    Raises:
        FlashError: it is a link, or would lie elsewhere.
    """
    path = PurePosixPath(member.filename)
    mode = member.external_attr >> 16
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in member.filename or "\0" in member.filename:
        raise FlashError(f"{wheel.name} names {member.filename[:80]!r}, which lies outside of it; refused")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise FlashError(f"{wheel.name}: {member.filename[:80]!r} is no plain file; refused")
    if path.parts[0].endswith(".data"):
        return Path(*path.parts[2:]) if len(path.parts) > 2 and path.parts[1] in DATA else None
    return Path(path)


def _files(found: Distribution, folder: Path) -> Iterator[Path]:
    """Name the files of an installed package below its folder, with what Python compiled of them."""
    for file in found.files or ():
        path = Path(file)
        if path.is_absolute() or ".." in path.parts or not (folder / path).is_file():
            continue  # commands beside the folder, or files that somebody took away
        yield path
        if path.suffix == ".py":
            for compiled in (folder / path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
                yield compiled.relative_to(folder)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links, or another one
        shutil.copy2(source, target)


def _base64(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _quoted(path: str) -> str:
    return f'"{path}"' if "," in path else path
