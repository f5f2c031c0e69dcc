"""Tasks of 2025-11-25 and of the extension to 2026-07-28, one in the words of the other. Pure."""

from __future__ import annotations

from .jsonrpc import Message, is_object, list_of, object_of
from .tasks import EXTENSION

_NAMES = {"ttl": "ttlMs", "pollInterval": "pollIntervalMs"}
_MEMBERS = ("taskId", "status", "statusMessage", "createdAt", "lastUpdatedAt")


def offered_to_modern(capabilities: Message) -> Message:
    """A legacy server's capabilities with its tasks as the extension."""
    kept = {k: v for k, v in capabilities.items() if k not in ("tasks", "extensions")}
    extensions = object_of(capabilities.get("extensions"))
    extensions = {k: v for k, v in extensions.items() if k != EXTENSION}
    if makes_tasks(capabilities):
        extensions[EXTENSION] = {}
    return {**kept, "extensions": extensions} if extensions else kept


def offered_to_legacy(capabilities: Message) -> Message:
    """A modern server's capabilities with the extension as the tasks of before."""
    extensions = object_of(capabilities.get("extensions"))
    kept = {k: v for k, v in capabilities.items() if k != "tasks"}
    if EXTENSION not in extensions:
        return kept
    del kept["extensions"]
    if rest := {k: v for k, v in extensions.items() if k != EXTENSION}:
        kept["extensions"] = rest
    return {**kept, "tasks": {"cancel": {}, "requests": {"tools": {"call": {}}}}}


def makes_tasks(capabilities: Message) -> bool:
    """Whether a legacy server says that a `tools/call` may be a task."""
    requests = object_of(object_of(capabilities.get("tasks")).get("requests"))
    return "call" in object_of(requests.get("tools"))


def tools_for_legacy(result: Message) -> Message:
    """A modern server's `tools/list`: each tool may be called as a task."""
    tools = [
        {**t, "execution": {"taskSupport": "optional", **object_of(t.get("execution"))}}
        if is_object(t)
        else t
        for t in list_of(result.get("tools"))
    ]
    return {**result, "tools": tools} if tools else result


def modern_task(task: Message) -> Message:
    """A task of 2025-11-25 in the extension's words."""
    made = {k: task[k] for k in _MEMBERS if k in task}
    return made | {new: task[old] for old, new in _NAMES.items() if old in task}


def legacy_task(task: Message) -> Message:
    """A task of the extension in the words of 2025-11-25."""
    made = {k: task[k] for k in _MEMBERS if k in task}
    made |= {old: task.get(new) for old, new in _NAMES.items() if new in task or old == "ttl"}
    if made.get("status") == "completed" and object_of(task.get("result")).get("isError") is True:
        made["status"] = "failed"
    return made
