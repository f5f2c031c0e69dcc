"""The keeper: the process between the gateway and a policy's sandboxes, on the host's side.

Theory of operation
    gateway ──socket── keeper ──fork── zygote ──posix_spawn── pid 1 ──vfork── command
       ├──────────────socket──────────────┘                    │
       └──────────────socket───────────────────────────────────┘

    The gateway starts one keeper per policy and workspace, never forks itself, and hands it the
    plan and a socket for the zygote. The keeper forks the zygote, which enters its user, mount and
    pid namespaces and builds the root view once, and from then on serves the gateway directly. The
    keeper's part is what the zygote cannot see any more: it makes a cgroup when the gateway says
    so, hands the zygote the files by which processes are moved in, and removes it again. When the
    gateway dies, its socket reads end-of-file: the keeper kills the zygote, whose pid namespace
    takes every sandbox along, and removes the cgroups. That is why it is a process of its own: a
    gateway killed by SIGKILL could clean nothing up.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys

from . import libc
from .cgroup import Cgroup, Hierarchy
from .descriptors import receive
from .plan import Plan
from .warden import remove_places
from .zygote import become_zygote


def main(fd: int) -> None:
    """Serve the gateway on `fd` (SOCK_SEQPACKET) until it closes. Runs as a program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the payload
    gateway = socket.socket(fileno=fd)
    text, fds = receive(gateway, 1 << 20, 1)
    plan = Plan.from_json(text)
    to_gateway = socket.socket(fileno=fds[0])
    hierarchy = Hierarchy(plan)
    if not plan.namespaces:  # what outlives the zygote becomes a child of ours
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote = os.fork()
    if zygote == 0:
        ours.close()
        gateway.close()
        become_zygote(theirs, to_gateway, plan, rlimits=hierarchy.version == 0)
    theirs.close()
    to_gateway.close()
    try:
        hello = ours.recv(1 << 16) or b'{"error": "the zygote died; see stderr"}'
        facts = json.loads(hello)
        facts["cgroup"] = {"version": hierarchy.version, "reason": hierarchy.reason}
        facts["cgroup"]["bases"] = hierarchy.bases
        facts["landlock_abi"] = plan.landlock_abi
        gateway.send(json.dumps(facts).encode())
        if "error" not in facts:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the gateway is gone
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
