"""Runs inside a booted container, as root: does things to the units, and writes down what came of it.

Called as `scenario.py UNIT`; uses nothing but the container's own Python and systemctl. What only the outside can do is
asked for by a file in /ask: `servers` (start camera and broker), `cut` (kill this machine).
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
from typing import Any

ASK, BUNDLES = Path("/ask"), Path("/bundles")
STATE, PROGRAMS = Path("/var/lib/facefleet"), Path("/opt/facefleet")
PATIENCE_S = 60.0
OUTAGE_S = 12.0  # longer than the watchdog (see test_boot.py)

Told = dict[str, Any]


def show(unit: str, *names: str) -> dict[str, str]:
    out = subprocess.run(["systemctl", "show", unit, "-p", ",".join(names)], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in out.stdout.splitlines())


def wait(what: str, probe: Callable[[], object], timeout_s: float = PATIENCE_S) -> float:
    began_s = time.monotonic()
    while not probe():
        if time.monotonic() - began_s > timeout_s:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.05)
    return round(time.monotonic() - began_s, 1)


def ask(what: str) -> None:
    """Ask the outside for something, and wait until it is done."""
    (ASK / what).touch()
    wait(what, lambda: not (ASK / what).exists())


def main_pid(unit: str) -> int:
    """Return the process of a unit that is up, 0 while there is none."""
    said = show(unit, "MainPID", "ActiveState")
    return int(said["MainPID"]) if said["ActiveState"] == "active" else 0


def read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def live_and_die(unit: str, told: Told) -> None:
    """Start, live through an outage of everything around, be killed, hang."""
    told["started_s"] = wait("started", lambda: main_pid(unit))
    first = main_pid(unit)
    status = Path(f"/proc/{first}/status").read_text().splitlines()
    told["process"] = {key: value.split() for key, _, value in (line.partition(":") for line in status)}
    told["status_text"] = show(unit, "StatusText")["StatusText"]
    told["core_limit"] = show(unit, "LimitCORE")["LimitCORE"]

    time.sleep(OUTAGE_S)  # it is fed, camera, broker and database being away
    told["lived_through"] = main_pid(unit) == first

    os.kill(first, signal.SIGKILL)
    told["after_kill_s"] = wait("restarted after SIGKILL", lambda: main_pid(unit) not in (0, first))

    second = main_pid(unit)
    os.kill(second, signal.SIGSTOP)
    told["after_hang_s"] = wait("restarted after SIGSTOP", lambda: main_pid(unit) not in (0, second))
    told["restarts"] = int(show(unit, "NRestarts")["NRestarts"])


def stop(unit: str, told: Told) -> None:
    last = main_pid(unit)
    subprocess.run(["systemctl", "stop", unit], check=True)
    told["stopped"] = show(unit, "Result")["Result"]
    told["gone"] = not Path(f"/proc/{last}").exists()


def spool(name: str) -> None:
    """Put a bundle where the path unit sees it."""
    shutil.copy(BUNDLES / f"{name}.ffbundle", STATE / "spool/part")
    (STATE / "spool/part").rename(STATE / f"spool/{name}.ffbundle")


def flash(name: str) -> dict[str, Any]:
    """Let a bundle be taken; return how it ended, and what runs then."""
    (STATE / "result.json").unlink(missing_ok=True)
    before = main_pid("facefleet-edge.service")
    spool(name)
    took_s = wait(f"{name} tried", lambda: read(STATE / "result.json"), 2 * PATIENCE_S)
    result = read(STATE / "result.json")
    wait("the updater has ended", lambda: show("facefleet-spool.service", "ActiveState")["ActiveState"] == "inactive")
    wait(f"{name} gone", lambda: not (STATE / f"spool/{name}.ffbundle").exists())
    wait("the box is up again", lambda: main_pid("facefleet-edge.service"))
    return {
        "outcome": result.get("outcome"), "reason": result.get("reason", ""), "took_s": took_s,
        "restarted": main_pid("facefleet-edge.service") != before, **what_runs(),
    }  # fmt: skip


def what_runs() -> dict[str, Any]:
    """Say which config and program lie ready, and which process runs."""
    pid = main_pid("facefleet-edge.service")
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if pid else [b""]
    version = subprocess.run(["facefleet-edge", "--version"], capture_output=True, text=True, check=False)
    return {
        "slot": Path(os.readlink(STATE / "current")).name,
        "program": Path(os.readlink(PROGRAMS / "current")).name,
        "proven": Path(os.readlink(PROGRAMS / "proven")).name,
        "process": command[0].decode(),
        "version": (version.stdout + version.stderr).strip(),
        "kept": sorted(p.name for p in (PROGRAMS / "slots").iterdir()),
        "left": sorted(p.name for p in (STATE / "spool").iterdir()),
    }


def cut(name: str, root: Path, told: Told) -> None:
    """Have this machine killed while a bundle is on trial."""
    spool(name)
    wait(f"{name} on trial", lambda: read(root / "flash.json").get("phase") == "trial", 2 * PATIENCE_S)
    wait("it is current", lambda: os.readlink(root / "current").endswith(read(root / "flash.json")["trial"]))
    told["cut"] = what_runs()
    write(told)
    ask("cut")
    raise AssertionError("the power is still on")


def journal_fields(event: str) -> dict[str, Any]:
    command = ["journalctl", "-b", "-u", "facefleet-edge", f"EVENT={event}", "-o", "json", "-n", "1"]
    out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return json.loads(out) if out.strip() else {}


def bridge(unit: str, told: Told) -> None:
    live_and_die(unit, told)
    stop(unit, told)


def box_1(unit: str, told: Told) -> None:
    """First boot: the whole life of a box, and a power cut in the middle of a flash."""
    live_and_die(unit, told)
    third = main_pid(unit)
    told["junk"] = flash("junk")
    told["undisturbed"] = main_pid(unit) == third
    ask("servers")
    told["good"] = flash("good")
    told["bad"] = flash("bad")
    told["program"] = flash("program")
    told["bad_program"] = flash("bad-program")
    told["fields"] = journal_fields("broker_connected")
    cut("good-2", STATE, told)


def box_2(unit: str, told: Told) -> None:
    """Second boot: the config from before, then a power cut in the middle of a program that does not even start."""
    told["started_s"] = wait("started", lambda: main_pid(unit))
    told["recovered"] = what_runs() | read(STATE / "result.json")
    cut("hanging-program", PROGRAMS, told)


def box_3(unit: str, told: Told) -> None:
    """Third boot: the program from before."""
    told["started_s"] = wait("started", lambda: main_pid(unit))
    told["recovered"] = what_runs() | read(PROGRAMS / "result.json")
    told["settled"] = read(PROGRAMS / "flash.json").get("phase", "settled")
    stop(unit, told)
    done = subprocess.run(["facefleet-edge", "reset", "--discard-events"], check=False)
    told["reset"] = {
        "code": done.returncode,
        "left": sorted(p.name for p in STATE.iterdir()),
        "active": show(unit, "ActiveState")["ActiveState"],
        "program": Path(os.readlink(PROGRAMS / "current")).name,
    }


def write(told: Told) -> None:
    """Write the result of this boot where the outside finds it; a cut may follow."""
    aside = Path("/result.new")
    aside.write_text(json.dumps(told))
    aside.rename("/result.json")


def main(unit: str) -> None:
    """Always write a result and power the container off."""
    boots = Path("/boots")
    boot = int(boots.read_text()) + 1 if boots.exists() else 1
    boots.write_text(str(boot))
    acts = {"facefleet-bridge.service": [bridge], "facefleet-edge.service": [box_1, box_2, box_3]}[unit]
    told: Told = {}
    try:
        acts[boot - 1](unit, told)
    except Exception as error:
        told["error"] = repr(error)
    with contextlib.suppress(OSError):
        journal = subprocess.run(
            ["journalctl", "-b", "-u", "facefleet-*", "--no-pager", "-o", "cat"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        told["journal"] = journal.stdout[-8000:]
        units = subprocess.run(
            ["systemctl", "--failed", "--no-legend", "--plain"], capture_output=True, text=True, check=False
        )
        told["failed"] = [line.split()[0] for line in units.stdout.splitlines() if "facefleet" in line]
    write(told)
    subprocess.run(["systemctl", "poweroff", "--no-block"], check=False)


if __name__ == "__main__":
    main(sys.argv[1])
