"""The last layer in closed form, on faces whose looks disturb known directions."""

import pytest

torch = pytest.importorskip("torch")

from converters.nets.embedder import DIMENSIONS, Embedder  # noqa: E402
from converters.training.discriminant import Looked, discriminant, set_project  # noqa: E402

pytestmark = pytest.mark.convert


def two_looks(people: int, features: int, disturbed: int) -> Looked:
    """Faces differ everywhere by one unit; looks disturb only the first directions, by five units."""
    rng = torch.Generator().manual_seed(0)
    faces = torch.randn(people, features, generator=rng)
    noise = torch.randn(2, people, features, generator=rng) * 0.1
    noise[:, :, :disturbed] *= 50
    return Looked(faces + noise[0] + 3, faces + noise[1] + 3)


def found(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return how many of the first looks have their own other look nearest, by cosine."""
    cosine = torch.nn.functional.normalize(one, dim=1) @ torch.nn.functional.normalize(other, dim=1).T
    return float((cosine.argmax(dim=1) == torch.arange(len(one))).float().mean())


def test_directions_that_looks_disturb_are_left_out() -> None:
    looked = two_looks(400, 40, disturbed=8)
    torch.manual_seed(0)
    weight, bias = discriminant(looked, kept=40, dimensions=16)
    strength = weight.square().sum(dim=0)
    assert strength[:8].mean() < 0.05 * strength[8:].mean()
    plain = found(looked.one, looked.other)
    assert found(looked.one @ weight.T + bias, looked.other @ weight.T + bias) > max(0.95, plain)


def test_what_everybody_has_in_common_is_taken_away() -> None:
    looked = two_looks(400, 20, disturbed=2)
    torch.manual_seed(0)
    weight, bias = discriminant(looked, kept=20, dimensions=8)
    assert (looked.one @ weight.T + bias).mean(dim=0).abs().max() < 0.2


def test_fewer_directions_than_dimensions_leave_the_rest_empty() -> None:
    torch.manual_seed(0)
    weight, bias = discriminant(two_looks(30, 10, disturbed=1), kept=10, dimensions=16)
    assert weight.shape == (16, 10)
    assert not weight[10:].any()
    assert torch.isfinite(bias).all()


def test_an_embedder_takes_the_closed_form_over() -> None:
    torch.manual_seed(0)
    net = Embedder((4, 6, 8, 2)).eval()
    looked = two_looks(300, net.project.in_features, disturbed=10)
    set_project(net, looked)
    with torch.inference_mode():
        assert net.embed(looked.one).shape == (300, DIMENSIONS)
        assert found(net.embed(looked.one), net.embed(looked.other)) > 0.95
