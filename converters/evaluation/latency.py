"""How long one inference takes, through the very runtime a box uses (pixels in, outputs out)."""

import time
from pathlib import Path

import numpy as np

from edge.models.manifest import Input
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
