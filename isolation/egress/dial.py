"""The gateway's side of a connection: a name is resolved once, and an address that passed is dialled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ...policies.addresses import Address, special_class, unmapped
from ...policies.hosts import Hosts, Verdict, Why
from ..poller import Watcher
from .sockets import RawStream, Tally

Resolve = Callable[[str], Awaitable[Sequence[Address]]]
RESOLVE_SECONDS = 10.0
CONNECT_SECONDS = 10.0  # for each address; SSH and curl wait longer, a model should not
_MOST_ADDRESSES = 8  # of a name that are tried
_MOST_REMEMBERED = 1024
_REMEMBERED_SECONDS = 5.0  # getaddrinfo(3) tells no TTL; a name's owner can move it as fast


class Refused(OSError):
    """The server may not be dialled, or cannot be."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(errno.ECONNREFUSED, verdict.text)
        self.verdict = verdict

    def __str__(self) -> str:
        return self.verdict.text


class SystemResolver:
    """getaddrinfo(3) of the host. A server that never answers holds a thread of these, no other."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="purple-resolve")

    async def __call__(self, name: str) -> Sequence[Address]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(unmapped(str(entry[4][0])) for entry in found))

    def close(self) -> None:
        """Wait for no question that is still open."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def is_own(address: Address) -> bool:
    """Whether `address` is one of this host's: whether a socket can be bound to it. bind(2)."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError:
        return False
    return True


def _matters(address: Address) -> bool:
    """Whether it is the host's own and not refused already for what it is."""
    return not special_class(address) and is_own(address)


class Ahead(NamedTuple):
    """A connection to where a name was reached a moment ago, before anything else is made of it.

    Attributes:
        stream: Counts nothing yet.
        address: That is dialled, and as it is written.
        rule: By which it passed.
        connected: Whether it is there; else it is on its way.
    """

    stream: RawStream
    address: Address
    text: str
    rule: str
    connected: bool


class Dialer:
    """Dials for one policy.

    Args:
        hosts: Its rules.
        resolve: How names are resolved.
    """

    def __init__(self, hosts: Hosts, resolve: Resolve) -> None:
        self._hosts = hosts
        self._resolve = resolve
        # By name and port: where, as it is written, by which rule, until when.
        self._answered: dict[tuple[str, int], tuple[Address, str, str, float]] = {}
        self._spare: socket.socket | None = None  # IPv4: one takes as long as much of the rest

    async def addresses(self, name: str, port: int) -> tuple[list[Address], Verdict]:
        """Where `name` leads and the policy lets it, and the verdict on the first of them.

        Raises:
            Refused: nowhere.
        """
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                found = await self._resolve(name)
        except TimeoutError:
            raise _failed(Why.UNRESOLVED, f"{name}: no name server answered") from None
        except OSError as error:
            said = error.strerror or str(error)
            raise _failed(Why.UNRESOLVED, f"{name} does not resolve: {said}") from error
        if not found:
            raise _failed(Why.UNRESOLVED, f"{name} has no address")
        verdicts = [
            (a, self._hosts.decide_address(a, port, name=name, own=_matters(a)))
            for a in found[:_MOST_ADDRESSES]
        ]
        allowed = [(a, verdict) for a, verdict in verdicts if verdict.allowed]
        if not allowed:
            raise Refused(verdicts[0][1])
        return [a for a, _ in allowed], allowed[0][1]

    def remember(self, name: str, port: int, address: Address, rule: str) -> None:
        """Keep an address of a name that passed and answered, for `remembered`."""
        if len(self._answered) >= _MOST_REMEMBERED:
            self._answered.clear()
        until = time.monotonic() + _REMEMBERED_SECONDS
        self._answered[name, port] = (address, str(address), rule, until)

    def remembered(self, name: str, port: int) -> tuple[Address, str] | None:
        """The address that `name` was reached at a moment ago, and by which rule: programs make many
        connections at once. None when there was none, or it was too long ago."""
        found = self._recent(name, port)
        return None if found is None else (found[0], found[2])

    def _recent(self, name: str, port: int) -> tuple[Address, str, str, float] | None:
        found = self._answered.get((name, port))
        if found is not None and time.monotonic() > found[3]:
            self.forget(name, port)
            return None
        return found

    def forget(self, name: str, port: int) -> None:
        """It does not answer there any more."""
        self._answered.pop((name, port), None)

    def literal(self, address: Address, port: int) -> Verdict:
        """The policy's word on an address that was asked for as such."""
        return self._hosts.decide_address(address, port, own=_matters(address))

    def ahead(self, name: str, port: int, watcher: Watcher) -> Ahead | None:
        """Dial where `name` was reached a moment ago; None where it was not, or is not any more."""
        found = self._recent(name, port)
        if found is None:
            return None
        address, text, rule, _ = found
        stream = self.stream(address, None, watcher)
        try:
            return Ahead(stream, address, text, rule, stream.connected(text, port))
        except OSError:
            stream.close()
            self.forget(name, port)
            return None

    def stream(self, address: Address, tally: Tally | None, watcher: Watcher) -> RawStream:
        """A socket of the host that `address` can be dialled with."""
        if address.version == 6 or self._spare is None:
            return tcp_stream(address, tally, watcher)
        sock, self._spare = self._spare, None
        return RawStream(sock, tally, watcher, at_once=True)

    def stock(self) -> None:
        """Have a socket for the next `stream`. Best called when nobody waits."""
        if self._spare is None:
            with contextlib.suppress(OSError):  # whoever wants one will hear of it
                self._spare = _socket(socket.AF_INET)

    def close(self) -> None:
        """Have none any more."""
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    async def connect(
        self, addresses: Sequence[Address], port: int, what: str, tally: Tally,
        watcher: Watcher | None = None,
    ) -> tuple[RawStream, Address]:  # fmt: skip
        """A connection to the first of `addresses` that answers. Raises `Refused`."""
        said = ""
        for address in addresses:
            stream = tcp_stream(address, tally, watcher)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await stream.connect(str(address), port)
                return stream, address
            except TimeoutError:
                said = "no answer"
                stream.close()
            except OSError as error:
                said = os.strerror(error.errno) if error.errno else str(error)
                stream.close()
            except BaseException:
                stream.close()
                raise
        raise _failed(Why.UPSTREAM_FAILED, f"{what}:{port} could not be reached: {said}")


def tcp_stream(address: Address, tally: Tally | None, watcher: Watcher | None) -> RawStream:
    """A socket of the host that `address` can be dialled with."""
    sock = _socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
    return RawStream(sock, tally, watcher, at_once=True)


def _socket(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _failed(reason: Why, text: str) -> Refused:
    return Refused(Verdict(allowed=False, reason=reason, text=text))
