"""One HTTP request, made inside a sandbox that reaches nothing but that host. Standard library only.

`prepare` does what needs more of the view than the request itself (modules, certificates, the name);
then the operation gives that up (narrowing.py). Redirects are returned, not followed: each is another
host, and so another sandbox.
"""

from __future__ import annotations

import base64
import errno
import os
import time
from typing import Any

MAX_BODY_BYTES = 1 << 20
MAX_SAVED_BYTES = 1 << 30
_PIECE = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
# What makes up a message; the connection's own. Their values are not the caller's to choose.
_OURS = frozenset([
    "host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer",
    "keep-alive", "proxy-connection", "proxy-authorization", "expect",
])  # fmt: skip


def prepare(arguments: dict[str, Any]) -> dict[str, Any]:
    """The request's arguments, with what is found out before the view is given up."""
    import encodings.idna
    import http.client
    import socket
    import ssl
    import zlib

    assert encodings.idna
    assert zlib
    found: dict[str, Any] = {**arguments, "http": http.client}
    for name in arguments.get("headers", {}):
        if name.lower() in _OURS:
            raise ValueError(f"the header {name} cannot be set")
    try:
        found["addresses"] = socket.getaddrinfo(
            arguments["host"], arguments["port"], type=socket.SOCK_STREAM
        )
    except OSError:
        found["error"] = f"{arguments['host']}: there is no such host for this sandbox"
    if arguments["scheme"] == "https":
        found["tls"] = ssl.create_default_context()
    return found


def http_request(request: dict[str, Any]) -> dict[str, Any]:
    """Make it.

    Returns:
        `error`, a text, where there is no response; else `status`, `headers` (pairs), `size_bytes`
        of the body as decoded, `truncated`, `body` (base64, its first bytes), and `saved` where it
        went into a file.

    Raises:
        OSError: the file cannot be written.
        ValueError: a header or the method is none.
    """
    if "error" in request:
        return {"error": request["error"]}
    http = request["http"]
    deadline = time.monotonic() + request["seconds"]
    try:
        connection = http.HTTPConnection(
            request["host"], request["port"], timeout=request["seconds"]
        )
        connection.sock = _connected(request)
        body = base64.b64decode(request["body"])
        headers = {
            "User-Agent": "purple", "Accept": "*/*", "Accept-Encoding": "gzip, deflate",
            **request["headers"],
        }  # fmt: skip
        if body or request["method"] in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = str(len(body))
        connection.putrequest(request["method"], request["target"], skip_host=True, skip_accept_encoding=True)  # fmt: skip
        connection.putheader("Host", request["authority"])
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.putheader("Connection", "close")
        connection.endheaders(body or None)
        response = connection.getresponse()
        said: dict[str, Any] = {"status": response.status, "headers": response.getheaders()}
        if (
            request["redirects"]
            and response.status in _REDIRECTS
            and response.getheader("location")
        ):
            return {**said, "size_bytes": 0, "truncated": False, "body": ""}
        return {**said, **_read(response, request, deadline)}
    except http.HTTPException as error:
        return {"error": f"{request['host']}: not a good HTTP response: {type(error).__name__}"}
    except _FileError as error:
        raise error.error from None
    except TimeoutError:
        return {"error": f"{request['host']}: no whole response in {request['seconds']:g} s"}
    except OSError as error:
        why = getattr(error, "verify_message", "") or error.strerror or str(error)
        return {"error": f"{request['host']}: {why}"}


class _FileError(Exception):
    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _connected(request: dict[str, Any]) -> Any:
    """A socket to the first address that answers, with TLS where that is asked for."""
    import socket

    last = OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
    for family, kind, protocol, _, address in request["addresses"]:
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(request["seconds"])
        try:
            sock.connect(address)
            if "tls" in request:
                return request["tls"].wrap_socket(sock, server_hostname=request["host"])
            return sock
        except OSError as error:
            sock.close()
            last = error
    raise last


def _read(response: Any, request: dict[str, Any], deadline: float) -> dict[str, Any]:
    save_to = request.get("save_to")
    if save_to is None:
        kept: list[bytes] = []
        room, size, truncated = MAX_BODY_BYTES, 0, False
        for piece in _decoded(response, deadline):
            size += len(piece)
            kept.append(piece[:room])
            room -= len(kept[-1])
            if size > MAX_BODY_BYTES:
                truncated = True
                break
        body = base64.b64encode(b"".join(kept)).decode()
        return {"size_bytes": size, "truncated": truncated, "body": body}
    part = f"{os.path.dirname(save_to) or '.'}/.{os.path.basename(save_to)}.part"
    size = 0
    head = b""
    try:
        with _file(part) as file:
            for piece in _decoded(response, deadline):
                size += len(piece)
                if size > MAX_SAVED_BYTES:
                    raise _FileError(OSError(errno.EFBIG, f"over {MAX_SAVED_BYTES} bytes", save_to))
                head = head or piece[:4096]
                try:
                    file.write(piece)
                except OSError as error:
                    raise _FileError(error) from None
        try:
            os.replace(part, save_to)
        except OSError as error:
            raise _FileError(error) from None
    except BaseException:
        if os.path.lexists(part):
            os.unlink(part)
        raise
    return {"size_bytes": size, "truncated": False, "body": "", "saved": save_to}


def _file(path: str) -> Any:
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(path, flags, 0o666), "wb", buffering=0)
    except OSError as error:
        raise _FileError(error) from None


def _decoded(response: Any, deadline: float) -> Any:
    """The body in pieces, its content coding undone; a small one that grows huge comes in pieces, too."""
    import zlib

    coding = (response.getheader("content-encoding") or "").strip().lower()
    wbits = {"gzip": 31, "x-gzip": 31, "deflate": 15}.get(coding)
    inflater = None if wbits is None else zlib.decompressobj(wbits)
    while data := response.read1(_PIECE):
        if time.monotonic() > deadline:
            raise TimeoutError
        if inflater is None:
            yield data
            continue
        while data:
            try:
                piece = inflater.decompress(data, _PIECE)
            except zlib.error:
                raise OSError(errno.EPROTO, f"the body is not {coding}") from None
            data = inflater.unconsumed_tail
            if piece:
                yield piece
            elif inflater.eof:
                break
