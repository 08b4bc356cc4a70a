"""The real bridge as a process, perhaps sabotaged: `python -m tests.chaos.bridge_process SABOTAGE CONFIG`."""

import sys

from bridge import app, cli
from tests.chaos import sabotage

if __name__ == "__main__":
    app.REPORT_S = 1.0  # its counts reach the log before it is killed
    sabotage.apply(sys.argv[1])
    sys.exit(cli.main(["run", sys.argv[2]]))
