"""Two front ends over one core that knows neither."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module, absent",
    [
        ("scout_console.views", ("streamlit", "textual")),
        ("scout_console.sheets", ("streamlit", "textual")),
        ("scout_console.feed", ("streamlit", "textual")),
        ("scout_console.cli", ("streamlit", "textual")),
        ("scout_console.tui.app", ("streamlit", "pandas", "altair")),
        ("scout_console.web.app", ("textual",)),
        ("scout_console.web.pages", ("textual",)),
    ],
)
def test_a_front_end_does_not_load_the_other(module: str, absent: tuple[str, ...]) -> None:
    script = f"import sys, importlib; importlib.import_module({module!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & set(absent)
