"""The keeper: the process between the gateway and a policy's sandboxes, on the host's side.

Theory of operation
    gateway ──socket── keeper ──fork── zygote ──thread, posix_spawn── command
       └──────────────socket──────────────┘

    The gateway starts one keeper per policy and workspace, never forks itself, and hands it the
    plan, a socket for the zygote and the arena in which commands are written. The keeper forks the zygote, which enters its user, mount and
    pid namespaces and builds the root view once. For each sandbox the keeper makes a cgroup, has
    the zygote prepare a pid 1 and a command held at its gate, moves both into the cgroup, and
    tells the gateway. The end of a command goes from zygote to gateway directly. When the
    gateway says that a sandbox is gone, its cgroup is removed. When the gateway dies, its socket
    reads end-of-file: the keeper kills the zygote, whose pid namespace takes every sandbox along,
    and removes the cgroups. That is why it is a process of its own: a gateway killed by SIGKILL
    could clean nothing up.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys

from .cgroup import Cgroup, Hierarchy
from .descriptors import receive
from .errors import SetupError
from .landlock import abi_version
from .netns import DOORS
from .oom import OutOfMemory
from .plan import ORDER_BYTES, Plan
from .zygote import become_zygote


def main(fd: int) -> None:
    """Serve the gateway on `fd` (SOCK_SEQPACKET) until it closes. Runs as a program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the payload
    gateway = socket.socket(fileno=fd)
    text, fds = receive(gateway, 1 << 20, 2)
    plan = Plan.from_json(text)
    ends, arena = socket.socket(fileno=fds[0]), fds[1]
    hierarchy = Hierarchy(plan)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote = os.fork()
    if zygote == 0:
        ours.close()
        gateway.close()
        become_zygote(theirs, ends, arena, plan, rlimits=hierarchy.version == 0)
    theirs.close()
    ends.close()
    os.close(arena)
    try:
        hello = ours.recv(1 << 16) or b'{"error": "the zygote died; see stderr"}'
        facts = json.loads(hello)
        facts["cgroup"] = {"version": hierarchy.version, "reason": hierarchy.reason}
        facts["landlock_abi"] = abi_version()
        gateway.send(json.dumps(facts).encode())
        if "error" not in facts:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the gateway is gone
                _Keeper(gateway, ours, plan, hierarchy).serve()
    finally:
        ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote, signal.SIGKILL)
        os.waitpid(zygote, 0)
        hierarchy.close()


class _Keeper:
    def __init__(
        self, gateway: socket.socket, zygote: socket.socket, plan: Plan, hierarchy: Hierarchy
    ) -> None:
        self._gateway = gateway
        self._zygote = zygote
        self._plan = plan
        self._hierarchy = hierarchy
        self._groups: dict[int, Cgroup | None] = {}
        self._ooms = OutOfMemory()

    def serve(self) -> None:
        poll = select.poll()
        for channel in (self._gateway, self._zygote, self._ooms):
            poll.register(channel, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._ooms.fileno():
                    self._ooms.kill()
                    continue
                ours = fd == self._gateway.fileno()
                if not (self._on_gateway() if ours else self._on_zygote()):
                    return

    def _on_gateway(self) -> bool:
        message, fds = receive(self._gateway, ORDER_BYTES, 3)
        if not message:
            return False
        request = json.loads(message)
        if "gone" in request:
            self._ooms.forget(request["gone"])
            if group := self._groups.pop(request["gone"], None):
                group.remove()
            return True
        number = request["spawn"]
        try:
            self._groups[number] = self._hierarchy.create(number, self._plan)
            order = json.dumps({**request, "fork": number})
            socket.send_fds(self._zygote, [order.encode()], fds)
        except OSError as error:
            self._refuse(number, str(error))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _on_zygote(self) -> bool:
        message, fds = receive(self._zygote, 4096, 4 + DOORS)
        if not message:
            return False
        answer = json.loads(message)
        if "forked" not in answer:
            print(f"purple: the zygote failed: {answer['error']}", file=sys.stderr)
            return False
        number = answer["forked"]
        if "error" in answer:
            self._refuse(number, answer["error"])
            return True
        pid_1, command, *others = fds
        try:
            group = self._groups[number]
            if group:
                for pidfd in (pid_1, command):
                    group.attach(_pid_of(pidfd))
                self._ooms.watch(number, group, pid_1)
            told = {"spawned": number, "cgroup": group.paths if group else {}}
            socket.send_fds(self._gateway, [json.dumps(told).encode()], [pid_1, *others])
        except (OSError, SetupError) as error:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pid_1, signal.SIGKILL)
            self._refuse(number, str(error))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _refuse(self, number: int, error: str) -> None:
        if group := self._groups.pop(number, None):
            group.remove()
        self._gateway.send(json.dumps({"spawned": number, "error": error}).encode())


def _pid_of(pidfd: int) -> int:
    """The pid that `pidfd` means, in our pid namespace. proc_pid_fdinfo(5)."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    raise SetupError("pidfd without a Pid line; is /proc mounted?")
