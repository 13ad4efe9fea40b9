"""The order of things: start everything, replay, wait for gold, give an account, stop everything.

Exit codes: 0 all is well; 1 something is missing, or something was left behind; 130 interrupted
before ``--once`` was through; else that of the error (2: a person must change something).
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from scout_console.client import HubClient
from scout_demo import account, journey
from scout_demo.account import Account
from scout_demo.folder import Folder
from scout_demo.ports import Ports, WantedPorts
from scout_demo.programs import Address, Programs
from scout_demo.stores import Stores, sold_ever
from scout_demo.supervisor import Supervisor
from scout_demo.till import Pace
from scout_demo.view import Picture, View
from scout_shared import answers
from scout_shared.errors import PermanentError, ScoutError, TransientError

_TICK_SECONDS = 0.1
_SECOND_SECONDS = 0.3  # two signals within this time are one request
_ASK_SECONDS = 2.0
_START_SECONDS = 300.0  # first start: initdb and migrations; or crash recovery
_PLAN_SECONDS = 60.0
_STILL_SECONDS = 300.0  # waiting for gold without any progress for so long is a failure


@dataclass(frozen=True)
class DemoOptions:
    """What the person asked for."""

    data_dir: Path
    transactions: int | None = None
    """Lines in all; None: all there are."""
    speed: float = float("inf")
    """Times real time."""
    all_stores: bool = False
    """Every store instead of the busiest eight."""
    at_once: int = 8
    """Agents at the same time."""
    once: bool = False
    """Account and stop when everything has reached gold."""
    console: bool = True
    """Start the web console."""
    fresh: bool = False
    """Begin with an empty data directory."""
    ports: WantedPorts = field(default_factory=WantedPorts)


class Interrupted(Exception):  # noqa: N818 - not an error: a person asked for it
    """Ctrl-C or SIGTERM arrived."""


class Demo:
    """One run of the demo, from the main thread of its process."""

    def __init__(self, options: DemoOptions, view: View) -> None:
        self.account: Account | None = None
        self._options = options
        self._view = view
        self._signals = 0
        self._signalled_at = 0.0
        self._stopping = threading.Event()
        self._stop_replay = threading.Event()
        self._ports = Ports(view.say)
        self._urls: tuple[tuple[str, str], ...] = ()
        self._phase = "starting"

    def run(self) -> int:
        """Run it all; returns the exit code. Raises ScoutError after having stopped everything."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        with Folder(self._options.data_dir, fresh=self._options.fresh) as folder:
            self._supervisor = Supervisor(folder / "logs", self._view.say)
            code = 0
            try:
                self._work(folder)
            except Interrupted:
                code = 130 if self._options.once else 0
            finally:
                clean = self._stop()
            if self.account is not None and self.account.missing:
                code = 1
            return code if clean else 1

    # -- what happens, in order -----------------------------------------------------------------

    def _work(self, folder: Folder) -> None:
        options = self._options
        baskets = journey.load(busiest=None if options.all_stores else 8)
        counts = journey.plan(baskets, options.transactions)
        wanted = options.ports
        choose = self._ports.choose
        address = Address(
            database=choose("the database", wanted.database),
            broker=choose("the broker", wanted.broker),
            api=choose("the hub's API", wanted.api),
            console=choose("the console", wanted.console) if options.console else 0,
        )
        count = min(options.at_once, len(baskets))
        doors = [
            choose(f"the door of agent {i + 1}", wanted.door and wanted.door + i)
            for i in range(count)
        ]
        programs = self._programs = Programs(folder, address)
        stores = self._stores = Stores(
            baskets,
            counts,
            doors=doors,
            books=folder / "tills",
            pace=Pace(options.speed, _next_second(baskets, counts, folder)),
            stop=self._stop_replay,
        )
        self._hub = Hub(address.hub_url, folder.secret("demo"), programs.plan(), self._stopping)
        self._loader = Loader(address.hub_url, folder.secret("loader"), self._stopping)
        planned = stores.planned
        self._view.say(
            f"{len(baskets)} stores, {planned.lines:,} lines in {planned.baskets:,} baskets to "
            f"sell, {stores.sold.lines:,} sold before; the publisher's week agrees with our "
            "business day on every one of them"
        )
        self._start(programs, address, folder)
        self._replay()
        if options.once:
            self._settle()
            self._close(folder)
        else:
            self._phase = "all sold; running until Ctrl-C" if stores.sold_out else "running"
            self._until(lambda: False)

    def _start(self, programs: Programs, address: Address, folder: Folder) -> None:
        supervisor, stores = self._supervisor, self._stores
        supervisor.start(programs.database())
        supervisor.start(programs.broker())
        stores.advance(supervisor, programs)  # they keep what they get until there is a hub
        threading.Thread(target=stores.watch, name="stores", daemon=True).start()
        self._await("database", "broker")
        supervisor.start(programs.hub())
        self._await("hub")
        self._hub.start()
        self._loader.start()
        self._urls = (("hub API", f"{address.hub_url}/docs"), ("data", str(folder.path)))
        if self._options.console:
            supervisor.start(programs.console())
            self._urls = (("console", address.console_url), *self._urls)
        for name, url in self._urls:
            self._view.say(f"{name}: {url}")

    def _replay(self) -> None:
        self._phase = "replaying sales"
        self._until(lambda: self._stores.sold_out and self._loader.done)

    def _settle(self) -> None:
        """Stop the agents, so that nothing new comes; wait until everything old is in gold."""
        self._phase = "sold; emptying the agents"
        agents = [store.agent for store in self._stores.open.values()]
        stores = [store.store_id for store in self._stores.open.values()]
        for agent in agents:
            self._supervisor.begin_stop(agent)
        self._until(lambda: not any(a in self._supervisor.children for a in agents))
        for store_id in stores:
            self._drain(store_id)
        self._phase = "waiting for gold"
        self._still_since, self._still = time.monotonic(), ""
        self._until(self._in_gold)

    def _drain(self, store_id: str) -> None:
        """Usually finds nothing: the agent sent all before it ended. After a crash it matters."""
        with subprocess.Popen(
            self._programs.drain(store_id),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                self._until(lambda: process.poll() is not None)
            finally:
                if process.poll() is None:
                    process.kill()
            said = process.communicate()[1]
        if process.returncode:
            raise TransientError(f"the agent of store {store_id} is not empty: {said.strip()}")

    def _in_gold(self) -> bool:
        """Whether nothing is under way any more. Raises TransientError when nothing moves."""
        reconciliation = self._hub.reconciliation
        rows = reconciliation.totals if reconciliation else ()
        behind = self._hub.plan
        state = f"{' '.join(account.equation(row) for row in rows)}; behind: {behind}"
        if state != self._still:
            self._still, self._still_since = state, time.monotonic()
        if time.monotonic() - self._still_since > _STILL_SECONDS:
            raise TransientError(
                f"nothing moves for {_STILL_SECONDS:.0f} s: {state}", "see the hub's log"
            )
        settled = bool(rows) and all(account.settled(row) for row in rows)
        self._hub.ask_plan = settled
        return settled and behind == []

    def _close(self, folder: Folder) -> None:
        hub = self._hub.client
        self.account = account.close(
            sold=sold_ever(folder / "tills"),
            history_days=self._stores.history_days,
            reconciliation=hub.reconciliation(),
            tables=hub.tables(exact=True),
            quarantined=hub.quarantine(limit=1).groups,
            files=self._loader.loaded,
        )

    def _stop(self) -> bool:
        """Stop everything in reverse order; whether nothing was left behind."""
        self._phase = "stopping"
        self._stop_replay.set()
        self._stopping.set()
        self._view.close()
        supervisor = self._supervisor
        agents = [name for name in supervisor.children if name.startswith("till-")]
        if supervisor.children:
            self._view.say(f"stopping {len(supervisor.children)} programs")
        supervisor.stop("console")
        supervisor.stop(*agents)
        for name in ("hub", "broker", "database"):
            supervisor.stop(name)
        left = supervisor.leftovers()
        ports = self._ports.listening()
        for process in left:
            self._view.say(f"left behind, killed now: {process}")
        for port in ports:
            self._view.say(f"port {port} is still in use")
        if not left and not ports:
            self._view.say("everything stopped: no process and no port is left")
        return not left and not ports

    # -- waiting --------------------------------------------------------------------------------

    def _await(self, *names: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        children = self._supervisor.children

        def ready() -> bool:
            if time.monotonic() > deadline:
                waiting = [name for name in names if not children[name].ready]
                raise TransientError(
                    f"{', '.join(waiting)}: not ready after {_START_SECONDS:.0f} s\n"
                    f"{self._supervisor.log_end(waiting[0])}"
                )
            return all(children[name].ready for name in names)

        self._until(ready)

    def _until(self, condition: Callable[[], bool]) -> None:
        """Keep everything running and the view fresh until then. Raises Interrupted."""
        while True:
            if self._signals:
                raise Interrupted
            self._supervisor.tick()
            self._stores.advance(self._supervisor, self._programs)
            for thread in (self._hub, self._loader):
                if thread.failure is not None:
                    raise thread.failure
            self._view.show(self._picture())
            if condition():
                return
            time.sleep(_TICK_SECONDS)

    def _picture(self) -> Picture:
        stores, supervisor = self._stores, self._supervisor
        sold, planned = stores.sold, stores.planned
        reconciliation = self._hub.reconciliation
        return Picture(
            phase=self._phase,
            urls=self._urls,
            lines_sold=sold.lines,
            lines_planned=planned.lines,
            baskets_sold=sold.baskets,
            baskets_planned=planned.baskets,
            stores_done=stores.finished,
            stores=len(stores.tills),
            files_loaded=len(self._loader.loaded),
            files=self._loader.total,
            equation=reconciliation.totals if reconciliation else (),
            hub_silence_seconds=self._hub.client.answer_age_seconds,
            active=stores.lines(supervisor),
            programs=tuple(
                (name, child.state)
                for name, child in supervisor.children.items()
                if not name.startswith("till-")
            ),
            restarts=supervisor.restarts,
        )

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        # Only counts: a second signal may interrupt this very function, and an Event that is being
        # set would then wait for itself for ever (seen with timeout(1), which signals twice).
        self._signals += 1
        if self._signals > 1 and time.monotonic() - self._signalled_at > _SECOND_SECONDS:
            self._supervisor.hurry = True
        self._signalled_at = time.monotonic()


class Hub(threading.Thread):
    """Asks the hub for the account every two seconds; an absent hub is asked again.

    Args:
        plan: the command that says what the medallion still has to do, as a JSON list.
    """

    def __init__(self, url: str, token: str, plan: tuple[str, ...], stop: threading.Event) -> None:
        super().__init__(name="hub", daemon=True)
        self.client = HubClient(url, token)
        self.reconciliation: answers.Reconciliation | None = None
        self.failure: ScoutError | None = None
        self.ask_plan = False
        """Set when the account is settled: from then on the plan is asked for."""
        self.plan: list[str] | None = None
        """Tables that are behind their inputs; None: not known."""
        self._plan_command = plan
        self._stop_event = stop

    def run(self) -> None:
        """Until told to stop."""
        while not self._stop_event.is_set():
            try:
                self.reconciliation = self.client.reconciliation()
                self.plan = self._planned() if self.ask_plan else None
            except TransientError:
                pass  # away: the picture shows for how long; the supervisor restarts it
            except ScoutError as error:
                self.failure = error
                return
            self._stop_event.wait(_ASK_SECONDS)

    def _planned(self) -> list[str] | None:
        done = subprocess.run(
            self._plan_command,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_PLAN_SECONDS,
        )
        if done.returncode == TransientError.exit_code:
            return None
        if done.returncode:
            raise PermanentError(done.stderr.decode("utf-8", "replace").strip())
        return [str(step["dataset"]) for step in json.loads(done.stdout)]


class Loader(threading.Thread):
    """Uploads everything that is no sale. The same bytes load once, so each start may do it."""

    def __init__(self, url: str, token: str, stop: threading.Event) -> None:
        super().__init__(name="loader", daemon=True)
        self.loaded: list[tuple[str, int, int]] = []
        """File, its rows, and the rows that the hub says landed or were rejected."""
        self.total = journey.FILES
        self.failure: ScoutError | None = None
        self._client = HubClient(url, token)
        self._stop_event = stop

    @property
    def done(self) -> bool:
        """Whether all files are there."""
        return len(self.loaded) == self.total

    def run(self) -> None:
        """One file after the other; a hub that is away is asked again."""
        for file in journey.files():
            while not self._stop_event.is_set():
                try:
                    result = self._client.upload(file.dataset, file.content, name=file.name)
                except TransientError:
                    self._stop_event.wait(_ASK_SECONDS)
                except ScoutError as error:
                    self.failure = PermanentError(f"{file.name}: {error.message}", error.hint)
                    return
                else:
                    kept = result.file.rows + result.file.rejected_rows
                    self.loaded.append((file.name, file.rows, kept))
                    break


def _next_second(
    baskets: tuple[journey.Baskets, ...], counts: dict[str, int], folder: Folder
) -> int:
    """Time of the first basket that is not sold yet: there the replayed clock begins."""
    from scout_demo.stores import book_path
    from scout_demo.till import Book

    waiting = []
    for store in baskets:
        sold = Book.read(book_path(folder / "tills", store.store_id)).baskets
        if sold < counts[store.store_id]:
            waiting.append(int(store.second[sold]))
    return min(waiting, default=0)
