"""Words and tones to HTML. Everything that comes from outside is escaped here, and only here."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from html import escape
from urllib.parse import quote

from scout_console.sheets import Sheet, state, store_name
from scout_console.values import Clock, Nothing, Said, Tone, count, printable
from scout_console.views import Concern, Headline, TopBar, status_for
from scout_shared import answers

Link = Callable[[str], str | None]


def span(said: Said) -> str:
    """One value."""
    note = f' title="{escape(said.note)}"' if said.note else ""
    return f'<span class="{said.tone}"{note}>{escape(said.text)}</span>'


def words(text: str, tone: Tone) -> str:
    """A text with a tone."""
    return span(Said(text, tone))


def title(text: str, aside: str = "") -> str:
    """A section's heading; ``aside`` is HTML of ours, shown beside it."""
    return f'<div class="heading"><h2>{escape(text)}</h2><span>{aside}</span></div>'


def table(
    sheet: Sheet,
    caption: str,
    *,
    link: Link | None = None,
    chosen: str = "",
    most: int = 100,
) -> str:
    """A table; the first cell of a line is its link. No more than ``most`` lines are sent."""
    if not sheet.lines:
        return f'<p class="nothing">{escape(sheet.nothing)}</p>'
    kinds = [
        ' class="n"' if column.numeric else ' class="wrap"' if column.prose else ""
        for column in sheet.columns
    ]
    head = "".join(
        f'<th scope="col"{kind}>{escape(column.name)}</th>'
        for column, kind in zip(sheet.columns, kinds, strict=True)
    )
    body = []
    for line in sheet.lines[:most]:
        cells = [
            f"<td{kind}>{span(said)}</td>" for said, kind in zip(line.cells, kinds, strict=True)
        ]
        target = link(line.key) if link else None
        if target:
            inner = span(line.cells[0])
            cells[0] = f'<td{kinds[0]}><a href="{escape(target)}" target="_self">{inner}</a></td>'
        mark = ' class="chosen"' if chosen and line.key == chosen else ""
        body.append(f"<tr{mark}>{''.join(cells)}</tr>")
    left = len(sheet.lines) - most
    more = (
        f'<p class="nothing">The first {most} of {len(sheet.lines):,}; the filter narrows them.</p>'
        if left > 0
        else ""
    )
    return (
        f'<div class="scroll"><table class="sheet"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{more}"
    )


def absent(what: str, nothing: Nothing, why: str) -> str:
    """Why ``what`` is not here."""
    told = f" {sentence_case(why)}." if why else ""
    return f'<p class="nothing">{escape(f"{sentence_case(what)}: {nothing.value}.{told}")}</p>'


def facts(pairs: Iterable[tuple[str, Said]]) -> str:
    """Names and values in a grid."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{span(said)}</dd></div>" for name, said in pairs
    )
    return f'<dl class="facts">{items}</dl>'


def headline(head: Headline, since: str) -> str:
    """The status word with its since; stores, records and data age, a line each; the advice."""
    told = f'<span class="since">{escape(since)}</span>' if since else ""
    lines = (
        ("Stores" if head.records else "Hub", head.stores, head.stores_tone),
        ("Records", head.records, head.records_tone),
        ("Data", head.ages, Tone.QUIET if head.advice else Tone.PLAIN),
        ("To do", head.advice, Tone.PLAIN),
    )
    items = "".join(
        f'<dt>{name}</dt><dd class="{tone}">{escape(sentence_case(text))}</dd>'
        for name, text, tone in lines
        if text
    )
    word = "OK" if head.word == "ok" else sentence_case(head.word)
    return (
        '<section class="headline"><p class="word">'
        f'<span class="{head.tone}">{escape(word)}</span>{told}</p>'
        f"<dl>{items}</dl></section>"
    )


def sentence_case(text: str) -> str:
    """``Store 343 …`` of ``store 343 …``; the name of a table stays as it is."""
    if {".", "_"} & set(text.partition(" ")[0].rstrip(".:")):
        return text
    return text[:1].upper() + text[1:]


def bar(top: TopBar) -> str:
    """The right side of the top bar."""
    items = (
        ("Environment", top.environment, ""),
        ("Time zone of all times", top.zone, ""),
        ("Age of what is shown", top.as_of, ' class="stale"' if top.stale else ""),
        ("Token, its role and stores; nothing here changes anything", top.role, ""),
    )
    shown = "".join(
        f'<span title="{escape(name)}"{kind}>{escape(text)}</span>' for name, text, kind in items
    )
    return f'<div class="topbar">{shown}</div>'


def gone(turn: int, refresh_seconds: float) -> str:
    """A banner that shows itself unless the next refresh replaces it in time."""
    patience = max(15.0, 4 * refresh_seconds)
    return (
        f'<div class="gone {"a" if turn % 2 else "b"}" style="animation-delay:{patience:g}s">'
        "What you see is old: the console itself does not answer. Is scout-console web running? "
        "If it is, load this page again.</div>"
    )


def stores(devices: Sequence[answers.Device], now: dt.datetime, link: Link) -> str:
    """Every device as a small field: store, state, for how long."""
    fields = []
    for device in devices:
        word = state(device.status, status_for(device, now))
        target = escape(link(device.device_id) or "")
        fields.append(
            f'<a class="{word.tone}" href="{target}" target="_self" '
            f'title="{escape(printable(device.device_id))}">'
            f"<b>{escape(store_name(device))}</b>{span(word)}</a>"
        )
    kind = "stores many" if len(fields) >= 6 else "stores"
    return f'<div class="{kind}">{"".join(fields)}</div>'


def concerns(found: Sequence[Concern], clock: Clock, now: dt.datetime) -> str:
    """What deserves a look, each with where to look."""
    items = []
    for concern in found:
        target = concern.page if concern.page != "overview" else "."
        if concern.device_id:
            target = f"fleet?device={quote(concern.device_id, safe='')}"
        kind = "incident" if concern.tone is Tone.BAD else "to look at"
        when = f"since {clock.moment(concern.since, now)}" if concern.since else ""
        items.append(
            f"<li>{words(kind, concern.tone)}"
            f'<a href="{escape(target)}" target="_self">{escape(sentence_case(concern.text))}</a>'
            f'<span class="when">{escape(when)}</span></li>'
        )
    return f'<ul class="concerns">{"".join(items)}</ul>'


def parts(found: Sequence[tuple[str, str, Tone]], version: str) -> str:
    """The parts of the hub, each with its word."""
    shown = "".join(
        f"<span>{escape(name)} {words(state(word).text, tone)}</span>" for name, word, tone in found
    )
    return (
        f'<div class="parts">{shown}<span class="quiet">hub {escape(printable(version))}</span>'
        "</div>"
    )


def tiles(layers: Sequence[tuple[answers.LayerTile, Said, Said, Said, str]]) -> str:
    """Layers from raw to published: state, rows, age, target."""
    cells = "".join(
        f'<div class="tile"><h3>{escape(layer.layer)}</h3>'
        f'<p class="age">{span(newest)}</p><p>{span(word)}</p>'
        f'<p class="quiet">{escape(rows.text)} rows in {count(layer.tables, "tables")}</p>'
        f'<p class="quiet">{escape(target)}</p></div>'
        for layer, word, rows, newest, target in layers
    )
    return f'<div class="tiles">{cells}</div>'
