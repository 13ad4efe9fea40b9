"""All of Scout as real processes that may be killed at any time: they are started again.

What a service manager does (``Restart=always``) is done by ``mind``. Settings files, ports and
commands are those of the demo; only ``sources`` and the kills are the test's own.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scout_demo.folder import Folder
from scout_demo.programs import Address, Programs
from scout_demo.supervisor import Program
from tests.harness.process import Process
from tests.harness.waiting import eventually, free_port

STORES = ("101", "102")
ZONE = "America/New_York"


@dataclass
class Service:
    """A program that is started again whenever it ends."""

    program: Program
    process: Process
    outputs: list[str] = field(default_factory=list)
    restart_at: float | None = None
    starts: int = 1


class World:
    """Database, broker, hub and two agents."""

    def __init__(self, folder: Folder, broker: Callable[[int], Program] | None) -> None:
        self.folder = folder
        self.address = Address(free_port(), free_port(), free_port(), 0)
        self.programs = Programs(folder, self.address)
        self.doors = {store: free_port() for store in STORES}
        made = [
            self.programs.database(),
            broker(self.address.broker) if broker else self.programs.broker(),
            self.programs.hub(),
            *(self.programs.agent(store, door) for store, door in self.doors.items()),
        ]
        self.services = {program.name: Service(program, _start(program)) for program in made}

    def mind(self) -> None:
        """Start again what ended and is due."""
        now = time.monotonic()
        for service in self.services.values():
            if not service.process.running and service.restart_at is None:
                service.restart_at = now  # ended by itself: at once
            if service.restart_at is not None and now >= service.restart_at:
                service.outputs.append(service.process.output()[-4000:])
                service.process.close()
                service.process = _start(service.program)
                service.restart_at = None
                service.starts += 1

    def kill(self, name: str, *, away_seconds: float) -> None:
        """SIGKILL it; it comes back after that time."""
        service = self.services[name]
        if service.process.running:
            service.process.kill()
        service.restart_at = time.monotonic() + away_seconds

    def kill_postmaster(self) -> None:
        """SIGKILL PostgreSQL itself, under its supervisor: the database recovers from its WAL."""
        path = self.folder / "database" / "cluster" / "postmaster.pid"
        try:
            os.kill(int(path.read_text().split()[0]), signal.SIGKILL)
        except (OSError, IndexError):
            return  # just away anyway

    def ready(self) -> bool:
        """Whether everything serves."""
        return all(s.process.running and s.program.ready() for s in self.services.values())

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> None:
        """Mind the services until then."""

        def met() -> bool:
            self.mind()
            return bool(condition())

        eventually(met, seconds, what)

    def hub(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of ``scout-hub`` with the hub's own settings."""
        command = [*self.services["hub"].program.command[:-1], *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def agent_status(self, store: str) -> dict[str, Any]:
        """What the agent says at its door. Raises OSError when it is away."""
        status = request(self.doors[store], "GET", "/v1/status")
        if status is None:
            raise ConnectionError(f"the agent of store {store} is away")
        return status

    def told(self) -> str:
        """The end of what each program wrote, for a failure."""
        return "\n".join(
            f"--- {name} (started {service.starts} times)\n{service.process.output()[-1500:]}"
            for name, service in self.services.items()
        )

    def close(self) -> None:
        """End everything, database last."""
        for name in reversed(self.services):
            process = self.services[name].process
            if process.running and name == "database":
                process.terminate(60)
            process.close()


def _start(program: Program) -> Process:
    return Process(program.command, env=program.environment)


@contextmanager
def running(path: Path, broker: Callable[[int], Program] | None = None) -> Iterator[World]:
    """A world that serves; nothing of it is left afterwards."""
    with ExitStack() as stack:
        folder = stack.enter_context(Folder(path))
        world = World(folder, broker)
        stack.callback(world.close)
        world.until(world.ready, 60, "everything serves")
        yield world


def request(
    port: int,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """The answer if it is 200; None for 503 and for a broken connection: nobody said OK."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(
            method,
            path,
            None if body is None else json.dumps(body),
            {"Content-Type": "application/json", **(headers or {})},
        )
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if response.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        return None
    assert response.status == http.HTTPStatus.OK, (path, response.status, answer)
    return dict(json.loads(answer))


class Source(threading.Thread):
    """Gives an agent documents and readings, and remembers what was told OK.

    A document whose OK did not come is given again under the same key until it does: it must be
    stored once. A reading cannot be repeated safely, so one without OK is let go: it may be
    stored or not, but never twice.
    """

    def __init__(self, store: str, door: int, seed: int) -> None:
        super().__init__(name=f"source-{store}", daemon=True)
        self.store = store
        self.door = door
        self.documents: list[str] = []
        self.readings: list[int] = []
        self.unsure: list[int] = []
        self.failure: BaseException | None = None
        self.stop = threading.Event()
        self._random = random.Random(seed)

    @property
    def metric(self) -> str:
        return f"chaos.{self.store}.count"

    def run(self) -> None:
        number = 0
        try:
            while not self.stop.is_set():
                number += 1
                if self._random.random() < 0.5:
                    self._sell(number)
                else:
                    self._read(number)
        except BaseException as error:  # noqa: BLE001  # shown by the test
            self.failure = error

    def _sell(self, number: int) -> None:
        ids = [f"{self.store}-{number}-{i}" for i in range(self._random.randint(1, 20))]
        second = 1_483_271_606 + number
        observed_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
        documents = [
            {
                "type": "transaction",
                "observed_at": observed_at,
                "body": {
                    "transaction_id": transaction_id,
                    "store_id": self.store,
                    "customer_id": None,
                    "transaction_timestamp": observed_at,
                    "currency": "USD",
                    "lines": [{"product_id": "1", "quantity": 1, "sales_value": 1.25}],
                },
            }
            for transaction_id in ids
        ]
        headers = {"Idempotency-Key": f"{self.store}-{number}"}
        # Once begun a sale is carried to its OK, also when the test is over.
        while request(self.door, "POST", "/v1/documents", documents, headers) is None:
            threading.Event().wait(0.05)
        self.documents += ids

    def _read(self, number: int) -> None:
        values = [number * 1000 + i for i in range(self._random.randint(1, 200))]
        readings = [
            {"metric": self.metric, "observed_at": "2017-01-01T12:00:00Z", "value": value}
            for value in values
        ]
        if request(self.door, "POST", "/v1/readings", readings) is None:
            self.unsure += values
        else:
            self.readings += values
