"""A pydantic-ai agent that works in Purple's sandbox, with a model that is only pretended, offline.

pip install 'purplebox[pydantic-ai]' && python examples/pydantic_ai_agent.py
"""

from __future__ import annotations

import asyncio
import tempfile

from pydantic_ai import Agent, ModelMessage, ModelResponse, RunContext, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import FunctionToolset

from purplebox import Gateway
from purplebox.integrations.pydantic_ai import PurpleToolset, PurpleWorkspace

COMMANDS = ["echo two words > notes.txt; wc -w notes.txt", "curl -sS https://example.com"]


def pretend(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Run each command, then end."""
    turn = sum(isinstance(message, ModelResponse) for message in messages)
    if turn < len(COMMANDS):
        return ModelResponse(parts=[ToolCallPart("run", {"command": COMMANDS[turn]})])
    return ModelResponse(parts=[TextPart("Two words, and I cannot reach the network.")])


tools = FunctionToolset[None]()


@tools.tool
async def run(context: RunContext[None], command: str) -> str:
    """Run a command in the workspace."""
    done = await context.workspace.run(command, shell=True)
    print(f"$ {command}\n{done.stdout}{done.stderr}[exit status {done.exit_code}]")
    return done.stdout + done.stderr


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with Gateway(policy="code-assistant", workspace=directory) as gateway:
            agent = Agent(FunctionModel(pretend), toolsets=[PurpleToolset(tools, gateway)])
            answer = await agent.run("Take a note.", workspace=PurpleWorkspace(gateway))
            print(answer.output)


if __name__ == "__main__":
    asyncio.run(main())
