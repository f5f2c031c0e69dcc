# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A legacy tool server that answers each method with what a JSON file (argv[1]) says: one answer,
or a list from which the request's `number` chooses. Standard library only. For `tools/call`, `progress` are the messages sent before the answer, and `ask` is a
request to the client, whose answer becomes the text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SCRIPT: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def answer(id: Any, method: str, number: int) -> None:
    given = SCRIPT.get(method, {})
    given = given[number] if isinstance(given, list) else given
    send({"id": id, "error": given["error"]} if "error" in given else {"id": id, "result": given})


waiting: list[Any] = []
for line in sys.stdin:
    message = json.loads(line)
    method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
    if method == "initialize":
        capabilities: dict[str, Any] = {"tools": {}, "resources": {}, "prompts": {}, "logging": {}}
        send({"id": id, "result": {
            "protocolVersion": params["protocolVersion"], "capabilities": capabilities,
            "serverInfo": {"name": "scripted", "version": "1"}, **SCRIPT.get("initialize", {}),
        }})  # fmt: skip
    elif method is None:
        text = json.dumps(message.get("result", message.get("error")))
        send({"id": waiting.pop(), "result": {"content": [{"type": "text", "text": text}]}})
    elif method == "tools/call":
        for number, said in enumerate(SCRIPT.get("progress", [])):
            token = params["_meta"]["progressToken"]
            told = {"progressToken": token, "progress": number, "message": said}
            send({"method": "notifications/progress", "params": told})
        for said in SCRIPT.get("log", []):
            send({"method": "notifications/message", "params": {"level": "info", "data": said}})
        if "ask" in SCRIPT:
            waiting.append(id)
            send({"id": "asked", **SCRIPT["ask"]})
        else:
            answer(id, method, params.get("number", 0))
    elif id is not None:
        answer(id, method, params.get("number", 0))
