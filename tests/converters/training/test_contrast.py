"""What an embedder learns from: who counts as a stranger, what helps, and who is shown."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from converters.training.contrast import contrast, material, pairs_of, split, trait_loss  # noqa: E402
from tests.converters.training.aligned import made_up  # noqa: E402

pytestmark = pytest.mark.convert

NOBODY = torch.zeros(4, 2), torch.full((4, 2), -1)


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
    pairs = pairs_of(faces, 0, seed=7, clip_share=0.2)
    people = faces.person.numpy()
    single = pairs[pairs[:, 0] == pairs[:, 1]]
    real = pairs[pairs[:, 0] != pairs[:, 1]]
    assert sorted(single[:, 0].tolist()) == list(range(40))
    assert len(real) == 10
    assert (people[real[:, 0]] == people[real[:, 1]]).all()
    assert not np.array_equal(pairs, pairs_of(faces, 1, seed=7, clip_share=0.2))


def test_utkfaces_test_part_is_never_learnt_from() -> None:
    faces = made_up(40, "liveportrait/a")
    learn, check = split(faces)
    assert not set(learn.people) & set(check.people)
    assert {label.split for label in check.labels} == {"test"}
    assert learn.people.count("liveportrait/a") == 3
