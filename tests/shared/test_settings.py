from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scout_shared import settings
from scout_shared.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    host: str = "localhost"
    port: int = 1883
    seconds: float = 1.5
    on: bool = False
    file: Path | None = None
    names: tuple[str, ...] = ()
    password: str = settings.secret("SCOUT_TEST_PASSWORD")


@dataclass(frozen=True)
class Outer:
    device: str
    mqtt: Inner = field(default_factory=Inner)


def decode(document: dict[str, Any], **environ: str) -> Outer:
    return settings.decode(Outer, document, environ)


def test_a_file_is_decoded_with_defaults_and_secrets(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('device = "d"\n[mqtt]\nport = 1\nseconds = 2\nfile = "~/a"\nnames = ["x"]\n')
    loaded = settings.load(Outer, path, {"SCOUT_TEST_PASSWORD": "hidden"})
    assert loaded == Outer(
        "d", Inner("localhost", 1, 2.0, False, Path("~/a").expanduser(), ("x",), "hidden")
    )
    assert "hidden" not in repr(loaded)


def test_the_secret_of_a_section_that_the_file_does_not_have_is_read_too() -> None:
    assert decode({"device": "d"}, SCOUT_TEST_PASSWORD="s").mqtt.password == "s"


@pytest.mark.parametrize(
    "document, message, hint",
    [
        ({"device": "d", "mqt": {}}, "unknown key 'mqt'", "'mqtt'"),
        ({"device": "d", "mqtt": {"prot": 1}}, "mqtt: unknown key 'prot'", "'port'"),
        ({"device": "d", "mqtt": {"zzz": 1}}, "unknown key 'zzz'", "known keys: host"),
        ({"device": "d", "mqtt": {"port": "1"}}, "mqtt: port must be a whole number, not '1'", ""),
        ({"device": "d", "mqtt": {"port": True}}, "must be a whole number, not True", ""),
        ({"device": "d", "mqtt": {"seconds": True}}, "must be a number, not True", ""),
        ({"device": "d", "mqtt": {"on": 1}}, "must be true or false, not 1", ""),
        ({"device": "d", "mqtt": 5}, "mqtt must be a table, not 5", ""),
        ({"device": "d", "mqtt": {"names": "x"}}, "must be a list", ""),
        ({"device": "d", "mqtt": {"names": [1]}}, r"names\[0\] must be a text in quotes", ""),
        ({"device": "d", "mqtt": {"password": "x"}}, "secret", "SCOUT_TEST_PASSWORD"),
        ({}, "'device' must be set", ""),
    ],
)
def test_a_wrong_setting_is_named(document: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        decode(document)
    assert hint in caught.value.hint


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for content in (None, b"a = = 1", b"\xff"):
        path = tmp_path / "x.toml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"x\.toml"):
            settings.load(Outer, path, {})


@pytest.mark.parametrize(
    "content, message",
    [
        ("port = 1".encode("utf-16"), "is not UTF-8: byte 0xff at position"),
        (b"port = 1\nport = 2\n", "is not TOML: Cannot overwrite a value"),
        (b"port = " + b"9" * 5000, "is not TOML: Exceeds the limit"),
        (b"port = " + b"[" * 5000, "is not TOML: maximum recursion depth"),
        (b"port = 1\0", "is not TOML"),
    ],
    ids=["utf-16", "a key twice", "huge integer", "deep", "nul"],
)
def test_a_file_that_is_no_toml_is_a_message(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        settings.load(Inner, file)
    assert caught.value.hint


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(b"\xef\xbb\xbfport = 1\n")
    assert settings.load(Inner, file).port == 1
