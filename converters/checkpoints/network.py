"""A network of face crops in any format the converters read, as ONNX with the input it eats.

What `classifier` and `embedder` convert, what `distill` learns from, what `train-student --pictures` builds on.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import onnx

from converters.checkpoints.formats import format_of
from converters.checkpoints.onnx import fixed, picture_input, read_onnx
from converters.errors import CheckpointError, ConvertError
from edge.models.manifest import Input


@dataclass(frozen=True)
class Told:
    """What the command line says of a checkpoint, because few files say it themselves.

    Attributes:
        size: side of the input in pixels, 0 where the file says it.
        color: RGB, BGR or GRAY; None for the usual.
        mean: subtracted from each channel, 0 to 255; None for the usual.
        scale: each channel is divided by it then; None for the usual.
        module: `package.module:Class` of a state dict, empty for our own student.
        arguments: its keyword arguments as JSON.
    """

    size: int = 0
    color: str | None = None
    mean: Sequence[float] | None = None
    scale: Sequence[float] | None = None
    module: str = ""
    arguments: str = "{}"

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """Take over the arguments that `--size`, `--color`, `--mean`, `--scale`, `--module` left."""
        return cls(args.size, args.color, args.mean, args.scale, args.module, args.module_args)


def crop_network(path: Path, told: Told) -> tuple[onnx.ModelProto, Input]:
    """Read a network of face crops; return it with a dynamic batch where it allows one.

    Raises:
        CheckpointError: not a network of one square picture, or not what it claims.
        ConvertError: what was told does not suffice or does not fit.
    """
    kind = format_of(path)
    if kind in ("onnx", "keras"):
        model = keras(path) if kind == "keras" else read_onnx(path)
    else:
        model = _torch(path, kind, told)
    channels, height, width = picture_input(model, str(path), told.size)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if kind in ("onnx", "keras"):
        model = fixed(model, batch, height, width)
    if height != width:
        raise CheckpointError(f"{path}: input {width}×{height}, expected a square; crops are cut to squares")
    if batch > 1:
        raise CheckpointError(
            f"{path}: made for batches of {batch}, expected one picture or a dynamic batch; export again"
        )
    found: Literal["GRAY", "RGB"] = "GRAY" if channels == 1 else "RGB"
    if told.color and (told.color == "GRAY") != (found == "GRAY"):
        raise ConvertError(f"{path}: eats {channels} channel(s), --color {told.color} does not fit; leave it out")
    return model, with_pixels(Input(width=width, height=height, batch=batch, fit="stretch", color=found), told)


def _torch(path: Path, kind: str, told: Told) -> onnx.ModelProto:
    from converters.checkpoints import torch as torch_files

    if told.size < 0:
        raise ConvertError(f"--size {told.size}, expected a side in pixels")
    if not told.size and kind != "pt2":
        raise ConvertError(f"{path}: a {kind} file does not say its input's size; give --size")
    side = told.size or 1
    guess = with_pixels(Input(width=side, height=side, batch=0), told)
    if kind == "torch":
        return torch_files.student_to_onnx(path, guess, told.module, told.arguments)
    if kind == "torchscript":
        return torch_files.torchscript_to_onnx(path, guess)
    return torch_files.exported_program_to_onnx(path)


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose output shapes are worked out anew."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def with_pixels(source: Input, told: Told) -> Input:
    """Apply `--color`, `--mean` and `--scale`.

    Raises:
        ConvertError: as many values as the network has channels are expected, and no scale of 0.
    """
    if told.scale is not None and 0 in told.scale:
        raise ConvertError(f"--scale {' '.join(f'{s:g}' for s in told.scale)}: pixels are divided by it, so not 0")
    changes: dict[str, Any] = {"color": told.color} if told.color else {}
    channels = 1 if changes.get("color", source.color) == "GRAY" else 3
    for key, value in (("mean", told.mean), ("scale", told.scale)):
        if value is not None and len(value) not in (1, channels):
            raise ConvertError(f"--{key} has {len(value)} values, the network {channels} channels; give one or as many")
        changes[key] = (tuple(value) * channels if value is not None else getattr(source, key))[:channels]
    return msgspec.structs.replace(source, **changes)


def keras(path: Path) -> onnx.ModelProto:
    """Read a Keras file; h5py is imported only now."""
    from converters.checkpoints.keras import keras_to_onnx

    return keras_to_onnx(path)
