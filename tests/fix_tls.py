"""Certificates for servers that are spoken to with TLS."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from fix_servers import missing

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """A certificate authority of the test's own, and what it has signed for 127.0.0.1."""

    authority: Path
    certificate: Path
    key: Path


STEPS = """
  openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj "/CN=test authority" \
    -addext "keyUsage=critical,keyCertSign"
  openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj "/CN=127.0.0.1"
  echo "subjectAltName=IP:127.0.0.1,DNS:localhost" > san
  openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.crt
"""


def make_certificates(folder: Path) -> Certificates:
    """Make all of it in a new folder; openssl must be there."""
    folder.mkdir()
    done = subprocess.run(["bash", "-euc", STEPS], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Certificates(folder / "ca.crt", folder / "server.crt", folder / "server.key")


@pytest.fixture(scope="session")
def certificates(server_folder: Path) -> Certificates:
    if shutil.which("openssl") is None:
        missing("openssl", "apt-get install openssl")
    return make_certificates(server_folder / "tls")
