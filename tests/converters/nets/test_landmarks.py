"""The landmark network: folding, places, shifts."""

import pytest

torch = pytest.importorskip("torch")

from converters.nets.landmarks import LandmarkNet  # noqa: E402

pytestmark = pytest.mark.convert


def net() -> LandmarkNet:
    torch.manual_seed(0)
    made = LandmarkNet((4, 6, 8, 8))
    made(torch.rand(8, 3, 64, 64))  # gives batch norm something to fold
    return made.eval()


def test_folded_norms_change_nothing() -> None:
    made, x = net(), torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(made.fused()(x), made(x), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in made.fused().modules())


def test_heat_in_one_cell_is_read_as_its_centre() -> None:
    made = net()
    heat = torch.full((1, 5, 16, 16), -50.0)
    heat[:, :, 3, 12] = 50.0
    made.heat = Says(heat)
    with torch.inference_mode():
        points = made(torch.zeros(1, 3, 64, 64)).view(5, 2)
    torch.testing.assert_close(
        points, torch.tensor([[0.5 + 1.2 * (12.5 / 16 - 0.5), 0.5 + 1.2 * (3.5 / 16 - 0.5)]] * 5)
    )


class Says(torch.nn.Module):
    """A layer that answers the same whatever it is asked."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer
