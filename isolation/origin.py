"""The zygote's origin: from a process forked for it to pid 1 of namespaces of its own, with a view."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterable
from typing import NoReturn

from . import capabilities, libc
from .errors import SetupError
from .lockdown import FIRST_FREE, write_id_maps
from .mounts import Base, Owners
from .plan import INSIDE_ID, UNUSED_ID, Common, Plan
from .subordinate import KEPT, unshare_mapped
from .warden import stay
from .zygote import Zygote


def become_zygote(
    keeper: socket.socket, gateway: socket.socket, common: Common, first_in: int | None, text: bytes
) -> NoReturn:
    """Turn this forked process into the zygote, and serve keeper and gateway once a plan comes.

    Args:
        keeper: SOCK_SEQPACKET. Is told when all is built that needs no plan; says when the view is whole;
            hands in the files by which processes move into cgroups.
        gateway: SOCK_SEQPACKET. Hands in the plan, then asks for sandboxes and for signals to their
            commands.
        common: What plans it must serve. For root the view is there and is added to from outside,
            see ground.py; others add to it here.
        first_in: Number of the cgroup of a sandbox that is made ahead, 0 for none, whose files the keeper
            then hands in before all else; None makes no sandbox ahead (first.py).
        text: The plan, where it is known; the gateway's is then ignored.
    """
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        # Low numbers are taken, so that nothing handed to pid 1 has a number that pid 1 gives it.
        while (fd := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) < FIRST_FREE:
            pass
        os.close(fd)
        add = None
        if common.namespaces:
            add = _enter(common, (keeper, gateway), rehearses=first_in is not None)
        else:
            stay()
        zygote = Zygote(keeper, gateway)
        if first_in is not None:
            zygote.lay_first(Plan.from_json(common.example().to_json()), first_in)
        keeper.send(b"{}")
        if text := text or gateway.recv(1 << 20):
            plan = Plan.from_json(text)
            zygote.know(plan)
            if add:
                add(plan)
            zygote.serve()
    except ConnectionError:
        pass  # keeper or gateway has gone, and so does all of this
    except BaseException as error:  # the keeper must hear of it, whatever it was
        keeper.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
    os._exit(1)


def _enter(
    common: Common, channels: tuple[socket.socket, ...], *, rehearses: bool
) -> Callable[[Plan], None] | None:
    """Be in namespaces of one's own, with the view; `rehearses` as of `Ground`. Returns what adds to it
    what a plan grants."""
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
    base = Base(common, Owners(None))
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
