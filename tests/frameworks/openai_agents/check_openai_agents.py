"""OpenAI Agents: the shell's executor, function tools, and the sandbox of a SandboxAgent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import pytest
from agents import ShellActionRequest, ShellCallData, ShellCommandRequest
from agents.sandbox import Manifest
from agents.sandbox.entries import File
from agents.sandbox.errors import (
    ExecTimeoutError,
    WorkspaceArchiveReadError,
    WorkspaceReadNotFoundError,
)
from agents.sandbox.manifest import Environment
from agents.tool_context import ToolContext

from purplebox import Gateway
from purplebox.gateway.audit.log import entries
from purplebox.integrations.openai_agents import (
    PurpleSandboxClient,
    purple_shell,
    purple_tools,
)
from purplebox.policies import Policy, load_policy

pytestmark = pytest.mark.anyio


def with_rules(*rules: dict[str, Any]) -> Policy:
    base = load_policy("code-assistant").model_dump(by_alias=True)
    return Policy.model_validate({**base, "name": "ruled", "tools": {"rules": rules}})


DENY = {
    "tool": "shell",
    "when": "args.command.contains('rm -rf')",
    "effect": "deny",
    "reason": "no",
}


async def test_the_shell_tools_commands_run_in_sandboxes(workspace: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with Gateway(with_rules(DENY), workspace, audit_log=log) as gateway:
        commands = ["echo out; echo err >&2; exit 3", "rm -rf .", "sleep 60", "pwd"]
        action = ShellActionRequest(commands=commands, timeout_ms=1000)
        request = ShellCommandRequest(cast(Any, None), ShellCallData(call_id="1", action=action))
        ran, refused, late, where = (await purple_shell(gateway)(request)).output
    assert (ran.stdout, ran.stderr, ran.exit_code) == ("out\n", "err\n", 3)
    assert (refused.exit_code, refused.stderr.startswith("[policy_denied]")) == (126, True)
    assert late.status == "timeout"
    assert where.stdout.strip() == str(workspace)
    ends = [e for _, e in entries(log) if e and e["event"] == "end"]
    assert [e["reason"] for e in ends] == ["completed", "policy_denied", "timed_out", "completed"]
    begun = [e for _, e in entries(log) if e and e["event"] == "begin"]
    assert {e["client"] for e in begun} == {"openai-agents"}


async def test_function_tools_are_the_gateways(workspace: Path, tmp_path: Path) -> None:
    async with Gateway(with_rules(DENY), workspace, audit_log=tmp_path / "log") as gateway:
        (shell,) = purple_tools(gateway, ["shell"])
        context = cast("ToolContext[Any]", None)
        assert await shell.on_invoke_tool(context, '{"command": "echo hi"}') == "hi"
        refused = await shell.on_invoke_tool(context, '{"command": "rm -rf ."}')
        assert refused.startswith("[policy_denied]")
        assert (await shell.on_invoke_tool(context, "nonsense")).startswith("[invalid_arguments]")


async def test_a_sandbox_session_is_the_workspace(workspace: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    (workspace / "own").write_text("mine")
    rule = {"tool": "read_file", "when": "paths.exists(p, glob(p, '**/own'))", "effect": "deny", "reason": "no"}  # fmt: skip
    policy = with_rules(DENY, rule)
    async with Gateway(policy, workspace, audit_log=tmp_path / "log") as gateway:
        client = PurpleSandboxClient(gateway)
        manifest = Manifest(
            entries={"notes.txt": File(content=b"two words")},
            environment=Environment(value={"GREETING": "hello"}),
        )
        session = await client.create(manifest=manifest)
        async with session:
            assert await session.running()
            assert (workspace / "notes.txt").read_bytes() == b"two words"
            done = await session.exec("wc -w < notes.txt; echo $GREETING")
            assert (done.stdout, done.exit_code) == (b"2\nhello\n", 0)
            outside = await session.exec(f"cat {secret}")
            assert b"No such file or directory" in outside.stderr
            assert (await session.exec("rm -rf .")).exit_code == 126
            with pytest.raises(ExecTimeoutError):
                await session.exec("sleep 60", timeout=0.5)
            await session.write(Path("made"), io.BytesIO(b"\0\xff"))
            assert (await session.read(Path("made"))).read() == b"\0\xff"
            with pytest.raises(WorkspaceReadNotFoundError):
                await session.read(Path("absent"))
            with pytest.raises(WorkspaceArchiveReadError) as refused:
                await session.read(Path("own"))
            assert "[policy_denied]" in str(refused.value.__cause__)
            assert "made" in {Path(e.path).name for e in await session.ls(".")}
            await session.mkdir(Path("d"))
            await session.rm(Path("made"))
            tar = (await session.persist_workspace()).read()
            (workspace / "notes.txt").unlink()
            await session.hydrate_workspace(io.BytesIO(tar))
            assert (workspace / "notes.txt").read_bytes() == b"two words"
            state = client.serialize_session_state(session.state)
        await client.delete(session)
        assert (workspace / "own").exists()
        resumed = await client.resume(client.deserialize_session_state(state))
        async with resumed:
            assert (await resumed.exec("cat notes.txt")).stdout == b"two words"
        assert sorted(p.name for p in workspace.iterdir()) == ["d", "notes.txt", "own"]
        with pytest.raises(ValueError, match="the workspace is"):
            await client.create(manifest=Manifest(root="/elsewhere"))
