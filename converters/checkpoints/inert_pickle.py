"""Read a torch checkpoint without running anything in it: tensors become tensors, every other object an inert record.

A pickle names the callables it wants called. Here a name is looked up in a short table of our own and never imported:
what rebuilds a tensor is done by us, classes of known libraries become `Record`s that only remember what they were
given, and any other name (`os.system`, `builtins.eval`) ends the reading with that name in the message.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from converters.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Their objects are remembered, not made. A module path is compared part by part: "torchevil" is not "torch".
REMEMBERED = ("ultralytics", "torch.nn", "torch.optim", "models", "numpy", "pathlib", "datetime", "argparse")
# Harmless values of Python's own; anything else of `builtins` is refused.
BUILTINS: dict[str, Callable[..., Any]] = {"set": set, "dict": dict, "list": list, "tuple": tuple, "slice": slice}

# What unpickling garbage raises, over and above what the reader refuses by name.
DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, EOFError, LookupError, ValueError, TypeError, RuntimeError,
    AttributeError, OverflowError, MemoryError,
)  # fmt: skip


class Record:
    """An object of a foreign class: its name, the arguments of its making and its state, nothing else.

    Attributes:
        origin: such as `ultralytics.nn.modules.conv.Conv`.
        args: what its class would have been called with.
        state: what its `__dict__` would have been.
    """

    origin = ""

    def __new__(cls, *args: Any, **_: Any) -> "Record":
        made = super().__new__(cls)
        made.args, made.state = args, {}
        return made

    def __init__(self, *args: Any, **_: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"state": state}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value

    def __reduce__(self) -> Any:
        raise TypeError(f"a record of {self.origin} cannot be pickled")


class TorchZip:
    """The parts of a file written by `torch.save`: a zip with one pickle and one entry per storage.

    Args:
        content: the file, or its bytes.
        name: what messages call it.
    """

    def __init__(self, content: Path | bytes, name: str) -> None:
        self.name = name
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content) if isinstance(content, bytes) else content)
        except zipfile.BadZipFile as error:
            raise CheckpointError(
                f"{name}: not a file torch.save writes ({error}); a file older than torch 1.6 must be saved again"
            ) from error
        pickles = [entry for entry in self._zip.namelist() if entry.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise CheckpointError(
                f"{name}: {len(pickles)} entries data.pkl found, expected one; not a torch checkpoint"
            )
        self._root = pickles[0].removesuffix("data.pkl")
        self._storages: dict[str, torch.Tensor] = {}

    def read(self) -> Any:
        """Return what was saved, tensors on the CPU, foreign objects as records.

        Raises:
            CheckpointError: damaged, or the pickle wants something called that only rebuilds no tensor.
        """
        try:
            return _Reader(io.BytesIO(self._zip.read(self._root + "data.pkl")), self).load()
        except CheckpointError:
            raise
        except DAMAGED as error:
            raise CheckpointError(f"{self.name}: damaged, its pickle cannot be read: {error}") from error

    def storage(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        """Return one storage as a flat tensor."""
        if key not in self._storages:
            raw = bytearray(self._zip.read(f"{self._root}data/{key}"))
            self._storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return self._storages[key]


def read_checkpoint(path: Path) -> Any:
    """Return the content of a `.pt` file; see `TorchZip.read`."""
    return TorchZip(path, str(path)).read()


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, source: TorchZip) -> None:
        super().__init__(stream, encoding="utf-8")
        self._source = source
        self._classes: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return our own stand-in for a name; the name itself is never imported."""
        full = f"{module}.{name}"
        if full in OURS:
            return OURS[full]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("builtins", "__builtin__") and name in BUILTINS:
            return BUILTINS[name]
        if any(module == known or module.startswith(known + ".") for known in REMEMBERED):
            return self._classes.setdefault(full, type(name, (Record,), {"origin": full}))
        raise CheckpointError(
            f"{self._source.name}: its pickle wants to run {full}; refused, and nothing of it was run. "
            "Get the checkpoint from its maker again, or have it saved as a state dict"
        )

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """Return the storage a tensor lies in."""
        kind, dtype, key, _location, _count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise CheckpointError(f"{self._source.name}: unknown kind of storage {kind} {dtype}")
        return self._source.storage(str(key), dtype)


def _tensor(storage: torch.Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> torch.Tensor:
    """Return a view into a storage; torch checks that it stays inside."""
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _scalar(_dtype: Any, raw: Any = b"") -> Any:
    """Return a numpy scalar's bytes: figures of a training run, of no use here."""
    return raw


OURS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": tuple,
    "torch.device": lambda *args: args,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": lambda text, *_: text,
}


def plain_tensors(state: Any, name: str) -> dict[str, torch.Tensor]:
    """Return a state dict in float32.

    Raises:
        CheckpointError: it holds something else than named tensors.
    """
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        found = type(state).__name__ if not isinstance(state, dict) else f"a dict with {sorted(map(str, state))[:4]}"
        raise CheckpointError(f"{name}: {found}, expected a state dict of named tensors")
    return {str(k): v.float() if v.is_floating_point() else v for k, v in state.items()}
