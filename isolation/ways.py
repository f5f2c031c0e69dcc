"""The ways of one engine's sandboxes out and in: a gate for each, and the ports that are published."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .link import Link
from .started import Started

if TYPE_CHECKING:
    from ..policies.model import HostRule, Network
    from .egress.connections import Connection
    from .egress.dial import Resolve
    from .egress.gate import Egress, Gate
    from .egress.publish import Inside, Publisher


class Ways:
    """Nothing where the policy's network is isolated.

    Args:
        link: Of the engine's sandboxes.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._egress: Egress | None = None
        self._gates: dict[int, Gate] = {}  # by number of their sandbox
        self._publisher: Publisher | None = None
        self._running: dict[int, Started] = {}  # for the publisher

    async def prepare(
        self, network: Network, resolve: Resolve | None, trust: Sequence[Path]
    ) -> Egress | None:
        """What a plan needs of the way out; None where there is none. Arguments as of `Engine`."""
        if network.isolated:
            return None
        from .egress.gate import Egress  # a tenth of a second that only those with network pay

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

    def withdraw(self, started: Started) -> None:
        """Let published ports not lead to it any more."""
        self._running.pop(started.number, None)

    def are_open(self, started: Started) -> bool:
        """Whether it has a gate, which `close` waits for."""
        return started.number in self._gates

    async def close(self, started: Started) -> tuple[Connection, ...]:
        """Close the gate of a sandbox that has ended; returns its connections."""
        gate = self._gates.pop(started.number, None)
        return await gate.aclose() if gate is not None else ()

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

    def _inside(self) -> list[Inside]:
        """What the publisher needs of each sandbox that runs a command."""
        return [
            (gate.ledger, partial(self._link.socket_inside, started))
            for number, started in self._running.items()
            if (gate := self._gates.get(number)) is not None
        ]
