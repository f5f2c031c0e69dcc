"""The question at the client: elicitation in the legacy era, `input_required` in the modern one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.gateway.approvals import Approvals, Board
from purplebox.gateway.audit.log import entries
from purplebox.gateway.wire.builtin import BuiltIns
from purplebox.gateway.wire.router import Single
from purplebox.gateway.wire.session import Session
from purplebox.policies import Policy, load_policy

Connect = Callable[..., AbstractAsyncContextManager[Any]]
FAKE = Path(__file__).parents[1] / "fidelity" / "fake_server.py"
KEY = "io.modelcontextprotocol/"
ASSISTANT = load_policy("code-assistant").model_dump(by_alias=True)


def asking(**approvals: Any) -> Policy:
    rules = {"rules": ({"tool": "shell", "effect": "ask", "reason": "a person decides"},)}
    return Policy.model_validate(
        {**ASSISTANT, "name": "asking", "tools": rules, "approvals": approvals}
    )


def envelope(**capabilities: Any) -> dict[str, Any]:
    return {
        f"{KEY}protocolVersion": "2026-07-28", f"{KEY}clientCapabilities": capabilities,
        f"{KEY}clientInfo": {"name": "test", "version": "1"},
    }  # fmt: skip


def serve(gateway: Gateway) -> Callable[[Session], Single]:
    return lambda _: Single(BuiltIns(gateway))


def shell(command: str, **more: Any) -> dict[str, Any]:
    return {"name": "shell", "arguments": {"command": command}, **more}


def is_asked(message: dict[str, Any]) -> bool:
    return message.get("method") == "elicitation/create"


def is_cancelled(message: dict[str, Any]) -> bool:
    return message.get("method") == "notifications/cancelled"


def accept(decision: str) -> dict[str, Any]:
    return {"action": "accept", "content": {"decision": decision}}


@pytest.mark.parametrize("decision", ["once", "deny", "session"])
def test_a_legacy_client_is_asked_by_request(
    decision: str, workspace: Path, tmp_path: Path, raw_client: Connect
) -> None:
    log = tmp_path / "log"

    async def go() -> None:
        async with (
            Gateway(asking(), workspace, audit_log=log, approver=Approvals()) as gateway,
            raw_client(serve(gateway)) as wire,
        ):
            await wire.initialize(elicitation={})
            call = {
                "jsonrpc": "2.0",
                "id": 7,
                "method": "tools/call",
                "params": shell("touch made"),
            }
            wire.send(call)
            question = await wire.until(is_asked)
            params = question["params"]
            assert "  | touch made" in params["message"]
            assert params["requestedSchema"]["properties"]["decision"]["enum"] == [
                "once", "session", "deny",
            ]  # fmt: skip
            assert not (workspace / "made").exists()
            wire.send({"jsonrpc": "2.0", "id": question["id"], "result": accept(decision)})
            answer = (await wire.answer(7))["result"]
            assert answer["isError"] == (decision == "deny")
            if decision == "session":
                again = await wire.ask("tools/call", shell("touch made"))
                assert again["result"]["isError"] is False
                assert len([m for m in wire.received if is_asked(m)]) == 1

    asyncio.run(go())
    assert (workspace / "made").exists() == (decision != "deny")
    lines = [entry for _, entry in entries(log) if entry]
    assert [entry["event"] for entry in lines[:3]] == ["begin", "pending", "end"]
    assert lines[1]["question"] == lines[2]["approval"]["question"]
    assert lines[2]["approval"]["by"] == "elicitation"
    assert lines[2]["approval"]["asked"] == ["stdio:test"]


def test_a_modern_client_is_asked_by_input_required(
    workspace: Path, tmp_path: Path, raw_client: Connect
) -> None:
    async def go() -> None:
        log = tmp_path / "log"
        async with (
            Gateway(asking(), workspace, audit_log=log, approver=Approvals()) as gateway,
            raw_client(serve(gateway)) as wire,
        ):
            meta = envelope(elicitation={})

            async def asked(command: str) -> tuple[str, str]:
                first = await wire.ask("tools/call", shell(command, _meta=meta))
                result = first["result"]
                assert result["resultType"] == "input_required"
                ((key, question),) = result["inputRequests"].items()
                assert question["method"] == "elicitation/create"
                assert f"  | {command}" in question["params"]["message"]
                return key, result["requestState"]

            async def retry(command: str, key: str, state: str, answer: Any) -> Any:
                more = {"inputResponses": {key: answer}, "requestState": state}
                return await wire.ask("tools/call", shell(command, _meta=meta, **more))

            key, state = await asked("touch made")
            # Other arguments with the state of this call.
            changed = await retry("touch other", key, state, accept("once"))
            assert changed["error"]["code"] == -32602
            forged = await retry("touch made", key, state[:-2] + "AA", accept("once"))
            assert forged["error"]["code"] == -32602
            assert not list(workspace.iterdir())
            done = await retry("touch made", key, state, accept("once"))
            assert done["result"]["isError"] is False
            assert [p.name for p in workspace.iterdir()] == ["made"]
            (workspace / "made").unlink()
            replayed = await retry("touch made", key, state, accept("once"))
            assert replayed["error"]["code"] == -32602
            key, state = await asked("touch made")
            refused = await retry("touch made", key, state, {"action": "decline"})
            assert refused["result"]["isError"] is True
            # What the model writes into a call is no answer: there is no state that it belongs to.
            made_up = shell("touch third", _meta=meta, inputResponses={key: accept("once")})
            unasked = await wire.ask("tools/call", made_up)
            assert unasked["result"]["resultType"] == "input_required"
            assert not list(workspace.iterdir())

    asyncio.run(go())


def test_another_way_may_be_faster_and_closes_the_dialog(
    workspace: Path, tmp_path: Path, raw_client: Connect
) -> None:
    async def go() -> None:
        board = Board()
        log = tmp_path / "log"
        async with (
            Gateway(asking(), workspace, audit_log=log, approver=Approvals([board])) as gateway,
            raw_client(serve(gateway)) as wire,
        ):
            await wire.initialize(elicitation={"form": {}})
            call = {
                "jsonrpc": "2.0",
                "id": 7,
                "method": "tools/call",
                "params": shell("touch made"),
            }
            wire.send(call)
            question = await wire.until(is_asked)
            (open_now,) = board.questions()
            assert board.answer(open_now["id"], "once", open_now["binding"]) == ""
            assert (await wire.answer(7))["result"]["isError"] is False
            closed = await wire.until(is_cancelled)
            assert closed["params"]["requestId"] == question["id"]
            # The dialog's answer comes too late, and for nothing.
            wire.send({"jsonrpc": "2.0", "id": question["id"], "result": accept("once")})
            assert (await wire.ask("ping"))["result"] == {}

    asyncio.run(go())


@pytest.mark.parametrize(
    ("approvals", "capabilities"),
    [
        ({"clients": ()}, {"elicitation": {}}),
        ({"clients": ("stdio:claude-*",)}, {"elicitation": {}}),
        ({}, {}),
        ({}, {"elicitation": {"url": {}}}),
    ],
)
def test_a_client_that_may_not_or_cannot_answer_is_not_asked(
    approvals: dict[str, Any], capabilities: dict[str, Any], workspace: Path, tmp_path: Path,
    raw_client: Connect,
) -> None:  # fmt: skip
    async def go() -> None:
        policy = asking(**approvals)
        log = tmp_path / "log"
        async with (
            Gateway(policy, workspace, audit_log=log, approver=Approvals()) as gateway,
            raw_client(serve(gateway)) as wire,
        ):
            await wire.initialize(**capabilities)
            answer = (await wire.ask("tools/call", shell("touch made")))["result"]
            assert "nobody can be asked" in answer["content"][0]["text"]
            assert not [m for m in wire.received if is_asked(m)]

    asyncio.run(go())
    assert not (workspace / "made").exists()
    lines = [entry for _, entry in entries(tmp_path / "log") if entry]
    assert lines[-1]["reason"] == "approval_required"


def test_a_client_that_closes_has_said_no(
    workspace: Path, tmp_path: Path, raw_client: Connect
) -> None:
    async def go() -> None:
        board = Board()
        log = tmp_path / "log"
        async with Gateway(
            asking(), workspace, audit_log=log, approver=Approvals([board])
        ) as gateway:
            async with raw_client(serve(gateway)) as wire:
                await wire.initialize(elicitation={})
                wire.send(
                    {
                        "jsonrpc": "2.0",
                        "id": 7,
                        "method": "tools/call",
                        "params": shell("touch made"),
                    }
                )
                await wire.until(is_asked)
                assert len(board.questions()) == 1
            assert board.questions() == []

    asyncio.run(go())
    assert not (workspace / "made").exists()
    lines = [entry for _, entry in entries(tmp_path / "log") if entry]
    assert (lines[-1]["event"], lines[-1]["reason"]) == ("end", "cancelled")


def _purple(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "purplebox.gateway.cli", *arguments],
        capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


@pytest.mark.parametrize("verb", ["allow", "deny"])
def test_a_person_answers_on_the_command_line_for_a_wrapped_server(
    verb: str, workspace: Path, wire_type: Any
) -> None:
    profile = workspace.parent / "asking.yaml"
    profile.write_text(
        f"name: asking\nextends: mcp-server\nfilesystem: {{read: ['{sys.prefix}']}}\n"
        "tools: {rules: [{tool: echo, effect: ask, reason: echoes are loud}]}\n"
    )
    server = workspace / "server.py"
    server.write_text(FAKE.read_text())

    async def go() -> None:
        stdin, up = os.pipe()
        down, stdout = os.pipe()
        gateway = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "purplebox.gateway.cli", "wrap", "-p", str(profile),
            "-w", str(workspace), "--", "python3", str(server), "legacy",
            stdin=stdin, stdout=stdout,
        )  # fmt: skip
        os.close(stdin)
        os.close(stdout)
        wire = wire_type(down, up)
        try:
            await wire.initialize()
            wire.send({
                "jsonrpc": "2.0", "id": 7, "method": "tools/call",
                "params": {"name": "echo", "arguments": {"text": "h\u200bi"}},
            })  # fmt: skip
            async with asyncio.timeout(120):
                while not (
                    listed := await asyncio.to_thread(_purple, "approvals", "list", "--json")
                ).stdout:
                    assert listed.returncode == 0, listed.stderr
            question = json.loads(listed.stdout)
            assert (question["server"], question["tool"]) == ("python3", "echo")
            shown = await asyncio.to_thread(_purple, "approvals", "show", question["id"])
            assert r"h\u{200b}i" in shown.stdout
            assert "echoes are loud" in shown.stdout
            done = await asyncio.to_thread(_purple, "approvals", verb, question["id"][:4])
            assert done.returncode == 0, done.stderr
            answer = (await wire.answer(7))["result"]
            assert bool(answer.get("isError")) == (verb == "deny")
            late = await asyncio.to_thread(_purple, "approvals", "allow", question["id"])
            assert late.returncode == 1
            assert "is open" in late.stderr
        finally:
            await wire.pipe.aclose()
            gateway.send_signal(signal.SIGTERM)
            await gateway.wait()

    asyncio.run(go())
    assert _purple("approvals", "list").stdout == "no open questions\n"
