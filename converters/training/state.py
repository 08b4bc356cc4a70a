"""Everything of a training run that must survive an interruption: one file, written aside and renamed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from converters.errors import ConvertError
from converters.training.schedule import follow, rate_factor

Net = TypeVar("Net", bound=nn.Module)
Note = TypeVar("Note")


@dataclass
class State(Generic[Net, Note]):
    """A run on its way.

    Attributes:
        net: what learns.
        average: follows it, and is what is shipped.
        plan: what a kept state must agree in, or it belongs to another run.
        spent_s: computing time so far.
        history: what was found at each check.
    """

    net: Net
    average: Net
    optimizer: torch.optim.Optimizer
    plan: str
    epoch: int = 0
    spent_s: float = 0.0
    history: list[Note] = field(default_factory=list)

    def progress(self, epochs: int, minutes: float) -> float:
        """Return the share of the run that is over: of its epochs or of its minutes, whichever is more."""
        return max(self.epoch / epochs, self.spent_s / 60 / minutes)

    def learn(self, loss: Tensor, rate: float, share: float, *, clip: float, decay: float) -> None:
        """Take one step down.

        Args:
            loss: of this batch.
            rate: the highest learning rate.
            share: of the run that is over.
            clip: longest gradient.
            decay: of the average; higher follows more slowly.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * rate_factor(share)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), clip)
        self.optimizer.step()
        follow(self.average, self.net, decay)

    def keep(self, path: Path) -> None:
        """Write the state aside and rename it, so that a power cut leaves the last whole one."""
        torch.save(self.kept(), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def resume(self, path: Path) -> None:
        """Go on where a kept state stopped, if there is one.

        Raises:
            ConvertError: it belongs to another plan.
        """
        if not path.is_file():
            return
        saved = torch.load(path, weights_only=True)
        if saved["plan"] != self.plan:
            raise ConvertError(f"{path} belongs to another plan ({saved['plan']}); name a fresh folder for the state")
        self.take(saved)

    def kept(self) -> dict[str, Any]:
        """Return what is written."""
        return {
            "plan": self.plan,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "spent_s": self.spent_s,
            "history": self.history,
        }

    def take(self, saved: dict[str, Any]) -> None:
        """Become what was written."""
        # What students kept until November 2026 calls the net so.
        self.net.load_state_dict(saved["net"] if "net" in saved else saved["student"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.epoch, self.spent_s, self.history = saved["epoch"], saved["spent_s"], saved["history"]
