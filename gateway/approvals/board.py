"""The open questions of one gateway, for whoever may answer them from another process."""

from __future__ import annotations

import asyncio
import hmac
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from .question import Answer, Choice, Question


@dataclass(frozen=True, kw_only=True)
class _Item:
    question: Question
    asked: float  # of the monotonic clock
    answer: asyncio.Future[Answer]


class Board:
    """A way to ask: the question is put up and stays until it is answered or taken down.

    `gateway` says which gateway it is, in a line, for a person who has several.
    """

    who = "command"

    def __init__(self, gateway: str = "") -> None:
        self.gateway = gateway
        self._items: dict[str, _Item] = {}

    async def ask(self, question: Question) -> Answer:
        """As `Asker.ask`."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._items[question.id] = _Item(question=question, asked=time.monotonic(), answer=future)
        print(
            f"purple: {question.title} waits for your approval: purple approvals show {question.id}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        try:
            return await future
        finally:
            del self._items[question.id]

    def questions(self) -> list[dict[str, Any]]:
        """What is open, oldest first, as JSON has it."""
        now = time.monotonic()
        return [
            {
                "id": item.question.id, "binding": item.question.binding,
                "title": item.question.title, "text": item.question.text,
                "choices": list(item.question.choices), **item.question.facts,
                "waited_seconds": round(now - item.asked, 1),
                "expires_seconds": round(item.question.expires_seconds - (now - item.asked), 1),
                "gateway": self.gateway, "pid": os.getpid(),
            }
            for item in self._items.values()
            if not item.answer.done()
        ]  # fmt: skip

    def answer(self, id: str, choice: Choice, binding: str) -> str:
        """Answer one; good once.

        Args:
            id: Of the question.
            choice: One of those that it offers.
            binding: Of the question that was shown.

        Returns:
            "" when the answer was taken, else why it was not.
        """
        item = self._items.get(id)
        if item is None or item.answer.done():
            return f"no question {id} is open: it was answered, has expired, or its client has gone"
        if not hmac.compare_digest(binding.encode(), item.question.binding.encode()):
            return f"question {id} is about another call than the one that was shown"
        if choice not in item.question.choices:
            return f"{choice} is not offered; there are: {', '.join(item.question.choices)}"
        item.answer.set_result(Answer(choice=choice, by=self.who, binding=binding))
        return ""
