"""Connect an MCP client to Purple, run one command, and see two others stopped.

python examples/first_call.py
"""

import asyncio
import os
import subprocess
import sys
import tempfile

from mcp import Client, StdioServerParameters


async def main() -> None:
    with tempfile.TemporaryDirectory(dir=os.path.expanduser("~")) as repository:
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-C", repository]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first commit"], check=True)
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "purplebox.gateway.cli", "serve", "--workspace", repository],
        )
        async with Client(server) as client:
            tools = await client.list_tools()
            print("tools:", ", ".join(tool.name for tool in tools.tools))
            for command in (
                "git log --format=%s",
                "cat ~/.ssh/id_rsa",
                "python3 -c 'import urllib.request as u; u.urlopen(\"http://example.com\")' 2>&1 | tail -1; false",
            ):
                result = await client.call_tool("shell", {"command": command})
                print(f"\n$ {command}")
                for block in result.content:
                    print(getattr(block, "text", ""))


asyncio.run(main())
