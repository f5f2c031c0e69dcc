"""Processes in the background: their tools, whose they are, what they leave."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from purplebox import Gateway
from purplebox.gateway import processes
from purplebox.gateway.audit import spans
from purplebox.gateway.audit.log import entries
from purplebox.gateway.calls import Outcome
from purplebox.gateway.processes import Tail
from purplebox.gateway.tools import TOOLS
from purplebox.gateway.wire.builtin import BuiltIns
from purplebox.gateway.wire.router import Single
from purplebox.policies import Policy, load_policy

pytestmark = pytest.mark.anyio
# pyright: reportUnknownLambdaType=false

RawClient = Callable[..., AbstractAsyncContextManager[Any]]
BASE = load_policy("base").model_dump(by_alias=True)
PUSH = {"tool": "shell", "when": 'args.command.contains("git push")', "effect": "deny", "reason": "no"}  # fmt: skip
LONG = {"wait_seconds": 60}  # at the most: it ends with the first line
GO = "until test -e go; do sleep 0.02; done"  # what starts it takes none of its output
PROMPT = "while read x; do echo got $x; done; echo over"


def policy(**sections: Any) -> Policy:
    return Policy.model_validate({**BASE, "name": "test", **sections})


@asynccontextmanager
async def entered(
    tmp_path: Path, held: Policy | None = None, **more: Any
) -> AsyncGenerator[Gateway]:
    (tmp_path / "workspace").mkdir(exist_ok=True)
    async with Gateway(
        held or policy(), tmp_path / "workspace", audit_log=tmp_path / "log", **more
    ) as gateway:
        yield gateway


async def start(gateway: Gateway, command: str, **more: Any) -> str:
    outcome = await gateway.call("process_start", {"command": command, "wait_seconds": 0}, **more)
    assert outcome.content is not None, outcome.text
    return str(outcome.content["process_id"])


async def run(gateway: Gateway, command: str, **more: Any) -> str:
    """Start one and wait for its end, which may be there when it has been started."""
    said = content(await gateway.call("process_start", {"command": command, **LONG}, **more))
    asked = {"process_id": said["process_id"], **LONG}
    while said["running"]:
        said = content(await gateway.call("process_output", asked, **more))
    return str(said["process_id"])


def content(outcome: Outcome) -> dict[str, Any]:
    assert outcome.content is not None, outcome.text
    return outcome.content


def records(tmp_path: Path, tool: str = "process") -> list[dict[str, Any]]:
    """Begin and end of each record of `tool`, as one."""
    found: dict[str, dict[str, Any]] = {}
    for _, entry in entries(tmp_path / "log"):
        if entry is not None:
            kept = found.setdefault(entry["call_id"], {"events": []})
            kept["events"].append(entry["event"])
            kept.update(entry)
    return [record for record in found.values() if record.get("tool") == tool]


async def test_a_conversation(tmp_path: Path) -> None:
    async with entered(tmp_path) as gateway:
        begun = await gateway.call(
            "process_start", {"command": f"echo hello; {PROMPT}; exit 3", **LONG}
        )
        assert begun.reason == "completed"
        said = content(begun)
        assert (said["running"], said["output"], said["exit_code"]) == (True, "hello\n", None)
        assert said["enforcement"]["seccomp"]["status"] == "full"
        assert begun.text == f"hello\n[{said['process_id']} is running]"
        named = {"process_id": said["process_id"]}

        said = content(await gateway.call("process_input", {**named, **LONG, "input": "one\n"}))
        assert said["output"] == "got one\n"
        listed = content(await gateway.call("process_list"))["processes"]
        assert [(one["process_id"], one["running"]) for one in listed] == [
            (named["process_id"], True)
        ]
        closed = await gateway.call("process_input", {**named, **LONG, "close": True})
        output = content(closed)["output"]
        while (last := await gateway.call("process_output", named)) and content(last)["running"]:
            output += content(last)["output"]
        output += content(last)["output"]
        assert (output, content(last)["exit_code"], last.is_error) == ("over\n", 3, True)
        assert last.text.endswith(f"[{named['process_id']} has ended: exit status 3]")
        gone = await gateway.call("process_output", named)
        assert (gone.reason, gone.is_error) == ("operation_failed", True)
        assert content(await gateway.call("process_list")) == {"processes": []}


async def test_output_waits_for_a_line_or_for_its_time(tmp_path: Path) -> None:
    async with entered(tmp_path) as gateway:
        prompt = {"command": "printf 'name? '; read x; echo hi $x", "wait_seconds": 0}
        begun = content(await gateway.call("process_start", prompt))
        named, said = {"process_id": begun["process_id"]}, begun["output"]  # it may be quick
        asked = {**named, "wait_seconds": 0.3}
        while len(said) < 6:
            said += content(await gateway.call("process_output", asked))["output"]
        assert said == "name? "
        nothing = content(await gateway.call("process_output", {**named, "wait_seconds": 0.05}))
        assert (nothing["output"], nothing["running"]) == ("", True)
        answer = await gateway.call("process_input", {**named, **LONG, "input": "me\n"})
        assert content(answer)["output"] == "hi me\n"


async def test_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with entered(tmp_path) as gateway:
        trap = "trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 0.02; done"
        for command, force, told in (
            (trap, False, ("bye\n", 0, None)),
            (trap, True, ("", None, 9)),
            ("trap '' TERM; echo on; while :; do sleep 0.02; done", False, ("", None, 9)),
        ):
            begun = await gateway.call("process_start", {"command": command, **LONG})
            assert content(begun)["output"] == "on\n"
            deaf = command.startswith("trap ''")
            monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.3 if deaf else 120)
            stop = {"process_id": content(begun)["process_id"], "force": force}
            ended = await gateway.call("process_stop", stop)
            said = content(ended)
            assert said["output"].endswith(told[0])  # of a shell: of the signal, too
            assert (said["exit_code"], said["signal"]) == told[1:]
            assert (said["running"], ended.is_error) == (False, False)
    assert [record["stopped_by"] for record in records(tmp_path)] == ["process_stop"] * 3


async def test_a_process_leaves_a_record_of_its_own(tmp_path: Path) -> None:
    async with entered(tmp_path) as gateway:
        id = await run(gateway, "echo hello", client="me", session="1")
    (record,) = records(tmp_path)
    (begun,) = records(tmp_path, "process_start")
    assert record["events"] == begun["events"] == ["begin", "end"]
    assert record["started_by"] == begun["call_id"]
    assert (record["process_id"], record["client"], record["session"]) == (id, "me", "1")
    assert (record["reason"], record["exit_code"]) == ("completed", 0)
    assert record["arguments"]["command"] == "echo hello"
    assert record["usage"]["cpu_seconds"] >= 0


async def test_a_process_has_a_span_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(spans, "is_on", lambda: True)
    async with entered(tmp_path) as gateway:
        id = await run(gateway, "exit 4")
    found = {span.name: span for span in exporter.get_finished_spans()}
    span, parent = found["purple.process"], found["execute_tool process_start"]
    assert span.attributes is not None
    assert span.parent is not None
    assert parent.context is not None
    assert span.parent.span_id == parent.context.span_id
    assert span.attributes["purple.process.id"] == id
    assert span.attributes["process.exit.code"] == 4
    assert "purple.usage.cpu_seconds" in span.attributes
    provider.shutdown()


@pytest.mark.parametrize("tool", ["process_output", "process_input", "process_stop"])
@pytest.mark.parametrize(("client", "session"), [("other", "1"), ("me", "2"), ("", "")])
async def test_ids_of_others_name_nothing(
    tmp_path: Path, tool: str, client: str, session: str
) -> None:
    async with entered(tmp_path) as gateway:
        id = await start(gateway, "cat", client="me", session="1")
        arguments: dict[str, Any] = {"process_id": id}
        foreign = await gateway.call(tool, arguments, client=client, session=session)
        assert (foreign.reason, "has no process" in foreign.text) == ("operation_failed", True)
        listed = await gateway.call("process_list", client=client, session=session)
        assert content(listed) == {"processes": []}
        arguments |= {"wait_seconds": 0} if tool != "process_stop" else {}
        own = await gateway.call(tool, arguments, client="me", session="1")
        assert own.reason == "completed"  # the control
        assert content(own)["running"] == (tool != "process_stop")


async def test_sessions_and_gateways_end_what_they_have(
    tmp_path: Path, raw_client: RawClient
) -> None:
    workspace = tmp_path / "workspace"
    async with entered(tmp_path) as gateway:
        kept = await start(gateway, "sleep 60", client="me", session="kept")
        async with raw_client(lambda session: Single(BuiltIns(gateway))) as wire:
            await wire.initialize()
            beat = "while :; do date +%N > beat; echo on; sleep 0.01; done"
            asked = {"name": "process_start", "arguments": {"command": beat, **LONG}}
            answer = await wire.ask("tools/call", asked)
            assert answer["result"]["structuredContent"]["running"] is True
        before = (workspace / "beat").stat().st_mtime_ns
        await anyio.sleep(0.1)
        assert (workspace / "beat").stat().st_mtime_ns == before
        mine = await gateway.call("process_list", client="me", session="kept")
        assert [one["process_id"] for one in content(mine)["processes"]] == [kept]
    ended = {record["process_id"]: record for record in records(tmp_path)}
    assert (ended[kept]["stopped_by"], ended[kept]["reason"]) == ("gateway", "cancelled")
    other = next(record for id, record in ended.items() if id != kept)
    assert (other["stopped_by"], other["signal"]) == ("session", 9)


async def test_a_replaced_policy_ends_what_runs_under_it(tmp_path: Path) -> None:
    async with entered(tmp_path) as gateway:
        id = await start(gateway, f"{GO}; echo last words; sleep 60")
        (tmp_path / "workspace" / "go").touch()
        while not content(await gateway.call("process_list"))["processes"][0]["unread_bytes"]:
            await anyio.sleep(0.005)  # until it has spoken
        await gateway.replace(policy(description="another"))
        told = await gateway.call("process_output", {"process_id": id})
        assert content(told)["output"] == "last words\n"
        assert "has been replaced" in content(told)["notes"][-1]
        again = await start(gateway, "sleep 60")
        assert content(await gateway.call("process_list"))["processes"][0]["process_id"] == again
        await gateway.replace(gateway.policy)  # the control: the same one
        assert content(await gateway.call("process_list"))["processes"][0]["running"]
    assert records(tmp_path)[0]["stopped_by"] == "policy"


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    async with entered(tmp_path) as gateway:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                asked = {"command": "sleep 60", "wait_seconds": 60}
                group.start_soon(gateway.call, "process_start", asked)
                while not content(await gateway.call("process_list"))["processes"]:
                    await anyio.sleep(0.01)
                scope.cancel()
        assert scope.cancelled_caught
        (listed,) = content(await gateway.call("process_list"))["processes"]
        assert listed["running"] is False
    assert records(tmp_path)[0]["stopped_by"] == "cancellation"


async def test_how_many(tmp_path: Path) -> None:
    resources = {**BASE["resources"], "background": 2}
    async with entered(tmp_path, policy(resources=resources)) as gateway:
        first = await start(gateway, "sleep 60")
        await start(gateway, "sleep 60")
        one_more = await gateway.call("process_start", {"command": "sleep 60"})
        assert (one_more.reason, "resources.background" in one_more.text) == ("rate_limited", True)
        await start(gateway, "sleep 60", session="another")  # of a session, that is
        await gateway.call("process_stop", {"process_id": first, "force": True})
        await start(gateway, "sleep 60")


async def test_all_sessions_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST", 2)
    async with entered(tmp_path) as gateway:
        for session in "12":
            await start(gateway, "sleep 60", session=session)
        refused = await gateway.call("process_start", {"command": "true"}, session="3")
        assert refused.reason == "rate_limited"
        await gateway.end_session("1")
        await start(gateway, "sleep 60", session="3")


async def test_what_has_ended_makes_room_the_longest_ended_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MOST", 3)
    async with entered(tmp_path) as gateway:
        await start(gateway, "sleep 60", session="1")
        for session in "23":  # nobody asks about either
            (tmp_path / "workspace" / "go").unlink(missing_ok=True)
            await start(gateway, f"{GO}; echo {session}", session=session)
            (tmp_path / "workspace" / "go").touch()
            while gateway.background()[-1]["running"]:
                await anyio.sleep(0.01)
        await start(gateway, "sleep 60", session="4")
        assert [one["session"] for one in gateway.background()] == ["1", "3", "4"]
        (kept,) = content(await gateway.call("process_list", session="3"))["processes"]
        said = await gateway.call("process_output", {"process_id": kept["process_id"]}, session="3")
        assert content(said)["output"] == "3\n"
        await start(gateway, "sleep 60", session="5")
        refused = await gateway.call("process_start", {"command": "true"}, session="6")
        assert refused.reason == "rate_limited"  # the control: all of them run


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [("full", "echo [redacted]; exec sleep 60"), ("hash", "sha256 "), ("none", "")],
)
async def test_a_person_sees_a_command_as_it_may_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, shown: str
) -> None:
    monkeypatch.setenv("TOKEN", "planted-7f3a9c1e5b")
    held = policy(environment={"pass": ("TOKEN",), "set": {}}, audit={"arguments": arguments})
    async with entered(tmp_path, held) as gateway:
        id = await start(gateway, "echo planted-7f3a9c1e5b; exec sleep 60", client="c", session="s")
        (one,) = gateway.background()
        assert (one["process_id"], one["client"], one["session"]) == (id, "c", "s")
        assert (one["policy"], one["running"]) == ("test", True)
        assert one["command"].startswith(shown) and "planted" not in one["command"]
        assert bool(one["command"]) == bool(shown)


async def test_none_where_the_policy_has_none(tmp_path: Path) -> None:
    ours = [name for name in TOOLS if name.startswith("process_")]
    resources = {**BASE["resources"], "background": 0}
    async with entered(tmp_path, policy(resources=resources)) as gateway:
        assert not {tool.name for tool in gateway.tools()} & set(ours)
        refused = await gateway.call("process_start", {"command": "true"})
        assert (refused.reason, "resources.background" in refused.text) == ("policy_denied", True)
    async with entered(tmp_path) as gateway:
        assert {tool.name for tool in gateway.tools()} >= set(ours)
    assert load_policy("strict").resources.background == 0


async def test_what_is_denied_for_shell_is_denied_here(tmp_path: Path) -> None:
    async with entered(tmp_path, policy(tools={"rules": (PUSH,)})) as gateway:
        told = [
            await gateway.call("shell", {"command": "git push"}),
            await gateway.call("process_start", {"command": "git push"}),
        ]
        id = await start(gateway, "sh")
        told.append(await gateway.call("process_input", {"process_id": id, "input": "git push\n"}))
        assert [(o.reason, o.decision.rule) for o in told] == [
            ("policy_denied", "tools.rules[0]")
        ] * 3  # fmt: skip
        allowed = await gateway.call(
            "process_input", {"process_id": id, **LONG, "input": "echo ok\n"}
        )
        assert content(allowed)["output"] == "ok\n"


async def test_what_is_allowed_for_shell_is_not_allowed_here(tmp_path: Path) -> None:
    only = {"tool": "shell", "effect": "allow"}
    own = {"tool": "process_*", "effect": "allow"}
    async with entered(tmp_path, policy(tools={"default": "deny", "rules": (only,)})) as gateway:
        assert (await gateway.call("shell", {"command": "true"})).reason == "completed"
        refused = await gateway.call("process_start", {"command": "true"})
        assert (refused.reason, refused.decision.rule) == ("policy_denied", "tools.default")
    async with entered(tmp_path, policy(tools={"default": "deny", "rules": (own,)})) as gateway:
        assert (await gateway.call("process_start", {"command": "true"})).reason == "completed"


async def test_an_approval_for_good_is_for_this_tool_too(tmp_path: Path) -> None:
    ask = {**PUSH, "effect": "ask"}
    approved = {"tool": "process_start", "arguments": {"command": "echo git push"}}
    held = policy(tools={"rules": (ask,), "approved": (approved,)})
    async with entered(tmp_path, held) as gateway:
        allowed = await gateway.call("process_start", {"command": "echo git push"})
        assert allowed.decision.rule == "tools.approved[0]"
        asked = await gateway.call("process_start", {"command": "git push"})
        assert asked.reason == "approval_required"
        assert (await gateway.call("shell", {"command": "echo git push"})).reason == "approval_required"  # fmt: skip


async def test_a_limit_on_shell_counts_these(tmp_path: Path) -> None:
    limit = {"tool": "shell", "calls": 2, "every": "1h"}
    async with entered(tmp_path, policy(limits=(limit,))) as gateway:
        await gateway.call("shell", {"command": "true"})
        await gateway.call("process_start", {"command": "true"})
        for tool in ("shell", "process_start"):
            assert (await gateway.call(tool, {"command": "true"})).reason == "rate_limited"
        assert (await gateway.call("process_list")).reason == "completed"


async def test_a_flood_is_bounded_and_its_end_is_kept(tmp_path: Path) -> None:
    resources = {**BASE["resources"], "output_limit": "64K"}
    async with entered(tmp_path, policy(resources=resources)) as gateway:
        id = await start(gateway, f"{GO}; seq 200000; echo last")
        (tmp_path / "workspace" / "go").touch()
        async with asyncio.timeout(120):
            while content(await gateway.call("process_list"))["processes"][0]["running"]:
                await asyncio.sleep(0.02)
        output = content(await gateway.call("process_output", {"process_id": id}))["output"]
    assert output.endswith("200000\nlast\n")
    assert output.startswith("\n[")
    assert " bytes left out]\n" in output[:60]
    assert len(output) < (64 << 10) + 100


async def test_secrets_are_redacted_also_across_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "planted-7f3a9c1e5b")
    environment: dict[str, Any] = {"pass": ("TOKEN",), "set": {}}
    audit = {"output": "full"}
    network = {
        "isolated": False, "tls": "inspect", "credentials": (
            {"host": "a.test", "header": "X", "value": "${secret:TOKEN}", "placeholder_env": "P"},)
    }  # fmt: skip
    held = policy(environment=environment, audit=audit, network=network)
    async with entered(tmp_path, held) as gateway:
        id = await start(gateway, "printf planted-7f; read x; echo 3a9c1e5b; sleep 60")
        named = {"process_id": id}
        first = await gateway.call("process_output", {**named, "wait_seconds": 0.3})
        second = await gateway.call("process_input", {**named, **LONG, "input": "\n"})
        said = content(first)["output"] + content(second)["output"]
    assert "3a9c1e5b" not in said
    assert "redacted" in said.lower()


async def test_limits_end_it_and_are_told(tmp_path: Path) -> None:
    async with entered(tmp_path) as gateway:
        begun = await gateway.call(
            "process_start", {"command": "sleep 60", "timeout_seconds": 0.2, **LONG}
        )
        said = content(begun)
        assert (said["running"], said["reason"], begun.is_error) == (False, "timed_out", True)
        assert said["notes"][0].startswith("Limit: timeout_seconds reached")
    assert records(tmp_path)[0]["reason"] == "timed_out"


async def test_input_that_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from purplebox.gateway.tools import processes as tools

    monkeypatch.setattr(tools, "_INPUT_SECONDS", 0.2)
    async with entered(tmp_path) as gateway:
        named = {"process_id": await start(gateway, "sleep 60")}
        told = await gateway.call("process_input", {**named, "input": "x" * 1_000_000})
        assert (told.reason, "does not read" in told.text) == ("operation_failed", True)
        await gateway.call("process_input", {**named, "close": True, "wait_seconds": 0})
        told = await gateway.call("process_input", {**named, "input": "x"})
        assert "has been closed" in told.text


SERVER = """
import socket
server = socket.create_server(("127.0.0.1", PORT))
print("ready", flush=True)
while True:
    client, _ = server.accept()
    client.sendall(b"served")
    client.close()
"""


async def served(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await asyncio.wait_for(reader.read(), 120)
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


async def test_a_published_port_leads_to_a_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
    network = {"isolated": False, "listen": (port,)}
    async with entered(tmp_path, policy(network=network)) as gateway:
        (tmp_path / "workspace" / "server.py").write_text(SERVER.replace("PORT", str(port)))
        assert await served(port) == b"reset"  # the control: nobody serves
        server = {"command": "exec python3 server.py", **LONG}
        begun = content(await gateway.call("process_start", server))
        assert begun["output"] == "ready\n"
        assert await served(port) == b"served"
        await gateway.call("shell", {"command": "true"})
        assert await served(port) == b"served"
        await gateway.call("process_stop", {"process_id": begun["process_id"]})
        assert await served(port) == b"reset"
    (record,) = records(tmp_path)
    assert [(c["via"], c["port"]) for c in record["connections"]] == [("listen", port)] * 2


ASK = "python3 -c 'import socket; print(socket.create_connection((\"127.0.0.1\", 8000)).recv(9))'"


async def test_a_port_of_a_process_is_on_its_session_s_localhost(tmp_path: Path) -> None:
    async with entered(tmp_path) as gateway:
        (tmp_path / "workspace" / "server.py").write_text(SERVER.replace("PORT", "8000"))
        server = {"command": "exec python3 server.py", **LONG}
        begun = content(await gateway.call("process_start", server, client="me", session="1"))
        assert begun["output"] == "ready\n"
        ask = {"command": ASK}
        reached = await gateway.call("shell", ask, client="me", session="1")
        assert content(reached)["stdout"] == "b'served'\n"
        for client, session in (("me", "2"), ("other", "1"), ("", "")):
            alone = await gateway.call("shell", ask, client=client, session=session)
            assert "ConnectionRefusedError" in content(alone)["stderr"]
        named = {"process_id": begun["process_id"]}
        await gateway.call("process_stop", named, client="me", session="1")
        ended = await gateway.call("shell", ask, client="me", session="1")
        assert "ConnectionRefusedError" in content(ended)["stderr"]
    made = [r["connections"] for r in records(tmp_path, "shell") if "connections" in r]
    ((told,),) = made
    assert (told["via"], told["name"]) == ("loopback", f"process {begun['process_id']}")
    assert (told["port"], told["bytes_in"]) == (8000, 6)


async def test_a_policy_may_keep_localhost_apart(tmp_path: Path) -> None:
    async with entered(tmp_path, policy(network={"loopback": "sandbox"})) as gateway:
        (tmp_path / "workspace" / "server.py").write_text(SERVER.replace("PORT", "8000"))
        named = {"process_id": await start(gateway, "sh 2>&1"), **LONG}
        for line, output in (("python3 server.py &", "ready\n"), (ASK, "b'served'\n")):
            told = await gateway.call("process_input", {**named, "input": f"{line}\n"})
            assert content(told)["output"] == output
        alone = await gateway.call("shell", {"command": ASK})
        assert "ConnectionRefusedError" in content(alone)["stderr"]


@pytest.fixture
def tail() -> Iterator[Tail]:
    yield Tail(4)


def test_a_tail_keeps_the_last(tail: Tail) -> None:
    tail.add(b"abc")
    assert (len(tail), tail.is_over, tail.take()) == (3, False, (b"abc", 0))
    tail.add(b"abc")
    tail.add(b"defg")
    assert (tail.is_over, tail.take()) == (True, (b"defg", 3))
    assert tail.take() == (b"", 0)
