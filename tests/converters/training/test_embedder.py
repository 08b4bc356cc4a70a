"""Training of the embedder: who counts as a stranger, what helps, and going on where it stopped."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from converters.data.attributes import Label  # noqa: E402
from converters.data.identity import CONTEXT_PX, AlignedFaces  # noqa: E402
from converters.errors import ConvertError  # noqa: E402
from converters.nets.embedder import Embedder  # noqa: E402
from converters.nets.student import Student  # noqa: E402
from converters.training.embedder import (  # noqa: E402
    Plan,
    _initialise,
    _pairs,
    contrast,
    material,
    split,
    train,
    trait_loss,
)
from tests.converters.training.interrupted import StopsAfter  # noqa: E402

pytestmark = pytest.mark.convert

PLAN = Plan(epochs=2, batch=8, queue=16, widths=(4, 6, 8, 10), rate=0.01)
NOBODY = torch.zeros(4, 2), torch.full((4, 2), -1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made_up(count: int, *clips: str) -> AlignedFaces:
    """Noise faces, each a person of its own, and three frames of each clip."""
    rng = np.random.default_rng(5)
    people = tuple(f"utkface/{i}" for i in range(count)) + tuple(clip for clip in clips for _ in range(3))
    coarse = rng.integers(0, 256, (len(people), 14, 14, 3), np.uint8)
    pictures = coarse.repeat(10, axis=1).repeat(10, axis=2)
    labels = tuple(
        Label(str(i), "test" if i % 4 == 3 else "train", ages=(30, 30), gender=i % 2, race=0)
        for i in range(len(people))
    )
    assert pictures.shape[1] == CONTEXT_PX
    return AlignedFaces(pictures, people, people, labels, tuple(f"{i:064x}" for i in range(len(people))))


def directions(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees) * torch.pi / 180
    return torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)


def test_two_looks_that_agree_and_strangers_that_do_not_cost_little() -> None:
    person = circle = torch.tensor([0, 1])
    apart, mixed = directions(0, 180, 0, 180), directions(0, 180, 180, 0)
    assert contrast(apart, person, circle, *NOBODY, heat=0.1).item() < 1e-6
    assert contrast(mixed, person, circle, *NOBODY, heat=0.1).item() > 10


def test_whoever_shares_a_circle_is_no_stranger() -> None:
    """The second person's faces lie on the first's: costly for strangers, free within a circle."""
    alike, person = directions(0, 0, 0, 0), torch.tensor([0, 1])
    assert contrast(alike, person, torch.tensor([5, 5]), *NOBODY, heat=0.1).item() < 1e-6
    assert contrast(alike, person, torch.tensor([5, 6]), *NOBODY, heat=0.1).item() > 1


def test_earlier_faces_of_the_same_person_are_no_strangers() -> None:
    looks, person = directions(0, 0), torch.tensor([3])
    queue = directions(0, 0)
    same, other = torch.tensor([[3, 3], [3, 3]]), torch.tensor([[4, 4], [4, 4]])
    assert contrast(looks, person, person, queue, same, heat=0.1).item() < 1e-6
    assert contrast(looks, person, person, queue, other, heat=0.1).item() > 1


def test_unknown_traits_cost_nothing() -> None:
    logits = torch.zeros(2, 11)
    assert trait_loss(logits, torch.full((2, 3), -1)).item() == 0
    assert trait_loss(logits, torch.tensor([[-1, 1, -1], [-1, -1, -1]])).item() == pytest.approx(np.log(2))


def test_an_epoch_shows_everybody_once_and_two_pictures_of_a_clip() -> None:
    faces = material(made_up(40, "liveportrait/a", "liveportrait/b"))
    pairs = _pairs(dataclasses.replace(PLAN, clip_share=0.2), faces, 0)
    people = faces.person.numpy()
    single = pairs[pairs[:, 0] == pairs[:, 1]]
    real = pairs[pairs[:, 0] != pairs[:, 1]]
    assert sorted(single[:, 0].tolist()) == list(range(40))
    assert len(real) == 10
    assert (people[real[:, 0]] == people[real[:, 1]]).all()
    assert not np.array_equal(pairs, _pairs(dataclasses.replace(PLAN, clip_share=0.2), faces, 1))


def test_utkfaces_test_part_is_never_learnt_from() -> None:
    faces = made_up(40, "liveportrait/a")
    learn, check = split(faces)
    assert not set(learn.people) & set(check.people)
    assert {label.split for label in check.labels} == {"test"}
    assert learn.people.count("liveportrait/a") == 3


def test_training_brings_two_looks_together(tmp_path: Path) -> None:
    faces = material(made_up(64))
    plan = dataclasses.replace(PLAN, epochs=60, batch=16, widths=(8, 12, 16, 24), rate=0.02)
    state = train(plan, faces, faces, tmp_path)
    assert state.epoch == 60
    assert state.history[-1]["loss"] < 0.9 * state.history[0]["loss"]
    assert state.history[-1]["auc"] > 0.7


def test_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    faces = material(made_up(16))
    whole = train(PLAN, faces, faces, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(PLAN, StopsAfter(faces, "traits", batches=3), faces, tmp_path / "parts")  # type: ignore[arg-type]
    resumed = train(PLAN, faces, faces, tmp_path / "parts")
    assert torch.equal(whole.queue, resumed.queue)
    for a, b in zip(whole.average.state_dict().values(), resumed.average.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    faces = material(made_up(16))
    short = dataclasses.replace(PLAN, epochs=1)
    train(short, faces, faces, tmp_path)
    with pytest.raises(ConvertError, match="another plan"):
        train(dataclasses.replace(short, temperature=0.2), faces, faces, tmp_path)


def test_blocks_of_a_head_are_a_start(tmp_path: Path) -> None:
    torch.manual_seed(3)
    head = Student(2, (4, 6, 8, 9))
    torch.save(head.state_dict(), tmp_path / "checkpoint.pt")
    net = Embedder((4, 6, 8, 9))
    _initialise(net, tmp_path / "checkpoint.pt")
    assert torch.equal(net.blocks[3].conv2[0].weight, head.blocks[3].conv2[0].weight)
    with pytest.raises(ConvertError, match="no block of a student with widths"):
        _initialise(Embedder((5, 6, 8, 9)), tmp_path / "checkpoint.pt")
