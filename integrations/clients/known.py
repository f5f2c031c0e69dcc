"""The clients that we know: where each keeps its MCP servers, and how it writes one.

Sources: each client's documentation of its configuration, November 2026.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Scope = Literal["user", "local", "project"]
Transport = Literal["http", "sse"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file and the path of keys below which its servers are, by name."""

    file: Path
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Client:
    """One client.

    Attributes:
        name: As `purple register` takes it.
        title: For people.
        files: Scope → file, `~` and `$NAME` (with `:-default`) not yet expanded; relative ones are
            in the project.
        keys: Where its servers are.
        language: Of the file.
        typed: Whether an entry says `"type": "stdio"`.
        urls: The keys of an entry for a server that is reached by a URL, and the transport of each
            where the entry's `type` does not say.
        workspace: What stands for the open project in an entry: "" when the client starts servers
            in it, a variable of the client's, or None where there is neither.
    """

    name: str
    title: str
    files: Mapping[Scope, str]
    keys: tuple[str, ...] = ("mcpServers",)
    language: Literal["json", "toml"] = "json"
    typed: bool = False
    urls: Mapping[str, Transport] = field(default_factory=lambda: dict[str, Transport](url="http"))
    workspace: str | None = None

    def place(self, scope: Scope, project: Path) -> Place:
        """Where the servers of `scope` are. Raises `KeyError` when it has no such scope."""
        file = Path(_expand(self.files[scope]))
        if not file.is_absolute():
            file = project / file
        if scope == "local":  # Claude Code: the user's file, by project
            return Place(file=file, keys=("projects", str(project), *self.keys))
        return Place(file=file, keys=self.keys)


def _expand(path: str) -> str:
    """`${NAME:-default}` at the start, then `~`: as the clients document their own paths."""
    if path.startswith("${"):
        name, _, rest = path[2:].partition(":-")
        default, _, rest = rest.partition("}")
        path = (os.environ.get(name) or default) + rest
    return os.path.expanduser(path)


_CLAUDE_CODE = "${CLAUDE_CONFIG_DIR:-~}/.claude.json"
_CONFIG = "~/Library/Application Support" if sys.platform == "darwin" else "${XDG_CONFIG_HOME:-~/.config}"  # fmt: skip

CLIENTS: dict[str, Client] = {
    client.name: client
    for client in (
        Client(
            name="claude-code",
            title="Claude Code",
            files={"local": _CLAUDE_CODE, "user": _CLAUDE_CODE, "project": ".mcp.json"},
            typed=True,
            workspace="",
        ),
        Client(
            name="claude-desktop",
            title="Claude Desktop",
            files={"user": f"{_CONFIG}/Claude/claude_desktop_config.json"},
        ),
        Client(
            name="cursor",
            title="Cursor",
            files={"user": "~/.cursor/mcp.json", "project": ".cursor/mcp.json"},
            workspace="${workspaceFolder}",
        ),
        Client(
            name="vscode",
            title="VS Code",
            files={"user": f"{_CONFIG}/Code/User/mcp.json", "project": ".vscode/mcp.json"},
            keys=("servers",),
            typed=True,
            workspace="${workspaceFolder}",
        ),
        Client(
            name="codex",
            title="Codex",
            files={"user": "${CODEX_HOME:-~/.codex}/config.toml"},
            keys=("mcp_servers",),
            language="toml",
            workspace="",
        ),
        Client(
            name="gemini",
            title="Gemini CLI",
            files={"user": "~/.gemini/settings.json", "project": ".gemini/settings.json"},
            urls={"httpUrl": "http", "url": "sse"},
            workspace="",
        ),
        Client(
            name="windsurf",
            title="Windsurf",
            files={"user": "~/.codeium/windsurf/mcp_config.json"},
            urls={"serverUrl": "http", "url": "http"},
        ),
        Client(
            name="zed",
            title="Zed",
            files={
                "user": "${XDG_CONFIG_HOME:-~/.config}/zed/settings.json",
                "project": ".zed/settings.json",
            },
            keys=("context_servers",),
        ),
    )
}
