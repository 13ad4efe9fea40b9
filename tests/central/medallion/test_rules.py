"""Each rule of the first contract has a line that breaks it and nothing else."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import yaml
from open_data_contract_standard.model import OpenDataContractStandard

from scout_central.medallion import Runner
from scout_central.medallion import contracts as contract_files
from scout_shared.errors import ConfigError
from tests.central.medallion.tills import NOON, Tills, execute, line, one, rows, run, sale

CONTRACT = contract_files.load()["silver.transactions_cleaned"]
GOOD = sale("good")
BREAKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "document_is_object": ([1, 2], {}),
    "not_in_training_mode": (sale("t1", training=True), {}),
    "privacy_kept": (sale("t1", privacy={"noFacialRecognition": True}, face_id="f-1"), {}),
    "transaction_id_present": (sale("  "), {}),
    "store_matches_stream": (sale("t1", store_id="another"), {}),
    "observed_at_known": (sale("t1"), {"at": None}),
    "observed_at_not_in_future": (
        sale("t1"),
        {"at": NOON + dt.timedelta(minutes=11), "received_at": "now"},
    ),
    "observed_at_plausible": (sale("t1"), {"at": dt.datetime(1970, 1, 1, tzinfo=dt.UTC)}),
    "zone_known": (sale("t1"), {"zone": "Mars/Olympus"}),
    "business_date_agrees": (sale("t1"), {"business_date": dt.date(2026, 3, 1)}),
    "currency_known": (sale("t1", currency="pesos"), {}),
    "lines_present": ({**sale("t1"), "lines": []}, {}),
    "line_is_object": (sale("t1", 17), {}),
    "product_id_present": (sale("t1", line(product="x" * 65)), {}),
    "quantity_is_number": (sale("t1", line(quantity="many")), {}),
    "quantity_in_range": (sale("t1", line(quantity=-1)), {}),
    "sales_value_is_number": (sale("t1", line(value="1e999999")), {}),
    "sales_value_in_range": (sale("t1", line(value=10_000_001)), {}),
    "discounts_are_numbers": (sale("t1", line(retail_disc="none")), {}),
    "discounts_in_range": (sale("t1", line(coupon_disc=-0.01)), {}),
    "quantity_not_zero": (sale("t1", line(quantity=0)), {}),
    "quantity_usual": (sale("t1", line(quantity=1001)), {}),
    "coupon_within_sales": (sale("t1", line(coupon_disc=10.51)), {}),
    "amount_exact": (sale("t1", line(value=0.1 + 0.2)), {}),
    "customer_id_readable": (sale("t1", customer_id={"id": 1}), {}),
    "source_week_readable": (sale("t1", week="soon"), {}),
}


def test_every_rule_has_a_line_that_breaks_it() -> None:
    assert list(BREAKS) == CONTRACT.names


@pytest.mark.parametrize("rule", CONTRACT.rules, ids=CONTRACT.names)
def test_a_line_that_breaks_one_rule_is_treated_as_the_rule_says(
    database: str, rule: contract_files.Rule
) -> None:
    document, options = BREAKS[rule.name]
    options = dict(options)
    tills = Tills(database)
    till = tills.stream(zone=options.pop("zone", "Asia/Manila"))
    good_till = tills.stream()
    if options.get("received_at") == "now":
        options["received_at"] = dt.datetime.now(dt.UTC)
        options["at"] = options["received_at"] + dt.timedelta(minutes=11)
    tills.post(till, document, **options)
    tills.post(good_till, GOOD)
    run(database)
    landed = rows(
        database,
        "select stream_id, warnings from silver.transactions_cleaned order by stream_id",
    )
    broken = rows(database, "select rules, reason, records, payload from metadata.quarantine")
    outcome = rows(
        database,
        "select outcome, rule, records from metadata.outcome_counts where stream_id = %s",
        till,
    )
    assert landed[-1] == (good_till, [])
    if rule.on_fail == "warn":
        assert landed[0] == (till, [rule.name])
        assert broken == []
        assert outcome == [("landed", "", 1)]
    elif rule.on_fail == "exclude":
        assert len(landed) == 1
        assert broken == []
        assert outcome == [("excluded", rule.name, 1)]
    else:
        assert len(landed) == 1
        ((rules, reason, records, payload),) = broken
        assert reason == rule.name
        # what has no line, or is no object, breaks the rules of its parts as well
        assert rules == [rule.name] or rule.name in (
            "document_is_object",
            "lines_present",
            "line_is_object",
        )
        assert records == 1
        assert payload is not None
        assert outcome == [("quarantined", rule.name, 1)]


def test_one_poison_document_among_a_thousand_costs_only_itself(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    poison = [
        sale("p1", line(quantity="1e999999", value={"a": [1]}), currency=["PHP"]),
        sale("p2", None, [], "line", line(product=None)),
        "not even an object",
        {**sale("p3"), "lines": {"0": {}}},
        {**sale("p4"), "lines": [[[[[[]]]]]]},
        sale({"nested": "id"}, line(quantity=1e308, value="-" * 1000)),
        sale("x" * 10_000, line(product="y" * 10_000), week=1e300),
    ]
    good = [sale(f"t{i}", line(), line("p2")) for i in range(1000)]
    tills.post(till, *good[:500], *poison, *good[500:])
    run(database)
    assert one(database, "select count(*) from silver.transactions_cleaned") == 2000
    counts = dict(
        rows(
            database,
            "select outcome, sum(records)::int from metadata.outcome_counts group by outcome",
        )
    )
    assert counts == {"landed": 1000, "quarantined": len(poison)}
    assert rows(database, "select * from metadata.verify_landed()") == []


def test_good_lines_land_when_others_of_their_document_do_not(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, sale("t1", line("p1"), line("p2", quantity="?"), line("p3")))
    run(database)
    assert rows(
        database, "select line_number, product_id from silver.transactions_cleaned order by 1"
    ) == [(1, "p1"), (3, "p3")]
    assert rows(
        database, "select line_number, rules, records, payload -> 'line' from metadata.quarantine"
    ) == [(2, ["quantity_is_number"], 0, line("p2", quantity="?"))]
    assert sorted(
        rows(database, "select outcome, rule, records, lines from metadata.outcome_counts")
    ) == [("landed", "", 1, 2), ("quarantined", "quantity_is_number", 0, 1)]


def test_quarantine_names_contract_version_run_and_lineage(database: str) -> None:
    tills = Tills(database)
    till = tills.stream("s7")
    tills.post(till, sale("t1", line(quantity=None)))
    run(database)
    ((contract, version, run_id, store, device, stream, sequence),) = rows(
        database,
        "select contract_id, contract_version, run_id, store_id, device_id, stream_id, sequence"
        " from metadata.quarantine",
    )
    assert (contract, version) == (CONTRACT.contract_id, CONTRACT.version)
    assert (store, device, stream, sequence) == ("s7", "till-1", till, 1)
    step = "select task from metadata.agent_orchestration where run_id = %s"
    assert one(database, step, run_id) == "silver.transactions_cleaned"


def test_a_new_version_of_the_contract_releases_what_it_no_longer_forbids(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, sale("t1", line(quantity=-1)), sale("t2", line(quantity="x")))
    run(database)
    assert one(database, "select count(*) from silver.transactions_cleaned") == 0
    odcs = yaml.safe_load(yaml.safe_dump(CONTRACT.odcs))
    odcs["version"] = "1.1.0"
    for check in odcs["schema"][0]["quality"]:
        if check["name"] == "quantity_in_range":
            check["implementation"]["rowPredicate"] = "true"
    newer = contract_files.parse(yaml.safe_dump(odcs), "newer")
    result = Runner(database, contracts={newer.contract_id: newer}).run_once()
    assert result.steps[0].reason == "SQL or contract changed"
    assert rows(database, "select transaction_id from silver.transactions_cleaned") == [("t1",)]
    assert rows(
        database, "select sequence, state, contract_version from metadata.quarantine order by 1"
    ) == [(1, "replayed", "1.0.0"), (2, "open", "1.1.0")]
    assert sorted(rows(database, "select outcome, records from metadata.outcome_counts")) == [
        ("landed", 1),
        ("quarantined", 1),
    ]


def test_a_published_version_never_changes_its_text(database: str) -> None:
    run(database)
    changed = contract_files.parse(
        yaml.safe_dump({**CONTRACT.odcs, "name": "renamed"}), CONTRACT.contract_id
    )
    with pytest.raises(ConfigError, match="another text"):
        Runner(database, contracts={changed.contract_id: changed}).run_once()


def test_a_blocking_rule_stops_the_step_and_publishes_nothing(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, GOOD, sale("t2", currency="x"))
    odcs = yaml.safe_load(yaml.safe_dump(CONTRACT.odcs))
    odcs["version"] = "2.0.0"
    for check in odcs["schema"][0]["quality"]:
        if check["name"] == "currency_known":
            check["implementation"]["onFail"] = "block"
    blocking = contract_files.parse(yaml.safe_dump(odcs), "blocking")
    result = Runner(database, contracts={blocking.contract_id: blocking}).run_once()
    assert result.status == "failed"
    assert "1 rows break currency_known" in result.steps[0].message
    assert one(database, "select count(*) from silver.transactions_cleaned") == 0


def test_the_contract_is_valid_odcs_3_1_and_describes_the_table(database: str) -> None:
    document = OpenDataContractStandard.model_validate(CONTRACT.odcs)
    assert document.apiVersion == "v3.1.0"
    table = (document.schema_ or [])[0]
    described = {p.name: (p.physicalType, bool(p.required)) for p in table.properties or ()}
    actual = {
        name: (kind.replace(" ", ""), required)
        for name, kind, required in rows(
            database,
            "select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute"
            " where attrelid = 'silver.transactions_cleaned'::regclass and attnum > 0",
        )
    }
    for name, (kind, required) in described.items():
        assert name is not None
        assert actual[name] == ((kind or "").replace(" ", ""), required), name


def test_rules_that_cannot_be_compiled_are_refused() -> None:
    odcs = yaml.safe_load(yaml.safe_dump(CONTRACT.odcs))
    odcs["schema"][0]["quality"][0]["implementation"] = {"rowPredicate": "true", "onFail": "shout"}
    with pytest.raises(ConfigError, match="document_is_object"):
        contract_files.parse(yaml.safe_dump(odcs), "bad")


def test_text_is_cast_only_when_it_is_a_plain_number(database: str) -> None:
    given = ["1", "-2.50", "+3", "1e5", "1e999999", " 1", "", "NaN", "0x1", "١", "1" * 16]
    read = [one(database, "select metadata.number(to_jsonb(%s::text))", text) for text in given]
    assert [None if n is None else str(n) for n in read] == [
        *["1", "-2.50", "3"],
        *[None] * 8,
    ]


def test_a_transaction_is_quarantined_again_only_once(database: str) -> None:
    tills = Tills(database)
    till = tills.stream()
    tills.post(till, sale("t1", line(quantity="x")))
    run(database)
    run(database, full=True)
    execute(database, "update metadata.quarantine set state = 'discarded'")
    run(database, full=True)
    assert rows(database, "select state, attempts from metadata.quarantine") == [("discarded", 2)]
