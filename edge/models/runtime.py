"""Choosing the (device, artefact, runtime) that computes what the model should; each stage with a model starts here.

The runtimes themselves are adapters in `runtime_openvino` and `runtime_onnx`, imported only when their turn comes.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelError
from edge.models.bundle import Bundle
from edge.models.golden import Golden, difference, load_golden
from edge.models.manifest import Role

LOG = logging.getLogger(__name__)
DEVICES = ("NPU", "GPU", "CPU")
RESEARCH_ONLY = "research-only"


class Runtime(Protocol):
    """One compiled model. `device` is CPU, GPU or NPU, `artefact` such as int8_openvino, as the manifest names it."""

    @property
    def device(self) -> str: ...

    @property
    def artefact(self) -> str: ...

    def infer(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Run the model on (N, H, W, 3) uint8 BGR of the input's size; outputs in manifest order, (N, …), our own.

        N is free when the manifest says batch 0, else it is the manifest's. Not for two threads at once.
        """


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to run a bundle: `role` is the model file, `library` who runs it."""

    device: str
    artefact: str
    library: Literal["openvino", "onnxruntime"]
    role: Role

    def __str__(self) -> str:
        return f"{self.device} {self.artefact}"


class Compile(Protocol):
    """What a runtime module offers; raises ModelError when it cannot."""

    def __call__(self, bundle: Bundle, candidate: Candidate, threads: int, cache_dir: Path | None) -> Runtime: ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that passed its golden check; `attempts` says what was tried before and why it was refused."""

    runtime: Runtime
    bundle: Bundle
    golden: str
    attempts: tuple[str, ...]


def _openvino(bundle: Bundle, candidate: Candidate, threads: int, cache_dir: Path | None) -> Runtime:
    from edge.models.runtime_openvino import OpenVinoRuntime

    return OpenVinoRuntime(bundle, candidate, threads, cache_dir)


def _onnxruntime(bundle: Bundle, candidate: Candidate, threads: int, cache_dir: Path | None) -> Runtime:
    from edge.models.runtime_onnx import OnnxRuntime

    return OnnxRuntime(bundle, candidate, threads)


LIBRARIES: dict[str, Compile] = {"openvino": _openvino, "onnxruntime": _onnxruntime}


def candidates(bundle: Bundle, device: str) -> Iterator[Candidate]:
    """List the ways to run a bundle on one device, best first.

    INT8 nano models are no faster on NPUs and lose more, so an NPU gets FP16 only. A bundle without IR files (a foreign
    ONNX) is read by OpenVINO directly; without a calibration set it is called fp32, for it was never quantized.
    """
    files, precision = bundle.manifest.files, "int8" if bundle.manifest.calibration else "fp32"
    kind = device.split(".")[0]
    if kind != "CPU" and "fp16_xml" in files:
        yield Candidate(device, "fp16_openvino", "openvino", "fp16_xml")
    if kind != "NPU":
        if "xml" in files:
            yield Candidate(device, f"{precision}_openvino", "openvino", "xml")
        elif "onnx" in files:
            yield Candidate(device, f"{precision}_openvino", "openvino", "onnx")
    if kind == "CPU" and "onnx" in files:
        yield Candidate(device, f"{precision}_onnx", "onnxruntime", "onnx")


def load_model(
    bundle: Bundle,
    devices: Sequence[str],
    *,
    threads: int = 0,
    cache_dir: Path | None = None,
    log: Callable[[str], None] = LOG.warning,
    libraries: Mapping[str, Compile] = LIBRARIES,
) -> Loaded:
    """Compile a bundle for the first device that computes its golden output.

    Args:
        bundle: a checked bundle.
        devices: such as `["NPU", "GPU", "CPU"]`, tried in this order.
        threads: inference threads; 0 leaves it to the library. More lowers latency and raises CPU per frame.
        cache_dir: where OpenVINO keeps compiled models; saves about two thirds of the start.
        log: told of every refusal, of the choice, and of a research-only licence.
        libraries: the runtimes; tests put fakes here.

    Raises:
        ModelError: a device name is unknown, the golden file is unusable, or nothing passed; lists every attempt.
    """
    name = bundle.manifest.name
    for device in devices:
        if device.split(".")[0] not in DEVICES:
            raise ModelError(f"{name}: device is {device!r}, expected one of {', '.join(DEVICES)}; correct the config")
    golden = load_golden(bundle)
    attempts: list[str] = []
    for device in devices:
        ways = list(candidates(bundle, device))
        if not ways:
            attempts.append(f"{device}: the bundle has no model file for it, found {sorted(bundle.manifest.files)}")
            log(f"{name}: {attempts[-1]}")
        for candidate in ways:
            started = time.perf_counter()
            try:
                runtime = _trusted(bundle, candidate, threads, cache_dir, golden, libraries[candidate.library])
            except ModelError as error:
                attempts.append(f"{candidate}: {error}")
                log(f"{name}: refused {attempts[-1]}")
                continue
            log(f"{name}: runs on {candidate}, golden check passed, {time.perf_counter() - started:.2f} s")
            if bundle.manifest.licence == RESEARCH_ONLY:
                log(f"{name}: licence is {RESEARCH_ONLY}, not for commercial use (source: {bundle.manifest.source})")
            return Loaded(runtime, bundle, "ok", tuple(attempts))
    tried = "; ".join(attempts) or "no device was given"
    raise ModelError(f'{name}: no device computes the golden output. {tried}. Run "facefleet-edge doctor"')


def _trusted(
    bundle: Bundle, candidate: Candidate, threads: int, cache_dir: Path | None, golden: Golden, compile_model: Compile
) -> Runtime:
    """Compile and check; with a cache, once more after wiping it: a damaged entry may compile, or compute nonsense."""
    # One folder per way to run: a failing NPU must not cost the CPU its compiled model at every start.
    cache = cache_dir / bundle.manifest.name / str(candidate).replace(" ", "-") if cache_dir else None
    try:
        return _checked(compile_model(bundle, candidate, threads, cache), bundle, golden)
    except ModelError:
        if cache is None or not _wipe(cache):
            raise
    return _checked(compile_model(bundle, candidate, threads, cache), bundle, golden)


def _checked(runtime: Runtime, bundle: Bundle, golden: Golden) -> Runtime:
    if reason := difference(bundle.manifest, golden.outputs, runtime.infer(golden.image)):
        raise ModelError(f"golden check failed: {reason}")
    return runtime


def _wipe(cache: Path) -> bool:
    """Delete the compiled entries of one model; say whether there were any."""
    entries = [path for path in cache.glob("*") if path.is_file()]
    for path in entries:
        path.unlink(missing_ok=True)
    return bool(entries)
