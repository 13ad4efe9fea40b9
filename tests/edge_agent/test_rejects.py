"""The reject file: bounded, never twice, whatever is killed between two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scout_edge.buffer import Buffer
from scout_edge.sources import rejects as module
from scout_edge.sources.files import FilesSettings
from scout_edge.sources.rejects import Reject, RejectFile
from scout_shared.errors import ConfigError
from tests.edge_agent.records import ZONE, outlet_of


def bad(i: int) -> Reject:
    return Reject("sales.csv", 7, 100 * i, "not a number", b"x" * 50)


def offsets(path: Path) -> list[int]:
    return [json.loads(line)["offset"] // 100 for line in path.read_bytes().splitlines()]


def test_the_files_stay_below_their_limit_and_what_leaves_is_counted(tmp_path: Path) -> None:
    kept = RejectFile(tmp_path / "a.rejects", 4000)
    dropped = 0
    for i in range(200):
        dropped += kept.keep([bad(i)])
        kept.committed()
        sizes = [file.stat().st_size for file in tmp_path.iterdir()]
        assert sum(sizes) <= 4000
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.rejects", "a.rejects.1"]
    left = offsets(kept.older) + offsets(kept.path)
    assert left == list(range(200 - len(left), 200)), "the newest are kept, in order"
    assert dropped + len(left) == 200


def test_none_stands_twice_after_a_crash_between_rotation_and_commit(tmp_path: Path) -> None:
    def keep(*numbers: int) -> None:
        # A new one each time: the place behind it was not committed before the crash.
        RejectFile(tmp_path / "a.rejects", 4000).keep([bad(i) for i in numbers])

    for i in range(50):
        keep(i)
        keep(i, i + 1)  # the file had grown; this may turn it over
        keep(i, i + 1)
    files = RejectFile(tmp_path / "a.rejects", 4000)
    left = offsets(files.older) + offsets(files.path)
    assert left == list(range(51 - len(left), 51))


def test_the_drop_is_counted_as_a_metric(tmp_path: Path) -> None:
    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:
        outlet = outlet_of(buffer, "sales")
        outlet.rejects_dropped(3, tmp_path / "a.rejects")
        text = outlet._metrics.text()
    assert b'scout_edge_dropped_rejects_total{source="sales"} 3.0' in text


def test_a_limit_that_holds_no_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reject_max_bytes 1000 is too small"):
        FilesSettings(
            format="csv", document_type="d", path=tmp_path / "*.csv", reject_max_bytes=1000
        )
    assert module.MIN_BYTES // 2 > module._LOOK_BACK_BYTES
