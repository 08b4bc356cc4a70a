"""Logs: one line per thing that matters, with the fields BOX, CAMERA and EVENT; repeats are counted, not repeated.

To the journal through systemd-python where it is installed, else by its own protocol, which is one datagram; to a
terminal, or where there is no journal, as lines with the fields at their end.
"""

import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

JOURNAL = Path("/run/systemd/journal/socket")
IDENTIFIER = "facefleet-edge"
FIELDS = ("BOX", "CAMERA", "EVENT")
MAX_DATAGRAM_BYTES = 64 << 10  # far below what a Unix socket takes; no text of ours is longer
WINDOW_S = 60.0
BURST = 3  # so often a text is said within the window before it is only counted
MOST_TEXTS = 1000

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_PEM = r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
_SECRETS = re.compile(rf"(?<=://)[^/@\s]*:[^/@\s]*(?=@)|{_PEM}", re.DOTALL)
_TRACE = logging.Formatter()


def set_up(level: int = logging.INFO) -> None:
    """Send all logs of this process where its user reads them; called once, by the command line."""
    root = logging.getLogger()
    root.setLevel(level)
    logging.raiseExceptions = False  # a line that cannot be written is lost, and not told with all that led to it
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.addHandler(Sparing(_journal() or _plain()))


def name_box(site: str, box: str) -> None:
    """Let every line from now on say which box it is about."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Sparing):
            handler.box = f"{site}/{box}"


class Sparing(logging.Handler):
    """Hands records on with their fields set and without secrets; counts a text that comes again and again.

    Texts that differ in their numbers only are the same. What was counted is said when its minute is over.

    Args:
        inner: who writes.
        clock: monotonic seconds.
    """

    def __init__(self, inner: logging.Handler, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.inner, self.box = inner, ""
        self._repeats, self._clock = Repeats(), clock
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on, or count it. Called with the handler's lock held."""
        self._say_counts()
        try:
            record.msg, record.args = hide(record.getMessage()), ()
            if self.box:
                record.BOX = self.box
            if record.exc_info:  # as text: systemd-python would send the exception's own words, too
                record.exc_text, record.exc_info = hide(_TRACE.formatException(record.exc_info)), None
        except Exception:
            self.handleError(record)
            return
        if self._repeats.admit(record, self._clock()):
            self.inner.handle(record)
        elif self._timer is None:
            self._timer = threading.Timer(WINDOW_S, self._late)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """Say what was counted and not said yet."""
        self.acquire()
        try:
            if self._timer is not None:
                self._timer.cancel()
            self._say_counts(at_the_end=True)
        finally:
            self.release()
        self.inner.close()
        super().close()

    def _late(self) -> None:
        self.acquire()
        try:
            self._timer = None
            self._say_counts(at_the_end=True)
        finally:
            self.release()

    def _say_counts(self, *, at_the_end: bool = False) -> None:
        for record in self._repeats.over(float("inf") if at_the_end else self._clock()):
            self.inner.handle(record)


@dataclass
class _Said:
    since_s: float
    last: logging.LogRecord
    times: int = 0


class Repeats:
    """Which texts were said lately, and how often since."""

    def __init__(self) -> None:
        self._said: dict[tuple[int, str], _Said] = {}

    def admit(self, record: logging.LogRecord, now_s: float) -> bool:
        """Return whether a record may be said; else it is counted."""
        key = (record.levelno, _NUMBER.sub("#", record.getMessage()))
        if key not in self._said and len(self._said) >= MOST_TEXTS:
            return True
        said = self._said.setdefault(key, _Said(now_s, record))
        said.last, said.times = record, said.times + 1
        return said.times <= BURST

    def over(self, now_s: float) -> list[logging.LogRecord]:
        """Return one record for each text whose minute is over and that was counted, and forget them."""
        old = [key for key, said in self._said.items() if now_s - said.since_s >= WINDOW_S]
        told = []
        for said in map(self._said.pop, old):
            if (more := said.times - BURST) > 0:
                said.last.msg = f"{said.last.getMessage()} … {more} times more in the last minute"
                said.last.exc_text = None
                told.append(said.last)
        return told


class JournalSocket(logging.Handler):
    """The journal's native protocol, for where systemd-python is not installed.

    Source: systemd.io, Native Journal Protocol: NAME=value lines; a value with line breaks goes as NAME, newline, its
    length in 64 bits little-endian, the value.
    """

    def __init__(self, path: Path = JOURNAL) -> None:
        super().__init__()
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)  # a journal that hangs must not hang a camera

    def emit(self, record: logging.LogRecord) -> None:
        """Send one datagram; a journal that is away or full loses it."""
        try:
            fields = {
                "MESSAGE": self.format(record),
                "PRIORITY": str(priority(record.levelno)),
                "SYSLOG_IDENTIFIER": IDENTIFIER,
                "LOGGER": record.name,
                "THREAD_NAME": record.threadName or "",
                "CODE_FILE": record.pathname,
                "CODE_LINE": str(record.lineno),
            } | {name: getattr(record, name, "") for name in FIELDS}
            self._socket.sendto(b"".join(_field(name, value) for name, value in fields.items() if value), self._path)
        except OSError:
            return
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
        super().close()


def hide(text: str) -> str:
    """Take out what looks like a password in an address, or a private key: the last of several nets."""
    return _SECRETS.sub("…", text)


def priority(level: int) -> int:
    """Return the syslog priority of a log level."""
    for least, number in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return number
    return 7


def under_systemd() -> bool:
    """Return whether standard error is the journal: $JOURNAL_STREAM is inherited, its device and inode are not."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def also_to_the_journal() -> None:
    """Let the journal have the outcome too, when a person or SSH runs us and not systemd."""
    if JOURNAL.exists() and not under_systemd():
        logging.getLogger().addHandler(Sparing(_native()))


def _journal() -> logging.Handler | None:
    return _native() if under_systemd() else None


def _native() -> logging.Handler:
    """Return systemd-python's handler, or ours.

    The folder systemd/ of this project is found as a namespace package, so the import asks for a name in it.
    """
    try:
        from systemd.journal import JournalHandler
    except ImportError:
        handler: logging.Handler = JournalSocket()
    else:
        handler = JournalHandler(SYSLOG_IDENTIFIER=IDENTIFIER)
    handler.setFormatter(_Clean("%(message)s"))
    return handler


def _plain() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Clean("%(asctime)s %(levelname)-7s %(message)s%(fields)s", "%H:%M:%S"))
    return handler


class _Clean(logging.Formatter):
    """Puts the fields at the end where a line asks for them; a traceback is searched for secrets too."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = [f"{name.lower()}={value}" for name in FIELDS if (value := getattr(record, name, ""))]
        record.fields = f"  [{' '.join(pairs)}]" if pairs else ""
        return hide(super().format(record))


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")[:MAX_DATAGRAM_BYTES]
    if b"\n" not in data:
        return f"{name}=".encode() + data + b"\n"
    return f"{name}\n".encode() + len(data).to_bytes(8, "little") + data + b"\n"
