import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from scout_edge import config
from scout_shared.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "deploy" / "samples" / "edge.toml"
DEVICE = '[device]\nid = "d"\nstore = "s"\nzone = "Asia/Manila"\n'


def load(tmp_path: Path, text: str, **environ: str) -> config.EdgeSettings:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return config.load(path, environ)


def test_the_sample_is_right_and_shows_the_defaults(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^# (?=(id|store|zone|host|port|tls) = )", "", SAMPLE.read_text())
    sample = load(tmp_path, text)
    defaults = load(tmp_path, DEVICE)
    for section in ("buffer", "mqtt", "http", "system", "remote"):
        assert getattr(sample, section) == getattr(defaults, section), section
    sections = tomllib.loads(SAMPLE.read_text())
    assert sections.keys() == {field.name for field in dataclasses.fields(sample)}
    text = SAMPLE.read_text()
    for part in dataclasses.fields(sample):
        if part.name == "sources":
            continue
        for field in dataclasses.fields(getattr(sample, part.name)):
            if "variable" not in field.metadata:
                assert f"{field.name} = " in text, f"the sample does not show {field.name}"


def test_the_password_comes_from_the_environment_and_is_not_shown(tmp_path: Path) -> None:
    loaded = load(tmp_path, DEVICE, SCOUT_MQTT_PASSWORD="hidden")
    assert loaded.mqtt.password == "hidden"
    assert "hidden" not in repr(loaded) + str(config.as_dict(loaded))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "'id', 'store', 'zone' must be set"),
        ('[device]\nid = "d"\nstore = "s"\n', "'zone' must be set"),
        (DEVICE.replace("Manila", "Manilla"), "Asia/Manilla"),
        (DEVICE.replace('"d"', '"a/b"'), "id 'a/b'"),
        (DEVICE.replace('"s"', '"+"'), "store '\\+'"),
        (DEVICE + "[mqtt]\nversion = '4'\n", "version '4'"),
        (DEVICE + "[mqtt]\ntransport = 'unix'\n", "transport 'unix'"),
        (DEVICE + "[mqtt]\nwebsocket_path = 'mqtt'\n", "websocket_path 'mqtt'"),
        (DEVICE + "[mqtt]\nlive_share_ratio = 1.5\n", "live_share_ratio 1.5"),
        (DEVICE + "[mqtt]\nsilence_seconds = 0\n", "silence_seconds 0"),
        (DEVICE + "[mqtt]\nport = 70000\n", "port 70000"),
        (DEVICE + "[mqtt]\nheartbeat_seconds = 0\n", "heartbeat_seconds 0"),
        (DEVICE + "[mqtt]\nheartbeat_seconds = nan\n", "heartbeat_seconds nan"),
        (DEVICE + "[mqtt]\npassword = 'x'\n", "secret"),
        (DEVICE + "[mqtt]\nhosts = 'x'\n", "unknown key 'hosts'"),
        (DEVICE + "[buffer]\nmax_bytes = 1000\n", "max_bytes 1000"),
        (DEVICE + "[log]\nlevel = 'loud'\n", "level 'loud'"),
        (DEVICE + "[http]\nport = -1\n", "port -1"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)
