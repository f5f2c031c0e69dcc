"""Purple's own tools as LangChain tools."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, BaseToolkit
from pydantic import PrivateAttr

from ...gateway.calls import Outcome
from ...gateway.reasons import Reason
from ..bridge import AnyGateway, Bridge
from .errors import CLIENT, ToolCallError, session_of


class PurpleToolkit(BaseToolkit):
    """`shell` and the file tools of one gateway, ready for an agent.

    Args:
        gateway: Entered, by `with Gateway(…).sync()` or `async with Gateway(…)`.
        only: Names of the tools that are wanted; None is all.
        handle_tool_error: As of any tool. True (the default): the model reads a refusal and goes
            on. False: a refusal raises `ToolCallError`.

    A command that ends with a status other than 0 is an answer, not an error: the status is in it.
    """

    _tools: list[BaseTool] = PrivateAttr()

    def __init__(
        self, gateway: AnyGateway, only: list[str] | None = None, *, handle_tool_error: bool = True
    ) -> None:
        super().__init__()
        bridge = Bridge(gateway)
        tools: list[BaseTool] = []
        for definition in bridge.gateway.tools():
            if only is not None and definition.name not in only:
                continue
            tool = PurpleTool(
                name=definition.name, description=definition.description,
                args_schema=definition.input_schema, response_format="content_and_artifact",
                handle_tool_error=handle_tool_error, metadata={"title": definition.title},
            )  # fmt: skip
            tool._bridge = bridge
            tools.append(tool)
        self._tools = tools

    def get_tools(self) -> list[BaseTool]:
        """In the order in which the gateway lists them."""
        return list(self._tools)


class PurpleTool(BaseTool):
    """One of the gateway's built-in tools. The artifact is its structured content."""

    _bridge: Bridge = PrivateAttr()

    @property
    def bridge(self) -> Bridge:
        """To its gateway."""
        return self._bridge

    def _run(self, *, config: RunnableConfig, **arguments: Any) -> tuple[str, Any]:
        who = {"client": CLIENT, "session": session_of(config)}
        return _answer(self._bridge.call(self.name, arguments, **who))

    async def _arun(self, *, config: RunnableConfig, **arguments: Any) -> tuple[str, Any]:
        who = {"client": CLIENT, "session": session_of(config)}
        return _answer(await self._bridge.acall(self.name, arguments, **who))


def _answer(outcome: Outcome) -> tuple[str, Any]:
    if outcome.is_error and outcome.reason is not Reason.COMPLETED:
        raise ToolCallError(outcome)
    return outcome.text, outcome.content
