"""Programs that ask the gate as a proxy, many times: as the first time, and as those that do not know of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from purplebox.isolation.egress.http import Refused
from purplebox.policies.hosts import Why

if TYPE_CHECKING:
    from .conftest import Net

pytestmark = pytest.mark.anyio

# connect(protocol, port, name): an answered request; pieces: how the request is cut.
CLIENT = """
import socket, ssl, struct, sys, time
def take(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionResetError("ended")
        data += more
    return data
def ask(protocol, port, name="a.test", first=b"", cut=0):
    sock = socket.create_connection(("127.0.0.1", 1023), 60)
    if protocol == "socks":
        sock.sendall(b"\\x05\\x01\\x00")
        assert take(sock, 2) == b"\\x05\\x00"
        said = b"\\x05\\x01\\x00\\x03" + bytes([len(name)]) + name.encode() + struct.pack(">H", port)
    else:
        said = f"CONNECT {name}:{port} HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n".encode()
    said += first
    if cut:
        sock.sendall(said[:cut])
        time.sleep(0.2)
    sock.sendall(said[cut:])
    if protocol == "socks":
        code = take(sock, 10)[1]
        return sock, code
    head = b""
    while not head.endswith(b"\\r\\n\\r\\n"):
        head += take(sock, 1)
    return sock, int(head.split()[1])
port = int(sys.argv[1])
OK = {"http": 200, "socks": 0}
"""
PROTOCOLS = ("http", "socks")


async def client(net: Net, port: int, program: str, **rule: object) -> tuple[list[str], list[Why]]:
    """What `program` prints, and why its connections were refused."""
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [port], **rule})
    result = await net.python(policy, f"import sys; sys.argv[1:] = ['{port}']\n{CLIENT}\n{program}")
    assert result.exit_code == 0, result.stderr
    return result.stdout.decode().splitlines(), [c.reason for c in result.connections]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_each_of_many_is_carried(net: Net, protocol: str) -> None:
    server = await net.echo()
    said, reasons = await client(
        net, server.port,
        f"""
for first, cut in ((b"", 0), (b"", 0), (b"\\0early", 0), (b"", 7), (b"\\0early", 7)):
    sock, code = ask("{protocol}", port, first=first, cut=cut)
    with sock:
        sock.sendall(b"\\0late")
        sock.shutdown(socket.SHUT_WR)
        print(code == OK["{protocol}"], sock.makefile("rb").read())
""",
    )  # fmt: skip
    late, both = r"True b'\x00late'", r"True b'\x00early\x00late'"
    assert said == [late, late, both, late, both]
    assert reasons == [Why.NONE] * 5
    assert server.connections == 5
    assert net.asked == ["a.test"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_server_may_speak_first_each_time(net: Net, protocol: str) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.read()

    server = await net.serve(greet)
    said, _ = await client(
        net, server.port,
        f"""
for _ in range(2):
    with ask("{protocol}", port)[0] as sock:
        print(take(sock, 5))
""",
    )  # fmt: skip
    assert said == ["b'hello'"] * 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_what_is_said_is_held_to_the_name_each_time(net: Net, protocol: str) -> None:
    server = await net.http(tls="a.test")
    said, reasons = await client(
        net, server.port,
        f"""
context = ssl.create_default_context(cafile="servers.pem")
context.check_hostname = False
for name in ("a.test", "b.test", "a.test"):
    sock, code = ask("{protocol}", port)
    try:
        with sock, context.wrap_socket(sock, server_hostname=name) as tls:
            tls.sendall(b"GET / HTTP/1.1\\r\\nHost: a.test\\r\\n\\r\\n")
            print(tls.recv(15).decode())
    except OSError:
        print("cut")
""",
    )  # fmt: skip
    assert said == ["HTTP/1.1 200 OK", "cut", "HTTP/1.1 200 OK"]
    assert reasons == [Why.NONE, Why.NAME_MISMATCH, Why.NONE]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_http_in_the_clear_is_read_each_time(net: Net, protocol: str) -> None:
    server = await net.http()
    said, reasons = await client(
        net, server.port,
        f"""
for host in ("a.test", "b.test", "a.test"):
    with ask("{protocol}", port)[0] as sock:
        sock.sendall(f"GET / HTTP/1.1\\r\\nHost: {{host}}:{{port}}\\r\\n\\r\\n".encode())
        print(sock.recv(12).decode())
""",
    )  # fmt: skip
    assert said == ["HTTP/1.1 200", "HTTP/1.1 421", "HTTP/1.1 200"]
    assert reasons == [Why.NONE, Why.NAME_MISMATCH, Why.NONE]
    assert len(server.seen) == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_what_is_refused_is_refused_each_time(net: Net, protocol: str) -> None:
    server = await net.echo()
    said, reasons = await client(
        net, server.port,
        f"""
for name, to in (("a.test", port), ("b.test", port), ("a.test", port + 1), ("a.test", port)):
    for _ in range(2):
        sock, code = ask("{protocol}", to, name)
        sock.close()
        print(code)
""",
    )  # fmt: skip
    ok, no = ("200", "403") if protocol == "http" else ("0", "2")
    assert said == [ok, ok, no, no, no, no, ok, ok]
    assert reasons == [Why.NONE] * 2 + [Why.HOST_NOT_ALLOWED, Why.PORT_NOT_ALLOWED] + [Why.NONE] * 2
    assert server.connections == 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_server_that_has_gone_is_said_to_have(net: Net, protocol: str) -> None:
    async def last(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        listening.close()
        writer.close()

    listening = await asyncio.start_server(last, "127.0.0.1", 0)
    port: int = listening.sockets[0].getsockname()[1]
    said, reasons = await client(
        net, port,
        f"""
for _ in range(2):
    sock, code = ask("{protocol}", port, first=b"\\0")
    while sock.recv(1000): pass
    print(code)
""",
    )  # fmt: skip
    assert said == (["200", "502"] if protocol == "http" else ["0", "4"])
    assert reasons == [Why.NONE, Why.UPSTREAM_FAILED]
    assert net.asked == ["a.test"] * 2  # what did not answer is looked up again


async def test_a_request_that_does_not_come_holds_nothing(net: Net) -> None:
    server = await net.echo()
    said, _ = await client(
        net, server.port,
        """
held = [socket.create_connection(("127.0.0.1", 1023)) for _ in range(50)]
for sock in held[:25]: sock.sendall(b"CONN")
for sock in held[25:40]: sock.sendall(b"\\x05\\x01\\x00")
sock, code = ask("http", port)
print(code)
for sock in held[:10]: sock.close()
""",
    )  # fmt: skip
    assert said == ["200"]


SHOWN = """
import urllib.request
for url in (f"https://b.test:{port}/", f"http://b.test:{port}/", f"http://a.test:{port + 1}/", f"http://a.test:{port}/"):
    try:
        print(urllib.request.urlopen(url).status)
    except OSError as error:
        print(error)
"""


async def test_programs_that_show_a_reason_phrase_show_what_to_ask_for(net: Net) -> None:
    server = await net.http()
    said, reasons = await client(net, server.port, SHOWN)
    port = server.port
    what = f"b.test:{port} is not in the policy's network.allow; ask the person to add {{host: 'b.test', ports: [{port}]}} to it"
    assert said == [
        f"<urlopen error Tunnel connection failed: 403 Forbidden: {what}>",
        f"HTTP Error 403: Forbidden: {what}",
        f"HTTP Error 403: Forbidden: a.test is allowed at port {port} only (network.allow[0]); ask the person to "
        f"add port {port + 1} there",
        "200",
    ]
    assert reasons == [Why.HOST_NOT_ALLOWED, Why.PORT_NOT_ALLOWED, Why.NONE]


def test_a_reason_phrase_is_one_line_of_ascii() -> None:
    text = "a\r\nSet-Cookie: x=1\r\n\r\n\x1b[31m\0é\u2028b" + "c" * 5000
    phrase = Refused(status=421, reason=Why.NAME_MISMATCH, rule="", text=text).phrase
    assert phrase.startswith(b"Misdirected Request: a Set-Cookie: x=1 [31m b" + b"c" * 300)
    assert len(phrase) < 500
    assert all(0x20 <= byte < 0x7F for byte in phrase)
