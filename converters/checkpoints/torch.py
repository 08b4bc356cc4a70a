"""Bring PyTorch checkpoints into ONNX: a state dict with its module, TorchScript, or `torch.export`'s `.pt2`.

A state dict without a module is read as our own student. Weights are never unpickled by torch's permissive loader.
"""

import importlib
import json
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch

from converters.checkpoints.inert_pickle import TorchZip, plain_tensors, read_checkpoint
from converters.checkpoints.onnx import prepared
from converters.errors import CheckpointError
from converters.evaluation.classifier import load_student
from converters.quantization.quantize import INPUT_NAME, OPSET, export_onnx
from edge.models.manifest import Input
from edge.models.preprocess import tensor_shape

OUTPUT = "output"


def student_to_onnx(path: Path, spec: Input, module: str = "", arguments: str = "{}") -> onnx.ModelProto:
    """Export a state dict.

    Args:
        path: a file of named tensors, bare or under `state_dict`, `model` or `average`.
        spec: the input to export for.
        module: `package.module:Class` of the integrator's own code, imported and called; empty for our student.
        arguments: JSON object of keyword arguments for the class.

    Raises:
        CheckpointError: no state dict, no such class, or tensors that do not fit it.
    """
    if not module:
        return _exported(load_student(path), spec, path)
    content = read_checkpoint(path)
    for key in ("state_dict", "model", "average"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    net = _module(module, arguments)
    try:
        net.load_state_dict(plain_tensors(content, str(path)))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit {module}: {_lines(error)}") from error
    return _exported(net, spec, path)


def _module(spec: str, arguments: str) -> torch.nn.Module:
    """Import the integrator's own class from the working folder or the environment, and make one."""
    name, _, cls = spec.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(name), cls)(**json.loads(arguments))
    except Exception as error:  # the integrator's code may raise anything
        raise CheckpointError(
            f"--module {spec} with {arguments}: {type(error).__name__}: {error}; expected package.module:Class and its "
            "arguments as JSON"
        ) from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, torch.nn.Module):
        raise CheckpointError(f"--module {spec} is a {type(made).__name__}, expected a torch.nn.Module")
    return made.eval()


def _exported(net: torch.nn.Module, spec: Input, path: Path) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.onnx"
        try:
            export_onnx(net, spec, [OUTPUT], target)
        except Exception as error:  # torch's exporter wraps whatever a module raises; its own words say only where
            reason = _lines(error.__cause__ if isinstance(error.__cause__, Exception) else error)
            raise CheckpointError(f"{path}: cannot be exported for {_size(spec)}: {reason}") from error
        return prepared(onnx.load(target), str(path))


def torchscript_to_onnx(path: Path, spec: Input) -> onnx.ModelProto:
    """Export a TorchScript file, for any batch.

    Raises:
        CheckpointError: unreadable, or made for another input.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own TorchScript and this exporter old
        target = Path(folder) / "model.onnx"
        try:
            net = torch.jit.load(str(path), map_location="cpu").eval().float()
            torch.onnx.export(
                net,
                (torch.zeros(tensor_shape(spec, 2)),),
                str(target),
                dynamo=False,  # the newer exporter traces Python and cannot read TorchScript
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT],
                dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT: {0: "batch"}},
            )
        except Exception as error:  # TorchScript's errors share no base class but this
            raise CheckpointError(
                f"{path}: TorchScript that cannot be run on {_size(spec)}: {_lines(error)}"
            ) from error
        return prepared(onnx.load(target), str(path))


def exported_program_to_onnx(path: Path) -> onnx.ModelProto:
    """Export a `.pt2`, for the input and batch it was made with.

    Raises:
        CheckpointError: unreadable, or a pickle inside wants to run something.
    """
    _refuse_code(path)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = Path(folder) / "model.onnx"
        try:
            program = torch.onnx.export(
                torch.export.load(str(path)), dynamo=True, opset_version=OPSET, input_names=[INPUT_NAME],
                output_names=[OUTPUT], verbose=False,
            )  # fmt: skip
            assert program is not None
            program.save(str(target), external_data=False)
        except Exception as error:  # nor do those of torch.export
            raise CheckpointError(f"{path}: torch.export's program cannot be read: {_lines(error)}") from error
        return prepared(onnx.load(target), str(path))


def _refuse_code(path: Path) -> None:
    """Read every pickle in the archive with our own reader first: torch's falls back to running them."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            content = archive.read(entry)
            if content[:2] == b"PK" and entry.endswith(".pt"):
                TorchZip(content, f"{path}, {entry}").read()
            elif content[:1] == b"\x80":
                raise CheckpointError(
                    f"{path}: {entry} is a bare pickle, which may run code; export it without constants"
                )


def _size(spec: Input) -> str:
    channels = 1 if spec.color == "GRAY" else 3
    return f"{spec.width}×{spec.height} pixels of {channels} channel{'s'[: channels - 1]}"


def _lines(error: Exception, count: int = 3) -> str:
    told: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(told[:count])[:400]
