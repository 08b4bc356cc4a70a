"""Ways of quantizing one float graph, from the fastest to the most careful, and the choice between them by accuracy.

Driven by `bundles.detector` for our own checkpoints and by `bundles.foreign` for others.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import onnx
import openvino as ov
from numpy.typing import NDArray

from converters.errors import QuantizeError
from converters.quantization.graphs import (
    attention_onnx,
    onnx_name,
    openvino_names,
    read_openvino,
    tail_onnx,
    tail_openvino,
)
from converters.quantization.losses import Loss, losses, named_nodes, own_errors
from converters.quantization.qdq import Calibrated, calibrated, quantized
from converters.quantization.quantize import (
    QDQ_OPS,
    Preset,
    network_input,
    quantize_openvino,
    save_openvino,
    single_pictures,
)
from converters.quantization.ranges import Ranges
from edge.models.manifest import Input

Images = NDArray[np.uint8]
Result = TypeVar("Result")
Say = Callable[[str], None]
# Sigmoid and Mul: a Swish left in float would tear the INT8 graph apart at every convolution.
OPERATORS = (*QDQ_OPS, "Split", "Sigmoid", "Mul", "Clip", "LeakyRelu")
LIMIT = 300
PROBES = 8  # pictures on which the layers' losses are measured


@dataclass(frozen=True)
class Way:
    """One way of quantizing.

    Attributes:
        ranges: how they are found.
        attention: its products and softmax are in INT8 too.
        spared: how many of the worst parts stay in float.
    """

    ranges: Ranges = "minmax"
    attention: bool = True
    spared: int = 0

    def __str__(self) -> str:
        """Say it in the words of the table and the manifest."""
        attention = "" if self.attention else ", attention in float"
        parts = f", {self.spared} part{'s' if self.spared > 1 else ''} in float" if self.spared else ""
        return f"{self.ranges} ranges{attention}{parts}"


# The first two are both tried and the better kept; the others, with that one's attention, only while too much is lost:
# other ranges cost no time on a box, a part in float does.
ALWAYS = (Way(), Way(attention=False))
CAREFUL = (Way("mean"), Way(spared=1), Way(spared=3), Way(spared=6))


class Workshop:
    """A float graph with its calibration pictures, quantized as often as asked for.

    Args:
        source: float ONNX with constants folded (`graphs.fused`).
        spec: the manifest's input.
        outputs: in the manifest's order.
        calibration: batches (N, H, W, 3) uint8 BGR.
        tail: keep the arithmetic behind the last convolutions in float, and rewrite for speed: a detector.
        named: parts or nodes (see `losses`) that stay in float in every way; an unknown name is an error.
        symmetric: activations that start at zero lose nothing by OpenVINO's symmetric preset and spare arithmetic.
    """

    def __init__(
        self,
        source: Path,
        spec: Input,
        outputs: Sequence[str],
        calibration: Sequence[Images],
        *,
        tail: bool,
        named: Sequence[str] = (),
        symmetric: bool = False,
    ) -> None:
        self._source, self._spec, self._outputs, self._calibration = source, spec, outputs, calibration
        self._tail = tail
        self._preset: Preset = "performance" if symmetric else "mixed"
        model = onnx.load(source)
        self.attention = tuple(attention_onnx(model)) if tail else ()
        self._tail_onnx = tail_onnx(model) if tail else []
        self._known = {node.name for node in model.graph.node}
        self._named = tuple(named_nodes(model, named))
        self._seen: dict[Ranges, Calibrated] = {}
        self._own: list[tuple[str, float]] = []

    def write(self, folder: Path, way: Way, spared: Sequence[str] = ()) -> None:
        """Write the INT8 IR and the INT8 ONNX as model.xml and model.onnx.

        Args:
            folder: must exist.
            way: ranges and attention.
            spared: ONNX nodes in float, beside the named ones.
        """
        floats = self._floats(way, spared)
        plain = read_openvino(self._source, self._outputs)
        ignored = [*(tail_openvino(plain) if self._tail else []), *openvino_names(plain, floats)]
        int8 = quantize_openvino(
            plain, self._spec, self._calibration, ignored=list(dict.fromkeys(ignored)), preset=self._preset,
            ranges=way.ranges, limit=LIMIT,
        )  # fmt: skip
        save_openvino(int8, folder / "model.xml")
        exclude = [*self._tail_onnx, *(name for name in floats if name in self._known)]
        onnx.save(quantized(self._calibrated(way.ranges), self._spec, exclude, signed=False), folder / "model.onnx")
        if not self._own:
            picture = network_input(self._calibration[0][:1], self._spec)
            self._own = own_errors(read_openvino(self._source, self._outputs), int8, picture)

    def losses(self) -> list[Loss]:
        """Measure which parts hurt most, after one `write`; largest gain first."""
        pictures = [image[None] for images in self._calibration for image in images][:PROBES]
        reference = ov.Core().compile_model(
            read_openvino(self._source, self._outputs), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        order = [output.name for output in onnx.load(self._source).graph.output]
        floats = []
        for picture in pictures:
            answer = reference(network_input(picture, self._spec))
            floats.append([np.array(answer[name]) for name in order])
        exclude = [*self._tail_onnx, *self._named]
        return losses(self._calibrated("minmax"), self._spec, exclude, self._own, pictures, floats)

    def _floats(self, way: Way, spared: Sequence[str]) -> list[str]:
        attention = () if way.attention else self.attention
        return list(dict.fromkeys([*self._named, *attention, *(onnx_name(name) for name in spared)]))

    def _calibrated(self, ranges: Ranges) -> Calibrated:
        if ranges not in self._seen:
            pictures = single_pictures(self._calibration, self._spec, LIMIT)
            self._seen[ranges] = calibrated(self._source, pictures, OPERATORS, ranges, rewrite=self._tail)
        return self._seen[ranges]


@dataclass(frozen=True)
class Attempt(Generic[Result]):
    """One way tried: how many points each artefact lost, and what else was found out."""

    way: Way
    spared: tuple[str, ...]
    drops: Mapping[str, float]
    result: Result

    @property
    def worst(self) -> float:
        """The larger of the artefacts' losses."""
        return max(self.drops.values())

    def __str__(self) -> str:
        """Say the way and its losses."""
        gains = {name: f"{-drop:+.2f}".replace("-", "−") for name, drop in self.drops.items()}
        return f"{self.way}: " + ", ".join(f"{name} {gain}" for name, gain in gains.items())


@dataclass(frozen=True)
class Choice(Generic[Result]):
    """The attempt kept, all that were made, and the layers' losses."""

    kept: Attempt[Result]
    tried: tuple[Attempt[Result], ...]
    layers: tuple[Loss, ...]

    @property
    def note(self) -> str:
        """What a manifest tells of the choice."""
        floats = f"; in float: {', '.join(self.kept.spared)}" if self.kept.spared else ""
        others = "; ".join(str(attempt) for attempt in self.tried if attempt is not self.kept)
        return f"Quantized with {self.kept}{floats}." + (f" Not kept: {others}." if others else "")


def choose(
    shop: Workshop,
    folder: Path,
    judge: Callable[[Path], tuple[Mapping[str, float], Result]],
    max_drop: float,
    name: str,
    say: Say,
) -> Choice[Result]:
    """Quantize both ways of attention and keep the better; while it loses too much, ever more carefully.

    Args:
        shop: the float graph.
        folder: gets the artefacts of the attempt kept.
        judge: opens the artefacts of a folder; returns the points each lost, and anything else.
        max_drop: points that may be lost.
        name: what the message starts with: which bundle loses more than what.
        say: told what is going on.

    Raises:
        QuantizeError: no way stays within `max_drop`.
    """
    tried: list[Attempt[Result]] = []
    layers: list[Loss] = []
    with tempfile.TemporaryDirectory() as aside:
        folders: list[Path] = []

        def attempt(way: Way) -> None:
            spared = tuple(node for loss in layers[: way.spared] for node in loss.nodes)
            say(f"quantizing, {way}")
            folders.append(Path(aside) / str(len(tried)))
            folders[-1].mkdir()
            shop.write(folders[-1], way, spared)
            say(f"judging, {way}")
            drops, result = judge(folders[-1])
            tried.append(Attempt(way, spared, drops, result))

        for way in ALWAYS if shop.attention else ALWAYS[:1]:
            attempt(way)
        say("measuring what each part loses")
        layers += shop.losses()
        for way in CAREFUL:
            if min(a.worst for a in tried) <= max_drop:
                break
            attempt(replace(way, attention=min(tried, key=lambda a: a.worst).way.attention))
        best = min(range(len(tried)), key=lambda k: tried[k].worst)
        if tried[best].worst > max_drop:
            raise QuantizeError(
                f"{name} in each of {len(tried)} ways "
                f"({'; '.join(str(a) for a in tried)}); give more or better calibration pictures, or allow more"
            )
        for file in folders[best].iterdir():
            shutil.copy(file, folder / file.name)
    return Choice(tried[best], tuple(tried), tuple(layers))
