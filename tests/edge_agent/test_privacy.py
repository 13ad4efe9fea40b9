"""Personal data never becomes durable: not in the buffer, its WAL, reject files or logs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from scout_edge import buffer as buffer_module
from scout_edge.buffer import Buffer
from scout_edge.metrics import AgentMetrics
from scout_edge.privacy import Privacy, PrivacyError, PrivacyRule, PrivacySettings
from scout_edge.sources import http, outlet
from scout_edge.sources.http import HttpDoor
from scout_shared import logs
from scout_shared.errors import ConfigError
from scout_shared.wire import UNKNOWN_DAY, Document
from tests.edge_agent.records import ZONE, contents, outlet_of, stored
from tests.edge_agent.test_exec import python, records, running
from tests.edge_agent.test_files import Store
from tests.edge_agent.test_http import Client
from tests.harness.waiting import eventually

SALT, FACE, MOBILE = "a salt that nobody guesses", "face-4711-raw", "0917-123-4567"
RULE = PrivacyRule(
    hash=("face_id", "people.*.key"),
    redact=("transcript",),
    personal=("gender",),
    faces=("face_id",),
    audio=("audio",),
)


def privacy(*rules: PrivacyRule, salt: str = SALT) -> Privacy:
    return Privacy(PrivacySettings(rules or (RULE,), "2026-11", salt))


def document(body: Any, kind: str = "transaction") -> Document:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Document(kind, None, UNKNOWN_DAY, text)


def kept(body: Any, *rules: PrivacyRule) -> Any:
    (made,) = privacy(*rules).apply([document(body)])
    return json.loads(made.body)


@pytest.mark.parametrize("days", [-1, 4000, float("nan")])
def test_a_retention_that_cannot_be_is_refused(days: float) -> None:
    with pytest.raises(ConfigError, match="retention_days"):
        PrivacySettings(retention_days=days)


@pytest.mark.parametrize(
    "said, refused",
    [
        ("30", ""),
        ("14", ""),
        ("365.5", ""),
        ("null", ""),
        ("13", "for 13 days, this device may keep it for 14"),
        ("-1", "for -1 days"),
        ("0", "for 0 days"),
        ("NaN", "for nan days"),
        ("true", "an unreadable number of days"),
        ('"0917-123-4567"', "an unreadable number of days"),
    ],
)
def test_a_document_may_not_promise_a_shorter_retention(said: str, refused: str) -> None:
    held = Privacy(PrivacySettings(retention_days=14))
    for key in ("dataRetentionDays", "data\\u0052etentionDays"):
        given = document(f'{{"privacy": {{"{key}": {said}}}}}'.encode())
        if not refused:
            assert held.apply([given]) == [given]
            continue
        with pytest.raises(PrivacyError) as raised:
            held.apply([document({}), given])
        assert refused in raised.value.message
        assert raised.value.document == 1
        assert MOBILE not in raised.value.message


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"privacy": 7, "dataRetentionDays": 1}'])
def test_what_says_nothing_of_its_retention_passes(body: bytes) -> None:
    given = document(body)
    assert Privacy(PrivacySettings(retention_days=14)).apply([given]) == [given]


@contextmanager
def opened(folder: Path) -> Iterator[Buffer]:
    with Buffer(folder / "edge.db", zone=ZONE, privacy=privacy()) as buffer:
        yield buffer


@contextmanager
def logged() -> Iterator[list[Any]]:
    """Every line that is logged meanwhile, at any level, repeats too."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (outlet, http, buffer_module):  # a logger once used may keep its old way
            patch.setattr(module, "log", logs.get("test"))
        with capture_logs() as lines:
            yield lines


def everything(folder: Path) -> bytes:
    """All bytes of all files: buffer, WAL, rejects."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# -- the rules ------------------------------------------------------------------------------------


def test_equal_values_have_equal_hashes_within_a_salt_and_no_longer_than_an_identifier() -> None:
    one, same, other = (kept({"face_id": f})["face_id"] for f in (FACE, FACE, "another"))
    assert one == same != other
    assert one.startswith("hmac:2026-11:")
    assert len(one) <= 64
    (salted,) = privacy(salt="another salt, as long").apply([document({"face_id": FACE})])
    assert json.loads(salted.body)["face_id"] != one


def test_a_hash_is_the_hmac_of_the_text() -> None:
    import hmac

    expected = hmac.new(SALT.encode(), b"4711", "sha256").hexdigest()[:40]
    for value in ("4711", 4711):
        assert kept({"face_id": value}) == {"face_id": f"hmac:2026-11:{expected}"}
    assert kept({"face_id": None}) == {"face_id": None}


def test_paths_go_through_lists_and_any_field() -> None:
    made = kept({"people": {"a": {"key": "x"}, "b": [{"key": "y"}, {"key": ["z", None]}, 3]}})
    assert made["people"]["a"]["key"].startswith("hmac:")
    first, second, third = made["people"]["b"]
    assert first["key"].startswith("hmac:")
    assert second["key"][0].startswith("hmac:")
    assert (second["key"][1], third) == (None, 3)


@pytest.mark.parametrize(
    "said, left",
    [
        ("text me at 0917 123 4567 po", "text me at [mobile] po"),
        ("+639171234567, 63-917-123-4567.", "[mobile], [mobile]."),
        ("ana.cruz+x@mail.example.ph ha", "[email] ha"),
        ("TIN 123-456-789-000 or 123-456-789", "TIN [tin] or [tin]"),
        ("PhilSys 1234-5678-9012-3456", "PhilSys [philsys]"),
        ("card 4111 1111 1111 1111.", "card [card]."),
        ("no card: 4111 1111 1111 1112", "no card: [philsys]"),
        ("2 x 176.00 is 352.00, order 20261123001", "2 x 176.00 is 352.00, order 20261123001"),
        ("marlboro coke isa camel", "marlboro coke isa camel"),
    ],
)
def test_a_transcript_keeps_its_words_and_loses_its_numbers_of_persons(
    said: str, left: str
) -> None:
    assert kept({"transcript": [said]}) == {"transcript": [left]}


def test_without_the_time_of_a_consent_personal_fields_are_left_out() -> None:
    consent = {"consentTimestamp": "2026-11-23T08:00:00+08:00"}
    assert kept({"gender": "f", "n": 1}) == {"n": 1}
    assert kept({"gender": "f", "privacy": {"consentTimestamp": ""}}) == {
        "privacy": {"consentTimestamp": ""}
    }
    assert kept({"gender": "f", "privacy": consent}) == {"gender": "f", "privacy": consent}


@pytest.mark.parametrize(
    "block, field",
    [
        ({"noFacialRecognition": True}, "face_id"),
        ({"noImageProcessing": True}, "face_id"),
        ({"audioStored": False}, "audio"),
    ],
)
def test_a_document_that_breaks_its_own_privacy_block_is_refused_or_held_to_it(
    block: dict[str, bool], field: str
) -> None:
    body = {"privacy": block, field: FACE}
    with pytest.raises(PrivacyError, match=f"document 0: .* no {field}") as refused:
        kept(body)
    assert FACE not in f"{refused.value} {refused.value.hint}"
    redacting = PrivacyRule(faces=("face_id",), audio=("audio",), breach="redact")
    assert kept(body, redacting) == {"privacy": block}
    assert field in kept({"privacy": dict.fromkeys(block), field: FACE})


@pytest.mark.parametrize(
    "body",
    [b"[1]", b"{", b'{"face_id": "raw", "face_id": null}', b'{"a": NaN}', b"[" * 100_000, b"\xff"],
)
def test_what_cannot_be_looked_into_is_refused_without_its_text(body: bytes) -> None:
    with pytest.raises(PrivacyError) as refused:
        privacy().apply([document({"n": 1}), document(body)])
    assert refused.value.document == 1
    assert refused.value.__cause__ is None
    assert "raw" not in str(refused.value)


def test_what_no_rule_names_passes_byte_for_byte_and_numbers_keep_their_digits() -> None:
    plain = document(b'{ "total" : 1.10 }')
    other = document(b"not even JSON", "weather")
    rule = PrivacyRule(type="trans*", hash=("face_id",))
    assert list(privacy(rule).apply([plain, other])) == [plain, other]
    (made,) = privacy(rule).apply([document(b'{"total":1.10,"n":1E+2,"s":"1.10","face_id":"x"}')])
    assert made.body.startswith(b'{"total":1.10,"n":1E+2,"s":"1.10","face_id":"hmac:')


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["face_id", "transcript", "gender", "n"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["face_id", "people", "transcript", "n"]), JSON_VALUES, max_size=4
    )
)
def test_applied_twice_is_applied_once(body: dict[str, Any]) -> None:
    once = privacy().apply([document(body)])
    assert privacy().apply(once) == list(once)
    assert json.loads(once[0].body).get("n") == body.get("n")


@pytest.mark.parametrize(
    "given, said",
    [
        ({"rules": (RULE,), "salt_id": "a", "salt": "short"}, "SCOUT_PRIVACY_SALT has 5"),
        ({"rules": (RULE,), "salt_id": "", "salt": SALT}, "salt_id ''"),
        ({"rules": (RULE,), "salt_id": "x" * 17, "salt": SALT}, "salt_id"),
    ],
)
def test_a_salt_that_is_missing_or_weak_stops_the_start(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        PrivacySettings(**given)
    assert "short" not in refused.value.message


# -- what is on the disk --------------------------------------------------------------------------

SALE = {"face_id": FACE, "transcript": f"call {MOBILE}", "gender": "g-raw", "n": 1}
RAW = (FACE.encode(), MOBILE.encode(), b"g-raw", SALT.encode())


def assert_nothing_raw(folder: Path, log: list[Any]) -> None:
    found, said = everything(folder), repr(log).encode()
    assert b"hmac:2026-11:" in found
    for raw in RAW:
        assert raw not in found
        assert raw not in said


def test_no_file_and_no_log_holds_what_came_through_the_door(tmp_path: Path) -> None:
    with logged() as log, opened(tmp_path) as buffer:
        door = HttpDoor(buffer, AgentMetrics(buffer), dict, host="127.0.0.1", port=0)
        door.open()
        stop = threading.Event()
        thread = threading.Thread(target=door.run, args=(stop,))
        thread.start()
        ask = Client(door.address)
        try:
            item = {"type": "transaction", "observed_at": None, "body": SALE}
            body = json.dumps(item).encode()
            headers = {"Content-Type": "application/json", "Idempotency-Key": "k1"}
            first = ask("POST", "/v1/documents", body, headers)
            again = ask("POST", "/v1/documents", body, headers)
            assert (first[0], again[0], again[1]["duplicate"]) == (200, 200, True)
            item["body"] = {**SALE, "privacy": {"noFacialRecognition": True}}
            status, answer, _ = ask("POST", "/v1/documents", json.dumps(item).encode())
            assert (status, FACE in json.dumps(answer)) == (422, False)
            assert records(buffer) == 1
        finally:
            ask.connection.close()
            stop.set()
            thread.join(10)
            door.close()
        # Before the buffer closes: the WAL is still there.
        assert_nothing_raw(tmp_path, log)
        assert AgentMetrics(buffer).counters()["privacy_hashed_fields"] == 2


def test_no_file_and_no_log_holds_what_a_command_said(tmp_path: Path) -> None:
    item = {"type": "transaction", "observed_at": None, "body": SALE}
    broken = {**item, "body": {**SALE, "privacy": {"noFacialRecognition": True}}}
    lines = [json.dumps(broken), json.dumps(item), json.dumps(item)[:-1], f"'{FACE}'"]
    code = f"print({chr(10).join(lines)!r})"
    with logged() as log, opened(tmp_path) as buffer:
        way = outlet_of(buffer)
        with running(way, python(code), format="jsonl"):
            eventually(lambda: records(buffer) == 1)
            eventually(lambda: way._metrics.counters()["unreadable_records"] == 3)
        assert [line["event"] for line in log].count("record.unreadable") == 3
        assert_nothing_raw(tmp_path, log)


def test_rejects_of_a_file_say_where_and_not_what(tmp_path: Path) -> None:
    origin, device = tmp_path / "pos", tmp_path / "device"
    origin.mkdir()
    device.mkdir()
    broken = {**SALE, "privacy": {"noFacialRecognition": True}}
    lines = [json.dumps(SALE), json.dumps(SALE)[:-1], json.dumps(broken), json.dumps(SALE)]
    (origin / "sales.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with logged() as log, opened(device) as buffer:
        store = Store(buffer, origin, reject_path=device / "sales.rejects")
        assert store.numbers() == [1, 1]
        store.source.close()
        (reject,) = (device / "sales.rejects").read_text("utf-8").splitlines()
        assert json.loads(reject)["bytes"] == len(lines[1]) + 1
        assert store.outlet._metrics.counters()["unreadable_records"] == 2
        assert_nothing_raw(device, log)
        assert len(contents(stored(buffer))[1]) == 2
