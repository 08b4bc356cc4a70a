"""One way to train a student, whoever sets the lessons: seeded, resumable, averaged, never looking at a test split.

Driven by `training.student` (labels of data sets) and `training.distill` (a teacher's answers).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import Progress, TextColumn
from torch import Tensor

from converters.checkpoints.inert_pickle import plain_tensors, read_checkpoint
from converters.data.augment_faces import augment
from converters.errors import ConvertError
from converters.nets.student import WIDTHS, Student
from converters.training import state as training_state
from converters.training.schedule import optimizer_of

SIZE_PX = 64
CHECK_EVERY = 3  # epochs


@dataclass(frozen=True)
class Course:
    """What decides a training run; the same on the same data gives the same weights when `minutes` does not bind.

    Attributes:
        epochs: the schedule ends here, or after `minutes` of this machine's time, whichever is first.
        init: checkpoint whose blocks (and, where the logits fit too, those) the run starts from.
    """

    epochs: int = 60
    minutes: float = 1e9
    batch: int = 96
    rate: float = 3e-3
    margin: float = 0.0
    seed: int = 7
    widths: tuple[int, ...] = WIDTHS
    init: Path | None = None
    size_px: int = SIZE_PX

    def identity(self) -> str:
        """Return what a kept state must agree in."""
        return f"{self.epochs} {self.batch} {self.rate} {self.margin} {self.seed} {self.widths}"


class Material(Protocol):
    """What is learnt: context crops (N, H, W, 3) uint8, the part of each that is real picture, and a loss.

    `outputs` is the number of logits, `used` the indices worth showing.
    """

    @property
    def pictures(self) -> Tensor: ...

    @property
    def inside(self) -> Tensor: ...

    @property
    def outputs(self) -> int: ...

    def used(self) -> Tensor: ...

    def loss(self, logits: Tensor, x: Tensor, pick: Tensor) -> Tensor:
        """Return the loss of (n, outputs) logits for the augmented (n, 3, H, W) crops of the pictures `pick`."""


Check = Callable[[Student], Mapping[str, float]]
State = training_state.State[Student, dict[str, float]]


def train(course: Course, material: Material, check: Check, folder: Path) -> State:
    """Train or go on training in `folder`; the state's averaged student is the one to ship."""
    folder.mkdir(parents=True, exist_ok=True)
    state = _start(course, material.outputs, folder / "state.pt")
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}"))
    with Progress(*columns) as progress:
        task = progress.add_task("epochs", total=course.epochs, completed=state.epoch, note="")
        while state.epoch < course.epochs and state.progress(course.epochs, course.minutes) < 1:
            _epoch(course, state, material)
            state.keep(folder / "state.pt")
            if state.epoch % CHECK_EVERY and state.progress(course.epochs, course.minutes) < 1:
                progress.update(task, completed=state.epoch)
                continue
            figures = dict(check(state.average))
            state.history.append(figures)
            note = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
            progress.update(task, completed=state.epoch, note=note)
            if not progress.console.is_terminal:
                progress.console.print(f"epoch {state.epoch} {state.spent_s:.0f} s {note}")
    state.average.eval()
    return state


def _epoch(course: Course, state: State, material: Material) -> None:
    rng = torch.Generator().manual_seed(course.seed * 100_003 + state.epoch)
    torch.manual_seed(rng.initial_seed())  # dropout draws from the global generator
    used = material.used()
    order = used[torch.randperm(len(used), generator=rng)]
    began = time.monotonic()
    before_s = state.spent_s
    state.net.train()
    for step, pick in enumerate(order.split(course.batch)):
        if len(pick) < 8:  # batch norm learns nothing from a handful
            continue
        share = (state.epoch + step * course.batch / len(order)) / course.epochs
        share = max(share, state.progress(course.epochs, course.minutes))
        x = augment(material.pictures[pick], material.inside[pick], course.size_px, course.margin, rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = state.net(x.to(memory_format=torch.channels_last))
        value = material.loss(logits, x, pick)
        done = state.epoch * len(order) / course.batch + step
        state.learn(value, course.rate, share, clip=3.0, decay=min(0.998, 1 - 1 / (1 + done)))
        state.spent_s = before_s + time.monotonic() - began
    state.epoch += 1


def _start(course: Course, outputs: int, path: Path) -> State:
    torch.manual_seed(course.seed)
    student = Student(outputs, course.widths)
    if course.init:
        _initialise(student, course.init)
    student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    average = Student(student.classify.out_features, course.widths)
    average.load_state_dict(student.state_dict())
    state = State(student, average, optimizer_of(student, course.rate), course.identity())
    state.resume(path)
    return state


def _initialise(student: Student, checkpoint: Path) -> None:
    """Copy every tensor of equal name and shape; the blocks must fit, the logits may be others."""
    saved = plain_tensors(read_checkpoint(checkpoint), str(checkpoint))
    own = student.state_dict()
    fitting = {k: v for k, v in saved.items() if k in own and own[k].shape == v.shape}
    if missing := [k for k in own if k.startswith("blocks.") and k not in fitting]:
        raise ConvertError(f"{checkpoint} lacks {missing[0]} in the shape this student has; use the same widths")
    student.load_state_dict({**own, **fitting})
