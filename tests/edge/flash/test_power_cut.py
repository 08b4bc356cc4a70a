"""The power is cut at every step of an update and of the recovery after it: old or new, never neither."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.flash.archive import damaged
from edge.flash.manifest import read_manifest
from edge.flash.signing import write_trust
from edge.flash.slots import Slots
from edge.flash.updater import Step
from edge.install.program import Programs
from edge.install.wheels import packages_in
from tests.edge.flash.desk import BAD_PORT, Box, Desk
from tests.edge.flash.programs import BAD, ProgramBox

pytestmark = pytest.mark.timeout(300)  # some hundred processes and many more fsyncs
ROOT = Path(__file__).resolve().parents[3]
SECRET: dict[str, Any] = {"user": "box", "password": {"credential": "broker"}}
KILLED = -signal.SIGKILL


class Cutter:
    """Runs updates in processes that die where they are told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trace = folder / "trace"
        command = [sys.executable, "-m", "tests.edge.flash.power_cut"]
        self.errors = (folder / "errors").open("w")
        self.patience_s = 0.0
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd=ROOT
        )

    def run(
        self, do: str, root: Path, bundle: Path | None = None, cut_at: int = 0, programs: Path | None = None
    ) -> int:
        """Run one case; return its exit code, negative for a signal."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.trace.unlink(missing_ok=True)
        order: dict[str, Any] = {
            "do": do,
            "root": str(root),
            "bundle": str(bundle),
            "cut_at": cut_at,
            "trace": str(self.trace),
        }
        order |= {"programs": str(programs) if programs else "", "patience_s": self.patience_s}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def steps(self) -> list[str]:
        """Return the steps of the last case."""
        return self.trace.read_text().split("\n")[:-1]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()
        self.errors.close()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cutter]:
    made = Cutter(tmp_path_factory.mktemp("cutter"))
    yield made
    made.close()


@pytest.fixture
def cutter(processes: Cutter) -> Cutter:
    processes.patience_s = 0.0
    return processes


@pytest.fixture
def flashed(desk: Desk, tmp_path: Path) -> Path:
    """Return a root with a good config 5 and its secret, and 4 before it."""
    desk.secret("broker", "secret")
    box = Box(tmp_path / "template")
    box.updater.apply(desk.parcel(4, mqtt=SECRET))
    box.updater.apply(desk.parcel(5, mqtt=SECRET))
    return box.root


def whole(slots: Slots) -> int:
    """Return the counter of what runs, after looking at every byte of it."""
    slot = slots.current.resolve(strict=True)
    manifest = read_manifest((slot / "manifest.json").read_bytes())
    assert damaged(manifest, slot) == []
    assert (slot / "credentials" / "broker").read_bytes() == b"secret"
    assert str(manifest.counter) == slots.current_slot
    return manifest.counter


def fresh(template: Path | None, tmp_path: Path, name: str) -> Slots:
    root = tmp_path / name
    if template is not None:
        shutil.copytree(template, root, symlinks=True)
    return Slots(root)


@pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])
def test_a_cut_at_every_step_leaves_the_old_or_the_new(
    good: bool, desk: Desk, flashed: Path, tmp_path: Path, cutter: Cutter
) -> None:
    bundle = desk.made(6, mqtt=SECRET if good else {**SECRET, "port": BAD_PORT}).path
    cutter.patience_s = 0.0 if good else 0.5
    slots = fresh(flashed, tmp_path, "uncut")
    assert cutter.run("apply", slots.root, bundle) == 0, (cutter.folder / "errors").read_text()
    steps = cutter.steps()
    assert whole(slots) == (6 if good else 5)
    expected = set(Step) - {Step.ADOPT, Step.TRUST, Step.BUILD, Step.PROVEN}
    expected -= {Step.BACK, Step.SWAP_BACK, Step.RESTART_BACK, Step.SETTLE} if good else {Step.COMMIT, Step.PREVIOUS}
    assert {*steps} == {str(step) for step in expected}

    seen = set()
    for cut_at, step in enumerate(steps, 1):
        slots = fresh(flashed, tmp_path, f"cut-{cut_at}")
        assert cutter.run("apply", slots.root, bundle, cut_at) == KILLED, step
        assert whole(slots) in (5, 6), step  # the service may start before anybody recovers
        assert cutter.run("recover", slots.root) == 0, step
        after = whole(slots)
        state = slots.state()
        assert (state.phase, state.slot, state.trial) == ("settled", str(after), ""), step
        assert after in ((5, 6) if good else (5,)), step
        trial_began = steps.index("trial") < cut_at - 1
        result = slots.result()
        if trial_began and after == 5:
            assert result is not None, step
            assert (result.outcome, result.counter) == ("rolled_back", 6), step
        left = {p.name for p in slots.slots.iterdir()}
        assert left <= {"4", "5", "6"}, step
        seen.add(after)
        shutil.rmtree(slots.root)
    assert seen == ({5, 6} if good else {5})


def test_a_cut_at_every_step_of_the_recovery_leaves_the_old(
    desk: Desk, flashed: Path, tmp_path: Path, cutter: Cutter
) -> None:
    bundle = desk.made(6, mqtt=SECRET).path
    slots = fresh(flashed, tmp_path, "uncut")
    cutter.run("apply", slots.root, bundle)
    steps = cutter.steps()
    for first in ("swap", "restart", "prove"):
        interrupted = fresh(flashed, tmp_path, f"interrupted-{first}")
        cutter.run("apply", interrupted.root, bundle, steps.index(first) + 1)
        slots = fresh(interrupted.root, tmp_path, f"uncut-{first}")
        assert cutter.run("recover", slots.root) == 0
        for cut_at, step in enumerate(cutter.steps(), 1):
            slots = fresh(interrupted.root, tmp_path, f"recovery-{first}-{cut_at}")
            assert cutter.run("recover", slots.root, cut_at=cut_at) == KILLED, step
            whole(slots)
            assert cutter.run("recover", slots.root) == 0, step
            assert (whole(slots), slots.state().phase) == (5, "settled"), step
            assert cutter.run("apply", slots.root, bundle) == 0, step  # and it takes the next one
            assert whole(slots) == 6, step


def test_a_first_flash_that_is_cut_leaves_nothing_or_the_new(desk: Desk, tmp_path: Path, cutter: Cutter) -> None:
    bundle = desk.made(1, mqtt=SECRET).path
    template = Box(tmp_path / "trusting")
    template.slots.prepare()
    write_trust(template.slots.trust, [desk.public])
    slots = fresh(template.root, tmp_path, "uncut")
    assert cutter.run("apply", slots.root, bundle) == 0, (cutter.folder / "errors").read_text()
    for cut_at, step in enumerate(cutter.steps(), 1):
        slots = fresh(template.root, tmp_path, f"cut-{cut_at}")
        assert cutter.run("apply", slots.root, bundle, cut_at) == KILLED
        assert cutter.run("recover", slots.root) == 0, step
        if slots.current_slot:
            assert whole(slots) == 1
        assert cutter.run("apply", slots.root, bundle) == 0, step
        assert (whole(slots), slots.state().phase) == (1, "settled"), step


INSTALLED = "1.0-abcdef12"


def whole_program(programs: Programs, *, running: bool = False) -> str:
    """Return the slot of the program that runs, after looking at everything it needs to start."""
    slot = programs.current_slot if running else programs.proven_slot
    folder = programs.folder(slot)
    assert packages_in(programs.packages(slot)).keys() == {"facefleet", "tinylib"}
    assert (programs.packages(slot) / "tinylib/data.bin").read_bytes() == b"x" * 100
    for part in ("bin/python", "systemd/facefleet-edge.service", "bin/facefleet-edge", "pyvenv.cfg"):
        assert (folder / part).exists(), part
    assert (folder / "bin/facefleet-edge").read_text().split("\n")[0].endswith(f"{slot}/bin/python -sE")
    return slot


def moved(template: Path, to: Path) -> Programs:
    """Copy a box's programs and state; commands name their program by its absolute place, which no test here starts."""
    shutil.copytree(template, to, symlinks=True)
    return Programs(to / "opt")


@pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])
def test_a_cut_at_every_step_of_a_new_program_leaves_the_old_or_the_new(
    good: bool, desk: Desk, tmp_path: Path, cutter: Cutter
) -> None:
    """What recovers is always whole and has proven itself; what the service runs meanwhile is whole too."""
    box = ProgramBox(desk, tmp_path / "template")
    bundle = box.made("1.1", 6, "" if good else BAD)
    cutter.patience_s = 0.0 if good else 0.5
    programs = moved(box.folder, tmp_path / "uncut")
    assert cutter.run("apply", tmp_path / "uncut/state", bundle, 0, programs.root) == 0, (
        cutter.folder / "errors"
    ).read_text()
    steps = cutter.steps()
    assert whole_program(programs) == whole_program(programs, running=True) == ("1.1-6" if good else INSTALLED)
    expected = set(Step) - {Step.ADOPT, Step.TRUST, Step.SECRETS}
    if good:
        expected -= {Step.BACK, Step.SWAP_BACK, Step.RESTART_BACK, Step.SETTLE}
    else:
        expected -= {Step.COMMIT, Step.PREVIOUS, Step.PROVEN}
    assert {*steps} == {str(step) for step in expected}

    seen = set()
    for cut_at, step in enumerate(steps, 1):
        root = tmp_path / f"cut-{cut_at}"
        programs, state = moved(box.folder, root), root / "state"
        assert cutter.run("apply", state, bundle, cut_at, programs.root) == KILLED, step
        assert whole_program(programs, running=True) in (INSTALLED, "1.1-6"), step
        proven = whole_program(programs)
        committed = "commit" in steps and cut_at > steps.index("commit") + 1
        assert proven == INSTALLED or committed, f"{step}: what recovers has proven itself"
        assert cutter.run("recover", state, None, 0, programs.root) == 0, step
        after = whole_program(programs)
        assert after == whole_program(programs, running=True), step
        assert after == ("1.1-6" if committed else INSTALLED), step
        found = programs.state()
        assert (found.phase, found.slot, found.trial) == ("settled", after, ""), step
        if steps.index("trial") < cut_at - 1 and not committed:
            result = programs.result()
            assert result is not None, step
            assert (result.outcome, result.counter) == ("rolled_back", 6), step
        assert cutter.run("apply", state, bundle, 0, programs.root) == 0, step  # and it takes the next one
        assert whole_program(programs, running=True) == ("1.1-6" if good else INSTALLED), step
        assert {p.name for p in programs.slots.iterdir()} <= {INSTALLED, "1.1-6"}, step
        seen.add(after)
        shutil.rmtree(root)
    assert seen == ({INSTALLED, "1.1-6"} if good else {INSTALLED})


def test_a_cut_at_every_step_of_the_recovery_of_a_program_leaves_the_old(
    desk: Desk, tmp_path: Path, cutter: Cutter
) -> None:
    box = ProgramBox(desk, tmp_path / "template")
    bundle = box.made("1.1", 6)
    cutter.run("apply", tmp_path / "uncut/state", bundle, 0, moved(box.folder, tmp_path / "uncut").root)
    steps = cutter.steps()
    for first in ("swap", "restart", "prove"):
        interrupted = tmp_path / f"interrupted-{first}"
        cutter.run("apply", interrupted / "state", bundle, steps.index(first) + 1, moved(box.folder, interrupted).root)
        uncut = tmp_path / f"uncut-{first}"
        assert cutter.run("recover", uncut / "state", None, 0, moved(interrupted, uncut).root) == 0
        for cut_at, step in enumerate(cutter.steps(), 1):
            root = tmp_path / f"recovery-{first}-{cut_at}"
            programs = moved(interrupted, root)
            assert cutter.run("recover", root / "state", None, cut_at, programs.root) == KILLED, step
            whole_program(programs, running=True)
            assert whole_program(programs) == INSTALLED
            assert cutter.run("recover", root / "state", None, 0, programs.root) == 0, step
            assert whole_program(programs, running=True) == INSTALLED, step
            assert programs.state().phase == "settled", step
