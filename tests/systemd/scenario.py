"""Runs inside a booted container, as root: starts, kills and stops a unit's process, and writes down what came of it.

Called as `scenario.py UNIT`; uses nothing but the container's own Python and systemctl.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULT = Path("/result.json")
SPOOL = Path("/var/lib/facefleet/spool")
PATIENCE_S = 60.0


def show(unit: str, *names: str) -> dict[str, str]:
    out = subprocess.run(["systemctl", "show", unit, "-p", ",".join(names)], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in out.stdout.splitlines())


def wait(what: str, probe: Callable[[], object], timeout_s: float = PATIENCE_S) -> float:
    began_s = time.monotonic()
    while not probe():
        if time.monotonic() - began_s > timeout_s:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.1)
    return round(time.monotonic() - began_s, 1)


def main_pid(unit: str) -> int:
    """Return the process of a unit that is up, 0 while there is none."""
    said = show(unit, "MainPID", "ActiveState")
    return int(said["MainPID"]) if said["ActiveState"] == "active" else 0


def run(unit: str, told: dict[str, object]) -> None:
    told["started_s"] = wait("started", lambda: main_pid(unit))
    first = main_pid(unit)
    status = Path(f"/proc/{first}/status").read_text().splitlines()
    told["process"] = {key: value.split() for key, _, value in (line.partition(":") for line in status)}
    told["status_text"] = show(unit, "StatusText")["StatusText"]
    told["core_limit"] = show(unit, "LimitCORE")["LimitCORE"]

    time.sleep(12)  # longer than its watchdog (see test_boot.py): it is fed, camera, broker and database being away
    told["lived_through"] = main_pid(unit) == first

    os.kill(first, signal.SIGKILL)
    told["after_kill_s"] = wait("restarted after SIGKILL", lambda: main_pid(unit) not in (0, first))

    second = main_pid(unit)
    os.kill(second, signal.SIGSTOP)
    told["after_hang_s"] = wait("restarted after SIGSTOP", lambda: main_pid(unit) not in (0, second))
    told["restarts"] = int(show(unit, "NRestarts")["NRestarts"])

    if SPOOL.is_dir():
        aside = SPOOL / "junk.part"
        aside.write_bytes(b"no bundle at all")
        aside.rename(SPOOL / "junk.ffbundle")
        told["spool_s"] = wait("spool emptied", lambda: not (SPOOL / "junk.ffbundle").exists())
        told["refused"] = (SPOOL.parent / "result.json").read_text()
        before, slot = main_pid(unit), os.readlink(SPOOL.parent / "current")
        shutil.copy("/second.ffbundle", SPOOL / "second.part")
        (SPOOL / "second.part").rename(SPOOL / "second.ffbundle")
        wait("second bundle tried", lambda: not (SPOOL / "second.ffbundle").exists(), 2 * PATIENCE_S)
        told["rolled_back"] = (SPOOL.parent / "result.json").read_text()
        told["same_slot"] = os.readlink(SPOOL.parent / "current") == slot
        told["restarted_for_it"] = main_pid(unit) not in (0, before)

    third = main_pid(unit)
    told["undisturbed"] = third not in (0, second)
    subprocess.run(["systemctl", "stop", unit], check=True)
    told["stopped"] = show(unit, "Result")["Result"]
    told["gone"] = not Path(f"/proc/{third}").exists()


def main(unit: str) -> None:
    """Always write a result and power the container off."""
    told: dict[str, object] = {}
    try:
        run(unit, told)
    except Exception as error:
        told["error"] = repr(error)
    with contextlib.suppress(OSError):
        journal = subprocess.run(
            ["journalctl", "-b", "-u", unit, "--no-pager", "-o", "cat"], capture_output=True, text=True, check=False
        )
        told["journal"] = journal.stdout[-6000:]
        units = subprocess.run(
            ["systemctl", "--failed", "--no-legend", "--plain"], capture_output=True, text=True, check=False
        )
        told["failed"] = [line.split()[0] for line in units.stdout.splitlines() if "facefleet" in line]
    RESULT.write_text(json.dumps(told))
    subprocess.run(["systemctl", "poweroff", "--no-block"], check=False)


if __name__ == "__main__":
    main(sys.argv[1])
