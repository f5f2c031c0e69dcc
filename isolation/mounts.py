"""The root view: binds on a private tmpfs (stage.py), entered with pivot_root(2), the old root detached.

`build_root` runs once per policy in the zygote's mount namespace; `mount_private` once per sandbox
in its own copy of it. Sources: mount(2), pivot_root(2), mount_setattr(2), user_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterable

from . import libc
from .errors import SetupError
from .marks import Marks
from .plan import AUTHORITY, BUNDLES, DEVICES, HOME, PRIVATE, TRUSTED, Plan
from .stage import Stage

_STAGE = "/tmp"
_BIND_READ_ONLY = libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV


def build_root(plan: Plan, stage: Stage, owners: Owners) -> None:
    """Build the policy's view and pivot into it.

    Args:
        plan: What the view holds.
        stage: What every view holds.
        owners: To whom granted trees are given, when the caller is root.

    Raises:
        SetupError: a granted tree lies on a file system without idmapped mounts.
        OSError: a mount was refused.

    Stage and owners are of no use for another view afterwards.
    """
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    # Sources are opened first: the stage hides what lies below it.
    trees: list[tuple[int, str]] = []
    links: list[tuple[str, str]] = []
    for path in plan.system:
        if os.path.islink(path):
            links.append((os.readlink(path), path))
        elif not (path.startswith("/etc/") and stage.copy(path)):
            trees.append((_tree(path, _BIND_READ_ONLY), path))
    for path in plan.read:
        trees.append((owners.tree(path, _BIND_READ_ONLY), path))
    writable = libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV
    for path in plan.write:
        trees.append((owners.tree(path, writable), path))
    if plan.workspace is not None:
        attributes = writable if plan.workspace_writable else _BIND_READ_ONLY
        trees.append((owners.tree(plan.workspace, attributes), plan.workspace))
    owners.close()
    nodes = (*(f"/dev/{name}" for name in DEVICES), *plan.devices)
    devices = [(_tree(node, libc.MOUNT_ATTR_NOSUID), node) for node in nodes]
    safe = libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV | libc.MOUNT_ATTR_NOEXEC
    proc = _tree("/proc", safe)

    for path, text in plan.files.items():
        stage.write(path, text.encode(), 0o444)
    stage.attach(_STAGE)
    libc.move_mount(proc, f"{_STAGE}/proc")
    # Short paths first, so that a grant below another is mounted over it.
    for fd, path in sorted([*trees, *devices], key=lambda tree: tree[1].count("/")):
        _attach(fd, _STAGE + path)
    for target, path in links:
        os.makedirs(os.path.dirname(_STAGE + path), exist_ok=True)
        if not os.path.lexists(_STAGE + path):
            os.symlink(target, _STAGE + path)
    if plan.authority:
        _add_authority(stage, plan.authority)
    os.makedirs(f"{_STAGE}/.old", exist_ok=True)
    libc.pivot_root(_STAGE, f"{_STAGE}/.old")
    os.chdir("/")
    libc.umount2("/.old", libc.MNT_DETACH)
    os.rmdir("/.old")


def _add_authority(stage: Stage, certificate: str) -> None:
    """Let the view trust `certificate`: a bundle of its own, laid over the host's in the view."""
    host = next((path for path in BUNDLES if os.path.isfile(path)), None)
    trusted = ""
    if host is not None:
        with open(host) as file:
            trusted = file.read()
    for path, text in ((TRUSTED, f"{trusted}\n{certificate}"), (AUTHORITY, certificate)):
        stage.write(path, text.encode(), 0o444)
    for path in BUNDLES:
        # Not through a link: its target is mounted over itself, or is not in the view.
        if os.path.realpath(path) == path and os.path.isfile(_STAGE + path):
            _attach(_tree(_STAGE + TRUSTED, _BIND_READ_ONLY), _STAGE + path)


def mount_proc(pid_1: int, *, held_by_landlock: bool) -> None:
    """Mount /proc of the pid namespace that `pid_1` is pid 1 of; /proc/sys read-only.

    Args:
        pid_1: A child of ours, in our pid namespace's numbers.
        held_by_landlock: Whether Landlock denies all writing below /proc. Where it does not, what
            concerns the whole host is mounted read-only or hidden, too.
    """
    safe = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
    try:
        libc.mount("proc", "/proc", "proc", safe, f"pidns=/proc/{pid_1}/ns/pid")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Before Linux 6.17 it is always the pid namespace of the process that mounts it.
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


def mount_private(plan: Plan, marks: Marks) -> None:
    """Mount what no two sandboxes share but /proc: /tmp, /dev/shm, /dev/pts, HOME, /var/tmp.

    Args:
        plan: The policy's.
        marks: What of the workspace is covered and what is read-only.
    """
    safe = libc.MS_NOSUID | libc.MS_NODEV
    # A grant below a directory that is private inside is taken out first and put back on top.
    granted = [*plan.read, *plan.write, *([plan.workspace] if plan.workspace else [])]
    clone = libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC | libc.AT_RECURSIVE
    buried = [
        (libc.open_tree(path, clone), path)
        for path in granted
        if path.startswith(("/tmp/", "/var/tmp/", "/dev/shm/", HOME + "/"))
    ]
    _mount_writable(plan.tmp_bytes, safe)
    libc.mount("devpts", "/dev/pts", "devpts", libc.MS_NOSUID | libc.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=600")  # fmt: skip
    for fd, path in buried:
        _attach(fd, path)
    if plan.workspace is not None:
        _protect(plan.workspace, marks.protect)
    for path in marks.hide:
        if os.path.lexists(path):  # it may have been removed meanwhile
            _cover(path)


def _mount_writable(max_bytes: int, flags: int) -> None:
    """/tmp, /var/tmp, /dev/shm and HOME as directories of one tmpfs, so that one bound holds all.

    Beyond `max_bytes`, and beyond an inode for each kilobyte of it, writes fail with ENOSPC.
    """
    max_bytes = max(max_bytes, 4096)  # tmpfs takes 0 for no bound
    inodes = max(1024, max_bytes // 1024)  # an empty file takes no block but memory of the kernel
    bounds = f"size={max_bytes},nr_inodes={inodes}"
    libc.mount("purple", "/tmp", "tmpfs", flags, f"mode=755,{bounds}")
    clones: list[tuple[int, str]] = []
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


def seal_root() -> None:
    """Make the root itself read-only: everything writable is a mount of its own by now."""
    flags = libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV
    libc.mount(None, "/", None, flags)


def _tree(path: str, attributes: int) -> int:
    fd = libc.open_tree(path, libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC | libc.AT_RECURSIVE)
    if attributes:
        libc.mount_setattr(fd, attributes)
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
        for userns in self._maps.values():
            os.close(userns)


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
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.makedirs(target, exist_ok=True)
    elif not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o644))
    libc.move_mount(fd, target)
    os.close(fd)


def _remount_read_only(path: str) -> None:
    fd = libc.open_tree(path, libc.OPEN_TREE_CLONE | libc.OPEN_TREE_CLOEXEC | libc.AT_RECURSIVE)
    libc.mount_setattr(fd, libc.MOUNT_ATTR_RDONLY)
    libc.move_mount(fd, path)
    os.close(fd)


def _protect(workspace: str, paths: Iterable[str]) -> None:
    present = [path for path in paths if os.path.lexists(path)]
    parents: set[str] = set()
    for path in present:
        if path == workspace:
            continue
        while (path := os.path.dirname(path)) != workspace:
            parents.add(path)
    # A directory that holds a mount can be renamed, but no mount can: EBUSY, rename(2). So the way
    # to a protected path is made of mounts.
    for path in sorted(parents, key=len):
        libc.mount(path, path, None, libc.MS_BIND | libc.MS_REC)
    for path in present:
        _remount_read_only(path)


def _cover(path: str) -> None:
    if os.path.isdir(path):
        libc.mount("purple", path, "tmpfs", libc.MS_RDONLY, "size=4k,mode=555")
    else:
        libc.mount("/dev/null", path, None, libc.MS_BIND)
