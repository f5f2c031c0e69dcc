"""Every raw system call, constant and struct that the standard library does not offer.

A function named after a system call makes that call and nothing else. A failure is an `OSError`
with errno and a text that names the call and its arguments. Standard library only: this module is
loaded by the zygote, whose size is the cost of every sandbox.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

# <linux/sched.h>
CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
# <linux/in.h>
IP_PKTINFO = 8
# <sys/mount.h>
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x1000, 0x4000, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH = 2
# <linux/mount.h>
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_IDMAP = 0x00100000
_SET_STRING, _CREATE = 1, 6  # enum fsconfig_command
# <linux/prctl.h>
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4

# Numbers that are the same on every architecture since Linux 5.1 (the unified table), and seccomp's.
SYS_open_tree, SYS_move_mount, SYS_mount_setattr = 428, 429, 442
SYS_fsopen, SYS_fsconfig, SYS_fsmount = 430, 431, 432
SYS_landlock_create_ruleset, SYS_landlock_add_rule, SYS_landlock_restrict_self = 444, 445, 446
SYS_seccomp = {"x86_64": 317, "aarch64": 277, "riscv64": 277}.get(os.uname().machine, 317)


class MountAttr(ctypes.Structure):
    """`struct mount_attr` of <linux/mount.h>."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, call: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
    return result


def syscall(number: int, *arguments: object, name: str) -> int:
    """Make a raw system call; `name` is for the error text."""
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), name)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    _check(_libc.setns(fd, kind), f"setns(fd, {kind:#x})")


def mount(
    source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str = ""
) -> None:
    """mount(2)."""
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None)
    _check(result, f"mount({source!r}, {target!r}, {kind!r}, {flags:#x}, {data!r})")


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), f"umount2({target!r}, {flags})")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    result = _libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old))
    _check(result, f"pivot_root({new_root!r}, {put_old!r})")


def open_tree(path: str, flags: int) -> int:
    """open_tree(2); returns a descriptor of a detached copy with OPEN_TREE_CLONE."""
    raw = ctypes.c_char_p(os.fsencode(path))
    return syscall(SYS_open_tree, AT_FDCWD, raw, flags, name=f"open_tree({path!r}, {flags:#x})")


def move_mount(fd: int, target: str) -> None:
    """move_mount(2) of a detached tree onto `target`."""
    raw = ctypes.c_char_p(os.fsencode(target))
    empty = ctypes.c_char_p(b"")
    syscall(
        SYS_move_mount, fd, empty, AT_FDCWD, raw, MOVE_MOUNT_F_EMPTY_PATH,
        name=f"move_mount(fd, {target!r})",
    )  # fmt: skip


def tmpfs(*options: str, attributes: int) -> int:
    """A tmpfs that is mounted nowhere: fsopen(2), fsconfig(2) for each option, fsmount(2)."""
    context = syscall(SYS_fsopen, ctypes.c_char_p(b"tmpfs"), 1, name="fsopen('tmpfs')")
    try:
        for option in ("source=purple", *options):
            key, _, value = option.partition("=")
            raw = ctypes.c_char_p(key.encode()), ctypes.c_char_p(value.encode())
            syscall(SYS_fsconfig, context, _SET_STRING, *raw, 0, name=f"fsconfig({option!r})")
        syscall(SYS_fsconfig, context, _CREATE, None, None, 0, name="fsconfig(CREATE)")
        return syscall(SYS_fsmount, context, 1, attributes, name="fsmount")
    finally:
        os.close(context)


def mount_setattr(
    fd: int, set_flags: int, userns_fd: int = 0, *, recursive: bool = True, propagation: int = 0
) -> None:
    """mount_setattr(2) on the tree that `fd` refers to."""
    attr = MountAttr(set_flags, 0, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    syscall(
        SYS_mount_setattr, fd, ctypes.c_char_p(b""), flags, ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)), name=f"mount_setattr(fd, {set_flags:#x})",
    )  # fmt: skip


def file_system(path: str) -> int:
    """The magic number of the file system at `path`: `f_type` of statfs(2), its first word."""
    found = (ctypes.c_long * 32)()  # struct statfs has fifteen
    _check(_libc.statfs(os.fsencode(path), ctypes.byref(found)), f"statfs({path!r})")
    return found[0] & 0xFFFFFFFF


def prctl(option: int, value: int = 0) -> int:
    """prctl(2) with one integer argument."""
    zero = ctypes.c_ulong(0)
    result = _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero)
    return _check(result, f"prctl({option}, {value})")


def sched_getcpu() -> int:
    """sched_getcpu(3): the processor that this thread is on."""
    return _check(_libc.sched_getcpu(), "sched_getcpu()")


def signalfd(number: int) -> int:
    """signalfd(2) for one signal, which the caller has blocked."""
    words = (ctypes.c_ulong * 16)()  # sigset_t: 1024 bits
    words[0] = 1 << (number - 1)
    return _check(_libc.signalfd(-1, ctypes.byref(words), os.O_CLOEXEC), f"signalfd({number})")


class SockFprog(ctypes.Structure):
    """`struct sock_fprog` of <linux/filter.h>."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def seccomp(program: bytes) -> None:
    """seccomp(2), SECCOMP_SET_MODE_FILTER: for this thread and its children, for good.

    Args:
        program: `struct sock_filter`s.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = SockFprog(len(program) // 8, ctypes.addressof(buffer))
    syscall(SYS_seccomp, 1, 0, ctypes.byref(fprog), name="seccomp(SET_MODE_FILTER)")


def capset_none() -> None:
    """capset(2) with empty effective, permitted and inheritable sets (version 3)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    _check(_libc.capset(header, data), "capset(none)")


def ioctl(fd: int, request: int, argument: object) -> int:
    """ioctl(2)."""
    result = _libc.ioctl(fd, ctypes.c_ulong(request), argument)
    return _check(result, f"ioctl(fd, {request:#x})")
