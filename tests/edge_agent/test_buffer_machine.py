"""The buffer against a plain list: nothing lost, nothing doubled, whatever the order of things."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from scout_edge.buffer import Buffer, KeyReusedError, StoredSegment
from scout_shared import wire
from scout_shared.errors import PermanentError
from scout_shared.messages import Receipt
from scout_shared.wire import DOCUMENTS, READINGS, Document, Reading
from tests.edge_agent.records import DAY_MS, START_MS, ZONE, contents


class BufferMachine(RuleBasedStateMachine):
    """A model of device and hub: two lists of what was accepted, and what the hub has committed."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="scout-buffer-"))
        self.path = self.folder / "edge.db"
        self.buffer = Buffer(self.path, zone=ZONE)
        self.epoch = self.buffer.epoch
        self.made = 0
        self.readings: Counter[Reading] = Counter()
        self.documents: list[Document] = []
        self.keys: dict[str, list[Document]] = {}
        self.ledger: Counter[tuple[int, int]] = Counter()
        self.hub: dict[int, StoredSegment] = {}
        self.claimed = 0
        """Watermark of the highest receipt that was sent."""

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            self.check_everything_is_somewhere()
            self.buffer.close()
            shutil.rmtree(self.folder)

    def new_documents(self, count: int, size: int) -> list[Document]:
        made = []
        for _ in range(count):
            self.made += 1
            observed_ms = None if self.made % 3 == 0 else START_MS + self.made % 5 * DAY_MS
            body = b'{"i":%d,"x":"%s"}' % (self.made, b"x" * size)
            made.append(
                Document(
                    f"t{self.made % 2}", observed_ms, self.buffer.calendar.day(observed_ms), body
                )
            )
        return made

    @rule(count=st.sampled_from([0, 1, 2, 7, 499, 500, 1000, 1001, 2500]))
    def append_readings(self, count: int) -> None:
        batch = []
        for _ in range(count):
            self.made += 1
            at = START_MS + self.made * 60_000
            batch.append(Reading(f"m{self.made % 3}", at, float(self.made)))
        assert self.buffer.append_readings(batch) == (count, False)
        self.readings.update(batch)
        self.ledger.update((self.buffer.calendar.day(r.observed_ms), READINGS) for r in batch)

    @rule(
        count=st.sampled_from([0, 1, 3, 40, 1001]),
        size=st.sampled_from([0, 10, 30_000]),
        key=st.none() | st.sampled_from(["a", "b", "c", "d"]),
    )
    def append_documents(self, count: int, size: int, key: str | None) -> None:
        batch = self.new_documents(min(count, 10) if size > 10 else count, size)
        if key is None or key not in self.keys:
            assert self.buffer.append_documents(batch, key=key) == (len(batch), False)
            self.documents += batch
            self.ledger.update((d.business_day, DOCUMENTS) for d in batch)
            if key is not None:
                self.keys[key] = batch
        elif batch == self.keys[key]:
            assert self.buffer.append_documents(batch, key=key).duplicate
        else:
            try:
                self.buffer.append_documents(batch, key=key)
            except KeyReusedError:
                pass
            else:
                raise AssertionError("a used key took other records")

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def repeat_a_request(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.keys)))
        batch = self.keys[key]
        assert self.buffer.append_documents(batch, key=key) == (len(batch), True)

    @rule()
    def append_what_is_refused(self) -> None:
        good = self.new_documents(2, 0)
        bad = good[0]._replace(observed_ms=2**62)
        for batch in ([*good, bad], [bad]):
            try:
                self.buffer.append_documents(batch, key="refused")
            except PermanentError:
                continue
            raise AssertionError("a document of the year 100000 was accepted")

    @rule()
    def seal(self) -> None:
        unsealed = self.buffer.status().unsealed_records
        assert self.buffer.seal() == unsealed

    @rule(data=st.data())
    def send_some_and_the_hub_commits_some_of_them(self, data: st.DataObject) -> None:
        after = data.draw(st.sampled_from([self.buffer.watermark, 0]))
        sent = self.buffer.segments_after(after, data.draw(st.sampled_from([1, 1 << 20])))
        for segment in sent:
            if data.draw(st.booleans()):
                held = self.hub.setdefault(segment.first_sequence, segment)
                assert held == segment, "a segment changed its bytes"

    def receipt(self) -> Receipt:
        watermark, ranges = 0, []
        for first in sorted(self.hub):
            last = self.hub[first].last_sequence
            if first == watermark + 1:
                watermark = last
            else:
                ranges.append((first, last))
        return Receipt(self.epoch, watermark, tuple(ranges))

    @rule(data=st.data())
    def a_receipt_comes_new_old_or_partial(self, data: st.DataObject) -> None:
        receipt = self.receipt()
        ends = [
            0,
            *(s.last_sequence for s in self.hub.values() if s.last_sequence <= receipt.watermark),
        ]
        watermark = data.draw(st.sampled_from([receipt.watermark, *sorted(ends)]))
        keep = data.draw(st.booleans())
        version = data.draw(st.integers(0, self.buffer.status().ledger_version))
        partial = Receipt(
            self.epoch, watermark, receipt.ranges if keep else (), ledger_version=version
        )
        moved = self.buffer.apply_receipt(partial)
        assert moved == max(0, watermark - self.claimed)
        self.claimed = max(self.claimed, watermark)

    @rule()
    def a_foreign_receipt_comes(self) -> None:
        assert self.buffer.apply_receipt(Receipt(b"f" * 16, 10**12, ((1, 10**12),), 8, 0, 9)) == 0

    @rule()
    def close_and_reopen(self) -> None:
        self.buffer.close()
        self.buffer = Buffer(self.path, zone=ZONE)
        assert self.buffer.epoch == self.epoch

    @invariant()
    def the_numbers_add_up(self) -> None:
        if not hasattr(self, "buffer"):
            return
        status = self.buffer.status()
        accepted = self.readings.total() + len(self.documents)
        assert status.next_sequence - 1 + status.unsealed_records == accepted
        assert status.watermark == self.claimed
        assert status.backlog_records == accepted - self.claimed
        dirty = {(e.day, e.kind): e.records for e in status.ledger}
        assert dirty.items() <= self.ledger.items(), "the ledger tells what was not accepted"

    @rule()
    def check_everything_is_somewhere(self) -> None:
        """Hub and buffer together hold what was accepted, each record once, without gaps."""
        self.buffer.seal()
        held = {s.first_sequence: s for s in self.hub.values()}
        at = self.buffer.watermark
        while sent := self.buffer.segments_after(at, 1 << 20):
            for segment in sent:
                held.setdefault(segment.first_sequence, segment)
            at = sent[-1].last_sequence
        expected = 1
        for first in sorted(held):
            assert first == expected, f"sequences {expected} to {first - 1} are nowhere"
            expected += held[first].records
        assert expected == self.buffer.next_sequence
        found, bodies = contents(held[first] for first in sorted(held))
        assert found == self.readings
        assert bodies == self.documents
        days: Counter[tuple[int, int]] = Counter()
        for segment in held.values():
            meta, _ = wire.decode_body(wire.decode_header(segment.body), segment.body)
            for day, records in meta["days"]:
                days[day, segment.kind] += records
        assert days == self.ledger, "the days of the segments are not those of the ledger"

    @rule()
    def the_whole_ledger_is_right(self) -> None:
        """What ``status`` tells is only what changed; the file holds all of it."""
        with sqlite3.connect(self.path) as other:
            rows = other.execute("select day, kind, records from ledger").fetchall()
        other.close()
        assert {(day, kind): n for day, kind, n in rows} == dict(self.ledger)


TestBufferMachine = BufferMachine.TestCase
TestBufferMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
