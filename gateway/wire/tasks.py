"""Whose a task is: who made it is who may ask for it, end it or speak of it.

Of 2025-11-25 tasks are part ("Tasks"): either side makes one instead of an answer, and the other side
asks for it with `tasks/get`, `tasks/result`, `tasks/list`, `tasks/cancel`. In 2026-07-28 they are the extension
`io.modelcontextprotocol/tasks` (SEP-2663): a server makes one where it likes, and there is `tasks/update`
instead of `tasks/result` and `tasks/list`. Ids pass as they are; possession of one is no right.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from . import jsonrpc
from .jsonrpc import Message, RpcError, is_object, list_of, object_of

EXTENSION = "io.modelcontextprotocol/tasks"
RELATED = "io.modelcontextprotocol/related-task"
STATUS = frozenset({"notifications/tasks/status", "notifications/tasks"})
_MOST = 10_000
# Errors that say nothing of how a task has ended: the gateway's own, and that there is no such task.
NOT_ITS_OWN = frozenset({
    jsonrpc.SERVER_UNAVAILABLE, jsonrpc.REFUSED, jsonrpc.TIMED_OUT, jsonrpc.OVERLOADED,
    jsonrpc.INVALID_PARAMS, jsonrpc.METHOD_NOT_FOUND,
})  # fmt: skip


class Tasks:
    """Owners of tasks by id, the latest `most` of them."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._owners: OrderedDict[str, str] = OrderedDict()
        self._calls: OrderedDict[str, str] = OrderedDict()

    def own(self, id: str, owner: str) -> bool:
        """Note whose a task is; False where it is another's already."""
        if self._owners.setdefault(id, owner) != owner:
            return False
        self._owners.move_to_end(id)
        if len(self._owners) > self._most:
            self._owners.popitem(last=False)
        return True

    def owner(self, id: Any) -> str | None:
        """Whose it is; None where nobody here has made it."""
        return self._owners.get(id) if isinstance(id, str) else None

    def made_by(self, call_id: str, result: Any) -> None:
        """Note the call whose result stands for a task; nothing where it stands for none."""
        id = _made(result)
        if id is not None:
            self._calls[id] = call_id
            if len(self._calls) > self._most:
                self._calls.popitem(last=False)

    def take_call(self, id: Any) -> str | None:
        """The call that has made a task, once; None where that is unknown or was taken."""
        return self._calls.pop(id, None) if isinstance(id, str) else None

    def made(self, owner: str, result: Any) -> str | None:
        """The id of the task that `result` stands for, noted as `owner`'s; None where it is none.

        Raises:
            RpcError: it is another's: a server that says so lies, or two have hit on one id.
        """
        id = _made(result)
        if id is not None and not self.own(id, owner):
            text = f"Server {owner!r} names a task that is not its own"
            raise RpcError(jsonrpc.INTERNAL_ERROR, text)
        return id

    def is_of(self, id: Any, owner: str, *, known: bool) -> bool:
        """Whether a task may be `owner`'s; one that nobody here has made is not where it must be known."""
        found = self.owner(id)
        return found == owner or (found is None and not known)

    def check(self, params: Message | None, owner: str, *, known: bool) -> None:
        """Raise `RpcError` where a `tasks/` request is about a task that is not `owner`'s: `is_of`."""
        id = (params or {}).get("taskId")
        if id is not None and not self.is_of(id, owner, known=known):
            raise RpcError(jsonrpc.INVALID_PARAMS, "Unknown task")

    def listed(self, owner: str, result: Any, *, known: bool) -> Any:
        """A `tasks/list` result without what is not `owner`'s; the rest is noted as its own."""
        if not is_object(result) or "tasks" not in result:
            return result
        kept: list[Any] = []
        for task in list_of(result["tasks"]):
            id = object_of(task).get("taskId")
            mine = self.owner(id) == owner
            if isinstance(id, str) and (mine or (not known and self.own(id, owner))):
                kept.append(task)
        return result if len(kept) == len(list_of(result["tasks"])) else {**result, "tasks": kept}


def _made(result: Any) -> str | None:
    if not is_object(result):
        return None
    task = result if result.get("resultType") == "task" else object_of(result.get("task"))
    id = task.get("taskId")
    return id if isinstance(id, str) else None
