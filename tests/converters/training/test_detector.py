"""Training learns, goes on where it stopped, and follows the clock."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")

from converters.cli import main  # noqa: E402
from converters.data.detection import Sample  # noqa: E402
from converters.nets.yolov10 import YOLOv10, load_weights  # noqa: E402
from converters.training.detector import Plan, Trainer, learning_rate  # noqa: E402
from tests.bridge.box import wait_until  # noqa: E402

pytestmark = pytest.mark.convert

TINY = Plan(minutes=10.0, phases=((1.0, (96,)),), batch=8, warmup=0.0, epoch_images=16, validate_every=0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of a small network on a busy machine wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def eight_pictures() -> list[Sample]:
    """Noise with one bright disc each: something to find, nothing to read."""
    rng = np.random.default_rng(0)
    samples = []
    for k in range(8):
        image = rng.integers(0, 90, (96, 96, 3), np.uint8)
        x, y = rng.integers(5, 50, 2)
        image[y : y + 40, x : x + 40] = (200, 220, 240)
        box = np.array([[x, y, x + 40, y + 40]], np.float32)
        samples.append(Sample(f"face_mask/{k}", image, box, "face_mask", ""))
    return samples


def test_loss_falls_on_eight_pictures() -> None:
    torch.manual_seed(0)
    trainer = Trainer(YOLOv10(), eight_pictures(), TINY)
    losses = [trainer.train_step() for _ in range(20)]
    assert np.mean(losses[-4:]) < 0.65 * np.mean(losses[:4])


def test_interrupted_training_goes_on_at_its_step_with_its_weights(tmp_path: Path) -> None:
    first = Trainer(YOLOv10(), eight_pictures(), TINY, tmp_path)
    next(first.epochs())
    second = Trainer(YOLOv10(), eight_pictures(), TINY, tmp_path)
    assert second.resume()
    assert (second.step, second.epoch, second.elapsed_s) == (first.step, 1, first.elapsed_s)
    for a, b in zip(first.net.state_dict().values(), second.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    loaded = load_weights(tmp_path / "checkpoint.pt").state_dict()
    for name, value in first.average.net.state_dict().items():
        assert torch.equal(loaded[name], value)


def test_average_follows_the_weights() -> None:
    trainer = Trainer(YOLOv10(), eight_pictures(), TINY)
    before = trainer.average.net.model[0].conv.weight.clone()
    trainer.train_step()
    after, trained = trainer.average.net.model[0].conv.weight, trainer.net.model[0].conv.weight.detach()
    assert not torch.equal(after, before)
    assert float((after - trained).abs().max()) < float((before - trained).abs().max())


def test_training_ends_when_its_minutes_are_over() -> None:
    trainer = Trainer(YOLOv10(), eight_pictures(), Plan(minutes=0.01, phases=((1.0, (64,)),), batch=2))
    assert len(list(trainer.epochs())) >= 1
    assert trainer.progress == 1


def test_learning_rate_warms_up_and_decays_to_its_end() -> None:
    plan = Plan(lr=1.0, lr_end=0.02, warmup=0.1)
    assert learning_rate(plan, 0.05) == pytest.approx(0.5)
    assert learning_rate(plan, 0.1) == pytest.approx(1.0)
    assert learning_rate(plan, 1.0) == pytest.approx(0.02)
    assert all(math.isfinite(learning_rate(plan, p)) for p in np.linspace(0, 1, 11))


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--sizes", "300"], "must be a multiple of 32"), (["--batch", "15"], "does not divide among --processes 2")],
)
def test_plans_that_cannot_run_are_refused(
    option: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train-detector", "--data", str(tmp_path), "--work", str(tmp_path / "run"), *option]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_without_data_is_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train-detector", "--data", str(tmp_path / "nowhere"), "--work", str(tmp_path / "run")]) == 1
    assert "nowhere: no folder detection/ here" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


PARENT = """
import time
from multiprocessing import get_context
from converters.training.detector import end_with_parent

def work(path):
    end_with_parent()
    open(path, "w").write(str(__import__("os").getpid()))
    time.sleep(600)

if __name__ == "__main__":
    import sys
    get_context("spawn").Process(target=work, args=(sys.argv[1],)).start()
    time.sleep(600)
"""


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    script, note = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen([sys.executable, str(script), str(note)], env=environment)
    try:
        wait_until(lambda: note.exists() and note.read_text() != "", 60, "the child runs")
        child = int(note.read_text())
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not Path(f"/proc/{child}/fd/0").exists(), 30, "its end")
