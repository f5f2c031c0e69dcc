"""Names that are allowed stand in /etc/hosts, or come to, and mean there what a question would say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from purplebox.isolation.egress import shared
from purplebox.isolation.egress.names import (
    IPV4,
    IPV6,
    MOST_LISTED,
    Listing,
    Names,
    hosts_file,
    listed,
    reads_mapped,
)
from purplebox.policies.addresses import unmapped
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
    text = hosts_file(["a.test", "b.test"], mapped=True)
    assert text.replace("::ffff:", "") == hosts_file(["a.test", "b.test"], mapped=False)
    lines = [line.split() for line in text.splitlines()]
    assert [name for _, name in lines] == ["a.test", "b.test"]
    others = {names.index_of(f"{i}.other") for i in range(10_000)}  # more than are kept
    for address, name in lines:
        assert names.name_of(unmapped(address)) == name
        assert IPV4[names.index_of(name)] == unmapped(address)
        assert names.name_of(IPV6[names.index_of(name)]) == name
        assert names.index_of(name) not in others


async def test_the_file_and_a_question_say_the_same(net: Net) -> None:
    policy = net.policy({"host": "a.test"}, {"host": "*.b.test"}, {"host": "c.test"})
    names = ("a.test", "x.b.test", "c.test", "d.test")
    result = await net.python(policy, f"import sys; sys.argv[1:] = {names!r}\n{ASK}")
    a, wild, c, other = (line.split() for line in result.stdout.decode().splitlines())
    mapped = "::ffff:" * reads_mapped()
    assert a == ["a.test", f"{mapped}198.18.1.0", "198.18.1.0", "2001:2::100"]
    assert c == ["c.test", f"{mapped}198.18.1.1", "198.18.1.1", "2001:2::101"]
    assert wild == ["x.b.test", "None", "198.18.1.2", "2001:2::102"]
    assert other == ["d.test", "None", "none", "none"]


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNSPEC"])
@pytest.mark.parametrize("mapped", [True, False])
async def test_each_family_reaches_a_listed_name(
    net: Net, monkeypatch: pytest.MonkeyPatch, family: str, mapped: bool
) -> None:
    if mapped:
        assert reads_mapped()
    monkeypatch.setattr(shared, "reads_mapped", lambda: mapped)
    server = await net.echo()
    net.names.update({"a.test": ["127.0.0.1"], "w.b.test": ["127.0.0.1"]})
    policy = net.policy(
        {"host": "a.test", "ports": [server.port]}, {"host": "*.b.test", "ports": [server.port]}
    )
    program = f"""
import socket
for name in {tuple(net.names)!r} * 2:
    found = socket.getaddrinfo(name, {server.port}, socket.{family}, socket.SOCK_STREAM)
    with socket.socket(*found[0][:3]) as sock:
        sock.settimeout(60)
        sock.connect(found[0][4])
        sock.sendall(b"hello")
        print(sock.recv(5))
"""
    result = await net.python(policy, program)
    assert result.stdout == b"b'hello'\n" * 4, result.stderr
    assert [c.name for c in result.connections] == ["a.test", "w.b.test"] * 2


async def test_curl_reaches_each_name_by_the_family_that_it_insists_on(net: Net) -> None:
    server = await net.http()
    net.names.update({"a.test": ["127.0.0.1"], "w.b.test": ["127.0.0.1"]})
    policy = net.policy(
        {"host": "a.test", "ports": [server.port]}, {"host": "*.b.test", "ports": [server.port]}
    )
    ask = "curl -sS {} --noproxy '*' --max-time 120 -o /dev/null http://{}:{}/; echo $?;"
    families, names = ("-4", "-6", ""), ("a.test", "w.b.test", "w.b.test", "d.test")
    command = "".join(ask.format(f, name, server.port) for f in families for name in names)
    result = await net.run(policy, command)
    assert result.stdout.split() == [b"0", b"0", b"0", b"6"] * 3, result.stderr
    refused = [c for c in result.connections if c.reason]
    assert [(c.via, c.name, c.reason) for c in refused] == [("dns", "d.test", Why.HOST_NOT_ALLOWED)]
    reached = [(c.via, c.name, c.address) for c in result.connections if not c.reason]
    each = [("direct", name, "127.0.0.1") for name in ("a.test", "w.b.test", "w.b.test")]
    assert reached == each * 3


LISTED = "grep -v localhost /etc/hosts | sed 's/.* //' | tr '\\n' ' '; "


async def test_a_name_that_was_asked_for_is_listed_for_its_sandbox_alone(net: Net) -> None:
    policy = net.policy({"host": "a.test"}, {"host": "*.b.test"})
    ask = "getent ahosts {} >/dev/null; "
    async with net.engine(policy) as engine:
        names = ("x.b.test", "X.B.test.", "y.b.test", "d.test", "x.b.test", "localhost")
        command = LISTED + "".join(map(ask.format, names)) + LISTED
        first = await engine.run(["sh", "-c", command])
        second = await engine.run(["sh", "-c", LISTED + ask.format("z.b.test") + LISTED])
    assert first.stdout == b"a.test a.test x.b.test y.b.test ", first.stderr
    assert second.stdout == b"a.test a.test z.b.test "
    assert net.asked == []


WRITE = """
import errno, os
def tried(act):
    try:
        act()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
for path in ("/etc/hosts", "/tmp/mine"):
    if path == "/tmp/mine":
        open(path, "w").close()
    print(tried(lambda: os.chmod(path, 0o644)), tried(lambda: os.utime(path)), tried(lambda: os.truncate(path, 0)),
          tried(lambda: os.close(os.open(path, os.O_WRONLY))), tried(lambda: os.rename(path, path + ".old")))
"""


async def test_programs_cannot_change_what_is_listed(net: Net) -> None:
    result = await net.python(net.policy({"host": "*.b.test"}), WRITE)
    listed_, own = (line.split() for line in result.stdout.decode().splitlines())
    assert listed_ == ["EROFS", "EROFS", "EACCES", "EACCES", "EROFS"], result.stderr
    assert own == ["done"] * 5


async def test_names_are_found_where_there_is_no_room_to_list_them(net: Net) -> None:
    policy = net.policy({"host": "*.b.test"})
    filesystem = policy.filesystem.model_copy(update={"tmp_bytes": 1 << 20})
    policy = policy.model_copy(update={"filesystem": filesystem})
    fill = "cat /dev/zero > /tmp/full 2>/dev/null; truncate -s -100 /tmp/full; "
    asked = "".join(
        f"getent ahosts {'x' * 60}{i}.b.test >/dev/null && echo found; " for i in range(80)
    )
    command = fill + asked + "tail -n 1 /etc/hosts | sed 's/.* //'; grep -c . /etc/hosts"
    result = await net.run(policy, command)
    *found, last, count = result.stdout.decode().split()
    assert found == ["found"] * 80, result.stderr
    assert last == f"{'x' * 60}{int(count) - 3}.b.test"  # a whole line
    assert int(count) < 80


def test_a_line_of_the_list_lies_in_one_page(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n")
    listing = Listing(os.open(path, os.O_WRONLY | os.O_APPEND), 200, mapped=True)
    names = Names(("known.test",), listing)
    asked = [f"{'n' * 50}{i}.test" for i in range(250)]
    indices = [names.index_of(name) for name in (*asked, *asked)]
    assert indices[:250] == indices[250:]
    data = path.read_bytes()
    assert len(data) > 3 * 4096
    for start in range(4096, len(data), 4096):
        assert data[start - 1 : start] == b"\n"
    lines = [line.split() for line in data.decode().splitlines()[1:] if line]
    assert [name for _, name in lines] == asked[:200]
    assert [int(unmapped(a)) - int(IPV4.network_address) for a, _ in lines] == indices[:200]
    listing.close()
    assert names.index_of("late.test") not in indices


def test_half_a_line_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n")
    write = os.write

    def half(fd: int, data: bytes) -> int:
        return write(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    listing = Listing(os.open(path, os.O_WRONLY | os.O_APPEND), 10, mapped=False)
    assert not listing.add("a.test", 256)
    monkeypatch.undo()
    assert not listing.add("b.test", 257)
    listing.close()
    assert path.read_text() == "127.0.0.1 localhost\n"


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


MOUNTS = "grep -c ' /etc/hosts ' /proc/self/mountinfo"


@pytest.mark.parametrize(("host", "mounts"), [("*.b.test", b"1\n"), ("a.test", b"0\n")])
async def test_only_sandboxes_whose_names_are_not_all_known_have_a_file_of_their_own(
    net: Net, host: str, mounts: bytes
) -> None:
    assert (await net.run(net.policy({"host": host}), MOUNTS)).stdout == mounts
