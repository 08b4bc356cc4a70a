"""Fixtures every test may ask for."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A shell that starts a command in the background lets it, and all it starts, ignore Ctrl-C. The programs under test
# are sent one, so they must not inherit that; a handler of ours is reset to the default when they are executed.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Take away the handlers that a command line under test has set up: they write to streams of that test."""
    root = logging.getLogger()
    handlers, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    for handler in [handler for handler in handlers if handler not in root.handlers]:
        root.addHandler(handler)
    root.setLevel(level)
    logging.raiseExceptions = raising


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the data folder beside the checkout (or `FACEFLEET_SHARED`); skip without it."""
    folder = Path(os.environ.get("FACEFLEET_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the skips that `FACEFLEET_NO_SKIPS` does not forgive; `pytest_sessionfinish` has failed the run for them."""
    for reason in _unforgiven(terminalreporter):
        terminalreporter.write_line(f"not run, and this run does not forgive it: {reason}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run whose tests were skipped for another reason than those forgiven, where that is asked for."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _unforgiven(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _unforgiven(reporter: pytest.TerminalReporter) -> list[str]:
    """Return why tests were skipped, less what `FACEFLEET_NO_SKIPS` names: words, separated by commas, of reasons."""
    forgiven = [word for word in os.environ.get("FACEFLEET_NO_SKIPS", "").split(",") if word]
    if not forgiven:
        return []
    skips = [report.longrepr for report in reporter.stats.get("skipped", [])]
    reasons = {str(skip[2]) if isinstance(skip, tuple) else str(skip) for skip in skips}
    return sorted(reason for reason in reasons if not any(word in reason for word in forgiven))
