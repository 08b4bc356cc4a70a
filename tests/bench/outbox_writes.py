"""What the outbox writes to the card in a day: `python -m tests.bench.outbox_writes [folder on a real disk]`.

A visit's events at one a second, acked each second, in simulated time; the kernel's count of bytes written by this
process (/proc/self/io, write_bytes) is extrapolated to a day. The folder must not be a tmpfs.
"""

import random
import shutil
import sys
import tempfile
from pathlib import Path
from uuid import UUID

from edge.publish.clock import MediaClock
from edge.publish.outbox import Outbox
from edge.wire import Covered
from tests.bench.bytes import VOCABULARY, mixture

DATABASE = UUID(int=1)


def written_bytes() -> int:
    """Return what this process has caused to be written to disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes:")).split()[1])


def day_bytes(folder: Path, commit_s: int, *, seconds: int = 3000, acked: bool = True) -> float:
    """Return the bytes a day at one event a second with a commit each `commit_s` seconds."""
    room = Path(tempfile.mkdtemp(dir=folder))
    outbox = Outbox(
        room / "outbox.db", stream=1, vocabulary=VOCABULARY, clock=MediaClock(1_790_000_000_000), reserve_bytes=0
    )
    outbox.use(DATABASE)
    outbox.gather = not acked
    events = mixture(random.Random(1), seconds)
    began = written_bytes()
    for second in range(0, seconds, commit_s):
        outbox.append(events[second : second + commit_s])
        outbox.commit(float(second))
        if acked:
            outbox.cover(DATABASE, [Covered(1, max(0, outbox.state.accepted - commit_s))], second + 0.5)
    total = written_bytes() - began
    outbox.close(float(seconds))
    shutil.rmtree(room)
    return total / seconds * 86_400


def main() -> int:
    """Print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir())
    print("| commit each | acked each second | written a day |\n|---|---|---|")
    for commit_s in (1, 10):
        for acked in (True, False):
            total = day_bytes(folder, commit_s, acked=acked)
            print(f"| {commit_s} s | {'yes' if acked else 'no (outage)'} | {total / 1e6:.0f} MB |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
