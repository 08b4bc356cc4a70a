"""A kept state is whole, and is taken up again."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from converters.training.schedule import optimizer_of  # noqa: E402
from converters.training.state import State  # noqa: E402

pytestmark = pytest.mark.convert


def state() -> State[torch.nn.Linear, float]:
    net, average = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    return State(net, average, optimizer_of(net, 0.1), "a plan")


def stepped() -> State[torch.nn.Linear, float]:
    run = state()
    run.learn(run.net(torch.ones(4, 3)).square().sum(), 0.1, 0.5, clip=1.0, decay=0.5)
    run.epoch, run.spent_s, run.history = 3, 4.5, [0.25]
    return run


def test_a_state_is_taken_up_as_it_was_kept(tmp_path: Path) -> None:
    kept, resumed = stepped(), state()
    kept.keep(tmp_path / "state.pt")
    resumed.resume(tmp_path / "state.pt")
    assert torch.equal(resumed.net.weight, kept.net.weight)
    assert torch.equal(resumed.average.weight, kept.average.weight)
    assert (resumed.epoch, resumed.spent_s, resumed.history) == (3, 4.5, [0.25])
    assert resumed.optimizer.state_dict()["state"].keys() == kept.optimizer.state_dict()["state"].keys()
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_state_of_a_student_kept_under_its_old_name_is_taken_up(tmp_path: Path) -> None:
    kept, resumed = stepped(), state()
    saved = kept.kept()
    saved["student"] = saved.pop("net")
    torch.save(saved, tmp_path / "state.pt")
    resumed.resume(tmp_path / "state.pt")
    assert torch.equal(resumed.net.weight, kept.net.weight)
