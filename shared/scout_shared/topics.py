"""MQTT topics of protocol 1.

    edge/1/{site}/{device}/up/d            sealed segment                       QoS 1
    edge/1/{site}/{device}/up/s            status: online / offline (the will)  QoS 1, retained
    edge/1/{site}/{device}/up/h            hello: see ``scout_shared.messages``  QoS 1
    edge/1/{site}/{device}/up/r            report: see ``scout_shared.orders``    QoS 1
    edge/1/{site}/{device}/dn/cfg          wanted settings, signed               QoS 1, retained
    edge/1/{site}/{device}/dn/cmd          a command, signed                     QoS 1
    edge/1/{site}/{device}/dn/ack/{epoch}  receipt: see ``scout_shared.messages`` QoS 1, retained

The MQTT user name is the device id, so that a broker's pattern ACL
(``pattern write edge/1/+/%u/up/#``) keeps devices apart. ``site`` is the store id.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from scout_shared.errors import ConfigError, WireError

PREFIX = "edge/1"
HUB_FILTER = f"{PREFIX}/+/+/up/#"
DATA, STATUS, HELLO, REPORT = "d", "s", "h", "r"
CONFIG, COMMAND = "cfg", "cmd"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class UpTopic(NamedTuple):
    """A parsed ``up`` topic."""

    store_id: str
    device_id: str
    channel: str


def check_name(what: str, value: str) -> str:
    """``value`` if it may stand in a topic; ``what`` names it in the error.

    Raises:
        ConfigError: empty, longer than 64 characters, or with a character MQTT gives a meaning.
    """
    if not _NAME.fullmatch(value):
        raise ConfigError(
            f"{what} {value!r} cannot be part of an MQTT topic",
            "use 1 to 64 letters, digits, '_', '.' or '-', starting with a letter or digit",
        )
    return value


def up(store_id: str, device_id: str, channel: str) -> str:
    """Topic on which a device publishes ``channel`` (one of DATA, STATUS, HELLO, REPORT)."""
    return f"{PREFIX}/{store_id}/{device_id}/up/{channel}"


def order(store_id: str, device_id: str, channel: str) -> str:
    """Topic on which a device hears orders of ``channel`` (CONFIG or COMMAND)."""
    return f"{PREFIX}/{store_id}/{device_id}/dn/{channel}"


def receipts(store_id: str, device_id: str) -> str:
    """Filter on which a device hears the receipts of all its epochs."""
    return f"{PREFIX}/{store_id}/{device_id}/dn/ack/+"


def receipt(store_id: str, device_id: str, epoch: bytes) -> str:
    """Topic of the receipt for one epoch of a device."""
    return f"{PREFIX}/{store_id}/{device_id}/dn/ack/{epoch.hex()}"


def parse_up(topic: str) -> UpTopic:
    """Split an ``up`` topic.

    Raises:
        WireError: not a topic that a device of protocol 1 publishes on (``bad_topic``).
    """
    parts = topic.split("/")
    if (
        len(parts) != 6
        or f"{parts[0]}/{parts[1]}" != PREFIX
        or parts[4] != "up"
        or not _NAME.fullmatch(parts[2])
        or not _NAME.fullmatch(parts[3])
    ):
        raise WireError(
            "bad_topic", f"topic {topic!r} is not {PREFIX}/<store>/<device>/up/<channel>"
        )
    return UpTopic(parts[2], parts[3], parts[5])
