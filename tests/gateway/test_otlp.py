"""Spans as a collector gets them: the real exporter, a real `purple serve`, the standard variables."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MESSAGES: list[dict[str, Any]] = [
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"}}},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {
        "name": "shell", "arguments": {"command": "exit 4"},
        "_meta": {"traceparent": f"00-{TRACE}-{PARENT}-01"}}},
]  # fmt: skip


@pytest.mark.parametrize("exported", [True, False])
def test_one_span_of_a_call_reaches_the_collector(workspace: Path, exported: bool) -> None:
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                packed = self.headers.get("content-encoding") == "gzip"
                bodies.append(gzip.decompress(body) if packed else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        env = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.server_port}"
        env["OTEL_SDK_DISABLED"] = "false" if exported else "true"
        with subprocess.Popen(
            [sys.executable, "-m", "purplebox.gateway.cli", "serve", "-w", str(workspace)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env,
        ) as server:  # fmt: skip
            assert server.stdin is not None
            assert server.stdout is not None
            for message in MESSAGES:
                server.stdin.write(json.dumps(message).encode() + b"\n")
            server.stdin.flush()
            for _ in range(2):
                assert server.stdout.readline()
            server.stdin.close()
            assert server.wait(30) == 0
        collector.shutdown()
        thread.join()
    spans = [
        span
        for body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if span.name == "tools/call shell"
    ]
    if not exported:
        assert spans == []
        return
    (span,) = spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    found = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
    assert found["gen_ai.tool.name"] == "shell"
    assert found["purple.enforcement.seccomp"] == "full"
    assert found["process.exit.code"] == 4
    assert found["error.type"] == "tool_error"
