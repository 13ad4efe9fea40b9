"""The ``[sources.<name>]`` tables, and kinds of third parties."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import threading
from pathlib import Path

import pytest

from scout_edge import clock, config, notify
from scout_edge.agent import Agent
from scout_edge.allowance import Allowance
from scout_edge.buffer import Buffer
from scout_edge.sources import SourceContext, SourceKind, registry
from scout_edge.sources.http import HttpDoor
from scout_shared import settings
from scout_shared.errors import ConfigError
from scout_shared.wire import Reading
from tests.edge_agent.records import ZONE, documents, outlet_of, readings
from tests.edge_agent.test_config import DEVICE, load
from tests.harness.waiting import eventually, free_port

ENTRY = (
    "[scout_edge.sources]\nscales = tests.edge_agent.test_registry:SCALES\n"
    "stuck = tests.edge_agent.test_registry:STUCK\n"
)


@dataclasses.dataclass(frozen=True, slots=True)
class ScalesSettings:
    grams: float
    password: str = settings.secret(registry.PASSWORD)

    def __post_init__(self) -> None:
        if self.grams < 0:
            raise ConfigError(f"grams {self.grams} cannot be", "give 0 or more")


class Scales:
    def __init__(self, context: SourceContext, given: ScalesSettings) -> None:
        self.name, self._outlet, self._grams = context.name, context.outlet, given.grams

    def open(self) -> None: ...

    def run(self, stop: threading.Event) -> None:
        self._outlet.append_readings([Reading("scales.grams", 1000, self._grams)], state="weighed")
        stop.wait()

    def close(self) -> None: ...


SCALES = SourceKind(ScalesSettings, Scales)


class Stuck(Scales):
    """Beats once, then waits for what never comes; minds the stop all the same."""

    def run(self, stop: threading.Event) -> None:
        self._outlet.tick()
        stop.wait()


STUCK = SourceKind(ScalesSettings, Stuck, patience_seconds=0.3)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution, as importlib sees it."""
    found = tmp_path / "site" / "shop_scales-1.0.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-scales\nVersion: 1.0\n")
    (found / "entry_points.txt").write_text(ENTRY + "broken = no_such_module:KIND\n")
    monkeypatch.syspath_prepend(found.parent)
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    "text, message",
    [
        ("[sources.x]\nport = 1\n", "sources: x: 'kind' must be set"),
        ("[sources.x]\nkind = 'htp'\n", "kind 'htp' is not known\n.*did you mean 'http'"),
        ("[sources.x]\nkind = 'http'\nprot = 1\n", "x: unknown key 'prot'\n.*did you mean 'port'"),
        ("[sources.x]\nkind = 'http'\nport = 70000\n", "sources: x: port 70000"),
        ("[sources.x]\nkind = 'http'\nport = 'a'\n", "port must be a whole number"),
        ("[sources.x]\nkind = 'http'\nenabled = 1\n", "enabled must be true or false"),
        ("[sources.http]\nkind = 'http'\n", "'http' cannot be the name"),
        ("[sources.'Ä']\nkind = 'http'\n", "'Ä' cannot be the name"),
        ("[sources.x]\nkind='http'\n[[sources.x.shape]]\nmetric='a'\n", "has no 'shape'"),
        (
            "[sources.x]\nkind='system'\n[[sources.x.shape]]\nmetrik='a'\n",
            r"shape\[0\]: unknown key",
        ),
        (
            "[sources.x]\nkind='system'\n[[sources.x.shape]]\nmetric='a'\nconvert_from='celcius'\n",
            "did you mean 'celsius'",
        ),
        ("sources = 1\n", "must be tables"),
        ("[sources]\nx = 1\n", "must be a table"),
        ("[sources.x]\nkind = 'broken'\n", "cannot be loaded from no_such_module:KIND"),
        ("[sources.x]\nkind = 'scales'\n", "x: 'grams' must be set"),
        ("[sources.x]\nkind = 'scales'\ngrams = -1\n", "sources: x: grams -1"),
        ("[sources.x-1]\nkind='scales'\npassword='y'\n", "SCOUT_SOURCE_X_1_PASSWORD"),
    ],
)
@pytest.mark.usefixtures("third_party")
def test_a_wrong_source_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    before, after = (text, DEVICE) if text.startswith("sources") else (DEVICE, text)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load(tmp_path, before + after)


@pytest.mark.usefixtures("third_party")
def test_the_password_of_a_source_comes_from_its_own_variable(tmp_path: Path) -> None:
    text = DEVICE + "[sources.a]\nkind='scales'\ngrams=1\n[sources.b]\nkind='scales'\ngrams=2\n"
    loaded = load(tmp_path, text, SCOUT_SOURCE_A_PASSWORD="hidden")
    assert loaded.sources["a"].settings.password == "hidden"
    assert loaded.sources["b"].settings.password == ""
    assert "hidden" not in repr(loaded) + str(config.as_dict(loaded))


@pytest.mark.usefixtures("third_party")
async def test_an_agent_runs_several_of_a_kind_and_those_of_third_parties(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        DEVICE + f"[buffer]\npath = '{tmp_path}/edge.db'\n[mqtt]\nport = {free_port()}\n"
        "[http]\nport = 0\n[system]\nenabled = false\n"
        "[sources.second]\nkind = 'http'\nport = 0\n[sources.third]\nkind='http'\nenabled=false\n"
        "[sources.scales]\nkind = 'scales'\ngrams = 12.5\n",
    )
    agent = Agent(loaded)
    assert [source.name for source in agent.sources] == ["http", "second", "scales"]
    stop = asyncio.Event()
    running = asyncio.create_task(agent.run(stop))
    state = await asyncio.to_thread(
        eventually, lambda: agent.buffer.offset("scales"), 10, "the scales' reading"
    )
    assert state is not None
    assert json.loads(state)["at"] == "weighed"
    doors = [source for source in agent.sources if isinstance(source, HttpDoor)]
    assert len({door.address for door in doors}) == 2
    assert agent.buffer.status().unsealed_records + agent.buffer.next_sequence - 1 == 1
    stop.set()
    await running


async def test_an_agent_keeps_a_retention_and_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "synced", lambda: True)
    loaded = load(
        tmp_path,
        DEVICE + f"[buffer]\npath = '{tmp_path}/edge.db'\n[mqtt]\nport = {free_port()}\n"
        "budget_bytes_per_day = 50_000_000\n[http]\nport = 0\n[system]\nenabled = false\n"
        "[privacy]\nretention_days = 0.000001\n",
    )
    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:
        buffer.append_documents(documents(buffer, 3))
        buffer.append_readings(readings(5))
    await asyncio.sleep(0.2)
    agent = Agent(loaded)
    assert agent.forwarder.allowance is agent.allowance
    agent.allowance.took(1000)
    stop = asyncio.Event()
    running = asyncio.create_task(agent.run(stop))
    await asyncio.to_thread(
        eventually, lambda: agent.buffer.status().given_up_records == 3, 10, "what expired"
    )
    shown = agent.status()
    assert shown["budget_bytes"] == 50_000_000
    assert 1000 < shown["budget_used_bytes"] < 2000
    assert agent.metrics.counters()["budget_used_bytes"] == shown["budget_used_bytes"]
    assert shown["backlog_records"] == 8
    stop.set()
    await running
    with Buffer(tmp_path / "edge.db", zone=ZONE) as buffer:
        kept = Allowance(buffer, 50_000_000)
        assert kept.used == shown["budget_used_bytes"]


@pytest.mark.usefixtures("third_party")
async def test_a_source_that_hangs_is_named_and_one_that_may_wait_is_not(tmp_path: Path) -> None:
    """What the watchdog asks: the stuck one has beaten and stopped; the scales never beat."""
    loaded = load(
        tmp_path,
        DEVICE + f"[buffer]\npath = '{tmp_path}/edge.db'\n[mqtt]\nport = {free_port()}\n"
        "[http]\nport = 0\n[sources.scales]\nkind = 'scales'\ngrams = 12.5\n"
        "[sources.belt]\nkind = 'stuck'\ngrams = 1\n",
    )
    agent = Agent(loaded)
    stop = asyncio.Event()
    running = asyncio.create_task(agent.run(stop))

    def stuck() -> str:
        try:
            agent.alive([])
        except notify.StuckError as error:
            return error.message
        return ""

    reason = await asyncio.to_thread(eventually, stuck, 10, "the silence")
    assert reason.startswith("source 'belt' hangs: no beat for ")
    stop.set()
    await running


def test_a_beat_says_how_long_the_source_may_wait(tmp_path: Path) -> None:
    with Buffer(tmp_path / "edge.db", zone="Asia/Manila") as buffer:
        outlet = outlet_of(buffer)
        outlet.wait(0.0)
        assert outlet.silent_seconds == 0.0, "it never beat, so it is not judged"
        outlet.beat(60.0)
        assert outlet.silent_seconds == 0.0
        outlet.beat()
        assert eventually(lambda: outlet.silent_seconds > 0.0)
