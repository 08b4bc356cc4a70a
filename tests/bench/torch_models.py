"""The bundles' own float weights in PyTorch, behind the runtime protocol: the peer without quantization."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from converters.evaluation.classifier import load_student
from converters.nets.yolov10 import load_weights
from converters.nets.yolov10_export import Exported
from edge.models.bundle import MANIFEST, Bundle, load_bundle
from edge.models.manifest import Input
from edge.models.preprocess import to_tensor
from edge.models.runtime import Loaded


class TorchRuntime:
    """A float network; norms folded and re-parameterized, as the usual packages do before they predict."""

    device, artefact = "CPU", "fp32_torch"

    def __init__(self, net: torch.nn.Module, source: Input) -> None:
        self._net, self._source = net.eval(), source

    @torch.inference_mode()
    def infer(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Run (N, H, W, 3) uint8 BGR; see `edge.models.runtime.Runtime`."""
        answer = self._net(torch.from_numpy(to_tensor(images, self._source)))
        return [part.numpy() for part in (answer if isinstance(answer, tuple) else (answer,))]


def in_torch(models: Mapping[str, Loaded]) -> dict[str, Loaded] | None:
    """Return the same bundles run by PyTorch, or None where the float weights of one are not here."""
    weights = {name: checkpoint(loaded.bundle) for name, loaded in models.items()}
    if None in weights.values():
        return None
    return {
        name: replace(loaded, runtime=_runtime(loaded.bundle, path))
        for name, loaded in models.items()
        if (path := weights[name]) is not None
    }


def checkpoint(bundle: Bundle) -> Path | None:
    """Return the float weights of a bundle, or of a bundle beside it with the same network for another input size."""
    for folder in (bundle.folder, *sorted(bundle.folder.parent.iterdir())):
        if not (folder / MANIFEST).is_file():
            continue
        other = load_bundle(folder, verify=False)
        if folder != bundle.folder and (bundle.manifest.task != "detector" or not _alike(other, bundle)):
            continue  # students of one architecture differ in their labels
        if "checkpoint" in other.manifest.files:
            return other.path("checkpoint")
    return None


def _alike(one: Bundle, other: Bundle) -> bool:
    return one.manifest.architecture == other.manifest.architecture and one.manifest.task == other.manifest.task


def _runtime(bundle: Bundle, path: Path) -> TorchRuntime:
    source = bundle.manifest.input
    if bundle.manifest.task == "classifier":
        return TorchRuntime(load_student(path).fused(), source)
    return TorchRuntime(Exported(load_weights(path).eval().fuse(), source.width, source.height), source)
