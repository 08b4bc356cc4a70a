"""How long one inference takes, through the very runtime a box uses (pixels in, outputs out)."""

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from converters.bundles.package import FILES, open_runtimes
from converters.quantization.quantize import save_openvino, to_openvino
from edge.models.manifest import Input, Manifest
from edge.models.runtime import Runtime


def latency_ms(runtime: Runtime, source: Input, batch: int = 1, seconds: float = 1.0) -> float:
    """Return the median time of one `infer` of `batch` pictures, in milliseconds.

    The median of a second's worth: on a busy machine the mean says more about the neighbours than about the model.
    """
    images = np.random.default_rng(0).integers(0, 256, (batch, source.height, source.width, 3), np.uint8)
    for _ in range(3):
        runtime.infer(images)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter()
        runtime.infer(images)
        times.append(time.perf_counter() - began)
    return float(np.median(times) * 1e3)


def face_ms(
    folder: Path, manifest: Manifest, fused: torch.nn.Module | None, threads: int
) -> dict[str, dict[str, float]]:
    """Return per artefact the milliseconds a face takes, alone and four at once where the network takes four.

    Args:
        folder: with the bundle's files.
        manifest: of a head, an embedder or landmarks.
        fused: its float network, which then comes first, as `fp32` on OpenVINO; None where the bundle has none.
        threads: of each runtime.
    """
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as aside:
        runtimes = open_runtimes(folder, manifest, threads)
        if fused is not None:
            save_openvino(to_openvino(fused, manifest.input, manifest.outputs), Path(aside) / FILES["xml"])
            plain = msgspec.structs.replace(manifest, calibration=None)
            runtimes = {"fp32": open_runtimes(Path(aside), plain, threads)["fp32_openvino"], **runtimes}
        sizes = (1, 4) if manifest.input.batch == 0 else (manifest.input.batch,)
        for artefact, runtime in track(list(runtimes.items()), "measuring latency", transient=True):
            found[artefact] = {f"batch {n}": latency_ms(runtime, manifest.input, n) / n for n in sizes}
    return found


def show_face_ms(times: Mapping[str, Mapping[str, float]], console: Console) -> None:
    """Print a line per artefact."""
    for artefact, batches in times.items():
        console.print(f"{artefact}: " + ", ".join(f"{name} {ms:.2f} ms a face" for name, ms in batches.items()))


@dataclass(frozen=True)
class Timing:
    """What one inference takes, in milliseconds.

    Attributes:
        median: over all rounds; `low` and `high` are the smallest and the largest median of one round.
        cpu: time of all threads together, the median over the rounds: what a busy machine blurs least.
    """

    median: float
    low: float
    high: float
    cpu: float

    def __str__(self) -> str:
        """Say it in one cell of a table."""
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def in_turn(
    runtimes: Mapping[str, Runtime], images: NDArray[np.uint8], rounds: int = 9, run: int = 12
) -> dict[str, Timing]:
    """Measure runtimes in turn, so that a busy machine is unfair to none.

    A turn is a run of inferences, as a camera makes them: alternating single ones would measure how fast a thread pool
    wakes up after another one used the cores (YOLOv10n-ReLU 320: 2.0 times FP32 instead of 2.7).

    Args:
        runtimes: by name.
        images: (N, H, W, 3) uint8 BGR of the network's size.
        rounds: turns of each runtime, after one to warm up.
        run: inferences in a turn; the first two of each count for nothing.
    """
    walls: dict[str, list[list[float]]] = {name: [] for name in runtimes}
    cpus: dict[str, list[float]] = {name: [] for name in runtimes}
    for turn in range(rounds + 1):
        for name, runtime in runtimes.items():
            times, busy = [], 0.0
            for number in range(run):
                if number == 2:
                    busy = time.process_time()
                began = time.perf_counter()
                runtime.infer(images)
                times.append((time.perf_counter() - began) * 1e3)
            if turn:
                walls[name].append(times[2:])
                cpus[name].append((time.process_time() - busy) * 1e3 / (run - 2))
    found = {}
    for name, turns in walls.items():
        medians = [statistics.median(turn) for turn in turns]
        every = statistics.median(value for turn in turns for value in turn)
        found[name] = Timing(every, min(medians), max(medians), statistics.median(cpus[name]))
    return found


def cpu_name() -> str:
    """Return the processor's name and the INT8 instructions that decide its speed."""
    try:
        facts = dict(
            line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
        )  # the last core's lines win; they are alike
    except OSError:
        return "unknown"
    known = {key.strip(): value.strip() for key, value in facts.items()}
    flags = known.get("flags", "").split()
    vnni = " VNNI" if {"avx512_vnni", "avx_vnni"} & set(flags) else ""
    return f"{known.get('model name', 'unknown')}{vnni}"
