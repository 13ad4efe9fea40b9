"""The judgement of the fault harness can fail: each broken promise is named, and nothing else."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from tests.system.chaos import link, plan
from tests.system.chaos.account import Gap, Held, Row, Verdict, judge
from tests.system.chaos.feeder import Told, document_id, document_instant, instant

LABEL = "s1-d1a1"


def told() -> Told:
    """Six readings and three documents, accepted in this order; one of each without an OK."""
    return Told(
        LABEL,
        f"chaos.{LABEL}",
        documents=[7, 8, 9],
        readings=[1, 2, 3, 4, 5, 6],
        unsure_documents={10},
        unsure_readings={11},
    )


def held() -> Held:
    """All of it, readings at sequences 1 to 6 and documents at 7 to 9 of stream 1."""
    return Held(
        documents={document_id(LABEL, n): [Row(1, n, document_instant(n))] for n in (7, 8, 9)},
        readings={f"chaos.{LABEL}": {n: [Row(1, n, instant(n))] for n in range(1, 7)}},
    )


def judged(found: Held, *reasons: str, extent_unknown: bool = False) -> Verdict:
    return judge("s1-d1", [told()], found, reasons=reasons, extent_unknown=extent_unknown)


def without(*readings: int) -> Held:
    found = held()
    for number in readings:
        del found.readings[f"chaos.{LABEL}"][number]
    return found


def test_what_is_there_once_is_right() -> None:
    verdict = judged(held())
    assert verdict.right
    assert (verdict.told, verdict.given_up) == (9, 0)


def test_what_was_told_ok_and_is_not_there_is_lost() -> None:
    assert judged(without(3)).lost == [f"reading {LABEL} 3"]
    found = held()
    del found.documents[document_id(LABEL, 8)]
    assert judged(found).lost == [f"document {LABEL} 8"]


def test_what_is_there_twice_is_doubled_also_when_nobody_said_ok() -> None:
    found = held()
    found.documents[document_id(LABEL, 8)].append(Row(2, 1, document_instant(8)))
    found.documents[document_id(LABEL, 10)] = [Row(1, 10, document_instant(10))] * 2
    assert [text.split(" (")[0] for text in judged(found).doubled] == [
        f"document {LABEL} 8",
        f"document {LABEL} 10",
    ]


def test_what_was_never_told_ok_may_be_there_once() -> None:
    found = held()
    found.readings[f"chaos.{LABEL}"][11] = [Row(1, 11, instant(11))]
    assert judged(found).right


def test_what_nobody_gave_is_wrong() -> None:
    found = held()
    found.readings[f"chaos.{LABEL}"][12] = [Row(1, 12, instant(12))]
    found.documents["another"] = [Row(1, 13, None)]
    assert len(judged(found).wrong) == 2


@pytest.mark.parametrize(
    "gap, right",
    [
        (Gap(1, 3, 2, 2, "damaged"), True),
        (Gap(1, 3, 1, 1, "damaged"), False),  # declares one of two
        (Gap(1, 3, 2, 1, "damaged"), False),  # the hub held one of them
        (Gap(1, 5, 2, 2, "damaged"), False),  # elsewhere
        (Gap(2, 3, 2, 2, "damaged"), False),  # in another stream
    ],
)
def test_a_loss_is_declared_only_between_its_neighbours(gap: Gap, right: bool) -> None:
    verdict = judged(dataclasses.replace(without(3, 4), gaps=[gap]), "damaged")
    assert verdict.right == right
    assert verdict.given_up == (2 if right else 2 - len(verdict.lost))


def test_the_gap_of_an_unsealed_row_stands_in_front_of_those_it_waited_with() -> None:
    gap = Gap(1, 5, 2, 2, "damaged")
    found = dataclasses.replace(without(), gaps=[gap], segments={1: [1, 5, 7]})
    del found.documents[document_id(LABEL, 8)], found.documents[document_id(LABEL, 9)]
    assert judged(found, "damaged").given_up == 2
    found.segments = {1: [1, 5, 6]}
    assert judged(found, "damaged").lost
    found.gaps = [Gap(1, 3, 2, 2, "damaged")]
    found.segments = {1: [1, 3, 5, 7]}  # another kind was sealed with it, and stands between
    assert judged(found, "damaged").given_up == 2
    found.segments = {1: [1, 3, 5, 6, 7]}
    assert judged(found, "damaged").given_up == 2
    found.gaps = [Gap(1, 2, 2, 2, "damaged")]
    found.segments = {1: [1, 2, 4, 5, 6, 7]}
    assert judged(found, "damaged").lost


def test_of_several_unsealed_rows_each_gap_stands_there() -> None:
    gaps = [Gap(1, 3, 2, 2, "damaged"), Gap(1, 5, 2, 2, "damaged")]
    found = dataclasses.replace(without(5, 6), gaps=gaps, segments={1: [1, 3, 5, 7]})
    del found.documents[document_id(LABEL, 8)], found.documents[document_id(LABEL, 9)]
    assert judged(found, "damaged").given_up == 4
    found.segments = {1: [1, 3, 4, 7]}
    assert judged(found, "damaged").right
    found.gaps[1] = Gap(1, 4, 2, 2, "damaged")
    assert judged(found, "damaged").lost


def test_a_gap_declares_its_records_once() -> None:
    found = dataclasses.replace(without(2, 5), gaps=[Gap(2, 1, 1, 1, "damaged")])
    found.readings[f"chaos.{LABEL}"][3] = [Row(2, 9, instant(3))]
    found.readings[f"chaos.{LABEL}"][4] = [Row(3, 1, instant(4))]
    assert "2 records are missing where 1 were given up" in judged(found, "damaged").lost[0]
    verdict = judged(found, "damaged", extent_unknown=True)
    assert verdict.right
    assert (verdict.given_up, verdict.unknown_extent) == (1, 1)


def test_a_gap_that_nothing_led_to_is_wrong() -> None:
    found = dataclasses.replace(without(3), gaps=[Gap(1, 3, 1, 1, "damaged")])
    assert judged(found, "damaged").right
    assert "which nothing here led to" in judged(found, "thin").wrong[0]


def test_the_end_of_a_file_of_unknown_extent_is_counted_apart() -> None:
    verdict = judged(without(5, 6), extent_unknown=True)
    assert verdict.right
    assert verdict.unknown_extent == 2


def test_the_hub_may_say_that_it_misses_what_a_damaged_file_could_not_name() -> None:
    found = dataclasses.replace(without(5, 6), remainder=2)
    verdict = judged(found, extent_unknown=True)
    assert verdict.right
    assert verdict.seen == 2
    assert not judged(found).right
    assert not judged(dataclasses.replace(found, remainder=3), extent_unknown=True).right


@pytest.mark.parametrize("observed", [None, instant(2) + dt.timedelta(hours=1)])
def test_a_time_that_no_source_gave_is_wrong(observed: dt.datetime | None) -> None:
    found = held()
    found.readings[f"chaos.{LABEL}"][2] = [Row(1, 2, observed)]
    assert "has the time" in judged(found).wrong[0]
    found = held()
    assert document_instant(7) is None
    found.documents[document_id(LABEL, 7)] = [Row(1, 7, instant(7))]
    assert "given was None" in judged(found).wrong[0]


@pytest.mark.parametrize(
    "wrong", [{"remainder": 1}, {"in_transit": 1}, {"quarantined": ["1 record: overlap"]}]
)
def test_an_account_that_does_not_add_up_is_wrong(wrong: dict[str, object]) -> None:
    assert not judged(dataclasses.replace(held(), **wrong)).right  # type: ignore[arg-type]


# -- plan and link --------------------------------------------------------------------------------


def test_a_seed_gives_one_plan_and_schedules_differ() -> None:
    plans = [plan.make(plan.seed_of(1, number)) for number in range(60)]
    assert plans == [plan.make(one.seed) for one in plans]
    assert len(set(map(str, plans))) == 60
    assert {kind for one in plans for kind in one.kinds} == set(plan.CLASSES)


def test_what_is_left_out_changes_nothing_else() -> None:
    one = plan.make(plan.seed_of(1, 3))
    rest = one.only(set(plan.CLASSES) - {one.faults[0].kind})
    assert rest.devices == one.devices
    assert set(rest.faults) < set(one.faults)


def test_a_stream_is_split_at_the_boundaries_of_its_packets() -> None:
    long = b"\x32\x80\x01" + bytes(128)
    packets = [b"\xc0\x00", long, b"\x40\x02\x00\x01"]
    splitter = link.Splitter()
    found = [p for byte in b"".join(packets) for p in splitter.feed(bytes([byte]))]
    assert found == packets
    assert [link.is_publish(packet) for packet in packets] == [False, True, False]
