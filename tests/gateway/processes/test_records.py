"""What processes in the background leave in the record, in spans, and for a person to see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from purplebox.gateway.audit import spans

if TYPE_CHECKING:
    from .conftest import Here

pytestmark = pytest.mark.anyio
# pyright: reportUnknownLambdaType=false


async def test_a_process_leaves_a_record_of_its_own(here: Here) -> None:
    async with here.entered() as gateway:
        id = await here.run(gateway, "echo hello", client="me", session="1")
    (record,) = here.records()
    (begun,) = here.records("process_start")
    assert record["events"] == begun["events"] == ["begin", "end"]
    assert record["started_by"] == begun["call_id"]
    assert (record["process_id"], record["client"], record["session"]) == (id, "me", "1")
    assert (record["reason"], record["exit_code"]) == ("completed", 0)
    assert record["arguments"]["command"] == "echo hello"
    assert record["usage"]["cpu_seconds"] >= 0


async def test_a_process_has_a_span_of_its_own(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(spans, "is_on", lambda: True)
    async with here.entered() as gateway:
        id = await here.run(gateway, "exit 4")
    found = {span.name: span for span in exporter.get_finished_spans()}
    span, parent = found["purple.process"], found["execute_tool process_start"]
    assert span.attributes is not None
    assert span.parent is not None
    assert parent.context is not None
    assert span.parent.span_id == parent.context.span_id
    assert span.attributes["purple.process.id"] == id
    assert span.attributes["process.exit.code"] == 4
    assert "purple.usage.cpu_seconds" in span.attributes
    provider.shutdown()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [("full", "echo [redacted]; exec sleep 60"), ("hash", "sha256 "), ("none", "")],
)
async def test_a_person_sees_a_command_as_it_may_be_recorded(
    here: Here, monkeypatch: pytest.MonkeyPatch, arguments: str, shown: str
) -> None:
    monkeypatch.setenv("TOKEN", "planted-7f3a9c1e5b")
    held = here.policy(environment={"pass": ("TOKEN",), "set": {}}, audit={"arguments": arguments})
    async with here.entered(held) as gateway:
        id = await here.start(
            gateway, "echo planted-7f3a9c1e5b; exec sleep 60", client="c", session="s"
        )
        (one,) = gateway.background()
        assert (one["process_id"], one["client"], one["session"]) == (id, "c", "s")
        assert (one["policy"], one["running"]) == ("test", True)
        assert one["command"].startswith(shown) and "planted" not in one["command"]
        assert bool(one["command"]) == bool(shown)
