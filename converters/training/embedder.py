"""`facefleet-convert train-embedder`: teach a small CNN to tell one face from another, from pictures shown once.

There are no identities to learn from (see `data.identity`), so every picture is a person of its own: two random looks
of it must come out alike and unlike everybody else's (NT-Xent, Chen et al. 2020, with a queue of earlier faces as
more strangers). Clips of one person give real pairs. Age, gender and race of UTKFace, where known, help the features.
Started from a head's blocks, the last layer is first set in closed form (`training.discriminant`).
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TextColumn
from torch import Tensor

from converters.data.augment_identity import looks
from converters.data.identity import training
from converters.errors import ConvertError
from converters.nets.embedder import DIMENSIONS, Embedder
from converters.nets.student import WIDTHS
from converters.training import state as training_state
from converters.training.contrast import TRAITS, Material, contrast, material, pairs_of, split, trait_loss, two_looks
from converters.training.discriminant import Looked, set_project
from converters.training.lessons import spans
from converters.training.schedule import optimizer_of

CHECK_EVERY = 2  # epochs


@dataclass(frozen=True)
class Plan:
    """What decides a training run; the same plan on the same data gives the same weights when `minutes` does not bind.

    Attributes:
        epochs: the schedule ends here, or after `minutes` of computing, whichever is first. In an epoch
            every person is seen once, in two looks.
        temperature: of the softmax over strangers; lower looks harder at the most alike.
        queue: how many earlier faces count as strangers beside those of the batch.
        traits: weight of the helping heads beside the main loss.
        clip_share: share of every batch drawn from people with several real pictures.
        init: a student's checkpoint whose blocks the run starts from.
    """

    epochs: int = 60
    minutes: float = 1e9
    batch: int = 96
    rate: float = 2e-3
    temperature: float = 0.1
    queue: int = 4096
    traits: float = 0.2
    clip_share: float = 0.08
    seed: int = 7
    widths: tuple[int, ...] = WIDTHS
    init: Path | None = None


@dataclass(kw_only=True)
class State(training_state.State[Embedder, dict[str, float]]):
    """A run with its queue of earlier faces: (K, D) vectors and (K, 2) their person and circle."""

    queue: Tensor
    queue_ids: Tensor

    def progress(self, epochs: int, minutes: float) -> float:
        """Return the share of the run that is over; a run of no epochs stays at the closed form."""
        return super().progress(epochs, minutes) if epochs else 1.0

    def kept(self) -> dict[str, Any]:
        """Return what is written."""
        return super().kept() | {"queue": self.queue, "queue_ids": self.queue_ids}

    def take(self, saved: dict[str, Any]) -> None:
        """Become what was written."""
        super().take(saved)
        self.queue, self.queue_ids = saved["queue"], saved["queue_ids"]


def train(plan: Plan, learn: Material, check: Material, folder: Path) -> State:
    """Train or go on training in `folder`; the state's averaged network is what is shipped."""
    folder.mkdir(parents=True, exist_ok=True)
    state = _start(plan, folder / "state.pt")
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}"))
    with Progress(*columns) as progress:
        task = progress.add_task("epochs", total=plan.epochs, completed=state.epoch, note="")
        if plan.init and not state.history:
            _begin(plan, state, learn)
            state.history.append({"epoch": 0, **two_looks(state.average, check)})
            state.keep(folder / "state.pt")
            progress.console.print("last layer in closed form:", state.history[-1])
        while state.progress(plan.epochs, plan.minutes) < 1:
            value = _epoch(plan, state, learn)
            if state.epoch % CHECK_EVERY == 0 or state.progress(plan.epochs, plan.minutes) >= 1:
                state.history.append({"epoch": state.epoch, "loss": value, **two_looks(state.average, check)})
            state.keep(folder / "state.pt")
            note = " ".join(f"{name} {figure:.3f}" for name, figure in (state.history or [{"loss": value}])[-1].items())
            progress.update(task, completed=state.epoch, note=note)
            if not progress.console.is_terminal:
                progress.console.print(f"epoch {state.epoch} {state.spent_s:.0f} s loss {value:.3f} {note}")
    state.average.eval()
    return state


def _begin(plan: Plan, state: State, learn: Material) -> None:
    """Set the last layer in closed form, from two looks of everybody."""
    pairs = torch.from_numpy(pairs_of(learn, 0, seed=plan.seed, clip_share=plan.clip_share))
    rng = torch.Generator().manual_seed(plan.seed)
    state.average.eval()
    with torch.inference_mode():
        one, other = (
            torch.cat([state.average.features(looks(learn.pictures[part], rng)) for part in rows.split(plan.batch)])
            for rows in pairs.T
        )
    torch.manual_seed(plan.seed)  # the principal directions are sought at random
    for net in (state.average, state.net):
        set_project(net, Looked(one.clone(), other.clone()))


def _epoch(plan: Plan, state: State, learn: Material) -> float:
    pairs = torch.from_numpy(pairs_of(learn, state.epoch, seed=plan.seed, clip_share=plan.clip_share))
    rng = torch.Generator().manual_seed(plan.seed * 100_003 + state.epoch)
    began, before_s = time.process_time(), state.spent_s
    state.net.train()
    steps = max(1, len(pairs) // plan.batch)
    total = 0.0
    for step, pick in enumerate(pairs[: steps * plan.batch].split(plan.batch)):
        share = max((state.epoch + step / steps) / plan.epochs, state.progress(plan.epochs, plan.minutes))
        rows = torch.cat([pick[:, 0], pick[:, 1]])
        with torch.autocast("cpu", torch.bfloat16):
            features = state.net.features(looks(learn.pictures[rows], rng).to(memory_format=torch.channels_last))
        embedded = state.net.embed(features)
        person, circle = learn.person[pick[:, 0]], learn.circle[pick[:, 0]]
        value = contrast(embedded, person, circle, state.queue, state.queue_ids, plan.temperature)
        assert state.net.traits is not None
        helped = value + plan.traits * trait_loss(state.net.traits(features), learn.traits[rows])
        state.learn(helped, plan.rate, share, clip=3.0, decay=min(0.998, 1 - 1 / (1 + state.epoch * steps + step)))
        _remember(state, embedded.detach()[: len(pick)], torch.stack([person, circle], 1))
        total += float(value.detach())
        state.spent_s = before_s + time.process_time() - began
    state.epoch += 1
    return total / steps


def _remember(state: State, embedded: Tensor, ids: Tensor) -> None:
    """Put faces at the end of the queue; the oldest fall out."""
    keep = len(state.queue)
    state.queue = torch.cat([state.queue, embedded])[-keep:] if keep else state.queue
    state.queue_ids = torch.cat([state.queue_ids, ids])[-keep:] if keep else state.queue_ids


def _start(plan: Plan, path: Path) -> State:
    torch.manual_seed(plan.seed)
    net, average = (Embedder(plan.widths, sum(n for _, n in spans(TRAITS))) for _ in range(2))
    if plan.init:
        _initialise(net, plan.init)
    average.load_state_dict(net.state_dict())
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    nobody = torch.full((plan.queue, 2), -1, dtype=torch.int64)
    empty = torch.zeros(plan.queue, DIMENSIONS)
    state = State(net, average, optimizer_of(net, plan.rate), _identity(plan), queue=empty, queue_ids=nobody)
    state.resume(path)
    return state


def _initialise(net: Embedder, checkpoint: Path) -> None:
    """Copy the blocks that a student's checkpoint has in the same shape.

    Raises:
        ConvertError: it has no such block.
    """
    saved = torch.load(checkpoint, weights_only=True)
    own = net.state_dict()
    fitting = {
        k: v.float() for k, v in saved.items() if k.startswith("blocks.") and k in own and own[k].shape == v.shape
    }
    if "blocks.0.conv1.0.weight" not in fitting:
        raise ConvertError(f"{checkpoint}: no block of a student with widths {net.widths}; give one of our heads'")
    net.load_state_dict(own | fitting)


def _identity(plan: Plan) -> str:
    """Name the plan, less the minutes, which may change on resuming."""
    return (
        f"epochs {plan.epochs} batch {plan.batch} rate {plan.rate:g} temperature {plan.temperature:g} "
        f"queue {plan.queue} traits {plan.traits:g} clips {plan.clip_share:g} seed {plan.seed} "
        f"widths {'-'.join(map(str, plan.widths))} init {plan.init.parent.name if plan.init else 'none'}"
    )


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb `train-embedder`."""
    parser = subparsers.add_parser(
        "train-embedder",
        help="train the face embedder and write its bundle",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Teach a small CNN to turn an aligned face into 128 numbers, alike for one person.\n\n"
        "The data folder has almost nobody in two pictures. So every picture counts as a person of its own: two\n"
        "random looks of it (turned, lit, blurred, half hidden, with another background) must come out alike, and\n"
        "unlike all other faces. That teaches what tells faces apart, but not how one face changes over years or\n"
        "between cameras: expect a helper for picking and grouping, not an identity check. Real pairs come only from\n"
        "a few clips. London, Azure and Lisa are never learnt from; `facefleet-convert evaluate` reports on them.\n"
        "UTKFace is for research only, and so is the bundle.",
        epilog="Stopped with Ctrl-C, or by a power cut? Run the same command again: it goes on after the last epoch.\n"
        "example: facefleet-convert train-embedder --data DATA --init models_int8/gender-student/checkpoint.pt",
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with research_only/, attributes/, detection/, …"
    )
    parser.add_argument("--out", type=Path, default=Path("out/embedder"), help="folder of the training state")
    parser.add_argument("--bundle", type=Path, default=Path("models_int8/face-embedder"), help="what is written")
    parser.add_argument("--cache", type=Path, default=Path("out/faces"), help="where prepared faces are kept")
    parser.add_argument(
        "--epochs",
        type=int,
        default=Plan.epochs,
        help="length of the schedule; 0 leaves it at the closed form (default %(default)s)",
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="finish the schedule after so long instead")
    parser.add_argument("--rate", type=float, default=Plan.rate, help="highest learning rate (default %(default)s)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=Plan.temperature,
        help="lower looks harder at the most alike strangers, and at those who are none (default %(default)s)",
    )
    parser.add_argument(
        "--traits", type=float, default=Plan.traits, help="weight of age, gender, race (default %(default)s)"
    )
    parser.add_argument("--init", type=Path, help="a head's checkpoint.pt to start from: its blocks know faces already")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-bundle", action="store_true", help="train only; run again without it to write the bundle")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train and write the bundle; 0 when it is written."""
    torch.set_num_threads(args.threads)
    plan = Plan(
        epochs=args.epochs,
        minutes=args.minutes,
        rate=args.rate,
        temperature=args.temperature,
        traits=args.traits,
        seed=args.seed,
        init=args.init,
    )
    learn, check = split(training(args.data, args.cache))
    print(f"{len(learn)} faces of at most {len(set(learn.people))} people to learn from, {len(check)} to check on")
    state = train(plan, material(learn), material(check), args.out)
    if args.no_bundle:
        return 0
    from converters.bundles.embedder import write_bundle  # nncf and openvino, which training alone does not need

    how = f"{command_line(plan)}, {state.epoch} epochs done"
    began = plan.init.parent.name if plan.init else ""
    write_bundle(state.average, learn, args.data, args.bundle, how=how, began=began)
    return 0


def command_line(plan: Plan) -> str:
    """Return the command that repeats a run; where minutes cut the schedule short, only on a machine as fast."""
    text = f"facefleet-convert train-embedder --data DATA --epochs {plan.epochs} --rate {plan.rate:g}"
    minutes = f" --minutes {plan.minutes:g}" if plan.minutes < 1e9 else ""
    init = f" --init {plan.init}" if plan.init else ""
    return f"{text} --temperature {plan.temperature:g} --traits {plan.traits:g} --seed {plan.seed}{minutes}{init}"
