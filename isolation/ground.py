"""The ground that sandboxes stand on: the zygote and its view, as the keeper makes and ends them.

Theory of operation
    A ground is laid before there is a plan, for what most plans have in common. When the plan comes,
    it is looked whether that still is what the host has: nothing mounted or unmounted, no file of
    /etc that was copied changed. Else another is laid, for this plan.

    What is granted is added to the view last, by whoever can reach it. An ordinary user's zygote does
    that itself: it keeps a copy of the host's mounts for as long. Real root may do what no user
    namespace may, reach below /root and map owners, so there it is the keeper, which builds the view
    in a mount namespace of its own, of which the zygote's is a copy that receives (MS_SLAVE) what is
    mounted in the original. The kernel locks what has come that way: in the zygote's user namespace
    nobody can make writable what was read-only. mount_namespaces(7), "Restrictions".
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket

from . import libc
from .cgroup import Cgroup
from .descriptors import close_but
from .errors import SetupError
from .mounts import Base, Owners
from .origin import become_zygote
from .plan import FIRST, UNUSED_ID, Common, Plan
from .stage import looked_at, small_files, states
from .system import NETWORK_FILES, system_paths

DIED = '{"error": "the zygote died; see stderr"}'


class Ground:
    """A zygote with its view, which waits for a plan.

    Args:
        gateway: The zygote's channel to the gateway.
        common: What plans it is for.
        rehearses: Whether there is time to do once, to no effect, what is to be done for a plan. A
            fork's memory is its own only when it has been written to, which takes as long as all else.
            Then there is a first sandbox, too: first.py.
        group: That one's cgroup; None for none.
        text: The plan in JSON, where it is known already; else the gateway hands it to the zygote, too.

    Attributes:
        common: As given.
        channel: SOCK_SEQPACKET, to the zygote.

    Raises:
        SetupError: it cannot be had here; says why.
    """

    def __init__(
        self,
        gateway: socket.socket,
        common: Common,
        *,
        rehearses: bool = False,
        group: Cgroup | None = None,
        text: bytes = b"",
    ) -> None:
        self.common = common
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._looked_at = [*looked_at(common.system), *common.runtime]
        self._states = states(self._looked_at)
        self._outside = self._inside = -1
        self._owners: Owners | None = None
        self._zygote = 0
        first_in = (FIRST if group else 0) if rehearses and common.namespaces else None
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            try:
                self._base = self._build() if common.namespaces and os.geteuid() == 0 else None
                self._zygote = os.fork()
                if self._zygote == 0:
                    try:
                        close_but(0, 1, 2, theirs.fileno(), gateway.fileno())
                        become_zygote(theirs, gateway, common, first_in, text)
                    finally:
                        os._exit(1)
            finally:
                theirs.close()
                self._come_back()
            if group:
                hand_in(self.channel, FIRST, group)
        except OSError as error:
            self.end()
            raise SetupError(f"no zygote can be had: {error}") from error
        except SetupError:
            self.end()
            raise
        try:
            message = self.channel.recv(1 << 16)
        except ConnectionResetError:  # it has not read all; what it has said is still there
            message = self.channel.recv(1 << 16)
        said = json.loads(message or DIED)
        if "error" in said:
            self.end()
            raise SetupError(said["error"])
        if rehearses:
            self._rehearse()

    def _build(self) -> Base:
        self._owners = Owners(UNUSED_ID, [(0, 0)])
        outside = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        libc.unshare(libc.CLONE_NEWNS)
        self._outside = outside
        self._inside = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        base = Base(self.common, self._owners)
        libc.mount(None, "/", None, libc.MS_REC | libc.MS_SHARED)
        return base

    def _rehearse(self) -> None:
        example = Plan.from_json(self.common.example().to_json())
        if self.is_fresh() and self.common.serves(example) and self._base and self._owners:
            self._base.rehearse(example, self._owners, self._outside, self._inside)
            self._come_back()

    def _come_back(self) -> None:
        if self._outside >= 0:
            libc.setns(self._outside, libc.CLONE_NEWNS)

    def is_fresh(self) -> bool:
        """Whether the host still is as it was."""
        poll = select.poll()
        poll.register(self._mounts, select.POLLPRI)  # proc_pid_mounts(5)
        with contextlib.suppress(OSError):
            return not poll.poll(0) and self._states == states(self._looked_at)
        return False

    def give(self, plan: Plan) -> None:
        """Complete the view for a plan, unless the zygote does it itself, and say so.

        Raises:
            OSError, SetupError: see `Base.add`.
        """
        if self._base and self._owners:
            try:
                self._base.add(plan, self._owners, self._outside, self._inside)
            finally:
                self._come_back()
                self._owners.close()
        self._say("whole")

    def open(self) -> None:
        """Say that the first sandbox's cgroup has the plan's limits."""
        self._say("limited")

    def _say(self, what: str) -> None:
        with contextlib.suppress(ConnectionError):  # should it have died: that is heard later
            self.channel.send(json.dumps({what: True}).encode())

    def end(self) -> None:
        """End the zygote, and all its sandboxes; returns when they are gone."""
        self.channel.close()
        if self._zygote:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._zygote, signal.SIGKILL)
            os.waitpid(self._zygote, 0)
        if self._owners is not None:
            self._owners.close()
        for fd in (self._mounts, self._outside, self._inside):
            if fd >= 0:
                os.close(fd)


def hand_in(zygote: socket.socket, number: int, group: Cgroup | None) -> None:
    """Give the zygote the files of cgroup `number`; none says that it cannot be had.

    Raises:
        ConnectionError: the zygote has died, and may have said why.
        OSError: they cannot be opened.
    """
    files = group.open_procs() if group is not None else []
    try:
        socket.send_fds(zygote, [json.dumps({"group": number}).encode()], files)
    finally:
        for fd in files:
            os.close(fd)


def likely(runtime: tuple[str, ...]) -> Common:
    """What most plans have in common; `runtime` as of `Plan`, when the gateway began."""
    # What is too large to be copied is mounted, and so cannot be written over for a plan.
    own = [path for path in NETWORK_FILES if not small_files(path)]
    system = tuple(path for path in system_paths() if path not in own)
    return Common(system, tuple(filter(os.path.isdir, runtime)))
