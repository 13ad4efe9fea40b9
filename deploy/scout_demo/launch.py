"""Run a command that does not outlive its parent: the kernel signals it when the parent dies.

``python -I -S launch.py PARENT_PID SIGNAL COMMAND...``. A program of its own, because the demo has
threads, and code between fork and exec of such a process may hang for ever. Linux; elsewhere the
command just runs.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>; kept over exec


def main() -> None:
    """Becomes the command."""
    parent, number, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent ended before the command began")
    os.execv(command[0], command)  # noqa: S606 - a list from our own code, no shell


main()
