"""The gateway's end of the keeper and the zygote: starts them, speaks with them, ends them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cgroup import Cgroup
from .command import Command, not_found
from .descriptors import receive
from .errors import SetupError
from .gated import REGIONS, Arena, open_gate
from .guard import Marks
from .netns import DOORS
from .plan import ORDER_BYTES, Plan


class Started:
    """A sandbox that is ready, as the gateway knows it.

    Attributes:
        number: Its name between gateway, keeper and zygote.
        pidfd: Of its pid 1; readable when nothing is left of its pid namespace. pidfd_open(2).
        gate: Opened to let its command execute. gated.py.
        region: Where in the arena its command is written.
        doors: Sockets of its way out, see netns.py; empty when it has none, or when somebody
            has taken them.
        master: Its terminal's other side; -1 without one.
        cgroup: Where its usage is counted; None where no cgroup can be had.
        end: What the zygote reports when the command has ended; {} when the zygote is gone.
    """

    def __init__(self, number: int, fds: Sequence[int], region: int, cgroup: Cgroup | None) -> None:
        self.number = number
        self.pidfd, self.gate = fds[:2]
        self.doors = list(fds[2 : 2 + DOORS]) if len(fds) > DOORS else []
        rest = fds[2 + len(self.doors) :]
        self.master = rest[0] if rest else -1
        self.region = region
        self.cgroup = cgroup
        self.end: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """SIGKILL to pid 1, and so to everything in its pid namespace."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def is_gone(self) -> bool:
        """Whether its command has been reported and nothing is left of its pid namespace."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return self.end.done() and bool(poll.poll(0))

    async def gone(self) -> None:
        """Kill what is left and wait until nothing of it is."""
        self.kill()
        await self.end
        if not self.is_gone():
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(self.pidfd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(self.pidfd)

    def close_doors(self) -> None:
        """Close the doors that nobody has taken: nothing is let out."""
        for fd in self.doors:
            os.close(fd)
        self.doors = []

    def close(self) -> None:
        """Close the descriptors."""
        self.close_doors()
        for fd in (self.pidfd, self.gate, self.master):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.gate = self.master = -1


class Link:
    """One keeper with its zygote."""

    def __init__(self) -> None:
        self._keeper: subprocess.Popen[bytes] | None = None
        self._to_keeper: socket.socket
        self._to_zygote: socket.socket
        self._arena: Arena
        self._arena_there = 0
        self._regions = list(range(REGIONS - 1, -1, -1))
        self._numbers = 0
        self._cgroup_version = 0
        self._spawning: dict[int, tuple[int, asyncio.Future[Started]]] = {}
        self._started: dict[int, Started] = {}
        self._wanted: deque[asyncio.Future[socket.socket]] = deque()  # see `socket_inside`
        self._dead = False

    async def open(self, plan: Plan) -> dict[str, Any]:
        """Start the keeper and the zygote; returns what they found: `cgroup`, `landlock_abi`.

        Raises:
            SetupError: the view could not be built; says why.
        """
        self._to_keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._to_zygote, ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # An empty environment: /proc/1/environ inside has nothing to show.
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _program(theirs.fileno())],
            pass_fds=[theirs.fileno()], env={}, stdin=subprocess.DEVNULL, start_new_session=True,
            cwd="/",
        )  # fmt: skip
        theirs.close()
        for channel in (self._to_keeper, self._to_zygote):
            channel.setblocking(False)
        loop = asyncio.get_running_loop()
        arena = Arena.create()
        self._arena = Arena(arena)
        socket.send_fds(self._to_keeper, [plan.to_json()], [ends.fileno(), arena])
        ends.close()
        os.close(arena)
        said = await loop.sock_recv(self._to_keeper, 1 << 16)
        hello: dict[str, Any] = json.loads(said or b'{"error": "the keeper died; see stderr"}')
        if "error" in hello:
            raise SetupError(
                f"the sandbox could not be built: {hello['error']}; "
                "run `purple doctor` to see what this host lacks"
            )
        self._arena_there = hello["arena"]
        self._cgroup_version = hello["cgroup"]["version"]
        loop.add_reader(self._to_keeper, self._on_keeper)
        loop.add_reader(self._to_zygote, self._on_zygote)
        return hello

    async def close(self) -> None:
        """End both and every sandbox; returns when they are gone."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        loop = asyncio.get_running_loop()
        for channel in (self._to_keeper, self._to_zygote):
            loop.remove_reader(channel)
            channel.close()
        self._lost()
        self._arena.close()
        await asyncio.to_thread(keeper.wait)

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
        if self._dead or self._keeper is None:
            raise SetupError("the sandbox's keeper is gone; restart purple")
        if not self._regions:
            raise SetupError(f"over {REGIONS} sandboxes at once; wait for some to end")
        self._numbers += 1
        number, region = self._numbers, self._regions.pop()
        future = asyncio.get_running_loop().create_future()
        self._spawning[number] = region, future
        order = json.dumps({
            "spawn": number, "region": region, "terminal": list(terminal),
            "hide": marks.hide, "protect": marks.protect,
        }).encode()  # fmt: skip
        try:
            if len(order) > ORDER_BYTES:
                raise OSError(errno.EMSGSIZE, "filesystem.hide and .protect match too many paths")
            socket.send_fds(self._to_keeper, [order], list(fds))
        except OSError as error:
            del self._spawning[number]
            raise SetupError(f"the sandbox's keeper cannot be reached: {error}") from error
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(self._unwanted)
            raise

    def launch(self, sandbox: Started, command: Command) -> None:
        """Let the sandbox's command execute. Raises `CommandNotFound` when it is too long (E2BIG)."""
        try:
            self._arena.write(
                sandbox.region, self._arena_there, command.program, command.argv,
                command.environment,
            )  # fmt: skip
        except OSError as error:
            raise not_found(command.argv[0], errno.errorcode[error.errno or 0]) from error
        # Kept open until the end, so that the child finds a writer whenever it comes.
        sandbox.gate = _replace(sandbox.gate, open_gate(sandbox.gate))

    def signal(self, sandbox: Started, number: int) -> None:
        """Send a signal to the command's process group; nothing when it has ended."""
        text = json.dumps({"number": sandbox.number, "signal": number}).encode()
        with contextlib.suppress(OSError):
            self._to_zygote.send(text)

    async def socket_inside(self, sandbox: Started) -> socket.socket:
        """A TCP socket in the sandbox's network namespace, non-blocking, not connected.

        Raises:
            SetupError: the sandbox or its zygote is gone.
        """
        future: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._wanted.append(future)
        try:
            self._to_zygote.send(json.dumps({"inside": sandbox.number}).encode())
        except OSError as error:
            self._wanted.remove(future)
            raise SetupError(f"the sandbox's zygote cannot be reached: {error}") from error
        return await asyncio.shield(future)

    def _on_socket(self, answer: dict[str, Any], fds: list[int]) -> None:
        future = self._wanted.popleft()  # they are answered in order
        sock = socket.socket(fileno=fds[0]) if fds else None
        if future.cancelled():
            if sock is not None:
                sock.close()
        elif sock is not None:
            sock.setblocking(False)
            future.set_result(sock)
        else:
            future.set_exception(SetupError(f"no socket in the sandbox: {answer['error']}"))

    def gone(self, sandbox: Started) -> None:
        """Give a sandbox that has ended back; its cgroup is removed."""
        sandbox.close()
        self._regions.append(sandbox.region)
        if not self._dead and self._keeper is not None:
            with contextlib.suppress(OSError):
                self._to_keeper.send(b'{"gone": %d}' % sandbox.number)

    def _unwanted(self, future: asyncio.Future[Started]) -> None:
        if not future.cancelled() and future.exception() is None:
            sandbox = future.result()
            sandbox.kill()
            sandbox.end.add_done_callback(lambda _: self.gone(sandbox))

    def _on_keeper(self) -> None:
        try:
            message, fds = receive(self._to_keeper, 1 << 16, 3 + DOORS)
        except ConnectionResetError:
            message, fds = b"", []
        if not message:
            asyncio.get_running_loop().remove_reader(self._to_keeper)
            self._lost()
            return
        answer = json.loads(message)
        region, future = self._spawning.pop(answer["spawned"])
        if "error" in answer:
            self._regions.append(region)
            future.set_exception(SetupError(f"no sandbox could be started: {answer['error']}"))
            return
        paths = answer["cgroup"]
        cgroup = Cgroup(self._cgroup_version, paths) if paths else None
        started = Started(answer["spawned"], fds, region, cgroup)
        self._started[started.number] = started
        future.set_result(started)

    def _on_zygote(self) -> None:
        try:
            message, fds = receive(self._to_zygote, 1 << 16, 1)
        except ConnectionResetError:
            message, fds = b"", []
        if not message:
            asyncio.get_running_loop().remove_reader(self._to_zygote)
            self._lost()
            return
        answer = json.loads(message)
        if "inside" in answer:
            self._on_socket(answer, fds)
            return
        started = self._started.pop(answer["ended"], None)
        if started is not None and not started.end.done():
            started.end.set_result(answer)

    def _lost(self) -> None:
        self._dead = True
        for _, future in self._spawning.values():
            if not future.done():
                future.set_exception(SetupError("the sandbox's keeper is gone; restart purple"))
                future.exception()  # looked at: whoever waited may have gone
        self._spawning.clear()
        for wanted in self._wanted:
            if not wanted.done():
                wanted.set_exception(SetupError("the sandbox's keeper is gone; restart purple"))
        self._wanted.clear()
        for started in self._started.values():
            if not started.end.done():
                started.end.set_result({})
        self._started.clear()


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _program(fd: int) -> str:
    package = Path(__file__).resolve().parents[1]
    if package.name != "purplebox":  # run from a checkout: the folders stand beside src/
        package = package / "src" / "purplebox"
    return (
        f"import sys; sys.path.insert(0, {str(package.parent)!r}); "
        f"from purplebox.isolation.keeper import main; main({fd})"
    )
