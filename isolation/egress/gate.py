"""The only way out of a sandbox: accepts what its programs connect to, decides, and carries it.

Theory of operation
    program ──its namespace── Gate ──the host's network── server

    `Egress` (shared.py) belongs to an engine, `Gate` to one sandbox, so to one call. The sandbox's namespace hands
    every TCP connection to the gate's listening socket (netns.py), which tells the address that was
    asked for. Programs know only addresses that the gate made up when they asked for a name
    (names.py); any other is a literal and decided as one. The name is decided, the first bytes are
    read (inspect.py: SNI and Host must be that name), the name is resolved, each address decided, and
    one that passed is dialled (dial.py). What is refused is reset at once, and noted in the call's
    ledger (connections.py). A connection to the listener itself speaks a proxy's language (proxy.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from ...policies.addresses import Address, unmapped
from ...policies.hosts import Hosts, Verdict, Why
from ...policies.model import Network
from ..netns import GATE_PORT
from ..poller import Poller
from .connections import Connection, Entry, Ledger, Via
from .dial import Refused
from .names import MOST_LISTED, Listing, Names, made_up
from .opening import Opening
from .proxy import Asking, Proxy
from .questions import Questions
from .sockets import RawStream
from .tls import ByteStream, Rewound

if TYPE_CHECKING:
    from ...policies.model import HostRule
    from .shared import Egress

_MOST_OPEN = 2048  # connections of a sandbox at once
_LAST_SECONDS = 0.2  # for what a program sent before it ended
_PAUSE_SECONDS = 0.1  # when descriptors have run out
_PROXYS_HOSTS = ("::ffff:127.0.0.1", "127.0.0.1")  # as programs spell it that read `environment`
_MOST_WAYS = 1024  # decisions of a sandbox that are kept


_Live = asyncio.Task[None] | Opening | Asking


class _Way(NamedTuple):
    """What was decided of a name (or literal address) and port: allowed, by which rule."""

    name: str
    port: int
    literal: Address | None
    rule: str
    opaque: bool


class Gate:
    """The way out of one sandbox. Made by `Egress.open`, on the event loop that serves it."""

    def __init__(
        self, egress: Egress, doors: Sequence[int], only: Sequence[HostRule] | None = None
    ) -> None:
        self.egress = egress
        self._only = None if only is None else Hosts(Network(isolated=False, allow=tuple(only)))
        self.ledger = Ledger(egress.bytes_out)
        self._proxy = Proxy(self)
        self._tcp, self._udp, self._dns = (socket.socket(fileno=fd) for fd in doors[:3])
        ipv6 = self._tcp.family == socket.AF_INET6
        room = MOST_LISTED - len(egress.names)
        self._listing = Listing(doors[3], room if egress.asks else 0, mapped=egress.mapped)
        self._names = Names(egress.names, self._listing)
        self._questions = Questions(
            self._names, self.decide_name, ipv6=ipv6, refused=self.ledger.refused_name
        )
        self._loop = asyncio.get_running_loop()
        self._poller = Poller()
        self._live: set[_Live] = set()  # connections
        self._emptied: asyncio.Future[None] | None = None  # done when there are none
        self._closed = False
        # By the address and port that were connected to; what has no longer its address is not here.
        self._ways: dict[tuple[str, int], _Way] = {}
        self._names.on_taken_back = self._ways.clear
        self._listen(self._tcp, self._begin)
        self._listen(self._dns, lambda client: self.spawn(self._questions.serve(client)))
        self._poller.add_reader(self._udp.fileno(), self._questions.on_datagram, self._udp)

    def decide_name(self, name: str, port: int | None = None) -> Verdict:
        """As `Hosts.decide_name`, for this call."""
        verdict = self.egress.hosts.decide_name(name, port)
        if verdict.allowed and self._only is not None:
            return _narrowed(verdict, self._only.decide_name(name, port), name)
        return verdict

    def decide_literal(self, address: Address, port: int) -> Verdict:
        """As `Dialer.literal`, for this call."""
        verdict = self.egress.dialer.literal(address, port)
        if verdict.allowed and self._only is not None:
            return _narrowed(verdict, self._only.decide_address(address, port), str(address))
        return verdict

    def close(self) -> None:
        """Close everything at once."""
        if self._closed:
            return
        self._closed = True
        for sock in (self._tcp, self._udp, self._dns):
            self._poller.remove_reader(sock.fileno())
            sock.close()
        self._listing.close()
        for one in tuple(self._live):
            if isinstance(one, asyncio.Task):
                one.cancel()
            else:
                one.abort()
                self._over(one)
        self._poller.close()

    async def aclose(self) -> tuple[Connection, ...]:
        """Close when the sandbox has ended: first what its programs sent is carried out.

        Returns:
            What its connections did.
        """
        if self._live:
            self._emptied = self._loop.create_future()
            await asyncio.wait((self._emptied,), timeout=_LAST_SECONDS)
        self.close()
        if self._live:
            await asyncio.gather(*cast(set[asyncio.Task[None]], self._live), return_exceptions=True)
        return self.ledger.connections()

    def _listen(self, door: socket.socket, serve: Callable[[RawStream], None]) -> None:
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ready() -> None:
            # One: to ask whether there is another takes longer than to be told.
            try:
                sock, _ = door.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._poller.remove_reader(door.fileno())
                    self._loop.call_later(_PAUSE_SECONDS, again)
                return
            sock.setblocking(False)
            serve(RawStream(sock, watcher=self._poller, at_once=True))

        def again() -> None:
            if not self._closed:
                self._poller.add_reader(door.fileno(), ready)

        again()

    def spawn(self, serving: Coroutine[None, None, None]) -> None:
        """Serve by a task, which ends with the gate."""
        task = self._loop.create_task(serving)
        self._live.add(task)
        task.add_done_callback(self._over)

    def _over(self, one: _Live) -> None:
        self._live.discard(one)
        if self._emptied is not None and not self._live and not self._emptied.done():
            self._emptied.set_result(None)

    def _begin(self, client: RawStream) -> None:
        try:
            host, port = client.sock.getsockname()[:2]
        except OSError:
            client.abort()
            return
        if len(self._live) >= _MOST_OPEN:
            entry = self.ledger.begin("direct", address=str(unmapped(host)), port=port)
            text = f"over {_MOST_OPEN} connections at once; close some first"
            entry.refuse(Verdict(allowed=False, reason=Why.TOO_MANY_CONNECTIONS, text=text))
            entry.end()
            client.abort()
        elif (way := self._ways.get((host, port))) is not None:
            self._open(client, way)
        elif port == GATE_PORT and (host in _PROXYS_HOSTS or unmapped(host).is_loopback):
            asking = Asking(client, self._proxy, self._over)
            self._live.add(asking)
            asking.start()
        else:
            self._direct(client, host, unmapped(host), port)

    def _direct(self, client: RawStream, host: str, address: Address, port: int) -> None:
        """A program that knows nothing of the gate: `address` is what it connected to."""
        name = self._names.name_of(address) if made_up(address) else None
        if name is not None:
            verdict = self.decide_name(name, port)
            literal = None
        else:
            verdict = self.decide_literal(address, port)
            literal = address
        if not verdict.allowed:
            asked = name or ""
            literally = "" if name else str(address)
            entry = self.ledger.begin("direct", name=asked, address=literally, port=port)
            entry.refuse(verdict)
            entry.end()
            client.abort()
            return
        opaque = not self.egress.hosts.reads_requests(name or str(address), port)
        way = _Way(name or "", port, literal, verdict.rule, opaque)
        if name is not None:  # which address is the host's own may change; a policy does not
            if len(self._ways) >= _MOST_WAYS:
                self._ways.clear()
            self._ways[host, port] = way
        self._open(client, way)

    def _open(self, client: RawStream, way: _Way) -> None:
        ahead = None
        if way.opaque and way.literal is None:
            ahead = self.egress.dialer.ahead(way.name, way.port, self._poller)
        literal = "" if way.literal is None else str(way.literal)
        entry = self.ledger.begin("direct", name=way.name, address=literal, port=way.port)
        entry.rule = way.rule
        opening = Opening(
            client, entry, way.literal, dialer=self.egress.dialer, ahead=ahead,
            interceptor=self.egress.interceptor, opaque=way.opaque, on_left=self._left,
        )  # fmt: skip
        self._live.add(opening)
        opening.start()

    def tunnel(
        self, client: RawStream, via: Via, name: str, port: int, verdict: Verdict, reply: bytes,
        rest: bytes,
    ) -> None:  # fmt: skip
        """Connect a program that asked a proxy for an allowed name, by callbacks where they will do.

        Args:
            client: Its end.
            via: How it asked.
            name, port, verdict: What for, and what was decided.
            reply: What it is told when the server is reached.
            rest: Of its first bytes, what was read.
        """
        ahead = self.egress.dialer.ahead(name, port, self._poller)
        if (
            ahead is not None and ahead.connected
        ):  # it is told at once: it has something to do meanwhile
            with contextlib.suppress(OSError):  # it has gone, which will be seen
                reply = reply[client.sock.send(reply) :]
        entry = self.ledger.begin(via, name=name, port=port)
        entry.rule = verdict.rule
        opening = Opening(
            client, entry, None, dialer=self.egress.dialer, interceptor=self.egress.interceptor,
            opaque=not self.egress.hosts.reads_requests(name, port), on_left=self._left,
            ahead=ahead, reply=reply, held=rest,
        )  # fmt: skip
        if ahead is not None:
            self._live.add(opening)
            opening.start()
        else:
            self.spawn(self._go_on(opening, rest))

    def _left(self, opening: Opening, first: bytes | None) -> None:
        if first is None:
            opening.entry.end()
        else:
            self.spawn(self._go_on(opening, first))
        self._over(opening)

    async def _go_on(self, opening: Opening, first: bytes) -> None:
        """Serve a connection that wants more than callbacks, of which `first` was read."""
        client = opening.client
        try:
            if opening.reply:
                await self._proxy.reach(
                    client, opening.entry, opening.literal, opening.reply, first
                )
                return
            stream = Rewound(client, first) if first else client
            await self.carry(
                stream, opening.entry, opening.literal, early=opening.early, hushed=not first
            )
        except OSError:
            client.abort()
        finally:
            opening.entry.end()
            client.close()

    async def carry(
        self, client: ByteStream, entry: Entry, literal: Address | None, *,
        early: ByteStream | None = None, single: bool = False, hushed: bool = False,
    ) -> None:  # fmt: skip
        """Serve a connection whose name or address, and port, are allowed; closes it.

        Args:
            client: The program's end.
            entry: Its account; names what was asked for.
            literal: The address that was asked for; None where it was `entry.name`.
            early: A connection to the server that is there already.
            single, hushed: As in `Interceptor.serve`.
        """
        host = entry.name if literal is None else str(literal)
        ready = [early] if early is not None else []
        try:
            dial = self.dialling(entry, literal)

            async def next_connection() -> ByteStream:
                return ready.pop() if ready else await dial()

            await self.egress.interceptor.serve(
                client, host, entry.port, dial=next_connection, decide=self.egress.decide,
                on_exchange=entry.exchanged, single=single, hushed=hushed,
                opaque=not self.egress.hosts.reads_requests(host, entry.port),
            )  # fmt: skip
        finally:
            for unused in ready:
                unused.abort()

    def dialling(self, entry: Entry, literal: Address | None) -> Callable[[], Awaitable[RawStream]]:
        """How the server of `entry` is dialled. The name is resolved once for all its connections."""
        dialer = self.egress.dialer
        found: list[Address] = [] if literal is None else [literal]

        async def reach(addresses: Sequence[Address]) -> RawStream:
            what = entry.name or str(literal)
            stream, address = await dialer.connect(addresses, entry.port, what, entry, self._poller)
            found[:] = [address]
            entry.address = str(address)
            return stream

        async def dial() -> RawStream:
            if not found and (known := dialer.remembered(entry.name, entry.port)) is not None:
                with contextlib.suppress(Refused):
                    stream = await reach([known[0]])
                    entry.rule = known[1]
                    return stream
                dialer.forget(entry.name, entry.port)
            try:
                if found:
                    return await reach(found)
                allowed, verdict = await dialer.addresses(entry.name, entry.port)
                entry.rule = verdict.rule
                stream = await reach(allowed)
            except Refused as error:
                entry.refuse(error.verdict)
                raise
            dialer.remember(entry.name, entry.port, found[0], entry.rule)
            return stream

        return dial


def _narrowed(verdict: Verdict, only: Verdict, what: str) -> Verdict:
    """The policy's `verdict`, unless the call is for other hosts only."""
    if only.allowed:
        return verdict
    text = f"{what} is allowed by {verdict.rule}, but this call named another host or port"
    return Verdict(allowed=False, reason=only.reason, rule="call", text=text)
