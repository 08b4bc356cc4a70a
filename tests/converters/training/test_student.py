"""Training of the heads: targets, weights, and going on where it stopped."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from converters.data.attributes import CONTEXT, CONTEXT_PX, OTHER_RACE, Faces, Label  # noqa: E402
from converters.data.augment_faces import augment, centred  # noqa: E402
from converters.errors import ConvertError  # noqa: E402
from converters.training.course import State  # noqa: E402
from converters.training.course import train as follow  # noqa: E402
from converters.training.lessons import Lessons, lessons, loss, spans  # noqa: E402
from converters.training.student import Plan, balanced_accuracy, merge  # noqa: E402
from tests.converters.training.interrupted import StopsAfter  # noqa: E402

pytestmark = pytest.mark.convert

HEADS = ("age", "gender", "race", "emotion")
PLAN = Plan(heads=("gender",), epochs=4, batch=16, widths=(4, 8), rate=0.01)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads wait for each other on a busy machine: 50 s instead of 3 for networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made_up(count: int) -> Faces:
    """Faces whose gender is their brightness: something to learn."""
    rng = np.random.default_rng(5)
    labels = tuple(Label(str(i), "train", ages=(30, 30), gender=i % 2) for i in range(count))
    level = np.array([60 + 110 * label.gender for label in labels])[:, None, None, None]
    noise = rng.integers(0, 40, (count, CONTEXT_PX, CONTEXT_PX, 3))
    inside = np.tile(np.array([0.1, 0.2, 0.9, 0.8], np.float32), (count, 1))
    return Faces((level + noise).astype(np.uint8), inside, labels, ("",) * count)


def train(plan: Plan, material: Lessons, checks: Faces, folder: Path) -> State:
    return follow(plan, material, lambda student: balanced_accuracy(student, checks, plan), folder)


def test_heads_lie_side_by_side() -> None:
    assert spans(HEADS) == [(0, 6), (6, 2), (8, 3), (11, 4)]


def test_targets_are_probabilities_and_unknown_labels_weigh_nothing() -> None:
    labels = (Label("a", "train", ages=(45, 45), gender=1, race=1), Label("b", "train", emotion=2))
    faces = Faces(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4), np.float32), labels, ("", ""))
    material = lessons(faces, HEADS)
    for i, (first, n) in enumerate(spans(HEADS)):
        total = material.targets[:, first : first + n].sum(dim=1)
        torch.testing.assert_close(total, (material.weights[:, i] > 0).float())
    assert (material.weights > 0).tolist() == [[True, True, True, False], [False, False, False, True]]


def test_an_age_at_the_edge_of_a_band_is_shared_with_the_next() -> None:
    labels = tuple(Label("a", "train", ages=(age, age)) for age in (35, 45))
    faces = Faces(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4), np.float32), labels, ("", ""))
    middle, edge = lessons(faces, ("age",)).targets
    assert middle[3] > 0.95
    assert edge[3] > edge[4] > 0.3


def test_rare_races_weigh_more_and_the_mean_stays_one() -> None:
    labels = tuple(Label(str(i), "train", race=0 if i < 90 else 1) for i in range(100))
    faces = Faces(np.zeros((100, 4, 4, 3), np.uint8), np.zeros((100, 4), np.float32), labels, ("",) * 100)
    weights = lessons(faces, ("race",)).weights[:, 0]
    assert weights[99] > 4 * weights[0]
    assert weights.mean() == pytest.approx(1)


def test_a_group_without_a_class_is_taught_as_unsure() -> None:
    labels = (Label("a", "train", race=0), Label("b", "train", race=OTHER_RACE), Label("c", "train"))
    faces = Faces(np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 4), np.float32), labels, ("",) * 3)
    material = lessons(faces, ("race",))
    torch.testing.assert_close(material.targets[1], torch.full((3,), 1 / 3))
    assert (material.weights[:, 0] > 0).tolist() == [True, True, False]


def test_loss_of_a_batch_without_labels_for_a_head_is_finite() -> None:
    logits = torch.zeros(3, 8)
    targets, weights = torch.zeros(3, 8), torch.zeros(3, 2)
    targets[:, 6] = 1
    weights[:, 1] = 1
    assert loss(logits, targets, weights, ("age", "gender")).item() == pytest.approx(np.log(2))


def test_augmented_faces_keep_shape_and_range_and_follow_the_generator() -> None:
    faces = made_up(12)
    args = torch.from_numpy(faces.pictures), torch.from_numpy(faces.inside), 64, 0.0
    one, same, other = (augment(*args, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (12, 3, 64, 64)
    assert 0 <= one.min() <= one.max() <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_centred_crop_is_the_middle_in_rgb() -> None:
    picture = np.zeros((1, CONTEXT_PX, CONTEXT_PX, 3), np.uint8)
    edge = round(CONTEXT_PX * CONTEXT / (1 + 2 * CONTEXT))
    picture[:, edge:-edge, edge:-edge] = (255, 0, 0)  # blue, in BGR
    crop = centred(torch.from_numpy(picture), 32, 0.0)
    assert crop[0, 2, 2:-2, 2:-2].min() > 0.98
    assert crop[0, :2].max() == 0


def test_training_learns_and_stops_at_its_last_epoch(tmp_path: Path) -> None:
    faces = made_up(64)
    plan = dataclasses.replace(PLAN, epochs=8)
    state = train(plan, lessons(faces, plan.heads), faces, tmp_path)
    assert state.epoch == 8
    assert state.history[-1]["gender"] > 0.9


def test_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    faces = made_up(32)
    material = lessons(faces, PLAN.heads)
    whole = train(PLAN, material, faces, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(PLAN, StopsAfter(material, "pictures", batches=5), faces, tmp_path / "parts")  # type: ignore[arg-type]
    resumed = train(PLAN, material, faces, tmp_path / "parts")
    for a, b in zip(whole.average.state_dict().values(), resumed.average.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    faces = made_up(16)
    material = lessons(faces, PLAN.heads)
    short = dataclasses.replace(PLAN, epochs=1)
    train(short, material, faces, tmp_path)
    with pytest.raises(ConvertError, match="another plan"):
        train(dataclasses.replace(short, seed=8), material, faces, tmp_path)


def test_a_checkpoint_of_other_widths_is_refused(tmp_path: Path) -> None:
    faces = made_up(16)
    wide = dataclasses.replace(PLAN, epochs=1, widths=(8, 16))
    torch.save(train(wide, lessons(faces, ("gender",)), faces, tmp_path / "a").average.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConvertError, match="same widths"):
        train(dataclasses.replace(PLAN, init=tmp_path / "w.pt"), lessons(faces, ("gender",)), faces, tmp_path / "b")


def test_merged_sets_keep_every_face() -> None:
    both = merge([made_up(3), made_up(2)])
    assert len(both.labels) == len(both.pictures) == len(both.digests) == 5
