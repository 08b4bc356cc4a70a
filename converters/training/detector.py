"""Train our face detector on CPU cores: `facefleet-convert train-detector`.

One process of one thread per core, gradients averaged after every step: threads of one process wait for each other
hundreds of times a step, and lose nine tenths of their speed as soon as somebody else wants a core.

The schedule is a function of elapsed minutes, not of epochs, so that a run ends with a decayed learning rate however
busy the machine was. A checkpoint is written after every epoch; starting again with the same `--work` goes on there.
"""

import argparse
import copy
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from converters.bundles.package import DATA, write_data_list
from converters.data.augment_detection import Pool, Rates, view
from converters.data.detection import PURPOSES, Sample, digests, face_mask, training_set
from converters.errors import ConvertError
from converters.evaluation.detector import average_precision, predict_torch
from converters.nets.yolov10 import YOLOv10, anchors, detector, load_weights
from converters.training.detector_loss import DualLoss

Phases = tuple[tuple[float, tuple[int, ...]], ...]
PHASES: Phases = (
    (0.35, (160, 192, 224, 256)),
    (0.70, (224, 256, 288, 320, 352)),
    (1.00, (288, 320, 352, 416, 480, 576)),
)


@dataclass(frozen=True)
class Plan:
    """What a training run does.

    Attributes:
        minutes: the whole run; warm-up and cosine decay stretch over it.
        phases: (share of the run at which it ends, input sides drawn per step). Small pictures first: a step at 192
            costs a quarter of one at 384, and early on the number of steps is what counts.
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
    phases: Phases = PHASES
    batch: int = 16
    lr: float = 2e-3
    lr_end: float = 0.02
    warmup: float = 0.03
    weight_decay: float = 0.05
    ema: float = 0.998
    settle: float = 0.15
    epoch_images: int = 1000
    validate_every: int = 8
    seed: int = 0
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
        mine, theirs = self.net.state_dict(), net.state_dict()
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floats], [theirs[name] for name in floats], 1 - decay)


def batch_of(
    pool: Pool, count: int, size: int, rates: Rates, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures (B, 3, size, size) float32 RGB in [0, 1], faces (B, M, 4) xyxy pixels, counts (B,)."""
    views = [view(pool, size, rates, rng) for _ in range(count)]
    counts = torch.tensor([len(boxes) for _, boxes in views])
    faces = torch.zeros(count, max(int(counts.max()), 1), 4)
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
        work: folder for `checkpoint.pt`; None keeps nothing.
        rank, ranks: which of how many equal processes this is; they must share a torch.distributed group.
    """

    def __init__(
        self,
        net: YOLOv10,
        samples: Sequence[Sample],
        plan: Plan,
        work: Path | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.net = net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Average(net, plan.ema)
        self.plan, self.work = plan, work
        self.step, self.epoch, self.elapsed_s = 0, 0, 0.0
        self.rank, self.ranks = rank, ranks
        self._clock = 0.0  # of the last step's end; what lies between two steps counts as training
        self._pool = Pool(samples, plan.rates)
        self._losses: dict[int, DualLoss] = {}
        weights = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": weights, "weight_decay": plan.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=plan.lr, fused=True)

    @property
    def progress(self) -> float:
        """The share of the run that is over, by the clock."""
        return min(self.elapsed_s / (self.plan.minutes * 60), 1.0)

    def train_step(self) -> float:
        """Learn from one batch and return its loss."""
        began = time.monotonic()
        rates = self.plan.rates
        if self.progress > 1 - self.plan.settle:
            rates = replace(rates, mosaic=rates.mosaic * 0.3)
        # All ranks draw the same size, or the one with the small pictures would wait.
        sizes = next(sizes for end, sizes in self.plan.phases if self.progress <= end)
        size = int(np.random.default_rng([self.plan.seed, self.step]).choice(sizes))
        rng = np.random.default_rng([self.plan.seed, self.step, self.rank])
        pixels, faces, counts = batch_of(self._pool, self.plan.batch // self.ranks, size, rates, rng)
        if size not in self._losses:
            self._losses[size] = DualLoss(*anchors(size, size), self.net.head.dfl)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.plan, self.progress)
        with torch.autocast("cpu", torch.bfloat16):
            heads = self.net(pixels)
        loss, _ = self._losses[size](heads, faces, counts)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._share(began)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
        self._optimizer.step()
        self.step += 1
        self.average.update(self.net, self.step)
        return float(loss.detach())

    def _share(self, began: float) -> None:
        """Advance the clock; with several ranks, average clock and gradients, so that all take the same step."""
        now = time.monotonic()
        self.elapsed_s += now - (self._clock or began)
        self._clock = now
        if self.ranks == 1:
            return
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        clock = torch.tensor([self.elapsed_s])
        flat = torch.cat([g.reshape(-1) for g in gradients] + [clock])
        torch.distributed.all_reduce(flat)
        flat /= self.ranks
        for gradient, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        self.elapsed_s = float(flat[-1])

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
        if self.work is None or self.rank:
            return
        state = {
            "net": self.net.state_dict(),
            "average": self.average.net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
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
        step, epoch, elapsed_s = state["position"]
        self.step, self.epoch, self.elapsed_s = int(step), int(epoch), float(elapsed_s)
        return True


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
    parser.add_argument("--sizes", type=int, nargs="+", help="input sides drawn at random (default: small ones first)")
    parser.add_argument("--batch", type=int, default=plan.batch)
    parser.add_argument("--lr", type=float, default=plan.lr, help="peak learning rate (default %(default)s)")
    parser.add_argument("--start", type=Path, help="weights to fine-tune: a checkpoint.pt or a bundle's checkpoint")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--processes", type=int, default=2, help="one per core (default %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; leave `checkpoint.pt`, `data.json` (the pictures) and `log.jsonl` (a line per epoch) in `--work`."""
    bad = [size for size in args.sizes or () if size % 32 or size < 64]
    if bad:
        raise ConvertError(f"--sizes {bad}: an input side must be a multiple of 32, at least 64")
    if args.processes < 1 or args.batch % args.processes:
        raise ConvertError(f"--batch {args.batch} does not divide among --processes {args.processes}; change one")
    if not (args.data / "detection").is_dir():
        raise ConvertError(f"--data {args.data}: no folder detection/ here; name the data folder its README describes")
    if args.start:
        load_weights(args.start)  # said here, in a line, instead of by a process that fails
    args.work.mkdir(parents=True, exist_ok=True)
    if args.processes == 1:
        _work(0, args)
        return 0
    (args.work / "rendezvous").unlink(missing_ok=True)
    spawn(_work, (args,), nprocs=args.processes)
    return 0


def end_with_parent() -> None:
    """End this process at once when the one that spawned it is gone: killed, it cannot tell its children to stop."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _work(rank: int, args: argparse.Namespace) -> None:
    """Be one of the processes; the first one shows, validates and saves."""
    end_with_parent()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(args.seed)
    if args.processes > 1:
        meeting = f"file://{(args.work / 'rendezvous').resolve()}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.processes)
    phases: Phases = ((1.0, tuple(args.sizes)),) if args.sizes else PHASES
    plan = Plan(args.minutes, phases, args.batch, args.lr, seed=args.seed)
    console = Console(quiet=rank > 0)
    with console.status("reading pictures"):
        samples = training_set(args.data)
    net = load_weights(args.start) if args.start else detector()
    trainer = Trainer(net, samples, plan, args.work, rank, args.processes)
    if trainer.resume():
        console.print(f"going on at step {trainer.step}, {trainer.elapsed_s / 60:.1f} of {plan.minutes:g} minutes done")
    if rank:
        for _ in trainer.epochs():
            pass
        return
    write_data_list(args.work / DATA, digests(samples), PURPOSES)
    validation = list(face_mask(args.data, "val"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar, (args.work / "log.jsonl").open("a") as log:
        task = bar.add_task("training", total=round(plan.minutes * 60), completed=round(trainer.elapsed_s))
        for loss in trainer.epochs():
            line = {"epoch": trainer.epoch, "step": trainer.step, "minutes": trainer.elapsed_s / 60, "loss": loss}
            if plan.validate_every and (trainer.epoch % plan.validate_every == 0 or trainer.progress >= 1):
                scored = [(predict_torch(trainer.average.net, s.image, 320), s.boxes) for s in validation]
                line["val_ap50_320"] = average_precision(scored, 0.5)
            log.write(json.dumps({key: round(value, 4) for key, value in line.items()}) + "\n")
            log.flush()
            bar.update(task, completed=round(trainer.elapsed_s), description=f"epoch {trainer.epoch} loss {loss:.3f}")
    console.print(f"done: {args.work / 'checkpoint.pt'}")
