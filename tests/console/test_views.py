from __future__ import annotations

import ast
import dataclasses
import datetime as dt
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scout_console import sheets, views
from scout_console.client import DatabaseAwayError, HubAwayError, NotSignedInError
from scout_console.values import Clock, Said, Tone
from scout_shared import answers
from tests.console.answers import NOW, device, fleet, forecast, overview, seen, sums

CLOCK = Clock("Asia/Manila")
_NUMBERS = st.integers(min_value=0, max_value=10**9)


def _head(**given: object) -> views.Headline:
    answer = overview(**given)
    return views.headline(seen(answer), seen(None), seen(None), CLOCK)


_FIGURES = (
    "landed",
    "duplicate",
    "quarantined",
    "excluded",
    "given_up",
    "pending",
    "in_transit",
    "unreported",
)


@given(
    st.fixed_dictionaries(dict.fromkeys(_FIGURES, _NUMBERS)),
    st.integers(min_value=-(10**6), max_value=10**6),
)
def test_the_equation_as_it_is_written_is_true(figures: dict[str, Any], undated: int) -> None:
    left, right = views.equation(sums(**figures, undated=undated)).split(" = ")
    assert _evaluate(left) == _evaluate(right)


@given(st.fixed_dictionaries(dict.fromkeys(_FIGURES, _NUMBERS)))
def test_the_table_of_the_equation_adds_up(figures: dict[str, Any]) -> None:
    sheet = sheets.reconciliation([sums(**figures)], "kind")
    (line,) = sheet.lines
    shown = {
        column.name: cell.text.replace(",", "")
        for column, cell in zip(sheet.columns, line.cells, strict=True)
    }

    def total(*names: str) -> int:
        return sum(int(shown[name].replace("−", "-")) for name in names)

    assert total("Produced", "Not yet reported") == total("In transit", "Received")
    ends = ("Landed", "Duplicate", "Quarantined", "Excluded", "Given up", "Pending")
    assert total("Received") == total(*ends)
    assert total("In transit") == figures["in_transit"], "what is under way is never negative"


def _evaluate(side: str) -> int:
    """What a person would get who adds the written figures."""
    total = 0
    for sign, number in re.findall(r"(^|[+−])\s*(−?[\d,]+)", side):
        value = ast.literal_eval(number.replace(",", "").replace("−", "-"))
        total += -value if sign == "−" else value
    return total


def test_the_equation_names_the_four_ends_always_and_the_rest_when_there_is_some() -> None:
    assert views.equation(sums(landed=15_212)) == (
        "15,212 produced = 15,212 landed + 0 duplicate + 0 quarantined + 0 excluded"
    )
    assert views.equation(sums(landed=10, pending=3, in_transit=2)) == (
        "15 produced = 10 landed + 0 duplicate + 0 quarantined + 0 excluded + 3 pending"
        " + 2 in transit"
    )


def test_figures_that_contradict_each_other_are_not_written_as_an_equation() -> None:
    row = sums(landed=10, produced=11)
    assert "≠" in views.equation(row)
    assert views.sums_verdict([row])[1] is Tone.BAD
    assert "contradict" in views.sums_sentence([row])


@given(st.integers(min_value=-(10**6), max_value=10**6).filter(bool))
def test_a_remainder_is_never_called_adding_up(remainder: int) -> None:
    row = sums(landed=10**7, in_transit=10**7, remainder=remainder)
    assert "does not add up" in views.sums_sentence([row])
    verdict, tone = views.sums_verdict([row])
    assert verdict.startswith("No")
    assert tone is Tone.BAD
    assert ("missing" in verdict) == (remainder > 0)


def test_remainders_that_cancel_out_are_told() -> None:
    row = sums(landed=10, adds_up=False)
    assert "cancel out" in views.sums_sentence([row])
    assert views.sums_verdict([row])[1] is Tone.BAD


def test_records_under_way_are_not_missing() -> None:
    verdict, tone = views.sums_verdict([sums(landed=10, pending=2, in_transit=3)])
    assert verdict == "Yes: 5 records under way, none missing"
    assert tone is Tone.GOOD


def test_no_records_is_not_the_same_as_adding_up() -> None:
    assert views.sums_sentence([]) == "no records yet"
    assert views.sums_verdict([])[1] is Tone.QUIET


def test_the_sentence_says_which_store_is_dark_and_for_how_long() -> None:
    answer = fleet(device("343", "dark"), *(device(str(n)) for n in range(7)))
    head = views.headline(seen(overview()), seen(answer), seen(None), CLOCK)
    assert head.sentence == (
        "7 of 8 stores online; store 343 dark for 12 min; everything adds up:"
        " 15,212 produced = 15,212 landed + 0 duplicate + 0 quarantined + 0 excluded"
    )


def test_a_store_is_as_its_worst_device_is() -> None:
    answer = fleet(device("1"), device("1", "dark", device_id="till-1b"), device("2"))
    assert views.fleet_sentence(answer, NOW) == "1 of 2 stores online; store 1 dark for 12 min"


def test_many_dark_stores_are_counted_and_the_longest_is_told() -> None:
    dark = [device(str(n), "dark", since=NOW - dt.timedelta(hours=n)) for n in range(1, 8)]
    told = views.fleet_sentence(fleet(*dark, device("9")), NOW)
    assert told == "1 of 8 stores online; stores 7, 6, 5 and 4 more dark, the longest for 7 h"


def test_a_retired_device_is_not_a_dark_store() -> None:
    answer = fleet(device("1"), device("2", "dark", lifecycle="retired"))
    assert views.fleet_sentence(answer, NOW) == "1 of 1 store online"
    assert views.fleet_sentence(fleet(), NOW) == "no store has reported yet"


def test_never_heard_is_not_dark() -> None:
    answer = fleet(device("1"), device("2", "unknown", since=None))
    assert views.fleet_sentence(answer, NOW) == "1 of 2 stores online; store 2 never heard"


@given(st.lists(st.sampled_from(views.WORDS), min_size=1))
def test_the_worst_word_wins(words: list[str]) -> None:
    assert views.WORDS.index(views.worst(words)) == max(map(views.WORDS.index, words))


def test_the_exit_code_follows_the_word() -> None:
    assert _head().exit_code == 0
    assert _head(status="degraded").exit_code == 1
    assert _head(status="down").exit_code == 2
    away = views.headline(
        seen(overview(), failure=HubAwayError("no", "start it")), seen(None), seen(None), CLOCK
    )
    assert (away.word, away.exit_code) == ("hub away", 3)


def test_a_kept_answer_speaks_of_its_own_time_and_says_what_to_do() -> None:
    failure = HubAwayError("the hub cannot be reached", "is scout-hub running?")
    kept = seen(overview(), age_seconds=240, failure=failure)
    head = views.headline(kept, seen(fleet(device()), failure=failure), seen(None), CLOCK)
    assert head.word == "hub away"
    assert head.stores == "at 14:03: 1 of 1 store online"
    assert head.advice == "the hub cannot be reached. Is scout-hub running?"
    assert kept.now == NOW  # ages stand still: nobody knows how it is now


@pytest.mark.parametrize(
    "failure, word, code",
    [
        (HubAwayError("no answer", "start it"), "hub away", 3),
        (DatabaseAwayError("no database", "wait"), "down", 2),
        (NotSignedInError("no such token", "make one"), "no access", 2),
    ],
)
def test_without_any_answer_the_failure_is_the_headline(
    failure: HubAwayError, word: str, code: int
) -> None:
    head = views.headline(seen(None, failure=failure), seen(None), seen(None), CLOCK)
    assert (head.word, head.exit_code, head.stores) == (word, code, failure.message)
    assert head.advice == failure.hint


def test_sums_are_the_first_concern_then_the_longest() -> None:
    answer = overview(
        status="degraded", reconciliation=(sums(landed=5, in_transit=2, remainder=2),)
    )
    dark = fleet(
        device("1", "dark"),
        device("2", "dark", since=NOW - dt.timedelta(hours=2)),
        device("3", "late"),
    )
    found = views.concerns(answer, dark, None, NOW)
    assert [c.text for c in found] == [
        "records do not add up: 2 documents missing",
        "store 2 dark for 2 h",
        "store 1 dark for 12 min",
        "store 3 late for 12 min",
    ]
    head = views.headline(seen(answer), seen(dark), seen(None), CLOCK)
    assert head.since == NOW - dt.timedelta(hours=2)


def test_a_baseline_says_that_it_is_one() -> None:
    assert views.forecast_label(forecast()) == (
        "seasonal naive baseline, not a trained model; median WAPE 0.21, from 8 weeks of sales",
        Tone.WARN,
    )
    assert views.forecast_label(forecast(status="none", rows=0))[0] == "no forecast yet"
    assert "WAPE unknown" in views.forecast_label(forecast(wape_ratio=None))[0]
    assert "not all trained" in views.forecast_label(forecast(status="mixed"))[0]


def test_the_age_of_an_answer_grows_and_a_failure_makes_it_stale() -> None:
    bar = views.top_bar("prod", CLOCK, seen(None), seen(overview(), age_seconds=3))
    assert bar.as_of == "as of 14:03:07, 3 s ago"
    assert not bar.stale
    kept = seen(overview(), age_seconds=725, failure=HubAwayError("no", ""))
    assert views.top_bar("prod", CLOCK, seen(None), kept).as_of == "last answer 14:03, 12 min old"
    quiet = Clock("Asia/Manila", coarse=True)
    told = {
        views.top_bar("", quiet, seen(None), seen(overview(), age_seconds=s)).as_of for s in (0, 5)
    }
    assert told == {"as of 14:03"}


def test_an_id_of_a_device_cannot_write_to_the_terminal() -> None:
    evil = device("\x1b[2J343", "dark")
    assert "\x1b" not in views.fleet_sentence(fleet(evil), NOW)
    assert "\x1b" not in views.concerns(overview(), fleet(evil), None, NOW)[0].text


def test_total_loses_nothing() -> None:
    rows = [sums("documents", landed=5, pending=1), sums("readings", landed=7, duplicate=2)]
    together = dataclasses.asdict(views.total(rows))
    for name in ("produced", "received", "landed", "duplicate", "pending"):
        assert together[name] == sum(getattr(row, name) for row in rows)


def test_of_a_device_in_maintenance_nobody_waits_for_a_word() -> None:
    answer = fleet(device("1"), device("2", "dark", lifecycle="maintenance"))
    assert views.fleet_sentence(answer, NOW) == "1 of 1 store online; 1 in maintenance"
    assert views.concerns(overview(), answer, None, NOW) == views.concerns(
        overview(), fleet(device("1")), None, NOW
    )


@pytest.mark.parametrize(
    "version, wanted, said",
    [
        (None, None, "unknown"),
        (0, None, "the device's own file"),
        (3, 3, "version 3"),
        (2, 3, "version 2, version 3 was ordered"),
    ],
)
def test_a_device_says_whose_settings_are_in_force(
    version: int | None, wanted: int | None, said: str
) -> None:
    assert fact("Settings", config_version=version, config_wanted=wanted).text == said


@pytest.mark.parametrize(
    "damaged, said, tone",
    [
        (None, "2.1 MB", Tone.PLAIN),
        (0, "2.1 MB", Tone.PLAIN),
        (2, "2.1 MB, 2 damaged", Tone.BAD),
    ],
)
def test_damaged_files_stand_with_the_buffer(damaged: int | None, said: str, tone: Tone) -> None:
    kept = fact("Buffer on disk", buffer_bytes=2_100_000, damaged_files=damaged)
    assert (kept.text, kept.tone) == (said, tone)


@pytest.mark.parametrize(
    "counters, said",
    [
        ({}, "1,234"),
        ({"budget_bytes": 100, "budget_used_bytes": 99}, "1,234"),
        (
            {"budget_bytes": 100, "budget_used_bytes": 100},
            "1,234, only sales are sent until tomorrow",
        ),
    ],
)
def test_a_backlog_that_waits_for_a_metered_line_says_so(
    counters: dict[str, int], said: str
) -> None:
    assert fact("Backlog", counters, backlog_records=1234).text == said


def fact(name: str, counters: dict[str, int] | None = None, **told: Any) -> Said:
    detail = answers.DeviceDetail(
        as_of=NOW,
        device=device("1", **told),
        streams=(),
        gaps=(),
        readings=(),
        counters=counters or {},
        reconciliation=(),
    )
    return dict(sheets.device_facts(detail, CLOCK, NOW))[name]
