"""The demo's input is what its publisher says it is: every line, every amount, every week."""

from __future__ import annotations

import json
import zoneinfo
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from scout_demo import journey
from scout_shared.errors import PermanentError

LINES, BASKETS, STORES = 1_469_307, 155_848, 457
SALES_CENTS = 459_603_958
SAME_WEEKS_OTHER_HOURS = {"America/Havana", "Cuba"}
"""Their clocks change an hour apart from New York's, in nights that move no line over a Monday."""


@pytest.fixture(scope="module")
def everything() -> tuple[journey.Baskets, ...]:
    return journey.load(busiest=None)


def local_times(zone: str, seconds: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    utc = pa.array(seconds.astype("datetime64[s]"), pa.timestamp("s", "UTC"))
    local = pc.local_timestamp(utc.cast(pa.timestamp("s", zone)))
    return local.to_numpy(zero_copy_only=False).astype("datetime64[s]")  # type: ignore[no-any-return]


def weeks(local: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    days: npt.NDArray[np.int64] = (local - np.datetime64("2016-12-26")).astype("timedelta64[D]")
    return days.astype(np.int64) // 7 + 1


def test_the_publishers_week_is_that_of_our_business_date_on_every_line(
    everything: tuple[journey.Baskets, ...],
) -> None:
    """With a time zone library that the code under test does not use."""
    agreeing = 0
    for store in everything:
        own = weeks(local_times(journey.ZONE, store.second))
        agreeing += int(np.diff(store.first_line)[own == store.week].sum())
    assert agreeing == LINES


def test_no_zone_with_other_offsets_agrees_with_the_publishers_week(
    everything: tuple[journey.Baskets, ...],
) -> None:
    second = np.concatenate([store.second for store in everything])
    week = np.concatenate([store.week for store in everything])
    second, first = np.unique(second, return_index=True)
    week = week[first]
    ours = local_times(journey.ZONE, second)
    others = set()
    for zone in sorted(zoneinfo.available_timezones() - {"Factory"}):
        local = local_times(zone, second)
        if (weeks(local) == week).all() and (local != ours).any():
            others.add(zone)
    assert others == SAME_WEEKS_OTHER_HOURS


def test_all_lines_of_all_stores_are_handed_out_once(
    everything: tuple[journey.Baskets, ...],
) -> None:
    assert len(everything) == STORES
    assert sum(len(store) for store in everything) == BASKETS
    assert sum(int(store.first_line[-1]) for store in everything) == LINES
    assert sum(int(store.lines[:, 2].sum()) for store in everything) == SALES_CENTS
    for store in everything:
        assert (np.diff(store.second) >= 0).all(), "in time order"


def test_the_busiest_stores_are_found_in_the_data() -> None:
    busiest = journey.load(busiest=8)
    assert [store.store_id for store in busiest] == [
        *("367", "406", "356", "292", "381", "31782", "343", "361")
    ]


@pytest.mark.slow
def test_each_document_carries_the_source_to_the_cent(
    everything: tuple[journey.Baskets, ...],
) -> None:
    """Every line of the data set against the parquet file, read in another way."""
    source = source_lines()
    names = ("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc")
    seen = 0
    for store in everything:
        for i in range(len(store)):
            item = json.loads(store.document(i), parse_float=str)
            body = item["body"]
            assert item["observed_at"] == body["transaction_timestamp"]
            assert item["observed_at"].endswith("Z")
            for line in body["lines"]:
                expected = source[int(body["transaction_id"]), int(line["product_id"])]
                ids = (body["store_id"], body["customer_id"], line["quantity"])
                assert " ".join(map(str, (*ids, *(line[name] for name in names)))) == expected
                seen += 1
    assert seen == LINES


def source_lines() -> dict[tuple[int, int], str]:
    """(basket, product) → the other values as text, amounts with two decimals."""
    table = journey.parquet("transactions").read()
    columns = [
        table[name].to_pylist()
        for name in ("basket_id", "product_id", "store_id", "household_id", "quantity")
    ] + [
        [f"{amount:.2f}" for amount in table[name].to_pylist()]
        for name in ("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc")
    ]
    rows = zip(*columns, strict=True)
    return {(basket, product): " ".join(map(str, rest)) for basket, product, *rest in rows}


def test_an_amount_that_is_not_in_cents_is_refused() -> None:
    assert journey.cents(np.array([10.870000000000001, 0.0])).tolist() == [1087, 0]
    for wrong in (0.123, -0.01):
        with pytest.raises(PermanentError, match="two decimals"):
            journey.cents(np.array([wrong]))


@pytest.mark.parametrize("lines", [1, 3000, 60_000, 223_230, 10_000_000])
def test_a_plan_cuts_no_basket_and_takes_the_earliest(lines: int) -> None:
    stores = journey.load(busiest=8)
    counts = journey.plan(stores, lines)
    taken = list(baskets(stores, counts, taken=True))
    left = list(baskets(stores, counts, taken=False))
    planned = sum(size for _, _, size in taken)
    assert planned >= min(lines, 223_230)
    last = max(taken)
    assert planned - last[2] < lines, "without the last basket it would be too few"
    assert not left or last[:2] < min(left)[:2]


def baskets(
    stores: tuple[journey.Baskets, ...], counts: dict[str, int], *, taken: bool
) -> Iterator[tuple[int, int, int]]:
    """(second, basket, lines) of what a plan takes, or leaves."""
    for store in stores:
        end = counts[store.store_id]
        for i in range(end) if taken else range(end, len(store)):
            yield int(store.second[i]), int(store.basket_id[i]), store.line_count(i, i + 1)


def test_files_have_a_header_and_all_their_rows() -> None:
    rows = {file.name: (file.rows, file.content.count(b"\n") - 1) for file in journey.files()}
    assert rows == {
        "products.csv": (92_331, 92_331),
        "demographics.csv": (801, 801),
        "campaigns.csv": (6_589, 6_589),
        "campaign_descriptions.csv": (27, 27),
        "coupons.csv": (116_204, 116_204),
        "coupon_redemptions.csv": (2_102, 2_102),
        "stores.csv": (457, 457),
    }
