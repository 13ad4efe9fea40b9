"""Orders: signed for one device, one version or id, one text; only what may be set from afar."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_shared.errors import ConfigError, WireError
from scout_shared.orders import CommandOrder, ConfigOrder, Report, overlay

KEY, OTHER = b"k" * 32, b"o" * 32
ORDER = ConfigOrder("d", 7, '{"log":{"level":"debug"}}')
COMMAND = CommandOrder("d", "id-1", "drain", 1_800_000_000_000)


def test_an_order_is_read_as_it_was_signed() -> None:
    assert ConfigOrder.decode(ORDER.encode(KEY), device_id="d", key=KEY) == ORDER
    assert CommandOrder.decode(COMMAND.encode(KEY), device_id="d", key=KEY) == COMMAND


@pytest.mark.parametrize(
    "field, value", [("n", 8), ("b", "{}"), ("h", "0" * 64), ("h", None), ("h", "é"), ("h", 1)]
)
def test_settings_that_were_changed_on_their_way_are_refused(field: str, value: object) -> None:
    message = {**json.loads(ORDER.encode(KEY)), field: value}
    with pytest.raises(WireError, match="signed"):
        ConfigOrder.decode(json.dumps(message).encode(), device_id="d", key=KEY)


@pytest.mark.parametrize("field, value", [("i", "id-2"), ("c", "restart"), ("x", 1), ("h", "")])
def test_a_command_that_was_changed_is_refused(field: str, value: object) -> None:
    message = {**json.loads(COMMAND.encode(KEY)), field: value}
    with pytest.raises(WireError, match="signed"):
        CommandOrder.decode(json.dumps(message).encode(), device_id="d", key=KEY)


def test_an_order_is_for_one_device_of_one_key_and_one_kind() -> None:
    for device, key in (("e", KEY), ("d", OTHER)):
        with pytest.raises(WireError, match="signed"):
            ConfigOrder.decode(ORDER.encode(KEY), device_id=device, key=key)
        with pytest.raises(WireError, match="signed"):
            CommandOrder.decode(COMMAND.encode(KEY), device_id=device, key=key)
    # the same characters cut into other parts
    one = CommandOrder("d", "ab", "c", 1).encode(KEY)
    two = CommandOrder("d", "a", "bc", 1).encode(KEY)
    assert json.loads(one)["h"] != json.loads(two)["h"]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_order_are_refused_as_such(payload: bytes) -> None:
    for decode in (ConfigOrder.decode, CommandOrder.decode):
        with pytest.raises(WireError):
            decode(payload, device_id="d", key=KEY)
    for wrong in (
        b"[]",
        b"1",
        b"{}",
        b"[" * 100_000,
        b'{"n":0,"b":""}',
        b'{"n":"x","b":1}',
        b'{"n":Infinity,"b":""}',
    ):
        with pytest.raises(WireError):
            ConfigOrder.decode(wrong, device_id="d", key=KEY)
        with pytest.raises(WireError):
            Report.decode(wrong)


def test_a_report_is_read_as_it_was_written() -> None:
    report = Report("command", "id-1", "done", "m", {"left_records": 0})
    assert Report.decode(report.encode()) == report


DOCUMENT = {
    "device": {"id": "d"},
    "mqtt": {"host": "h", "heartbeat_seconds": 15},
    "sources": {"fridge": {"kind": "modbus", "interval_seconds": 10}},
}


def test_wishes_lie_over_the_settings_and_leave_the_rest() -> None:
    made = overlay(
        DOCUMENT,
        {
            "mqtt": {"heartbeat_seconds": 60},
            "log": {"level": "debug"},
            "sources": {"fridge": {"interval_seconds": 60}},
        },
    )
    assert made == {
        "device": {"id": "d"},
        "mqtt": {"host": "h", "heartbeat_seconds": 60},
        "log": {"level": "debug"},
        "sources": {"fridge": {"kind": "modbus", "interval_seconds": 60}},
    }
    assert DOCUMENT["mqtt"] == {"host": "h", "heartbeat_seconds": 15}


@pytest.mark.parametrize(
    "body",
    [
        {"device": {"id": "x"}},
        {"mqtt": {"host": "thief.example"}},
        {"mqtt": {"tls": False}},
        {"mqtt": {"tls_ca": "/tmp/x"}},
        {"mqtt": {"password": "x"}},
        {"buffer": {"path": "/tmp/x"}},
        {"buffer": {"max_bytes": 1}},
        {"http": {"host": "0.0.0.0"}},
        {"remote": {"enabled": False}},
        {"sources": {"fridge": {"command": ["rm"]}}},
        {"sources": {"fridge": {"kind": "exec"}}},
        {"sources": {"new": {"interval_seconds": 1}}},
        {"sources": {"fridge": 1}},
        {"sources": 1},
        {"log": 1},
        {"nothing": {"a": 1}},
    ],
)
def test_what_could_cut_a_device_off_or_run_a_program_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        overlay(DOCUMENT, body)
