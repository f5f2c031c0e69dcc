"""Attacks by system calls that a sandbox may not make."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import time

from .frame import LIBC, X86, call, each


def new_user_namespace() -> object:
    return each(lambda: _unshare(0x10000000), lambda: _unshare(0x10020000))


def _unshare(flags: int) -> None:
    if LIBC.unshare(ctypes.c_int(flags)):
        raise OSError(ctypes.get_errno(), "unshare")


def clone_user_namespace() -> object:
    child = call(56 if X86 else 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return None


def clone3() -> object:
    return call(435, 0, 0)


def io_uring() -> object:
    parameters = ctypes.create_string_buffer(120)
    os.close(call(425, 8, parameters))
    return None


def foreign_entry() -> object:
    """The 32-bit entry of x86: getpid by `int 0x80`, whose numbers mean other calls."""
    import mmap

    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    answer = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if answer < 0:
        raise OSError(-answer, "int 0x80")
    return None if answer == os.getpid() else f"answers {answer}"


def x32_entry() -> object:
    return call(0x40000000 | 39)


def ptrace() -> object:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        if LIBC.ptrace(0x4206, ctypes.c_long(child), None, None):  # PTRACE_SEIZE
            raise OSError(ctypes.get_errno(), "ptrace")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return None


def process_memory() -> object:
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    return each(
        lambda: call(310 if X86 else 270, os.getpid(), vector, 1, vector, 1, 0),
        lambda: call(311 if X86 else 271, os.getpid(), vector, 1, vector, 1, 0),
    )


def steal_descriptor() -> object:
    return call(438, os.pidfd_open(os.getpid()), 0, 0)


def keyring() -> object:
    return each(
        lambda: call(248 if X86 else 217, b"user", b"purple-attack", b"x", 1, -2),
        lambda: call(250 if X86 else 219, 0, -2, 0),
    )


def userfaultfd() -> object:
    return call(323 if X86 else 282, 1)


def perf() -> object:
    attributes = ctypes.create_string_buffer(struct.pack("IIQQ", 1, 128, 0, 0).ljust(128, b"\0"))
    return call(298 if X86 else 241, attributes, 0, -1, -1, 0)


def mount_api() -> object:
    return each(
        lambda: call(430, b"tmpfs", 0),
        lambda: call(428, -100, b"/tmp", 1),
        lambda: _mount(),
    )


def _mount() -> None:
    if LIBC.mount(b"x", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None):
        raise OSError(ctypes.get_errno(), "mount")


def change_root() -> object:
    return each(lambda: os.chroot("/tmp"), lambda: call(155 if X86 else 41, b"/tmp", b"/tmp"))


def file_handles() -> object:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0).ljust(140, b"\0"))
    return call(303 if X86 else 264, -100, b"/tmp", handle, ctypes.byref(ctypes.c_int()), 0)


def kernel_programs() -> object:
    """bpf(2), kexec_load(2), init_module(2), finit_module(2), open_by_handle_at(2): arguments that
    mean nothing, so that even root's call changes nothing."""
    numbers = (321, 246, 175, 313, 304) if X86 else (280, 104, 105, 273, 265)
    return each(*[lambda n=number: call(n, -1, -1, -1, -1) for number in numbers])


def administration() -> object:
    """reboot(2), swapon(2), settimeofday(2), acct(2), quotactl(2), iopl(2), with such arguments."""
    numbers = (169, 167, 164, 163, 179) if X86 else (142, 224, 170, 89, 60)
    return each(*[lambda n=number: call(n, -1, -1, -1, -1) for number in numbers])


def socket_families() -> object:
    answers: set[str] = set()
    for family in range(46):
        if family not in (1, 2, 10, 16):
            for kind in (1, 2, 3, 5):
                try:
                    socket.socket(family, kind).close()
                    return f"family {family}"
                except OSError as error:
                    answers.add(errno.errorcode.get(error.errno or 0, "?"))
    return " ".join(sorted(answers))


def netlink_families() -> object:
    return each(*[lambda p=p: socket.socket(16, 3, p).close() for p in range(1, 22)])


def type_into_the_terminal() -> object:
    _, slave = os.openpty()
    fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY: a session leader's own, as the caller's would be
    return each(
        lambda: fcntl.ioctl(slave, 0x5412, b"x"),
        lambda: fcntl.ioctl(slave, 0x541C, b"\x03"),
        lambda: call(16 if X86 else 29, slave, 0x5412 | 1 << 32, b"x"),
    )
