"""Train our face detector on CPU cores: `facefleet-convert train-detector`.

The schedule is a function of elapsed minutes, not of epochs, so that a run ends with a decayed learning rate however
busy the machine was. A checkpoint is written after every epoch; starting again with the same `--work` goes on there.
"""

import argparse
import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from converters.augment_detection import Pool, Rates, view
from converters.data_detection import Sample, face_mask, training_set
from converters.errors import ConvertError
from converters.evaluate_detector import average_precision, predict_torch
from converters.loss_detection import DualLoss
from converters.nets.yolov10 import YOLOv10, anchors


@dataclass(frozen=True)
class Plan:
    """What a training run does.

    Attributes:
        minutes: the whole run; warm-up and cosine decay stretch over it.
        sizes: input sides drawn per step, multiples of 32. Larger ones see smaller faces and cost time squared.
        batch: pictures per step.
        lr: peak learning rate of AdamW; `lr_end` is the share of it that is left at the end.
        warmup: share of the run until the peak is reached.
        weight_decay: of weights; norms and biases have none.
        ema: decay of the averaged weights that are shipped, per step; higher is smoother and slower.
        settle: share of the run at whose end mosaics become rare, so that the last views look like real frames.
        epoch_images: pictures between two checkpoints.
        validate_every: epochs between two looks at the validation set, 0 for never.
    """

    minutes: float = 60.0
    sizes: tuple[int, ...] = (256, 288, 320, 352, 384, 416)
    batch: int = 16
    lr: float = 2e-3
    lr_end: float = 0.02
    warmup: float = 0.03
    weight_decay: float = 0.05
    ema: float = 0.998
    settle: float = 0.15
    epoch_images: int = 2000
    validate_every: int = 5
    seed: int = 0
    threads: int = 2
    rates: Rates = field(default_factory=Rates)


def learning_rate(plan: Plan, progress: float) -> float:
    """Return the rate at `progress` in [0, 1]: linear warm-up, then half a cosine."""
    if progress < plan.warmup:
        return plan.lr * max(progress / plan.warmup, 0.01)
    phase = min((progress - plan.warmup) / (1 - plan.warmup), 1.0)
    return plan.lr * (plan.lr_end + (1 - plan.lr_end) * 0.5 * (1 + math.cos(math.pi * phase)))


class Average:
    """Exponential moving average of weights and norm statistics; it forgets its random start quickly."""

    def __init__(self, net: YOLOv10, decay: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, net: YOLOv10, step: int) -> None:
        decay = self._decay * (1 - math.exp(-step / 300))
        for name, value in net.state_dict().items():
            mine = self.net.state_dict()[name]
            if mine.dtype.is_floating_point:
                mine.lerp_(value, 1 - decay)
            else:
                mine.copy_(value)


def batch_of(
    pool: Pool, plan: Plan, size: int, rates: Rates, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures (B, 3, size, size) float32 RGB in [0, 1], faces (B, M, 4) xyxy pixels, counts (B,)."""
    views = [view(pool, size, rates, rng) for _ in range(plan.batch)]
    counts = torch.tensor([len(boxes) for _, boxes in views])
    faces = torch.zeros(plan.batch, max(int(counts.max()), 1), 4)
    for row, (_, boxes) in zip(faces, views, strict=True):
        row[: len(boxes)] = torch.from_numpy(np.ascontiguousarray(boxes))
    pixels = torch.from_numpy(np.stack([image for image, _ in views])).permute(0, 3, 1, 2).flip(1)
    return pixels.float().div(255).contiguous(memory_format=torch.channels_last), faces, counts


class Trainer:
    """One run: network, average, optimizer, and how far it has come.

    Args:
        net: the network to train, in place.
        samples: what it learns from.
        plan: how.
        work: folder for `checkpoint.pt` and `log.jsonl`; None keeps nothing.
    """

    def __init__(self, net: YOLOv10, samples: Sequence[Sample], plan: Plan, work: Path | None = None) -> None:
        self.net = net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Average(net, plan.ema)
        self.plan, self.work = plan, work
        self.step, self.epoch, self.elapsed_s = 0, 0, 0.0
        self._pool = Pool(samples, plan.rates)
        self._rng = np.random.default_rng(plan.seed)
        self._losses: dict[int, DualLoss] = {}
        weights = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": weights, "weight_decay": plan.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=plan.lr)

    @property
    def progress(self) -> float:
        """The share of the run that is over, by the clock."""
        return min(self.elapsed_s / (self.plan.minutes * 60), 1.0)

    def train_step(self) -> float:
        """Learn from one batch and return its loss."""
        began = time.monotonic()
        rates = self.plan.rates
        if self.progress > 1 - self.plan.settle:
            rates = Rates(rates.mosaic * 0.3, rates.zoom, rates.flip, rates.grey, rates.blur, rates.sources)
        size = int(self._rng.choice(self.plan.sizes))
        pixels, faces, counts = batch_of(self._pool, self.plan, size, rates, self._rng)
        if size not in self._losses:
            self._losses[size] = DualLoss(*anchors(size, size), self.net.head.dfl)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.plan, self.progress)
        with torch.autocast("cpu", torch.bfloat16):
            heads = self.net(pixels)
        loss, _ = self._losses[size](heads, faces, counts)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
        self._optimizer.step()
        self.step += 1
        self.average.update(self.net, self.step)
        self.elapsed_s += time.monotonic() - began
        return float(loss.detach())

    def epochs(self) -> Iterator[float]:
        """Train until the minutes are over; yield the mean loss after each epoch, its checkpoint written."""
        steps = max(self.plan.epoch_images // self.plan.batch, 1)
        while self.progress < 1:
            losses: list[float] = []
            while len(losses) < steps and self.progress < 1:
                losses.append(self.train_step())
            self.epoch += 1
            self.save()
            yield float(np.mean(losses))

    def save(self) -> None:
        """Write the checkpoint aside and rename it, so that an interruption never leaves half a file."""
        if self.work is None:
            return
        state = {
            "net": self.net.state_dict(),
            "average": self.average.net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rng": json.dumps(self._rng.bit_generator.state),
            "position": [self.step, self.epoch, self.elapsed_s],
        }
        aside = self.work / "checkpoint.pt.aside"
        torch.save(state, aside)
        aside.replace(self.work / "checkpoint.pt")

    def resume(self) -> bool:
        """Go on where an earlier run in `work` stopped; False when there is none."""
        if self.work is None or not (self.work / "checkpoint.pt").exists():
            return False
        state = torch.load(self.work / "checkpoint.pt", weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average.net.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._rng.bit_generator.state = json.loads(state["rng"])
        step, epoch, elapsed_s = state["position"]
        self.step, self.epoch, self.elapsed_s = int(step), int(epoch), float(elapsed_s)
        return True


def load_weights(path: Path) -> YOLOv10:
    """Return our network with the averaged weights of a checkpoint, or with the plain state dict of a bundle."""
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:
        raise ConvertError(f"{path}: not a file of tensors ({error}); give checkpoint.pt or a bundle's") from error
    net = YOLOv10()
    net.load_state_dict({name: value.float() for name, value in state.get("average", state).items()})
    return net


def provenance(samples: Sequence[Sample]) -> str:
    """Return JSON: every file the network saw with its SHA-256, so that a claim about the data can be checked."""
    files = {s.name.partition("#")[0]: s.sha256 for s in samples}
    digest = hashlib.sha256("".join(sorted(set(files.values()))).encode()).hexdigest()
    return json.dumps({"digest": digest, "files": dict(sorted(files.items()))}, indent=0)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `train-detector`."""
    plan = Plan()
    parser = subparsers.add_parser(
        "train-detector",
        help="train the face detector on a data folder",
        description="Train YOLOv10n with ReLU from scratch, or go on from given weights, in a set number of minutes.",
    )
    parser.add_argument("--data", type=Path, required=True, help="the data folder (its README names the sets)")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and log; an existing run is resumed")
    parser.add_argument("--minutes", type=float, default=plan.minutes, help="length of the run (default %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(plan.sizes), help="input sides drawn at random")
    parser.add_argument("--batch", type=int, default=plan.batch)
    parser.add_argument("--lr", type=float, default=plan.lr, help="peak learning rate (default %(default)s)")
    parser.add_argument("--start", type=Path, help="weights to fine-tune: a checkpoint.pt or a bundle's checkpoint")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--threads", type=int, default=plan.threads)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, show progress, log one JSON line per epoch, and leave `checkpoint.pt` and `data.json` in `--work`."""
    console = Console()
    bad = [size for size in args.sizes if size % 32 or size < 64]
    if bad:
        raise ConvertError(f"--sizes {bad}: an input side must be a multiple of 32, at least 64")
    plan = Plan(
        minutes=args.minutes,
        sizes=tuple(args.sizes),
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        threads=args.threads,
    )
    torch.set_num_threads(plan.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(plan.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    with console.status("reading pictures"):
        samples = training_set(args.data)
        validation = list(face_mask(args.data, "val"))
    (args.work / "data.json").write_text(provenance(samples))
    trainer = Trainer(load_weights(args.start) if args.start else YOLOv10(), samples, plan, args.work)
    if trainer.resume():
        console.print(f"going on at step {trainer.step}, {trainer.elapsed_s / 60:.1f} of {plan.minutes:g} minutes done")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar, (args.work / "log.jsonl").open("a") as log:
        task = bar.add_task("training", total=round(plan.minutes * 60))
        for loss in trainer.epochs():
            line: dict[str, float] = {
                "epoch": trainer.epoch,
                "step": trainer.step,
                "minutes": round(trainer.elapsed_s / 60, 2),
                "loss": round(loss, 4),
            }
            if plan.validate_every and (trainer.epoch % plan.validate_every == 0 or trainer.progress >= 1):
                size = 320 if min(plan.sizes) <= 320 else 640
                scored = [(predict_torch(trainer.average.net, s.image, size), s.boxes) for s in validation]
                line[f"val_ap50_{size}"] = round(average_precision(scored, 0.5), 4)
            log.write(json.dumps(line) + "\n")
            log.flush()
            bar.update(task, completed=round(trainer.elapsed_s), description=f"epoch {trainer.epoch} loss {loss:.3f}")
    console.print(f"done: {args.work / 'checkpoint.pt'}")
    return 0
