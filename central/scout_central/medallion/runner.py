"""Brings silver, gold and platinum up to date: what changed, in the order of the SQL, step by step.

Each step is one transaction with its own watermark, so it may die anywhere and be run again. A
step that fails is rolled back, what follows it is blocked, the rest goes on. One run at a time over
all hubs. A run with nothing to do reads a few index pages and writes no ledger rows.

Incremental work follows commit order (DESIGN §6): a step reads ``xid >= watermark``, and its next
watermark is the horizon, below which all transactions have ended, so a row that commits late is
still ahead of it. ``append`` and ``merge`` must see each row once and stop at the horizon;
``keyed`` may see it twice and reads all that is visible.
Not its job: how a table changes (``strategies``), when runs happen (``hub``).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from scout_central import database
from scout_central.database import Connection
from scout_central.medallion import contracts as contract_files
from scout_central.medallion import journal, lineage, strategies
from scout_central.medallion import model as models_files
from scout_central.medallion.contracts import Contract
from scout_central.medallion.lineage import Graph, Node
from scout_central.medallion.model import Model
from scout_central.medallion.strategies import Change, Window
from scout_shared import logs
from scout_shared.errors import ConfigError, ScoutError, TransientError

log = logs.get("medallion")

_RUN_LOCK = 0x73636F7574_01
"""One run at a time over all hubs of a database; "scout" in ASCII and a number."""
BIG_CHANGE_ROWS = 10_000
"""From here on the planner's statistics are renewed at once, not at autovacuum's leisure."""

_CLUSTER = "select system_identifier::text from pg_control_system()"
_MARKS = """
select
    mark.dataset,
    mark.input,
    mark.xid,
    mark.cluster_id,
    mark.sql_sha256,
    mark.xid > pg_snapshot_xmax(pg_current_snapshot())::text::bigint as is_ahead
from metadata.watermarks as mark
"""
_MARK_NOW = """
select mark.input, mark.xid
from metadata.watermarks as mark
where mark.dataset = %s
for update
"""
# JIT compiles the bitmask for longer than it runs; sorts of a full rebuild do better with 64 MB,
# not with more (measured).
_SETTINGS = """
select
    pg_try_advisory_xact_lock(hashtextextended(%s, 0)),
    set_config('jit', 'off', true),
    set_config('work_mem', '64MB', true),
    set_config('lock_timeout', '30s', true)
"""
# A file that was loaded a second ago has no statistics yet, and autovacuum takes its time.
_STALE = """
select stats.schemaname, stats.relname
from pg_stat_user_tables as stats
where (
        stats.relid = %(source)s::regclass
        or stats.relid in (select inhrelid from pg_inherits where inhparent = %(source)s::regclass)
    )
    and stats.n_mod_since_analyze > 1000 + 0.2 * stats.n_live_tup
"""
_SUMMARIZE = """
select brin_summarize_new_values(index.indexrelid)
from pg_partition_tree(%s::regclass) as tree
inner join pg_index as index on tree.relid = index.indrelid
inner join pg_class as class on index.indexrelid = class.oid
inner join pg_am as method on class.relam = method.oid
where tree.isleaf and method.amname = 'brin'
"""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step that a run would take now."""

    dataset: str
    mode: Literal["incremental", "full"]
    reason: str
    """first time, SQL or contract changed, asked for, another cluster, new rows in …, follows …"""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step."""

    dataset: str
    status: Literal["completed", "failed", "blocked"]
    mode: str
    reason: str
    run_id: str | None = None
    rows_read: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    touched_keys: int = 0
    seconds: float = 0.0
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a run. ``skipped``: another run holds the lock. No steps: nothing to do."""

    status: Literal["completed", "failed", "skipped"]
    steps: tuple[StepResult, ...] = ()
    run_id: str | None = None
    seconds: float = 0.0

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Mark:
    """How far a dataset has consumed its inputs."""

    xid: dict[str, int] = field(default_factory=dict)
    cluster: str = ""
    sha256: str = ""


class Runner:
    """Runs the models of the package against one database; keeps nothing but parsed files."""

    def __init__(
        self,
        dsn: str,
        *,
        models: Mapping[str, Model] | None = None,
        contracts: Mapping[str, Contract] | None = None,
    ) -> None:
        self._dsn = dsn
        self._models = models_files.load() if models is None else models
        self._contracts = contract_files.load() if contracts is None else contracts
        self._graph: Graph | None = None
        self._questions: dict[str, sql.Composed] = {}
        for model in self._models.values():
            if model.contract and model.contract not in self._contracts:
                raise ConfigError(
                    f"{model.dataset}: there is no contract {model.contract!r}",
                    "add contracts/<id>.odcs.yaml",
                )

    def run_once(
        self,
        trigger: str = "micro-batch",
        full: bool = False,
        datasets: Iterable[str] | None = None,
    ) -> RunResult:
        """Bring everything, or ``datasets``, up to date; ``full``: from the first row.

        Raises:
            TransientError: the database went away; a retry is safe at any time.
            ConfigError: a model, a contract or the schema does not fit the others.
        """
        wanted = models_files.select(self._models, datasets)
        began = time.monotonic()
        # The lock lives in an idle transaction of its own connection: a lock of the session would
        # be lost, or kept for ever, behind a transaction pooler. It has no xid and no snapshot, so
        # it holds nothing back.
        with database.connect(self._dsn, application="scout-medallion-lock") as guard:
            with database.translated():
                row = guard.execute("select pg_try_advisory_xact_lock(%s)", (_RUN_LOCK,)).fetchone()
            if not (row and row[0]):
                return RunResult("skipped")
            with (
                database.connect(self._dsn, application="scout-medallion", autocommit=True) as work,
                database.translated(),
            ):
                # One snapshot per step: guards and results must not see different rows.
                work.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                result = self._run(work, trigger, full, wanted)
        seconds = round(time.monotonic() - began, 3)
        return RunResult(result.status, result.steps, result.run_id, seconds)

    def plan(self) -> list[PlannedStep]:
        """What a run would do now, and why."""
        with (
            database.connect(self._dsn, application="scout-medallion", autocommit=True) as work,
            database.translated(),
        ):
            graph = self._read(work)
            _cluster, marks, foreign = _marks(work)
            planned: dict[str, PlannedStep] = {}
            for name, node in graph.nodes.items():
                if foreign:
                    planned[name] = PlannedStep(name, "full", "another cluster")
                    continue
                step = self._why(work, node, marks.get(name), full=False)
                if step is None and (first := next((i for i in node.inputs if i in planned), None)):
                    step = PlannedStep(name, "incremental", f"follows {first}")
                if step is not None:
                    planned[name] = step
            return list(planned.values())

    def _read(self, work: Connection) -> Graph:
        """Parse the SQL against this schema and register the contracts; once per runner."""
        if self._graph is None:
            graph = lineage.build(self._models, lineage.catalogue(work))
            contract_files.store(work, self._contracts.values())
            journal.describe(work, graph)
            self._questions = {name: _question(node) for name, node in graph.nodes.items()}
            self._graph = graph
        return self._graph

    def _run(self, work: Connection, trigger: str, full: bool, wanted: set[str]) -> RunResult:
        graph = self._read(work)
        cluster, marks, foreign = _marks(work)
        if foreign:
            adopted = work.execute("select metadata.adopt_rows()").fetchone()
            log.warning("cluster.changed", cluster=cluster, rows=adopted[0] if adopted else 0)
            marks = {}
        parent: UUID | None = None
        steps: list[StepResult] = []
        stuck: set[str] = set()
        for name, node in graph.nodes.items():
            if name not in wanted:
                continue
            if failed := [source for source in node.reads if source in stuck]:
                stuck.add(name)
                assert parent is not None
                message = f"{failed[0]} failed"
                journal.record_blocked(work, name, parent, message)
                steps.append(StepResult(name, "blocked", "", message, message=message))
                continue
            planned = self._why(work, node, marks.get(name), full=full)
            if planned is None:
                continue
            if foreign:
                planned = PlannedStep(name, "full", "another cluster")
            if parent is None:
                parent = journal.start_run(work, trigger)
            journal.beat(work, parent)
            result = self._step(work, node, planned, marks.get(name), (parent, trigger, cluster))
            if result.status == "failed":
                stuck.add(name)
            steps.append(result)
        done = {step.dataset for step in steps}
        journal.checked(work, (name for name in wanted if name not in done))
        if parent is None:
            return RunResult("completed")
        status: Literal["completed", "failed"] = "failed" if stuck else "completed"
        journal.finish_run(work, parent, status, _totals(steps))
        return RunResult(status, tuple(steps), str(parent))

    def _sha256(self, model: Model) -> str:
        """A dataset is rebuilt when its SQL file or its contract changes."""
        contract = self._contracts[model.contract].sha256 if model.contract else ""
        return hashlib.sha256((model.sha256 + contract).encode()).hexdigest()

    def _why(
        self, work: Connection, node: Node, mark: _Mark | None, *, full: bool
    ) -> PlannedStep | None:
        name = node.model.dataset
        if full:
            return PlannedStep(name, "full", "asked for")
        if mark is None:
            return PlannedStep(name, "full", "first time")
        if mark.sha256 != self._sha256(node.model) or set(mark.xid) != set(node.inputs):
            return PlannedStep(name, "full", "SQL or contract changed")
        row = work.execute(
            self._questions[name], {f"mark_{i}": mark.xid[s] for i, s in enumerate(node.inputs)}
        ).fetchone()
        assert row is not None
        changed = [source for source, new in zip(node.inputs, row, strict=True) if new]
        if not changed:
            return None
        return PlannedStep(name, "incremental", f"new rows in {', '.join(changed)}")

    def _step(
        self,
        work: Connection,
        node: Node,
        planned: PlannedStep,
        mark: _Mark | None,
        run: tuple[UUID, str, str],
    ) -> StepResult:
        parent, trigger, cluster = run
        began = time.monotonic()
        step = journal.Step(
            node=node,
            run_id=uuid4(),
            parent=parent,
            trigger=trigger,
            mode=planned.mode,
            sha256=self._sha256(node.model),
            window=Window(mark.xid if mark else {}, 0, planned.mode == "full"),
            started_at=dt.datetime.now(dt.UTC),
        )
        try:
            with database.translated(), work.transaction():
                change = self._transact(work, step, cluster)
        except ScoutError as error:
            if work.closed:
                raise
            journal.record_failure(work, step, error)
            failure = {"dataset": planned.dataset, "error": error.message, "hint": error.hint}
            log.error("step.failed", **failure)  # noqa: TRY400 - a traceback says nothing more
            return StepResult(
                planned.dataset,
                "failed",
                planned.mode,
                planned.reason,
                run_id=str(step.run_id),
                seconds=round(time.monotonic() - began, 3),
                message=error.message,
                hint=error.hint,
            )
        if node.model.strategy != "keyed":
            _summarize(work, node.inputs[0])
        result = StepResult(
            planned.dataset,
            "completed",
            planned.mode,
            planned.reason,
            run_id=str(step.run_id),
            rows_read=change.rows_read,
            rows_inserted=change.rows_inserted,
            rows_updated=change.rows_updated,
            rows_deleted=change.rows_deleted,
            touched_keys=change.touched_keys,
            seconds=round(time.monotonic() - began, 3),
        )
        log.info("step.completed", **{k: v for k, v in asdict(result).items() if v != ""})
        return result

    def _transact(self, work: Connection, step: journal.Step, cluster: str) -> Change:
        """The whole step; what it writes is published by the caller's commit, or not at all."""
        model = step.node.model
        row = work.execute(_SETTINGS, (model.dataset,)).fetchone()
        if not (row and row[0]):
            raise TransientError(f"another session works on {model.dataset}", "try again later")
        now: dict[str, int] = dict(work.execute(_MARK_NOW, (model.dataset,)).fetchall())
        if not step.window.full and now != step.window.from_xid:
            raise TransientError(f"somebody else moved the watermark of {model.dataset}")
        horizon = work.execute("select metadata.horizon_xid()").fetchone()
        assert horizon is not None
        window = Window(step.window.from_xid, int(horizon[0]), step.window.full)
        for source in step.node.inputs:
            for schema, table in work.execute(_STALE, {"source": source}).fetchall():
                work.execute(sql.SQL("analyze {}").format(sql.Identifier(schema, table)))
        assert self._graph is not None
        change = strategies.apply(
            work,
            step.node,
            self._contracts.get(model.contract),
            window,
            step.run_id,
            record_deleted=bool(self._graph.consumers(model.dataset)),
        )
        target = sql.Identifier(model.layer, model.table)
        rows = None
        if window.full:
            counted = work.execute(sql.SQL("select count(*) from {}").format(target)).fetchone()
            rows = int(counted[0]) if counted else None
        if change.rows_written + change.rows_deleted >= BIG_CHANGE_ROWS or window.full:
            work.execute(sql.SQL("analyze {}").format(target))
        settled = journal.Step(
            node=step.node,
            run_id=step.run_id,
            parent=step.parent,
            trigger=step.trigger,
            mode=step.mode,
            sha256=step.sha256,
            window=window,
            started_at=step.started_at,
        )
        journal.record_success(work, settled, change, cluster=cluster, rows=rows)
        # Temporary tables go with the commit; several steps share the names.
        return change


def plan(dsn: str) -> list[PlannedStep]:
    """What a run against this database would do now, and why."""
    return Runner(dsn).plan()


def _marks(work: Connection) -> tuple[str, dict[str, _Mark], bool]:
    """This cluster's id, the watermarks, and whether they come from another cluster."""
    try:
        row = work.execute(_CLUSTER).fetchone()
        cluster = str(row[0]) if row else "unknown"
    except psycopg.errors.InsufficientPrivilege:
        # A hosted server may refuse: then only a watermark in the future gives a restore away.
        cluster = "unknown"
    marks: dict[str, _Mark] = {}
    foreign = False
    for dataset, source, xid, origin, sha256, is_ahead in work.execute(_MARKS).fetchall():
        mark = marks.setdefault(dataset, _Mark())
        mark.xid[source], mark.cluster, mark.sha256 = xid, origin, sha256
        foreign = foreign or is_ahead or origin != cluster
    return cluster, marks, foreign


def _question(node: Node) -> sql.Composed:
    """One row: per input, whether anything is new."""
    answers = []
    for position, source in enumerate(node.inputs):
        mark = sql.Placeholder(f"mark_{position}")
        table = sql.Identifier(*source.split("."))
        if node.model.strategy == "keyed":
            answers.append(
                sql.SQL(
                    "exists (select from {} where xid >= {}) or exists (select from"
                    " metadata.deleted_keys where dataset = {} and xid >= {})"
                ).format(table, mark, sql.Literal(source), mark)
            )
        else:
            answers.append(
                sql.SQL(
                    "exists (select from {} where xid >= {} and xid < metadata.horizon_xid())"
                ).format(table, mark)
            )
    return sql.SQL("select ") + sql.SQL(", ").join(answers)


def _summarize(work: Connection, source: str) -> None:
    """Pages that no BRIN range covers yet are read by each run: cover them now."""
    try:
        work.execute(_SUMMARIZE, (source,))
    except psycopg.errors.OperationalError as error:
        log.info("index.not_summarized", dataset=source, error=str(error).strip())


def _totals(steps: Iterable[StepResult]) -> dict[str, Any]:
    every = list(steps)
    failed = [step.dataset for step in every if step.status != "completed"]
    return {
        "rows_read": sum(step.rows_read for step in every),
        "rows_written": sum(step.rows_inserted + step.rows_updated for step in every),
        "rows_deleted": sum(step.rows_deleted for step in every),
        "message": f"not completed: {', '.join(failed)}" if failed else None,
    }
