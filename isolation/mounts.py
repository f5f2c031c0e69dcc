"""The root view: binds on a private tmpfs (stage.py), entered with pivot_root(2), the old root detached.

A `Base` is made before there is a policy, which then adds what it grants; `mount_private` runs once per
sandbox in its own copy of that. Sources: mount(2), pivot_root(2), mount_setattr(2), user_namespaces(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache

from . import libc
from .errors import SetupError
from .marks import Marks
from .plan import HOME, PRIVATE, Common, Plan
from .stage import Stage
from .system import AUTHORITY, BUNDLES, DEVICES, TRUSTED

_STAGE, _REHEARSED = "/tmp", "/usr"
_WRITABLE = libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV
_BIND_READ_ONLY = libc.MOUNT_ATTR_RDONLY | _WRITABLE
_PRIVATE_FLAGS = libc.MS_NOSUID | libc.MS_NODEV


class Base:
    """A view without what is granted, for all plans that have `common`: built, and pivoted into.

    The caller is in a mount namespace of its own. Raises `OSError`: a mount was refused.
    """

    def __init__(self, common: Common, owners: Owners) -> None:
        self._runtime = common.runtime
        self._stage = Stage()
        self._mounted: dict[str, int] = {}  # attributes by path
        libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
        links: list[tuple[str, str]] = []
        for path in common.system:
            if os.path.islink(path):
                links.append((os.readlink(path), path))
            elif not (path.startswith("/etc/") and self._stage.copy(path)):
                self._mounted[path] = _BIND_READ_ONLY
        for node in (*(f"/dev/{name}" for name in DEVICES), *common.devices):
            self._mounted[node] = libc.MOUNT_ATTR_NOSUID
        self._mounted.update(dict.fromkeys(common.runtime, _BIND_READ_ONLY))
        # Sources are opened first: the stage hides what lies below it.
        trees = [(self._open(path, owners), path) for path in self._mounted]
        trees.append((_tree("/proc", _WRITABLE | libc.MOUNT_ATTR_NOEXEC), "/proc"))
        self._stage.attach(_STAGE)
        for fd, path in _short_first(trees):
            _attach(fd, _STAGE + path)
        for target, path in links:
            os.makedirs(os.path.dirname(_STAGE + path), exist_ok=True)
            if not os.path.lexists(_STAGE + path):
                os.symlink(target, _STAGE + path)
        libc.pivot_root(_STAGE, f"{_STAGE}/.old")
        os.chdir("/")
        libc.umount2("/.old", libc.MNT_DETACH)
        os.rmdir("/.old")
        self._stage.entered()

    def add(self, plan: Plan, owners: Owners, outside: int, inside: int) -> None:
        """Add what a plan has beyond what is common.

        Args:
            plan: One that the `common` of this serves.
            owners: To whom granted trees are given, when the caller is root.
            outside: The host's mount namespace, or a copy of it.
            inside: That of this view, in which the caller then is.

        Raises:
            SetupError: a granted tree lies on a file system without idmapped mounts, or is `/`.
            OSError: a mount was refused.
        """
        libc.setns(outside, libc.CLONE_NEWNS)
        trees = self._open_grants(plan, owners)
        trusted, bundles = _bundles() if plan.authority else ("", [])
        libc.setns(inside, libc.CLONE_NEWNS)
        for path, text in plan.files.items():
            self._stage.write(path, text.encode(), 0o444)
        for fd, path in _short_first(trees):
            _attach(fd, path)
        if plan.authority:
            self._add_authority(plan.authority, trusted, bundles)

    def rehearse(self, example: Plan, owners: Owners, outside: int, inside: int) -> None:
        """As `add`, and take it away again. Raises nothing: what cannot be will be said of a plan."""
        with contextlib.suppress(OSError, SetupError):
            self.add(example._replace(read=(_REHEARSED,)), owners, outside, inside)
            libc.umount2(_REHEARSED, libc.MNT_DETACH)

    def _open_grants(self, plan: Plan, owners: Owners) -> list[tuple[int, str]]:
        granted = {path: _BIND_READ_ONLY for path in plan.read if path not in self._runtime}
        granted.update(dict.fromkeys(plan.write, _WRITABLE))
        if plan.workspace is not None:
            granted[plan.workspace] = _WRITABLE if plan.workspace_writable else _BIND_READ_ONLY
        trees: list[tuple[int, str]] = []
        for path, attributes in granted.items():
            if path == "/":
                raise SetupError("/ cannot be granted as a whole; name what of it is needed")
            if f"{path}/".startswith("/proc/"):
                continue  # each process namespace has its own, which would cover this
            trees.append((owners.tree(path, attributes), path))
            # What is above something of the base would cover it: that comes on top once more.
            again = [p for p in self._mounted if p.startswith(path + "/")]
            trees += [(self._open(p, owners), p) for p in again]
        return trees

    def _open(self, path: str, owners: Owners) -> int:
        """A copy of what is common; system software keeps its owners."""
        copy = owners.tree if path in self._runtime else _tree
        return copy(path, self._mounted[path])

    def _add_authority(self, certificate: str, trusted: str, bundles: Iterable[str]) -> None:
        """Let the view trust `certificate`: a bundle of its own, laid over the host's in the view."""
        for path, text in ((TRUSTED, f"{trusted}\n{certificate}"), (AUTHORITY, certificate)):
            self._stage.write(path, text.encode(), 0o444)
        for path in bundles:
            if os.path.isfile(path):
                _attach(_tree(TRUSTED, _BIND_READ_ONLY), path)


def _bundles() -> tuple[str, list[str]]:
    """What the host trusts, and where it is said."""
    host = next((path for path in BUNDLES if os.path.isfile(path)), None)
    # Not through a link: its target is mounted over itself, or is not in the view.
    bundles = [path for path in BUNDLES if os.path.realpath(path) == path]
    if host is None:
        return "", bundles
    with open(host) as file:
        return file.read(), bundles


def _short_first(trees: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """In an order in which what is below another is mounted over it."""
    return sorted(trees, key=lambda tree: tree[1].count("/"))


def mount_proc(pid_1: int, *, held_by_landlock: bool) -> None:
    """Mount /proc of the pid namespace that `pid_1` is pid 1 of; /proc/sys read-only.

    Args:
        pid_1: A child of ours, in our pid namespace's numbers.
        held_by_landlock: Whether Landlock denies all writing below /proc. Where it does not, what
            concerns the whole host is mounted read-only or hidden, too.
    """
    safe = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
    if _takes_pidns():
        libc.mount("proc", "/proc", "proc", safe, f"pidns=/proc/{pid_1}/ns/pid")
    else:  # it is always the pid namespace of the process that mounts it
        _in_child(lambda: libc.mount("proc", "/proc", "proc", safe))
    _remount_read_only("/proc/sys")
    if held_by_landlock:
        return
    for name in ("sysrq-trigger", "irq", "bus", "fs"):
        if os.path.exists(f"/proc/{name}"):
            _remount_read_only(f"/proc/{name}")
    for name in ("kcore", "keys", "timer_list", "kallsyms"):
        if os.path.exists(f"/proc/{name}"):
            libc.mount("/dev/null", f"/proc/{name}", None, libc.MS_BIND)


@cache
def _takes_pidns() -> bool:
    """Whether proc has the option, since Linux 6.17. To try it would be a line in the kernel's log."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= (6, 17)


def _in_child(act: Callable[[], None]) -> None:
    """Do something in a process of the pid namespace that our children are in."""
    pid = os.fork()
    if pid == 0:
        code = errno.EIO
        try:
            act()
            code = 0
        except OSError as error:
            code = error.errno or code
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(abs(code), f"in a child: {os.strerror(abs(code))}")


Trees = list[tuple[int, str]]  # detached, each with where it is to be attached


def granted_trees(paths: Iterable[str]) -> Trees:
    """Copies of what is granted, as the view shows it."""
    clone = libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC | libc.AT_RECURSIVE
    return [(libc.open_tree(path, clone), path) for path in paths]


def mount_private(max_bytes: int) -> None:
    """Mount what no two sandboxes share but /proc: /dev/pts, and /tmp, /var/tmp, /dev/shm and HOME as
    directories of one tmpfs, so that one bound holds all.

    Beyond `max_bytes`, and beyond an inode for each kilobyte of it, writes fail with ENOSPC.
    """
    libc.mount("purple", "/tmp", "tmpfs", _PRIVATE_FLAGS, f"mode=755,{_bounds(max_bytes)}")
    clones: Trees = []
    for index, path in enumerate(PRIVATE):
        directory = f"/tmp/{index}"
        os.mkdir(directory)
        os.chmod(directory, 0o700 if path == HOME else 0o1777)
        clones.append(
            (libc.open_tree(directory, libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC), path)
        )
    for fd, path in clones:
        libc.move_mount(fd, path)
        os.close(fd)
    libc.mount("devpts", "/dev/pts", "devpts", libc.MS_NOSUID | libc.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=600")  # fmt: skip


def bound_private(max_bytes: int) -> None:
    """Give what `mount_private` has mounted, and nobody has filled, another bound."""
    libc.mount(None, "/tmp", None, libc.MS_REMOUNT | _PRIVATE_FLAGS, _bounds(max_bytes))


def _bounds(max_bytes: int) -> str:
    max_bytes = max(max_bytes, 4096)  # tmpfs takes 0 for no bound
    inodes = max(1024, max_bytes // 1024)  # an empty file takes no block but memory of the kernel
    return f"size={max_bytes},nr_inodes={inodes}"


def furnish(workspace: str | None, trees: Trees, marks: Marks) -> None:
    """Attach what is granted and hidden by what is private, or was not there before.

    Args:
        workspace: The plan's.
        trees: Of `granted_trees`, which are closed.
        marks: What of the workspace is covered and what is read-only.
    """
    left = deque(trees)
    try:
        while left:
            _attach(*left.popleft())
    finally:
        for fd, _ in left:
            os.close(fd)
    # One may have been removed meanwhile.
    protect = [path for path in marks.protect if os.path.lexists(path)]
    hide = [path for path in marks.hide if os.path.lexists(path)]
    if workspace is not None and (protect or hide):
        _hold_ways(workspace, (*protect, *hide))
    for path in protect:
        _remount_read_only(path)
    for path in hide:
        _cover(path)


def seal_root() -> None:
    """Make the root itself read-only: everything writable is a mount of its own by now."""
    flags = libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV
    libc.mount(None, "/", None, flags)


def _tree(path: str, attributes: int) -> int:
    """A copy of what is mounted at `path` and below, to which nothing that is mounted later comes."""
    fd = libc.open_tree(path, libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC | libc.AT_RECURSIVE)
    libc.mount_setattr(fd, attributes, propagation=libc.MS_PRIVATE)
    return fd


class Owners:
    """Gives granted trees to one id, whoever owns them on disk.

    Args:
        owner_id: That id; None leaves them as they are.
        ahead: Owners, uid and gid, that are likely: a map takes a fork.
    """

    def __init__(self, owner_id: int | None, ahead: Iterable[tuple[int, int]] = ()) -> None:
        self._owner_id = owner_id
        self._maps: dict[tuple[int, int], int] = {}
        for ids in ahead:
            self._map(ids)

    def _map(self, ids: tuple[int, int]) -> int:
        if ids not in self._maps and self._owner_id is not None:
            self._maps[ids] = _mapping_userns(*ids, self._owner_id)
        return self._maps[ids]

    def tree(self, path: str, attributes: int) -> int:
        """As `_tree`. Raises `SetupError` where its file system has no idmapped mounts."""
        fd = _tree(path, attributes)
        if self._owner_id is not None:
            status = os.stat(path)
            ids = status.st_uid, status.st_gid
            if ids != (self._owner_id, self._owner_id):
                _map_owner(fd, path, self._map(ids))
        return fd

    def close(self) -> None:
        """Let the maps go; the mounts keep theirs."""
        while self._maps:
            os.close(self._maps.popitem()[1])


def _map_owner(fd: int, path: str, userns: int) -> None:
    try:
        libc.mount_setattr(fd, libc.MOUNT_ATTR_IDMAP, userns, recursive=False)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
            raise
        raise SetupError(
            f"{path}: its file system has no idmapped mounts, so as root its files cannot keep their "
            "owner; run purple as an ordinary user who owns it, or put it on ext4, xfs or btrfs"
        ) from error


def _mapping_userns(uid: int, gid: int, owner_id: int) -> int:
    """A user namespace that exists only to carry a map: on-disk id → `owner_id`."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            libc.unshare(libc.CLONE_NEWUSER)
            theirs.send(b"u")
            theirs.recv(1)  # until the maps are written, or whoever would write them is dead
        finally:
            os._exit(0)
    theirs.close()
    try:
        if not ours.recv(1):
            raise OSError(errno.EPERM, "no user namespace can be had for a map of owners")
        with open(f"/proc/{pid}/uid_map", "w") as file:
            file.write(f"{uid} {owner_id} 1")
        with open(f"/proc/{pid}/gid_map", "w") as file:
            file.write(f"{gid} {owner_id} 1")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _attach(fd: int, target: str) -> None:
    try:
        libc.move_mount(fd, target)
    except FileNotFoundError:
        _make_place(fd, target)
        libc.move_mount(fd, target)
    finally:
        os.close(fd)


def _make_place(fd: int, target: str) -> None:
    """Make what the tree `fd` can be attached to."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o644))


def _remount_read_only(path: str) -> None:
    fd = libc.open_tree(path, libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC | libc.AT_RECURSIVE)
    libc.mount_setattr(fd, libc.MOUNT_ATTR_RDONLY)
    libc.move_mount(fd, path)
    os.close(fd)


def _hold_ways(workspace: str, paths: Iterable[str]) -> None:
    """Let no directory between the workspace and one of `paths`, which exist, be renamed.

    One that holds a mount could be, and what is found by its name would be neither read-only nor
    covered in the next sandbox. No mount can be: EBUSY, rename(2). So each of them is made one.
    """
    parents: set[str] = set()
    for path in paths:
        if path == workspace:
            continue
        while (path := os.path.dirname(path)) != workspace and path not in parents:
            parents.add(path)
    for path in sorted(parents, key=len):
        libc.mount(path, path, None, libc.MS_BIND | libc.MS_REC)


def _cover(path: str) -> None:
    if os.path.isdir(path):
        libc.mount("purple", path, "tmpfs", libc.MS_RDONLY, "size=4k,mode=555")
    else:
        libc.mount("/dev/null", path, None, libc.MS_BIND)
