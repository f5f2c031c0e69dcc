"""Clients' files as the clients write them: registered, imported, undone; nothing else changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from purplebox.integrations.cli import main
from purplebox.integrations.clients import jsonc
from purplebox.integrations.clients.known import CLIENTS

CLAUDE = """{
  "numStartups": 12,
  "mcpServers": {
    "github": {
      "type": "stdio",
      "command": "npx",
      "args": [
        "-y",
        "@modelcontextprotocol/server-github"
      ],
      "env": {
        "GITHUB_TOKEN": "ghp_x"
      }
    },
    "remote": {
      "type": "http",
      "url": "https://example.com/mcp"
    }
  },
  "projects": {
    "/home/a/b": {
      "allowedTools": []
    }
  }
}
"""
VSCODE = """{
\t// servers of this project
\t"inputs": [
\t\t{ "type": "promptString", "id": "token", "description": "API token", "password": true },
\t],
\t"servers": {
\t\t"fetch": { "type": "stdio", "command": "uvx", "args": ["mcp-server-fetch"] }, // web, https://x
\t},
}
"""
ZED = """// Zed settings
{
  "theme": "One Dark", /* mine */
  "buffer_font_size": 15
}
"""
CODEX = """model = "gpt-5"  # the usual

[mcp_servers.files]
command = "npx"
args = ["-y", "@modelcontextprotocol/server-filesystem", "."]

[tui]
theme = "dark"
"""
FIXTURES = {
    "claude-code": (".claude.json", CLAUDE),
    "claude-desktop": ("config/Claude/claude_desktop_config.json", CLAUDE),
    "cursor": (".cursor/mcp.json", CLAUDE),
    "vscode": ("config/Code/User/mcp.json", VSCODE),
    "codex": (".codex/config.toml", CODEX),
    "gemini": (".gemini/settings.json", CLAUDE),
    "windsurf": (".codeium/windsurf/mcp_config.json", CLAUDE),
    "zed": ("config/zed/settings.json", ZED),
}


@pytest.fixture
def place(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    return workspace


def purple(*arguments: str) -> int:
    return main(arguments)


def entries(name: str, text: str) -> dict[str, Any]:
    from purplebox.integrations.clients import toml

    language = toml if CLIENTS[name].language == "toml" else jsonc
    found = jsonc.member(language.loads(text), CLIENTS[name].keys)
    return dict(found or {})


def without(text: str) -> str:
    """What a change must leave alone: every line of the fixture."""
    return "\n".join(line.rstrip(",") for line in text.splitlines())


@pytest.mark.parametrize("name", CLIENTS)
def test_register_adds_one_entry_and_unregister_gives_the_same_bytes_back(
    name: str, place: Path, private_home: Path
) -> None:
    where, text = FIXTURES[name]
    file = private_home / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    register = ("register", name, "--scope", "user", "-w", str(place))
    assert purple(*register) == 0
    changed = file.read_text()
    added = entries(name, changed)["purple"]
    assert added["args"] == ["serve", "-p", "code-assistant", "-w", str(place)]
    assert added["command"].endswith("purple")
    for line in without(text).splitlines():
        assert line in without(changed)
    assert purple(*register) == 0  # once more changes nothing
    assert file.read_text() == changed
    assert purple("unregister", name, "--scope", "user") == 0
    if CLIENTS[name].language == "json" and name != "zed":  # zed's had no servers before
        assert file.read_text() == text
    assert "purple" not in entries(name, file.read_text())


@pytest.mark.parametrize("name", [n for n in CLIENTS if n != "zed"])
def test_import_wraps_each_server_and_undo_gives_the_same_bytes_back(
    name: str, place: Path, private_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, text = FIXTURES[name]
    file = private_home / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    before = entries(name, text)
    take = ("import", name, "--scope", "user", "-p", "base", "-w", str(place))
    assert purple(*take, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "+++" in shown
    assert file.read_text() == text
    assert purple(*take) == 1  # nobody to ask
    assert file.read_text() == text
    assert purple(*take, "--yes") == 0
    after = entries(name, file.read_text())
    assert list(after) == list(before)
    for server, entry in before.items():
        if "command" not in entry:
            assert after[server]["args"] == [
                "wrap", "-p", "base", "--name", server, "--url-from", "PURPLE_SERVER",
            ]  # fmt: skip
            said = json.loads(after[server]["env"]["PURPLE_SERVER"])["server"]
            assert said["url"] == "https://example.com/mcp"
            continue
        original = [entry["command"], *entry["args"]]
        assert after[server]["args"][-len(original) - 1 :] == ["--", *original]
        assert after[server].get("env") == entry.get("env")
        for variable in entry.get("env", {}):
            at = after[server]["args"].index(variable)
            assert after[server]["args"][at - 1] == "--env"
    assert purple(*take, "--yes") == 0  # once more changes nothing
    assert purple("unregister", name, "--scope", "user") == 0
    assert entries(name, file.read_text()) == before
    assert purple("undo", name) == 0
    assert purple("undo", name) == 0
    assert file.read_text() == text
    assert purple("undo", name) == 2


def test_a_server_by_url_needs_no_directory(place: Path, private_home: Path) -> None:
    file = private_home / FIXTURES["windsurf"][0]
    file.parent.mkdir(parents=True)
    file.write_text(CLAUDE)
    assert purple("import", "windsurf", "--only", "github", "--yes") == 2
    assert file.read_text() == CLAUDE
    assert purple("import", "windsurf", "--only", "remote", "--yes") == 0
    taken = entries("windsurf", file.read_text())["remote"]
    assert taken["args"] == ["wrap", "--name", "remote", "--url-from", "PURPLE_SERVER"]
    assert purple("undo", "windsurf") == 0
    assert file.read_text() == CLAUDE


def test_import_says_which_server_will_not_start(
    place: Path, private_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = private_home / ".cursor" / "mcp.json"
    file.parent.mkdir()
    servers = {"cold": {"command": "uvx", "args": ["p"]}, "there": {"command": "python3"}}
    file.write_text(json.dumps({"mcpServers": servers}))
    assert purple("import", "cursor", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert shown.count("will not start") == 1
    assert "will not start: filesystem.write: ~/.cache/uv/.lock does not exist" in shown
    assert "outside: uvx p --help" in shown


@pytest.mark.parametrize("name", [n for n in CLIENTS if "project" in CLIENTS[n].files])
def test_a_project_file_is_made_with_a_program_that_others_have(name: str, place: Path) -> None:
    assert purple("register", name, "--scope", "project", "-w", ".") == 0
    file = place / CLIENTS[name].files["project"]
    entry = entries(name, file.read_text())["purple"]
    assert entry["command"] == "purple"
    assert purple("undo", name) == 0
    assert not file.exists()


def test_local_scope_is_by_project(place: Path, private_home: Path) -> None:
    assert purple("register", "claude-code") == 0
    document = json.loads((private_home / ".claude.json").read_text())
    assert list(document["projects"][str(place)]["mcpServers"]) == ["purple"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("cursor", '{"mcpServers": {', "mcp.json:1: a key in double quotes was expected"),
        ("cursor", '{"a": 1,\n "a": 2}', "mcp.json:2: key 'a' is there twice"),
        ("cursor", '{"mcpServers": []}', "mcpServers is no object"),
        ("codex", "model = \n", "config.toml:1:"),
    ],
)
def test_a_broken_file_is_refused_untouched(
    name: str, text: str, words: str, place: Path, private_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    file = private_home / FIXTURES[name][0]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    assert purple("register", name, "--scope", "user", "-w", ".") == 2
    assert words in capsys.readouterr().err
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["register", "claude-desktop"], "name the directory: -w DIR"),
        (["register", "codex", "--scope", "project"], "has no project scope"),
        (["register", "cursor", "-p", "strikt"], "did you mean strict"),
        (["register", "cursor", "-w", "nowhere"], "nowhere is not a directory"),
        (["register", "cursor", "--name", "github"], "choose a name"),
        (["import", "cursor", "-p", "base", "--only", "nope"], "it has: github, remote"),
        (["import", "cursor", "-w", "nowhere", "--yes"], "nowhere is not a directory"),
        (["undo", "windsurf"], "no change"),
    ],
)
def test_a_mistake_says_what_to_do(
    arguments: list[str], words: str, place: Path, private_home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = private_home / ".cursor" / "mcp.json"
    file.parent.mkdir()
    file.write_text(CLAUDE)
    assert purple(*arguments) == 2
    assert words in capsys.readouterr().err
    assert file.read_text() == CLAUDE


def test_undo_does_not_overwrite_what_was_changed_since(place: Path, private_home: Path) -> None:
    file = private_home / ".cursor" / "mcp.json"
    assert purple("register", "cursor") == 0
    file.write_text(file.read_text() + "\n")
    edited = file.read_text()
    assert purple("undo", "cursor") == 2
    assert file.read_text() == edited


def test_a_read_only_file_is_refused_untouched(
    place: Path, private_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = private_home / ".cursor" / "mcp.json"
    file.parent.mkdir()
    file.write_text(CLAUDE)
    file.chmod(0o400)
    assert purple("register", "cursor") == 2
    assert f"{file} is read-only (mode 0400) and was not touched" in capsys.readouterr().err
    assert file.read_text() == CLAUDE
    assert purple("undo", "cursor") == 2  # nothing was kept
    file.chmod(0o600)
    assert purple("register", "cursor") == 0  # the control
    file.chmod(0o400)
    assert purple("undo", "cursor") == 2
    file.chmod(0o600)
    assert purple("undo", "cursor") == 0
    assert file.read_text() == CLAUDE


def test_a_link_stays_a_link_and_the_mode_stays(place: Path, private_home: Path) -> None:
    dotfiles = private_home / "dotfiles"
    dotfiles.mkdir()
    target = dotfiles / "mcp.json"
    target.write_text(CLAUDE)
    target.chmod(0o640)
    file = private_home / ".cursor" / "mcp.json"
    file.parent.mkdir()
    file.symlink_to(target)
    assert purple("register", "cursor") == 0
    assert file.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert "purple" in json.loads(target.read_text())["mcpServers"]
    assert [path.name for path in dotfiles.iterdir()] == ["mcp.json"]


def test_a_bundle_says_what_it_starts(place: Path) -> None:
    assert purple("bundle", "-o", "p.mcpb", "-p", "strict") == 0
    first = (place / "p.mcpb").read_bytes()
    with zipfile.ZipFile(place / "p.mcpb") as bundle:
        manifest = json.loads(bundle.read("manifest.json"))
        assert manifest["server"]["entry_point"] in bundle.namelist()
        assert "purplebox==" in bundle.read("pyproject.toml").decode()
    assert manifest["user_config"]["profile"]["default"] == "strict"
    assert manifest["tools"][0]["name"] == "shell"
    assert purple("bundle", "-o", "p.mcpb", "-p", "strict") == 0
    assert (place / "p.mcpb").read_bytes() == first
    assert purple("bundle", "-o", "nowhere/p.mcpb") == 2


@pytest.mark.slow
def test_the_bundles_manifest_is_valid_for_its_own_tool(place: Path) -> None:
    assert purple("bundle", "-o", "p.mcpb") == 0
    with zipfile.ZipFile(place / "p.mcpb") as bundle:
        bundle.extractall(place / "unpacked")
    check = ["npx", "-y", "@anthropic-ai/mcpb@2.1.2", "validate", str(place / "unpacked")]
    run = subprocess.run(check, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    (place / "unpacked" / "manifest.json").write_text('{"manifest_version": "0.4"}')
    run = subprocess.run(check, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode != 0  # the control: it does look


def test_what_register_writes_starts_a_server(
    place: Path, private_home: Path, converse: Callable[..., list[dict[str, Any]]]
) -> None:
    assert purple("register", "cursor", "-w", str(place)) == 0
    entry = json.loads((private_home / ".cursor" / "mcp.json").read_text())["mcpServers"]["purple"]
    initialize = {"id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip
    path = os.path.dirname(sys.executable) + ":/usr/bin:/bin"
    (answer,) = converse(
        [entry["command"], *entry["args"]], [initialize], env={**os.environ, "PATH": path}
    )
    assert answer["result"]["serverInfo"]["name"] == "purple"
