"""The gateway's end of the keeper and the zygote: starts them, speaks with them, ends them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

from . import pid1
from .cgroup import Cgroup
from .command import Command, not_found
from .descriptors import receive
from .errors import SetupError
from .forkserver import FORK_SERVER
from .marks import Marks
from .netns import DOORS, MOST_WANTED, Want
from .plan import ORDER_BYTES, Plan
from .poller import Poller
from .started import Started

_GONE = "the sandbox's keeper is gone; restart purple"
# Descriptors in messages that nobody has read yet count against RLIMIT_NOFILE: unix(7), ETOOMANYREFS.
_MAX_SPAWNING = 32
_SIGNAL_SECONDS = 0.002  # about what starting a command takes


class Link:
    """One keeper with its zygote.

    Attributes:
        poller: For what is the sandboxes'; from `open` on.
    """

    poller: Poller

    def __init__(self) -> None:
        self._keeper = 0  # its pid, while there is one
        self._to_keeper: socket.socket
        self._to_zygote: socket.socket
        self._numbers = 0
        self._cgroups: dict[str, Any] = {}
        self._groups = 0
        self._free_groups: list[int] = []
        self._spawning: dict[int, tuple[socket.socket, int, asyncio.Future[Started]]] = {}
        self._started: dict[int, Started] = {}
        # See `sockets_inside`.
        self._wanted: deque[asyncio.Future[list[socket.socket | None]]] = deque()
        self._hello: asyncio.Future[dict[str, Any]]  # what the keeper says when the view stands
        self._turns = asyncio.Semaphore(_MAX_SPAWNING)
        self._end_by = signal.SIGKILL
        self._dead = self._opened = False

    async def begin(self) -> None:
        """Have a keeper and a zygote, which look whether they are of use while a plan is compiled.

        Raises:
            SetupError: no process can be started.
        """
        try:
            offer = await FORK_SERVER.take()
        except OSError as error:
            raise SetupError(f"no process for sandboxes can be started: {error}") from error
        self._keeper, self._cgroups, self._to_keeper, self._to_zygote = offer
        self._opened = True
        with contextlib.suppress(ConnectionError):  # it has died: `built` says so
            if sys.__stderr__ is not None:
                socket.send_fds(self._to_keeper, [b"begin"], [2])
            else:
                with open(os.devnull, "wb") as nowhere:
                    socket.send_fds(self._to_keeper, [b"begin"], [nowhere.fileno()])
        loop = asyncio.get_running_loop()
        self.poller = Poller()
        self._hello = loop.create_future()
        loop.add_reader(self._to_keeper, self._on_keeper)
        loop.add_reader(self._to_zygote, self._on_zygote)

    async def open(self, plan: Plan) -> dict[str, Any]:
        """Have the view built; returns what keeper and zygote found: `cgroup`, `landlock_abi`.

        Sandboxes can be asked for from now on. Whether they can be had, `built` tells.

        Raises:
            SetupError: as `built`.
        """
        if not plan.namespaces:
            self._end_by = signal.SIGTERM
        with contextlib.suppress(ConnectionError):  # it has died: `built` says so
            self._to_keeper.send(plan.to_json())
        if plan.io_bytes_per_second is not None:  # then it looks once more
            await self.built()
        return {"cgroup": self._cgroups, "landlock_abi": plan.landlock_abi}

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
        self._cgroups = hello["cgroup"]

    async def close(self) -> None:
        """End both and every sandbox; returns when they are gone."""
        if not self._opened:
            return
        self._opened, self._keeper = False, 0
        loop = asyncio.get_running_loop()
        for channel in (self._to_keeper, self._to_zygote):
            loop.remove_reader(channel)
        self._to_zygote.close()
        self._lost()
        with self._to_keeper, contextlib.suppress(OSError):
            self._to_keeper.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(self._to_keeper, 1 << 16):
                pass  # what it said before it heard
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
            number, group = self._numbers, self._take_group()
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            future = asyncio.get_running_loop().create_future()
            self._spawning[number] = ours, group, future
            order = json.dumps({
                "spawn": number, "group": group, "terminal": list(terminal),
                "hide": marks.hide, "protect": marks.protect,
            }).encode()  # fmt: skip
            try:
                if len(order) > ORDER_BYTES:
                    raise OSError(
                        errno.EMSGSIZE, "filesystem.hide and .protect match too many paths"
                    )
                socket.send_fds(self._to_zygote, [order], [*fds, theirs.fileno()])
            except OSError as error:
                del self._spawning[number]
                ours.close()
                if group:
                    self._free_groups.append(group)
                raise SetupError(f"the sandbox's zygote cannot be reached: {error}") from error
            finally:
                theirs.close()
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                future.add_done_callback(self._unwanted)
                raise

    def launch(self, sandbox: Started, command: Command) -> None:
        """Let the sandbox's command execute. Raises `CommandNotFound` when it is too long (E2BIG)."""
        try:
            sandbox.order(
                pid1.order(
                    command.program, command.argv, command.environment, command.directory,
                    pid1.TERMINAL if sandbox.master >= 0 else "",
                )
            )  # fmt: skip
        except OSError as error:
            raise not_found(command.argv[0], errno.errorcode[error.errno or 0]) from error

    def signal(self, sandbox: Started, number: int) -> None:
        """Send a signal to the command's process group, as soon as there is one; nothing when it has
        ended."""
        text = json.dumps({"number": sandbox.number, "signal": number}).encode()
        with contextlib.suppress(OSError):
            self._to_zygote.send(text)

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
        future: asyncio.Future[list[socket.socket | None]] = (
            asyncio.get_running_loop().create_future()
        )
        request = json.dumps({"inside": sandbox.number, "wanted": wanted}).encode()
        try:
            self._to_zygote.send(request)
        except OSError as error:
            raise SetupError(f"the sandbox's zygote cannot be reached: {error}") from error
        self._wanted.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                for sock in filter(None, future.result()):
                    sock.close()
            raise

    def _on_sockets(self, answer: dict[str, Any], fds: list[int]) -> None:
        future = self._wanted.popleft()  # they are answered in order
        left = deque(socket.socket(fileno=fd) for fd in fds)
        if future.done():
            while left:
                left.popleft().close()
        elif answer["error"]:
            future.set_exception(SetupError(f"no socket in the sandbox: {answer['error']}"))
        else:
            for sock in left:
                sock.setblocking(False)
            future.set_result([None if code else left.popleft() for code in answer["failed"]])

    def gone(self, sandbox: Started) -> None:
        """Give a sandbox that has ended back."""
        self._started.pop(sandbox.number, None)
        sandbox.close()
        if sandbox.cgroup is None or self._dead or not self._keeper:
            return
        if sandbox.end.done() and sandbox.cgroup.reset():
            self._free_groups.append(sandbox.group)
        else:
            self._tell_keeper({"remove": sandbox.group})

    def _take_group(self) -> int:
        """The number of a cgroup in which nothing runs; 0 where none can be had."""
        if self._cgroups["version"] == 0:
            return 0
        if self._free_groups:
            return self._free_groups.pop()
        self._groups += 1
        self._tell_keeper({"make": self._groups})  # at the same time as all else is prepared
        return self._groups

    def _tell_keeper(self, request: dict[str, int]) -> None:
        with contextlib.suppress(OSError):
            self._to_keeper.send(json.dumps(request).encode())

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
            self._hello.set_result(json.loads(said))
            return
        if not self._hello.done():
            self._hello.set_result({"error": "the keeper died; see stderr"})
        asyncio.get_running_loop().remove_reader(self._to_keeper)
        self._lost()

    def _on_zygote(self) -> None:
        try:
            message, fds = receive(self._to_zygote, 1 << 16, max(3 + DOORS, MOST_WANTED))
        except ConnectionResetError:
            message, fds = b"", []
        if not message:
            asyncio.get_running_loop().remove_reader(self._to_zygote)
            self._lost()
            return
        answer = json.loads(message)
        if "inside" in answer:
            self._on_sockets(answer, fds)
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
        control, group, future = self._spawning.pop(number)
        version = self._cgroups["version"]
        cgroup = Cgroup.of(version, self._cgroups["bases"], group) if group else None
        if "error" in answer:
            control.close()
            if group:
                self._tell_keeper({"remove": group})
            future.set_exception(SetupError(f"no sandbox could be started: {answer['error']}"))
            return
        started = Started(
            number, fds, control, group, cgroup, watched=answer["watched"], end_by=self._end_by,
            poller=self.poller,
        )  # fmt: skip
        self._started[number] = started
        future.set_result(started)

    def _lost(self) -> None:
        self._dead = True
        for control, _, future in self._spawning.values():
            control.close()
            if not future.done():
                future.set_exception(SetupError(_GONE))
                future.exception()  # looked at: whoever waited may have gone
        self._spawning.clear()
        for wanted in self._wanted:
            if not wanted.done():
                wanted.set_exception(SetupError(_GONE))
        self._wanted.clear()
        for started in self._started.values():
            started.lost()
        self._started.clear()
