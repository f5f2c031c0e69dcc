"""pydantic-ai: an agent whose toolset's calls go through the gateway."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import FunctionToolset

from purplebox import Gateway
from purplebox.gateway.audit.log import entries
from purplebox.gateway.calls import Call, Ran, Refusal, Version
from purplebox.integrations.pydantic_ai import PurpleToolset, PurpleWorkspace
from purplebox.policies import Decision, Policy, load_policy

pytestmark = pytest.mark.anyio


def with_rules(*rules: dict[str, Any]) -> Policy:
    base = load_policy("code-assistant").model_dump(by_alias=True)
    return Policy.model_validate({**base, "name": "ruled", "tools": {"rules": rules}})


def calls(*wanted: tuple[str, dict[str, Any]]) -> FunctionModel:
    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        if turn < len(wanted):
            return ModelResponse(parts=[ToolCallPart(*wanted[turn])])
        return ModelResponse(parts=[TextPart("done")])

    return FunctionModel(model)


async def answers(model: FunctionModel, toolset: PurpleToolset[None]) -> list[str]:
    agent = cast(Any, Agent)(model, toolsets=[toolset])
    messages = (await agent.run("go")).all_messages()
    parts: list[Any] = [p for m in messages if isinstance(m, ModelRequest) for p in m.parts]
    return [str(p.content) for p in parts if p.part_kind in ("tool-return", "retry-prompt")]


def toolset(ran: list[int]) -> FunctionToolset[None]:
    tools = FunctionToolset[None]()

    @tools.tool_plain
    def double(n: int) -> dict[str, int]:
        """Twice."""
        ran.append(n)
        return {"n": 2 * n}

    @tools.tool_plain
    def tell() -> str:
        """Tell."""
        return "a secret"

    return tools


def recorded(log: Path, event: str = "end") -> list[dict[str, Any]]:
    return [entry for _, entry in entries(log) if entry and entry["event"] == event]


async def test_each_call_is_decided_and_recorded(workspace: Path, tmp_path: Path) -> None:
    rule = {"tool": "double", "server": "pydantic-ai", "when": "args.n == 2", "effect": "deny", "reason": "not two"}  # fmt: skip
    ran: list[int] = []
    log = tmp_path / "log"
    async with Gateway(with_rules(rule), workspace, audit_log=log) as gateway:
        model = calls(("double", {"n": 1}), ("double", {"n": 2}))
        one, two = await answers(model, PurpleToolset(toolset(ran), gateway))
    assert one == "{'n': 2}"
    assert two.startswith("[policy_denied] Denied by rule tools.rules[0]")
    assert ran == [1]
    assert [e["reason"] for e in recorded(log)] == ["completed", "policy_denied"]
    assert {(e["server"], e["client"]) for e in recorded(log, "begin")} == {("pydantic-ai",) * 2}
    assert recorded(log, "begin")[0]["session"]


class Screen:
    async def before(self, call: Call, decision: Decision, version: Version) -> Refusal | None:
        return None

    async def after(self, call: Call, ran: Ran, version: Version) -> Ran:
        text = ran.result["content"][0]["text"].replace("secret", "[redacted]")
        content = [{"type": "text", "text": text}]
        return dataclasses.replace(ran, result={**ran.result, "content": content})


async def test_what_a_stage_takes_out_reaches_no_one(workspace: Path, tmp_path: Path) -> None:
    (workspace / "file").write_text("secret")
    async with Gateway(
        workspace=workspace, audit_log=tmp_path / "log", stages=[Screen()]
    ) as gateway:
        assert await answers(calls(("tell", {})), PurpleToolset(toolset([]), gateway)) == [
            "a [redacted]"
        ]
        backend = PurpleWorkspace(gateway)
        assert await backend.read_bytes(f"{workspace}/file") == b"[redacted]"


async def test_a_refused_operation_says_so(workspace: Path, tmp_path: Path) -> None:
    (workspace / "file").write_text("x")
    rules = [
        {"tool": "read_file", "when": "paths.exists(p, glob(p, '*le'))", "effect": "deny", "reason": "no"},
        {"tool": "shell", "effect": "deny", "reason": "no"},
    ]  # fmt: skip
    async with Gateway(with_rules(*rules), workspace, audit_log=tmp_path / "log") as gateway:
        backend = PurpleWorkspace(gateway)
        assert (await backend.stat(f"{workspace}/file")).size == 1  # the control
        with pytest.raises(PermissionError, match=r"\[policy_denied\]"):
            await backend.read_bytes(f"{workspace}/file")
        done = await backend.run("true", shell=True)
        assert (done.exit_code, done.stderr.startswith("[policy_denied]")) == (126, True)
