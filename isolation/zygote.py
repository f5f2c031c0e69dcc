"""The zygote: a policy's namespaces and root view, built once; every sandbox starts from it.

Theory of operation
    What most policies have in common is built before there is one: all namespaces, the view of system
    software, the first network. The plan adds to the view what it grants, and its filter.
    The zygote is pid 1 of a pid namespace of its own, so that its death is its sandboxes' death. It
    has one thread and serves one request after the other. For a sandbox it enters fresh namespaces,
    mounts what is private, starts their pid 1 (pid1.py) with its limits, comes back to its own, and
    hands pid 1's pidfd to the gateway, which from then on deals with pid 1 directly: it sends the
    order, kills, hears of the end. All that is left for the zygote is to reap pid 1, and to keep
    the network namespace for the next sandbox: everything that ran in it is gone by then.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import NoReturn

from . import capabilities, libc
from .cgroup import MAX_FILES
from .descriptors import receive
from .errors import SetupError
from .lockdown import FIRST_FREE, Home, write_id_maps
from .mounts import Base, Owners
from .netns import Want, new_network, probe_doors, sockets_inside
from .oom import OutOfMemory
from .plan import INSIDE_ID, ORDER_BYTES, UNUSED_ID, Common, Plan
from .slot import Slot
from .subordinate import KEPT, unshare_mapped
from .warden import WardedSlot, stay
from .watcher import Watcher

SPARE_NETWORKS = 16  # some 160 kB each; as many as calls that begin while as many end


def become_zygote(
    keeper: socket.socket, gateway: socket.socket, common: Common, *, rehearses: bool
) -> NoReturn:
    """Turn this forked process into the zygote, and serve keeper and gateway once a plan comes.

    Args:
        keeper: SOCK_SEQPACKET. Is told when all is built that needs no plan; hands in the plan, then
            the files by which processes move into cgroups.
        gateway: SOCK_SEQPACKET. Asks for sandboxes and for signals to their commands.
        common: What plans it must serve. For root the view is there and is added to from outside,
            see ground.py; others add to it here.
        rehearses: As of `Ground`.
    """
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        # Low numbers are taken, so that nothing handed to pid 1 has a number that pid 1 gives it.
        while (fd := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) < FIRST_FREE:
            pass
        os.close(fd)
        add = None
        if common.namespaces:
            add = _enter(common, (keeper, gateway), rehearses=rehearses)
        else:
            stay()
        zygote = Zygote(keeper, gateway)
        if common.namespaces and rehearses:
            zygote.rehearse(common.example())
        keeper.send(b"{}")
        if text := keeper.recv(1 << 20):
            plan = Plan.from_json(text)
            zygote.know(plan)
            if add:
                add(plan)
            if not keeper.recv(16):  # until the view is whole
                raise ConnectionError
            if plan.namespaces:
                libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
            zygote.serve()
    except ConnectionError:
        pass  # keeper or gateway has gone, and so does all of this
    except BaseException as error:  # the keeper must hear of it, whatever it was
        keeper.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
    os._exit(1)


def _enter(
    common: Common, channels: tuple[socket.socket, ...], *, rehearses: bool
) -> Callable[[Plan], None] | None:
    """Be in namespaces of one's own, with the view. Returns what adds to it what a plan grants."""
    uid, gid = os.geteuid(), os.getegid()
    root = uid == 0
    if root:
        uid = gid = UNUSED_ID
        os.setgroups(_groups(common.devices))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        libc.prctl(libc.PR_SET_DUMPABLE, 1)  # else /proc/self/uid_map belongs to root
    _unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNS | libc.CLONE_NEWPID, common.id_maps)
    if not common.id_maps:
        write_id_maps(uid, gid, INSIDE_ID, INSIDE_ID)
    pid = os.fork()
    if pid:
        for channel in channels:
            channel.close()
        # Changing ids cleared it; and from here on it is this process that holds the zygote.
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.waitpid(pid, 0)
        os._exit(0)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    add = None if root else _build(common, rehearses=rehearses)
    libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    # Inherited by all that is started here; lockdown.py does the rest.
    capabilities.drop_bounding_set(KEPT if common.id_maps else ())
    capabilities.set_no_new_privs()
    return add


def _build(common: Common, *, rehearses: bool) -> Callable[[Plan], None]:
    """Build the view; the mounts that we come from are kept by the process that waits for us."""
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_SLAVE)  # what the host mounts comes here, too
    outside = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    _unshare(libc.CLONE_NEWNS)
    inside = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    base = Base(common)
    if rehearses:
        base.rehearse(common.example(), Owners(None), outside, inside)

    def add(plan: Plan) -> None:
        base.add(plan, Owners(None), outside, inside)
        for fd in (outside, inside):
            os.close(fd)

    return add


def _unshare(flags: int, maps: tuple[str, ...] = ()) -> None:
    try:
        if maps:
            unshare_mapped(flags, maps)
        else:
            libc.unshare(flags)
    except OSError as error:
        raise SetupError(
            f"no namespaces can be had here ({error}); allow user namespaces (`purple doctor` says how), "
            "or have the policy accept what is left without them: dangerously_without_namespaces, docs/hosts.md"
        ) from error


def _groups(devices: Iterable[str]) -> list[int]:
    """The groups by which sandboxes of root's may open devices; never root's own."""
    nodes = [os.stat(node) for node in devices]
    return sorted({node.st_gid for node in nodes if not node.st_mode & 0o006} - {0})


class Zygote:
    """One loop over the keeper, the gateway, and the ends of sandboxes."""

    _plan: Plan

    def __init__(self, keeper: socket.socket, gateway: socket.socket) -> None:
        self._keeper = keeper
        self._gateway = gateway
        self._home = Home()
        self._slots: dict[int, Slot] = {}
        self._of_fd: dict[int, Slot] = {}
        self._networks: list[int] = []  # of sandboxes that are over, for the next ones
        self._groups: dict[int, list[int]] = {}  # files by number, see `Cgroup.open_procs`
        self._in_group: dict[int, Slot] = {}
        self._ooms = OutOfMemory()
        self._watcher: Watcher | None = None  # where there are no cgroups
        self._epoll = select.epoll()
        self._bpf = os.memfd_create("filter", os.MFD_CLOEXEC)
        # A sandbox's own limit is what this was; ours must hold a few for each that waits.
        self._open_files = _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def rehearse(self, example: Plan) -> None:
        """Make a sandbox and let it go, but for its network: that is the first one's."""
        marks: dict[str, list[str]] = {"hide": [], "protect": []}
        slot = Slot(json.loads(json.dumps({"spawn": 0, "group": 0, "terminal": [], **marks})))
        null = os.open(
            "/dev/null", os.O_RDWR | os.O_CLOEXEC
        )  # takes what would move it to a cgroup, too
        try:
            self._networks.append(new_network())
            plan = Plan.from_json(example.to_json())
            slot.prepare(plan, self._home, self._networks[0], [null] * 4, self._bpf, lambda: [null])
            slot.limit(plan, self._open_files)
        except OSError:
            pass  # whoever asks for a sandbox will hear of it
        finally:
            slot.network = -1
            slot.abandon()
            os.close(null)

    def know(self, plan: Plan) -> None:
        """Take what is to be served."""
        self._plan = plan
        os.write(self._bpf, plan.bpf)

    def serve(self) -> None:
        """Serve until the keeper closes its end. Needs a plan and its view."""
        for channel in (self._keeper, self._gateway, self._ooms):
            self._epoll.register(channel, select.EPOLLIN)
        if self._plan.network and (problem := probe_doors()):
            raise SetupError(problem)
        self._keeper.send(b"{}")
        while True:
            # The gateway comes last: its spawn may read what the keeper has sent, too, and acting on
            # what epoll told of the keeper would then be to wait for a message that nobody sends.
            # And ends come before starts, so that neither processes nor networks pile up.
            told = [fd for fd, _ in self._epoll.poll(self._patience())]
            for fd in sorted(told, key=self._gateway.fileno().__eq__):
                if fd == self._gateway.fileno():
                    self._on_gateway()
                elif fd == self._keeper.fileno():
                    self._on_keeper()
                elif fd == self._ooms.fileno():
                    self._on_out_of_memory()
                else:
                    self._on_end(fd)
            if self._watcher:
                self._watcher.look(self._slots.values())

    def _patience(self) -> float:
        return self._watcher.seconds if self._watcher and self._slots else -1

    def _on_keeper(self) -> None:
        message, fds = receive(self._keeper, 4096, MAX_FILES)
        if not message:
            os._exit(0)
        request = json.loads(message)
        if "group" in request:
            procs = request["procs"]
            self._groups[request["group"]] = fds[:procs]
            self._ooms.watch(request["group"], fds[procs:])
        else:
            self._ooms.forget(request["removed"])
            for fd in self._groups.pop(request["removed"]):
                os.close(fd)

    def _on_out_of_memory(self) -> None:
        for group in self._ooms.told():
            if slot := self._in_group.get(group):
                slot.kill()

    def _on_gateway(self) -> None:
        message, fds = receive(self._gateway, ORDER_BYTES, 4)
        if not message:
            self._epoll.unregister(self._gateway)  # the keeper ends us, too
            return
        request = json.loads(message)
        if "spawn" in request:
            try:
                kind = Slot if self._plan.namespaces else WardedSlot
                self._spawn(kind(request), fds)
            finally:
                for fd in fds:
                    os.close(fd)
        elif "inside" in request:
            self._hand_out_sockets(request["inside"], request["wanted"])
        elif (slot := self._slots.get(request["number"])) and not slot.forward(request["signal"]):
            answer = {"unheard": slot.number, "signal": request["signal"]}
            self._gateway.send(json.dumps(answer).encode())

    def _spawn(self, slot: Slot, fds: list[int]) -> None:
        network = self._networks.pop() if self._networks else None
        if not slot.group and self._watcher is None:
            self._watcher = Watcher(self._plan)
        try:
            group = partial(self._files_of, slot.group)
            slot.prepare(self._plan, self._home, network, fds, self._bpf, group)
            slot.limit(self._plan, self._open_files)
        except OSError as error:
            slot.abandon()
            answer = {"spawned": slot.number, "error": str(error)}
            self._gateway.send(json.dumps(answer).encode())
            return
        self._slots[slot.number] = self._of_fd[slot.pidfd] = self._in_group[slot.group] = slot
        self._epoll.register(slot.pidfd, select.EPOLLIN)
        answer = {"spawned": slot.number, "watched": self._watcher is not None}
        socket.send_fds(self._gateway, [json.dumps(answer).encode()], slot.handed_out())
        slot.handed_over()

    def _files_of(self, group: int) -> list[int]:
        """By which a process moves itself into cgroup `group`; none where `group` is 0."""
        while group and group not in self._groups:
            self._on_keeper()
        files = self._groups[group] if group else []
        if group and not files:
            raise OSError("its cgroup could not be made; see stderr")
        return files

    def _on_end(self, fd: int) -> None:
        slot = self._of_fd.pop(fd)
        del self._slots[slot.number]
        if self._in_group.get(slot.group) is slot:
            del self._in_group[slot.group]
        self._epoll.unregister(fd)
        if self._watcher:
            answer = {
                "ended": slot.number, "over": slot.over,
                "memory_peak_bytes": slot.memory_peak_bytes,
                "processes_peak": slot.processes_peak,
            }  # fmt: skip
            self._gateway.send(json.dumps(answer).encode())
        self._recycle(slot)
        slot.release()

    def _hand_out_sockets(self, number: int, wanted: list[Want]) -> None:
        """Give the gateway sockets inside a sandbox, for `network.listen` and `network.loopback`."""
        slot = self._slots.get(number)
        try:
            # Without namespaces it would be the host's own network.
            inside = slot is not None and self._plan.namespaces
            found = sockets_inside(slot.network, wanted) if slot and inside else []
            error = "" if inside else "it has ended"
        except OSError as problem:
            found, error = [], str(problem)
        fds = [fd for fd in found if fd >= 0]
        if slot and fds:
            slot.shared = True
        answer = {"inside": number, "failed": [min(fd, 0) for fd in found], "error": error}
        socket.send_fds(self._gateway, [json.dumps(answer).encode()], fds)
        for fd in fds:
            os.close(fd)

    def _recycle(self, slot: Slot) -> None:
        """Keep its network namespace for the next sandbox, if nothing of this one is in it."""
        # With network, or shared, the gateway may still hold sockets in it.
        if self._plan.network or slot.shared or len(self._networks) >= SPARE_NETWORKS:
            os.close(slot.network)
        else:
            self._networks.append(slot.network)
