"""`facefleet-convert distill`: a small student learns from labels and from a teacher's answers, then becomes a bundle.

loss = α · CE(student, label) + (1 − α) · T² · KL(softmax(teacher / T) ‖ softmax(student / T)), AdamW. The teacher sees
every crop exactly as the student does, changed and all, so that its answer is one to this very picture.

Source: Hinton, Vinyals, Dean 2015, Distilling the Knowledge in a Neural Network, section 2; Beyer et al. 2022,
Knowledge distillation: A good teacher is patient and consistent (the same view for both).
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 the name everybody reads
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from converters.bundles.foreign_arguments import UNKNOWN, command_of
from converters.checkpoints.network import Told, crop_network, inferred
from converters.checkpoints.onnx import cut_activation, prepared, single_output
from converters.data.album import Album
from converters.errors import CheckpointError, ConvertError
from converters.nets.student import WIDTHS, Student, parameters
from converters.quantization.quantize import export_onnx, network_input
from converters.training.course import SIZE_PX, Course, train
from converters.training.transfer import LOGIT, add_album_arguments, album_of, calibrated
from edge.models.manifest import Input

Floats = NDArray[np.float32]
VAL_SHARE = 0.1
FOLD = 256


class Teacher:
    """A classifier in any format that answers with logits for the album's labels.

    Args:
        model: float ONNX; a softmax or sigmoid at its end is cut off.
        source: its input.
        labels: what its outputs mean, in their order.
        wanted: the labels to answer for; others are not asked.
        name: what messages call it.

    Raises:
        CheckpointError: another number of outputs than labels.
        ConvertError: a wanted label it does not know.
    """

    def __init__(
        self, model: onnx.ModelProto, source: Input, labels: Sequence[str], wanted: Sequence[str], name: str
    ) -> None:
        import onnxruntime as ort

        model, _ = cut_activation(model)
        width = single_output(inferred(model), name)
        if max(width, 2) != len(labels):
            raise CheckpointError(
                f"{name}: {width} output(s), but {len(labels)} labels: {', '.join(labels)}; name them with "
                "--teacher-labels, in the outputs' order"
            )
        if missing := [label for label in wanted if label not in labels]:
            raise ConvertError(f"{name} knows {', '.join(labels)}, not {', '.join(missing)}; rename folder or label")
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._input, self._binary = model.graph.input[0].name, width == 1
        self._source, self._columns = source, [list(labels).index(label) for label in wanted]

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, labels) float32 logits of (N, 3, H, W) float32 RGB crops in [0, 1]."""
        side = self._source.width
        if x.shape[-1] != side:
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        bgr = (x.flip(1).permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        pixels = network_input(np.ascontiguousarray(bgr), self._source)
        step = self._source.batch or len(pixels)
        parts = [self._session.run(None, {self._input: pixels[i : i + step]})[0] for i in range(0, len(pixels), step)]
        logits = torch.from_numpy(np.concatenate(parts))
        if self._binary:  # one column is the logit of the second label against the first
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits[:, self._columns]


@dataclass(frozen=True)
class Lecture:
    """What a student is taught: labels, and what the teacher answers to the same view.

    Attributes:
        pictures: (N, H, W, 3) uint8 BGR context crops.
        inside: (N, 4) part of each that is real picture.
        truth: (N,) int64.
        outputs: number of classes.
        alpha: weight of the labels; 1 leaves the teacher out.
        temperature: how much both answers are softened before they are compared.
    """

    pictures: Tensor
    inside: Tensor
    truth: Tensor
    outputs: int
    teacher: Teacher
    alpha: float
    temperature: float

    def used(self) -> Tensor:
        """Return the indices of all faces."""
        return torch.arange(len(self.truth))

    def loss(self, logits: Tensor, x: Tensor, pick: Tensor) -> Tensor:
        """Return the loss of the module's first line."""
        answers = self.teacher(x) if self.alpha < 1 else torch.zeros(0)
        return distillation_loss(logits, answers, self.truth[pick], self.alpha, self.temperature)


def distillation_loss(logits: Tensor, answers: Tensor, truth: Tensor, alpha: float, temperature: float) -> Tensor:
    """Return α·CE + (1−α)·T²·KL, a mean over the batch.

    Args:
        logits: (N, C) of the student.
        answers: (N, C) logits of the teacher; not looked at where alpha is 1.
        truth: (N,) int64.
        alpha: weight of the labels.
        temperature: T; the T² keeps the gradient's size when both are softened.

    The divergence is torch's `kl_div(student, teacher)`: what the student lacks is weighed by the teacher's certainty.
    """
    logits = logits.float()
    hard = F.cross_entropy(logits, truth)
    if alpha >= 1:
        return hard
    told, said = (F.log_softmax(z / temperature, dim=1) for z in (answers, logits))
    return alpha * hard + (1 - alpha) * temperature**2 * F.kl_div(said, told, reduction="batchmean", log_target=True)


def box_crops(album: Album, margin: float, size_px: int) -> Sequence[Tensor]:
    """Return batches of (n, 3, size, size) float32 RGB crops in [0, 1], cut exactly as a box cuts them."""
    crops = album.faces.crops(margin, size_px)[..., ::-1].transpose(0, 3, 1, 2)
    return (torch.from_numpy(crops.astype(np.float32)) / 255).split(FOLD)


def logits_of(student: Student, album: Album, margin: float, size_px: int) -> Floats:
    """Return (N, classes) float32 for the album's faces, in FP32."""
    student.eval()
    with torch.inference_mode():
        return torch.cat([student(batch) for batch in box_crops(album, margin, size_px)]).numpy()


def teacher_logits(teacher: Teacher, album: Album, margin: float, size_px: int) -> Floats:
    """Return the teacher's (N, classes) float32 for the same crops."""
    return torch.cat([teacher(batch) for batch in box_crops(album, margin, size_px)]).numpy()


def accuracies(logits: Floats, truth: NDArray[np.int64]) -> tuple[float, float]:
    """Return accuracy and the mean of the classes' recalls."""
    right = logits.argmax(axis=1) == truth
    return float(right.mean()), float(np.mean([right[truth == k].mean() for k in np.unique(truth)]))


def taught_student(course: Course, album: Album, teacher: Teacher, args: argparse.Namespace, state: Path) -> Student:
    """Train a student on the album's training faces; its progress is shown on the validation faces."""
    learnt, checked = album.split("train"), album.split("val")
    lecture = Lecture(
        torch.from_numpy(learnt.faces.pictures), torch.from_numpy(learnt.faces.inside), torch.from_numpy(learnt.truth),
        len(album.labels), teacher, args.alpha, args.temperature,
    )  # fmt: skip

    def check(student: Student) -> dict[str, float]:
        found = accuracies(logits_of(student, checked, course.margin, course.size_px), checked.truth)
        return dict(zip(("accuracy", "balanced"), found, strict=True))

    return train(course, lecture, check, state).average


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb `distill`."""
    parser = subparsers.add_parser(
        "distill",
        help="teach a small student what a larger classifier knows, and write its bundle",
        description="loss = alpha*CE + (1-alpha)*T^2*KL of student and teacher, both softened by T; AdamW. Run the "
        "same command again to go on after an interruption.",
        epilog="example: facefleet-convert distill teacher.hdf5 --data faces/ --whole --out models_int8/theirs",
    )
    add = parser.add_argument
    add("teacher", type=Path, help="classifier: ONNX, Keras hdf5 or .keras, TorchScript, .pt2, state dict")
    add("--data", type=Path, required=True, help="a folder of pictures per class, or a CSV with file and label")
    add("--out", type=Path, required=True, help="the bundle's folder")
    add("--labels", default="", help="classes in the order of the outputs, separated by commas (default: all)")
    add("--teacher-labels", default="", help="what the teacher's outputs mean, in their order (default: --labels)")
    add("--teacher-size", type=int, default=0, help="side of the teacher's input, where the file does not say")
    add("--color", choices=("RGB", "BGR", "GRAY"), help="what the teacher eats (default: by its channels)")
    add("--mean", type=float, nargs="+", help="subtracted from each of the teacher's channels, 0 to 255")
    add("--scale", type=float, nargs="+", help="each of its channels is divided by it then")
    add("--module", default="", help="package.module:Class of a state dict (default: our student)")
    add("--module-args", default="{}", help="its keyword arguments as JSON")
    add("--alpha", type=float, default=0.3, help="weight of the labels, 1 for no teacher (default %(default)s)")
    add("--temperature", type=float, default=4.0, help="softens both answers (default %(default)s)")
    add("--widths", type=int, nargs="+", default=list(WIDTHS), help="channels of the student's blocks")
    add("--size", type=int, default=SIZE_PX, help="side of the student's input (default %(default)s)")
    add("--margin", type=float, default=0.0, help="crop margin, a fraction of the face box")
    add("--epochs", type=int, default=30)
    add("--minutes", type=float, default=1e9, help="stop and finish the schedule after this long")
    add("--rate", type=float, default=3e-3, help="highest learning rate")
    add("--seed", type=int, default=7)
    add("--threads", type=int, default=1)
    add("--init", type=Path, help="checkpoint.pt of a student to start from")
    add("--state", type=Path, help="folder of the training state (default: out/distill/NAME)")
    add("--compare", action="store_true", help="train another without the teacher, same budget, and show both")
    add_album_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Distil and write the bundle; 0 when it is written."""
    from converters.bundles.package import FILES, save_checkpoint  # nncf and openvino: only needed when all is learnt
    from converters.bundles.student import student_input
    from converters.bundles.trained import Origin, write_trained

    torch.set_num_threads(args.threads)
    course, console = _course(args), Console()
    album = album_of(args.data, args, console, VAL_SHARE)
    if not len(album.split("val").truth):
        raise ConvertError(
            f"{args.data}: no faces to choose the score threshold on; add pictures, or some of the split val"
        )
    teacher = _teacher(args, album.labels)
    tests = album.split("test")
    console.print(f"{album.split('train').counts()} to learn from, {tests.counts()} held out")
    state = args.state or Path("out/distill") / args.out.name
    student = taught_student(course, album, teacher, args, state)
    found = {
        f"teacher, {args.teacher.name}": teacher_logits(teacher, tests, args.margin, args.size),
        "student, distilled": logits_of(student, tests, args.margin, args.size),
    }
    if args.compare:
        alone = argparse.Namespace(**{**vars(args), "alpha": 1.0})
        other = taught_student(course, album, teacher, alone, state / "alone")
        found["student, labels alone"] = logits_of(other, tests, args.margin, args.size)
    lines = [
        f"{name}: accuracy {accuracy:.3f}, balanced {balanced:.3f}"
        for name, (accuracy, balanced) in ((n, accuracies(z, tests.truth)) for n, z in found.items())
    ]
    console.print("\n".join(lines))
    checked = album.split("val")
    temperature, threshold = calibrated(logits_of(student, checked, args.margin, args.size), checked.truth)
    with torch.no_grad():  # honest probabilities: the temperature that suits the validation faces goes into the weights
        for tensor in (student.classify.weight, student.classify.bias):
            tensor.div_(temperature)
    source = student_input(args.size)
    origin = Origin(
        source=f"a student taught by {args.teacher.name} and labels, {len(album.split('train').truth)} faces "
        f"({album.split('train').counts()})",
        architecture=f"student CNN, skip connections, widths {'-'.join(map(str, student.widths))}, "
        f"{parameters(student)} weights",
        licence=args.licence or UNKNOWN,
        how=command_of(args),
        notes="On the held-out faces, FP32: " + "; ".join(lines) + ".",
    )
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(student.fused(), source, [LOGIT], Path(folder) / "student.onnx")
        model = prepared(onnx.load(Path(folder) / "student.onnx"), "student")
    write_trained(
        model, source, album, args.out, margin=args.margin, threshold=threshold, origin=origin,
        max_drop=args.max_drop, console=console,
        beside=lambda aside: save_checkpoint(student, aside / FILES["checkpoint"]),
    )  # fmt: skip
    return 0


def _course(args: argparse.Namespace) -> Course:
    if not 0 <= args.alpha <= 1:
        raise ConvertError(f"--alpha {args.alpha}, expected 0 (only the teacher) to 1 (only the labels)")
    if args.temperature <= 0:
        raise ConvertError(f"--temperature {args.temperature}, expected more than 0, such as 4")
    return Course(
        epochs=args.epochs, minutes=args.minutes, rate=args.rate, margin=args.margin, seed=args.seed,
        widths=tuple(args.widths), init=args.init, size_px=args.size,
    )  # fmt: skip


def _teacher(args: argparse.Namespace, wanted: tuple[str, ...]) -> Teacher:
    given = replace(Told.of(args), size=args.teacher_size)
    model, source = crop_network(args.teacher, given)
    labels = [label.strip() for label in args.teacher_labels.split(",") if label.strip()] or list(wanted)
    return Teacher(model, source, labels, wanted, str(args.teacher))
