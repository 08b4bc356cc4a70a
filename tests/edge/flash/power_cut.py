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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge.box.status import BoxStatus, write_status
from edge.config import LoadedConfig, load_box
from edge.flash.archive import damaged
from edge.flash.manifest import read_manifest
from edge.flash.proof import Terms
from edge.flash.slots import Slots
from edge.flash.software import SoftwareUpdater
from edge.flash.updater import Parcel, Step, Updater
from edge.install.program import Programs
from tests.edge.flash.desk import says
from tests.edge.flash.programs import how_it_is

PATIENCE_S = 3.0  # what is bad stays bad: such cases name less


class ForkedBox:
    """A service that is a real process: it reads the config it was started on and says how it is."""

    def __init__(self, slots: Slots, says: Callable[[LoadedConfig, str], BoxStatus] = says) -> None:
        self.slots, self.says = slots, says
        self.child = 0

    def restart(self) -> None:
        self.stop()
        self.child = os.fork()
        if self.child == 0:
            config = load_box(self.slots.current / "config.yaml")
            nonce = secrets.token_hex(4)
            while True:
                write_status(config.state_dir, self.says(config, nonce))
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


def imports(folder: Path, *_: object) -> None:
    """Stand in for the check with the new code: it is whole and can be imported."""
    packages = next(folder.glob("lib/*/site-packages"))
    compile((packages / "edge/__init__.py").read_text(), "edge", "exec")
    assert (packages / "tinylib/data.bin").read_bytes() == b"x" * 100


def case(order: dict[str, Any]) -> None:
    """Apply a bundle, or recover, and die at the n-th step.

    With `programs` the folder of programs, and `root` still the box's state.
    """
    slots, count = Slots(Path(order["root"])), 0
    programs = Programs(Path(order["programs"])) if order.get("programs") else None

    def at(step: Step, what: str) -> None:
        nonlocal count
        if step is Step.PROVE and what != (programs or slots).current_slot:
            return  # the same step, announced again and again
        count += 1
        with Path(order["trace"]).open("a") as trace:
            print(step, file=trace)
        if count == order["cut_at"]:
            os.killpg(0, signal.SIGKILL)

    terms = Terms(start_s=order["patience_s"] or PATIENCE_S, hold_s=0.06, every_s=0.02)
    updater: Updater
    if programs is not None:
        service = ForkedBox(slots, lambda config, nonce: how_it_is(programs, config, nonce))
        updater = SoftwareUpdater(programs, service, None, terms, at=at, state=slots, try_out=imports)
    else:
        service = ForkedBox(slots)
        updater = Updater(slots, service, whole, terms, at=at)
    if order["do"] == "recover":
        updater.recover()
    else:
        if slots.current_slot:
            service.restart()  # the box is on
        with Path(order["bundle"]).open("rb") as bundle:
            updater.apply(Parcel(bundle, {"broker": b"secret"}))


def main() -> None:
    """Serve cases until the input ends; answer each with its exit status."""
    os.sync = lambda: None  # a SIGKILL takes no page cache along, and others write to this machine's disks
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
        order = json.loads(line)
        for root in filter(None, (order["root"], order.get("programs"))):
            with (Path(root) / "flash.lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
