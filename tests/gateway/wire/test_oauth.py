"""Tokens for servers elsewhere: got from the authorization server that is named, sent to the server alone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mcp.client.auth import AuthorizationCodeResult

from purplebox.gateway.config import ConfigError, ServerSpec, load_servers, with_secrets
from purplebox.gateway.elsewhere import leave_of, policy_for
from purplebox.gateway.tokens import TokenFile
from purplebox.gateway.wire.http_client import Origin
from purplebox.gateway.wire.links import Grant
from purplebox.gateway.wire.oauth import Authorized, Leave, Person
from purplebox.isolation.egress.dial import Dialer, SystemResolver
from purplebox.isolation.errors import SetupError
from purplebox.policies.hosts import Hosts

Reply = tuple[int, dict[str, str], Any]
SECRET = "s3cret-of-the-client"


@contextlib.asynccontextmanager
async def http(answer: Callable[[str, str, dict[str, str], str], Reply]) -> AsyncGenerator[str]:
    """A server; `answer` has method, target, headers and body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, target, _ = first.split(" ")
            status, more, value = answer(method, target, headers, body.decode())
            data = json.dumps(value).encode()
            told = {"content-type": "application/json", "connection": "close", **more}
            told["content-length"] = str(len(data))
            rest = "".join(f"{k}: {v}\r\n" for k, v in told.items())
            writer.write(f"HTTP/1.1 {status} x\r\n{rest}\r\n".encode() + data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


class World:
    """A server that wants a token, and who gives it."""

    def __init__(self) -> None:
        self.issuer = self.server = ""
        self.seen: list[tuple[str, str, dict[str, str], str]] = []
        self.given: list[dict[str, list[str]]] = []
        self.good = "Bearer none"
        self.lead_to = ""
        self.served: list[str] = []

    def issue(self, method: str, target: str, headers: dict[str, str], body: str) -> Reply:
        self.seen.append((method, target, headers, body))
        if "well-known" in target:
            ends = {"authorization_endpoint": "authorize", "token_endpoint": "token",
                    "registration_endpoint": "register"}  # fmt: skip
            found: Any = {key: f"{self.issuer}/{end}" for key, end in ends.items()}
            return 200, {}, {"issuer": self.issuer, "response_types_supported": ["code"],
                             "code_challenge_methods_supported": ["S256"], **found}  # fmt: skip
        if target == "/register":
            return 201, {}, {**json.loads(body), "client_id": "registered"}
        if target == "/token":
            self.given.append(parse_qs(body))
            token = f"token-{len(self.given)}"
            self.good = f"Bearer {token}"
            return 200, {}, {"access_token": token, "token_type": "Bearer", "expires_in": 3600,
                             "refresh_token": "again"}  # fmt: skip
        return 404, {}, {}

    def serve(self, method: str, target: str, headers: dict[str, str], body: str) -> Reply:
        self.seen.append((method, target, headers, body))
        self.served.append(target)
        if "well-known" in target:
            lead = self.lead_to or self.issuer
            return 200, {}, {"resource": f"{self.server}/mcp", "authorization_servers": [lead]}
        if headers.get("authorization") != self.good:
            where = f"{self.server}/.well-known/oauth-protected-resource/mcp"
            return 401, {"www-authenticate": f'Bearer resource_metadata="{where}"'}, {}
        return 200, {}, {"heard": body}


def by_code(it: World) -> Grant:
    """An authorization code, which a person signs in for."""
    return Grant(issuer=it.issuer)


@contextlib.asynccontextmanager
async def world(
    workspace: Path, grant: Callable[[World], Grant], person: Person | None = None,
) -> AsyncGenerator[tuple[World, Leave, Authorized]]:  # fmt: skip
    it = World()
    async with http(it.issue) as it.issuer, http(it.serve) as it.server:
        spec = ServerSpec(name="far", url=f"{it.server}/mcp", profile="", auth=grant(it))
        policy, resolver = policy_for(spec, workspace), SystemResolver()
        leave = leave_of(spec, policy, resolver, person)
        assert leave is not None
        hosts = Hosts(policy.network)
        origin = Origin(spec.url, hosts, Dialer(hosts, resolver))
        try:
            yield it, leave, Authorized(origin, leave)
        finally:
            leave.close()
            origin.close()
            resolver.close()


async def post(authorized: Authorized, body: bytes = b"hi") -> Any:
    async with authorized.request("POST", "/mcp", {}, body) as response:
        return response.status, json.loads(await response.read(1 << 20))


def machine(it: World) -> Grant:
    return Grant(issuer=it.issuer, client_id="us", client_secret=SECRET, scope="tools")


def test_client_credentials_are_sent_to_the_issuer_and_the_token_to_the_server(
    workspace: Path,
) -> None:
    async def go() -> None:
        async with world(workspace, machine) as (it, _, authorized):
            assert await post(authorized) == (200, {"heard": "hi"})
            assert await post(authorized, b"more") == (200, {"heard": "more"})
            assert len(it.given) == 1
            assert it.given[0]["grant_type"] == ["client_credentials"]
            assert it.given[0]["resource"] == [f"{it.server}/mcp"]  # RFC 8707
            pair = base64.b64encode(f"us:{SECRET}".encode()).decode()
            token = next(h for _, t, h, _ in it.seen if t == "/token")
            assert token["authorization"] == f"Basic {pair}"
            for _, target, headers, body in it.seen:
                if target != "/token":
                    assert pair not in str(headers) and SECRET not in body
            it.good = "Bearer other"  # revoked: a new one is asked for, once
            assert await post(authorized) == (200, {"heard": "hi"})
            assert len(it.given) == 2

    asyncio.run(go())


def test_a_server_that_leads_to_another_issuer_gets_nothing(workspace: Path) -> None:
    async def go() -> None:
        async with world(workspace, machine) as (it, _, authorized):
            stolen: list[str] = []

            def thief(method: str, target: str, headers: dict[str, str], body: str) -> Reply:
                stolen.append(target)
                return 404, {}, {}

            async with http(thief) as it.lead_to:
                with pytest.raises(OSError, match=r"network|issuer|rule"):
                    await post(authorized)
                # No rule names its port: it is not even reached.
                assert stolen == []
            assert it.given == []
            it.lead_to = ""
            assert (await post(authorized))[0] == 200

    asyncio.run(go())


def test_a_person_signs_in_once_and_the_token_is_theirs_alone(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    pages: list[str] = []

    async def shown(url: str) -> None:
        pages.append(url)

    async def came_back() -> AuthorizationCodeResult:
        query = parse_qs(urlsplit(pages[-1]).query)
        return AuthorizationCodeResult(code="the-code", state=query["state"][0])

    async def go() -> None:
        async with world(workspace, by_code) as (it, _, authorized):
            with pytest.raises(OSError, match="run `purple login`"):
                await post(authorized)
            person = Person("http://127.0.0.1:1/callback", shown, came_back)
            spec = ServerSpec(name="far", url=f"{it.server}/mcp", profile="", auth=by_code(it))
            resolver = SystemResolver()
            leave = leave_of(spec, policy_for(spec, workspace), resolver, person)
            assert leave is not None
            await leave.token((401, {}))
            leave.close()
            asked = parse_qs(urlsplit(pages[0]).query)
            assert asked["code_challenge_method"] == ["S256"]
            assert it.given[0]["code"] == ["the-code"] and "code_verifier" in it.given[0]
            kept = TokenFile(spec.url)
            assert kept.path.stat().st_mode & 0o777 == 0o600
            assert kept.path.parent.stat().st_mode & 0o777 == 0o700
            # Another run has it, and a token that has run out is refreshed without a person.
            later = leave_of(spec, policy_for(spec, workspace), resolver)
            assert later is not None
            assert await later.token() == "Bearer token-1"
            kept.write({**kept.read(), "expires_at": 1.0})
            latest = leave_of(spec, policy_for(spec, workspace), resolver)
            assert latest is not None
            assert await latest.token() == "Bearer token-2"
            assert it.given[1]["grant_type"] == ["refresh_token"]
            assert not any(target == "/token" for target in it.served)  # not the server's to see
            os.chmod(kept.path, 0o644)
            with pytest.raises(PermissionError, match="not yours alone"):
                kept.read()
            for one in (later, latest):
                one.close()
            resolver.close()

    asyncio.run(go())


def test_purple_login_takes_the_answer_of_the_browser(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("BROWSER", "true")

    async def go() -> None:
        async with world(workspace, by_code) as (it, _, _):
            config = tmp_path / "servers.json"
            server = {"url": f"{it.server}/mcp", "auth": {"issuer": it.issuer}}
            config.write_text(json.dumps({"mcpServers": {"far": server}}))
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "purplebox.gateway.cli", "login", "far", "--config", config,
                stdout=-1,
            )  # fmt: skip
            assert process.stdout is not None
            await process.stdout.readline()
            page = parse_qs(urlsplit((await process.stdout.readline()).decode().strip()).query)
            back = urlsplit(page["redirect_uri"][0])
            reader, writer = await asyncio.open_connection(back.hostname, back.port)
            answer = f"/callback?code=c&state={page['state'][0]}"
            writer.write(f"GET {answer} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert b"200" in await reader.readline()
            writer.close()
            out, _ = await process.communicate()
            assert process.returncode == 0, out
            assert it.given[0]["code"] == ["c"]
            assert TokenFile(f"{it.server}/mcp").read()["tokens"]["access_token"] == "token-1"

    asyncio.run(go())


def test_secrets_of_a_configuration_are_read_late_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    (tmp_path / "key").write_text("from-a-file\n")
    config = tmp_path / "servers.yaml"
    config.write_text(
        f"""
mcpServers:
  far:
    url: https://far.example/mcp
    headers: {{Authorization: "Bearer ${{secret:TOKEN}}", X-Key: "${{file:{tmp_path}/key}}"}}
    auth: {{issuer: "https://login.example", client_id: us, client_secret: "${{command:echo hidden}}"}}
  near: {{command: "true", env: {{KEY: "${{secret:TOKEN}}"}}}}
"""
    )
    far, near = load_servers(config)
    assert SECRET not in str(far.headers)
    read = with_secrets(far)
    assert read.headers == {"Authorization": f"Bearer {SECRET}", "X-Key": "from-a-file"}
    assert read.auth is not None and read.auth.client_secret == "hidden"
    assert with_secrets(near).env == {"KEY": SECRET}
    # Whatever they are called, they are known as what must not come back.
    assert with_secrets(near).secrets == {"KEY": SECRET}
    assert read.secrets["Authorization"] == SECRET and "X-Key" in read.secrets
    assert SECRET not in repr(read) and "hidden" not in repr(read)
    monkeypatch.delenv("TOKEN")
    with pytest.raises(SetupError, match=r"mcpServers\.far\.headers\.Authorization: set TOKEN"):
        with_secrets(far)


@pytest.mark.parametrize(
    ("auth", "words"),
    [
        ("{client_id: x}", "issuer"),
        ("{issuer: nonsense}", "issuer"),
        ('{issuer: "https://a.example", client_secret: x}', "client_id"),
        ('{issuer: "https://a.example", token: x}', "unknown key"),
    ],
)
def test_a_wrong_auth_says_where(tmp_path: Path, auth: str, words: str) -> None:
    path = tmp_path / "servers.yaml"
    path.write_text(f"mcpServers: {{far: {{url: 'https://far.example/mcp', auth: {auth}}}}}")
    with pytest.raises(ConfigError, match=words):
        load_servers(path)
