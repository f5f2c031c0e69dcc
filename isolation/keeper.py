"""The keeper: the process between the gateway and a policy's sandboxes, on the host's side.

Theory of operation
    gateway ──door── fork server ──fork── keeper ──fork── zygote ──posix_spawn── pid 1 ──clone── command
       ├──────────────socket────────────────┘               │                      │
       ├──────────────socket────────────────────────────────┘                      │
       └──────────────socket───────────────────────────────────────────────────────┘

    The gateway never forks itself. It starts one fork server (forkserver.py) for all its engines,
    which has one keeper forked ahead. That has a zygote with namespaces and a view (ground.py),
    offers the gateway a channel to itself and one to the zygote through the door, closes the door,
    and waits, having seen no policy yet: what is one engine's, its channels, plan and descriptors,
    no other's processes have ever had. Told to begin, it looks whether what is there is still of
    use; handed a plan, it has the view completed by what that grants. The zygote from then on serves
    the gateway directly. The keeper's part is what the zygote cannot see any more: it makes a cgroup
    when the gateway says so, hands the zygote the
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
from typing import Any, NoReturn

from . import leftovers, libc, scope
from .cgroup import Cgroup
from .descriptors import receive
from .errors import SetupError
from .ground import DIED, Ground, likely
from .hierarchy import Hierarchy
from .plan import Plan
from .warden import PLACES, remove_places

_PAUSE_SECONDS = 0.02  # a first call on a busy machine, which the next forks must not slow down


def main(fd: int) -> None:
    """Be the fork server for the gateway at `fd`, SOCK_SEQPACKET, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the payload
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    door = socket.socket(fileno=fd)
    gc.freeze()  # a collector that writes to what it finds would have forks copy it
    hurried = True  # we are started when somebody wants one
    while True:
        taken, taker = os.pipe2(os.O_CLOEXEC)
        if os.fork() == 0:
            os.close(taken)
            _become_keeper(door, taker, hurried=hurried)
        os.close(taker)
        was_taken = os.read(taken, 1)  # or it died
        os.close(taken)
        if not was_taken and _is_closed(door):
            return
        _is_hurried(door)  # by whoever has one now
        select.select([door], [], [], _PAUSE_SECONDS)
        hurried = _is_hurried(door)


def _is_hurried(door: socket.socket) -> bool:
    """Whether the gateway has said that somebody waits for a keeper; listens to all that it says."""
    said = False
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while door.recv(16, socket.MSG_DONTWAIT):
            said = True
    return said


def _is_closed(door: socket.socket) -> bool:
    try:
        return not door.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionResetError:  # it has not taken all
        return True


def _become_keeper(door: socket.socket, taker: int, *, hurried: bool) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.umask(0o022)
        if scope.can_ask():
            scope.ask()
        hierarchy = Hierarchy()
        gateway, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for_zygote, asks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ground: Ground | None = None
        with contextlib.suppress(SetupError):  # whoever comes with a plan will hear of it
            ground = Ground(for_zygote, likely(), rehearses=not hurried)
        facts = {"keeper": os.getpid(), "cgroup": _facts(hierarchy)}
        ends = [theirs.fileno(), asks.fileno()]
        with contextlib.suppress(ConnectionError):  # then so is our end of `gateway`
            socket.send_fds(door, [json.dumps(facts).encode()], ends)
        for channel in (door, theirs, asks):
            channel.close()
        begin, fds = receive(gateway, 16, 1)
        text = b""
        if begin:
            os.dup2(fds[0], 2)
            os.close(fds[0])
            if ground is not None and not ground.is_fresh():  # while the gateway compiles the plan
                ground.end()
                ground = None
            with contextlib.suppress(BrokenPipeError):  # the server was killed: we are the last
                os.write(taker, b"t")
            text = gateway.recv(1 << 20)
        os.close(taker)
        _keep(gateway, for_zygote, text, ground, hierarchy)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(0)


def _facts(hierarchy: Hierarchy) -> dict[str, Any]:
    return {"version": hierarchy.version, "reason": hierarchy.reason, "bases": hierarchy.bases}


def _keep(
    gateway: socket.socket, for_zygote: socket.socket, text: bytes, ground: Ground | None,
    hierarchy: Hierarchy,
) -> None:  # fmt: skip
    """Serve one engine, whose plan is `text`, until its gateway or its zygote has ended; without a
    plan, until now."""
    plan: Plan | None = None
    try:
        if not text:
            return
        plan = Plan.from_json(text)
        if plan.io_bytes_per_second is not None:
            hierarchy.close()
            hierarchy = Hierarchy(plan)
        if not plan.namespaces:  # what outlives the zygote becomes a child of ours
            libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        try:
            if ground is not None and not ground.common.serves(plan):
                ground.end()
                ground = None
            ground = ground or Ground(for_zygote, plan.common, rehearses=False)
            ground.give(plan, text)
        except (OSError, SetupError) as error:
            said = str(error) if isinstance(error, SetupError) else f"OSError: {error}"
            with contextlib.suppress(ConnectionError):
                gateway.send(json.dumps({"error": said}).encode())
            return
        for_zygote.close()
        with contextlib.suppress(ConnectionError):  # either has gone
            _Keeper(gateway, ground.channel, plan, hierarchy).serve()
    finally:
        if ground is not None:
            ground.end()
        with contextlib.suppress(ChildProcessError):
            while os.wait():
                pass
        if plan is not None and not plan.namespaces:
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
        self._stands = False  # the zygote's view

    def serve(self) -> None:
        """Until the gateway or the zygote has gone."""
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
        try:
            message = self._zygote.recv(1 << 16)
        except ConnectionResetError:  # it has not read all; what it has said is still there
            message = self._zygote.recv(1 << 16)
        if self._stands:
            if message:
                print(f"purple: the zygote failed: {json.loads(message)['error']}", file=sys.stderr)
            return False
        self._stands = True
        hello = json.loads(message or DIED)
        hello["cgroup"] = _facts(self._hierarchy)
        with contextlib.suppress(ConnectionError):  # heard when its channel is read
            self._gateway.send(json.dumps(hello).encode())
        if "error" in hello:
            return False
        _sweep(self._plan, self._hierarchy)
        return True

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
            with contextlib.suppress(ConnectionError):  # it has died, and may have said why
                socket.send_fds(self._zygote, [told.encode()], files)
        finally:
            for fd in files:
                os.close(fd)

    def _remove(self, number: int) -> None:
        with contextlib.suppress(ConnectionError):
            self._zygote.send(json.dumps({"removed": number}).encode())
        if group := self._groups.pop(number, None):
            group.remove()
