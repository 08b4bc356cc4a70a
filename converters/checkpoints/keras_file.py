"""Read Keras models from disk, hdf5 (Keras 1 to 3) and `.keras` zip, as layers with their weights; no framework needed.

Both keep the graph as JSON and the weights in HDF5. `keras.py` builds ONNX from what is returned here.
"""

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from converters.errors import CheckpointError

Weights = Mapping[str, NDArray[np.float32]]
MODELS = ("Model", "Functional", "Sequential")
# Where a file numbers its weights instead of naming them, they come in this order.
ORDER: dict[str, tuple[str, ...]] = {
    "Conv2D": ("kernel", "bias"),
    "DepthwiseConv2D": ("depthwise_kernel", "bias"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "PReLU": ("alpha",),
}


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        name: unique in its model.
        kind: Keras' class name.
        config: its arguments.
        calls: per call of the layer the outputs it eats, as (layer, call) pairs; empty for an input.
        weights: by short name (kernel, gamma, …), in Keras' own axis order.
        inner: the model inside, where the layer is one.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    calls: tuple[tuple[tuple[str, int], ...], ...]
    weights: Weights = field(default_factory=dict)
    inner: "Graph | None" = None


@dataclass(frozen=True)
class Graph:
    """Layers with the (layer, call) pairs that are the model's outputs, and its input layers."""

    layers: tuple[Layer, ...]
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, int], ...]


Find = Callable[[str, str, str], Weights]  # (path in a .keras file, layer name, class name) → weights


def read_keras(path: Path) -> Graph:
    """Read a Keras model.

    Raises:
        CheckpointError: neither format, weights without a graph, a damaged file or a class of the maker's own.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with h5py.File(path, "r") as file:
            return _read_hdf5(file, path)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise
    except (OSError, KeyError, ValueError, TypeError, IndexError, zipfile.BadZipFile, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a readable Keras model: {error}") from error


def _read_hdf5(file: h5py.File, path: Path) -> Graph:
    if "model_config" not in file.attrs:
        raise CheckpointError(f"{path}: weights without a graph (no model_config); save the whole model: model.save(…)")
    config = json.loads(file.attrs["model_config"])
    groups = file["model_weights"]

    def find(_path: str, name: str, _kind: str, within: str = "") -> Weights:
        if (within or name) not in groups:
            return {}
        group, found = groups[within or name], {}
        for entry in group.attrs.get("weight_names", ()):
            full = entry.decode() if isinstance(entry, bytes) else str(entry)
            parts = full.removesuffix(":0").split("/")
            if not within or name in parts[:-1]:
                found[parts[-1]] = np.asarray(group[full], np.float32)
        return found

    return _graph(config, find, lambda outer: lambda path, name, kind: find(path, name, kind, outer), path)


def _read_zip(path: Path) -> Graph:
    with zipfile.ZipFile(path) as archive:
        if not {"config.json", "model.weights.h5"} <= set(archive.namelist()):
            raise CheckpointError(f"{path}: a zip without config.json and model.weights.h5; expected a .keras file")
        config = json.loads(archive.read("config.json"))
        with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as file:

            def find(where: str, name: str, kind: str) -> Weights:
                if f"{where}/vars" not in file:
                    return {}
                values = file[f"{where}/vars"]
                arrays = [np.asarray(values[key], np.float32) for key in sorted(values, key=int)]
                return dict(zip(ORDER.get(kind, map(str, range(len(arrays)))), arrays, strict=False))

            return _graph(config, find, lambda _outer: find, path)


def _graph(model: Mapping[str, Any], find: Find, inside: Callable[[str], Find], path: Path, where: str = "") -> Graph:
    """Turn the JSON of one model into a graph, nested models included."""
    config = model["config"]
    if model["class_name"] not in MODELS:
        raise CheckpointError(
            f"{path}: a {model['class_name']}, expected one of {', '.join(MODELS)}; its code is not here"
        )
    entries = config if isinstance(config, list) else config["layers"]
    counts: Counter[str] = Counter()
    layers: list[Layer] = []
    for entry in entries:
        kind, settings = entry["class_name"], entry["config"]
        name = entry.get("name") or (settings["name"] if isinstance(settings, dict) else f"{kind}_{len(layers)}")
        slot = _snake(kind) + (f"_{counts[kind]}" if counts[kind] else "")
        counts[kind] += 1
        place = f"{where}layers/{slot}"
        inner = None
        weights: Weights = {}
        if kind in MODELS:
            nested = inside(name)
            inner = _graph(entry, nested, lambda _outer, nested=nested: nested, path, f"{place}/")  # type: ignore[misc]
        else:
            weights = _named(find(place, name, kind), kind, settings)
        layers.append(Layer(name, kind, settings, _calls(entry.get("inbound_nodes", ())), weights, inner))
    if model["class_name"] == "Sequential":
        return _chain(layers, config, path)
    return Graph(
        tuple(layers),
        tuple(name for name, _ in _references(config["input_layers"])),
        tuple(_references(config["output_layers"])),
    )


def _named(weights: Weights, kind: str, settings: Mapping[str, Any]) -> Weights:
    """Give numbered norms their names: which of them exist depends on the settings."""
    if kind != "BatchNormalization" or "0" not in weights:
        return weights
    present = ["gamma"] * bool(settings.get("scale", True)) + ["beta"] * bool(settings.get("center", True))
    return dict(zip([*present, "moving_mean", "moving_variance"], weights.values(), strict=True))


def _chain(layers: Sequence[Layer], config: Any, path: Path) -> Graph:
    """Link the layers of a Sequential; put an input before them where the file has none."""
    chained = list(layers)
    if chained[0].kind != "InputLayer":
        first = chained[0].config
        shape = first.get("batch_input_shape") or first.get("batch_shape")
        if shape is None and isinstance(config, dict):
            shape = config.get("build_input_shape")
        if shape is None:
            raise CheckpointError(
                f"{path}: a Sequential whose input shape is not in the file; build it, then save again"
            )
        chained.insert(0, Layer("input", "InputLayer", {"batch_shape": shape}, ()))
    linked = [chained[0]]
    for layer in chained[1:]:
        linked.append(
            Layer(layer.name, layer.kind, layer.config, (((linked[-1].name, 0),),), layer.weights, layer.inner)
        )
    return Graph(tuple(linked), (linked[0].name,), ((linked[-1].name, 0),))


def _calls(inbound: Any) -> tuple[tuple[tuple[str, int], ...], ...]:
    return tuple(tuple(_references(call)) for call in inbound)


def _references(value: Any) -> list[tuple[str, int]]:
    """Find the (layer, call) pairs in Keras 1/2 lists `["conv", 0, 0, {}]` and Keras 3 tensors, however nested."""
    if isinstance(value, dict):
        history = value.get("config", {}).get("keras_history") if isinstance(value.get("config"), dict) else None
        return [(history[0], history[1])] if history else [pair for v in value.values() for pair in _references(v)]
    if isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
            return [(value[0], value[1])]
        return [pair for v in value for pair in _references(v)]
    return []


def _snake(kind: str) -> str:
    """Return the name a `.keras` file gives a layer's weights: its class in lower case with underscores."""
    kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
