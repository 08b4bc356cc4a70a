"""What every bundle of our own networks goes through before it is sealed: latency beside FP32, golden check."""

from collections.abc import Mapping
from pathlib import Path

import torch

from converters.errors import QuantizeError
from converters.evaluation.latency import cpu_name, face_ms
from edge.models.bundle import Bundle
from edge.models.golden import difference, load_golden
from edge.models.manifest import Manifest, Measurement
from edge.models.runtime import Runtime


def latency(folder: Path, manifest: Manifest, fused: torch.nn.Module, command: str) -> tuple[Measurement, ...]:
    """Measure a face alone and four together, one thread, INT8 beside the same network in FP32, as `command` does.

    Args:
        folder: with the INT8 artefacts.
        manifest: names input and outputs.
        fused: the float network as it was exported.
        command: that repeats the measurement.
    """
    words, cpu = f"{command} --threads 1", cpu_name()
    return tuple(
        Measurement(f"ms per face, {batch}", round(ms, 3), artefact, words, cpu=cpu, threads=1)  # type: ignore[arg-type]
        for artefact, times in face_ms(folder, manifest, fused, threads=1).items()
        for batch, ms in times.items()
    )


def check_golden(folder: Path, manifest: Manifest, runtimes: Mapping[str, Runtime]) -> None:
    """Refuse a bundle whose artefacts disagree on the golden picture: a box would refuse it too.

    Raises:
        QuantizeError: they do.
    """
    bundle = Bundle(folder, manifest)
    golden = load_golden(bundle)
    for name, runtime in runtimes.items():
        if reason := difference(manifest, golden.outputs, runtime.infer(golden.image)):
            raise QuantizeError(f"{manifest.name}: {name} differs on the golden picture: {reason}")
