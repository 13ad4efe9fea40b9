"""An agent's files source in a process of its own; to be killed.

python -m tests.edge_agent.tailer BUFFER PATTERN MODE
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from scout_edge.buffer import Buffer
from scout_edge.sources import files
from scout_edge.sources.files import FilesSettings, FilesSource
from tests.edge_agent.records import ZONE, outlet_of

files._CHUNK_LINES = 5  # many commits, so that a kill falls between two of them


def main() -> None:
    settings = FilesSettings(
        path=Path(sys.argv[2]),
        mode=sys.argv[3],
        format="jsonl",
        document_type="transaction",
        poll_seconds=0.01,
        settle_seconds=0.05,
    )
    with Buffer(Path(sys.argv[1]), zone=ZONE) as buffer:
        source = FilesSource(outlet_of(buffer, "sales"), settings, name="sales")
        source.open()
        sys.stdout.write("open\n")
        sys.stdout.flush()
        source.run(threading.Event())


if __name__ == "__main__":
    main()
