"""The files of a bundle of our own small networks: what boxes and NPUs run, and the float weights.

Detectors have another way (`quantization.ways`), foreign checkpoints too (`bundles.foreign`).
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from converters.bundles.package import FILES, save_checkpoint
from converters.errors import QuantizeError
from converters.quantization.quantize import (
    export_onnx,
    onnx_nodes,
    openvino_nodes,
    quantize_onnx,
    quantize_openvino,
    save_openvino,
    to_openvino,
)
from edge.models.manifest import Input


def write_artefacts(
    net: nn.Module,
    fused: nn.Module,
    source: Input,
    output: str,
    calibration: NDArray[np.uint8],
    folder: Path,
    *,
    most_bytes: int,
    float_openvino: Sequence[str] = (),
    float_onnx: Sequence[str] = (),
) -> None:
    """Write a network under the usual names: INT8 IR and ONNX, an FP16 IR for NPUs, the float checkpoint.

    Args:
        net: whose weights become the checkpoint.
        fused: the same network for inference, norms folded into the convolutions.
        source: its input.
        output: name of its output.
        calibration: (N, H, W, 3) uint8 BGR of the input's size.
        folder: where the files go.
        most_bytes: an INT8 artefact may have.
        float_openvino: regular expressions; the nodes of the IR that match stay in float.
        float_onnx: the same for the ONNX graph, names or module paths.

    Raises:
        QuantizeError: an INT8 artefact is larger, or an expression matches nothing.
    """
    converted = to_openvino(fused, source, [output])
    save_openvino(converted, folder / FILES["fp16_xml"], fp16=True)
    ignored = openvino_nodes(converted, *float_openvino)
    quantized = quantize_openvino(
        converted, source, [calibration], ignored=ignored, ranges="minmax", bias_correction="full"
    )
    save_openvino(quantized, folder / FILES["xml"])
    with tempfile.TemporaryDirectory() as aside:
        floats = Path(aside) / "float.onnx"
        export_onnx(fused, source, [output], floats)
        exclude = onnx_nodes(floats, *float_onnx)
        quantize_onnx(floats, folder / FILES["onnx"], source, [calibration], exclude=exclude)
    save_checkpoint(net, folder / FILES["checkpoint"])
    check_size(folder, most_bytes)


def check_size(folder: Path, most_bytes: int) -> None:
    """Refuse INT8 artefacts larger than promised.

    Raises:
        QuantizeError: one is.
    """
    for name in (FILES["onnx"], FILES["bin"]):
        size = (folder / name).stat().st_size
        if size > most_bytes:
            raise QuantizeError(f"{name} has {size} bytes, {most_bytes} are allowed here; train a narrower network")
