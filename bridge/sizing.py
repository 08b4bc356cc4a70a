"""How large a centre must be for a fleet: messages, cores, bytes, drain time. Pure; docs/SCALE.md shows its table.

`python -m bridge.sizing` prints the table for 10, 1,000 and 100,000 boxes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp

from bridge.subscriber import GATHER_S, MOST_MESSAGES

DAY_S = 86_400.0
HOUR_S = 3_600.0
BACKLOG_BATCH = 50  # events in a message after an outage
LULL_S = 0.015  # without news that ends its wait, with the transaction before, in which news gathers too; measured
BUSY = 0.5  # how much of a core may be spoken for: the rest is for vacuum, dashboards and the drain after an outage


@dataclass(frozen=True, slots=True)
class Costs:
    """What one of each costs. Measured; docs/SCALE.md says on what and how to measure your own.

    A message costs by itself, and each event in it on top: live boxes send small batches, a backlog comes in full ones.
    A round is a transaction, however few messages it takes.
    """

    bridge_round_us: float
    bridge_message_us: float
    bridge_event_us: float
    bridge_health_us: float
    database_round_us: float
    database_message_us: float
    database_event_us: float
    database_health_us: float
    broker_message_us: float
    event_bytes: float  # on the wire, in a batch of 50
    message_bytes: float  # envelope, topic, PUBACK, headers of MQTT, TCP and IP, TCP's own acks, both ways
    ack_bytes: float  # the same
    health_bytes: float  # the same, and its echo to the box, which listens for a twin
    stored_event_bytes: float  # tables, indices, ledger, rollups
    stored_health_bytes: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet as its operator thinks of it."""

    boxes: int
    events_per_s: float = 0.5  # per box, by day
    batch_s: float = 1.0  # a box commits, and sends, at most so often
    health_s: float = 60.0
    open_hours: float = 12.0  # a day, of people passing by
    retention_days: int = 90


@dataclass(frozen=True, slots=True)
class Size:
    """What a fleet asks of its centre."""

    events_per_s: float
    messages_per_s: float
    acks_per_s: float
    health_per_s: float
    rounds_per_s: float
    bridge_cores: float
    database_cores: float
    broker_cores: float
    bridges: int
    wire_mbit_per_s: float
    rows_per_day: float
    disk_gb: float  # at the end of the retention
    drain_s: float  # of an hour's backlog, while live events go on


def size(fleet: Fleet, costs: Costs) -> Size:
    """Return what a fleet asks of its centre.

    Acks follow the messages, at most one a second per box. A bridge has one writer, which waits for its PostgreSQL
    backend: their times add up, and one second of both together is all a bridge has in a second.
    """
    events = fleet.boxes * fleet.events_per_s
    # Events that fall into one commit go as one batch: at low rates nearly each event is a message of its own.
    messages = fleet.boxes * min(fleet.events_per_s, 1.0 / fleet.batch_s)
    acks = fleet.boxes * min(fleet.events_per_s, 1.0 / fleet.batch_s, 1.0)
    health = fleet.boxes / fleet.health_s
    work = [(messages, costs.bridge_message_us + costs.database_message_us),
            (events, costs.bridge_event_us + costs.database_event_us),
            (health, costs.bridge_health_us + costs.database_health_us)]  # fmt: skip
    bridges, round_us = 1, costs.bridge_round_us + costs.database_round_us
    while _cores(*work, (rounds := bridges * rounds_per_s(messages / bridges, health / bridges, costs), round_us)) > (
        BUSY * bridges
    ):
        bridges += 1
    bridge = _cores(
        (rounds, costs.bridge_round_us), (messages, costs.bridge_message_us), (events, costs.bridge_event_us),
        (health, costs.bridge_health_us),
    )  # fmt: skip
    database = _cores(
        (rounds, costs.database_round_us), (messages, costs.database_message_us), (events, costs.database_event_us),
        (health, costs.database_health_us),
    )  # fmt: skip
    broker = _cores((messages + acks + health, costs.broker_message_us))
    wire = (
        messages * costs.message_bytes
        + events * costs.event_bytes
        + acks * costs.ack_bytes
        + health * costs.health_bytes
    )
    rows = events * fleet.open_hours * HOUR_S
    stored = rows * costs.stored_event_bytes + health * DAY_S * costs.stored_health_bytes
    per_message_us = costs.bridge_message_us + costs.database_message_us + round_us / MOST_MESSAGES
    backlog_us = per_message_us / BACKLOG_BATCH + costs.bridge_event_us + costs.database_event_us
    spare = bridges - bridge - database
    return Size(
        events, messages, acks, health, rounds, bridge, database, broker, bridges, wire * 8 / 1e6, rows,
        stored * fleet.retention_days / 1e9, events * HOUR_S * backlog_us / 1e6 / spare,
    )  # fmt: skip


def rounds_per_s(messages_per_s: float, health_per_s: float, costs: Costs) -> float:
    """Return how many transactions one bridge makes of what comes.

    It waits for more while more comes, but not for long: a round has the messages up to the first lull, or those of
    the longest wait and of the work on the round before. Health that has come meanwhile is a transaction of its own.
    """
    message_us = costs.bridge_message_us + costs.database_message_us
    round_us = costs.bridge_round_us + costs.database_round_us
    turn_s = (GATHER_S + 2e-6 * round_us) / (1.0 - min(0.9, messages_per_s * message_us / 1e6))
    in_a_round = min(exp(min(messages_per_s * LULL_S, 50.0)), 1.0 + messages_per_s * turn_s)
    return messages_per_s / in_a_round + health_per_s / (1.0 + health_per_s * turn_s)


def _cores(*loads: tuple[float, float]) -> float:
    return sum(per_s * us for per_s, us in loads) / 1e6


MEASURED = Costs(
    bridge_round_us=2800.0, bridge_message_us=180.0, bridge_event_us=5.5, bridge_health_us=300.0,
    database_round_us=2300.0, database_message_us=40.0, database_event_us=9.8, database_health_us=250.0,
    broker_message_us=39.0,
    event_bytes=37.0, message_bytes=300.0, ack_bytes=240.0, health_bytes=3300.0,
    stored_event_bytes=530.0, stored_health_bytes=1215.0,
)  # fmt: skip
"""Of simulated fleets, `python -m tests.bench.fleet`, on two shared cores of a server CPU: docs/SCALE.md."""


def table(sizes: dict[Fleet, Size]) -> str:
    """Return the table of docs/SCALE.md, Markdown."""
    rows: tuple[tuple[str, Callable[[Size], str]], ...] = (
        ("events / s", lambda s: f"{s.events_per_s:,.0f}"),
        ("transactions / s", lambda s: f"{s.rounds_per_s:,.0f}"),
        ("messages + acks + health / s", lambda s: f"{s.messages_per_s + s.acks_per_s + s.health_per_s:,.0f}"),
        ("bridge, cores", lambda s: f"{s.bridge_cores:.2f}"),
        ("PostgreSQL, cores", lambda s: f"{s.database_cores:.2f}"),
        ("broker, cores", lambda s: f"{s.broker_cores:.2f}"),
        ("bridges", lambda s: f"{s.bridges:,}"),
        ("wire, Mbit/s", lambda s: f"{s.wire_mbit_per_s:,.2f}"),
        ("events a day", lambda s: f"{s.rows_per_day:,.0f}"),
        ("disk after the retention, GB", lambda s: f"{s.disk_gb:,.1f}"),
        ("an hour's backlog drains in, s", lambda s: f"{s.drain_s:,.0f}"),
    )
    head = "| boxes | " + " | ".join(f"{fleet.boxes:,}" for fleet in sizes) + " |"
    lines = [f"| {name} | " + " | ".join(map(show, sizes.values())) + " |" for name, show in rows]
    return "\n".join([head, "|---|" + "---|" * len(sizes), *lines])


if __name__ == "__main__":
    print(table({fleet: size(fleet, MEASURED) for fleet in (Fleet(10), Fleet(1_000), Fleet(100_000))}))
