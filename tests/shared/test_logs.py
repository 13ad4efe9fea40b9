import json
import subprocess
import sys

PROGRAM = """
from scout_shared import logs
log = logs.get("buffer")
logs.configure(json=True, level="info")
log.debug("hidden.event")
log.info("batch.forwarded", records=3)
for _ in range(5):
    log.warning("disk.slowed", seconds=1.5)
print("data")
"""


def test_logs_are_json_lines_on_stderr_and_repeats_are_thinned() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout == "data\n"
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [e["event"] for e in events] == ["batch.forwarded", "disk.slowed"]
    assert events[0]["component"] == "buffer"
    assert events[0]["records"] == 3
    assert events[0]["level"] == "info"
    assert events[0]["timestamp"].endswith("Z")
