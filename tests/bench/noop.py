"""Time of a run with nothing to do, as a ratio to building everything.

The median of twenty runs of a hub that stays up, after a full build of all lines; the first run of
a new process, which parses the SQL, is shown beside it. The last line is ``noop: <figure> ratio``.
"""

from __future__ import annotations

import statistics
import time

import psycopg

from scout_central.medallion import Runner
from tests.bench import journey
from tests.bench.incremental import timed

ROWS = "select count(*) from metadata.agent_orchestration"


def main() -> None:
    """Build all, then run with nothing to do."""
    options = journey.arguments(__doc__)
    with journey.server(options.dsn) as dsn:
        documents, _ = journey.prepare(dsn, options.lines)
        journey.Bronze(dsn).load(documents)
        runner = Runner(dsn)
        full = timed("full build", runner, len(documents))
        with psycopg.connect(dsn) as connection:
            before = connection.execute(ROWS).fetchone()
            seconds = []
            for _ in range(20):
                began = time.perf_counter()
                result = runner.run_once(trigger="bench")
                seconds.append(time.perf_counter() - began)
                assert not result.steps, result
            began = time.perf_counter()
            Runner(dsn).run_once(trigger="bench")
            cold = time.perf_counter() - began
            assert connection.execute(ROWS).fetchone() == before
    figure = statistics.median(seconds)
    print(
        f"nothing to do: median {figure * 1000:.1f} ms, worst {max(seconds) * 1000:.1f} ms,"
        f" new process {cold * 1000:.0f} ms, no ledger rows written"
    )
    print(f"noop: {figure / full:.6f} ratio")


if __name__ == "__main__":
    main()
