"""Is a box at least as well as before? Pure judgement over what it says of itself, and the wait for it to hold."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from edge.box.status import BoxStatus

STALE_S = 20.0  # the status is written every five seconds
FED_S = 40.0  # an app feeds within seconds while all loops turn, and reports a stuck one after thirty
ALIVE = ("streaming", "ended")

Look = Callable[[], BoxStatus | None]


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a new config may take to come up, and how long everything must then hold without a break."""

    start_s: float = 120.0
    hold_s: float = 60.0
    every_s: float = 1.0


def complaints(
    before: BoxStatus | None, now: BoxStatus | None, digest: str, now_s: float, program: str = ""
) -> list[str]:
    """Return what is wrong with a freshly flashed box.

    Args:
        before: how it was before, None on a first flash.
        now: what it says, None when it says nothing.
        digest: of the config it should run.
        now_s: CLOCK_BOOTTIME.
        program: it should run; "" where that does not change.
    """
    if now is None:
        return ["the service says nothing about its health"]
    if now.config_digest != digest:
        return [f"the service runs config {now.config_digest}, not {digest}"]
    if program and now.program != program:
        return [f"the service runs program {now.program or 'of another kind'}, not {program}"]
    if now_s - now.at_s > STALE_S:
        return [f"the service has not said anything for {now_s - now.at_s:.0f} s"]
    wrong = []
    if now_s - now.fed_at_s > FED_S:
        wrong.append(f"the watchdog was not fed for {now_s - now.fed_at_s:.0f} s: a loop hangs")
    for name, camera in now.cameras.items():
        old = before.cameras.get(name) if before else None
        if old is not None and old.state not in ALIVE and camera.state != "failed":
            continue  # no worse than before
        if camera.state not in ALIVE:
            was = f", was {old.state} before" if old else ""
            wrong.append(f"camera {name} is {camera.state}{was}" + (f" ({camera.error})" if camera.error else ""))
        elif not camera.inferred:
            wrong.append(f"camera {name}: no inference yet")
    if now.publisher != "connected" and (
        now.publisher != "waiting for a bridge" or (before is not None and before.publisher == "connected")
    ):
        wrong.append(f"the publisher is {now.publisher}")
    return wrong


def prove(
    look: Look,
    before: BoxStatus | None,
    digest: str,
    terms: Terms,
    *,
    program: str = "",
    ended: str = "",
    say: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Watch a box until all has been well for `hold_s` at a stretch.

    Args:
        look: returns what the box says.
        before: how it fared before the flash, None where it did not run.
        digest: of the config it should run.
        terms: how long everything may take.
        program: it should run; "" where that does not change.
        ended: nonce of whatever wrote the status last before the restart: it may have ended long ago, and says nothing.
        say: told how it stands.
        clock, sleep: CLOCK_BOOTTIME.

    Returns:
        "" when it is proven, else the reason why not.
    """
    give_up_s = clock() + terms.start_s + terms.hold_s
    good_since_s: float | None = None
    process = said = ""
    ended = ended or (before.nonce if before else "")
    while True:
        now_s, now = clock(), look()
        wrong = complaints(before, now, digest, now_s, program)
        if now is not None and now.config_digest == digest and now.nonce != ended:
            if process and now.nonce != process:
                return "the service ended and was started again by itself: " + (said or "it crashed while being proven")
            process = now.nonce
        elif not wrong:
            wrong = ["the service was not restarted yet"]
        if wrong:
            good_since_s, said = None, "; ".join(wrong)
            say(said)
            if now_s >= give_up_s:
                return f"not well within {terms.start_s:g} s: {said}"
        else:
            good_since_s = now_s if good_since_s is None else good_since_s
            if (held_s := now_s - good_since_s) >= terms.hold_s:
                return ""
            say(f"well for {held_s:.0f} of {terms.hold_s:g} s")
            if now_s >= give_up_s:  # it came up too late, or keeps falling back
                return f"well for only {held_s:.0f} of {terms.hold_s:g} s when time was up; before: {said}"
        sleep(terms.every_s)


def report(status: BoxStatus | None) -> str:
    """Return a box's health for a person, one line a thing."""
    if status is None:
        return "the box says nothing about its health"
    lines = [f"config {status.config_digest}, publisher {status.publisher}"]
    for name, camera in status.cameras.items():
        seen = "models have looked" if camera.inferred else "no inference yet"
        lines.append(f"camera {name}: {camera.state}, {camera.frames} frames, {seen}" + _error(camera.error))
    if status.health is not None:
        for name, model in status.health.models.items():
            lines.append(f"model {name}: {model.device} {model.artefact}, golden {model.golden}")
        health = status.health
        if health.disk_free_bytes is not None:
            lines.append(f"disk {health.disk_free_bytes >> 20} MB free, outbox {health.outbox_events} events")
    return "\n".join(lines)


def _error(error: str | None) -> str:
    return f" ({error})" if error else ""
