"""Every artefact of a bundle beside the float network it was made from: what each answers, and how fast."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from converters.bundles.package import FILES, open_fp16, open_runtimes
from converters.evaluation.latency import face_ms, show_face_ms
from converters.quantization.quantize import network_input
from edge.models.bundle import Bundle
from edge.models.manifest import Manifest

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]
Predict = Callable[[Images], Floats]
FOLD = 64  # pictures per call


class Fusible(Protocol):
    """A float network of ours."""

    def fused(self) -> nn.Module:
        """Return a copy for inference, every batch norm folded into its convolution."""


def predictors(
    folder: Path,
    manifest: Manifest,
    load_net: Callable[[Path], nn.Module],
    decode: Callable[[Sequence[Floats]], Floats],
    *,
    fold: int = FOLD,
    threads: int = 1,
) -> dict[str, Predict]:
    """Return a function from crops to answers for each artefact: fp32 (the checkpoint), int8_*, fp16_openvino.

    Args:
        folder: of the bundle, sealed or not.
        manifest: says how to feed the files that lie there.
        load_net: rebuilds the float network of our own checkpoint; called where there is one.
        decode: turns the outputs for some crops into one row of answers each.
        fold: crops per call.
        threads: of each runtime.
    """

    def through(infer: Callable[[Images], Sequence[Floats]]) -> Predict:
        def predict(crops: Images) -> Floats:
            return np.concatenate([decode(infer(crops[i : i + fold])) for i in range(0, len(crops), fold)])

        return predict

    found: dict[str, Predict] = {}
    if (folder / FILES["checkpoint"]).is_file():
        net = load_net(folder / FILES["checkpoint"])

        def infer_float(crops: Images) -> list[Floats]:
            with torch.inference_mode():
                return [net(torch.from_numpy(network_input(crops, manifest.input))).numpy()]

        found["fp32"] = through(infer_float)
    found |= {name: through(runtime.infer) for name, runtime in open_runtimes(folder, manifest, threads).items()}
    if (folder / FILES["fp16_xml"]).is_file():
        found["fp16_openvino"] = through(open_fp16(folder, manifest, threads).infer)
    return found


def ms_per_face(
    bundle: Bundle, load_net: Callable[[Path], Fusible], threads: int, console: Console
) -> dict[str, object]:
    """Measure and print how long each artefact takes for a face; return it by its name in the JSON.

    Args:
        bundle: of a head, an embedder or landmarks.
        load_net: rebuilds the float network of our own checkpoint; called where there is one.
        threads: of each runtime.
        console: where it is printed.
    """
    checkpoint = bundle.folder / FILES["checkpoint"]
    fused = load_net(checkpoint).fused() if checkpoint.is_file() else None
    times = face_ms(bundle.folder, bundle.manifest, fused, threads)
    show_face_ms(times, console)
    return {f"{artefact} ms per face": each for artefact, each in times.items()}
