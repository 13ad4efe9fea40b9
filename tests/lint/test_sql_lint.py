"""The SQL lint finds what it says it finds."""

from __future__ import annotations

import pytest

from tests.lint.sql_lint import findings


@pytest.mark.parametrize(
    "text, said",
    [
        ("select a from t", "header"),
        ("-- t\nSELECT a from t", "SELECT"),
        ("-- t\nselect * from t", "select \\*"),
        ("-- t\ncreate view v as select * from t", "select \\*"),
        ("-- t\nselect a from (", "parse"),
    ],
)
def test_each_rule_is_broken_by_an_example(text: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        assert [what for _, what in findings(text)] == []


def test_words_in_strings_comments_and_quoted_names_are_not_shouting() -> None:
    text = (
        "-- SELECT\nwith t as (select * from u) select 'SELECT' as \"FROM\", count(*) as n from t"
    )
    assert list(findings(text)) == []
