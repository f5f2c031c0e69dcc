"""What an entry of a client becomes, and that it can be given back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from purplebox.integrations.clients.entries import is_ours, unwrapped, wrapped
from purplebox.integrations.clients.known import CLIENTS


@pytest.mark.parametrize(
    ("command", "profile"),
    [
        (["npx", "-y", "x"], "mcp-server-npx"),
        (["/opt/node/bin/npx", "x"], "mcp-server-npx"),
        (["uvx", "x"], "mcp-server-uvx"),
        (["uv", "--quiet", "tool", "run", "x"], "mcp-server-uvx"),
        (["uv", "run", "tool"], "mcp-server"),
        (["npm", "exec", "x"], "mcp-server"),
        (["python3", "server.py"], "mcp-server"),
    ],
)
def test_a_server_is_taken_under_the_profile_that_fits_its_command(
    command: list[str], profile: str
) -> None:
    entry = {"command": command[0], "args": command[1:]}
    taken = wrapped(CLIENTS["codex"], "user", entry, name="s")
    assert taken is not None
    assert taken["args"] == ["wrap", "-p", profile, "--name", "s", "--", *command]
    assert unwrapped(taken) == entry
    chosen = wrapped(CLIENTS["codex"], "user", entry, "base", name="s")
    assert chosen is not None
    assert chosen["args"][:3] == ["wrap", "-p", "base"]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("github", ["--name", "github"]),
        ("GitHub & files", ["--name", "GitHub-files"]),
        ("-p", ["--name", "p"]),
        ("\u6587", []),
        ("a\x1b[2Jb", ["--name", "a-2Jb"]),
    ],
)
def test_a_server_keeps_its_name(name: str, given: list[str]) -> None:
    entry = {"command": "node", "args": ["s.js"]}
    taken = wrapped(CLIENTS["codex"], "user", entry, name=name)
    assert taken is not None
    assert taken["args"] == ["wrap", "-p", "mcp-server", *given, "--", "node", "s.js"]


@pytest.mark.parametrize("name", CLIENTS)
def test_a_server_sees_the_open_project_and_never_where_the_client_was_started(
    name: str, tmp_path: Path
) -> None:
    client = CLIENTS[name]
    entry = {"command": "node", "args": ["s.js"]}

    def workspace(entry: dict[str, Any], given: Path | None = None) -> list[str]:
        taken = wrapped(client, "user", entry, workspace=given)
        assert taken is not None
        assert unwrapped(taken) == entry
        words: list[str] = taken["args"]
        return words[3 : words.index("--")]

    assert workspace(entry, tmp_path) == ["-w", str(tmp_path)]
    if client.workspace is None:
        with pytest.raises(ValueError, match="name the directory: -w DIR"):
            workspace(entry)
    else:
        assert workspace(entry) == (["-w", client.workspace] if client.workspace else [])
        assert workspace({**entry, "cwd": "/srv/data"}) == []  # the client starts it there


@pytest.mark.parametrize(
    ("name", "entry", "transport"),
    [
        ("claude-code", {"type": "sse", "url": "https://a.example/sse", "headers": {"X": "s"}}, "sse"),
        ("claude-code", {"type": "http", "url": "https://a.example/mcp"}, "http"),
        ("cursor", {"url": "https://a.example/mcp", "headers": {"Authorization": "Bearer ${env:T}"}}, "http"),
        ("gemini", {"httpUrl": "https://a.example/mcp", "timeout": 5}, "http"),
        ("gemini", {"url": "https://a.example/sse", "trust": True}, "sse"),
        ("windsurf", {"serverUrl": "https://a.example/mcp"}, "http"),
        ("vscode", {"type": "http", "url": "https://a.example/mcp", "headers": {"K": "${input:token}"}}, "http"),
        ("codex", {"url": "https://a.example/mcp", "http_headers": {"K": "v"}}, "http"),
        ("zed", {"url": "https://a.example/mcp", "headers": {}}, "http"),
    ],
)  # fmt: skip
def test_a_server_behind_a_url_is_taken_and_given_back(
    name: str, entry: dict[str, Any], transport: str
) -> None:
    client = CLIENTS[name]
    taken = wrapped(client, "user", entry, "mcp-server")
    assert taken is not None
    assert taken["args"] == ["wrap", "--url-from", "PURPLE_SERVER"]
    said = json.loads(taken["env"]["PURPLE_SERVER"])["server"]
    assert said["type"] == transport
    assert said["headers"] == entry.get("headers", entry.get("http_headers", {}))
    assert taken.get("timeout") == entry.get("timeout")  # what is not the server's stays
    assert is_ours(taken)
    assert wrapped(client, "user", taken, "mcp-server") is None
    assert unwrapped(taken) == entry


def test_a_token_that_only_the_client_reads_stays_with_it() -> None:
    entry = {"url": "https://a.example/mcp", "bearer_token_env_var": "TOKEN"}
    assert wrapped(CLIENTS["codex"], "user", entry, "mcp-server") is None
