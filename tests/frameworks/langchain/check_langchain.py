"""LangChain: tools in a sandbox, and an agent whose every call goes through the gateway."""

from __future__ import annotations

import asyncio
import datetime
import gc
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import langchain.agents
import pytest
from langchain.agents.middleware import ShellToolMiddleware
from langchain.agents.middleware.types import AgentState
from langchain.tools import ToolRuntime, tool
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, InjectedToolArg, InjectedToolCallId, Tool, ToolException
from langgraph.types import Command
from pydantic import BaseModel, ValidationError

from purplebox import Gateway
from purplebox.gateway.audit.log import entries
from purplebox.gateway.calls import Approval, Call, Ran, Refusal, Version
from purplebox.gateway.reasons import Reason
from purplebox.integrations.langchain import (
    NotShippable,
    PurpleExecutionPolicy,
    PurpleMiddleware,
    PurpleToolkit,
    ToolCallError,
    sandboxed,
)
from purplebox.policies import Decision, Policy, load_policy

create_agent = cast(Any, langchain.agents.create_agent)  # half of its type is unknown to checkers
GO: Any = {"messages": [("user", "go")]}
DB = sqlite3.connect(":memory:", check_same_thread=False)


class Model(GenericFakeChatModel):
    """Says what it is told to; tools may be bound to it."""

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Runnable[Any, AIMessage]:
        return self


def says(*calls: tuple[str, dict[str, Any]]) -> Model:
    """A model that makes these tool calls, one a turn, and then ends."""
    turns = [
        AIMessage(content="", tool_calls=[{"name": name, "args": args, "id": f"call-{i}"}])
        for i, (name, args) in enumerate(calls)
    ]
    return Model(messages=iter([*turns, AIMessage(content="done")]))


def with_rules(*rules: dict[str, Any]) -> Policy:
    base = load_policy("code-assistant").model_dump(by_alias=True)
    return Policy.model_validate({**base, "name": "ruled", "tools": {"rules": rules}})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def recorded(log: Path, event: str = "end") -> list[dict[str, Any]]:
    return [entry for _, entry in entries(log) if entry and entry["event"] == event]


def tool_messages(state: dict[str, Any]) -> list[ToolMessage]:
    messages: list[AnyMessage] = state["messages"]
    return [message for message in messages if isinstance(message, ToolMessage)]


class Spot(BaseModel):
    name: str
    day: datetime.date


@tool
def weather(spot: Spot, days: int = 1) -> dict[str, Any]:
    """The weather."""
    import os

    return {"name": spot.name, "day": spot.day.isoformat(), "days": days, "pid": os.getpid()}


@tool
async def read_host(path: str) -> str:
    """Read a file."""
    with open(path) as file:
        return file.read()


SPOT = {"spot": {"name": "Ulm", "day": "2026-01-02"}}


def test_a_function_tool_runs_in_the_sandbox_sync_and_async(workspace: Path, log: Path) -> None:
    with Gateway(workspace=workspace, audit_log=log).sync() as gateway:
        wrapped = sandboxed(weather, gateway)
        assert (wrapped.name, wrapped.args) == (weather.name, weather.args)
        assert weather.invoke(SPOT)["pid"] > 20  # the control: this process
        for got in (wrapped.invoke(SPOT), asyncio.run(wrapped.ainvoke(SPOT))):
            assert got.pop("pid") < 20
            assert got == {"name": "Ulm", "day": "2026-01-02", "days": 1}
    begun = recorded(log, "begin")
    assert [entry["tool"] for entry in begun] == ["weather", "weather"]
    assert {(e["server"], e["client"]) for e in begun} == {("langchain", "langchain")}
    assert begun[0]["arguments"] == SPOT
    assert [entry["reason"] for entry in recorded(log)] == ["completed", "completed"]


def test_it_sees_what_the_policy_grants(workspace: Path, log: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    (workspace / "open").write_text("o")
    assert asyncio.run(read_host.ainvoke({"path": str(secret)})) == "s"
    with Gateway(workspace=workspace, audit_log=log).sync() as gateway:
        wrapped = sandboxed(read_host, gateway)
        assert wrapped.invoke({"path": str(workspace / "open")}) == "o"
        with pytest.raises(ToolException, match=r"^\[operation_failed\] read_host failed: File"):
            wrapped.invoke({"path": str(secret)})


def test_a_refusal_is_a_tool_exception_with_its_reason_code(workspace: Path, log: Path) -> None:
    policy = with_rules(
        {"tool": "weather", "server": "langchain", "when": "args.days > 5", "effect": "deny",
         "reason": "too far"},
    )  # fmt: skip
    with Gateway(policy, workspace, audit_log=log).sync() as gateway:
        wrapped = sandboxed(weather, gateway)
        assert wrapped.invoke({**SPOT, "days": 5})["days"] == 5
        with pytest.raises(ToolCallError, match=r"^\[policy_denied\] .*too far") as caught:
            wrapped.invoke({**SPOT, "days": 6})
        assert caught.value.reason is Reason.POLICY_DENIED
        call = {"type": "tool_call", "id": "1", "name": "weather", "args": {**SPOT, "days": 6}}
        wrapped.handle_tool_error = True
        message = wrapped.invoke(call)
        assert message.status == "error"
        assert message.content.startswith("[policy_denied]")
        with pytest.raises(ValidationError):
            wrapped.invoke({"days": 1})
    assert [e["reason"] for e in recorded(log)] == [
        "completed", "policy_denied", "policy_denied", "invalid_arguments",
    ]  # fmt: skip


def test_the_process_has_a_gateway_of_its_own(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = sandboxed(weather, policy="strict", workspace=workspace)
    assert wrapped.invoke(SPOT)["name"] == "Ulm"
    again = sandboxed(weather, policy="strict", workspace=workspace)
    assert again.invoke(SPOT)["name"] == "Ulm"
    assert getattr(again, "bridge").gateway is getattr(wrapped, "bridge").gateway  # noqa: B009


@tool(response_format="content_and_artifact")
def measured(n: int) -> tuple[str, dict[str, int]]:
    """Both."""
    return f"{n}", {"n": n}


@tool
def with_call_id(n: int, tool_call_id: Annotated[str, InjectedToolCallId]) -> str:
    """Its own call."""
    return f"{n} {tool_call_id}"


class Repeat(BaseTool):
    name: str = "repeat"
    description: str = "Say it again."
    times: int = 2

    def _run(self, text: str) -> str:
        return text * self.times


def shout(text: str) -> str:
    """Loud."""
    return text.upper()


def test_every_kind_of_tool(workspace: Path, log: Path) -> None:
    def as_call(name: str, **args: Any) -> dict[str, Any]:
        return {"type": "tool_call", "id": "c1", "name": name, "args": args}

    with Gateway(workspace=workspace, audit_log=log).sync() as gateway:
        both = sandboxed(measured, gateway).invoke(as_call("measured", n=3))
        assert (both.content, both.artifact) == ("3", {"n": 3})
        assert (
            sandboxed(with_call_id, gateway).invoke(as_call("with_call_id", n=3)).content == "3 c1"
        )
        assert sandboxed(shout, gateway).invoke({"text": "a"}) == "A"
        single = Tool(name="single", func=shout, description="Loud.")
        assert sandboxed(single, gateway).invoke("a") == "A"
        assert sandboxed(single, gateway).invoke(as_call("single", __arg1="b")).content == "B"
        own = sandboxed(Repeat(times=3), gateway)
        assert own.args == Repeat().args
        assert own.invoke({"text": "a"}) == "aaa"


@tool
def queries(sql: str) -> int:
    """Ask the database."""
    return int(DB.execute(sql).fetchone()[0])


@tool
def stateful(n: int, runtime: ToolRuntime[None, Any]) -> str:
    """Look at the run."""
    return str(runtime.state)


@tool
def hidden(n: int, key: Annotated[str, InjectedToolArg]) -> str:
    """Has an argument that the model does not give."""
    return key


def test_what_cannot_run_there_is_refused_at_once(workspace: Path) -> None:
    live = DB

    @tool
    def closure(sql: str) -> int:
        """Ask."""
        return int(live.execute(sql).fetchone()[0])

    with pytest.raises(NotShippable, match="refers to live, a live object"):
        sandboxed(closure, workspace=workspace)
    with pytest.raises(NotShippable, match="takes runtime from the agent's run"):
        sandboxed(stateful, workspace=workspace)
    with pytest.raises(NotShippable, match="takes key from the agent's run"):
        sandboxed(hidden, workspace=workspace)
    with pytest.raises(NotShippable, match="sandboxed already"):
        sandboxed(sandboxed(weather, workspace=workspace))

    class Live(BaseTool):
        name: str = "live"
        description: str = "Live."
        connection: Any

        def _run(self, text: str) -> str:
            return text

    with pytest.raises(NotShippable, match=r"sqlite3\.Connection"):
        sandboxed(Live(connection=DB), workspace=workspace)


def test_the_toolkit_in_an_agent_sync_and_async(workspace: Path, log: Path) -> None:
    calls = (
        ("write_file", {"path": "a.txt", "content": "x"}),
        ("shell", {"command": "cat a.txt; exit 3"}),
        ("read_file", {"path": "/etc/shadow"}),
    )
    with Gateway(workspace=workspace, audit_log=log).sync() as gateway:
        tools = PurpleToolkit(gateway).get_tools()
        config: Any = {"configurable": {"thread_id": "t1"}}
        agent = create_agent(says(*calls), tools)
        state = agent.invoke(GO, config)
        other = create_agent(says(*calls), tools)
        again = asyncio.run(other.ainvoke(GO, config))
    for messages in (tool_messages(state), tool_messages(again)):
        wrote, ran, read = messages
        assert wrote.status == "success"
        assert wrote.artifact["bytes_written"] == 1
        assert ran.content == "x\n[exit status 3]"
        assert ran.artifact["exit_code"] == 3
        assert read.status == "error"
        assert str(read.content).startswith("[operation_failed] read_file failed (E")
    assert (workspace / "a.txt").read_text() == "x"
    assert {(e["client"], e["session"]) for e in recorded(log, "begin")} == {("langchain", "t1")}


def test_only_the_tools_that_are_wanted(workspace: Path, log: Path) -> None:
    with Gateway(workspace=workspace, audit_log=log).sync() as gateway:
        assert [t.name for t in PurpleToolkit(gateway, ["shell"]).get_tools()] == ["shell"]
        strict = PurpleToolkit(gateway, handle_tool_error=False).get_tools()[0]
        with pytest.raises(ToolCallError, match=r"\[invalid_arguments\]"):
            strict.invoke({"command": 5})


THREADS: list[threading.Thread] = []


@tool
def in_process(n: int) -> str:
    """Runs here."""
    THREADS.append(threading.current_thread())
    return f"got {n}"


@tool
def fails(n: int) -> str:
    """Fails."""
    raise ValueError(f"secret {n}")


@tool
def commands(n: int, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
    """Change the state."""
    return Command(update={"messages": [ToolMessage(f"secret {n}", tool_call_id=tool_call_id)]})


Invoke = Callable[[Any, dict[str, Any]], dict[str, Any]]


@pytest.fixture(params=["sync", "async"])
def invoke(request: pytest.FixtureRequest) -> Invoke:
    def run(agent: Any, state: dict[str, Any]) -> dict[str, Any]:
        sync = request.param == "sync"
        answer: dict[str, Any]
        answer = agent.invoke(state) if sync else asyncio.run(agent.ainvoke(state))
        return answer

    return run


def test_the_middleware_decides_and_records_every_call(
    workspace: Path, log: Path, invoke: Invoke
) -> None:
    policy = with_rules(
        {"tool": "in_process", "when": "args.n == 2", "effect": "deny", "reason": "not two"},
        {"tool": "shell", "when": "args.command == 'true'", "effect": "deny", "reason": "never"},
    )
    THREADS.clear()
    with Gateway(policy, workspace, audit_log=log).sync() as gateway:
        tools = [in_process, sandboxed(weather, gateway), *PurpleToolkit(gateway, ["shell"]).get_tools()]  # fmt: skip
        model = says(
            ("in_process", {"n": 1}), ("in_process", {"n": 2}), ("weather", SPOT),
            ("shell", {"command": "true"}),
        )  # fmt: skip
        state = invoke(create_agent(model, tools, middleware=[PurpleMiddleware(gateway)]), GO)
    first, second, third, fourth = tool_messages(state)
    assert (first.content, first.status) == ("got 1", "success")
    assert str(second.content).startswith("[policy_denied] Denied by rule tools.rules[0]")
    assert second.status == fourth.status == "error"
    assert "Ulm" in str(third.content)
    assert len(THREADS) == 1  # the refused call never reached its tool
    # Each once, also those that go through the gateway by themselves.
    assert [(e["tool"], e["server"]) for e in recorded(log, "begin")] == [
        ("in_process", "langchain"), ("in_process", "langchain"), ("weather", "langchain"),
        ("shell", ""),
    ]  # fmt: skip
    assert [e["reason"] for e in recorded(log)] == [
        "completed", "policy_denied", "completed", "policy_denied",
    ]  # fmt: skip


def test_what_a_tool_raises_is_recorded_and_raised_on(
    workspace: Path, log: Path, invoke: Invoke
) -> None:
    with Gateway(workspace=workspace, audit_log=log).sync() as gateway:
        agent = create_agent(says(("fails", {"n": 1})), [fails], middleware=[PurpleMiddleware(gateway)])  # fmt: skip
        with pytest.raises(ValueError, match="secret 1"):
            invoke(agent, GO)
    assert recorded(log)[0]["reason"] == "operation_failed"
    assert recorded(log)[0]["error"] == "ValueError"


class Screen:
    """A stage that takes secrets out of results."""

    async def before(self, call: Call, decision: Decision, version: Version) -> Refusal | None:
        return None

    async def after(self, call: Call, ran: Ran, version: Version) -> Ran:
        from dataclasses import replace

        text = ran.result["content"][0]["text"].replace("secret", "[redacted]")
        return replace(ran, result={**ran.result, "content": [{"type": "text", "text": text}]})


def test_what_a_stage_takes_out_reaches_no_one(workspace: Path, log: Path, invoke: Invoke) -> None:
    with Gateway(workspace=workspace, audit_log=log, stages=[Screen()]).sync() as gateway:
        screened = [PurpleMiddleware(gateway)]
        agent = create_agent(says(("commands", {"n": 1})), [commands], middleware=screened)
        (message,) = tool_messages(invoke(agent, GO))
        assert message.content == "[redacted] 1"
        agent = create_agent(says(("fails", {"n": 1})), [fails], middleware=screened)
        with pytest.raises(ToolException, match=r"^\[redacted\] 1"):
            invoke(agent, GO)


class Person:
    def __init__(self) -> None:
        self.asked: list[Call] = []

    async def approve(self, call: Call, decision: Decision, version: Version) -> Approval:
        self.asked.append(call)
        return Approval(allowed=call.arguments["n"] == 1, by="test", text="rather not")


def test_a_person_is_asked_where_a_rule_says_so(workspace: Path, log: Path, invoke: Invoke) -> None:
    person = Person()
    policy = with_rules({"tool": "in_process", "effect": "ask", "reason": "look"})
    with Gateway(policy, workspace, audit_log=log, approver=person).sync() as gateway:
        model = says(("in_process", {"n": 1}), ("in_process", {"n": 2}))
        agent = create_agent(model, [in_process], middleware=[PurpleMiddleware(gateway)])
        yes, no = tool_messages(invoke(agent, GO))
    assert yes.content == "got 1"
    assert str(no.content).startswith("[approval_denied] Refused: rather not")
    assert [call.arguments["n"] for call in person.asked] == [1, 2]


def test_a_gateway_on_the_callers_own_loop(workspace: Path, log: Path) -> None:
    async def go() -> None:
        async with Gateway(workspace=workspace, audit_log=log) as gateway:
            tools = [in_process, sandboxed(weather, gateway), *PurpleToolkit(gateway).get_tools()]
            model = says(("in_process", {"n": 1}), ("weather", SPOT), ("shell", {"command": "pwd"}))
            agent = create_agent(model, tools, middleware=[PurpleMiddleware(gateway)])
            one, two, three = tool_messages(await agent.ainvoke(GO))
            assert one.content == "got 1"
            assert "Ulm" in str(two.content)
            assert three.content == str(workspace)
            with pytest.raises(RuntimeError, match="use the asynchronous method"):
                tools[1].invoke(SPOT)

    asyncio.run(go())
    with pytest.raises(RuntimeError, match="has not been entered"):
        sandboxed(weather, Gateway(workspace=workspace)).invoke(SPOT)


@pytest.fixture
def session(workspace: Path) -> Iterator[ShellToolMiddleware[Any]]:
    yield ShellToolMiddleware(
        workspace_root=workspace, env={"GREETING": "hello you"},
        execution_policy=PurpleExecutionPolicy(command_timeout=2, termination_timeout=0.2),
    )  # fmt: skip


# LangChain's session does not close the pipes of a shell that it restarts.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_shell_middleware_has_its_session_in_a_sandbox(
    workspace: Path, log: Path, session: ShellToolMiddleware[Any], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    policy = with_rules(
        {"tool": "shell", "when": "args.command.contains('rm -rf')", "effect": "deny",
         "reason": "no"},
    )  # fmt: skip
    model = says(
        ("shell", {"command": "cd /tmp; X=1; echo $GREETING"}),
        ("shell", {"command": "pwd; echo $X $$"}),
        ("shell", {"command": f"cat {secret}"}),
        ("shell", {"command": "rm -rf ."}),
        ("shell", {"command": "sleep 60"}),
        ("shell", {"command": f"cd {workspace}; echo done > made"}),
    )
    with Gateway(policy, workspace, audit_log=log).sync() as gateway:
        middleware: list[Any] = [PurpleMiddleware(gateway), session]
        state = create_agent(model, [], middleware=middleware).invoke(GO)
    greeted, kept, denied, refused, late, made = tool_messages(state)
    assert greeted.content == "hello you\n"
    assert str(kept.content).split()[:2] == ["/tmp", "1"]
    assert int(str(kept.content).split()[2]) < 20
    assert "No such file or directory" in str(denied.content)
    assert str(refused.content).startswith("[policy_denied]")
    assert "timed out" in str(late.content)
    assert made.status == "success"
    assert (workspace / "made").read_text() == "done\n"
    assert len(recorded(log)) == 6
    gc.collect()


class State(AgentState[Any]):
    mood: str


@tool
def mood(runtime: ToolRuntime[None, State]) -> str:
    """How are you?"""
    return runtime.state["mood"]


def test_a_custom_state_reaches_the_tool_beside_the_middleware(workspace: Path, log: Path) -> None:
    with Gateway(workspace=workspace, audit_log=log).sync() as gateway:
        agent = create_agent(
            says(("mood", {})), [mood], middleware=[PurpleMiddleware(gateway)], state_schema=State
        )
        (message,) = tool_messages(agent.invoke({**GO, "mood": "well"}))
    assert message.content == "well"
