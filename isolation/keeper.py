"""The keeper: the process between the gateway and a policy's sandboxes, on the host's side.

Theory of operation
    gateway ──door── fork server ──fork── keeper ──fork── zygote ──posix_spawn── pid 1 ──clone── command
       ├──────────────socket────────────────┘               │                      │
       ├──────────────socket────────────────────────────────┘                      │
       └──────────────socket───────────────────────────────────────────────────────┘

    The gateway never forks itself. It starts one fork server (forkserver.py) for all its engines,
    which has one keeper forked ahead. That has a zygote with namespaces, a view (ground.py) and a
    first sandbox in it (first.py), offers the gateway a channel to itself and one to the zygote
    through the door, closes the door, and waits, having seen no policy yet: what is one engine's, its
    channels, plan and descriptors, no other's processes have ever had. Told to begin, it looks whether
    what is there is still of use. The plan goes to both. The keeper has the view completed by what
    that grants and sets limits on the first sandbox's cgroup, and then lets the zygote serve the
    gateway, which has asked for that sandbox meanwhile. The keeper's part is what the zygote
    cannot see any more: it makes a cgroup when the gateway says so, hands the zygote the files by which
    processes move in, hears of kills in it, and removes it again; and it holds what would make the
    zygote large (shelf.py). When the gateway closes its end or dies, the keeper's socket reads end-of-file: it kills the zygote, whose pid namespace takes every
    sandbox along, removes the cgroups, and closes its own end, which is how the gateway knows. That
    is why it is a process of its own: a gateway killed by SIGKILL could clean nothing up.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import leftovers, libc, scope
from .descriptors import receive
from .errors import SetupError
from .ground import DIED, Ground, hand_in, likely
from .groups import Groups
from .plan import FIRST, Plan
from .shelf import MOST, Shelf
from .warden import PLACES, remove_places

_QUIET_SECONDS = 0.1  # after a first call, for what is not needed for it
_PAUSE_SECONDS = 0.02  # a first call on a busy machine, which the next forks must not slow down


def main(fd: int, *runtime: str) -> None:
    """Be the fork server for the gateway at `fd`, SOCK_SEQPACKET, until that is closed; `runtime` as of
    `likely`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the payload
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    door = socket.socket(fileno=fd)
    gc.freeze()  # a collector that writes to what it finds would have forks copy it
    hurried = True  # we are started when somebody wants one
    while True:
        taken, taker = os.pipe2(os.O_CLOEXEC)
        if os.fork() == 0:
            os.close(taken)
            _become_keeper(door, taker, runtime, hurried=hurried)
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


def _become_keeper(
    door: socket.socket, taker: int, runtime: tuple[str, ...], *, hurried: bool
) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.umask(0o022)
        if scope.can_ask():
            scope.ask()
        processors = os.sched_getaffinity(0)
        groups = Groups()
        gateway, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for_zygote, asks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ground: Ground | None = None
        with contextlib.suppress(SetupError):  # whoever comes with a plan will hear of it
            first = None if hurried else groups.make_first()
            ground = Ground(for_zygote, likely(runtime), rehearses=not hurried, group=first)
        facts = {"keeper": os.getpid(), "cgroup": groups.facts()}
        ends = [theirs.fileno(), asks.fileno()]
        _offer(door, json.dumps(facts).encode(), ends)
        for channel in (door, theirs, asks):
            channel.close()
        begin, fds = receive(gateway, 16, 1)
        text = b""
        if begin:
            with contextlib.suppress(OSError):  # none of them is ours any more
                os.sched_setaffinity(0, processors)  # see `Link.begin`
            for fd in fds:  # none where there was no room for it
                os.dup2(fd, 2)
                os.close(fd)
            if ground is not None and not ground.is_fresh():  # while the gateway compiles the plan
                _end(ground, groups)
                ground = None
            if not select.select([gateway], [], [], 0)[0]:  # it may take the gateway long
                taker = _make_way(taker)
            text = gateway.recv(1 << 20)
        _keep(gateway, for_zygote, text, ground, groups, taker)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(0)


def _offer(door: socket.socket, facts: bytes, ends: Sequence[int]) -> None:
    """Hand the gateway our ends, once there are no longer too many descriptors under way in whatever
    processes of this user: unix(7), ETOOMANYREFS."""
    said = False
    gone = select.poll()
    gone.register(door, 0)  # POLLHUP, whatever it has said that we have not read
    with contextlib.suppress(ConnectionError):  # then so is our end of `gateway`
        while True:
            try:
                socket.send_fds(door, [facts], ends)
                return
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                if not said:
                    print(f"purple: a keeper has to wait: {error}", file=sys.stderr)
                said = True
                if gone.poll(_PAUSE_SECONDS * 1000):  # nothing tells when there is room again
                    return


def _make_way(taker: int) -> int:
    """Let the fork server make another keeper. Returns what takes the place of `taker`."""
    if taker >= 0:
        with contextlib.suppress(BrokenPipeError):  # the server was killed: we are the last
            os.write(taker, b"t")
        os.close(taker)
    return -1


def _end(ground: Ground, groups: Groups) -> None:
    """End what has been made ahead."""
    ground.end()
    groups.remove(FIRST)


def _keep(
    gateway: socket.socket, for_zygote: socket.socket, text: bytes, ground: Ground | None,
    groups: Groups, taker: int,
) -> None:  # fmt: skip
    """Serve one engine, whose plan is `text`, until its gateway or its zygote has ended; without a
    plan, until now. `taker` is as of `_make_way`, -1 where that has been done."""
    plan: Plan | None = None
    try:
        if not text:
            return
        plan = Plan.from_json(text)
        if not plan.namespaces:  # what outlives the zygote becomes a child of ours
            libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        try:
            if ground is not None and not ground.common.serves(plan):
                _end(ground, groups)
                ground = None
            ground = ground or Ground(for_zygote, plan.common, text=text)
            ground.give(plan)
            groups.know(plan)
            ground.open()
        except (OSError, SetupError) as error:
            said = str(error) if isinstance(error, SetupError) else f"OSError: {error}"
            with contextlib.suppress(ConnectionError):
                gateway.send(json.dumps({"error": said}).encode())
            return
        for_zygote.close()
        _make_way(taker)
        with contextlib.suppress(ConnectionError):  # either has gone
            _Keeper(gateway, ground.channel, plan, groups).serve()
    finally:
        if ground is not None:
            ground.end()
        with contextlib.suppress(ChildProcessError):
            while os.wait():
                pass
        if plan is not None and not plan.namespaces:
            remove_places(os.getpid())
        groups.close()


class _Keeper:
    def __init__(
        self, gateway: socket.socket, zygote: socket.socket, plan: Plan, groups: Groups
    ) -> None:
        self._gateway = gateway
        self._zygote = zygote
        self._plan = plan
        self._groups = groups
        self._shelf = Shelf()
        self._stands = False  # the zygote's view

    def serve(self) -> None:
        """Until the gateway or the zygote has gone."""
        # The zygote's is what ours was.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if self._groups.can_be_made and not self._groups.get(FIRST):
            self._make(FIRST)  # it will be asked for
        poll = select.poll()
        on = {
            self._gateway.fileno(): self._on_gateway,
            self._zygote.fileno(): self._on_zygote,
            self._groups.ooms.fileno(): self._on_out_of_memory,
            self._shelf.fileno(): self._on_ends,
        }
        for channel in on:
            poll.register(channel, select.POLLIN)
        swept = False
        while True:
            told = poll.poll(None if swept else _QUIET_SECONDS * 1000)
            if not told:
                self._sweep()
                swept = True
            if not all(on[fd]() for fd, _ in told):
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
            message, fds = receive(self._zygote, 1 << 16, MOST)
        except ConnectionResetError:  # it has not read all; what it has said is still there
            message, fds = receive(self._zygote, 1 << 16, MOST)
        said = json.loads(message or DIED)
        if "hold" in said:
            self._shelf.put(said["hold"], fds)
            return True
        if "open" in said:
            self._hand_in(said["open"])
            return True
        if self._stands:
            if message:
                print(f"purple: the zygote failed: {said['error']}", file=sys.stderr)
            return False
        self._stands = True
        said["cgroup"] = self._groups.facts()
        with contextlib.suppress(ConnectionError):  # heard when its channel is read
            self._gateway.send(json.dumps(said).encode())
        return "error" not in said

    def _sweep(self) -> None:
        """Remove what others have left that were killed."""
        self._groups.sweep()
        if not self._plan.namespaces:
            leftovers.sweep(*PLACES, leftovers.remove)

    def _on_out_of_memory(self) -> bool:
        for number in self._groups.ooms.told():
            self._tell_zygote({"killed_in": number})
        return True

    def _on_ends(self) -> bool:
        for number, network in self._shelf.ended():
            # It is no loss when the zygote is behind, or no descriptor can be sent, and it does not get it.
            with contextlib.suppress(OSError):
                if not self._plan.network:
                    self._tell_zygote({"network": number}, [network], socket.MSG_DONTWAIT)
            os.close(network)
        return True

    def _make(self, number: int) -> None:
        try:
            self._groups.make(number, self._plan)
        except OSError as error:
            print(f"purple: no cgroup could be made: {error}", file=sys.stderr)
            self._tell_zygote({"group": number})
        else:
            self._hand_in(number)

    def _hand_in(self, number: int) -> None:
        try:
            with contextlib.suppress(ConnectionError):  # it has died, and may have said why
                hand_in(self._zygote, number, self._groups.get(number))
        except OSError as error:
            print(f"purple: a cgroup cannot be entered: {error}", file=sys.stderr)
            self._tell_zygote({"group": number})

    def _remove(self, number: int) -> None:
        self._tell_zygote({"removed": number})
        self._groups.remove(number)

    def _tell_zygote(self, told: dict[str, int], files: Sequence[int] = (), flags: int = 0) -> None:
        with contextlib.suppress(ConnectionError):  # it has died, and may have said why
            socket.send_fds(self._zygote, [json.dumps(told).encode()], files, flags)
