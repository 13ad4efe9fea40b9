"""The agent on a card whose root is mounted read-only: it writes to its buffer's folder only."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.edge_agent.hub import Hub
from tests.edge_agent.test_cli import SCOUT_EDGE, fetch, write
from tests.harness.process import Process
from tests.harness.servers import Address
from tests.harness.waiting import eventually

SALE = b'{"type":"transaction","observed_at":"2026-11-23T08:15:00+08:00","body":{"n":1}}'
# A mount namespace of its own: the bind mount of the folder stays writable, all else does not.
NAMESPACE = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
for folder in / /dev/shm /tmp; do
  if mountpoint -q "$folder"; then mount -o remount,bind,ro "$folder"; fi
done
if touch "$2" 2>/dev/null; then echo "the root is still writable"; exit 9; fi
shift 2
exec "$@"
"""


def _command(folder: Path, *arguments: str) -> list[str]:
    probe = str(folder.parent / "probe")
    return [
        *("unshare", "--mount", "sh", "-c", NAMESPACE, "sh", str(folder), probe),
        *(*SCOUT_EDGE, *arguments),
    ]


def _namespaces() -> bool:
    if os.geteuid():
        return False
    return not subprocess.run(
        ["unshare", "--mount", "mount", "--make-rprivate", "/"], capture_output=True, check=False
    ).returncode


@pytest.mark.skipif(not _namespaces(), reason="a mount namespace needs root")
async def test_with_a_read_only_root_it_takes_keeps_and_sends(
    tmp_path: Path, broker: Address, processes: Callable[..., Process]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    config = write(tmp_path, broker.port)
    agent = processes(_command(folder, "run", "--config", str(config)))
    await asyncio.to_thread(agent.wait_for_output, "door.opened")
    answer = await asyncio.to_thread(fetch, config, "/v1/documents", SALE)
    assert answer == {"accepted": 1, "duplicate": False}
    agent.kill()

    agent = processes(_command(folder, "run", "--config", str(config)))
    hub = Hub()
    async with hub.running(*broker):
        await asyncio.to_thread(eventually, lambda: hub.segments, 20)
        assert await asyncio.to_thread(agent.terminate) == 0
