"""OpenVINO behind `Runtime`: CPU, GPU and NPU, with the pixel steps compiled into the graph."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelError
from edge.models.bundle import Bundle
from edge.models.manifest import Input, Role
from edge.models.preprocess import tensor_shape
from edge.models.runtime import Candidate

# Faces come one to a handful at a time. A static batch of 4 takes 20 % less per face than four of 1; a dynamic batch
# pays 4 ms at every new size and is no faster than this (measured on a 96 px INT8 student, 2 threads: mixed sizes
# 1 to 5 cost 2.8 ms dynamic, 2.3 ms one by one). More sizes cost 15 ms of start each and win under 5 %.
BATCHES = (4, 1)
WEIGHTS: dict[Role, Role] = {"xml": "bin", "fp16_xml": "fp16_bin"}


class OpenVinoRuntime:
    """One model compiled for one device, in one or two static batch sizes."""

    def __init__(self, bundle: Bundle, candidate: Candidate, threads: int, cache_dir: Path | None) -> None:
        """Compile.

        Raises:
            ModelError: OpenVINO is not installed, has no such device, or refuses the model.
        """
        try:
            import openvino as ov
        except ImportError as error:
            raise ModelError('openvino is not installed; pip install "facefleet[edge]"') from error
        self.device = candidate.device
        self.artefact = candidate.artefact
        self._tensor = ov.Tensor
        core, source = ov.Core(), bundle.manifest.input
        kind = self.device.split(".")[0]
        if kind != "CPU":  # asking which devices there are loads every plugin: 19 MB and 0.1 s for two a CPU never uses
            self._check_device(core)
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if kind == "CPU":
            # Left alone, OpenVINO computes in bf16 where the CPU has it: 0.18 off in score, beyond the golden check.
            config["INFERENCE_PRECISION_HINT"] = "f32"
            # The cores also decode video. A pinned thread waits for its own core where a free one takes the other:
            # YuNet 320, 2 threads on 2 busy cores: 6.2 ms and 3.7 ms of CPU pinned, 3.3 ms and 2.3 ms free.
            config["ENABLE_CPU_PINNING"] = False
            if threads:
                config["INFERENCE_NUM_THREADS"] = threads
        if cache_dir:
            cache_dir.mkdir(parents=True, exist_ok=True)
            config["CACHE_DIR"] = str(cache_dir)
        sizes = (source.batch,) if source.batch else BATCHES if kind == "CPU" else (1,)
        path = bundle.path(candidate.role)
        weights = WEIGHTS.get(candidate.role)
        self._requests: dict[int, Any] = {}
        try:
            for size in sizes:
                model = core.read_model(path, bundle.path(weights)) if weights else core.read_model(path)
                compiled = core.compile_model(_with_pixels(model, source, size), self.device, config)
                self._requests[size] = compiled.create_infer_request()
            names = [output.get_names() for output in compiled.outputs]
            self._order = [_index(names, name, path) for name in bundle.manifest.outputs]
        except RuntimeError as error:  # all that OpenVINO throws derives from it
            raise ModelError(f"{path}: OpenVINO {ov.__version__} on {self.device}: {_first_line(error)}") from error

    def infer(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Run (N, H, W, 3) uint8 BGR in as few static batches as fit; see `Runtime`."""
        parts: list[list[NDArray[np.float32]]] = []
        start = 0
        while start < len(images):
            size = next((size for size in self._requests if size <= len(images) - start), 0)
            if not size:
                raise ModelError(f"a batch of {len(images)} images, expected a multiple of {min(self._requests)}")
            parts.append(self._run(size, images[start : start + size]))
            start += size
        return parts[0] if len(parts) == 1 else [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, size: int, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        request = self._requests[size]
        request.infer({0: self._tensor(np.ascontiguousarray(images), shared_memory=True)})
        # Copies: the request's own memory is overwritten by the next inference (20 µs for 8,400 boxes).
        return [np.array(request.get_output_tensor(k).data, np.float32) for k in self._order]

    def _check_device(self, core: Any) -> None:
        found = list(core.available_devices)
        if not any(device == self.device or device.split(".")[0] == self.device for device in found):
            raise ModelError(f"no such device here, OpenVINO sees {', '.join(found) or 'none'}")


def _with_pixels(model: Any, source: Input, batch: int) -> Any:
    """Return the model eating (batch, H, W, 3) uint8 BGR: the steps of `preprocess.to_tensor`, inside the graph."""
    import openvino as ov
    from openvino.preprocess import ColorFormat, PrePostProcessor

    model.reshape(list(tensor_shape(source, batch)))
    steps = PrePostProcessor(model)
    pixels = steps.input()
    pixels.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC")).set_color_format(ColorFormat.BGR)
    pixels.model().set_layout(ov.Layout(source.layout))
    wanted = {"BGR": ColorFormat.BGR, "RGB": ColorFormat.RGB, "GRAY": ColorFormat.GRAY}[source.color]
    convert = pixels.preprocess().convert_element_type(ov.Type.f32)
    if source.color != "BGR":
        convert = convert.convert_color(wanted)
    convert.mean(_plain(source.mean)).scale(_plain(source.scale))
    return steps.build()


def _plain(values: tuple[float, ...]) -> Any:
    """Return one number where all channels agree (OpenVINO folds it better), else the list."""
    return values[0] if len(set(values)) == 1 else list(values)


def _index(names: list[set[str]], name: str, path: Path) -> int:
    for index, known in enumerate(names):
        if name in known:
            return index
    raise ModelError(f"{path}: output {name} of the manifest is not in the model, found {sorted(set().union(*names))}")


def _first_line(error: Exception) -> str:
    """Return the line of OpenVINO's many that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or ["no reason given"])[0]
