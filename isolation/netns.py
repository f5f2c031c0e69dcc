"""A network namespace from which nothing leaves but through sockets that the gateway holds.

Theory of operation
    The namespace has `lo` and no other device, so no packet can leave it. With `granted` network
    every address is local there (a route of type `local` for 0.0.0.0/0 and ::/0): whatever a program
    connects to ends in the same namespace. nftables hands each TCP connection that is not for the
    loopback to one listening socket (tproxy: the socket keeps the address that was asked for, which
    getsockname(2) tells). That socket, and two on port 53, are made here and passed out: the gateway
    accepts what comes and decides. Other UDP and TCP finds no socket: refused by the kernel at once.

The netlink messages are the same for every sandbox, so they are put together once and replayed: nft(8)
would take fifty times as long. Sources: netlink(7), rtnetlink(7), <linux/netfilter/nf_tables.h>, and
the kernel's Documentation/networking/tproxy.rst. Standard library only: loaded by the zygote.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence
from functools import cache

from . import libc
from .listening import open_question

# What a socket is for, and the address and port it is bound to: "listen"; "connect", where the address
# says the family; "question", for listening.py.
Want = tuple[str, str, int]
MOST_WANTED = 64  # at once

GATE_PORT = 1023  # of the gate's listener: below 1024, so that no program inside can want it
DNS_PORT = 53
DOORS = 4  # the sockets that `open_doors` makes, and what hosts.py gives
_LO = 1  # its index in every network namespace
# <linux/in.h>, <linux/in6.h>
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_BACKLOG = 1024
# <linux/rtnetlink.h>, <linux/netlink.h>
_RTM_NEWADDR, _RTM_NEWROUTE = 20, 24
_RT_TABLE_LOCAL, _RTN_LOCAL, _RT_SCOPE_HOST, _RTPROT_STATIC = 255, 2, 254, 4
_RTA_OIF, _RTA_PREFSRC = 4, 7
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 2
_REQUEST, _ACK, _CREATE, _APPEND = 1, 4, 0x400, 0x800
_NETLINK_ROUTE, _NETLINK_NETFILTER, _NLMSG_ERROR = 0, 12, 2
_NESTED = 0x8000
# <linux/netfilter.h>, <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>
_NFT, _BATCH_BEGIN, _BATCH_END = 10 << 8, 0x10, 0x11
_NEWTABLE, _NEWCHAIN, _NEWRULE = 0, 3, 6
_INET, _IPV4, _IPV6 = 1, 2, 10
_NF_ACCEPT, _PREROUTING, _MANGLE = 1, 0, -150
_META_NFPROTO, _META_L4PROTO = 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2


def open_doors() -> list[int]:
    """Let the calling thread's network namespace have the gateway as its only way out.

    Call once in a new namespace whose `lo` is up, with CAP_NET_ADMIN and CAP_NET_BIND_SERVICE in it.

    Returns:
        Descriptors of listening sockets: TCP to any address; DNS over UDP; DNS over TCP. They are of
        family AF_INET6 and take IPv4, too; of AF_INET where the host has no IPv6.

    Raises:
        OSError: this kernel has no nftables with tproxy; says what to do.
    """
    family = _routes()
    try:
        (code,) = _talk(_NETLINK_NETFILTER, _ruleset())
    except OSError as error:  # no such protocol
        code = error.errno or 0
    if code:
        raise OSError(
            code,
            f"nftables with tproxy cannot be had ({os.strerror(code)}), without which a "
            "sandbox reaches no host; run `sudo modprobe -a nft_tproxy nf_tables`, or set "
            "network.isolated: true",
        )
    tcp = _bound(family, socket.SOCK_STREAM, GATE_PORT)
    udp = _bound(family, socket.SOCK_DGRAM, DNS_PORT)
    dns = _bound(family, socket.SOCK_STREAM, DNS_PORT)
    # An answer must come from the address that was asked.
    if family == socket.AF_INET6:
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        udp.setsockopt(socket.IPPROTO_IP, libc.IP_PKTINFO, 1)
    for sock in (tcp, dns):
        sock.listen(_BACKLOG)
    return [sock.detach() for sock in (tcp, udp, dns)]


def probe_doors() -> str:
    """Why a sandbox could not have network here; "" when it can. Leaves the caller in a new network
    namespace, and nothing else."""
    try:
        for fd in (new_network(), *open_doors()):
            os.close(fd)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def new_network() -> int:
    """A descriptor of a new network namespace with a loopback, in which the caller then is.

    The kernel makes and destroys a few hundred a second at the most, so those of one zygote are used
    again where they have nothing but a loopback.
    """
    libc.unshare(libc.CLONE_NEWNET)
    loopback_up()
    # Else a port that one sandbox has used would be taken for the next one's minute: tcp(7).
    with open("/proc/sys/net/ipv4/tcp_max_tw_buckets", "w") as file:
        file.write("0")
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def has_sockets(network: int) -> bool:
    """Whether there is a socket in a network namespace, whoever has it. Leaves the caller in that namespace.

    What ran in it may have passed sockets on, by which others would go on being in it: unix(7), SCM_RIGHTS.
    They are counted by namespace, the kernel's own excepted, bound or not and of every family: sk_alloc(),
    net/core/sock.c. Some of those just closed still are, for a moment.

    Raises:
        OSError: from setns(2), open(2) or read(2).
    """
    libc.setns(network, libc.CLONE_NEWNET)
    fd = os.open("/proc/self/net/sockstat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return not os.read(fd, 64).startswith(b"sockets: used 0\n")
    finally:
        os.close(fd)


def loopback_up() -> None:
    """SIOCSIFFLAGS IFF_UP on lo. netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = ctypes.create_string_buffer(struct.pack("16sh22x", b"lo", 1), 40)
        libc.ioctl(sock.fileno(), 0x8914, request)


def _bound(family: socket.AddressFamily, kind: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    return sock


def _routes() -> socket.AddressFamily:
    """Make every address local; returns the widest family for which that worked."""
    four, six = _talk(_NETLINK_ROUTE, _local_everywhere(), groups=2)
    if four:
        raise OSError(four, f"netlink: {os.strerror(four)}")
    # ipv6.disable=1, or disable_ipv6 inherited: there is none inside.
    return socket.AF_INET if six else socket.AF_INET6


@cache
def _local_everywhere() -> bytes:
    # Without a preferred source a program would connect from the address that it connects to, and
    # could so meet itself. And without an address other than the loopback's, getaddrinfo(3) with
    # AI_ADDRCONFIG finds nothing.
    source = socket.inet_pton(socket.AF_INET, "127.0.0.1")
    return b"".join(
        (
            _route(socket.AF_INET, source, group=0),
            _address(socket.AF_INET, "198.18.0.1", 32, group=0),
            _route(socket.AF_INET6, b"", group=1),
            _address(socket.AF_INET6, "2001:2::1", 128, group=1),
        )
    )


def _route(family: int, source: bytes, *, group: int) -> bytes:
    header = struct.pack(
        "=BBBBBBBBI",
        family,
        0,
        0,
        0,
        _RT_TABLE_LOCAL,
        _RTPROT_STATIC,
        _RT_SCOPE_HOST,
        _RTN_LOCAL,
        0,
    )
    attributes = _attribute(_RTA_OIF, struct.pack("=I", _LO))
    if source:
        attributes += _attribute(_RTA_PREFSRC, source)
    return _message(_RTM_NEWROUTE, _REQUEST | _ACK | _CREATE, header + attributes, group)


def _address(family: socket.AddressFamily, text: str, length: int, *, group: int) -> bytes:
    raw = socket.inet_pton(family, text)
    header = struct.pack("=BBBBI", family, length, _IFA_F_NODAD, 0, _LO)
    attributes = _attribute(_IFA_LOCAL, raw) + _attribute(_IFA_ADDRESS, raw)
    return _message(_RTM_NEWADDR, _REQUEST | _ACK | _CREATE, header + attributes, group)


@cache
def _ruleset() -> bytes:
    """As nft(8) would print it:

    table inet purple { chain catch { type filter hook prerouting priority mangle; policy accept;
        ip daddr 127.0.0.0/8 accept
        ip6 daddr ::1 accept
        tcp dport 53 accept
        meta l4proto tcp tproxy to :1023 accept } }
    """
    tcp = _meta(_META_L4PROTO) + _equals(bytes([socket.IPPROTO_TCP]))
    rules = (
        _meta(_META_NFPROTO) + _equals(bytes([_IPV4]))
        + _payload(_NETWORK_HEADER, 16, 1) + _equals(b"\x7f") + _accept(),
        _meta(_META_NFPROTO) + _equals(bytes([_IPV6]))
        + _payload(_NETWORK_HEADER, 24, 16) + _equals(b"\0" * 15 + b"\x01") + _accept(),
        tcp + _payload(_TRANSPORT_HEADER, 2, 2) + _equals(DNS_PORT.to_bytes(2)) + _accept(),
        tcp + _to_gate() + _accept(),
    )  # fmt: skip
    table, chain = _text(1, "purple"), _text(2, "catch")
    hook = _nest(4, _be32(1, _PREROUTING) + _be32(2, _MANGLE))
    named = (
        _text(1, "purple") + _text(3, "catch") + hook + _be32(5, _NF_ACCEPT) + _text(7, "filter")
    )
    # A batch is carried out as a whole, so one acknowledgement is enough.
    *most, last = (table + chain + _nest(4, rule) for rule in rules)
    return b"".join(
        (
            _nft(_BATCH_BEGIN, 0, b"", subsystem=10),
            _nft(_NFT | _NEWTABLE, _CREATE, table),
            _nft(_NFT | _NEWCHAIN, _CREATE, named),
            *(_nft(_NFT | _NEWRULE, _CREATE | _APPEND, rule) for rule in most),
            _nft(_NFT | _NEWRULE, _CREATE | _APPEND | _ACK, last),
            _nft(_BATCH_END, 0, b"", subsystem=10),
        )
    )


def _nft(kind: int, flags: int, attributes: bytes, *, subsystem: int = 0) -> bytes:
    family = 0 if subsystem else _INET
    return _message(kind, _REQUEST | flags, struct.pack("!BBH", family, 0, subsystem) + attributes)


def _meta(key: int) -> bytes:
    return _expression("meta", _be32(1, 1) + _be32(2, key))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression(
        "payload", _be32(1, 1) + _be32(2, base) + _be32(3, offset) + _be32(4, length)
    )


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _be32(1, 1) + _be32(2, 0) + _nest(3, _attribute(1, value)))


def _accept() -> bytes:
    verdict = _nest(2, _nest(2, _be32(1, _NF_ACCEPT)))
    return _expression("immediate", _be32(1, 0) + verdict)


def _to_gate() -> bytes:
    port = _nest(2, _attribute(1, GATE_PORT.to_bytes(2)))
    return _expression("immediate", _be32(1, 1) + port) + _expression(
        "tproxy", _be32(1, 0) + _be32(3, 1)
    )


def _expression(name: str, data: bytes) -> bytes:
    return _nest(1, _text(1, name) + _nest(2, data))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _be32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!i", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _message(kind: int, flags: int, body: bytes, group: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, group, 0) + body


def _talk(protocol: int, messages: bytes, groups: int = 1) -> list[int]:
    """Send all at once and wait until each that asks for it is acknowledged.

    Args:
        protocol: Of netlink.
        messages: Those of one purpose have its number, below `groups`, as their sequence number.
        groups: How many purposes.

    Returns:
        For each group the errno of the first of its messages that failed; 0 when none did.

    Raises:
        OSError: there is no such protocol.
    """
    wanted = sum(1 for flags in _flags(messages) if flags & _ACK)
    failed = [0] * groups
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.send(messages)
        while wanted:
            data = sock.recv(1 << 16)
            at = 0
            while at < len(data):
                length, kind, _, group = struct.unpack_from("=IHHI", data, at)
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", data, at + 16)
                    (flags,) = struct.unpack_from("=H", data, at + 26)
                    failed[group] = failed[group] or -code
                    wanted -= 1
                    if not flags & _ACK:  # the error of a batch, after which nothing may follow
                        return failed
                at += (length + 3) & ~3
    return failed


@cache
def _flags(messages: bytes) -> tuple[int, ...]:
    found: list[int] = []
    at = 0
    while at < len(messages):
        length, _, flags = struct.unpack_from("=IHH", messages, at)
        found.append(flags)
        at += length
    return tuple(found)


def sockets_inside(network: int, wanted: Sequence[Want]) -> list[int]:
    """Sockets in the network namespace that descriptor `network` is of.

    Leaves the caller in that namespace. (A thread, which would leave it, is nothing for the zygote:
    setns(2) into mounts fails while there are two.)

    Returns:
        For each of `wanted` a descriptor, or the negative errno of what failed.

    Raises:
        OSError: from setns(2).
    """
    libc.setns(network, libc.CLONE_NEWNET)
    found: list[int] = []
    for want in wanted:
        try:
            found.append(_socket_inside(*want).detach())
        except OSError as error:
            found.append(-(error.errno or errno.EIO))
    return found


def _socket_inside(what: str, address: str, port: int) -> socket.socket:
    if what == "question":
        return open_question()
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    if what == "listen":
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
    return sock
