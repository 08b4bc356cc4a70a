"""Collects ONNX nodes while `keras_layers` turns one Keras layer after the other into them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.checkpoints.keras_file import Graph, Layer
from converters.errors import CheckpointError

Shape = tuple[int, ...]  # without the batch: (C, H, W) or (F,)


class Builder:
    """Nodes and weights as they are made, and the shape of every tensor: padding depends on it."""

    def __init__(self, path: Path, layers: "Mapping[str, Add]") -> None:
        self.path = path
        self._layers = layers
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, Shape] = {}
        self.prefix = ""

    def run(self, graph: Graph, source: str) -> list[str]:
        """Add all layers of a graph; return the tensors that are its outputs."""
        made: dict[tuple[str, int], str] = {(graph.inputs[0], 0): source}
        todo = [(layer, k, call) for layer in graph.layers for k, call in enumerate(layer.calls)]
        while todo:
            ready = [item for item in todo if all(pair in made for pair in item[2])]
            if not ready:
                raise CheckpointError(
                    f"{self.path}: layer {todo[0][0].name} waits for {todo[0][2]}, which nothing makes"
                )
            for layer, call, sources in ready:
                made[layer.name, call] = self.add(layer, [made[pair] for pair in sources], call)
            todo = [item for item in todo if item not in ready]
        return [made[pair] for pair in graph.outputs]

    def add(self, layer: Layer, inputs: list[str], call: int) -> str:
        """Add one call of a layer."""
        outer, self.prefix = self.prefix, f"{self.prefix}{layer.name}{f'#{call}' if call else ''}/"
        try:
            if layer.inner is not None:
                (result,) = self.run(layer.inner, inputs[0])
                return result
            if layer.kind not in self._layers:
                raise CheckpointError(
                    f"{self.path}: layer {layer.name} is a {layer.kind}, which is not supported; supported are "
                    f"{', '.join(sorted(self._layers))}"
                )
            return self._layers[layer.kind](self, layer, inputs)
        except KeyError as error:
            raise CheckpointError(
                f"{self.path}: {layer.kind} {layer.name} has no {error}; the file is not whole"
            ) from error
        finally:
            self.prefix = outer

    def node(self, op: str, inputs: Sequence[str], shape: Shape, **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        name = f"{self.prefix}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        self.shapes[name] = shape
        return name

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a weight or a constant."""
        name = f"{self.prefix}weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(np.asarray(value, dtype)), name))
        return name

    def refuse(self, layer: Layer, what: str) -> CheckpointError:
        """Return the error for a setting that cannot be converted."""
        return CheckpointError(f"{self.path}: {layer.kind} {layer.name}: {what}")


# Adds one layer: its input tensors' names in, its output's name out.
Add = Callable[[Builder, Layer, list[str]], str]
