"""How each server behind a gateway fares, for `purple ps`."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

# "waiting": it has ended, and starts again with the next request after its pause.
State = Literal["not started", "starting", "running", "waiting"]


@dataclass
class Health:
    """One server of one session.

    Attributes:
        state: What it does now.
        starts: How often it was started; all but the first are restarts.
        requests, failed: Sent to it, and answered with an error of the protocol or not at all.
        last_error: Why it ended last, or could not be started; "" while it never has.
        since: When it got into this state, of the monotonic clock.
    """

    state: State = "not started"
    starts: int = 0
    requests: int = 0
    failed: int = 0
    last_error: str = ""
    since: float = field(default_factory=time.monotonic)

    def enter(self, state: State, error: str = "") -> None:
        """Get into a state."""
        self.state, self.since = state, time.monotonic()
        self.last_error = error or self.last_error


class Watched(Protocol):
    """A server whose health is known."""

    name: str
    health: Health

    def whose(self) -> str:
        """The client that it serves; "" while that is unknown."""
        ...


class Roster:
    """The servers of a gateway, as long as they are there.

    Args:
        gateway: What the gateway serves, for a person.

    Attributes:
        reload_refused: Why the policy in force is not what its file says now; "" when it is.
        processes: Gives those in the background, as `Processes.status`.
    """

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._servers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._started = time.monotonic()
        self.reload_refused = ""
        self.processes: Callable[[], list[dict[str, Any]]] = list

    def add(self, server: Watched) -> None:
        """Watch a server from now on."""
        self._servers.add(server)

    def status(self) -> dict[str, Any]:
        """As JSON: `{gateway, uptime_seconds, reload_refused, servers: [{server, client, state, …}],
        processes: [{process_id, command, …}]}`."""
        now = time.monotonic()
        servers: list[Watched] = sorted(self._servers, key=lambda s: (s.name, s.health.since))
        return {
            "gateway": self._gateway,
            "uptime_seconds": round(now - self._started, 1),
            "reload_refused": self.reload_refused,
            "servers": [
                {
                    "server": s.name, "client": s.whose(), "state": s.health.state,
                    "seconds": round(now - s.health.since, 1), "requests": s.health.requests,
                    "failed": s.health.failed, "restarts": max(0, s.health.starts - 1),
                    "last_error": s.health.last_error,
                }
                for s in servers
            ],
            "processes": self.processes(),
        }  # fmt: skip
