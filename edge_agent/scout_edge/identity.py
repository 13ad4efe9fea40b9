"""Who this device is, as the hub said when it was enrolled: a file beside the buffer, mode 0600.

Written whole or not at all: a new file, synced, renamed over the old one, the folder synced. It
holds the only copy of the device's password, so nothing here deletes it.
Not its job: asking the hub (``enrolment``), what the settings say against it (``config``).
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scout_shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Identity:
    """What an enrolled device knows of itself."""

    device_id: str
    store_id: str
    zone: str
    broker_host: str
    broker_port: int
    broker_tls: bool
    broker_ca: str
    """Certificates to trust for the broker, PEM; empty: those of the system."""
    password: str = dataclasses.field(repr=False)
    signing_key: bytes = dataclasses.field(repr=False)
    """The hub signs with it what it sends beside receipts."""
    hub_url: str = ""
    """Where the hub was when it was enrolled, https://…; empty: not written down then."""
    hub_ca: str = ""
    """Certificates to trust for the hub, PEM; empty: those of the system."""


def path_of(buffer: Path) -> Path:
    """The file for the device with this buffer."""
    return buffer.with_name(buffer.name + ".credentials")


def ca_path(buffer: Path) -> Path:
    """The CA that the hub gave, as a file of its own: TLS libraries want files."""
    return buffer.with_name(buffer.name + ".broker-ca.pem")


def hub_ca_path(buffer: Path) -> Path:
    """The CA that the device was enrolled with, as a file of its own."""
    return buffer.with_name(buffer.name + ".hub-ca.pem")


def read(buffer: Path) -> Identity | None:
    """The identity beside ``buffer``; None: never enrolled.

    Raises:
        ConfigError: the file is not readable for this user, or not as it was written.
    """
    path = path_of(buffer)
    try:
        found = json.loads(path.read_bytes())
        return Identity(
            **{
                f.name: found[f.name]
                for f in dataclasses.fields(Identity)
                if f.name in found or f.default is dataclasses.MISSING
            }
            | {"signing_key": bytes.fromhex(found["signing_key"])}
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"the device's credentials {path} cannot be read: {error.strerror}",
            "run this as the agent's user, e.g. with: sudo scout-edge",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the device's credentials {path} are damaged: {error}",
            "check the disk; then enrol the device again, with --again and a token that names it",
        ) from error


def write(buffer: Path, identity: Identity) -> None:
    """Keep ``identity`` from now on, through a power cut. Raises ConfigError."""
    if identity.broker_ca:
        write_durably(ca_path(buffer), identity.broker_ca.encode())
    if identity.hub_ca:
        write_durably(hub_ca_path(buffer), identity.hub_ca.encode())
    shown: dict[str, Any] = dataclasses.asdict(identity)
    shown["signing_key"] = identity.signing_key.hex()
    write_durably(path_of(buffer), json.dumps(shown, indent=1).encode())


def write_durably(path: Path, content: bytes) -> None:
    """``path`` has this content, or the one before, whenever the power fails. Mode 0600.

    Raises:
        ConfigError: the folder is not writable, or the disk is full.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # its mode may be another
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}",
            "check the free space, and that the agent's user may write to the folder",
        ) from error


def sync_folder(folder: Path) -> None:
    """Names that came or went in ``folder`` stay so after a power cut. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
