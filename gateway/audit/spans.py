"""The OpenTelemetry span of a call.

The MCP SDK opens the SERVER span with the `mcp.*` and `gen_ai.*` attributes of the GenAI semantic
conventions (semantic-conventions-genai, "MCP"), parented on `_meta.traceparent`; we add ours to it
and open no second one. No convention names a sandbox yet: ours live under `purple.*`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from opentelemetry import trace

POLICY, POLICY_VERSION = "purple.policy.name", "purple.policy.version"
EFFECT, RULE, REASON = "purple.decision.effect", "purple.decision.rule", "purple.reason"
CALL_ID, EXIT_CODE = "purple.call.id", "process.exit.code"
ENFORCEMENT = "purple.enforcement."


def annotate(attributes: Mapping[str, str | int | float | bool | None]) -> None:
    """Add attributes to the current span; None values are left out."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes({k: v for k, v in attributes.items() if v is not None})


def configure() -> None:
    """Set up the SDK and its OTLP exporter when the standard `OTEL_*` variables ask for it."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    if os.environ.get("OTEL_TRACES_EXPORTER") == "none" or not any(map(os.environ.get, endpoints)):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        print(
            "purple: OTEL_* is set but the SDK is missing: pip install 'purplebox[otel]'",
            file=sys.stderr,
        )
        return
    name = os.environ.get("OTEL_SERVICE_NAME", "purple")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)  # flushed at exit by the SDK's own hook
