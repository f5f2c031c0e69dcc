# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A tool server in plain JSON lines, legacy or modern, that exercises the wire. Standard library only.

argv[1] is the era it speaks. Methods are named for what they do; see `handle`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

ERA = sys.argv[1]
META = "io.modelcontextprotocol/"
INFO = {"name": "fake", "version": "9", "x-info": [1]}
waiting: dict[Any, Any] = {}
listening: list[Any] = []
last = 0


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def note(method: str, params: Any = None) -> None:
    send({"method": method} if params is None else {"method": method, "params": params})


def ask(method: str, params: Any, origin: Any) -> None:
    global last
    last += 1
    waiting[f"s{last}"] = origin
    send({"id": f"s{last}", "method": method, "params": params})


def reply(id: Any, result: Any) -> None:
    if ERA == "modern":
        result = {"resultType": "complete", "_meta": {META + "serverInfo": INFO}, **result}
    send({"id": id, "result": result})


def handle(message: dict[str, Any]) -> None:
    method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
    if method is None:
        origin = waiting.pop(id)
        answer = {k: message[k] for k in ("result", "error") if k in message}
        reply(origin, {"content": [{"type": "text", "text": json.dumps(answer, sort_keys=True)}]})
    elif method == "initialize":
        if ERA == "modern":
            send({"id": id, "error": {"code": -32601, "message": "Method not found"}})
            return
        capabilities = {"tools": {"listChanged": True, "x": 1}, "logging": {}, "resources": {}}
        reply(id, {"protocolVersion": params["protocolVersion"], "capabilities": capabilities,
                   "serverInfo": INFO, "instructions": "be\ud800 kind", "y": None})  # fmt: skip
    elif method == "server/discover":
        if ERA == "legacy":
            send({"id": id, "error": {"code": -32601, "message": "Method not found"}})
            return
        reply(id, {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "ttlMs": 5,
                   "cacheScope": "public", "instructions": "modern", "y": None})  # fmt: skip
    elif method == "tools/list":
        tool = {"name": "odd", "inputSchema": {"type": "object"}, "x-unknown": {"deep": [1, None]}}
        reply(id, {"tools": [tool], "nextCursor": "c", "z": 2**70})
    elif method == "notifications/cancelled":
        note(
            "notifications/message", {"level": "error", "data": {"cancelled": params.get("reason")}}
        )
    elif method == "tools/call":
        call(id, params)
    elif method == "subscriptions/listen":
        listening.append(id)
        meta = {META + "subscriptionId": id}
        note(
            "notifications/subscriptions/acknowledged",
            {"notifications": params["notifications"], "_meta": meta},
        )
    elif method == "acme/unknown":
        reply(id, {"got": {k: v for k, v in params.items() if k != "_meta"}})
    elif method == "acme/fails":
        send(
            {"id": id, "error": {"code": -31999, "message": "custom", "data": {"a": 1}, "extra": 2}}
        )
    elif id is not None:
        reply(id, {"method": method})


def call(id: Any, params: dict[str, Any]) -> None:
    name, arguments = params["name"], params.get("arguments", {})
    token = params.get("_meta", {}).get("progressToken")
    if name == "echo":
        content = [{"type": "x-new", "v": arguments}, {"type": "text", "text": "é\u2028\ud800"}]
        reply(id, {"content": content, "isError": False, "structuredContent": arguments, "q": 1})
    elif name == "notify":
        for number in range(20):
            note("notifications/progress", {"progressToken": token, "progress": number, "e": 1})
        note("notifications/message", {"level": "info", "data": "hello", "logger": None})
        note("notifications/acme", {"x": 1})
        reply(id, {"content": [], "token": token is not None})
    elif name == "change":
        for listener in listening:
            meta = {META + "subscriptionId": listener}
            note("notifications/tools/list_changed", {"_meta": meta})
        if ERA == "legacy":
            note("notifications/tools/list_changed")
        reply(id, {"content": []})
    elif name == "elicit" and ERA == "legacy":
        ask("elicitation/create", {"message": "who?", "requestedSchema": {}, "x": 1}, id)
    elif name == "elicit":
        if params.get("requestState") != "s\u00e9":
            question = {"method": "elicitation/create", "params": {"message": "who?"}}
            send({"id": id, "result": {"resultType": "input_required", "requestState": "s\u00e9",
                                       "inputRequests": {"k": question}}})  # fmt: skip
        else:
            reply(id, {"content": [{"type": "text", "text": json.dumps(params["inputResponses"])}]})
    elif name == "url":
        data = {
            "elicitations": [
                {"mode": "url", "url": "https://e.test", "elicitationId": "1", "message": "m"}
            ]
        }
        send({"id": id, "error": {"code": -32042, "message": "log in", "data": data}})
    elif name == "roots":
        ask("roots/list", {}, id)
    elif name == "slow":
        note("notifications/message", {"level": "error", "data": "started"})
    elif name == "big":
        reply(id, {"content": [{"type": "text", "text": "x" * int(arguments["bytes"])}]})
    elif name == "garbage":
        half = json.dumps({"jsonrpc": "2.0", "id": id, "result": {"a": 1}})[:-4]
        sys.stdout.write("not json\n" + half + "\n")
        sys.stdout.flush()
    elif name == "die":
        print("about to \x1b[31mdie", file=sys.stderr, flush=True)
        os._exit(3)
    elif name == "environ":
        reply(id, {"content": [{"type": "text", "text": " ".join(sorted(os.environ))}]})


for line in sys.stdin:
    handle(json.loads(line))
