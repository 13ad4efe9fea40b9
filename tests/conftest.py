"""The fixtures of tests/harness for every test."""

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
