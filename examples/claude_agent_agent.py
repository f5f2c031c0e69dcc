"""Claude Code's tool calls through Purple, as the SDK's hooks see them, offline.

    pip install 'purplebox[claude-agent]' && python examples/claude_agent_agent.py

With a key, `query(prompt=…, options=options)` takes the place of `pretend`.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions

from purplebox import Gateway
from purplebox.integrations.claude_agent import purple_hooks, purple_server

COMMANDS = ["echo two words > notes.txt; wc -w notes.txt", "curl -sS https://example.com"]


async def pretend(options: ClaudeAgentOptions, use: str, command: str) -> None:
    """What Claude Code does when the model asks for a command."""
    hooks: Any = options.hooks
    call = {"tool_name": "Bash", "tool_input": {"command": command}, "tool_use_id": use}
    given = {**call, "session_id": "1", "hook_event_name": "PreToolUse"}
    said = await hooks["PreToolUse"][0].hooks[0](given, use, {"signal": None})
    line = said["hookSpecificOutput"]["updatedInput"]["command"]
    done = await asyncio.to_thread(
        subprocess.run, line, shell=True, capture_output=True, text=True, check=False
    )
    answer = {"stdout": done.stdout, "stderr": done.stderr, "interrupted": False}
    print(f"$ {command}\n{done.stdout}{done.stderr}", end="")
    given = {**given, "hook_event_name": "PostToolUse", "tool_response": answer}
    await hooks["PostToolUse"][0].hooks[0](given, use, {"signal": None})


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with Gateway(policy="code-assistant", workspace=directory) as gateway:
            options = ClaudeAgentOptions(
                hooks=purple_hooks(gateway, sandbox_bash=True),
                mcp_servers={"purple": purple_server(gateway)},
            )
            for number, command in enumerate(COMMANDS):
                await pretend(options, str(number), command)


if __name__ == "__main__":
    asyncio.run(main())
