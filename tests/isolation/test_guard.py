"""Hidden and protected paths: what exists is held by mounts, what is made later is moved aside."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from purplebox.isolation import Engine, Result, SetupError, guard
from purplebox.isolation.guard import Guard
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")


def shell(workspace: Path, command: str, policy: Policy = BASE) -> Result:
    async def go() -> Result:
        async with Engine(policy, workspace) as engine:
            return await engine.run(["sh", "-c", command])

    return asyncio.run(go())


def with_files(**fields: object) -> Policy:
    return BASE.model_copy(update={"filesystem": BASE.filesystem.model_copy(update=fields)})


UNPROTECTED = with_files(protect=())


@pytest.mark.parametrize(
    ("command", "made"),
    [
        ("mkdir .vscode && echo x > .vscode/tasks.json", ".vscode"),
        ("echo '{}' > .mcp.json", ".mcp.json"),
        ("ln -s /usr/bin/id .envrc", ".envrc"),
        ("mkdir -p .git/hooks && echo x > .git/hooks/pre-commit", ".git/hooks"),
    ],
)
def test_a_protected_path_that_a_command_makes_is_moved_aside(
    workspace: Path, command: str, made: str
) -> None:
    result = shell(workspace, command)
    assert result.exit_code == 0, result.stderr
    assert not os.path.lexists(workspace / made)
    aside = f"{made}.purple-quarantine-1"
    assert os.path.lexists(workspace / aside)
    assert result.moved_aside == (f"{made} was moved to {aside}",)
    # the control: without the rule the same command makes it
    assert shell(workspace, command.replace("mkdir .", "mkdir -p ."), UNPROTECTED).moved_aside == ()
    assert os.path.lexists(workspace / made)


def test_the_way_to_a_protected_path_cannot_be_renamed(workspace: Path) -> None:
    (workspace / ".git" / "hooks").mkdir(parents=True)
    for command in ("mv .git other", "mv .git/hooks .git/h", "rm -rf .git/hooks", "rmdir .git"):
        result = shell(workspace, command)
        assert result.exit_code != 0
        assert b"busy" in result.stderr or b"Read-only" in result.stderr, result.stderr
    assert shell(workspace, "mv .git other", UNPROTECTED).exit_code == 0


def test_the_way_to_a_hidden_path_cannot_be_renamed(workspace: Path) -> None:
    """What is hidden by its name would be there by another in the next call."""
    for name in ("config/secret.key", "deploy/a.pem", "deep/x/.env"):
        (workspace / name).parent.mkdir(parents=True)
        (workspace / name).write_text("s3cret")
    hidden = with_files(hide=("config/secret.key", "deploy/*.pem", "deep/x/.env"), protect=())
    for policy, shown in ((hidden, 0), (UNPROTECTED, 3)):

        async def go(policy: Policy = policy) -> bytes:
            async with Engine(policy, workspace) as engine:
                for command in ("mv config c2", "mv deploy d2", "mv deep/x deep/y", "mv deep d3"):
                    result = await engine.run(["sh", "-c", f"{command}; true"])
                    assert (b"busy" in result.stderr) is (policy is hidden), result.stderr
                read = "cat */secret.key */a.pem */[xy]/.env"
                return (await engine.run(["sh", "-c", read])).stdout

        assert asyncio.run(go()).count(b"s3cret") == shown
    assert (workspace / "d3").is_dir()  # of the control


def test_a_link_planted_in_the_way_moves_nothing_outside(workspace: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "hooks").mkdir(parents=True)
    result = shell(workspace, f"ln -s {outside} .git")
    assert result.moved_aside == (".git was moved to .git.purple-quarantine-1",)
    assert (outside / "hooks").is_dir()


def test_a_link_of_the_persons_own_stays(workspace: Path) -> None:
    (workspace / "shared").mkdir()
    (workspace / ".vscode").symlink_to("shared")
    assert shell(workspace, "true").moved_aside == ()
    assert (workspace / ".vscode").is_symlink()
    swapped = shell(workspace, "rm .vscode && mkdir .vscode")
    assert swapped.moved_aside == (".vscode was moved to .vscode.purple-quarantine-1",)


SWAPS = {
    "the link itself": "rm .git; mkdir -p .git/hooks; echo evil > .git/config",
    "the link, and back": "mv .git l; mkdir -p e/hooks; echo evil > e/config; ln -s e .git",
    "the next link": "rm next; mkdir -p next/hooks; echo evil > next/config",
    "a directory above": "mv deep d; mkdir -p deep/git/hooks; echo evil > deep/git/config",
    "the directory": "mv deep/git d; mkdir -p deep/git/hooks; echo evil > deep/git/config",
}


def linked(workspace: Path) -> None:
    (workspace / "deep/git/hooks").mkdir(parents=True)
    (workspace / "deep/git/config").write_text("[core]\n")
    (workspace / "next").symlink_to("deep/git")
    (workspace / ".git").symlink_to("next")


@pytest.mark.parametrize("command", SWAPS.values(), ids=SWAPS)
def test_a_protected_name_that_links_lead_to_cannot_be_replaced(
    workspace: Path, command: str
) -> None:
    linked(workspace)
    assert (
        shell(workspace, "echo x >> .git/config").moved_aside == ()
    )  # and nothing is, of the person's
    result = shell(workspace, command)
    config = workspace / ".git/config"
    assert not config.exists() or config.read_text() == "[core]\n", result
    assert (workspace / "deep/git/config").read_text() == "[core]\n"
    assert (workspace / "deep/git/hooks").is_dir()


@pytest.mark.parametrize("command", SWAPS.values(), ids=SWAPS)
def test_without_the_rule_it_can(workspace: Path, command: str) -> None:
    linked(workspace)
    shell(workspace, command, UNPROTECTED)
    assert (workspace / ".git/config").read_text() == "evil\n"


def test_what_links_lead_to_stays_hidden_and_protected_without_them(workspace: Path) -> None:
    linked(workspace)
    (workspace / "deep/git/key").write_text("s3cret")
    hidden = with_files(hide=(".git/key",))
    later = "cat deep/git/key d/git/key; echo evil > deep/git/config"
    for policy, seen in ((hidden, b""), (UNPROTECTED, b"s3cret")):

        async def go(policy: Policy = policy) -> Result:
            async with Engine(policy, workspace) as engine:
                await engine.run(["sh", "-c", "rm .git; mv deep d"])
                return await engine.run(["sh", "-c", later])

        assert asyncio.run(go()).stdout == seen
        if policy is hidden:
            assert (workspace / "deep/git/config").read_text() == "[core]\n"


def test_a_link_to_a_gitfile_cannot_be_replaced(workspace: Path) -> None:
    (workspace / "gitfile").write_text("gitdir: /elsewhere/worktrees/mine\n")
    (workspace / ".git").symlink_to("gitfile")
    assert shell(workspace, "echo 'gitdir: x' > gitfile").moved_aside == ()
    assert (workspace / "gitfile").read_text() == "gitdir: /elsewhere/worktrees/mine\n"
    result = shell(workspace, "rm .git; mkdir -p .git/hooks; echo evil > .git/config")
    assert not (workspace / ".git/config").exists(), result
    assert not (workspace / ".git/hooks").exists()


def test_what_is_made_where_links_of_the_persons_lead_is_moved_aside_there(workspace: Path) -> None:
    linked(workspace)
    (workspace / "deep/git/hooks").rmdir()
    result = shell(workspace, "mkdir .git/hooks; echo evil > .git/hooks/pre-commit")
    assert result.moved_aside == ("deep/git/hooks was moved to deep/git/hooks.purple-quarantine-1",)
    assert (workspace / ".git/config").read_text() == "[core]\n"
    assert not (workspace / ".git/hooks").exists()


def test_what_the_person_makes_between_calls_is_held_in_the_next(workspace: Path) -> None:
    async def go() -> tuple[Result, Result]:
        async with Engine(load_policy("code-assistant"), workspace) as engine:
            await engine.run(["true"])
            (workspace / ".mcp.json").write_text("{}")
            (workspace / ".env").write_text("TOKEN=1")
            return (
                await engine.run(["sh", "-c", "echo x > .mcp.json"]),
                await engine.run(["cat", ".env"]),
            )

    protected, hidden = asyncio.run(go())
    assert b"Read-only file system" in protected.stderr
    assert hidden.stdout == b""
    assert (workspace / ".mcp.json").read_text() == "{}"


def test_globs_are_matched_at_any_depth_and_links_are_left_out(workspace: Path) -> None:
    (workspace / "a" / "secrets").mkdir(parents=True)
    (workspace / "a" / "b.key").write_text("k")
    (workspace / "link.key").symlink_to("a/b.key")
    marks = Guard(str(workspace), ["**/secrets/**", "*.key"], []).look()
    assert sorted(marks.hide) == [str(workspace / "a" / "b.key"), str(workspace / "a" / "secrets")]
    guard = Guard(str(workspace), [], ["a/*.key"])
    marks = guard.look()
    assert marks.protect == (str(workspace / "a" / "b.key"),)
    (workspace / "a" / "c.key").write_text("k")
    assert guard.move_aside(marks) == ("a/c.key was moved to a/c.key.purple-quarantine-1",)


def test_a_path_after_two_stars_is_matched_at_any_depth(workspace: Path) -> None:
    for place in ("", "a/", "a/b/", "a/b/.git/config/"):
        (workspace / place / ".git").mkdir(parents=True)
        (workspace / place / ".git" / "config").mkdir(exist_ok=True)
    found = Guard(str(workspace), [], ["**/.git/config"]).look().protect
    assert sorted(os.path.relpath(path, workspace) for path in found) == [
        ".git/config", "a/.git/config", "a/b/.git/config", "a/b/.git/config/.git/config",
    ]  # fmt: skip
    assert len(Guard(str(workspace), [], [".git/config"]).look().protect) == 1  # the control


def test_too_many_matches_say_what_to_do(workspace: Path) -> None:
    for index in range(1001):
        (workspace / f"{index}.key").write_text("")
    with pytest.raises(ValueError, match="name their directory instead"):
        Guard(str(workspace), ["*.key"], []).look()


def test_a_call_that_is_refused_for_them_keeps_no_sandbox(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_RESCAN_SECONDS", 0.0)
    monkeypatch.setattr(guard, "_RESCAN_RATIO", 0.0)

    async def go() -> None:
        async with Engine(with_files(hide=("*.key",)), workspace) as engine:
            while not engine._commands._ready:
                await asyncio.sleep(0.01)
            files = [workspace / f"{index}.key" for index in range(1001)]
            for file in files:
                file.write_text("")
            with pytest.raises(SetupError, match="name their directory instead"):
                await engine.run(["true"])
            for file in files:
                file.unlink()
            assert (await engine.run(["true"])).exit_code == 0
            await asyncio.sleep(0)  # the pool hears of an end after its caller
            assert engine._commands._in_use == 0

    asyncio.run(go())


@pytest.mark.parametrize("pattern", ["*.key", "\xe9.key"])
def test_a_name_that_sandboxes_would_spell_otherwise_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    path = workspace / "\xe9.key"
    for hide, protect in (([pattern], []), ([], [pattern])):
        path.write_text("k")
        assert Guard(str(workspace), hide, protect).look() != (
            (),
            (),
            (),
            (),
        )  # the control: in UTF-8
        with monkeypatch.context() as patched:
            patched.setattr(guard, "_ENCODING", "iso8859-1")
            with pytest.raises(ValueError, match=r"LC_ALL=C\.UTF-8"):
                Guard(str(workspace), hide, protect).look()
            path.unlink()
            assert Guard(str(workspace), ["*.key"], []).look() == ((), (), (), ())


CLOSE = "chmod 000 .git sub; true"
REOPEN = "chmod 755 .git sub; echo x >> .git/config; cat sub/.env"


def test_what_a_command_closes_is_held_as_a_whole(workspace: Path) -> None:
    """Nobody outside can look into it any more, and the next command could open it again."""
    (workspace / ".git").mkdir()
    (workspace / "sub").mkdir()
    (workspace / ".git/config").write_text("[core]\n")
    (workspace / "sub/.env").write_text("s3cret")
    held = with_files(hide=("**/.env",))
    shell(workspace, CLOSE, held)
    result = shell(workspace, REOPEN, held)
    (workspace / ".git").chmod(0o755)
    (workspace / "sub").chmod(0o755)
    assert (workspace / ".git/config").read_text() == "[core]\n"
    assert b"s3cret" not in result.stdout
    shell(workspace, CLOSE, UNPROTECTED)  # the control
    assert b"s3cret" in shell(workspace, REOPEN, UNPROTECTED).stdout
    assert (workspace / ".git/config").read_text() == "[core]\nx\n"


@pytest.mark.parametrize("closed", ["chmod 000 .git", "chmod 000 ."])
def test_what_is_made_in_a_directory_that_is_then_closed_is_moved_aside(
    workspace: Path, closed: str
) -> None:
    result = shell(workspace, f"mkdir -p .git/hooks; echo x > .git/hooks/pre-commit; {closed}")
    workspace.chmod(0o700)
    (workspace / ".git").chmod(0o700)
    assert result.moved_aside == (".git/hooks was moved to .git/hooks.purple-quarantine-1",)
    assert not (workspace / ".git/hooks").exists()


GITFILE = "mkdir -p x/hooks; echo 'gitdir: x' > .git; echo '[core]' > x/config"


def test_a_file_that_leads_to_another_git_directory_is_protected_and_moved_aside(
    workspace: Path,
) -> None:
    """Git takes configuration and hooks from where a `.git` file says."""
    result = shell(workspace, GITFILE)
    assert ".git was moved to .git.purple-quarantine-1" in result.moved_aside
    assert not os.path.lexists(workspace / ".git")
    assert shell(workspace, GITFILE, UNPROTECTED).moved_aside == ()  # the control
    (workspace / ".git").write_text(
        "gitdir: /elsewhere/worktrees/mine\n"
    )  # a person's own worktree
    for command in ("echo 'gitdir: x' > .git", "rm .git", "mv x/config .git"):
        result = shell(workspace, command)
        assert (result.exit_code, result.moved_aside) != (0, ()) and result.exit_code
        assert result.moved_aside == ()
    assert (workspace / ".git").read_text() == "gitdir: /elsewhere/worktrees/mine\n"
    assert shell(workspace, "echo 'gitdir: x' > .git", UNPROTECTED).exit_code == 0


@pytest.mark.parametrize(
    "name", [".git/hooks/pre-commit", ".git/config", ".gitmodules", ".vscode/tasks.json", ".envrc", ".mcp.json"]
)  # fmt: skip
def test_what_would_run_on_the_host_cannot_be_changed(workspace: Path, name: str) -> None:
    path = workspace / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("as it was")
    result = shell(workspace, f"echo x > {name}")
    assert b"Read-only file system" in result.stderr
    assert path.read_text() == "as it was"
    listed = sorted(p.name for p in workspace.iterdir())
    assert listed == [name.split("/")[0]]  # nothing was put beside it
    assert shell(workspace, f"echo x > {name}", UNPROTECTED).exit_code == 0
    assert path.read_text() == "x\n"


def test_no_staged_workspace_is_promised_yet(workspace: Path) -> None:
    """Lesson 14 is about what a commit may bring out: where there is none, nothing but what write allows."""
    with pytest.raises(SetupError, match=r"filesystem\.workspace: overlay is not enforced"):
        shell(workspace, "true", with_files(workspace="overlay"))
    made = shell(workspace, "mknod null c 1 3; ln -s /etc/shadow link; echo x > file")
    assert b"Operation not permitted" in made.stderr  # no device
    assert sorted(p.name for p in workspace.iterdir()) == ["file", "link"]
    assert os.readlink(workspace / "link") == "/etc/shadow"  # as it is, and followed by nobody
