"""Which values the tensors of a float ONNX graph take on calibration pictures.

Driven by `qdq.calibrated`. Every tensor has a range of its own. Equal ranges where maps are concatenated would save
onnxruntime 4 % of its time (bytes are copied, not translated), but cost our detector 1.5 points of AP50-95 at 320:
maps with and without negative values meet there.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converters.errors import QuantizeError

Range = tuple[float, float]
Ranges = Literal["minmax", "mean"]


def observed(
    source: Path, pictures: Iterable[NDArray[np.float32]], op_types: Sequence[str], ranges: Ranges = "minmax"
) -> dict[str, Range]:
    """Return the range of every float tensor that an operator of these types reads or writes.

    Args:
        source: float ONNX with one input.
        pictures: network inputs of batch 1.
        op_types: operators that will be quantized.
        ranges: "minmax" keeps every picture's extremes; "mean" averages them and clips the loud ones.
    """
    import onnxruntime as ort

    model = onnx.load(source)
    constants = {weight.name for weight in model.graph.initializer}
    names = {t for n in model.graph.node if n.op_type in op_types for t in (*n.input, *n.output) if t} - constants
    entrance = model.graph.input[0].name
    kinds = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    known = {output.name for output in model.graph.output}
    inner = sorted(name for name in names - {entrance} if kinds.get(name, TensorProto.FLOAT) == TensorProto.FLOAT)
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner if name not in known
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # fusing would hide the tensors
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    lows, highs = defaultdict(list), defaultdict(list)
    for picture in pictures:
        values = dict(zip(inner, session.run(inner, {entrance: picture}), strict=True)) | {entrance: picture}
        for name, value in values.items():
            lows[name].append(float(value.min(initial=0.0)))
            highs[name].append(float(value.max(initial=0.0)))
    if not lows:
        raise QuantizeError("no calibration pictures: 0 found, expected 128 to 300 from where the box will stand")
    if ranges == "mean":
        return {name: (float(np.mean(lows[name])), float(np.mean(highs[name]))) for name in lows}
    return {name: (min(lows[name]), max(highs[name])) for name in lows}
