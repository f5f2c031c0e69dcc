"""The ways of one engine's sandboxes out, in, and to each other: a gate for each, the ports that are
published, and the loopbacks that sessions share."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .errors import SetupError
from .link import Link
from .started import Started

if TYPE_CHECKING:
    import socket

    from ..policies.model import HostRule, Network
    from .egress.connections import Connection
    from .egress.dial import Resolve
    from .egress.gate import Gate
    from .egress.publish import Inside, Publisher
    from .egress.shared import Egress
    from .loopback import Loopback


class Membership(NamedTuple):
    """A sandbox's part in a session's loopback.

    Attributes:
        session: Whatever names it.
        name: What records call it; its ports can be reached by the session's others. "" for one that
            only reaches.
    """

    session: Hashable
    name: str = ""


class Ways:
    """No way out or in where the policy's network is isolated.

    Args:
        link: Of the engine's sandboxes.

    Attributes:
        shares: Whether sessions share a loopback here; not before its engine says so.
        exist: Whether there are any: else no sandbox need be spoken of here.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._egress: Egress | None = None
        self._gates: dict[int, Gate] = {}  # by number of their sandbox
        self._publisher: Publisher | None = None
        self._running: dict[int, Started] = {}  # for the publisher
        self.shares = False
        self._loopbacks: dict[Hashable, Loopback] = {}  # by session
        self._sessions: dict[int, Hashable] = {}  # by number of their sandbox

    @property
    def exist(self) -> bool:
        return self._egress is not None or bool(self._sessions)

    async def prepare(
        self, network: Network, resolve: Resolve | None, trust: Sequence[Path]
    ) -> Egress | None:
        """What a plan needs of the way out; None where there is none. Arguments as of `Engine`."""
        if network.isolated:
            return None
        from .egress.shared import Egress  # a tenth of a second that only those with network pay

        make = partial(Egress, network, resolve=resolve, trust=trust)
        self._egress = await asyncio.to_thread(make)
        return self._egress

    def listen(self, network: Network) -> None:
        """Publish what `network.listen` names. Raises `SetupError`."""
        if self._egress is not None and network.listen:
            from .egress.publish import Publisher

            self._publisher = Publisher(network.listen, self._inside)

    @property
    def credentials(self) -> Mapping[str, str]:
        """Names and values of what is put into requests."""
        return {} if self._egress is None else self._egress.vault.values

    def open(self, started: Started, only: Sequence[HostRule] | None = None) -> None:
        """Take its doors, before its command starts; `only` as in `Egress.open`."""
        doors, started.doors = started.doors, []
        if self._egress is not None and doors:
            self._gates[started.number] = self._egress.open(doors, only)

    def publish(self, started: Started) -> None:
        """Let published ports lead to it, before they lead to those that began earlier."""
        self._running[started.number] = started

    async def join(self, started: Started, membership: Membership) -> None:
        """Let it reach what its session's processes listen on, before its command starts."""
        if not self.shares:
            return
        from .loopback import Loopback

        session = membership.session
        loopback = self._loopbacks.get(session)
        if loopback is None:
            loopback = self._loopbacks[session] = Loopback(self._link)
        self._sessions[started.number] = session
        await loopback.join(started, membership.name)

    def withdraw(self, started: Started) -> None:
        """Let published ports not lead to it any more."""
        self._running.pop(started.number, None)
        if (loopback := self._loopback_of(started)) and not loopback.is_used(started.number):
            loopback.drop(started.number)
            self._left(started)

    def are_open(self, started: Started) -> bool:
        """Whether it has a gate, or others' ports, which `close` waits for."""
        return started.number in self._gates or started.number in self._sessions

    async def close(self, started: Started) -> tuple[Connection, ...]:
        """Close the ways of a sandbox that has ended; returns its connections."""
        gate = self._gates.pop(started.number, None)
        connections = await gate.aclose() if gate is not None else ()
        if loopback := self._loopback_of(started):
            connections += await loopback.leave(started.number)
            self._left(started)
        return connections

    def drop(self, started: Started) -> None:
        """Close the gate of a sandbox that nobody has used."""
        if gate := self._gates.pop(started.number, None):
            gate.close()

    def close_ports(self) -> None:
        """Publish nothing any more."""
        if self._publisher is not None:
            self._publisher.close()

    def close_all(self) -> None:
        """Close what is left; its sandboxes must be gone."""
        for gate in self._gates.values():
            gate.close()
        self._gates.clear()
        self._running.clear()
        if self._egress is not None:
            self._egress.close()

    def _loopback_of(self, started: Started) -> Loopback | None:
        if started.number not in self._sessions:
            return None
        return self._loopbacks[self._sessions[started.number]]

    def _left(self, started: Started) -> None:
        session = self._sessions.pop(started.number)
        if self._loopbacks[session].is_empty:
            del self._loopbacks[session]

    async def _connecting(self, started: Started) -> socket.socket:
        """A socket in it, to be connected by IPv4. Raises `SetupError`."""
        (sock,) = await self._link.sockets_inside(started, [("connect", "127.0.0.1", 0)])
        if sock is None:
            raise SetupError("no socket can be had in the sandbox")
        return sock

    def _inside(self) -> list[Inside]:
        """What the publisher needs of each sandbox that runs a command."""
        return [
            (gate.ledger, partial(self._connecting, started))
            for number, started in self._running.items()
            if (gate := self._gates.get(number)) is not None
        ]
