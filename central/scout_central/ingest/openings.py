"""Who writes a stream: one line of openings of a buffer file; a copy of the file is told so.

Two copies of a file have one epoch. All below the first sequence of an opening stood in the file
when it was copied, byte for byte; all from there on is of that writer alone. So the hub accepts a
writer only as the next of the line that it knows, and tells every other one from where on its
records need an epoch of their own. Decided under the lock of the stream's row; a hello repeated is
answered alike, whatever came in between. A hello without lineage is taken as it is.
Not its job: data that a copy sends all the same (``isolation.contest``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scout_central import database
from scout_central.ingest import statements as sql
from scout_central.ingest.arrivals import HelloArrival, Parsed
from scout_central.ingest.ledger import StreamReceipt, Work, note_error
from scout_shared.messages import Fork, Opening, Receipt


@dataclass(slots=True)
class Line:
    """The accepted openings of a stream."""

    openings: list[Opening]
    next_sequence: int
    """The device or the data showed that there are sequences below this."""
    stored: int = 0
    """How many of ``openings``, from the first, stand in the table."""


@dataclass(slots=True)
class Admission:
    """What was decided of the hellos of a batch."""

    refused: set[int] = field(default_factory=set)
    """Positions of the hellos of copies: they speak for no stream."""
    receipts: list[StreamReceipt] = field(default_factory=list)
    """For the copies. Send them before the receipts of their streams: the last one is retained."""


def judge(line: Line, lineage: Sequence[Opening], next_sequence: int) -> Fork | None:
    """Accept the newest of ``lineage`` into ``line``, or tell where it leaves it.

    Args:
        next_sequence: the next one that this file would give.

    Returns:
        None: accepted. Else where this file left the line.
    """
    known = {opening.nonce: i for i, opening in enumerate(line.openings)}
    at = next((i for i in reversed(range(len(lineage))) if lineage[i].nonce in known), -1)
    following = lineage[at + 1 :]
    if at < 0:
        # Of a stream that had no line yet, what came by hand or from an older agent may be its own.
        if line.openings or line.next_sequence > next_sequence:
            return _fork(lineage, following, following[0].first_sequence)
        line.openings += following
        return None
    if after := line.openings[known[lineage[at].nonce] + 1 :]:
        first = min(opening.first_sequence for opening in (after[0], *following[:1]))
        return _fork(lineage, following, first)
    if following and line.next_sequence > following[0].first_sequence:
        # More is known than stood in this file: an old image, or a disk that lost what it synced.
        return _fork(lineage, following, following[0].first_sequence)
    line.openings += following
    return None


def _fork(lineage: Sequence[Opening], following: Sequence[Opening], first: int) -> Fork:
    return Fork(lineage[-1].nonce, first, (*following, lineage[-1])[0].nonce)


def admit(
    connection: database.Connection,
    work: Work,
    batch: Sequence[Parsed],
    streams: list[int | None],
) -> Admission:
    """Decide for each hello of the batch, in order, and store the accepted writers."""
    done = Admission()
    claims = [
        (position, stream_id, item)
        for position, (item, stream_id) in enumerate(zip(batch, streams, strict=True))
        if isinstance(item, HelloArrival) and stream_id is not None and item.hello.lineage
    ]
    if not claims:
        return done
    lines = {
        stream_id: Line(
            [Opening(bytes(n), first) for n, first in zip(nonces, firsts, strict=True)],
            next_sequence or 1,
            len(nonces),
        )
        for stream_id, next_sequence, nonces, firsts in connection.execute(
            sql.READ_OPENINGS, {"streams": sorted({stream_id for _, stream_id, _ in claims})}
        )
    }
    for position, stream_id, item in claims:
        line, hello = lines[stream_id], item.hello
        fork = judge(line, hello.lineage, hello.next_sequence)
        if fork is None:
            line.next_sequence = max(line.next_sequence, hello.next_sequence)
            continue
        done.refused.add(position)
        done.receipts.append(
            StreamReceipt(
                item.arrival.store_id,
                item.arrival.device_id,
                Receipt(hello.epoch, 0, credit=0, fork=fork),
            )
        )
        _note_copy(work, item, fork, line)
    added = [
        (stream_id, position, *line.openings[position])
        for stream_id, line in lines.items()
        for position in range(line.stored, len(line.openings))
    ]
    if added:
        stream_ids, positions, nonces, firsts = zip(*added, strict=True)
        connection.execute(
            sql.ADD_OPENINGS,
            {
                "streams": list(stream_ids),
                "positions": list(positions),
                "nonces": list(nonces),
                "firsts": list(firsts),
            },
        )
    return done


def _note_copy(work: Work, item: HelloArrival, fork: Fork, line: Line) -> None:
    device_id, hello = item.arrival.device_id, item.hello
    writer = line.openings[-1].nonce.hex() if line.openings else "unknown"
    note_error(
        work,
        item,
        code="buffer_copied",
        severity="high",
        message=f"the buffer of device {device_id} exists twice: writer {fork.writer.hex()} (boot "
        f"{hello.boot_id}, version {hello.version}) is a copy that left the line of writer {writer}"
        f" at sequence {fork.first_sequence} of epoch {hello.epoch.hex()}",
        hint="nothing is lost: the copy goes on under a new epoch by itself. Find out whether a "
        "card was cloned or an image restored, and whether two boxes run with this id; then stop "
        "one, or give it an id of its own",
    )
