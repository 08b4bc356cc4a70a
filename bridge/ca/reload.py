"""Let a broker read its files again. What does that, only the operator knows: it may be on another machine."""

import shlex
import subprocess

from bridge.errors import BridgeError

LONGEST_S = 60.0
HINT = 'the broker hears of it with "systemctl reload mosquitto"'


def reload(command: str) -> str:
    """Run a command; return what a person still has to do when there is none, "" when it is done.

    Raises:
        BridgeError: it failed.
    """
    if not command:
        return HINT
    change = "what was changed stays changed, but the broker has not heard of it"
    try:
        words = shlex.split(command)
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise BridgeError(f'"{command}" failed ({error}); {change}') from error
    if done.returncode:
        raise BridgeError(f'"{command}" failed ({" ".join(done.stderr.split())[-300:]}); {change}')
    return ""
