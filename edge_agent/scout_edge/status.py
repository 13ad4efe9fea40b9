"""How the agent is, for a technician: one sentence first, then the numbers; as text and as a page.

The sentence is one of four: *sending* (all is well), *waiting* (records are safe, the way to the
hub is not there), *stopped* (no agent runs), *refused* (somebody says no, and a person must act).
It is computed here from the answer of ``GET /v1/status`` and nowhere else, so that terminal, page
and service manager say the same.

Not its job: finding out why (``doctor``), collecting the numbers (``Agent.status``).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import html
import json
import re
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scout_edge import clock, recovery
from scout_edge.buffer_status import BufferStatus, peek
from scout_edge.config import EdgeSettings
from scout_shared import __version__
from scout_shared.errors import ConfigError, TransientError

SENDING, WAITING, STOPPED, REFUSED = "sending", "waiting", "stopped", "refused"
PAGE_TYPE = "text/html; charset=utf-8"
REFRESH_SECONDS = 10
FULL_RATIO = 0.98  # of max_bytes: from about here on sources are refused
DISK_WARN_BYTES = 256 * 1024 * 1024
SKEW_WARN_SECONDS = 60.0

_ANSWER_SECONDS = 5.0
_ERRNO = re.compile(r"\[Errno -?[0-9]+\] ")  # a number that tells a technician nothing
_START = "sudo systemctl start scout-edge"
# What aiomqtt and paho say when the broker knows the device and does not want it.
DENIED = ("not authori", "bad user name", "bad username", "banned", "identifier")


@dataclass(frozen=True, slots=True)
class Headline:
    """The first line."""

    state: str
    """SENDING, WAITING, STOPPED or REFUSED."""
    well: bool
    """Whether nobody needs to do anything."""
    sentence: str
    next_step: str = ""
    """What a technician does now; empty when nothing."""

    def __str__(self) -> str:
        return f"{'ALL IS WELL' if self.well else self.state.upper()}: {self.sentence}"


def ask(settings: EdgeSettings) -> dict[str, Any] | None:
    """The running agent's own answer, or None when nothing listens at its door.

    Raises:
        TransientError: something listens there and does not answer in time.
        ConfigError: another device answers.
    """
    if not settings.http.enabled or not settings.http.port:
        return None
    url = f"http://{settings.http.host}:{settings.http.port}/v1/status"
    # No proxy of the environment: the door is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_ANSWER_SECONDS) as answer:
            shown = json.load(answer)
    except (urllib.error.URLError, TimeoutError, ValueError, ConnectionError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        if isinstance(getattr(error, "reason", None), ConnectionRefusedError):
            return None
        raise TransientError(
            f"{url} does not answer: {error}", "look at the agent's log: journalctl -u scout-edge"
        ) from error
    if not isinstance(shown, dict) or shown.get("device_id") != settings.device.id:
        found = shown.get("device_id") if isinstance(shown, dict) else shown
        raise ConfigError(
            f"{url} is device {found!r}, not {settings.device.id!r}",
            "check [http] port and [device] id in the settings file",
        )
    return shown


def read_file(settings: EdgeSettings) -> dict[str, Any]:
    """The same keys from the buffer file, for when no agent runs. Raises like ``peek``."""
    status = peek(settings.buffer.path, settings.buffer.max_bytes)
    return {
        "running": False,
        "version": __version__,
        "device_id": settings.device.id,
        "store_id": settings.device.store,
        "zone": settings.device.zone,
        **of_buffer(status),
        **of_machine(settings.buffer.path),
        "damaged_files": len(recovery.damaged_files(settings.buffer.path)),
        "connected": False,
        "hub_answers": False,
        "hub_time_ms": None,
        "receipt_ms": None,
        "last_error": "",
    }


def of_buffer(status: BufferStatus) -> dict[str, Any]:
    """The buffer's part of the answer."""
    return {
        "epoch": status.epoch.hex(),
        "watermark": status.watermark,
        "next_sequence": status.next_sequence,
        "unsealed_records": status.unsealed_records,
        "backlog_records": status.backlog_records,
        "oldest_unsent_ms": status.oldest_unsent_ms,
        "buffer_bytes": status.buffer_bytes,
        "buffer_max_bytes": status.max_bytes,
        "damaged_segments": status.damaged_segments,
        "given_up_records": status.given_up_records,
        "forks": status.forks,
        "fenced": status.fenced,
    }


def of_machine(path: Path) -> dict[str, Any]:
    """Clock and disk of this machine; ``path`` is the buffer file."""
    total: int | None = None
    free: int | None = None
    with contextlib.suppress(OSError):  # the folder went away: the doctor says why
        total, _, free = shutil.disk_usage(path.parent)
    return {
        "time_ms": clock.wall_ms(),
        "clock_synced": clock.synced(),
        "disk_total_bytes": total,
        "disk_free_bytes": free,
    }


def headline(shown: dict[str, Any]) -> Headline:
    """Whether all is well, in one sentence, and what to do when it is not."""
    backlog = shown["backlog_records"]
    held = f"{records(backlog)} safe on this device" if backlog else "nothing waits"
    if not shown["running"]:
        return Headline(STOPPED, False, f"the agent does not run; {held}.", _START)
    if shown["fenced"]:
        return Headline(
            REFUSED,
            False,
            f"the hub knows more of this buffer than the buffer itself: an old copy, or a twin of"
            f" this device; {held}. Nothing is sent, nothing is deleted.",
            "do not delete the file; tell the engineer on call",
        )
    if shown["buffer_bytes"] >= FULL_RATIO * shown["buffer_max_bytes"]:
        return Headline(
            REFUSED,
            False,
            f"the buffer is full, tills are told to keep their sales; {held}.",
            "bring the line to the hub back, or raise [buffer] max_bytes in the settings file",
        )
    if shown["hub_answers"]:
        if damaged := shown["damaged_segments"]:
            return Headline(
                SENDING,
                False,
                f"the hub confirms, but {damaged} segments were damaged here: given up, declared.",
                "replace the SD card soon, and tell the engineer on call",
            )
        if shown.get("copied"):
            return Headline(
                SENDING,
                False,
                f"sending, {records(backlog)} to go; another box writes a copy of this card. The"
                " data of both is kept apart, nothing is lost.",
                "find the other box with this device's id; stop one of them, then restart this one",
            )
        done = "everything is confirmed by the hub" if not backlog else f"{records(backlog)} to go"
        if backlog and 0 < shown.get("budget_bytes", 0) <= shown["budget_used_bytes"]:
            return Headline(
                SENDING,
                True,
                f"sending sales only, because today's {_bytes(shown['budget_bytes'])} of the line"
                f" are used up; {records(backlog)} safe on this device until tomorrow.",
            )
        if shown.get("fallback"):
            why = _ERRNO.sub("", shown["mqtt_error"])
            return Headline(
                SENDING,
                True,
                f"sending over HTTPS, because MQTT does not get through ({why}); {done}.",
                "ask whoever keeps the store's network to let MQTT out; it is then used by itself",
            )
        return Headline(SENDING, True, f"sending, {done}.")
    if shown["connected"] and not shown.get("fallback"):
        return Headline(
            WAITING,
            False,
            f"the broker is there, the hub does not answer yet; {held}.",
            "nothing in the store: if it lasts longer than an hour, tell the engineer on call",
        )
    reason = _ERRNO.sub("", shown["last_error"]) or "connecting"
    if any(word in reason.lower() for word in DENIED):
        return Headline(
            REFUSED,
            False,
            f"the broker refuses this device ({reason}); {held}.",
            "check [device] id and SCOUT_MQTT_PASSWORD in /etc/scout/edge.env, then restart",
        )
    return Headline(
        WAITING,
        False,
        f"no connection to the broker ({reason}); {held}.",
        "check the network cable and the router; then: sudo scout-edge doctor",
    )


def facts(shown: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers below the headline, in the order in which a technician asks for them."""
    now = shown["time_ms"]
    oldest, receipt = shown["oldest_unsent_ms"], shown["receipt_ms"]
    waiting = records(shown["backlog_records"])
    if oldest is not None:
        waiting += f", the oldest for {_age(now - oldest)} (since {_local(oldest)})"
    used = shown["buffer_bytes"] / shown["buffer_max_bytes"]
    found = [
        ("device", f"{shown['device_id']} in store {shown['store_id']} ({shown['zone']})"),
        ("waiting", waiting),
        ("receipt", "none since the start" if receipt is None else f"{_age(now - receipt)} ago"),
        ("clock", _clock(shown)),
        ("disk", _disk(shown)),
        ("buffer", f"{_bytes(shown['buffer_bytes'])}, {used:.1%} of what it may have"),
    ]
    if budget := shown.get("budget_bytes"):
        spent = shown["budget_used_bytes"]
        found.append(("line", f"{_bytes(spent)} of today's {_bytes(budget)} used"))
    if damaged := shown["damaged_segments"]:
        found.append(("DAMAGED", f"{damaged} segments changed on the disk; declared to the hub"))
    if given_up := shown.get("given_up_records"):
        found.append(("GIVEN UP", f"{records(given_up)}, each declared to the hub"))
    if files := shown.get("damaged_files"):
        found.append(("DAMAGED", f"{files} buffer files lie aside: check the storage"))
    if forks := shown.get("forks"):
        found.append(("COPIED", f"this buffer was copied {forks} times: is there a second box?"))
    if shown["fenced"]:
        found.append(("FENCED", "the hub holds more than this file gave: an old copy, or a twin"))
    version = shown["version"]
    if shown["running"]:
        version += f", running for {_age(1000 * shown['uptime_seconds'])}"
    found.append(("version", version))
    return found


def text(shown: dict[str, Any]) -> str:
    """One screen for a terminal."""
    first = headline(shown)
    lines = [str(first)]
    if first.next_step:
        lines.append(f"  next: {first.next_step}")
    lines.append("")
    lines += [f"{name:<9} {value}" for name, value in facts(shown)]
    return "\n".join(lines)


def page(shown: dict[str, Any]) -> str:
    """The same as a page: no script, no other file, renews itself, readable on a phone."""
    first = headline(shown)
    escape = html.escape
    next_step = f"<p class=next>Next: {escape(first.next_step)}</p>" if first.next_step else ""
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}<td>{escape(value)}" for name, value in facts(shown)
    )
    return _PAGE.format(
        refresh=REFRESH_SECONDS,
        title=escape(f"{shown['device_id']}: {first.state}"),
        mood="well" if first.well else first.state,
        headline=escape(str(first)),
        next_step=next_step,
        rows=rows,
        moment=escape(_local(shown["time_ms"])),
    )


# Colours: each with more than 4.5:1 to its ground; the words say the state without them.
_PAGE = """\
<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta http-equiv=refresh content={refresh}>
<title>{title}</title>
<style>
body {{ font: 17px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 12px; max-width: 44rem;
  color: #1a1a1a; background: #fff }}
h1 {{ font-size: 1.25rem; margin: 0 0 12px; padding: 14px; border-radius: 8px; color: #fff }}
.well {{ background: #14632f }} .sending, .waiting {{ background: #7a4b00 }}
.stopped, .refused {{ background: #a01818 }}
.next {{ font-weight: 600; margin: 0 0 12px }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: 8px 6px; border-top: 1px solid #ccc;
  overflow-wrap: anywhere }}
th {{ font-weight: 600; width: 5.5rem; white-space: nowrap; overflow-wrap: normal }}
footer {{ color: #555; font-size: .85rem; margin-top: 12px }}
@media (prefers-color-scheme: dark) {{ body {{ color: #eee; background: #161616 }}
  th, td {{ border-color: #444 }} footer {{ color: #aaa }} }}
</style>
<h1 class={mood}>{headline}</h1>
{next_step}
<table>{rows}</table>
<footer>As of {moment}; renews itself every {refresh} s.</footer>
"""


def skew_seconds(shown: dict[str, Any]) -> float | None:
    """Device clock minus hub clock at the last receipt, transport included; None: no receipt."""
    if shown["receipt_ms"] is None or not shown["hub_time_ms"]:
        return None
    return float(shown["receipt_ms"] - shown["hub_time_ms"]) / 1000


def _clock(shown: dict[str, Any]) -> str:
    synced = {True: "synchronised", False: "NOT synchronised", None: "synchronisation unknown"}
    said = f"{_local(shown['time_ms'])}, {synced[shown['clock_synced']]}"
    skew = skew_seconds(shown)
    if skew is not None and abs(skew) > SKEW_WARN_SECONDS:
        said += f", {_age(abs(1000 * skew))} {'ahead of' if skew > 0 else 'behind'} the hub"
    return said


def _disk(shown: dict[str, Any]) -> str:
    free, total = shown["disk_free_bytes"], shown["disk_total_bytes"]
    if free is None:
        return "cannot be read"
    low = ", LOW" if free < DISK_WARN_BYTES else ""
    return f"{_bytes(free)} free of {_bytes(total)}{low}"


def records(count: int) -> str:
    """A count of records, in words."""
    return f"{count:,} record{'' if count == 1 else 's'}"


def _bytes(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _age(milliseconds: float) -> str:
    seconds = milliseconds / 1000
    if seconds < 0:
        return f"{-seconds:.0f} s in the future (the clock was set back)"
    for unit, factor in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.0f} {unit}"
    return f"{seconds:.0f} s"


def _local(instant_ms: int) -> str:
    """In UTC, because a store's zone and a technician's may differ; it says so."""
    try:
        instant = dt.datetime.fromtimestamp(instant_ms / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{instant_ms} ms"
    return instant.strftime("%Y-%m-%d %H:%M:%S UTC")
