"""From a policy's tools and one call's canonical arguments to the least that serves that call. Pure.

A `Grant` never adds to its policy: the sandbox holds what both allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .model import HostRule
from .request import BUILT_IN

if TYPE_CHECKING:
    from .request import Request

Scope = Literal["call", "server", "policy"]


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What one call may touch, of what its policy allows.

    Attributes:
        scope: How it is held. "call": the kernel holds this call to `read`, `write` and `hosts`.
            "policy": what the call will touch is not in its arguments (a command), so it has all
            that the policy allows. "server": the process that carries it out outlives the call and
            has all of its policy; `read`, `write` and `hosts` are what the arguments name, and are
            checked against the policy before they are forwarded.
        read: Absolute paths: a file, or a directory with what is below it.
        write: Likewise; these may be made, changed and removed.
        hosts: What may be reached, one port each; nothing else, whatever the policy allows.
    """

    scope: Scope = "call"
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hosts: tuple[HostRule, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For records and `purple profile explain`."""
        return {
            "scope": self.scope,
            "read": list(self.read),
            "write": list(self.write),
            "hosts": [{"host": rule.host, "ports": list(rule.ports)} for rule in self.hosts],
        }


WHOLE = Grant(scope="policy")
_NOTHING: dict[Scope, Grant] = {"call": Grant(scope="call"), "server": Grant(scope="server")}


def narrow(request: Request) -> Grant:
    """The least that serves `request`.

    Of a built-in tool by what it is; of another server's by the policy's `tools.arguments`. What a
    built-in tool uses both ways or either way (`path`) may be written; what another server's does,
    has to be visible, and the kernel decides whether that may be written.
    """
    scope: Scope = "call"
    if request.server:
        scope = "server"
    elif not _is_narrow(request.tool):
        return WHOLE
    if not request.uses:
        return _NOTHING[scope]
    declared = [use for use in request.uses if use.declared]
    hosts = {
        (url.host, url.port): HostRule(host=url.host, ports=(url.port,))
        for url in request.urls
        if url.host and url.port and any(u.kind == "url" and u.value == url.text for u in declared)
    }
    reading = ("read", "path") if request.server else ("read",)
    paths = [u for u in declared if u.kind in ("read", "write", "path")]
    return Grant(
        scope=scope,
        read=tuple(dict.fromkeys(u.value for u in paths if u.kind in reading)),
        write=tuple(dict.fromkeys(u.value for u in paths if u.kind not in reading)),
        hosts=tuple(hosts.values()),
    )


def _is_narrow(tool: str) -> bool:
    """Whether the arguments of a built-in tool say all that it touches."""
    kinds = BUILT_IN.get(tool, {})
    return bool(kinds) and "command" not in kinds.values()
