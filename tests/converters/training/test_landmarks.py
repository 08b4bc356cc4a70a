"""Training of the landmark student: it learns, goes on where it stopped, and keeps its sets apart."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from converters.cli import main  # noqa: E402
from converters.data.landmarks import CONTEXT_PX, MarkedFaces  # noqa: E402
from converters.errors import ConvertError  # noqa: E402
from converters.training.landmarks import Plan, error, loss, material, split, train  # noqa: E402
from tests.converters.training.interrupted import StopsAfter  # noqa: E402

pytestmark = pytest.mark.convert

PLAN = Plan(epochs=3, batch=16, widths=(4, 6, 8, 8), rate=0.01)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made_up(count: int) -> MarkedFaces:
    """Five differently coloured dots on grey, somewhere near the middle: a face to whoever knows no better."""
    rng = np.random.default_rng(5)
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255))
    shape = np.array([[-0.08, -0.07], [0.08, -0.07], [0, 0], [-0.06, 0.08], [0.06, 0.08]])
    y, x = (np.mgrid[:CONTEXT_PX, :CONTEXT_PX] + 0.5) / CONTEXT_PX
    pictures, points = [], []
    for _ in range(count):
        five = 0.5 + shape + rng.uniform(-0.05, 0.05, 2)
        picture = np.full((CONTEXT_PX, CONTEXT_PX, 3), 90, np.uint8)
        for colour, (px, py) in zip(colours, five, strict=True):
            picture[np.hypot(x - px, y - py) < 0.04] = colour
        pictures.append(picture)
        points.append(five)
    digests = tuple(f"{i * 2654435761 % 2**32:08x}".ljust(64, "0") for i in range(count))
    at = np.array(points, np.float32)
    boxes = np.tile(np.array([0, 0, 100, 100], np.float32), (count, 1))
    return MarkedFaces(np.stack(pictures), at, at, boxes, tuple(f"made/{i}" for i in range(count)), digests)


def test_loss_is_the_distance_in_eye_distances() -> None:
    wanted = torch.tensor([[[0.4, 0.4], [0.6, 0.4], [0.5, 0.5], [0.45, 0.6], [0.55, 0.6]]])
    off = wanted + torch.tensor([0.03, 0.04])
    scale = torch.tensor([[5.0, 5.0]])  # a fifth of the crop is one eye distance
    assert loss(off.flatten(1), wanted, scale).item() == pytest.approx(0.25, abs=1e-3)
    assert loss(wanted.flatten(1), wanted, scale).item() == pytest.approx(0.01, abs=1e-4)


def test_eyes_that_coincide_do_not_outweigh_everybody() -> None:
    faces = made_up(2)
    profile = faces.points.copy()
    profile[0, 1] = profile[0, 0]
    scale = material(dataclasses.replace(faces, points=profile)).scale
    assert torch.isfinite(scale).all()
    assert scale[0, 0] < 3 * scale[1, 0]


def test_a_picture_is_learnt_from_or_checked_on_but_never_both() -> None:
    faces = made_up(300)
    learn, check = split(faces)
    assert len(learn) + len(check) == 300
    assert 5 < len(check) < 50
    assert not set(learn.digests) & set(check.digests)


def test_training_learns_and_stops_at_its_last_epoch(tmp_path: Path) -> None:
    faces = material(made_up(96))
    plan = dataclasses.replace(PLAN, epochs=30, widths=(8, 12, 16, 16))
    state = train(plan, faces, faces, tmp_path)
    assert state.epoch == 30
    assert state.history[-1] < 0.5 * state.history[0]
    assert state.history[-1] == pytest.approx(error(state.average, faces, plan.margin))


def test_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    faces = material(made_up(48))
    whole = train(PLAN, faces, faces, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(PLAN, StopsAfter(faces, "tallness", batches=4), faces, tmp_path / "parts")  # type: ignore[arg-type]
    resumed = train(PLAN, faces, faces, tmp_path / "parts")
    for a, b in zip(whole.average.state_dict().values(), resumed.average.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_minutes_finish_the_schedule_early(tmp_path: Path) -> None:
    faces = material(made_up(32))
    state = train(dataclasses.replace(PLAN, epochs=500, minutes=1e-4), faces, faces, tmp_path)
    assert state.epoch < 5


def test_a_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    faces = material(made_up(16))
    short = dataclasses.replace(PLAN, epochs=1)
    train(short, faces, faces, tmp_path)
    with pytest.raises(ConvertError, match="another plan"):
        train(dataclasses.replace(short, seed=8), faces, faces, tmp_path)


@pytest.mark.parametrize(
    ("verb", "taught"), [("train-landmarks", "goes on after the last epoch"), ("train-embedder", "research only")]
)
def test_help_teaches(verb: str, taught: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert taught in text
    assert f"facefleet-convert {verb} --data DATA" in text
