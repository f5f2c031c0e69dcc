"""What a refused or failed call raises, and who asks."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException

from ...gateway.calls import Outcome
from ...gateway.reasons import Reason

CLIENT = "langchain"


class ToolCallError(ToolException):
    """A call that was refused or failed; the text is for the model and begins with the reason code.

    Attributes:
        reason: Stable code.
        outcome: All of it; its `call_id` is the record's.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"[{outcome.reason}] {outcome.text}")
        self.reason: Reason = outcome.reason
        self.outcome = outcome


def session_of(config: RunnableConfig | dict[str, Any] | None) -> str:
    """The conversation's `thread_id`; "" where there is none."""
    return str((config or {}).get("configurable", {}).get("thread_id") or "")
