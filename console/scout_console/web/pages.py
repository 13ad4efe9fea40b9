"""The three pages: overview, fleet, pipeline. Each is drawn below the headline, from the feed.

What is filtered and chosen stands in the URL, so that a page can be sent to somebody.
"""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import quote

import altair
import streamlit as st

from scout_console import sheets, views
from scout_console.feed import Seen
from scout_console.values import Nothing, Said, Tone, count, printable
from scout_console.views import Headline
from scout_console.web import markup
from scout_console.web.frame import clock, feed
from scout_shared import answers

STATES = ("dark", "late", "unknown", "online")
RUN_STATES = ("running", "completed", "failed", "cancelled")
_STORES_SHOWN = 48
_CALENDAR = 120
_OUTCOMES = ("landed", "duplicate, quarantined, excluded, given up", "under way")


def overview(head: Headline) -> None:
    """Which stores are dark, how old the data is, whether everything adds up."""
    seen, fleet_seen = feed().overview(), feed().fleet()
    if seen.value is None:
        return
    now, answer = seen.now, seen.value
    if head.concerns:
        st.html(
            markup.title("To look at") + markup.concerns(head.concerns, clock(), now),
        )
    st.html(markup.title("Stores", _fleet_aside(answer.fleet)) + _stores(fleet_seen))
    verdict, tone = views.sums_verdict(answer.reconciliation)
    st.html(
        markup.title("Does everything add up?", markup.words(verdict, tone))
        + markup.table(
            sheets.reconciliation(answer.reconciliation, "kind"), "Where the records went"
        )
        + _equation_note(answer)
    )
    st.html(
        markup.title("How old is the data?", "age of the newest row in each layer")
        + markup.tiles(sheets.layers(answer.layers, clock(), now))
    )
    text, tone = views.forecast_label(answer.forecast)
    left, right = st.columns(2, gap="large")
    left.html(
        markup.title("Forecast")
        + f"<p class='nothing'>{markup.words(markup.sentence_case(text), tone)}</p>"
    )
    right.html(markup.title("Hub") + markup.parts(views.components_line(answer), answer.version))


def fleet(_head: Headline) -> None:
    """All devices, worst first; one of them in detail."""
    seen = feed().fleet()
    if _missing(seen, "the fleet"):
        return
    assert seen.value is not None
    devices = {d.device_id: d for d in seen.value.devices}
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        wanted = _filter("Devices in state", "state", STATES)
        st.space("stretch")
        chosen = st.selectbox(
            "Device",
            list(devices),
            index=None,
            key="device",
            bind="query-params",
            label_visibility="collapsed",
            placeholder="Choose a device",
            width=260,
        )
    if chosen:
        device(chosen)
    shown = [d for d in devices.values() if wanted in (None, d.status)]
    aside = _fleet_aside(seen.value.counts)
    sheet = sheets.fleet(shown, clock(), seen.now)
    if devices and not shown:
        st.html(
            markup.title("Devices", aside)
            + f'<p class="nothing">No device is {wanted}; {count(len(devices))} are in other '
            "states.</p>"
        )
        return
    st.html(
        markup.title("Devices", aside)
        + markup.table(sheet, "Devices, worst first", link=_device_link, chosen=chosen or "")
    )


def device(device_id: str) -> None:
    """One device: what it says, where its records went day by day, its streams and telemetry."""
    seen = feed().device(device_id)
    if _missing(seen, f"device {device_id}"):
        return
    assert seen.value is not None
    detail, now = seen.value, seen.now
    word = sheets.state(detail.device.status, views.status_for(detail.device, now))
    st.html(
        markup.title(
            f"{sheets.store_name(detail.device)} · {printable(device_id)}", markup.span(word)
        )
        + markup.facts(sheets.device_facts(detail, clock(), now))
    )
    verdict, tone = views.sums_verdict(detail.reconciliation)
    st.html(
        markup.title("Does it add up?", markup.words(verdict, tone))
        + markup.table(
            sheets.reconciliation(detail.reconciliation, "kind"), "Where its records went"
        )
    )
    _days(device_id)
    if detail.gaps:
        st.html(
            markup.title("Given up", "accepted by the device, declared as lost")
            + markup.table(sheets.gaps(detail, clock(), now), "What it gave up")
        )
    left, right = st.columns(2, gap="large")
    left.html(
        markup.title("Telemetry", "latest values")
        + markup.table(sheets.readings(detail, clock(), now), "Latest telemetry")
    )
    right.html(
        markup.title("Buffer files", "each is one stream of numbered records")
        + markup.table(sheets.streams(detail, clock(), now).narrow(1), "Streams")
    )


def pipeline(_head: Headline) -> None:
    """Runs with their steps, tables with their age, what is in quarantine, what failed."""
    tables, quarantine, errors = feed().tables(), feed().quarantine(), feed().errors()
    wanted = _filter("Runs in state", "runs", RUN_STATES)
    runs = feed().runs(status=wanted, limit=12)
    if not _missing(runs, "the runs"):
        assert runs.value is not None
        _runs(runs, wanted)
    if not _missing(tables, "the tables"):
        assert tables.value is not None
        st.html(
            markup.title("Tables", "age of the newest row against its target")
            + markup.table(
                sheets.datasets(tables.value.tables, clock(), tables.now), "Tables by layer"
            )
        )
    left, right = st.columns([2, 3], gap="large")
    with left:
        if not _missing(quarantine, "the quarantine"):
            assert quarantine.value is not None
            groups = quarantine.value.groups
            st.html(
                markup.title(
                    "Quarantine", f"{count(sum(g.records for g in groups), 'records')} open"
                )
                + markup.table(
                    sheets.quarantine(groups, clock(), quarantine.now).narrow(1),
                    "Open quarantine by reason",
                )
            )
    with right:
        if not _missing(errors, "the failures"):
            assert errors.value is not None
            found = errors.value.errors
            st.html(
                markup.title("Failures", f"{count(len(found))} open")
                + markup.table(sheets.errors(found, clock(), errors.now), "Failures")
            )


def _runs(seen: Seen[answers.Runs], wanted: str | None) -> None:
    assert seen.value is not None
    found = {run.run_id: run for run in seen.value.runs}
    sheet = sheets.runs(list(found.values()), clock(), seen.now)
    if not found and wanted:
        sheet = sheets.Sheet(sheet.columns, (), f"No run is {wanted}.")
    left, right = st.columns([11, 9], gap="large")
    left.html(
        markup.title("Runs", "newest first")
        + markup.table(sheet.narrow(1), "Runs, newest first", link=_run_link)
    )
    asked = str(st.query_params.get("run", ""))
    chosen = found.get(asked) or next((r for r in found.values() if r.steps), None)
    with right:
        if asked and asked not in found:
            st.html(
                markup.title("Steps")
                + '<p class="nothing">The run of this link is older than the ones shown.</p>'
            )
        elif chosen is not None:
            began = clock().moment(chosen.started_at, seen.now, seconds=True)
            st.html(
                markup.title(f"Steps of the run of {began}", markup.span(_run_word(chosen)))
                + markup.table(
                    sheets.steps(chosen, clock(), seen.now).narrow(1), "Steps of one run"
                )
                + _run_message(chosen)
            )


def _run_word(run: answers.Run) -> Said:
    return sheets.state(run.status)


def _run_message(run: answers.Run) -> str:
    if not run.message:
        return ""
    tone = Tone.BAD if run.status == "failed" else Tone.QUIET
    return f'<p class="nothing">{markup.words(printable(run.message), tone)}</p>'


def _days(device_id: str) -> None:
    """Records by business day: a chart, and beside it the table that it is drawn from."""
    seen = feed().days(device_id)
    if seen.value is None:
        return
    rows = [row for row in seen.value.rows if row.kind == "documents"]
    dated = [row for row in rows if row.business_date is not None]
    if not rows:
        return
    st.html(markup.title("Documents by business day", _span(dated)))
    left, right = st.columns([11, 9], gap="large")
    newest_first = sorted(
        rows, key=lambda r: (r.business_date is None, r.business_date), reverse=True
    )
    right.html(
        markup.table(
            sheets.reconciliation(newest_first[:10], "day").narrow(1),
            "Documents by business day, newest first",
        )
    )
    with left:
        _chart(dated[-60:])


def _span(dated: list[answers.ReconciliationRow]) -> str:
    days = [row.business_date for row in dated if row.business_date is not None]
    if not days:
        return "no known day"
    return f"{count(len(days), 'days')}, {min(days):%-d %b %Y} to {max(days):%-d %b %Y}"


def _outcomes(row: answers.ReconciliationRow | None) -> tuple[tuple[str, int], ...]:
    if row is None:
        return ((_OUTCOMES[0], 0),)
    other = row.duplicate + row.quarantined + row.excluded + row.given_up
    numbers = (row.landed, other, row.in_transit + row.pending)
    return tuple(zip(_OUTCOMES, numbers, strict=True))


def _chart(rows: list[answers.ReconciliationRow]) -> None:
    if not rows:
        st.html('<p class="nothing">No record of this device has a known day.</p>')
        return
    by_day = {row.business_date: row for row in rows if row.business_date is not None}
    first, last = min(by_day), max(by_day)
    # a day without a record keeps its place, and stays empty
    days = [first + dt.timedelta(days=n) for n in range(min((last - first).days + 1, _CALENDAR))]
    points = [
        {"day": f"{day}", "outcome": name, "records": number, "layer": layer}
        for day in sorted({*days, *by_day})
        for layer, (name, number) in enumerate(_outcomes(by_day.get(day)))
    ]
    chart = (
        altair.Chart(altair.InlineData(values=points), height=270)
        .mark_bar()
        .encode(
            # utc: a business day must not move with the zone of the person who looks
            x=altair.X(
                "utcyearmonthdate(day):O",
                title=None,
                axis=altair.Axis(
                    format="%-d %b", formatType="utc", labelAngle=0, labelOverlap="greedy"
                ),
            ),
            y=altair.Y("records:Q", title="documents"),
            order=altair.Order("layer:O"),
            color=altair.Color(
                "outcome:N",
                title=None,
                scale=altair.Scale(
                    domain=list(_OUTCOMES),
                    range=["#5b87b5", "#c98b2b", "#a9adb1"],
                ),
                legend=altair.Legend(orient="top", labelLimit=260),
            ),
            tooltip=["day:N", "outcome:N", altair.Tooltip("records:Q", format=",")],
        )
    )
    st.altair_chart(
        chart, alt="Documents by business day; the table beside it has the same numbers"
    )


def _stores(seen: Seen[answers.Fleet]) -> str:
    if seen.value is None:
        nothing = Nothing.NO_PERMISSION if seen.forbidden else Nothing.SOURCE_DOWN
        return f'<p class="nothing">Devices: {nothing.value}.</p>'
    devices = [d for d in seen.value.devices if d.lifecycle != "retired"]
    if not devices:
        return f'<p class="nothing">{sheets.fleet((), clock(), seen.now).nothing}</p>'
    shown, left = devices[:_STORES_SHOWN], len(devices) - _STORES_SHOWN
    more = f'<p class="nothing">and {count(left)} more on the fleet page</p>' if left > 0 else ""
    return markup.stores(shown, seen.now, _device_link) + more


def _equation_note(answer: answers.Overview) -> str:
    if not answer.reconciliation:
        return ""
    return (
        '<p class="nothing">Produced + not yet reported = in transit + received. '
        "Received = landed + duplicate + quarantined + excluded + given up + pending. "
        "A remainder other than 0 is an incident.</p>"
    )


def _fleet_aside(counts: answers.FleetCounts) -> str:
    parts = [
        markup.span(
            sheets.state(word, f"{count(number)} {'never heard' if word == 'unknown' else word}")
        )
        for word, number in (
            ("dark", counts.dark),
            ("late", counts.late),
            ("unknown", counts.unknown),
            ("online", counts.online),
        )
        if number
    ]
    if counts.maintenance:
        parts.append(f"{count(counts.maintenance)} in maintenance")
    if counts.retired:
        parts.append(f"{count(counts.retired)} retired")
    return "&ensp;".join(parts)


def _filter(label: str, key: str, words: tuple[str, ...]) -> str | None:
    """One of ``words``, or None for all of them; it stands in the URL under ``key``."""
    chosen = st.segmented_control(
        label,
        ("all", *words),
        default="all",
        required=True,
        key=key,
        bind="query-params",
        label_visibility="collapsed",
    )
    return None if chosen in (None, "all") else chosen


def _device_link(device_id: str) -> str:
    return f"fleet?device={quote(device_id, safe='')}"


def _run_link(run_id: str) -> str:
    return f"pipeline?run={quote(run_id, safe='')}"


def _missing(seen: Seen[Any], what: str) -> bool:
    """Whether there is nothing to show of ``what``; says why."""
    if seen.value is not None:
        return False
    nothing = Nothing.NO_PERMISSION if seen.forbidden else Nothing.SOURCE_DOWN
    why = printable(seen.failure.message) if seen.failure else ""
    st.html(markup.absent(what, nothing, why))
    return True
