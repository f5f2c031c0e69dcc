"""What one list of host rules reaches and another does not: for `diff`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from .addresses import holds_special, parse_range
from .check import covers_host
from .hosts import WEB_PORTS
from .words import host_words

if TYPE_CHECKING:
    from .model import HostRule

Found = tuple[Literal["wider", "narrower"], str]


class _Part(NamedTuple):
    """A rule at one port, 0 for every one."""

    rule: HostRule
    port: int

    @property
    def rest(self) -> tuple[object, ...]:
        rule = self.rule
        return rule.host, rule.methods, rule.paths, rule.addresses


def reached(old: Sequence[HostRule], new: Sequence[HostRule]) -> Iterator[Found]:
    """What of `network.allow` allows more, and what less."""
    before, after = _parts(old, WEB_PORTS), _parts(new, WEB_PORTS)
    for words in _beyond(after, before):
        yield "wider", f"may reach {_joined(words)}"
    for parts, left in _lost(before, after):
        only = f", only {_joined(left)}" if left else ""
        elsewhere = not left and not parts[0].rule.addresses and _elsewhere(parts, after)
        where = " at public addresses" if elsewhere else ""
        yield "narrower", f"may no longer reach {_joined(parts)}{where}{only}"


def denied(old: Sequence[HostRule], new: Sequence[HostRule]) -> Iterator[Found]:
    """What of `network.deny` allows more, and what less."""
    before, after = _parts(old, (0,)), _parts(new, (0,))
    for words in _beyond(after, before):
        yield "narrower", f"may no longer reach {_joined(words)}"
    for parts, left in _lost(before, after):
        only = f", only {_joined(left)} is" if left else ""
        yield "wider", f"{_joined(parts)} is no longer denied{only}"


def _parts(rules: Sequence[HostRule], ports: Sequence[int]) -> list[_Part]:
    """Each rule at each of its ports; `ports` are those of a rule that names none."""
    return [_Part(rule, port) for rule in rules for port in rule.ports or ports]


def _beyond(parts: Sequence[_Part], others: Sequence[_Part]) -> list[list[_Part]]:
    """Those that no one of `others` covers; such as differ by their port alone together."""
    groups: dict[tuple[object, ...], list[_Part]] = {}
    for part in parts:
        if not any(_covers(other, part) for other in others):
            groups.setdefault(part.rest, []).append(part)
    return list(groups.values())


def _lost(
    before: Sequence[_Part], after: Sequence[_Part]
) -> Iterator[tuple[list[_Part], list[_Part]]]:
    """As `_beyond`; with what is left of each."""
    for parts in _beyond(before, after):
        yield parts, [other for other in after if any(_covers(part, other) for part in parts)]


def _elsewhere(parts: Sequence[_Part], others: Sequence[_Part]) -> bool:
    """Whether others are of the same host, at addresses of their own."""
    return any(other.rule.host == parts[0].rule.host and other.rule.addresses for other in others)


def _joined(parts: Sequence[_Part]) -> str:
    groups: dict[tuple[object, ...], list[_Part]] = {}
    for part in parts:
        groups.setdefault(part.rest, []).append(part)
    return ", ".join(map(_words, groups.values()))


def _words(parts: Sequence[_Part]) -> str:
    """Of parts that differ by their port alone."""
    rule = parts[0].rule
    ports = tuple(dict.fromkeys(part.port for part in parts if part.port))
    usual = () if set(ports) == set(WEB_PORTS) else ports
    text = host_words(rule.model_copy(update={"ports": usual}))
    return f"{text} at {', '.join(rule.addresses)}" if rule.addresses else text


def _covers(part: _Part, other: _Part) -> bool:
    """Whether `part` surely concerns all that `other` does."""
    one, two = part.rule, other.rule
    return (
        part.port in (0, other.port)
        and _covers_hosts(one.host, two.host)
        and (not one.methods or (bool(two.methods) and set(two.methods) <= set(one.methods)))
        and (not one.paths or (bool(two.paths) and all(_in_paths(p, one.paths) for p in two.paths)))
        and _covers_addresses(one.addresses, two.addresses)
    )


def _covers_hosts(one: str, two: str) -> bool:
    """As `covers_host`; a name never stands for an address."""
    if one == two:
        return True
    try:
        first, second = parse_range(one), parse_range(two)
    except ValueError:
        return False
    if first is None and second is None:
        return covers_host(one, two)
    return first is not None and second is not None and _in_ranges(two, (one,))


def _covers_addresses(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether where names may lead by `one` is all that they may by `two`; empty is public addresses."""
    if not one:
        return not any(holds_special(text) for text in two)
    return bool(two) and all(_in_ranges(text, one) for text in two)


def _in_ranges(text: str, ranges: Sequence[str]) -> bool:
    try:
        network = parse_range(text)
        others = [parse_range(other) for other in ranges]
    except ValueError:
        return text in ranges
    # Those of one version can be compared, which type checkers do not see.
    return network is not None and any(
        other is not None
        and other.version == network.version
        and other.network_address <= network.network_address  # type: ignore[operator]
        and network.broadcast_address <= other.broadcast_address  # type: ignore[operator]
        for other in others
    )


def _in_paths(path: str, patterns: Sequence[str]) -> bool:
    return any(
        path == pattern
        or (pattern.endswith("/**") and (path == pattern[:-3] or path.startswith(pattern[:-2])))
        for pattern in patterns
    )
