"""What a task has given, in the record of the call that made it: when it is first fetched or told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..calls import Calls, Version
from ..reasons import Reason
from .jsonrpc import Message, RpcError, object_of
from .tasks import NOT_ITS_OWN, Tasks


class TaskRecord:
    """Of one session's tasks.

    Args:
        calls: Have the record.
        tasks: Know by which call each was made.
    """

    def __init__(self, calls: Calls, tasks: Tasks) -> None:
        self._calls, self._tasks = calls, tasks

    def fetched(self, version: Version, method: str, params: Message | None, result: Any) -> None:
        """Take the result of a `tasks/` request, screened. Raises `OSError`: it cannot be recorded."""
        if method == "tasks/result":
            self._note(version, (params or {}).get("taskId"), object_of(result))
        elif method == "tasks/get":
            self.told(version, object_of(result))

    def failed(
        self, version: Version, method: str, params: Message | None, error: RpcError
    ) -> None:
        """Take the error that such a request was answered with; as `fetched`."""
        if method == "tasks/result" and error.code not in NOT_ITS_OWN:
            self._note(version, (params or {}).get("taskId"), {"error": error.error}, failed=True)

    def told(self, version: Version, task: Message) -> None:
        """Take a task of the extension, which brings what it has given; as `fetched`."""
        id = task.get("taskId")
        if task.get("status") == "completed" and "result" in task:
            self._note(version, id, object_of(task["result"]))
        elif task.get("status") == "failed" and "error" in task:
            self._note(version, id, {"error": task["error"]}, failed=True)

    def _note(
        self, version: Version, id: Any, result: Mapping[str, Any], *, failed: bool = False
    ) -> None:
        call_id = self._tasks.take_call(id)
        if call_id is not None:
            bad = failed or result.get("isError") is True
            reason = Reason.OPERATION_FAILED if bad else Reason.COMPLETED
            self._calls.note_task(call_id, version, str(id), reason, result)
