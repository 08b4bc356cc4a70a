"""What boxes of a simulated fleet have in common: who they are, what happens before them, what they say of themselves.

Run by fleet.py as processes: `light_boxes` (thousands of connections, an MQTT client of a few pages) and `real_boxes`
(the real Outbox and Publisher). Each line on their input is answered with a report, a line of JSON.
"""

import random
import sys
from pathlib import Path

import msgspec

from edge.wire import (
    AnyEvent,
    CameraHealth,
    Confirmed,
    Ended,
    Head,
    Health,
    ModelHealth,
    Presence,
    StageMs,
    Update,
    Vocabulary,
)

SITE = "fleet"
ASK, QUIET = b"?", b"quiet"  # orders: report; report, and let nothing happen any more
VOCABULARY = Vocabulary(
    ("door", "till"), (Head("age", ("0-19", "20-39", "40-59", "60+")), Head("gender", ("female", "male")))
)
PRESENCE_MS = 10_000
_ATTRIBUTES = (0, 1, 190, 1, 0, 230)
_CYCLE = "CUEPCPEPCE"  # three visits, one of them with an update, and as many counts


class BoxesSpec(msgspec.Struct, frozen=True):
    """One process of boxes.

    Attributes:
        first: number of the first box; names and random numbers derive from it.
        folder: for the outboxes of real boxes.
        rate_hz: events per second and box.
        outage_s: of how long an outage each box brings a backlog.
        backlog_batch: events in each batch of it.
    """

    first: int
    count: int
    port: int
    database: str
    folder: str
    rate_hz: float
    health_s: float = 60.0
    commit_s: float = 1.0
    outage_s: float = 0.0
    backlog_batch: int = 50
    connects_per_s: float = 250.0

    @property
    def backlog(self) -> int:
        """How many events each box brings: whole batches."""
        return int(self.outage_s * self.rate_hz) // self.backlog_batch * self.backlog_batch

    def backlog_ms(self, number: int, began_ms: int) -> int:
        """Return when event `number` of the outage happened; all of them before `began_ms`."""
        return began_ms - 1_000 - round((self.backlog - number) * 1000 / self.rate_hz)


class Report(msgspec.Struct):
    """What a process of boxes has done so far; sums over its boxes."""

    connected: int = 0
    lost: int = 0  # connections that ended by themselves
    events: int = 0  # that happened, the backlog among them
    messages: int = 0  # batches sent
    resent: int = 0
    acks: int = 0
    health: int = 0
    pending: int = 0  # events without an ack
    backlog: int = 0  # of these, events of the outage
    wire_bytes: int = 0  # both ways, TCP/IP headers included, as the kernel counts
    cpu_s: float = 0.0
    late_s: float = 0.0  # the latest a light box was with anything since the last report

    def __add__(self, other: "Report") -> "Report":
        both = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return Report(*(a + b for a, b in both))


def name_of(number: int) -> str:
    """Return the id of a box."""
    return f"box-{number:05d}"


def happening(number: int, t_ms: int) -> AnyEvent:
    """Return event `number` of a box, which its box can first tell of at `t_ms`."""
    camera, track, x = number % 2, number // 3, 300 + number * 37 % 3600
    match _CYCLE[number % len(_CYCLE)]:
        case "C":
            return Confirmed(camera, track, t_ms, x, 1800, 300, 400, 200)
        case "U":
            return Update(camera, track, t_ms, 60_000, x, 1800, 300, 400, 210, _ATTRIBUTES)
        case "E":
            dwell_ms = 5_000 + number * 7919 % 50_000
            return Ended(camera, track, t_ms - dwell_ms, dwell_ms, 0, x, 1700, 2000, 3900, 300, 400, 230, 80,
                         _ATTRIBUTES)  # fmt: skip
    return Presence(camera, t_ms - PRESENCE_MS, PRESENCE_MS, 3, 9_000 + number % 1000, 1)


def next_pause_s(rng: random.Random, rate_hz: float) -> float:
    """Return the time to the next event: from half to one and a half of the mean."""
    return (0.5 + rng.random()) / rate_hz


def health(stream: str, nonce: str, t_ms: int, pending: int) -> bytes:
    """Return a health message as large as a box with two cameras and three models sends it."""
    stages = StageMs(3.1, 0.1, 0.4, 0.7, 7.2, 0.2, 0.3, 1.9, 0.1)
    camera = CameraHealth("streaming", None, 25.0, 9.9, 15.1, 3, 0, 0.04, 0.11, 2, 1920, 1080, False, stages)
    model = ModelHealth("1.2.0", "CPU", "model.xml", "ok", (), "Apache-2.0")
    return msgspec.json.encode(
        Health(
            stream, nonce, t_ms, 86_400.0, dict.fromkeys(VOCABULARY.cameras, camera),
            dict.fromkeys(("yolov10n-face-320", "age", "gender"), model), 1.1, pending, 4_194_304, 0.016, 1.0,
            {"buffer": 0}, {"size": 0}, "connected", "5b1f0b52-9f3c-4f4e-8f3e-2d1a6b1f0b52", 3, 51.5, False,
            20_000_000_000, 180_000_000, 41.0, 0.8, 312.4, "synchronized", "3f9a1c0b77d2", "0.1.0",
        )
    )  # fmt: skip


def read_spec(argv: list[str]) -> BoxesSpec:
    """Return the spec that the command line names."""
    return msgspec.json.decode(Path(argv[1]).read_bytes(), type=BoxesSpec)


def say(report: Report) -> None:
    """Send a report to whoever asked for it."""
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()
