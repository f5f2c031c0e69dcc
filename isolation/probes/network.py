"""Attacks that would reach somebody: on the host, on the network."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct

from .frame import each, target


def reach_the_hosts_loopback() -> object:
    with socket.socket() as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", target["port"]))
    return None


def reach_the_network() -> object:
    far = target.get("far", "192.0.2.1")  # TEST-NET-1, RFC 5737

    def tcp() -> None:
        with socket.socket() as sock:
            sock.settimeout(3)
            sock.connect((far, 9))
            sock.sendall(b"x\n")
            if not sock.recv(1):  # a gate that takes every connection and drops what it refuses
                raise ConnectionRefusedError(errno.ECONNREFUSED, "closed")

    def datagram() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", (far, 53000))

    return each(tcp, datagram)


def see_interfaces() -> object:
    """Those that are up: some kernels put tunnels that lead nowhere (sit0) into each namespace."""
    names = {name for _, name in socket.if_nameindex()} - {"lo"}
    found = [name for name in sorted(names) if _is_up(name)]
    return f"sees {found}" if found else "none"


def _is_up(name: str) -> bool:
    siocgifflags, iff_up = 0x8913, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack("16sh14x", name.encode(), 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(sock, siocgifflags, asked))
    return bool(flags & iff_up)


def reach_abstract_socket() -> object:
    name = "\0" + target["abstract"]

    def stream() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(name)

    def datagram() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", name + "-datagram")

    return each(stream, datagram)


def reach_path_socket() -> object:
    paths = [target["socket"], "/var/run/docker.sock", "/run/docker.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"]  # fmt: skip

    def connect(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)

    return each(*[lambda path=p: connect(path) for p in paths])
