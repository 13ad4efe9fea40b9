"""The fixtures of tests/harness for every test, and how hypothesis works here."""

from hypothesis import Phase, settings

from tests.harness.servers import (
    broker,
    database,
    folder,
    mosquitto_broker,
    postgres_server,
    processes,
    template_dsn,
)

__all__ = [
    "broker",
    "database",
    "folder",
    "mosquitto_broker",
    "postgres_server",
    "processes",
    "template_dsn",
]

# Without the explain phase: after a failure it traces, on Python 3.11, every line of everything
# that the test calls, and shrinking a failure of the medallion ran into the time limit.
settings.register_profile("scout", phases=[p for p in Phase if p is not Phase.explain])
settings.load_profile("scout")
