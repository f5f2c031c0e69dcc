"""Attacks that would reach somebody: on the host, on the network."""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import struct

from .frame import each, target


def reach_the_hosts_loopback() -> object:
    with socket.socket() as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", target["port"]))
    return None


def reach_the_network() -> object:
    """By addresses that no rule allows, as a program writes them."""
    return each(*[lambda at=at: _hear(*at) for at in target["far"]])


def send_a_datagram() -> object:
    def send(host: str, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, port))
            sock.send(b"x")
            # A refusal comes by ICMP; what meets none has left.
            waiting = select.poll()
            waiting.register(sock, 0)
            if waiting.poll(target.get("patience", 20) * 1000):
                raise OSError(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "refused")

    return each(*[lambda at=at: send(*at) for at in target["unconnected"]])


def reach_a_name() -> object:
    def reach(name: str, port: int) -> None:
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise OSError(errno.ENOENT, "no such name") from error
        _hear(str(found[0][4][0]), port)

    return each(*[lambda at=at: reach(*at) for at in target["names"]])


def tunnel_through_the_gate() -> object:
    """By CONNECT (RFC 9110, 9.3.6). Whatever the gate answers but that it is not allowed, it has tried."""

    def ask(host: str, port: int) -> None:
        with socket.create_connection(("127.0.0.1", target["gate"]), 20) as sock:
            host = f"[{host}]" if ":" in host else host
            sock.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            status = sock.makefile("rb").readline().split()[1:2]
            if not status:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "closed")
            if status == [b"403"]:
                raise PermissionError(errno.EACCES, "not allowed")

    return each(*[lambda at=at: ask(*at) for at in target["tunnels"]])


def _hear(host: str, port: int) -> None:
    """Connect and hear something: the gate takes every connection, and ends those that it refuses."""
    with socket.create_connection((host, port), 20) as sock:
        sock.sendall(b"x\n")
        if not sock.recv(1):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "closed")


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
