"""`facefleet-convert train-student`: teach one small network all heads at once, then cut it into one bundle per head.

Learning age, gender, race and emotion together gives the blocks three times the pictures that any head has alone.
Training is seeded, keeps its state after every epoch, goes on where it stopped, and never looks at a test split.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converters.data.attributes import HEADS, Faces, load
from converters.data.augment_faces import centred
from converters.errors import ConvertError
from converters.nets.student import Student
from converters.training import transfer
from converters.training.course import SIZE_PX, Course, train
from converters.training.lessons import lessons, spans, taught

TRAIN_SETS = ("utkface", "fer2013")


@dataclass(frozen=True)
class Plan(Course):
    """A course for some of the heads together; one alone is fine-tuning."""

    heads: tuple[str, ...] = tuple(HEADS)

    def identity(self) -> str:
        """Return what a kept state must agree in."""
        return f"{taught(self.heads)} {super().identity()}"


def balanced_accuracy(student: Student, faces: Faces, plan: Plan) -> dict[str, float]:
    """Return per head the mean of the classes' recalls on centred crops, in FP32."""
    student.eval()
    with torch.inference_mode():
        batches = torch.from_numpy(faces.pictures).split(256)
        logits = torch.cat([student(centred(batch, SIZE_PX, plan.margin)) for batch in batches])
    figures = {}
    for head, (first, n) in zip(plan.heads, spans(plan.heads), strict=True):
        answers = logits[:, first : first + n].argmax(dim=1).tolist()
        recalls = []
        for c in range(n):
            hits = [a == c for a, label in zip(answers, faces.labels, strict=True) if label.classes(head) == (c,)]
            recalls += [float(np.mean(hits))] if hits else []
        figures[head] = float(np.mean(recalls)) if recalls else math.nan
    return figures


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb `train-student`."""
    parser = subparsers.add_parser(
        "train-student",
        help="train the attribute heads, or a head of your own from a folder of pictures per class",
        description="With --data: age, gender, race and emotion, one bundle each. With --pictures: a head of your own, "
        "such as me and not me, over a network that stays as it is.",
        epilog="example: facefleet-convert train-student --pictures faces/ --bundle models_int8/me",
    )
    parser.add_argument("--data", type=Path, help="folder with research_only/ and attributes/")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS), help="what to learn")
    parser.add_argument("--out", type=Path, default=Path("out/students"), help="folder of the training state")
    parser.add_argument("--bundles", type=Path, default=Path("models_int8"), help="where <head>-student/ is written")
    parser.add_argument("--cache", type=Path, default=Path("out/faces"), help="where prepared faces are kept")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop and finish the schedule after this long")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--margin", type=float, default=0.0, help="crop margin, a fraction of the face box")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--init", type=Path, help="checkpoint.pt to start from")
    parser.add_argument("--no-bundles", action="store_true", help="train only; run again without it to write bundles")
    transfer.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train on UTKFace and FER2013, or on one's own pictures, and write the bundles; 0 when all are written."""
    torch.set_num_threads(args.threads)
    if args.pictures:
        return transfer.run_pictures(args)
    if args.data is None:
        raise ConvertError("give --data FOLDER for the four heads, or --pictures FOLDER for a head of your own")
    plan = Plan(
        heads=tuple(args.heads),
        epochs=args.epochs,
        minutes=args.minutes,
        rate=args.rate,
        margin=args.margin,
        seed=args.seed,
        init=args.init,
    )
    sets = {name: load(args.data, name, args.cache) for name in TRAIN_SETS}
    learnt = {name: faces.split("train") for name, faces in sets.items()}
    check = merge([faces.split("val") for faces in sets.values()])
    material = merge(list(learnt.values()))
    print(f"{len(material.labels)} faces to learn from, {len(check.labels)} to check on")
    state = train(
        plan, lessons(material, taught(plan.heads)), lambda student: balanced_accuracy(student, check, plan), args.out
    )
    if args.no_bundles:
        return 0
    from converters.bundles.student import write_heads  # nncf and openvino, which training alone does not need

    args.size = SIZE_PX
    heads = dict(zip(plan.heads, spans(plan.heads), strict=True))
    how = f"{command_line(plan)}, {state.epoch} epochs done"
    write_heads(state.average, heads, learnt, check, args, how=how)
    return 0


def command_line(plan: Plan) -> str:
    """Return the command that repeats a run; where minutes cut the schedule short, only on a machine as fast."""
    parts = ["facefleet-convert train-student --data DATA --heads", *plan.heads]
    parts += [f"--epochs {plan.epochs} --rate {plan.rate:g} --margin {plan.margin:g} --seed {plan.seed}"]
    parts += [f"--minutes {plan.minutes:g}"] if plan.minutes < 1e9 else []
    return " ".join([*parts, *([f"--init {plan.init.parent.name}/{plan.init.name}"] if plan.init else [])])


def merge(parts: Sequence[Faces]) -> Faces:
    """Return several sets as one."""
    return Faces(
        np.concatenate([p.pictures for p in parts]),
        np.concatenate([p.inside for p in parts]),
        tuple(label for p in parts for label in p.labels),
        tuple(digest for p in parts for digest in p.digests),
    )
