"""Which kind of checkpoint a file is, by its content: extensions lie."""

import zipfile
from pathlib import Path
from typing import Literal

from converters.errors import CheckpointError

Format = Literal["torch", "torchscript", "pt2", "keras", "onnx"]
HDF5 = b"\x89HDF\r\n\x1a\n"


def format_of(path: Path) -> Format:
    """Return the format; an unknown one counts as ONNX, which has no magic number and says what it misses.

    Raises:
        CheckpointError: no file, an empty one, or a bare pickle.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint")
    with path.open("rb") as stream:
        head = stream.read(8)
    if not head:
        raise CheckpointError(f"{path}: empty; copy the checkpoint again")
    if head == HDF5:
        return "keras"
    if not zipfile.is_zipfile(path):
        if head[:1] == b"\x80":
            raise CheckpointError(
                f"{path}: a bare pickle (torch before 1.6, or no checkpoint at all); load it where it was made and "
                "save it again with a newer torch"
            )
        if head[:2] == b"PK":
            raise CheckpointError(f"{path}: the beginning of a zip without its end; copy the checkpoint again")
        return "onnx"
    with zipfile.ZipFile(path) as archive:
        names = [name.split("/") for name in archive.namelist()]
    last = {parts[-1] for parts in names}
    if "config.json" in last:
        return "keras"
    if "serialized_exported_program.json" in last or "archive_format" in last:
        return "pt2"
    if "constants.pkl" in last or any("code" in parts[:-1] for parts in names):
        return "torchscript"
    if "data.pkl" in last:
        return "torch"
    raise CheckpointError(f"{path}: a zip with {sorted(last)[:4]}, expected a torch, TorchScript, .pt2 or .keras file")
