"""The feed before the real API: what it had stays, with its age, whatever happens."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from scout_console import sheets, views
from scout_console.client import NotFoundError, NotPermittedError, NotSignedInError
from scout_console.feed import Feed
from scout_console.values import Clock, Nothing, Tone
from scout_shared.errors import TransientError
from tests.console.answers import NOW, overview
from tests.console.world import NARROW_TOKEN, World

CLOCK = Clock("Asia/Manila")


def test_eight_stores_are_well_and_everything_adds_up(world: World) -> None:
    feed = world.feed()
    head = views.headline(feed.overview(), feed.fleet(), feed.tables(), CLOCK)
    assert head.sentence == (
        "8 of 8 stores online; everything adds up: 134,400 produced = 134,400 landed"
        " + 0 duplicate + 0 quarantined + 0 excluded"
    )
    assert (head.word, head.concerns) == ("ok", ())


def test_each_thing_that_breaks_is_told(world: World) -> None:
    world.dark("343", 12)
    world.lose("367", 37)
    world.quarantine("406", 12)
    world.fail()
    feed = world.feed()
    head = views.headline(feed.overview(), feed.fleet(), feed.tables(), CLOCK)
    assert head.word == "degraded"
    assert head.stores == "7 of 8 stores online; store 343 dark for 12 min"
    assert head.records.startswith("does not add up, 37 documents missing: 134,488 produced = ")
    told = [c.text for c in head.concerns]
    assert told[:2] == ["records do not add up: 37 documents missing", "store 343 dark for 12 min"]
    assert "12 records in quarantine, not yet judged" in told
    assert any(text.startswith("gold.product_store_day: last run failed") for text in told)


def test_what_a_dark_device_said_is_grey_with_its_age(world: World) -> None:
    world.dark("343", 12)
    seen = world.feed().fleet()
    assert seen.value is not None
    sheet = sheets.fleet(seen.value.devices, CLOCK, seen.now)
    names = [column.name for column in sheet.columns]
    first = dict(zip(names, sheet.lines[0].cells, strict=True))
    assert first["Store"].text == "343"
    assert first["Backlog"].text == "88 (12 min old)"
    assert first["Backlog"].tone is Tone.QUIET
    assert first["Clock skew"].nothing is Nothing.STALE
    live = dict(zip(names, sheet.lines[1].cells, strict=True))
    assert live["Backlog"].nothing is Nothing.ZERO


def test_the_last_answer_outlives_the_hub(world: World) -> None:
    feed = world.feed()
    before = feed.overview()
    assert before.value is not None
    assert before.failure is None
    world.close_hub()
    after = feed.overview()
    assert after.value == before.value
    assert after.stale
    assert after.away
    assert isinstance(after.failure, TransientError)
    assert after.now == after.value.as_of
    assert feed.runs().value is None


def test_a_failure_of_one_question_is_not_waited_for_again_by_the_others(world: World) -> None:
    world.close_hub()
    client = world.client()
    feed = Feed(client, hold_seconds=60)
    first = feed.overview()
    client.close()  # from here on, a request would raise another error
    assert feed.fleet().failure is first.failure


def test_a_token_of_one_store_sees_one_store(world: World) -> None:
    seen = world.feed(NARROW_TOKEN).fleet()
    assert seen.value is not None
    assert [d.store_id for d in seen.value.devices] == ["343"]


def test_what_may_not_be_seen_any_more_is_not_kept(world: World) -> None:
    for failure in (NotSignedInError, NotPermittedError, NotFoundError):
        feed = Feed(world.client(), hold_seconds=0)
        assert feed.ask("question", overview).value is not None

        def refuse(kind: type[NotPermittedError] = failure) -> None:  # type: ignore[assignment]
            raise kind("no", "")

        seen = feed.ask("question", refuse)  # type: ignore[type-var]
        assert seen.value is None
        assert isinstance(seen.failure, failure)


def test_many_screens_ask_the_hub_once(world: World) -> None:
    feed = Feed(world.client(), hold_seconds=60)
    asked: list[int] = []
    together = threading.Barrier(8)

    def fetch() -> object:
        asked.append(1)
        return overview()

    def look() -> object:
        together.wait()
        return feed.ask("question", fetch).value  # type: ignore[type-var]

    with ThreadPoolExecutor(8) as pool:
        assert all(future.result() for future in [pool.submit(look) for _ in range(8)])
    assert len(asked) == 1


def test_ages_go_on_while_the_hub_answers() -> None:
    now = [100.0]
    feed = Feed(_NoClient(), hold_seconds=60, monotonic=lambda: now[0])  # type: ignore[arg-type]
    feed.ask("question", overview)
    now[0] += 9
    seen = feed.ask("question", overview)
    assert seen.age_seconds == 9
    assert (seen.now - NOW).total_seconds() == 9


class _NoClient:
    """Never asked: the answers of this test are made by hand."""
