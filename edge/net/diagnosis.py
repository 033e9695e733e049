"""Why an address does not work: an unknown name, TLS on one side only, a certificate.

gRPC says "Socket closed" to all of these, or names no cause at all. So when a call to an address
that has never answered fails, this module looks for itself: it resolves the name, opens a plain
socket, and reads the first bytes. All of it together takes `MAX_DIAGNOSIS_S` at most.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Final

from edge.errors import MisconfiguredError, TransportError
from edge.net.credentials import Credentials
from protos.addresses import Address

MAX_DIAGNOSIS_S: Final = 1.5
# The beginning of HTTP/2 (RFC 9113, section 3.4): the preface and an empty SETTINGS frame.
HTTP2_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS_TYPE: Final = 4
FRAME_HEAD_BYTES: Final = 9
# The first bytes of a TLS record: alert (21) or handshake (22), then the version's 3.
TLS_HEADS: Final = (b"\x15\x03", b"\x16\x03")

SPEAKS_TLS: Final = "this server speaks TLS: give --tls-ca"
FOREIGN: Final = "something answers there that is no Splitpoint server: check the port"
SPEAKS_NO_TLS: Final = "this server does not speak TLS: leave out --tls-ca"


class ConnectDiagnosis:
    """Explains the failures of one address until it has answered for the first time.

    Safe from several threads: a stream's reader thread may call while another stream opens.
    """

    def __init__(self, address: Address, credentials: Credentials) -> None:
        self._address = address
        self._credentials = credentials
        self._has_answered = False

    def answered(self) -> None:
        """The address works: whatever fails from now on is a loss, and needs no explanation."""
        self._has_answered = True

    def explain(self, error: TransportError) -> TransportError:
        """A MisconfiguredError that names the cause, where one is found; else `error` itself."""
        reason = self.reason()
        return error if reason is None else MisconfiguredError(f"{self._address}: {reason}")

    def reason(self) -> str | None:
        """What is wrong with the address and how to mend it; None: nothing that can be seen."""
        if self._has_answered:
            return None
        deadline_s = time.monotonic() + MAX_DIAGNOSIS_S
        resolves = _resolves(self._address, MAX_DIAGNOSIS_S)
        if resolves is None:
            return None
        if not resolves:
            return f"no host is called {self._address.host!r}: check the name and the DNS"
        try:
            if not self._credentials.tls:
                return _reason_without_tls(self._address, deadline_s)
            return _reason_with_tls(self._address, self._credentials, deadline_s)
        except OSError:  # nobody listens, or nobody answers: gRPC's own words say so
            return None


def _resolves(address: Address, timeout_s: float) -> bool | None:
    """Whether the system knows such a host; None when its resolver does not answer in time."""
    found: list[bool] = []

    def look_up() -> None:
        try:
            socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            found.append(True)
        except (OSError, UnicodeError):  # UnicodeError: a name that IDNA cannot carry
            found.append(False)

    # A thread, because nothing ends a look-up that waits for the network.
    thread = threading.Thread(target=look_up, name="look-up", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return found[0] if found else None


def _connect(address: Address, deadline_s: float) -> socket.socket:
    """A TCP connection whose calls end at `deadline_s`; OSError when there is none."""
    left_s = max(deadline_s - time.monotonic(), 0.05)
    return socket.create_connection((address.host, address.port), timeout=left_s)


def _first_bytes(address: Address, deadline_s: float) -> bytes:
    """What the server says to the beginning of HTTP/2; empty when it hangs up or says nothing."""
    with _connect(address, deadline_s) as plain:
        # Half of what is left: a silent server is asked in TLS after this.
        plain.settimeout(max((deadline_s - time.monotonic()) / 2, 0.05))
        try:
            plain.sendall(HTTP2_HELLO)
            return plain.recv(FRAME_HEAD_BYTES)
        except OSError:
            return b""


def _is_http2(head: bytes) -> bool:
    return len(head) == FRAME_HEAD_BYTES and head[3] == SETTINGS_TYPE


def _reason_without_tls(address: Address, deadline_s: float) -> str | None:
    head = _first_bytes(address, deadline_s)
    if _is_http2(head):
        return None
    if head.startswith(TLS_HEADS):
        return SPEAKS_TLS
    if head:
        return FOREIGN
    return SPEAKS_TLS if _answers_tls(address, deadline_s) else None


def _answers_tls(address: Address, deadline_s: float) -> bool:
    """Whether a TLS hello is answered in TLS, by a handshake or by an alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with _connect(address, deadline_s) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=address.host):
                return True
        except ssl.SSLError as error:
            return "ALERT" in (error.reason or "")
        except OSError:
            return False


def _reason_with_tls(address: Address, credentials: Credentials, deadline_s: float) -> str | None:
    context = credentials.tls_context()
    try:
        with (
            _connect(address, deadline_s) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as secured,
        ):
            secured.settimeout(max(deadline_s - time.monotonic(), 0.05))
            return _reason_after_handshake(secured, credentials)
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message
        return f"its certificate does not match the name or the CA of --tls-ca ({why})"
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return _reason_of_refusal(credentials)
    except ConnectionRefusedError:
        return None
    except OSError:
        pass  # it hung up on a TLS hello: ask it without TLS
    head = _first_bytes(address, deadline_s)
    if _is_http2(head):
        return SPEAKS_NO_TLS
    return FOREIGN if head and not head.startswith(TLS_HEADS) else None


def _reason_after_handshake(secured: ssl.SSLSocket, credentials: Credentials) -> str | None:
    """A TLS 1.3 handshake ends before the server has looked at the client's certificate."""
    try:
        secured.sendall(HTTP2_HELLO)
        head = secured.recv(FRAME_HEAD_BYTES)
    except TimeoutError:
        return None
    except OSError:  # an alert, or a reset
        head = b""
    if not head:
        return _reason_of_refusal(credentials)
    return None if _is_http2(head) else FOREIGN


def _reason_of_refusal(credentials: Credentials) -> str:
    """What a server that broke TLS off wants of this device."""
    if credentials.cert_file is None:
        return "this server asks for a client certificate: give --tls-cert and --tls-key"
    return "this server does not take the certificate of --tls-cert: its CA has not signed it"
