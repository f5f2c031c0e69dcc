"""What a request asks for, read in every way in which a server may read it. Pure.

A pattern of the policy is checked against each reading: what is allowed must be allowed under all
of them, so that `/public/..%2fadmin` is no way to `/admin`, whichever server stands behind it.
Sources: RFC 3986, RFC 9112 section 3.2, RFC 9110 section 4.2.
"""

from __future__ import annotations

import re
from itertools import product
from urllib.parse import unquote_to_bytes

_PLAIN = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*)*/?")
_VISIBLE = re.compile(r"[!-~]*")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\s\\]+)(?::([0-9]{1,5}))?")
_DECODINGS = 3  # servers behind servers decode twice; one more is one more than was ever seen
# Headers by which frameworks let a request be another than it says.
METHOD_OVERRIDES = (b"x-http-method-override", b"x-http-method", b"x-method-override")
TARGET_OVERRIDES = (b"x-original-url", b"x-rewrite-url")


class TargetError(ValueError):
    """The request cannot be understood in one way; the text says why."""


def split_authority(text: str, default_port: int) -> tuple[str, int]:
    """Host (lower case, no last dot, no brackets) and port of a Host header or `:authority`.

    Raises:
        TargetError: it is not `host` or `host:port`; user information is refused, too.
    """
    found = _AUTHORITY.fullmatch(text)
    if not found or not text.isascii():
        raise TargetError(f"{text[:80]!r} is not a host with or without a port")
    host, port = found[1].lower().strip("[]"), found[2]
    number = int(port) if port else default_port
    if number > 65535:
        raise TargetError(f"port {number} does not exist")
    return host.removesuffix("."), number


def split_absolute(target: str) -> tuple[str, str, str]:
    """Scheme, authority and origin-form of an absolute-form target, "http://host/path?query".

    Raises:
        TargetError: it is none.
    """
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise TargetError(f"{target[:80]!r} is neither a path nor an http URL")
    end = min((i for i in map(rest.find, "/?#") if i >= 0), default=len(rest))
    path = rest[end:]
    return scheme.lower(), rest[:end], path if path.startswith("/") else "/" + path


def readings(target: str) -> frozenset[str]:
    """The paths that a server may take an origin-form target for, all starting with "/".

    Raises:
        TargetError: no server should be asked for that: a control character, a broken escape, a
            fragment, bytes that are no UTF-8 (overlong forms of "/" and "." among them).
    """
    path = target.partition("?")[0]
    if not path.startswith("/"):
        raise TargetError("the target does not start with a slash")
    if not _VISIBLE.fullmatch(target) or "#" in target:
        raise TargetError("the target holds a character that must be percent-encoded")
    if _PLAIN.fullmatch(path):
        return frozenset((path,))
    if _BROKEN_ESCAPE.search(path):
        raise TargetError("the target holds a percent sign that starts no escape")
    decoded = [path]
    for _ in range(_DECODINGS):
        if "%" not in decoded[-1]:
            break
        decoded.append(_decode(decoded[-1]))
    found: set[str] = set()
    switches = (False, True)
    for text, slash, bare, merge, resolve in product(
        decoded, switches, switches, switches, switches
    ):
        reading = text
        if slash:
            reading = reading.replace("\\", "/")
        if bare:  # "/a;x=1/b": servers of the Java world leave parameters out
            reading = "/".join(part.partition(";")[0] for part in reading.split("/"))
        if merge:
            reading = re.sub("/+", "/", reading)
        if resolve:
            reading = _resolve(reading)
        found.add(reading)
    return frozenset(found)


def _decode(path: str) -> str:
    try:
        text = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TargetError("the target decodes to bytes that are no UTF-8") from error
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        raise TargetError("the target decodes to a control character")
    return text


def _resolve(path: str) -> str:
    """remove_dot_segments of RFC 3986 section 5.2.4."""
    kept: list[str] = []
    parts = path.split("/")[1:]
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "..":
            if kept:
                kept.pop()
            if last:
                kept.append("")
        elif part == ".":
            if last:
                kept.append("")
        else:
            kept.append(part)
    return "/" + "/".join(kept)
