"""From a trained embedder to `models_int8/face-embedder/`: quantize, report on pairs of pictures, seal."""

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from converters.bundles.artefacts import write_artefacts
from converters.bundles.measured import check_golden, latency
from converters.bundles.package import (
    DATA,
    astronaut,
    digest_of,
    open_runtimes,
    seal,
    staging,
    write_data_list,
    write_golden,
)
from converters.data.augment_identity import SIZE_PX
from converters.data.detection import PURPOSES
from converters.data.identity import AlignedFaces, pair_sets, without_context
from converters.evaluation.embedder import cut_faces, cutter, embedders, measurements, reports, table
from converters.nets.embedder import DIMENSIONS, Embedder
from converters.nets.student import parameters
from converters.quantization.quantize import OPSET
from edge.models.bundle import Bundle
from edge.models.manifest import Calibration, Input, Manifest, Measurement
from edge.models.runtime import RESEARCH_ONLY
from edge.track.alignment import align

VERSION = "1"
OUTPUT = "embedding"
CALIBRATION_PICTURES = 256
MAX_BYTES = 2_000_000
# The division by the vector's length; 8 bits of it would turn every vector a little.
FLOAT_OPENVINO = (r"aten::div/",)
# YuNet's points on the face of `package.astronaut`, in its pixels.
ASTRONAUT_POINTS = np.array([[204, 102], [247, 104], [223, 127], [204, 143], [242, 146]], np.float32)
SOURCES = {
    "utkface": "UTKFace (research use only), its test part left out",
    "fairface": "CC BY 4.0, Karkkainen & Joo, WACV 2021",
}
NOTES = (
    "Almost everybody in the training pictures appears once, so sameness was learnt from two disturbed views of one "
    "picture, and from a few clips: the embedder knows what tells faces apart in one picture better than how one face "
    "changes between years, cameras and lights. Not fit to identify anybody. London's pairs are two studio portraits "
    "of one session, Azure and Lisa have few people: rates at small false alarms rest on a handful of pairs."
)


def embedder_input() -> Input:
    """Return how the network is fed: an upright face, RGB in [0, 1], any batch."""
    return Input(width=SIZE_PX, height=SIZE_PX, batch=0, fit="align")


def write_bundle(
    net: Embedder, learnt: AlignedFaces, data: Path, folder: Path, *, how: str, began: str = ""
) -> Manifest:
    """Write the bundle and print its ID-rate tables; the landmark bundle must lie beside it.

    Args:
        net: trained; its averaged weights.
        learnt: what it has learnt from; calibration is drawn from it.
        data: the data folder with the pairs to report on.
        folder: the bundle's folder, replaced as a whole.
        how: the command that trained it.
        began: the bundle whose blocks the training started from.
    """
    blocks = f"Its first blocks are those of {began}, whose data.json lists what they learnt from." if began else ""
    source, console = embedder_input(), Console()
    picked = np.random.default_rng(0).choice(len(learnt), min(len(learnt), CALIBRATION_PICTURES), replace=False)
    part = learnt.subset(sorted(picked.tolist()))
    calibration = without_context(part.pictures)
    lists, purposes = data_list(learnt)
    manifest = Manifest(
        name=folder.name,
        version=VERSION,
        task="embedder",
        decoder="vector",
        input=source,
        outputs=(OUTPUT,),
        files={},
        licence=RESEARCH_ONLY,
        source=f"trained by this project ({how}) on {', '.join(lists)}",
        opset=OPSET,
        architecture=f"skip-connection CNN with weighed places, widths {'-'.join(map(str, net.widths))}, "
        f"{parameters(net.bare())} weights, {DIMENSIONS} numbers of length 1",
        calibration=Calibration("training part", len(part), digest_of(part.digests)),
    )
    with staging(folder) as aside:
        write_artefacts(
            net.bare(),
            net.fused(),
            source,
            OUTPUT,
            calibration,
            aside,
            most_bytes=MAX_BYTES,
            float_openvino=FLOAT_OPENVINO,
        )
        command = f"facefleet-convert evaluate models_int8/{folder.name} --data DATA"
        cuts = cut_faces(pair_sets(data), cutter(Bundle(folder, manifest), data, None, None), source)
        lines: list[Measurement] = []
        for artefact, embed in embedders(aside, manifest).items():
            found = reports(embed, cuts)
            lines += measurements(found, artefact, command)
            console.print(table(f"{folder.name}, {artefact}: true positive rate at false positive rate", found))
        runtimes = open_runtimes(aside, manifest)
        note = write_golden(aside, manifest, golden_pictures(source), runtimes["int8_openvino"].infer)
        manifest = msgspec.structs.replace(
            manifest,
            accuracy=tuple(lines),
            latency=latency(aside, manifest, net.fused(), command),
            notes=" ".join(part for part in (NOTES, blocks, note) if part),
        )
        write_data_list(aside / DATA, lists, purposes)
        manifest = seal(aside, manifest)
        check_golden(aside, manifest, runtimes)
    return manifest


def data_list(learnt: AlignedFaces) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the SHA-256 of every file by source, and what each source is for."""
    lists: dict[str, set[str]] = {}
    for person, digest in zip(learnt.people, learnt.digests, strict=True):
        lists.setdefault(person.partition("/")[0], set()).add(digest)
    purpose = {kind: f"training, aligned by YuNet's points; {SOURCES.get(kind) or PURPOSES[kind]}" for kind in lists}
    return {kind: sorted(digests) for kind, digests in lists.items()}, purpose


def golden_pictures(source: Input) -> list[NDArray[np.uint8]]:
    """Return upright crops of a public-domain portrait, (1, H, W, 3) uint8 BGR, the plain one first."""
    picture, centre = astronaut(), ASTRONAUT_POINTS.mean(axis=0)
    points = [(ASTRONAUT_POINTS - centre) * np.float32(zoom) + centre for zoom in (1.0, 1.15, 0.9, 1.3)]
    return [align(picture, p, source)[None] for p in points]
