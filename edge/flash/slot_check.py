"""Check a config with the code that would run it, in a process of its own and as the service's user.

A runtime that crashes on a model then takes this process along, not the updater; memory comes back; compiled models
land in the service's own cache, so that its restart is short.
"""

import os
import pwd
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from grp import getgrnam
from pathlib import Path
from typing import Any

from edge.errors import EdgeError, FlashError

CHECK_S = 600.0
DEVICE_GROUPS = ("video", "render")  # as in the unit


def check_slot(folder: Path, skip: Iterable[str], owner: tuple[int, int], python: Sequence[str] = ()) -> None:
    """Run `look_at` on a slot in a process of its own.

    Args:
        folder: the slot.
        skip: cameras that the running service holds, or that were lost before: the proof judges them.
        owner: user and group of the service.
        python: of the program that does it, of this one by default. How it is called here must fit every version of it.

    Raises:
        FlashError: something in it would not work; the message says all that was found.
    """
    command = [*(python or (sys.executable,)), "-m", "edge.flash.slot_check", str(folder / "config.yaml"), *skip]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CHECK_S, check=False, **_identity(*owner)
        )
    except subprocess.TimeoutExpired as error:
        raise FlashError(f"the check did not end within {CHECK_S:g} s; does a model or a camera hang?") from error
    if done.returncode:
        ended = f"the check ended with signal {-done.returncode}" if done.returncode < 0 else "the check failed"
        raise FlashError(done.stderr.strip()[-4000:] or ended)


def look_at(config_path: Path, skip: Iterable[str]) -> list[str]:
    """Return what would keep a config from running here: credentials, models, cameras, state folder."""
    from edge.assembly import load_models, source_spec
    from edge.capture import opencv
    from edge.capture.sources import probe
    from edge.config import load_box
    from edge.publish.publisher import publisher_settings

    opencv.quiet()
    config = load_box(config_path)
    wrong = []
    skipped = set(skip)
    for camera in config.box.cameras:
        try:
            spec = source_spec(config, camera)
            if camera.id not in skipped:
                probe(spec)
        except EdgeError as error:
            wrong.append(f"camera {camera.id}: {error}")
    try:
        if config.has_own_tls:
            from edge.box.certificate import require

            require(config)
        publisher_settings(config, 1)
        load_models(config, log=lambda _: None)
    except EdgeError as error:
        wrong.append(str(error))
    if not os.access(config.state_dir, os.W_OK):
        wrong.append(f"state_dir {config.state_dir} cannot be written by the service's user")
    return wrong


def _identity(user: int, group: int) -> dict[str, Any]:
    """Return what makes a child process the service's user; nothing unless we are root.

    Over SSH we stand in /root, which that user may not enter: OpenVINO 2026.4 looks for files there and aborts.
    """
    if os.geteuid() != 0 or user == 0:
        return {}
    groups, home = {group}, "/"
    with suppress(KeyError):
        found = pwd.getpwuid(user)
        groups, home = groups | set(os.getgrouplist(found.pw_name, group)), found.pw_dir
    for name in DEVICE_GROUPS:
        with suppress(KeyError):
            groups.add(getgrnam(name).gr_gid)
    environment = os.environ | {"HOME": home}
    return {"user": user, "group": group, "extra_groups": sorted(groups), "cwd": "/", "env": environment}


def main(words: list[str]) -> int:
    """Print what is wrong on standard error; 0 when nothing is."""
    try:
        wrong = look_at(Path(words[0]), words[1:])
    except EdgeError as error:
        wrong = [str(error)]
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
