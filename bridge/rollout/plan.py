"""Which box is offered what, when, and when enough has gone wrong. Pure: no clock, no broker, no database."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from bridge.errors import BridgeError
from edge.wire import Brings, FlashReport, check_id

State = Literal["waiting", "offered", "taken", "committed", "rolled_back", "refused", "silent", "retired"]
FAILED: tuple[State, ...] = ("rolled_back", "refused", "silent")
SUFFIX = ".ffbundle"
# The head of a bundle file (edge/flash/archive.py): magic 8, key id 16, signature 64, length of the manifest 4.
MAGIC, LENGTH_AT, MAX_MANIFEST_BYTES = b"FFBUNDL1", 88, 256 << 10


class _Addressee(msgspec.Struct, frozen=True):
    """What of a manifest concerns a roll-out; boxes verify signatures, the centre holds no keys."""

    site: str
    box: str
    counter: int
    kind: Brings = "config"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A signed file for one box, and where the box fetches it."""

    site: str
    box: str
    counter: int
    url: str
    sha256: str
    bytes: int
    kind: Brings = "config"


@dataclass(frozen=True, slots=True)
class BoxState:
    """One box of a roll-out; `offered_s` ago it was offered its bundle."""

    site: str
    box: str
    wave: int
    counter: int
    state: State
    reason: str = ""
    offered_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Move:
    """What a roll-out does next: open a wave, give up on silent boxes, wait, or end."""

    open_wave: int = 0
    silent: tuple[tuple[str, str], ...] = ()
    end: Literal["", "done", "stopped"] = ""
    reason: str = ""


def read_bundles(folder: Path, base_url: str) -> list[Bundle]:
    """Read all bundles of a folder, in the order of site and box.

    Raises:
        BridgeError: there is none, one is no bundle, or two are for one box.
    """
    bundles = sorted(
        (_read(path, base_url) for path in sorted(folder.glob(f"*{SUFFIX}"))), key=lambda b: (b.site, b.box)
    )
    if not bundles:
        raise BridgeError(f'{folder} holds no *{SUFFIX}; make them with "facefleet-edge bundle build"')
    for one, other in pairwise(bundles):
        if (one.site, one.box) == (other.site, other.box):
            raise BridgeError(f"{folder} holds two bundles for {one.site}/{one.box}; leave one there")
    return bundles


def wave_sizes(text: str, boxes: int) -> list[int]:
    """Return how many boxes each wave adds: "1,10%,100%" are cumulative counts or shares; the rest is the last wave.

    Raises:
        BridgeError: it is not such a list, or does not grow.
    """
    reached, sizes = 0, []
    for part in text.split(","):
        number = part.strip().removesuffix("%")
        if not number.isdecimal() or int(number) == 0:
            raise BridgeError(
                f"waves {text!r}: {part.strip()!r} is no number of boxes or percentage, such as 1,10%,100%"
            )
        wanted = -(-boxes * int(number) // 100) if part.strip().endswith("%") else int(number)
        wanted = min(wanted, boxes)
        if wanted > reached:
            sizes.append(wanted - reached)
            reached = wanted
    return sizes + [boxes - reached] * (reached < boxes)


def after_report(box: BoxState, report: FlashReport) -> BoxState:
    """Return a box after what it said; what concerns another bundle, or comes after the end, changes nothing."""
    if report.counter != box.counter or box.state in ("waiting", "committed", "rolled_back", "refused", "retired"):
        return box
    outcomes: dict[str, State] = {"unchanged": "committed", "unreachable": "offered"}
    state: State = outcomes.get(report.outcome, report.outcome)  # type: ignore[arg-type]
    return BoxState(box.site, box.box, box.wave, box.counter, state, report.reason[:2000], box.offered_s)


def next_move(boxes: Sequence[BoxState], tolerated: int, patience_s: float) -> Move:
    """Return what to do, given where every box stands.

    Args:
        boxes: of one roll-out.
        tolerated: this many may fail; one more stops it.
        patience_s: a box that was offered so long ago and has not ended is silent, which is a failure.
    """
    silent = tuple((b.site, b.box) for b in boxes if b.state in ("offered", "taken") and b.offered_s >= patience_s)
    if silent:
        return Move(silent=silent)
    failed = [b for b in boxes if b.state in FAILED]
    if len(failed) > tolerated:
        first = failed[0]
        why = f" ({first.reason})" if first.reason else ""
        return Move(end="stopped", reason=f"{len(failed)} failed, {first.site}/{first.box} {first.state}{why}")
    if any(b.state in ("offered", "taken") for b in boxes):
        return Move()
    waiting = _waves(boxes)
    return Move(open_wave=waiting[0]) if waiting else Move(end="done")


def _waves(boxes: Iterable[BoxState]) -> list[int]:
    return sorted({b.wave for b in boxes if b.state == "waiting"})


def _read(path: Path, base_url: str) -> Bundle:
    with path.open("rb") as file:
        head = file.read(LENGTH_AT + 4)
        length = int.from_bytes(head[LENGTH_AT:], "big")
        if not head.startswith(MAGIC) or length > MAX_MANIFEST_BYTES:
            raise BridgeError(f'{path} is no bundle; make it with "facefleet-edge bundle build"')
        try:
            to = msgspec.json.decode(file.read(length), type=_Addressee)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BridgeError(f"{path}: its manifest cannot be read ({error}); build it again") from error
        file.seek(0)
        digest = file_digest(file, "sha256").hexdigest()
    url = f"{base_url.rstrip('/')}/{path.name}"
    site, box, size = check_id(to.site, "site"), check_id(to.box, "box"), path.stat().st_size
    return Bundle(site, box, to.counter, url, digest, size, to.kind)
