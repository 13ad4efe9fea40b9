"""The broker's accounts: mosquitto's password file, derived from the database.

``sync`` may be called at any time, by any number of hubs: it writes when the file is not what the
database says, and then has mosquitto read it again, which also ends the connections of accounts
that are gone. The file is replaced whole (rename). Lines of accounts that are no devices of the
hub's (its own, an engineer's, devices that were never enrolled) stay as they are.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

from scout_central import database
from scout_central.config import Broker
from scout_shared import logs
from scout_shared.errors import ConfigError

log = logs.get("accounts")

_LOCK = 0x73636F757462  # any constant will do, it must only be the same in all hubs
_RELOAD_SECONDS = 30.0

_DEVICES = """
select
    devices.device_id,
    credentials.password_hash
from metadata.devices
left join scout_secrets.device_credentials as credentials using (device_id)
where devices.state = 'retired'
    or credentials.password_hash is not null
order by devices.device_id
"""


def sync(dsn: str, broker: Broker) -> bool:
    """Make the broker's accounts what the database says; whether there was something to do.

    Without ``[broker] password_file`` there is nothing to do.

    Raises:
        ConfigError: the file cannot be written, or mosquitto cannot be told.
        TransientError: the database is away.
    """
    path = broker.password_file
    if path is None:
        return False
    with (
        database.connect(dsn, application="scout-accounts") as connection,
        database.translated(),
        connection.transaction(),
    ):
        # Read and written under one lock: an older list must not overwrite a newer one.
        connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        devices: dict[str, str | None] = dict(connection.execute(_DEVICES).fetchall())
        try:
            before = path.read_text("utf-8") if path.exists() else ""
            after = _merged(before, devices)
            due = path.with_name(f".{path.name}.reload")
            if after == before and not due.exists():
                return False
            due.touch()  # until mosquitto was told: else a reload that failed is never tried again
            if after != before:
                _replace(path, after)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the broker's password file {path} cannot be written: {error}",
                "give the hub's user the right to write it and its folder, or correct"
                " [broker] password_file",
            ) from error
    _reload(broker)
    due.unlink(missing_ok=True)
    log.info("accounts.written", path=str(path), accounts=after.count("\n"))
    return True


def _merged(text: str, devices: dict[str, str | None]) -> str:
    """The file with the devices' lines as they must be, all others as they are."""
    kept = [line for line in text.splitlines() if line.partition(":")[0] not in devices]
    made = [f"{device}:{hashed}" for device, hashed in devices.items() if hashed is not None]
    return "".join(f"{line}\n" for line in [*kept, *made])


def _replace(path: Path, text: str) -> None:
    """At no moment is there half a file. Mode and group stay: mosquitto must read it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        old = path.stat() if path.exists() else None
        Path(name).chmod(stat.S_IMODE(old.st_mode) if old else 0o640)
        group = old.st_gid if old else path.parent.stat().st_gid
        if group != Path(name).stat().st_gid:
            os.chown(name, -1, group)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _reload(broker: Broker) -> None:
    try:
        if broker.pid_file is not None:
            os.kill(int(broker.pid_file.read_text()), signal.SIGHUP)
        if broker.reload_command:
            subprocess.run(
                broker.reload_command, check=True, capture_output=True, timeout=_RELOAD_SECONDS
            )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"the broker cannot be told that its accounts have changed: {error}",
            "correct [broker] pid_file or reload_command; until then: systemctl reload mosquitto",
        ) from error
