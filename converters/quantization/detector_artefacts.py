"""From a float YOLOv10 to its float graphs: what INT8 is made from, what it is measured against, what an NPU runs.

Driven by `bundles.detector`, which quantizes, measures the files and makes a bundle of them.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from converters.bundles.package import FILES
from converters.nets.yolov10 import YOLOv10
from converters.nets.yolov10_export import Exported
from converters.quantization.graphs import fused, read_openvino
from converters.quantization.quantize import export_onnx, save_openvino, to_openvino
from edge.models.manifest import Input
from edge.track.letterbox import Letterbox

OUTPUTS = ("boxes", "scores")


def input_of(size: int) -> Input:
    """Return how every detector of ours is fed: RGB in [0, 1], letterboxed into a square."""
    return Input(width=size, height=size)


def exported(net: YOLOv10, size: int, sixteen_bit: bool = False) -> Exported:
    """Return a fused copy of the path to the head that answers, for one input size; `net` stays as it is."""
    return Exported(copy.deepcopy(net).cpu().eval().fuse(), size, size, sixteen_bit).eval()


def write_float(net: YOLOv10, size: int, folder: Path) -> None:
    """Write the FP32 ONNX and IR under a bundle's usual names: what INT8 is made from and measured against."""
    source = folder / FILES["onnx"]
    export_onnx(exported(net, size), input_of(size), OUTPUTS, source)
    onnx.save(fused(onnx.load(source), folder), source)
    save_openvino(read_openvino(source, OUTPUTS), folder / FILES["xml"])


def write_fp16(net: YOLOv10, size: int, folder: Path) -> None:
    """Write the FP16 IR under a bundle's usual names."""
    model = to_openvino(exported(net, size, sixteen_bit=True), input_of(size), OUTPUTS)
    save_openvino(model, folder / FILES["fp16_xml"], fp16=True)


def letterboxed(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return (1, size, size, 3) uint8 BGR, drawn by the box's own letterbox."""
    return Letterbox(size, size)(image).copy()


Item = TypeVar("Item")


def pick(items: Sequence[Item], count: int, seed: int = 0) -> list[Item]:
    """Return `count` items at random, always the same ones; all of them when there are fewer."""
    order = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[k] for k in sorted(order)]
