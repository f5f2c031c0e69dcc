"""A deep agent whose sandbox is Purple's, with a model that is only pretended, offline.

pip install 'purplebox[deepagents]' && python examples/deepagents_agent.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from deepagents import create_deep_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from purplebox import Gateway
from purplebox.integrations.deepagents import PurpleBackend


class Model(GenericFakeChatModel):
    """Says what it was told to."""

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        return self


def asks(name: str, **arguments: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": name}])


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        Gateway(policy="code-assistant", workspace=directory).sync() as gateway,
    ):
        backend = PurpleBackend(gateway)
        notes = f"{backend.id}/notes.txt"
        model = Model(
            messages=iter(
                [
                    asks("write_file", file_path=notes, content="two words\n"),
                    asks("execute", command="wc -w < notes.txt; curl -sS https://example.com"),
                    AIMessage("Two words, and I cannot reach the network."),
                ]
            )
        )
        agent: Any = create_deep_agent(model, backend=backend)
        state = agent.invoke({"messages": [("user", "Take a note.")]})
    for message in state["messages"]:
        if message.text:
            print(f"{message.type}: {message.text}")


if __name__ == "__main__":
    main()
