"""Names that a policy allows as such stand in /etc/hosts, and mean there what a question would say."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from purplebox.isolation.egress.names import IPV4, IPV6, MOST_LISTED, Names, hosts_file, listed
from purplebox.policies.hosts import Hosts, Why
from purplebox.policies.model import Network

if TYPE_CHECKING:
    from .conftest import Net

pytestmark = pytest.mark.anyio

# The address of a name, asked of DNS whatever /etc/hosts says.
ASK = """
import socket, struct, sys
def asked(name, kind):
    question = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0)
    for label in name.split("."):
        question += bytes([len(label)]) + label.encode()
    question += b"\\0" + struct.pack(">HH", kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.connect(("127.0.0.1", 53))
        sock.send(question)
        answer = sock.recv(512)
    if not int.from_bytes(answer[6:8]):
        return "none"
    family, size = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
    return socket.inet_ntop(family, answer[-size:])
hosts = dict(reversed(line.split()[:2]) for line in open("/etc/hosts"))
for name in sys.argv[1:]:
    print(name, hosts.get(name), asked(name, 1), asked(name, 28))
"""


def allowed(*names: str, deny: tuple[str, ...] = ()) -> list[str]:
    rules = [{"host": name} for name in names]
    section = {"isolated": False, "allow": rules, "deny": [{"host": name} for name in deny]}
    return Hosts(Network.model_validate(section, strict=False)).exact_names()


def test_only_names_that_are_allowed_as_such_are_listed() -> None:
    assert allowed("b.test", "A.test.", "*.c.test", "**", "192.0.2.1", "b.test") == [
        "b.test", "a.test",
    ]  # fmt: skip
    assert allowed("a.test", "b.test", deny=("a.test",)) == ["b.test"]
    assert listed(["localhost", "a.localhost", "a.test"]) == ("a.test",)
    many = [f"{i}.test" for i in range(1000)]
    assert listed(many) == tuple(many[:MOST_LISTED])


def test_what_is_listed_keeps_its_address() -> None:
    names = Names(["a.test", "b.test"])
    lines = [line.split() for line in hosts_file(["a.test", "b.test"]).splitlines()]
    assert [name for _, name in lines] == ["a.test", "b.test"]
    others = {names.index_of(f"{i}.other") for i in range(10_000)}  # more than are kept
    for address, name in lines:
        assert names.name_of(ip_address(address)) == name
        assert IPV4[names.index_of(name)] == ip_address(address)
        assert names.name_of(IPV6[names.index_of(name)]) == name
        assert names.index_of(name) not in others


async def test_the_file_and_a_question_say_the_same(net: Net) -> None:
    policy = net.policy({"host": "a.test"}, {"host": "*.b.test"}, {"host": "c.test"})
    names = ("a.test", "x.b.test", "c.test", "d.test")
    result = await net.python(policy, f"import sys; sys.argv[1:] = {names!r}\n{ASK}")
    a, wild, c, other = (line.split() for line in result.stdout.decode().splitlines())
    assert a == ["a.test", "198.18.1.0", "198.18.1.0", "2001:2::100"]
    assert c == ["c.test", "198.18.1.1", "198.18.1.1", "2001:2::101"]
    assert wild == ["x.b.test", "None", "198.18.1.2", "2001:2::102"]
    assert other == ["d.test", "None", "none", "none"]


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNSPEC"])
async def test_each_family_reaches_a_listed_name(net: Net, family: str) -> None:
    server = await net.echo()
    net.names.update({"a.test": ["127.0.0.1"], "w.b.test": ["127.0.0.1"]})
    policy = net.policy(
        {"host": "a.test", "ports": [server.port]}, {"host": "*.b.test", "ports": [server.port]}
    )
    program = f"""
import socket
for name in {tuple(net.names)!r}:
    found = socket.getaddrinfo(name, {server.port}, socket.{family}, socket.SOCK_STREAM)
    with socket.socket(*found[0][:3]) as sock:
        sock.settimeout(60)
        sock.connect(found[0][4])
        sock.sendall(b"hello")
        print(sock.recv(5))
"""
    result = await net.python(policy, program)
    assert result.stdout == b"b'hello'\n" * 2, result.stderr
    assert [c.name for c in result.connections] == ["a.test", "w.b.test"]


async def test_a_listed_name_that_leads_nowhere_fails_when_it_is_connected_to(net: Net) -> None:
    server = await net.http()
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    command = (
        f"getent hosts a.test >/dev/null && "
        f"curl -sS -f --max-time 120 --noproxy '*' http://a.test:{server.port}/"
    )
    result = await net.run(policy, command)
    assert result.exit_code == 22, result  # HTTP's own 502
    assert [(c.name, c.reason) for c in result.connections] == [("a.test", Why.UNRESOLVED)]
    net.names["a.test"] = ["127.0.0.1"]
    assert (await net.run(policy, command)).exit_code == 0


async def test_more_names_than_are_listed(net: Net) -> None:
    server = await net.http()
    last = f"n{MOST_LISTED}.test"
    net.names[last] = ["127.0.0.1"]
    rules = [{"host": f"n{i}.test", "ports": [server.port]} for i in range(MOST_LISTED + 1)]
    command = (
        f"grep -c '\\.test$' /etc/hosts; grep -c {last} /etc/hosts; "
        f"curl -sS --max-time 120 --noproxy '*' -o /dev/null http://{last}:{server.port}/"
    )
    result = await net.run(net.policy(*rules), command)
    assert (result.stdout, result.exit_code) == (f"{MOST_LISTED}\n0\n".encode(), 0)
