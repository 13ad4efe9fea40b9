"""Files through the real door: what lands, what is put aside, what is refused as a whole."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row
from pyarrow import parquet

from scout_central.storage import FileStore, TooLargeError, key_of
from scout_central.uploads import Limits
from tests.central.api.living import LiveHub, empty_hub, serving

__all__ = ["empty_hub"]

SMALL = Limits(upload_bytes=1_000_000, unpacked_bytes=20_000_000, rows=1000, rejects=50)


@pytest.fixture
def small_hub(database: str, tmp_path: Path) -> Iterator[LiveHub]:
    """A hub that takes small files only."""
    with serving(database, tmp_path / "storage", limits=SMALL) as live:
        yield live


def records(hub: LiveHub, dataset: str = "product_catalog") -> dict[int, Any]:
    """Records in bronze by line number."""
    with psycopg.connect(hub.dsn) as connection:
        query = f"select line_number, record from bronze.{dataset} order by line_number"
        return dict(connection.execute(query.encode()).fetchall())


def quarantined(hub: LiveHub) -> list[dict[str, Any]]:
    with psycopg.connect(hub.dsn, row_factory=dict_row) as connection:
        return connection.execute(
            "select line_number, reason, raw, file_id, stage, dataset from metadata.quarantine"
            " order by line_number"
        ).fetchall()


def nothing_landed(hub: LiveHub) -> bool:
    with psycopg.connect(hub.dsn) as connection:
        files = connection.execute("select count(*) from metadata.files").fetchone()
    return files == (0,) and records(hub) == {} and quarantined(hub) == []


def test_a_file_lands_as_the_strings_that_it_has(empty_hub: LiveHub) -> None:
    content = (
        b"product_id,brand,price,note\r\n"
        b'00123,National,1.10,"a, b"\r\n'
        b'1e5,,NaN,"say ""hi""\nand go"\r\n'
        b'4,=1+1,-5,"back\\slash\ttab"\r\n'
    )
    answer = empty_hub.upload("product_catalog", "products.csv", content)
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert (body["file"]["rows"], body["file"]["rejected_rows"]) == (3, 0)
    assert body["duplicate"] is False
    assert (body["record_type"], body["encoding"]) == ("product", "utf-8")
    assert records(empty_hub) == {
        2: {"product_id": "00123", "brand": "National", "price": "1.10", "note": "a, b"},
        3: {"product_id": "1e5", "brand": "", "price": "NaN", "note": 'say "hi"\nand go'},
        5: {"product_id": "4", "brand": "=1+1", "price": "-5", "note": "back\\slash\ttab"},
    }


def test_wrong_lines_go_to_quarantine_with_their_numbers_and_the_rest_lands(
    empty_hub: LiveHub,
) -> None:
    content = (
        b"product_id,brand\n"
        b"1,ok\n"
        b"2\n"
        b"3,a,b\n"
        b"4,nul\x00here\n"
        b"5,\xff\xfe\n"
        b'6,"open\n'
        b"7,ok\n"
        b'8,"x"y\n'
        b'9,12" pipe\n'
        b"\n"
        b"10,Pe\xc3\xb1a\n"
        b'11,"never closed\n'
    )
    body = empty_hub.upload("product_catalog", "p.csv", content).json()
    assert {n: r["product_id"] for n, r in records(empty_hub).items()} == {
        2: "1",
        8: "7",
        10: "9",
        12: "10",
    }
    assert records(empty_hub)[12]["brand"] == "Peña"
    assert records(empty_hub)[10]["brand"] == '12" pipe'
    found = {q["line_number"]: q["reason"] for q in quarantined(empty_hub)}
    assert found == {
        3: "field_count",
        4: "field_count",
        5: "nul_character",
        6: "invalid_text",
        7: "bad_quoting",  # its quote ends at line 9, and not at the end of a field
        9: "bad_quoting",
        13: "unterminated_quote",
    }
    assert {q["line_number"]: bytes(q["raw"]) for q in quarantined(empty_hub)}[
        5
    ] == b"4,nul\x00here"
    assert (body["file"]["rows"], body["file"]["rejected_rows"]) == (4, 7)
    assert [r["line_number"] for r in body["rejects"]] == [3, 4, 5, 6, 7, 9, 13]
    (group,) = [
        g
        for g in empty_hub.get("/v1/quarantine").json()["groups"]
        if g["reason"] == "nul_character"
    ]
    assert (group["dataset"], group["stage"]) == ("bronze.product_catalog", "upload")


@pytest.mark.parametrize(
    "content,encoding",
    [
        ("product_id,brand\n1,Peña\n".encode("cp1252"), "cp1252"),
        ("product_id,brand\n1,Peña\n".encode(), "utf-8"),
        ("product_id,brand\n1,Peña\n".encode("utf-8-sig"), "utf-8"),
        ("product_id,brand\n1,Peña\n".encode("utf-16"), "utf-16"),
        ("product_id,brand\r\n1,Peña\r\n".encode("utf-16-le"), "utf-16-le"),
        ("product_id,brand\n1,Peña\n".encode("utf-16-be"), "utf-16-be"),
    ],
    ids=["cp1252", "utf-8", "utf-8 with mark", "utf-16 with mark", "utf-16-le", "utf-16-be"],
)
def test_encodings_follow_the_rule(empty_hub: LiveHub, content: bytes, encoding: str) -> None:
    answer = empty_hub.upload("product_catalog", "p.csv", content)
    assert answer.status_code == 201, answer.text
    assert answer.json()["encoding"] == encoding
    assert records(empty_hub) == {2: {"product_id": "1", "brand": "Peña"}}


def test_a_given_encoding_is_used(empty_hub: LiveHub) -> None:
    content = "product_id,brand\n1,Peña\n2,ok\n".encode("cp1252")
    empty_hub.upload("product_catalog", "p.csv", content, encoding="utf-8")
    assert list(records(empty_hub)) == [3]
    assert [q["reason"] for q in quarantined(empty_hub)] == ["invalid_text"]


def test_the_same_bytes_load_once(empty_hub: LiveHub, tmp_path: Path) -> None:
    content = b"product_id\n1\n2\n"
    first = empty_hub.upload("product_catalog", "a.csv", content)
    second = empty_hub.upload("bronze.product_catalog", "b.csv", content)
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json()["duplicate"] is True
    assert second.json()["file"] == first.json()["file"]
    assert len(records(empty_hub)) == 2
    files = empty_hub.get("/v1/uploads").json()["files"]
    assert [f["name"] for f in files] == ["a.csv"]
    key = key_of(bytes.fromhex(files[0]["sha256"]))
    assert (tmp_path / "storage" / key).read_bytes() == content
    assert list((tmp_path / "storage" / "incoming").iterdir()) == []


def test_the_same_bytes_for_another_dataset_are_another_file(empty_hub: LiveHub) -> None:
    content = b"product_id,household_id\n1,2\n"
    for dataset in ("product_catalog", "demographic_data"):
        assert empty_hub.upload(dataset, "a.csv", content).status_code == 201
    assert len(empty_hub.get("/v1/uploads").json()["files"]) == 2
    assert len(empty_hub.get("/v1/uploads?dataset=product_catalog").json()["files"]) == 1


def test_gzip_and_tsv(empty_hub: LiveHub) -> None:
    content = gzip.compress(b"product_id\tbrand\n001\ta,b\n")
    assert empty_hub.upload("product_catalog", "p.tsv.gz", content).status_code == 201
    assert records(empty_hub) == {2: {"product_id": "001", "brand": "a,b"}}


def test_json_lines(empty_hub: LiveHub) -> None:
    lines = [
        '{"product_id": "007", "price": 1.10, "n": 9007199254740993, "b": true, "x": null}',
        '{"product_id": 8, "nested": {"a": [1]}}',
        '{"brand": "no id"}',
        "[1]",
        "{broken",
        '{"product_id": "\\u0000"}',
        '{"product_id": "\\ud800"}',
        '{"product_id": NaN}',
        '{"product_id": "1", "product_id": "2"}',
        "[" * 100_000,
        '{"product_id": "last"}',
    ]
    answer = empty_hub.upload("product_catalog", "p.jsonl", "\n".join(lines).encode())
    assert answer.status_code == 201, answer.text
    assert records(empty_hub) == {
        1: {"product_id": "007", "price": "1.10", "n": "9007199254740993", "b": "true", "x": None},
        2: {"product_id": "8", "nested": '{"a": ["1"]}'},
        11: {"product_id": "last"},
    }
    assert [(q["line_number"], q["reason"]) for q in quarantined(empty_hub)] == [
        (3, "missing_column"),
        (4, "not_an_object"),
        (5, "bad_json"),
        (6, "nul_character"),
        (7, "invalid_text"),
        (8, "bad_json"),
        (9, "bad_json"),
        (10, "bad_json"),
    ]


def parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


def test_parquet_values_become_their_exact_text(empty_hub: LiveHub) -> None:
    moment = dt.datetime(2026, 1, 5, 1, tzinfo=dt.UTC)
    table = pa.table(
        {
            "product_id": pa.array(["00123", "2"]),
            "whole": pa.array([900.0, None], pa.float64()),
            "price": pa.array([0.1, 1e-7], pa.float64()),
            "narrow": pa.array([0.1, float("nan")], pa.float32()),
            "exact": pa.array([Decimal("1.10"), Decimal("-0.01")], pa.decimal128(10, 2)),
            "big": pa.array([2**63 - 1, 1], pa.int64()),
            "day": pa.array([dt.date(2026, 1, 5), None], pa.date32()),
            "at": pa.array([moment, None], pa.timestamp("us", "UTC")),
            "flag": pa.array([True, False]),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
        }
    )
    answer = empty_hub.upload("product_catalog", "p.parquet", parquet_bytes(table))
    assert answer.status_code == 201, answer.text
    assert records(empty_hub) == {
        1: {
            "product_id": "00123",
            "whole": "900",
            "price": "0.1",
            "narrow": "0.1",
            "exact": "1.10",
            "big": "9223372036854775807",
            "day": "2026-01-05",
            "at": "2026-01-05T01:00:00Z",
            "flag": "true",
            "kind": "a",
        },
        2: {
            "product_id": "2",
            "whole": None,
            "price": "1e-07",
            "narrow": None,
            "exact": "-0.01",
            "big": "1",
            "day": None,
            "at": None,
            "flag": "false",
            "kind": "b",
        },
    }


@pytest.mark.parametrize(
    "columns,record_type",
    [
        ("campaign_id,household_id", "campaign_household"),
        ("campaign_id,campaign_type,start_date,end_date", "campaign"),
        ("coupon_upc,product_id,campaign_id", "coupon"),
        ("household_id,coupon_upc,campaign_id,redemption_date", "redemption"),
    ],
)
def test_campaign_records_are_told_apart_by_their_columns(
    empty_hub: LiveHub, columns: str, record_type: str
) -> None:
    content = f"{columns}\n{','.join('x' for _ in columns.split(','))}\n".encode()
    answer = empty_hub.upload("campaign_data", "c.csv", content)
    assert answer.json()["record_type"] == record_type
    with psycopg.connect(empty_hub.dsn) as connection:
        row = connection.execute("select record_type from bronze.campaign_data").fetchone()
    assert row == (record_type,)


REFUSED = [
    ("product_catalog", "p.csv", b"sku,brand\n1,a\n", 422, "missing_columns", "product_id"),
    ("product_catalog", "p.csv", b"sku,brand\n1,a\n", 422, "missing_columns", "sku, brand"),
    ("product_catalog", "p.csv", b"product_id;brand\n1;a\n", 422, "missing_columns", "commas"),
    ("campaign_data?record_type=coupon", "c.csv", b"a\n1\n", 422, "missing_columns", ""),
    ("campaign_data?record_type=no", "c.csv", b"a\n1\n", 422, "unknown_record_type", "coupon"),
    ("product_catalog", "p.csv", b"", 422, "empty_file", ""),
    ("product_catalog", "p.csv", b"\n\n", 422, "empty_file", ""),
    ("product_catalog", "p.csv", b"product_id,a,a\n", 422, "bad_header", "'a'"),
    ("product_catalog", "p.csv", b"PK\x03\x04zip", 422, "is_archive", ""),
    ("product_catalog", "p.exe", b"MZ", 422, "unknown_format", ".csv"),
    ("product_catalog", "noending", b"x", 422, "unknown_format", ""),
    ("product_catalog", "p.parquet", b"PAR1nonsense", 422, "bad_parquet", ""),
    ("product_catalog", "p.csv.gz", b"\x1f\x8bnonsense", 422, "bad_compression", ""),
    ("device_readings", "p.csv", b"x", 404, "unknown_dataset", "product_catalog"),
    ("nope", "p.csv", b"x", 404, "unknown_dataset", ""),
]


def test_files_that_are_refused_leave_nothing_behind(empty_hub: LiveHub, tmp_path: Path) -> None:
    for dataset, name, content, status, error, words in REFUSED:
        answer = empty_hub.upload(dataset, name, content)
        assert answer.status_code == status, (name, content, answer.text)
        body = answer.json()
        assert body["error"] == error
        assert words in body["message"] + body["hint"]
        assert body["hint"]
        assert nothing_landed(empty_hub)
        assert [p for p in (tmp_path / "storage").rglob("*") if p.is_file()] == []


def test_a_gzip_bomb_of_100_mb_is_refused_by_the_default_limits(empty_hub: LiveHub) -> None:
    line = b"1," + b"0" * 1000 + b"\n"
    bomb = gzip.compress(b"product_id,zeros\n" + line * 100_000)
    assert len(bomb) < 1_000_000
    answer = empty_hub.upload("product_catalog", "bomb.csv.gz", bomb)
    assert (answer.status_code, answer.json()["error"]) == (413, "too_large")
    assert nothing_landed(empty_hub)


def test_a_parquet_bomb_is_refused(empty_hub: LiveHub) -> None:
    """A dictionary of one long text, named by each row: small in the file, huge when unpacked."""
    rows = 2000
    values = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), pa.array(["x" * 1_000_000])
    )
    bomb = parquet_bytes(pa.table({"product_id": values}))
    assert len(bomb) < 3_000_000
    answer = empty_hub.upload("product_catalog", "bomb.parquet", bomb)
    assert (answer.status_code, answer.json()["error"]) == (413, "too_large"), answer.text
    assert nothing_landed(empty_hub)


@pytest.mark.parametrize(
    "name,content,status",
    [
        ("big.csv", b"product_id\n" + b"1\n" * 600_000, 413),
        ("rows.csv", b"product_id\n" + b"1\n" * 1001, 413),
        ("unpacked.csv.gz", gzip.compress(b"product_id\n" + b"123456789\n" * 2_500_000), 413),
        ("rejects.csv", b"product_id\n" + b"1,2\n" * 51, 422),
    ],
    ids=["bytes", "rows", "unpacked bytes", "rejects"],
)
def test_budgets(small_hub: LiveHub, name: str, content: bytes, status: int) -> None:
    answer = small_hub.upload("product_catalog", name, content)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "message", "hint"}
    assert nothing_landed(small_hub)


def test_a_body_that_does_not_say_its_size_is_cut_off(small_hub: LiveHub) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="p.csv"\r\n\r\n'
        for _ in range(40):
            yield b"1\n" * 32_768
        yield b"\r\n--b--\r\n"

    answer = small_hub.request(
        "POST",
        "/v1/uploads/product_catalog",
        "uploader-all",
        content=endless(),
        content_type="multipart/form-data; boundary=b",
    )
    assert (answer.status_code, answer.json()["error"]) == (413, "too_large")


def test_a_line_too_long_is_put_aside_and_the_rest_lands(empty_hub: LiveHub) -> None:
    content = b"product_id\n" + b"1" * 3_000_000 + b"\n2\n"
    assert empty_hub.upload("product_catalog", "p.csv", content).status_code == 201
    assert records(empty_hub) == {3: {"product_id": "2"}}
    assert [q["reason"] for q in quarantined(empty_hub)] == ["line_too_long"]


def test_a_name_cannot_lead_out_of_the_store(empty_hub: LiveHub, tmp_path: Path) -> None:
    answer = empty_hub.upload("product_catalog", "../../evil\\..\\p.csv", b"product_id\n1\n")
    assert answer.json()["file"]["name"] == "p.csv"
    places = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert all(p.is_relative_to(tmp_path / "storage" / "sha256") for p in places)


def test_the_parser_gets_no_secret_of_the_hub(
    empty_hub: LiveHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    seen: list[dict[str, str]] = []
    run = subprocess.run

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(options["env"])
        return run(*args, **options)

    monkeypatch.setenv("SCOUT_DATABASE_DSN", "secret")
    monkeypatch.setattr(subprocess, "run", watched)
    assert empty_hub.upload("product_catalog", "p.csv", b"product_id\n1\n").status_code == 201
    (env,) = seen
    assert "secret" not in env.values()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.lists(
            st.text(
                st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20
            ),
            min_size=2,
            max_size=2,
        ),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_a_csv_writer_writes_comes_back(empty_hub: LiveHub, rows: list[list[str]]) -> None:
    import csv

    sink = io.StringIO()
    writer = csv.writer(sink, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["product_id", "text"])
    writer.writerows(rows)
    with psycopg.connect(empty_hub.dsn) as connection:
        connection.execute("truncate bronze.product_catalog, metadata.quarantine")
        connection.execute("delete from metadata.files")
    answer = empty_hub.upload("product_catalog", "p.csv", sink.getvalue().encode())
    assert answer.status_code == 201, answer.text
    # a line's end is CR LF or LF, within quotes too
    wanted = [[field.replace("\r\n", "\n") for field in row] for row in rows]
    landed = [[r["product_id"], r["text"]] for r in records(empty_hub).values()]
    assert [_plain(r) for r in landed] == [_plain(r) for r in wanted]
    assert quarantined(empty_hub) == []


def _plain(row: list[str]) -> list[str]:
    return [field.replace("\r", "") for field in row]


def test_the_store_keeps_whole_files_only(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with pytest.raises(TooLargeError), store.receive(io.BytesIO(b"12345"), at_most_bytes=4):
        pass
    with store.receive(io.BytesIO(b"1234"), at_most_bytes=4) as incoming:
        key = incoming.keep()
    with store.open(key) as file:
        assert file.read() == b"1234"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / key]


def test_a_hundred_thousand_lines_land_in_seconds(empty_hub: LiveHub) -> None:
    lines = [f"{i},p{i},{i % 30}" for i in range(116_000)]
    content = ("coupon_upc,product_id,campaign_id\n" + "\n".join(lines) + "\n").encode()
    started = dt.datetime.now(dt.UTC)
    answer = empty_hub.upload("campaign_data", "coupons.csv", content)
    seconds = (dt.datetime.now(dt.UTC) - started).total_seconds()
    assert answer.json()["file"]["rows"] == 116_000
    assert seconds < 30, json.dumps(answer.json())
