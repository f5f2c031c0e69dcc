"""What reaches a host from inside a sandbox and what does not, each denial beside its control."""

from __future__ import annotations

import asyncio
import json
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from purplebox.isolation import OperationError
from purplebox.isolation.egress.shared import Egress
from purplebox.isolation.hosts import no_hosts
from purplebox.policies.hosts import Why
from purplebox.policies.model import HostRule

if TYPE_CHECKING:
    from .conftest import Net

pytestmark = pytest.mark.anyio
DIRECT = "curl -sS --noproxy '*' --max-time 120"


def reasons(result: Any) -> list[tuple[str, Why]]:
    return [(c.name or c.address, c.reason) for c in result.connections]


async def test_an_allowed_name_is_reached_by_a_program_that_knows_nothing(net: Net) -> None:
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    result = await net.run(policy, f"{DIRECT} http://a.test:{server.port}/x")
    assert json.loads(result.stdout)["line"] == "GET /x HTTP/1.1"
    (connection,) = result.connections
    assert (connection.via, connection.name, connection.address) == (
        "direct",
        "a.test",
        "127.0.0.1",
    )
    assert (connection.rule, connection.reason) == ("network.allow[0]", Why.NONE)
    assert connection.bytes_out > 50
    assert connection.bytes_in > len(result.stdout)
    assert result.facts()["connections"][0]["name"] == "a.test"


@pytest.mark.parametrize(
    ("options", "via"),
    [
        ("", "http_proxy"),  # by the variables: absolute-form
        ("-p", "http_proxy"),  # CONNECT
        ("--proxy socks5h://127.0.0.1:1023", "socks"),
        ("-6 --noproxy '*'", "direct"),
    ],
)
async def test_the_same_by_a_proxys_protocols_and_by_ipv6(net: Net, options: str, via: str) -> None:
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "*.test", "ports": [server.port]})  # asked for by DNS
    command = f"curl -sS --max-time 120 {options} http://a.test:{server.port}/x"
    result = await net.run(policy, command)
    assert json.loads(result.stdout)["line"] == "GET /x HTTP/1.1"
    assert [c.via for c in result.connections] == [via]
    refused = await net.run(net.policy({"host": "b.test", "ports": [server.port]}), command)
    assert reasons(refused) == [("a.test", Why.HOST_NOT_ALLOWED)]
    assert len(server.seen) == 1


async def test_a_name_that_is_not_allowed_does_not_exist(net: Net) -> None:
    server = await net.http()
    net.names.update({"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]})
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    look = "getent ahosts {0} >/dev/null; echo $?"
    result = await net.run(policy, look.format("a.test") + ";" + look.format("b.test"))
    assert result.stdout == b"0\n2\n"
    (refused,) = result.connections
    assert (refused.via, refused.name, refused.reason) == ("dns", "b.test", Why.HOST_NOT_ALLOWED)
    assert "ask the person" in refused.text
    assert net.asked == []  # nothing was sent to a name server for either


async def test_an_empty_list_allows_nothing(net: Net) -> None:
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    command = f"{DIRECT} http://a.test:{server.port}/"
    assert (await net.run(net.policy(), command)).exit_code == 6
    allowed = net.policy({"host": "a.test", "ports": [server.port]})
    assert (await net.run(allowed, command)).exit_code == 0


async def test_a_port_that_no_rule_names_is_reset(net: Net) -> None:
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    command = f"{DIRECT} http://a.test:{server.port}/"
    result = await net.run(net.policy({"host": "a.test", "ports": [443]}), command)
    assert reasons(result) == [("a.test", Why.PORT_NOT_ALLOWED)]
    assert f"add port {server.port}" in result.connections[0].text
    allowed = net.policy({"host": "a.test", "ports": [443, server.port]})
    assert (await net.run(allowed, command)).exit_code == 0


async def test_literal_addresses_need_a_rule_that_names_them(net: Net) -> None:
    server = await net.http(host="127.1.2.3")
    # 127.0.0.0/8 is the sandbox's own loopback, so a proxy's protocol names the host's.
    command = f"curl -sS --noproxy '' --max-time 120 http://127.1.2.3:{server.port}/"
    net.names["a.test"] = ["127.1.2.3"]
    named = net.policy({"host": "a.test", "ports": [server.port]})
    result = await net.run(named, command)
    assert reasons(result) == [("127.1.2.3", Why.HOST_NOT_ALLOWED)]
    allowed = net.policy({"host": "127.1.2.0/24", "ports": [server.port]})
    result = await net.run(allowed, command)
    assert reasons(result) == [("127.1.2.3", Why.NONE)]
    assert len(server.seen) == 1


async def test_tls_passes_to_the_name_that_was_asked_for_and_to_no_other(net: Net) -> None:
    server = await net.http(tls="a.test")
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    ask = f"{DIRECT} --cacert servers.pem"
    result = await net.run(policy, f"{ask} https://a.test:{server.port}/")
    assert result.exit_code == 0, result.stderr
    assert reasons(result) == [("a.test", Why.NONE)]
    fronted = (
        "address=$(getent ahostsv4 a.test | head -n 1 | cut -d' ' -f 1); "
        f"{ask} -k --resolve evil.test:{server.port}:$address https://evil.test:{server.port}/"
    )
    result = await net.run(policy, fronted)
    assert result.exit_code == 35, result.stderr
    assert reasons(result) == [("a.test", Why.NAME_MISMATCH)]
    nameless = (
        "import socket, ssl; c = ssl._create_unverified_context(); c.check_hostname = False\n"
        f"c.wrap_socket(socket.create_connection(('a.test', {server.port})))"
    )
    result = await net.python(policy, nameless)
    assert result.exit_code == 1
    assert reasons(result) == [("a.test", Why.NAME_MISSING)]
    assert len(server.seen) == 1


async def test_tls_inspect_sees_methods_and_paths(net: Net) -> None:
    server = await net.http(tls="a.test")
    net.names["a.test"] = ["127.0.0.1"]
    rule = {"host": "a.test", "ports": [server.port], "methods": ["GET"], "paths": ["/ok/**"]}
    policy = net.policy(rule, tls="inspect")
    url = f"https://a.test:{server.port}"
    result = await net.run(policy, f"{DIRECT} {url}/ok/1 && {DIRECT} {url}/no")
    assert result.exit_code == 0, result.stderr
    assert [s["line"] for s in server.seen] == ["GET /ok/1 HTTP/1.1"]
    assert [c.reason for c in result.connections] == [Why.NONE, Why.REQUEST_NOT_ALLOWED]
    assert b"network.allow[0]" in result.stdout


UDP = """
import errno, socket
for family, address in ((socket.AF_INET, "192.0.2.7"), (socket.AF_INET6, "2001:db8::7")):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(60)
    s.connect((address, {port}))
    s.send(b"x")
    try:
        s.recv(9)
        print("answered")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


async def test_udp_other_than_dns_is_refused_at_once(net: Net) -> None:
    policy = net.policy({"host": "192.0.2.7", "ports": [443, 53]})
    result = await net.python(policy, UDP.format(port=443))
    assert result.stdout == b"ECONNREFUSED\nECONNREFUSED\n"


async def test_local_servers_inside_keep_working_and_are_their_sandboxes_own(net: Net) -> None:
    policy = net.policy({"host": "a.test"})
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 8080)); "
        "c = socket.create_connection(('localhost', 8080)); a, _ = s.accept(); "
        "a.send(b'hi'); print(c.recv(2))"
    )
    async with net.engine(policy) as engine:
        results = await asyncio.gather(
            *(engine.run(["python3", "-c", program], wall_seconds=250) for _ in range(3))
        )
    assert [r.stdout for r in results] == [b"b'hi'\n"] * 3, results[0].stderr
    assert all(r.connections == () for r in results)


async def test_each_connection_belongs_to_the_call_that_made_it(net: Net) -> None:
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    async with net.engine(policy) as engine:
        commands = [f"{DIRECT} http://a.test:{server.port}/{i}" for i in range(6)]
        results = await asyncio.gather(*(engine.run(["sh", "-c", c]) for c in commands))
    for index, result in enumerate(results):
        (connection,) = result.connections
        assert [r.path for r in connection.requests] == [f"/{index}"]


async def test_bytes_out_are_capped(net: Net) -> None:
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    rule = {"host": "a.test", "ports": [server.port]}
    post = f"head -c 300000 /dev/zero | {DIRECT} --data-binary @- http://a.test:{server.port}/"
    result = await net.run(net.policy(rule, bytes_out="100K"), post)
    assert reasons(result) == [("a.test", Why.BYTES_OUT)]
    assert result.connections[0].bytes_out <= 100_000
    assert server.seen == []
    assert (await net.run(net.policy(rule, bytes_out="1M"), post)).exit_code == 0
    assert server.seen[0]["length"] == 300_000


async def test_a_half_that_ends_is_passed_on(net: Net) -> None:
    async def total(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read(-1)))

    server = await net.serve(total)
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    program = (
        f"import socket; s = socket.create_connection(('a.test', {server.port})); "
        "s.sendall(b'\\0' * 5000000); s.shutdown(socket.SHUT_WR); print(s.makefile().read())"
    )
    result = await net.python(policy, program)
    assert result.stdout == b"5000000\n", result.stderr


async def test_what_a_program_sent_before_it_ended_arrives(net: Net) -> None:
    got: list[int] = []

    async def drain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(len(await reader.read(-1)))

    server = await net.serve(drain)
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    program = (
        f"import socket; s = socket.create_connection(('a.test', {server.port})); "
        "s.sendall(b'\\0' * 100000)"
    )
    await net.python(policy, program)
    assert got == [100_000]


async def test_file_operations_have_no_network(net: Net) -> None:
    policy = net.policy({"host": "a.test"})
    (net.workspace / "f").write_text("x")
    async with net.engine(policy) as engine:
        result = await engine.call("read_file", {"path": "f"})
        assert result.connections == ()
        with pytest.raises(OperationError):
            await engine.call("read_file", {"path": "none"})


async def test_the_name_service_survives_what_is_none(net: Net) -> None:
    net.names["a.test"] = ["127.0.0.1"]
    program = """
import socket, struct
def ask(name, qtype=1, number=7):
    labels = b"".join(bytes([len(l)]) + l for l in name)
    return struct.pack("!6H", number, 0x100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack("!2H", qtype, 1)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(60); u.connect(("9.9.9.9", 53))
for junk in (b"", b"x", b"\\0" * 12, b"\\xff" * 600):
    u.send(junk)
def code(data): return data[3] & 15, struct.unpack("!H", data[6:8])[0]
number = 100
def udp(name, qtype=1):
    global number
    number += 1
    u.send(ask(name, qtype, number))
    while struct.unpack("!H", (data := u.recv(600))[:2])[0] != number:
        pass
    return code(data)
print(udp([b"a", b"test"]), udp([b"A", b"Test"]), udp([b"b", b"test"]), udp([b"a", b"test"], 16))
print(udp([b"a.test"]), udp([b"a\\0", b"test"]), udp([b"x" * 63] * 3 + [b"y" * 61]))
t = socket.create_connection(("8.8.8.8", 53)); q = ask([b"a", b"test"])
t.sendall((struct.pack("!H", len(q)) + q) * 2)
f = t.makefile("rb"); n, = struct.unpack("!H", f.read(2)); print(code(f.read(n)))
n, = struct.unpack("!H", f.read(2)); print(code(f.read(n)))
"""
    result = await net.python(net.policy({"host": "a.test"}), program)
    assert result.stdout.decode().splitlines() == [
        "(0, 1) (0, 1) (3, 0) (0, 0)", "(3, 0) (3, 0) (3, 0)", "(0, 1)", "(0, 1)",
    ], result.stderr  # fmt: skip
    assert net.asked == []


async def test_a_call_for_one_host_reaches_no_other_that_its_policy_allows(net: Net) -> None:
    policy = net.policy(
        {"host": "a.test", "ports": [443]}, {"host": "*.b.test"}, {"host": "192.0.2.0/24"}
    )
    egress = Egress(policy.network, resolve=net.resolve)

    def doors() -> list[int]:
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)
        sockets = [socket.socket(socket.AF_INET, kind).detach() for kind in kinds]
        return [*sockets, no_hosts()]

    whole = egress.open(doors())
    one = egress.open(doors(), [HostRule(host="a.test", ports=(443,))])
    try:
        address = ip_address("192.0.2.7")
        assert whole.decide_name("a.test", 443).allowed
        assert whole.decide_name("x.b.test", 443).allowed
        assert whole.decide_literal(address, 443).allowed
        assert one.decide_name("a.test", 443).allowed
        assert one.decide_name("a.test").allowed
        assert one.decide_name("x.b.test", 443).reason is Why.HOST_NOT_ALLOWED
        assert one.decide_name("x.b.test", 443).rule == "call"
        assert one.decide_literal(address, 443).reason is Why.HOST_NOT_ALLOWED
        # A call cannot widen its policy.
        wider = egress.open(doors(), [HostRule(host="evil.test", ports=(443,))])
        assert not wider.decide_name("evil.test", 443).allowed
        wider.close()
    finally:
        whole.close()
        one.close()
        egress.close()
