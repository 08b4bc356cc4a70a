"""How well an embedder tells people apart: pairs of pictures through the faces, points and crops of a box.

Any embedder bundle can be judged, ours or a foreign one: what its manifest says about its input decides whether faces
are aligned by landmarks or cut out with a margin.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from converters.data.calibration import read_picture
from converters.data.detection import YUNET
from converters.data.face_crops import FaceFinder
from converters.data.identity import Pairs, pair_sets
from converters.errors import ConvertError
from converters.evaluation import artefacts, plots
from converters.evaluation.artefacts import Floats, Images
from converters.evaluation.artefacts import Predict as Embed
from converters.evaluation.verification import FALSE_RATES, Report, report, roc
from converters.nets.embedder import Embedder
from edge.models.bundle import Bundle, load_bundle
from edge.models.decoders import unit_vectors
from edge.models.manifest import Input, Manifest, Measurement
from edge.models.runtime import load_model
from edge.track.alignment import align
from edge.track.crops import cut
from edge.track.detector import Detector
from edge.track.landmarks import Landmarks

Find = Callable[[Images], NDArray[np.floating] | None]
LANDMARKS = "landmarks-student"


class FaceCutter:
    """The largest face of a picture as an embedder wants it, or None.

    Args:
        find: returns the largest face of a (H, W, 3) uint8 BGR picture, (4,) xyxy in its pixels.
        source: the embedder's input; `fit` decides between alignment and a plain crop.
        margin: of a plain crop.
        landmarks: needed for `fit: align`.
    """

    def __init__(self, find: Find, source: Input, margin: float, landmarks: Landmarks | None) -> None:
        self._find, self._source, self._margin, self._landmarks = find, source, margin, landmarks

    def __call__(self, picture: Images) -> Images | None:
        """Return (height, width, 3) uint8 BGR."""
        box = self._find(picture)
        if box is None:
            return None
        if self._source.fit != "align":
            return cut(picture, box, self._margin, self._source)
        assert self._landmarks is not None
        return align(picture, self._landmarks(picture, box[None])[0], self._source)


def cutter(bundle: Bundle, data: Path, detector: Path | None, landmarks: Path | None) -> FaceCutter:
    """Return what cuts faces for a bundle.

    Args:
        bundle: an embedder.
        data: the data folder; has YuNet's weights, or `detector` must be given.
        detector: bundle that finds the faces.
        landmarks: bundle with five points, for an embedder that aligns; `landmarks-student` beside the bundle if None.

    Raises:
        ConvertError: a part is missing.
    """
    manifest = bundle.manifest
    points = None
    if manifest.input.fit == "align":
        folder = landmarks or bundle.folder.parent / LANDMARKS
        if not folder.is_dir():
            raise ConvertError(f"{manifest.name} aligns by landmarks, but {folder} is no bundle; give --landmarks")
        points = Landmarks(load_model(load_bundle(folder), ["CPU"], threads=1, log=lambda _: None))
    return FaceCutter(_finder(data, detector), manifest.input, manifest.crop_margin, points)


def _finder(data: Path, detector: Path | None) -> Find:
    if detector is not None:
        # Pictures of a pair show a person for sure: the surest box counts, however unsure the detector is.
        loaded = Detector(
            load_model(load_bundle(detector), ["CPU"], threads=1, log=lambda _: None), score_threshold=0.05
        )

        def surest(picture: Images) -> NDArray[np.floating] | None:
            xyxy = loaded(picture).xyxy
            return xyxy[0] if len(xyxy) else None

        return surest
    if not (data / YUNET).is_file():
        raise ConvertError(f"{data / YUNET} is missing, so nothing finds the faces; give --detector a bundle that does")
    yunet = FaceFinder(data / YUNET)

    def found(picture: Images) -> NDArray[np.floating] | None:
        box = yunet.find(picture)
        return None if box is None else np.array(box, np.float32)

    return found


@dataclass(frozen=True)
class Cut:
    """The faces of a set of pairs: (N, H, W, 3) uint8 BGR, and which pictures had one."""

    crops: Images
    found: NDArray[np.bool_]
    pairs: Pairs

    def similarity(self, embed: Embed) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the (P,) cosines of the pairs whose faces were both found, and whether each shows one person."""
        vectors = embed(self.crops)
        kept = self.found[self.pairs.pairs].all(axis=1)
        a, b = self.pairs.pairs[kept].T
        return np.asarray((vectors[a] * vectors[b]).sum(axis=1), np.float32), self.pairs.same[kept]


def cut_faces(pairs: Mapping[str, Pairs], cutter: FaceCutter, source: Input) -> dict[str, Cut]:
    """Cut the faces of every set once; a picture without a face gets a black crop that no pair uses."""
    cuts = {}
    for name, one in pairs.items():
        crops = [cutter(read_picture(path)) for path in track(one.files, f"faces of {name}", transient=True)]
        empty = np.zeros((source.height, source.width, 3), np.uint8)
        found = np.array([crop is not None for crop in crops])
        cuts[name] = Cut(np.stack([empty if crop is None else crop for crop in crops]), found, one)
    return cuts


def embedders(folder: Path, manifest: Manifest, threads: int = 1) -> dict[str, Embed]:
    """Return a function from crops to (N, D) unit vectors for each artefact; `fp32` where our checkpoint is there."""
    fold = manifest.input.batch or 32
    return artefacts.predictors(folder, manifest, load_net, unit_vectors, fold=fold, threads=threads)


def thumbnails(crops: Images) -> Floats:
    """Return (N, 768) unit vectors of the crops at 16×16, less their mean: what is alike without any network.

    A yardstick: pairs of one studio session are told apart by hair, collar and light alone.
    """
    small = np.stack([cv2.resize(crop, (16, 16), interpolation=cv2.INTER_AREA) for crop in crops]).astype(np.float32)
    flat = small.reshape(len(crops), -1)
    return unit_vectors([flat - flat.mean(axis=1, keepdims=True)])


def load_net(checkpoint: Path) -> Embedder:
    """Rebuild the network of a bundle's checkpoint; its widths are read off the tensors."""
    saved = torch.load(checkpoint, weights_only=True)
    if "project.weight" not in saved:
        raise ConvertError(f"{checkpoint}: no tensor project.weight; expected the checkpoint of our embedder")
    blocks = len({key.split(".")[1] for key in saved if key.startswith("blocks.")})
    net = Embedder(tuple(saved[f"blocks.{i}.conv2.0.weight"].shape[0] for i in range(blocks)))
    net.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in saved.items()})
    return net.eval()


def reports(embed: Embed, cuts: Mapping[str, Cut]) -> list[Report]:
    """Return one report per set of pairs."""
    found = []
    for name, one in cuts.items():
        similarity, same = one.similarity(embed)
        if not same.any() or same.all():
            raise ConvertError(f"{name}: {int(same.sum())} of {len(same)} pairs show one person; both kinds are needed")
        left_out = int((~one.found).sum())
        found.append(report(name, similarity, same, pictures=int(one.found.sum()), left_out=left_out))
    return found


def measurements(found: Sequence[Report], artefact: str, command: str) -> list[Measurement]:
    """Return a manifest's accuracy lines."""
    lines = []
    for r in found:
        figures = {"roc_auc": r.auc, **{f"tpr at fpr {rate}": value for rate, value in r.tpr.items()}}
        lines += [
            Measurement(metric, round(value, 4), artefact, command, r.dataset, images=r.pictures)  # type: ignore[arg-type]
            for metric, value in figures.items()
        ]
    return lines


def evaluate(bundle: Bundle, args: argparse.Namespace) -> dict[str, object]:
    """Measure every artefact of an embedder; `roc.png` and `similarity.png` in `args.out` show the INT8 one.

    Args:
        bundle: of an embedder.
        args: `data`, `detector`, `landmarks`, `threads`, `out` of `facefleet-convert evaluate`.
    """
    manifest, console = bundle.manifest, Console()
    cut_out = cutter(bundle, args.data, args.detector, args.landmarks)
    cuts = cut_faces(pair_sets(args.data), cut_out, manifest.input)
    kept: dict[str, object] = {}
    every = embedders(bundle.folder, manifest, args.threads)
    yardstick = reports(thumbnails, cuts)
    console.print(table("no network: thumbnails of the same crops", yardstick))
    kept["thumbnails"] = [asdict(r) for r in yardstick]
    for artefact, embed in every.items():
        found = reports(embed, cuts)
        console.print(table(f"{manifest.name}, {artefact}: true positive rate at false positive rate", found))
        kept[artefact] = [asdict(r) for r in found]
    drawn = next(name for name in ("int8_openvino", "fp32_openvino", *every) if name in every)
    draw(every[drawn], cuts, args.out, f"{manifest.name}, {drawn}")
    return kept | artefacts.ms_per_face(bundle, load_net, args.threads, console)


def table(title: str, found: Sequence[Report]) -> Table:
    """Return the ID-rate table; a rate finer than the impostor pairs can show is marked."""
    grid = Table(
        title=title, caption="* no false alarm at all: too few impostor pairs to tell", box=None, padding=(0, 1, 0, 0)
    )
    for column in ("set", "pics", "same", "others", "AUC", *(f"{rate:g}" for rate in FALSE_RATES)):
        grid.add_column(column, justify="left" if column == "set" else "right", no_wrap=True)
    for r in found:
        rates = [f"{value:.2f}{'*' if float(rate) < r.finest_fpr else ''}" for rate, value in r.tpr.items()]
        pictures = f"{r.pictures}" + (f" (−{r.left_out})" if r.left_out else "")
        grid.add_row(r.dataset, pictures, str(r.genuine), str(r.impostor), f"{r.auc:.3f}", *rates)
    return grid


def draw(embed: Embed, cuts: Mapping[str, Cut], out: Path, title: str) -> None:
    """Draw ROC and similarities of every set."""
    found = {name: one.similarity(embed) for name, one in cuts.items()}
    curves = {name: roc(similarity[same], similarity[~same]) for name, (similarity, same) in found.items()}
    finest = {name: 1 / int((~same).sum()) for name, (_, same) in found.items()}
    plots.roc_curves(out / "roc.png", title, curves, finest)
    plots.similarities(out / "similarity.png", title, found)
