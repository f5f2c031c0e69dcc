"""Descriptors that come in a message, unix(7), SCM_RIGHTS, and those that a fork has come by."""

from __future__ import annotations

import array
import contextlib
import os
import socket


def receive(
    channel: socket.socket, max_bytes: int, max_fds: int, flags: int = 0
) -> tuple[bytes, list[int]]:
    """One message and the descriptors in it, closed in whatever this process executes.

    `socket.recv_fds` would not do: up to Python 3.14 it ignores its `flags`, so that every
    descriptor of the zygote's went on to every command. recv(2), MSG_CMSG_CLOEXEC.

    Returns:
        The message, b"" at the end of the channel, and its descriptors, the caller's to close: all, or none
        where there was no room for some in this process (RLIMIT_NOFILE).
    """
    fds = array.array("i")
    room = socket.CMSG_LEN(max_fds * fds.itemsize)
    message, ancillary, said, _ = channel.recvmsg(max_bytes, room, socket.MSG_CMSG_CLOEXEC | flags)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if said & socket.MSG_CTRUNC:
        while fds:
            os.close(fds.pop())
    return message, list(fds)


def close_but(*kept: int) -> None:
    """Close all of this process, a fork, but those that it is to have.

    Objects of the parent's that are for others are not to be used, nor let go, from here on.
    """
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the directory's own
                os.close(int(name))
