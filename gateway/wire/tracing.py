"""Spans of the protocol: a SERVER span for each request, a CLIENT span for each that is forwarded.

Names and attributes: GenAI semantic conventions, "MCP" (Development). Context travels unprefixed in
`params._meta` (SEP-414). Without an SDK nothing is done and nothing of a message changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from ..audit import spans
from .jsonrpc import Message, RpcError, object_of

if TYPE_CHECKING:
    from .exchange import Exchange

_METHOD, _TOOL, _PROMPT = "mcp.method.name", "gen_ai.tool.name", "gen_ai.prompt.name"
_ID, _STATUS, _ERROR = "jsonrpc.request.id", "rpc.response.status_code", "error.type"
_VERSION, _SESSION, _TRANSPORT = "mcp.protocol.version", "mcp.session.id", "network.transport"
_RESOURCE = "mcp.resource.uri"
# The caller's mistake, not the server's failure.
_CALLERS = frozenset({-32700, -32600, -32601, -32602})

_tracer = trace.get_tracer("purplebox")


_OFF = contextlib.nullcontext()


def serving(exchange: Exchange) -> AbstractContextManager[None]:
    """The SERVER span of one request."""
    return _serving(exchange) if spans.is_on() else _OFF


@contextlib.contextmanager
def _serving(exchange: Exchange) -> Generator[None]:
    params = exchange.params or {}
    attributes = {**_described(exchange.method, params), _ID: str(exchange.id)}
    attributes[_TRANSPORT] = "tcp" if exchange.session.principal else "pipe"
    attributes[_VERSION] = exchange.client.version
    if exchange.client.era == "legacy":
        attributes[_SESSION] = exchange.session.id
    carrier = {k: v for k, v in exchange.meta.items() if isinstance(v, str)}
    with (
        _tracer.start_as_current_span(
            _name(exchange.method, params), propagate.extract(carrier), SpanKind.SERVER,
            attributes=attributes, record_exception=False, set_status_on_exception=False,
        ) as span,
        spans.serving(),
    ):  # fmt: skip
        try:
            yield
        except RpcError as error:
            _failed(span, error, is_server=True)
            raise


def asking(method: str, params: Message | None) -> AbstractContextManager[Message | None]:
    """The CLIENT span of one forwarded request; gives its params, with the span's context in them."""
    return _asking(method, params) if spans.is_on() else contextlib.nullcontext(params)


@contextlib.contextmanager
def _asking(method: str, params: Message | None) -> Generator[Message | None]:
    with _tracer.start_as_current_span(
        _name(method, params or {}), kind=SpanKind.CLIENT,
        attributes=_described(method, params or {}), record_exception=False,
        set_status_on_exception=False,
    ) as span:  # fmt: skip
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        known = object_of((params or {}).get("_meta"))
        try:
            yield {**(params or {}), "_meta": {**known, **carrier}} if carrier else params
        except RpcError as error:
            _failed(span, error, is_server=False)
            raise


def _failed(span: trace.Span, error: RpcError, *, is_server: bool) -> None:
    span.set_attributes({_STATUS: str(error.code), _ERROR: str(error.code)})
    if not (is_server and error.code in _CALLERS):
        span.set_status(Status(StatusCode.ERROR, str(error)))


def _described(method: str, params: Message) -> dict[str, str]:
    found: dict[str, Any] = {_METHOD: method}
    if method == "tools/call":
        found[_TOOL] = params.get("name")
        found["gen_ai.operation.name"] = "execute_tool"
    elif method == "prompts/get":
        found[_PROMPT] = params.get("name")
    elif method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
        found[_RESOURCE] = params.get("uri")
    return {k: v for k, v in found.items() if isinstance(v, str)}


def _name(method: str, params: Message) -> str:
    target = params.get("name") if method in ("tools/call", "prompts/get") else None
    return f"{method} {target}" if isinstance(target, str) else method
