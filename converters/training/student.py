"""`facefleet-convert train-student`: teach one small network all heads at once, then cut it into one bundle per head.

Learning age, gender, race and emotion together gives the blocks three times the pictures that any head has alone.
Training is seeded, keeps its state after every epoch, goes on where it stopped, and never looks at a test split.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress, TextColumn

from converters.data.attributes import HEADS, Faces, load
from converters.data.augment_faces import augment, centred
from converters.errors import ConvertError
from converters.nets.student import WIDTHS, Student
from converters.training.lessons import Lessons, lessons, loss, spans, taught

SIZE_PX = 64
TRAIN_SETS = ("utkface", "fer2013")
CHECK_EVERY = 3  # epochs


@dataclass(frozen=True)
class Plan:
    """What decides a training run; the same plan on the same data gives the same weights when `minutes` does not bind.

    Attributes:
        heads: which heads learn; one alone is fine-tuning.
        epochs: the schedule ends here, or after `minutes` of this machine's time, whichever is first.
        init: checkpoint whose blocks (and, when all heads fit, logits) the run starts from.
    """

    heads: tuple[str, ...] = tuple(HEADS)
    epochs: int = 60
    minutes: float = 1e9
    batch: int = 96
    rate: float = 3e-3
    margin: float = 0.0
    seed: int = 7
    widths: tuple[int, ...] = WIDTHS
    init: Path | None = None


@dataclass
class State:
    """Everything that must survive an interruption."""

    student: Student
    average: Student
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    spent_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def train(plan: Plan, material: Lessons, checks: Faces, folder: Path) -> State:
    """Train or go on training in `folder`; the state's averaged student has the logits of all heads side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    state = _start(plan, folder / "state.pt")
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}"))
    with Progress(*columns) as progress:
        task = progress.add_task("epochs", total=plan.epochs, completed=state.epoch, note="")
        while state.epoch < plan.epochs and _progress(plan, state) < 1:
            _epoch(plan, state, material)
            _keep(plan, state, folder / "state.pt")
            if state.epoch % CHECK_EVERY and _progress(plan, state) < 1:
                progress.update(task, completed=state.epoch)
                continue
            figures = balanced_accuracy(state.average, checks, plan)
            state.history.append(figures)
            note = " ".join(f"{head} {value:.3f}" for head, value in figures.items())
            progress.update(task, completed=state.epoch, note=note)
            if not progress.console.is_terminal:
                progress.console.print(f"epoch {state.epoch} {state.spent_s:.0f} s {note}")
    state.average.eval()
    return state


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


def _epoch(plan: Plan, state: State, material: Lessons) -> None:
    rng = torch.Generator().manual_seed(plan.seed * 100_003 + state.epoch)
    torch.manual_seed(rng.initial_seed())  # dropout draws from the global generator
    used = material.weights.sum(dim=1).nonzero().flatten()
    order = used[torch.randperm(len(used), generator=rng)]
    began = time.monotonic()
    before_s = state.spent_s
    state.student.train()
    for step, pick in enumerate(order.split(plan.batch)):
        if len(pick) < 8:  # batch norm learns nothing from a handful
            continue
        share = (state.epoch + step * plan.batch / len(order)) / plan.epochs
        for group in state.optimizer.param_groups:
            group["lr"] = plan.rate * _schedule(max(share, _progress(plan, state)))
        x = augment(material.pictures[pick], material.inside[pick], SIZE_PX, plan.margin, rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = state.student(x.to(memory_format=torch.channels_last))
        value = loss(logits, material.targets[pick], material.weights[pick], taught(plan.heads))
        state.optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(state.student.parameters(), 3.0)
        state.optimizer.step()
        _average(state, decay=min(0.998, 1 - 1 / (1 + state.epoch * len(order) / plan.batch + step)))
        state.spent_s = before_s + time.monotonic() - began
    state.epoch += 1


def _average(state: State, decay: float) -> None:
    """Let the averaged student follow; batch norm's running figures too. The average is what is shipped."""
    with torch.no_grad():
        for mean, now in zip(state.average.state_dict().values(), state.student.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)


def _schedule(share: float) -> float:
    """Return the learning rate's factor: up in the first 4 %, then half a cosine down to 1 %."""
    if share < 0.04:
        return 0.05 + 0.95 * share / 0.04
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - 0.04) / 0.96)))


def _progress(plan: Plan, state: State) -> float:
    return max(state.epoch / plan.epochs, state.spent_s / 60 / plan.minutes)


def _start(plan: Plan, path: Path) -> State:
    torch.manual_seed(plan.seed)
    student = Student(sum(n for _, n in spans(taught(plan.heads))), plan.widths)
    if plan.init:
        _initialise(student, plan.init)
    student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    average = Student(student.classify.out_features, plan.widths)
    average.load_state_dict(student.state_dict())
    decayed = [p for p in student.parameters() if p.ndim > 1]
    rest = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    state = State(student, average, torch.optim.AdamW(groups, lr=plan.rate))
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        if saved["plan"] != _identity(plan):
            raise ConvertError(f"{path} belongs to another plan ({saved['plan']}); give --out a fresh folder")
        student.load_state_dict(saved["student"])
        average.load_state_dict(saved["average"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.epoch, state.spent_s, state.history = saved["epoch"], saved["spent_s"], saved["history"]
    return state


def _initialise(student: Student, checkpoint: Path) -> None:
    """Copy every tensor of equal name and shape; the blocks must fit, the logits may be others."""
    saved = torch.load(checkpoint, weights_only=True)
    own = student.state_dict()
    fitting = {k: v.float() for k, v in saved.items() if k in own and own[k].shape == v.shape}
    if missing := [k for k in own if k.startswith("blocks.") and k not in fitting]:
        raise ConvertError(f"{checkpoint} lacks {missing[0]} in the shape this student has; use the same widths")
    student.load_state_dict({**own, **fitting})


def _identity(plan: Plan) -> str:
    return f"{taught(plan.heads)} {plan.epochs} {plan.batch} {plan.rate} {plan.margin} {plan.seed} {plan.widths}"


def _keep(plan: Plan, state: State, path: Path) -> None:
    """Write the state aside and rename it, so that a power cut leaves the last whole one."""
    saved = {
        "plan": _identity(plan),
        "student": state.student.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "epoch": state.epoch,
        "spent_s": state.spent_s,
        "history": state.history,
    }
    torch.save(saved, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb `train-student`."""
    parser = subparsers.add_parser("train-student", help="train the attribute heads and write one bundle for each")
    parser.add_argument("--data", type=Path, required=True, help="folder with research_only/ and attributes/")
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train on UTKFace and FER2013 and write the bundles; 0 when all are written."""
    torch.set_num_threads(args.threads)
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
    state = train(plan, lessons(material, taught(plan.heads)), check, args.out)
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
