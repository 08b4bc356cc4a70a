"""The embedder network: unit vectors, folding, helping heads that are left away."""

import pytest

torch = pytest.importorskip("torch")

from converters.nets.embedder import DIMENSIONS, Embedder  # noqa: E402

pytestmark = pytest.mark.convert


def test_every_face_becomes_a_vector_of_length_one() -> None:
    net = Embedder((4, 6, 8, 10)).eval()
    with torch.inference_mode():
        vectors = net(torch.rand(3, 3, 112, 112))
    assert vectors.shape == (3, DIMENSIONS)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_folding_leaves_the_helping_heads_away_and_changes_nothing() -> None:
    torch.manual_seed(0)
    net = Embedder((4, 6, 8, 10), traits=11)
    net(torch.rand(8, 3, 112, 112))
    net.eval()
    x = torch.rand(2, 3, 112, 112)
    with torch.inference_mode():
        torch.testing.assert_close(net.fused()(x), net(x), atol=1e-5, rtol=1e-5)
    assert net.fused().traits is None
