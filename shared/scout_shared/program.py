"""How each program of ours ends: an exit code, and for what it foresaw one line on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from scout_shared.errors import ScoutError


def exit_code(name: str, command: Callable[[], int]) -> int:
    """Run a command of the program ``name`` and return its exit code.

    A ScoutError ends with its own code and its message on stderr, Ctrl-C with 130. A reader of
    stdout that has seen enough (``| head``) is no failure. Anything else is a defect, and is seen.
    """
    try:
        code = command()
        sys.stdout.flush()  # here, where a reader that has gone is understood
        return code
    except ScoutError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # As Python's documentation on SIGPIPE asks: it flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
