"""Certificates for tests, made with openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the keys")


class Keys(NamedTuple):
    ca: Path
    cert: Path
    key: Path


def make_keys(folder: Path, name: str) -> Keys:
    """A CA and a certificate that it signed for the name 'localhost' alone."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    authority = f"-x509 -days 2 -keyout {name}-ca.key -out {name}-ca.pem -subj /CN={name}-ca"
    openssl(*new, *authority.split())
    names = "-subj /CN=localhost -addext subjectAltName=DNS:localhost"
    openssl(*new, *f"-keyout {name}.key -out {name}.csr {names}".split())
    signing = f"x509 -req -in {name}.csr -CA {name}-ca.pem -CAkey {name}-ca.key -CAcreateserial"
    openssl(*signing.split(), *f"-days 2 -copy_extensions copy -out {name}.pem".split())
    return Keys(folder / f"{name}-ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
