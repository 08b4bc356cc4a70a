"""What every bundle of our own networks goes through before it is sealed: latency beside FP32, golden check."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch

from converters.bundles.package import FILES, open_runtimes
from converters.errors import QuantizeError
from converters.evaluation.latency import cpu_name, latency_ms
from converters.quantization.quantize import save_openvino, to_openvino
from edge.models.bundle import Bundle
from edge.models.golden import difference, load_golden
from edge.models.manifest import Manifest, Measurement
from edge.models.runtime import Runtime


def latency(
    fused: torch.nn.Module, manifest: Manifest, runtimes: Mapping[str, Runtime], command: str
) -> tuple[Measurement, ...]:
    """Measure a face alone and four together, one thread, INT8 beside the same network in FP32.

    Args:
        fused: the float network as it was exported.
        manifest: names input and outputs.
        runtimes: of the INT8 artefacts.
        command: that repeats the measurement.
    """
    lines = []
    with tempfile.TemporaryDirectory() as aside:
        save_openvino(to_openvino(fused, manifest.input, manifest.outputs), Path(aside) / FILES["xml"])
        floats = open_runtimes(Path(aside), msgspec.structs.replace(manifest, calibration=None))["fp32_openvino"]
        for artefact, runtime in {"fp32": floats, **runtimes}.items():
            for batch in (1, 4):
                ms = round(latency_ms(runtime, manifest.input, batch) / batch, 3)
                metric = f"ms per face, batch {batch}"
                lines.append(Measurement(metric, ms, artefact, f"{command} --threads 1", cpu=cpu_name(), threads=1))  # type: ignore[arg-type]
    return tuple(lines)


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
