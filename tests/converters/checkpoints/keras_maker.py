"""Writes Keras files as Keras lays them out, with h5py and json alone: hdf5 of Keras 1/2, `.keras` zip of Keras 3."""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Arrays = dict[str, np.ndarray]
Entry = tuple[str, dict[str, Any], list[str], Arrays]  # class, config with its name, layers it eats, weights


def write_hdf5(path: Path, layers: Sequence[Entry], outputs: Sequence[str]) -> None:
    """Write a functional model the way Keras 2 does."""
    config = [
        {
            "class_name": kind,
            "name": c["name"],
            "config": c,
            "inbound_nodes": [[[n, 0, 0, {}] for n in eats]] if eats else [],
        }
        for kind, c, eats, _ in layers
    ]
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": _ends(config, layers, outputs)})
        for _, c, _, weights in layers:
            group = file.create_group(f"model_weights/{c['name']}")
            names = [f"{c['name']}_1/{short}:0" for short in weights]
            group.attrs["weight_names"] = np.array(names, dtype="S64")
            for name, array in zip(names, weights.values(), strict=True):
                group[name] = array


def write_keras(path: Path, layers: Sequence[Entry], outputs: Sequence[str]) -> None:
    """Write a functional model the way Keras 3 does."""

    def tensor(name: str) -> dict[str, Any]:
        return {"class_name": "__keras_tensor__", "config": {"shape": [], "keras_history": [name, 0, 0]}}

    config = [
        {
            "class_name": kind,
            "name": c["name"],
            "config": c,
            "inbound_nodes": [{"args": [[tensor(n) for n in eats]], "kwargs": {}}] if eats else [],
        }
        for kind, c, eats, _ in layers
    ]
    stream, counts = io.BytesIO(), Counter[str]()
    with h5py.File(stream, "w") as file:
        for kind, _, _, weights in layers:
            snake = {"Conv2D": "conv2d", "Dense": "dense", "BatchNormalization": "batch_normalization",
                     "DepthwiseConv2D": "depthwise_conv2d"}.get(kind, kind.lower())  # fmt: skip
            slot = snake + (f"_{counts[kind]}" if counts[kind] else "")
            counts[kind] += 1
            for number, array in enumerate(weights.values()):
                file[f"layers/{slot}/vars/{number}"] = array
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr(
            "config.json", json.dumps({"class_name": "Functional", "config": _ends(config, layers, outputs)})
        )
        archive.writestr("model.weights.h5", stream.getvalue())


def _ends(config: list[dict[str, Any]], layers: Sequence[Entry], outputs: Sequence[str]) -> dict[str, Any]:
    return {
        "name": "model",
        "layers": config,
        "input_layers": [[layers[0][1]["name"], 0, 0]],
        "output_layers": [[name, 0, 0] for name in outputs],
    }


def input_layer(height: int, width: int, channels: int) -> Entry:
    return "InputLayer", {"name": "input", "batch_input_shape": [None, height, width, channels]}, [], {}


def conv(
    name: str, eats: str, kernel: np.ndarray, stride: int = 1, padding: str = "same", activation: str = "relu"
) -> Entry:
    config = {"name": name, "strides": [stride] * 2, "padding": padding, "use_bias": True, "activation": activation}
    bias = np.linspace(-0.2, 0.2, kernel.shape[3]).astype(np.float32)
    return "Conv2D", config, [eats], {"kernel": kernel, "bias": bias}


def depthwise(name: str, eats: str, kernel: np.ndarray, stride: int = 1) -> Entry:
    config = {"name": name, "strides": [stride] * 2, "padding": "same", "use_bias": False, "activation": "linear"}
    return "DepthwiseConv2D", config, [eats], {"depthwise_kernel": kernel}


def norm(name: str, eats: str, channels: int, seed: int) -> Entry:
    r = np.random.default_rng(seed)
    values = {"gamma": r.uniform(0.5, 1.5, channels), "beta": r.normal(0, 0.1, channels)}
    values |= {"moving_mean": r.normal(0, 0.1, channels), "moving_variance": r.uniform(0.5, 1.5, channels)}
    config = {"name": name, "axis": -1, "epsilon": 0.001, "scale": True, "center": True}
    return "BatchNormalization", config, [eats], {k: v.astype(np.float32) for k, v in values.items()}


def dense(name: str, eats: str, kernel: np.ndarray, activation: str) -> Entry:
    config = {"name": name, "units": kernel.shape[1], "use_bias": True, "activation": activation}
    return "Dense", config, [eats], {"kernel": kernel, "bias": np.zeros(kernel.shape[1], np.float32)}


def plain(kind: str, name: str, *eats: str, **config: Any) -> Entry:
    return kind, {"name": name, **config}, list(eats), {}


def normal(seed: int, *shape: int, scale: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)
