"""Landlock: the view of the file system once more, decided by the kernel at each open.

Source: kernel Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable, Sequence

from . import libc

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG = 16, 32, 64, 128, 256
MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 512, 1024, 2048, 4096
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ALL_V1 = (1 << 13) - 1
ALL = (1 << 16) - 1
READ = EXECUTE | READ_FILE | READ_DIR
# What a rule on something that is no directory may name (landlock_add_rule(2), EINVAL).
_FILE_ONLY = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_ALL_TCP = 3  # LANDLOCK_ACCESS_NET_BIND_TCP, …_CONNECT_TCP
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2


class _RulesetAttr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi_version() -> int:
    """The kernel's Landlock ABI; 0 where there is none (not built in, or not enabled at boot)."""
    try:
        return libc.syscall(
            libc.SYS_landlock_create_ruleset, None, ctypes.c_size_t(0), 1,
            name="landlock_create_ruleset(VERSION)",
        )  # fmt: skip
    except OSError:
        return 0


def handled_access(abi: int) -> int:
    """All file-system rights that `abi` knows."""
    newer = ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))
    return _ALL_V1 | sum(bit for since, bit in newer if abi >= since)


def create_ruleset(
    read: Sequence[str], write: Sequence[str], abi: int, *, connects: bool = True
) -> int | None:
    """A ruleset of `abi`'s rights that leaves reading below `read` and anything below `write`.

    Args:
        read, write: Paths; those that do not exist grant nothing.
        abi: The kernel's, or an older one.
        connects: Whether TCP is left alone; else none is, from ABI 4 on.

    Returns:
        Its descriptor, for `restrict_self`; None where `abi` is 0.
    """
    ruleset = _create(abi, (), 0 if connects else _ALL_TCP)
    if ruleset is not None:
        try:
            add(ruleset, read, READ, abi)
            add(ruleset, write, ALL, abi)
        except BaseException:
            os.close(ruleset)
            raise
    return ruleset


def add(ruleset: int, paths: Iterable[str], access: int, abi: int) -> None:
    """Let whoever will be restricted to `ruleset` do more at `paths` and below.

    Args:
        ruleset: One of `abi`'s.
        paths: Those that do not exist grant nothing.
        access: Bits of ALL.
    """
    for path in paths:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            _add(ruleset, fd, access, abi)
        finally:
            os.close(fd)


def restrict_self(ruleset: int) -> None:
    """Restrict this thread and its children, for good; no_new_privs must be set."""
    libc.syscall(libc.SYS_landlock_restrict_self, ruleset, 0, name="landlock_restrict_self")


def restrict_to(rules: Sequence[tuple[int, int]]) -> int:
    """Restrict this thread and its children to `rules`, within what it may do already.

    Args:
        rules: Descriptors (O_PATH will do), and what may be done there and below: bits of ALL. They
            are of what the descriptor is, whatever its path becomes.

    Returns:
        The ABI used; 0 where the kernel has no Landlock (nothing was restricted).
    """
    abi = abi_version()
    ruleset = _create(abi, rules)
    if ruleset is not None:
        try:
            restrict_self(ruleset)
        finally:
            os.close(ruleset)
    return abi


def _create(abi: int, rules: Sequence[tuple[int, int]], network: int = 0) -> int | None:
    if abi == 0:
        return None
    handled = handled_access(abi)
    network = network if abi >= 4 else 0
    attr = _RulesetAttr(handled, network, _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24  # older kernels refuse a larger struct (E2BIG)
    ruleset = libc.syscall(
        libc.SYS_landlock_create_ruleset, ctypes.byref(attr), ctypes.c_size_t(size), 0,
        name="landlock_create_ruleset",
    )  # fmt: skip
    try:
        for fd, access in rules:
            _add(ruleset, fd, access, abi)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def _add(ruleset: int, fd: int, access: int, abi: int) -> None:
    access &= handled_access(abi)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        access &= _FILE_ONLY
    rule = _PathBeneath(access, fd)
    libc.syscall(
        libc.SYS_landlock_add_rule, ruleset, 1, ctypes.byref(rule), 0, name="landlock_add_rule"
    )
