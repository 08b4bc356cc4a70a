"""A box whose power goes while it enrolls: run by test_claim.py, SIGKILLs itself at a step."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from edge.box import certificate, enrollment
from edge.box.enrollment import enroll
from edge.box.keystore import KeyFile
from edge.config import load_box


def cut(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(path: str, step: str) -> None:
    """Enroll, and die before a step, or in the middle of one."""
    if step == "after asked":  # the authority has answered, and nobody was there to hear it
        enrollment._chain = lambda *_: cut()
    elif step == "after key on the disk":
        write = KeyFile.write

        def write_and_die(self: KeyFile, pem: bytes) -> str:
            write(self, pem)
            cut()
            return ""

        KeyFile.write = write_and_die  # type: ignore[method-assign]
    elif step == "after half stored":  # box.pem is there, the claim too
        certificate.forget_claim = cut  # type: ignore[assignment]
    config = load_box(Path(path))
    print(enroll(config, at=lambda now: cut() if now == step else None))


if __name__ == "__main__":
    words: list[Any] = sys.argv[1:]
    main(*words)
