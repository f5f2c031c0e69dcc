"""One spelling for one thing: JSON keys, paths and URLs of a call, before anything judges them.

Pure: no file system is asked. Where symbolic links lead a path is judged afterwards, by the same
rules (`rules.judge`).
"""

from __future__ import annotations

import json
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

_MAX_PATH_BYTES = 4096  # PATH_MAX, <linux/limits.h>
_MAX_URL_CHARACTERS = 8192
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}
_PROC_LINK = re.compile(
    r"(?:proc/(?:self|thread-self|\d+)(?:/task/\d+)?)/(root|cwd)"
)  # proc(5): /proc/PID/root and cwd, and of each thread
_DESCRIPTOR = re.compile(
    r"/(?:proc/(?:self|thread-self|\d+)(?:/task/\d+)?/(?:fd|map_files)|dev/fd)(?:/|$)"
)
_DRIVE_OR_SCHEME = re.compile(r"file:", re.IGNORECASE)


class CanonicalError(ValueError):
    """An argument that has no one meaning; such a call is refused.

    Attributes:
        argument: Its name, dotted where it is nested; "" for the arguments as a whole.
    """

    def __init__(self, message: str, argument: str = "") -> None:
        super().__init__(f"{argument}: {message}" if argument else message)
        self.argument = argument


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where relative paths of a call begin.

    Attributes:
        workspace: Absolute, its links resolved; None where the sandbox has none.
        home: What `~` means: the person's own home, which grants such as `~/notes` name, too.
        aliases: Other absolute spellings of the workspace, such as the one with a link in it.
    """

    workspace: str | None = None
    home: str = "/"
    aliases: tuple[str, ...] = ()

    @property
    def start(self) -> str:
        """Where a relative path begins."""
        return self.workspace or "/"

    def shown(self, path: str) -> str:
        """A canonical path as people read it: relative to the workspace where it is in it."""
        if self.workspace is None or (
            path != self.workspace and not path.startswith(self.workspace + "/")
        ):
            return path
        return path[len(self.workspace) + 1 :] or "."


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text in which every key means one thing.

    Raises:
        CanonicalError: a key that is there twice, twice but for case or look-alike characters
            (CVE-2026-27896: two parsers read two values), or with invisible characters; NaN and
            Infinity, which are no JSON.
        ValueError: not JSON.
    """
    return json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise CanonicalError(f"{name} is not JSON")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(…, object_pairs_hook=unique_keys)`: see `parse_json`."""
    _check_names(key for key, _ in pairs)
    return dict(pairs)


def check_keys(value: Any) -> None:
    """Check the keys of a value that has been parsed already, at every depth.

    An exact repetition cannot be seen any more; that is what `parse_json` is for.

    Raises:
        CanonicalError: as `parse_json`.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            mapping = cast(Mapping[str, Any], item)
            _check_names(mapping)
            waiting.extend(mapping.values())
        elif isinstance(item, list | tuple):
            waiting.extend(cast("Sequence[Any]", item))


def _check_names(names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not (name.isascii() and name.isprintable()):
            if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in name):
                raise CanonicalError(f"the key {name!a} holds invisible characters; remove them")
            if not unicodedata.is_normalized("NFC", name):
                raise CanonicalError(f"the key {name!a} is not in normal form C; normalise it")
        folded = unicodedata.normalize("NFKC", name).casefold()
        if folded in seen:
            other = seen[folded]
            how = "is there twice" if other == name else f"and {other!a} differ only in their look"
            raise CanonicalError(f"the key {name!a} {how}; keep one")
        seen[folded] = name


# ── paths ───────────────────────────────────────────────────────────────────────────────────────


def canonical_path(text: str, place: Place) -> str:
    """The absolute path that `text` names: no `.`, `..`, doubled or trailing slash, `~` or `file:`.

    /proc/self/root and /proc/self/cwd are followed, other links are not. `..` takes the component
    before it away, as a person reads it; what runs is given this path, so no other reading counts.

    Raises:
        CanonicalError: empty, over 4096 bytes, with a NUL, a descriptor (/dev/fd/3) instead of a
            file, or a file: URL of another host.
    """
    if not text or "\0" in text:
        raise CanonicalError("a path is not empty and holds no NUL character")
    if len(text.encode("utf-8", "surrogatepass")) > _MAX_PATH_BYTES:
        raise CanonicalError(f"a path has {_MAX_PATH_BYTES} bytes at the most")
    if _DRIVE_OR_SCHEME.match(text):
        text = _file_url(text)
    if text == "~" or text.startswith("~/"):
        text = place.home + text[1:]
    if not text.startswith("/"):
        text = f"{place.start}/{text}"
    parts: list[str] = []
    for part in text.split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            del parts[-1:]
            continue
        parts.append(part)
        if part in ("root", "cwd") and (link := _PROC_LINK.fullmatch("/".join(parts))):
            parts = [] if link[1] == "root" else [p for p in place.start.split("/") if p]
    path = "/" + "/".join(parts)
    if _DESCRIPTOR.match(path):
        raise CanonicalError(
            "a path names a file, not an open descriptor; give the file's own path"
        )
    if place.workspace is not None:
        for alias in place.aliases:
            if path == alias or path.startswith(alias + "/"):
                return place.workspace + path[len(alias) :]
    return path


def _file_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.netloc.lower() not in ("", "localhost"):
        raise CanonicalError(f"a file: URL of host {parts.netloc!a} names no file here")
    if parts.query or parts.fragment or not parts.path.startswith("/"):
        raise CanonicalError("a file: URL is file:///absolute/path, without ? or #")
    path = unquote(parts.path, errors="strict")
    if "\0" in path:
        raise CanonicalError("a path holds no NUL character")
    return path


def path_pattern(pattern: str, place: Place) -> re.Pattern[str]:
    """A glob over canonical paths: `*` and `?` within one component, `**` over any number of them.

    A pattern without a leading `/` or `~/` is relative to the workspace; one that begins with `**/`
    matches anywhere. `dir/**` matches `dir`, too.
    """
    if pattern == "~" or pattern.startswith("~/"):
        pattern = place.home + pattern[1:]
    elif pattern.startswith("**/"):
        pattern = "/" + pattern
    elif not pattern.startswith("/"):
        pattern = f"{place.start}/{pattern}"
    pattern = posixpath.normpath(pattern.replace("//", "/"))
    text = ""
    parts = pattern.split("/")[1:]
    for index, part in enumerate(parts):
        if part == "**":
            text += "(?:/.*)?" if index == len(parts) - 1 else "(?:/[^/]+)*"
        else:
            text += "/" + "".join(_component(piece) for piece in re.split(r"([*?])", part))
    return re.compile(text or "/", re.DOTALL)


def _component(piece: str) -> str:
    return {"*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece))


# ── URLs ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Url:
    """A URL as the WHATWG parser reads it.

    Attributes:
        text: Serialised.
        scheme: Lower case, without the colon.
        host: Lower case, IDNA in A-labels, numeric addresses in their usual form, IPv6 without
            brackets, no trailing dot; "" where the scheme has none.
        port: The scheme's default where none is given; 0 where there is no default.
        path, query: Query without its `?`.
        userinfo: Whether a user or password is in it.
    """

    text: str
    scheme: str
    host: str
    port: int
    path: str
    query: str
    userinfo: bool

    def to_json(self) -> dict[str, Any]:
        """For rules, records and people; `url` is the whole text."""
        return {
            "url": self.text, "scheme": self.scheme, "host": self.host, "port": self.port,
            "path": self.path, "query": self.query, "userinfo": self.userinfo,
        }  # fmt: skip


def canonical_url(text: str) -> Url:
    """Parse `text` as browsers, curl's successors and fetch() do (url.spec.whatwg.org).

    Raises:
        CanonicalError: not a URL; over 8192 characters; or one that other parsers read
            differently: control characters, backslashes, or a host on which the WHATWG parser and
            RFC 3986's disagree.
    """
    import ada_url

    if len(text) > _MAX_URL_CHARACTERS:
        raise CanonicalError(f"a URL has {_MAX_URL_CHARACTERS} characters at the most")
    if any(c < " " or c in "\\\x7f" for c in text):
        raise CanonicalError("a URL holds no control characters and no backslashes; encode them")
    try:
        url = ada_url.URL(text)
        if url.hostname.endswith(".") and len(url.hostname) > 1:
            url.hostname = url.hostname[:-1]
    except (ValueError, UnicodeError):
        raise CanonicalError(f"{text[:200]!a} is not a URL; write https://host/path") from None
    scheme = url.protocol.removesuffix(":")
    host = url.hostname
    if host.endswith(".") or _other_host(text, scheme) != host:
        raise CanonicalError(
            f"parsers disagree about the host of {text[:200]!a}; write https://host/path"
        )
    return Url(
        text=url.href,
        scheme=scheme,
        host=host.removeprefix("[").removesuffix("]"),
        port=int(url.port) if url.port else _DEFAULT_PORTS.get(scheme, 0),
        path=url.pathname,
        query=url.search.removeprefix("?"),
        userinfo=bool(url.username or url.password),
    )


def _other_host(text: str, scheme: str) -> str | None:
    """The host as RFC 3986's parser finds it, in WHATWG spelling; None when there is none."""
    import ada_url

    try:
        parts = urlsplit(text.strip(" "))
        host = parts.hostname or ""
        if parts.scheme != scheme or not host:
            return "" if parts.scheme == scheme else None
        if ":" in host:
            host = f"[{host}]"
        return str(ada_url.URL(f"{scheme}://{host}/").hostname).removesuffix(".")
    except ValueError:
        return None
