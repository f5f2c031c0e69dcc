"""The keeper: the process between the gateway and a policy's sandboxes, on the host's side.

Theory of operation
    gateway ──socket── keeper ──fork── zygote ──fork── pid 1 of a sandbox ──posix_spawn── payload

    The gateway starts one keeper per policy and workspace (`start`), never forks itself, and hands
    it the plan. The keeper forks the zygote, which enters its user, mount and pid namespaces and
    builds the root view once. For each sandbox the keeper makes a cgroup, has the zygote fork a
    pid 1, moves that into the cgroup, and gives the gateway a control socket and a pidfd. When the
    gateway says that a sandbox is gone, it answers what the cgroup counted and removes it. When
    the gateway dies, its socket reads end-of-file: the keeper kills the zygote, whose pid
    namespace takes every sandbox along, and removes the cgroups. That is why it is a process of
    its own: a gateway killed by SIGKILL could clean nothing up.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket

from .cgroup import Cgroup, Hierarchy
from .errors import SetupError
from .landlock import abi_version
from .plan import Plan
from .zygote import become_zygote


def main(fd: int) -> None:
    """Serve the gateway on `fd` (SOCK_SEQPACKET) until it closes. Runs as a program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the payload
    gateway = socket.socket(fileno=fd)
    plan = Plan.from_json(gateway.recv(1 << 20))
    hierarchy = Hierarchy()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote = os.fork()
    if zygote == 0:
        ours.close()
        gateway.close()
        become_zygote(theirs, plan, limit_by_rlimits=hierarchy.version == 0)
    theirs.close()
    try:
        hello = ours.recv(1 << 16) or b'{"error": "the zygote died; see stderr"}'
        facts = json.loads(hello)
        facts["cgroup"] = {"version": hierarchy.version, "reason": hierarchy.reason}
        facts["landlock_abi"] = abi_version()
        gateway.send(json.dumps(facts).encode())
        if "error" not in facts:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the gateway is gone
                _serve(gateway, ours, plan, hierarchy)
    finally:
        ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote, signal.SIGKILL)
        os.waitpid(zygote, 0)
        hierarchy.close()


def _serve(gateway: socket.socket, zygote: socket.socket, plan: Plan, hierarchy: Hierarchy) -> None:
    groups: dict[int, Cgroup | None] = {}
    number = 0
    while message := gateway.recv(256):
        verb, _, argument = message.partition(b" ")
        if verb == b"spawn":
            number += 1
            try:
                group, fds = _spawn(zygote, plan, hierarchy, number)
            except (OSError, SetupError) as error:
                gateway.send(json.dumps({"spawned": number, "error": str(error)}).encode())
                continue
            groups[number] = group
            socket.send_fds(gateway, [json.dumps({"spawned": number}).encode()], fds)
            for fd in fds:
                os.close(fd)
        else:
            gone = groups.pop(int(argument), None)
            usage = gone.usage() if gone else {}
            gateway.send(json.dumps({"gone": int(argument), "usage": usage}).encode())
            if gone:
                gone.remove()


def _spawn(
    zygote: socket.socket, plan: Plan, hierarchy: Hierarchy, number: int
) -> tuple[Cgroup | None, list[int]]:
    group = hierarchy.create(number, plan)
    zygote.send(b"fork")
    message, fds, _, _ = socket.recv_fds(zygote, 4096, 2, socket.MSG_CMSG_CLOEXEC)
    if len(fds) != 2:
        if group:
            group.remove()
        raise SetupError(f"the zygote could not fork: {message.decode() or 'it died'}")
    control, pidfd = fds
    if group:
        group.attach(_pid_of(pidfd))
    # Only now does pid 1 go on: its cgroup namespace has its cgroup as root.
    os.write(control, b"go")
    return group, fds


def _pid_of(pidfd: int) -> int:
    """The pid that `pidfd` means, in our pid namespace. proc_pid_fdinfo(5)."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    raise SetupError("pidfd without a Pid line; is /proc mounted?")
