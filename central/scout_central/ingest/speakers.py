"""Two boxes with one id: their hellos come in turns. It is said, and the data of both lands.

Each box has a buffer, and so a stream, of its own. A device that changes its buffer (a new card)
never goes back to the old one; one that does, from another boot, within some heartbeats, is two.
Not its job: copies of one buffer (``openings``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from scout_central import database
from scout_central.ingest import statements as sql
from scout_central.ingest.arrivals import HelloArrival, Parsed
from scout_central.ingest.ledger import Work, note_error

HEARTBEATS = 10
"""A box that was silent for longer was replaced, or its hellos were lost; both are no alarm."""


class _Speaker(NamedTuple):
    epoch: str
    boot: str
    version: str
    heard_at: float
    """Hub's clock, seconds since 1970."""


def compare_speakers(
    connection: database.Connection,
    work: Work,
    batch: Sequence[Parsed],
    refused: Collection[int],
) -> None:
    """Note which buffer spoke before the present one; tell when it speaks again.

    Before ``greet`` stores the newest hellos. ``refused``: positions that are not believed.
    """
    hellos = [
        item
        for position, item in enumerate(batch)
        if isinstance(item, HelloArrival) and not item.hello.recovered and position not in refused
    ]
    if not hellos:
        return
    present: dict[str, _Speaker] = {}
    previous: dict[str, _Speaker] = {}
    for device_id, *found in connection.execute(
        sql.READ_GREETED, {"devices": sorted({h.arrival.device_id for h in hellos})}
    ):
        for speakers, fields in ((present, found[:4]), (previous, found[4:])):
            if None not in fields:
                speakers[device_id] = _Speaker(*fields)
    changed: dict[str, _Speaker] = {}
    now = work.received_ms / 1000
    for item in hellos:
        device_id, hello = item.arrival.device_id, item.hello
        speaker = _Speaker(hello.epoch.hex(), hello.boot_id, hello.version, now)
        other = present.get(device_id)
        present[device_id] = speaker
        if other is None or other.epoch == speaker.epoch:
            continue
        before = previous.get(device_id)
        previous[device_id] = changed[device_id] = other
        if (
            before is not None
            and before.epoch == speaker.epoch
            and other.boot != speaker.boot
            and now - before.heard_at <= HEARTBEATS * hello.interval_seconds
        ):
            note_error(
                work,
                item,
                code="device_id_used_twice",
                severity="critical",
                message=f"two boxes speak as device {device_id}: version {other.version}, boot "
                f"{other.boot}, and version {speaker.version}, boot {speaker.boot}",
                hint="the data of both is kept apart and complete; find the second box, stop it or "
                "give it an id of its own",
            )
    if changed:
        connection.execute(
            sql.SET_PREVIOUS,
            {
                "devices": list(changed),
                "epochs": [speaker.epoch for speaker in changed.values()],
                "boots": [speaker.boot for speaker in changed.values()],
                "versions": [speaker.version for speaker in changed.values()],
                "heard": [speaker.heard_at for speaker in changed.values()],
            },
        )
