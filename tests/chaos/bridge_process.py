"""The real bridge as a process, perhaps sabotaged: `python -m tests.chaos.bridge_process SABOTAGE CONFIG`."""

import os
import sys
import threading

from bridge import app, cli
from tests.chaos import sabotage


def _end_with_parent() -> None:
    """Leave nobody behind: our standard input closes when the supervisor dies."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    app.REPORT_S = 1.0  # its counts reach the log before it is killed
    sabotage.apply(sys.argv[1])
    sys.exit(cli.main(["run", sys.argv[2]]))
