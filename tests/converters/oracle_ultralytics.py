"""Compare our reading of an ultralytics checkpoint with ultralytics itself; run by hand, in two environments.

It is no test: the library is licensed otherwise and its wheel wants torchvision, so it lives in an environment of its
own and hands weights and outputs over as files.

    python -m venv oracle
    oracle/bin/pip install torch opencv-python-headless pyyaml matplotlib psutil polars requests
    oracle/bin/pip install --no-deps ultralytics ultralytics-thop
    oracle/bin/python tests/converters/oracle_ultralytics.py make  FOLDER [n|s|m|b|l|x]   # where ultralytics is
    .venv/bin/python  tests/converters/oracle_ultralytics.py check FOLDER                 # here
    oracle/bin/python tests/converters/oracle_ultralytics.py export FOLDER PICTURES       # its own INT8 OpenVINO export

`make` builds a YOLOv10 from ultralytics' own yaml, with seeded weights and batch-norm statistics unlike the initial
ones, saves it as ultralytics does, and keeps its outputs for one seeded picture. `check` reads the file with our
restricted unpickler and compares; a difference above 1e-3 ends with exit code 1.

Measured with ultralytics 8.4.190 and torch 2.13 on YOLOv10 n, s, m, b and x: raw logits differ by 2.4e-6 at most, the
scores of its own top 300 by 1.2e-7, its boxes by 6e-5 px.
"""

import importlib.metadata
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIZE = 640
TOLERANCE = 1e-3


def stub_torchvision() -> None:
    """Pretend torchvision: its wheel does not fit a CPU torch, and nothing of it is used here."""
    vision, ops, transforms = (
        types.ModuleType(n) for n in ("torchvision", "torchvision.ops", "torchvision.transforms")
    )
    ops.nms = lambda *_: None  # type: ignore[attr-defined]
    vision.ops, vision.transforms, vision.__version__ = ops, transforms, "0.28.0"  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": vision, "torchvision.ops": ops, "torchvision.transforms": transforms}
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "0.28.0" if name == "torchvision" else version(name)


def seeded(net: Any) -> Any:
    """Spread weights and statistics, so that a lost norm, a wrong epsilon or a swapped branch shows."""
    torch.manual_seed(10)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.normal_(0, 0.1)
    for branches, gain in ((net.model[-1].one2one_cv2, 4), (net.model[-1].one2one_cv3, 40)):
        for branch in branches:
            branch[-1].weight.data.mul_(gain).add_(torch.randn_like(branch[-1].weight) * 0.2)
            branch[-1].bias.data.zero_()
    return net.eval()


def picture() -> torch.Tensor:
    """Return (1, 3, 640, 640) float32 in [0, 1]."""
    return torch.from_numpy(np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32))


def make(folder: Path, scale: str) -> None:
    """Build, save and run the network with ultralytics."""
    stub_torchvision()
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    cfg = yaml_model_load(f"yolov10{scale}.yaml") | {"nc": 1}
    net = seeded(DetectionModel(cfg, nc=1, verbose=False))
    net.names = {0: "face"}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": -1, "model": net, "ema": None, "train_args": {"imgsz": SIZE}}, folder / "yolov10-face.pt")
    head = net.model[-1]
    with torch.inference_mode():
        features = {}
        head.register_forward_pre_hook(lambda _, args: features.update(x=[t.clone() for t in args[0]]))
        net(picture())
        boxes = torch.cat([m(x).flatten(2) for m, x in zip(head.one2one_cv2, features["x"], strict=True)], 2)
        scores = torch.cat([m(x).flatten(2) for m, x in zip(head.one2one_cv3, features["x"], strict=True)], 2)
        net.end2end = True  # otherwise its newer versions answer with the one-to-many head
        top = net(picture())
    top = top[0] if isinstance(top, tuple) else top
    np.savez(folder / "ultralytics.npz", distances=boxes.numpy(), logits=scores.numpy(), top=top.numpy())
    print(f"{folder}/yolov10-face.pt and its outputs: top-k {tuple(top.shape)}")


def check(folder: Path) -> int:
    """Read with our own code and compare raw logits, and boxes and scores after decoding."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from converters.checkpoints.ultralytics import load_yolov10
    from converters.nets.yolov10_export import Exported

    foreign = load_yolov10(folder / "yolov10-face.pt")
    with np.load(folder / "ultralytics.npz") as saved, torch.inference_mode():
        distances, logits = foreign.net.head.one_to_one(foreign.net.features(picture()))
        worst = [float(np.abs(a.numpy() - saved[n]).max()) for a, n in ((distances, "distances"), (logits, "logits"))]
        boxes, scores = (t[0].numpy() for t in Exported(foreign.net, SIZE, SIZE)(picture()))
        top = saved["top"][0]  # (300, 6): xyxy, score, class, best first
        order = np.argsort(-scores[:, 0], kind="stable")[: len(top)]
        # Equal scores may stand in any order, so each of its boxes is looked for among ours.
        gaps = (
            np.abs(scores[order, 0] - top[:, 4]).max(),
            np.abs(boxes[order][:, None] - top[None, :100, :4]).max(2).min(0).max(),
        )
    print(f"YOLOv10{foreign.net.scale}, {foreign.net.act}, {foreign.labels}")
    print(f"largest difference: distance logits {worst[0]:.1e}, class logits {worst[1]:.1e} (allowed {TOLERANCE})")
    print(f"ultralytics' own top 300: score {gaps[0]:.1e}; boxes of the best 100: {gaps[1]:.1e} px")
    return int(max(worst) > TOLERANCE)


def export(folder: Path, pictures: Path) -> None:
    """Let ultralytics export its INT8 OpenVINO model, calibrated on a folder of pictures."""
    stub_torchvision()
    from ultralytics import YOLO

    data = folder / "calibration.yaml"
    data.write_text(f"path: {pictures.resolve()}\ntrain: images\nval: images\nnames: {{0: face}}\n")
    print(YOLO(folder / "yolov10-face.pt").export(format="openvino", int8=True, imgsz=SIZE, data=str(data), batch=1))


if __name__ == "__main__":
    verb, where = sys.argv[1], Path(sys.argv[2])
    if verb == "make":
        make(where, sys.argv[3] if len(sys.argv) > 3 else "n")
    elif verb == "export":
        export(where, Path(sys.argv[3]))
    else:
        raise SystemExit(check(where))
