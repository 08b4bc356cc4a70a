"""The updater of one state root: from a stream of bytes to a config that has proven itself, or back.

    verify ─ stage ─ seal ─ check ─ trial ─ swap ─ restart ─ prove ─┬─ commit ─ tidy
                                      │                             └─ back ─ swap back ─ restart ─ settle
                                      └── power cut: `recover` goes back, or on where the state says so

`flash.json` is written before what it announces, so after a cut `recover` knows what may have happened, and does the
rest: each of its actions may be done twice. The same code writes a card on the desk, without service and proof.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, ClassVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge.box.status import BoxStatus, boottime_s, read_status
from edge.config import LoadedConfig, load_box
from edge.errors import ConfigError, EdgeError, FlashError
from edge.flash.archive import Head, damaged, read_head, unpack
from edge.flash.manifest import ANY_CLASS, CONFIG, Kind, Manifest, counter_of, read_manifest
from edge.flash.portable import slot_secrets
from edge.flash.proof import STALE_S, Terms, prove
from edge.flash.service import Service
from edge.flash.signing import decode_public, key_id, load_trust, write_trust
from edge.flash.slots import CREDENTIALS, FlashState, Identity, Outcome, Result, Slots, sync_tree, write_new

log = logging.getLogger(__name__)

SPARE_BYTES = 64 << 20  # left beside a new slot: the outbox's reserve, compiled models
MAX_SECRETS, MAX_SECRET_BYTES = 64, 64 << 10

Check = Callable[[Path, Iterable[str], tuple[int, int]], None]


class Step(StrEnum):
    """What an update does next; announced before each, so that a test can cut the power there."""

    ADOPT = "adopt"
    STAGE = "stage"
    SECRETS = "secrets"
    BUILD = "build"
    SEAL = "seal"
    CHECK = "check"
    TRIAL = "trial"
    SWAP = "swap"
    RESTART = "restart"
    PROVE = "prove"
    COMMIT = "commit"
    PREVIOUS = "previous"
    TRUST = "trust"
    PROVEN = "proven"
    TIDY = "tidy"
    REPORT = "report"
    BACK = "back"
    SWAP_BACK = "swap back"
    RESTART_BACK = "restart back"
    SETTLE = "settle"


@dataclass(frozen=True)
class Parcel:
    """What arrives: a bundle, secrets beside it, and on a first flash the key and class the box shall take on.

    `on_trial` is called when all that is needed lies in a slot, before anything depends on it.
    """

    bundle: BinaryIO
    secrets: Mapping[str, bytes]
    adopt: Ed25519PublicKey | None = None
    device_class: str = field(default_factory=platform.machine)
    on_trial: Callable[[], None] = lambda: None


@dataclass
class Updater:
    """Takes parcels for one state root: configs here, the program itself in `edge.flash.software`.

    Args:
        slots: the root.
        service: restarts the box; None on the desk: what is written there is committed without proof.
        check: looks at a sealed slot with the code the service runs; None on the desk.
        terms: of the proof.
        at: told of each step before it is taken, with what it is about.
        progress: told of bytes as they are staged.
    """

    slots: Slots
    service: Service | None
    check: Check | None
    terms: Terms = field(default_factory=Terms)
    at: Callable[[Step, str], None] = lambda _step, _what: None
    progress: Callable[[int], None] = lambda _: None
    offered: int = 0  # the counter of the parcel at hand, once its signature fits
    kind: ClassVar[Kind] = "config"

    @property
    def box(self) -> Slots:
        """Return the state root of the box: whom it trusts, who it is, which config it runs."""
        return self.slots

    def apply(self, parcel: Parcel) -> Result:
        """Take a parcel.

        Returns:
            "committed", "unchanged" (it runs already), or "rolled_back" with the reason.

        Raises:
            FlashError: it was refused; the box runs what it ran before.
        """
        with self.slots.locked():
            self._recover()
            self.offered = 0
            try:
                return self._apply(parcel)
            except (EdgeError, OSError) as error:
                reason = str(error)
                state = self.slots.state()
                if state.phase != "settled":
                    return self._roll_back(msgspec.structs.replace(state, phase="rolling_back", reason=reason))
                with suppress(OSError):  # a full or read-only disk: the caller says it anyway
                    self.slots.tidy()
                    self._report("refused", self.offered, "", reason)
                if isinstance(error, OSError):
                    raise FlashError(f"{self.slots.root}: {reason}; the box runs what it ran before") from error
                raise

    def recover(self) -> Result | None:
        """Finish what a power cut or a kill left undone; what is settled stays as it is.

        Returns:
            How the interrupted update ended, None when there was none.
        """
        with self.slots.locked():
            return self._recover()

    # -- forwards ----------------------------------------------------------------------------------------------------

    def _apply(self, parcel: Parcel) -> Result:
        head = self._verified(parcel)
        manifest, slot = head.manifest, head.manifest.slot
        state = self.slots.state()
        if slot == state.slot:
            return self._unchanged(head)
        self._stage(head, slot, parcel)
        before = self._running()
        self._try(slot, before)
        self.at(Step.TRIAL, slot)
        self.slots.write_state(msgspec.structs.replace(state, phase="trial", trial=slot))
        parcel.on_trial()
        self.at(Step.SWAP, slot)
        self.slots.point_current(slot)
        if reason := self._proven(slot, before):
            self.at(Step.BACK, reason)
            return self._roll_back(msgspec.structs.replace(self.slots.state(), phase="rolling_back", reason=reason))
        counters = state.counters | {head.key_id: manifest.counter}
        self.at(Step.COMMIT, slot)
        self.slots.write_state(FlashState(slot=slot, counters=counters))
        self.at(Step.PREVIOUS, state.slot)
        if state.slot:
            self.slots.point_previous(state.slot)
        self._finish()
        return self._report("committed", manifest.counter, slot, "")

    def _verified(self, parcel: Parcel) -> Head:
        """Verify signature, addressee, age and size; nothing is changed yet, except that a new box learns its name."""
        trusted, identity = load_trust(self.box.trust), self.box.identity()
        first = identity is None and not trusted and parcel.adopt is not None
        if first and parcel.adopt is not None:
            trusted = {key_id(parcel.adopt): parcel.adopt}
        head = read_head(parcel.bundle, trusted)
        manifest, self.offered = head.manifest, head.manifest.counter
        if identity is None:
            identity = Identity(manifest.site, manifest.box, parcel.device_class)
        if manifest.kind != self.kind:
            raise FlashError(f"bundle brings a {manifest.kind}, expected a {self.kind}; flash it as what it is")
        if manifest.box and (manifest.site, manifest.box) != (identity.site, identity.box):
            raise FlashError(
                f"bundle is for {manifest.addressee}, this box is {identity.site}/{identity.box}; "
                f"flash the {self.kind} of this box"
            )
        classes = {manifest.device_class, identity.device_class} - {ANY_CLASS}
        if len(classes) > 1:
            raise FlashError(f"bundle is for {manifest.device_class}, this box is a {identity.device_class}")
        if manifest.counter < (least := self.slots.state().counters.get(head.key_id, 0)):
            raise FlashError(
                f"bundle has counter {manifest.counter}, this box has taken {least} already: a downgrade is refused; "
                "build the old config anew to go back to it"
            )
        need, free = manifest.needed_bytes + SPARE_BYTES, self.slots.free_bytes()
        if free < need:
            raise FlashError(
                f"{self.slots.root} has {free >> 20} MB free, {-(-need >> 20)} MB are needed "
                f"({manifest.needed_bytes >> 20} MB of bundle and {SPARE_BYTES >> 20} MB to spare); make room"
            )
        for name in manifest.trust:
            decode_public(name)
        if self.box.identity() is None:
            self.at(Step.ADOPT, f"{identity.site}/{identity.box}")
            write_trust(self.slots.trust, trusted.values())
            self.slots.write_identity(identity)
        return head

    def _unchanged(self, head: Head) -> Result:
        found = self.manifest(head.manifest.slot)
        if found != head.manifest:
            raise FlashError(
                f"counter {head.manifest.counter} is taken by another bundle that runs here; build it again"
            )
        return self._report("unchanged", head.manifest.counter, head.manifest.slot, "it runs already")

    def _stage(self, head: Head, slot: str, parcel: Parcel) -> None:
        self.slots.tidy()
        folder = self.slots.new_folder(slot)
        self.at(Step.STAGE, "manifest.json")
        write_new(folder / "manifest.json", head.signed)
        write_new(folder / "manifest.sig", f"{head.key_id} {head.signature.hex()}\n".encode())
        unpack(head, parcel.bundle, folder, progress=self.progress, at=lambda name: self.at(Step.STAGE, name))
        self._complete(folder, head.manifest, parcel)
        sync_tree(folder)
        self.at(Step.SEAL, slot)
        self.slots.seal(slot)

    def _complete(self, folder: Path, manifest: Manifest, parcel: Parcel) -> None:
        """Bring what was unpacked into the form in which it is used."""
        self.at(Step.SECRETS, manifest.slot)
        self._store_secrets(folder, self._understood(folder / CONFIG, manifest), parcel.secrets)

    def _try(self, slot: str, before: BoxStatus | None) -> None:
        """Look at a sealed slot before anything depends on it."""
        if self.check is not None:
            self.at(Step.CHECK, slot)
            self.check(self.slots.folder(slot), self._not_to_probe(slot, before), self.slots.owner)

    @staticmethod
    def _understood(path: Path, manifest: Manifest) -> LoadedConfig:
        """Load a staged config; a desk may be ahead of the software of a box."""
        try:
            config = load_box(path)
        except ConfigError as error:
            raise FlashError(
                f"facefleet {version('facefleet')} here does not understand the config: {error}"
            ) from error
        if (config.box.site, config.box.box) != (manifest.site, manifest.box):
            raise FlashError(
                f"config says {config.box.site}/{config.box.box}, its bundle {manifest.site}/{manifest.box}"
            )
        return config

    def _store_secrets(self, folder: Path, config: LoadedConfig, sent: Mapping[str, bytes]) -> None:
        """Write the secrets the config names: those that were sent, else those of the slot that runs."""
        if len(sent) > MAX_SECRETS or any(len(value) > MAX_SECRET_BYTES for value in sent.values()):
            raise FlashError(f"expected at most {MAX_SECRETS} secrets of {MAX_SECRET_BYTES} bytes")
        store, old = folder / CREDENTIALS, self.slots.current / CREDENTIALS
        store.mkdir(mode=0o700)
        self._give(store)
        for name in sorted(slot_secrets(config)):
            value = sent.get(name)
            if value is None and (old / name).is_file():
                value = (old / name).read_bytes()
            if value is not None:  # one that is nowhere may come from systemd; the check finds out
                write_new(store / name, value, mode=0o600)
                self._give(store / name)

    def _give(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, *self.slots.owner, follow_symlinks=False)

    def _proven(self, slot: str, before: BoxStatus | None) -> str:
        """Restart and watch; return why it is no good, "" when it is."""
        if self.service is None:
            return ""
        config = load_box(self._config_with(slot))
        last = read_status(config.state_dir)
        try:
            self.at(Step.RESTART, slot)
            self.service.restart()
            self.at(Step.PROVE, slot)
            return prove(
                lambda: read_status(config.state_dir),
                before,
                config.digest,
                self.terms,
                program=self._program_with(slot),
                ended=last.nonce if last else "",
                say=lambda text: self.at(Step.PROVE, text),
            )
        except FlashError as error:
            return str(error)
        except KeyboardInterrupt:
            return f"the updater was told to end before the new {self.kind} had proven itself"

    def _config_with(self, slot: str) -> Path:
        """Return the config that the service runs with a slot."""
        return self.slots.folder(slot) / CONFIG

    def _program_with(self, _slot: str) -> str:
        """Return the program that the service runs with a slot; "" for whichever it is."""
        return ""

    # -- backwards ---------------------------------------------------------------------------------------------------

    def _roll_back(self, state: FlashState, *, restart: bool = True) -> Result:
        """Go back to `state.slot`. What cannot be noted on a full or failing disk must not keep the box from it.

        A state file that still says "trial" makes `recover` come here again, which does no harm.
        """
        with self._best_effort("that it goes back"):
            self.slots.write_state(state)
        self.at(Step.SWAP_BACK, state.slot)
        self.slots.point_current(state.slot)
        self.at(Step.RESTART_BACK, state.slot)
        reason = state.reason
        if self.service is not None and restart:
            try:
                self.service.restart() if state.slot else self.service.stop()
            except FlashError as error:
                reason = f"{reason}; and afterwards: {error}"
                log.error("after going back: %s", error)
        elif self.service is not None:
            self.service.restart_if_running()
        with self._best_effort("how it ended"):
            self._report("rolled_back", counter_of(state.trial), state.slot, reason)
        with self._best_effort("that it went back"):
            self.at(Step.SETTLE, state.slot)
            self.slots.write_state(FlashState(slot=state.slot, counters=state.counters))
            self._finish()
        return _result("rolled_back", counter_of(state.trial), state.slot, reason)

    @contextmanager
    def _best_effort(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.error("%s could not note %s: %s", self.slots.root, what, error)

    def _recover(self) -> Result | None:
        state = self.slots.state()
        if state.phase == "settled":
            if state.slot and self.slots.current_slot != state.slot:
                self.slots.point_current(state.slot)  # somebody moved the link
            self._finish()
            return None
        if not state.slot and state.phase == "trial":  # a first flash: there is nothing to go back to
            if damaged(self._read_manifest(state.trial), self.slots.folder(state.trial)):
                return self._roll_back(msgspec.structs.replace(state, phase="rolling_back", reason="damaged"))
            self.slots.point_current(state.trial)
            self.slots.write_state(FlashState(slot=state.trial, counters=state.counters))
            self._finish()
            return self._report("committed", counter_of(state.trial), state.trial, "interrupted; nothing older is here")
        reason = (
            state.reason or f"the power went, or the updater was killed, before the new {self.kind} had proven itself"
        )
        log.warning("an update to %s was interrupted; going back to %s", state.trial, state.slot)
        return self._roll_back(msgspec.structs.replace(state, phase="rolling_back", reason=reason), restart=False)

    def _finish(self) -> None:
        """Do what follows from a settled state: who is believed, and which slots stay."""
        slot = self.slots.state().slot
        if slot and (keys := self._read_manifest(slot).trust):
            self.at(Step.TRUST, slot)
            write_trust(self.slots.trust, [decode_public(key) for key in keys])
        self.at(Step.TIDY, slot)
        self.slots.tidy()

    # -- what there is -----------------------------------------------------------------------------------------------

    def manifest(self, slot: str = "") -> Manifest | None:
        """Return the manifest of a slot, of the current one unless one is named."""
        slot = slot or self.slots.current_slot
        try:
            return self._read_manifest(slot) if slot else None
        except (FlashError, OSError):
            return None

    def _read_manifest(self, slot: str) -> Manifest:
        return read_manifest((self.slots.folder(slot) / "manifest.json").read_bytes())

    def _running(self) -> BoxStatus | None:
        """Return how the box fares now; None when it does not run."""
        config = self._current_config()
        status = read_status(config.state_dir) if config else None
        return status if status and 0 <= boottime_s() - status.at_s < STALE_S else None

    def _current_config(self) -> LoadedConfig | None:
        try:
            return load_box(self.box.current / CONFIG)
        except EdgeError:
            return None

    def _not_to_probe(self, slot: str, before: BoxStatus | None) -> list[str]:
        """Name the cameras whose source did not change: the service holds them, or they were lost before."""
        old, new = self._current_config(), load_box(self.slots.folder(slot) / CONFIG)
        if old is None or before is None:
            return []
        sources = {camera.id: camera.source for camera in old.box.cameras}
        return [c.id for c in new.box.cameras if c.id in before.cameras and sources.get(c.id) == c.source]

    def _report(self, outcome: Outcome, counter: int, slot: str, reason: str) -> Result:
        self.at(Step.REPORT, outcome)
        result = _result(outcome, counter, slot, reason)
        log.log(
            logging.INFO if outcome in ("committed", "unchanged") else logging.ERROR,
            "flash %s: %s %d%s",
            outcome,
            "counter" if self.kind == "config" else f"program in {slot}, counter",
            counter,
            f": {reason}" if reason else "",
            extra={"EVENT": f"flash_{outcome}"},
        )
        self.slots.write_result(result)
        return result


def _result(outcome: Outcome, counter: int, slot: str, reason: str) -> Result:
    return Result(outcome, datetime.now(UTC).isoformat(timespec="seconds"), counter, slot, reason)
