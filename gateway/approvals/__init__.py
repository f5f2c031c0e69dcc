"""A person's word on calls whose verdict is `ask`.

`question` is what is shown and answered, and the protocol `Asker` by which a person is reached;
`Approvals` asks on every way at once and takes the first answer. Ways: `board`, which other processes
of the same user reach through `channel` (`purple approvals`), `webhook`, `Callback`, and the client's own dialog
(`wire.asking`).
"""

from __future__ import annotations

from .approvals import Approvals, Callback
from .board import Board
from .question import Answer, Asker, Choice, Question

__all__ = ["Answer", "Approvals", "Asker", "Board", "Callback", "Choice", "Question"]
