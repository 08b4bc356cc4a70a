"""Read an ultralytics YOLOv10 `.pt` into our own YOLOv10, without that library and without running its pickle.

The file holds a pickled module tree; its records are walked like modules (`_modules`, `_parameters`, `_buffers`), which
gives a state dict whose names are those of `converters.nets.yolov10`. The size n–x is the one whose shapes fit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from converters.checkpoints.inert_pickle import Record, read_checkpoint
from converters.checkpoints.onnx import refuse_not_finite
from converters.errors import CheckpointError
from converters.nets.yolov10 import SHAPES, Scale, YOLOv10
from converters.nets.yolov10_blocks import Activation

ACTIVATIONS: dict[str, Activation] = {"SiLU": "silu", "ReLU": "relu"}
CLASS_BIAS = "model.23.one2one_cv3.0.2.bias"


@dataclass(frozen=True)
class Foreign:
    """A network that was read, and what its file says about it."""

    net: YOLOv10
    labels: tuple[str, ...]


def load_yolov10(path: Path, only: str = "") -> Foreign:
    """Read a checkpoint.

    Args:
        path: `.pt` as ultralytics saves it (also half precision, also with an `ema`).
        only: the class to keep, where there are several.

    Raises:
        CheckpointError: not such a file, not a YOLOv10, a tensor missing or of another shape, or code in the pickle.
    """
    model = _model(read_checkpoint(path), path)
    state = dict(_tensors(model))
    if not state:
        raise CheckpointError(f"{path}: {model.origin} holds no tensors; expected a trained YOLOv10")
    refuse_not_finite(((key, value.numpy()) for key, value in state.items()), str(path))
    if CLASS_BIAS not in state:
        raise CheckpointError(
            f"{path}: {model.origin} has no {CLASS_BIAS}, so it lacks YOLOv10's one-to-one head (layer 23); it looks "
            f"like {_guess(state)}. Only YOLOv10 is supported; export others to ONNX with a supported decoder"
        )
    _refill_one_to_many(state)
    labels = _labels(model, len(state[CLASS_BIAS]))
    act = _activation(model, path)
    net = YOLOv10(_scale(state, len(labels), path), len(labels), act)
    net.load_state_dict(state)
    _take_epsilons(net, model)
    return _keep(net.eval(), labels, only, path)


def _model(content: Any, path: Path) -> Record:
    if isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{path}: a state dict ({', '.join(list(map(str, content))[:3])}, …), which does not say its network; "
            "expected a .pt that ultralytics saved whole, or an ONNX file"
        )
    if isinstance(content, Mapping):
        content = content.get("ema") or content.get("model")
    if not isinstance(content, Record) or "_modules" not in content.state:
        raise CheckpointError(
            f"{path}: no pickled model inside, found {type(content).__name__}; expected a .pt that ultralytics saved"
        )
    return content


def _children(module: Record) -> Iterator[tuple[str, Record]]:
    for name, child in (module.state.get("_modules") or {}).items():
        if isinstance(child, Record):
            yield name, child


def _tensors(module: Record, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield what `state_dict` would: parameters and persistent buffers by dotted name, floats in single precision."""
    hidden = module.state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (module.state.get(kind) or {}).items():
            if isinstance(value, Tensor) and name not in hidden:
                yield prefix + name, value.float() if value.is_floating_point() else value
    for name, child in _children(module):
        yield from _tensors(child, f"{prefix}{name}.")


def _walk(module: Record, prefix: str = "") -> Iterator[tuple[str, Record]]:
    for name, child in _children(module):
        yield prefix + name, child
        yield from _walk(child, f"{prefix}{name}.")


def _refill_one_to_many(state: dict[str, Tensor]) -> None:
    """Give a file that was stripped of its one-to-many head, which only training needs, the other's weights there."""
    if not any(name.startswith(("model.23.cv2.", "model.23.cv3.")) for name in state):
        state |= {k.replace("one2one_", ""): v for k, v in state.items() if k.startswith("model.23.one2one_")}


def _labels(model: Record, classes: int) -> tuple[str, ...]:
    names = model.state.get("names")
    if isinstance(names, Mapping) and len(names) == classes:
        return tuple(str(names[key]) for key in sorted(names))
    return tuple(str(k) for k in range(classes))


def _activation(model: Record, path: Path) -> Activation:
    """Return the one activation every `Conv` has."""
    kinds = {child.origin.split(".")[-1] for name, child in _walk(model) if name.split(".")[-1] == "act"} - {"Identity"}
    if len(kinds) != 1 or not kinds <= ACTIVATIONS.keys():
        raise CheckpointError(f"{path}: activations {sorted(kinds)}, expected one of {sorted(ACTIVATIONS)} throughout")
    return ACTIVATIONS[kinds.pop()]


def _scale(state: Mapping[str, Tensor], classes: int, path: Path) -> Scale:
    """Return the size whose every tensor has the name and shape found; else say what the nearest one misses."""
    nearest: tuple[int, str] = (-1, "")
    for scale in SHAPES:
        with torch.device("meta"):
            expected = {k: tuple(v.shape) for k, v in YOLOv10(scale, classes).state_dict().items()}  # type: ignore[arg-type]
        fitting = sum(tuple(state[k].shape) == shape for k, shape in expected.items() if k in state)
        missing = sorted(expected.keys() - state.keys())
        surplus = sorted(state.keys() - expected.keys())
        wrong = [k for k, shape in expected.items() if k in state and tuple(state[k].shape) != shape]
        if not (missing or surplus or wrong):
            return scale  # type: ignore[return-value]
        if fitting > nearest[0]:
            lacks = f"tensor {missing[0]} is missing ({len(missing)} in all)" if missing else ""
            if not missing and wrong:
                lacks = (
                    f"{wrong[0]} is {tuple(state[wrong[0]].shape)}, expected {expected[wrong[0]]} ({len(wrong)} in all)"
                )
            nearest = fitting, f"YOLOv10{scale}: {lacks or f'{surplus[0]} is too many ({len(surplus)} in all)'}"
    raise CheckpointError(f"{path}: fits none of YOLOv10 {', '.join(SHAPES)}; nearest is {nearest[1]}")


def _take_epsilons(net: YOLOv10, model: Record) -> None:
    """Use the file's own epsilon in every norm: it is no tensor and so in no state dict."""
    modules = dict(net.named_modules())
    for name, record in _walk(model):
        ours = modules.get(name)
        if isinstance(ours, nn.BatchNorm2d) and "eps" in record.state:
            ours.eps = float(record.state["eps"])


def _keep(net: YOLOv10, labels: tuple[str, ...], only: str, path: Path) -> Foreign:
    """Cut the head down to one class: a box follows faces."""
    if len(labels) == 1 and only in ("", labels[0]):
        return Foreign(net, labels)
    if only not in labels:
        found = f"{len(labels)} classes ({', '.join(labels[:5])}{' …' if len(labels) > 5 else ''})"
        raise CheckpointError(f"{path}: {found}, a detector bundle has one; choose it with --only CLASS")
    row = labels.index(only)
    with torch.no_grad():
        for branches in (net.head.cv3, net.head.one2one_cv3):
            for branch in branches:
                last = branch[2]  # type: ignore[index]
                one = nn.Conv2d(last.in_channels, 1, 1)
                one.weight.copy_(last.weight[row : row + 1])
                one.bias.copy_(last.bias[row : row + 1])  # type: ignore[union-attr]
                branch[2] = one  # type: ignore[operator]
    net.classes = net.head.classes = 1
    return Foreign(net, (only,))


def _guess(state: Mapping[str, Tensor]) -> str:
    layers = 1 + max(
        (int(k.split(".")[1]) for k in state if k.startswith("model.") and k.split(".")[1].isdigit()), default=0
    )
    return (
        f"another YOLO with {layers} layers" if any(".cv3." in k for k in state) else f"{layers} layers of another kind"
    )
