"""A sandbox as the gateway knows it: its pid 1, to which it speaks directly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

from . import pid1
from .meter import Meter
from .netns import DOORS
from .poller import Poller
from .rlimits import filled_bytes
from .streams import send_all


class Started:
    """A sandbox that is ready.

    Args:
        number: Its name between gateway and zygote.
        fds: pidfd of its pid 1, its /tmp, its doors if any, its terminal's other side if any.
        control: Socket to its pid 1; all are this object's to close.
        meter: What its cgroup counts; None where no cgroup can be had. Whose it is `Link.gone` says.
        watched: Whether the zygote says of each end whether it was the watcher's doing.
        end_by: The signal to its pid 1 that ends it: SIGKILL, or what its warden takes (warden.py).
        poller: Tells when it has ended.
        pipes: Both ends of its stdout's and of its stderr's, where they are not its caller's.
        directory: Where its command has to go first; "" where it begins there.

    Attributes:
        pidfd: Readable when nothing is left of its pid namespace. pidfd_open(2).
        doors: Sockets of its way out, see netns.py; empty when it has none, or when somebody
            has taken them.
        master: Its terminal's other side; -1 without one.
        loop: The event loop that it is spoken with on.
        end: What its pid 1 reported (pid1.py), once nothing is left of its pid namespace, with
            `disk_bytes` and, from the watcher, `over`, `memory_peak_bytes`, `processes_peak`.
    """

    def __init__(
        self, number: int, fds: Sequence[int], control: socket.socket, meter: Meter | None, *,
        watched: bool, end_by: int, poller: Poller, pipes: Sequence[int], directory: str,
    ) -> None:  # fmt: skip
        self.number = number
        self.pidfd, self._private, *rest = fds
        self.doors = rest[:DOORS] if len(rest) >= DOORS else []
        rest = rest[len(self.doors) :]
        self.master = rest[0] if rest else -1
        self.meter = meter
        self._pipes = tuple(pipes)
        self.directory = directory
        self._control = control
        control.setblocking(False)
        self._fd = control.fileno()
        self._watched = watched
        self._end_by = end_by
        self._report: dict[str, Any] | None = None
        self._stands_by = False
        self._ordered = True  # nothing is left to be sent
        self._seen: dict[str, Any] = {}
        self._memory_peak_bytes = 0
        self.loop = asyncio.get_running_loop()
        self.end: asyncio.Future[dict[str, Any]] = self.loop.create_future()
        self._waiting: list[asyncio.Future[None]] = []
        self._poller = poller
        poller.add_once(self.pidfd, self._on_end)

    def stand_by(self) -> None:
        """Have it start the process that waits for the order itself: 30 kB, for the next that is used."""
        if not self._stands_by:
            self._stands_by = True
            with contextlib.suppress(OSError):  # it has died, which will be heard
                os.write(self._fd, pid1.GO)

    def order(self, data: bytes) -> None:
        """Send pid 1 what it is to execute."""
        if not self._stands_by:
            self._stands_by = True
            data = pid1.GO + data
        try:
            sent = os.write(self._fd, data)
        except OSError:  # too long for the moment, or it has died, which will be heard
            sent = 0
        if sent < len(data):
            self._ordered = False
            send_all(self._fd, data[sent:], self._all_sent)

    def _all_sent(self) -> None:
        self._ordered = True

    def kill(self) -> None:
        """SIGKILL to pid 1, and so to everything in its pid namespace; or have its warden do it."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, self._end_by)

    def take_pipes(self) -> tuple[int, ...]:
        """Its `pipes`, from here on the caller's to close."""
        pipes, self._pipes = self._pipes, ()
        return pipes

    async def gone(self) -> None:
        """Kill what is left and wait until nothing of it is."""
        if not self.end.done():
            self.kill()
            await self.ended()

    async def ended(self) -> dict[str, Any]:
        """Wait for `end`, which goes on when its caller is cancelled: asyncio.shield with two turns of the
        event loop less."""
        if not self.end.done():
            waiter = self.loop.create_future()
            self._waiting.append(waiter)
            await waiter
        return self.end.result()

    def watcher_says(self, over: str, memory_peak_bytes: int, processes_peak: int) -> None:
        """Take the zygote's word, see `watched`. May come before pid 1's."""
        self._watched = False
        self._seen = {"over": over, "processes_peak": processes_peak or None}
        self._memory_peak_bytes = memory_peak_bytes
        if self._report is not None:
            self._settle()

    def lost(self) -> None:
        """The zygote is gone, and this with it: `end` comes when the kernel says so."""
        self._watched = False  # nobody will say more than pid 1 has
        self.kill()
        if self._report is not None:
            self._settle()

    def give_up(self) -> None:
        """Nobody listens for its end any more, which is now."""
        self._settle()

    def close_doors(self) -> None:
        """Close the doors that nobody has taken: nothing is let out."""
        for fd in self.doors:
            os.close(fd)
        self.doors = []

    def close(self) -> None:
        """Close the descriptors; pid 1 then ends if it has no order yet."""
        if self._report is None and self.pidfd >= 0:
            self._poller.remove_reader(self.pidfd)  # it is the zygote's, too
        if not self._ordered:  # slow when there is nothing to remove: every call comes here
            self.loop.remove_writer(self._fd)
        self._control.close()
        self.close_doors()
        for fd in (self.pidfd, self._private, self.master, *self._pipes):
            if fd >= 0:
                os.close(fd)
        self._pipes = ()
        self.pidfd = self._private = self.master = -1

    def _on_end(self) -> None:
        self._poller.forget(self.pidfd)
        try:
            said = os.read(self._fd, pid1.RESULT_BYTES)
        except OSError:  # BlockingIOError, ConnectionResetError: killed, it has said nothing
            said = b""
        self._report = pid1.report(said)
        if not self._watched:
            self._settle()

    def _settle(self) -> None:
        if self.end.done():
            return
        report = self._report or {}
        report.update(self._seen)
        # As large as the largest process, or as all of them when they were looked at.
        peak = max(report.get("memory_peak_bytes", 0), self._memory_peak_bytes)
        report["memory_peak_bytes"] = peak or None
        if self._private >= 0:
            report["disk_bytes"] = filled_bytes(self._private)
        self.end.set_result(report)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
