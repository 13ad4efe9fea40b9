"""The doctor's walk along the way to the hub: name, port, TLS, broker, receipt.

Each step stands on the one before it. The broker sees the device's user name with a client id of
this run's own, so the connection of a running agent stays. A hello is sent only while no agent
runs, and says what the agent's own would say; it asks for a receipt and changes no record.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import math
import re
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any, NamedTuple

import aiomqtt

from scout_edge import clock, status
from scout_edge.buffer_status import BufferStatus
from scout_edge.config import EdgeSettings, MqttSettings
from scout_edge.doctor.finding import Finding, fail, ok, warn
from scout_edge.forwarder import tls_context
from scout_shared import __version__, topics
from scout_shared.errors import ConfigError, WireError
from scout_shared.messages import Hello, Receipt

PROBE = "doctor"
"""Channel below ``up/`` that the broker lets a device write and no hub listens to."""

_STEP_SECONDS = 8.0  # a mobile link may need three for a TLS handshake
_CERTIFICATE_DAYS = 30
_LATE_HEARTBEATS = 3  # without a receipt for so long the hub calls a device late
_LOCAL = ("127.0.0.1", "::1", "localhost")

# X509_V_ERR_* of OpenSSL
_NOT_YET, _EXPIRED = 9, 10
_NAME = (62, 64)
_UNKNOWN_ISSUER = (18, 19, 20, 21)

# The two dates of a certificate stand together: SEQUENCE { UTCTime, UTCTime }, or with the longer
# GeneralizedTime from 2050 on (RFC 5280 section 4.1.2.5).
_VALIDITY = re.compile(rb"(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)" * 2)


class Validity(NamedTuple):
    """From when and until when a certificate counts."""

    start: dt.datetime
    end: dt.datetime


def validity(der: bytes) -> Validity | None:
    """The dates of a DER certificate; None when there are none."""
    found = _VALIDITY.search(der)
    if found is None:
        return None
    short_start, long_start, short_end, long_end = found.groups()
    return Validity(_date(short_start, long_start), _date(short_end, long_end))


def _date(short: bytes | None, long: bytes | None) -> dt.datetime:
    if long is None:
        assert short is not None
        long = (b"19" if short >= b"50" else b"20") + short
    return dt.datetime.strptime(long.decode() + "+0000", "%Y%m%d%H%M%S%z")


def network(mqtt: MqttSettings) -> Generator[Finding, None, bool]:
    """Whether the broker's name has an address, and its port takes connections."""
    place = f"{mqtt.host}:{mqtt.port}"
    try:
        found = socket.getaddrinfo(mqtt.host, mqtt.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        yield fail(
            "network.dns",
            f"{mqtt.host} has no address: {error}",
            "check the network cable and the router ('ip route', 'resolvectl status'), and the"
            " spelling of [mqtt] host",
        )
        return False
    addresses = sorted({str(entry[4][0]) for entry in found})
    yield ok("network.dns", f"{mqtt.host} is {', '.join(addresses)}")
    try:
        with socket.create_connection((mqtt.host, mqtt.port), timeout=_STEP_SECONDS):
            pass
    except OSError as error:
        yield fail(
            "network.tcp",
            f"{place} takes no connection: {error.strerror or error}",
            "check [mqtt] port; if another device of the store reaches it, ask for this one to be"
            f" let through the firewall (outgoing TCP {mqtt.port})",
        )
        return False
    yield ok("network.tcp", f"{place} takes connections")
    return True


def tls(mqtt: MqttSettings, clock_trusted: bool) -> Generator[Finding, None, bool]:
    """Whether the broker shows a certificate that this device believes."""
    if not mqtt.tls:
        if mqtt.host in _LOCAL:
            yield ok("tls", "not used, and not needed on this machine")
        else:
            yield warn(
                "tls",
                f"not used: sales and the password go to {mqtt.host} readable by anybody between",
                "set [mqtt] tls = true and port = 8883",
            )
        return True
    try:
        context = tls_context(mqtt)
        assert context is not None
    except ConfigError as error:
        yield fail("tls.files", error.message, error.hint)
        return False
    yield from _own_certificate(mqtt.tls_certificate)
    try:
        certificate = _shake_hands(mqtt, context)
    except ssl.SSLCertVerificationError as error:
        yield _distrusted(mqtt, error, clock_trusted)
        return False
    except (OSError, ssl.SSLError) as error:
        yield fail(
            "tls.handshake",
            f"{mqtt.host}:{mqtt.port} does not speak TLS with this device: {error}",
            "check that [mqtt] port is the broker's TLS port (usually 8883)",
        )
        return False
    yield _lasting("tls.certificate", "the broker's certificate", certificate, "the hub's engineer")
    return True


def _own_certificate(path: Path | None) -> Generator[Finding, None, None]:
    """Its dates; that it fits its key was checked when it was loaded."""
    if path is not None:
        pem = path.read_text("ascii").partition("-----BEGIN CERTIFICATE-----")
        pem_only = "".join(pem[1:]).partition("-----END CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert("".join(pem_only[:2]))
        yield _lasting("tls.own", "this device's certificate", der, "the engineer who enrols it")


def _shake_hands(mqtt: MqttSettings, context: ssl.SSLContext) -> bytes:
    """The broker's certificate, DER."""
    with (
        socket.create_connection((mqtt.host, mqtt.port), timeout=_STEP_SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=mqtt.host) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def _lasting(check: str, what: str, der: bytes, whom: str) -> Finding:
    dates = validity(der)
    if dates is None:
        return ok(check, f"{what} is accepted")
    left = dates.end - dt.datetime.now(dt.UTC)
    said = f"{what} is good until {dates.end:%Y-%m-%d}"
    if left < dt.timedelta(0):
        said = f"{what} ended on {dates.end:%Y-%m-%d}"
        return fail(check, said, f"ask {whom} for a new one; if the date is wrong, set the clock")
    if left < dt.timedelta(days=_CERTIFICATE_DAYS):
        return warn(check, f"{said}, {left.days} days", f"ask {whom} for a new one now")
    return ok(check, said)


def _distrusted(
    mqtt: MqttSettings, error: ssl.SSLCertVerificationError, clock_trusted: bool
) -> Finding:
    code, now = error.verify_code, dt.datetime.now(dt.UTC)
    if code in (_EXPIRED, _NOT_YET):
        dates = _dates_unchecked(mqtt)
        said = "the broker's certificate " + ("has ended" if code == _EXPIRED else "begins later")
        if dates is not None:
            said += f": it counts from {dates.start:%Y-%m-%d} to {dates.end:%Y-%m-%d}"
        said += f", and the clock here says {now:%Y-%m-%d %H:%M} UTC"
        if not clock_trusted:
            step = "the clock is not to be trusted: set it first (see 'clock' above), then again"
        else:
            step = "compare the date with your watch; if it is right, the broker needs a new one:"
            step += " tell the hub's engineer"
        return fail("tls.dates", said, step)
    if code in _NAME:
        return fail(
            "tls.name",
            f"the broker's certificate is not for {mqtt.host}: {error.verify_message}",
            "set [mqtt] host to the name in the certificate, not to an address; if the name is"
            " right, something between answers in the broker's place: do not go on, call",
        )
    step = "set [mqtt] tls_ca to the file with the broker's CA"
    if mqtt.tls_ca is not None:
        step = f"{mqtt.tls_ca} is not the CA of this broker: ask the hub's engineer for its CA file"
    if code in _UNKNOWN_ISSUER:
        said = "nobody this device knows has signed the broker's certificate"
        return fail("tls.chain", f"{said}: {error.verify_message}", step)
    return fail("tls.chain", f"the broker's certificate is refused: {error.verify_message}", step)


def _dates_unchecked(mqtt: MqttSettings) -> Validity | None:
    """The dates of a certificate that was refused; only shown, nothing is sent."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return validity(_shake_hands(mqtt, context))
    except (OSError, ssl.SSLError):
        return None


async def broker(
    settings: EdgeSettings,
    shown: dict[str, Any] | None,
    running: bool,
    held: BufferStatus | None,
    seconds: float,
) -> list[Finding]:
    """Whether the broker takes this device, and the hub answers it."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(3 * _STEP_SECONDS + seconds), _client(settings) as client:
            name = settings.device.id if settings.mqtt.password else "anonymous"
            found.append(ok("broker.connect", f"takes this device as {name}"))
            if await _subscribed(client, settings, found) and await _published(
                client, settings, found
            ):
                if shown is not None:
                    found += _agents_receipts(settings, shown)
                else:
                    found += await _receipt(client, settings, running, held, seconds)
    except aiomqtt.MqttError as error:
        found.append(_refused(settings, error, connected=bool(found)))
    except TimeoutError:
        found.append(_refused(settings, TimeoutError("it went silent"), connected=bool(found)))
    return found


@contextlib.asynccontextmanager
async def _client(settings: EdgeSettings) -> AsyncIterator[aiomqtt.Client]:
    device, mqtt = settings.device, settings.mqtt
    v5 = mqtt.version == "5"
    async with aiomqtt.Client(
        mqtt.host,
        mqtt.port,
        # Not the agent's: a broker throws out the first when a second comes with the same id.
        identifier=f"scout-doctor-{device.id}-{secrets.token_hex(4)}",
        username=device.id if mqtt.password else None,
        password=mqtt.password or None,
        protocol=aiomqtt.ProtocolVersion.V5 if v5 else aiomqtt.ProtocolVersion.V311,
        clean_session=None if v5 else True,
        timeout=_STEP_SECONDS,
        tls_context=tls_context(mqtt),
        transport="websockets" if mqtt.transport == "websockets" else "tcp",
        websocket_path=mqtt.websocket_path,
    ) as client:
        yield client


def _refused(settings: EdgeSettings, error: Exception, *, connected: bool) -> Finding:
    place = f"{settings.mqtt.host}:{settings.mqtt.port}"
    if connected:
        return fail(
            "broker.stays",
            f"{place} ended the connection or went silent: {error}",
            "try again; if it stays so, tell the hub's engineer",
        )
    if any(word in str(error).lower() for word in status.DENIED):
        return fail(
            "broker.connect",
            f"{place} refuses device {settings.device.id!r}: {error}",
            "check [device] id in the settings file and SCOUT_MQTT_PASSWORD in /etc/scout/edge.env;"
            " if both are right, the broker does not know this device: tell the hub's engineer",
        )
    return fail(
        "broker.connect",
        f"{place} does not answer as an MQTT broker: {error}",
        "check [mqtt] port and tls: a TLS port needs tls = true, a plain one tls = false",
    )


async def _subscribed(client: aiomqtt.Client, settings: EdgeSettings, found: list[Finding]) -> bool:
    topic = topics.receipts(settings.device.store, settings.device.id)
    codes = await client.subscribe(topic, qos=1)
    refused = [code for code in codes if not isinstance(code, int) and code.is_failure]
    if refused:
        found.append(
            fail(
                "broker.subscribe",
                f"may not listen to {topic}: {refused[0]}",
                "[device] id must be the broker's user name (its access list goes by it); if it is,"
                " tell the hub's engineer",
            )
        )
        return False
    found.append(ok("broker.subscribe", f"listens to {topic}"))
    return True


async def _published(client: aiomqtt.Client, settings: EdgeSettings, found: list[Finding]) -> bool:
    topic = topics.up(settings.device.store, settings.device.id, PROBE)
    try:
        await client.publish(topic, b"", qos=1)
    except aiomqtt.MqttError as error:
        step = "try again; if it stays so, tell the hub's engineer"
        found.append(fail("broker.publish", f"{topic} is not taken: {error}", step))
        return False
    # Version 3.1.1 has no way to say no to a publish: only the hub's answer proves it.
    found.append(ok("broker.publish", f"acknowledges {topic}"))
    return True


_NO_RECEIPT = (
    "the hub is not running, or the broker's access list drops what this device writes: tell the"
    " hub's engineer; records are safe here meanwhile"
)


def _agents_receipts(settings: EdgeSettings, shown: dict[str, Any]) -> list[Finding]:
    """What the running agent says: a second hello beside its own would look like a twin."""
    if shown["receipt_ms"] is None or not shown["hub_answers"]:
        said = "the agent runs and has no answer of the hub on this connection"
        step = shown["last_error"] and f"the agent's own words: {shown['last_error']}. "
        return [fail("receipts", said, f"{step}{_NO_RECEIPT}")]
    age = (shown["time_ms"] - shown["receipt_ms"]) / 1000
    late = _LATE_HEARTBEATS * settings.mqtt.heartbeat_seconds + 1.0
    if age > late:
        said = f"the last receipt came to the agent {age:.0f} s ago"
        return [fail("receipts", f"{said}; hellos go out every few seconds", _NO_RECEIPT)]
    skew = status.skew_seconds(shown)
    return [ok("receipts", f"the hub answered the agent {max(0.0, age):.0f} s ago"), *_skew(skew)]


async def _receipt(
    client: aiomqtt.Client,
    settings: EdgeSettings,
    running: bool,
    held: BufferStatus | None,
    seconds: float,
) -> list[Finding]:
    if held is None:
        if running:
            return [fail("receipts", "not to be judged: the buffer cannot be read", _NO_RECEIPT)]
        step = "start the agent once ('sudo systemctl start scout-edge'), then run the doctor again"
        return [warn("receipts", "there is no buffer yet whose receipt could be asked for", step)]
    if running:  # without a door: its own hellos bring receipts that can be overheard
        seconds += settings.mqtt.heartbeat_seconds
    else:
        topic = topics.up(settings.device.store, settings.device.id, topics.HELLO)
        await client.publish(topic, _hello(settings, held).encode(), qos=1)
    loop = asyncio.get_running_loop()
    asked = loop.time()
    try:
        async with asyncio.timeout(seconds):
            receipt = await _live(client, held.epoch)
    except TimeoutError:
        return [fail("receipts", f"no answer of the hub in {seconds:g} s", _NO_RECEIPT)]
    answered = clock.wall_ms()
    said = f"the hub answered in {loop.time() - asked:.1f} s, it holds all up to"
    skew = (answered - receipt.hub_time_ms) / 1000 if receipt.hub_time_ms else None
    return [ok("receipts", f"{said} sequence {receipt.watermark:,}"), *_skew(skew)]


async def _live(client: aiomqtt.Client, epoch: bytes) -> Receipt:
    """The next receipt for this buffer that is not the broker's kept copy of an old one."""
    async for message in client.messages:
        if message.retain or not isinstance(message.payload, bytes):
            continue
        with contextlib.suppress(WireError):
            receipt = Receipt.decode(message.payload)
            if receipt.epoch == epoch:
                return receipt
    raise aiomqtt.MqttError("the connection ended")


def _skew(seconds: float | None) -> list[Finding]:
    """How the device's clock stands to the hub's."""
    if seconds is None:
        return []
    side = "ahead of" if seconds > 0 else "behind"
    said = f"this clock is {abs(seconds):,.0f} s {side} the hub's"
    if math.fabs(seconds) <= status.SKEW_WARN_SECONDS:
        return [ok("receipts.clock", said)]
    step = "see 'clock' above; sales of today may count for another day until it is right"
    return [warn("receipts.clock", said, step)]


def _hello(settings: EdgeSettings, held: BufferStatus) -> Hello:
    """What the agent would say; the count of what it did since its start is empty."""
    return Hello(
        epoch=held.epoch,
        boot_id=clock.boot_id().hex(),
        zone=settings.device.zone,
        version=__version__,
        acked=held.watermark,
        next_sequence=held.next_sequence,
        unsealed_records=held.unsealed_records,
        buffer_bytes=held.buffer_bytes,
        oldest_unsent_ms=held.oldest_unsent_ms,
        device_time_ms=clock.wall_ms(),
        interval_seconds=settings.mqtt.heartbeat_seconds,
        ledger_version=held.ledger_version,
        ledger=held.ledger,
        clock_synced=clock.synced(),
        counters={},
    )
