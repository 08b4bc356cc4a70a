"""The integrator's desk for programs: a wheel or a folder of wheels becomes a bundle for boxes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import FlashError
from edge.flash import desk
from edge.flash.archive import describe
from edge.flash.desk import Made, Seen
from edge.flash.manifest import ANY_CLASS, Manifest
from edge.flash.portable import Contents
from edge.flash.slots import SUFFIX
from edge.install import wheels
from edge.install.wheels import PROJECT


def build(
    source: Path,
    out: Path,
    key_path: Path,
    *,
    counter: int | None = None,
    device_class: str = ANY_CLASS,
    addressee: str = "",
    downgrade: bool = False,
) -> Made:
    """Gather wheels and sign them.

    Args:
        source: facefleet's wheel, or a folder with it and what else boxes shall get.
        out: the bundle to write.
        key_path: the signing key.
        counter: as for configs.
        device_class: of the boxes it fits.
        addressee: SITE/BOX, or "" for every box that trusts the key.
        downgrade: boxes with a newer version take it too.

    Raises:
        EdgeError: there is no wheel of facefleet, or more than one, or the key is not usable.
    """
    found = [source] if source.is_file() else sorted(source.glob("*.whl"))
    names = [wheels.parts(path.name) for path in found]
    ours = [version for name, version in names if name == PROJECT]
    if len(ours) != 1:
        raise FlashError(
            f"{source} holds {len(ours)} wheels of facefleet, expected one; make it with "
            f'"pip wheel --no-deps -w {source if source.is_dir() or not source.exists() else source.parent} ."'
        )
    if twice := {name for name, _ in names if [n for n, _ in names].count(name) > 1}:
        raise FlashError(f"{source} holds more than one wheel of {', '.join(sorted(twice))}; leave one there")
    site, slash, box = addressee.partition("/")
    if bool(slash) != bool(addressee):
        raise FlashError(f"addressee {addressee!r} is no SITE/BOX")
    files = {f"wheels/{path.name}": path for path in found}
    manifest = Manifest(
        site=site,
        box=box,
        device_class=device_class,
        counter=counter or desk.next_counter(key_path),
        files=tuple(describe(path, file) for path, file in files.items()),
        created=desk.now_text(),
        software=ours[0],
        kind="software",
        version=ours[0],
        unpacked_bytes=sum(map(wheels.unpacked_bytes, found)),
        downgrade=downgrade,
    )
    return desk.signed(manifest, Contents(dict(files), {}, frozenset()), out, key_path)


@contextmanager
def built(source: Path, key_path: Path, device_class: str, downgrade: bool) -> Iterator[Made]:
    """Build a bundle that lives as long as the `with` block."""
    with tempfile.TemporaryDirectory(prefix="facefleet-flash-") as folder:
        out = Path(folder) / f"software{SUFFIX}"
        yield build(source, out, key_path, device_class=device_class, downgrade=downgrade)


def difference(seen: Seen, made: Made) -> list[str]:
    """Return what a flash would change, for a person; empty when it would change nothing.

    Raises:
        FlashError: the box has no program that could be updated.
    """
    if seen.software is None:
        raise FlashError('there is no program of ours that can be updated; put it there with "facefleet-edge install"')
    there, manifest = seen.software.packages, seen.software.manifest
    digests = {file.path: file.sha256 for file in manifest.files} if manifest else {}
    lines = []
    for file in made.head.manifest.files:
        name, version = wheels.parts(Path(file.path).name)
        if (before := there.get(name)) is None:
            lines.append(f"{name}: {version} added")
        elif before != version:
            lines.append(f"{name}: {before} → {version}")
        elif name == PROJECT and digests.get(file.path) != file.sha256:
            lines.append(f"{name}: {version}, built anew")
    return sorted(lines, key=lambda line: (not line.startswith(f"{PROJECT}:"), line))
