"""What git would execute by itself in the workspace, found by git: `git status` of the person runs nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from purplebox.isolation import Engine, Result
from purplebox.isolation.guard import Guard
from purplebox.isolation.repositories import Repositories, gitlinks
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")
UNPROTECTED = BASE.model_copy(
    update={"filesystem": BASE.filesystem.model_copy(update={"protect": ()})}
)
WHO = ["-c", "user.name=a", "-c", "user.email=a@a.test", "-c", "init.defaultBranch=main"]


def git(where: Path, *arguments: str) -> str:
    """As the person would, with no configuration but the repository's; whoever the workspace's owner is."""
    own = ["-c", "safe.directory=*", "-c", "protocol.file.allow=always"]
    ran = subprocess.run(
        ["git", *WHO, *own, *arguments], cwd=where, check=True, capture_output=True, text=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"},
    )  # fmt: skip
    return ran.stdout


def made(where: Path) -> Path:
    where.mkdir(parents=True, exist_ok=True)
    git(where, "init", "-q")
    (where / "file").write_text("x")
    git(where, "add", "file")
    git(where, "commit", "-qm", "first")
    return where


def shell(workspace: Path, command: str, policy: Policy = BASE) -> Result:
    async def go() -> Result:
        async with Engine(policy, workspace) as engine:
            return await engine.run(["sh", "-c", command])

    return asyncio.run(go())


# The command's own git has to trust what it finds, and the attack needs no git at all.
EVIL = 'printf \'[core]\\n\\trepositoryformatversion = 0\\n\\tfsmonitor = "touch %s; false"\\n%b\' "$PWD/ran" '
INIT = "export HOME=/tmp; git config --global safe.directory '*'; git config --global init.defaultBranch main; "
ATTACKS = {
    "a submodule's configuration": f"{EVIL} '' > sub/.git/config",
    "a repository that it makes one of the index": (
        f"{INIT} mkdir -p new && cd new && git init -q && echo x > f && git add f && "
        f"git -c user.name=a -c user.email=a@a commit -qm x; cd ..; git add new; {EVIL} '' > new/.git/config"
    ),
    "one below a submodule": (
        f"{INIT} cd sub; cp -r .git /tmp/copy; mkdir deep && cp -r /tmp/copy deep/.git && git add deep; "
        f"cd ..; {EVIL} '' > sub/deep/.git/config"
    ),
    "where a submodule's repository is": f"{EVIL} '\\tworktree = ../../../lib\\n' > .git/modules/lib/config",
    "another place of the configuration": (
        f"mkdir evil && cp -r .git/objects .git/refs evil; {EVIL} '' > evil/config; echo ../evil > .git/commondir"
    ),
    "a workspace that is a repository itself": (
        f"rm .git/HEAD; mkdir -p objects refs; echo 'ref: refs/heads/main' > HEAD; {EVIL} '\\tbare = false\\n\\tworktree = .\\n' > config"
    ),
}  # fmt: skip


@pytest.fixture
def repository(workspace: Path, tmp_path: Path) -> Path:
    """With one submodule whose repository is inside it, and one whose repository is git's usual place."""
    made(workspace)
    made(workspace / "sub")
    git(workspace, "add", "sub")
    git(workspace, "submodule", "--quiet", "add", str(made(tmp_path / "source")), "lib")
    git(workspace, "commit", "-qm", "submodules")
    return workspace


def runs_something(workspace: Path) -> bool:
    """Whether the person's `git status` executes what was put there."""
    subprocess.run(["git", "-c", "safe.directory=*", "status"], cwd=workspace, check=False, capture_output=True)  # fmt: skip
    return (workspace / "ran").exists()


def open_to_all(workspace: Path) -> None:
    """As root the sandbox's user is the workspace's owner, and nobody else's files are its own."""
    if os.geteuid() == 0:
        owner = workspace.stat()
        for path in (workspace, *workspace.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_git_runs_nothing_that_a_command_has_put_there(repository: Path, attack: str) -> None:
    open_to_all(repository)
    shell(repository, attack)
    assert not runs_something(repository)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_without_the_rule_it_does(repository: Path, attack: str) -> None:
    open_to_all(repository)
    result = shell(repository, attack, UNPROTECTED)
    assert runs_something(repository), result


def test_work_in_a_submodule_goes_on_and_is_held(repository: Path) -> None:
    open_to_all(repository)
    work = f"{INIT} for d in sub lib; do (cd $d && echo y > y && git add y && git -c user.name=a -c user.email=a@a commit -qm y) || exit 1; done; git add sub lib; git status --short"
    result = shell(repository, work)
    assert (result.exit_code, result.moved_aside) == (0, ()), result.stderr
    assert result.stdout.split() == [b"M", b"lib", b"M", b"sub"]
    held = shell(
        repository,
        "echo x >> sub/.git/config; echo x >> .git/modules/lib/config; echo x > lib/.git; mv sub other",
    )
    assert held.stderr.count(b"Read-only file system") == 3
    assert b"busy" in held.stderr


def test_a_repository_that_appears_is_told_and_moved_aside(repository: Path) -> None:
    open_to_all(repository)
    result = shell(repository, ATTACKS["a repository that it makes one of the index"])
    assert "new/.git/config was moved to new/.git/config.purple-quarantine-1" in result.moved_aside


@pytest.mark.parametrize("version", [2, 3, 4])
def test_every_gitlink_of_an_index_is_found(repository: Path, version: int) -> None:
    for number in range(60):
        (repository / f"f{number}").write_text("")
    git(repository, "add", ".")
    if version == 3:
        git(repository, "add", "-N", "--all")
        (repository / "later").write_text("")
        git(repository, "add", "-N", "later")
    else:
        git(repository, "update-index", "--index-version", str(version))
    index = (repository / ".git" / "index").read_bytes()
    assert int.from_bytes(index[4:8], "big") == version
    assert sorted(set(gitlinks(index))) == ["lib", "sub"]


def test_one_that_is_split_or_has_longer_names_is_read_too(
    repository: Path, tmp_path: Path
) -> None:
    git(repository, "update-index", "--split-index")
    assert any(p.name.startswith("sharedindex.") for p in (repository / ".git").iterdir())
    assert "sub/.git/config" in Repositories(str(repository)).names()
    other = tmp_path / "sha256"
    other.mkdir()
    git(other, "init", "-q", "--object-format=sha256")
    git(other, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 64},a/b")
    assert list(gitlinks((other / ".git" / "index").read_bytes())) == ["a/b"]


def test_a_mode_is_found_whatever_stands_before_it(repository: Path) -> None:
    index = bytearray((repository / ".git" / "index").read_bytes())
    at = index.find(b"\x00\x00\xe0\x00")
    index[at - 3 : at] = b"\x00\x00\xe0"  # of the inode's number, which is of no consequence
    assert sorted(set(gitlinks(bytes(index)))) == ["lib", "sub"]


def test_names_that_lead_elsewhere_are_none() -> None:
    def entry(name: bytes) -> bytes:
        head = bytes(24) + b"\x00\x00\xe0\x00" + bytes(12 + 20) + len(name).to_bytes(2, "big")
        return head + name + b"\0"

    names = [b"../up", b"/etc", b"a//b", b"a/./b", b"a/../../b", b"fine"]
    index = b"DIRC" + (2).to_bytes(4, "big") + bytes(4) + b"".join(map(entry, names))
    assert list(gitlinks(index)) == ["fine"]


def test_what_is_no_index_is_not_waited_for(workspace: Path) -> None:
    (workspace / ".git").mkdir()
    os.mkfifo(workspace / ".git" / "index")
    assert Repositories(str(workspace)).names() == ()
    guard = Guard(str(workspace), [], [".git/config"])
    assert guard.look().protect == ()


def test_an_index_too_large_to_be_read_is_moved_aside(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("purplebox.isolation.repositories._MOST_INDEX_BYTES", 1000)
    (workspace / ".git").mkdir()
    guard = Guard(str(workspace), [], [".git/config"])
    before = guard.look()
    (workspace / ".git" / "index").write_bytes(bytes(1001))
    with pytest.raises(ValueError, match="move it away"):
        guard.look()
    assert guard.move_aside(before) == (".git/index was moved to .git/index.purple-quarantine-1",)
    assert guard.look() == before


def test_an_index_is_read_again_when_it_changes(repository: Path) -> None:
    found = Repositories(str(repository))
    assert {name.split("/")[0] for name in found.names()} == {"sub", "lib", ".git"}
    git(repository, "rm", "-q", "--cached", "sub")
    assert "sub/.git/config" not in found.names()
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},x/y")
    assert "x/y/.git/config" in found.names()
