"""Ports of a session's background processes, on the loopbacks of its other sandboxes.

Theory of operation
    program ──its 127.0.0.1 or ::1, PORT── Loopback ──a socket made in the process's namespace── process

    Each sandbox keeps its network namespace. Those of one session are members of a `Loopback`; a member
    with a name serves. What its programs listen on (listening.py) is asked of the kernel when a member
    comes, before its command starts, and a few times a second while there is somebody to serve. Each
    such address and port gets a door in the namespace of every other member: a listening socket of the
    gateway's, made there by the zygote. What comes in is carried to the process that listens, the oldest
    where several do, and is in the ledger of the member that it came from.

    As on one machine a port can be bound once: while a door has it, a program gets EADDRINUSE; where a
    program has it, there is no door. A namespace in which the gateway has had sockets is not used again
    (zygote.py), so that no door is ever in another session's sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from dataclasses import dataclass, field

from ..policies.hosts import Verdict, Why
from .egress.connections import Connection, Ledger
from .egress.relay import relay
from .egress.sockets import RawStream
from .errors import SetupError
from .link import Link
from .listening import listening
from .netns import MOST_WANTED
from .started import Started

_LOOK_SECONDS = 0.2
_REST = 20  # times as long as a look took: a twentieth of the event loop's time at the most
_LEAST_PORT = 1024
_MOST_PORTS = 64  # of a process
_MOST_DOORS = 256  # of a member
_MOST_OPEN = 1024  # connections of a session at once
_AHEAD = 8  # sockets that are asked of the zygote at once
_LAST_SECONDS = 0.2  # for what a program sent before it ended
_PAUSE_SECONDS = 0.1  # when descriptors have run out

_Place = tuple[str, int]  # address and port


@dataclass(eq=False)
class _Member:
    """One sandbox.

    Attributes:
        started: Itself.
        name: What others' records call it; "" for one that does not serve.
        question: Asks what it listens on; None for one that does not serve.
        own: What it listens on.
        doors: By what others listen on, the gateway's socket in it.
        spare: Sockets in it, to be connected: by whether they are IPv6.
        ledger: The connections that its programs made.
        tasks: Those that are carried.
        is_over: Whether it has left.
    """

    started: Started
    name: str
    question: socket.socket | None = None
    own: list[_Place] = field(default_factory=list[_Place])
    doors: dict[_Place, socket.socket] = field(default_factory=dict[_Place, socket.socket])
    spare: dict[bool, list[socket.socket]] = field(default_factory=lambda: {False: [], True: []})
    ledger: Ledger = field(default_factory=lambda: Ledger(None))
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    is_over: bool = False


class Loopback:
    """What the sandboxes of one session share. On its engine's event loop.

    Args:
        link: Of the engine.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._members: dict[int, _Member] = {}
        self._leads: dict[_Place, _Member] = {}
        self._looking = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nobody is left."""
        return not self._members

    async def join(self, started: Started, name: str) -> None:
        """Take a sandbox in, before its command starts; `leave` is to be called whatever happens.

        Args:
            started: Which.
            name: What others' records call it, which reach its ports; "" for one that reaches only.
        """
        member = self._members[started.number] = _Member(started, name)
        if name:
            with contextlib.suppress(SetupError):  # it will be told by who starts its command
                (member.question,) = await self._ask(member, [("question", "", 0)]) or [None]
        if not self._is_busy:
            return
        await self._look()
        if self._watching is None:
            self._watching = self._loop.create_task(self._watch())

    def is_used(self, number: int) -> bool:
        """Whether a member has, or had, connections, or could have some now: then it has to `leave`."""
        member = self._members[number]
        return bool(member.doors or member.tasks or member.ledger.connections())

    def drop(self, number: int) -> _Member:
        """Let a member go at once, and what it serves."""
        member = self._members.pop(number)
        member.is_over = True
        for place, server in list(self._leads.items()):
            if server is member:
                del self._leads[place]
                for other in self._members.values():
                    self._shut(other, place)
        for place in list(member.doors):
            self._shut(member, place)
        for task in member.tasks:
            task.cancel()
        spare = [*member.spare[False], *member.spare[True]]
        for sock in (member.question, *spare):
            if sock is not None:
                sock.close()
        if self._watching is not None and not self._is_busy:
            self._watching.cancel()
            self._watching = None
        return member

    async def leave(self, number: int) -> tuple[Connection, ...]:
        """Let a member go that has ended: first what its programs sent is carried.

        Returns:
            The connections that they made.
        """
        member = self._members[number]
        for place, door in list(member.doors.items()):
            self._accept(member, place, door)
        if member.tasks:
            await asyncio.wait(member.tasks, timeout=_LAST_SECONDS)
        self.drop(number)
        if member.tasks:
            await asyncio.gather(*member.tasks, return_exceptions=True)
        return member.ledger.connections()

    @property
    def _is_busy(self) -> bool:
        return len(self._members) > 1 and any(m.question for m in self._members.values())

    async def _watch(self) -> None:
        took = 0.0
        while True:
            await asyncio.sleep(max(_LOOK_SECONDS, _REST * took))
            began = time.thread_time()
            await self._look()
            took = time.thread_time() - began

    async def _look(self) -> None:
        """Have a door in each member for all that the others listen on, and no other."""
        async with self._looking:
            self._leads = leads = dict[_Place, _Member]()
            for member in self._members.values():
                if member.question is not None:
                    member.own = _listens(member)
                    for place in member.own:
                        leads.setdefault(place, member)
            for member in list(self._members.values()):
                for place in [p for p in member.doors if leads.get(p, member) is member]:
                    self._shut(member, place)
                wanted = [p for p in leads if p not in member.doors and p not in member.own]
                await self._open(member, wanted[: _MOST_DOORS - len(member.doors)])

    async def _open(self, member: _Member, places: list[_Place]) -> None:
        places = places[:MOST_WANTED]
        if not places or member.is_over:
            return
        try:
            doors = await self._ask(member, [("listen", *place) for place in places])
        except SetupError:
            return  # it has ended
        for place, door in zip(places, doors, strict=False):
            # None: a program in there has the port, or there is no IPv6.
            if door is not None and place not in self._leads:
                door.close()
            elif door is not None:
                member.doors[place] = door
                self._loop.add_reader(door.fileno(), self._accept, member, place, door)

    def _shut(self, member: _Member, place: _Place) -> None:
        if door := member.doors.pop(place, None):
            self._loop.remove_reader(door.fileno())
            door.close()

    async def _ask(
        self, member: _Member, wanted: list[tuple[str, str, int]]
    ) -> list[socket.socket | None]:
        found = await self._link.sockets_inside(member.started, wanted)
        if member.is_over:
            for sock in filter(None, found):
                sock.close()
            return []
        return found

    def _accept(self, member: _Member, place: _Place, door: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, _ = door.accept()
            except BlockingIOError:
                return
            except OSError:
                self._loop.remove_reader(door.fileno())
                self._loop.call_later(_PAUSE_SECONDS, self._again, member, place, door)
                return
            sock.setblocking(False)
            client = RawStream(sock)
            if sum(len(one.tasks) for one in self._members.values()) >= _MOST_OPEN:
                client.abort()
                continue
            task = self._loop.create_task(self._serve(member, place, client))
            member.tasks.add(task)
            task.add_done_callback(member.tasks.discard)

    def _again(self, member: _Member, place: _Place, door: socket.socket) -> None:
        if member.doors.get(place) is door:
            self._loop.add_reader(door.fileno(), self._accept, member, place, door)

    async def _serve(self, member: _Member, place: _Place, client: RawStream) -> None:
        server = self._leads.get(place)
        address, port = place
        name = server.name if server is not None else ""
        entry = member.ledger.begin("loopback", name=name, address=address, port=port)
        entry.rule = "network.loopback"
        try:
            if server is None:
                raise ConnectionRefusedError
            stream = RawStream(await self._socket(server, ":" in address), entry)
            try:
                await stream.connect(address, port)
                await relay(client, stream)
            finally:
                stream.close()
        except (OSError, SetupError):
            text = f"{name or 'what served there'} does not listen on {port} any more"
            entry.refuse(Verdict(allowed=False, reason=Why.UPSTREAM_FAILED, text=text))
            client.abort()
        finally:
            client.close()
            entry.end()

    async def _socket(self, server: _Member, is_ipv6: bool) -> socket.socket:
        """One in its namespace, to be connected. Raises OSError, `SetupError`."""
        spare = server.spare[is_ipv6]
        if not spare:
            wanted = [("connect", "::1" if is_ipv6 else "127.0.0.1", 0)] * _AHEAD
            spare += filter(None, await self._ask(server, wanted))
        if not spare:
            raise ConnectionRefusedError
        return spare.pop()


def _listens(member: _Member) -> list[_Place]:
    """What its programs listen on, its doors left out; the lowest where that is too much."""
    assert member.question is not None
    doors = {os.fstat(door.fileno()).st_ino for door in member.doors.values()}
    try:
        found = listening(member.question)
    except OSError:
        member.question.close()
        member.question = None
        return []
    places = {(a, p) for a, p, inode in found if p >= _LEAST_PORT and inode not in doors}
    return sorted(places, key=lambda place: place[1])[:_MOST_PORTS]
