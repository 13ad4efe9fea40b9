"""A certificate authority for tests, by openssl: names and dates as a test wants them."""

from __future__ import annotations

import datetime as dt
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.harness.servers import require

_CONFIG = """\
[ca]
default_ca = scout
[scout]
database = {folder}/index.txt
new_certs_dir = {folder}
serial = {folder}/serial
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
"""


class Issued(NamedTuple):
    """A certificate and its key, PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Makes its own CA in ``folder`` and issues certificates."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._openssl = require("openssl")
        self._config = folder / "ca.cnf"
        self._config.write_text(_CONFIG.format(folder=folder))
        (folder / "index.txt").touch()
        (folder / "serial").write_text("1000\n")
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        self._run("req", "-x509", *_new_key(self._key), "-subj", "/CN=Test CA", "-days", "3650",
                  "-out", self.certificate)  # fmt: skip

    def issue(
        self, name: str, *, days: int = 365, start_days: int = -1, alternative: str = ""
    ) -> Issued:
        """A certificate for ``name`` (or ``alternative``, e.g. ``IP:127.0.0.1``).

        Args:
            start_days, days: from and until when it counts, from now.
        """
        stem = self._folder / f"{name}.{days}.{start_days}"
        key, request, made = (stem.with_suffix(f".{s}") for s in ("key", "csr", "pem"))
        extension = f"subjectAltName={alternative or 'DNS:' + name}"
        self._run("req", *_new_key(key), "-subj", f"/CN={name}", "-addext", extension,
                  "-out", request)  # fmt: skip
        self._run("ca", "-batch", "-notext", "-config", self._config, "-cert", self.certificate,
                  "-keyfile", self._key, "-in", request, "-out", made,
                  "-startdate", _date(start_days), "-enddate", _date(days))  # fmt: skip
        return Issued(made, key)

    def _run(self, *arguments: str | Path) -> None:
        command = [self._openssl, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def _new_key(path: Path) -> tuple[str | Path, ...]:
    # An elliptic curve: made in milliseconds, where 2048 bits of RSA take a second.
    curve = "ec_paramgen_curve:prime256v1"
    return "-newkey", "ec", "-pkeyopt", curve, "-nodes", "-keyout", path


def _date(days: int) -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(days=days)).strftime("%Y%m%d%H%M%SZ")
