"""Lines per second from the tills to gold: the whole data set through the devices, by the demo.

All 1,469,307 lines of 457 stores are posted to the agents' HTTP doors, eight agents at a time, and
travel through broker, hub and database; the clock stops when everything is in gold and the account
balances. Start and stop of all programs are in it. ``--transactions`` takes fewer lines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ALL_LINES = 1_469_307


def main() -> int:
    """Print the setting, the account, and as the last line the rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transactions", type=int, default=ALL_LINES, help="lines, at least")
    parser.add_argument("--agents", type=int, default=8, help="agents at the same time")
    parser.add_argument("--folder", type=Path, default=None, help="where to write (a real disk)")
    args = parser.parse_args()
    print(
        f"setting: {args.transactions:,} lines, all stores, {args.agents} agents at a time, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, fresh database, fsync on"
    )
    with tempfile.TemporaryDirectory(prefix="scout-replay-", dir=args.folder) as folder:
        Path(folder).chmod(0o755)  # the database's own user must be able to pass through
        ports = [f"--{name}-port" for name in ("api", "console", "database", "broker", "door")]
        started = time.perf_counter()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "scout_demo", "--once", "--json", "--stores", "all"),
                *("--data-dir", str(Path(folder) / "demo"), "--agents", str(args.agents)),
                *("--transactions", str(args.transactions)),
                *(part for port in ports for part in (port, "0")),
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "deploy")},
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        print(f"the demo exits with {done.returncode}: {done.stdout}")
        return 1
    account = json.loads(done.stdout)
    for kind, row in account["equation"].items():
        print(f"{kind}: " + ", ".join(f"{name} {count:,}" for name, count in row.items()))
    for name, table in account["tables"].items():
        print(f"{name}: {table['rows']:,} rows")
    print(f"time: {seconds:.0f} s for {account['sold']['lines']:,} lines")
    print(f"replay: {account['sold']['lines'] / seconds:.0f} lines/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
