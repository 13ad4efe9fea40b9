import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_shared.errors import WireError
from scout_shared.messages import Hello, LedgerEntry, Receipt, status_message

EPOCHS = st.binary(min_size=16, max_size=16)
COUNTS = st.integers(0, 2**63)
RANGES = st.lists(st.tuples(COUNTS, COUNTS).map(lambda p: (min(p) + 1, max(p) + 1)), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)

HELLO = Hello(
    epoch=b"e" * 16,
    boot_id="b",
    zone="Asia/Manila",
    version="7.1.0",
    acked=5,
    next_sequence=9,
    unsealed_records=2,
    buffer_bytes=4096,
    oldest_unsent_ms=None,
    device_time_ms=1,
    interval_seconds=15.0,
    ledger_version=3,
    ledger=(LedgerEntry(20_000, 1, 7), LedgerEntry(-(2**31), 2, 1)),
    clock_synced=True,
    counters={"reconnects": 1},
)


@given(
    st.builds(
        Receipt,
        epoch=EPOCHS,
        watermark=COUNTS,
        ranges=RANGES.map(tuple),
        credit=COUNTS,
        hub_time_ms=st.integers(),
        ledger_version=COUNTS,
    )
)
def test_receipts_come_back_as_they_were(receipt: Receipt) -> None:
    assert Receipt.decode(receipt.encode()) == receipt


def test_a_hello_comes_back_as_it_was() -> None:
    assert Hello.decode(HELLO.encode()) == HELLO


@given(JSON, st.sampled_from(["e", "a", "r", "c", "t", "l"]))
def test_a_strange_receipt_is_refused_or_read(value: Any, key: str) -> None:
    message = json.loads(Receipt(b"e" * 16, 1, ((3, 4),)).encode())
    for payload in ({**message, key: value}, value):
        try:
            receipt = Receipt.decode(json.dumps(payload).encode())
        except WireError:
            continue
        assert isinstance(receipt.watermark, int)


@given(JSON, st.sampled_from(sorted(json.loads(HELLO.encode()))))
def test_a_strange_hello_is_refused_or_read(value: Any, key: str) -> None:
    message = json.loads(HELLO.encode())
    for payload in ({**message, key: value}, value):
        try:
            Hello.decode(json.dumps(payload).encode())
        except WireError:
            continue


@pytest.mark.parametrize(
    "payload", [b"", b"\xff", b"null", b"[" * 100_000, b'{"e":"00"}', b'{"e":"' + b"0" * 32 + b'"}']
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        Receipt.decode(payload)
    with pytest.raises(WireError):
        Hello.decode(payload)


@pytest.mark.parametrize(
    "key, value",
    [("a", 1.5), ("a", -1), ("a", True), ("r", [[3, 2]]), ("r", [[0, 2]]), ("a", float("inf"))],
)
def test_a_watermark_or_range_that_cannot_be_is_refused(key: str, value: Any) -> None:
    message = {**json.loads(Receipt(b"e" * 16, 1).encode()), key: value}
    with pytest.raises(WireError):
        Receipt.decode(json.dumps(message).encode())


def test_fields_of_a_newer_version_are_ignored() -> None:
    message = {**json.loads(Receipt(b"e" * 16, 1).encode()), "new": {"x": 1}}
    assert Receipt.decode(json.dumps(message).encode()) == Receipt(b"e" * 16, 1)


def test_the_will_carries_no_time() -> None:
    assert json.loads(status_message(False, "b", None)) == {
        "v": 1,
        "online": False,
        "boot": "b",
        "time_ms": None,
    }
