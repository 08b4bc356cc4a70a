"""The network is the paper's: size, shapes, and a fused copy that computes the same."""

import pickle
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")

from converters.errors import ConvertError  # noqa: E402
from converters.nets.yolov10 import YOLOv10, load_weights  # noqa: E402
from converters.nets.yolov10_blocks import Conv  # noqa: E402
from converters.nets.yolov10_export import Exported  # noqa: E402

pytestmark = pytest.mark.convert


def shaken(net: YOLOv10) -> YOLOv10:
    """Give every norm statistics of its own, so that folding them wrongly shows."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
    return net.eval()


# Table 1 of the paper gives 2.3, 7.2, 15.4, 19.1, 24.4, 29.5 M for the one-to-one path alone, fused, with 80 classes.
@pytest.mark.parametrize(
    ("scale", "millions"), [("n", 2.3), ("s", 7.2), ("m", 15.4), ("b", 19.1), ("l", 24.4), ("x", 29.5)]
)
def test_deployed_weights_count_as_in_the_paper(scale: str, millions: float) -> None:
    with torch.device("meta"):
        net = YOLOv10(scale, 80, "silu")  # type: ignore[arg-type]
    one_to_many = sum(p.numel() for part in (net.head.cv2, net.head.cv3) for p in part.parameters())
    weights = sum(p.numel() for p in net.parameters()) - one_to_many
    assert weights / 1e6 == pytest.approx(millions, abs=0.1)


def test_multiplications_of_the_deployed_path_count_as_in_the_paper() -> None:
    total = 0

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, torch.nn.Conv2d)
        total += output.numel() * module.weight[0].numel()

    net = YOLOv10("n", 80, "silu").eval()
    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.inference_mode():
        Exported(net, 640, 640)(torch.zeros(1, 3, 640, 640))
    for hook in hooks:
        hook.remove()
    assert 2 * total / 1e9 == pytest.approx(6.7, rel=0.05)  # Table 1: 6.7 GFLOPs, matrix products of PSA included


def test_state_dict_carries_the_names_of_published_checkpoints() -> None:
    names = YOLOv10("n", 1, "silu").state_dict()
    for name, shape in {
        "model.0.conv.weight": (16, 3, 3, 3),
        "model.2.m.0.cv1.conv.weight": (16, 16, 3, 3),
        "model.5.cv2.bn.running_var": (128,),
        "model.10.attn.qkv.conv.weight": (256, 128, 1, 1),
        "model.10.ffn.1.conv.weight": (128, 256, 1, 1),
        "model.22.m.0.cv1.2.conv1.conv.weight": (256, 1, 3, 3),
        "model.23.one2one_cv2.0.2.weight": (64, 64, 1, 1),
        "model.23.one2one_cv3.2.0.1.conv.weight": (64, 256, 1, 1),
        "model.23.dfl.conv.weight": (1, 16, 1, 1),
    }.items():
        assert tuple(names[name].shape) == shape


def test_fused_network_computes_the_same_boxes_and_scores() -> None:
    net = shaken(YOLOv10())
    picture = torch.rand(1, 3, 96, 128)
    with torch.inference_mode():
        before = Exported(net, 128, 96)(picture)
        after = Exported(net.fuse(), 128, 96)(picture)
    assert not any(isinstance(m.bn, torch.nn.BatchNorm2d) for m in net.modules() if isinstance(m, Conv))
    torch.testing.assert_close(after[0], before[0], atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(after[1], before[1], atol=1e-5, rtol=1e-4)


def test_one_to_one_head_sends_no_gradient_into_the_backbone() -> None:
    net = YOLOv10()
    _, (distances, logits) = net(torch.rand(2, 3, 64, 64))
    (distances.sum() + logits.sum()).backward()
    assert net.model[0].conv.weight.grad is None
    assert net.head.one2one_cv2[0][2].weight.grad is not None


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(YOLOv10("n", 2).state_dict(), tmp_path / "two.pt")
    with pytest.raises(ConvertError, match="not a YOLOv10n of one class"):
        load_weights(tmp_path / "two.pt")


def test_pickle_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path, (str(tmp_path / "ran"),))

    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(ConvertError, match="not a file of tensors"):
        load_weights(tmp_path / "bomb.pt")
