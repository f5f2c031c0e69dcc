"""`sandboxed(tool)`: a tool of plain Python, run in a sandbox."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool
from langchain_core.tools import Tool as SingleInputTool
from pydantic import PrivateAttr
from pydantic_core import to_jsonable_python

from ...gateway.calls import Call, Outcome, Refusal, Run
from ...gateway.reasons import Reason
from ...policies import Policy
from ..bridge import AnyGateway, Bridge, shared
from ..functions import NotPlain, NotShippable, Shipment, in_sandbox, value_of
from .errors import CLIENT, ToolCallError, session_of

_COPIED = frozenset(BaseTool.model_fields) - {"callbacks"}


def sandboxed(
    tool: BaseTool | Callable[..., Any], gateway: AnyGateway | None = None, *,
    policy: Policy | str = "code-assistant", workspace: Path | str = ".", server: str = CLIENT,
) -> BaseTool:  # fmt: skip
    """The same tool for the model; each call is decided, runs in a sandbox, and is recorded.

    Args:
        tool: A function, what `@tool` makes of one, or a `BaseTool` of a class of its own whose
            fields are plain values.
        gateway: Whose policy, workspace and record it has. None: the process's own for `policy` and
            `workspace`, started at the first call.
        policy, workspace: Where there is no `gateway`.
        server: What rules and the record call the place that the tool is from.

    Raises:
        NotShippable: the tool needs what only this process has (a connection, a closure over a live
            object, the agent's state); says what. Put such a tool under `PurpleMiddleware`, which
            decides and records its calls, or behind an MCP server and `purple wrap`.

    Only plain values return: JSON's types, bytes, tuples, sets, dates, Decimal, UUID, Path; dataclasses
    and pydantic models as dicts. A refused or failed call raises `ToolCallError`, a `ToolException`;
    with `handle_tool_error=True`, as for any tool, the model reads it instead.
    """
    if not isinstance(tool, BaseTool):
        tool = StructuredTool.from_function(
            tool if not _is_async(tool) else None, coroutine=tool if _is_async(tool) else None
        )
    bridge = None if gateway is None else Bridge(gateway)
    fields = {name: getattr(tool, name) for name in _COPIED}
    if tool.args_schema is None and not isinstance(tool, SingleInputTool):
        fields["args_schema"] = tool.get_input_schema()
    wrapped = SandboxedTool(**fields)
    wrapped.place(tool, bridge or (lambda: Bridge(shared(policy, workspace))), server)
    return wrapped


class SandboxedTool(BaseTool):
    """What `sandboxed` returns."""

    _inner: BaseTool = PrivateAttr()
    _bridge: Bridge | Callable[[], Bridge] = PrivateAttr()
    _server: str = PrivateAttr()
    _shipment: Shipment = PrivateAttr()

    def place(self, inner: BaseTool, bridge: Bridge | Callable[[], Bridge], server: str) -> None:
        """Say what runs, and by whose leave. Raises `NotShippable`."""
        self._inner, self._bridge, self._server = inner, bridge, server
        self._shipment = _shipment(inner)

    @property
    def bridge(self) -> Bridge:
        """To its gateway."""
        if not isinstance(self._bridge, Bridge):
            self._bridge = self._bridge()
        return self._bridge

    @property
    def args(self) -> dict[str, Any]:
        """As the tool's own."""
        return self._inner.args

    def _to_args_and_kwargs(
        self, tool_input: str | dict[str, Any], tool_call_id: str | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Parsing is part of the call, so that one that does not parse is recorded, too.
        return (tool_input, tool_call_id), {}

    def _run(
        self, tool_input: str | dict[str, Any], call_id: str | None, *, config: RunnableConfig
    ) -> Any:
        call, problem, error = self._asked(tool_input, call_id, config)
        outcome = self.bridge.carry(call, self._work(call_id), problem)
        return self._answer(outcome, error)

    async def _arun(
        self, tool_input: str | dict[str, Any], call_id: str | None, *, config: RunnableConfig
    ) -> Any:
        call, problem, error = self._asked(tool_input, call_id, config)
        outcome = await self.bridge.acarry(call, self._work(call_id), problem)
        return self._answer(outcome, error)

    def _asked(
        self, tool_input: str | dict[str, Any], call_id: str | None, config: RunnableConfig
    ) -> tuple[Call, Refusal | None, Exception | None]:
        if isinstance(tool_input, str):
            tool_input = {next(iter(self._inner.args), "input"): tool_input}
        arguments: dict[str, Any] = to_jsonable_python(tool_input, fallback=repr)
        call = Call(
            tool=self.name, arguments=arguments, server=self._server, client=CLIENT,
            session=session_of(config),
        )  # fmt: skip
        try:
            self._parse(arguments, call_id)
        except Exception as error:  # the schema's validators may raise anything
            text = f"Invalid arguments for {self.name}: {error}"
            return call, Refusal(reason=Reason.INVALID_ARGUMENTS, rule="schema", text=text), error
        return call, None, None

    def _parse(
        self, arguments: Mapping[str, Any], call_id: str | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._inner._to_args_and_kwargs(dict(arguments), call_id)

    def _work(self, call_id: str | None) -> Run:
        def parse(arguments: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            positional, named = self._parse(arguments, call_id)
            if isinstance(self._inner, StructuredTool | SingleInputTool):
                return positional, named
            return (type(self._inner), _fields_of(self._inner), list(positional), named), {}

        return in_sandbox(self._shipment, parse)

    def _answer(self, outcome: Outcome, error: Exception | None) -> Any:
        if error is not None:
            raise error
        if outcome.is_error:
            raise ToolCallError(outcome)
        try:
            return value_of(outcome.result)
        except KeyError:
            return outcome.text  # a screen has taken the structured form out


def _own_run(kind: Any, fields: dict[str, Any], positional: list[Any], named: Any) -> Any:
    """Inside: what a tool of a class of its own does."""

    tool = kind(**fields)
    if "config" in inspect.signature(tool._run).parameters:
        named = {**named, "config": {}}
    return tool._run(*positional, **named)


def _shipment(tool: BaseTool) -> Shipment:
    if isinstance(tool, SandboxedTool):
        raise NotShippable(f"{tool.name} is sandboxed already")
    if isinstance(tool, StructuredTool | SingleInputTool):
        function = tool.func or tool.coroutine
        if function is None:
            raise NotShippable(f"tool {tool.name} has no function")
        _refuse_injected(tool, function)
        return Shipment(function)
    _refuse_injected(tool, tool._run)
    shipment = Shipment(_own_run, home=type(tool).__module__)
    try:
        shipment.request((type(tool), _fields_of(tool), [], {}), {})
    except NotPlain as error:
        raise NotShippable(f"tool {tool.name} cannot run in a sandbox: {error}") from None
    return shipment


def _fields_of(tool: BaseTool) -> dict[str, Any]:
    """What its constructor was given, but for what concerns the agent's side only."""
    names = tool.model_fields_set - (_COPIED - {"name", "description"}) - {"callbacks"}
    return {name: getattr(tool, name) for name in names}


def _refuse_injected(tool: BaseTool, function: Callable[..., Any]) -> None:
    """What LangGraph hands to a tool from its own state is not there in a sandbox."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name that only type checkers have
        hints = dict[str, Any]()
    wanted = {
        name for name in tool._injected_args_keys
        if not any(_is_call_id(part) for part in typing.get_args(hints.get(name)))
    }  # fmt: skip
    own = isinstance(tool, StructuredTool | SingleInputTool)
    wanted |= {
        name for name, hint in hints.items()
        if own and (hint is RunnableConfig or name in ("callbacks", "run_manager"))
    }  # fmt: skip
    if wanted:
        raise NotShippable(
            f"tool {tool.name} takes {', '.join(sorted(wanted))} from the agent's run (state, store, "
            "runtime or config), which a sandbox does not have; use PurpleMiddleware for it"
        )


def _is_call_id(part: Any) -> bool:
    return part is InjectedToolCallId or isinstance(part, InjectedToolCallId)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function)
