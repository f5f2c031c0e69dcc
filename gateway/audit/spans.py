"""The OpenTelemetry side of a call.

An MCP server opens a SERVER span for each request with the `mcp.*` and `gen_ai.*` attributes of the
GenAI semantic conventions (semantic-conventions-genai, "MCP"); `serving` says that the current span
is that one, and a call adds to it. A call from Python has the INTERNAL span `execute_tool {tool}` of
the same conventions, or adds to the one that its agent framework has opened. No convention names a
sandbox yet: ours live under `purple.*`.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import time
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace

if TYPE_CHECKING:
    from ...isolation import Enforcement
    from ...policies import Decision, Policy

# GenAI semantic conventions; the constants of the Python package are deprecated there (moved).
OPERATION, TOOL = "gen_ai.operation.name", "gen_ai.tool.name"
ERROR_TYPE = "error.type"
_EXECUTE_TOOL = "execute_tool"
# Ours.
POLICY, POLICY_VERSION = "purple.policy.name", "purple.policy.version"
EFFECT, RULE, REASON = "purple.decision.effect", "purple.decision.rule", "purple.reason"
PROCESS_ID = "purple.process.id"
CALL_ID, EXIT_CODE = "purple.call.id", "process.exit.code"
ENFORCEMENT, SCREENS = "purple.enforcement.", "purple.screens."
CONNECTION = "purple.connection"
_MOST_EVENTS = 64
USAGE, LIMITS = "purple.usage.", "purple.limits"

_serving: contextvars.ContextVar[bool] = contextvars.ContextVar("purple.serving", default=False)
# Whether the environment names a provider, which the API then loads when it is first asked.
_NAMED = "OTEL_PYTHON_TRACER_PROVIDER" in os.environ
_tracer = trace.get_tracer("purplebox")
_duration = metrics.get_meter("purplebox").create_histogram(
    "gen_ai.execute_tool.duration", unit="s", description="Duration of a tool call."
)


def is_on() -> bool:
    """Whether an SDK records spans, or somebody has a span open here."""
    # The API looks into the environment each time while no provider is set: 3 µs.
    if getattr(trace, "_TRACER_PROVIDER", _NAMED) is None and not _NAMED:
        return trace.get_current_span() is not trace.INVALID_SPAN
    # The API's own providers record nothing; its `ProxyTracerProvider` stands in for one to come.
    return type(trace.get_tracer_provider()).__module__ != "opentelemetry.trace"


@contextlib.contextmanager
def serving() -> Generator[None]:
    """Say that the current span is an MCP server's span of the request being served."""
    token = _serving.set(True)
    try:
        yield
    finally:
        _serving.reset(token)


@contextlib.contextmanager
def tool_call(tool: str) -> Generator[None]:
    """Have a current span for one call of `tool`, and measure its duration."""
    attributes = {OPERATION: _EXECUTE_TOOL, TOOL: tool}
    started = time.monotonic()
    try:
        if not is_on():
            yield
        elif _serving.get() or _in_execute_tool():
            annotate(attributes)
            yield
        else:
            name = f"{_EXECUTE_TOOL} {tool}"
            with _tracer.start_as_current_span(name, attributes=attributes):
                yield
    finally:
        _duration.record(time.monotonic() - started, attributes)


@contextlib.contextmanager
def process(id: str) -> Generator[None]:
    """Have a current span of its own for a process in the background, below that of the call that
    started it, which ends before it does."""
    if not is_on():
        yield
        return
    with _tracer.start_as_current_span("purple.process", attributes={PROCESS_ID: id}):
        yield


def _in_execute_tool() -> bool:
    return str(getattr(trace.get_current_span(), "name", "")).startswith(_EXECUTE_TOOL)


def begun(call_id: str, policy: Policy, decision: Decision, enforcement: Enforcement) -> None:
    """Add what is known before a call runs."""
    if not is_on():
        return
    annotate({
        CALL_ID: call_id, POLICY: policy.name, POLICY_VERSION: policy.digest,
        EFFECT: decision.effect, RULE: decision.rule,
        **{ENFORCEMENT + name: layer.status for name, layer in enforcement.layers.items()},
    })  # fmt: skip


def ended(end: Mapping[str, Any], *, is_error: bool) -> None:
    """Add how a call ended: the fields of its record's second entry, and MCP's `isError`."""
    if not is_on():
        return
    reason = str(end["reason"])
    usage: Mapping[str, Any] = end.get("usage", {})
    annotate({
        REASON: reason, EXIT_CODE: end.get("exit_code"),
        LIMITS: [str(limit["key"]) for limit in end.get("limits", ())] or None,
        **{USAGE + name: value for name, value in usage.items()},
    })  # fmt: skip
    for kind, counts in end.get("screens", {}).items():
        annotate({SCREENS + kind: sum(counts.values())})
    if is_error:
        annotate({ERROR_TYPE: "tool_error"})
    span = trace.get_current_span()
    if span.is_recording():
        for connection in end.get("connections", ())[:_MOST_EVENTS]:
            span.add_event(CONNECTION, _connection(connection))


def _connection(said: Mapping[str, Any]) -> dict[str, str | int | float]:
    """A connection of the record as attributes: the conventions' for server and peer, ours."""
    names = {
        "name": "server.address", "port": "server.port", "address": "network.peer.address",
        "via": "purple.connection.via", "rule": "purple.connection.rule",
        "reason": "purple.connection.reason", "bytes_out": "purple.connection.bytes_out",
        "bytes_in": "purple.connection.bytes_in", "seconds": "purple.connection.seconds",
    }  # fmt: skip
    return {ours: said[key] for key, ours in names.items() if key in said}


def identity() -> dict[str, str]:
    """`trace_id` and `span_id` of the current span, for the record; {} where none is recorded."""
    if not is_on():
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


def annotate(attributes: Mapping[str, str | int | float | bool | list[str] | None]) -> None:
    """Add attributes to the current span; None values are left out."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes({k: v for k, v in attributes.items() if v is not None})


def event(name: str, attributes: Mapping[str, str | int | float | bool]) -> None:
    """Add an event to the current span."""
    span = trace.get_current_span()
    if span.is_recording():
        span.add_event(name, attributes)


def reloaded(reason: str, policy: str, version: str, text: str) -> None:
    """A span of its own for a change of policy: there is no call that it belongs to."""
    with _tracer.start_as_current_span("purple.reload") as span:
        attributes = {REASON: reason, POLICY: policy, POLICY_VERSION: version}
        span.add_event("purple.reload", {**attributes, "purple.reload.text": text})
        span.set_attributes(attributes)


def configure() -> None:
    """Set up the SDK and its OTLP exporters when the standard `OTEL_*` variables ask for it."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    wanted = {
        signal
        for signal in ("TRACES", "METRICS")
        if os.environ.get(f"OTEL_{signal}_EXPORTER") != "none"
        and (
            os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
            or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        )
    }
    if not wanted:
        return
    try:
        from opentelemetry.sdk.resources import Resource

        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "purple")})
        if "TRACES" in wanted:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            provider = TracerProvider(resource=resource)
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
            trace.set_tracer_provider(provider)  # flushed at exit by the SDK's own hook
        if "METRICS" in wanted:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

            reader = PeriodicExportingMetricReader(OTLPMetricExporter())
            metrics.set_meter_provider(MeterProvider([reader], resource=resource))
    except ImportError:
        print(
            "purple: OTEL_* is set but the SDK is missing: pip install 'purplebox[otel]'",
            file=sys.stderr,
        )
