"""An OpenAI Agents agent with Purple's sandbox, with a model that is only pretended, offline.

pip install 'purplebox[openai-agents]' && python examples/openai_agents_agent.py
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

from purplebox import Gateway
from purplebox.integrations.openai_agents import purple_tools


class Pretended(Model):
    """Runs each command, then ends."""

    def __init__(self, *commands: str) -> None:
        self.commands = list(commands)

    async def get_response(self, *_: Any, **__: Any) -> ModelResponse:
        item: Any
        if self.commands:
            item = ResponseFunctionToolCall(
                type="function_call",
                name="shell",
                call_id=f"call-{len(self.commands)}",
                arguments=json.dumps({"command": self.commands.pop(0)}),
            )
        else:
            text = ResponseOutputText(
                type="output_text",
                text="Two words, and I cannot reach the network.",
                annotations=[],
            )
            item = ResponseOutputMessage(
                id="1", type="message", role="assistant", status="completed", content=[text]
            )
        return ModelResponse(output=[item], usage=Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


async def main() -> None:
    model = Pretended("echo two words > notes.txt; wc -w notes.txt", "curl -sS https://example.com")
    with tempfile.TemporaryDirectory() as directory:
        async with Gateway(policy="code-assistant", workspace=directory) as gateway:
            agent = Agent(name="assistant", model=model, tools=[*purple_tools(gateway)])
            config = RunConfig(tracing_disabled=True)
            result = await Runner.run(agent, "Take a note.", run_config=config)
            for item in result.new_items:
                if item.type == "tool_call_output_item":
                    print(item.output)
            print(result.final_output)


if __name__ == "__main__":
    asyncio.run(main())
