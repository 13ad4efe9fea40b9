"""Gives the agent what the rows of ``edge_agent/BAD_INPUT.md`` give it, and returns what is said.

Each section of the document has a function here, with its name. A function gets the literal inputs
of its rows, gives them to the real thing, sees that what is right beside them is still taken and
that nothing of the bad is stored, and returns the words for each, in order.
"""

from __future__ import annotations

import codecs
import contextlib
import http.client
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from scout_edge import cli, enrolment, identity
from scout_edge.buffer import Buffer
from scout_edge.metrics import AgentMetrics
from scout_edge.privacy import Privacy, PrivacyRule, PrivacySettings
from scout_edge.sources import sparkplug
from scout_edge.sources.command import ExecSettings, ExecSource
from scout_edge.sources.files import FilesSettings, FilesSource
from scout_edge.sources.http import HttpDoor
from scout_edge.sources.modbus import ModbusSettings, ModbusSource, RegisterSettings
from scout_edge.sources.mqtt import MqttSource, MqttSourceSettings, TopicSettings
from scout_edge.sources.outlet import Outlet
from scout_shared import wire
from scout_shared.errors import ConfigError, PermanentError, ScoutError
from tests.edge_agent.records import ZONE, contents, outlet_of, stored
from tests.edge_agent.test_enrolment import admit, hub
from tests.harness.process import Process
from tests.harness.servers import Address
from tests.harness.tls import Authority
from tests.harness.waiting import eventually, free_port

ROOT = Path(__file__).parents[2]
DEVICE = f'[device]\nid = "till-1"\nstore = "s1"\nzone = "{ZONE}"\n'
ENDS = "⏎"
"""Stands for the end of a line in a cell."""


class Source(Protocol):
    """What the sources have in common here."""

    def open(self) -> None:
        """Make ready."""

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""

    def close(self) -> None:
        """Let go."""


class Listening(Outlet):
    """Remembers what it was told is unreadable."""

    def __init__(self, buffer: Buffer, name: str, reasons: list[str] | None = None) -> None:
        super().__init__(buffer, AgentMetrics(buffer), name)
        self.reasons = [] if reasons is None else reasons

    def unreadable(self, reason: str, records: int = 1, **where: object) -> None:
        """As the outlet does it."""
        self.reasons.append(reason)
        super().unreadable(reason, records, **where)


class Place:
    """A folder, and the fixtures that a section may ask for."""

    def __init__(self, folder: Path, fixtures: pytest.FixtureRequest) -> None:
        self.folder = folder
        self.fixtures = fixtures

    @contextlib.contextmanager
    def buffer(self, privacy: Privacy | None = None) -> Iterator[Buffer]:
        """An open one."""
        with Buffer(self.folder / "edge.db", zone=ZONE, privacy=privacy) as opened:
            yield opened


def raw(given: str) -> bytes:
    """The bytes that a cell stands for: ``⏎`` and ``\\xff``."""
    text = given.replace(ENDS, "\n")
    if "\\x" not in text:
        return text.encode()
    return b"".join(
        codecs.escape_decode(part)[0] if part.startswith("\\x") else part.encode()
        for part in _split(text)
    )


def _split(text: str) -> Iterator[str]:
    while "\\x" in text:
        before, _, rest = text.partition("\\x")
        yield before
        yield "\\x" + rest[:2]
        text = rest[2:]
    yield text


def said(error: ScoutError) -> str:
    """Message and hint, as the program prints them."""
    return f"{error.message}; {error.hint}" if error.hint else error.message


@contextlib.contextmanager
def running(source: Source) -> Iterator[list[ScoutError]]:
    """A source in its thread; the errors with which it ended."""
    source.open()
    stop, errors = threading.Event(), list[ScoutError]()

    def run() -> None:
        try:
            source.run(stop)
        except ScoutError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield errors
    finally:
        stop.set()
        thread.join(20)
        source.close()
    assert not thread.is_alive()


def records(buffer: Buffer) -> int:
    """Accepted so far."""
    status = buffer.status()
    return status.next_sequence - 1 + status.unsealed_records


def values(buffer: Buffer) -> list[float]:
    """Of all readings, ascending."""
    buffer.seal()
    return sorted(reading.value for reading in contents(stored(buffer))[0].elements())


# -- the sections ---------------------------------------------------------------------------------


def settings_file(place: Place, given: Sequence[str]) -> list[str]:
    """``scout-edge check-config``, which reads the file as ``run`` does."""
    told: list[str] = []
    path = place.folder / "edge.toml"
    for cell in given:
        text = raw(cell)
        head = b"" if b"[device]" in text else DEVICE.encode()
        kept = f'\n[buffer]\npath = "{place.folder}/none/edge.db"\n'.encode()
        path.write_bytes(head + text + (b"" if b"[buffer]" in text else kept))
        words = io.StringIO()
        with contextlib.redirect_stderr(words):
            code = cli.main(["check-config", "--config", str(path)])
        assert code == 2, f"{cell} was taken for right"
        line = words.getvalue().strip().removeprefix("scout-edge: ")
        told.append(line.replace("\n  hint: ", "; "))
    assert not (place.folder / "none").exists()
    return told


def http_requests(place: Place, given: Sequence[str]) -> list[str]:
    """POSTs to the local door."""
    told: list[str] = []
    sale = b'{"type":"transaction","observed_at":null,"body":{"total":1}}'
    with place.buffer() as buffer:
        door = HttpDoor(buffer, AgentMetrics(buffer), dict, host="127.0.0.1", port=0)
        door.open()
        stop = threading.Event()
        thread = threading.Thread(target=door.run, args=(stop,))
        thread.start()
        try:
            asking = http.client.HTTPConnection(*door.address, timeout=10)
            for number, cell in enumerate(given, 1):
                path, _, body = cell.partition(" ")
                for content in (raw(body), sale):
                    where = path if content is not sale else "documents"
                    asking.request(
                        "POST", f"/v1/{where}", content, {"Content-Type": "application/json"}
                    )
                    answer = asking.getresponse()
                    words = json.loads(answer.read())
                    if content is not sale:
                        told.append(f"{answer.status} {words['error']}")
                    else:
                        assert answer.status == 200
                assert records(buffer) == number, f"something of {cell} was stored"
            asking.close()
        finally:
            stop.set()
            thread.join(10)
            door.close()
    return told


def _lines(place: Place, name: str, content: bytes, good: int, **settings: object) -> list[str]:
    """The rejects of a file with these lines; ``good`` records are taken from it."""
    path = place.folder / name
    path.write_bytes(content)
    with place.buffer() as buffer:
        made = FilesSettings(path=path, settle_seconds=0.0, **settings)  # type: ignore[arg-type]
        rejects = place.folder / "files.rejects"
        with running(FilesSource(outlet_of(buffer, "files"), made, name="files")):
            eventually(lambda: records(buffer) == good, 20, "the good lines")
    kept = [json.loads(line) for line in rejects.read_bytes().splitlines()]
    return [str(line["reason"]) for line in kept]


def json_lines(place: Place, given: Sequence[str]) -> list[str]:
    """Lines of a tailed file of sales; a good one stands after each."""
    good = b'{"at":"2026-11-23T08:15:00+08:00","total":%d}\n'
    content = b"".join(raw(cell) + b"\n" + good % i for i, cell in enumerate(given))
    return _lines(
        place, "sales.log", content, len(given),
        format="jsonl", document_type="transaction", time_field="at",
    )  # fmt: skip


def csv_lines(place: Place, given: Sequence[str]) -> list[str]:
    """Lines of a tailed file of readings; a good one stands after each."""
    good = b"2026-11-23T08:15:00+08:00,fridge.1,%d\n"
    content = b"at,metric,value\n" + b"".join(
        raw(cell) + b"\n" + good % i for i, cell in enumerate(given)
    )
    return _lines(
        place, "fridge.csv", content, len(given),
        format="csv", metric_field="metric", value_field="value", time_field="at",
    )  # fmt: skip


def mqtt_messages(place: Place, given: Sequence[str]) -> list[str]:
    """Messages of local sensors, through a broker; a good one comes after each."""
    address: Address = place.fixtures.getfixturevalue("broker")
    live = TopicSettings("fridges/+/temperature", "fridge.{1}.celsius")
    timed = TopicSettings(
        "meters/+", metrics={"v": "meter.{1}.volts"}, time_path="t",
        time_format="epoch_milliseconds",
    )  # fmt: skip
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect(address.host, address.port)
    client.loop_start()
    try:
        with place.buffer() as buffer:
            reasons: list[str] = []
            with contextlib.ExitStack() as stack:
                for name, topic in (("fridges", live), ("meters", timed)):
                    outlet = Listening(buffer, name, reasons)
                    made = MqttSourceSettings((topic,), address.host, address.port)
                    source = MqttSource(outlet, made, name=name)
                    stack.enter_context(running(source))
                    eventually(lambda s=source: s._connected, 10, "the subscription")  # type: ignore[misc]
                for number, cell in enumerate(given, 1):
                    where, _, payload = cell.partition(" ")
                    client.publish(where, raw(payload), qos=1).wait_for_publish(10)
                    client.publish("meters/1", f'{{"v":{number},"t":5}}', qos=1)
                    eventually(lambda n=number: len(reasons) == n, 10, cell)  # type: ignore[misc]
                eventually(lambda: records(buffer) == len(given), 10, "the good ones")
            assert values(buffer) == [float(n) for n in range(1, len(given) + 1)]
        return reasons
    finally:
        client.disconnect()
        client.loop_stop()


def sparkplug_payloads(place: Place, given: Sequence[str]) -> list[str]:
    """Payloads of Sparkplug B nodes."""
    del place
    return [_raised(PermanentError, partial(sparkplug.decode, raw(cell))) for cell in given]


def _command(place: Place, given: Sequence[str], good: str, form: str) -> list[str]:
    content = b"".join(raw(cell) + b"\n" + good.encode() + b"\n" for cell in given)
    code = f"import sys; sys.stdout.buffer.write({content!r})"
    with place.buffer() as buffer:
        outlet = Listening(buffer, "scales")
        made = ExecSettings((sys.executable, "-c", code), format=form)
        with running(ExecSource(outlet, made)):
            eventually(lambda: records(buffer) == len(given), 20, "the good lines")
        return outlet.reasons


def command_values(place: Place, given: Sequence[str]) -> list[str]:
    """Lines that a command prints, with format "values"; a good one after each."""
    return _command(place, given, "scale.1 7", "values")


def command_json(place: Place, given: Sequence[str]) -> list[str]:
    """Lines that a command prints, with format "jsonl"; a good one after each."""
    return _command(place, given, '{"metric":"scale.1","value":7}', "jsonl")


def modbus_answers(place: Place, given: Sequence[str]) -> list[str]:
    """A meter that answers badly, is silent, or is not there."""
    processes: Callable[..., Process] = place.fixtures.getfixturevalue("processes")
    port = free_port()
    meter = processes(
        [sys.executable, "-m", "tests.edge_agent.meter", str(port), "socket"], cwd=ROOT
    )
    meter.wait_for_port(port)
    right = RegisterSettings("flow", 0, table="input")
    bad = {
        "an address that the meter does not have": RegisterSettings("absent", 500),
        "a register that holds NaN": RegisterSettings("nan", 11, type="float32"),
        "a unit that does not answer": RegisterSettings("other", 0, device_id=9),
    }
    told: list[str] = []
    for cell in given:
        with place.buffer() as buffer:
            outlet = Listening(buffer, "meter")
            asked = (bad[cell], right) if cell in bad else (right,)
            where = port if cell in bad else free_port()
            made = ModbusSettings(
                "127.0.0.1", asked, where, interval_seconds=0.1, timeout_seconds=0.3
            )
            before = records(buffer)
            with running(ModbusSource(outlet, made, name="meter")) as errors:
                words = outlet.reasons
                eventually(lambda w=words, e=errors: w or e, 20, cell)  # type: ignore[misc]
                if cell in bad:
                    eventually(lambda b=buffer, n=before: records(b) > n, 20, "the right one")  # type: ignore[misc]
            told.append(words[0] if words else said(errors[0]))
            assert set(values(buffer)) <= {7.0}
    return [line.replace(str(port), "<port>") for line in told]


def privacy_rules(place: Place, given: Sequence[str]) -> list[str]:
    """Documents of a device whose settings forbid personal data without its block."""
    rules = PrivacySettings((PrivacyRule(faces=("face_id",), audio=("audio",)),))
    told: list[str] = []
    with place.buffer(Privacy(rules)) as buffer:
        for cell in given:
            document = _document(buffer, raw(cell))
            told.append(_raised(PermanentError, partial(buffer.append_documents, [document])))
        assert records(buffer) == 0
    return told


def enrolments(place: Place, given: Sequence[str]) -> list[str]:
    """``scout-edge enrol`` against servers with certificates that do not count, and without one."""
    authority = Authority(place.folder / "ca")
    here = "IP:127.0.0.1"
    right = authority.issue("hub", alternative=here)
    servers = {
        "a hub whose certificate nobody vouches for": (right, None),
        "a hub with a certificate for another name": (
            authority.issue("other"), authority.certificate,
        ),
        "a hub whose certificate has ended": (
            authority.issue("old", days=-1, start_days=-9, alternative=here),
            authority.certificate,
        ),
        "a hub whose certificate counts from tomorrow": (
            authority.issue("new", days=9, start_days=2, alternative=here),
            authority.certificate,
        ),
    }  # fmt: skip
    addresses = {
        "a hub that is not there": f"http://127.0.0.1:{free_port()}",
        "--hub http://hub.example": "http://hub.example",
        "--hub hub.example": "hub.example",
    }
    buffer = place.folder / "edge.db"
    told: list[str] = []
    for cell in given:
        if cell in servers:
            issued, ca = servers[cell]
            with hub(admit, issued) as (address, asked):
                told.append(_enrol(buffer, address, ca))
                assert not asked, "somebody who is not trusted was told the token"
        elif cell == "a server that is not the hub":
            with hub(lambda _: (404, b"a router's page")) as (address, _):
                told.append(_enrol(buffer, address, None))
        elif cell in addresses:
            told.append(_enrol(buffer, addresses[cell], None))
        else:
            told.append(_enrol(buffer, "https://127.0.0.1:1", place.folder / "none.pem"))
        assert identity.read(buffer) is None
    return told


def _enrol(buffer: Path, address: str, ca: Path | None) -> str:
    return _raised(
        ScoutError, lambda: enrolment.enrol(buffer, hub=address, token="ABCDEF-X", ca=ca)
    )


def buffer_files(place: Place, given: Sequence[str]) -> list[str]:
    """Files that are no buffer, or one that is in use."""
    contents_of = {
        "a text file": b"shopping list\n" * 400,
        "the head of a SQLite file, then rubbish": b"SQLite format 3\0" + b"x" * 9000,
    }
    told: list[str] = []
    for cell in given:
        path = place.folder / f"{len(told)}.db"
        if cell in contents_of:
            path.write_bytes(contents_of[cell])
            told.append(_raised(ScoutError, partial(Buffer, path, zone=ZONE)))
            assert path.read_bytes() == contents_of[cell]
        elif cell == "a folder that is no folder":
            (place.folder / "plain").touch()
            path = place.folder / "plain" / "edge.db"
            told.append(_raised(ConfigError, partial(Buffer, path, zone=ZONE)))
        else:
            with Buffer(path, zone=ZONE):
                told.append(_raised(ConfigError, partial(Buffer, path, zone=ZONE)))
    return [line.replace(str(place.folder), "<folder>") for line in told]


def _document(buffer: Buffer, body: bytes) -> wire.Document:
    return wire.Document("transaction", None, buffer.calendar.day(None), body)


def _raised(kind: type[ScoutError], work: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        work()
    return said(caught.value)


SECTIONS: dict[str, Callable[[Place, Sequence[str]], list[str]]] = {
    "The settings file": settings_file,
    "Requests to the local door": http_requests,
    "Lines of a JSONL file": json_lines,
    "Lines of a CSV file": csv_lines,
    "Messages of MQTT sensors": mqtt_messages,
    "Sparkplug B payloads": sparkplug_payloads,
    "Lines of a command, values": command_values,
    "Lines of a command, JSON": command_json,
    "Modbus": modbus_answers,
    "Documents under privacy rules": privacy_rules,
    "Enrolment: addresses and certificates": enrolments,
    "The buffer file": buffer_files,
}
