"""The short form of `make chaos`: the promise holds, and the ledger sees it broken when it is."""

import pytest

from tests.broker import MOSQUITTO
from tests.chaos import sabotage
from tests.chaos.faults import drawn, script
from tests.chaos.run import run
from tests.chaos.world import Options

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="Mosquitto is not installed")

# Outboxes so small that what the box believes to be acked is soon gone from it: no later ack can ask for it again.
SABOTAGE = {"events": 8000, "seconds": 13.0, "kills": 2, "fleets": 2, "boxes": 1, "small_bytes": 32 << 10}


def test_same_seed_draws_the_same_faults_and_another_seed_others() -> None:
    assert drawn(Options(seed=7)) == drawn(Options(seed=7))
    assert drawn(Options(seed=7)) != drawn(Options(seed=8))


def test_long_run_draws_every_fault_and_as_many_kills_as_asked() -> None:
    plan = drawn(Options(kills=100, seconds=900.0))
    assert sum(fault.what.startswith("kill") for fault in plan) == 100
    assert len({fault.what for fault in plan}) == 18


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_accepted_event_is_there_once_or_a_counted_loss_after_kills_and_faults() -> None:
    """P13, P24."""
    result = run(Options(events=6000, kills=6, seconds=17.0, fleets=2, boxes=2, seed=5))
    assert result.green, result
    assert sum(result.kills.values()) >= 4
    assert result.verdict.accepted > 2000


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mistake", "scripted"),
    [(sabotage.DELETE_ON_PUBACK, "stalled bridge"), (sabotage.ACK_BEFORE_COMMIT, "read-only")],
)
def test_ledger_turns_red_when_the_product_is_sabotaged(mistake: str, scripted: str) -> None:
    """P14, P15."""
    options = Options(**SABOTAGE, sabotage=mistake, script=scripted, all_small=True)  # type: ignore[arg-type]
    assert script(options)
    result = run(options)
    assert result.verdict.unexplained > 0, result
    assert not result.green
