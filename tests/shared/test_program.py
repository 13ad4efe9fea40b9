from __future__ import annotations

import subprocess
import sys

import pytest

from scout_shared import program
from scout_shared.errors import ConfigError, TransientError


def _ended(code: str) -> tuple[int, bytes]:
    """Exit code and stderr of a program that does ``code``; its reader goes after one line."""
    text = (
        "import sys\nfrom scout_shared import program\n"
        f"def command():\n    {code}\n    return 3\n"
        "sys.exit(program.exit_code('scout-x', command))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdin.close()
        return process.wait(20), process.stderr.read()


def test_the_command_gives_the_exit_code() -> None:
    assert _ended("print(1)") == (3, b"")


@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_reader_that_has_seen_enough_is_no_failure(lines: int) -> None:
    code = f"print(1, flush=True); sys.stdin.read(); [print('x' * 1000) for _ in range({lines})]"
    assert _ended(code) == (0, b"")


@pytest.mark.parametrize("error", [ConfigError("no port", "give one"), TransientError("away")])
def test_what_was_foreseen_is_one_line_and_its_code(
    error: ConfigError | TransientError, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> int:
        raise error

    assert program.exit_code("scout-x", fails) == error.exit_code != 0
    assert capsys.readouterr().err == f"scout-x: {error}\n"


def test_an_interrupt_is_told_as_shells_tell_it() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert program.exit_code("scout-x", interrupted) == 130


def test_a_defect_is_seen() -> None:
    def defect() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        program.exit_code("scout-x", defect)
