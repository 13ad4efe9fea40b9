"""Segments carried by hand take the same way as by MQTT: nothing doubles, in either order."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scout_central import cli as hub
from scout_central.ingest import Committer, ingest_segments
from scout_edge import cli as edge
from scout_edge import database as edge_database
from scout_edge import recovery
from scout_edge.buffer import Buffer
from scout_edge.room import Limits
from scout_shared import logs
from scout_shared.messages import Receipt
from scout_shared.wire import Reading
from tests.edge_agent import test_recovery
from tests.edge_agent.records import ZONE, documents, readings, stored
from tests.edge_agent.test_cli import write

STORE, DEVICE = "store-7", "pos-1"


@pytest.fixture(autouse=True)
def no_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program configures the logs of its process; here it is the tests' own."""
    monkeypatch.setattr(logs, "configure", lambda **_: None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return write(tmp_path, 1)


@pytest.fixture
def path(tmp_path: Path, config: Path) -> Path:
    return tmp_path / "data" / "edge.db"


@pytest.fixture
def committer(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Committer]:
    monkeypatch.setenv("SCOUT_DATABASE_DSN", database)
    with closing(Committer(database)) as made:
        yield made


def fill(path: Path) -> bytes:
    with Buffer(path, zone=ZONE) as buffer:
        buffer.append_readings(readings(2500))
        buffer.append_documents(documents(buffer, 40))
        return buffer.epoch


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def in_bronze(dsn: str) -> tuple[int, int, int, int]:
    """Rows and different identities, of readings and of documents."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            """
            select
                (select count(*) from bronze.device_readings),
                (select count(distinct (stream_id, sequence)) from bronze.device_readings),
                (select count(*) from bronze.transaction_logs),
                (select count(distinct (stream_id, sequence)) from bronze.transaction_logs)
            """
        ).fetchone()
    assert row is not None
    return row


def test_an_export_is_imported_and_mqtt_later_adds_nothing(
    config: Path,
    path: Path,
    database: str,
    committer: Committer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    epoch = fill(path)
    stick = path.with_name("stick.scout")
    assert edge.main(["buffer", "export", "--json", "--config", str(config), str(stick)]) == 0
    assert answer(capsys)["segments"] == 4
    for outcome in ("landed", "redelivered"):  # a second import changes nothing
        assert hub.main(["import", "--json", str(stick)]) == 0
        assert answer(capsys)["outcomes"] == {outcome: 4}
        assert in_bronze(database) == (2500, 2500, 40, 40)
    # The export deleted nothing; the link is back, and the device sends what it still holds.
    with Buffer(path, zone=ZONE) as buffer:
        bodies = [s.body for s in stored(buffer)]
        done = ingest_segments(committer, STORE, DEVICE, bodies)
        assert {str(o) for o in done.outcomes} == {"redelivered"}
        (told,) = done.receipts
        assert told.receipt.epoch == epoch
        assert buffer.apply_receipt(told.receipt) == 2540
        assert buffer.status().backlog_records == 0
    assert in_bronze(database) == (2500, 2500, 40, 40)
    with psycopg.connect(database) as connection:
        account = connection.execute(
            "select sum(produced), sum(received), sum(in_transit), sum(remainder)"
            " from metadata.reconciliation"
        ).fetchone()
        online = connection.execute("select hello from metadata.devices").fetchone()
    assert account == (2540, 2540, 0, 0)
    assert online == (None,), "an export is not the device speaking"


def test_what_came_by_mqtt_before_is_not_doubled(
    config: Path, path: Path, database: str, committer: Committer, tmp_path: Path
) -> None:
    fill(path)
    with Buffer(path, zone=ZONE) as buffer:
        buffer.seal()
        ingest_segments(committer, STORE, DEVICE, [s.body for s in stored(buffer)[1:3]])
    stick = tmp_path / "stick.scout"
    assert edge.main(["buffer", "export", "--config", str(config), str(stick)]) == 0
    assert hub.main(["import", str(stick)]) == 0
    assert in_bronze(database) == (2500, 2500, 40, 40)


def test_an_export_also_carries_what_was_recovered_from_a_damaged_file(
    config: Path, path: Path, database: str, committer: Committer, tmp_path: Path
) -> None:
    fill(path)
    content = path.read_bytes()
    path.write_bytes(bytes(4096) + content[4096:])
    with recovery.open_buffer(path, zone=ZONE, limits=Limits()) as buffer:
        buffer.append_documents(documents(buffer, 10, first=40))
    stick = tmp_path / "stick.scout"
    assert edge.main(["buffer", "export", "--config", str(config), str(stick)]) == 0
    assert hub.main(["import", str(stick)]) == 0
    assert in_bronze(database) == (2500, 2500, 50, 50)


def test_the_account_balances_after_pages_were_lost(
    config: Path, path: Path, database: str, committer: Committer
) -> None:
    """What was whole landed, what was not is given up, and nothing else is missing."""
    test_recovery.filled(path)
    content = path.read_bytes()
    path.write_bytes(content[: 30 * 4096] + b"\xff" * (20 * 4096) + content[50 * 4096 :])
    path.with_name(path.name + edge_database.SUSPECT).touch()
    recovery.open_buffer(path, zone=ZONE, limits=Limits()).close()
    stick = path.with_name("stick.scout")
    assert edge.main(["buffer", "export", "--config", str(config), str(stick)]) == 0
    assert hub.main(["import", str(stick)]) == 0
    accepted = sum((test_recovery.READINGS_SEALED, test_recovery.DOCUMENTS_SEALED, 40))
    with psycopg.connect(database) as connection:
        (account,) = connection.execute(
            "select sum(produced), sum(received), sum(given_up), sum(undated), sum(in_transit),"
            " sum(remainder) from metadata.reconciliation"
        ).fetchall()
        (declared,) = connection.execute("select sum(records) from metadata.gaps").fetchall()
    produced, received, given_up, undated, in_transit, remainder = account
    assert (produced, received) == (accepted, accepted)
    assert given_up == declared[0] > 0
    assert (undated, in_transit, remainder) == (0, 0, 0)
    rows = in_bronze(database)
    assert rows[0] == rows[1]
    assert rows[0] + rows[2] + given_up == accepted
    assert hub.main(["reconcile"]) == 0


def test_a_file_that_was_not_copied_whole_gives_what_it_has_and_says_so(
    config: Path,
    path: Path,
    database: str,
    committer: Committer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(path)
    stick = path.with_name("stick.scout")
    assert edge.main(["buffer", "export", "--config", str(config), str(stick)]) == 0
    whole = stick.read_bytes()
    stick.write_bytes(whole[:-5])
    assert hub.main(["import", str(stick)]) == 65
    assert "cut off" in capsys.readouterr().out
    stick.write_bytes(whole)
    assert hub.main(["import", str(stick)]) == 0
    assert in_bronze(database) == (2500, 2500, 40, 40)
    stick.write_bytes(b"holiday pictures\n" * 1000)
    assert hub.main(["import", str(stick)]) == 65
    assert "does not begin like an export" in capsys.readouterr().err
    assert hub.main(["import", str(path.with_name("nothing"))]) == 2


def test_an_export_beside_a_running_agent_says_what_it_lacks(
    config: Path, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(path)
    stick = tmp_path / "stick.scout"
    with edge_database.locked(path):
        assert edge.main(["buffer", "export", "--json", "--config", str(config), str(stick)]) == 0
    assert answer(capsys)["unsealed_records"] == 540
    unwritable = tmp_path / "nowhere" / "stick.scout"
    assert edge.main(["buffer", "export", "--config", str(config), str(unwritable)]) == 75
    assert "cannot be written" in capsys.readouterr().err


def test_inspect_and_verify_tell_a_whole_file_from_a_damaged_one(
    config: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", str(config)]
    assert edge.main(["buffer", "inspect", *command]) == 2
    fill(path)
    with Buffer(path, zone=ZONE) as buffer:
        body = stored(buffer)[0].body
    assert edge.main(["buffer", "verify", *command]) == 0
    assert "are whole" in capsys.readouterr().out
    assert edge.main(["buffer", "inspect", "--json", *command]) == 0
    shown = answer(capsys)
    assert shown["backlog_records"] == 2540
    assert [(row["kind"], row["records"]) for row in shown["sealed"]] == [
        ("readings", 2500),
        ("documents", 40),
    ]
    content = path.read_bytes()
    at = content.index(body[-40:])
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert edge.main(["buffer", "verify", *command]) == 65
    assert "segment 1 with 1000 records: its bytes changed" in capsys.readouterr().out
    with Buffer(path, zone=ZONE) as buffer:
        buffer.segments_after(0, 1)
        buffer.apply_receipt(Receipt(buffer.epoch, 0))
    assert edge.main(["buffer", "verify", *command]) == 0
    capsys.readouterr()
    assert edge.main(["buffer", "inspect", *command]) == 0
    assert "given up" in capsys.readouterr().out


def test_what_waits_becomes_tables_that_a_person_can_ask(
    config: Path, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["buffer", "tables", "--json", "--config", str(config)]
    fill(path)
    with Buffer(path, zone=ZONE) as buffer:
        body = stored(buffer)[0].body
        buffer.append_readings([Reading("late", 1, 2.5)])
        made = tmp_path / "running.db"
        assert edge.main([*command, str(made)]) == 0, "an agent that runs is no hindrance"
        assert answer(capsys)["rows"]["readings"] == 2501
    with closing(sqlite3.connect(made)) as tables:
        assert tables.execute(
            "select count(*), count(distinct sequence), min(observed_at) from readings"
        ).fetchone() == (2501, 2500, "1970-01-01T00:00:00.001+00:00")
        assert tables.execute(
            "select sequence, value from readings where metric = 'late'"
        ).fetchone() == (None, 2.5)
        (total,) = tables.execute("select sum(value) from readings").fetchone()
        assert total == sum(range(2500)) + 2.5
        assert tables.execute(
            "select count(*), count(observed_at), count(business_day), count(json(body))"
            " from documents"
        ).fetchone() == (40, 32, 32, 40)
    assert edge.main([*command, str(made)]) == 2
    assert "is there already" in capsys.readouterr().err
    content = path.read_bytes()
    at = content.index(body[-40:])
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert edge.main([*command, str(tmp_path / "damaged.db")]) == 65
    assert answer(capsys)["rows"] == {
        "readings": 1501, "documents": 40, "given_up": 0, "damaged": 1,
    }  # fmt: skip
    assert edge.main([*command, str(tmp_path / "none" / "x.db")]) == 75
    assert not list(tmp_path.rglob("*.part"))
