"""The installer, run for real below a prefix: install, use, upgrade, remove."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.edge_agent.records import ZONE
from tests.edge_agent.test_cli import fetch
from tests.harness.process import Process
from tests.harness.waiting import free_port

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy/install-edge.sh"
SALE = b'{"type":"transaction","observed_at":"2026-11-23T08:15:00+08:00","body":{"n":1}}'

pytestmark = pytest.mark.slow  # a Python environment is made each time


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that a device needs, as it would be carried to a store."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    ours = [ROOT / "shared", ROOT / "edge_agent"]
    # Built in a copy: the workspace stays as it is.
    copies = tmp_path_factory.mktemp("source")
    for source in ours:
        subprocess.run(["cp", "-R", source, copies], check=True)
    made = [str(copies / source.name) for source in ours]
    command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run([*command, *made], check=True)
    command = [*pip, "download", "--require-hashes", "--only-binary", ":all:", "-d", str(folder)]
    done = subprocess.run(
        [*command, "-r", str(ROOT / "requirements/edge.txt")], capture_output=True, check=False
    )
    if done.returncode:
        reason = f"the packages of requirements/edge.txt cannot be had: {done.stderr[-300:]!r}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


def script(*arguments: object, offline: bool = True) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if offline:
        environ["PIP_NO_INDEX"] = "1"
    command = ["sh", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env=environ
    )


def edge(prefix: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The installed command, with nothing of this checkout on its path."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(prefix / "usr/local/bin/scout-edge"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environ, cwd="/"
    )


def test_help_and_wrong_options_change_nothing(tmp_path: Path) -> None:
    shown = script("--help")
    assert shown.returncode == 0
    assert "--discard-unsent" in shown.stdout
    for options in (["--prefx", tmp_path], ["--prefix"], ["--purge", "--prefix", tmp_path]):
        done = script(*options)
        assert done.returncode == 2
        assert "hint: see --help" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_install_upgrade_and_removal_keep_the_buffer(
    wheels: Path, tmp_path: Path, processes: Callable[..., Process]
) -> None:
    prefix = tmp_path / "card"
    install = ("--prefix", prefix, "--wheels", wheels, "--python", sys.executable)
    done = script(*install)
    assert done.returncode == 0, done.stderr
    assert edge(prefix, "version").stdout.startswith("scout-edge ")
    settings, secrets = prefix / "etc/scout/edge.toml", prefix / "etc/scout/edge.env"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.stat().st_mode) == 0o640
    checked = edge(prefix, "check-config", "--config", settings)
    assert (checked.returncode, "enrol the device" in checked.stderr) == (2, True)
    unit = (prefix / "etc/systemd/system/scout-edge.service").read_text()
    assert "Type=notify" in unit

    data = prefix / "var/lib/scout"
    settings.write_text(
        f'[device]\nid = "till-9"\nstore = "store-7"\nzone = "{ZONE}"\n'
        f'[buffer]\npath = "{data}/edge.db"\n[mqtt]\nport = {free_port()}\n'
        f"[http]\nport = {free_port()}\n[system]\nenabled = false\n"
    )
    agent = processes([prefix / "usr/local/bin/scout-edge", "run", "--config", settings])
    agent.wait_for_output("door.opened")
    assert fetch(settings, "/v1/documents", SALE)["accepted"] == 1
    assert agent.terminate() == 0

    before, mine = (prefix / "opt/scout/current").readlink(), settings.read_text()
    secrets.write_text("# of this device\nSCOUT_MQTT_PASSWORD='a b'\n")
    (tmp_path / "empty").mkdir()
    failed = script(*install[:2], "--wheels", tmp_path / "empty", "--python", sys.executable)
    assert failed.returncode == 2
    assert "nothing was changed" in failed.stderr
    assert (prefix / "opt/scout/current").readlink() == before
    assert edge(prefix, "version").returncode == 0
    assert len(list((prefix / "opt/scout/releases").iterdir())) == 1

    for _ in range(2):
        done = script(*install)
        assert done.returncode == 0, done.stderr
    assert (prefix / "opt/scout/current").readlink() != before
    assert len(list((prefix / "opt/scout/releases").iterdir())) == 2, "this one and the one before"
    assert settings.read_text() == mine
    assert "'a b'" in secrets.read_text()
    assert _backlog(prefix, settings) == 1

    done = script("--uninstall", "--prefix", prefix)
    assert done.returncode == 0, done.stderr
    assert not (prefix / "opt/scout").exists()
    assert not (prefix / "usr/local/bin/scout-edge").exists()
    assert (data / "edge.db").exists()
    assert script(*install).returncode == 0
    assert _backlog(prefix, settings) == 1

    refused = script("--uninstall", "--purge", "--prefix", prefix)
    assert refused.returncode == 2
    assert f"1 records in {data}/edge.db are not confirmed by the hub" in refused.stderr
    assert edge(prefix, "version").returncode == 0, "a refused removal removed something"
    assert (data / "edge.db.ballast").exists()
    (data / "edge.db.damaged-1").write_bytes(b"kept for the engineer")
    (data / "edge.db.forked-0123456789abcdef").write_bytes(b"common to two copies")
    (data / "somebody-elses").write_text("stays")
    done = script("--uninstall", "--purge", "--discard-unsent", "--prefix", prefix)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in data.iterdir()] == ["somebody-elses"]
    assert not (prefix / "etc/scout").exists()


def _backlog(prefix: Path, settings: Path) -> int:
    shown = json.loads(edge(prefix, "status", "--json", "--config", settings).stdout)
    return int(shown["backlog_records"])
