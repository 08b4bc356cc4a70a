"""Training of the embedder: what it learns, and going on where it stopped."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from converters.errors import ConvertError  # noqa: E402
from converters.nets.embedder import Embedder  # noqa: E402
from converters.nets.student import Student  # noqa: E402
from converters.training.contrast import material  # noqa: E402
from converters.training.embedder import Plan, _initialise, train  # noqa: E402
from tests.converters.training.aligned import made_up  # noqa: E402
from tests.converters.training.interrupted import StopsAfter  # noqa: E402

pytestmark = pytest.mark.convert

PLAN = Plan(epochs=2, batch=8, queue=16, widths=(4, 6, 8, 10), rate=0.01)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_training_brings_two_looks_together(tmp_path: Path) -> None:
    faces = material(made_up(64))
    plan = dataclasses.replace(PLAN, epochs=60, batch=16, widths=(8, 12, 16, 24), rate=0.02)
    state = train(plan, faces, faces, tmp_path)
    assert state.epoch == 60
    assert state.history[-1]["loss"] < 0.9 * state.history[0]["loss"]
    assert state.history[-1]["auc"] > 0.7


def test_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    faces = material(made_up(16))
    whole = train(PLAN, faces, faces, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(PLAN, StopsAfter(faces, "traits", batches=3), faces, tmp_path / "parts")  # type: ignore[arg-type]
    resumed = train(PLAN, faces, faces, tmp_path / "parts")
    assert torch.equal(whole.queue, resumed.queue)
    for a, b in zip(whole.average.state_dict().values(), resumed.average.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    faces = material(made_up(16))
    short = dataclasses.replace(PLAN, epochs=1)
    train(short, faces, faces, tmp_path)
    with pytest.raises(ConvertError, match="another plan"):
        train(dataclasses.replace(short, temperature=0.2), faces, faces, tmp_path)


def test_blocks_of_a_head_are_a_start(tmp_path: Path) -> None:
    torch.manual_seed(3)
    head = Student(2, (4, 6, 8, 9))
    torch.save(head.state_dict(), tmp_path / "checkpoint.pt")
    net = Embedder((4, 6, 8, 9))
    _initialise(net, tmp_path / "checkpoint.pt")
    assert torch.equal(net.blocks[3].conv2[0].weight, head.blocks[3].conv2[0].weight)
    with pytest.raises(ConvertError, match="no block of a student with widths"):
        _initialise(Embedder((5, 6, 8, 9)), tmp_path / "checkpoint.pt")
