"""What a command has made under a protected name, and what stands in the way of moving it aside."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from purplebox.isolation import Engine, ProtectionError, Result, SetupError, guard
from purplebox.isolation.guard import Guard
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")
UNPROTECTED = BASE.model_copy(
    update={"filesystem": BASE.filesystem.model_copy(update={"protect": ()})}
)


def shell(workspace: Path, command: str, policy: Policy = BASE) -> Result:
    async def go() -> Result:
        async with Engine(policy, workspace) as engine:
            return await engine.run(["sh", "-c", command])

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("command", "names", "modes"),
    [
        ("mkdir -p .git/hooks; echo x > .git/config; chmod 555 .git", (".git/hooks", ".git/config"), (0o755, 0o555)),
        ("mkdir -p .git/hooks; echo x > .git/config; chmod 000 .git", (".git/hooks", ".git/config"), (0o755, 0)),
        ("mkdir .vscode; chmod 555 .", (".vscode",), (0o555, 0o755)),
        ("mkdir -p .git/hooks .vscode; chmod 555 .git; chmod 0 .", (".git/hooks", ".vscode"), (0, 0o555)),
    ],
)  # fmt: skip
def test_what_is_made_where_nothing_can_be_renamed_is_moved_aside(
    workspace: Path, command: str, names: tuple[str, ...], modes: tuple[int, int]
) -> None:
    git = workspace / ".git"
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    result = shell(workspace, command)
    left = workspace.stat().st_mode & 0o777
    workspace.chmod(0o755)
    assert (left, git.stat().st_mode & 0o777) == modes  # as the command has left them
    git.chmod(0o755)
    assert sorted(result.moved_aside) == sorted(
        f"{name} was moved to {name}.purple-quarantine-1" for name in names
    )
    assert not any(os.path.lexists(workspace / name) for name in names)
    assert shell(workspace, command, UNPROTECTED).moved_aside == ()  # the control
    workspace.chmod(0o755)
    git.chmod(0o755)
    assert all(os.path.lexists(workspace / name) for name in names)


def test_what_is_closed_is_looked_through_for_patterns(workspace: Path) -> None:
    guarded = Guard(str(workspace), [], ["*.key"])
    before = guarded.look()
    (workspace / "a.key").write_text("")
    workspace.chmod(0)
    assert guarded.move_aside(before) == ("a.key was moved to a.key.purple-quarantine-1",)
    assert workspace.stat().st_mode & 0o777 == 0
    workspace.chmod(0o755)


def refuse(monkeypatch: pytest.MonkeyPatch, function: str, code: int, names: set[str]) -> None:
    """Have a function of `os` fail for some names."""
    real = getattr(os, function)

    def fails(name: str, *rest: Any, **more: Any) -> Any:
        if name in names:
            raise OSError(code, os.strerror(code))
        return real(name, *rest, **more)

    monkeypatch.setattr(os, function, fails)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EPERM, errno.EACCES])
def test_what_cannot_be_moved_aside_is_an_error_until_it_is_gone(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            with monkeypatch.context() as patched:
                refuse(patched, "rename", code, {".envrc", ".mcp.json"})
                with pytest.raises(ProtectionError) as caught:
                    await engine.run(["sh", "-c", "mkdir .vscode; echo > .envrc; echo > .mcp.json"])
                said = f"(.envrc|.mcp.json) \\({os.strerror(code)}\\)"
                assert len(re.findall(said, str(caught.value))) == 2
                assert ".vscode was moved to .vscode.purple-quarantine-1" in str(caught.value)
                (workspace / ".envrc").unlink()
                with pytest.raises(SetupError, match=r"could not be moved aside: \.mcp\.json "):
                    await engine.run(["true"])
            aside = ".vscode was moved to .vscode.purple-quarantine-1"
            late = ".mcp.json was moved to .mcp.json.purple-quarantine-1"
            assert (await engine.run(["true"])).moved_aside == (aside, late)
            assert (await engine.run(["true"])).moved_aside == ()

    asyncio.run(go())
    assert sorted(os.listdir(workspace)) == [
        ".mcp.json.purple-quarantine-1", ".vscode.purple-quarantine-1",
    ]  # fmt: skip


@pytest.mark.parametrize(("protect", "made"), [(".envrc", ".envrc"), ("*.key", "a.key")])
@pytest.mark.parametrize("function", ["open", "scandir"])
def test_a_gateway_without_descriptors_looks_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, function: str, protect: str, made: str
) -> None:
    monkeypatch.setattr(guard, "_RESCAN_SECONDS", 0.0)
    monkeypatch.setattr(guard, "_RESCAN_RATIO", 0.0)
    guarded = Guard(str(workspace), [], [protect])
    before = guarded.look()
    (workspace / made).write_text("")
    moved = (f"{made} was moved to {made}.purple-quarantine-1",)
    with monkeypatch.context() as patched:
        refuse(patched, function, errno.EMFILE, {str(workspace)})
        if function == "scandir" and made == protect:  # the control: nothing is walked through
            assert guarded.move_aside(before) == moved
            return
        with pytest.raises(ProtectionError, match="Too many open files"):
            guarded.move_aside(before)
        with pytest.raises(ValueError, match="Too many open files"):
            guarded.look()
    assert guarded.look().protect == ()
    assert guarded.move_aside(before) == moved


def test_a_name_as_long_as_can_be_is_moved_aside(workspace: Path) -> None:
    guarded = Guard(str(workspace), [], ["*.key"])
    before = guarded.look()
    (workspace / f"{'a' * 251}.key").write_text("")
    (said,) = guarded.move_aside(before)
    assert os.listdir(workspace) == ["a" * 235 + ".purple-quarantine-1"]
    assert said.endswith(".key was moved to " + "a" * 235 + ".purple-quarantine-1")


def test_a_workspace_that_is_gone_or_made_anew(workspace: Path) -> None:
    guarded = Guard(str(workspace), [], [".envrc", "*.key"])
    before = guarded.look()
    workspace.rename(workspace.parent / "old")
    assert guarded.move_aside(before) == ()
    assert guarded.look() == before
    workspace.mkdir()
    (workspace / ".envrc").write_text("the person's")
    with pytest.raises(ValueError, match=r"made anew.*restart purple"):
        guarded.look()
    assert guarded.move_aside(before) == ()
    assert os.listdir(workspace) == [".envrc"]
    assert Guard(str(workspace), [], [".envrc"]).look().protect == (f"{workspace}/.envrc",)


def test_a_call_in_a_workspace_that_was_made_anew_is_refused(workspace: Path) -> None:
    async def go() -> None:
        async with Engine(BASE, workspace) as engine:
            await engine.run(["true"])
            workspace.rename(workspace.parent / "old")
            assert (await engine.run(["true"])).moved_aside == ()
            workspace.mkdir()
            with pytest.raises(SetupError, match="restart purple"):
                await engine.run(["true"])

    asyncio.run(go())
