"""Decides which segment is sent next: what is new at a configured share, the backlog behind it.

    backlog   oldest first, from the watermark; its receipts free the disk
    live      what was sealed last, sales before readings; people wait for it

Both lanes read one sequence, from two places, and the live one only has work while the backlog is
long. Every slot of the window adds ``live_share`` to what the live lane is owed, up to one: so a
segment that is sealed after a quiet time takes the very next slot, however long the backlog, and a
busy live lane never takes more than its share.

Invariant: each sealed segment is at the hub, or in ``flights``, or will be given out again. The two
places are only short cuts: with nothing in flight and nothing found, they are searched again.

While ``saving`` (the budget of a metered link is used up) only documents and gaps flow.

Bounded holes: a receipt carries 64 ranges above the watermark, and what lies beyond them is sent
again. So sales of the backlog are not picked out of it (a range for each), sales of the live lane
only out of its next ``AHEAD`` segments, and the live lane leaves readings behind to catch up with
the newest at most ``MAX_SKIPS`` times until the backlog has reached it. Documents that go alone
leave a hole for each run of readings before them: from ``MANY_RANGES`` on each takes along a piece
of the smallest hole, from ``MOST_RANGES`` on they wait for as many as it takes.
Not its job: how many may be in flight, when a receipt is overdue (``forwarder``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scout_edge.buffer import Buffer
from scout_edge.sealed import StoredSegment
from scout_shared.wire import DOCUMENTS

AHEAD = 16
"""Segments that the live lane looks at: beyond them it is behind."""
NEWEST = 8
"""Segments before the end of the backlog where the live lane starts."""
MAX_SKIPS = 3  # each leaves up to AHEAD / 2 holes where sales were picked out, and one more
MANY_RANGES = 32
MOST_RANGES = 48  # 16 may be in flight
_FETCH_BYTES = 512 * 1024  # read from the file at once: bounds memory


@dataclass(slots=True)
class Flight:
    """A segment that was sent and waits for its receipt."""

    last_sequence: int
    acknowledged_at: float | None = None
    """Loop time of the PUBACK."""


class Schedule:
    """What one connection has sent and sends next. Reads the file: call it in a thread.

    Args:
        live_share: of the slots, while both lanes have something; 0: oldest first, nothing else.
        backlog_from: time (``take``'s ``now``) before which only the live lane flows.
    """

    def __init__(self, buffer: Buffer, live_share: float, backlog_from: float = -math.inf) -> None:
        self.flights: dict[int, Flight] = {}
        """By first sequence."""
        self.backlog_from = backlog_from
        self._buffer = buffer
        self._share = live_share
        self._owed = 1.0
        self._backlog = self._live = self._live_start = self._saved = buffer.watermark
        self._filled = False
        self._skips = 0

    def take(self, room: int, now: float, *, saving: bool = False) -> list[StoredSegment]:
        """At most ``room`` segments to send now; they stand in ``flights``.

        Args:
            saving: no readings, but for what it takes for receipts to name the rest.

        Raises:
            TransientError: the disk fails.
        """
        if saving:
            return self._urgent(room)
        held = now < self.backlog_from
        self._backlog = max(self._backlog, self._buffer.watermark)
        live = self._live_lane(held=held) if self._share or held else []
        taken: list[StoredSegment] = []
        for _ in range(room):
            self._owed = min(1.0, self._owed + self._share)
            if live and (held or self._owed >= 1.0):
                self._owed = max(0.0, self._owed - 1.0)
                taken += self._sent(self._fetch(live.pop(0) - 1, 1))
        if not held and len(taken) < room:
            found = self._sent(self._fetch(self._backlog, room - len(taken)))
            self._backlog = max([self._backlog, *(s.last_sequence for s in found)])
            taken += found
        if not taken and not self.flights:
            self.go_back()
        return taken

    def go_back(self) -> None:
        """Nothing that waits was received: give it out again, each lane from its start."""
        self.flights.clear()
        self._backlog = self._buffer.watermark
        self._live = max(self._live_start, self._backlog)
        self._saved = self._backlog

    def _urgent(self, room: int) -> list[StoredSegment]:
        sealed, taken = self._buffer.sealed, list[StoredSegment]()
        self._saved = max(self._saved, self._buffer.watermark)
        while len(taken) < room:
            found, after = sealed.urgent_after(self._saved, 1, self._last_sequences())
            if not found:
                self._saved = after
                break
            ranges = len(sealed.ranges)
            if ranges >= MANY_RANGES and not (self._filled and ranges < MOST_RANGES):
                piece = self._piece_of_a_hole()
                self._filled = True
                taken += self._sent(piece)
                if piece:
                    continue
                if ranges >= MOST_RANGES:
                    break
            taken += self._sent(self._fetch(found[0].first_sequence - 1, 1))
            self._filled = False
        return taken

    def _piece_of_a_hole(self) -> list[StoredSegment]:
        """The first segment of the smallest hole that is not wholly on its way; or none."""
        for first, last in self._buffer.sealed.holes():
            if (found := self._fetch(first - 1, 1)) and found[0].first_sequence <= last:
                return found
        return []

    def _live_lane(self, *, held: bool) -> list[int]:
        """First sequences of the segments that go ahead of the backlog, in order."""
        self._live = max(self._live, self._backlog)
        if self._live == self._backlog:
            self._skips, self._live_start = 0, self._live
        sent = self._last_sequences()
        ahead = self._buffer.sealed.outlines_after(self._live, AHEAD, sent)
        newest = self._buffer.sealed.newest_start(NEWEST)
        behind = len(ahead) == AHEAD and ahead[-1].last_sequence < newest
        first = held and self._live == self._backlog < newest - 1
        if first or (behind and self._skips < MAX_SKIPS):
            self._skips += 1
            self._live = self._live_start = newest - 1
            ahead = self._buffer.sealed.outlines_after(self._live, AHEAD, sent)
        elif ahead:
            # What was sent or is at the hub is not looked at again.
            self._live = max(self._live, min(s.first_sequence for s in ahead) - 1)
        if self._live == self._backlog and not held:
            # No backlog before it: oldest first is newest first. Only sales go ahead.
            ahead = [s for s in ahead if s.kind == DOCUMENTS]
        return [s.first_sequence for s in sorted(ahead, key=lambda s: s.kind != DOCUMENTS)]

    def _fetch(self, after: int, limit: int) -> list[StoredSegment]:
        return self._buffer.segments_after(after, _FETCH_BYTES, limit, self._last_sequences())

    def _sent(self, segments: list[StoredSegment]) -> list[StoredSegment]:
        for segment in segments:
            self.flights[segment.first_sequence] = Flight(segment.last_sequence)
        return segments

    def _last_sequences(self) -> dict[int, int]:
        return {first: flight.last_sequence for first, flight in self.flights.items()}
