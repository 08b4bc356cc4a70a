"""Log lines carry fields, repeats are counted, secrets stay unsaid; with systemd-python, without, on a terminal."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from edge.box import logs
from edge.box.logs import BURST, WINDOW_S, JournalSocket, Sparing, hide

FIELDS = {"CAMERA": "door", "EVENT": "camera_lost"}


class Kept(logging.Handler):
    """An inner handler that only keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def said() -> Iterator[tuple[logging.Logger, Kept, list[float]]]:
    """Return a logger, what came out of it, and a clock to set."""
    kept, now = Kept(), [0.0]
    sparing = Sparing(kept, clock=lambda: now[0])
    logger = logging.Logger("edge.test")
    logger.addHandler(sparing)
    yield logger, kept, now
    sparing.close()


Said = tuple[logging.Logger, Kept, list[float]]


def test_a_text_that_comes_again_and_again_is_counted(said: Said) -> None:
    log, kept, now = said
    for i in range(BURST + 41):
        log.warning("door: no answer; trying again in %.1f s", i * 0.3)
    assert len(kept.texts) == BURST
    now[0] = WINDOW_S
    log.info("something else")
    assert kept.texts[BURST] == "door: no answer; trying again in 12.9 s … 41 times more in the last minute"
    assert kept.texts[BURST + 1] == "something else"
    log.warning("door: no answer; trying again in 60.0 s")
    assert kept.texts[-1] == "door: no answer; trying again in 60.0 s", "a new minute"


def test_texts_that_differ_in_words_are_all_said(said: Said) -> None:
    log, kept, _ = said
    for name in ("door", "yard", "lobby", "roof", "gate"):
        log.warning("camera %s is lost", name)
    log.error("camera door is lost")
    assert len(kept.texts) == 6


def test_what_was_counted_is_said_at_the_end_too(said: Said) -> None:
    log, kept, _ = said
    for _ in range(BURST + 2):
        log.warning("again")
    log.handlers[0].close()
    assert kept.texts[-1] == "again … 2 times more in the last minute"


def test_what_was_counted_is_said_when_nothing_else_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "WINDOW_S", 2.0)
    kept = Kept()
    log = logging.Logger("edge.test")
    log.addHandler(Sparing(kept))
    for _ in range(BURST + 2):
        log.warning("again")
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(30)
    assert kept.texts[-1] == "again … 2 times more in the last minute"


def test_ever_new_texts_take_no_more_memory_than_a_thousand(said: Said) -> None:
    log, kept, _ = said
    for i in range(logs.MOST_TEXTS + 50):
        log.warning("text %s", "x" * i)
    assert len(kept.texts) == logs.MOST_TEXTS + 50
    (handler,) = log.handlers
    assert isinstance(handler, Sparing)
    assert len(handler._repeats._said) == logs.MOST_TEXTS


def test_a_terminal_gets_the_fields_at_the_end_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", out := StringIO())
    before = list(logging.getLogger().handlers)
    level = logging.getLogger().level
    try:
        logs.set_up()
        logs.name_box("munich", "lobby-1")
        logging.getLogger("edge.camera").warning("camera %s is lost: %s", "door", "no frames", extra=FIELDS)
        logging.getLogger("edge.app").info("plain")
    finally:
        for handler in logging.getLogger().handlers:
            handler.close()
        logging.getLogger().handlers = before
        logging.raiseExceptions = True
        logging.getLogger().setLevel(level)
    lost, plain = (line[9:] for line in out.getvalue().splitlines())  # without the time
    assert lost == "WARNING camera door is lost: no frames  [box=munich/lobby-1 camera=door event=camera_lost]"
    assert plain == "INFO    plain  [box=munich/lobby-1]"


def parse(datagram: bytes) -> dict[str, str]:
    """Read a datagram of the native journal protocol."""
    fields = {}
    while datagram:
        head, _, datagram = datagram.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            length = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + length], datagram[8 + length + 1 :]
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """Return a socket that stands in for journald's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "journal"))
        made.settimeout(10)
        yield made


def test_the_journal_gets_fields_in_one_datagram_without_a_library(journal: socket.socket) -> None:
    log = logging.Logger("edge.camera")
    handler = Sparing(JournalSocket(Path(journal.getsockname())))
    handler.box = "munich/lobby-1"
    log.addHandler(handler)
    log.warning("camera door is lost", extra=FIELDS)
    fields = parse(journal.recv(1 << 16))
    assert fields.items() >= {
        "MESSAGE": "camera door is lost", "PRIORITY": "4", "SYSLOG_IDENTIFIER": "facefleet-edge",
        "LOGGER": "edge.camera", "BOX": "munich/lobby-1", "CAMERA": "door", "EVENT": "camera_lost",
    }.items()  # fmt: skip
    try:
        raise ValueError("rtsp://anna:hunter2@cam/1 said no")
    except ValueError:
        log.exception("died")
    fields = parse(journal.recv(1 << 16))
    assert fields["MESSAGE"].startswith("died\nTraceback")
    assert "rtsp://…@cam/1 said no" in fields["MESSAGE"]
    handler.close()


def test_a_full_journal_holds_nobody_up_and_gets_the_next_line_once_it_is_read(
    journal: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.Logger("edge")
    log.addHandler(handler := JournalSocket(Path(journal.getsockname())))
    began_s = time.monotonic()
    for i in range(5000):  # far more than the socket's buffer takes; nobody reads
        log.warning("line %d", i)
    assert time.monotonic() - began_s < 30
    journal.setblocking(False)
    took = []
    with contextlib.suppress(BlockingIOError):
        while True:
            took.append(parse(journal.recv(1 << 16))["MESSAGE"])
    assert 0 < len(took) < 5000
    assert took == [f"line {i}" for i in range(len(took))], "what came first is whole, the rest is lost"
    log.warning("there is room again")
    assert parse(journal.recv(1 << 16))["MESSAGE"] == "there is room again"
    handler.close()
    assert capsys.readouterr().err == ""


def test_a_journal_that_is_away_loses_a_line_and_gets_the_next_when_it_is_back(
    tmp_path: Path, journal: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.Logger("edge")
    for path in (tmp_path / "away", Path(journal.getsockname())):
        log.addHandler(JournalSocket(path))
    log.warning("into the void")
    assert parse(journal.recv(1 << 16))["MESSAGE"] == "into the void", "whoever else listens has it"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as back:
        back.bind(str(tmp_path / "away"))
        back.settimeout(10)
        log.warning("welcome back")
        assert parse(back.recv(1 << 16))["MESSAGE"] == "welcome back"
    for handler in log.handlers:
        handler.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("level", "number"), [(10, 7), (20, 6), (30, 4), (40, 3), (50, 2)])
def test_levels_become_syslog_priorities(level: int, number: int) -> None:
    assert logs.priority(level) == number


def test_passwords_in_addresses_and_private_keys_are_taken_out() -> None:
    assert hide("rtsp://u:p%40ss@10.0.0.1/a and http://x/y") == "rtsp://…@10.0.0.1/a and http://x/y"
    pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----"
    assert hide(f"found {pem}!") == "found …!"
    assert hide("found -----BEGIN PRIVATE KEY-----\nMHc") == "found …"
    assert hide("user@host and a:b") == "user@host and a:b"


ASK = """
import logging, sys
from edge.box import logs
logs.JOURNAL = sys.argv[1]
logs.set_up()
logs.name_box("munich", "lobby-1")
(handler,) = logging.getLogger().handlers
print(type(handler.inner).__name__)
"""


@pytest.mark.parametrize("inherited", [False, True], ids=["ours", "inherited"])
def test_only_a_standard_error_that_is_the_journal_counts_as_one(tmp_path: Path, inherited: bool) -> None:
    """$JOURNAL_STREAM stays in the environment of everything a service starts, also where stderr is a pipe."""
    with (tmp_path / "stream").open("wb") as stream:
        found = os.fstat(stream.fileno())
        name = "1:2" if inherited else f"{found.st_dev}:{found.st_ino}"
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(tmp_path / "journal")],
            env=os.environ | {"JOURNAL_STREAM": name}, stdout=subprocess.PIPE, stderr=stream, text=True, check=True,
        )  # fmt: skip
    kind = done.stdout.strip()
    assert kind == "StreamHandler" if inherited else kind in ("JournalSocket", "JournalHandler")


def test_systemd_python_gets_the_same_fields() -> None:
    """Its own formatting of a record, with what would go to the journal caught."""
    sent: list[dict[str, object]] = []

    def send(message: str, /, **fields: object) -> None:
        sent.append({"MESSAGE": message, **fields})

    try:
        from systemd import journal
    except ImportError:
        pytest.skip("systemd-python is not installed: extra journal")
    handler = journal.JournalHandler(sender_function=send, SYSLOG_IDENTIFIER="facefleet-edge")
    handler.setFormatter(logs._Clean("%(message)s"))
    log = logging.Logger("edge.camera")
    log.addHandler(sparing := Sparing(handler))
    sparing.box = "munich/lobby-1"
    log.warning("camera %s: %s", "door", "rtsp://anna:hunter2@cam", extra=FIELDS)
    try:
        raise ValueError("rtsp://anna:hunter2@cam")
    except ValueError:
        log.exception("died")
    assert sent[0].items() >= {"MESSAGE": "camera door: rtsp://…@cam", "BOX": "munich/lobby-1", **FIELDS}.items()
    assert "hunter2" not in repr(sent)
