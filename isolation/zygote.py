"""The zygote: a policy's namespaces and root view, built once; every sandbox starts from it.

Theory of operation
    The zygote is pid 1 of a pid namespace of its own, so that its death is its sandboxes' death.
    For a sandbox, a thread of it enters fresh namespaces, forks their pid 1, locks itself down
    (lockdown.py) and spawns the command-to-be, held at its gate (gated.py). Thread and command are
    suspended there; the sandbox is ready. The main thread stays unlocked. It finds the command's
    pid, sets its rlimits, and tells the keeper, which moves both processes into their cgroup. The
    gateway writes the command into the shared arena and opens the gate, without us. The end of a
    command kills pid 1, which takes whatever is left in the pid namespace along, and
    is reported to the gateway, which sees the end of pid 1 by its pidfd.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading

from . import capabilities, libc
from .descriptors import receive
from .errors import SetupError
from .gated import Arena, region_address
from .mounts import build_root
from .netns import probe_doors, socket_inside
from .plan import ORDER_BYTES, UNUSED_ID, Plan
from .slot import Births, Slot
from .watcher import Watcher

_BIRTH_POLL_SECONDS = 0.0002  # how often a thread's child is looked for while one is being born
_STACK_BYTES = 256 << 10


def become_zygote(
    keeper: socket.socket, gateway: socket.socket, arena: int, plan: Plan, *, rlimits: bool
) -> None:
    """Turn this forked process into the zygote and serve keeper and gateway; never returns.

    Args:
        keeper: Asks for sandboxes and hands their descriptors in; SOCK_SEQPACKET.
        gateway: Hears of the ends of commands and sends signals to them; SOCK_SEQPACKET.
        arena: Descriptor of the memory in which the gateway writes commands.
        plan: The policy, compiled.
        rlimits: Whether memory and processes are held by rlimits and the watcher (no cgroup).
    """
    try:
        _enter(plan, (keeper, gateway))
        Zygote(keeper, gateway, Arena(arena), plan, rlimits=rlimits).serve()
    except ConnectionError:
        pass  # keeper or gateway has gone, and so does all of this
    except BaseException as error:  # the keeper must hear of it, whatever it was
        keeper.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
    os._exit(1)


def _enter(plan: Plan, channels: tuple[socket.socket, ...]) -> None:
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    uid, gid = os.geteuid(), os.getegid()
    spaces = libc.CLONE_NEWUSER | libc.CLONE_NEWNS | libc.CLONE_NEWPID
    if uid == 0:
        # Real root may do what a user namespace may not: reach below /root, map owners. So the
        # view is built first, then root is given up for an id that nobody has.
        libc.unshare(libc.CLONE_NEWNS)
        build_root(plan, owner_id=UNUSED_ID)
        uid = gid = UNUSED_ID
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        libc.prctl(libc.PR_SET_DUMPABLE, 1)  # else /proc/self/uid_map belongs to root
        libc.unshare(spaces)
        _write_maps(uid, gid)
    else:
        libc.unshare(spaces)
        _write_maps(uid, gid)
        build_root(plan, owner_id=None)
    pid = os.fork()
    if pid:
        for channel in channels:
            channel.close()
        # Changing ids cleared it; and from here on it is this process that holds the zygote.
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.waitpid(pid, 0)
        os._exit(0)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    # Inherited by every thread; lockdown.py does the rest.
    capabilities.drop_bounding_set()
    capabilities.set_no_new_privs()


def _write_maps(uid: int, gid: int) -> None:
    inside = 1000
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


class Zygote:
    """The main thread: one loop over the keeper, the gateway, and the ends of processes."""

    def __init__(
        self, keeper: socket.socket, gateway: socket.socket, arena: Arena, plan: Plan, *, rlimits: bool
    ) -> None:  # fmt: skip
        self._keeper = keeper
        self._gateway = gateway
        self._arena = arena
        self._plan = plan
        self._slots: dict[int, Slot] = {}
        self._of_fd: dict[int, Slot] = {}
        self._births = Births()
        self._networks: list[int] = []  # of sandboxes that are over, for the next ones
        self._watcher = Watcher(plan) if rlimits else None
        self._rlimits = rlimits
        self._epoll = select.epoll()

    def serve(self) -> None:
        """Serve until the keeper closes its end."""
        sys.setswitchinterval(0.0005)  # a thread that prepares must not keep a launch waiting
        threading.stack_size(_STACK_BYTES)
        for channel in (self._keeper, self._gateway):
            self._epoll.register(channel, select.EPOLLIN)
        self._epoll.register(self._births.fd, select.EPOLLIN)
        if self._plan.network and (problem := probe_doors()):
            raise SetupError(problem)
        self._keeper.send(json.dumps({"arena": self._arena.address}).encode())
        while True:
            for fd, _ in self._epoll.poll(self._patience()):
                if fd == self._gateway.fileno():
                    self._on_gateway()
                elif fd == self._keeper.fileno():
                    if not self._on_keeper():
                        os._exit(0)
                elif fd == self._births.fd:
                    self._births.drain()
                else:
                    self._on_end(fd)
            self._on_births()
            if self._watcher:
                self._watcher.look(self._slots.values())

    def _patience(self) -> float:
        if self._births.expected:
            return _BIRTH_POLL_SECONDS
        return self._watcher.seconds if self._watcher and self._slots else -1

    def _on_keeper(self) -> bool:
        message, fds = receive(self._keeper, ORDER_BYTES, 3)
        if not message:
            return False
        request = json.loads(message)
        address = region_address(self._arena.address, request["region"])
        slot = Slot(request, (fds[0], fds[1], fds[2]), address)
        self._slots[slot.number] = slot
        network = self._networks.pop() if self._networks else None
        arguments = (self._plan, self._births, network)
        threading.Thread(target=slot.prepare, args=arguments, daemon=True).start()
        return True

    def _on_births(self) -> None:
        """Take note of slots whose command has come to its gate, or whose preparation failed."""
        for slot in self._births.found():
            if slot.error:
                self._slots.pop(slot.number).abandon()
                answer = {"forked": slot.number, "error": slot.error}
                self._keeper.send(json.dumps(answer).encode())
                continue
            slot.limit(self._plan, self._rlimits)
            for fd in slot.pidfds:
                self._of_fd[fd] = slot
                self._epoll.register(fd, select.EPOLLIN)
            answer = {"forked": slot.number}
            socket.send_fds(self._keeper, [json.dumps(answer).encode()], slot.handed_out())
            slot.close_doors()

    def _on_gateway(self) -> None:
        message = self._gateway.recv(256)
        if not message:
            self._epoll.unregister(self._gateway)  # the keeper ends us, too
            return
        request = json.loads(message)
        if "inside" in request:
            self._hand_out_socket(request["inside"])
        elif slot := self._slots.get(request["number"]):
            slot.forward(request["signal"])

    def _on_end(self, fd: int) -> None:
        slot = self._of_fd.pop(fd)
        self._epoll.unregister(fd)
        slot.ended(fd)
        if slot.to_report:
            self._gateway.send(json.dumps(slot.report()).encode())
        if slot.dead:
            del self._slots[slot.number]
            if slot.network >= 0:
                self._recycle(slot.network)
            slot.release()

    def _hand_out_socket(self, number: int) -> None:
        """Give the gateway a socket inside a sandbox, for `network.listen`."""
        slot = self._slots.get(number)
        try:
            fds = [socket_inside(slot.network)] if slot else []
            answer = {"inside": number, "error": "it has ended"}
        except OSError as error:
            fds, answer = [], {"inside": number, "error": str(error)}
        socket.send_fds(self._gateway, [json.dumps(answer).encode()], fds)
        for fd in fds:
            os.close(fd)

    def _recycle(self, network: int) -> None:
        """Keep a network namespace for the next sandbox, if nothing of the last one is in it."""
        if self._plan.network:
            os.close(network)  # the gateway may still hold connections in it
        else:
            self._networks.append(network)
