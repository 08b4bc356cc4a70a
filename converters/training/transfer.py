"""`facefleet-convert train-student --pictures`: me or not me, from a folder per class, on a frozen network of any kind.

Every training face is shown `times` times, shifted, tilted and lit anew; a network that is never changed turns each
view into features, and one linear layer learns to tell the classes apart. Twenty pictures are enough for that.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from msgspec import UNSET
from numpy.typing import NDArray
from onnx import numpy_helper
from rich.console import Console
from rich.progress import track

from converters.bundles.foreign_arguments import UNKNOWN, command_of, name_of
from converters.checkpoints.formats import format_of
from converters.checkpoints.network import Told, crop_network, inferred
from converters.checkpoints.onnx import cut_activation, rename_output
from converters.data.album import Album, BoxFinder, cut_faces, listed, told, whole, with_splits
from converters.data.augment_faces import augment
from converters.errors import CheckpointError, ConvertError
from converters.quantization.quantize import network_input
from converters.training.course import SIZE_PX
from edge.config import SHIPPED_MODELS
from edge.models.bundle import MANIFEST, load_bundle
from edge.models.manifest import ME, Input

Floats = NDArray[np.float32]
BASE = SHIPPED_MODELS / "gender-student" / "checkpoint.pt"  # the blocks have learnt age, race and emotion with it
FINDER = SHIPPED_MODELS / "yolov10n-face-320"
TIMES = 20
FOLDS = 5
FOLD = 64  # pictures per call of the base
RIGHT = 0.95  # share of answers above the threshold that should be right, on faces left out of the fit
LEAST_ANSWERED = 0.5
LOGIT = "logits"
NOBODY = "nobody"


@dataclass(frozen=True)
class Base:
    """A frozen network: (N, H, W, 3) uint8 BGR crops in, features out.

    Attributes:
        model: float ONNX whose only output is `features`, (N, width).
        source: its input.
        width: number of features.
    """

    model: onnx.ModelProto
    source: Input
    width: int

    def features(self, crops: NDArray[np.uint8]) -> Floats:
        """Return (N, width) float32."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(self.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        step = self.source.batch or FOLD
        pixels = (network_input(crops[i : i + step], self.source) for i in range(0, len(crops), step))
        return np.concatenate([session.run(None, {self.model.graph.input[0].name: x})[0] for x in pixels])


@dataclass(frozen=True)
class Linear:
    """Logits of a feature row x are x @ weight + bias."""

    weight: Floats
    bias: Floats

    def __call__(self, features: Floats) -> Floats:
        """Return (N, classes) logits."""
        return np.asarray(features @ self.weight + self.bias, np.float32)


def base_of(path: Path, given: Told) -> Base:
    """Read a classifier, a feature extractor or an embedder in any format, and cut its own answer off.

    Raises:
        CheckpointError: what comes before its answer is no row of features.
    """
    model, source = crop_network(path, given)
    model, _ = cut_activation(model)
    makers = {output: node for node in model.graph.node for output in node.output}
    answer = makers[model.graph.output[0].name].input[0]  # what feeds the node that names the output
    last = makers.get(answer)
    if last is not None and last.op_type == "Add":  # a bias after a MatMul
        last = makers.get(last.input[0])
    tensor = last.input[0] if last is not None and last.op_type in ("Gemm", "MatMul") else answer
    rename_output(model, tensor, "features")
    model = inferred(model)
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    if len(shape) == 4 and shape[1]:
        model = inferred(_pooled(model))
        shape = [shape[0], shape[1]]
    if len(shape) != 2 or not shape[1]:
        raise CheckpointError(f"{path}: what its last layer eats has the shape {shape}, expected a row of features")
    return Base(model, source, shape[1])


def _pooled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Average a feature map (N, C, H, W) into a row, as a network saved without its top needs it."""
    graph = model.graph
    graph.node.append(onnx.helper.make_node("GlobalAveragePool", ["features"], ["pooled"], "pooled_features"))
    graph.node.append(onnx.helper.make_node("Flatten", ["pooled"], ["row"], "feature_row"))
    graph.output[0].name = "row"
    rename_output(model, "row", "feature_rows")
    return model


def with_head(base: Base, head: Linear) -> onnx.ModelProto:
    """Return the base with the head on top: one output, `logits`."""
    model = onnx.ModelProto()
    model.CopyFrom(base.model)
    graph = model.graph
    for name, array in (("head.weight", head.weight), ("head.bias", head.bias)):
        graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
    features = graph.output[0].name
    graph.node.append(onnx.helper.make_node("Gemm", [features, "head.weight", "head.bias"], [LOGIT], "head"))
    del graph.output[:]
    batch = base.source.batch or "batch"
    graph.output.append(onnx.helper.make_tensor_value_info(LOGIT, 1, [batch, head.weight.shape[1]]))
    return model


def views(album: Album, base: Base, margin: float, times: int, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return the features of every face, plain and `times` times changed, and the index of the face each is of."""
    rng = torch.Generator().manual_seed(seed)
    size = base.source.width
    rows = [base.features(album.faces.crops(margin, size))]
    pictures, inside = torch.from_numpy(album.faces.pictures), torch.from_numpy(album.faces.inside)
    for _ in track(range(times), "showing each face anew", transient=True):
        order = torch.randperm(len(pictures), generator=rng)  # some changes are made to the first of a batch only
        x = augment(pictures[order], inside[order], size, margin, rng)[order.argsort()]
        bgr = (x.flip(1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        rows.append(base.features(np.ascontiguousarray(bgr)))
    return np.concatenate(rows), np.tile(np.arange(len(pictures)), times + 1)


def fit(features: Floats, truth: NDArray[np.int64], classes: int, decay: float = 0.01) -> Linear:
    """Return the linear layer that tells the classes apart best; every class weighs the same however rare it is.

    Args:
        features: (N, width) float32.
        truth: (N,) index of the class of each.
        classes: number of logits.
        decay: pull towards zero, on features of unit variance; more trusts few pictures less.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    x, y = torch.from_numpy((features - mean) / scale), torch.from_numpy(truth)
    share = torch.bincount(y, minlength=classes).clamp(min=1).float()
    weight, bias = torch.zeros(x.shape[1], classes, requires_grad=True), torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight + bias, y, weight=1 / share) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    w = (weight.detach().numpy() / scale[:, None]).astype(np.float32)
    return Linear(w, (bias.detach().numpy() - mean @ w).astype(np.float32))


def left_out(features: Floats, face: NDArray[np.int64], album: Album) -> Floats:
    """Return the logits of every plain face by a head that saw neither it nor its person: what calibration needs."""
    truth, people = album.truth, sorted(set(album.people))
    fold = {person: k % FOLDS for k, person in enumerate(people)}
    folds = np.array([fold[person] for person in album.people])
    logits = np.zeros((len(truth), len(album.labels)), np.float32)
    for k in range(FOLDS):
        out, kept = folds == k, folds[face] != k
        if out.any() and len(np.unique(truth[~out])) == len(album.labels):
            logits[out] = fit(features[kept], truth[face[kept]], len(album.labels))(features[: len(truth)][out])
    return logits


def calibrated(logits: Floats, truth: NDArray[np.int64]) -> tuple[float, float]:
    """Return the temperature that makes probabilities honest, and the score threshold; all classes weigh the same.

    The threshold is the lowest, from 0.5 on, above which RIGHT of the answers of every label are right (one stranger
    in ten taken for me is no small matter because strangers are many), as long as half of every class gets an answer.
    """
    temperature = float(min(np.geomspace(0.25, 16, 49), key=lambda t: _surprise(logits / t, truth)))
    chances = _softmax(logits / temperature)
    sure, answers = chances.max(axis=1), chances.argmax(axis=1)
    best = 0.5
    for threshold in np.arange(0.5, 0.96, 0.01):
        answered = sure >= threshold
        if min(answered[truth == k].mean() for k in np.unique(truth)) < LEAST_ANSWERED:
            break
        best = round(float(threshold), 2)
        if min((truth[answered & (answers == k)] == k).mean() for k in np.unique(answers[answered])) >= RIGHT:
            break
    return temperature, best


def _softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), np.float32)


def _surprise(logits: Floats, truth: NDArray[np.int64]) -> float:
    """Return the cross-entropy, the mean of the classes'."""
    each = -np.log(_softmax(logits)[np.arange(len(truth)), truth] + 1e-9)
    return float(np.mean([each[truth == k].mean() for k in np.unique(truth)]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `train-student --pictures` is told."""
    add = parser.add_argument_group("your own classes, such as me and not me").add_argument
    add("--pictures", type=Path, help="folder with a subfolder of pictures per class (20 are enough), or a CSV")
    add("--labels", default="", help="classes in the order of the outputs, separated by commas (default: all)")
    add("--identifies", default="", metavar="LABELS", help="classes that are one person each, separated by commas: a "
        "box asks for their consent; nobody: none is (default: the class `me`)")  # fmt: skip
    add("--bundle", type=Path, help="the bundle's folder")
    add("--base", type=Path, default=BASE, help="network that stays frozen: ONNX, Keras, torch (default: our student)")
    add("--size", type=int, default=0, help="side of its input, where the file does not say")
    add("--color", choices=("RGB", "BGR", "GRAY"), help="what it eats (default: RGB)")
    add("--mean", type=float, nargs="+", help="subtracted from each channel, 0 to 255")
    add("--scale", type=float, nargs="+", help="each channel is divided by it then")
    add("--module", default="", help="package.module:Class of a state dict (default: our student)")
    add("--module-args", default="{}", help="its keyword arguments as JSON")
    add("--times", type=int, default=TIMES, help="how often each picture is shown changed (default %(default)s)")
    add_album_arguments(parser)


def add_album_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what everything that learns from an album is told."""
    add = parser.add_argument
    add("--held-out", type=float, default=0.25, help="share of each class that is only reported on (default 0.25)")
    add("--whole", action="store_true", help="the pictures are faces already: take each whole")
    add("--detector", type=Path, default=FINDER, help="detector bundle that finds the faces (default: ours, 320)")
    add("--max-drop", type=float, default=0.3, help="points INT8 may lose, or it falls back; one face always")
    add("--licence", default="", help="of the result, for the manifest")


def album_of(source: Path, args: argparse.Namespace, console: Console, val_share: float = 0.0) -> Album:
    """Read, split and cut the pictures; say what was found.

    Raises:
        ConvertError: as `listed`, `with_splits` and `cut_faces`.
    """
    if not 0 < args.held_out < 1:
        raise ConvertError(f"--held-out {args.held_out}, expected a share between 0 and 1, such as 0.25")
    pictures, labels = listed(source, [label.strip() for label in args.labels.split(",") if label.strip()])
    pictures = with_splits(pictures, args.held_out, val_share)
    album, without = cut_faces(pictures, labels, whole if args.whole else BoxFinder(args.detector))
    if without:
        console.print(f"left out: {told(without)}")
    return album


def run_pictures(args: argparse.Namespace) -> int:
    """Build a head from an integrator's own pictures; 0 when its bundle is written."""
    from converters.bundles.trained import Origin, write_trained  # nncf and openvino, which training does not need

    if args.bundle is None:
        raise ConvertError("--bundle FOLDER is missing: where the head is written, such as models_int8/me")
    if args.times < 1:
        raise ConvertError(f"--times {args.times}, expected at least 1")
    console = Console()
    album = album_of(args.pictures, args, console)
    people = people_of(args.identifies, album.labels)
    console.print(
        f"recognizes {', '.join(people)}: a box asks for consent" if people else
        "recognizes nobody; where a class is one person, say so: --identifies LABEL"
    )  # fmt: skip
    learnt = album.split("train")
    console.print(f"{learnt.counts()} to learn from, {album.split('test').counts()} held out")
    ours = format_of(args.base) == "torch" and not args.module
    base = base_of(args.base, Told(**{**Told.of(args).__dict__, "size": args.size or (SIZE_PX if ours else 0)}))
    features, face = views(learnt, base, args.margin, args.times, args.seed)
    temperature, threshold = calibrated(left_out(features, face, learnt), learnt.truth)
    head = fit(features, learnt.truth[face], len(album.labels))
    head = Linear(head.weight / np.float32(temperature), head.bias / np.float32(temperature))
    origin = Origin(
        source=f"a linear head trained by this command on {len(learnt.truth)} pictures ({learnt.counts()}), each shown "
        f"{args.times} times, over {name_of(args.base)}, frozen",
        architecture=f"{name_of(args.base)} to {base.width} features, linear to {len(album.labels)}",
        licence=args.licence or _licence(args.base),
        how=command_of(args),
        notes=f"Temperature {temperature:.2f} and score threshold: from training faces left out of the fit in turn.",
    )
    write_trained(
        with_head(base, head), base.source, album, args.bundle, margin=args.margin, threshold=threshold,
        origin=origin, max_drop=args.max_drop, console=console,
        identifies=people if people or args.identifies else UNSET,
    )  # fmt: skip
    return 0


def people_of(told: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that are one person each, as told; untold, the one that is called `me`.

    Raises:
        ConvertError: a class that is told of is none.
    """
    people = tuple(label.strip() for label in told.split(",") if label.strip())
    if not people:
        return tuple(label for label in labels if label.strip().lower() == ME)
    if people == (NOBODY,) and NOBODY not in labels:
        return ()
    if unknown := [label for label in people if label not in labels]:
        raise ConvertError(f"--identifies names {', '.join(unknown)}, expected classes out of {', '.join(labels)}")
    return people


def _licence(base: Path) -> str:
    """Return what a base's own bundle says: a head over research-only weights is research-only too."""
    return load_bundle(base.parent).manifest.licence if (base.parent / MANIFEST).is_file() else UNKNOWN
