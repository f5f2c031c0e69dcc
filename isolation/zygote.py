"""The zygote: a policy's namespaces and root view, built once; every sandbox starts from it.

Theory of operation
    What most policies have in common is built before there is one: all namespaces, the view of system
    software, a first sandbox (first.py). The plan adds to the view what it grants; the filter comes
    when the first sandbox has been asked for, and none is handed out before.
    The zygote is pid 1 of a pid namespace of its own, so that its death is its sandboxes' death. It
    has one thread and serves one request after the other. For a sandbox it enters fresh namespaces,
    mounts what is private, starts their pid 1 (pid1.py) with its limits, comes back to its own, and
    hands pid 1's pidfd to the gateway, which from then on deals with pid 1 directly: it sends the
    order, kills, hears of the end. All that is left for the zygote is to reap pid 1, and to keep
    the network namespace for another sandbox: everything that ran in it is gone by then, and no socket
    in it is to be left when it is used again. To take
    mounts down keeps all processors busy for a moment (the kernel waits for each of them), in which the
    gateway has a result to hand on: so the zygote does that when it is asked for something.

    It holds few descriptors, for each pid 1 begins with a table of them that is as large as its own:
    where there are many sandboxes, the keeper holds what is to outlive them (shelf.py).
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import resource
import select
import signal
import socket
from collections import deque
from functools import partial
from typing import Any

from . import libc
from .cgroup import MAX_FILES
from .descriptors import receive
from .errors import SetupError
from .first import First
from .lockdown import Home
from .marks import Marks
from .netns import Want, has_sockets, probe_doors
from .plan import FIRST, ORDER_BYTES, Plan
from .shelf import shelve
from .slot import Slot
from .warden import WardedSlot
from .watcher import Watcher

_KEPT_SANDBOXES = 24  # of which we hold the namespaces ourselves; a call ends with a message less
_KEPT_GROUPS = 20  # of which the files stay open, a few each; sandboxes follow one another in them
SPARE_NETWORKS = 16  # some 160 kB each; as many as calls that begin while as many end


class Zygote:
    """One loop over the keeper, the ends of sandboxes, and the gateway."""

    _plan: Plan

    def __init__(self, keeper: socket.socket, gateway: socket.socket) -> None:
        self._keeper = keeper
        self._gateway = gateway
        self._home = Home()
        self._slots: dict[int, Slot] = {}
        self._of_pid: dict[int, Slot] = {}
        self._first: First | None = None
        self._is_whole = self._is_limited = False  # the view; the first sandbox's cgroup
        self._networks: deque[int] = deque()  # of sandboxes that are over, the oldest first
        self._groups: dict[int, list[int]] = {}  # files by number, see `Cgroup.open_procs`
        self._shut: set[int] = set()  # groups whose files we had and have closed
        self._in_group: dict[int, Slot] = {}
        self._watcher: Watcher | None = None  # where there are no cgroups
        self._ends = -1  # where there is a watcher
        self._poll = select.poll()
        self._bpf = os.memfd_create("filter", os.MFD_CLOEXEC)
        self._knows_filter = False
        # A sandbox's own limit is what this was; ours must hold a few for each that waits.
        self._open_files = _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def lay_first(self, example: Plan, group: int) -> None:
        """Make the first sandbox ahead, in cgroup `group`, and complete it once to no effect."""
        self._first = first = First(example, group)
        try:
            first.lay(self._home, self._bpf, partial(self._files_of, group))
            first.complete(example, self._home, Marks())
            first.limit(example, self._open_files)
        except OSError:
            self._drop_first()  # whoever asks for a sandbox will hear of it
        self._shut_files_of(group)

    def know(self, plan: Plan) -> None:
        """Take what is to be served."""
        self._plan = plan

    def serve(self) -> None:
        """Serve until the keeper closes its end. Needs a plan."""
        if self._plan.network and (problem := probe_doors()):
            raise SetupError(problem)
        # What the gateway asks for is left unread until then: the plan may need another ground than this,
        # whose zygote would have read it in vain.
        while not self._is_whole:
            self._on_keeper()
        for channel in (self._keeper, self._gateway):
            self._poll.register(channel, select.POLLIN)
        self._serve(0)  # what has been asked for: the answer to that says what this says, too
        self._keeper.send(b"{}")
        while True:
            self._serve(self._patience())

    def _serve(self, milliseconds: float | None) -> None:
        # The gateway comes last: its spawn may read what the keeper has sent, too, and acting on
        # what poll told of the keeper would then be to wait for a message that nobody sends.
        # And ends come before starts, so that neither processes nor networks pile up.
        told = {fd for fd, _ in self._poll.poll(milliseconds)}
        if self._keeper.fileno() in told:
            self._on_keeper()
        if self._ends in told:
            os.read(self._ends, 128)  # one signal tells of all
            self._on_ends()
        if self._gateway.fileno() in told:
            self._on_ends()
            self._on_gateway()
        if self._watcher:
            self._watcher.look(self._slots.values())

    def _patience(self) -> float | None:
        return self._watcher.seconds * 1000 if self._watcher and self._slots else None

    def _on_keeper(self) -> None:
        message, fds = receive(self._keeper, 4096, MAX_FILES)
        if not message:
            os._exit(0)
        said = json.loads(message)
        if "group" in said:
            self._groups[said["group"]] = fds
        elif "network" in said:
            for fd in fds:  # none where there was no room for it
                self._recycle(fd)
        elif "whole" in said:
            self._is_whole = True
            if self._plan.namespaces:
                libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
        elif "limited" in said:
            self._is_limited = True
        elif "removed" in said:
            self._shut.discard(said["removed"])
            for fd in self._groups.pop(said["removed"], ()):
                os.close(fd)
        elif slot := self._in_group.get(said["killed_in"]):  # a group of one sandbox only by now
            slot.kill()

    def _on_gateway(self) -> None:
        message, fds = receive(self._gateway, ORDER_BYTES, 4)
        if not message:
            self._poll.unregister(self._gateway)  # the keeper ends us, too
            return
        request = json.loads(message)
        if "spawn" in request:
            self._spawn(request, fds)
        elif "filter" in request:  # the first sandbox came to nothing before it was needed
            self._take_filter(request["filter"])
        elif "system" in request:
            pass  # a plan that we had sooner than it came
        elif "ended" in request:
            pass  # they are taken note of before any request is
        elif "inside" in request:
            self._hand_out_sockets(request["inside"], request["wanted"])
        elif (slot := self._slots.get(request["number"])) and not slot.forward(request["signal"]):
            answer = {"unheard": slot.number, "signal": request["signal"]}
            self._gateway.send(json.dumps(answer).encode())

    def _spawn(self, request: dict[str, Any], fds: list[int]) -> None:
        first = self._take_first(request["group"]) if request["spawn"] == FIRST else None
        slot = first or (Slot if self._plan.namespaces else WardedSlot)(request)
        if not slot.group and self._watcher is None:
            self._watcher = Watcher(self._plan)
            # The gateway waits for its word. Who is started has the signal unblocked again.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            self._ends = libc.signalfd(signal.SIGCHLD)
            self._poll.register(self._ends, select.POLLIN)
        try:
            if not fds and slot.number != FIRST:
                raise OSError(
                    "no more files can be open in its zygote (RLIMIT_NOFILE, `ulimit -n`)"
                )
            if first:
                self._complete(first, request)
            self._learn_filter()
            if not first:
                self._prepare(slot, fds)
            self._hand_over(slot, self._plan.workspace if first else None)
        except OSError as error:
            slot.abandon()
            answer = {"spawned": slot.number, "error": str(error)}
            self._gateway.send(json.dumps(answer).encode())
            return
        finally:
            if len(self._groups) > _KEPT_GROUPS:
                self._shut_files_of(slot.group)
        self._slots[slot.number] = self._of_pid[slot.pid_1] = self._in_group[slot.group] = slot
        if first:  # whose pid 1 takes less time than the gateway until it has an order
            first.go_on()
        if len(self._slots) > _KEPT_SANDBOXES and self._plan.namespaces:
            message = json.dumps({"hold": slot.number}).encode()
            slot.shelve(partial(shelve, self._keeper, message))
        slot.handed_over()

    def _learn_filter(self) -> None:
        """The gateway has asked for the first sandbox, compiles the filter, and says nothing between."""
        if not self._knows_filter:
            message, _ = receive(self._gateway, ORDER_BYTES, 0)
            if not message:
                raise ConnectionResetError("the gateway has gone")
            self._take_filter(json.loads(message)["filter"])

    def _take_filter(self, text: str) -> None:
        os.write(self._bpf, binascii.a2b_base64(text))
        self._knows_filter = True

    def _prepare(self, slot: Slot, fds: list[int]) -> None:
        network = self._take_network()
        try:
            fds = fds or slot.open_streams()
            group = partial(self._files_of, slot.group)
            slot.prepare(self._plan, self._home, network, fds, self._bpf, group)
            slot.limit(self._plan, self._open_files)
        finally:
            for fd in fds:
                os.close(fd)

    def _hand_over(self, slot: Slot, directory: str | None) -> None:
        """Give a sandbox to the gateway. Raises OSError, also where too many descriptors are under way
        in whatever processes of this user: unix(7), ETOOMANYREFS."""
        files = slot.handed_out()
        answer = {
            "spawned": slot.number, "watched": self._watcher is not None, "files": len(files),
            "directory": directory or "",
        }  # fmt: skip
        socket.send_fds(self._gateway, [json.dumps(answer).encode()], files)

    def _complete(self, first: First, request: dict[str, Any]) -> None:
        first.complete(
            self._plan, self._home,
            Marks(hide=tuple(request["hide"]), protect=tuple(request["protect"])),
        )  # fmt: skip
        first.limit(self._plan, self._open_files)
        while not self._is_limited:
            self._on_keeper()

    def _take_first(self, group: int) -> First | None:
        """The sandbox that was made ahead, if it serves."""
        first = self._first
        if first and first.group == group and first.serves(self._plan):
            self._first = None
            return first
        self._drop_first()
        return None

    def _drop_first(self) -> None:
        if first := self._first:
            self._first = None
            if first.network >= 0:  # nothing has run in it
                self._networks.append(first.network)
                first.network = -1
            first.abandon()

    def _files_of(self, group: int) -> list[int]:
        """By which a process moves itself into cgroup `group`; none where `group` is 0."""
        if group in self._shut:
            self._shut.discard(group)
            self._keeper.send(json.dumps({"open": group}).encode())
        while group and group not in self._groups:
            self._on_keeper()
        files = self._groups[group] if group else []
        if group and not files:
            raise OSError("its cgroup could not be made or entered (see stderr, `ulimit -n`)")
        return files

    def _shut_files_of(self, group: int) -> None:
        """Close them; the keeper has others."""
        if group in self._groups:
            self._shut.add(group)
            for fd in self._groups.pop(group):
                os.close(fd)

    def _on_ends(self) -> None:
        with contextlib.suppress(ChildProcessError):  # no more of them
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                if slot := self._of_pid.pop(pid, None):
                    self._on_end(slot)
                elif self._first and self._first.pid_1 == pid:
                    self._first.pid_1 = 0
                    self._drop_first()

    def _on_end(self, slot: Slot) -> None:
        del self._slots[slot.number]
        if self._in_group.get(slot.group) is slot:
            del self._in_group[slot.group]
        if self._watcher:
            answer = {
                "ended": slot.number, "over": slot.over,
                "memory_peak_bytes": slot.memory_peak_bytes,
                "processes_peak": slot.processes_peak,
            }  # fmt: skip
            self._gateway.send(json.dumps(answer).encode())
        if slot.network >= 0:
            self._recycle(slot.network)
        slot.release()

    def _hand_out_sockets(self, number: int, wanted: list[Want]) -> None:
        """Give the gateway sockets inside a sandbox, for `network.listen` and `network.loopback`."""
        slot = self._slots.get(number)
        try:
            # Without namespaces it would be the host's own network.
            inside = slot is not None and self._plan.namespaces
            found = slot.sockets_inside(wanted) if slot and inside else []
            error = "" if inside else "it has ended"
        except OSError as problem:
            found, error = [], str(problem)
        fds = [fd for fd in found if fd >= 0]
        answer = {"inside": number, "failed": [min(fd, 0) for fd in found], "error": error}
        try:
            socket.send_fds(self._gateway, [json.dumps(answer).encode()], fds)
        except OSError as problem:  # as of `_hand_over`
            answer["error"] = str(problem)
            self._gateway.send(json.dumps(answer).encode())
        for fd in fds:
            os.close(fd)

    def _recycle(self, network: int) -> None:
        """Keep a network namespace for another sandbox; those with a way out are used once."""
        if self._plan.network or len(self._networks) >= SPARE_NETWORKS:
            os.close(network)
        else:
            self._networks.append(network)

    def _take_network(self) -> int | None:
        """A network namespace in which nothing of an earlier sandbox is left; None where there is none."""
        while self._networks:
            network = self._networks.popleft()
            with contextlib.suppress(OSError):
                if not (self._plan.namespaces and has_sockets(network)):
                    return network
            os.close(network)  # the gateway has a socket in it, or a process in another sandbox
        return None
