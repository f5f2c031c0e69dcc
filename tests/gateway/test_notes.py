"""What a result says of paths: outside of the view, granted under another name, hidden, or just missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from purplebox.gateway.call import Outcome
from purplebox.gateway.gateway import Gateway
from purplebox.policies import load_policy

Calls = Callable[..., Outcome]


@pytest.fixture
def call(workspace: Path, private_home: Path) -> Calls:
    """Makes one call under a policy that grants a key of the caller's and hides `.env`."""
    (private_home / ".ssh").mkdir()
    (private_home / ".ssh" / "id_rsa").write_text("the key")
    (private_home / ".ssh" / "other").write_text("another")
    (workspace / ".env").write_text("TOKEN=x")
    (workspace / "plain").write_text("seen")
    (workspace / "link").symlink_to(".env")
    (workspace / "sub").mkdir()
    file = workspace.parent / "g.yaml"
    file.write_text("name: g\nextends: base\nfilesystem: {read: [~/.ssh/id_rsa], hide: [.env]}\n")
    policy = load_policy(str(file))

    def make(tool: str, **arguments: Any) -> Outcome:
        with Gateway(policy, workspace, audit_log=workspace.parent / "log").sync() as gateway:
            return gateway.call(tool, arguments)

    return make


def test_a_granted_path_is_not_said_to_be_outside_but_where_it_is(
    call: Calls, private_home: Path
) -> None:
    key = private_home / ".ssh" / "id_rsa"
    for name in ("~/.ssh/id_rsa", "$HOME/.ssh/id_rsa"):
        text = call("shell", command=f"cat {name}").text
        assert "outside" not in text
        assert f"what policy g grants of {name} is {key}; use that path" in text
    assert "the key" in call("shell", command=f"cat {key}").text  # it is true
    other = call("shell", command="cat ~/.ssh/other").text  # the control
    assert "~/.ssh/other is outside what policy g grants (rule filesystem.read)" in other
    assert "/etc/nonesuch.d/x is outside" in call("shell", command="cat /etc/nonesuch.d/x").text


def test_a_missing_file_of_the_view_is_no_matter_of_the_policy(
    call: Calls, workspace: Path
) -> None:
    text = call("shell", command=f"cat {workspace}/nonesuch /var/tmp/nonesuch").text
    assert "No such file" in text
    assert "policy" not in text


@pytest.mark.parametrize(
    ("command", "hidden"),
    [
        ("cat .env", ".env"),
        ("wc -c <./.env", "./.env"),
        ("cat link", "link"),
        ("cat plain", ""),
        ("cat plain .envrc", ""),
        ("cd sub; cat plain", ""),
    ],
)
def test_a_hidden_path_is_said_to_be_hidden(call: Calls, command: str, hidden: str) -> None:
    text = call("shell", command=command).text
    assert ("Hidden: " in text) == bool(hidden)
    if hidden:
        assert f"Hidden: {hidden}. Policy g hides it (rule filesystem.hide)" in text


def test_a_command_elsewhere_names_the_paths_from_there(call: Calls) -> None:
    assert "Hidden: ../.env" in call("shell", command="cat ../.env", cwd="sub").text
    assert "Hidden" not in call("shell", command="cat ../.env || true", cwd=".").text


def test_a_file_tool_names_the_rule_only_where_one_is_meant(call: Calls, workspace: Path) -> None:
    (workspace / ".vscode").mkdir()
    hidden = call("read_file", path=".env").text
    assert "Policy g hides it (rule filesystem.hide)" in hidden
    missing = call("read_file", path="nonesuch").text
    assert "ENOENT" in missing
    assert "policy" not in missing
    outside = call("read_file", path="/etc/nonesuch.d/x").text
    assert "Only what policy g grants is visible (rule filesystem.read)" in outside
    written = call("write_file", path=".vscode/settings.json", content="x").text
    assert "Only what policy g grants may be written (rules filesystem.write" in written
    assert call("read_file", path="plain").text == "seen"
