"""What each Keras layer is in ONNX: NHWC becomes NCHW, "same" padding becomes numbers; `LAYERS` is what is supported.

Every function is an `Add`: it reads the layer's settings and weights and adds nodes to the builder.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.checkpoints.keras_builder import Add, Builder, Shape
from converters.checkpoints.keras_file import Layer

# --- windows ----------------------------------------------------------------------------------------------------------


def _window(
    b: Builder, layer: Layer, shape: Shape, kernel: Sequence[int], stride: Sequence[int]
) -> tuple[list[int], Shape]:
    """Return ONNX pads (top, left, bottom, right) and the output's (H, W) for Keras' "same" or "valid"."""
    if layer.config.get("data_format", "channels_last") != "channels_last":
        raise b.refuse(layer, "data_format channels_first is not supported; save the model with channels_last")
    dilation = _pair(layer.config.get("dilation_rate", 1))
    begins, ends, sizes = [], [], []
    for size, k, s, d in zip(shape[1:], kernel, stride, dilation, strict=True):
        reach = (k - 1) * d + 1
        match layer.config["padding"]:
            case "valid":
                before = after = 0
            case "same":
                total = max((math.ceil(size / s) - 1) * s + reach - size, 0)
                before, after = total // 2, total - total // 2  # the odd one goes below and right, unlike in torch
            case other:
                raise b.refuse(layer, f"padding is {other}, expected same or valid")
        begins.append(before)
        ends.append(after)
        sizes.append((size + before + after - reach) // s + 1)
    return [*begins, *ends], tuple(sizes)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _convolve(
    b: Builder, layer: Layer, x: str, kernel: NDArray[np.float32], bias: Any, stride: Any, groups: int
) -> str:
    """Add a convolution; `kernel` is OIHW already."""
    strides = _pair(stride)
    pads, size = _window(b, layer, b.shapes[x], kernel.shape[2:], strides)
    inputs = [x, b.const(kernel)] + ([] if bias is None else [b.const(bias)])
    dilations = _pair(layer.config.get("dilation_rate", 1))
    return b.node(
        "Conv", inputs, (len(kernel), *size), pads=pads, strides=strides, dilations=dilations, group=groups,
        kernel_shape=kernel.shape[2:],
    )  # fmt: skip


def _bias(layer: Layer) -> Any:
    return layer.weights["bias"] if layer.config.get("use_bias", True) else None


def conv2d(b: Builder, layer: Layer, inputs: list[str]) -> str:
    kernel = layer.weights["kernel"].transpose(3, 2, 0, 1)
    groups = layer.config.get("groups", 1)
    made = _convolve(b, layer, inputs[0], kernel, _bias(layer), layer.config["strides"], groups)
    return _activate(b, layer, made, layer.config.get("activation"))


def _depthwise(b: Builder, layer: Layer, x: str, kernel: NDArray[np.float32], bias: Any) -> str:
    height, width, channels, multiplier = kernel.shape
    own = kernel.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    return _convolve(b, layer, x, own, bias, layer.config["strides"], channels)


def depthwise_conv2d(b: Builder, layer: Layer, inputs: list[str]) -> str:
    kernel = layer.weights.get("depthwise_kernel", layer.weights.get("kernel"))
    if kernel is None:
        raise KeyError("depthwise_kernel")
    made = _depthwise(b, layer, inputs[0], kernel, _bias(layer))
    return _activate(b, layer, made, layer.config.get("activation"))


def separable_conv2d(b: Builder, layer: Layer, inputs: list[str]) -> str:
    middle = _depthwise(b, layer, inputs[0], layer.weights["depthwise_kernel"], None)
    kernel = layer.weights["pointwise_kernel"].transpose(3, 2, 0, 1)
    made = _convolve(b, layer, middle, kernel, _bias(layer), 1, 1)
    return _activate(b, layer, made, layer.config.get("activation"))


def pool(op: str) -> Add:
    def add(b: Builder, layer: Layer, inputs: list[str]) -> str:
        kernel = _pair(layer.config["pool_size"])
        strides = _pair(layer.config.get("strides") or kernel)
        shape = b.shapes[inputs[0]]
        pads, size = _window(b, layer, shape, kernel, strides)
        return b.node(op, inputs, (shape[0], *size), kernel_shape=kernel, strides=strides, pads=pads)

    return add


def global_pool(op: str) -> Add:
    def add(b: Builder, layer: Layer, inputs: list[str]) -> str:
        channels = b.shapes[inputs[0]][0]
        pooled = b.node(op, inputs, (channels, 1, 1))
        return pooled if layer.config.get("keepdims") else b.node("Flatten", [pooled], (channels,))

    return add


def zero_padding2d(b: Builder, layer: Layer, inputs: list[str]) -> str:
    given = layer.config["padding"]
    (top, bottom), (left, right) = (_pair(side) for side in _pair(given))
    c, h, w = b.shapes[inputs[0]]
    pads = b.const([0, 0, top, left, 0, 0, bottom, right], np.int64)
    return b.node("Pad", [inputs[0], pads], (c, h + top + bottom, w + left + right))


def upsampling2d(b: Builder, layer: Layer, inputs: list[str]) -> str:
    if layer.config.get("interpolation", "nearest") != "nearest":
        raise b.refuse(layer, f"interpolation is {layer.config['interpolation']}, expected nearest")
    down, right = _pair(layer.config["size"])
    c, h, w = b.shapes[inputs[0]]
    scales = b.const([1, 1, down, right])
    return b.node(
        "Resize", [inputs[0], "", scales], (c, h * down, w * right), mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip


# --- everything else --------------------------------------------------------------------------------------------------


def dense(b: Builder, layer: Layer, inputs: list[str]) -> str:
    shape = b.shapes[inputs[0]]
    if len(shape) != 1:
        raise b.refuse(
            layer, f"its input has the shape {shape}, expected a vector; put Flatten or a global pool before it"
        )
    kernel = layer.weights["kernel"]
    bias = _bias(layer)
    extra = [] if bias is None else [b.const(bias)]
    made = b.node("Gemm", [inputs[0], b.const(kernel), *extra], (kernel.shape[1],))
    return _activate(b, layer, made, layer.config.get("activation"))


def batch_normalization(b: Builder, layer: Layer, inputs: list[str]) -> str:
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) else axis
    shape = b.shapes[inputs[0]]
    if axis not in (-1, len(shape)):
        raise b.refuse(layer, f"axis is {axis}, expected the last one (channels)")
    mean, variance = layer.weights["moving_mean"], layer.weights["moving_variance"]
    gamma = layer.weights["gamma"] if layer.config.get("scale", True) else np.ones_like(mean)
    beta = layer.weights["beta"] if layer.config.get("center", True) else np.zeros_like(mean)
    constants = [b.const(v) for v in (gamma, beta, mean, variance)]
    return b.node("BatchNormalization", [*inputs, *constants], shape, epsilon=float(layer.config["epsilon"]))


def relu(b: Builder, layer: Layer, inputs: list[str]) -> str:
    shape, top = b.shapes[inputs[0]], layer.config.get("max_value")
    slope = float(layer.config.get("negative_slope") or layer.config.get("alpha") or 0.0)
    if layer.config.get("threshold") or (top is not None and slope):
        raise b.refuse(layer, "a threshold, or max_value together with a slope, is not supported")
    if slope:
        return b.node("LeakyRelu", inputs, shape, alpha=slope)
    if top is None:
        return b.node("Relu", inputs, shape)
    return b.node("Clip", [inputs[0], b.const(0.0), b.const(top)], shape)


def leaky_relu(b: Builder, layer: Layer, inputs: list[str]) -> str:
    slope = layer.config.get("negative_slope", layer.config.get("alpha", 0.3))
    return b.node("LeakyRelu", inputs, b.shapes[inputs[0]], alpha=float(slope))


def prelu(b: Builder, layer: Layer, inputs: list[str]) -> str:
    alpha = layer.weights["alpha"]
    slope = b.const(alpha.transpose(2, 0, 1) if alpha.ndim == 3 else alpha)
    return b.node("PRelu", [inputs[0], slope], b.shapes[inputs[0]])


def _activate(b: Builder, layer: Layer, x: str, activation: Any) -> str:
    """Add an activation given by name, as Keras 1 to 3 write it."""
    if isinstance(activation, Mapping):
        activation = activation.get("config", activation)
        activation = activation.get("name", activation) if isinstance(activation, Mapping) else activation
    shape = b.shapes[x]
    match activation:
        case None | "linear":
            return x
        case "relu" | "sigmoid" | "tanh" | "softplus" | "elu" | "selu":
            return b.node(activation.capitalize(), [x], shape)
        case "softmax":
            return b.node("Softmax", [x], shape, axis=1)
        case "relu6":
            return b.node("Clip", [x, b.const(0.0), b.const(6.0)], shape)
        case "swish" | "silu":
            return b.node("Mul", [x, b.node("Sigmoid", [x], shape)], shape)
    raise b.refuse(layer, f"activation {activation} is not supported")


def softmax(b: Builder, layer: Layer, inputs: list[str]) -> str:
    if layer.config.get("axis", -1) not in (-1, [-1]):
        raise b.refuse(layer, f"axis is {layer.config['axis']}, expected -1")
    return _activate(b, layer, inputs[0], "softmax")


def merge(op: str) -> Add:
    def add(b: Builder, layer: Layer, inputs: list[str]) -> str:
        made = inputs[0]
        for other in inputs[1:]:
            if b.shapes[made] != b.shapes[other] and op != "Mul":
                raise b.refuse(layer, f"shapes {b.shapes[made]} and {b.shapes[other]} differ")
            made = b.node(op, [made, other], max(b.shapes[made], b.shapes[other], key=math.prod))
        return made

    return add


def concatenate(b: Builder, layer: Layer, inputs: list[str]) -> str:
    shapes = [b.shapes[name] for name in inputs]
    if layer.config.get("axis", -1) not in (-1, len(shapes[0])):
        raise b.refuse(layer, f"axis is {layer.config['axis']}, expected the last one (channels)")
    return b.node("Concat", inputs, (sum(s[0] for s in shapes), *shapes[0][1:]), axis=1)


def flatten(b: Builder, layer: Layer, inputs: list[str]) -> str:
    return _reshape(b, inputs[0], (math.prod(b.shapes[inputs[0]]),))


def reshape(b: Builder, layer: Layer, inputs: list[str]) -> str:
    shape, target = b.shapes[inputs[0]], list(layer.config["target_shape"])
    if -1 in target:
        target[target.index(-1)] = math.prod(shape) // -math.prod(target)
    if len(target) not in (1, 3) or math.prod(target) != math.prod(shape):
        raise b.refuse(
            layer, f"target_shape {target} does not fit {shape}, expected a vector or a picture of that size"
        )
    return _reshape(b, inputs[0], tuple(target))


def _reshape(b: Builder, x: str, target: Shape) -> str:
    """Reshape as Keras would: in NHWC, and back."""
    shape = b.shapes[x]
    if len(shape) == 3 and shape[1:] != (1, 1):
        x = b.node("Transpose", [x], (*shape[1:], shape[0]), perm=[0, 2, 3, 1])
    made = b.node("Reshape", [x, b.const([0, *target], np.int64)], target)
    return b.node("Transpose", [made], (target[2], *target[:2]), perm=[0, 3, 1, 2]) if len(target) == 3 else made


def rescaling(b: Builder, layer: Layer, inputs: list[str]) -> str:
    shape = b.shapes[inputs[0]]
    values = []
    for key in ("scale", "offset"):
        value = np.asarray(layer.config.get(key, 0.0), np.float32)
        values.append(b.const(value.reshape(-1, 1, 1) if value.ndim else value))
    return b.node("Add", [b.node("Mul", [inputs[0], values[0]], shape), values[1]], shape)


def identity(b: Builder, layer: Layer, inputs: list[str]) -> str:
    return inputs[0]


LAYERS: dict[str, Add] = {
    "Activation": lambda b, layer, inputs: _activate(b, layer, inputs[0], layer.config["activation"]),
    "Add": merge("Add"),
    "AveragePooling2D": pool("AveragePool"),
    "BatchNormalization": batch_normalization,
    "Concatenate": concatenate,
    "Conv2D": conv2d,
    "Dense": dense,
    "DepthwiseConv2D": depthwise_conv2d,
    "Dropout": identity,
    "ELU": lambda b, layer, inputs: b.node("Elu", inputs, b.shapes[inputs[0]], alpha=float(layer.config["alpha"])),
    "Flatten": flatten,
    "GaussianNoise": identity,
    "GlobalAveragePooling2D": global_pool("GlobalAveragePool"),
    "GlobalMaxPooling2D": global_pool("GlobalMaxPool"),
    "LeakyReLU": leaky_relu,
    "MaxPooling2D": pool("MaxPool"),
    "Multiply": merge("Mul"),
    "PReLU": prelu,
    "ReLU": relu,
    "Rescaling": rescaling,
    "Reshape": reshape,
    "SeparableConv2D": separable_conv2d,
    "Softmax": softmax,
    "SpatialDropout2D": identity,
    "UpSampling2D": upsampling2d,
    "ZeroPadding2D": zero_padding2d,
}
