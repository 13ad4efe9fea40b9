"""How one step changes its table: append, keyed, merge. All in the caller's transaction.

``append`` judges each new row by the contract and lets the first document of a transaction win.
``keyed`` computes the touched keys again. ``merge`` adds aggregates of the new rows. Each one run
twice is run once, and a full rebuild ends with the same rows, so a row that would not change is
not written: what follows the table stays quiet.
Not its job: watermarks, locks, the ledger of runs (``runner``, ``journal``).
"""

from __future__ import annotations

from uuid import UUID

from scout_central.database import Connection
from scout_central.medallion.contracts import Contract
from scout_central.medallion.lineage import Node
from scout_central.medallion.strategies.append import append
from scout_central.medallion.strategies.base import Change, FanOutError, Window
from scout_central.medallion.strategies.keyed import keyed
from scout_central.medallion.strategies.merge import merge

__all__ = ["Change", "FanOutError", "Window", "apply"]


def apply(
    connection: Connection,
    node: Node,
    contract: Contract | None,
    window: Window,
    run_id: UUID,
    *,
    record_deleted: bool,
) -> Change:
    """Bring the table of ``node`` up to ``window``; the caller commits.

    Raises:
        FanOutError: a guard does not hold, or the select gives a key twice.
        psycopg.Error: as it comes; the caller translates it.
    """
    for name, value in node.model.planner.items():
        connection.execute("select set_config(%s, %s, true)", (name, value))
    if node.model.strategy == "keyed":
        return keyed(connection, node, window, record_deleted=record_deleted)
    if node.model.strategy == "merge":
        return merge(connection, node, window)
    assert contract is not None
    return append(connection, node, contract, window, run_id)
