"""The gateway's end of its fork server: one small process that has a keeper ready for each engine.

To start an interpreter would take ten times as long as all else that the first call of a policy
needs. So one is started once for this process and forks from then on (keeper.py, which runs in it);
the gateway itself, whose size would make that slow, never forks.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from .descriptors import receive
from .plan import interpreters


class Offer(NamedTuple):
    """A keeper with its zygote, that wait for a plan.

    Attributes:
        keeper: Its pid.
        cgroup: What it has found: `version`, `reason`, `bases`.
        to_keeper, to_zygote: SOCK_SEQPACKET, non-blocking. The keeper ends when the former is closed.
    """

    keeper: int
    cgroup: dict[str, Any]
    to_keeper: socket.socket
    to_zygote: socket.socket


# Its end takes it milliseconds: it waits for none of its keepers.
_END_SECONDS = 2.0


class ForkServer:
    """One process, started when it is first needed, again if it has died, and ended with ours.

    For any thread and any event loop. What it has from this process it has from its start: the
    limits (setrlimit(2)), cgroup and namespaces that engines' processes are in are those of then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._door: socket.socket | None = None
        self._fruitless = 0  # how many ended, one after the other, without an offer

    async def take(self) -> Offer:
        """A keeper for one engine.

        Raises:
            OSError: no process can be started.
        """
        loop = asyncio.get_running_loop()
        while True:
            door, offer = self._look()
            if offer is not None:
                return offer
            ready = asyncio.Event()
            loop.add_reader(door, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(door)
                os.close(door)

    def _look(self) -> tuple[int, Offer | None]:
        """An offer, if there is one already; else a descriptor that is readable when there is."""
        with self._lock:
            while self._fruitless < 2:  # it may have died since the last time
                door = self._door or self._start()
                try:
                    message, fds = receive(door, 1 << 16, 2, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    with contextlib.suppress(
                        OSError
                    ):  # it has died, or has been asked often enough
                        door.send(b"hurry", socket.MSG_DONTWAIT)
                    return os.dup(door.fileno()), None  # one for each who waits
                except ConnectionResetError:
                    message, fds = b"", []
                if message:
                    self._fruitless = 0
                    return -1, _offer(message, fds)
                self._end()
                self._fruitless += 1
            self._fruitless = 0
            raise OSError("the fork server does not live; see stderr")

    def close(self) -> None:
        """End it; returns when it is gone, or after a few seconds if it cannot go (it is frozen)."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """In a fork of this process: leave it to the parent."""
        self._lock = threading.Lock()
        self._process = None
        if self._door is not None:
            self._door.close()
            self._door = None

    def _start(self) -> socket.socket:
        door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # An empty environment: /proc/1/environ inside has nothing to show.
            # And of our streams stderr alone, unless it was closed when we started: its number would
            # be another file's by now.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program(theirs.fileno())],
                pass_fds=[theirs.fileno()], env={}, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL if sys.__stderr__ is None else None,
                start_new_session=True, cwd="/",
            )  # fmt: skip
        self._door = door
        return door

    def _end(self) -> None:
        door, self._door = self._door, None
        process, self._process = self._process, None
        if door is not None:
            door.close()
        if process is None:
            return
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # it is stopped, or frozen
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)  # a frozen one dies when it is thawed


def _offer(message: bytes, fds: list[int]) -> Offer:
    ends = [socket.socket(fileno=fd) for fd in fds]
    for end in ends:
        end.setblocking(False)
    facts = json.loads(message)
    return Offer(facts["keeper"], facts["cgroup"], *ends)


def program(fd: int) -> str:
    """What the interpreter executes, with the server's end of the door as descriptor `fd`."""
    package = Path(__file__).resolve().parents[1]
    if package.name != "purplebox":  # run from a checkout: the folders stand beside src/
        package = package / "src" / "purplebox"
    return (
        f"import sys; sys.path.insert(0, {str(package.parent)!r}); "
        f"from purplebox.isolation.keeper import main; main({fd}, *{interpreters()!r})"
    )


FORK_SERVER = ForkServer()
atexit.register(FORK_SERVER.close)
os.register_at_fork(after_in_child=FORK_SERVER.forget)
