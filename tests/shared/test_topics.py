import pytest

from scout_shared import topics
from scout_shared.errors import ConfigError, WireError


def test_a_topic_is_taken_apart_as_it_was_put_together() -> None:
    topic = topics.up("store-7", "pos.1", topics.DATA)
    assert topic == "edge/1/store-7/pos.1/up/d"
    assert topics.parse_up(topic) == ("store-7", "pos.1", "d")


def test_receipts_are_heard_on_the_filter() -> None:
    receipt = topics.receipt("s", "d", b"\x01" * 16)
    assert receipt == "edge/1/s/d/dn/ack/" + "01" * 16
    assert topics.receipts("s", "d") == receipt.rpartition("/")[0] + "/+"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edge/1/s/d/up",
        "edge/2/s/d/up/d",
        "edge/1/s/d/dn/ack",
        "edge/1//d/up/d",
        "edge/1/s/+/up/d",
        "edge/1/s/d/up/d/x",
        "other/1/s/d/up/d",
    ],
)
def test_a_foreign_topic_is_refused(topic: str) -> None:
    with pytest.raises(WireError) as caught:
        topics.parse_up(topic)
    assert caught.value.reason == "bad_topic"


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "x" * 65, ".a", "ñ", "a\n", "$SYS"])
def test_a_name_with_a_meaning_in_mqtt_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device id"):
        topics.check_name("device id", name)


def test_a_good_name_is_given_back() -> None:
    assert topics.check_name("device id", "Store_7.pos-1") == "Store_7.pos-1"
