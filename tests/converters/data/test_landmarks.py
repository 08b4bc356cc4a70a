"""Faces with points: what jitter does to both, and which pictures are on which side."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from converters.data import landmarks  # noqa: E402
from converters.data.augment_points import STILL, Jitter, crops_with_points, weathered  # noqa: E402
from converters.data.landmarks import CONTEXT, CONTEXT_PX, MIRRORED, PointTeacher, marked  # noqa: E402
from converters.errors import ConvertError  # noqa: E402

pytestmark = pytest.mark.convert

POINTS = np.array([[0.42, 0.42], [0.58, 0.44], [0.5, 0.5], [0.44, 0.58], [0.57, 0.57]], np.float32)


def spotted(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Dark context crops with a bright spot at each point; the right eye is green, all others are white."""
    y, x = (np.mgrid[:CONTEXT_PX, :CONTEXT_PX] + 0.5) / CONTEXT_PX
    picture = np.zeros((CONTEXT_PX, CONTEXT_PX, 3), np.uint8)
    for k, (px, py) in enumerate(POINTS):
        picture[np.hypot(x - px, y - py) < 0.012] = (0, 255, 0) if k == 0 else (255, 255, 255)
    return torch.from_numpy(np.tile(picture, (count, 1, 1, 1))), torch.from_numpy(np.tile(POINTS, (count, 1, 1)))


@pytest.mark.parametrize("tallness", [0.8, 1.0, 1.4])
def test_points_stay_on_their_spots_however_the_crop_strays(tallness: float) -> None:
    pictures, points = spotted(16)
    crops, moved = crops_with_points(
        pictures, points, torch.full((16,), tallness), 128, 0.2, torch.Generator().manual_seed(3), Jitter()
    )
    y, x = (np.mgrid[:128, :128] + 0.5) / 128
    checked = 0
    for crop, five in zip(crops.mean(dim=1).numpy(), moved.numpy(), strict=True):
        for point in five[(five > 0.06).all(axis=1) & (five < 0.94).all(axis=1)]:
            spot = crop * (np.hypot(x - point[0], y - point[1]) < 0.05)
            centre = np.array([(spot * x).sum(), (spot * y).sum()]) / spot.sum()
            np.testing.assert_allclose(centre, point, atol=0.012)
            checked += 1
    assert checked > 60


def test_a_mirrored_face_keeps_its_own_right_eye() -> None:
    """Half of the crops are mirrored: the first point is then the eye on the other side, which was the left one."""
    pictures, points = spotted(32)
    mirror_only = Jitter(0.0, 0.0, 0.0, 1e-9)
    crops, moved = crops_with_points(
        pictures, points, torch.ones(32), 128, 0.2, torch.Generator().manual_seed(0), mirror_only
    )
    assert (moved[:, 0, 0] < moved[:, 1, 0]).all()  # the person's right eye is on the left of every picture
    green = [int(np.argmax(crop[1] - crop[0])) % 128 / 128 < 0.5 for crop in crops.numpy()]
    assert 8 < sum(green) < 24  # the spot that was the right eye lies on either side


def test_without_jitter_the_crop_is_the_box_with_its_margin() -> None:
    pictures, points = spotted(1)
    _, moved = crops_with_points(pictures, points, torch.ones(1), 64, 0.1, torch.Generator(), STILL)
    share = (1 + 2 * CONTEXT) / (1 + 2 * 0.1)
    np.testing.assert_allclose(moved[0].numpy(), (POINTS - 0.5) * share + 0.5, atol=1e-5)


def test_weather_keeps_shape_and_range_and_follows_the_generator() -> None:
    crops = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, same, other = (weathered(crops, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == crops.shape
    assert 0 <= one.min() <= one.max() <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_mirroring_twice_changes_nothing() -> None:
    assert [MIRRORED[k] for k in MIRRORED] == [0, 1, 2, 3, 4]


def test_missing_weights_of_the_teacher_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="YuNet's weights are missing"):
        PointTeacher(tmp_path / "none.onnx")


@pytest.mark.shared
def test_the_teacher_agrees_with_itself_when_it_looks_again(shared: Path) -> None:
    """Points of several looks, taken from differently sized and mirrored views, come back to the same picture."""
    from converters.data import detection

    samples = list(detection.portraits(shared))[:4]
    faces = marked(samples, shared / detection.YUNET, np.inf)
    assert len(faces) == 4
    assert faces.pictures.shape == (4, CONTEXT_PX, CONTEXT_PX, 3)
    eyes = np.linalg.norm((faces.points[:, 1] - faces.points[:, 0]), axis=1)
    off = np.linalg.norm(faces.points - faces.glance, axis=2).mean(axis=1) / eyes
    assert off.max() < 0.12
    assert (faces.points[:, 0, 0] < faces.points[:, 1, 0]).all()


@pytest.mark.shared
def test_nobody_is_learnt_from_and_reported_on(shared: Path) -> None:
    from converters.data import detection

    learnt = {s.name for s in landmarks._fairface(shared, testing=False)}
    told = {s.name for s in landmarks._fairface(shared, testing=True)}
    assert learnt
    assert told
    assert not learnt & told
    people = [s.name for s in detection.mik1i_people(shared)]
    assert people
    assert not {s.name for s in detection.mik1i_train(shared)} & set(people)
