"""Flow: what a session may still send, once it has taken something in. Pure.

A rule of `flow` says what is private (`after.read`) or untrusted (`after.host`, `after.tool`), and what
the calls that could send it out meet from then on. Who judges keeps the marks of a session; here is
which rules a call sets off, and what a marked session's call meets.

A call whose arguments say all that it touches is known by them. What a command, or a server that
outlives its calls, has read nobody knows: it counts as having read whatever its sandbox shows it. The
hosts that a command was connected with are known when it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from .canonical import Place, path_pattern
from .hosts import host_pattern
from .request import restricted_as
from .rules import CODES, ORDER, Decision, Effect

if TYPE_CHECKING:
    from .judging import FlowRule
    from .model import Policy
    from .narrow import Grant
    from .request import Request

# Built-in tools that read all that is below the directory they are given.
_READ_BELOW = frozenset(["search_text"])


class Flow:
    """The flow rules of one policy, compiled.

    Args:
        policy: Whose `flow` these are.
        place: Where relative patterns begin.
    """

    def __init__(self, policy: Policy, place: Place) -> None:
        self._isolated = policy.network.isolated
        self._reachable = tuple(rule.host for rule in policy.network.allow)
        self._rules = [_Rule(index, rule, place) for index, rule in enumerate(policy.flow)]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def every(self) -> dict[str, str]:
        """The marks of a session that has set off every rule."""
        return {rule.key: "is marked" for rule in self._rules}

    def marks(
        self, request: Request, grant: Grant, sees: Callable[[str], bool]
    ) -> dict[str, str]:  # fmt: skip
        """The rules that a call sets off: key (`_Rule.key`) to what it took in, in words.

        Args:
            request: The call, its paths where they lead.
            grant: What it gets.
            sees: Whether its sandbox shows anything at or below a path, or the path itself.
        """
        found: dict[str, str] = {}
        for rule in self._rules:
            if what := self._taken(rule, request, grant, sees):
                found[rule.key] = what
        return found

    def _taken(
        self, rule: _Rule, request: Request, grant: Grant, sees: Callable[[str], bool]
    ) -> str:
        for name in restricted_as(request.tool, request.server):
            if any(fnmatchcase(name, glob) for glob in rule.tools):
                return f"called {name}"
        for url in request.urls:
            if any(matches(url.host) for matches in rule.hosts):
                return f"asked {url.host}"
        if grant.scope == "call":
            for path in (*grant.read, *grant.write):
                if rule.is_private(path, below=request.tool in _READ_BELOW):
                    return f"read {path}"
            return ""
        for pattern, start in rule.starts:
            if sees(start):
                return f"had {pattern} in its sandbox"
        # The connections of a command are known when it has ended: `reached`.
        known = not request.server and request.tool == "shell"
        if not known and not self._isolated and any(map(rule.may_match_host, self._reachable)):
            return "could reach such a host"
        return ""

    def reached(self, hosts: Sequence[str], *, all_known: bool = True) -> dict[str, str]:
        """The rules that a command has set off by the hosts that it was connected with.

        Args:
            hosts: Names, or addresses where there was no name.
            all_known: Whether these are all; else every rule about hosts counts as set off.
        """
        found: dict[str, str] = {}
        for rule in self._rules:
            if not all_known and rule.hosts:
                found[rule.key] = "had more connections than are kept"
            for host in hosts:
                if any(matches(host) for matches in rule.hosts):
                    found[rule.key] = f"was connected with {host}"
        return found

    def verdict(self, request: Request, grant: Grant, marked: Mapping[str, str]) -> Decision | None:
        """What a call meets in a session with these marks; None where that is nothing.

        Args:
            request, grant: As in `marks`.
            marked: Key of a rule to what the session took in, in words.
        """
        found: list[Decision] = []
        for rule in self._rules:
            if rule.key in marked and (effect := self._effect(rule, request, grant)):
                why = f"; {rule.reason}" if rule.reason else ""
                reason = f"this session {marked[rule.key]}, and this call could send it out{why}"
                code = "flow_denied" if effect == "deny" else CODES[effect]
                found.append(
                    Decision(effect=effect, reason=reason, rule=f"flow[{rule.index}]", code=code)
                )
        return min(found, key=lambda decision: ORDER.index(decision.effect), default=None)

    def _effect(self, rule: _Rule, request: Request, grant: Grant) -> Effect | None:
        found: list[Effect] = [
            effect
            for glob, effect in rule.then.items()
            if any(fnmatchcase(name, glob) for name in restricted_as(request.tool, request.server))
        ]
        sends = not self._isolated and (grant.scope != "call" or bool(grant.hosts))
        if sends and rule.network is not None:
            found.append(rule.network)
        return min(found, key=ORDER.index, default=None)


class _Rule:
    """One rule. `key` is what it says, so that it is the same rule in every policy that says it."""

    def __init__(self, index: int, rule: FlowRule, place: Place) -> None:
        self.index, self.reason = index, rule.reason
        self.key = rule.model_dump_json()
        self.tools = rule.after.tool
        self._host_texts = rule.after.host
        self.hosts = [host_pattern(host) for host in rule.after.host]
        self.network: Effect | None = rule.then.network
        self.then: Mapping[str, Effect] = dict(rule.then.tool)
        self._patterns = [path_pattern(text, place) for text in rule.after.read]
        self.starts = [(text, _start(text, place)) for text in rule.after.read]

    def is_private(self, path: str, *, below: bool) -> bool:
        """Whether `path`, or with `below` anything below it, may be private."""
        if any(pattern.fullmatch(path) for pattern in self._patterns):
            return True
        inside = path.rstrip("/") + "/"
        return below and any(f"{start}/".startswith(inside) for _, start in self.starts)

    def may_match_host(self, pattern: str) -> bool:
        """Whether a host that `pattern` allows may be one of this rule's."""
        from .check import may_touch

        return any(may_touch(pattern, host) for host in self._host_texts)


def _start(pattern: str, place: Place) -> str:
    """The directory (or file) below which all that `pattern` matches lies."""
    if pattern == "~" or pattern.startswith("~/"):
        pattern = place.home + pattern[1:]
    elif not pattern.startswith("/"):
        pattern = f"{place.start}/{pattern}"
    parts: list[str] = []
    for part in pattern.split("/"):
        if any(mark in part for mark in "*?"):
            break
        if part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)
