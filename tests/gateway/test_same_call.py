"""One gateway for all: the same call by every way in leaves the same record and the same span."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from purplebox import Gateway
from purplebox.gateway.audit import spans
from purplebox.gateway.audit.log import entries
from purplebox.gateway.wire import tracing
from purplebox.gateway.wire.builtin import BuiltIns
from purplebox.gateway.wire.router import Single
from purplebox.integrations.bridge import Bridge
from purplebox.integrations.workspace import WorkspaceAccess
from purplebox.policies import Policy, load_policy

RawClient = Callable[..., AbstractAsyncContextManager[Any]]
# pyright: reportUnknownLambdaType=false
# Of one call: when it was, who asked, and what the kernel measured of it.
OWN = {
    "call_id", "id", "seq", "time", "at", "previous", "prev", "hash", "client", "session", "trace_id",
    "span_id", "wall_seconds", "cpu_seconds", "memory_peak_bytes", "usage", "output",
}  # fmt: skip
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("shell", {"command": "echo hi > made; exit 3"}),
    ("shell", {"command": "git push"}),
    ("shell", {"command": 5}),
    ("nonesuch", {}),
]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in (spans, tracing):
        monkeypatch.setattr(module, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(spans, "is_on", lambda: True)
    yield exporter
    provider.shutdown()


def policy() -> Policy:
    rule = {"tool": "shell", "when": 'args.command.contains("git push")', "effect": "deny", "reason": "no"}  # fmt: skip
    base = load_policy("code-assistant").model_dump(by_alias=True)
    return Policy.model_validate({**base, "name": "ruled", "tools": {"rules": (rule,)}})


def records(log: Path) -> list[dict[str, Any]]:
    found = [entry for _, entry in entries(log) if entry]
    return [{key: value for key, value in entry.items() if key not in OWN} for entry in found]


def facts(span: ReadableSpan) -> dict[str, Any]:
    given = span.attributes or {}
    named = ("purple.", "gen_ai.", "process.", "error.")
    own = ("purple.call.id", "purple.usage.")
    return {k: v for k, v in given.items() if k.startswith(named) and not k.startswith(own)}


def test_the_same_call_leaves_the_same_record_and_span(
    workspace: Path, tmp_path: Path, raw_client: RawClient, exported: InMemorySpanExporter
) -> None:
    logs: dict[str, Path] = {}
    traces: dict[str, list[dict[str, Any]]] = {}

    def gateway(name: str) -> Gateway:
        logs[name] = tmp_path / name
        return Gateway(policy(), workspace, audit_log=logs[name])

    def done(name: str) -> None:
        calls = [
            s for s in exported.get_finished_spans() if "purple.call.id" in (s.attributes or {})
        ]
        traces[name] = [facts(span) for span in calls]
        exported.clear()

    async def over_mcp() -> None:
        async with (
            gateway("mcp") as served,
            raw_client(lambda _: Single(BuiltIns(served))) as client,
        ):
            await client.initialize()
            for tool, arguments in CALLS:
                await client.ask("tools/call", {"name": tool, "arguments": arguments})

    async def in_process() -> None:
        async with gateway("async") as held:
            for tool, arguments in CALLS:
                await held.call(tool, arguments)

    asyncio.run(over_mcp())
    done("mcp")
    asyncio.run(in_process())
    done("async")
    with gateway("sync").sync() as held:
        for tool, arguments in CALLS:
            held.call(tool, arguments)
    done("sync")
    with gateway("adapter").sync() as held:
        bridge = Bridge(held)
        for tool, arguments in CALLS:
            bridge.call(tool, arguments, client="framework", session="thread")
    done("adapter")

    expected = records(logs["async"])
    assert [entry["reason"] for entry in expected if entry["event"] == "end"] == [
        "completed", "policy_denied", "invalid_arguments", "unknown_tool",
    ]  # fmt: skip
    assert len(traces["async"]) == len(CALLS)
    for name in logs:
        assert records(logs[name]) == expected, name
        assert traces[name] == traces["async"], name


def test_an_adapters_operation_is_recorded_as_the_tool_that_does_the_same(
    workspace: Path, tmp_path: Path
) -> None:
    (workspace / "file").write_text("x")
    with Gateway(policy(), workspace, audit_log=tmp_path / "tool").sync() as held:
        held.call("read_file", {"path": "file"})
        held.call("read_file", {"path": "absent"})
    with Gateway(policy(), workspace, audit_log=tmp_path / "adapter").sync() as held:
        access = WorkspaceAccess(held, client="framework")
        assert access.read("file") == b"x"
        with pytest.raises(FileNotFoundError):
            access.read("absent")
    ours, theirs = records(tmp_path / "adapter"), records(tmp_path / "tool")
    for entry in (*ours, *theirs):
        entry.pop("stdout_bytes", None)  # bytes in base64 are longer than text
    assert ours == theirs
