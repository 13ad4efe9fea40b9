"""Promise 1: what an agent said OK to is in bronze exactly once, whatever dies in between.

Agents, hub, broker, database supervisor and PostgreSQL itself are killed with SIGKILL at random
while records flow. SCOUT_CHAOS_SEED repeats a run, SCOUT_CHAOS_KILLS makes it longer.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from scout_central.embedded import EmbeddedPostgres
from scout_demo.ports import listens
from scout_demo.supervisor import Program
from tests.harness.servers import require
from tests.system.world import STORES, Source, World, running

KILLS = int(os.environ.get("SCOUT_CHAOS_KILLS", "14"))
SEED = int(os.environ.get("SCOUT_CHAOS_SEED") or random.randrange(1 << 32))
VICTIMS = ("till-101", "till-102", "hub", "hub", "broker", "database", "postmaster")


def mosquitto(folder: Path) -> Callable[[int], Program]:
    program = require("mosquitto")

    def make(port: int) -> Program:
        conf = folder / "mosquitto.conf"
        conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        return Program("broker", (program, "-c", str(conf)), lambda: listens(port))

    return make


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("broker", ["iotcore", "mosquitto"])
def test_each_record_told_ok_is_in_bronze_once_whatever_is_killed(
    broker: str, folder: Path
) -> None:
    chance = random.Random(f"{SEED} {broker}")
    data_dir = folder / f"crash-{broker}"
    with running(data_dir, mosquitto(folder) if broker == "mosquitto" else None) as world:
        sources = [Source(s, world.doors[s], chance.randrange(1 << 32)) for s in STORES]
        for source in sources:
            source.start()
        try:
            story = play(world, sources, chance)
            settle(world, sources)
            compare(world, sources)
        except (AssertionError, psycopg.Error) as error:
            raise AssertionError(
                f"{error}\nSCOUT_CHAOS_SEED={SEED} SCOUT_CHAOS_KILLS={KILLS} repeats this run\n"
                f"{world.told()}"
            ) from error
        finally:
            for source in sources:
                source.stop.set()
        sys.stdout.write(f"seed {SEED}: {told_ok(sources)} records told OK; {story}\n")


def play(world: World, sources: list[Source], chance: random.Random) -> str:
    """Kill, let it come back, kill again; each time after some more records were told OK."""
    killed: Counter[str] = Counter()
    for _ in range(KILLS):
        told = told_ok(sources)
        more = chance.randint(1, 400)
        # Also without progress it goes on: what is down must not save the others from a kill.
        patience = chance.uniform(0.2, 1.5)
        wait_for_progress(world, sources, told + more, patience)
        victim = chance.choice(VICTIMS)
        killed[victim] += 1
        if victim == "postmaster":
            world.kill_postmaster()
        else:
            world.kill(victim, away_seconds=chance.choice((0.0, 0.0, 0.3, 1.0, 3.0)))
    return ", ".join(f"{name} killed {n} times" for name, n in sorted(killed.items()))


def wait_for_progress(world: World, sources: list[Source], enough: int, patience: float) -> None:
    try:
        world.until(lambda: told_ok(sources) >= enough, patience, "more records")
    except AssertionError:
        return


def told_ok(sources: list[Source]) -> int:
    return sum(len(source.documents) + len(source.readings) for source in sources)


def settle(world: World, sources: list[Source]) -> None:
    """Everything comes back; the sources end; the agents' buffers empty themselves."""
    world.until(world.ready, 60, "everything serves again")
    for source in sources:
        source.stop.set()
    world.until(lambda: not any(source.is_alive() for source in sources), 60, "sources end")
    assert [source.failure for source in sources] == [None] * len(sources)
    assert all(source.documents and source.readings for source in sources), "nothing flowed"
    world.until(
        lambda: all(world.agent_status(s)["backlog_records"] == 0 for s in STORES),
        90,
        "the agents' buffers are empty",
    )


def compare(world: World, sources: list[Source]) -> None:
    """What sources were told OK against what bronze holds, and the hub's own account."""
    dsn = EmbeddedPostgres(world.folder / "database", port=world.address.database).dsn
    with psycopg.connect(dsn) as connection:
        documents = Counter(
            row[0]
            for row in connection.execute(
                "select document ->> 'transaction_id' from bronze.transaction_logs"
            )
        )
        readings: dict[str, Counter[int]] = {source.metric: Counter() for source in sources}
        for name, value in connection.execute(
            "select metrics.name, readings.value from bronze.device_readings as readings"
            " join metadata.metrics as metrics on readings.metric_id = metrics.metric_id"
            " where metrics.name like 'chaos.%'"
        ):
            readings[name][int(value)] += 1
    told = Counter(transaction for source in sources for transaction in source.documents)
    assert_once("document", told, documents)
    for source in sources:
        found = readings[source.metric]
        unsure = Counter(value for value in source.unsure if found[value])
        assert_once(f"reading of {source.metric}", Counter(source.readings) + unsure, found)
    world.until(lambda: balanced(world), 60, "the equation balances")
    with psycopg.connect(dsn) as connection:
        wrong = connection.execute("select * from metadata.verify_landed()").fetchall()
    assert wrong == [], "each table agrees with what the account says landed"


def assert_once(
    what: str, told: Counter[str] | Counter[int], found: Counter[str] | Counter[int]
) -> None:
    lost = [key for key in told if found[key] == 0]  # type: ignore[index]  # same kind of key
    doubled = [key for key, count in found.items() if count > 1]
    strange = [key for key in found if key not in told]
    wrong = lost + doubled + strange
    assert not wrong, (
        f"{what}: told OK {len(told)}, lost {len(lost)} {lost[:3]}, doubled {len(doubled)} "
        f"{doubled[:3]}, never told OK {len(strange)} {strange[:3]}"
    )


def balanced(world: World) -> bool:
    """Documents: nothing under way, no remainder. (Telemetry of the machine never rests.)"""
    answer = world.hub("reconcile", "--json")
    assert answer.returncode == 0, answer.stderr + answer.stdout[-2000:]
    rows = json.loads(answer.stdout)
    assert all(row["remainder"] == 0 for row in rows)
    documents = [row for row in rows if row["kind"] in ("documents", 2)]
    return bool(documents) and all(
        row["produced"] == row["received"] == row["landed"] for row in documents
    )
