"""Processes whose power can be cut: run by test_power_cut.py, which sends a line of JSON a case.

Each case is forked (importing is the slow part), leads a process group of its own, starts a box in it, and SIGKILLs the
whole group, itself included, at the n-th step it is told of.
"""

import fcntl
import json
import os
import secrets
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge.box.status import write_status
from edge.config import load_box
from edge.flash.archive import damaged
from edge.flash.manifest import read_manifest
from edge.flash.proof import Terms
from edge.flash.slots import Slots
from edge.flash.updater import Parcel, Step, Updater
from tests.edge.flash.desk import says

TERMS = Terms(start_s=3.0, hold_s=0.06, every_s=0.02)


class ForkedBox:
    """A service that is a real process: it reads the config it was started on and says how it is."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.child = 0

    def restart(self) -> None:
        self.stop()
        self.child = os.fork()
        if self.child == 0:
            config = load_box(self.slots.current / "config.yaml")
            nonce = secrets.token_hex(4)
            while True:
                write_status(config.state_dir, says(config, nonce))
                time.sleep(0.02)

    def restart_if_running(self) -> None:
        self.restart()

    def stop(self) -> None:
        if self.child:
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
            self.child = 0


def whole(folder: Path, *_: object) -> None:
    """Stand in for the check of models and cameras."""
    assert damaged(read_manifest((folder / "manifest.json").read_bytes()), folder) == []


def case(order: dict[str, Any]) -> None:
    """Apply a bundle, or recover, and die at the n-th step."""
    slots, count = Slots(Path(order["root"])), 0

    def at(step: Step, what: str) -> None:
        nonlocal count
        if step is Step.PROVE and what != slots.current_slot:
            return  # the same step, announced again and again
        count += 1
        with Path(order["trace"]).open("a") as trace:
            print(step, file=trace)
        if count == order["cut_at"]:
            os.killpg(0, signal.SIGKILL)

    service = ForkedBox(slots)
    updater = Updater(slots, service, whole, TERMS, at=at)
    if order["do"] == "recover":
        updater.recover()
    else:
        if slots.current_slot:
            service.restart()  # the box is on
        with Path(order["bundle"]).open("rb") as bundle:
            updater.apply(Parcel(bundle, {"broker": b"secret"}))


def main() -> None:
    """Serve cases until the input ends; answer each with its exit status."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            code = 1
            try:
                case(json.loads(line))
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # the box, if its power was not cut before
        # A forked box shares the updater's lock until it is really gone; one started by exec would not.
        with (Path(json.loads(line)["root"]) / "flash.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
