"""The tool `http_request`: against live servers, each denial beside its control."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import os
from collections.abc import AsyncGenerator, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.gateway.audit.log import entries
from purplebox.gateway.calls import CONNECTIONS, REFUSAL, Outcome
from purplebox.gateway.reasons import Reason
from purplebox.isolation import Engine
from purplebox.policies import Policy, load_policy

pytestmark = pytest.mark.anyio
BINARY = bytes(range(256)) * 20
PAGE = """<html><head><title>t</title><script>evil()</script></head><body><h1>Title</h1>
<p>One <b>two</b> <a href="/x">three</a></p><ul><li>a</li><li>b</li></ul></body></html>"""
Answer = tuple[int, dict[str, str], bytes]


class Site:
    """A live HTTP server of the host, and what it was asked."""

    def __init__(self) -> None:
        self.port = 0
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        path, _, query = target.partition("?")
        if path.startswith("/to/"):
            return int(query or 302), {"Location": target[4:].partition("?")[0]}, b"moved"
        kinds: dict[str, Callable[[], Answer]] = {
            "/json": lambda: (200, {"Content-Type": "application/json"}, b'{"a": [1, "\xc3\xa9"]}'),
            "/html": lambda: (200, {"Content-Type": "text/html; charset=utf-8"}, PAGE.encode()),
            "/latin": lambda: (200, {"Content-Type": "text/plain; charset=latin-1"}, b"caf\xe9"),
            "/binary": lambda: (200, {"Content-Type": "application/octet-stream"}, BINARY),
            "/big": lambda: (200, {"Content-Type": "text/plain"}, b"x" * (3 << 20)),
            "/gzip": lambda: (200, {"Content-Encoding": "gzip", "Content-Type": "text/plain"},
                              gzip.compress(b"y" * (5 << 20))),
            "/bad-gzip": lambda: (200, {"Content-Encoding": "gzip"}, b"not gzip"),
            "/missing": lambda: (404, {"Content-Type": "text/plain"}, b"nothing here"),
            "/loop": lambda: (302, {"Location": "/loop"}, b""),
        }  # fmt: skip
        if path in kinds:
            return kinds[path]()
        said = {
            "method": method,
            "target": target,
            "headers": headers,
            "body": body.decode("latin-1"),
        }
        return 200, {"Content-Type": "application/json", "X-A": "1"}, json.dumps(said).encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            line, *rest = head.decode("latin-1").strip().split("\r\n")
            method, target, _ = line.split()
            headers = {k.lower(): v for k, _, v in (text.partition(": ") for text in rest)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.seen.append((method, target, headers, body))
            status, more, sent = self.answer(method, target, headers, body)
            fields = "".join(
                f"{k}: {v}\r\n" for k, v in {**more, "Content-Length": len(sent)}.items()
            )
            writer.write(f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode())
            if method != "HEAD":
                writer.write(sent)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()


@pytest.fixture
async def site(anyio_backend: str) -> AsyncGenerator[Site]:
    found = Site()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    yield found
    server.close()


def policy(site: Site, *hosts: str, **more: Any) -> Policy:
    allow = tuple(
        {"host": host, "ports": (site.port,)}
        | ({} if host[0].isdigit() else {"addresses": ("127.0.0.0/8",)})
        for host in hosts
    )
    base = load_policy("code-assistant").model_dump(by_alias=True)
    network = {"isolated": False, "allow": allow, **more.pop("network", {})}
    return Policy.model_validate({**base, "name": "web", "network": network, **more})


@contextlib.asynccontextmanager
async def gateway(by: Policy, workspace: Path) -> AsyncGenerator[Gateway]:
    """A gateway whose engine resolves every name ending in .test to the host's loopback."""

    async def resolve(name: str) -> list[Any]:
        if not name.endswith(".test"):
            raise OSError("no such name")
        return [ip_address("127.0.0.1")]

    made = Gateway(by, workspace, audit_log=workspace.parent / "log")
    plain = Engine.__init__

    def patched(self: Engine, *args: Any, **options: Any) -> None:
        plain(self, *args, **{**options, "resolve": resolve})

    Engine.__init__ = patched  # type: ignore[method-assign]
    try:
        await made.__aenter__()
    finally:
        Engine.__init__ = plain  # type: ignore[method-assign]
    try:
        yield made
    finally:
        await made.aclose()


async def ask(gate: Gateway, site: Site, path: str, host: str = "a.test", **more: Any) -> Outcome:
    return await gate.call("http_request", {"url": f"http://{host}:{site.port}{path}", **more})


def content(outcome: Outcome) -> Any:
    assert outcome.content is not None, outcome.text
    return outcome.content["content"]


async def test_what_is_sent_arrives_as_it_was_sent(site: Site, workspace: Path) -> None:
    async with gateway(policy(site, "a.test"), workspace) as gate:
        outcome = await ask(
            gate, site, "/p%20q?x=1&y=%C3%A9", method="put", body="é\0",
            headers={"X-Mine": "1", "Content-Type": "text/plain"},
        )  # fmt: skip
        assert outcome.content is not None
        assert (outcome.content["status"], outcome.content["headers"]["x-a"]) == (200, "1")
        said = json.loads(content(outcome))
        assert (said["method"], said["target"]) == ("PUT", "/p%20q?x=1&y=%C3%A9")
        assert said["body"].encode("latin-1") == "é\0".encode()
        assert said["headers"]["x-mine"] == "1"
        assert said["headers"]["host"] == f"a.test:{site.port}"
        sent = await ask(
            gate, site, "/", method="POST", body_base64=base64.b64encode(BINARY).decode()
        )
        assert sent.reason == Reason.COMPLETED
        assert site.seen[-1][3] == BINARY
        head = await ask(gate, site, "/big", method="HEAD")
        assert (content(head), head.reason) == ("", Reason.COMPLETED)
    record = [e for _, e in entries(workspace.parent / "log") if e and e["event"] == "end"]
    assert record[0]["connections"][0]["name"] == "a.test"
    assert record[0]["connections"][0]["rule"] == "network.allow[0]"


async def test_a_body_comes_back_as_it_is_wanted(site: Site, workspace: Path) -> None:
    async with gateway(policy(site, "a.test"), workspace) as gate:
        assert content(await ask(gate, site, "/json")) == '{"a": [1, "é"]}'
        assert content(await ask(gate, site, "/json", **{"as": "json"})) == {"a": [1, "é"]}
        assert content(await ask(gate, site, "/latin")) == "café"
        raw = await ask(gate, site, "/binary")
        assert raw.content is not None
        assert raw.content["content_as"] == "base64"
        assert base64.b64decode(content(raw)) == BINARY
        assert (
            base64.b64decode(content(await ask(gate, site, "/latin", **{"as": "base64"})))
            == b"caf\xe9"
        )
        markdown = content(await ask(gate, site, "/html", **{"as": "markdown"}))
        assert markdown == "# Title\n\nOne **two** [three](/x)\n\n* a\n* b\n"
        assert content(await ask(gate, site, "/html")) == PAGE
        wrong = await ask(gate, site, "/html", **{"as": "json"})
        assert wrong.content is not None
        assert (wrong.content["content_as"], content(wrong)) == ("text", PAGE)
        assert "Not JSON" in wrong.content["notes"][0]
        missing = await ask(gate, site, "/missing")
        assert (missing.is_error, content(missing)) == (False, "nothing here")
        assert missing.text.startswith("HTTP 404 http://a.test")


async def test_a_body_is_bounded_and_goes_whole_into_a_file(site: Site, workspace: Path) -> None:
    async with gateway(policy(site, "a.test"), workspace) as gate:
        cut = await ask(gate, site, "/big", max_bytes=100)
        assert cut.content is not None
        assert (content(cut), cut.content["truncated"]) == ("x" * 100, True)
        inflated = await ask(gate, site, "/gzip", max_bytes=10)
        assert content(inflated) == "y" * 10
        saved = await ask(gate, site, "/binary", save_to="sub/out.bin")
        assert saved.reason == Reason.OPERATION_FAILED  # there is no such directory
        (workspace / "sub").mkdir()
        os.chown(workspace / "sub", *(os.stat(workspace)[4:6]))
        saved = await ask(gate, site, "/binary", save_to="sub/out.bin")
        assert saved.content is not None, saved.text
        assert (saved.content["saved_to"], content(saved)) == ("sub/out.bin", None)
        assert (workspace / "sub" / "out.bin").read_bytes() == BINARY
        big = await ask(gate, site, "/gzip", save_to="big.txt")
        assert big.content is not None, big.text
        assert big.content["size_bytes"] == (workspace / "big.txt").stat().st_size == 5 << 20
        bad = await ask(gate, site, "/bad-gzip", save_to="bad.txt")
        assert bad.reason == Reason.OPERATION_FAILED
        assert "the body is not gzip" in bad.text
        assert sorted(p.name for p in workspace.iterdir()) == ["big.txt", "sub"]
        outside = await ask(gate, site, "/binary", save_to="/etc/purple-test")
        assert outside.reason == Reason.OPERATION_FAILED
        assert not Path("/etc/purple-test").exists()


async def test_redirects_are_followed_and_counted(site: Site, workspace: Path) -> None:
    async with gateway(policy(site, "a.test", "b.test"), workspace) as gate:
        outcome = await ask(gate, site, "/to//json")
        assert outcome.content is not None, outcome.text
        assert outcome.content["url"] == f"http://a.test:{site.port}/json"
        assert [r["status"] for r in outcome.content["redirects"]] == [302]
        stays = await ask(gate, site, "/to//json", follow_redirects=False)
        assert stays.content is not None
        assert (stays.content["status"], content(stays)) == (302, "moved")
        loop = await ask(gate, site, "/loop")
        assert loop.reason == Reason.OPERATION_FAILED
        assert "Stopped after 10 redirects" in loop.text
        private = {"Authorization": "Bearer x", "Cookie": "c=1", "X-Other": "1"}
        there = f"/to/http://b.test:{site.port}/end"
        assert (
            await ask(gate, site, there + "?307", method="POST", body="b", headers=private)
        ).content
        method, _, headers, body = site.seen[-1]
        assert (method, body, headers["x-other"]) == ("POST", b"b", "1")
        assert not {"authorization", "cookie"} & set(headers)
        await ask(gate, site, "/to//end?307", headers=private)
        assert site.seen[-1][2]["authorization"] == "Bearer x"  # the control: the same origin
        await ask(gate, site, there + "?303", method="POST", body="b")
        assert (site.seen[-1][0], site.seen[-1][3]) == ("GET", b"")
    record = [e for _, e in entries(workspace.parent / "log") if e and e["event"] == "end"]
    assert len(record[0]["connections"]) == 2


@pytest.mark.parametrize("target", [
    "http://b.test:{port}/x", "http://10.255.255.1:{port}/x", "http://169.254.169.254/latest",
    "http://[::ffff:a9fe:a9fe]/latest", "http://2852039166/latest",
])  # fmt: skip
async def test_a_redirect_goes_nowhere_that_the_policy_does_not_allow(
    site: Site, workspace: Path, target: str
) -> None:
    there = target.format(port=site.port)
    async with gateway(policy(site, "a.test"), workspace) as gate:
        outcome = await ask(gate, site, f"/to/{there}")
    assert outcome.reason == Reason.POLICY_DENIED, outcome.text
    assert "redirected to http://" in outcome.text
    told = outcome.result["_meta"]
    assert told[REFUSAL]["reason"] == "policy_denied"
    assert told[CONNECTIONS][0]["reason"] in ("host_not_allowed", "address_not_allowed")
    assert [s[1] for s in site.seen] == [f"/to/{there}"]
    if "b.test" in there:
        async with gateway(policy(site, "a.test", "b.test"), workspace) as gate:
            assert (await ask(gate, site, f"/to/{there}")).reason == Reason.COMPLETED


LOOPBACKS = ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:7f00:1]", "[::1]", "localhost"]


@pytest.mark.parametrize("host", LOOPBACKS)
async def test_the_hosts_loopback_is_not_the_sandboxs(
    site: Site, workspace: Path, host: str
) -> None:
    async with gateway(policy(site, "a.test"), workspace) as gate:
        outcome = await ask(gate, site, f"/to/http://{host}:{site.port}/x")
        assert outcome.reason in (Reason.OPERATION_FAILED, Reason.POLICY_DENIED)
        assert "/x" not in [s[1] for s in site.seen]
        assert (await ask(gate, site, "/x")).reason == Reason.COMPLETED


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://a.test/x", "javascript:1", "http://:99999/"]
)
async def test_a_redirect_is_to_http_only(site: Site, workspace: Path, location: str) -> None:
    async with gateway(policy(site, "a.test"), workspace) as gate:
        outcome = await ask(gate, site, f"/to/{location}")
        assert outcome.reason == Reason.OPERATION_FAILED
        assert "no URL to follow" in outcome.text
        assert (await ask(gate, site, "/to//json")).reason == Reason.COMPLETED


@pytest.mark.parametrize(("effect", "reason"), [
    ("deny", Reason.POLICY_DENIED), ("ask", Reason.APPROVAL_REQUIRED), ("allow", Reason.COMPLETED),
])  # fmt: skip
async def test_rules_judge_each_hop(
    site: Site, workspace: Path, effect: str, reason: Reason
) -> None:
    rule = {
        "tool": "http_request",
        "when": 'args.url.contains("/secret")',
        "effect": effect,
        "reason": "r",
    }
    by = policy(site, "a.test", tools={"rules": (rule,)})
    async with gateway(by, workspace) as gate:
        outcome = await ask(gate, site, "/to//secret")
    assert outcome.reason == reason
    reached = [s[1] for s in site.seen if s[1] == "/secret"]
    assert len(reached) == (effect == "allow")


async def test_a_host_that_is_not_allowed_is_refused_with_its_reason(
    site: Site, workspace: Path
) -> None:
    async with gateway(policy(site, "a.test"), workspace) as gate:
        refused = await ask(gate, site, "/x", host="b.test")
        assert refused.reason == Reason.POLICY_DENIED
        assert refused.result["_meta"][CONNECTIONS][0]["reason"] == "host_not_allowed"
        assert "b.test" in refused.text
        assert (await ask(gate, site, "/x")).reason == Reason.COMPLETED
        port = await gate.call("http_request", {"url": "http://a.test:9/"})
        assert port.reason == Reason.POLICY_DENIED
        assert port.result["_meta"][CONNECTIONS][0]["reason"] == "port_not_allowed"
    assert [s[1] for s in site.seen] == ["/x"]


async def test_without_network_there_is_no_such_tool(site: Site, workspace: Path) -> None:
    def names(gate: Gateway) -> list[str]:
        return [tool.name for tool in gate.tools()]

    async with gateway(load_policy("code-assistant"), workspace) as gate:
        assert "http_request" not in names(gate)
        outcome = await ask(gate, site, "/x")
        assert outcome.reason == Reason.POLICY_DENIED
        assert outcome.result["_meta"][REFUSAL]["rule"] == "network.isolated"
    async with gateway(policy(site, "a.test"), workspace) as gate:
        assert "http_request" in names(gate)
    assert not site.seen


@pytest.mark.parametrize("more", [
    {"headers": {"Host": "b.test"}}, {"headers": {"Transfer-Encoding": "chunked"}},
    {"headers": {"X-A": "1\r\nX-B: 2"}}, {"headers": {"X\r\nA": "1"}}, {"body": "a", "body_base64": "YQ=="},
    {"body_base64": "%"}, {"method": "G T"},
])  # fmt: skip
async def test_a_request_that_is_none_is_not_sent(
    site: Site, workspace: Path, more: dict[str, Any]
) -> None:
    async with gateway(policy(site, "a.test"), workspace) as gate:
        outcome = await ask(gate, site, "/x", **more)
        assert outcome.is_error
        assert outcome.reason in (
            Reason.INVALID_ARGUMENTS, Reason.OPERATION_FAILED, Reason.ARGUMENTS_AMBIGUOUS,
        )  # fmt: skip
        with_user = await ask(gate, site, "/x", host="user:pw@a.test")
        assert with_user.reason == Reason.OPERATION_FAILED
    assert not site.seen


async def test_its_sandbox_reaches_its_own_host_alone(site: Site, workspace: Path) -> None:
    """The grant holds, not just the rules: the same sandbox asked for another host has none."""
    by = policy(site, "a.test", "b.test")
    async with gateway(by, workspace) as gate:
        await ask(gate, site, "/x", host="b.test")
        await ask(gate, site, "/x", host="a.test")
    record = [e for _, e in entries(workspace.parent / "log") if e and e["event"] == "end"]
    hosts = [entry["grant"]["hosts"] for entry in record]
    assert hosts == [[{"host": h, "ports": [site.port]}] for h in ("b.test", "a.test")]
