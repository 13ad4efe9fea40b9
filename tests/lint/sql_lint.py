"""Checks our SQL files: they parse as PostgreSQL, keep house style, and say what they are.

Holds the four rules of the house that a person would otherwise have to look for: a header comment,
lower-case keywords, no ``select *`` at the outer level, and text that parses.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokens import Tokenizer

# Words that PostgreSQL cares about and that people like to shout.
SHOUTED = frozenset(
    [
        "SELECT",
        "FROM",
        "WHERE",
        "JOIN",
        "LEFT",
        "RIGHT",
        "FULL",
        "INNER",
        "CROSS",
        "LATERAL",
        "ON",
        "USING",
        "GROUP",
        "BY",
        "ORDER",
        "HAVING",
        "UNION",
        "ALL",
        "DISTINCT",
        "WITH",
        "AS",
        "AND",
        "OR",
        "NOT",
        "NULL",
        "IS",
        "IN",
        "EXISTS",
        "CASE",
        "WHEN",
        "THEN",
        "ELSE",
        "END",
        "INSERT",
        "INTO",
        "VALUES",
        "UPDATE",
        "SET",
        "DELETE",
        "CREATE",
        "TABLE",
        "VIEW",
        "INDEX",
        "SCHEMA",
        "FUNCTION",
        "TRIGGER",
        "PRIMARY",
        "KEY",
        "REFERENCES",
        "UNIQUE",
        "CHECK",
        "DEFAULT",
        "CONSTRAINT",
        "CONFLICT",
        "DO",
        "NOTHING",
        "RETURNING",
        "PARTITION",
        "OVER",
        "LIMIT",
        "OFFSET",
        "GRANT",
        "REVOKE",
        "ALTER",
        "DROP",
        "IF",
        "BEGIN",
        "COMMIT",
    ]
)


def findings(text: str) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) for one file."""
    if not text.lstrip().startswith("--"):
        yield 1, "no header comment: say what the file makes (grain, key, incremental by what)"
    try:
        tokens = Tokenizer(dialect="postgres").tokenize(text)
        statements = sqlglot.parse(text, read="postgres")
    except SqlglotError as error:
        yield 1, f"does not parse as PostgreSQL: {str(error).splitlines()[0]}"
        return
    yield from _shouting(text, [(t.line, t.start, t.end) for t in tokens])
    for statement in statements:
        query = statement.expression if isinstance(statement, exp.Create) else statement
        if isinstance(query, exp.Select) and query.is_star:
            yield 1, "`select *` at the outer level: name the columns, they are the contract"


def _shouting(text: str, tokens: list[tuple[int, int, int]]) -> Iterator[tuple[int, str]]:
    for line, start, end in tokens:
        # Slicing the source skips quoted identifiers and strings, whose text has its quotes.
        written = text[start : end + 1]
        if written in SHOUTED:
            yield line, f"keyword {written} in capitals"


def main(roots: list[str]) -> int:
    """Print each finding as path:line: text; 1 when there is any."""
    # "Falling back to Command" for do blocks and function bodies, which sqlglot does not look into.
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    files = sorted(
        path
        for root in roots
        for path in ([Path(root)] if Path(root).is_file() else Path(root).rglob("*.sql"))
    )
    found = 0
    for path in files:
        for line, text in findings(path.read_text("utf-8")):
            print(f"{path}:{line}: {text}")
            found += 1
    print(f"{len(files)} SQL files, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["central"]))
