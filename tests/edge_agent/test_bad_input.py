"""The document about bad inputs is true: each row is given, and these are the words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.edge_agent.bad_inputs import SECTIONS, Place

DOCUMENT = Path(__file__).parents[2] / "edge_agent" / "BAD_INPUT.md"


class Row(NamedTuple):
    """Of a table of the document."""

    given: str
    said: str

    def allows(self, words: str) -> bool:
        """Whether these are the words; ``<…>`` stands for any."""
        parts = re.split(r"<[a-z]+>", self.said)
        return re.fullmatch(".+?".join(map(re.escape, parts)), words, re.DOTALL) is not None


def tables() -> dict[str, list[Row]]:
    """Section → its rows."""
    found: dict[str, list[Row]] = {}
    rows: list[Row] = []
    for line in DOCUMENT.read_text("utf-8").splitlines():
        if line.startswith("## "):
            rows = found.setdefault(line.removeprefix("## "), [])
        elif line.startswith("| ") and line != "| given | said |":
            cells = re.split(r" (?<!\\)\| ", line.removeprefix("| ").removesuffix(" |"))
            given, said = (_plain(cell.replace("\\|", "|")) for cell in cells)
            rows.append(Row(given, said))
    return found


def _plain(cell: str) -> str:
    if cell.startswith("`` ") and cell.endswith(" ``"):
        return cell[3:-3]
    return cell[1:-1] if re.fullmatch("`[^`]*`", cell) else cell


def test_each_section_is_tried() -> None:
    assert tables().keys() == SECTIONS.keys()
    assert all(tables().values())


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_said_is_what_is_written(
    section: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rows = tables()[section]
    told = SECTIONS[section](Place(tmp_path, request), [row.given for row in rows])
    wrong = [
        f"given: {row.given}\n  written: {row.said}\n  said:    {words}"
        for row, words in zip(rows, told, strict=True)
        if not row.allows(words)
    ]
    assert not wrong, "\n".join(wrong)
