"""The health check of an image: ask the process in this container over HTTP. Status 0: it serves.

    python health.py LISTEN_VARIABLE [CERTIFICATE_VARIABLE ...]

The variables are those that the process itself reads: HOST:PORT where it listens, and any that
names the certificate which it shows there, if it has one.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request

TIMEOUT_S = 4.0
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def main(listen_variable: str, *certificate_variables: str) -> None:
    """Raise OSError unless the process answers 200."""
    host, _, port = os.environ[listen_variable].rpartition(":")
    scheme = "https" if any(map(os.environ.get, certificate_variables)) else "http"
    # It is this container's own process on loopback: its certificate names another.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    url = f"{scheme}://{EVERYWHERE.get(host, host)}:{port}/health"
    # No proxy that the environment names stands between them.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    with opener.open(url, timeout=TIMEOUT_S):
        pass


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(f"not healthy: {error}")
