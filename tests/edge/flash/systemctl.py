"""A stand-in for `systemctl` on a box of a test: keeps the real `facefleet-edge run` alive, as the unit would.

Called as `systemctl.py ROOT restart UNIT` (and so on) from a two-line script named systemctl on the box's PATH.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from edge.box.status import boottime_s, read_status

READY_S = 60.0


def main(root: Path, words: list[str]) -> int:
    """Do what a few verbs of systemctl do; READY is the first status, as Type=notify has it."""
    pid_file, verb = root.parent / "unit.pid", next(word for word in words if not word.startswith("-"))
    running = alive(pid_file)
    if verb == "try-restart" and not running:
        return 0
    if running:
        os.kill(running, signal.SIGTERM)
        for _ in range(100):
            if not alive(pid_file):
                break
            time.sleep(0.1)
        else:
            os.kill(running, signal.SIGKILL)
    if verb == "stop":
        return 0
    started_s = boottime_s()
    program = os.environ.get("FACEFLEET_TEST_PROGRAM")  # the checkout's code, unless a test flashes programs too
    command = [
        *([program] if program else [sys.executable, "-m", "edge.cli"]),
        "run",
        str(root / "current" / "config.yaml"),
    ]
    with (root.parent / "unit.log").open("ab") as log:
        unit = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    pid_file.write_text(str(unit.pid))
    while boottime_s() - started_s < READY_S:
        if unit.poll() is not None:
            print(f"unit ended with {unit.returncode}", file=sys.stderr)
            return 1
        if (status := read_status(root)) is not None and status.pid == unit.pid:
            return 0
        time.sleep(0.1)
    return 1


def alive(pid_file: Path) -> int:
    """Return the pid of the running unit, 0 when there is none."""
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return pid if state != "Z" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
