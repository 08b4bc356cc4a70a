"""`facefleet-bridge rollout start | status | abort`."""

import argparse
import contextlib
import threading
from pathlib import Path

from bridge.config import full_dsn, link_settings, load_bridge
from bridge.errors import BridgeError
from bridge.rollout.driver import Driver
from bridge.rollout.plan import Bundle, read_bundles, wave_sizes
from bridge.rollout.records import Records, Rollout
from edge.link import LinkSettings, Will


def start(options: argparse.Namespace, stop: threading.Event) -> int:
    """Begin a roll-out, or continue the one that runs, and follow it to its end; 0 when all went well."""
    settings, dsn = _centre(options.config)
    with contextlib.closing(Records(dsn)) as records:
        running = records.newest(running=True)
        if running is not None and options.bundles is None:
            rollout_id = running.id
        elif options.bundles is None or options.url is None:
            raise BridgeError("no roll-out is running; name --bundles and --url to begin one")
        else:
            bundles = _in_service(read_bundles(options.bundles, options.url), records.retired())
            sizes = wave_sizes(options.waves, len(bundles))
            rollout_id = records.start(bundles, sizes, options.failures, options.patience)
            print(f"roll-out {rollout_id}: {len(bundles)} boxes in waves of {', '.join(map(str, sizes))}", flush=True)
        ended = Driver(records, settings, rollout_id).run(stop)
        _show(records, ended)
        return 0 if ended.state == "done" else 1


def status(options: argparse.Namespace, _stop: threading.Event) -> int:
    """Print the newest roll-out and where each box stands."""
    _, dsn = _centre(options.config)
    with contextlib.closing(Records(dsn)) as records:
        newest = records.newest()
        if newest is None:
            print("there has been no roll-out")
        else:
            _show(records, newest)
    return 0


def abort(options: argparse.Namespace, stop: threading.Event) -> int:
    """End the running roll-out: no further offers, and those that nobody took are withdrawn."""
    settings, dsn = _centre(options.config)
    with contextlib.closing(Records(dsn)) as records:
        newest = records.newest()
        if newest is None or newest.state == "done":
            raise BridgeError("no roll-out is running")
        records.end(newest.id, "aborted", "by an operator")
        _show(records, Driver(records, settings, newest.id).run(stop))
    return 0


def _in_service(bundles: list[Bundle], retired: set[tuple[str, str]]) -> list[Bundle]:
    """Leave out, aloud, what is for retired boxes.

    Raises:
        BridgeError: nothing is left.
    """
    left = [bundle for bundle in bundles if (bundle.site, bundle.box) not in retired]
    for bundle in bundles:
        if bundle not in left:
            print(f"left out: {bundle.site}/{bundle.box} is retired", flush=True)
    if not left:
        raise BridgeError('every bundle is for a retired box; "facefleet-bridge retire BOX --undo" puts one back')
    return left


def _centre(path: Path) -> tuple[LinkSettings, str]:
    config, base = load_bridge(path), path.resolve().parent
    return link_settings(config, base, Will("facefleet/1/bridge/none/state", b"")), full_dsn(config, base)


def _show(records: Records, rollout: Rollout) -> None:
    print(f"roll-out {rollout.id}: {rollout.state}{f', {rollout.reason}' if rollout.reason else ''}")
    for box in records.boxes(rollout.id):
        why = f": {box.reason}" if box.reason else ""
        print(f"  wave {box.wave}  {box.site}/{box.box}  counter {box.counter}  {box.state}{why}")
