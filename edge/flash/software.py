"""The updater of the program itself: the same steps as for a config (`edge.flash.updater`), other contents.

    verify ─ stage wheels ─ build ─ seal ─ check with the new code ─ trial ─ swap ─ restart ─ prove ─┬─ commit ─ proven
                                                                                                  └─ back

A bundle brings a wheelhouse, or facefleet's wheel alone: what it does not bring is taken over from the program that
runs, as links. Whom a box trusts, who it is and which config it runs lie in its state root; versions lie in
`edge.install.program.Programs`. This code runs from `proven`, never from the version being tried.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from packaging.version import Version

from edge.box.status import BoxStatus
from edge.errors import EdgeError, FlashError
from edge.flash.archive import Head
from edge.flash.desk import SeenProgram
from edge.flash.manifest import CONFIG, Kind, Manifest, read_manifest
from edge.flash.slot_check import check_slot
from edge.flash.slots import Outcome, Result, Slots, remove
from edge.flash.updater import Parcel, Step, Updater
from edge.install import wheels
from edge.install.program import Programs, assemble, packages
from edge.install.wheels import PROJECT

ROLE = "edge"

Try = Callable[[Path, Path, Iterable[str], tuple[int, int]], None]


@dataclass
class SoftwareUpdater(Updater):
    """Takes programs.

    Args:
        slots: all versions.
        state: the box's state root.
        try_out: looks at the box's config with a new program, as the service's user.
    """

    slots: Programs
    state: Slots = field(kw_only=True)
    try_out: Try | None = None
    kind: ClassVar[Kind] = "software"

    @property
    def box(self) -> Slots:
        """Return the state root of the box."""
        return self.state

    def apply(self, parcel: Parcel) -> Result:
        """Take a program; see `Updater.apply`. No config is tried meanwhile."""
        with self.box.locked():
            return super().apply(parcel)

    def recover(self) -> Result | None:
        """Finish what was left undone; see `Updater.recover`.

        Where nothing was, nothing is written: the file system of programs may be read-only, and configs go on.
        """
        current, state = self.slots.current_slot, self.slots.state()
        if state.phase == "settled" and current == state.slot and self.slots.proven_slot in ("", current):
            return None
        with self.box.locked():
            return super().recover()

    def _verified(self, parcel: Parcel) -> Head:
        before = self.slots.current_slot
        if not before:
            raise FlashError(f'{self.slots.root} holds no program; put the first there with "facefleet-edge install"')
        if self.box.identity() is None:
            raise FlashError(
                f"{self.box.root} was not flashed yet, so it trusts no key and has nothing to try a program with; "
                "flash its config first"
            )
        head = super()._verified(parcel)
        manifest = head.manifest
        names = [Path(file.path).name for file in manifest.files]
        if odd := wheels.unfit(names):
            raise FlashError(f"{', '.join(odd[:3])} does not fit this box ({wheels.here()}); make the wheels for it")
        if [version for name, version in map(wheels.parts, names) if name == PROJECT] != [manifest.version]:
            raise FlashError(f"bundle says facefleet {manifest.version}, its wheels {', '.join(names)[:300]}")
        running = wheels.packages_in(self.slots.packages(before)).get(PROJECT, "0")
        if Version(manifest.version) < Version(running) and not manifest.downgrade:
            raise FlashError(
                f"bundle brings facefleet {manifest.version}, this box runs {running}: a downgrade is refused; "
                'where it is meant, flash it with "--downgrade"'
            )
        return head

    def _complete(self, folder: Path, manifest: Manifest, parcel: Parcel) -> None:
        """Turn the staged wheels into a program."""
        old = self.slots.folder(self.slots.current_slot)
        python = Path(os.readlink(old / "bin/python"))

        def fill(into: Path) -> None:
            left, names = manifest.unpacked_bytes, []
            for file in manifest.files:
                wheel = folder / file.path
                self.at(Step.BUILD, wheel.name)
                left -= wheels.unpack(wheel, into, left)
                names.append(wheels.parts(wheel.name)[0])
                wheel.unlink()  # a card has no room for both
            self.at(Step.BUILD, "what stays")
            wheels.take_over(packages(old), into, names)
            if wrong := wheels.unmet(into, f"{PROJECT}[{ROLE}]"):
                lacks = "; ".join(wrong)[:800]
                raise FlashError(f"facefleet {manifest.version} cannot run here: {lacks}; send a whole wheelhouse")
            self.at(Step.BUILD, "compiled")
            _compile(into)

        with _readable_for_all():
            assemble(folder, self.slots.folder(manifest.slot), python, ROLE, fill)
        remove(folder / "wheels")
        os.sync()  # some thousand files: one by one a card would take minutes

    def _try(self, slot: str, before: BoxStatus | None) -> None:
        if self.try_out is not None:
            self.at(Step.CHECK, slot)
            config = self._current_config()
            # No camera is opened: the service holds them, and a lost one is no worse with a new program.
            cameras = [camera.id for camera in config.box.cameras] if config else []
            self.try_out(self.slots.folder(slot), self.box.current, cameras, self.box.owner)

    def _config_with(self, slot: str) -> Path:
        return self.box.current / CONFIG

    def _program_with(self, slot: str) -> str:
        return slot

    def _finish(self) -> None:
        """Let the settled program be the one that recovers; remove those before the one before it."""
        slot = self.slots.state().slot
        if slot and self.slots.proven_slot != slot:
            self.at(Step.PROVEN, slot)
            self.slots.point_proven(slot)
        self.at(Step.TIDY, slot)
        self.slots.tidy()

    def _report(self, outcome: Outcome, counter: int, slot: str, reason: str) -> Result:
        """Report, and tell it where the box's own offers and dashboards look too."""
        result = super()._report(outcome, counter, slot, reason)
        with suppress(OSError):
            self.box.write_result(result)
        return result


def try_program(folder: Path, config: Path, skip: Iterable[str], owner: tuple[int, int]) -> None:
    """Let a new program import all it needs, understand the config that runs, and compute its models' golden output."""
    check_slot(config, skip, owner, (str(folder / "bin/python"), "-sE"))


def look_at_programs(programs: Programs) -> SeenProgram | None:
    """Say what a box runs, None where that is no program of ours."""
    slot = programs.current_slot
    try:
        found = wheels.packages_in(programs.packages(slot)) if slot else {}
    except EdgeError:
        return None
    if PROJECT not in found:
        return None
    manifest = None
    with suppress(EdgeError, OSError):
        manifest = read_manifest((programs.folder(slot) / "manifest.json").read_bytes())
    return SeenProgram(
        slot=slot,
        packages=found,
        manifest=manifest,
        state=programs.state(),
        result=programs.result(),
        free_bytes=programs.free_bytes(),
    )


def _compile(into: Path) -> None:
    """Compile what is new: the service may not write here. What does not compile says so when it is imported."""
    import compileall

    compileall.compile_dir(str(into), quiet=2, maxlevels=32)


@contextmanager
def _readable_for_all() -> Iterator[None]:
    """Programs are read by the service's user, whoever writes them."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)
