"""kill -9 of a writing process at random points: what it was told is stored is there, once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from scout_edge import extent
from scout_edge.buffer import Buffer, StoredSegment
from scout_shared import wire
from tests.edge_agent.records import ZONE, contents, stored

KILLS = 12


def run_and_kill(path: Path, seed: int, start: int, seconds: float, output: Path) -> list[str]:
    """Whole lines that the process wrote before it was killed."""
    with (
        output.open("wb") as sink,
        subprocess.Popen(
            [sys.executable, "-m", "tests.edge_agent.appender", str(path), str(seed), str(start)],
            stdout=sink,
            cwd=Path(__file__).parents[2],
        ) as process,
    ):
        # Not a wait for something: the random moment of the crash, counted from the first OK.
        while output.stat().st_size == 0 and process.poll() is None:
            time.sleep(0.005)
        time.sleep(seconds)
        process.kill()
    text = output.read_text()
    return text[: text.rindex("\n") + 1].splitlines() if "\n" in text else []


@pytest.mark.slow
def test_what_the_buffer_said_is_stored_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    rng = random.Random(20261123)
    told_readings: set[int] = set()
    told_documents: set[int] = set()
    at_hub: dict[int, StoredSegment] = {}
    start = 0
    epochs = set()
    for kill in range(KILLS):
        lines = run_and_kill(path, kill, start, rng.random() * 0.4, tmp_path / f"{kill}.out")
        start += 10_000_000  # numbers of this process are its own
        for line in lines:
            kind, *fields = line.split()
            if kind in ("r", "d"):
                first, count = int(fields[0]), int(fields[1])
                told = told_readings if kind == "r" else told_documents
                told.update(first + 4 * i for i in range(count))
            else:
                body = bytes.fromhex(fields[2])
                header = wire.decode_header(body)
                segment = StoredSegment(header.first_sequence, header.records, header.kind, body)
                assert at_hub.setdefault(segment.first_sequence, segment) == segment
        noted = extent.read(path)
        with Buffer(path, zone=ZONE, note_seconds=0) as buffer:
            assert noted is not None
            assert noted.records < buffer.next_sequence, "a note is never ahead of the file"
            epochs.add(buffer.epoch)
            buffer.seal()
            # Segments that a receipt may have covered were all handed to the hub before.
            held = dict(at_hub)
            for segment in stored(buffer, after=buffer.watermark):
                assert held.setdefault(segment.first_sequence, segment) == segment
            expected = 1
            for first in sorted(held):
                assert first == expected, f"after kill {kill}: gap before {first}"
                expected += held[first].records
            assert expected == buffer.next_sequence
            found, bodies = contents(held[first] for first in sorted(held))
            numbers = Counter(int(r.value) for r in found.elements())
            doc_numbers = Counter(int(d.body.split(b":")[1].split(b",")[0]) for d in bodies)
            assert not told_readings - numbers.keys(), "readings that were told stored are gone"
            assert not told_documents - doc_numbers.keys(), "documents told stored are gone"
            assert set(numbers.values()) <= {1}
            assert set(doc_numbers.values()) <= {1}
            records = sum(numbers.values()) + sum(doc_numbers.values())
            assert sum(entry.records for entry in buffer.status().ledger) == records
    assert len(epochs) == 1
    assert len(told_readings) > 1000
    assert len(told_documents) > 100
