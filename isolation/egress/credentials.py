"""Secrets that the gateway puts into requests, so that no sandbox ever holds one.

Theory of operation
    For each entry of `network.credentials` the sandbox's environment has a placeholder, made up
    when the gateway starts. The real value is read then, too, by the gateway: from its environment,
    a file or a command. In a request to the entry's host, in the entry's header or query parameter,
    the placeholder gives way to the secret (also inside Basic's base64); where there is no such
    header or parameter, or another value in it, the gateway's takes its place, so that a request to
    that host is never made with somebody else's account. A placeholder anywhere else (another host,
    header, the path, a body) is a secret on its way to the wrong place: the request is refused.
    What the host sends back is searched for the secret, which is covered.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import shlex
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from ..errors import SetupError

if TYPE_CHECKING:
    from ...policies.model import Credential

Headers = tuple[tuple[bytes, bytes], ...]

COMMAND_SECONDS = 30.0
_MAX_SECRET_BYTES = 16 << 10
_LEAST_COVERED_BYTES = 8  # a shorter one is found in any text
REFERENCE = re.compile(r"\$\{(secret|file|command):([^{}]+)\}")


@dataclass(frozen=True, kw_only=True)
class Secret:
    """One credential, read. Its `repr` shows no secret.

    Attributes:
        name: Of its environment variable inside; what records call it.
        host: Pattern of the hosts that get it.
        header: Lower case, in which it goes; "" when it goes into the query.
        query: Parameter in which it goes; "" when it goes into a header.
        placeholder: What the sandbox sees.
        value: What takes its place.
        whole: The whole header or parameter, where the sandbox sends none.
    """

    name: str
    host: str
    header: str
    query: str
    placeholder: bytes
    value: bytes = field(repr=False)
    whole: bytes = field(repr=False)

    def in_header(self, sent: bytes | None) -> bytes:
        """What the header becomes when the sandbox sent `sent`, None where it sent none."""
        if sent is None:
            return self.whole
        if self.placeholder in sent:
            return sent.replace(self.placeholder, self.value)
        scheme, _, rest = sent.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                pair = base64.b64decode(rest.strip(), validate=True)
            except binascii.Error:
                return self.whole
            if self.placeholder in pair:
                pair = pair.replace(self.placeholder, self.value)
                return scheme + b" " + base64.b64encode(pair)
        return self.whole

    def in_query(self, target: str) -> str:
        """`target` with the parameter set; it is appended where it is missing."""
        path, mark, query = target.partition("?")
        wanted = f"{self.query}={quote(self.whole.decode('latin-1'), safe='', encoding='latin-1')}"
        parts = query.split("&") if mark else []
        ours = [i for i, part in enumerate(parts) if _parameter(part) == self.query.encode()]
        for index in ours:
            parts[index] = wanted
        return path + "?" + "&".join(parts if ours else [*parts, wanted])


def _parameter(part: str) -> bytes:
    return unquote_to_bytes(part.partition("=")[0].replace("+", " "))


class Vault:
    """The credentials of one policy. Made by `open_vault`."""

    def __init__(self, found: Sequence[Secret]) -> None:
        self._secrets = tuple(found)
        self._shapes = [(s, shapes(s.placeholder)) for s in found]
        self.longest_bytes = max((len(t) for _, ts in self._shapes for t in ts), default=1)

    def __bool__(self) -> bool:
        return bool(self._secrets)

    @property
    def environment(self) -> dict[str, str]:
        """Names and placeholders for the sandbox's environment."""
        return {s.name: s.placeholder.decode() for s in self._secrets}

    @property
    def values(self) -> dict[str, str]:
        """Names and values, for those who see to it that they do not come back."""
        return {s.name: s.value.decode("utf-8", "surrogateescape") for s in self._secrets}

    def of_host(self, host: str) -> tuple[Secret, ...]:
        """Those that requests to `host` get; of two for one place the first in the policy."""
        taken: set[tuple[str, str]] = set()
        found: list[Secret] = []
        for secret in self._secrets:
            if matches(secret.host, host) and (secret.header, secret.query) not in taken:
                taken.add((secret.header, secret.query))
                found.append(secret)
        return tuple(found)

    def misplaced(self, data: bytes) -> str:
        """Name of a credential whose placeholder is in `data`, plain or encoded; "" if there is none."""
        for secret, found in self._shapes:
            if any(shape in data for shape in found):
                return secret.name
        return ""

    def misplaced_in_head(
        self, target: str, headers: Iterable[tuple[bytes, bytes]], mine: Sequence[Secret]
    ) -> str:
        """The same for a request's target and headers, but for the places of `mine`."""
        path, _, query = target.partition("?")
        own_parameters = {s.query.encode() for s in mine if s.query}
        parts = [p for p in query.split("&") if _parameter(p) not in own_parameters]
        for text in (path, "&".join(parts)):
            sent = text.encode("latin-1", "replace")
            if name := self.misplaced(sent) or self.misplaced(unquote_to_bytes(sent)):
                return name
        own_headers = {s.header.encode() for s in mine if s.header}
        for key, value in headers:
            if key.lower() in own_headers:
                continue
            if name := self.misplaced(key + b": " + value) or self.misplaced(
                unquote_to_bytes(value)
            ):
                return name
            if value[:6].lower() == b"basic " and (name := self.misplaced(_unbase64(value[6:]))):
                return name
        return ""


def _unbase64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text)
    except binascii.Error:
        return b""


class Search:
    """Looks for placeholders in a body that comes in pieces."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._tail = b""

    def feed(self, data: bytes) -> str:
        """Name of a credential whose placeholder is complete with `data`; "" if there is none."""
        joined = self._tail + data
        self._tail = (
            joined[-(self._vault.longest_bytes - 1) :] if self._vault.longest_bytes > 1 else b""
        )
        return self._vault.misplaced(joined)


class Cover:
    """Covers secrets in a response that comes in pieces, byte for byte, so that lengths stay.

    Args:
        found: The secrets that went out with the request.
    """

    def __init__(self, found: Iterable[Secret]) -> None:
        self._shapes: list[bytes] = []
        for secret in found:
            if len(secret.value) >= _LEAST_COVERED_BYTES:
                self._shapes += shapes(secret.value)
        self._longest = max(map(len, self._shapes), default=0)
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """What may go on; an end that could be the start of a secret waits for the next piece."""
        joined = self.whole(self._tail + data) if self._tail else self.whole(data)
        keep = 0
        for shape in self._shapes:
            for length in range(min(len(shape) - 1, len(joined)), keep, -1):
                if joined.endswith(shape[:length]):
                    keep = length
                    break
        cut = len(joined) - keep
        self._tail = joined[cut:]
        return joined[:cut]

    def flush(self) -> bytes:
        """What was kept back."""
        tail, self._tail = self._tail, b""
        return tail

    def whole(self, data: bytes) -> bytes:
        """The same for data that is complete, such as a header's value."""
        for shape in self._shapes:
            if shape in data:
                data = data.replace(shape, b"*" * len(shape))
        return data


def shapes(text: bytes) -> list[bytes]:
    """`text` as it looks plain, percent-encoded, in hexadecimal, and inside base64 of something.

    Base64 of a text that holds `text` has one of three runs in it, by where it starts; its ends
    depend on the neighbours and are left out.
    """
    found = {text, quote(text, safe="").encode(), text.hex().encode(), text.hex().upper().encode()}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text)
        start = (before * 8 + 5) // 6
        bits = (before + len(text)) * 8
        run = encoded[start : bits // 6]
        if len(run) >= 6:
            found |= {
                run,
                run.translate(bytes.maketrans(b"+/", b"-_")),
                quote(run, safe="").encode(),
            }
    return sorted(found, key=len, reverse=True)


def matches(pattern: str, host: str) -> bool:
    """Whether `host` is meant by a credential's `pattern`: a name, or `*.name` for one label more."""
    pattern, host = pattern.lower().rstrip("."), host.lower().rstrip(".")
    if pattern.startswith("**."):
        return host.endswith(pattern[2:])
    if pattern.startswith("*."):
        return host.partition(".")[2] == pattern[2:]
    return host == pattern


def open_vault(
    credentials: Sequence[Credential], tls: str, environment: Mapping[str, str] | None = None
) -> Vault:
    """Read every secret that a policy names. May run commands for COMMAND_SECONDS each.

    Args:
        credentials: `network.credentials` of the policy.
        tls: `network.tls` of the policy.
        environment: Where `${secret:NAME}` is looked up; None is the gateway's own.

    Raises:
        SetupError: `tls` is "pass", or a secret cannot be had. Says which and what to do; never
            holds any part of a secret.
    """
    if credentials and tls != "inspect":
        raise SetupError(
            "network.credentials need `tls: inspect` in the policy's network section: with "
            "`tls: pass` the gateway cannot see a request, so it can put nothing into it"
        )
    variables = os.environ if environment is None else environment
    found: list[Secret] = []
    for index, entry in enumerate(credentials):
        where = f"network.credentials[{index}] ({entry.placeholder_env})"
        value, whole = _read(where, entry.value, variables)
        found.append(
            Secret(
                name=entry.placeholder_env,
                host=entry.host,
                header=(entry.header or "").lower(),
                query=entry.query or "",
                placeholder=b"purple0" + secrets.token_hex(16).encode(),
                value=value,
                whole=whole,
            )
        )
    return Vault(found)


def read_reference(where: str, reference: str) -> bytes:
    """What `${secret:NAME}`, `${file:path}` or `${command:…}` stands for, with the text around it.

    Raises:
        SetupError: it cannot be had; names `where` and what to do. May run a command: call it in a
            thread.
    """
    return _read(where, reference, os.environ)[1]


def _read(where: str, template: str, environment: Mapping[str, str]) -> tuple[bytes, bytes]:
    references = list(REFERENCE.finditer(template))
    if len(references) != 1:
        raise SetupError(
            f"{where}: value must hold one of ${{secret:NAME}}, ${{file:path}} and ${{command:…}}, "
            "once; a secret itself does not belong in a policy"
        )
    found = references[0]
    value = _fetch(where, found[1], found[2], environment)
    whole = template[: found.start()].encode() + value + template[found.end() :].encode()
    if whole[:6].lower() == b"basic " and b":" in whole:
        # "Basic user:${secret:X}": base64 has no colon, so this is the pair itself (RFC 7617).
        whole = b"Basic " + base64.b64encode(whole[6:])
    return value, whole


def _fetch(where: str, kind: str, name: str, environment: Mapping[str, str]) -> bytes:
    if kind == "secret":
        if name not in environment:
            raise SetupError(f"{where}: set {name} in the gateway's environment")
        value = environment[name].encode("utf-8", "surrogateescape")
    elif kind == "file":
        try:
            with open(Path(name).expanduser(), "rb") as file:
                value = file.read(_MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise SetupError(f"{where}: {name}: {error.strerror}") from error
    else:
        value = _run(where, name)
    value = value.rstrip(b"\r\n")
    if not value or len(value) > _MAX_SECRET_BYTES or re.search(rb"[\x00-\x1f\x7f]", value):
        raise SetupError(
            f"{where}: what {kind}:{name} gives is empty, over {_MAX_SECRET_BYTES} bytes or more "
            "than one line; it must be the secret alone"
        )
    return value


def _run(where: str, command: str) -> bytes:
    """Run without a shell, in the gateway's environment. Its output is a secret: it is never shown."""
    try:
        argv = shlex.split(command)
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except (OSError, ValueError) as error:
        raise SetupError(f"{where}: {command!r} cannot be run: {error}") from None
    timer = threading.Timer(COMMAND_SECONDS, process.kill)
    timer.start()
    with process:
        assert process.stdout is not None
        value = process.stdout.read(_MAX_SECRET_BYTES + 1)
        process.stdout.close()
        status = process.wait()
    late = not timer.is_alive()
    timer.cancel()
    if late:
        raise SetupError(
            f"{where}: {command!r} took over {COMMAND_SECONDS:.0f} s; does it ask a question? "
            "Unlock the store before purple starts"
        )
    if status and len(value) <= _MAX_SECRET_BYTES:
        raise SetupError(f"{where}: {command!r} failed with status {status}; run it by hand")
    return value
