"""The keeper: the process between the gateway and a policy's sandboxes, on the host's side.

Theory of operation
    gateway ──door── fork server ──fork── keeper ──fork── zygote ──posix_spawn── pid 1 ──clone── command
       ├──────────────socket────────────────┘               │                      │
       ├──────────────socket────────────────────────────────┘                      │
       └──────────────socket───────────────────────────────────────────────────────┘

    The gateway never forks itself. It starts one fork server (forkserver.py) for all its engines,
    which has one keeper with its zygote forked ahead: both wait, having seen no policy yet. The
    keeper takes a request from the door, which both it and the zygote then close: what is one
    engine's, its channels, plan and descriptors, no other's processes have ever had. It is handed a
    plan, and a socket for the zygote, which enters its user, mount and pid namespaces and builds the
    root view once, and from then on serves the gateway directly. The keeper's part is what the
    zygote cannot see any more: it makes a cgroup when the gateway says so, hands the zygote the
    files by which processes move in, and removes it again. When the gateway closes its end or dies,
    the keeper's socket reads end-of-file: it kills the zygote, whose pid namespace takes every
    sandbox along, removes the cgroups, and closes its own end, which is how the gateway knows. That
    is why it is a process of its own: a gateway killed by SIGKILL could clean nothing up.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

from . import leftovers, libc, scope
from .cgroup import Cgroup, Hierarchy
from .descriptors import receive
from .plan import Plan
from .warden import PLACES, remove_places
from .zygote import become_zygote

_PAUSE_SECONDS = 0.02  # a first call on a busy machine, which the next forks must not slow down


def main(fd: int) -> None:
    """Be the fork server for the gateway at `fd`, SOCK_SEQPACKET, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the payload
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    door = socket.socket(fileno=fd)
    gc.freeze()  # a collector that writes to what it finds would have forks copy it
    while True:
        taken, taker = os.pipe2(os.O_CLOEXEC)
        if os.fork() == 0:
            os.close(taken)
            _become_keeper(door, taker)
        os.close(taker)
        was_taken = os.read(taken, 1)  # or it died
        os.close(taken)
        if not was_taken and _is_closed(door):
            return
        time.sleep(_PAUSE_SECONDS)


def _is_closed(door: socket.socket) -> bool:
    try:
        return not door.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


def _become_keeper(door: socket.socket, taker: int) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        zygote = os.fork()
        if zygote == 0:
            for channel in (door, ours):
                channel.close()
            os.close(taker)
            become_zygote(theirs)
        theirs.close()
        _, fds = receive(door, 16, 2)
        if fds:
            with contextlib.suppress(BrokenPipeError):  # the server was killed: we are the last
                os.write(taker, b"t")
            os.close(taker)
            door.close()
            os.dup2(fds[1], 2)
            os.close(fds[1])
            _keep(socket.socket(fileno=fds[0]), ours, zygote)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(0)


def _keep(gateway: socket.socket, ours: socket.socket, zygote: int) -> None:
    """Serve one engine until its gateway or its zygote has ended."""
    text, fds = receive(gateway, 1 << 20, 1)
    if not text:
        return  # and so does the zygote
    if scope.can_ask():
        scope.ask(zygote)  # before it has its plan, and with it another process of its own
    with contextlib.suppress(ConnectionError):  # should it have died: that is heard below
        socket.send_fds(ours, [text], fds)
    os.close(fds[0])
    plan = Plan.from_json(text)
    hierarchy = Hierarchy(plan)
    if not plan.namespaces:  # what outlives the zygote becomes a child of ours
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    try:
        _sweep(plan, hierarchy)  # while the zygote builds its view
        hello = ours.recv(1 << 16) or b'{"error": "the zygote died; see stderr"}'
        facts = json.loads(hello)
        facts["keeper"] = os.getpid()
        facts["cgroup"] = {"version": hierarchy.version, "reason": hierarchy.reason}
        facts["cgroup"]["bases"] = hierarchy.bases
        facts["landlock_abi"] = plan.landlock_abi
        with contextlib.suppress(ConnectionError):  # the gateway is gone
            gateway.send(json.dumps(facts).encode())
            if "error" not in facts:
                _Keeper(gateway, ours, plan, hierarchy).serve()
    finally:
        ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote, signal.SIGKILL)
        os.waitpid(zygote, 0)
        with contextlib.suppress(ChildProcessError):
            while os.wait():
                pass
        if not plan.namespaces:
            remove_places(os.getpid())
        hierarchy.close()


def _sweep(plan: Plan, hierarchy: Hierarchy) -> None:
    """Remove what others have left that were killed."""
    hierarchy.sweep()
    if not plan.namespaces:
        leftovers.sweep(*PLACES, leftovers.remove)


class _Keeper:
    def __init__(
        self, gateway: socket.socket, zygote: socket.socket, plan: Plan, hierarchy: Hierarchy
    ) -> None:
        self._gateway = gateway
        self._zygote = zygote
        self._plan = plan
        self._hierarchy = hierarchy
        self._groups: dict[int, Cgroup] = {}

    def serve(self) -> None:
        poll = select.poll()
        for channel in (self._gateway, self._zygote):
            poll.register(channel, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                ours = fd == self._gateway.fileno()
                if not (self._on_gateway() if ours else self._on_zygote()):
                    return

    def _on_gateway(self) -> bool:
        message = self._gateway.recv(4096)
        if not message:
            return False
        request = json.loads(message)
        if "make" in request:
            self._make(request["make"])
        else:
            self._remove(request["remove"])
        return True

    def _on_zygote(self) -> bool:
        if message := self._zygote.recv(4096):
            print(f"purple: the zygote failed: {json.loads(message)['error']}", file=sys.stderr)
        return False

    def _make(self, number: int) -> None:
        files: list[int] = []
        procs = 0
        try:
            self._groups[number] = group = self._hierarchy.create(number, self._plan)
            files += group.open_procs()
            procs = len(files)
            files += group.open_oom()
        except OSError as error:
            print(f"purple: no cgroup could be made: {error}", file=sys.stderr)
        try:
            # Without any it says that there is none: the zygote refuses the sandbox.
            told = json.dumps({"group": number, "procs": procs})
            socket.send_fds(self._zygote, [told.encode()], files)
        finally:
            for fd in files:
                os.close(fd)

    def _remove(self, number: int) -> None:
        self._zygote.send(json.dumps({"removed": number}).encode())
        if group := self._groups.pop(number, None):
            group.remove()
