"""A model bundle on disk: a manifest and the files it vouches for. The runtimes and the flasher open it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from edge.errors import ModelError
from edge.models.manifest import File, Manifest, Role

MANIFEST = "manifest.yaml"
SCHEMA = 1
# A box runs without the float checkpoint; it stays at the integrator's desk when the bundle is flashed.
NOT_FLASHED: frozenset[Role] = frozenset({"checkpoint"})
IR_PAIRS: tuple[tuple[Role, Role], ...] = (("xml", "bin"), ("fp16_xml", "fp16_bin"))
DECODERS_OF_TASK = {
    "detector": ("yolov10", "yunet", "ssd", "single_box"),
    "classifier": ("softmax", "sigmoid"),
    "landmarks": ("points",),
    "embedder": ("vector",),
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose manifest was read and whose files were checked against it."""

    folder: Path
    manifest: Manifest

    def path(self, role: Role) -> Path:
        """Return the path of the file with this role.

        Raises:
            ModelError: the bundle has no such file.
        """
        file = self.manifest.files.get(role)
        if file is None:
            raise ModelError(
                f"{self.folder / MANIFEST}: files.{role} is missing, found {sorted(self.manifest.files)}; "
                f"build the bundle again with facefleet-convert"
            )
        return self.folder / file.path


def load_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle and check it.

    Args:
        folder: the folder that holds `manifest.yaml`.
        verify: also compare size and SHA-256 of every file (about 1 ms per MB).

    Raises:
        ModelError: the folder, the manifest or a file is missing, damaged, contradictory, or outside the folder.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder, expected a model bundle; correct the path in the config")
    try:
        manifest = msgspec.yaml.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: not found, so {folder} is no model bundle; copy the whole bundle again") from error
    except (msgspec.MsgspecError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: {error}; restore the file the converter wrote") from error
    if problem := contradiction(manifest):
        raise ModelError(f"{path}: {problem}; build the bundle again with facefleet-convert")
    for role, file in manifest.files.items():
        _check_file(folder, role, file, verify)
    return Bundle(folder, manifest)


def contradiction(manifest: Manifest) -> str | None:
    """Say what in a well-formed manifest cannot be true, or None."""
    source = manifest.input
    channels = {1, 3} if source.color == "GRAY" else {3}
    if manifest.schema > SCHEMA:
        return f"schema is {manifest.schema}, this software reads up to {SCHEMA}"
    if source.width < 1 or source.height < 1 or source.batch < 0:
        return f"input is {source.width}×{source.height}, batch {source.batch}, expected positive sizes and batch ≥ 0"
    if len(source.mean) not in channels or len(source.scale) not in channels or 0.0 in source.scale:
        return f"input.mean {source.mean} and input.scale {source.scale} do not fit {source.color} (no zero scale)"
    if manifest.decoder not in DECODERS_OF_TASK[manifest.task]:
        return f"decoder is {manifest.decoder}, expected one of {DECODERS_OF_TASK[manifest.task]} for a {manifest.task}"
    if source.fit == "align" and manifest.task != "embedder":
        return f"input.fit is align, expected letterbox or stretch for a {manifest.task}: only embedders align faces"
    if not manifest.outputs:
        return "outputs is empty, expected the output names in the decoder's order"
    if manifest.task == "classifier" and len(manifest.labels) < 2:
        return f"labels is {manifest.labels}, expected at least two for a classifier"
    if strangers := [label for label in manifest.people if label not in manifest.labels]:
        return f"identifies names {', '.join(strangers)}, expected labels out of {', '.join(manifest.labels) or 'none'}"
    for xml, weights in IR_PAIRS:
        if (xml in manifest.files) != (weights in manifest.files):
            return f"files has only one of {xml} and {weights}, expected both"
    return None


def _check_file(folder: Path, role: Role, file: File, verify: bool) -> None:
    path = folder / file.path
    again = "copy the whole bundle again"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"{folder / MANIFEST}: files.{role}.path is {file.path}, expected a file inside {folder}")
    if not path.is_file():
        if role in NOT_FLASHED:
            return
        raise ModelError(f"{path}: not found, but files.{role} of {folder / MANIFEST} names it; {again}")
    if not verify:
        return
    size = path.stat().st_size
    if size != file.bytes:
        raise ModelError(f"{path}: {size} bytes found, {file.bytes} expected; the file is damaged, {again}")
    if (digest := sha256(path)) != file.sha256.lower():
        raise ModelError(f"{path}: SHA-256 {digest} found, {file.sha256} expected; the file is damaged, {again}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe(folder: Path, path: Path) -> File:
    """Return the manifest entry of a file inside a bundle's folder, as the converters write it."""
    return File(path=path.relative_to(folder).as_posix(), sha256=sha256(path), bytes=path.stat().st_size)
