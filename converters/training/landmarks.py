"""`facefleet-convert train-landmarks`: teach a small CNN the five points of a face, as YuNet marks them.

Training is seeded, keeps its state after every round, goes on where it stopped, and never looks at a held-out face.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress, TextColumn
from torch import Tensor

from converters.data.augment_points import STILL, Jitter, crops_with_points, weathered
from converters.data.landmarks import CONTEXT, HELD_OUT, MarkedFaces, load
from converters.nets.landmarks import WIDTHS, LandmarkNet
from converters.training import state as training_state
from converters.training.schedule import optimizer_of

SIZE_PX = 64
CHECK_SHARE = 16  # one picture in sixteen is for checking on
TALLEST = 2.0


@dataclass(frozen=True)
class Plan:
    """What decides a training run; the same plan on the same data gives the same weights when `minutes` does not bind.

    Attributes:
        epochs: the schedule ends here, or after `minutes` of computing, whichever is first.
        margin: crop margin, a fraction of the face box on every side.
    """

    epochs: int = 240
    minutes: float = 1e9
    batch: int = 96
    rate: float = 4e-3
    margin: float = 0.15
    seed: int = 7
    widths: tuple[int, int, int, int] = WIDTHS


@dataclass(frozen=True)
class Material:
    """Faces as tensors; see `augment_points.crops_with_points`. `scale` (N, 2) turns crop units to eye distances."""

    pictures: Tensor
    points: Tensor
    tallness: Tensor
    scale: Tensor


State = training_state.State[LandmarkNet, float]


def material(faces: MarkedFaces) -> Material:
    """Return faces as tensors.

    An error counts in units of the eye distance, but of no less than a quarter of the box: a profile's eyes coincide,
    and its points would otherwise outweigh everybody else's.
    """
    context = faces.sizes * (1 + 2 * CONTEXT)
    eyes = np.linalg.norm((faces.points[:, 1] - faces.points[:, 0]) * context, axis=1)
    unit = np.maximum(eyes, 0.25 * np.sqrt(faces.sizes.prod(axis=1)))
    tallness = np.clip(faces.sizes[:, 1] / faces.sizes[:, 0], 1 / TALLEST, TALLEST)
    return Material(
        torch.from_numpy(faces.pictures),
        torch.from_numpy(faces.points),
        torch.from_numpy(tallness.astype(np.float32)),
        torch.from_numpy((context / unit[:, None]).astype(np.float32)),
    )


def loss(found: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
    """Return the mean distance in eye distances, softened below a hundredth.

    Args:
        found: (N, 10) from the network, 0–1 of the crop.
        wanted: (N, 5, 2).
        scale: (N, 2) eye distances a crop is wide and high.
    """
    off = (found.view(-1, 5, 2) - wanted) * scale.unsqueeze(1)
    return (off.square().sum(dim=2) + 1e-4).sqrt().mean()


def split(faces: MarkedFaces) -> tuple[MarkedFaces, MarkedFaces]:
    """Return (to learn from, to check on), by the digest of the picture, so that a picture is on one side only."""
    check = np.array([int(digest[:4], 16) % CHECK_SHARE == 0 for digest in faces.digests])
    return faces.subset(np.flatnonzero(~check)), faces.subset(np.flatnonzero(check))


def train(plan: Plan, learn: Material, check: Material, folder: Path) -> State:
    """Train or go on training in `folder`; the state's averaged network is what is shipped."""
    folder.mkdir(parents=True, exist_ok=True)
    state = _start(plan, folder / "state.pt")
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}"))
    with Progress(*columns) as progress:
        task = progress.add_task("epochs", total=plan.epochs, completed=state.epoch, note="")
        while state.progress(plan.epochs, plan.minutes) < 1:
            _epoch(plan, state, learn)
            state.history.append(error(state.average, check, plan.margin))
            state.keep(folder / "state.pt")
            note = f"off by {state.history[-1]:.2%} of the eye distance"
            progress.update(task, completed=state.epoch, note=note)
            if not progress.console.is_terminal and state.epoch % 10 == 0:
                progress.console.print(f"epoch {state.epoch} {state.spent_s:.0f} s {note}")
    state.average.eval()
    return state


def error(net: LandmarkNet, faces: Material, margin: float) -> float:
    """Return the mean distance from the teacher's points in eye distances, on the detector's own boxes."""
    net.eval()
    rng = torch.Generator().manual_seed(0)
    total = 0.0
    with torch.inference_mode():
        for pick in torch.arange(len(faces.points)).split(256):
            x, wanted = crops_with_points(
                faces.pictures[pick], faces.points[pick], faces.tallness[pick], SIZE_PX, margin, rng, STILL
            )
            off = (
                (net(x).view(-1, 5, 2) - wanted) * faces.scale[pick].unsqueeze(1) * (1 + 2 * margin) / (1 + 2 * CONTEXT)
            )
            total += float(off.norm(dim=2).mean(dim=1).sum())
    return total / len(faces.points)


def _epoch(plan: Plan, state: State, learn: Material) -> None:
    rng = torch.Generator().manual_seed(plan.seed * 100_003 + state.epoch)
    order = torch.randperm(len(learn.points), generator=rng)
    began, before_s = time.process_time(), state.spent_s
    state.net.train()
    steps = max(1, len(order) // plan.batch)
    for step, pick in enumerate(order[: steps * plan.batch].split(plan.batch)):
        share = max((state.epoch + step / steps) / plan.epochs, state.progress(plan.epochs, plan.minutes))
        x, wanted = crops_with_points(
            learn.pictures[pick], learn.points[pick], learn.tallness[pick], SIZE_PX, plan.margin, rng, Jitter()
        )
        with torch.autocast("cpu", torch.bfloat16):
            found = state.net(weathered(x, rng).to(memory_format=torch.channels_last))
        value = loss(found.float(), wanted, learn.scale[pick] * (1 + 2 * plan.margin) / (1 + 2 * CONTEXT))
        state.learn(value, plan.rate, share, clip=1.0, decay=min(0.999, 1 - 1 / (1 + state.epoch * steps + step)))
        state.spent_s = before_s + time.process_time() - began
    state.epoch += 1


def _start(plan: Plan, path: Path) -> State:
    torch.manual_seed(plan.seed)
    net, average = LandmarkNet(plan.widths), LandmarkNet(plan.widths)
    average.load_state_dict(net.state_dict())
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    state = State(net, average, optimizer_of(net, plan.rate), _identity(plan))
    state.resume(path)
    return state


def _identity(plan: Plan) -> str:
    """Name the plan, less what may change on resuming."""
    return f"epochs {plan.epochs} batch {plan.batch} rate {plan.rate:g} margin {plan.margin:g} seed {plan.seed} " + (
        f"widths {'-'.join(map(str, plan.widths))}"
    )


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb `train-landmarks`."""
    parser = subparsers.add_parser(
        "train-landmarks",
        help="train the five-point landmark student and write its bundle",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Teach a small CNN where YuNet sees the eyes, the nose and the corners of the mouth.\n\n"
        "No labels are needed: every face of the training pictures is shown to YuNet four times (two sizes, plain\n"
        "and mirrored) and the mean of its answers is the target, because a single look wavers by several per cent\n"
        "of the eye distance. The student sees crops as a box cuts them: a detector's box with a margin, shifted,\n"
        "scaled, tilted, mirrored, blurred, half hidden. Held-out faces are never looked at while training.",
        epilog="Stopped with Ctrl-C, or by a power cut? Run the same command again: it goes on after the last epoch.\n"
        "example: facefleet-convert train-landmarks --data DATA --minutes 25",
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with detection/, attributes/, video/, weights/"
    )
    parser.add_argument("--out", type=Path, default=Path("out/landmarks"), help="folder of the training state")
    parser.add_argument("--bundle", type=Path, default=Path("models_int8/landmarks-student"), help="what is written")
    parser.add_argument("--cache", type=Path, default=Path("out/faces"), help="where prepared faces are kept")
    parser.add_argument("--epochs", type=int, default=Plan.epochs, help="length of the schedule (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=1e9, help="finish the schedule after so long instead")
    parser.add_argument("--rate", type=float, default=Plan.rate, help="highest learning rate (default %(default)s)")
    parser.add_argument(
        "--margin", type=float, default=Plan.margin, help="crop margin (default %(default)s of the box)"
    )
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-bundle", action="store_true", help="train only; run again without it to write the bundle")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train and write the bundle; 0 when it is written."""
    torch.set_num_threads(args.threads)
    plan = Plan(epochs=args.epochs, minutes=args.minutes, rate=args.rate, margin=args.margin, seed=args.seed)
    faces = load(args.data, "training", args.cache)
    learn, check = split(faces)
    print(f"{len(learn)} faces to learn from, {len(check)} to check on")
    state = train(plan, material(learn), material(check), args.out)
    if args.no_bundle:
        return 0
    from converters.bundles.landmarks import write_bundle  # nncf and openvino, which training alone does not need

    tests = {name: load(args.data, name, args.cache) for name in HELD_OUT}
    how = f"{command_line(plan)}, {state.epoch} epochs done"
    write_bundle(state.average, learn, tests, args.bundle, margin=plan.margin, size_px=SIZE_PX, how=how)
    return 0


def command_line(plan: Plan) -> str:
    """Return the command that repeats a run; where minutes cut the schedule short, only on a machine as fast."""
    text = f"facefleet-convert train-landmarks --data DATA --epochs {plan.epochs} --rate {plan.rate:g}"
    minutes = f" --minutes {plan.minutes:g}" if not math.isinf(plan.minutes) and plan.minutes < 1e9 else ""
    return f"{text} --margin {plan.margin:g} --seed {plan.seed}{minutes}"
