"""`http_request` over TLS with a credential that the sandbox never holds, and redirects out of its reach."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.isolation import Engine
from purplebox.isolation.egress.ca import Authority
from purplebox.policies import Policy, load_policy

pytestmark = pytest.mark.anyio
SECRET = "s3cret-of-the-person"


class Sites:
    """Two hosts over TLS, the second of them where a redirect leads, and what they were asked."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []

    def server(self, host: str) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *rest = head.strip().split("\r\n")
            headers = {k.lower(): v for k, _, v in (text.partition(": ") for text in rest)}
            path = line.split()[1]
            self.seen.append((host, path, headers))
            status, body = "200 OK", json.dumps(headers)
            if path == "/away":
                status = f"302 Found\r\nLocation: https://other.test:{self.ports['other.test']}/end"
            if path == "/on":
                status = "302 Found\r\nLocation: /end"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            await writer.drain()
            writer.close()

        return serve


@pytest.fixture
async def sites(anyio_backend: str) -> AsyncGenerator[tuple[Sites, Authority]]:
    found, authority = Sites(), Authority()
    servers: list[asyncio.Server] = []
    for host in ("api.test", "other.test"):
        context = authority.context(host, "http/1.1")
        server = await asyncio.start_server(found.server(host), "127.0.0.1", 0, ssl=context)
        servers.append(server)
        found.ports[host] = server.sockets[0].getsockname()[1]
    yield found, authority
    for server in servers:
        server.close()


def policy(sites: Sites) -> Policy:
    network = {
        "isolated": False,
        "tls": "inspect",
        "allow": [
            {"host": host, "ports": [port], "addresses": ["127.0.0.0/8"]}
            for host, port in sites.ports.items()
        ],
        "credentials": [
            {
                "host": "api.test", "header": "Authorization", "placeholder_env": "API_TOKEN",
                "value": "Bearer ${secret:REAL_TOKEN}",
            }
        ],
    }  # fmt: skip
    base = load_policy("code-assistant").model_dump(by_alias=True)
    return Policy.model_validate({**base, "name": "api", "network": network}, strict=False)


async def test_a_credential_goes_to_its_host_and_not_along_with_a_redirect(
    sites: tuple[Sites, Authority], workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REAL_TOKEN", SECRET)
    found, authority = sites
    trusted = tmp_path / "servers.pem"
    trusted.write_text(authority.certificate)

    async def resolve(_: str) -> list[Any]:
        return [ip_address("127.0.0.1")]

    plain = Engine.__init__

    def patched(self: Engine, *args: Any, **options: Any) -> None:
        plain(self, *args, **{**options, "resolve": resolve, "trust": [trusted]})

    monkeypatch.setattr(Engine, "__init__", patched)
    async with Gateway(policy(found), workspace, audit_log=tmp_path / "log") as gate:
        at = f"https://api.test:{found.ports['api.test']}"
        stays = await gate.call("http_request", {"url": f"{at}/on"})
        assert stays.content is not None, stays.text
        # The control: a redirect within the host has the credential at both hops.
        assert [s[2].get("authorization") for s in found.seen] == [f"Bearer {SECRET}"] * 2
        goes = await gate.call("http_request", {"url": f"{at}/away"})
        assert goes.content is not None, goes.text
        assert [(host, path) for host, path, _ in found.seen[2:]] == [
            ("api.test", "/away"), ("other.test", "/end"),
        ]  # fmt: skip
        assert found.seen[2][2]["authorization"] == f"Bearer {SECRET}"
        assert "authorization" not in found.seen[3][2]
        assert SECRET not in stays.text + goes.text + json.dumps([stays.content, goes.content])
    assert SECRET.encode() not in b"".join(
        p.read_bytes() for p in (tmp_path / "log").rglob("*") if p.is_file()
    )
