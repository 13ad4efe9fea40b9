"""The doctor against real brokers, certificates, disks and files, each broken for real."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scout_edge.buffer import Buffer
from scout_edge.config import MqttSettings, load
from scout_edge.doctor import device, examine, finding, not_tried, route
from tests.edge_agent.hub import Hub
from tests.edge_agent.records import ZONE, documents, readings
from tests.edge_agent.test_cli import SCOUT_EDGE, fetch, run, write
from tests.harness.process import Process
from tests.harness.servers import Address, require
from tests.harness.tls import Authority, Issued
from tests.harness.waiting import eventually, free_port, listens

PASSWORD = "store-secret"
ACL = """\
pattern write edge/1/+/%u/up/#
pattern read edge/1/+/%u/dn/#
user hub
topic read edge/1/+/+/up/#
topic write edge/1/+/+/dn/#
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


def levels(config: Path, **environ: str) -> dict[str, finding.Finding]:
    """What the doctor says in this process, by check."""
    found = list(examine(load(config, environ), seconds=5))
    assert len({f.check for f in found}) == len(found), "each check is named once"
    for one in found:
        assert "\n" not in str(one), "a finding is one line"
        assert bool(one.next_step) == (one.level != finding.OK), one
    return {one.check: one for one in found}


def bad(found: dict[str, finding.Finding]) -> dict[str, str]:
    return {check: f.level for check, f in found.items() if f.level != finding.OK}


def made_buffer(folder: Path, count: int = 50) -> None:
    with Buffer(folder / "data" / "edge.db", zone=ZONE) as buffer:
        buffer.append_documents(documents(buffer, count))
        buffer.seal()


@pytest.fixture
def secured(
    processes: Callable[..., Process], tmp_path: Path, authority: Authority
) -> Callable[..., int]:
    """mosquitto with TLS, accounts and our access list; returns its TLS port."""

    def start(
        issued: Issued | None = None, *, client_ca: Path | None = None, acl: str = ACL
    ) -> int:
        program = require("mosquitto")
        issued = issued or authority.issue("localhost", alternative="DNS:localhost")
        passwords, rules = tmp_path / "passwd", tmp_path / "acl"
        passwords.write_text("")
        for user in ("pos-1", "hub"):
            command = [require("mosquitto_passwd"), "-b", str(passwords), user, PASSWORD]
            subprocess.run(command, check=True, capture_output=True)
        rules.write_text(acl)
        port = free_port()
        conf = tmp_path / "mosquitto.conf"
        client = f"cafile {client_ca}\nrequire_certificate true\n" if client_ca else ""
        conf.write_text(
            f"user root\nlistener {port}\ncertfile {issued.certificate}\nkeyfile {issued.key}\n"
            f"{client}allow_anonymous false\npassword_file {passwords}\nacl_file {rules}\n"
        )
        processes([program, "-c", conf]).wait_for_port(port)
        return port

    return start


def tls_config(
    folder: Path, port: int, ca: Path | None, *more: str, host: str = "localhost"
) -> Path:
    config = write(folder, port)
    lines = [f'host = "{host}"', "tls = true", *more]
    if ca is not None:
        lines.append(f'tls_ca = "{ca}"')
    config.write_text(config.read_text().replace("[mqtt]\n", "[mqtt]\n" + "\n".join(lines) + "\n"))
    return config


# -- all is well ------------------------------------------------------------------------------


async def test_without_an_agent_the_hub_is_asked_by_the_doctor_itself(
    broker: Address, tmp_path: Path
) -> None:
    made_buffer(tmp_path)
    config = write(tmp_path, broker.port)
    hub = Hub()
    async with hub.running(*broker):
        done = await asyncio.to_thread(run, "doctor", "--json", "--config", config)
        assert done.returncode == 0, done.stdout
        assert len(hub.hellos) == 1
        assert (hub.hellos[0].next_sequence, hub.hellos[0].acked) == (51, 0)
        assert not hub.statuses, "the doctor is not the device coming or going"
        assert not hub.segments
        again = await asyncio.to_thread(levels, config)
    shown = json.loads(done.stdout)
    assert shown["failed"] == 0
    assert shown["not_tried"] == []
    found = {f["check"]: f for f in shown["findings"]}
    assert found["agent"]["level"] == "warn", "nothing is broken, but no agent runs"
    for check in ("network.dns", "network.tcp", "broker.connect", "broker.subscribe",
                  "broker.publish", "receipts", "buffer.open", "buffer.damage"):  # fmt: skip
        assert found[check]["level"] == "ok", found[check]
    # The broker keeps the last receipt: the second answer was a live one, too.
    assert again["receipts"].level == "ok"
    assert len(hub.hellos) == 2


async def test_an_old_receipt_that_the_broker_kept_is_no_answer(
    mosquitto_broker: Address, tmp_path: Path
) -> None:
    made_buffer(tmp_path)
    config = write(tmp_path, mosquitto_broker.port)
    async with Hub().running(*mosquitto_broker):
        assert (await asyncio.to_thread(levels, config))["receipts"].level == "ok"
    settings = load(config, {})
    found = await asyncio.to_thread(lambda: list(examine(settings, seconds=0.5)))
    assert found[-1].check == "receipts"
    assert found[-1].level == "fail"
    assert "no answer of the hub" in found[-1].message


async def test_beside_a_running_agent_nothing_is_disturbed(
    mosquitto_broker: Address, tmp_path: Path, processes: Callable[..., Process]
) -> None:
    config = write(tmp_path, mosquitto_broker.port)
    hub = Hub()
    async with hub.running(*mosquitto_broker):
        agent = processes([*SCOUT_EDGE, "run", "--config", config])

        def answered() -> bool:
            return bool(fetch(config, "/v1/status")["hub_answers"])

        await asyncio.to_thread(eventually, answered)
        before = len(hub.statuses)
        text = (await asyncio.to_thread(run, "doctor", "--config", config)).stdout
        found = await asyncio.to_thread(levels, config)
        assert await asyncio.to_thread(answered)
        assert len(hub.statuses) == before, "the agent's connection was lost"
        assert {h.counters["reconnects"] for h in hub.hellos} == {0}
        assert found["agent"].message.startswith("running, version")
        assert "the hub answered the agent" in found["receipts"].message
        assert found["door"].level == found["buffer.open"].level == "ok"
        assert "0 failed" in text.splitlines()[-1]
        assert await asyncio.to_thread(agent.terminate) == 0
    assert "Traceback" not in agent.output()


async def test_an_agent_without_a_door_is_overheard(
    mosquitto_broker: Address, tmp_path: Path, processes: Callable[..., Process]
) -> None:
    config = write(tmp_path, mosquitto_broker.port)
    config.write_text(config.read_text().replace("[http]\n", "[http]\nenabled = false\n"))
    hub = Hub()
    async with hub.running(*mosquitto_broker):
        processes([*SCOUT_EDGE, "run", "--config", config])
        await asyncio.to_thread(eventually, lambda: hub.hellos)
        found = await asyncio.to_thread(levels, config)
    assert "it holds" in found["agent"].message
    assert found["receipts"].level == "ok"
    assert all("reconnects" in hello.counters for hello in hub.hellos), "a hello of the doctor"
    assert found["door"].level == "ok"


# -- the way to the hub -----------------------------------------------------------------------


def test_a_name_without_address_stops_the_walk_there(tmp_path: Path) -> None:
    config = write(tmp_path, 1883)
    config.write_text(config.read_text().replace("[mqtt]", '[mqtt]\nhost = "hub.invalid"'))
    done = run("doctor", "--config", config)
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if "network.dns" in line)
    assert line.startswith("fail  network.dns       hub.invalid has no address")
    assert "Next: check the network cable" in line
    assert done.stdout.splitlines()[-1].endswith("not tried because of it: tls, broker, receipts")


def test_a_closed_port_is_told_from_a_wrong_name(tmp_path: Path) -> None:
    found = levels(write(tmp_path, free_port()))
    assert found["network.dns"].level == "ok"
    assert found["network.tcp"].level == "fail"
    assert not_tried(list(found.values())) == ["tls", "broker", "receipts"]


def test_no_tls_to_another_machine_is_worth_a_look(
    tmp_path: Path, mosquitto_broker: Address
) -> None:
    config = write(tmp_path, mosquitto_broker.port)
    other = config.read_text().replace("[mqtt]", '[mqtt]\nhost = "127.0.0.2"')
    config.write_text(other)
    mqtt = load(config, {}).mqtt
    assert [f.level for f in route.tls(mqtt, True)] == ["warn"]


async def test_tls_password_and_access_list_are_walked_through(
    secured: Callable[..., int], authority: Authority, tmp_path: Path
) -> None:
    port = secured()
    made_buffer(tmp_path)
    config = tls_config(tmp_path, port, authority.certificate)
    good = await asyncio.to_thread(levels, config, SCOUT_MQTT_PASSWORD=PASSWORD)
    assert good["tls.certificate"].level == "ok"
    assert good["broker.connect"].message == "takes this device as pos-1"
    assert good["broker.subscribe"].level == "ok"
    # No hub is there.
    assert good["receipts"].level == "fail"
    wrong = await asyncio.to_thread(levels, config, SCOUT_MQTT_PASSWORD="wrong")
    assert wrong["broker.connect"].level == "fail"
    assert "SCOUT_MQTT_PASSWORD" in wrong["broker.connect"].next_step
    none = await asyncio.to_thread(levels, config)
    assert none["broker.connect"].level == "fail"
    assert PASSWORD not in str(good)
    other = tmp_path / "other"
    other.mkdir()
    config = tls_config(other, port, authority.certificate)
    config.write_text(config.read_text().replace('"pos-1"', '"pos-2"'))
    stranger = await asyncio.to_thread(levels, config, SCOUT_MQTT_PASSWORD=PASSWORD)
    assert stranger["broker.connect"].level == "fail"
    assert "'pos-2'" in stranger["broker.connect"].message


def test_an_access_list_that_forbids_receipts_is_found(
    secured: Callable[..., int], authority: Authority, tmp_path: Path
) -> None:
    port = secured(acl="pattern write edge/1/+/%u/up/#\n")
    config = tls_config(tmp_path, port, authority.certificate)
    found = levels(config, SCOUT_MQTT_PASSWORD=PASSWORD)
    assert found["broker.connect"].level == "ok"
    # mosquitto checks a subscription only when a message goes out, unless told otherwise.
    assert found["broker.subscribe"].level in ("ok", "fail")


@pytest.mark.parametrize(
    "days, start, name, host, trusted, check, words",
    [
        (-5, -30, "localhost", "localhost", True, "tls.dates", "the broker needs a new one"),
        (-5, -30, "localhost", "localhost", False, "tls.dates", "set it first"),
        (90, 30, "localhost", "localhost", False, "tls.dates", "set it first"),
        (90, -1, "hub.example", "localhost", True, "tls.name", "name in the certificate"),
        (90, -1, "localhost", "127.0.0.1", True, "tls.name", "not to an address"),
    ],
)
def test_each_wrong_certificate_is_named(
    secured: Callable[..., int],
    authority: Authority,
    tmp_path: Path,
    *,
    days: int,
    start: int,
    name: str,
    host: str,
    trusted: bool,
    check: str,
    words: str,
) -> None:
    port = secured(authority.issue(name, days=days, start_days=start))
    config = tls_config(tmp_path, port, authority.certificate, host=host)
    (found,) = route.tls(load(config, {}).mqtt, trusted)
    assert (found.check, found.level) == (check, "fail")
    assert words in found.next_step
    if check == "tls.dates":
        end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
        assert f"{end:%Y-%m-%d}" in found.message


def test_a_certificate_near_its_end_is_worth_a_look(
    secured: Callable[..., int], authority: Authority, tmp_path: Path
) -> None:
    port = secured(authority.issue("localhost", days=10))
    found = {f.check: f for f in route.tls(_mqtt(tmp_path, port, authority.certificate), True)}
    assert found["tls.certificate"].level == "warn"
    assert "9 days" in found["tls.certificate"].message


def _mqtt(folder: Path, port: int, ca: Path | None, *more: str) -> MqttSettings:
    return load(tls_config(folder, port, ca, *more), {}).mqtt


def test_a_strange_authority_a_missing_file_and_a_plain_port_are_told_apart(
    secured: Callable[..., int], authority: Authority, tmp_path: Path, mosquitto_broker: Address
) -> None:
    port = secured()
    other = Authority(tmp_path / "ca2")
    for ca, check, words in (
        (other.certificate, "tls.chain", "is not the CA of this broker"),
        (None, "tls.chain", "set [mqtt] tls_ca"),
        (tmp_path / "none.pem", "tls.files", "check tls_ca"),
    ):
        (found,) = route.tls(_mqtt(tmp_path, port, ca), True)
        assert (found.check, found.level) == (check, "fail")
        assert words in found.next_step
    (found,) = route.tls(_mqtt(tmp_path, mosquitto_broker.port, authority.certificate), True)
    assert (found.check, found.level) == ("tls.handshake", "fail")


def test_the_devices_own_certificate_is_looked_at(
    secured: Callable[..., int], authority: Authority, tmp_path: Path
) -> None:
    port = secured(client_ca=authority.certificate)
    for days, level in ((365, "ok"), (5, "warn"), (-1, "fail")):
        own = authority.issue("pos-1", days=days, start_days=-40)
        lines = (f'tls_certificate = "{own.certificate}"', f'tls_key = "{own.key}"')
        config = tls_config(tmp_path, port, authority.certificate, *lines)
        found = levels(config, SCOUT_MQTT_PASSWORD=PASSWORD)
        assert found["tls.own"].level == level
        assert found["broker.connect"].level == ("fail" if days < 0 else "ok")


def test_a_broker_that_is_none_is_said_to_be_none(
    tmp_path: Path, processes: Callable[..., Process]
) -> None:
    port = free_port()
    processes(["python3", "-m", "http.server", str(port), "--bind", "127.0.0.1"]).wait_for_port(
        port
    )
    found = levels(write(tmp_path, port))
    assert found["broker.connect"].level == "fail"
    assert "does not answer as an MQTT broker" in found["broker.connect"].message


# -- this device ------------------------------------------------------------------------------


def test_a_date_that_cannot_be_is_told_from_one_that_is_not_synchronised() -> None:
    now = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
    assert device.clock_finding(now, True).level == "ok"
    assert device.clock_finding(now, False).level == "warn"
    assert device.clock_finding(now, None).level == "warn"
    for year in (1970, 2020, 2099):
        found = device.clock_finding(now.replace(year=year), True)
        assert found.level == "fail"
        assert "timedatectl" in found.next_step


def test_a_clock_far_from_the_hubs_is_worth_a_look(
    mosquitto_broker: Address, tmp_path: Path
) -> None:
    made_buffer(tmp_path)
    hub = Hub()

    async def ask() -> dict[str, finding.Finding]:
        async with hub.running(*mosquitto_broker):  # its receipts say: one ms after 1970
            return await asyncio.to_thread(levels, write(tmp_path, mosquitto_broker.port))

    found = asyncio.run(ask())
    assert found["receipts"].level == "ok"
    assert found["receipts.clock"].level == "warn"
    assert "ahead of the hub's" in found["receipts.clock"].message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own, mounted for this test."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    folder = tmp_path / "data"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_and_a_read_only_disk_are_found(small_disk: Path, tmp_path: Path) -> None:
    config = write(tmp_path, free_port())
    assert bad(levels(config))["disk.space"] == "fail"
    (small_disk / "ballast").write_bytes(bytes(1 << 20))
    (small_disk / "rest").touch()
    with pytest.raises(OSError, match="No space"):
        (small_disk / "rest").write_bytes(bytes(4 << 20))
    found = levels(config)
    assert found["disk.write"].level == "fail"
    assert "the disk is full" in found["disk.write"].message
    (small_disk / "rest").unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    found = levels(config)
    assert found["disk.write"].level == "fail"
    assert "read-only" in found["disk.write"].message
    assert "card" in found["disk.write"].next_step


def test_a_folder_that_is_not_the_agents_is_found(tmp_path: Path) -> None:
    config = write(tmp_path, free_port())
    found = levels(config)
    assert found["disk.write"].level == "fail"
    assert "install -d" in found["disk.write"].next_step
    if os.geteuid() != 0:
        pytest.skip("giving a folder to another user needs root")
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    assert levels(config)["disk.write"].level == "warn", "root is not the agent's user"
    os.chown(folder, 0, 0)
    folder.chmod(0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom scout_edge.doctor import device\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(device._writable(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [SCOUT_EDGE[0], "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("fail  disk.write")
    assert "chown" in done.stdout


def test_wear_hints_of_the_kernel_are_passed_on(tmp_path: Path) -> None:
    config = write(tmp_path, free_port())
    (tmp_path / "data").mkdir()
    number = (tmp_path / "data").stat().st_dev
    root = tmp_path / "root"
    card = root / "sys/devices/mmcblk0"
    (card / "mmcblk0p2").mkdir(parents=True)
    (card / "mmcblk0p2/partition").write_text("2\n")
    (card / "device").mkdir()
    link = root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(card / "mmcblk0p2")
    errors = root / "sys/fs/ext4/mmcblk0p2/errors_count"
    errors.parent.mkdir(parents=True)

    def wear() -> finding.Finding:
        found = {f.check: f for f in device.disk(load(config, {}), root)}
        return found["disk.wear"]

    assert wear().level == "ok"
    (card / "device/life_time").write_text("0x03 0x09\n")
    (card / "device/pre_eol_info").write_text("0x02\n")
    errors.write_text("4\n")
    assert wear().level == "warn"
    assert wear().message == (
        "mmcblk0p2: 80 to 90 % of its guaranteed life is used up; has used up 80 % of its spare"
        " blocks; the file system has counted 4 errors"
    )
    link.unlink()
    assert wear().message == "this disk has no wear counters"


def test_a_damaged_segment_and_a_damaged_file_are_found(tmp_path: Path) -> None:
    config = write(tmp_path, free_port())
    path = tmp_path / "data" / "edge.db"
    with Buffer(path, zone=ZONE) as buffer:
        buffer.append_readings(readings(5000))
    assert levels(config)["buffer.damage"].message == "5 segments match their checksums"
    database = sqlite3.connect(path)
    body = database.execute("select body from segments where first_sequence = 1001").fetchone()[0]
    flipped = body[:-1] + bytes([body[-1] ^ 1])
    database.execute("update segments set body = ? where first_sequence = 1001", (flipped,))
    database.commit()
    database.close()
    found = levels(config)
    assert found["buffer.open"].level == "ok"
    assert found["buffer.damage"].level == "fail"
    assert "1 of 5 segments are damaged (first: sequence 1001)" in found["buffer.damage"].message
    path.write_bytes(b"SQLite format 3\0" + b"x" * 9000)
    found = levels(config)
    assert found["buffer.open"].level == "fail"
    assert "buffer.damage" not in found
    path.unlink()
    assert levels(config)["buffer.open"].level == "ok"


def test_an_old_backlog_is_worth_a_look(tmp_path: Path) -> None:
    config = write(tmp_path, free_port())
    made_buffer(tmp_path)
    assert levels(config)["buffer.backlog"].level == "ok"
    database = sqlite3.connect(tmp_path / "data" / "edge.db")
    database.execute("update segments set accepted_ms = accepted_ms - 7200000")
    database.commit()
    database.close()
    found = levels(config)["buffer.backlog"]
    assert found.level == "warn"
    assert "120 minutes" in found.message


def test_the_lock_of_a_running_agent_is_seen_and_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "edge.db"
    assert not device.locked(path)
    with Buffer(path, zone=ZONE):
        assert device.locked(path)
    assert not device.locked(path)


def test_a_stranger_on_the_doors_port_is_found(
    tmp_path: Path, processes: Callable[..., Process]
) -> None:
    port = free_port()
    processes(["python3", "-m", "http.server", str(port), "--bind", "127.0.0.1"])
    eventually(lambda: listens(port))
    assert levels(write(tmp_path, free_port(), port))["door"].level == "fail"
