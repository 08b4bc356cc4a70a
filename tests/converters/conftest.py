"""What holds for every test that converts: nothing is reported to anyone, and a time limit ends the process."""

import pytest

from converters.telemetry import forbid

LIMIT_S = 600  # seconds on a quiet machine, minutes on a busy one


def pytest_configure() -> None:
    """Functions below the command line report too."""
    forbid()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test that converts a limit whose end is the end of the process.

    The usual limit raises in the main thread, wherever that is: inside a callback that torch's exporter, NNCF or
    onnxruntime made from C++. One of them does not survive that: seen twice, one test after two such limits, the
    process died in Python's garbage collector over a dictionary that was no more.
    """
    for item in items:
        if item.get_closest_marker("convert") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LIMIT_S, method="thread"))
