"""Time for 1 % new lines, as a ratio to building everything from them all.

Twice: the newest 1 % in time (what a day brings), and a random 1 % of the baskets (late arrivals
from everywhere; they touch a third of the customers and a tenth of the products). The figure is the
worse of the two. The last line is ``incremental: <figure> ratio``.
"""

from __future__ import annotations

import random
import time

from scout_central.medallion import Runner, RunResult
from tests.bench import journey


def main() -> None:
    """Build 98 %, add the newest 1 %, add a random 1 %."""
    options = journey.arguments(__doc__)
    with journey.server(options.dsn) as dsn:
        documents, _ = journey.prepare(dsn, options.lines)
        share = len(documents) // 100
        older, newest = documents[:-share], documents[-share:]
        chosen = set(random.Random(7).sample(range(len(older)), share))
        base = [document for i, document in enumerate(older) if i not in chosen]
        scattered = [document for i, document in enumerate(older) if i in chosen]
        bronze = journey.Bronze(dsn)
        runner = Runner(dsn)
        bronze.load(base)
        full = timed("full build", runner, len(base))
        bronze.load(newest)
        first = timed("newest 1 %", runner, len(newest))
        bronze.load(scattered)
        second = timed("random 1 %", runner, len(scattered))
    print(f"newest 1 %: {first / full:.4f} ratio, random 1 %: {second / full:.4f} ratio")
    print(f"incremental: {max(first, second) / full:.4f} ratio")


def timed(what: str, runner: Runner, documents: int) -> float:
    """Seconds of one run, with its steps."""
    began = time.perf_counter()
    result = runner.run_once(trigger="bench")
    seconds = time.perf_counter() - began
    print(f"{what}: {documents:,} documents in {seconds:.2f} s")
    show(result)
    assert result.status == "completed", result
    return seconds


def show(result: RunResult) -> None:
    """One line per step."""
    for step in result.steps:
        written = step.rows_inserted + step.rows_updated
        print(
            f"  {step.dataset:31} {step.mode:11} {step.seconds:8.2f} s"
            f" {step.touched_keys:>10,} keys {written:>10,} written {step.rows_deleted:>7,} deleted"
        )


if __name__ == "__main__":
    main()
