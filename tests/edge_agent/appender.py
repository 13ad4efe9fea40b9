"""A device that appends without pause and says on stdout what it was told is stored; to be killed.

    python -m tests.edge_agent.appender BUFFER SEED

Each line is written after the buffer said OK: ``r first count`` or ``d first count key``.
A receipt for all but the newest segments is applied now and then; what it deletes was printed too:
``w watermark``, before it is applied.
"""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path

from scout_edge.buffer import Buffer
from scout_shared.messages import Receipt
from tests.edge_agent.records import ZONE, documents, readings

_printing = threading.Lock()


def say(text: str) -> None:
    with _printing:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def append(buffer: Buffer, rng: random.Random, thread: int, start: int) -> None:
    """Records of one thread carry numbers that no other thread or process has."""
    at = start
    while True:
        count = rng.choice([1, 3, 30, 700, 1500])
        first = at * 4 + thread
        if rng.random() < 0.5:
            buffer.append_readings([readings(1, first + 4 * i)[0] for i in range(count)])
            say(f"r {first} {count}")
        else:
            count = min(count, 100)
            made = [documents(buffer, 1, first + 4 * i)[0] for i in range(count)]
            buffer.append_documents(made, key=f"{thread}:{first}")
            say(f"d {first} {count}")
        at += count


def main() -> None:
    path, seed, start = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    with Buffer(path, zone=ZONE) as buffer:
        for thread in range(3):
            args = (buffer, random.Random(seed * 4 + thread), thread, start)
            threading.Thread(target=append, args=args, daemon=True).start()
        while True:
            buffer.seal(min_age_seconds=rng.random() / 50)
            segments = buffer.segments_after(buffer.watermark, 1 << 20)
            if len(segments) > 8:
                for segment in segments[:4]:
                    say(f"s {segment.first_sequence} {segment.kind} {segment.body.hex()}")
                buffer.apply_receipt(Receipt(buffer.epoch, segments[3].last_sequence))


if __name__ == "__main__":
    main()
