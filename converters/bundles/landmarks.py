"""From a trained landmark network to `models_int8/landmarks-student/`: quantize, measure against YuNet, seal."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from converters.bundles.artefacts import write_artefacts
from converters.bundles.measured import check_golden, latency
from converters.bundles.package import (
    DATA,
    digest_of,
    open_runtimes,
    seal,
    staging,
    write_data_list,
    write_golden,
)
from converters.bundles.student import golden_pictures
from converters.data.detection import PURPOSES
from converters.data.landmarks import MarkedFaces
from converters.evaluation.landmarks import crops_of, measurements, predictors, reports, table
from converters.nets.landmarks import POINTS, LandmarkNet
from converters.nets.student import parameters
from converters.quantization.quantize import OPSET
from edge.models.manifest import Calibration, Input, Manifest

VERSION = "1"
OUTPUT = "points"
LICENCE = "Apache-2.0"
LABELS = ("right eye", "left eye", "nose", "right mouth corner", "left mouth corner")
CALIBRATION_PICTURES = 256
MAX_BYTES = 200_000
# The heat maps' last convolution and the mean over them: 8 bits of a coordinate are a quarter of a pixel, and those of
# the heat decide where its mean lies.
FLOAT_OPENVINO = (r"__module\.heat/", r"aten::softmax/", r"aten::mul/", r"aten::sum/")
FLOAT_ONNX = (r"\bheat\b",)


def landmark_input(size_px: int) -> Input:
    """Return how the network is fed: RGB in [0, 1], the box with its margin stretched to a square, any batch."""
    return Input(width=size_px, height=size_px, batch=0, fit="stretch")


def write_bundle(
    net: LandmarkNet,
    learnt: MarkedFaces,
    tests: Mapping[str, MarkedFaces],
    folder: Path,
    *,
    margin: float,
    size_px: int,
    how: str,
) -> Manifest:
    """Write the bundle and print what it is worth.

    Args:
        net: trained; its averaged weights.
        learnt: what it has learnt from; calibration is drawn from it.
        tests: held-out faces by name.
        folder: the bundle's folder, replaced as a whole.
        margin: the crop margin of training.
        size_px: side of the input.
        how: the command that trained it.
    """
    source, console = landmark_input(size_px), Console()
    picked = np.sort(
        np.random.default_rng(0).choice(len(learnt), min(len(learnt), CALIBRATION_PICTURES), replace=False)
    )
    part = learnt.subset(picked)
    calibration = crops_of(part, margin, size_px)
    manifest = Manifest(
        name=folder.name,
        version=VERSION,
        task="landmarks",
        decoder="points",
        input=source,
        outputs=(OUTPUT,),
        files={},
        licence=LICENCE,
        source=f"trained by this project ({how}) on the points that YuNet (Apache-2.0) marks on pictures that may ship",
        labels=LABELS[:POINTS],
        crop_margin=margin,
        opset=OPSET,
        architecture=f"five heat maps over a skip-connection CNN, widths {'-'.join(map(str, net.widths))}, "
        f"{parameters(net)} weights",
        calibration=Calibration("training part", len(part), digest_of(part.digests)),
    )
    with staging(folder) as aside:
        write_artefacts(
            net,
            net.fused(),
            source,
            OUTPUT,
            calibration,
            aside,
            most_bytes=MAX_BYTES,
            float_openvino=FLOAT_OPENVINO,
            float_onnx=FLOAT_ONNX,
        )
        command = f"facefleet-convert evaluate models_int8/{folder.name} --data DATA"
        lines = []
        for artefact, predict in predictors(aside, manifest).items():
            found, _ = reports(predict, tests, manifest)
            lines += measurements(found, artefact, command)
            console.print(table(f"{folder.name}, {artefact}: mean error in eye distances", found))
        runtimes = open_runtimes(aside, manifest)
        note = write_golden(aside, manifest, list(golden_pictures(margin, size_px)), runtimes["int8_openvino"].infer)
        manifest = msgspec.structs.replace(
            manifest, accuracy=tuple(lines), latency=latency(aside, manifest, net.fused(), command), notes=note
        )
        write_data_list(aside / DATA, *data_list(learnt))
        manifest = seal(aside, manifest)
        check_golden(aside, manifest, runtimes)
    return manifest


def data_list(learnt: MarkedFaces) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the SHA-256 of every picture by source and name, and what each source is for."""
    lists: dict[str, dict[str, str]] = {}
    for full, digest in zip(learnt.names, learnt.digests, strict=True):
        kind, _, name = full.partition("#")[0].partition("/")
        lists.setdefault(kind, {})[name] = digest
    return lists, {kind: f"points by YuNet; {PURPOSES[kind]}" for kind in lists}
