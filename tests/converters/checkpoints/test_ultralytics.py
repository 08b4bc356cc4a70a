"""A YOLOv10 `.pt` is read as ultralytics wrote it, by classes of the same names made here; nothing in it runs."""

import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")

from converters.checkpoints.inert_pickle import read_checkpoint  # noqa: E402
from converters.checkpoints.ultralytics import load_yolov10  # noqa: E402
from converters.cli import main  # noqa: E402
from converters.errors import CheckpointError  # noqa: E402
from converters.nets.yolov10 import YOLOv10  # noqa: E402
from converters.nets.yolov10_export import Exported  # noqa: E402

pytestmark = [pytest.mark.convert, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Pretend the library while saving: modules of its names with empty classes; gone when the file is read."""
    made: dict[str, type] = {}
    for package in ("ultralytics", "ultralytics.nn", "ultralytics.nn.modules"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    for module, names in {
        "ultralytics.nn.tasks": ["YOLOv10DetectionModel"],
        "ultralytics.nn.modules.conv": ["Conv", "Concat"],
        "ultralytics.nn.modules.block": [
            "Attention",
            "Bottleneck",
            "C2f",
            "CIB",
            "DFL",
            "PSA",
            "RepVGGDW",
            "SCDown",
            "SPPF",
        ],
        "ultralytics.nn.modules.head": ["v10Detect"],
    }.items():
        stub = types.ModuleType(module)
        for name in names:
            made[name] = type(name, (torch.nn.Module,), {"__module__": module})
            setattr(stub, name, made[name])
        monkeypatch.setitem(sys.modules, module, stub)
    return made


def disguise(net: YOLOv10, library: dict[str, type], names: dict[int, str]) -> Any:
    """Give every module of our network the class the library would pickle."""
    for module in net.modules():
        name = type(module).__name__
        if type(module).__module__.startswith("converters.nets.yolov10"):
            module.__class__ = library[{"Detect": "v10Detect", "YOLOv10": "YOLOv10DetectionModel"}.get(name, name)]
    net.names = names  # type: ignore[attr-defined]
    return net


def seeded(scale: str = "n", classes: int = 1) -> YOLOv10:
    torch.manual_seed(0)
    net = YOLOv10(scale, classes, "silu")  # type: ignore[arg-type]
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
    return net.eval()


def saved(tmp_path: Path, library: dict[str, type], net: YOLOv10, names: dict[int, str], half: bool = False) -> Path:
    path = tmp_path / "foreign.pt"
    model = disguise(net, library, names)
    torch.save({"epoch": -1, "model": model.half() if half else model, "ema": None, "train_args": {"imgsz": 640}}, path)
    for name in [n for n in sys.modules if n.split(".")[0] == "ultralytics"]:
        del sys.modules[name]
    return path


def outputs(net: YOLOv10) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        boxes, scores = Exported(net, 96, 96)(torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1)))
    return boxes, scores


@pytest.mark.parametrize("scale", ["n", "b"])
def test_checkpoint_computes_what_it_computed_where_it_was_saved(
    scale: str, tmp_path: Path, library: dict[str, type]
) -> None:
    expected = outputs(seeded(scale))
    foreign = load_yolov10(saved(tmp_path, library, seeded(scale), {0: "face"}))
    assert (foreign.net.scale, foreign.net.act, foreign.labels) == (scale, "silu", ("face",))
    for found, wanted in zip(outputs(foreign.net), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert "ultralytics" not in sys.modules


def test_half_precision_is_read_as_it_rounds(tmp_path: Path, library: dict[str, type]) -> None:
    foreign = load_yolov10(saved(tmp_path, library, seeded(), {0: "face"}, half=True))
    torch.testing.assert_close(outputs(foreign.net)[1], outputs(seeded())[1], atol=1e-2, rtol=0)


def test_own_epsilon_of_the_norms_is_kept(tmp_path: Path, library: dict[str, type]) -> None:
    net = seeded()
    net.model[0].bn.eps = 0.5  # type: ignore[union-attr]
    assert load_yolov10(saved(tmp_path, library, net, {0: "face"})).net.model[0].bn.eps == 0.5  # type: ignore[union-attr]


def test_one_class_of_several_is_chosen_by_name(tmp_path: Path, library: dict[str, type]) -> None:
    path = saved(tmp_path, library, seeded(classes=3), {0: "dog", 1: "face", 2: "car"})
    with pytest.raises(CheckpointError, match=r"3 classes \(dog, face, car\).*--only"):
        load_yolov10(path)
    expected = outputs(seeded(classes=3))[1][..., 1:2]
    torch.testing.assert_close(outputs(load_yolov10(path, "face").net)[1], expected, atol=1e-6, rtol=0)


def test_missing_tensor_is_named(tmp_path: Path, library: dict[str, type]) -> None:
    net = seeded()
    del net.model[5].cv2.conv._parameters["weight"]  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match=r"nearest is YOLOv10n: tensor model\.5\.cv2\.conv\.weight is missing"):
        load_yolov10(saved(tmp_path, library, net, {0: "face"}))


def test_tensor_of_another_shape_is_named(tmp_path: Path, library: dict[str, type]) -> None:
    net = seeded()
    net.model[0].conv.weight = torch.nn.Parameter(torch.zeros(16, 1, 3, 3))  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match=r"model\.0\.conv\.weight is \(16, 1, 3, 3\), expected \(16, 3, 3, 3\)"):
        load_yolov10(saved(tmp_path, library, net, {0: "face"}))


def test_another_yolo_is_refused_for_its_head(tmp_path: Path, library: dict[str, type]) -> None:
    net = seeded()
    del net.model[23].one2one_cv3, net.model[23].one2one_cv2  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="lacks YOLOv10's one-to-one head"):
        load_yolov10(saved(tmp_path, library, net, {0: "face"}))


class Bomb:
    """Wants a command run when it is unpickled."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


@pytest.mark.parametrize(
    ("call", "named"),
    [
        pytest.param(os.system, r"posix\.system", id="a shell command"),
        pytest.param(eval, r"(builtins|__builtin__)\.eval", id="eval"),
        pytest.param(getattr, r"(builtins|__builtin__)\.getattr", id="getattr, the way round an allow-list"),
        pytest.param(torch.load, r"torch\.serialization\.load", id="torch's own loader"),
    ],
)
def test_pickle_that_wants_to_run_something_is_refused_by_name(
    call: Any, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = tmp_path / "ran"
    torch.save({"model": Bomb(call, f"touch {ran}")}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match=f"wants to run {named}; refused"):
        read_checkpoint(tmp_path / "bomb.pt")
    assert (
        main(["detector", str(tmp_path / "bomb.pt"), "--calibrate", str(tmp_path), "--out", str(tmp_path / "b")]) == 1
    )
    assert "wants to run" in capsys.readouterr().err
    assert not ran.exists()
    assert not (tmp_path / "b").exists()


def test_bare_pickle_is_refused_before_it_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Bomb(os.system, f"touch {tmp_path}/ran"), protocol=2))
    assert main(["detector", str(tmp_path / "old.pt"), "--calibrate", str(tmp_path), "--out", str(tmp_path / "b")]) == 1
    assert "a bare pickle" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_damaged_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(3)}, tmp_path / "cut.pt")
    content = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="not a file torch"):
        read_checkpoint(tmp_path / "cut.pt")
