"""An agent whose tools run in a sandbox: LangChain with a model that is only pretended, offline.

pip install 'purplebox[langchain]' && python examples/langchain_agent.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from purplebox import Gateway
from purplebox.integrations.langchain import PurpleMiddleware, PurpleToolkit, sandboxed


class Model(GenericFakeChatModel):
    """Says what it was told to."""

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        return self


@tool
def total(path: str) -> float:
    """Add the numbers in a file, one a line."""
    return sum(float(line) for line in Path(path).read_text().split())


def asks(name: str, **arguments: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": name}])


def main() -> None:
    model = Model(
        messages=iter(
            [
                asks("write_file", path="sums.txt", content="1\n2.5\n"),
                asks("total", path="sums.txt"),
                asks("shell", command="curl -sS https://example.com"),
                AIMessage("3.5, and I cannot reach the network."),
            ]
        )
    )
    with (
        tempfile.TemporaryDirectory() as directory,
        Gateway(policy="code-assistant", workspace=directory).sync() as gateway,
    ):
        tools = [*PurpleToolkit(gateway).get_tools(), sandboxed(total, gateway)]
        agent: Any = create_agent(model, tools, middleware=[PurpleMiddleware(gateway)])  # pyright: ignore
        state = agent.invoke({"messages": [("user", "Add these up.")]})
    for message in state["messages"]:
        if message.text:
            print(f"{message.type}: {message.text}")


if __name__ == "__main__":
    main()
