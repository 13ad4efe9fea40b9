import contextlib
import fcntl
import math
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scout_edge import acceptance, database, journal, tail
from scout_edge.buffer import Buffer, KeyReusedError, Offset
from scout_edge.buffer_status import peek
from scout_edge.room import Limits
from scout_shared import wire
from scout_shared.errors import ConfigError, PermanentError, TransientError
from scout_shared.messages import Receipt
from scout_shared.wire import DOCUMENTS, READINGS, UNKNOWN_DAY, Document, GivenUp, Reading
from tests.edge_agent.records import START_MS, ZONE, contents, documents, readings, stored
from tests.harness.waiting import eventually


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge.db"


@pytest.fixture
def buffer(path: Path) -> Iterator[Buffer]:
    with Buffer(path, zone=ZONE) as opened:
        yield opened


def ledger(buffer: Buffer) -> dict[tuple[int, int], int]:
    return {(entry.day, entry.kind): entry.records for entry in buffer.status().ledger}


def reopened(path: Path) -> Buffer:
    return Buffer(path, zone=ZONE)


# -- accepting and sealing ------------------------------------------------------------------------


def test_a_new_buffer_is_empty_and_knows_itself(path: Path) -> None:
    with reopened(path) as buffer:
        epoch = buffer.epoch
        status = buffer.status()
        assert (status.next_sequence, status.watermark, status.backlog_records) == (1, 0, 0)
        assert (status.ledger, status.oldest_unsent_ms) == ((), None)
        assert stored(buffer) == []
        assert buffer.unsealed_seconds() == 0
    with reopened(path) as buffer:
        assert buffer.epoch == epoch
    with Buffer(path.with_name("other.db"), zone=ZONE) as other:
        assert other.epoch != epoch


def test_what_was_accepted_is_in_the_file_before_the_call_returns(
    buffer: Buffer, path: Path
) -> None:
    assert buffer.append_readings(readings(3)) == (3, False)
    with sqlite3.connect(path) as other:  # another connection sees only what is committed
        assert other.execute("select sum(records) from tail").fetchone() == (3,)
    other.close()


def test_commits_reach_the_disk_before_they_count(buffer: Buffer) -> None:
    """What kill -9 cannot show: without FULL a power cut takes commits that were told stored."""
    settings = {
        name: buffer._writer.execute(f"pragma {name}").fetchone()[0]
        for name in (
            "journal_mode",
            "synchronous",
            "auto_vacuum",
            "page_size",
            "wal_autocheckpoint",
        )
    }
    full, incremental = 2, 2
    assert settings == {
        "journal_mode": "wal",
        "synchronous": full,
        "auto_vacuum": incremental,
        "page_size": 4096,
        "wal_autocheckpoint": 256,
    }


def test_small_appends_wait_unsealed_and_get_sequences_when_sealed(buffer: Buffer) -> None:
    buffer.append_readings(readings(3))
    buffer.append_documents(documents(buffer, 2))
    assert buffer.status().unsealed_records == 5
    assert stored(buffer) == []
    assert buffer.seal(min_age_seconds=3600) == 0
    assert buffer.seal() == 5
    assert buffer.status().unsealed_records == 0
    segments = stored(buffer)
    assert [(s.first_sequence, s.records, s.kind) for s in segments] == [(1, 2, 2), (3, 3, 1)]
    found, bodies = contents(segments)
    assert found == Counter(readings(3))
    assert bodies == documents(buffer, 2)


def test_a_big_batch_is_sealed_in_its_own_transaction(buffer: Buffer) -> None:
    buffer.append_readings(readings(400))
    buffer.append_readings(readings(2700, first=400))
    assert [s.records for s in stored(buffer)] == [1000, 1000, 1000]
    assert buffer.status().unsealed_records == 100
    buffer.seal()
    assert contents(stored(buffer))[0] == Counter(readings(3100))


def test_documents_are_sealed_by_size_and_by_number(buffer: Buffer) -> None:
    buffer.append_documents(documents(buffer, 10, size=20_000))
    sizes = [s.records for s in stored(buffer)]
    assert sizes == [4, 4]
    assert buffer.status().unsealed_records == 2
    buffer.append_documents(documents(buffer, 1200, first=10))
    buffer.seal()
    assert contents(stored(buffer))[1] == documents(buffer, 10, size=20_000) + documents(
        buffer, 1200, first=10
    )
    assert max(s.records for s in stored(buffer)) <= tail.SEGMENT_RECORDS


def test_more_document_types_than_a_segment_holds_go_into_several(buffer: Buffer) -> None:
    made = [Document(f"t{i}", None, UNKNOWN_DAY, b"{}") for i in range(700)]
    buffer.append_documents(made)
    buffer.seal()
    assert [s.records for s in stored(buffer)] == [256, 256, 188]
    assert contents(stored(buffer))[1] == made


def test_a_segment_keeps_its_bytes_for_ever(buffer: Buffer, path: Path) -> None:
    buffer.append_readings(readings(1500))
    before = stored(buffer)
    buffer.append_documents(documents(buffer, 50))
    buffer.seal()
    assert stored(buffer)[:1] == before
    buffer.close()
    with reopened(path) as again:
        assert stored(again)[:1] == before


def test_a_segment_says_its_zone_and_days(buffer: Buffer) -> None:
    buffer.append_documents(documents(buffer, 20))
    buffer.seal()
    (segment,) = stored(buffer)
    header = wire.decode_header(segment.body)
    meta, _ = wire.decode_body(header, segment.body)
    assert meta["zone"] == ZONE
    assert {(day, wire.DOCUMENTS): n for day, n in meta["days"]} == ledger(buffer)
    assert header.epoch == buffer.epoch


def test_unsealed_records_survive_closing(buffer: Buffer, path: Path) -> None:
    odd = [Reading("x", START_MS, v) for v in (math.inf, -math.inf, 5e-324, 0.1)]
    buffer.append_readings(odd)
    buffer.append_documents(documents(buffer, 3))
    buffer.close()
    with reopened(path) as again:
        assert again.status().unsealed_records == 0  # sealed at once: see test_openings
        found, bodies = contents(stored(again))
        assert found == Counter(odd)
        assert bodies == documents(again, 3)


def test_a_new_zone_seals_what_was_counted_in_the_old_one(buffer: Buffer, path: Path) -> None:
    buffer.append_readings(readings(5))
    before = ledger(buffer)
    buffer.close()
    with Buffer(path, zone="America/Lima") as again:
        assert again.status().unsealed_records == 0
        again.append_readings(readings(1))
        again.seal()
        first, second = (wire.decode_header(s.body) for s in stored(again))
        metas = [
            wire.decode_body(h, s.body)[0]
            for h, s in zip((first, second), stored(again), strict=True)
        ]
        assert [m["zone"] for m in metas] == [ZONE, "America/Lima"]
        assert {(day, 1): n for day, n in metas[0]["days"]} == before


def test_appends_of_many_threads_share_commits_and_lose_nothing(buffer: Buffer) -> None:
    def work(thread: int) -> None:
        for i in range(20):
            buffer.append_readings(readings(7, first=thread * 10_000 + i * 7))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    versions = buffer.status().ledger_version
    assert versions < 160, "no two appends ever shared a transaction"
    buffer.seal()
    found = contents(stored(buffer))[0]
    assert found == Counter(r for t in range(8) for r in readings(140, first=t * 10_000))


def test_a_bad_append_fails_alone(path: Path) -> None:
    outcomes: dict[int, object] = {}
    with Buffer(path, zone=ZONE, group_commit_seconds=0.2) as buffer:
        buffer.append_documents(documents(buffer, 1), key="used")

        def append(i: int) -> None:
            try:
                outcomes[i] = buffer.append_documents(documents(buffer, 1, first=i), key=f"k{i}")
            except PermanentError as error:
                outcomes[i] = error

        def reuse() -> None:
            with pytest.raises(KeyReusedError):
                buffer.append_documents(documents(buffer, 2, first=99), key="used")

        threads = [threading.Thread(target=append, args=(i,)) for i in range(1, 5)]
        threads.append(threading.Thread(target=reuse))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == dict.fromkeys(range(1, 5), (1, False))
        assert buffer.status().unsealed_records == 5


def test_an_append_that_does_not_fit_fails_alone(path: Path) -> None:
    outcomes: dict[int, object] = {}
    huge = random.Random(4).randbytes(200_000)
    with Buffer(path, zone=ZONE, limits=Limits(1 << 19), group_commit_seconds=0.3) as buffer:

        def append(i: int) -> None:
            docs = documents(buffer, 1, first=i)
            if i == 2:
                docs = [docs[0]._replace(body=huge)] * 3
            try:
                outcomes[i] = buffer.append_documents(docs, key=f"k{i}")
            except TransientError as error:
                outcomes[i] = error.message.split(":")[0]

        threads = [threading.Thread(target=append, args=(i,)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.pop(2) == "the buffer is full or the disk is"
        assert outcomes == dict.fromkeys((0, 1, 3, 4), (1, False))
        assert buffer.status().backlog_records == 4


@pytest.mark.parametrize(
    "reading",
    [
        Reading("x", 2**62, 1.0),
        Reading("x", 2**70, 1.0),
        Reading("", START_MS, 1.0),
        Reading("a\ud800", START_MS, 1.0),
        Reading("a\n", START_MS, 1.0),
        Reading("a" * 129, START_MS, 1.0),
        Reading("x", START_MS, "1"),  # type: ignore[arg-type]  # what a defective source might do
    ],
)
def test_a_reading_that_no_segment_holds_is_refused_with_its_whole_append(
    buffer: Buffer, reading: Reading
) -> None:
    with pytest.raises(PermanentError):
        buffer.append_readings([*readings(3), reading])
    assert buffer.status().backlog_records == 0
    assert ledger(buffer) == {}


def test_a_document_that_no_segment_holds_is_refused(buffer: Buffer) -> None:
    for bad in (
        Document("t", None, UNKNOWN_DAY, b"x" * (acceptance.MAX_DOCUMENT_BYTES + 1)),
        Document("t" * 65, None, UNKNOWN_DAY, b"{}"),
        Document("t", 2**62, UNKNOWN_DAY, b"{}"),
        Document("t", None, 2**40, b"{}"),
    ):
        with pytest.raises(PermanentError, match="document 1"):
            buffer.append_documents([*documents(buffer, 1), bad])
    assert buffer.status().backlog_records == 0


def test_an_empty_append_is_accepted_and_changes_nothing(buffer: Buffer) -> None:
    assert buffer.append_readings([]) == (0, False)
    assert buffer.append_documents([], key="k") == (0, False)
    assert buffer.append_documents([], key="k") == (0, True)
    assert buffer.status().ledger_version == 0


# -- idempotency, offsets, ledger -----------------------------------------------------------------


def test_a_repeated_request_is_answered_and_not_stored_again(buffer: Buffer, path: Path) -> None:
    assert buffer.append_documents(documents(buffer, 3), key="a") == (3, False)
    assert buffer.append_documents(documents(buffer, 3), key="a") == (3, True)
    before = ledger(buffer)
    buffer.close()
    with reopened(path) as again:
        assert again.append_documents(documents(again, 3), key="a") == (3, True)
        assert again.status().backlog_records == 3
        assert ledger(again) == before


def test_two_requests_under_one_key_at_the_same_time_are_stored_once(path: Path) -> None:
    with (
        Buffer(path, zone=ZONE, group_commit_seconds=0.1) as buffer,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(
            pool.map(lambda _: buffer.append_documents(documents(buffer, 2), key="k"), range(8))
        )
        assert sorted(a.duplicate for a in answers) == [False] + [True] * 7
        assert buffer.status().backlog_records == 2


def test_a_key_with_other_records_is_refused(buffer: Buffer) -> None:
    buffer.append_documents(documents(buffer, 3), key="a")
    with pytest.raises(KeyReusedError, match="'a'"):
        buffer.append_documents(documents(buffer, 3, first=1), key="a")
    assert buffer.status().backlog_records == 3


def test_keys_are_bounded_by_number_and_by_age_but_the_newest_stay(
    buffer: Buffer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "KEYS_KEPT", 600)
    monkeypatch.setattr(journal, "KEYS_KEPT_AT_ANY_AGE", 100)
    one = documents(buffer, 1)
    for i in range(1024):
        buffer.append_documents(one, key=f"k{i}")

    def keys() -> int:
        with sqlite3.connect(path) as other:
            (count,) = other.execute("select count(*) from idempotency").fetchone()
        other.close()
        return int(count)

    assert keys() <= 600 + 256
    # The clock jumps by years, as on a device that gets its time from the network after boot.
    monkeypatch.setattr(journal, "KEY_AGE_MS", -(10**12))
    for i in range(1024, 1280):
        buffer.append_documents(one, key=f"k{i}")
    assert keys() == 100
    assert buffer.append_documents(one, key="k1279").duplicate


def test_an_offset_is_committed_with_the_records_read_before_it(buffer: Buffer, path: Path) -> None:
    assert buffer.offset("file") is None
    buffer.append_readings(readings(2), offset=Offset("file", "line 2"))
    buffer.append_documents(documents(buffer, 1), offset=Offset("file", "line 3"))
    with pytest.raises(PermanentError):
        buffer.append_readings([Reading("", 0, 0.0)], offset=Offset("file", "line 4"))
    buffer.close()
    with reopened(path) as again:
        assert again.offset("file") == "line 3"


def test_the_ledger_counts_per_day_and_kind_what_was_accepted(buffer: Buffer) -> None:
    docs = documents(buffer, 23)
    buffer.append_documents(docs)
    buffer.append_readings(readings(1200))
    expected = {(day, 2): n for day, n in wire.days_of(d.business_day for d in docs).items()}
    days = wire.days_of(buffer.calendar.day(r.observed_ms) for r in readings(1200))
    assert ledger(buffer) == expected | {(day, 1): n for day, n in days.items()}
    assert (UNKNOWN_DAY, 2) in ledger(buffer)


def test_a_receipt_clears_the_ledger_up_to_its_version(buffer: Buffer) -> None:
    buffer.append_documents(documents(buffer, 5))
    version = buffer.status().ledger_version
    buffer.append_readings(readings(5))
    buffer.apply_receipt(Receipt(buffer.epoch, 0, ledger_version=version))
    assert {kind for _, kind in ledger(buffer)} == {wire.READINGS}
    buffer.apply_receipt(Receipt(buffer.epoch, 0, ledger_version=version - 1))  # an older one
    assert {kind for _, kind in ledger(buffer)} == {wire.READINGS}
    buffer.apply_receipt(Receipt(buffer.epoch, 0, ledger_version=10**9))  # more than we have
    assert ledger(buffer) == {}
    buffer.append_documents(documents(buffer, 1))
    assert ledger(buffer) == {(UNKNOWN_DAY, 2): 2}, "counts go on, cumulative"


def test_a_long_ledger_is_told_in_parts_of_whole_versions(buffer: Buffer) -> None:
    for version in range(30):
        docs = [Document("t", None, version * 100 + day, b"{}") for day in range(100)]
        buffer.append_documents(docs)
    told: set[int] = set()
    rounds = 0
    while (status := buffer.status()).ledger:
        assert len(status.ledger) <= 2100
        told |= {entry.day for entry in status.ledger}
        buffer.apply_receipt(Receipt(buffer.epoch, 0, ledger_version=status.ledger_version))
        rounds += 1
    assert told == set(range(3000))
    assert rounds == 2


def test_a_commit_of_readings_writes_two_pages(buffer: Buffer) -> None:
    wal = buffer.path.with_name(buffer.path.name + "-wal")
    buffer.append_readings(readings(1))
    before = wal.stat().st_size
    for i in range(1, 21):
        buffer.append_readings(readings(1, i))
    frame = 24 + database.PAGE_BYTES
    # The tail's and the ledger's; what more there is, is a leaf of the tail that was split.
    assert (wal.stat().st_size - before) // frame <= 2 * 20 + 2


def test_the_ledger_of_an_older_file_goes_on(path: Path) -> None:
    with reopened(path) as buffer:
        buffer.append_documents(documents(buffer, 1))
        buffer.append_documents(documents(buffer, 1))
        buffer.apply_receipt(Receipt(buffer.epoch, 0, ledger_version=1))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("create index ledger_version on ledger (version)")
        db.execute("insert into meta values ('ledger_version', 2)")
    with reopened(path) as buffer:
        buffer.append_readings(readings(1))
        status = buffer.status()
        assert status.ledger_version == 3
        assert {entry.kind: entry.records for entry in status.ledger} == {1: 1, 2: 2}
        buffer.apply_receipt(Receipt(buffer.epoch, 0, ledger_version=3))
        assert ledger(buffer) == {}


# -- receipts -------------------------------------------------------------------------------------


def test_a_receipt_deletes_what_its_watermark_covers_and_nothing_else(buffer: Buffer) -> None:
    buffer.append_readings(readings(5000))
    assert buffer.apply_receipt(Receipt(buffer.epoch, 2000)) == 2000
    assert [s.first_sequence for s in stored(buffer, after=2000)] == [2001, 3001, 4001]
    assert buffer.status().backlog_records == 3000
    assert buffer.apply_receipt(Receipt(buffer.epoch, 1000)) == 0, "an older receipt"
    assert buffer.apply_receipt(Receipt(buffer.epoch, 2000)) == 0, "a repeated receipt"
    assert buffer.watermark == 2000
    assert [s.first_sequence for s in stored(buffer, after=2000)] == [2001, 3001, 4001]


def test_a_watermark_in_the_middle_of_a_segment_does_not_cover_it(buffer: Buffer) -> None:
    buffer.append_readings(readings(3000))
    buffer.apply_receipt(Receipt(buffer.epoch, 1500))
    assert [s.first_sequence for s in stored(buffer, after=1500)] == [1001, 2001]


def test_ranges_above_the_watermark_are_not_sent_again_but_kept(buffer: Buffer) -> None:
    buffer.append_readings(readings(6000))
    buffer.apply_receipt(Receipt(buffer.epoch, 1000, ((2001, 3000), (4001, 5000))))
    sent = buffer.segments_after(1000, 1 << 20)
    assert [s.first_sequence for s in sent] == [1001, 3001, 5001]
    buffer.apply_receipt(Receipt(buffer.epoch, 1000, ((3001, 4000),)))
    sent = buffer.segments_after(1000, 1 << 20)
    assert [s.first_sequence for s in sent] == [1001, 5001]
    assert buffer.status().backlog_records == 5000
    with sqlite3.connect(buffer.path) as other:
        assert other.execute("select count(*) from segments").fetchone() == (5,)
    other.close()


def test_a_range_that_holds_only_part_of_a_segment_does_not_cover_it(buffer: Buffer) -> None:
    buffer.append_readings(readings(3000))
    buffer.apply_receipt(Receipt(buffer.epoch, 0, ((1001, 1999),)))
    assert [s.first_sequence for s in buffer.segments_after(0, 1 << 20)] == [1, 1001, 2001]


def test_a_receipt_of_another_epoch_changes_nothing(buffer: Buffer) -> None:
    buffer.append_readings(readings(2000))
    assert buffer.apply_receipt(Receipt(b"x" * 16, 10**9, ((1, 10**9),), ledger_version=99)) == 0
    assert len(stored(buffer)) == 2
    assert buffer.watermark == 0
    assert buffer.status().ledger


@pytest.mark.parametrize("receipt", [(2001, ()), (0, ((1001, 2001),))])
def test_a_receipt_beyond_what_was_given_is_an_incident_and_deletes_nothing_ever(
    path: Path, receipt: tuple[int, tuple[tuple[int, int], ...]]
) -> None:
    with reopened(path) as buffer:
        buffer.append_readings(readings(2000))
        with pytest.raises(PermanentError, match="older copy"):
            buffer.apply_receipt(Receipt(buffer.epoch, *receipt))
        assert buffer.watermark == 0
        assert len(stored(buffer)) == 2
        # Later sequences reach what the hub holds of somebody else: still no receipt is believed.
        buffer.append_readings(readings(2000, first=2000))
    with reopened(path) as buffer:
        assert buffer.status().fenced
        with pytest.raises(PermanentError, match="older copy"):
            buffer.apply_receipt(Receipt(buffer.epoch, 3000))
        assert len(stored(buffer)) == 4


def test_sequences_go_on_after_everything_was_deleted(buffer: Buffer, path: Path) -> None:
    buffer.append_readings(readings(40_000))
    assert buffer.apply_receipt(Receipt(buffer.epoch, 40_000)) == 40_000
    assert stored(buffer, after=40_000) == []
    buffer.close()
    with reopened(path) as again:
        assert again.next_sequence == 40_001
        again.append_readings(readings(1000))
        (segment,) = stored(again, after=again.watermark)
        assert segment.first_sequence == 40_001


def test_what_a_crash_left_between_watermark_and_deletion_is_not_sent_and_goes_later(
    buffer: Buffer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer.append_readings(readings(3000))
    monkeypatch.setattr(journal.Journal, "delete_covered", lambda _self: 0)
    buffer.apply_receipt(Receipt(buffer.epoch, 2000))
    monkeypatch.undo()
    buffer.close()
    with reopened(path) as again:
        sent = again.segments_after(again.watermark, 1 << 20)
        assert [s.first_sequence for s in sent] == [2001]
        again.apply_receipt(Receipt(again.epoch, 3000))
        assert stored(again) == []


def test_segments_are_given_out_within_the_limits_but_always_one(buffer: Buffer) -> None:
    buffer.append_readings(readings(10_000))
    assert len(buffer.segments_after(0, limit_bytes=1)) == 1
    assert len(buffer.segments_after(0, 1 << 20, limit=3)) == 3
    size = len(buffer.segments_after(0, 1)[0].body)
    two = buffer.segments_after(0, limit_bytes=int(2.5 * size))
    assert len(two) == 2


# -- a full buffer, a damaged file ----------------------------------------------------------------


def test_a_full_buffer_refuses_clearly_keeps_all_and_goes_on_when_emptied(path: Path) -> None:
    rng = random.Random(1)

    def hard(i: int) -> Document:
        return Document("t", None, UNKNOWN_DAY, b"%d " % i + rng.randbytes(2000))

    with Buffer(path, zone=ZONE, limits=Limits(1 << 20)) as buffer:
        accepted: list[Document] = []
        batch: list[Document] = []
        refused = None
        for round_ in range(100):
            batch = [hard(round_ * 20 + i) for i in range(20)]
            try:
                buffer.append_documents(batch, key=f"k{round_}")
            except TransientError as error:
                refused = error
                break
            accepted += batch
        assert refused is not None
        assert "full" in refused.message
        assert "max_bytes" in refused.hint
        assert path.stat().st_size <= 1 << 20
        assert buffer.append_documents(accepted[-20:], key=f"k{round_ - 1}").duplicate
        status = buffer.status()
        assert status.backlog_records == len(accepted)
        assert sum(e.records for e in status.ledger) == len(accepted), "a refusal is not counted"
        buffer.seal()
        segments = stored(buffer)
        assert contents(segments)[1] == accepted
        # The hub takes some: there is room again, and the refused request is a new one.
        buffer.apply_receipt(Receipt(buffer.epoch, segments[len(segments) // 2].last_sequence))
        assert buffer.append_documents(batch, key=f"k{round_}") == (20, False)
        assert path.stat().st_size <= 1 << 20


def test_a_full_buffer_drains_to_the_last_record(path: Path) -> None:
    with Buffer(path, zone=ZONE, limits=Limits(1 << 18)) as buffer:
        accepted = 0
        rng = random.Random(3)
        with contextlib.suppress(TransientError):
            while True:
                docs = [Document("t", None, UNKNOWN_DAY, rng.randbytes(700))]
                accepted += buffer.append_documents(docs).records
        while buffer.status().backlog_records:
            buffer.seal()
            sent = buffer.segments_after(buffer.watermark, 1)
            buffer.apply_receipt(Receipt(buffer.epoch, sent[-1].last_sequence))
        assert buffer.watermark == accepted


def test_the_file_shrinks_again_after_a_long_outage(path: Path) -> None:
    with reopened(path) as buffer:
        random_bytes = random.Random(2).randbytes
        for i in range(40):
            docs = [Document("t", None, UNKNOWN_DAY, random_bytes(100_000)) for _ in range(4)]
            buffer.append_documents(docs, key=str(i))
        grown = path.stat().st_size
        last = buffer.next_sequence - 1
        for watermark in range(1, last + 1, 3):
            buffer.apply_receipt(Receipt(buffer.epoch, watermark))
        buffer.apply_receipt(Receipt(buffer.epoch, last))
        eventually(lambda: path.stat().st_size < grown / 2, 10, "the file gives space back")


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:5000],
        lambda b: b"\0" * 4096 + b[4096:],
        lambda b: b[:4096] + b"\xff" * (len(b) - 4096),
        lambda b: b"this is no database at all, but something of the operator's own " * 100,
    ],
    ids=["cut", "head lost", "pages lost", "not ours"],
)
def test_a_damaged_file_is_refused_and_kept(path: Path, damage: object) -> None:
    with reopened(path) as buffer:
        buffer.append_readings(readings(3500))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]  # a function, see above
    kept = path.read_bytes()
    with pytest.raises(PermanentError) as caught:
        reopened(path)
    assert str(path) in caught.value.message
    assert "kept" in str(caught.value)
    assert path.read_bytes() == kept


def test_a_database_of_another_program_is_refused_and_kept(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("create table t (x)")
    other.close()
    kept = path.read_bytes()
    with pytest.raises(PermanentError, match="not a buffer"):
        reopened(path)
    assert path.read_bytes() == kept


def test_a_damaged_tail_row_becomes_a_gap_and_the_rest_is_delivered(path: Path) -> None:
    with reopened(path) as buffer:
        buffer.append_documents(documents(buffer, 3, size=100))
        buffer.append_documents(documents(buffer, 2, first=3))
    flip(path, b"x" * 100)
    with reopened(path) as buffer:
        assert buffer.status().given_up_records == 3
        buffer.seal()
        gap, rest = stored(buffer)
        assert wire.decode_gap(gap.body) == [GivenUp(3, DOCUMENTS, "damaged", {UNKNOWN_DAY: 3})]
        assert contents([rest])[1] == documents(buffer, 2, first=3)
        assert buffer.apply_receipt(Receipt(buffer.epoch, 5)) == 5
        assert buffer.status().backlog_records == 0
        assert sum(ledger(buffer).values()) == 5, "accepted stays accepted"


def test_a_segment_whose_bytes_changed_becomes_a_gap(path: Path) -> None:
    with reopened(path) as buffer:
        buffer.append_readings(readings(4000))
        bodies = [s.body for s in stored(buffer)]
    for body in bodies[1:3]:
        flip(path, body[-40:])
    with reopened(path) as buffer:
        one, gap, four = buffer.segments_after(0, 1 << 20)
        assert (one.body, four.body) == (bodies[0], bodies[3])
        assert (gap.first_sequence, gap.records, gap.kind) == (1001, 2000, wire.GAP)
        lost = GivenUp(1000, READINGS, "damaged", {UNKNOWN_DAY: 1000})
        assert wire.decode_gap(gap.body) == [lost, lost]
        status = buffer.status()
        assert (status.damaged_segments, status.given_up_records) == (2, 2000)
        assert status.backlog_records == 4000
    with reopened(path) as buffer:
        assert buffer.segments_after(0, 1 << 20) == [one, gap, four]
        assert buffer.status().given_up_records == 2000
        assert buffer.apply_receipt(Receipt(buffer.epoch, 4000)) == 4000
        assert stored(buffer) == []


def test_a_segment_whose_own_checksums_hold_is_sent(path: Path) -> None:
    """Only the number beside it changed."""
    with reopened(path) as buffer:
        buffer.append_readings(readings(1000))
        before = stored(buffer)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("update segments set crc = crc + 1")
    with reopened(path) as buffer:
        assert buffer.segments_after(0, 1 << 20) == before
        assert buffer.status().given_up_records == 0


def test_a_segment_that_belongs_elsewhere_is_not_sent(path: Path) -> None:
    with reopened(path.with_name("other.db")) as other:
        other.append_readings(readings(1000))
        (foreign,) = stored(other)
    with reopened(path) as buffer:
        buffer.append_readings(readings(1000))
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("update segments set body = ?, crc = crc + 1", (foreign.body,))
    with reopened(path) as buffer:
        (gap,) = buffer.segments_after(0, 1 << 20)
        assert (gap.kind, gap.records) == (wire.GAP, 1000)


def flip(path: Path, wanted: bytes) -> None:
    """Change one bit of the last place in the file where ``wanted`` stands."""
    content = path.read_bytes()
    at = content.rindex(wanted)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_a_second_agent_on_the_same_file_is_refused(buffer: Buffer, path: Path) -> None:
    with pytest.raises(ConfigError, match="in use"):
        reopened(path)
    buffer.append_readings(readings(1))


def test_a_path_that_cannot_be_used_is_a_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be used"):
        reopened(tmp_path / "file" / "edge.db")
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(ConfigError, match="cannot be used"):
        reopened(tmp_path / "folder.db")
    # Nothing holds the lock after a refusal.
    with (tmp_path / "folder.db.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_after_closing_nothing_is_accepted(buffer: Buffer) -> None:
    buffer.close()
    buffer.close()
    for use in (
        lambda: buffer.append_readings(readings(1)),
        lambda: buffer.segments_after(0, 1),
        buffer.status,
    ):
        with pytest.raises(TransientError, match="closed"):
            use()


def test_a_failing_disk_fails_the_append_and_the_next_one_goes_on(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer.append_readings(readings(10))
    flush = journal.Journal.flush
    failing = True

    def broken(self: journal.Journal) -> None:
        flush(self)
        if failing:
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(journal.Journal, "flush", broken)
    with pytest.raises(TransientError, match="disk I/O error"):
        buffer.append_readings(readings(995, first=10))
    with pytest.raises(TransientError, match="disk I/O error"):
        buffer.append_documents(documents(buffer, 3), key="sale", offset=Offset("file", "3"))
    failing = False
    assert buffer.status().backlog_records == 10
    assert buffer.offset("file") is None
    # Neither key nor offset is ahead of the records: the retry is stored.
    assert buffer.append_documents(documents(buffer, 3), key="sale") == (3, False)
    buffer.append_readings(readings(995, first=10))
    buffer.seal()
    assert contents(stored(buffer)) == (Counter(readings(1005)), documents(buffer, 3))
    assert sum(ledger(buffer).values()) == 1008


def test_peek_reads_a_buffer_that_nobody_has_open(path: Path) -> None:
    with pytest.raises(ConfigError, match="no buffer file"):
        peek(path, 1 << 30)
    with reopened(path) as buffer:
        buffer.append_readings(readings(1500))
        during = peek(path, 1 << 30)
    assert during.backlog_records == 1500
    assert peek(path, 1 << 30).unsealed_records == 500
    path.with_name("junk").write_text("junk" * 1000)
    with pytest.raises(PermanentError, match="damaged"):
        peek(path.with_name("junk"), 1 << 30)
