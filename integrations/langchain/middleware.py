"""Every tool call of an agent through the gateway, whoever carries it out.

What this holds and what not: each call is judged by the policy's rules, asked for where they say so,
begun and ended in the record, and its text passes the gateway's stages. A tool that runs in this
process still runs in this process, with all that it may do; only the verdict stands before it. Tools
that run in a sandbox are those of `sandboxed` and `PurpleToolkit` (they go through the gateway by
themselves and are not recorded twice), and the commands of a `ShellToolMiddleware` with
`PurpleExecutionPolicy`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import AgentState, ToolCallRequest
from langchain_core.messages import ToolMessage
from langchain_core.tools import ToolException
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command

from ...gateway.calls import Call, Outcome, Ran, text_result
from ...gateway.reasons import Reason
from ..bridge import AnyGateway, Bridge
from .errors import CLIENT, ToolCallError, session_of
from .sandboxed import SandboxedTool
from .toolkit import PurpleTool

Answer = ToolMessage | Command[Any]


class PurpleMiddleware(AgentMiddleware[AgentState[Any], Any]):
    """Decide, have approved, and record every tool call of the agent.

    Args:
        gateway: Entered, by `with Gateway(…).sync()` or `async with Gateway(…)`.
        server: What rules and the record call the place that the agent's own tools are from.

    A refused call never reaches its tool; the model reads why, in a `ToolMessage` with status
    `error` that begins with the reason code. What a tool raises is recorded and raised on, so that
    other middleware handles it as without this one.
    """

    def __init__(self, gateway: AnyGateway, *, server: str = CLIENT) -> None:
        super().__init__()
        self._bridge = Bridge(gateway)
        self._server = server

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Answer]
    ) -> Answer:
        """As the base class."""
        work = _Work(request)
        if self._is_ours(request):
            return self._direct(handler, request)

        def run(call: Call) -> Ran:
            try:
                return work.gave(handler(work.judged(call)))
            except Exception as error:
                return work.raised(error)

        return work.answer(self._bridge.around(self._call(request), run))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Answer]]
    ) -> Answer:
        """As the base class."""
        work = _Work(request)
        if self._is_ours(request):
            try:
                return await handler(request)
            except ToolCallError as error:
                return _message(request, str(error))

        async def run(call: Call) -> Ran:
            try:
                return work.gave(await handler(work.judged(call)))
            except Exception as error:
                return work.raised(error)

        return work.answer(await self._bridge.aaround(self._call(request), run))

    def _direct(
        self, handler: Callable[[ToolCallRequest], Answer], request: ToolCallRequest
    ) -> Answer:
        try:
            return handler(request)
        except ToolCallError as error:
            return _message(request, str(error))

    def _is_ours(self, request: ToolCallRequest) -> bool:
        tool = request.tool
        if not isinstance(tool, SandboxedTool | PurpleTool):
            return False
        return tool.bridge.gateway is self._bridge.gateway

    def _call(self, request: ToolCallRequest) -> Call:
        runtime = cast(Any, request.runtime)  # None outside a graph
        config = getattr(runtime, "config", None)
        return Call(
            tool=request.tool_call["name"], arguments=dict(request.tool_call["args"]),
            server=self._server, client=CLIENT, session=session_of(config),
        )  # fmt: skip


@dataclass
class _Work:
    """One call of the handler: what it gave, as the gateway sees it, and back."""

    request: ToolCallRequest
    result: Answer | None = None
    error: Exception | None = None
    told: dict[str, Any] = field(default_factory=dict[str, Any])

    def judged(self, call: Call) -> ToolCallRequest:
        """The request with the arguments as they were judged."""
        changed = {**self.request.tool_call, "args": dict(call.arguments)}
        return self.request.override(tool_call=cast(Any, changed))

    def gave(self, answer: Answer) -> Ran:
        self.result = answer
        message = _only_message(answer)
        if message is None:
            self.told = text_result(_shown(answer))
            return Ran(result=self.told)
        failed = message.status == "error"
        self.told = text_result(_text(message), is_error=failed)
        return Ran(result=self.told, reason=Reason.OPERATION_FAILED if failed else Reason.COMPLETED)

    def raised(self, error: Exception) -> Ran:
        self.error = error
        self.told = text_result(str(error), is_error=True)
        # An interrupt is the graph's way to wait; the call is made again when it goes on.
        waits = isinstance(error, GraphBubbleUp)
        reason = Reason.CANCELLED if waits else Reason.OPERATION_FAILED
        return Ran(result=self.told, reason=reason, facts={"error": type(error).__name__})

    def answer(self, outcome: Outcome) -> Answer:
        """What the agent gets: the handler's own answer, unless a stage has changed its text."""
        changed = outcome.result != self.told
        if self.error is not None:
            if changed and not isinstance(self.error, GraphBubbleUp):
                raise ToolException(outcome.text) from None
            raise self.error
        if self.result is None:  # refused: the handler has not been called
            return _message(self.request, str(ToolCallError(outcome)))
        if not changed:
            return self.result
        message = _only_message(self.result)
        if message is None or outcome.is_error:
            return _message(self.request, outcome.text)
        screened = message.model_copy(update={"content": outcome.text, "artifact": None})
        if isinstance(self.result, ToolMessage):
            return screened
        update = {**cast("dict[str, Any]", self.result.update), "messages": [screened]}
        return Command(
            graph=self.result.graph, update=update, resume=self.result.resume,
            goto=self.result.goto,
        )  # fmt: skip


def _message(request: ToolCallRequest, text: str) -> ToolMessage:
    call = request.tool_call
    return ToolMessage(content=text, name=call["name"], tool_call_id=call["id"], status="error")


def _only_message(answer: Answer) -> ToolMessage | None:
    """The message of an answer that has one; None where there is none or more."""
    if isinstance(answer, ToolMessage):
        return answer
    messages: Any = cast(Any, answer.update)["messages"] if _has_messages(answer) else []
    if len(messages) == 1 and isinstance(messages[0], ToolMessage):
        return messages[0]
    return None


def _has_messages(command: Command[Any]) -> bool:
    update = cast(Any, command.update)
    return isinstance(update, dict) and isinstance(cast(Any, update).get("messages"), list)


def _text(message: ToolMessage) -> str:
    """What the model reads of it; blocks that are not text as JSON."""
    content: Any = message.content
    if isinstance(content, str):
        return content
    parts = cast("list[Any]", content)
    if all(isinstance(part, str) for part in parts):
        return "\n".join(parts)
    return json.dumps(parts, ensure_ascii=False, default=str)


def _shown(command: Answer) -> str:
    """All of a command's update: what it writes into the agent's state."""
    return json.dumps(getattr(command, "update", None), ensure_ascii=False, default=str)
