"""A short run of the fault harness, as a person starts it: each class of faults at least once.

``make chaos N=300 SEED=…`` is the long one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.chaos import plan

ROOT = Path(__file__).parents[2]
SCHEDULES, SEED = 5, 309517


def test_the_short_run_has_every_class_of_faults() -> None:
    plans = [plan.make(plan.seed_of(SEED, number)) for number in range(SCHEDULES)]
    assert {kind for one in plans for kind in one.kinds} == set(plan.CLASSES)


@pytest.mark.slow
@pytest.mark.system
def test_under_every_class_of_faults_nothing_is_lost_or_doubled() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.system.chaos"),
            *("--schedules", str(SCHEDULES), "--seed", str(SEED)),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "deploy")},  # as the Makefile sets it
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = re.search(r"(\d+) records told OK: 0 lost, 0 doubled, .* all declared", done.stdout)
    assert summary is not None
    assert int(summary[1]) > 0
