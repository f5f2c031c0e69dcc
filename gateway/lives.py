"""The record of a server's life: what it connected to, which none of its calls alone stands for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .audit import AuditLog, spans
from .audit.record import recorded_arguments
from .call import Version

if TYPE_CHECKING:
    from ..isolation.egress.connections import Connection

End = Callable[[Sequence["Connection"]], None]
Begin = Callable[[], End]


def life_of(log: AuditLog, name: str, version: Version, argv: Sequence[str]) -> Begin | None:
    """What records each start of a server, and returns what records its end.

    Args:
        log: Where to.
        name: The server's.
        version: What it runs under.
        argv: Its command.

    Returns:
        None where its sandbox has no network, of which there is nothing to say. What is returned raises
        OSError when the record cannot be written: then the server is not to be started.
    """
    policy = version.policy
    if policy.network.isolated:
        return None

    def begin() -> End:
        began = time.monotonic()
        record = log.begin({
            "tool": "server", "server": name, "policy": policy.name,
            "policy_version": policy.digest, "effect": "allow", "rule": "server",
            "decision_reason": "it is configured",
            "arguments": recorded_arguments(
                version.screen.recorded({"argv": list(argv)}),
                policy.audit.arguments, policy.audit.redact,
            ),
            "enforcement": version.engine.enforcement.to_json(), **spans.identity(),
        })  # fmt: skip

        def end(connections: Sequence[Connection]) -> None:
            said = {"reason": "completed", "wall_seconds": round(time.monotonic() - began, 4)}
            found = [connection.to_json() for connection in connections]
            log.end(record, {**said, **({"connections": found} if found else {})})

        return end

    return begin
