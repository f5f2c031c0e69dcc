"""What changes on the disk is put in force while the gateway runs; what is broken is not, and is said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.gateway.approvals import Approvals, Board
from purplebox.gateway.audit import verify
from purplebox.gateway.audit.log import entries
from purplebox.gateway.cli import main
from purplebox.gateway.reasons import Reason
from purplebox.isolation import SetupError
from purplebox.policies import Policy, PolicySource, load_policy

ASSISTANT = load_policy("code-assistant")
PROFILE = "name: mine\nextends: {base}\ntools: {{rules: [{{tool: {tool}, effect: deny, reason: not now}}]}}\n"
SERVER = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    result = {"content": [{"type": "text", "text": "ran"}]}
    if message.get("method") == "initialize":
        result = {"protocolVersion": message["params"]["protocolVersion"],
                  "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}
    elif message.get("method") == "tools/list":
        result = {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


def profile(tool: str, base: str = "code-assistant") -> str:
    return PROFILE.format(tool=tool, base=base)


def replaced(path: Path, text: str) -> None:
    """As an editor saves."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


@contextlib.asynccontextmanager
async def running(wire_type: Any, *arguments: str) -> AsyncGenerator[tuple[Any, Any]]:
    stdin, up = os.pipe()
    down, stdout = os.pipe()
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "purplebox.gateway.cli", *arguments,
        stdin=stdin, stdout=stdout, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(stdin)
    os.close(stdout)
    wire = wire_type(down, up)
    try:
        await wire.initialize()
        yield wire, gateway
    finally:
        await wire.pipe.aclose()
        gateway.send_signal(signal.SIGTERM)
        await gateway.wait()


async def call(wire: Any, tool: str, **arguments: Any) -> str:
    answer = await wire.ask("tools/call", {"name": tool, "arguments": arguments})
    if "error" in answer:
        return "error"
    return "refused" if answer["result"].get("isError") else "ran"


async def becomes(wanted: object, ask: Callable[[], Any]) -> None:
    async with asyncio.timeout(120):
        while await ask() != wanted:
            await asyncio.sleep(0.05)


async def said(gateway: Any, words: str) -> None:
    async with asyncio.timeout(120):
        while words not in (await gateway.stderr.readline()).decode():
            pass


def reloads(log: Path) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for _, entry in entries(log):
        if entry:
            found.setdefault(entry["call_id"], {}).update(entry)
    return [entry for entry in found.values() if entry["tool"] == "reload"]


def test_a_changed_policy_is_in_force_and_a_broken_one_is_not(
    workspace: Path,
    private_home: Path,
    wire_type: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private_home))
    path = workspace.parent / "mine.yaml"
    path.write_text(profile("shell"))
    log = private_home / "state" / "purple" / "audit.jsonl"

    async def go() -> None:
        async with running(wire_type, "serve", "-p", str(path), "-w", str(workspace)) as (
            wire,
            gateway,
        ):

            async def shell() -> str:
                return await call(wire, "shell", command="true")

            async def ps() -> int:
                return await asyncio.to_thread(main, ["ps"])

            assert await shell() == "refused"
            replaced(path, profile("delete"))
            await becomes("ran", shell)
            broken = {
                "unknown key": "name: mine\nextends: code-assistant\ntool: {}\n",
                "not YAML": "name: [\n",
                "a policy is a mapping": "",
                "not enforced": "name: mine\nextends: code-assistant\nfilesystem: {workspace: overlay}\n",
            }
            for words, text in broken.items():
                replaced(path, text)
                await said(gateway, "reload refused")
                assert await shell() == "ran", words
                await becomes(1, ps)  # it is said for as long as it holds
                assert "the old one is in force" in capsys.readouterr().out
            replaced(path, profile("shell"))
            await becomes("refused", shell)
            await becomes(0, ps)
            path.unlink()
            await said(gateway, "cannot be read")
            assert await shell() == "refused"

    asyncio.run(go())
    found = reloads(log)
    assert [entry["reason"] for entry in found] == [
        "completed", *["reload_refused"] * 4, "completed", "reload_refused",
    ]  # fmt: skip
    assert "unknown key" in found[1]["decision_reason"]
    # The version that the refusals name is the one that stayed.
    assert {entry["policy_version"] for entry in found[:5]} == {found[0]["policy_version"]}
    assert not verify(log).problems


@pytest.mark.parametrize("inside", [True, False])
def test_a_command_cannot_change_the_policy_that_it_runs_under(
    inside: bool, workspace: Path, wire_type: Any
) -> None:
    path = (workspace if inside else workspace.parent) / "mine.yaml"
    path.write_text(profile("delete"))
    (workspace / "a").write_text("x")
    evil = profile("move")

    async def go() -> None:
        async with running(wire_type, "serve", "-p", str(path), "-w", str(workspace)) as (
            wire,
            gateway,
        ):
            assert await call(wire, "delete", path="a") == "refused"
            if inside:
                # What an agent would do.
                assert await call(wire, "write_file", path="mine.yaml", content=evil) == "ran"
                await said(gateway, "commands in the sandbox can write here")
                assert await call(wire, "delete", path="a") == "refused"
            else:  # the control: the same change by the person, elsewhere
                replaced(path, evil)
                await said(gateway, "reloaded")
                assert await call(wire, "delete", path="a") == "ran"

    asyncio.run(go())
    assert (workspace / "a").exists() == inside


def test_a_projects_profile_is_in_force_once_it_is_accepted(
    workspace: Path, wire_type: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a workspace that commands write to: what was accepted is theirs to change no more."""
    monkeypatch.chdir(workspace)
    path = workspace / ".purple" / "code-assistant.yaml"
    path.parent.mkdir()
    path.write_text(profile("delete"))
    (workspace / "a").write_text("x")
    assert main(["profile", "accept", "code-assistant", "--yes"]) == 0

    async def go() -> None:
        async with running(wire_type, "serve") as (wire, gateway):
            assert await call(wire, "delete", path="a") == "refused"
            replaced(path, profile("move"))
            await said(gateway, "has changed since it was accepted")
            assert await call(wire, "delete", path="a") == "refused"
            arguments = ["profile", "accept", "code-assistant", "--yes"]
            assert await asyncio.to_thread(main, arguments) == 0
            await said(gateway, "reloaded: mine")
            assert await call(wire, "delete", path="a") == "ran"
            # What it extends begins to be the project's, too.
            replaced(path.with_name("base.yaml"), "name: base\nextends: base\n")
            await said(gateway, "nobody has accepted")

    asyncio.run(go())


def test_what_turns_up_in_a_project_is_not_read_for_a_policy_that_has_nothing_of_it(
    workspace: Path, wire_type: Any
) -> None:
    path = workspace.parent / "mine.yaml"
    path.write_text(profile("delete"))
    (workspace / "a").write_text("x")

    async def go() -> None:
        async with running(wire_type, "serve", "-p", str(path), "-w", str(workspace)) as (
            wire,
            gateway,
        ):
            assert await call(wire, "delete", path="a") == "refused"
            (workspace / ".purple").mkdir()
            evil = "name: base\nextends: base\n"
            (workspace / ".purple" / "base.yaml").write_text(evil)
            replaced(path, profile("move"))  # the person's own change is not held up by it
            await said(gateway, "reloaded: mine")
            assert await call(wire, "delete", path="a") == "ran"

    asyncio.run(go())


def test_a_hangup_reloads_at_once(workspace: Path, wire_type: Any) -> None:
    path = workspace.parent / "mine.yaml"
    path.write_text(profile("shell"))

    async def go() -> None:
        async with running(wire_type, "serve", "-p", str(path), "-w", str(workspace)) as (
            wire,
            gateway,
        ):
            assert await call(wire, "shell", command="true") == "refused"
            replaced(path, profile("delete"))
            gateway.send_signal(signal.SIGHUP)
            await said(gateway, "reloaded: mine")
            assert await call(wire, "shell", command="true") == "ran"

    asyncio.run(go())


def test_a_call_in_flight_ends_under_the_version_that_it_began_under(
    workspace: Path, tmp_path: Path
) -> None:
    files = ASSISTANT.filesystem.model_copy(update={"workspace": "read"})
    reading = ASSISTANT.model_copy(update={"name": "reading", "filesystem": files})

    async def go() -> None:
        async with Gateway(ASSISTANT, workspace, audit_log=tmp_path / "log") as gateway:
            command = "echo > started; while ! test -e go; do sleep 0.05; done; echo > made"
            before = gateway.version.engine
            task = asyncio.create_task(gateway.call("shell", {"command": command}))
            while not (workspace / "started").exists():
                await asyncio.sleep(0.01)
            await gateway.replace(reading)
            assert (await gateway.call("shell", {"command": "echo > other"})).is_error
            assert gateway._old == [before]
            (workspace / "go").touch()
            assert not (await task).is_error
            assert gateway._old == []

    asyncio.run(go())
    assert (workspace / "made").exists()
    assert not (workspace / "other").exists()
    begun = [e for _, e in entries(tmp_path / "log") if e and e["event"] == "begin"]
    assert [e["policy_version"] for e in begun] == [ASSISTANT.digest, reading.digest]


def test_a_policy_that_cannot_be_held_leaves_the_old_one(workspace: Path, tmp_path: Path) -> None:
    unheld = Policy.model_validate(
        {**ASSISTANT.model_dump(by_alias=True), "capabilities": {"keep": ("CAP_KILL",)}}
    )

    async def go() -> None:
        async with Gateway(ASSISTANT, workspace, audit_log=tmp_path / "log") as gateway:
            with pytest.raises(SetupError):
                await gateway.replace(unheld)
            assert gateway.policy == ASSISTANT
            assert not (await gateway.call("shell", {"command": "true"})).is_error

    asyncio.run(go())


def test_a_change_while_a_person_is_asked_is_a_no(workspace: Path, tmp_path: Path) -> None:
    fields = ASSISTANT.model_dump(by_alias=True)
    asking = Policy.model_validate({**fields, "tools": {"default": "ask"}})
    other = Policy.model_validate({**fields, "name": "other", "tools": {"default": "ask"}})

    async def go() -> None:
        board = Board()
        async with Gateway(
            asking, workspace, audit_log=tmp_path / "log", approver=Approvals([board])
        ) as gateway:
            task = asyncio.create_task(gateway.call("shell", {"command": "touch made"}))
            while not board.questions():
                await asyncio.sleep(0.01)
            await gateway.replace(other)
            assert (await task).reason is Reason.APPROVAL_VOID

    asyncio.run(go())
    assert not (workspace / "made").exists()


def test_servers_come_go_and_change_with_their_configuration(
    workspace: Path, wire_type: Any
) -> None:
    (workspace / "server.py").write_text(SERVER)
    config = workspace.parent / "servers.json"

    def servers(*names: str, **more: Any) -> str:
        spec = {"command": "/usr/bin/python3", "args": ["server.py"], **more}
        return json.dumps({"mcpServers": dict.fromkeys(names, spec)})

    config.write_text(servers("one"))

    async def go() -> None:
        arguments = ("serve", "-w", str(workspace), "--config", str(config))
        async with running(wire_type, *arguments) as (wire, gateway):

            async def named() -> str:
                tools = (await wire.ask("tools/list"))["result"]["tools"]
                return " ".join(t["name"] for t in tools if "__" in t["name"])

            assert await named() == "one__hello"
            replaced(config, servers("one", "two"))
            await wire.until(lambda m: m.get("method") == "notifications/tools/list_changed")  # pyright: ignore[reportUnknownLambdaType]
            assert await named() == "one__hello two__hello"
            assert await call(wire, "two__hello") == "ran"
            replaced(config, servers("one", "two", oops=1))
            await said(gateway, "unknown key")
            assert await call(wire, "one__hello") == "ran"
            replaced(config, servers("two"))
            await becomes("two__hello", named)
            assert await call(wire, "one__hello") == "error"
            replaced(config, servers("two", profile="base"))
            await said(gateway, "reloaded")
            assert await call(wire, "two__hello") == "ran"

    asyncio.run(go())


def test_a_wrapped_servers_rules_change_and_its_sandbox_does_not(
    workspace: Path, wire_type: Any
) -> None:
    (workspace / "server.py").write_text(SERVER)
    path = workspace.parent / "mine.yaml"
    path.write_text(profile("hello", "mcp-server"))

    async def go() -> None:
        arguments = (
            "wrap",
            "-p",
            str(path),
            "-w",
            str(workspace),
            "--",
            "/usr/bin/python3",
            "server.py",
        )
        async with running(wire_type, *arguments) as (wire, gateway):

            async def hello() -> str:
                return await call(wire, "hello")

            assert await hello() == "refused"
            replaced(path, profile("other", "mcp-server"))
            await becomes("ran", hello)
            replaced(path, profile("hello", "base"))
            await said(gateway, "restart it")
            assert await hello() == "ran"

    asyncio.run(go())


def test_a_stamp_changes_with_each_file_that_a_policy_is_made_of(private_home: Path) -> None:
    directory = private_home / "config" / "purple" / "profiles"
    directory.mkdir(parents=True)
    (directory / "child.yaml").write_text("name: child\nextends: parent\n")
    source = PolicySource(name="child")
    stamps = [source.stamp()]
    for name, text in (
        ("parent", "name: parent\nextends: strict\n"),  # appears
        ("parent", "name: parent\nextends: base\n"),
        ("base", "name: base\nextends: base\n"),  # goes before the shipped one
        ("child", "name: [\n"),
        ("child", "name: child\n"),
    ):
        (directory / f"{name}.yaml").write_text(text)
        assert source.stamp() == source.stamp()
        stamps.append(source.stamp())
    assert len(set(stamps)) == len(stamps)
