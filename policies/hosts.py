"""Which hosts, ports, addresses and requests a policy lets through. Pure decisions.

A destination is decided three times, each time by the same rules, deny before allow: by the name
that is asked for (`decide_name`), by each address that the name resolves to (`decide_address`), and,
where the gateway reads HTTP, by method and path (`decide_request`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import idna

from .addresses import Address, Range, literal_address, parse_range, special_class

if TYPE_CHECKING:
    from .model import HostRule, Network

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# A URL, or a piece of one, in the place of a host.
_WRITTEN = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?(?:[^/@]*@)?(?P<host>[^\s:/?#@*]+|\*\*?\.[^\s:/?#@*]+)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^\s?#]*)?(?:[?#].*)?"
)
WEB_PORTS = (80, 443)  # what an allow rule without `ports` means


class Why(StrEnum):
    """Why a connection or a request was refused or failed. Stable codes, in records and replies."""

    NONE = ""
    NAME_INVALID = "name_invalid"
    HOST_NOT_ALLOWED = "host_not_allowed"
    HOST_DENIED = "host_denied"
    PORT_NOT_ALLOWED = "port_not_allowed"
    ADDRESS_NOT_ALLOWED = "address_not_allowed"
    REQUEST_NOT_ALLOWED = "request_not_allowed"
    REQUEST_INVALID = "request_invalid"
    NAME_MISSING = "name_missing"  # TLS without SNI, HTTP without Host
    NAME_MISMATCH = "name_mismatch"  # SNI or Host is not the name that was asked for
    PROTOCOL_NOT_ALLOWED = "protocol_not_allowed"
    CREDENTIAL_MISUSED = "credential_misused"
    BYTES_OUT = "bytes_out"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    UNRESOLVED = "unresolved"
    UPSTREAM_FAILED = "upstream_failed"
    CLIENT_TLS = "client_tls_failed"  # the program did not finish its handshake with the gate


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decision.

    Attributes:
        allowed: Whether it may go on.
        reason: Stable code; `Why.NONE` when allowed.
        rule: The key that decided: "network.allow[0]"; "" where no rule matched.
        text: For the model and the person, when refused: what, by which rule, what to ask for.
    """

    allowed: bool
    reason: Why = Why.NONE
    rule: str = ""
    text: str = ""


def canonical_name(host: str) -> str:
    """The one spelling of a host name: lower case, no trailing dot, internationalised as A-labels.

    Raises:
        ValueError: it is no host name: empty, over 253 characters, a label over 63, a character
            that has no place in one (NUL, space, `@`, `%`, …), or an address.
    """
    text = host.removesuffix(".")
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True).decode()
        except (idna.IDNAError, UnicodeError) as error:
            raise ValueError(f"{host[:80]!r} is no host name: {error}") from None
    text = text.lower()
    if not text or len(text) > 253:
        raise ValueError(f"a host name has 1 to 253 characters, this has {len(text)}")
    if not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise ValueError(f"{host[:80]!r} is no host name")
    if literal_address(text) is not None:
        raise ValueError(f"{host[:80]!r} is an address, no name")
    return text


def canonical_path(target: str) -> str:
    """The path of a request's target, without its query, in the one spelling that rules see.

    Escaped unreserved characters are unescaped (RFC 3986, 6.2.2.2).

    Raises:
        ValueError: servers disagree about what it names: dot segments, empty segments, escaped or
            backward slashes, control characters, a broken escape.
    """
    path = target.partition("?")[0].partition("#")[0]

    def unescape(found: re.Match[str]) -> str:
        character = chr(int(found[1], 16))
        if character.isascii() and (character.isalnum() or character in "-._~"):
            return character
        return found[0].upper()

    if re.search(r"%(?![0-9a-fA-F]{2})", path):
        raise ValueError("a broken escape in the path")
    path = re.sub(r"%([0-9a-fA-F]{2})", unescape, path)
    if not path.startswith("/") or "\\" in path or not path.isascii() or not path.isprintable():
        raise ValueError(
            "the path is no absolute path, or holds characters that have no place there"
        )
    if re.search(r"%(2F|5C|[01][0-9A-F]|7F)", path) or re.search(r"/(\.{1,2})?/|/\.{1,2}$", path):
        raise ValueError("the path holds dot segments, empty segments or escaped slashes")
    return path


class Hosts:
    """The rules of `policy.network`, compiled.

    Args:
        network: The section. Nothing in `allow` allows nothing.

    Raises:
        ValueError: a pattern means nothing; the text names its key.
    """

    def __init__(self, network: Network) -> None:
        self._deny = [_Rule(f"network.deny[{i}]", r) for i, r in enumerate(network.deny)]
        self._allow = [
            _Rule(f"network.allow[{i}]", r, WEB_PORTS) for i, r in enumerate(network.allow)
        ]

    def exact_names(self) -> list[str]:
        """The names that rules allow, at some port, by themselves and not by a pattern."""
        named = [rule.name for rule in self._allow if rule.name]
        return [name for name in dict.fromkeys(named) if self.decide_name(name).allowed]

    @property
    def has_patterns(self) -> bool:
        """Whether a rule allows names by a pattern."""
        return any(rule.is_pattern for rule in self._allow)

    def decide_name(self, name: str, port: int | None = None) -> Verdict:
        """Whether `name` may be asked for, at `port` or (None) at any.

        Args:
            name: Canonical: see `canonical_name`.
            port: TCP port.
        """
        for rule in self._deny:
            if rule.whole and rule.matches_name(name) and rule.denies_port(port):
                return _denied(rule, _at(name, port))
        named = [rule for rule in self._allow if rule.matches_name(name)]
        for rule in named:
            if port is None or port in rule.ports:
                return Verdict(allowed=True, rule=rule.key)
        return _not_allowed(name, port, named)

    def decide_address(
        self, address: Address, port: int, *, name: str = "", own: bool = False
    ) -> Verdict:
        """Whether `address` may be dialled.

        Args:
            address: Resolved from `name`, or the literal that was asked for.
            port: TCP port.
            name: Canonical; "" for a literal.
            own: Whether it belongs to the host that the gateway runs on.

        A literal needs a rule that names its address. A name's address must lie in the rule's
        `addresses`; without that key it must be public, or named by a rule of its own.
        """
        for rule in self._deny:
            if rule.whole and rule.matches_address(address) and rule.denies_port(port):
                return _denied(rule, _at(str(address), port))
        by_address = [r for r in self._allow if r.matches_address(address) and port in r.ports]
        if not name:
            if by_address:
                return Verdict(allowed=True, rule=by_address[0].key)
            named = [r for r in self._allow if r.matches_address(address)]
            return _not_allowed(str(address), port, named)
        decided = self.decide_name(name, port)
        if not decided.allowed:
            return decided
        kind = special_class(address) or ("the host's own" if own else "")
        matching = [r for r in self._allow if r.matches_name(name) and port in r.ports]
        for rule in matching:
            if rule.holds_address(address) or (not rule.addresses and (not kind or by_address)):
                return Verdict(allowed=True, rule=rule.key)
        text = (
            f"{name} has the address {address} ({kind or 'public'}), which the policy does not name "
            f"for it; ask the person to add addresses: [{address}] to {matching[0].key}"
        )
        return Verdict(
            allowed=False, reason=Why.ADDRESS_NOT_ALLOWED, rule=matching[0].key, text=text
        )

    def reads_requests(self, host: str, port: int) -> bool:
        """Whether a rule for `host` (name or address) looks at methods or paths, so that only HTTP
        may be spoken with it."""
        return any(
            not rule.whole and rule.matches(host) and (port in rule.ports or not rule.ports)
            for rule in (*self._deny, *self._allow)
        )

    def decide_request(self, method: str, host: str, path: str, *, port: int = 443) -> Verdict:
        """Whether one HTTP request may be made.

        Args:
            method: As sent; methods are case-sensitive (RFC 9110, 9.1).
            host: Canonical name, or an address as `str(ip_address)` gives it.
            path: The request's target in origin form; its query is not looked at.
            port: TCP port of the server.
        """
        rules = [r for r in self._deny if r.matches(host) and r.denies_port(port)]
        named = [r for r in self._allow if r.matches(host) and port in r.ports]
        what = f"{method} {_at(host, port)}{path.partition('?')[0]}"
        seen = path
        if any(rule.paths for rule in (*rules, *named)) and path != "*":
            try:
                seen = canonical_path(path)
            except ValueError as error:
                text = f"{what[:200]} was refused: {error}; paths are decided here by the policy"
                return Verdict(allowed=False, reason=Why.REQUEST_INVALID, text=text)
        for rule in rules:
            if rule.matches_request(method, seen):
                return _denied(rule, what)
        for rule in named:
            if rule.matches_request(method, seen):
                return Verdict(allowed=True, rule=rule.key)
        if not named:
            return _not_allowed(host, port, [r for r in self._allow if r.matches(host)])
        text = (
            f"{what[:200]} is not among the methods and paths of {named[0].key}; "
            "ask the person to add them there"
        )
        return Verdict(allowed=False, reason=Why.REQUEST_NOT_ALLOWED, rule=named[0].key, text=text)


def host_pattern(pattern: str) -> Callable[[str], bool]:
    """Whether a canonical name or address fits a host pattern. Raises `ValueError`: it means nothing."""
    network, compiled = _read_pattern(pattern)
    if compiled is not None:
        return lambda host: bool(compiled.fullmatch(host))

    def holds(host: str) -> bool:
        try:
            return network is not None and _holds(network, ip_address(host))
        except ValueError:
            return False

    return holds


class _Rule:
    def __init__(self, key: str, rule: HostRule, default_ports: tuple[int, ...] = ()) -> None:
        self.key = key
        self.ports = rule.ports or default_ports
        self.methods = rule.methods
        self.paths = tuple(_path_pattern(path) for path in rule.paths)
        try:
            self._range, self._pattern = _read_pattern(rule.host)
            self.is_pattern = self._range is None and "*" in rule.host
            exact = self._range is None and not self.is_pattern
            self.name = canonical_name(rule.host) if exact else ""
            ranges = [parse_range(text) for text in rule.addresses]
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        self.addresses = tuple(r for r in ranges if r is not None)
        if len(self.addresses) < len(ranges) or (self.addresses and self._range is not None):
            raise ValueError(f"{key}.addresses: addresses or ranges of a host that is a name")

    @property
    def whole(self) -> bool:
        """Whether it concerns whole connections, not single requests."""
        return not self.methods and not self.paths

    def matches_name(self, name: str) -> bool:
        return self._pattern is not None and bool(self._pattern.fullmatch(name))

    def matches_address(self, address: Address) -> bool:
        return self._range is not None and _holds(self._range, address)

    def matches(self, host: str) -> bool:
        if self._range is None:
            return self.matches_name(host)
        try:
            return _holds(self._range, ip_address(host))
        except ValueError:
            return False

    def holds_address(self, address: Address) -> bool:
        return any(_holds(network, address) for network in self.addresses)

    def denies_port(self, port: int | None) -> bool:
        return not self.ports or (port is not None and port in self.ports)

    def matches_request(self, method: str, path: str) -> bool:
        return (not self.methods or method in self.methods) and (
            not self.paths or any(pattern.fullmatch(path) for pattern in self.paths)
        )


def _holds(network: Range, address: Address) -> bool:
    return network.version == address.version and address in network


def _read_pattern(pattern: str) -> tuple[Range | None, re.Pattern[str] | None]:
    """The range, or the names, that a host pattern means. Raises `ValueError` with what to write."""
    try:
        network = parse_range(pattern)
        return network, None if network is not None else _name_pattern(pattern)
    except ValueError as error:
        text = _instead(pattern)
        raise ValueError(f"host {pattern[:80]!r}: {text}" if text else str(error)) from None


def _instead(pattern: str) -> str:
    """What the author of a pattern that means nothing will have meant; "" where nobody knows."""
    if pattern.startswith("."):
        return f"write **{pattern} for all names below it, or {pattern[1:]}"
    if "*" in pattern and not _WRITTEN.fullmatch(pattern):
        return "write a name, *.NAME (one label), **.NAME (any depth) or ** (any)"
    if "/" in pattern:
        with contextlib.suppress(ValueError):
            return f"write {ip_network(pattern, strict=False)}"
    found = _WRITTEN.fullmatch(pattern)
    if found is None or found["host"] == pattern:
        return ""
    port = found["port"] or {"https": "443", "http": "80"}.get(found["scheme"] or "")
    ports = f", and ports: [{port}]" if port else ""
    path = (found["path"] or "").rstrip("/")
    paths = f', and paths: ["{path}", "{path}/**"] with tls: inspect' if path else ""
    return f"write {found['host']}{ports}{paths}"


def _name_pattern(pattern: str) -> re.Pattern[str]:
    if pattern == "**":
        return re.compile(r".+", re.DOTALL)
    stars, dot, rest = pattern.partition(".")
    if stars in ("*", "**") and dot:
        below = r"[^.]+" if stars == "*" else r".+"
        return re.compile(below + re.escape("." + canonical_name(rest)))
    if "*" in pattern:
        raise ValueError("a * stands for whole labels at the beginning")
    return re.compile(re.escape(canonical_name(pattern)))


def _path_pattern(pattern: str) -> re.Pattern[str]:
    """`*` is within a segment, `**` across them; `/x/**` is `/x`, too."""
    tail = ""
    if pattern.endswith("/**"):
        pattern, tail = pattern[:-3], r"(/.*)?"
    parts = re.split(r"(\*\*|\*)", pattern)
    middle = "".join({"**": r".*", "*": r"[^/]*"}.get(part, re.escape(part)) for part in parts)
    return re.compile(middle + tail)


def _at(host: str, port: int | None) -> str:
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def _denied(rule: _Rule, what: str) -> Verdict:
    text = f"{what[:200]} is denied by {rule.key}"
    return Verdict(allowed=False, reason=Why.HOST_DENIED, rule=rule.key, text=text)


def _not_allowed(host: str, port: int | None, named: list[_Rule]) -> Verdict:
    if named:
        ports = ", ".join(str(p) for rule in named for p in rule.ports)
        text = (
            f"{host} is allowed at port {ports} only ({named[0].key}); "
            f"ask the person to add port {port} there"
        )
        return Verdict(allowed=False, reason=Why.PORT_NOT_ALLOWED, rule=named[0].key, text=text)
    wanted = f"{{host: {host!r}}}" if port is None else f"{{host: {host!r}, ports: [{port}]}}"
    text = (
        f"{_at(host, port)} is not in the policy's network.allow; "
        f"ask the person to add {wanted} to it"
    )
    return Verdict(allowed=False, reason=Why.HOST_NOT_ALLOWED, text=text)
