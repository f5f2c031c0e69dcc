"""What a plan makes of paths: a workspace and grants, as command lines and policies spell them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from purplebox.isolation import SetupError
from purplebox.isolation.plan import compile_plan, interpreters
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")


def granting(*paths: str) -> Policy:
    part = BASE.filesystem.model_copy(update={"read": paths})
    return BASE.model_copy(update={"filesystem": part})


def test_a_workspace_is_the_directory_that_its_name_leads_to(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "in").mkdir()
    (tmp_path / "link").symlink_to(workspace / "in")
    monkeypatch.chdir(workspace)
    real = os.path.realpath(workspace)
    for path, found in (
        (tmp_path / "link", f"{real}/in"),
        (tmp_path / "link" / "..", real),  # the kernel's "..", not the spelling's
        (Path("in"), f"{real}/in"),
        (Path(), real),
    ):
        assert compile_plan(BASE, path).workspace == found


def test_what_is_no_directory_is_no_workspace(workspace: Path) -> None:
    (workspace / "file").touch()
    (workspace / "loop").symlink_to("loop")
    for name in ("file", "loop", "nowhere", "file/below"):
        with pytest.raises(SetupError, match=f"workspace {workspace}/{name} is not a directory"):
            compile_plan(BASE, workspace / name)


def test_a_grant_begins_in_the_workspace_or_in_a_home(workspace: Path, private_home: Path) -> None:
    (workspace / "in").mkdir()
    (workspace / "link").symlink_to("in")
    (private_home / ".cache").mkdir()
    granted = compile_plan(granting("link", "~/.cache", "/usr/share"), workspace).read
    ours = os.path.realpath(workspace), os.path.realpath(private_home)
    assert granted == (*interpreters(), f"{ours[0]}/in", f"{ours[1]}/.cache", "/usr/share")
    for path in ("nowhere", "~/nowhere", "~nobody-has-this-name/.cache"):
        with pytest.raises(SetupError, match=f"filesystem.read: {path} does not exist; create it"):
            compile_plan(granting(path), workspace)
