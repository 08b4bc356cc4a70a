"""Logs: to the journal with fields where systemd-python is installed, else one line each on standard error."""

import logging
import os
import sys


def set_up(level: int = logging.INFO) -> None:
    """Send all logs of this process where its user reads them; called once, by the command line."""
    root = logging.getLogger()
    root.setLevel(level)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_journal() or _plain())


def _journal() -> logging.Handler | None:
    """Return the journal handler under systemd, None elsewhere or without the library.

    The folder systemd/ of this project is found as a namespace package, so the import asks for a name in it.
    """
    if "JOURNAL_STREAM" not in os.environ:
        return None
    try:
        from systemd.journal import JournalHandler
    except ImportError:
        return None
    handler: logging.Handler = JournalHandler(SYSLOG_IDENTIFIER="facefleet-edge")
    return handler


def _plain() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    # Under systemd the journal adds its own time, and <N> at the start of a line is the priority (sd-daemon(3)).
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    handler.setFormatter(logging.Formatter(f"{stamp}%(levelname)-7s %(message)s", "%H:%M:%S"))
    return handler
