import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_edge.sources import payload
from scout_shared.errors import PermanentError
from scout_shared.wire import UNKNOWN_DAY, Document
from scout_shared.zones import BusinessCalendar
from tests.edge_agent.records import ZONE

CALENDAR = BusinessCalendar(ZONE)
TIME = '"2026-11-23T08:15:00+08:00"'
GOOD = '{"type":"transaction","observed_at":"2026-11-23T08:15:00+08:00","body":{"total":1.10}}'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)  # fmt: skip


def documents(text: str | bytes, lines: bool = False) -> list[Document]:
    raw = text.encode() if isinstance(text, str) else text
    return payload.documents(raw, CALENDAR, lines=lines)


def test_the_body_is_kept_byte_for_byte() -> None:
    body = '{ "total": 1.10, "big": 12345678901234567890.123, "e": 1E400, "x": "\\ud800\\u0000ñ" }'
    (document,) = documents(f'{{"body": {body} ,"type":"t"}}')
    assert document.body == body.encode()
    assert (document.observed_ms, document.business_day) == (None, UNKNOWN_DAY)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=4), st.booleans())
def test_any_bodies_come_through_unchanged(bodies: list[dict[str, object]], spaced: bool) -> None:
    texts = [json.dumps(body, indent=1 if spaced else None) for body in bodies]
    items = [f'{{"type": "t", "observed_at": null, "body": {text}}}' for text in texts]
    array = documents(" [ " + " , ".join(items) + " ] \n")
    assert [d.body for d in array] == [text.encode() for text in texts]
    if not spaced:
        assert documents("\n".join(items) + "\r\n\n", lines=True) == array
    for item, expected in zip(items, array, strict=True):
        assert documents(item) == [expected]


@given(st.text() | JSON.map(json.dumps))
def test_any_text_is_taken_or_refused(text: str) -> None:
    for lines in (False, True):
        for parse in (documents, lambda t, lines: payload.readings(t.encode(), lines=lines)):
            try:
                parse(text, lines=lines)
            except (PermanentError, UnicodeEncodeError):
                continue


def test_times_are_milliseconds_utc_with_the_business_day_of_the_store() -> None:
    (document,) = documents(GOOD)
    assert document.observed_ms == 1_795_392_900_000
    for text in ("2026-11-23T00:15:00Z", "20261123T001500+0000", "2026-11-22T19:15:00.0009-05:00"):
        (same,) = documents(GOOD.replace("2026-11-23T08:15:00+08:00", text))
        assert same.observed_ms == document.observed_ms
        assert same.business_day == document.business_day == CALENDAR.day(document.observed_ms)


@pytest.mark.parametrize(
    'text, message',
    [
        ("", "not JSON"),
        (b"\xff", "not UTF-8"),
        (GOOD + GOOD, "more text after the end"),
        (f"[{GOOD},]", "not JSON"),
        (f"[{GOOD} {GOOD}]", "not JSON"),
        ("[1]", "not JSON"),
        ('"x"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        (GOOD.replace("1.10", "[" * 100_000), "nested too deeply"),
        (GOOD.replace("1.10", "NaN"), "NaN is not a JSON number"),
        (GOOD.replace("1.10", "-Infinity"), "-Infinity is not a JSON number"),
        (GOOD.replace("1.10", "9" * 5000), "not JSON"),
        (GOOD.replace('"type":"transaction",', ""), "item 0: field 'type' is missing"),
        (GOOD.replace('"type"', '"Type"'), "item 0: unknown field 'Type'"),
        (GOOD.replace('"type":', '"type":"a","type":'), "'type' is given twice"),
        (f'[{GOOD},{GOOD.replace("transaction", "")}]', 'item 1: type "" must be a text'),
        (GOOD.replace("+08:00", ""), "08:15:00\" has no offset"),
        (GOOD.replace(TIME, '"yesterday"'), 'observed_at "yesterday" is not'),
        (GOOD.replace("T08:15:00+08:00", ""), "has no offset"),
        (GOOD.replace(TIME, "1795392900"), "observed_at 1795392900 must be"),
        (GOOD.replace('{"total":1.10}', "[]"), "item 0: body \\[\\] must be a JSON object"),
    ],
)  # fmt: skip
def test_a_wrong_document_is_named_with_item_field_and_value(
    text: str | bytes, message: str
) -> None:
    with pytest.raises(PermanentError, match=message):
        documents(text)


def test_readings_are_numbers_with_a_time() -> None:
    time = '"1970-01-01T00:00:01Z"'
    text = f'[{{"metric":"fridge.1.temperature_celsius","observed_at":{time},"value":-4}}]'
    (reading,) = payload.readings(text.encode(), lines=False)
    assert reading == ("fridge.1.temperature_celsius", 1000, -4.0)
    assert isinstance(reading.value, float)
    for old, new, message in (
        ("-4", "true", "value true must be a number"),
        ("-4", "null", "value null must be a number"),
        ("-4", '"4"', 'value "4" must be a number'),
        ("-4", "1e999", "more than a float64"),
        ("-4", "1" + "0" * 400, "more than a float64"),
        (time, "null", "observed_at null must be a time"),
    ):
        with pytest.raises(PermanentError, match=f"item 0: {message}|{message}"):
            payload.readings(text.replace(old, new).encode(), lines=False)
