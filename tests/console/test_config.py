from __future__ import annotations

from pathlib import Path

import pytest

from scout_console import config
from scout_shared.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "deploy" / "samples" / "console.toml"


def test_the_sample_is_right_and_shows_the_defaults() -> None:
    found = config.load(SAMPLE, {"SCOUT_HUB_TOKEN": "secret"})
    assert found.hub.token == "secret"
    assert found.web == config.Web()
    assert found.screen == config.Screen(environment="production")


def test_settings_reach_another_process_without_the_token_among_them() -> None:
    found = config.load(SAMPLE, {"SCOUT_HUB_TOKEN": "secret"})
    environ = config.to_environment(found)
    assert config.from_environment(environ) == found
    assert [name for name, value in environ.items() if "secret" in value] == ["SCOUT_HUB_TOKEN"]
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ('[hub]\nurl = "127.0.0.1:8700"', "no web address"),
        ('[hub]\ntoken = "secret"', "secret"),
        ("[hub]\ntimeout_seconds = 0", "timeout_seconds"),
        ('[screen]\nzone = "Manila"', "not known"),
        ("[screen]\nrefresh_seconds = 0.1", "refresh_seconds"),
        ("[web]\nport = 0", "does not exist"),
        ("[web]\nprot = 1", "unknown key 'prot'"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "console.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        config.load(path, {})
