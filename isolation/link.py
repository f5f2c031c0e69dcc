"""The gateway's end of the keeper and the zygote: starts them, speaks with them, ends them."""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from . import libc
from .descriptors import receive
from .ending import end
from .errors import SetupError
from .forkserver import FORK_SERVER
from .marks import Marks
from .meter import Meter
from .netns import DOORS, MOST_WANTED, Want
from .outbox import Outbox
from .plan import FIRST, ORDER_BYTES, Plan
from .poller import Poller
from .sockets import NO_ROOM, Sockets
from .started import Started
from .stock import Stock

_GONE = "the sandbox's keeper is gone; restart purple"
_NOT_STARTED = "no sandbox could be started: "
# Descriptors in messages that nobody has read yet count against RLIMIT_NOFILE: unix(7), ETOOMANYREFS.
_MAX_SPAWNING = 32
_SIGNAL_SECONDS = 0.002  # about what starting a command takes
# After which the zygote hears of an end, for whoever has a result has something to do.
_ENDED_SECONDS = 0.01


class _Spawning(NamedTuple):
    """A sandbox that has been asked for."""

    control: socket.socket | None  # None where the zygote makes it
    group: int  # the number of its cgroup; 0 for none
    meter: Meter | None  # of that, where it has one already
    future: asyncio.Future[Started]


class Link:
    """One keeper with its zygote.

    Attributes:
        poller: For what is the sandboxes'; from `open` on.
        has_first: Whether nobody has asked for the first sandbox yet.
    """

    poller: Poller

    def __init__(self) -> None:
        self._keeper = 0  # its pid, while there is one
        self._to_keeper: socket.socket
        self._to_zygote: socket.socket
        self._for_keeper: Outbox
        self._for_zygote: Outbox
        self._sockets: Sockets
        self._numbers = FIRST  # that is `spawn_first`'s
        self._cgroups = Stock(self._tell_keeper)
        self._spawning: dict[int, _Spawning] = {}
        self._started: dict[int, Started] = {}
        self._hello: asyncio.Future[dict[str, Any]]  # what the keeper says when the view stands
        self._turns = asyncio.Semaphore(_MAX_SPAWNING)
        # When the zygote hears that some have ended.
        self._tell_at: asyncio.TimerHandle | None = None
        self._end_by = signal.SIGKILL
        self._dead = self._opened = self._listens = False
        self.has_first = True

    async def begin(self) -> None:
        """Have a keeper and a zygote, which look whether they are of use while a plan is compiled.

        Raises:
            SetupError: no process can be started.
        """
        try:
            offer = await FORK_SERVER.take()
        except OSError as error:
            raise SetupError(f"no process for sandboxes can be started: {error}") from error
        self._keeper, self._cgroups.facts, self._to_keeper, self._to_zygote = offer
        self._for_keeper, self._for_zygote = Outbox(self._to_keeper), Outbox(self._to_zygote)
        self._sockets = Sockets(self._for_zygote)
        self._opened = True
        self._hello = asyncio.get_running_loop().create_future()
        _wake_elsewhere(self._keeper)
        with contextlib.suppress(ConnectionError):  # it has died: `built` says so
            if sys.__stderr__ is not None:
                socket.send_fds(self._to_keeper, [b"begin"], [2])
            else:
                with open(os.devnull, "wb") as nowhere:
                    socket.send_fds(self._to_keeper, [b"begin"], [nowhere.fileno()])

    async def open(self, plan: Plan) -> dict[str, Any]:
        """Have the view built; returns what keeper and zygote found: `cgroup`, `landlock_abi`.

        Sandboxes can be asked for from now on; they come when there is a filter, see `restrict`. Whether
        they can be had, `built` tells.

        Raises:
            SetupError: as `built`.
        """
        if not plan.namespaces:
            self._end_by = signal.SIGTERM
        with contextlib.suppress(ConnectionError):  # it has died: `built` says so
            text = plan.to_json()
            self._to_keeper.send(text)
            self._to_zygote.send(text)
        # What follows is done while they work.
        self.poller = Poller()
        self._listens = True
        loop = asyncio.get_running_loop()
        loop.add_reader(self._to_keeper, self._on_keeper)
        loop.add_reader(self._to_zygote, self._on_zygote)
        if plan.io_bytes_per_second is not None:  # then it looks once more
            await self.built()
        return {"cgroup": self._cgroups.facts, "landlock_abi": plan.landlock_abi}

    def restrict(self, program: bytes) -> None:
        """Hand in the seccomp program of all sandboxes; none is handed out before it. The first may have
        been asked for."""
        text = binascii.b2a_base64(program, newline=False).decode()
        self._for_zygote.send(json.dumps({"filter": text}).encode())

    async def built(self) -> None:
        """Wait until the view stands.

        Raises:
            SetupError: it could not be built; says why.
        """
        hello = await asyncio.shield(self._hello)
        if "error" in hello:
            raise SetupError(
                f"the sandbox could not be built: {hello['error']}; "
                "run `purple doctor` to see what this host lacks"
            )
        self._cgroups.facts = hello["cgroup"]

    async def close(self) -> None:
        """End both and every sandbox; returns when they are gone."""
        if not self._opened:
            return
        keeper = self._keeper
        self._opened, self._keeper = False, 0
        if self._tell_at is not None:
            self._tell_at.cancel()
        left = list(self._started.values())
        self._lost()
        self._to_zygote.close()
        with self._to_keeper, contextlib.suppress(OSError):
            self._to_keeper.shutdown(socket.SHUT_WR)
            await end(keeper, self._to_keeper)
        for started in left:
            started.give_up()
        if self._listens:
            self.poller.close()

    async def spawn(
        self, fds: Sequence[int], marks: Marks, terminal: Sequence[int] = ()
    ) -> Started:
        """Prepare a sandbox whose command will have `fds` as stdin, stdout and stderr.

        Args:
            fds: Three descriptors, still the caller's to close.
            marks: What of the workspace is covered and what is read-only.
            terminal: Indexes of those to be replaced by a terminal of the sandbox's own.

        Raises:
            SetupError: it could not be prepared, or keeper or zygote are gone.
        """
        async with self._turns:
            if self._dead or not self._keeper:
                raise SetupError(_GONE)
            self._numbers += 1
            ours, theirs = socket.socketpair()
            group, meter = self._cgroups.take()
            with theirs:
                asked = _Spawning(ours, group, meter, asyncio.get_running_loop().create_future())
                return await self._ask(
                    self._numbers, asked, [*fds, theirs.fileno()], marks, list(terminal)
                )

    async def spawn_first(self, marks: Marks) -> Started:
        """As `spawn`, once: what may have been made ahead (first.py), which brings `Started.pipes`."""
        async with self._turns:
            if self._dead or not self._keeper:
                raise SetupError(_GONE)
            self.has_first = False
            asked = _Spawning(
                None, self._cgroups.first, None, asyncio.get_running_loop().create_future()
            )
            return await self._ask(FIRST, asked, [], marks, [])

    async def _ask(
        self, number: int, asked: _Spawning, fds: Sequence[int], marks: Marks, terminal: list[int]
    ) -> Started:
        order = json.dumps({
            "spawn": number, "group": asked.group, "terminal": terminal,
            "hide": marks.hide, "protect": marks.protect,
        }).encode()  # fmt: skip
        self._spawning[number] = asked
        if len(order) > ORDER_BYTES:
            self._refuse(number, f"{_NOT_STARTED}filesystem.hide and .protect match too many paths")
        else:
            self._for_zygote.send(order, fds, partial(self._not_asked, number))
        try:
            return await asyncio.shield(asked.future)
        except asyncio.CancelledError:
            asked.future.add_done_callback(self._unwanted)
            raise

    def _not_asked(self, number: int, error: OSError) -> None:
        self._refuse(number, f"the sandbox's zygote cannot be reached: {error}")

    def _refuse(self, number: int, why: str) -> None:
        """Tell whoever has asked for a sandbox that there is none."""
        asked = self._spawning.pop(number)
        self._drop(asked)
        asked.future.set_exception(SetupError(why))
        asked.future.exception()  # looked at: whoever waited may have gone

    def _drop(self, asked: _Spawning) -> None:
        """Give back what was meant for a sandbox that there will not be."""
        if asked.control is not None:
            asked.control.close()
        if asked.meter is not None:
            self._cgroups.give_back(asked.meter, ended=False)
        else:
            self._cgroups.remove(asked.group)

    def signal(self, sandbox: Started, number: int) -> None:
        """Send a signal to the command's process group, as soon as there is one; nothing when it has
        ended. Raises `ValueError` for what is no signal's number."""
        if not 0 <= number <= signal.SIGRTMAX:  # 0 sends none: kill(2)
            raise ValueError(f"there is no signal {number}")
        text = json.dumps({"number": sandbox.number, "signal": number}).encode()
        self._for_zygote.send(text)

    def _signal_again(self, sandbox: Started, number: int) -> None:
        if not sandbox.end.done() and not self._dead:
            self.signal(sandbox, number)

    async def sockets_inside(
        self, sandbox: Started, wanted: Sequence[Want]
    ) -> list[socket.socket | None]:
        """Sockets in the sandbox's network namespace, non-blocking; None for what cannot be had there.

        Args:
            sandbox: Which runs.
            wanted: `MOST_WANTED` at the most.

        Raises:
            SetupError: the sandbox or its zygote is gone.
        """
        if self._dead:
            raise SetupError(_GONE)
        return await self._sockets.inside(sandbox.number, wanted)

    def gone(self, sandbox: Started) -> None:
        """Give a sandbox that has ended back."""
        if self._started.pop(sandbox.number, None) is not None and self._tell_at is None:
            self._tell_at = sandbox.loop.call_later(_ENDED_SECONDS, self._tell_of_ends)
        sandbox.close()
        if sandbox.meter is not None:
            self._cgroups.give_back(sandbox.meter, ended=sandbox.end.done())

    def _tell_of_ends(self) -> None:
        self._tell_at = None
        self._for_zygote.send(b'{"ended": true}')

    def _tell_keeper(self, request: dict[str, int]) -> None:
        self._for_keeper.send(json.dumps(request).encode())

    def _unwanted(self, future: asyncio.Future[Started]) -> None:
        if not future.cancelled() and future.exception() is None:
            sandbox = future.result()
            sandbox.kill()
            sandbox.end.add_done_callback(lambda _: self.gone(sandbox))

    def _on_keeper(self) -> None:
        try:
            said = self._to_keeper.recv(1 << 16)
        except ConnectionResetError:  # it has not read all; what it has said is still there
            said = self._to_keeper.recv(1 << 16)
        if said:
            if not self._hello.done():
                self._hello.set_result(json.loads(said))
            return
        if not self._hello.done():
            self._hello.set_result({"error": "the keeper died; see stderr"})
        self._lost()

    def _on_zygote(self) -> None:
        try:
            message, fds = receive(self._to_zygote, 1 << 16, max(3 + DOORS, MOST_WANTED))
        except ConnectionResetError:
            message, fds = b"", []
        if not message:
            if self._hello.done():
                self._lost()
            else:  # the keeper says why, or dies
                asyncio.get_running_loop().remove_reader(self._to_zygote)
            return
        answer = json.loads(message)
        if "inside" in answer:
            self._sockets.came(answer, fds)
            return
        if "unheard" in answer:
            # pid 1 has its order and has not carried it out yet, or it is about to end.
            if started := self._started.get(answer["unheard"]):
                loop = asyncio.get_running_loop()
                loop.call_later(_SIGNAL_SECONDS, self._signal_again, started, answer["signal"])
            return
        if "ended" in answer:
            if started := self._started.get(answer["ended"]):
                started.watcher_says(
                    answer["over"], answer["memory_peak_bytes"], answer["processes_peak"]
                )
            return
        number = answer["spawned"]
        if len(fds) != answer.get("files", 0):  # the kernel closes what there is no room for
            for fd in fds:
                os.close(fd)
            answer["error"] = NO_ROOM
        if "error" in answer:
            self._refuse(number, _NOT_STARTED + answer["error"])
            return
        control, group, meter, future = self._spawning.pop(number)
        if group and meter is None:
            meter = self._cgroups.meter(group)
        if meter is not None:
            meter.open()
        pipes: list[int] = []
        if control is None:
            pipes = fds[-4:]
            *fds, end = fds[:-4]
            control = socket.socket(fileno=end)
        started = Started(
            number, fds, control, meter, watched=answer["watched"], end_by=self._end_by,
            poller=self.poller, pipes=pipes, directory=answer["directory"],
        )  # fmt: skip
        self._started[number] = started
        if not self._hello.done():  # the keeper says later what this tells
            self._hello.set_result({"cgroup": self._cgroups.facts})
        future.set_result(started)

    def _lost(self) -> None:
        self._dead = True
        if not self._hello.done():
            self._hello.set_result({"error": _GONE})
        loop = asyncio.get_running_loop()
        for channel in (self._to_keeper, self._to_zygote):
            loop.remove_reader(channel)  # what has not been read is for nobody, and ends with it
        for outbox in (self._for_keeper, self._for_zygote):
            outbox.close()
        self._cgroups.close()
        for number in list(self._spawning):
            self._refuse(number, _GONE)
        self._sockets.lost(_GONE)
        for started in self._started.values():
            started.lost()
        self._started.clear()


def _wake_elsewhere(pid: int) -> None:
    """Have a process of ours that sleeps run on another processor than we do when it is woken.

    Linux does that by itself, but takes no virtual machine's halted processor for an idle one
    (available_idle_cpu(), kernel/sched/sched.h): there what is woken would wait until we wait.
    """
    with contextlib.suppress(OSError):  # it has died
        others = os.sched_getaffinity(pid) - {libc.sched_getcpu()}
        if others:
            os.sched_setaffinity(pid, others)
