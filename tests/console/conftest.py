"""The chain of ``world`` for the console's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console.world import World, hub


@pytest.fixture
def world(database: str, tmp_path: Path) -> Iterator[World]:
    """Eight stores, all well, before the real API."""
    with hub(database, tmp_path / "files") as found:
        yield found
