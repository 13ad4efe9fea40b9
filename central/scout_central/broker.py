"""The embedded MQTT broker: rumqttd from the wheel ``iotcore``, for demo, tests and small sites.

It listens on 127.0.0.1 only, because it has no access control. It may lose messages that it has
acknowledged (it keeps everything in memory, three segments per filter): the protocol between edge
and hub survives that by receipts. Not its job: production, where mosquitto runs (see deploy/).
"""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from pathlib import Path

from scout_shared import logs
from scout_shared.errors import ConfigError, PermanentError

log = logs.get("broker")

HOST = "127.0.0.1"

# rumqttd's own limit is 20,480 bytes, and a larger publish sends the client into an endless
# reconnect loop. Our segments are about 16 KB; a document may be larger.
MAX_PAYLOAD_BYTES = 1024 * 1024

# The commit log lives in memory, one per filter, and is never freed by an acknowledgement: the
# documented sample (100 MB x 10) grew by 300 MB per 200 MB of traffic. 8 MB x 3 stays flat.
SEGMENT_BYTES = 8 * 1024 * 1024
SEGMENT_COUNT = 3


def configuration(port: int, version5_port: int | None) -> str:
    """rumqttd's TOML: an MQTT 3.1.1 listener and, if asked for, one for version 5."""
    text = f"""\
id = 0

[router]
id = 0
max_connections = 10000
max_outgoing_packet_count = 200
max_segment_size = {SEGMENT_BYTES}
max_segment_count = {SEGMENT_COUNT}
"""
    for section, listener in (("v4", port), ("v5", version5_port)):
        if listener is not None:
            text += f"""
[{section}.1]
name = "{section}"
listen = "{HOST}:{listener}"
next_connection_delay_ms = 1

[{section}.1.connections]
connection_timeout_ms = 10000
max_payload_size = {MAX_PAYLOAD_BYTES}
max_inflight_count = 100
"""
    return text


def run_broker(port: int, *, version5_port: int | None = None) -> None:
    """Serve on 127.0.0.1 until SIGTERM or SIGINT; call it from the main thread.

    ``port`` speaks MQTT 3.1.1, which carries our whole protocol (shared subscriptions included).
    rumqttd needs a port of its own for version 5: ``version5_port``, none by default.
    The broker is a thread of this process, so that killing the process leaves nothing behind.

    Raises:
        ConfigError: iotcore is not installed, or a port is in use.
        PermanentError: the broker ended by itself.
    """
    try:
        from iotcore import IotCoreBroker  # 14 MB of native code: only where it is used
    except ImportError as error:
        raise ConfigError(
            "the embedded broker is not installed",
            "install scout-central[embedded], or point the hub at a mosquitto",
        ) from error
    # rumqttd traces every packet at level ERROR.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)

    with tempfile.TemporaryDirectory(prefix="scout-broker-") as folder:
        path = Path(folder) / "rumqttd.toml"
        path.write_text(configuration(port, version5_port), "utf-8")
        broker = IotCoreBroker(config_path=str(path))  # reads the file here, once

    try:
        broker.check_ports()
    except OSError as error:
        raise ConfigError(
            f"the broker cannot listen on {HOST}:{port}: {error}",
            "stop what uses the port, or choose another with --port",
        ) from error

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    failures: list[str] = []
    thread = threading.Thread(target=_serve, args=(broker, failures), name="rumqttd", daemon=True)
    thread.start()
    log.info("broker.started", host=HOST, port=port, version5_port=version5_port)
    # The thread waits in native code; half a second is how late we notice that it has ended.
    while not stop.wait(0.5):
        if not thread.is_alive():
            raise PermanentError(
                f"the broker on {HOST}:{port} ended by itself: {' '.join(failures) or 'no reason'}"
            )
    log.info("broker.stopped", port=port)


def _serve(broker: object, failures: list[str]) -> None:
    try:
        broker.run_forever()  # type: ignore[attr-defined]  # imported late, so without its type
    except (OSError, RuntimeError) as error:
        failures.append(str(error))
