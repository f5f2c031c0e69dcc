"""Ways around the rules, from inside, against live servers of the host; each beside its control."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from purplebox.policies.hosts import Why

if TYPE_CHECKING:
    from .conftest import Net

pytestmark = pytest.mark.anyio
ANY = {"host": "**", "addresses": None}
DIRECT = "curl -sS --noproxy '*' --max-time 120"

# Says what the gate answers to each target of CONNECT, as it stands, and to each name in SOCKS5.
ASK = """
import json, socket, sys
targets, port = json.loads(sys.argv[1]), int(sys.argv[2])
def connect(target):
    s = socket.create_connection(("127.0.0.1", 1023), 60)
    s.sendall(b"CONNECT %s:%d HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" % (target, port))
    said = s.recv(65536).split(b"\\r\\n")[0]
    if b" 200 " in said:
        s.sendall(b"GET /tunnel HTTP/1.1\\r\\nHost: %s:%d\\r\\n\\r\\n" % (target, port))
        said = s.recv(65536).split(b"\\r\\n")[0]
    return said.decode()
def socks(name):
    s = socket.create_connection(("127.0.0.1", 1023), 60)
    s.sendall(b"\\5\\1\\0")
    assert s.recv(2) == b"\\5\\0"
    s.sendall(b"\\5\\1\\0\\3" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
    return s.recv(10)[1]
for target in targets:
    raw = target.encode("latin-1")
    print(json.dumps([connect(raw), socks(raw) if len(raw) < 256 else -1]))
"""


async def ask(net: Net, policy: Any, targets: list[str], port: int) -> tuple[list[Any], Any]:
    async with net.engine(policy) as engine:
        result = await engine.run(
            ["python3", "-c", ASK, json.dumps(targets), str(port)], wall_seconds=250
        )
    assert result.exit_code == 0, result.stderr.decode()
    return [json.loads(line) for line in result.stdout.splitlines()], result


SPELLINGS = [
    "127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1.", "0", "0.0.0.0",
    "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]", "[::]", "[0:0:0:0:0:0:0:1]", "localhost", "LOCALHOST.", "inside.test",
    "169.254.169.254", "[fd00:ec2::254]", "198.18.1.0", "[2001:2::100]",
]  # fmt: skip


async def test_no_spelling_of_the_hosts_loopback_gets_there_by_a_rule_for_any_name(
    net: Net,
) -> None:
    server = await net.http()
    for name in ("localhost", "inside.test"):
        net.names[name] = ["127.0.0.1", "::1", "::ffff:127.0.0.1"]
    policy = net.policy({**ANY, "ports": [server.port]})
    answers, result = await ask(net, policy, SPELLINGS, server.port)
    for target, (http, socks) in zip(SPELLINGS, answers, strict=True):
        assert http.split()[1] in ("400", "403"), (target, http)
        assert socks == 2, (target, socks)
    assert {c.reason for c in result.connections} <= {
        Why.HOST_NOT_ALLOWED, Why.ADDRESS_NOT_ALLOWED, Why.NAME_INVALID,
    }  # fmt: skip
    assert server.connections == 0
    # The control: the same name, and the literal, where the policy names the address.
    named = net.policy({"host": "inside.test", "ports": [server.port]})
    answers, _ = await ask(net, named, ["inside.test"], server.port)
    assert answers == [["HTTP/1.1 200 OK", 0]]
    literal = net.policy({"host": "127.0.0.1", "ports": [server.port]})
    answers, _ = await ask(net, literal, ["127.0.0.1", "0x7f.1", "2130706433"], server.port)
    # The address is decided as what it is; HTTP's Host must then be its one spelling.
    assert [socks for _, socks in answers] == [0, 0, 0]
    assert answers[0][0] == "HTTP/1.1 200 OK"


HOSTILE = [
    "a.test\0.evil.test", "evil.test\0.a.test", "a.test%00", "a.test%2eevil.test", "user@a.test",
    "evil.test@a.test", "a.test\r\nX-Evil: 1", "a..test", ".a.test", "-a.test", "a.test#evil.test", "a.test/x",
    "a.test\\x", "a.test ", "a" * 64 + ".test", ".".join(["a" * 60] * 5), "a.test\x7f", "[a.test]",
    "evil.test", "xa.test", "a.test.evil.test", "a.test:1",
]  # fmt: skip


async def test_names_are_what_they_are_or_refused(net: Net) -> None:
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    answers, _ = await ask(net, policy, HOSTILE, server.port)
    for target, (http, socks) in zip(HOSTILE, answers, strict=True):
        assert http.split()[1] in ("400", "403"), (target, http)
        assert socks in (2, -1), (target, socks)
    assert net.asked == []
    assert server.connections == 0
    answers, _ = await ask(net, policy, ["a.test", "A.TEST", "a.test."], server.port)
    assert [http for http, _ in answers] == ["HTTP/1.1 200 OK"] * 3
    assert [socks for _, socks in answers] == [0, 0, 0]
    assert set(net.asked) == {"a.test"}


async def test_an_international_name_is_compared_as_its_a_label(net: Net) -> None:
    server = await net.http()
    net.names["xn--bcher-kva.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "bücher.test", "ports": [server.port]})
    answers, _ = await ask(net, policy, ["xn--bcher-kva.test", "xn--bche-kva.test"], server.port)
    assert answers[0] == ["HTTP/1.1 200 OK", 0]
    assert answers[1][1] == 2


async def test_a_name_that_changes_where_it_leads_is_decided_each_time(net: Net) -> None:
    inside, outside = await net.http(host="127.9.9.9"), 0
    # The same port at the address that the policy names.
    handle = await net.http(host="127.0.0.1")
    outside = handle.port
    net.names["flip.test"] = ["127.0.0.1"]
    rule = {"host": "flip.test", "ports": [inside.port, outside], "addresses": ["127.0.0.1/32"]}
    answers = iter((["127.0.0.1"], ["127.9.9.9"], ["127.9.9.9"]))

    async def flipping(name: str) -> Any:
        net.names[name] = next(answers)
        return await type(net).resolve(net, name)

    net.resolve = flipping  # type: ignore[method-assign]
    once = f"{DIRECT} http://flip.test:{outside}/"
    again = f"{DIRECT} -f http://flip.test:{inside.port}/"
    result = await net.run(net.policy(rule), f"{once} && ! {again}")
    assert result.exit_code == 0, result.stderr
    assert [c.reason for c in result.connections] == [Why.NONE, Why.ADDRESS_NOT_ALLOWED]
    assert len(handle.seen) == 1
    assert inside.connections == 0


async def test_of_several_addresses_only_those_that_pass_are_dialled(net: Net) -> None:
    allowed, denied = await net.http(), await net.http(host="127.9.9.9")
    net.names["both.test"] = ["127.9.9.9", "10.0.0.1", "::1", "127.0.0.1"]
    rule = {"host": "both.test", "ports": [allowed.port, denied.port], "addresses": ["127.0.0.1"]}
    policy = net.policy(rule)
    result = await net.run(policy, f"{DIRECT} http://both.test:{allowed.port}/")
    assert [(c.address, c.reason) for c in result.connections] == [("127.0.0.1", Why.NONE)]
    result = await net.run(policy, f"{DIRECT} http://both.test:{denied.port}/")
    assert [c.reason for c in result.connections] == [Why.UPSTREAM_FAILED]
    assert denied.connections == 0


async def test_connect_name_and_host_header_agree(net: Net) -> None:
    server = await net.http()
    net.names.update({"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]})
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    url = f"http://a.test:{server.port}/"
    for options in ("--noproxy '*'", "", "-p"):
        result = await net.run(
            policy, f"curl -sS {options} -H 'Host: b.test' -w '%{{http_code}}' {url}"
        )
        assert result.stdout.endswith(b"421"), (options, result)
        assert result.connections[0].reason is Why.NAME_MISMATCH
        assert server.seen == []
    assert (await net.run(policy, f"curl -sS {url}")).exit_code == 0
    assert len(server.seen) == 1


RAW = """
import socket, sys
s = socket.create_connection(("a.test", int(sys.argv[1])), 60)
s.sendall(sys.stdin.buffer.read())
print(s.recv(65536).split(b"\\r\\n")[0].decode())
"""


@pytest.mark.parametrize(
    "head",
    [
        "POST / HTTP/1.1\r\n{host}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\n{host}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        "GET / HTTP/1.1\r\n{host}X: a\rGET /evil HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n{host}X: a\n\nGET /evil HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n{host}X: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\n{host}X: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\n{host}{host}\r\n",
        "GET http://b.test/ HTTP/1.1\r\n{host}\r\n",
        "GET /a b HTTP/1.1\r\n{host}\r\n",
        "POST / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_a_request_that_two_servers_could_read_differently_is_refused(
    net: Net, head: str
) -> None:
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "a.test", "ports": [server.port]})
    async with net.engine(policy) as engine:

        async def send(text: str) -> str:
            data = text.format(host=f"Host: a.test:{server.port}\r\n").encode("latin-1")
            command = ["python3", "-c", RAW, str(server.port)]
            return (await engine.run(command, stdin=data, wall_seconds=250)).stdout.decode()

        assert (await send(head)).split()[1] in ("400", "421", "501")
        assert server.seen == []
        assert "200 OK" in await send("GET / HTTP/1.1\r\n{host}\r\n")  # the control
    assert len(server.seen) == 1


async def test_a_redirect_to_where_nothing_may_go_ends_there(net: Net) -> None:
    server, private = await net.http(), await net.http()
    net.names.update({"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]})
    rule = {"host": "a.test", "ports": [server.port]}
    for target in (f"http://127.0.0.1:{private.port}/", f"http://b.test:{private.port}/"):
        for proxied in ("--noproxy '*'", "--noproxy ''"):
            follow = f"curl -sS -L {proxied} --max-time 120 http://a.test:{server.port}/to/{target}"
            await net.run(net.policy(rule), follow)
            assert private.connections == 0
    assert len(server.seen) == 4
    follow = f"{DIRECT} -L http://a.test:{server.port}/to/http://b.test:{private.port}/"
    both = net.policy(rule, {"host": "b.test", "ports": [private.port]})
    assert (await net.run(both, follow)).exit_code == 0
    assert len(private.seen) == 1


WAYS = """
import errno, socket
def attempt(what, action):
    try:
        print(what, action())
    except OSError as error:
        print(what, errno.errorcode.get(error.errno, error))
def tcp(family, address, port):
    s = socket.socket(family); s.settimeout(60); s.connect((address, port)); s.send(b"\\x16\\3\\1")
    return s.recv(1) or "EOF"
def udp(family, address, port):
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(60); s.connect((address, port))
    s.send(b"x"); return s.recv(9)
def own(address):
    s = socket.create_server((address, 0))
    c = socket.create_connection(s.getsockname()); a, _ = s.accept(); a.send(b"x"); return c.recv(1)
attempt("doh", lambda: tcp(socket.AF_INET, "1.1.1.1", 443))
attempt("doh6", lambda: tcp(socket.AF_INET6, "2606:4700:4700::1111", 443))
attempt("dot", lambda: tcp(socket.AF_INET, "9.9.9.9", 853))
attempt("high", lambda: tcp(socket.AF_INET, "8.8.8.8", 1023))
attempt("quic", lambda: udp(socket.AF_INET, "1.1.1.1", 443))
attempt("quic6", lambda: udp(socket.AF_INET6, "2606:4700:4700::1111", 443))
attempt("ping", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
attempt("sctp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).connect(("1.1.1.1", 9)))
attempt("bound", lambda: own("127.0.0.1"))
"""


async def test_programs_that_ignore_the_proxy_get_no_further(net: Net) -> None:
    result = await net.python(net.policy({**ANY, "ports": [443, 853, 1023]}), WAYS)
    said = dict(line.split(" ", 1) for line in result.stdout.decode().splitlines())
    for what in ("doh", "doh6", "dot", "high"):
        assert said[what] == "ECONNRESET", said
    for what in ("quic", "quic6"):
        assert said[what] == "ECONNREFUSED", said
    assert said["ping"] in ("EACCES", "EPERM")
    assert said["raw"] == said["packet"] == "EPERM"
    assert said["sctp"] in ("EPROTONOSUPPORT", "ECONNREFUSED", "EPERM", "EAFNOSUPPORT"), said
    assert said["bound"] == "b'x'"
    refused = {c.address: c.reason for c in result.connections}
    assert refused == dict.fromkeys(
        ("1.1.1.1", "2606:4700:4700::1111", "9.9.9.9", "8.8.8.8"), Why.HOST_NOT_ALLOWED
    )


async def test_the_hosts_own_addresses_are_out_of_reach_by_any_name(net: Net) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address would be used
            own = probe.getsockname()[0]
        except OSError:
            own = "127.0.0.1"  # a host without any network
    server = await net.http(host=own)
    with socket.create_connection((own, server.port), 60):
        pass  # the control: it listens
    net.names["me.test"] = [own]
    command = f"{DIRECT} http://me.test:{server.port}/"
    result = await net.run(net.policy({**ANY, "ports": [server.port]}), command)
    assert [c.reason for c in result.connections] == [Why.ADDRESS_NOT_ALLOWED]
    assert server.seen == []
    named = net.policy({"host": "me.test", "ports": [server.port], "addresses": [own]})
    assert (await net.run(named, command)).exit_code == 0


async def test_a_deny_wins_over_an_allow(net: Net) -> None:
    server = await net.http()
    net.names.update({"a.x.test": ["127.0.0.1"], "b.x.test": ["127.0.0.1"]})
    policy = net.policy({"host": "*.x.test", "ports": [server.port]}, deny=[{"host": "b.x.test"}])
    get = DIRECT + " http://{}.x.test:" + str(server.port)
    result = await net.run(policy, get.format("a") + "; " + get.format("b"))
    assert result.exit_code == 6
    assert [(c.name, c.reason) for c in result.connections] == [
        ("a.x.test", Why.NONE), ("b.x.test", Why.HOST_DENIED),
    ]  # fmt: skip


async def test_credentials_reach_their_host_only(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REAL_TOKEN", "s3cret-of-the-person")
    api, other = await net.http(tls="api.test"), await net.http(tls="other.test")
    net.names.update({"api.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    policy = net.policy(
        {"host": "api.test", "ports": [api.port]}, {"host": "other.test", "ports": [other.port]},
        tls="inspect",
        credentials=[
            {
                "host": "api.test", "header": "Authorization", "placeholder_env": "TOKEN",
                "value": "Bearer ${secret:REAL_TOKEN}",
            }
        ],
    )  # fmt: skip
    send = 'curl -sS -H "Authorization: Bearer $TOKEN" https://{}.test:{}/; '
    result = await net.run(
        policy, "env; " + send.format("api", api.port) + send.format("other", other.port)
    )
    assert api.seen[0]["headers"]["authorization"] == "Bearer s3cret-of-the-person"
    assert other.seen == []
    assert b"s3cret-of-the-person" not in result.stdout + result.stderr
    assert [c.reason for c in result.connections] == [Why.NONE, Why.CREDENTIAL_MISUSED]
    assert "s3cret" not in json.dumps(result.facts())


async def test_a_flood_of_connections_and_names_is_counted_not_kept(net: Net) -> None:
    program = """
import socket
for i in range(700):
    try: socket.getaddrinfo(f"n{i}.test", 80)
    except OSError: pass
    s = socket.socket(); s.settimeout(60)
    try: s.connect((f"203.0.113.{i % 250}", 80)); s.recv(1)
    except OSError: pass
    s.close()
"""
    result = await net.python(net.policy({"host": "a.test"}), program)
    assert result.exit_code == 0, result.stderr
    assert len(result.connections) == 500
    assert all(c.reason is Why.HOST_NOT_ALLOWED for c in result.connections)


async def test_two_calls_share_nothing(net: Net) -> None:
    """What one call asked for is no address in another."""
    server = await net.http()
    net.names["a.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "*.test", "ports": [server.port]})
    async with net.engine(policy) as engine:
        first = await engine.run(["getent", "hosts", "a.test"], wall_seconds=250)
        address = first.stdout.split()[0].decode()
        bare = f"{DIRECT} -g 'http://[{address}]:{server.port}/'"
        second = await engine.run(["sh", "-c", bare], wall_seconds=250)
        both = await engine.run(
            ["sh", "-c", f"getent hosts a.test; {bare} -H 'Host: a.test:{server.port}'"]
        )
    assert second.exit_code != 0
    assert server.connections == len(server.seen) == 1
    assert both.exit_code == 0
    await asyncio.sleep(0)
