"""What a call's connections leave in its result, its record and its span."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from purplebox import Gateway
from purplebox.gateway.audit import spans
from purplebox.gateway.audit.log import entries
from purplebox.gateway.calls import Outcome
from purplebox.policies import Policy, load_policy
from purplebox.policies.model import Network


def networked(**section: object) -> Policy:
    network = Network.model_validate({"isolated": False, **section}, strict=False)
    return load_policy("base").model_copy(update={"name": "net", "network": network})


def test_each_connection_is_told_recorded_and_an_event(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(spans, "is_on", lambda: True)
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        policy = networked(allow=[{"host": "127.0.0.1", "ports": [port]}])
        talk = (
            f"exec 3<>/dev/tcp/127.0.0.1/1023; printf 'CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\n\\r\\n' >&3; "
            "head -n 2 <&3; printf '\\0abc' >&3; exec 3>&-; "
            "curl -sS --noproxy '*' https://evil.test/"
        )

        async def go() -> Outcome:
            async with Gateway(policy, workspace, audit_log=log) as gateway:
                return await gateway.call("shell", {"command": f'bash -c "{talk}"'})

        outcome = asyncio.run(go())
    assert "evil.test is not in the policy's network.allow; ask the person to add" in outcome.text
    assert "host_not_allowed; policy net" in outcome.text
    end = next(e for _, e in entries(log) if e and e["event"] == "end")
    allowed, refused = end["connections"]
    assert (allowed["address"], allowed["port"]) == ("127.0.0.1", port)
    assert (allowed["rule"], allowed["bytes_out"]) == ("network.allow[0]", 4)
    assert (refused["name"], refused["reason"]) == ("evil.test", "host_not_allowed")
    (span,) = exporter.get_finished_spans()
    first, second = span.events
    assert first.name == second.name == "purple.connection"
    assert first.attributes is not None
    assert second.attributes is not None
    assert first.attributes["network.peer.address"] == "127.0.0.1"
    assert second.attributes["purple.connection.reason"] == "host_not_allowed"


def test_a_call_without_connections_says_nothing_of_them(workspace: Path, tmp_path: Path) -> None:
    async def go() -> None:
        async with Gateway(networked(), workspace, audit_log=tmp_path / "log") as gateway:
            outcome = await gateway.call("shell", {"command": "true"})
            assert outcome.content is not None
            assert outcome.content["notes"] == []

    asyncio.run(go())
    end = next(e for _, e in entries(tmp_path / "log") if e and e["event"] == "end")
    assert "connections" not in end
