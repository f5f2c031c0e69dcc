"""On which addresses and ports the programs of a network namespace listen. sock_diag(7).

A socket of netlink's belongs to the namespace that it was made in, so whoever holds one may ask. The kernel
goes through listening sockets alone, twenty microseconds for both families; /proc/net/tcp, which walks a
table of the whole host's connections, takes milliseconds. Standard library only: loaded by the zygote.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

# <linux/sock_diag.h>, <linux/inet_diag.h>, <linux/netlink.h>, <net/tcp_states.h>
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _INET_DIAG_SKV6ONLY = 4, 20, 11
_REQUEST, _DUMP = 1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_LISTEN = 1 << 10
_MESSAGE = struct.Struct("=BBBBHH16s16sI8s4xIIII")  # struct inet_diag_msg; ports are big-endian
_READ_BYTES = 1 << 16
_MOST_BYTES = 1 << 18  # some three thousand sockets that listen

Listening = tuple[str, int, int]  # address, port, inode


def open_question() -> socket.socket:
    """A socket by which `listening` asks of the calling thread's network namespace.

    Raises:
        OSError: the kernel has no sock_diag.
    """
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    )


def listening(question: socket.socket) -> list[Listening]:
    """What `open_question`'s namespace listens on with TCP: loopback addresses, both where it is any.

    Raises:
        OSError: the kernel has no inet_diag (ENOENT), or there are thousands (E2BIG); do not ask again.
    """
    return [*_listening(question, socket.AF_INET), *_listening(question, socket.AF_INET6)]


def _listening(question: socket.socket, family: socket.AddressFamily) -> Iterator[Listening]:
    body = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, _LISTEN)
    header = struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, 0, 0)
    question.send(header + body)
    got = 0
    while True:
        data = question.recv(_READ_BYTES)  # it is there: a dump is begun by who asks for it
        at = 0
        got += len(data)
        if got > _MOST_BYTES:
            raise OSError(errno.E2BIG, "too many sockets listen")
        while at < len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", data, at + 16)
                raise OSError(-code, "the kernel does not tell who listens: inet_diag")
            yield from _places(family, data[at + 16 : at + length])
            at += (length + 3) & ~3


def _places(family: socket.AddressFamily, entry: bytes) -> Iterator[Listening]:
    fields = _MESSAGE.unpack_from(entry)
    port, raw, inode = socket.ntohs(fields[4]), fields[6], fields[-1]
    if family == socket.AF_INET:
        four: IPv4Address | None = IPv4Address(raw[:4])
        six = None
    else:
        six = IPv6Address(raw)
        four = six.ipv4_mapped
        if six.is_unspecified and not _only_v6(entry):
            four = IPv4Address(0)
    if four is not None and (four.is_unspecified or four.is_loopback):
        yield ("127.0.0.1" if four.is_unspecified else str(four)), port, inode
    if six is not None and (six.is_unspecified or six.is_loopback):
        yield "::1", port, inode


def _only_v6(entry: bytes) -> bool:
    """IPV6_V6ONLY, ipv6(7): an attribute that the kernel gives with each of IPv6 that listens."""
    at = _MESSAGE.size
    while at + 4 <= len(entry):
        length, kind = struct.unpack_from("=HH", entry, at)
        if kind == _INET_DIAG_SKV6ONLY:
            return bool(entry[at + 4])
        at += max(4, (length + 3) & ~3)
    return False
