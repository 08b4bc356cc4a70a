"""Become another program that dies with its parent: `python leash.py SIGNAL UID GID PARENT PROGRAM ARGUMENT…`.

Run by bridge/child.py in place of `preexec_fn`, which may deadlock in a process with threads. UID or GID -1 keeps ours.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Take another user's rights, ask the kernel for a signal when the parent dies, become the program."""
    stop_signal, uid, gid, parent = map(int, argv[:4])
    if gid >= 0:
        os.setgroups([])
        os.setgid(gid)
    if uid >= 0:
        os.setuid(uid)  # before prctl: it would clear the setting
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, stop_signal)
        if os.getppid() != parent:  # it died before we could ask
            sys.exit(1)
    os.execv(argv[4], argv[4:])


if __name__ == "__main__":
    main(sys.argv[1:])
