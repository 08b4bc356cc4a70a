"""Build ONNX from a Keras model, layer by layer: NHWC becomes NCHW, "same" padding becomes explicit numbers.

`keras_file` reads the file, `keras_builder` collects the nodes, `keras_layers` has one function per layer class.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from converters.checkpoints.keras_builder import Builder, Shape
from converters.checkpoints.keras_file import Layer, read_keras
from converters.checkpoints.keras_layers import LAYERS
from converters.errors import CheckpointError
from converters.quantization.quantize import INPUT_NAME

OPSET = 18
IR_VERSION = 9


def keras_to_onnx(path: Path) -> onnx.ModelProto:
    """Return a Keras classifier or regressor as ONNX with a dynamic batch and NCHW input.

    Raises:
        CheckpointError: an unreadable file, an unknown layer or setting, or an input that is not one fixed picture.
    """
    graph = read_keras(path)
    if len(graph.inputs) != 1:
        raise CheckpointError(f"{path}: {len(graph.inputs)} inputs {graph.inputs}, expected one picture")
    builder = Builder(path, LAYERS)
    shape = _picture_shape(next(layer for layer in graph.layers if layer.name == graph.inputs[0]), path)
    builder.shapes[INPUT_NAME] = shape
    results = builder.run(graph, INPUT_NAME)
    names = ["output"] if len(results) == 1 else [f"output_{k}" for k in range(len(results))]
    for result, name in zip(results, names, strict=True):
        builder.nodes.append(helper.make_node("Identity", [result], [name], name))
    model = helper.make_model(
        helper.make_graph(
            builder.nodes,
            "keras",
            [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["batch", *shape])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *builder.shapes[result]])
                for name, result in zip(names, results, strict=True)
            ],
            builder.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _picture_shape(layer: Layer, path: Path) -> Shape:
    shape = layer.config.get("batch_input_shape") or layer.config.get("batch_shape")
    if not shape or len(shape) != 4 or None in shape[1:] or shape[3] not in (1, 3):
        raise CheckpointError(
            f"{path}: its input is {shape}, expected a fixed (None, height, width, 1 or 3); save it with a fixed size"
        )
    return shape[3], shape[1], shape[2]
