"""What the screens say about the whole: the headline, its reasons, the equation, the top bar.

Pure functions from answers to words, used by web, terminal and ``status`` alike, so that all three
say the same. The hub decides the status word; here it gets its since, its reasons and its advice.
Not its job: tables (``sheets``), single values (``values``), asking the hub (``feed``).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scout_console.client import DatabaseAwayError, HubAwayError
from scout_console.feed import Seen
from scout_console.values import Clock, Tone, age, count, printable, ratio, singular
from scout_shared import answers
from scout_shared.errors import ScoutError

WORDS = ("ok", "degraded", "down", "hub away")
"""Worst last; the position is the exit code of ``scout-console status``."""
_NAMED = 3
"""So many stores or tables are named one by one; the others are counted."""


@dataclass(frozen=True, slots=True)
class Concern:
    """One thing to look at."""

    tone: Tone
    """BAD: an incident. WARN: to look at."""
    text: str
    since: dt.datetime | None
    """None: nobody knows since when."""
    page: str
    """Where there is more: overview, fleet or pipeline."""
    device_id: str | None = None


@dataclass(frozen=True, slots=True)
class Headline:
    """The first thing on every screen."""

    word: str
    """One of WORDS, or ``no access``."""
    tone: Tone
    since: dt.datetime | None
    stores: str
    """Which stores are dark, and since when; or why nothing is known."""
    records: str
    """Whether everything adds up; empty when nothing is known."""
    ages: str
    """How old the data is; empty when nothing is known."""
    advice: str
    """What to do, when the hub is away or refuses; else empty."""
    concerns: tuple[Concern, ...]
    """Worst first."""
    stores_tone: Tone = Tone.PLAIN
    records_tone: Tone = Tone.PLAIN

    @property
    def sentence(self) -> str:
        """``7 of 8 stores online; store 343 dark for 12 min; everything adds up: …``."""
        return "; ".join(part for part in (self.stores, self.records) if part)

    @property
    def exit_code(self) -> int:
        """0 ok, 1 degraded, 2 down or no access, 3 hub away."""
        return WORDS.index(self.word) if self.word in WORDS else 2


def headline(
    overview: Seen[answers.Overview],
    fleet: Seen[answers.Fleet],
    tables: Seen[answers.Tables],
    clock: Clock,
) -> Headline:
    """The status of everything in one word and one sentence. Worst wins, failure to ask included.

    A kept answer speaks of its own time: "at 14:03 7 of 8 stores online".
    """
    failure = overview.failure
    seen = overview.value
    if seen is None:
        word, advice = _no_answer(failure)
        return Headline(
            word=word,
            tone=Tone.BAD,
            since=None,
            stores=printable(failure.message) if failure else "nothing has been asked yet",
            records="",
            ages="",
            advice=advice,
            concerns=(),
        )
    found = tuple(concerns(seen, fleet.value, tables.value, overview.now))
    stores = (
        fleet_sentence(fleet.value, fleet.now)
        if fleet.value is not None
        else counts_sentence(seen.fleet)
    )
    records, ages = (
        sums_sentence(seen.reconciliation),
        ages_sentence(seen.layers, clock, overview.now),
    )
    stores_tone = Tone.BAD if seen.fleet.dark else Tone.PLAIN
    records_tone = sums_verdict(seen.reconciliation)[1]
    if failure is not None:
        word, advice = _no_answer(failure)
        return Headline(
            word=word,
            tone=Tone.BAD,
            since=seen.as_of,
            stores=f"at {clock.moment(seen.as_of, seen.as_of)}: {stores}",
            records=records,
            ages=ages,
            advice=_told(failure, advice),
            concerns=found,
            stores_tone=Tone.QUIET,
            records_tone=Tone.QUIET,
        )
    word = worst([seen.status, *(c.status for c in seen.components if c.status in WORDS)])
    top = Tone.BAD if any(c.tone is Tone.BAD for c in found) else Tone.WARN
    return Headline(
        word=word,
        tone=top if word != "ok" else Tone.GOOD if seen.fleet.devices else Tone.QUIET,
        since=None
        if word == "ok"
        else min((c.since for c in found if c.since and c.tone is top), default=None),
        stores=stores,
        records=records,
        ages=ages,
        advice="",
        concerns=found,
        stores_tone=stores_tone,
        records_tone=Tone.BAD if records_tone is Tone.BAD else Tone.PLAIN,
    )


def worst(words: Iterable[str]) -> str:
    """The worst of some status words; ``ok`` when there are none."""
    return max(words, key=WORDS.index, default="ok")


def _no_answer(failure: ScoutError | None) -> tuple[str, str]:
    """The status word for a failure to ask, and what to do about it."""
    if failure is None:
        return "hub away", ""
    word = "no access"
    if isinstance(failure, DatabaseAwayError):
        word = "down"
    elif isinstance(failure, HubAwayError):
        word = "hub away"
    return word, printable(failure.hint)


def _told(failure: ScoutError, advice: str) -> str:
    """What happened and what to do, in one line."""
    what = printable(failure.message)
    return f"{what}. {advice[:1].upper()}{advice[1:]}" if advice else what


def concerns(
    overview: answers.Overview,
    fleet: answers.Fleet | None,
    tables: answers.Tables | None,
    now: dt.datetime,
) -> list[Concern]:
    """Everything that deserves a look: incidents first, of those the sums, then the longest."""
    found = [
        Concern(
            Tone.BAD if part.status == "down" else Tone.WARN,
            printable(f"{part.name}: {part.message or part.status}"),
            part.since,
            "pipeline",
        )
        for part in overview.components
        if part.status in ("degraded", "down")
    ]
    found += [
        Concern(Tone.BAD, f"records do not add up: {_amiss(row)}", None, "overview")
        for row in overview.reconciliation
        if not row.adds_up
    ]
    if fleet is not None:
        found += _about_devices(fleet.devices, "dark", Tone.BAD, now)
        found += _about_devices(fleet.devices, "late", Tone.WARN, now)
    if tables is not None:
        found += _about_tables(tables.tables)
    if overview.errors_open:
        grave = overview.errors_worst in ("high", "critical")
        found.append(
            Concern(
                Tone.BAD if grave else Tone.WARN,
                f"{count(overview.errors_open, 'errors')} open,"
                f" the worst {overview.errors_worst or 'of unknown weight'}",
                overview.errors_since,
                "pipeline",
            )
        )
    if overview.quarantine_records:
        found.append(
            Concern(
                Tone.WARN,
                f"{count(overview.quarantine_records, 'records')} in quarantine, not yet judged",
                None,
                "pipeline",
            )
        )
    return sorted(
        found, key=lambda c: (c.tone is not Tone.BAD, c.since is not None, c.since or now)
    )


def _about_devices(
    devices: Sequence[answers.Device], status: str, tone: Tone, now: dt.datetime
) -> list[Concern]:
    those = sorted(
        (d for d in devices if d.status == status and is_expected(d)),
        key=lambda d: d.since or now,
    )
    shown = those if len(those) <= _NAMED + 1 else those[:_NAMED]
    found = [
        Concern(tone, printable(f"{store(d)} {status_for(d, now)}"), d.since, "fleet", d.device_id)
        for d in shown
    ]
    if left := len(those) - len(shown):
        found.append(Concern(tone, f"{count(left)} more {status}", those[_NAMED].since, "fleet"))
    return found


def _about_tables(tables: Sequence[answers.Table]) -> list[Concern]:
    found = []
    for table in tables:
        run = table.last_run
        if table.status == "failed":
            why = f": {run.message}" if run and run.message else ""
            since = run.finished_at or run.heartbeat_at if run else None
            found.append(
                Concern(
                    Tone.BAD, printable(f"{table.dataset}: last run failed{why}"), since, "pipeline"
                )
            )
        elif table.status == "stale":
            missed = [sla for sla in table.slas if sla.met is False]
            since = min((s.breached_since for s in missed if s.breached_since), default=None)
            names = " and ".join(s.sla_name for s in missed) or "its SLA"
            found.append(
                Concern(Tone.WARN, f"{table.dataset} misses its {names} target", since, "pipeline")
            )
    if len(found) <= _NAMED + 1:
        return found
    rest = found[_NAMED:]
    tone = Tone.BAD if any(c.tone is Tone.BAD for c in rest) else Tone.WARN
    oldest = min((c.since for c in rest if c.since), default=None)
    return [
        *found[:_NAMED],
        Concern(tone, f"{count(len(rest))} more tables failed or late", oldest, "pipeline"),
    ]


def store(device: answers.Device) -> str:
    """``store 343``; an id that already says so stays as it is."""
    name = device.store_id
    return name if name.lower().startswith("store") else f"store {name}"


def status_for(device: answers.Device, now: dt.datetime) -> str:
    """``dark for 12 min``; without a since, the word alone."""
    if device.status == "unknown":
        return "never heard"
    if device.since is None:
        return device.status
    return f"{device.status} for {age((now - device.since).total_seconds())}"


def is_expected(device: answers.Device) -> bool:
    """Whether anybody waits for a word of it."""
    return device.lifecycle not in ("retired", "maintenance")


def fleet_sentence(fleet: answers.Fleet, now: dt.datetime) -> str:
    """``7 of 8 stores online; store 343 dark for 12 min``. A store is as its worst device is."""
    devices = [d for d in fleet.devices if is_expected(d)]
    cared_for = sum(d.lifecycle == "maintenance" for d in fleet.devices)
    if not devices:
        return f"{count(cared_for)} in maintenance" if cared_for else "no store has reported yet"
    order = ("dark", "late", "unknown", "online")
    stores: dict[str, answers.Device] = {}
    for device in sorted(devices, key=lambda d: (order.index(d.status), d.since or now)):
        stores.setdefault(device.store_id, device)
    ranked = list(stores.values())
    online = sum(d.status == "online" for d in ranked)
    parts = [f"{count(online)} of {count(len(ranked), 'stores')} online"]
    for status in order[:-1]:
        those = [d for d in ranked if d.status == status]
        if len(those) <= _NAMED:
            parts += [f"{store(d)} {status_for(d, now)}" for d in those]
        else:
            named = ", ".join(d.store_id for d in those[:_NAMED])
            said = "never heard" if status == "unknown" else status
            longest = those[0].since
            most = (
                f", the longest for {age((now - longest).total_seconds())}"
                if longest is not None and status != "unknown"
                else ""
            )
            parts.append(f"stores {named} and {count(len(those) - _NAMED)} more {said}{most}")
    if cared_for:
        parts.append(f"{count(cared_for)} in maintenance")
    return printable("; ".join(parts))


def counts_sentence(fleet: answers.FleetCounts) -> str:
    """The same from counts alone: for who may not see the devices, or has no answer about them."""
    if not fleet.devices:
        return "no store has reported yet"
    parts = [f"{count(fleet.online)} of {count(fleet.devices, 'devices')} online"]
    parts += [
        f"{count(number)} {said}"
        for number, said in (
            (fleet.dark, "dark"),
            (fleet.late, "late"),
            (fleet.unknown, "never heard"),
            (fleet.maintenance, "in maintenance"),
        )
        if number
    ]
    return ", ".join(parts)


def ages_sentence(layers: Sequence[answers.LayerTile], clock: Clock, now: dt.datetime) -> str:
    """``newest row: bronze 8 s, silver 12 s, gold 14 s, platinum 3 min ago``."""
    known = [
        f"{tile.layer} {clock.age(tile.newest_at, now)}"
        for tile in layers
        if tile.newest_at is not None
    ]
    empty = [tile.layer for tile in layers if tile.newest_at is None]
    parts = [f"newest row: {', '.join(known)} ago"] if known else []
    if empty:
        parts.append(f"nothing yet in {', '.join(empty)}")
    return "; ".join(parts)


# --- does everything add up


@dataclass(frozen=True, slots=True)
class Term:
    """One term of the equation."""

    number: int
    label: str
    meaning: str


def produced_side(row: answers.ReconciliationRow) -> tuple[Term, ...]:
    """Left of the equals sign: what the devices accepted."""
    terms = [Term(row.produced, "produced", "accepted by the devices, as they report it")]
    if row.unreported:
        terms.append(
            Term(row.unreported, "not yet reported", "here before the device's next report")
        )
    return tuple(terms)


def outcome_side(row: answers.ReconciliationRow) -> tuple[Term, ...]:
    """Right of it: what became of them. Under way and given up: only when there is any."""
    terms = [
        Term(row.landed, "landed", "in silver"),
        Term(row.duplicate, "duplicate", "the same sale again; counted once"),
        Term(row.quarantined, "quarantined", "put aside with a reason"),
        Term(row.excluded, "excluded", "left out by a named rule"),
    ]
    for number, label, meaning in (
        (row.given_up, "given up", "accepted, then lost at the device, which declared it"),
        (row.pending, "pending", "at the hub, not yet judged"),
        (row.in_transit, "in transit", "at the device or on the way"),
        (row.undated, "undated", "of segments whose days cannot be read"),
    ):
        if number:
            terms.append(Term(number, label, meaning))
    return tuple(terms)


def equation(row: answers.ReconciliationRow) -> str:
    """``15,212 produced = 15,212 landed + 0 duplicate + 0 quarantined + 0 excluded``."""
    left, right = produced_side(row), outcome_side(row)
    sign = "=" if contradiction(row) == 0 else "≠"
    return f"{_sum(left)} {sign} {_sum(right)}"


def contradiction(row: answers.ReconciliationRow) -> int:
    """Left minus right: 0 unless the hub's own figures contradict each other."""
    return sum(t.number for t in produced_side(row)) - sum(t.number for t in outcome_side(row))


def _sum(terms: Sequence[Term]) -> str:
    text = f"{count(terms[0].number)} {terms[0].label}"
    for term in terms[1:]:
        text += f" {'−' if term.number < 0 else '+'} {count(abs(term.number))} {term.label}"
    return text


def total(rows: Sequence[answers.ReconciliationRow]) -> answers.ReconciliationRow:
    """All kinds of records together; at least one row."""

    def add(name: str) -> int:
        return sum(int(getattr(row, name)) for row in rows)

    return answers.ReconciliationRow(
        kind="records",
        device_id=None,
        store_id=None,
        business_date=None,
        produced=add("produced"),
        unreported=add("unreported"),
        received=add("received"),
        landed=add("landed"),
        duplicate=add("duplicate"),
        quarantined=add("quarantined"),
        excluded=add("excluded"),
        given_up=add("given_up"),
        undated=add("undated"),
        in_transit=add("in_transit"),
        pending=add("pending"),
        remainder=add("remainder"),
        adds_up=all(row.adds_up for row in rows),
    )


def sums_sentence(rows: Sequence[answers.ReconciliationRow]) -> str:
    """``everything adds up: 15,212 produced = …``, or what is amiss."""
    if not rows:
        return "no records yet"
    together = total(rows)
    wrong = [_amiss(row) for row in rows if not row.adds_up]
    if wrong:
        return f"does not add up, {'; '.join(wrong)}: {equation(together)}"
    if contradiction(together):
        return f"the hub's figures contradict each other: {equation(together)}"
    return f"everything adds up: {equation(together)}"


def sums_verdict(rows: Sequence[answers.ReconciliationRow]) -> tuple[str, Tone]:
    """The answer to "does everything add up" in a few words."""
    if not rows:
        return "no records yet", Tone.QUIET
    wrong = [_amiss(row) for row in rows if not row.adds_up]
    if wrong:
        return f"No: {'; '.join(wrong)}", Tone.BAD
    together = total(rows)
    if contradiction(together):
        return "No: the hub's figures contradict each other", Tone.BAD
    under_way = together.in_transit + together.pending
    if under_way:
        return f"Yes: {count(under_way, 'records')} under way, none missing", Tone.GOOD
    return "Yes: every record is accounted for", Tone.GOOD


def _amiss(row: answers.ReconciliationRow) -> str:
    if row.remainder > 0:
        return f"{_of_kind(row.remainder, row.kind)} missing"
    if row.remainder < 0:
        return f"{_of_kind(-row.remainder, row.kind)} too many"
    return f"{row.kind} of single devices or days are off, and cancel out in the sum"


def _of_kind(number: int, kind: str) -> str:
    return f"{count(number)} {singular(kind) if number == 1 else kind}"


# --- forecasts, top bar


def forecast_label(forecast: answers.ForecastStatus) -> tuple[str, Tone]:
    """What stands beside every forecast: a fallback says that it is one.

    ``seasonal naive baseline, not a trained model; median WAPE 0.21, from 8 weeks of sales``.
    """
    if forecast.status == "none" or not forecast.rows:
        return "no forecast yet", Tone.QUIET
    methods = ", ".join(m.replace("_", " ") for m in forecast.methods) or "unknown method"
    weeks = ""
    if forecast.training_from and forecast.training_to:
        days = (forecast.training_to - forecast.training_from).days + 1
        span = count(days // 7, "weeks") if days >= 7 else count(days, "days")
        weeks = f", from {span} of sales"
    error = f"median WAPE {ratio(forecast.wape_ratio)}{weeks}"
    said = {
        "baseline": (f"{methods} baseline, not a trained model; {error}", Tone.WARN),
        "mixed": (f"partly a baseline ({methods}), not all trained models; {error}", Tone.WARN),
        "model": (f"model {methods}; {error}", Tone.PLAIN),
    }
    text, tone = said.get(forecast.status, (forecast.label, Tone.WARN))
    return printable(text), tone


@dataclass(frozen=True, slots=True)
class TopBar:
    """What every screen says about itself."""

    environment: str
    zone: str
    as_of: str
    stale: bool
    role: str


def top_bar(
    environment: str,
    clock: Clock,
    me: Seen[answers.Me],
    newest: Seen[answers.Overview],
) -> TopBar:
    """Environment, zone with offset, age, role."""
    now = newest.now if newest.value is not None else dt.datetime.now(dt.UTC)
    if newest.value is None:
        as_of = "no answer yet"
    elif newest.failure is not None:
        as_of = (
            f"last answer {clock.moment(newest.value.as_of, now)}, {age(newest.age_seconds)} old"
        )
    elif clock.coarse:
        as_of = f"as of {clock.moment(newest.value.as_of, now)}"
    else:
        as_of = f"as of {clock.moment(newest.value.as_of, now, seconds=True)}"
        as_of += f", {age(newest.age_seconds)} ago"
    if me.value is None:
        role = "role unknown"
    else:
        stores = "all stores" if "*" in me.value.stores else count(len(me.value.stores), "stores")
        role = f"{me.value.name} · {me.value.role}, {stores}"
    return TopBar(
        environment=environment,
        zone=clock.label(now),
        as_of=as_of,
        stale=newest.failure is not None,
        role=printable(role),
    )


def components_line(overview: answers.Overview) -> list[tuple[str, str, Tone]]:
    """Name, word and tone of each part of the hub."""
    tones = {"ok": Tone.GOOD, "degraded": Tone.WARN, "down": Tone.BAD}
    return [
        (part.name, part.status, tones.get(part.status, Tone.QUIET)) for part in overview.components
    ]
