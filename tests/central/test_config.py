"""The hub's settings and command line: what is wrong is said, with what to do about it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from scout_central import cli, config, hub
from scout_shared import settings
from scout_shared.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHA256 = "0" * 64


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """cli.main sets up logging to the stderr of its test."""
    yield
    structlog.reset_defaults()


def load(tmp_path: Path, text: str, **environ: str) -> config.Settings:
    path = tmp_path / "hub.toml"
    path.write_text(text, "utf-8")
    return config.load(path, environ)


def test_the_sample_says_the_defaults() -> None:
    assert config.load(ROOT / "deploy" / "samples" / "hub.toml", {}) == config.load(None, {})


def test_the_sample_names_every_setting() -> None:
    text = (ROOT / "deploy" / "samples" / "hub.toml").read_text("utf-8")
    # What is commented out is a setting or a table; what is not is prose.
    everything = tomllib.loads(re.sub(r"^# (?=\w+ = |\[\[)", "", text, flags=re.MULTILINE))
    decoded = settings.decode(config.Settings, everything, {})
    assert decoded.api.tokens[0].sees("any store")
    assert decoded.mqtt.ca_file is not None


def test_secrets_come_from_the_environment_only(tmp_path: Path) -> None:
    loaded = load(tmp_path, "", SCOUT_DATABASE_DSN="dbname=x", SCOUT_MQTT_PASSWORD="secret")
    assert loaded.database_dsn() == "dbname=x"
    assert loaded.mqtt.password == "secret"
    assert "secret" not in repr(loaded)
    with pytest.raises(ConfigError, match="secret"):
        load(tmp_path, '[mqtt]\npassword = "x"')


@pytest.mark.parametrize(
    "text",
    [
        "[mqtt]\nport = 0",
        "[api]\nport = 70000",
        "[ingest]\nqueue_bytes = 1000",
        "[ingest]\ncommitters = 0",
        '[ingest]\nshare_group = "a/b"',
        '[log]\nlevel = "loud"',
        f'[[api.tokens]]\nname = "x"\nrole = "king"\nsha256 = "{SHA256}"',
        '[[api.tokens]]\nname = "x"\nsha256 = "abc"',
        f'[[api.tokens]]\nname = "x"\nstores = ["a/b"]\nsha256 = "{SHA256}"',
        f'[[api.tokens]]\nname = "x"\nsha256 = "{SHA256}"\n' * 2,
        "[ingset]\n",
    ],
)
def test_a_wrong_value_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, text)


def test_data_never_goes_into_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert config.default_directory({}) == Path("/var/lib/scout")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert config.default_directory({"XDG_DATA_HOME": "/data"}) == Path("/data/scout")
    assert config.default_directory({"XDG_DATA_HOME": "here"}).is_absolute()


def test_a_made_token_is_admitted_by_what_was_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["token", "--name", "Ana", "--role", "operator", "--store", "367"]) == 0
    printed = capsys.readouterr().out
    token = printed.splitlines()[1].removeprefix("# ")
    (admitted,) = load(tmp_path, printed).api.tokens
    assert (admitted.name, admitted.role) == ("Ana", "operator")
    assert admitted.sees("367")
    assert not admitted.sees("368")
    assert admitted.matches(token)
    assert not admitted.matches(token + "x")


def test_check_config_hides_secrets_and_speaks_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOUT_DATABASE_DSN", "password=hidden")
    assert cli.main(["check-config", "--json"]) == 0
    printed = capsys.readouterr().out
    assert "hidden" not in printed
    assert json.loads(printed)["database"]["dsn"] == "set"


def test_a_wrong_setting_exits_with_2_and_a_hint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "hub.toml"
    path.write_text("[mqqt]\n")
    assert cli.main(["--config", str(path), "version"]) == 2
    assert "did you mean 'mqtt'" in capsys.readouterr().err


def test_a_database_that_is_not_there_exits_with_75(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOUT_DATABASE_DSN", "host=127.0.0.1 port=1 dbname=x")
    assert cli.main(["migrate"]) == 75
    assert "not available" in capsys.readouterr().err


def test_a_task_that_fails_is_started_again_and_a_wrong_setting_ends_the_service() -> None:
    calls: list[str] = []

    def fails_once(stop: object) -> None:
        calls.append("called")
        if len(calls) == 1:
            raise RuntimeError("a defect")
        raise ConfigError("a wrong setting")

    with hub.Supervisor({"task": fails_once}) as supervisor:
        assert supervisor.ended.wait(10)
    assert str(supervisor.failure) == "a wrong setting"
    assert len(calls) == 2
